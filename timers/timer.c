/* SPDX-License-Identifier: MIT */
/*
 * Timers: arming, cancelling, freeing.
 *
 * Everything that changes a timer happens under its list's lock, so that calls from any threads
 * take effect one after the other.  A timer's list never changes; the timer holds a reference on
 * it, so that the lock is there as long as the timer is.
 *
 *            timer_mod                 pass takes it out
 *   idle ---------------> armed -----------------------------> running (on a struct timer_run)
 *     ^      timer_del      |                                     |  callback may arm, delete, free
 *     +---------------------+<------------------------------------+  it: to the list it is idle
 *   timer_free: dead at once; freed, a grace period later, by whoever comes last: timer_free, or
 *   the end of the oldest run.  timer_deinit: the runs forget the timer, so that its memory may go.
 */
#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "timers/clock_int.h"
#include "timers/list_int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static_assert(sizeof(QEMUTimer) == 96, "part of the binary interface");

static int64_t to_ns(const QEMUTimer *ts, int64_t t)
{
    int64_t ns;

    if (t < 0) {
        return 0;
    }
    if (__builtin_mul_overflow(t, (int64_t)ts->scale, &ns) || ns > INT64_MAX - 1) {
        return INT64_MAX - 1;
    }
    return ns;
}

static QEMUTimerList *lock_timer(const QEMUTimer *ts, const char *call)
{
    QEMUTimerList *tl = ts->timer_list;

    if (unlikely(!tl)) {
        die_misuse(call, "the timer was not initialised, or timer_deinit() has released it");
    }
    rcu_check_fork(call);
    pthread_mutex_lock(&tl->lock);
    if (unlikely(ts->timer_list != tl)) {
        die_misuse(call, "timer_deinit() ran beside this call on the same timer");
    }
    return tl;
}

/* Moving a timer touches its neighbours in the queue, which are anywhere in memory: fetch them at
 * once and not one after the other. */
static inline void prefetch_neighbours(const QEMUTimer *ts)
{
    __builtin_prefetch(ts->child, 1);
    __builtin_prefetch(ts->next, 1);
    __builtin_prefetch(ts->prev, 1);
}

static inline bool is_armed(const QEMUTimer *ts)
{
    return ts->place != PLACE_NONE;
}

/* ---- Init and deinit ------------------------------------------------------------------------- */

void timer_init_full(QEMUTimer *ts, QEMUTimerListGroup *group, QEMUClockType type, int scale,
                     int attributes, QEMUTimerCB *cb, void *opaque)
{
    if (scale < 1 || scale > 1000000000) {
        die_misuse("timer_init", "scale is %d; it is ns per unit, 1 to 1000000000", scale);
    }
    if (!cb) {
        die_misuse("timer_init", "the timer has no callback");
    }
    clock_of(type);
    if (!group || group == &main_loop_tlg) {
        init_clocks(NULL);
        group = &main_loop_tlg;
    }
    if (!group->tl[type]) {
        die_misuse("timer_init",
                   "the group has no lists: it was not initialised, or its context is gone");
    }
    *ts = (QEMUTimer){
        .expire_time = -1,
        .timer_list = group->tl[type],
        .cb = cb,
        .opaque = opaque,
        .scale = scale,
        .attributes = attributes,
        .place = PLACE_NONE,
    };
    timerlist_get(ts->timer_list);
    if (type == QEMU_CLOCK_HOST) {
        host_watch_start();
    }
}

void timer_init(QEMUTimer *ts, QEMUClockType type, int scale, QEMUTimerCB *cb, void *opaque)
{
    timer_init_full(ts, NULL, type, scale, 0, cb, opaque);
}

void timer_init_ns(QEMUTimer *ts, QEMUClockType type, QEMUTimerCB *cb, void *opaque)
{
    timer_init(ts, type, SCALE_NS, cb, opaque);
}

void timer_init_us(QEMUTimer *ts, QEMUClockType type, QEMUTimerCB *cb, void *opaque)
{
    timer_init(ts, type, SCALE_US, cb, opaque);
}

void timer_init_ms(QEMUTimer *ts, QEMUClockType type, QEMUTimerCB *cb, void *opaque)
{
    timer_init(ts, type, SCALE_MS, cb, opaque);
}

