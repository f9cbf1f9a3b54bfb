/* SPDX-License-Identifier: MIT */
/* A job's phases: beginning, ending, making and freeing. */
#include "blk_job_int.h"

#include <errno.h>
#include <stdlib.h>

#include "live.h"

#define BUFFER_ALIGNMENT 4096
/* At the end of a run: while requests end within this time of each other, more are waited for.  A
 * flush may have gigabytes to write, and cannot be recalled. */
#define PATIENCE_NS (INT64_C(10) * 1000000000)
#define FLUSH_PATIENCE_NS (INT64_C(120) * 1000000000)
#define BITS_PER_WORD 64

/* ---- The end of a phase ---------------------------------------------------------------------- */

static void announce(struct blk_job *job, enum blk_job_state state)
{
    __atomic_store_n(&job->state, state, __ATOMIC_RELEASE);
    event_notifier_set(job->config.news);
}

static void subtract_stats(AioContextStats *now, const AioContextStats *before)
{
    /* The struct is nothing but counters. */
    uint64_t *a = (uint64_t *)now;
    const uint64_t *b = (const uint64_t *)before;

    for (size_t i = 0; i < sizeof(*now) / sizeof(*a); i++) {
        a[i] -= b[i];
    }
}

void blk_job_finish_if_drained(struct blk_job *job)
{
    if (!job->stopping || job->in_flight || blk_job_state(job) != JOB_RUNNING) {
        return;
    }
    timer_del(job->limit);
    if (!job->layout) {
        job->results.end_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        aio_context_get_stats(job->config.ctx, &job->results.stats);
        subtract_stats(&job->results.stats, &job->stats_before);
    }
    announce(job, JOB_DONE);
}

static void cancel_all(struct blk_job *job)
{
    job->cancelled = true;
    if (job->flush_acb) {
        blk_aio_cancel_async(job->flush_acb);
    }
    for (unsigned i = 0; i < job->config.iodepth; i++) {
        if (job->slots[i].acb) {
            blk_aio_cancel_async(job->slots[i].acb);
        }
    }
}

static void wait_patiently(struct blk_job *job)
{
    int64_t patience_ns = job->flushes_in_flight ? FLUSH_PATIENCE_NS : PATIENCE_NS;

    timer_mod(job->limit, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + patience_ns);
}

static void on_limit(void *opaque)
{
    struct blk_job *job = opaque;

    if (job->ramp_limit) {
        job->ramp_limit = false;
        if (blk_job_is_open_loop(job)) {
            blk_job_advance_due(job, qemu_clock_get_ns(QEMU_CLOCK_REALTIME), true);
        }
        if (job->ramping) {
            blk_job_end_ramp(job, blk_job_is_open_loop(job) ? job->due : job->issued);
        }
        if (job->end_ns != INT64_MAX) {
            timer_mod(job->limit, job->end_ns);
        }
    } else if (!job->stopping) {
        blk_job_begin_stop(job);
        blk_job_finish_if_drained(job);
    } else if (job->ended != job->ended_before) {
        job->ended_before = job->ended;
        wait_patiently(job);
    } else if (!job->cancelled) {
        wait_patiently(job);
        blk_job_note_failure(job, "drain", 0, 0, ETIMEDOUT);
        cancel_all(job);
    } else {
        announce(job, JOB_STUCK);
    }
}

void blk_job_note_failure(struct blk_job *job, const char *what, int64_t offset_bytes,
                          int64_t bytes, int error)
{
    struct blk_failure *failure = &job->results.failure;

    live_add(&job->results.counters.errors, 1);
    if (!failure->what) {
        *failure = (struct blk_failure){ what, offset_bytes, bytes, error };
    }
    blk_job_begin_stop(job);
}

void blk_job_begin_stop(struct blk_job *job)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    if (job->stopping) {
        return;
    }
    job->stopping = true;
    job->ramping = job->ramp_limit = false;
    timer_del(job->tick);
    job->ended_before = job->ended;
    wait_patiently(job);
    if (blk_job_is_open_loop(job)) {
        blk_job_advance_due(job, now, false);
        live_set(&job->results.counters.unissued, job->due - job->issued);
    }
}

/* ---- The begin of a phase -------------------------------------------------------------------- */

void blk_job_end_ramp(struct blk_job *job, uint64_t done)
{
    job->ramping = false;
    job->quota = job->config.ios < UINT64_MAX - done ? done + job->config.ios : UINT64_MAX;
    aio_context_get_stats(job->config.ctx, &job->stats_before);
}

static void on_tick(void *opaque)
{
    struct blk_job *job = opaque;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    if (blk_job_is_open_loop(job)) {
        blk_job_advance_due(job, now, true);
    }
    blk_job_pump(job, now);
    if (blk_job_is_open_loop(job) && !job->stopping && job->due < job->quota) {
        timer_mod(job->tick, blk_job_next_due(job));
    }
    blk_job_finish_if_drained(job);
}

static void begin_run(struct blk_job *job)
{
    int64_t first_end_ns = job->ramping ? job->measure_ns : job->end_ns;

    job->results.start_ns = job->measure_ns;
    aio_context_get_stats(job->config.ctx, &job->stats_before);
    job->ramp_limit = job->ramping;
    if (first_end_ns != INT64_MAX) {
        timer_mod(job->limit, first_end_ns);
    }
    if (job->opt->rate) {
        blk_schedule_init(&job->due_at, job->start_ns, job->opt->rate, job->config.index,
                          job->config.iothreads);
        job->issue_at = job->due_at;
    }
}

