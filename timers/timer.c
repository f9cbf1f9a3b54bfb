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
#include "rcu/probe_int.h"
#include "rcu/rcu_int.h"
#include "timers/clock_int.h"
#include "timers/list_int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static_assert(sizeof(QEMUTimer) == 80, "part of the binary interface");

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

/*
 * The list of the timer that this thread handled last is most often the next one's too.  Then the
 * processor need not wait for the timer's cache line before it can go on with the list, nor with
 * the next call: the comparison is a guess that it takes back when it was wrong.  A child of fork()
 * has no hint, and is found out where there is none.
 */
static ALWAYS_INLINE bool guess_list(const QEMUTimer *ts, QEMUTimerList **ret)
{
    QEMUTimerList *tl = this_thread.hint;

    if (unlikely(!tl || ts->timer_list != tl)) {
        return false;
    }
    __asm__("" : "+r"(tl)); /* or the compiler takes the timer's, as they are equal */
    *ret = tl;
    return true;
}

static QEMUTimerList *list_of(const QEMUTimer *ts, const char *call)
{
    QEMUTimerList *tl;

    if (unlikely(!guess_list(ts, &tl))) {
        rcu_check_fork(call);
        tl = ts->timer_list;
        if (!tl) {
            die_misuse(call, "the timer was not initialised, or timer_deinit() has released it");
        }
        this_thread.hint = tl;
    }
    return tl;
}

static void check_still_of(const QEMUTimerList *tl, const QEMUTimer *ts, const char *call)
{
    if (unlikely(ts->timer_list != tl)) {
        die_misuse(call, "timer_deinit() ran beside this call on the same timer");
    }
}

static QEMUTimerList *lock_timer(const QEMUTimer *ts, const char *call)
{
    QEMUTimerList *tl = list_of(ts, call);

    list_lock(&tl->lock);
    check_still_of(tl, ts, call);
    return tl;
}

/*
 * The short way in, for the thread that runs the list while it has the lock to itself.  It takes no
 * call, so that there is no register to be saved.  Returns NULL when there is none.
 */
static ALWAYS_INLINE QEMUTimerList *lock_short(const QEMUTimer *ts)
{
    QEMUTimerList *tl;

    return guess_list(ts, &tl) && list_lock_by_bias(&tl->lock) ? tl : NULL;
}

/* Whether @ts is alive, of class NORMAL, and without a range.  Under the lock. */
static ALWAYS_INLINE bool is_plain(const QEMUTimer *ts)
{
    return likely(!(ts->attributes | (ts->state & (TIMER_DEAD | TIMER_RANGE))));
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
    if (attributes & ~QEMU_TIMER_ATTR_EXTERNAL) {
        die_misuse("timer_init", "attributes is %#x; there is no such attribute", attributes);
    }
    clock_of(type);
    rcu_check_fork("timer_init");
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
        .soonest = -1,
        .timer_list = group->tl[type],
        .cb = cb,
        .opaque = opaque,
        .scale = scale,
        .attributes = attributes,
        .place = PLACE_NONE,
    };
    timerlist_get(ts->timer_list);
    timerlist_add_room(ts->timer_list, ts);
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
    /* Arming it does nothing from now on: in its callback, or beside this call, which is wrong. */
    st_release(&ts->state, ts->state | TIMER_DEAD);
    run = sync ? timerlist_find_run_locked(tl, ts) : NULL;
    if (run && this_thread.callbacks) {
        ret = -EDEADLK;
    } else if (run) {
        timerlist_wait_run_locked(tl, run, &waiter);
    }
    forget_runs_locked(tl, ts);
    timerlist_drop_room(tl, ts);
    ts->timer_list = NULL;
    list_unlock(&tl->lock);
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
    list_unlock(&tl->lock);
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

    timerlist_drop_room(ht->timer.timer_list, &ht->timer);
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
    list_unlock(&tl->lock);
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

/* Puts a timer, armed or not, where its new deadline belongs. */
static ALWAYS_INLINE void place_locked(QEMUTimerList *tl, struct timer_queue *q, QEMUTimer *ts,
                                       int64_t soonest, int64_t latest)
{
    unsigned lane = soonest == latest ? timer_queue_pick_lane(q, latest) : TQ_LANES;
    bool stays = lane == TQ_LANES && soonest == latest && likely(ts->place < PLACE_LIST) &&
                 likely(!timer_has_range(ts)); /* in the heap */

    if (!stays && ts->place != PLACE_NONE) {
        timerlist_take_out_locked(tl, ts); /* a lane that it leaves still takes @latest */
    }
    ts->seq = ++tl->seq;
    st_release(&ts->expire_time, latest);
    if (soonest != latest) {
        ts->soonest = soonest;
        st_release(&ts->state, ts->state | TIMER_RANGE);
    }
    if (likely(stays)) {
        timer_queue_move_in_heap(q, ts, latest);
    } else if (lane < TQ_LANES) {
        timer_queue_append(q, lane, ts, latest);
    } else {
        timer_queue_insert_in_heap(q, ts);
    }
}

