/* SPDX-License-Identifier: MIT */
/*
 * What each context has of the thread pool: the works that it has submitted, on their way back.
 *
 * The way back.  A thread of the pool pushes what has returned onto `sent`, a Treiber stack; who
 * finds it empty schedules the context's bottom half, which takes the whole stack at once (so there
 * is no ABA) and calls back, oldest first.  However many works come back before that, there is one
 * wake-up.  Nothing is missed: who pushes onto a stack that is not empty did so before the bottom
 * half took it, and who found it empty has scheduled that, or is about to.  Push and take are
 * sequentially consistent, and with them all that the function wrote is visible to its callback.
 *
 * A context that closes.  From the push on, nothing holds the context: the callback may run, and
 * the context close, before the thread has scheduled the bottom half.  So both lie in one RCU read
 * section, and the bottom half, the context and its wake-up fd go after a grace period.  Closing
 * leaves SENT_CLOSED on the stack.  Who finds that had a function that was given up: its context
 * may be gone, and nobody is called back, but the owner hears that it may let go (lost).
 *
 * References on a pool_queue: one of its context's, and one of each work, which is given back by
 * the home thread when it takes the work up, or else by the thread that finds SENT_CLOSED.
 */
#include "aio/aio_int.h"
#include "aio/thread_pool_int.h"
#include "rcu/rcu_int.h"

#include <aioctx/thread_pool.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Works called back in one run of the bottom half, so that timers and fds get their turn. */
enum { CALL_BUDGET = 64 };

#define SENT_CLOSED ((PoolWork *)1)

struct ThreadPoolAIOCB {
    PoolWork work;
    ThreadPoolFunc *func;
    void *arg;
    ThreadPoolCompletionFunc *cb;
    void *opaque;
    uint64_t seq; /* order of submission */
    ThreadPoolAIOCB *next, *prev;
};

struct pool_queue {
    PoolWork *sent __attribute__((aligned(64))); /* atomic: pushed by the pool's threads */
    unsigned refs;                               /* atomic */

    /* Home thread only; sent_bh is scheduled by the pool's threads. */
    AioContext *ctx __attribute__((aligned(64)));
    QEMUBH *sent_bh, *rest_bh;     /* rest: of what was taken off the stack */
    PoolWork *back, **back_tail;   /* taken, not yet called back */
    bool rest_scheduled;           /* rest_bh is */
    bool closing;                  /* takes nothing more on */
    ThreadPoolAIOCB *first, *last; /* not yet called back, oldest first */
    uint64_t next_seq;
    AioCloseHook hook;
    AioRcuHead rcu;
};

/* What a context that is closed has instead. */
static struct pool_queue closed_queue = { .closing = true };

static void put_queue(struct pool_queue *pq)
{
    if (sub_fetch_acq_rel(&pq->refs, 1) == 0) {
        free(pq);
    }
}

/* ---- The way back ---------------------------------------------------------------------------- */

void pool_send_back(PoolWork *work)
{
    struct pool_queue *pq = work->pq;
    PoolWork *top;

    aio_rcu_read_lock();
    top = ld_seq(&pq->sent);
    do {
        if (unlikely(top == SENT_CLOSED)) {
            break;
        }
        st_relaxed(&work->next, top);
    } while (!cas_seq(&pq->sent, &top, work));
    /* The work may be gone by now, unless it was given up. */
    if (!top) {
        qemu_bh_schedule(pq->sent_bh);
    }
    aio_rcu_read_unlock();
    if (unlikely(top == SENT_CLOSED)) {
        work->lost(work);
        put_queue(pq);
    }
}

static void append(struct pool_queue *pq, PoolWork *work)
{
    st_relaxed(&work->next, NULL);
    *pq->back_tail = work;
    pq->back_tail = &work->next;
}

/* Moves what was sent to the end of `back`, oldest first, and leaves @instead on the stack. */
static void take_sent(struct pool_queue *pq, PoolWork *instead)
{
    PoolWork *work, *next, *first = NULL;

    for (work = xchg_seq(&pq->sent, instead); work; work = next) {
        next = ld_relaxed(&work->next);
        st_relaxed(&work->next, first);
        first = work;
    }
    for (work = first; work; work = next) {
        next = ld_relaxed(&work->next);
        append(pq, work);
    }
}

