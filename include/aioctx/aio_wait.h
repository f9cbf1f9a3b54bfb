/* SPDX-License-Identifier: MIT */
/*
 * Waiting for something that other threads bring about, while the own loop goes on.
 *
 *   AIO_WAIT_WHILE(ctx, !done);              the thread that waits
 *
 *   done = true;                             whichever thread changes the condition
 *   aio_wait_kick();
 *
 *                                       thread                              may block
 *   AIO_WAIT_WHILE                      any                                 yes, it polls
 *   aio_wait_kick                       any, not signal handlers            no (short lock)
 *   aio_wait_bh_oneshot                 any                                 yes, it polls
 */
#ifndef AIOCTX_AIO_WAIT_H
#define AIOCTX_AIO_WAIT_H

#include <aioctx/aio.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One that waits; on its stack.  Private, as are the three calls: AIO_WAIT_WHILE() makes them. */
typedef struct AioWaiter AioWaiter;
struct AioWaiter {
    AioContext *ctx; /* that it polls; NULL: it has none, and sleeps */
    AioWaiter *next, **pprev;
    bool kicked;
    uint8_t pad[7];
    uint64_t reserved[4];
};
void aio_wait_begin(AioWaiter *waiter, AioContext *ctx);
void aio_wait_step(AioWaiter *waiter);
void aio_wait_end(AioWaiter *waiter);

/*
 * Waits as long as the expression @cond is true.  It is evaluated on the calling thread, outside of
 * any lock: at first, after each iteration, and after each aio_wait_kick(); what it looks at is
 * atomic, or changed by callbacks of the calling thread alone.
 * Meanwhile the thread polls @ctx, if that is one of its own, else (as with @ctx NULL) its current
 * context; a thread without a context sleeps.
 * Evaluates to whether it had to wait at all.
 * Thread: any; may be called below a callback, and waits there too: its own loop goes on, so that
 * two loops may wait for each other.  Not inside an RCU read section: aborts.  @cond must not leave
 * it by a jump.
 * Lifetime: the caller holds a reference on the context that is polled.
 */
#define AIO_WAIT_WHILE(ctx, cond) \
    (__extension__({ \
        AioWaiter aio_waiter_; \
        bool aio_waited_ = false; \
        aio_wait_begin(&aio_waiter_, (ctx)); \
        while (cond) { \
            aio_waited_ = true; \
            aio_wait_step(&aio_waiter_); \
        } \
        aio_wait_end(&aio_waiter_); \
        aio_waited_; \
    }))

/*
 * Has every thread that is in an AIO_WAIT_WHILE() look at its condition again.  While nobody waits
 * it is one atomic operation.
 * Thread: any, but not a signal handler; neither blocks nor calls back.
 * Ordering: what the caller wrote before is visible to those conditions.
 */
void aio_wait_kick(void);

/*
 * Has @cb(@opaque) called on @ctx's home thread, as aio_bh_schedule_oneshot() does, and waits until
 * it has returned, as AIO_WAIT_WHILE(@ctx, ...).
 * Returns 0; -ENOMEM or -ESHUTDOWN as that: then @cb is not called.
 * Thread: any; that of @ctx polls it.  Waits for as long as nobody polls @ctx.  Not inside an RCU
 * read section: aborts.
 * Lifetime: the caller holds a reference on @ctx.
 * Ordering: what the caller wrote before is visible to @cb, and what that wrote is afterwards.
 */
int aio_wait_bh_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque);

#ifdef __cplusplus
}
#endif

#endif
