/* SPDX-License-Identifier: MIT */
/* A job's requests: choosing, issuing and accounting. */
#include "blk_job_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "live.h"

#define BITS_PER_WORD 64

/* ---- The schedule ---------------------------------------------------------------------------- */

/* The moment of request number @i of a trace. */
static int64_t replay_moment(const struct blk_job *job, uint64_t i)
{
    int64_t time_ns = job->config.requests[i].time_ns;
    double speed = job->opt->replay_speed;

    return job->start_ns + (speed == 1 ? time_ns : (int64_t)((double)time_ns / speed));
}

int64_t blk_job_next_due(const struct blk_job *job)
{
    return job->config.requests ? replay_moment(job, job->due) : job->due_at.next_ns;
}

void blk_job_advance_due(struct blk_job *job, int64_t now, bool record_lateness)
{
    int64_t next_ns;

    while (job->due < job->quota && (next_ns = blk_job_next_due(job)) <= now &&
           next_ns < job->end_ns) {
        if (job->ramping && next_ns >= job->measure_ns) {
            blk_job_end_ramp(job, job->due);
            continue;
        }
        if (record_lateness && next_ns >= job->measure_ns) {
            hist_record(&job->results.lateness, now - next_ns);
        }
        blk_schedule_step(&job->due_at);
        job->due++;
    }
}

/* ---- Units ----------------------------------------------------------------------------------- */

static bool is_busy(const struct blk_job *job, uint64_t unit)
{
    return job->busy[unit / BITS_PER_WORD] >> unit % BITS_PER_WORD & 1;
}

static void mark(struct blk_job *job, uint64_t unit, uint32_t units, bool busy)
{
    for (uint64_t u = unit; u < unit + units; u++) {
        uint64_t bit = UINT64_C(1) << u % BITS_PER_WORD;

        if (busy) {
            job->busy[u / BITS_PER_WORD] |= bit;
        } else {
            job->busy[u / BITS_PER_WORD] &= ~bit;
        }
    }
}

/* The first place from @unit on where @units have no request in flight, and marks them.  There is
 * one: deal_out() in blk_target.c sees to it. */
static uint64_t take_units(struct blk_job *job, uint64_t unit, uint32_t units)
{
    for (uint32_t i = 0; i < units;) {
        if (!is_busy(job, unit + i)) {
            i++;
            continue;
        }
        unit += i + 1;
        unit = unit + units <= job->config.units ? unit : 0;
        i = 0;
    }
    mark(job, unit, units, true);
    return unit;
}

/* ---- Choosing what to do --------------------------------------------------------------------- */

static void choose_place(struct blk_job *job, struct slot *slot)
{
    uint32_t units = job->layout ? job->config.buf_bytes / job->unit_bytes
                                 : blk_sizes_choose(&job->opt->bs, &job->random);

    if (job->layout) {
        uint64_t left = job->config.units - job->layout_unit;

        slot->unit = job->layout_unit;
        units = left < units ? (uint32_t)left : units;
        job->layout_unit += units;
    } else {
        slot->unit = blk_places_choose(&job->places, units, &job->random);
    }
    slot->units = job->tracks ? units : 0;
    if (job->tracks) {
        slot->unit = take_units(job, slot->unit, units);
        job->places.cursor = slot->unit + units;
    }
    slot->offset_bytes = job->config.offset_bytes + (int64_t)(slot->unit * job->unit_bytes);
    slot->bytes = (int64_t)units * job->unit_bytes;
}

static void choose(struct blk_job *job, struct slot *slot)
{
    slot->flags = 0;
    slot->kind = job->layout ? KIND_WRITE : blk_mix_choose(&job->opt->mix, &job->random);
    if (slot->kind == KIND_FLUSH) {
        slot->units = 0;
        slot->offset_bytes = slot->bytes = 0;
    } else {
        choose_place(job, slot);
    }
    slot->deadline_ns =
        job->opt->deadline_ns && !job->layout ? slot->from_ns + job->opt->deadline_ns : -1;
}

static void take_from_trace(struct blk_job *job, struct slot *slot)
{
    const struct blk_replay_request *r = &job->config.requests[job->issued];
    int64_t deadline_ns = job->opt->deadline_ns ? job->opt->deadline_ns : r->deadline_ns;

    slot->kind = (enum blk_kind)r->kind;
    slot->flags = r->flags;
    slot->units = 0;
    slot->offset_bytes = r->offset;
    slot->bytes = r->bytes;
    slot->deadline_ns = deadline_ns >= 0 ? slot->from_ns + deadline_ns : -1;
}

/* ---- Accounting ------------------------------------------------------------------------------ */

static void complain_of_mismatch(const struct blk_job *job, const struct verify_mismatch *mismatch)
{
    fprintf(stderr,
            "%saioctx-blk: verify: mismatch at offset %" PRId64 " (iothread %u): expected %s; "
            "found %s\n",
            job->config.message_start, mismatch->offset_bytes, job->config.index,
            mismatch->expected, mismatch->found);
}