static PoolWork *pop_back(struct pool_queue *pq)
{
    PoolWork *work = pq->back;

    if (work) {
        pq->back = ld_relaxed(&work->next);
        if (!pq->back) {
            pq->back_tail = &pq->back;
        }
        put_queue(pq); /* the work's; the context's is left */
    }
    return work;
}

static void schedule_rest(struct pool_queue *pq)
{
    if (!pq->rest_scheduled) {
        pq->rest_scheduled = true;
        qemu_bh_schedule(pq->rest_bh);
    }
}

/* Calls back what was taken.  While something is left the bottom half is scheduled, so that an
 * aio_poll() inside a callback goes on with it. */
static void rest_bh(void *opaque)
{
    struct pool_queue *pq = opaque;
    PoolWork *work;

    pq->rest_scheduled = false;
    for (unsigned budget = CALL_BUDGET; budget > 0 && (work = pop_back(pq)); budget--) {
        if (pq->back) {
            schedule_rest(pq);
        }
        work->done(work, work->ret);
    }
    if (pq->back) {
        schedule_rest(pq);
    } else if (pq->rest_scheduled) {
        pq->rest_scheduled = false;
        qemu_bh_cancel(pq->rest_bh);
    }
}

static void sent_bh(void *opaque)
{
    struct pool_queue *pq = opaque;

    take_sent(pq, NULL);
    rest_bh(pq);
}

/* ---- A context's queue ----------------------------------------------------------------------- */

/* Cancels what has not begun; calls nobody back. */
static void cancel_all(struct pool_queue *pq)
{
    pq->closing = true;
    for (ThreadPoolAIOCB *acb = pq->first; acb; acb = acb->next) {
        thread_pool_cancel(acb);
    }
}

static void cancel_on_context(AioCloseHook *hook, AioContext *ctx)
{
    cancel_all(container_of(hook, struct pool_queue, hook));
}

/* No thread of the pool schedules them any more, and their context has run its last. */
static void free_bhs(AioRcuHead *head)
{
    struct pool_queue *pq = container_of(head, struct pool_queue, rcu);

    bh_free_ended(pq->sent_bh);
    bh_free_ended(pq->rest_bh);
    put_queue(pq);
}

/* The context closes.  Of works that are not ours, nobody hears of any more: their owner keeps
 * their memory. */
static void closing_context(AioCloseHook *hook, AioContext *ctx)
{
    struct pool_queue *pq = container_of(hook, struct pool_queue, hook);
    PoolWork *work;

    cancel_all(pq);
    take_sent(pq, SENT_CLOSED);
    this_thread.callbacks++;
    while ((work = pop_back(pq))) {
        if (work->is_aiocb) {
            work->done(work, work->ret);
        } else {
            work->lost(work);
        }
    }
    this_thread.callbacks--;
    ctx->pool = &closed_queue;
    aio_call_rcu(&pq->rcu, free_bhs);
}

static struct pool_queue *make_queue(AioContext *ctx)
{
    struct pool_queue *pq = aligned_alloc(64, (sizeof(*pq) + 63) / 64 * 64);

    if (!pq) {
        return NULL;
    }
    *pq = (struct pool_queue){ .ctx = ctx, .refs = 1, .back_tail = &pq->back };
    pq->sent_bh = aio_bh_new(ctx, sent_bh, pq);
    pq->rest_bh = pq->sent_bh ? aio_bh_new(ctx, rest_bh, pq) : NULL;
    if (!pq->rest_bh) {
        qemu_bh_delete(pq->sent_bh);
        free(pq);
        return NULL;
    }
    pq->hook.func = closing_context;
    pq->hook.cancel = cancel_on_context;
    aio_context_add_close_hook(ctx, &pq->hook);
    ctx->pool = pq;
    return pq;
}

static int submit(struct pool_queue *pq, PoolWork *work)
{
    int ret;

    work->pq = pq;
    add_fetch_relaxed(&pq->refs, 1);
    ret = pool_enqueue(work);
    if (unlikely(ret < 0)) {
        put_queue(pq);
    }
    return ret;
}

/* ---- For the block folder -------------------------------------------------------------------- */

