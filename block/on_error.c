/* SPDX-License-Identifier: MIT */
/*
 * What a failed piece leads to: an end with that error, another try after a delay, or a stop of the
 * backend until someone resumes it.
 *
 *   retry   The request stays in flight, with its range, in its queue's retry list.  The delay is
 *           the same for all, so the list is in the order of time, and one timer serves it.
 *   stop    The request leaves the flight, gives its range back and goes to the front of its
 *           queue's held list; BLK_HELD_STOP in BlockBackend.held then holds new ones back as a
 *           drained section does.  What is in flight already goes on.
 *
 * A flush is reported whatever the policy: the kernel forgets the pages that it could not write,
 * and a second flush would say that all is well.
 * Source: fsync(2), "NOTES"; Rebello et al., "Can Applications Recover from fsync Failures?", 2020.
 *
 * Closing.  `final`, set under the lock, ends all that: whoever decides on a stop looks under the
 * same lock; a retry is decided at home, where a bottom half that is scheduled after the store has
 * every retry made at once.  The same bottom half arms the timer for the moment when what is left
 * is cancelled.
 */
#include "block/block_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MS_NS INT64_C(1000000)
enum { RETRY_DELAY_MS = 1000, CLOSE_TIMEOUT_MS = 10000, RETRY_RUN_MAX = 64 };

/* ---- Options --------------------------------------------------------------------------------- */

static int parse_policy(const char *name, const char *value, bool write, uint8_t *ret_policy,
                        char **ret_why)
{
    static const char *const names[] = {
        [BLK_ERR_REPORT] = "report",
        [BLK_ERR_STOP] = "stop",
        [BLK_ERR_RETRY] = "retry",
        [BLK_ERR_ENOSPC] = "enospc",
    };

    for (uint8_t i = 0; value && i < (write ? 4 : 3); i++) {
        if (!strcmp(value, names[i])) {
            *ret_policy = i;
            return 0;
        }
    }
    return !value ? 0
                  : blk_fail(ret_why, EINVAL, "option '%s' takes report, stop%s retry, not '%s'",
                             name, write ? ", enospc or" : " or", value);
}

static int parse_ms(const BlkOptions *opts, const char *name, int64_t dflt, int64_t *ret_ns,
                    char **ret_why)
{
    int64_t ms = blk_opt_get(opts, name, dflt);

    if (ms < 1 || ms > INT64_MAX / MS_NS) {
        return blk_fail(ret_why, EINVAL, "option '%s' takes a number of ms from 1 on, not %lld",
                        name, (long long)ms);
    }
    *ret_ns = ms * MS_NS;
    return 0;
}

int blk_on_error_parse(BlockBackend *blk, const BlkOptions *opts, char **ret_why)
{
    BlkOnError *e = &blk->on_error;
    const char *both = blk_opt_get_str(opts, "on-error", NULL);
    int ret = parse_policy("on-error", both, true, &e->policy[1], ret_why);

    /* Reads do not run out of space. */
    e->policy[0] = e->policy[1] == BLK_ERR_ENOSPC ? BLK_ERR_REPORT : e->policy[1];
    if (ret == 0) {
        ret = parse_policy("on-read-error", blk_opt_get_str(opts, "on-read-error", NULL), false,
                           &e->policy[0], ret_why);
    }
    if (ret == 0) {
        ret = parse_policy("on-write-error", blk_opt_get_str(opts, "on-write-error", NULL), true,
                           &e->policy[1], ret_why);
    }
    if (ret == 0) {
        ret = parse_ms(opts, "retry-delay-ms", RETRY_DELAY_MS, &e->delay_ns, ret_why);
    }
    if (ret == 0) {
        ret = parse_ms(opts, "close-timeout-ms", CLOSE_TIMEOUT_MS, &e->close_ns, ret_why);
    }
    e->retry_limit = (uint64_t)blk_opt_get(opts, "retry-limit", 0);
    e->any = e->policy[0] != BLK_ERR_REPORT || e->policy[1] != BLK_ERR_REPORT;
    return ret;
}

/* ---- Retrying -------------------------------------------------------------------------------- */

