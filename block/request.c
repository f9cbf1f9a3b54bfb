/* SPDX-License-Identifier: MIT */
/*
 * The life of a request after it was submitted; README.md has the diagram.
 *
 * All of it runs on the home thread of the request's queue.  A callback is called from the loop:
 * straight from the completion that ended the request, or, when it ended inside a submitting or
 * cancelling call, from the queue's bottom half.
 */
#include "block/block_int.h"
#include "rcu/probe_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- Objects --------------------------------------------------------------------------------- */

/* Takes a request from the queue's free list.  Returns NULL when out of memory. */
BlockAIOCB *blk_req_alloc(BlkQueue *q)
{
    const BlkNode *root = q->blk->root;
    BlockAIOCB *req = q->free;
    void *mem;

    if (likely(req)) {
        q->free = req->next;
        return req;
    }
    size_t size = (sizeof(*req) + root->room + 63) & ~(size_t)63;
    if (posix_memalign(&mem, 64, size) != 0) {
        return NULL;
    }
    req = memset(mem, 0, size);
    req->q = q;
    aio_timer_init(q->home_ctx, &req->timer, QEMU_CLOCK_REALTIME, SCALE_NS, blk_deadline_cb, req);
    blk_node_init_piece(root, &req->piece, q->node_queues, q->home_ctx);
    return req;
}

/* Frees the requests of a queue that serves no context any more. */
void blk_req_free_all(BlkQueue *q)
{
    while (q->free) {
        BlockAIOCB *req = q->free;

        q->free = req->next;
        blk_node_fini_piece(&req->piece);
        timer_deinit(&req->timer);
        free(req);
    }
}

static inline bool has_range(const BlockAIOCB *req)
{
    return req->q->blk->ordered && req->range.kind != BLK_RANGE_NONE;
}

static void recycle(BlockAIOCB *req)
{
    BlkQueue *q = req->q;

    if (unlikely(req->has_bounce)) {
        free(req->bounce);
        req->bounce = NULL;
        req->bounce_size = 0;
        req->has_bounce = false;
    }
    if (unlikely(has_range(req))) {
        blk_range_end(req);
    }
    req->state = BLK_REQ_FREE;
    req->next = q->free;
    q->free = req;
    aio_context_count_inflight(q->home_ctx, -1);
}

/* ---- The lists ------------------------------------------------------------------------------- */

void blk_flight_add(BlockAIOCB *req)
{
    BlkQueue *q = req->q;

    req->seq = q->next_seq;
    req->next = NULL;
    req->prev = q->flight_tail;
    *(req->prev ? &req->prev->next : &q->flight_head) = req;
    q->flight_tail = req;
    st_seq(&q->next_seq, req->seq + 1);
}

/* Takes a request out.  The store is what blk_drain() waits for: it comes last. */
static void flight_remove(BlkQueue *q, BlockAIOCB *req)
{
    bool was_oldest = !req->prev;

    *(req->prev ? &req->prev->next : &q->flight_head) = req->next;
    *(req->next ? &req->next->prev : &q->flight_tail) = req->prev;
    if (was_oldest) {
        st_seq(&q->oldest_seq, q->flight_head ? q->flight_head->seq : q->next_seq);
    }
}

static void held_remove(BlkQueue *q, BlockAIOCB *req)
{
    *(req->prev ? &req->prev->next : &q->held_head) = req->next;
    *(req->next ? &req->next->prev : &q->held_tail) = req->prev;
}

static void held_insert(BlkQueue *q, BlockAIOCB *req, bool in_front)
{
    req->state = BLK_REQ_HELD;
    req->prev = in_front ? NULL : q->held_tail;
    req->next = in_front ? q->held_head : NULL;
    *(req->prev ? &req->prev->next : &q->held_head) = req;
    *(req->next ? &req->next->prev : &q->held_tail) = req;
}

