/* SPDX-License-Identifier: MIT */
/*
 * Waiting for requests to end, and holding new ones back.
 *
 * The home thread keeps its requests in flight in the order of issue, and publishes the number of
 * the next one (next_seq) and of the oldest one (oldest_seq).  All that were issued up to a moment
 * have ended once oldest_seq has reached the next_seq of that moment; nobody has to be asked.
 *
 *      who waits                             who ends a request (home)
 *      W1  watch++                           E1  oldest_seq = ..., n_held, n_detached
 *      W2  look at oldest_seq and so on      E2  watch != 0 ? wake all who wait
 *          not yet: sleep
 *
 * All sequentially consistent: W2 sees E1, or E2 sees W1.  A home thread sleeps in aio_poll() of
 * its own context and is woken by aio_notify(); others sleep on a condition.  A thread that is home
 * to several contexts here cannot sleep in all of them: it goes round.
 *
 * Holding back: who drains raises `held`, then reads next_seq; who submits publishes next_seq, then
 * reads `held`.  Either the one waits for the request, or the other withdraws it into the queue's
 * held list.  Held requests are not in flight, and nobody waits for them while they are held.
 */
#include "block/block_int.h"

#include <aioctx/rcu.h>
#include <errno.h>
#include <time.h>

#include "rcu/rcu_int.h"

/* Between rounds: how late a completion may be seen there. */
enum { SEVERAL_SLEEP_NS = 200000 };
/* How late a jump of the clock may be seen by a thread that sleeps on the condition. */
enum { LIMIT_SLEEP_NS = 10000000 };

/* What one waits for in one queue. */
typedef struct Wait {
    BlkQueue *q;
    bool own;  /* the caller is the queue's home: what is on its stack does not count */
    bool idle; /* nothing may be left at all, detached pieces included */
    bool snapped;
    uint64_t snap;    /* the next_seq when the wait began */
    int64_t until_ns; /* of QEMU_CLOCK_REALTIME; below zero: without limit */
} Wait;

static bool queue_idle(const BlkQueue *q)
{
    return (ld_seq(&q->n_held) == 0 && ld_seq(&q->oldest_seq) == ld_seq(&q->next_seq) &&
            ld_seq(&q->n_detached) == 0) ||
           ld_seq(&q->abandoned);
}

bool blk_queues_idle(BlockBackend *blk)
{
    for (BlkQueue *q = ld_acquire(&blk->queues); q; q = q->next) {
        if (!queue_idle(q)) {
            return false;
        }
    }
    return true;
}

/* Whether what the wait is for has come about. */
static bool passed(Wait *w)
{
    BlkQueue *q = w->q;

    if (w->idle) {
        return queue_idle(q);
    }
    if (ld_seq(&q->abandoned)) {
        return true;
    }
    if (!w->snapped) {
        /* Those of a section that has ended are on their way and were submitted before. */
        if (ld_seq(&q->n_held) && ld_seq(&q->blk->held) == 0) {
            return false;
        }
        w->snap = ld_seq(&q->next_seq);
        w->snapped = true;
    }
    if (!w->own) {
        return ld_seq(&q->oldest_seq) >= w->snap;
    }
    BlockAIOCB *req = q->flight_head;
    while (req && req->state == BLK_REQ_CALLING) {
        req = req->next;
    }
    return !req || req->seq >= w->snap;
}

