/* SPDX-License-Identifier: MIT */
/*
 * Ranges: which writes wait for which.
 *
 * A write that changes part of an aligned unit reads the unit, changes it and writes it back. 
 * Until it has, no other write may touch the unit, from any context.  Nor may one touch the range
 * of a detached write before that has settled.  Such writes are called serialising; all others
 * need not look at each other, and pay for this file with two stores and two loads:
 *
 *      an ordinary write begins                 a serialising one comes
 *      A1  fast_writes++   (its queue)          B1  serialisers++   (lock held)
 *      A2  serialisers == 0 ?                   B2  every queue's fast_writes == 0 ?
 *          yes: go; no: fast_writes--, lock
 *
 * All four are sequentially consistent, so one of the two sees the other: either A2 sees B1, and
 * the write lines up in the list under the lock; or B2 sees A1, and the serialising one waits. 
 * When an ordinary write ends it does
 *
 *      A3  fast_writes--                        (B2 looks again under the lock)
 *      A4  serialisers == 0 ? no: take the lock and do B2 for those that wait
 *
 * and either B2 has seen A3, or A4 sees B1.  From the moment serialisers leaves 0 until it is 0
 * again (a "period") no write goes the fast way, so that each queue needs to be seen at 0 only
 * once in a period; a count above 0 that comes later is a write between A1 and its retreat.
 *
 * The list is first come, first served: a range waits for all older ones that it overlaps where
 * either of the two serialises.  Waiting goes from younger to older only: there is no circle.
 * A write that detaches becomes a serialising range which is active already.
 *
 * Granting a range to another context's request puts it on that queue's ready list and schedules
 * its bottom half; nothing is allocated.
 */
#include "block/block_int.h"

static bool overlaps(const BlkRange *a, const BlkRange *b)
{
    return a->start < b->end && b->start < a->end;
}

/* Whether @b, the younger one, has to wait for @a. */
static bool blocks(const BlkRange *a, const BlkRange *b)
{
    return (a->serialising || b->serialising) && overlaps(a, b);
}

/* ---- Under the lock -------------------------------------------------------------------------- */

static bool may_go_locked(const BlockBackend *blk, const BlkRange *r)
{
    return r->blockers == 0 && (!r->serialising || blk->fast_quiet);
}

static void grant_locked(BlkRange *r)
{
    BlockAIOCB *req = container_of(r, BlockAIOCB, range);
    BlkQueue *q = req->q;

    r->active = true;
    r->ready = true;
    r->ready_next = NULL;
    *q->ready_tail = req;
    q->ready_tail = &r->ready_next;
    qemu_bh_schedule(q->resume_bh);
}

/* B2, for all who wait. */
static void check_quiet_locked(BlockBackend *blk)
{
    bool quiet = true;

    if (blk->fast_quiet || ld_seq(&blk->serialisers) == 0) {
        return;
    }
    for (BlkQueue *q = blk->queues; q; q = q->next) {
        if (q->quiet_period != blk->period) {
            if (ld_seq(&q->fast_writes) == 0) {
                q->quiet_period = blk->period;
            } else {
                quiet = false;
            }
        }
    }
    if (!quiet) {
        return;
    }
    blk->fast_quiet = true;
    for (BlkRange *r = blk->ranges; r; r = r->next) {
        if (!r->active && may_go_locked(blk, r)) {
            grant_locked(r);
        }
    }
}

/* B1. */
static void add_serialiser_locked(BlockBackend *blk)
{
    if (fetch_add_seq(&blk->serialisers, 1) == 0) {
        blk->period++;
        blk->fast_quiet = false;
    }
}

static void append_locked(BlockBackend *blk, BlkRange *r)
{
    r->blockers = 0;
    for (BlkRange *o = blk->ranges; o; o = o->next) {
        r->blockers += blocks(o, r);
    }
    r->next = NULL;
    r->prev = blk->ranges_tail;
    *(r->prev ? &r->prev->next : &blk->ranges) = r;
    blk->ranges_tail = r;
}

static void remove_locked(BlockBackend *blk, BlkRange *r)
{
    for (BlkRange *o = r->next; o; o = o->next) {
        if (!o->active && blocks(r, o)) {
            must(o->blockers > 0);
            o->blockers--;
            if (may_go_locked(blk, o)) {
                grant_locked(o);
            }
        }
    }
    *(r->prev ? &r->prev->next : &blk->ranges) = r->next;
    *(r->next ? &r->next->prev : &blk->ranges_tail) = r->prev;
    if (r->serialising) {
        must(fetch_sub_seq(&blk->serialisers, 1) > 0);
    }
}

static void unready_locked(BlkQueue *q, BlkRange *r)
{
    BlockAIOCB **link = &q->ready;

    while (&(*link)->range != r) {
        link = &(*link)->range.ready_next;
    }
    *link = r->ready_next;
    if (q->ready_tail == &r->ready_next) {
        q->ready_tail = link;
    }
    r->ready = false;
}

/* ---- On the home thread ---------------------------------------------------------------------- */

/* A3 and A4. */
static void fast_end(BlkQueue *q)
{
    BlockBackend *blk = q->blk;

    st_seq(&q->fast_writes, q->fast_writes - 1);
    if (unlikely(ld_seq(&blk->serialisers))) {
        pthread_mutex_lock(&blk->lock);
        check_quiet_locked(blk);
        pthread_mutex_unlock(&blk->lock);
    }
}