/* Whether a timer's move from deadline @old, -1 when it was not armed, to @latest can change what
 * the class publishes. */
static inline bool touches_head(const struct timer_class *cls, int64_t old, int64_t latest)
{
    return (uint64_t)old <= (uint64_t)cls->head || latest < cls->head;
}

/* Arms a timer, or moves it, and drops the lock.  One store of the head for the whole move: nobody
 * sees the list without this timer. */
static ALWAYS_INLINE bool arm_unlock(QEMUTimerList *tl, QEMUTimer *ts, int64_t soonest,
                                     int64_t latest)
{
    struct timer_class *cls = class_of(tl, ts);
    bool look = touches_head(cls, ts->expire_time, latest) || soonest != latest ||
                unlikely(timer_has_range(ts));
    bool forward = false;

    place_locked(tl, &cls->queue, ts, soonest, latest);
    if (unlikely(look)) {
        forward = timerlist_publish_locked(cls);
    }
    timerlist_unlock_notify(tl, forward);
    return true;
}

static inline bool may_arm(const QEMUTimerList *tl, const QEMUTimer *ts)
{
    return likely(!(ts->state & TIMER_DEAD) && !tl->closed);
}

static ALWAYS_INLINE bool try_arm_unlock(QEMUTimerList *tl, QEMUTimer *ts, int64_t soonest,
                                         int64_t latest)
{
    if (!may_arm(tl, ts)) {
        list_unlock(&tl->lock);
        return false;
    }
    return arm_unlock(tl, ts, soonest, latest);
}

static bool arm(QEMUTimer *ts, int64_t soonest, int64_t latest)
{
    return try_arm_unlock(lock_timer(ts, "timer_mod"), ts, soonest, latest);
}

/* Goes on where the short way ends, with the lock. */
static __attribute__((noinline)) bool arm_plain_unlock(QEMUTimerList *tl, QEMUTimer *ts, int64_t ns)
{
    check_still_of(tl, ts, "timer_mod");
    return try_arm_unlock(tl, ts, ns, ns);
}

static __attribute__((noinline)) bool move_unlock(QEMUTimerList *tl, QEMUTimer *ts, int64_t ns)
{
    timer_queue_move_in_heap(&tl->cls[CLASS_NORMAL].queue, ts, ns);
    list_unlock_by_bias(&tl->lock);
    return true;
}

/*
 * arm() for what is most frequent: a plain timer that goes to the end of a lane, or moves in the
 * heap, behind the head before and after.  A closed list has no head, so nothing is behind it.
 */
static ALWAYS_INLINE bool arm_short(QEMUTimer *ts, int64_t ns)
{
    QEMUTimerList *tl;
    struct timer_class *cls;
    struct timer_queue *q;
    uint32_t place;
    unsigned lane;

    probe2(timer_arm, ts, ns);
    tl = lock_short(ts);
    if (unlikely(!tl)) {
        return arm(ts, ns, ns);
    }
    place = ts->place;
    cls = &tl->cls[CLASS_NORMAL];
    q = &cls->queue;
    if (unlikely(!is_plain(ts)) || unlikely(touches_head(cls, ts->expire_time, ns))) {
        return arm_plain_unlock(tl, ts, ns);
    }
    lane = timer_queue_near_lane(q, ns);
    if (lane < TQ_LANES) {
        if (unlikely(place != PLACE_NONE)) {
            return arm_plain_unlock(tl, ts, ns);
        }
        ts->seq = ++tl->seq;
        st_release(&ts->expire_time, ns);
        timer_queue_append(q, lane, ts, ns);
    } else {
        if (unlikely(place >= PLACE_LIST) || unlikely(timer_queue_near_stray(q, ns))) {
            return arm_plain_unlock(tl, ts, ns);
        }
        ts->seq = ++tl->seq;
        st_release(&ts->expire_time, ns);
        if (!timer_queue_stays(q, place, ns)) {
            return move_unlock(tl, ts, ns);
        }
        timer_queue_note_stray(q, ns);
    }
    list_unlock_by_bias(&tl->lock);
    return true;
}

static bool arm_earlier(QEMUTimer *ts, int64_t ns)
{
    QEMUTimerList *tl = lock_timer(ts, "timer_mod_anticipate");

    if (!may_arm(tl, ts) || (is_armed(ts) && ts->expire_time <= ns)) {
        list_unlock(&tl->lock);
        return false;
    }
    probe2(timer_arm, ts, ns);
    /* Of a range, the new deadline may lie after what the pass calls now. */
    if (ts->place == PLACE_DUE && ns <= tl->pass_now) {
        timerlist_anticipate_due_locked(tl, ts, ns);
        timerlist_unlock_notify(tl, timerlist_publish_locked(class_of(tl, ts)));
        return true;
    }
    return arm_unlock(tl, ts, ns, ns);
}

