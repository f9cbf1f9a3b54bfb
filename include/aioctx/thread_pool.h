/* SPDX-License-Identifier: MIT */
/*
 * The thread pool: for calls that block, which a loop must not make.
 *
 * A function runs on a thread of the pool; when it has returned, a callback is called with its
 * result on the home thread of the context that submitted it.  The process has one pool.  Its
 * threads are started when there is work for them, up to a maximum, and end when they have had none
 * for a while, down to a minimum.  Where a context has no ring, the file driver's I/O runs there.
 *
 *                                       thread                              may block
 *   thread_pool_submit_aio              one with a current context (home)   no; may start a thread
 *   thread_pool_cancel                  the one that submitted              no
 *   thread_pool_drain                   home                                yes, it polls
 *   thread_pool_set_params, the getters any                                 no
 */
#ifndef AIOCTX_THREAD_POOL_H
#define AIOCTX_THREAD_POOL_H

#include <aioctx/aio.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ThreadPoolAIOCB ThreadPoolAIOCB;

/* What runs on a thread of the pool, which blocks all signals.  It has to return: neither
 * pthread_exit(3) nor longjmp(3).  Its result is handed on as it is: 0 or -errno, as a rule. */
typedef int ThreadPoolFunc(void *arg);

/* Called when a function has returned @ret, or with -ECANCELED when it was cancelled before. */
typedef void ThreadPoolCompletionFunc(void *opaque, int ret);

/*
 * Has @func(@arg) called on a thread of the pool, and @cb(@opaque, ret) on the calling thread, from
 * the loop of its current context, once, and never inside this call.  Functions begin in the order
 * in which they were submitted.  Those that wait for each other may wait for ever: there is a
 * maximum of threads.
 *
 * It is in flight for the context.  One that is closing waits for it (aio_context_unref(),
 * iothread_stop()); when the time for that is up, what has not begun is cancelled.  A function that
 * then still does not return is named on stderr and given up: its callback is never called.
 * exit(3) waits for no function.
 *
 * Returns a handle for thread_pool_cancel(), valid until @cb is called.  NULL: neither is called,
 * and errno says why: EINVAL without a current context; ESHUTDOWN when that is closing and has
 * begun to cancel; ENOMEM; EAGAIN when the pool has no thread and none can be started.  As long as
 * it has one, functions wait for that instead.
 * Thread: one with a current context; not a signal handler.
 * Ordering: what the caller wrote before is visible to @func, and what that wrote is to @cb.
 */
ThreadPoolAIOCB *thread_pool_submit_aio(ThreadPoolFunc *func, void *arg,
                                        ThreadPoolCompletionFunc *cb, void *opaque);

/*
 * Cancels a function that has not begun.  Its callback follows in any case, later: with -ECANCELED,
 * or, when it has begun, with its own result.
 * Returns whether it was cancelled by this call.
 * Thread: the one that submitted it, before its callback is called.
 */
bool thread_pool_cancel(ThreadPoolAIOCB *acb);

/*
 * Polls @ctx until all that was submitted on it before this call has been called back; callbacks on
 * the caller's own stack are not waited for.
 * Thread: home; another one aborts.  Not inside an RCU read section: aborts.
 */
void thread_pool_drain(AioContext *ctx);

/* ---- The pool itself ------------------------------------------------------------------------- */

typedef struct ThreadPoolParams {
    unsigned min_threads; /* once started, so many stay; 0 to max_threads */
    unsigned max_threads; /* 1 to 4096; 0: 64 */
    int64_t idle_ns;      /* a thread above the minimum ends after so long without work; 0: 10 s */
    uint64_t reserved[5]; /* zero */
} ThreadPoolParams;

/*
 * Changes the pool's parameters, at once: with a higher maximum, threads are started for what
 * waits; with a lower one, threads end as soon as their function has returned.  NULL: the defaults,
 * which are all zero.
 * Returns 0, or -EINVAL, with a message on stderr that says what is accepted: nothing is changed.
 * Thread: any.
 */
int thread_pool_set_params(const ThreadPoolParams *params);

/* The parameters in force, defaults filled in.  Thread: any. */
void thread_pool_get_params(ThreadPoolParams *ret_params);

typedef struct ThreadPoolStats {
    uint64_t submitted;      /* functions taken on, the file driver's included */
    uint64_t done;           /* that have returned */
    uint64_t cancelled;      /* that will never begin */
    uint64_t queued;         /* that have not begun, now */
    uint64_t running;        /* that run, now */
    uint64_t threads;        /* now */
    uint64_t idle;           /* of these, asleep for want of work */
    uint64_t wakeups;        /* times that an idle thread was woken for work */
    uint64_t threads_begun;  /* since the process began */
    uint64_t threads_failed; /* times that none could be started */
    uint64_t reserved[6];
} ThreadPoolStats;

/* Copies the pool's counters, which are of one moment: submitted is the sum of done, cancelled,
 * queued and running.  Thread: any. */
void thread_pool_get_stats(ThreadPoolStats *ret_stats);

#ifdef __cplusplus
}
#endif

#endif
