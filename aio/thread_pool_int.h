/* SPDX-License-Identifier: MIT */
/*
 * The thread pool's two halves, and what it offers to the block folder beside
 * <aioctx/thread_pool.h>: works that their owner embeds, so that submitting needs no memory.
 *
 *   thread_pool.c   the pool: threads, the queue of works that have not begun.  Knows no contexts.
 *   pool_queue.c    what each context has of it: works on their way back, the public calls.
 */
#ifndef AIO_THREAD_POOL_INT_H
#define AIO_THREAD_POOL_INT_H

#include <aioctx/aio.h>
#include <stdint.h>

struct pool_queue;
typedef struct PoolWork PoolWork;

struct PoolWork {
    int (*func)(PoolWork *work);           /* on a thread of the pool */
    void (*done)(PoolWork *work, int ret); /* on the submitter's home thread */
    /* Instead of done(), when func has returned too late for its context.  On any thread, and the
     * last that the pool does with the work. */
    void (*lost)(PoolWork *work);
    struct pool_queue *pq; /* private from here on; fixed while it is in flight */
    PoolWork *next, *prev; /* the pool's lock: its queue; next, atomic: on the way back */
    int ret;               /* written before the push onto pool_queue.done */
    bool waiting;          /* the pool's lock: in its queue */
    bool is_aiocb;         /* fixed: part of a ThreadPoolAIOCB, which the library allocated */
};

/* ---- For the block folder -------------------------------------------------------------------- */

/*
 * Submits @work, whose func, done and lost are set.  done() is called from the loop of @ctx, never
 * inside this call.  It is not counted as in flight: the caller does that.  When the context is
 * closed before the work has come back, done() is not called, and the work's memory has to stay
 * until lost() is.
 * Returns 0; -ENOMEM; -EAGAIN when there is no thread and none can be started.
 * Thread: home of @ctx.
 */
int pool_work_submit(AioContext *ctx, PoolWork *work);

/* Takes a work back that has not begun: then returns true, and done() is not called.
 * Thread: the one that submitted it, before its done() is called. */
bool pool_work_cancel(PoolWork *work);

/* ---- Between the two halves ------------------------------------------------------------------ */

/* thread_pool.c: puts a work in the pool's queue.  Returns 0 or -EAGAIN.  Thread: any. */
int pool_enqueue(PoolWork *work);
/* thread_pool.c: takes it out again, if it is still there.  Thread: any. */
bool pool_dequeue(PoolWork *work);
/* pool_queue.c: sends a work whose ret is set back to its context.  Thread: the pool's. */
void pool_send_back(PoolWork *work);

#endif