int pool_work_submit(AioContext *ctx, PoolWork *work)
{
    struct pool_queue *pq;

    rcu_check_fork("blk_aio");
    pq = likely(ctx->pool) ? ctx->pool : make_queue(ctx);
    if (unlikely(!pq || pq == &closed_queue)) {
        return pq ? -ESHUTDOWN : -ENOMEM;
    }
    work->is_aiocb = false;
    return submit(pq, work);
}

bool pool_work_cancel(PoolWork *work)
{
    bool cancelled;

    rcu_check_fork("blk_aio_cancel_async"); /* the pool's lock may have been held */
    cancelled = pool_dequeue(work);
    if (cancelled) {
        put_queue(work->pq);
    }
    return cancelled;
}

/* ---- The public calls ------------------------------------------------------------------------ */

static int run_aiocb(PoolWork *work)
{
    ThreadPoolAIOCB *acb = container_of(work, ThreadPoolAIOCB, work);

    return acb->func(acb->arg);
}

/* Nothing of it is left when it calls back: the thread may end in there. */
static void aiocb_done(PoolWork *work, int ret)
{
    ThreadPoolAIOCB *acb = container_of(work, ThreadPoolAIOCB, work);
    struct pool_queue *pq = work->pq;
    ThreadPoolCompletionFunc *cb = acb->cb;
    void *opaque = acb->opaque;
    struct observe_call call;

    *(acb->prev ? &acb->prev->next : &pq->first) = acb->next;
    *(acb->next ? &acb->next->prev : &pq->last) = acb->prev;
    aio_context_count_inflight(pq->ctx, -1);
    free(acb);
    observe_begin(pq->ctx, is_observed(pq->ctx), &call, OBSERVE_COMPLETION, func_address(cb), -1);
    cb(opaque, ret);
    observe_end(pq->ctx, &call);
}

static void aiocb_lost(PoolWork *work)
{
    free(container_of(work, ThreadPoolAIOCB, work));
}

/* The current context's queue.  NULL with errno. */
static struct pool_queue *current_queue(void)
{
    AioContext *ctx = qemu_get_current_aio_context();
    struct pool_queue *pq;

    if (!ctx || ctx->shut) {
        errno = ctx ? ESHUTDOWN : EINVAL;
        return NULL;
    }
    pq = likely(ctx->pool) ? ctx->pool : make_queue(ctx);
    if (!pq || pq->closing) {
        errno = pq ? ESHUTDOWN : ENOMEM;
        return NULL;
    }
    return pq;
}

ThreadPoolAIOCB *thread_pool_submit_aio(ThreadPoolFunc *func, void *arg,
                                        ThreadPoolCompletionFunc *cb, void *opaque)
{
    struct pool_queue *pq;
    ThreadPoolAIOCB *acb;
    int ret;

    rcu_check_fork("thread_pool_submit_aio");
    pq = current_queue();
    if (!pq) {
        return NULL;
    }
    acb = malloc(sizeof(*acb));
    if (!acb) {
        errno = ENOMEM;
        return NULL;
    }
    *acb = (ThreadPoolAIOCB){
        .work = { .func = run_aiocb, .done = aiocb_done, .lost = aiocb_lost, .is_aiocb = true },
        .func = func,
        .arg = arg,
        .cb = cb,
        .opaque = opaque,
        .seq = pq->next_seq,
        .prev = pq->last
    };
    ret = submit(pq, &acb->work);
    if (ret < 0) {
        free(acb);
        errno = -ret;
        return NULL;
    }
    pq->next_seq++;
    *(acb->prev ? &acb->prev->next : &pq->first) = acb;
    pq->last = acb;
    aio_context_count_inflight(pq->ctx, 1);
    return acb;
}

bool thread_pool_cancel(ThreadPoolAIOCB *acb)
{
    struct pool_queue *pq = acb->work.pq;

    rcu_check_fork("thread_pool_cancel");
    if (!pool_dequeue(&acb->work)) {
        return false;
    }
    acb->work.ret = -ECANCELED;
    append(pq, &acb->work);
    schedule_rest(pq);
    return true;
}

void thread_pool_drain(AioContext *ctx)
{
    struct pool_queue *pq;
    uint64_t end;

    context_enter_home(ctx, "thread_pool_drain");
    rcu_check_may_wait("thread_pool_drain");
    pq = ctx->pool;
    end = pq ? pq->next_seq : 0;
    while (pq && pq->first && pq->first->seq < end) {
        aio_poll(ctx, true);
    }
}
