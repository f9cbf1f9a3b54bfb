/* SPDX-License-Identifier: MIT */
#include "blk_job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk_random.h"
#include "blk_schedule.h"
#include "live.h"

#define BUFFER_ALIGNMENT 4096
/* At the end of a run: while requests end within this time of each other, more are waited for.  A
 * flush may have gigabytes to write, and cannot be recalled. */
#define PATIENCE_NS (INT64_C(10) * 1000000000)
#define FLUSH_PATIENCE_NS (INT64_C(120) * 1000000000)
#define BITS_PER_WORD 64

struct slot {
    struct blk_job *job;
    struct slot *next_free;
    BlockAIOCB *acb; /* NULL: not in flight */
    void *buf;
    QEMUIOVector qiov;
    uint64_t block;
    int64_t from_ns;     /* latency counts from here */
    int64_t deadline_ns; /* -1: none of ours */
    bool write;
};

struct blk_job {
    struct blk_job_config config;
    const struct blk_options *opt;
    QEMUBH *begin_bh, *stop_bh;
    QEMUTimer *tick;  /* open loop: the next moment of the schedule; closed loop: the start */
    QEMUTimer *limit; /* the end of the run, then of the patience with what is in flight */
    struct slot *slots;
    char *buffers;
    uint64_t *busy; /* a bit a block: has a request in flight */
    struct verify_region region;
    int state; /* enum blk_job_state; atomic: release when a phase ends, for blk_job_state() */

    /* Set by the main thread between phases. */
    bool layout;
    int64_t start_ns;
    int64_t end_ns; /* INT64_MAX: no limit */

    /* Home thread, while a phase runs. */
    struct slot *free_slots;
    struct blk_random random;
    struct blk_schedule due_at, issue_at; /* the two cursors */
    uint64_t quota, due, issued;
    uint64_t cursor; /* the next block, when it goes in order */
    unsigned in_flight;
    uint64_t ended, ended_before; /* requests; when the limit was last set */
    unsigned writes_since_flush;
    bool stopping, cancelled;
    bool flush_wanted;
    BlockAIOCB *flush_acb;
    AioContextStats stats_before;
    struct blk_results results;
};

static void begin_stop(struct blk_job *job);
static void note_failure(struct blk_job *job, const char *what, int64_t offset_bytes, int error);

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

static void finish_if_drained(struct blk_job *job)
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
    for (unsigned i = 0; i < job->opt->iodepth; i++) {
        if (job->slots[i].acb) {
            blk_aio_cancel_async(job->slots[i].acb);
        }
    }
}

static void wait_patiently(struct blk_job *job)
{
    int64_t patience_ns = job->flush_acb ? FLUSH_PATIENCE_NS : PATIENCE_NS;

    timer_mod(job->limit, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + patience_ns);
}

static void on_limit(void *opaque)
{
    struct blk_job *job = opaque;

    if (!job->stopping) {
        begin_stop(job);
        finish_if_drained(job);
    } else if (job->ended != job->ended_before) {
        job->ended_before = job->ended;
        wait_patiently(job);
    } else if (!job->cancelled) {
        wait_patiently(job);
        note_failure(job, "drain", 0, -ETIMEDOUT);
        cancel_all(job);
    } else {
        announce(job, JOB_STUCK);
    }
}

static void note_failure(struct blk_job *job, const char *what, int64_t offset_bytes, int error)
{
    struct blk_failure *failure = &job->results.failure;

    live_add(&job->results.counters.errors, 1);
    if (!failure->what) {
        *failure = (struct blk_failure){ what, offset_bytes, error };
    }
    begin_stop(job);
}

/* ---- Choosing what to do --------------------------------------------------------------------- */

static bool is_open_loop(const struct blk_job *job)
{
    return job->opt->rate && !job->layout;
}