/* The worst of its units. */
static enum verify_result check_units(struct blk_job *job, const struct slot *slot,
                                      struct verify_mismatch *ret_mismatch)
{
    enum verify_result worst = VERIFY_OK;

    for (uint32_t i = 0; i < slot->units && worst != VERIFY_BAD; i++) {
        enum verify_result one =
            verify_check(&job->region, slot->unit + i,
                         (const char *)slot->buf + (size_t)i * job->unit_bytes, ret_mismatch);

        worst = one > worst ? one : worst;
    }
    return worst;
}

static void check_read(struct blk_job *job, const struct slot *slot)
{
    struct blk_counters *counters = &job->results.counters;
    struct verify_mismatch mismatch;

    switch (check_units(job, slot, &mismatch)) {
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
            blk_job_begin_stop(job);
        }
        break;
    }
}

static void verify_ended(struct blk_job *job, const struct slot *slot)
{
    if (slot->kind == KIND_READ) {
        check_read(job, slot);
    }
    for (uint32_t i = 0; slot->kind == KIND_WRITE && i < slot->units; i++) {
        verify_written(&job->region, slot->unit + i);
    }
}

static void prepare_buffer(struct blk_job *job, struct slot *slot)
{
    for (uint32_t i = 0; job->opt->verify && i < slot->units; i++) {
        char *buf = (char *)slot->buf + (size_t)i * job->unit_bytes;

        if (slot->kind == KIND_WRITE) {
            verify_fill(&job->region, slot->unit + i, buf);
        } else if (slot->kind == KIND_READ) {
            verify_wipe(&job->region, buf);
        }
    }
}

static bool is_measured(const struct blk_job *job, const struct slot *slot)
{
    return !job->layout && slot->from_ns >= job->measure_ns;
}

static void account_success(struct blk_job *job, const struct slot *slot, int64_t now)
{
    struct blk_counters *counters = &job->results.counters;

    if (slot->kind == KIND_WRITE && job->opt->fsync_every &&
        ++job->writes_since_flush >= job->opt->fsync_every) {
        job->writes_since_flush = 0;
        job->flush_wanted = true;
    }
    if (!is_measured(job, slot)) {
        return;
    }
    if (slot->deadline_ns >= 0 && now > slot->deadline_ns) {
        live_add(&counters->late, 1);
    }
    live_add(&counters->ended[slot->kind], 1);
    if (slot->kind == KIND_READ) {
        live_add(&counters->bytes_read, (uint64_t)slot->bytes);
    } else if (slot->kind == KIND_WRITE) {
        live_add(&counters->bytes_written, (uint64_t)slot->bytes);
    }
}

/* Of one that ended in @ret, and not in 0. */
static void account_failure(struct blk_job *job, const struct slot *slot, int ret)
{
    struct blk_counters *counters = &job->results.counters;

    switch (ret) {
    case -ETIMEDOUT:
        live_add(&counters->missed, is_measured(job, slot));
        break;
    case -ECANCELED:
        live_add(&counters->cancelled, is_measured(job, slot));
        break;
    default:
        blk_job_note_failure(job, blk_kind_names[slot->kind], slot->offset_bytes, slot->bytes,
                             -ret);
        break;
    }
}

static void account(struct blk_job *job, const struct slot *slot, int ret, int64_t now)
{
    if (is_measured(job, slot)) {
        hist_record(&job->results.latency[slot->kind], now - slot->from_ns);
    }
    if (ret) {
        account_failure(job, slot, ret);
    } else if (job->layout) {
        live_add(&job->results.counters.laid_out, (uint64_t)slot->bytes);
    } else {
        account_success(job, slot, now);
    }
}

static void trace(struct blk_job *job, const struct slot *slot, int ret, int64_t now)
{
    struct blk_trace_record record = {
        .time_ns = slot->from_ns - job->start_ns,
        .offset = slot->offset_bytes,
        .bytes = slot->bytes,
        .deadline_ns = slot->deadline_ns < 0 ? -1 : slot->deadline_ns - slot->from_ns,
        .latency_ns = now - slot->from_ns,
        .result = ret,
        .kind = (uint8_t)slot->kind,
        .flags = (uint8_t)slot->flags,
    };

    if (!job->layout) {
        blk_trace_add(job->config.trace, &record);
    }
}

/* ---- Flushes of --fsync ---------------------------------------------------------------------- */

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
    job->flush_from_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    job->flush_acb = blk_aio_flush(job->config.blk, on_flushed, job);
    if (!job->flush_acb) {
        blk_job_note_failure(job, "flush", 0, 0, errno);
        return;
    }
    job->in_flight++;
    job->flushes_in_flight++;
}