static int64_t after(int64_t ns)
{
    int64_t at;

    return __builtin_add_overflow(qemu_clock_get_ns(QEMU_CLOCK_REALTIME), ns, &at) ? INT64_MAX - 1
                                                                                   : at;
}

/* Returns false when its context is being closed. */
static bool retry_later(BlockAIOCB *req)
{
    BlkQueue *q = req->q;

    req->retry_at = after(q->blk->on_error.delay_ns);
    if (!q->retry_head && !timer_mod_ns(&q->timer, req->retry_at)) {
        return false;
    }
    req->tries++;
    req->state = BLK_REQ_RETRYING;
    req->fin_next = NULL;
    *q->retry_tail = req;
    q->retry_tail = &req->fin_next;
    count_own(&q->stats.retried, 1);
    return true;
}

void blk_retry_remove(BlockAIOCB *req)
{
    BlkQueue *q = req->q;
    BlockAIOCB **link = &q->retry_head;

    while (*link != req) {
        link = &(*link)->fin_next;
    }
    *link = req->fin_next;
    if (q->retry_tail == &req->fin_next) {
        q->retry_tail = link;
    }
}

static void retry_head(BlkQueue *q)
{
    BlockAIOCB *req = q->retry_head;

    blk_retry_remove(req);
    req->state = BLK_REQ_RUNNING;
    blk_req_step(req);
}

/* Those whose time has come.  The timer is armed for the next one first: the driver may be slow. */
static void retry_due(BlkQueue *q)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    for (int i = 0; i < RETRY_RUN_MAX && q->retry_head && q->retry_head->retry_at <= now; i++) {
        if (q->retry_head->fin_next) {
            timer_mod_ns(&q->timer, q->retry_head->fin_next->retry_at);
        }
        retry_head(q);
    }
    if (q->retry_head) {
        timer_mod_ns(&q->timer, q->retry_head->retry_at);
    }
}

/* ---- Stopping -------------------------------------------------------------------------------- */

/* Stops the backend, unless it is being closed or stopped already.  Returns whether it is. */
static bool begin_stop(BlkQueue *q, int ret)
{
    BlockBackend *blk = q->blk;
    BlkOnError *e = &blk->on_error;
    bool stopped;

    pthread_mutex_lock(&blk->lock);
    if (!e->final && !e->stopped_by) {
        st_seq(&e->stopped_by, ret);
        fetch_add_seq(&blk->held, BLK_HELD_STOP);
        e->teller = q;
        q->tell_stop = true;
        qemu_bh_schedule(q->resume_bh);
    }
    stopped = e->stopped_by != 0;
    pthread_mutex_unlock(&blk->lock);
    return stopped;
}

/* Calls the user, unless the backend has been resumed since, whoever has stopped it again.  No lock
 * is held: the callback may resume the backend, or close it and poll until it has gone, and the
 * queue with it. */
void blk_stop_tell(BlkQueue *q)
{
    BlockBackend *blk = q->blk;
    BlkOnError *e = &blk->on_error;
    BlkStopFunc *cb = NULL;
    void *opaque;
    int ret;

    q->tell_stop = false;
    pthread_mutex_lock(&blk->lock);
    if (e->teller == q) {
        e->teller = NULL;
        cb = e->stop_cb;
    }
    opaque = e->stop_opaque;
    ret = e->stopped_by;
    pthread_mutex_unlock(&blk->lock);
    if (cb) {
        cb(opaque, ret);
    }
}

static void issue_held_locked(BlockBackend *blk)
{
    for (BlkQueue *q = blk->queues; q; q = q->next) {
        if (q->ctx && ld_seq(&q->n_held)) {
            qemu_bh_schedule(q->resume_bh);
        }
    }
}

void blk_issue_held(BlockBackend *blk)
{
    pthread_mutex_lock(&blk->lock);
    issue_held_locked(blk);
    pthread_mutex_unlock(&blk->lock);
}

static bool resume_locked(BlockBackend *blk)
{
    if (!blk->on_error.stopped_by) {
        return false;
    }
    st_seq(&blk->on_error.resumes, blk->on_error.resumes + 1); /* before: see drain() */
    st_seq(&blk->on_error.stopped_by, 0);
    blk->on_error.teller = NULL;
    if (fetch_sub_seq(&blk->held, BLK_HELD_STOP) == BLK_HELD_STOP) {
        issue_held_locked(blk);
    }
    return true;
}