static bool choose_write(struct blk_job *job)
{
    if (job->layout) {
        return true;
    }
    if (job->opt->rw == RW_MIXED) {
        return blk_random_below(&job->random, 100) >= job->opt->rwmixread;
    }
    return job->opt->rw == RW_WRITE;
}

/* Finds a block with no request in flight, and marks it.  There is one: a region has no fewer
 * blocks than there are slots. */
static uint64_t take_block(struct blk_job *job)
{
    uint64_t blocks = job->config.blocks;
    bool random = job->opt->random && !job->layout;
    uint64_t block = random ? blk_random_below(&job->random, blocks) : job->cursor;

    while (job->busy[block / BITS_PER_WORD] >> block % BITS_PER_WORD & 1) {
        block = block + 1 < blocks ? block + 1 : 0;
    }
    job->busy[block / BITS_PER_WORD] |= UINT64_C(1) << block % BITS_PER_WORD;
    job->cursor = block + 1 < blocks ? block + 1 : 0;
    return block;
}

static void release_block(struct blk_job *job, uint64_t block)
{
    job->busy[block / BITS_PER_WORD] &= ~(UINT64_C(1) << block % BITS_PER_WORD);
}

static int64_t block_offset(const struct blk_job *job, uint64_t block)
{
    return job->config.offset_bytes + (int64_t)(block * job->opt->bs_bytes);
}

/* Counts the moments of the schedule that have come by @now. */
static void advance_due(struct blk_job *job, int64_t now, bool record_lateness)
{
    while (job->due < job->quota && job->due_at.next_ns <= now &&
           job->due_at.next_ns < job->end_ns) {
        if (record_lateness) {
            hist_record(&job->results.lateness, now - job->due_at.next_ns);
        }
        blk_schedule_step(&job->due_at);
        job->due++;
    }
}

static void begin_stop(struct blk_job *job)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    if (job->stopping) {
        return;
    }
    job->stopping = true;
    timer_del(job->tick);
    job->ended_before = job->ended;
    wait_patiently(job);
    if (is_open_loop(job)) {
        advance_due(job, now, false);
        live_set(&job->results.counters.unissued, job->due - job->issued);
    }
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void pump(struct blk_job *job, int64_t now);

static void on_flushed(void *opaque, int ret);

/* One flush at a time; those that come due meanwhile become one.  The last one still comes when
 * the run ends because all its requests have been issued. */
static void flush_if_wanted(struct blk_job *job)
{
    if (!job->flush_wanted || job->flush_acb || (job->stopping && job->issued < job->quota) ||
        job->results.failure.what) {
        return;
    }
    job->flush_wanted = false;
    job->flush_acb = blk_aio_flush(job->config.blk, on_flushed, job);
    if (!job->flush_acb) {
        note_failure(job, "flush", 0, errno);
        return;
    }
    job->in_flight++;
}