static void forget_runs_locked(QEMUTimerList *tl, const QEMUTimer *ts)
{
    for (struct timer_run *run = tl->runs; run; run = run->outer) {
        if (run->ts == ts) {
            run->ts = NULL;
        }
    }
}

static int deinit_timer(QEMUTimer *ts, const char *call, bool sync)
{
    struct timer_waiter waiter;
    struct timer_run *run;
    QEMUTimerList *tl;
    int ret = 0;

    if (!ts->timer_list) {
        return 0;
    }
    tl = lock_timer(ts, call);
    if (ts->state & TIMER_HEAP) {
        die_misuse(call, "the timer is from timer_new(); timer_free() it");
    }
    timerlist_cancel_locked(tl, ts);
    run = sync ? timerlist_find_run_locked(tl, ts) : NULL;
    if (run && callback_depth.any) {
        ret = -EDEADLK;
    } else if (run) {
        /* The callback may arm its timer yet: that does nothing from now on. */
        st_release(&ts->state, ts->state | TIMER_DEAD);
        timerlist_wait_run_locked(tl, run, &waiter);
    }
    forget_runs_locked(tl, ts);
    ts->timer_list = NULL;
    pthread_mutex_unlock(&tl->lock);
    timerlist_put(tl);
    return ret;
}

void timer_deinit(QEMUTimer *ts)
{
    deinit_timer(ts, "timer_deinit", false);
}

int timer_deinit_sync(QEMUTimer *ts)
{
    rcu_check_may_wait("timer_deinit_sync");
    return deinit_timer(ts, "timer_deinit_sync", true);
}

/* ---- New and free ---------------------------------------------------------------------------- */

QEMUTimer *timer_new_full(QEMUTimerListGroup *group, QEMUClockType type, int scale, int attributes,
                          QEMUTimerCB *cb, void *opaque)
{
    struct heap_timer *ht = calloc(1, sizeof(*ht));
    QEMUTimerList *tl;

    if (!ht) {
        errno = ENOMEM;
        return NULL;
    }
    timer_init_full(&ht->timer, group, type, scale, attributes, cb, opaque);
    ht->timer.state = TIMER_HEAP;
    tl = lock_timer(&ht->timer, "timer_new");
    ht->walk_next = tl->walk;
    ht->walk_pprev = &tl->walk;
    if (tl->walk) {
        tl->walk->walk_pprev = &ht->walk_next;
    }
    st_release(&tl->walk, ht); /* a walker that sees it sees it initialised */
    pthread_mutex_unlock(&tl->lock);
    return &ht->timer;
}

QEMUTimer *timer_new(QEMUClockType type, int scale, QEMUTimerCB *cb, void *opaque)
{
    return timer_new_full(NULL, type, scale, 0, cb, opaque);
}

QEMUTimer *timer_new_ns(QEMUClockType type, QEMUTimerCB *cb, void *opaque)
{
    return timer_new(type, SCALE_NS, cb, opaque);
}

QEMUTimer *timer_new_us(QEMUClockType type, QEMUTimerCB *cb, void *opaque)
{
    return timer_new(type, SCALE_US, cb, opaque);
}

QEMUTimer *timer_new_ms(QEMUClockType type, QEMUTimerCB *cb, void *opaque)
{
    return timer_new(type, SCALE_MS, cb, opaque);
}

static void free_heap_timer(AioRcuHead *head)
{
    struct heap_timer *ht = container_of(head, struct heap_timer, rcu);

    timerlist_put(ht->timer.timer_list);
    free(ht);
}

void heap_timer_reap(struct heap_timer *ht)
{
    aio_call_rcu(&ht->rcu, free_heap_timer);
}

/* A walker that is on @ht goes on through its walk_next, which stays as it is. */
static void walk_remove_locked(struct heap_timer *ht)
{
    st_release(ht->walk_pprev, ht->walk_next);
    if (ht->walk_next) {
        ht->walk_next->walk_pprev = ht->walk_pprev;
    }
}

void timer_free(QEMUTimer *ts)
{
    struct heap_timer *ht;
    struct timer_run *run;
    QEMUTimerList *tl;

    if (!ts) {
        return;
    }
    tl = lock_timer(ts, "timer_free");
    if (!(ts->state & TIMER_HEAP)) {
        die_misuse("timer_free", "the timer is not from timer_new(); timer_deinit() it");
    }
    if (ts->state & TIMER_DEAD) {
        die_misuse("timer_free", "the timer was freed before");
    }
    ht = container_of(ts, struct heap_timer, timer);
    st_release(&ts->state, ts->state | TIMER_DEAD);
    walk_remove_locked(ht);
    timerlist_cancel_locked(tl, ts);
    run = timerlist_find_run_locked(tl, ts);
    if (run) {
        run->reap = true;
    }
    pthread_mutex_unlock(&tl->lock);
    if (!run) {
        heap_timer_reap(ht);
    }
}