/* Lines the request up in the list.  Returns whether it may go at once. */
static bool list_begin(BlockAIOCB *req)
{
    BlockBackend *blk = req->q->blk;
    BlkRange *r = &req->range;
    bool go;

    r->kind = BLK_RANGE_LISTED;
    pthread_mutex_lock(&blk->lock);
    r->active = r->ready = false;
    append_locked(blk, r);
    if (r->serialising) {
        add_serialiser_locked(blk);
    }
    /* Also for those who saw this queue's count between A1 and its retreat. */
    check_quiet_locked(blk);
    go = !r->active && may_go_locked(blk, r);
    if (r->ready) {
        unready_locked(req->q, r); /* granted by check_quiet_locked() just now */
        go = true;
    }
    r->active = go;
    pthread_mutex_unlock(&blk->lock);
    return go;
}

/*
 * Claims the range of a write, a discard or a zeroing.  Returns true when it may go; else it waits,
 * and blk_range_take_ready() hands it out later.
 */
bool blk_range_begin(BlockAIOCB *req)
{
    BlkQueue *q = req->q;
    BlockBackend *blk = q->blk;
    uint64_t mask = blk->align_mask;
    int64_t end = req->offset + (int64_t)req->bytes;
    BlkRange *r = &req->range;

    if (req->op == BLK_OP_READ || req->op == BLK_OP_FLUSH || req->op == BLK_OP_STATUS ||
        req->bytes == 0) {
        return true;
    }
    r->start = req->offset & ~(int64_t)mask;
    r->end = end > blk->tail ? blk->length : (int64_t)(((uint64_t)end + mask) & ~mask);
    r->serialising = r->start != req->offset || r->end != end;
    if (!r->serialising) {
        r->kind = BLK_RANGE_FAST;
        st_seq(&q->fast_writes, q->fast_writes + 1);  /* A1 */
        if (likely(ld_seq(&blk->serialisers) == 0)) { /* A2 */
            return true;
        }
        st_seq(&q->fast_writes, q->fast_writes - 1);
    }
    return list_begin(req);
}

/* Gives the range back, whether it was granted or still waits. */
void blk_range_end(BlockAIOCB *req)
{
    BlockBackend *blk = req->q->blk;
    BlkRange *r = &req->range;
    uint8_t kind = r->kind;

    r->kind = BLK_RANGE_NONE;
    if (kind == BLK_RANGE_FAST) {
        fast_end(req->q);
    } else if (kind == BLK_RANGE_LISTED) {
        pthread_mutex_lock(&blk->lock);
        if (r->ready) {
            unready_locked(req->q, r);
        }
        remove_locked(blk, r);
        pthread_mutex_unlock(&blk->lock);
    }
}

/* Has the range of a granted write that detaches hold up all writes that overlap it from now on. */
void blk_range_keep(BlockAIOCB *req)
{
    BlkQueue *q = req->q;
    BlockBackend *blk = q->blk;
    BlkRange *r = &req->range;

    if (r->kind == BLK_RANGE_NONE || (r->kind == BLK_RANGE_LISTED && r->serialising)) {
        return;
    }
    pthread_mutex_lock(&blk->lock);
    if (r->kind == BLK_RANGE_FAST) {
        /* It is older than all who wait: they came in this period. */
        r->prev = NULL;
        r->next = blk->ranges;
        *(r->next ? &r->next->prev : &blk->ranges_tail) = r;
        blk->ranges = r;
        r->active = true;
        r->ready = false;
        r->blockers = 0;
    }
    for (BlkRange *o = r->next; o; o = o->next) {
        /* Serialising ones wait for a listed one already; a fast one was in nobody's count. */
        if (!o->active && overlaps(r, o) && (r->kind == BLK_RANGE_FAST || !o->serialising)) {
            o->blockers++;
        }
    }
    r->serialising = true;
    add_serialiser_locked(blk);
    if (r->kind == BLK_RANGE_FAST) {
        r->kind = BLK_RANGE_LISTED;
        st_seq(&q->fast_writes, q->fast_writes - 1);
    }
    check_quiet_locked(blk);
    pthread_mutex_unlock(&blk->lock);
}

/* Takes the next request whose range was granted; NULL: none. */
BlockAIOCB *blk_range_take_ready(BlkQueue *q)
{
    BlockBackend *blk = q->blk;
    BlockAIOCB *req;

    pthread_mutex_lock(&blk->lock);
    req = q->ready;
    if (req) {
        unready_locked(q, &req->range);
    }
    pthread_mutex_unlock(&blk->lock);
    return req;
}

/* Gives back all ranges of a queue whose requests will never end. */
void blk_range_drop_all(BlkQueue *q)
{
    BlockBackend *blk = q->blk;
    BlkRange *next;

    pthread_mutex_lock(&blk->lock);
    for (BlkRange *r = blk->ranges; r; r = next) {
        next = r->next;
        if (container_of(r, BlockAIOCB, range)->q == q) {
            if (r->ready) {
                unready_locked(q, r);
            }
            remove_locked(blk, r);
            r->kind = BLK_RANGE_NONE;
        }
    }
    st_seq(&q->fast_writes, 0);
    check_quiet_locked(blk);
    pthread_mutex_unlock(&blk->lock);
}