/* ---- Errors ---------------------------------------------------------------------------------- */

static BlkErrorPolicy policy_of(const BlockAIOCB *req, int ret)
{
    const BlkOnError *e = &req->q->blk->on_error;
    BlkErrorPolicy policy = e->policy[req->op != BLK_OP_READ && req->op != BLK_OP_STATUS];

    if (req->cancel_ret || req->piece_kind == BLK_PIECE_FLUSH || ret == -ECANCELED ||
        ret == -ENOTSUP) {
        return BLK_ERR_REPORT;
    }
    if (policy == BLK_ERR_ENOSPC) {
        return ret == -ENOSPC || ret == -EDQUOT ? BLK_ERR_STOP : BLK_ERR_REPORT;
    }
    return policy;
}

bool blk_error_keeps(BlockAIOCB *req, int ret)
{
    const BlkOnError *e = &req->q->blk->on_error;

    switch (policy_of(req, ret)) {
    case BLK_ERR_RETRY:
        return !ld_seq(&e->final) && (e->retry_limit == 0 || req->tries < e->retry_limit) &&
               retry_later(req);
    case BLK_ERR_STOP:
        if (!begin_stop(req->q, ret)) {
            return false;
        }
        count_own(&req->q->stats.stopped, 1);
        blk_req_withhold(req);
        return true;
    default:
        return false;
    }
}

/* ---- Closing --------------------------------------------------------------------------------- */

void blk_errors_final(BlockBackend *blk)
{
    pthread_mutex_lock(&blk->lock);
    st_seq(&blk->on_error.final, true);
    resume_locked(blk);
    for (BlkQueue *q = blk->queues; q; q = q->next) {
        if (q->ctx) {
            qemu_bh_schedule(q->resume_bh);
        }
    }
    pthread_mutex_unlock(&blk->lock);
}

void blk_closing_bh(BlkQueue *q)
{
    while (q->retry_head) { /* they come to an end: nothing is put there any more */
        retry_head(q);
    }
    if (q->flight_head && !q->close_armed) {
        q->close_armed = true;
        timer_mod_ns(&q->timer, after(q->blk->on_error.close_ns));
    }
}

/* The backend is being closed, and has waited for long enough. */
static void cancel_left(BlkQueue *q)
{
    unsigned n = 0;

    for (BlockAIOCB *req = q->flight_head; req; req = req->next) {
        n += req->state == BLK_REQ_RUNNING || req->state == BLK_REQ_WAITING;
    }
    if (n > 0) {
        fprintf(stderr,
                "aioctx: blk_unref: '%s': still in flight after %lld ms (close-timeout-ms): %u; "
                "cancelling\n",
                blk_get_driver_name(q->blk), (long long)(q->blk->on_error.close_ns / MS_NS), n);
    }
    for (BlockAIOCB *req = q->flight_head, *next; req; req = next) {
        next = req->next;
        blk_req_cancel(req, -ECANCELED);
    }
}

void blk_queue_timer_cb(void *opaque)
{
    BlkQueue *q = opaque;

    /* Not by `final`: a retry may be due before the bottom half that closing has scheduled runs. */
    if (q->close_armed) {
        cancel_left(q);
    } else {
        retry_due(q);
    }
}

/* ---- The interface --------------------------------------------------------------------------- */

void blk_set_stop_cb(BlockBackend *blk, BlkStopFunc *cb, void *opaque)
{
    pthread_mutex_lock(&blk->lock);
    blk->on_error.stop_cb = cb;
    blk->on_error.stop_opaque = opaque;
    pthread_mutex_unlock(&blk->lock);
}

int blk_get_stop(BlockBackend *blk)
{
    return ld_seq(&blk->on_error.stopped_by);
}

bool blk_resume(BlockBackend *blk)
{
    bool was_stopped;

    pthread_mutex_lock(&blk->lock);
    was_stopped = resume_locked(blk);
    pthread_mutex_unlock(&blk->lock);
    return was_stopped;
}