void timer_set_name(QEMUTimer *ts, const char *name)
{
    if (!(ld_acquire(&ts->state) & TIMER_HEAP)) {
        die_misuse("timer_set_name", "the timer is not from timer_new()");
    }
    st_release(&container_of(ts, struct heap_timer, timer)->name, name);
}

/* ---- Arming and cancelling ------------------------------------------------------------------- */

static bool arm(QEMUTimer *ts, int64_t ns, bool only_earlier, const char *call)
{
    QEMUTimerList *tl = lock_timer(ts, call);
    struct timer_class *cls = class_of(tl, ts);
    bool armed = is_armed(ts);

    prefetch_neighbours(ts);
    if ((ts->state & TIMER_DEAD) || tl->closed ||
        (only_earlier && armed && ts->expire_time <= ns)) {
        pthread_mutex_unlock(&tl->lock);
        return false;
    }
    if (only_earlier && ts->place == PLACE_DUE) {
        timerlist_anticipate_due_locked(tl, ts, ns);
    } else {
        if (armed) {
            timerlist_take_out_locked(tl, ts);
        }
        ts->seq = ++tl->seq;
        st_release(&ts->expire_time, ns);
        timer_queue_insert(&cls->queue, ts);
    }
    /* One store of the head for the whole move: nobody sees the list without this timer. */
    timerlist_unlock_notify(tl, timerlist_publish_locked(cls));
    return true;
}

static int64_t clamp_ns(int64_t ns)
{
    return ns < 0 ? 0 : ns > INT64_MAX - 1 ? INT64_MAX - 1 : ns;
}

bool timer_mod_ns(QEMUTimer *ts, int64_t expire_time)
{
    return arm(ts, clamp_ns(expire_time), false, "timer_mod");
}

bool timer_mod(QEMUTimer *ts, int64_t expire_time)
{
    return arm(ts, to_ns(ts, expire_time), false, "timer_mod");
}

bool timer_mod_anticipate_ns(QEMUTimer *ts, int64_t expire_time)
{
    return arm(ts, clamp_ns(expire_time), true, "timer_mod_anticipate");
}

bool timer_mod_anticipate(QEMUTimer *ts, int64_t expire_time)
{
    return arm(ts, to_ns(ts, expire_time), true, "timer_mod_anticipate");
}

bool timer_del(QEMUTimer *ts)
{
    QEMUTimerList *tl = lock_timer(ts, "timer_del");
    bool armed = timerlist_cancel_locked(tl, ts);

    pthread_mutex_unlock(&tl->lock);
    return armed;
}

int timer_del_sync(QEMUTimer *ts)
{
    struct timer_waiter waiter;
    struct timer_run *run;
    QEMUTimerList *tl;
    int ret;

    rcu_check_may_wait("timer_del_sync");
    tl = lock_timer(ts, "timer_del_sync");
    timerlist_get(tl); /* the callback may free the timer, and its reference with it */
    ret = timerlist_cancel_locked(tl, ts);
    run = timerlist_find_run_locked(tl, ts);
    if (run && callback_depth.any) {
        ret = -EDEADLK;
    } else if (run) {
        timerlist_wait_run_locked(tl, run, &waiter); /* from here on @ts may be gone */
        ret |= waiter.disarmed;
    }
    pthread_mutex_unlock(&tl->lock);
    timerlist_put(tl);
    return ret;
}

/* ---- Lockless looks -------------------------------------------------------------------------- */

bool timer_pending(const QEMUTimer *ts)
{
    return timer_expire_time_ns(ts) >= 0;
}

int64_t timer_expire_time_ns(const QEMUTimer *ts)
{
    return ts->timer_list ? ld_acquire(&ts->expire_time) : -1;
}

bool timer_expired(const QEMUTimer *ts, int64_t current_time)
{
    int64_t deadline = timer_expire_time_ns(ts);

    return deadline >= 0 && deadline <= to_ns(ts, current_time);
}