/* Keeps a request back until the drained section ends. */
static void hold(BlockAIOCB *req)
{
    BlkQueue *q = req->q;

    held_insert(q, req, false);
    st_seq(&q->n_held, q->n_held + 1);
    /* Pairs with blk_drained_end(), which lowers held, then looks at n_held. */
    if (ld_seq(&q->blk->held) == 0) {
        qemu_bh_schedule(q->resume_bh);
    }
}

/* Takes a request whose piece has failed out of the flight, to be issued again before all that came
 * later once the backend is resumed.  What it had of its range is given back: who waits for it may
 * be in flight, and a drain must end. */
void blk_req_withhold(BlockAIOCB *req)
{
    BlkQueue *q = req->q;
    BlockAIOCB *at = q->held_head;

    if (req->range.kind != BLK_RANGE_NONE) {
        blk_range_end(req);
    }
    req->rmw_loaded = false;
    st_seq(&q->n_held, q->n_held + 1); /* first: who waits sees the request in one of the two */
    flight_remove(q, req);
    while (at && at->stopped && at->seq < req->seq) {
        at = at->next;
    }
    req->state = BLK_REQ_HELD;
    req->stopped = true;
    req->next = at;
    req->prev = at ? at->prev : q->held_tail;
    *(req->prev ? &req->prev->next : &q->held_head) = req;
    *(at ? &at->prev : &q->held_tail) = req;
    if (ld_seq(&q->blk->held) == 0) { /* as in hold() */
        qemu_bh_schedule(q->resume_bh);
    }
    blk_ended(q->blk);
}

/* ---- Issuing --------------------------------------------------------------------------------- */

/* Starts a request that has its range. */
void blk_req_start(BlockAIOCB *req)
{
    req->state = BLK_REQ_RUNNING;
    blk_req_step(req);
}

/* Puts a request in flight.  Returns false when a drained section keeps it from that. */
static bool try_issue(BlockAIOCB *req)
{
    BlkQueue *q = req->q;
    BlockBackend *blk = q->blk;

    if (ld_relaxed(&blk->held)) {
        return false;
    }
    blk_flight_add(req);
    /* Pairs with blk_drained_begin(), which raises held, then looks at next_seq. */
    if (unlikely(ld_seq(&blk->held))) {
        flight_remove(q, req);
        blk_ended(blk);
        return false;
    }
    if (blk->ordered && !blk_range_begin(req)) {
        req->state = BLK_REQ_WAITING;
    } else {
        blk_req_start(req);
    }
    return true;
}

/* Issues a new request, behind those that are held back. */
void blk_req_issue(BlockAIOCB *req)
{
    if (unlikely(req->q->held_head) || !try_issue(req)) {
        hold(req);
    }
}

/* Takes up what waited: requests whose range was granted, and those that were held back. */
void blk_resume_bh(void *opaque)
{
    BlkQueue *q = opaque;
    BlockBackend *blk = q->blk;
    BlockAIOCB *req;
    bool any = false;

    while (blk->ordered && (req = blk_range_take_ready(q))) {
        must(req->state == BLK_REQ_WAITING);
        blk_req_start(req);
    }
    while ((req = q->held_head)) {
        bool stopped = req->stopped;

        held_remove(q, req);
        req->state = BLK_REQ_FREE;
        req->stopped = false;
        if (!try_issue(req)) {
            req->stopped = stopped;
            held_insert(q, req, true);
            break;
        }
        /* Only now: who waits for n_held sees the request in one of the two. */
        st_seq(&q->n_held, q->n_held - 1);
        any = true;
    }
    if (any) {
        blk_ended(blk);
    }
    if (unlikely(ld_seq(&blk->on_error.final))) {
        blk_closing_bh(q);
    }
    if (unlikely(q->tell_stop)) {
        blk_stop_tell(q); /* last: the queue may have gone when it returns */
    }
}

/* ---- Ending ---------------------------------------------------------------------------------- */

