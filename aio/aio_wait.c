/* SPDX-License-Identifier: MIT */
/*
 * Waiting for a condition while the own loop goes on.
 *
 * Who waits puts itself on the list, raises `waiters`, and then looks at its condition; who changes
 * the condition does so first, and then looks at `waiters`.  Both are read-modify-writes of one
 * word, so one comes before the other: either the kick sees the waiter, or the waiter's look
 * follows the kick and sees what was changed before it.
 *
 * A kick reaches a waiter that has a context by aio_notify(), which ends its current or next
 * blocking aio_poll(), and one without by `kicked`, under the lock.  Where waits are nested on one
 * context, the innermost aio_poll() ends; those around it look when it has returned to them.
 */
#include <aioctx/aio_wait.h>

#include <pthread.h>

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"

static unsigned waiters; /* atomic: never more than are on the list, or have just left it */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t kick = PTHREAD_COND_INITIALIZER;
static AioWaiter *list; /* under lock, as its members' links and kicked */

void aio_wait_begin(AioWaiter *waiter, AioContext *ctx)
{
    int cancel;

    rcu_check_fork("AIO_WAIT_WHILE");
    rcu_check_may_wait("AIO_WAIT_WHILE");
    cancel = cancel_off();
    if (!ctx || !in_aio_context_home_thread(ctx)) {
        ctx = qemu_get_current_aio_context();
    }
    *waiter = (AioWaiter){ .ctx = ctx, .pprev = &list };
    pthread_mutex_lock(&lock);
    waiter->next = list;
    if (list) {
        list->pprev = &waiter->next;
    }
    list = waiter;
    pthread_mutex_unlock(&lock);
    fetch_add_seq(&waiters, 1); /* pairs with aio_wait_kick() */
    cancel_restore(cancel);
}

void aio_wait_end(AioWaiter *waiter)
{
    int cancel = cancel_off();

    pthread_mutex_lock(&lock);
    *waiter->pprev = waiter->next;
    if (waiter->next) {
        waiter->next->pprev = waiter->pprev;
    }
    pthread_mutex_unlock(&lock);
    fetch_sub_seq(&waiters, 1);
    cancel_restore(cancel);
}

/* The thread ends while it waits. */
static void end_cancelled(void *opaque)
{
    aio_wait_end(opaque);
}

static void sleep_cancelled(void *opaque)
{
    pthread_mutex_unlock(&lock);
    aio_wait_end(opaque);
}

void aio_wait_step(AioWaiter *waiter)
{
    if (waiter->ctx) {
        pthread_cleanup_push(end_cancelled, waiter);
        aio_poll(waiter->ctx, true);
        pthread_cleanup_pop(0);
        return;
    }
    pthread_mutex_lock(&lock);
    pthread_cleanup_push(sleep_cancelled, waiter);
    while (!waiter->kicked) {
        pthread_cond_wait(&kick, &lock);
    }
    waiter->kicked = false;
    pthread_cleanup_pop(0);
    pthread_mutex_unlock(&lock);
}

void aio_wait_kick(void)
{
    int cancel;

    if (fetch_add_seq(&waiters, 0) == 0) { /* pairs with aio_wait_begin() */
        return;
    }
    rcu_check_fork("aio_wait_kick");
    cancel = cancel_off();
    pthread_mutex_lock(&lock);
    for (AioWaiter *w = list; w; w = w->next) {
        w->kicked = true;
        if (w->ctx) {
            aio_notify(w->ctx);
        }
    }
    pthread_cond_broadcast(&kick);
    pthread_mutex_unlock(&lock);
    cancel_restore(cancel);
}

/* ---- A bottom half elsewhere ----------------------------------------------------------------- */

struct awaited_bh {
    QEMUBHFunc *cb;
    void *opaque;
    bool done; /* atomic, pairs with the wait; once it is set, this is gone */
};

static void run_awaited(void *opaque)
{
    struct awaited_bh *bh = opaque;

    bh->cb(bh->opaque);
    st_seq(&bh->done, true);
    aio_wait_kick();
}

int aio_wait_bh_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    struct awaited_bh bh = { .cb = cb, .opaque = opaque };
    int ret;

    rcu_check_may_wait("aio_wait_bh_oneshot");
    ret = aio_bh_schedule_oneshot(ctx, run_awaited, &bh);
    if (ret == 0) {
        AIO_WAIT_WHILE(ctx, !ld_seq(&bh.done));
    }
    return ret;
}