static void begin_bh(void *opaque)
{
    struct blk_job *job = opaque;

    job->stopping = job->cancelled = false;
    job->ramping = job->opt->ramp_ns && !job->layout;
    job->due = job->issued = job->layout_unit = 0;
    job->places.cursor = 0;
    job->quota = job->layout || job->ramping ? UINT64_MAX : job->config.ios;
    if (!job->layout) {
        begin_run(job);
    }
    timer_mod(job->tick,
              blk_job_is_open_loop(job) && job->quota ? blk_job_next_due(job) : job->start_ns);
}

static void stop_bh(void *opaque)
{
    struct blk_job *job = opaque;

    if (blk_job_state(job) == JOB_RUNNING) {
        blk_job_begin_stop(job);
        blk_job_finish_if_drained(job);
    }
}

static void begin_phase(struct blk_job *job, bool layout, int64_t start_ns, int64_t end_ns)
{
    job->layout = layout;
    job->start_ns = start_ns;
    job->measure_ns = start_ns + (layout ? 0 : job->opt->ramp_ns);
    job->end_ns = end_ns;
    __atomic_store_n(&job->state, JOB_RUNNING, __ATOMIC_RELEASE);
    qemu_bh_schedule(job->begin_bh);
}

void blk_job_layout(struct blk_job *job)
{
    begin_phase(job, true, qemu_clock_get_ns(QEMU_CLOCK_REALTIME), INT64_MAX);
}

void blk_job_run(struct blk_job *job, int64_t start_ns)
{
    int64_t runtime_ns = job->opt->runtime_ns;

    begin_phase(job, false, start_ns,
                runtime_ns ? start_ns + job->opt->ramp_ns + runtime_ns : INT64_MAX);
}

void blk_job_stop(struct blk_job *job)
{
    qemu_bh_schedule(job->stop_bh);
}

enum blk_job_state blk_job_state(const struct blk_job *job)
{
    return (enum blk_job_state)__atomic_load_n(&job->state, __ATOMIC_ACQUIRE);
}

const struct blk_results *blk_job_results(const struct blk_job *job)
{
    return &job->results;
}

const char *blk_job_name(const struct blk_job *job)
{
    return job->config.name;
}

/* ---- Making and freeing ---------------------------------------------------------------------- */

static bool make_slots(struct blk_job *job)
{
    size_t bs = job->config.buf_bytes, depth = job->config.iodepth;
    size_t stride = (bs + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;

    job->slots = calloc(depth, sizeof(*job->slots));
    job->buffers = aligned_alloc(BUFFER_ALIGNMENT, depth * stride);
    job->busy = calloc(job->config.units / BITS_PER_WORD + 1, sizeof(*job->busy));
    if (!job->slots || !job->buffers || !job->busy) {
        return false;
    }
    blk_random_fill(&job->random, job->buffers, depth * stride); /* no device can shrink it */
    if (blk_register_buf(job->config.blk, job->buffers, depth * stride) < 0) { /* until it closes */
        return false;
    }
    for (size_t i = 0; i < depth; i++) {
        struct slot *slot = &job->slots[i];

        slot->job = job;
        slot->buf = job->buffers + i * stride;
        slot->next_free = job->free_slots;
        job->free_slots = slot;
    }
    return true;
}

static bool make_events(struct blk_job *job)
{
    AioContext *ctx = job->config.ctx;

    job->begin_bh = aio_bh_new(ctx, begin_bh, job);
    job->stop_bh = aio_bh_new(ctx, stop_bh, job);
    job->tick = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, on_tick, job);
    job->limit = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, on_limit, job);
    return job->begin_bh && job->stop_bh && job->tick && job->limit;
}

struct blk_job *blk_job_new(const struct blk_job_config *config)
{
    struct blk_job *job = calloc(1, sizeof(*job));

    if (!job) {
        return NULL;
    }
    job->config = *config;
    job->opt = config->opt;
    job->unit_bytes = config->opt->bs.unit;
    /* Skewed patterns have requests on the same places at once; that is what they are for. */
    job->tracks =
        !config->requests && (config->opt->verify || config->opt->pattern.order == ORDER_RANDOM ||
                              config->opt->pattern.order == ORDER_SEQUENTIAL);
    aio_context_ref(config->ctx);
    blk_random_init(&job->random, config->opt->seed, config->random_stream);
    if (!config->requests) {
        blk_places_init(&job->places, &config->opt->pattern, config->units);
    }
    if ((config->opt->verify &&
         verify_region_init(&job->region, config->offset_bytes, job->unit_bytes, config->units,
                            config->run_id, config->initial) < 0) ||
        !make_slots(job) || !make_events(job)) {
        blk_job_free(job);
        errno = ENOMEM;
        return NULL;
    }
    return job;
}

void blk_job_free(struct blk_job *job)
{
    if (!job) {
        return;
    }
    timer_free(job->limit);
    timer_free(job->tick);
    qemu_bh_delete(job->stop_bh);
    qemu_bh_delete(job->begin_bh);
    free(job->busy);
    free(job->buffers);
    free(job->slots);
    verify_region_destroy(&job->region);
    aio_context_unref(job->config.ctx);
    free(job);
}