static void schedule_finished(BlkQueue *q)
{
    if (!q->fin_scheduled) {
        q->fin_scheduled = true;
        qemu_bh_schedule(q->finished_bh);
    }
}

static void detach_remove(BlkQueue *q, BlockAIOCB *req)
{
    BlockAIOCB **link = &q->detach_head;

    while (*link != req) {
        link = &(*link)->detach_next;
    }
    *link = req->detach_next;
    req->detaching = false;
}

/* Settles what a request ends in.  Its callback follows. */
void blk_req_finish(BlockAIOCB *req, int ret)
{
    BlkQueue *q = req->q;

    must(req->state == BLK_REQ_RUNNING || req->state == BLK_REQ_FREE);
    req->ret = ret;
    req->state = BLK_REQ_FINISHED;
    if (unlikely(req->detaching)) {
        detach_remove(q, req);
    }
    if (!req->piece_busy && has_range(req)) {
        blk_range_end(req);
    }
    if (req->direct) {
        return;
    }
    req->fin_next = NULL;
    *q->fin_tail = req;
    q->fin_tail = &req->fin_next;
    schedule_finished(q);
}

static void count_end(BlockAIOCB *req, int64_t now)
{
    BlkStats *st = &req->q->stats;

    if (req->ret == 0 && req->op == BLK_OP_READ) {
        count_own(&st->bytes_read, req->bytes);
    } else if (req->ret == 0 && (req->op == BLK_OP_WRITE || req->op == BLK_OP_ZEROES)) {
        count_own(&st->bytes_written, req->bytes);
    } else if (req->ret < 0) {
        count_own(&st->failed, 1);
    }
    if (req->ret == -ETIMEDOUT) {
        count_own(&st->timed_out, 1);
    } else if (req->ret == -ECANCELED) {
        count_own(&st->cancelled, 1);
    } else if (req->deadline_ns >= 0 &&
               (now < 0 ? req->deadline_ns < INT64_MAX && realtime_has_passed(req->deadline_ns + 1)
                        : now > req->deadline_ns)) {
        count_own(&st->late, 1);
    }
}

/* Calls a finished request back.  @now: the time, when known, else -1. */
void blk_req_end(BlockAIOCB *req, int64_t now)
{
    BlkQueue *q = req->q;

    if (req->armed) {
        req->armed = false;
        timer_del(&req->timer);
    }
    count_end(req, now);
    req->direct = false;
    req->state = BLK_REQ_CALLING;
    probe2(blk_end, req, req->ret);
    if (unlikely(this_thread.observed)) {
        aio_context_call_observed(q->home_ctx, req->cb, req->opaque, req->ret);
    } else {
        req->cb(req->opaque, req->ret);
    }

    if (unlikely(req->piece_busy)) {
        req->state = BLK_REQ_DETACHED;
        flight_remove(q, req);
    } else {
        flight_remove(q, req);
        recycle(req);
    }
    blk_ended(q->blk);
}

/* The driver gives back the piece of a request that did not wait for it. */
void blk_req_settle(BlockAIOCB *req)
{
    BlkQueue *q = req->q;

    must(req->state == BLK_REQ_FINISHED || req->state == BLK_REQ_CALLING ||
         req->state == BLK_REQ_DETACHED);
    count_own(&q->stats.settled, 1);
    if (has_range(req)) {
        blk_range_end(req);
    }
    if (req->state == BLK_REQ_DETACHED) {
        recycle(req);
    }
    st_seq(&q->n_detached, q->n_detached - 1);
    blk_ended(q->blk);
}

/*
 * Calls finished requests back.  Each leaves the list before its callback, and while some are left
 * the bottom half is scheduled, so that an aio_poll() inside a callback goes on with them.
 */