static int64_t clamp_ns(int64_t ns)
{
    return ns < 0 ? 0 : ns > INT64_MAX - 1 ? INT64_MAX - 1 : ns;
}

bool timer_mod_ns(QEMUTimer *ts, int64_t expire_time)
{
    if (unlikely((uint64_t)expire_time >= INT64_MAX)) {
        expire_time = clamp_ns(expire_time);
    }
    return arm_short(ts, expire_time);
}

bool timer_mod(QEMUTimer *ts, int64_t expire_time)
{
    return arm_short(ts, to_ns(ts, expire_time));
}

bool timer_mod_range_ns(QEMUTimer *ts, int64_t soonest, int64_t latest)
{
    soonest = clamp_ns(soonest);
    latest = clamp_ns(latest);
    probe2(timer_arm, ts, latest);
    return arm(ts, soonest < latest ? soonest : latest, latest);
}

bool timer_mod_anticipate_ns(QEMUTimer *ts, int64_t expire_time)
{
    return arm_earlier(ts, clamp_ns(expire_time));
}

bool timer_mod_anticipate(QEMUTimer *ts, int64_t expire_time)
{
    return arm_earlier(ts, to_ns(ts, expire_time));
}

/* @last plus the least whole number of @interval, at least one, that lies after @now. */
static int64_t next_period(int64_t last, int64_t now, int64_t interval, uint64_t *ret_missed)
{
    uint64_t periods = now < last ? 1 : ((uint64_t)now - (uint64_t)last) / (uint64_t)interval + 1;
    int64_t next;

    if (__builtin_mul_overflow(periods, interval, &next) ||
        __builtin_add_overflow(next, last, &next)) {
        next = INT64_MAX;
    }
    *ret_missed = periods - 1;
    return clamp_ns(next);
}

uint64_t timer_forward(QEMUTimer *ts, int64_t now, int64_t interval_ns)
{
    uint64_t missed = 0;
    QEMUTimerList *tl;
    int64_t last, next;

    if (interval_ns < 1) {
        die_misuse("timer_forward", "the interval is %lld ns; it is 1 at least",
                   (long long)interval_ns);
    }
    now = clamp_ns(now);
    tl = lock_timer(ts, "timer_forward");
    if (!may_arm(tl, ts)) {
        list_unlock(&tl->lock);
        return 0;
    }
    last = is_armed(ts) ? ts->expire_time : ts->soonest;
    next = next_period(last < 0 ? now : last, now, interval_ns, &missed);
    probe2(timer_arm, ts, next);
    arm_unlock(tl, ts, next, next);
    return missed;
}

/* Goes on where the short way ends, with the lock. */
static __attribute__((noinline)) bool del_unlock(QEMUTimerList *tl, QEMUTimer *ts)
{
    bool armed;

    check_still_of(tl, ts, "timer_del");
    armed = timerlist_cancel_locked(tl, ts);
    list_unlock(&tl->lock);
    return armed;
}

/* The class has lost a timer whose deadline was the head. */
static __attribute__((noinline)) bool publish_unlock(QEMUTimerList *tl)
{
    timerlist_publish_locked(&tl->cls[CLASS_NORMAL]);
    list_unlock_by_bias(&tl->lock);
    return true;
}

bool timer_del(QEMUTimer *ts)
{
    QEMUTimerList *tl = lock_short(ts);
    struct timer_class *cls;
    int64_t old, head;

    if (unlikely(!tl)) {
        return del_unlock(lock_timer(ts, "timer_del"), ts);
    }
    if (unlikely(!is_plain(ts)) || ts->place - PLACE_LIST >= TQ_LANES) {
        return del_unlock(tl, ts);
    }
    cls = &tl->cls[CLASS_NORMAL];
    old = ts->expire_time;
    timer_queue_remove_from_list(&cls->queue, ts);
    ts->place = PLACE_NONE;
    ts->soonest = old; /* for timer_forward() */
    st_release(&ts->expire_time, -1);
    if (old <= cls->head) {
        if (unlikely(cls->due_first)) {
            return publish_unlock(tl);
        }
        head = timer_queue_key(&cls->queue);
        if (head > cls->head) {
            st_release(&cls->head, head);
        }
    }
    list_unlock_by_bias(&tl->lock);
    return true;
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
    if (run && this_thread.callbacks) {
        ret = -EDEADLK;
    } else if (run) {
        timerlist_wait_run_locked(tl, run, &waiter); /* from here on @ts may be gone */
        ret |= waiter.disarmed;
    }
    list_unlock(&tl->lock);
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