static void on_flushed(void *opaque, int ret)
{
    struct blk_job *job = opaque;
    struct slot like = { .kind = KIND_FLUSH, .from_ns = job->flush_from_ns, .deadline_ns = -1 };
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    job->flush_acb = NULL;
    job->ended++;
    job->in_flight--;
    job->flushes_in_flight--;
    if (job->config.trace) {
        trace(job, &like, ret, now);
    }
    if (ret) {
        account_failure(job, &like, ret);
    } else {
        live_add(&job->results.counters.ended[KIND_FLUSH], is_measured(job, &like));
    }
    flush_if_wanted(job);
    blk_job_pump(job, now);
    blk_job_finish_if_drained(job);
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void put_slot(struct blk_job *job, struct slot *slot)
{
    slot->acb = NULL;
    slot->next_free = job->free_slots;
    job->free_slots = slot;
    mark(job, slot->unit, slot->units, false);
    job->ended++;
    job->in_flight--;
    job->flushes_in_flight -= slot->kind == KIND_FLUSH;
}

static void on_request_done(void *opaque, int ret)
{
    struct slot *slot = opaque;
    struct blk_job *job = slot->job;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    account(job, slot, ret, now);
    if (job->config.trace) {
        trace(job, slot, ret, now);
    }
    if (job->opt->verify && ret == 0) {
        verify_ended(job, slot);
        now = qemu_clock_get_ns(
            QEMU_CLOCK_REALTIME); /* checking takes time that is not the next one's */
    }
    put_slot(job, slot);
    flush_if_wanted(job);
    blk_job_pump(job, now);
    blk_job_finish_if_drained(job);
}

static BlockAIOCB *submit(struct slot *slot, const BlkReqOpts *opts)
{
    BlockBackend *blk = slot->job->config.blk;
    int64_t offset = slot->offset_bytes, bytes = slot->bytes;
    unsigned flags = slot->flags;

    switch (slot->kind) {
    case KIND_READ:
        qemu_iovec_init_buf(&slot->qiov, slot->buf, (size_t)bytes);
        return blk_aio_preadv_opts(blk, offset, &slot->qiov, 0, on_request_done, slot, opts);
    case KIND_WRITE:
        qemu_iovec_init_buf(&slot->qiov, slot->buf, (size_t)bytes);
        return blk_aio_pwritev_opts(blk, offset, &slot->qiov, flags & TRACE_FUA ? BDRV_REQ_FUA : 0,
                                    on_request_done, slot, opts);
    case KIND_FLUSH:
        return blk_aio_flush_opts(blk, on_request_done, slot, opts);
    case KIND_DISCARD:
        return blk_aio_pdiscard_opts(blk, offset, bytes, on_request_done, slot, opts);
    case KIND_ZEROES:
        return blk_aio_pwrite_zeroes_opts(
            blk, offset, bytes,
            (BdrvRequestFlags)((flags & TRACE_FUA ? BDRV_REQ_FUA : 0) |
                               (flags & TRACE_MAY_UNMAP ? BDRV_REQ_MAY_UNMAP : 0) |
                               (flags & TRACE_NO_FALLBACK ? BDRV_REQ_NO_FALLBACK : 0)),
            on_request_done, slot, opts);
    default:
        return blk_aio_block_status_opts(blk, offset, bytes, &slot->extent, on_request_done, slot,
                                         opts);
    }
}

static void issue(struct blk_job *job, int64_t from_ns)
{
    struct slot *slot = job->free_slots;
    BlkReqOpts req = { .deadline_ns = -1 };

    job->free_slots = slot->next_free;
    slot->from_ns = from_ns;
    if (job->config.requests) {
        take_from_trace(job, slot);
    } else {
        choose(job, slot);
    }
    job->in_flight++;
    job->flushes_in_flight += slot->kind == KIND_FLUSH;
    job->issued++;
    prepare_buffer(job, slot);
    req.deadline_ns = slot->deadline_ns;
    /* Without options: the backend's own deadline, if it has one. */
    slot->acb = submit(slot, slot->deadline_ns >= 0 || job->layout ? &req : NULL);
    if (!slot->acb) {
        int error = errno;

        put_slot(job, slot);
        blk_job_note_failure(job, blk_kind_names[slot->kind], slot->offset_bytes, slot->bytes,
                             error);
    }
}

/* The next request of an open loop. */
static void issue_due(struct blk_job *job, int64_t now)
{
    int64_t moment_ns =
        job->config.requests ? replay_moment(job, job->issued) : job->issue_at.next_ns;

    blk_schedule_step(&job->issue_at);
    if (now - moment_ns > BLK_LATE_NS && moment_ns >= job->measure_ns) {
        live_add(&job->results.counters.begun_late, 1);
    }
    issue(job, moment_ns);
}

static bool has_more(const struct blk_job *job)
{
    if (job->layout) {
        return job->layout_unit < job->config.units;
    }
    return job->issued < (blk_job_is_open_loop(job) ? job->due : job->quota);
}

void blk_job_pump(struct blk_job *job, int64_t now)
{
    while (!job->stopping && job->free_slots && has_more(job)) {
        if (blk_job_is_open_loop(job)) {
            issue_due(job, now);
        } else {
            if (job->ramping && now >= job->measure_ns) {
                blk_job_end_ramp(job, job->issued);
            }
            issue(job, now);
        }
    }
    if (job->layout ? !has_more(job) : job->issued == job->quota) {
        blk_job_begin_stop(job);
    }
}