void blk_finished_bh(void *opaque)
{
    BlkQueue *q = opaque;
    BlockAIOCB *req;
    int64_t now = -1;

    q->fin_scheduled = false;
    for (unsigned budget = BLK_FINISH_BUDGET; (req = q->fin_head) && budget > 0; budget--) {
        q->fin_head = req->fin_next;
        if (!q->fin_head) {
            q->fin_tail = &q->fin_head;
        } else {
            schedule_finished(q);
        }
        if (now < 0 && req->deadline_ns >= 0) {
            now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        }
        blk_req_end(req, now);
    }
    if (q->fin_head) {
        schedule_finished(q);
    } else if (q->fin_scheduled) {
        q->fin_scheduled = false;
        qemu_bh_cancel(q->finished_bh);
    }
}

/* ---- Cancelling ------------------------------------------------------------------------------ */

static void cancel_running(BlockAIOCB *req, int ret)
{
    BlkQueue *q = req->q;

    if (req->cancel_ret) {
        return; /* asked before */
    }
    req->cancel_ret = ret;
    q->cancelling = true;
    if (req->piece.drv->cancel) {
        req->piece.drv->cancel(&req->piece);
    }
    q->cancelling = false;
    if (q->blk->detach && req->state == BLK_REQ_RUNNING) {
        req->detach_passes = BLK_DETACH_PASSES;
        req->detaching = true;
        req->detach_next = q->detach_head;
        q->detach_head = req;
        qemu_bh_schedule(q->detach_bh);
    }
}

/* Asks for an end in @ret; the first one who asks says which. */
void blk_req_cancel(BlockAIOCB *req, int ret)
{
    BlkQueue *q = req->q;

    switch (req->state) {
    case BLK_REQ_HELD:
        held_remove(q, req);
        req->state = BLK_REQ_FREE;
        blk_flight_add(req);
        st_seq(&q->n_held, q->n_held - 1);
        blk_req_finish(req, ret);
        blk_ended(q->blk);
        break;
    case BLK_REQ_RETRYING:
        blk_retry_remove(req);
        req->state = BLK_REQ_FREE;
        blk_req_finish(req, ret);
        break;
    case BLK_REQ_WAITING:
        blk_range_end(req);
        req->state = BLK_REQ_FREE;
        blk_req_finish(req, ret);
        break;
    case BLK_REQ_RUNNING:
        cancel_running(req, ret);
        break;
    default: /* the result is known already */
        break;
    }
}

/* The deadline has passed. */
void blk_deadline_cb(void *opaque)
{
    BlockAIOCB *req = opaque;

    req->armed = false;
    blk_req_cancel(req, -ETIMEDOUT);
}

/* Detaches the requests whose cancel has had its passes and did not come through. */
void blk_detach_bh(void *opaque)
{
    BlkQueue *q = opaque;
    BlockAIOCB *req, *next;

    for (req = q->detach_head; req; req = next) {
        next = req->detach_next;
        if (--req->detach_passes == 0) {
            blk_range_keep(req);
            count_own(&q->stats.detached, 1);
            st_seq(&q->n_detached, q->n_detached + 1);
            blk_req_finish(req, req->cancel_ret); /* takes it off the list */
        }
    }
    if (q->detach_head) {
        qemu_bh_schedule(q->detach_bh);
    }
    if (q->n_detached && (q->closing || ld_seq(&q->blk->settling))) {
        blk_req_settle_all(q);
    }
}

/* Has the drivers give back what detached requests have left with them: nobody will wait for it. */
void blk_req_settle_all(BlkQueue *q)
{
    q->cancelling = true;
    blk_node_settle_queues(q->blk->root, q->node_queues);
    q->cancelling = false;
}

/* Asks all requests of the queue to end and takes no more on: its context is closing. */
void blk_req_cancel_all(BlkQueue *q)
{
    BlockAIOCB *req, *next;

    q->closing = true;
    while (q->held_head) {
        blk_req_cancel(q->held_head, -ECANCELED);
    }
    for (req = q->flight_head; req; req = next) {
        next = req->next;
        blk_req_cancel(req, -ECANCELED);
    }
}