static void on_flushed(void *opaque, int ret)
{
    struct blk_job *job = opaque;
    struct blk_counters *counters = &job->results.counters;

    job->flush_acb = NULL;
    job->ended++;
    job->in_flight--;
    switch (ret) {
    case 0:
        live_add(&counters->flushes, 1);
        break;
    case -ETIMEDOUT:
        live_add(&counters->missed, 1);
        break;
    case -ECANCELED:
        live_add(&counters->cancelled, 1);
        break;
    default:
        note_failure(job, "flush", 0, -ret);
        break;
    }
    flush_if_wanted(job);
    pump(job, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    finish_if_drained(job);
}

static void complain_of_mismatch(const struct blk_job *job, const struct verify_mismatch *mismatch)
{
    fprintf(stderr,
            "%saioctx-blk: verify: mismatch at offset %" PRId64 " (iothread %u): expected %s; "
            "found %s\n",
            job->config.message_start, mismatch->offset_bytes, job->config.index,
            mismatch->expected, mismatch->found);
}

static void check_read(struct blk_job *job, const struct slot *slot)
{
    struct blk_counters *counters = &job->results.counters;
    struct verify_mismatch mismatch;

    switch (verify_check(&job->region, slot->block, slot->buf, &mismatch)) {
    case VERIFY_OK:
        live_add(&counters->checked, 1);
        break;
    case VERIFY_UNKNOWN:
        live_add(&counters->unknown, 1);
        break;
    case VERIFY_BAD:
        live_add(&counters->mismatches, 1);
        if (counters->mismatches <= job->opt->verify_errors_max) {
            complain_of_mismatch(job, &mismatch);
        }
        if (counters->mismatches == job->opt->verify_errors_max) {
            begin_stop(job);
        }
        break;
    }
}

static void account_success(struct blk_job *job, const struct slot *slot, int64_t now)
{
    struct blk_counters *counters = &job->results.counters;

    if (slot->deadline_ns >= 0 && now > slot->deadline_ns) {
        live_add(&counters->late, 1);
    }
    if (!slot->write) {
        live_add(&counters->reads, 1);
        live_add(&counters->bytes_read, job->opt->bs_bytes);
        return;
    }
    live_add(&counters->writes, 1);
    live_add(&counters->bytes_written, job->opt->bs_bytes);
    if (job->opt->fsync_every && ++job->writes_since_flush >= job->opt->fsync_every) {
        job->writes_since_flush = 0;
        job->flush_wanted = true;
    }
}

static void account(struct blk_job *job, const struct slot *slot, int ret, int64_t now)
{
    struct blk_counters *counters = &job->results.counters;

    if (!job->layout) {
        hist_record(&job->results.latency, now - slot->from_ns);
    }
    switch (ret) {
    case 0:
        if (job->layout) {
            live_add(&counters->laid_out, 1);
        } else {
            account_success(job, slot, now);
        }
        break;
    case -ETIMEDOUT:
        live_add(&counters->missed, 1);
        break;
    case -ECANCELED:
        live_add(&counters->cancelled, 1);
        break;
    default:
        note_failure(job, slot->write ? "write" : "read", block_offset(job, slot->block), -ret);
        break;
    }
}

static void put_slot(struct blk_job *job, struct slot *slot)
{
    slot->acb = NULL;
    slot->next_free = job->free_slots;
    job->free_slots = slot;
    release_block(job, slot->block);
    job->ended++;
    job->in_flight--;
}

static void on_request_done(void *opaque, int ret)
{
    struct slot *slot = opaque;
    struct blk_job *job = slot->job;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    account(job, slot, ret, now);
    if (job->opt->verify && ret == 0) {
        if (slot->write) {
            verify_written(&job->region, slot->block);
        } else {
            check_read(job, slot);
        }
        now = qemu_clock_get_ns(
            QEMU_CLOCK_REALTIME); /* checking takes time that is not the next one's */
    }
    put_slot(job, slot);
    flush_if_wanted(job);
    pump(job, now);
    finish_if_drained(job);
}

static void prepare_buffer(struct blk_job *job, struct slot *slot)
{
    if (!job->opt->verify) {
        return;
    }
    if (slot->write) {
        verify_fill(&job->region, slot->block, slot->buf);
    } else {
        verify_wipe(&job->region, slot->buf);
    }
}

static void issue(struct blk_job *job, int64_t from_ns)
{
    struct slot *slot = job->free_slots;
    BlkReqOpts req = { .deadline_ns = -1 };
    const BlkReqOpts *req_opts = job->layout ? &req : NULL; /* NULL: the backend's own, if any */
    int64_t offset_bytes;

    job->free_slots = slot->next_free;
    job->in_flight++;
    job->issued++;
    slot->write = choose_write(job);
    slot->block = take_block(job);
    slot->from_ns = from_ns;
    slot->deadline_ns = -1;
    if (job->opt->deadline_ns && !job->layout) {
        slot->deadline_ns = req.deadline_ns = from_ns + job->opt->deadline_ns;
        req_opts = &req;
    }
    prepare_buffer(job, slot);
    offset_bytes = block_offset(job, slot->block);
    slot->acb = slot->write ? blk_aio_pwritev_opts(job->config.blk, offset_bytes, &slot->qiov, 0,
                                                   on_request_done, slot, req_opts)
                            : blk_aio_preadv_opts(job->config.blk, offset_bytes, &slot->qiov, 0,
                                                  on_request_done, slot, req_opts);
    if (!slot->acb) {
        int error = errno;

        put_slot(job, slot);
        note_failure(job, slot->write ? "write" : "read", offset_bytes, error);
    }
}

/* Issues what may be issued now. */
static void pump(struct blk_job *job, int64_t now)
{
    uint64_t upto = is_open_loop(job) ? job->due : job->quota;

    while (!job->stopping && job->free_slots && job->issued < upto) {
        if (is_open_loop(job)) {
            int64_t moment_ns = job->issue_at.next_ns;

            blk_schedule_step(&job->issue_at);
            issue(job, moment_ns);
        } else {
            issue(job, now);
        }
    }
    if (job->issued == job->quota) {
        begin_stop(job);
    }
}

static void on_tick(void *opaque)
{
    struct blk_job *job = opaque;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    if (is_open_loop(job)) {
        advance_due(job, now, true);
    }
    pump(job, now);
    if (is_open_loop(job) && !job->stopping && job->due < job->quota) {
        timer_mod(job->tick, job->due_at.next_ns);
    }
    finish_if_drained(job);
}

/* ---- Phases ---------------------------------------------------------------------------------- */

static void begin_bh(void *opaque)
{
    struct blk_job *job = opaque;

    job->stopping = job->cancelled = false;
    job->due = job->issued = 0;
    job->cursor = 0;
    job->quota = job->layout ? job->config.blocks : job->config.ios;
    if (job->opt->rate) {
        blk_schedule_init(&job->due_at, job->start_ns, job->opt->rate, job->config.index,
                          job->opt->iothreads);
        job->issue_at = job->due_at;
    }
    if (!job->layout) {
        job->results.start_ns = job->start_ns;
        aio_context_get_stats(job->config.ctx, &job->stats_before);
        if (job->end_ns != INT64_MAX) {
            timer_mod(job->limit, job->end_ns);
        }
    }
    timer_mod(job->tick, is_open_loop(job) ? job->due_at.next_ns : job->start_ns);
}

static void stop_bh(void *opaque)
{
    struct blk_job *job = opaque;

    if (blk_job_state(job) == JOB_RUNNING) {
        begin_stop(job);
        finish_if_drained(job);
    }
}

static void begin_phase(struct blk_job *job, bool layout, int64_t start_ns, int64_t end_ns)
{
    job->layout = layout;
    job->start_ns = start_ns;
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

    begin_phase(job, false, start_ns, runtime_ns ? start_ns + runtime_ns : INT64_MAX);
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

/* ---- Making and freeing ---------------------------------------------------------------------- */

static bool make_slots(struct blk_job *job)
{
    size_t bs = job->opt->bs_bytes, depth = job->opt->iodepth;
    size_t stride = (bs + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;

    job->slots = calloc(depth, sizeof(*job->slots));
    job->buffers = aligned_alloc(BUFFER_ALIGNMENT, depth * stride);
    job->busy = calloc(job->config.blocks / BITS_PER_WORD + 1, sizeof(*job->busy));
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
        qemu_iovec_init_buf(&slot->qiov, slot->buf, bs);
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
    aio_context_ref(config->ctx);
    blk_random_init(&job->random, config->opt->seed, config->index);
    if ((config->opt->verify &&
         verify_region_init(&job->region, config->offset_bytes, config->opt->bs_bytes,
                            config->blocks, config->run_id, config->initial) < 0) ||
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