/* Wakes all who wait, so that they look again. */
void blk_kick(BlockBackend *blk)
{
    pthread_mutex_lock(&blk->lock);
    for (BlkWaiter *w = blk->waiters; w; w = w->next) {
        if (w->ctx) {
            aio_notify(w->ctx);
        }
    }
    pthread_cond_broadcast(&blk->cond);
    pthread_mutex_unlock(&blk->lock);
    blk_close_check(blk);
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* The context of @q when the caller is its home, else NULL.  Others' may go when the lock does. */
static AioContext *own_context(BlkQueue *q)
{
    AioContext *ctx;

    pthread_mutex_lock(&q->blk->lock);
    ctx = q->ctx;
    if (ctx && !in_aio_context_home_thread(ctx)) {
        ctx = NULL;
    }
    pthread_mutex_unlock(&q->blk->lock);
    return ctx;
}

/* The context that the caller can block in: its only one here.  Returns how many there are. */
static unsigned own_contexts(BlockBackend *blk, AioContext **ret_only)
{
    AioContext *current = qemu_get_current_aio_context();
    unsigned n = current != NULL;

    *ret_only = current;
    for (BlkQueue *q = ld_acquire(&blk->queues); q; q = q->next) {
        AioContext *ctx = own_context(q);

        if (ctx && ctx != current) {
            *ret_only = ctx;
            n++;
        }
    }
    return n;
}

/* One round over several contexts of the caller's, none of which may keep it from the others. */
static void poll_several(BlockBackend *blk)
{
    AioContext *current = qemu_get_current_aio_context();
    bool progress = current && aio_poll(current, false);

    for (BlkQueue *q = ld_acquire(&blk->queues); q; q = q->next) {
        AioContext *ctx = own_context(q);

        if (ctx && ctx != current) {
            progress |= aio_poll(ctx, false);
        }
    }
    if (!progress) {
        nanosleep(&(struct timespec){ .tv_nsec = SEVERAL_SLEEP_NS }, NULL);
    }
}

void blk_poll_own(BlockBackend *blk)
{
    AioContext *only;

    if (own_contexts(blk, &only) == 1) {
        aio_poll(only, true);
    } else {
        poll_several(blk);
    }
}

static bool is_over(const Wait *w)
{
    return w->until_ns >= 0 && qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= w->until_ns;
}

static void nothing(void *opaque)
{
}

/* Polls a context, no longer than the wait's limit. */
static void poll_until(AioContext *ctx, const Wait *w)
{
    QEMUTimer timer;

    if (w->until_ns < 0) {
        aio_poll(ctx, true);
        return;
    }
    aio_timer_init(ctx, &timer, QEMU_CLOCK_REALTIME, SCALE_NS, nothing, NULL);
    timer_mod_ns(&timer, w->until_ns);
    aio_poll(ctx, true);
    timer_deinit(&timer);
}

/* On the backend's condition, under its lock.  The limit is of a clock whose source may have been
 * replaced, the condition's is of CLOCK_MONOTONIC: so it takes short turns. */
static void sleep_locked(BlockBackend *blk, const Wait *w)
{
    int64_t left, end;
    struct timespec ts;

    if (w->until_ns < 0) {
        pthread_cond_wait(&blk->cond, &blk->lock);
        return;
    }
    left = w->until_ns - qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    clock_gettime(CLOCK_MONOTONIC, &ts);
    end = ts.tv_nsec + (left < LIMIT_SLEEP_NS ? left : LIMIT_SLEEP_NS);
    if (left > 0) {
        ts.tv_sec += end / INT64_C(1000000000);
        ts.tv_nsec = end % INT64_C(1000000000);
        pthread_cond_timedwait(&blk->cond, &blk->lock, &ts);
    }
}

/*
 * Sleeps once, or goes on with what the caller's own contexts have to do: what is waited for may
 * itself wait for a range that a request on any of them holds.
 */
static void wait_once(BlockBackend *blk, Wait *w, BlkWaiter *me)
{
    AioContext *only;
    unsigned n = own_contexts(blk, &only);

    pthread_mutex_lock(&blk->lock);
    me->ctx = n == 1 ? only : NULL;
    if (n == 0 && !passed(w)) {
        sleep_locked(blk, w);
    }
    pthread_mutex_unlock(&blk->lock);
    if (n == 0 || passed(w)) { /* once more: until now blk_kick() may have told another context */
        return;
    }
    if (n == 1) {
        poll_until(only, w);
    } else {
        poll_several(blk);
    }
}

/* Returns whether it has come about. */
static bool wait_for(BlockBackend *blk, Wait *w)
{
    BlkWaiter me = { .ctx = NULL }, **link;
    bool has_passed;

    if (passed(w)) {
        return true;
    }
    pthread_mutex_lock(&blk->lock);
    me.next = blk->waiters;
    blk->waiters = &me;
    fetch_add_seq(&blk->watch, 1);
    pthread_mutex_unlock(&blk->lock);
    while (!(has_passed = passed(w)) && !is_over(w)) {
        wait_once(blk, w, &me);
    }
    pthread_mutex_lock(&blk->lock);
    for (link = &blk->waiters; *link != &me; link = &(*link)->next) {
    }
    *link = me.next;
    fetch_sub_seq(&blk->watch, 1);
    pthread_mutex_unlock(&blk->lock);
    return has_passed;
}

/* The drivers are told when someone begins to wait, and when nobody does any more. */
static void count_drainer(BlockBackend *blk, int n)
{
    pthread_mutex_lock(&blk->drain_lock);
    if (blk->drainers == 0 || blk->drainers + n == 0) {
        blk_node_drain(blk->root, n > 0);
    }
    blk->drainers += n;
    pthread_mutex_unlock(&blk->drain_lock);
}

void blk_drain_for_good(BlockBackend *blk)
{
    count_drainer(blk, 1);
}

/* Waits until nothing is left of any request.  Not below a callback. */
void blk_wait_idle(BlockBackend *blk)
{
    count_drainer(blk, 1);
    for (BlkQueue *q = ld_acquire(&blk->queues); q; q = q->next) {
        wait_for(blk, &(Wait){ .q = q, .idle = true, .until_ns = -1 });
    }
    count_drainer(blk, -1);
}

/* Whether requests are held by a stop, so that they may have been submitted before anything. */
static bool holds_by_stop(BlockBackend *blk)
{
    bool holds = false;

    for (BlkQueue *q = ld_acquire(&blk->queues); q && blk_get_stop(blk) && !holds; q = q->next) {
        holds = ld_seq(&q->n_held) != 0 && !ld_seq(&q->abandoned);
    }
    return holds;
}

static int wait_for_all(BlockBackend *blk, int64_t until_ns)
{
    int ret = 0;

    /* What submits to a queue that is made from now on comes after the call. */
    for (BlkQueue *q = ld_seq(&blk->queues); q; q = q->next) {
        Wait w = { .q = q, .own = own_context(q) != NULL, .until_ns = until_ns };

        if (!w.own && this_thread.callbacks > 0) {
            ret = passed(&w) ? ret : -EDEADLK;
        } else if (!wait_for(blk, &w)) {
            ret = ret ? ret : -ETIMEDOUT;
        }
    }
    return ret;
}

/* What a stop held when the wait began, or takes out of the flight meanwhile, has to be waited for
 * as well if the backend goes on before the wait is over: so it is begun anew. */
static int drain(BlockBackend *blk, int64_t until_ns)
{
    uint64_t resumes;
    int ret;

    count_drainer(blk, 1);
    do {
        resumes = ld_seq(&blk->on_error.resumes);
        ret = wait_for_all(blk, until_ns);
        if (ret == 0 && holds_by_stop(blk)) {
            ret = -EBUSY;
        }
        if (ret == 0 && ld_seq(&blk->on_error.resumes) == resumes) {
            break;
        }
        if (ret == 0 && is_over(&(Wait){ .until_ns = until_ns })) {
            ret = -ETIMEDOUT;
        }
    } while (ret == 0);
    count_drainer(blk, -1);
    return ret;
}

/* ---- The interface --------------------------------------------------------------------------- */

int blk_drain(BlockBackend *blk)
{
    rcu_check_fork("blk_drain");
    rcu_check_may_wait("blk_drain");
    return drain(blk, -1);
}

int blk_drain_until(BlockBackend *blk, int64_t until_ns)
{
    rcu_check_fork("blk_drain_until");
    rcu_check_may_wait("blk_drain_until");
    return drain(blk, until_ns < 0 ? 0 : until_ns);
}

int blk_drained_begin(BlockBackend *blk)
{
    rcu_check_fork("blk_drained_begin");
    rcu_check_may_wait("blk_drained_begin");
    fetch_add_seq(&blk->held, 1);
    count_drainer(blk, 1); /* also after -EDEADLK: until the section ends */
    blk_ended(blk); /* who waits for requests that an earlier section held need not any more */
    return drain(blk, -1);
}

void blk_drained_end(BlockBackend *blk)
{
    if ((ld_seq(&blk->held) & ~BLK_HELD_STOP) == 0) {
        die_misuse("blk_drained_end", "there is no drained section to end");
    }
    count_drainer(blk, -1); /* before what was held back comes to the drivers */
    if (fetch_sub_seq(&blk->held, 1) == 1) {
        blk_issue_held(blk);
    }
}
