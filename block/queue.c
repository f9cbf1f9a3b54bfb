/* SPDX-License-Identifier: MIT */
/*
 * Queues: what a backend keeps for each context that uses it.
 *
 * A queue is made by the home thread at its first request and found again without a lock: the list
 * only ever grows at its front.  When its context closes, or its backend does, the home thread
 * takes the queue's resources down; the queue itself stays in the list, keeps its counters, and
 * serves the next context that comes.
 */
#include "block/block_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rcu/rcu_int.h"

/*
 * Gives back what the queue holds of its context.  No request is in flight.
 * Thread: home, or the one that closes the context when home is gone.
 */
static void take_down(BlkQueue *q)
{
    BlockBackend *blk = q->blk;

    pthread_mutex_lock(&blk->lock);
    st_relaxed(&q->ctx, NULL); /* from here on nobody schedules its bottom halves */
    pthread_mutex_unlock(&blk->lock);
    timer_deinit(&q->timer);
    if (q->flight_head || q->n_detached) {
        /* The loop has given up on the kernel, which may still write to the buffers: keep all.  But
         * writes of other contexts must not wait for what nobody will ever hear of, nor the driver
         * refer to a context that goes. */
        blk_range_drop_all(q);
        blk_node_abandon_queues(blk->root, q->node_queues);
        st_seq(&q->abandoned, true);
        blk_ended(blk);
        return;
    }
    must(!q->held_head && !q->fin_head && !q->detach_head && !q->ready && !q->retry_head);

    blk_req_free_all(q);
    blk_node_destroy_queues(blk->root, q->node_queues);
    qemu_bh_delete(q->close_bh);
    qemu_bh_delete(q->detach_bh);
    qemu_bh_delete(q->resume_bh);
    qemu_bh_delete(q->finished_bh);

    pthread_mutex_lock(&blk->lock);
    q->close_bh = NULL; /* says that the queue can serve another context */
    pthread_mutex_unlock(&blk->lock);
    blk_unpin(blk);
}

/* Calls nobody back: the loop goes on for a while, and the bottom half does that in it. */
static void cancel_on_context(AioCloseHook *hook, AioContext *ctx)
{
    blk_req_cancel_all(container_of(hook, BlkQueue, hook));
}

/* The context closes before the backend. */
static void closing_context(AioCloseHook *hook, AioContext *ctx)
{
    BlkQueue *q = container_of(hook, BlkQueue, hook);

    blk_req_cancel_all(q);
    this_thread.callbacks++;
    if (q->tell_stop) {
        blk_stop_tell(q);
    }
    if (q->flight_head || q->n_detached) {
        blk_req_settle_all(q);
    }
    while (q->fin_head) { /* they come to an end: the queue takes no more on */
        blk_finished_bh(q);
    }
    this_thread.callbacks--;
    take_down(q);
}

/* The backend closes before the context. */
static void close_bh(void *opaque)
{
    BlkQueue *q = opaque;

    if (aio_context_del_close_hook(q->home_ctx, &q->hook)) {
        take_down(q);
    }
}

/* ---- Making a queue -------------------------------------------------------------------------- */

static int make_bhs(BlkQueue *q, AioContext *ctx)
{
    q->finished_bh = aio_bh_new(ctx, blk_finished_bh, q);
    q->resume_bh = q->finished_bh ? aio_bh_new(ctx, blk_resume_bh, q) : NULL;
    q->detach_bh = q->resume_bh ? aio_bh_new(ctx, blk_detach_bh, q) : NULL;
    q->close_bh = q->detach_bh ? aio_bh_new(ctx, close_bh, q) : NULL;
    if (!q->close_bh) {
        qemu_bh_delete(q->detach_bh);
        qemu_bh_delete(q->resume_bh);
        qemu_bh_delete(q->finished_bh);
        return -ENOMEM;
    }
    return 0;
}

/* Has the queue, which nobody else uses, serve @ctx.  Returns 0 or -errno. */
static int set_up(BlkQueue *q, AioContext *ctx)
{
    BlockBackend *blk = q->blk;
    int ret;

    q->home_ctx = ctx;
    q->usable = blk_node_check_context(blk->root, ctx, NULL) == 0;
    q->fin_tail = &q->fin_head;
    q->ready_tail = &q->ready;
    q->retry_tail = &q->retry_head;
    q->fin_scheduled = q->closing = q->tell_stop = q->close_armed = false;
    ret = make_bhs(q, ctx);
    if (ret < 0) {
        return ret;
    }
    ret = blk_node_create_queues(blk->root, ctx, q->node_queues);
    if (ret < 0) {
        qemu_bh_delete(q->close_bh);
        qemu_bh_delete(q->detach_bh);
        qemu_bh_delete(q->resume_bh);
        qemu_bh_delete(q->finished_bh);
        q->close_bh = NULL;
        return ret;
    }
    aio_timer_init(ctx, &q->timer, QEMU_CLOCK_REALTIME, SCALE_NS, blk_queue_timer_cb, q);
    q->hook.func = closing_context;
    q->hook.cancel = cancel_on_context;
    aio_context_add_close_hook(ctx, &q->hook);
    return 0;
}

/* A queue that serves no context, taken for the caller; new when there is none.  NULL: no memory.
 * */
static BlkQueue *find_spare_locked(BlockBackend *blk)
{
    for (BlkQueue *q = blk->queues; q; q = q->next) {
        if (!q->ctx && !q->close_bh) {
            return q;
        }
    }
    void *mem;
    if (posix_memalign(&mem, 64, sizeof(BlkQueue)) != 0) {
        return NULL;
    }
    BlkQueue *q = memset(mem, 0, sizeof(BlkQueue));
    q->blk = blk;
    q->next = blk->queues;
    st_seq(&blk->queues, q);
    return q;
}

static BlkQueue *make_queue(BlockBackend *blk, AioContext *ctx)
{
    BlkQueue *q;

    pthread_mutex_lock(&blk->lock);
    q = find_spare_locked(blk);
    if (q && set_up(q, ctx) < 0) {
        q = NULL;
    }
    if (q) {
        add_fetch_relaxed(&blk->pins, 1);
        st_release(&q->ctx, ctx);
    }
    pthread_mutex_unlock(&blk->lock);
    return q;
}

/* blk_queue_get(), wherever it is in the list, or not there yet. */
BlkQueue *blk_queue_find(BlockBackend *blk, AioContext *ctx)
{
    for (BlkQueue *q = ld_acquire(&blk->queues); q; q = q->next) {
        if (likely(ld_relaxed(&q->ctx) == ctx)) {
            return q;
        }
    }
    return make_queue(blk, ctx);
}

/* ---- Statistics ------------------------------------------------------------------------------ */

void blk_get_stats(BlockBackend *blk, BlkStats *ret_stats)
{
    BlkStats sum = { 0 };
    uint64_t *to = (uint64_t *)&sum;

    for (BlkQueue *q = ld_acquire(&blk->queues); q; q = q->next) {
        const uint64_t *from = (const uint64_t *)&q->stats;

        for (size_t i = 0; i < sizeof(sum) / sizeof(*to); i++) {
            to[i] += ld_relaxed(&from[i]);
        }
    }
    *ret_stats = sum;
}
_Static_assert(sizeof(BlkStats) % sizeof(uint64_t) == 0, "BlkStats holds 64-bit counters only");
