/* SPDX-License-Identifier: MIT */
/*
 * Timer lists: head words and passes.  The protocols are in list_int.h and clock_int.h.
 *
 * A pass takes what is due, up to its budget, out of the queues into the due lists under one hold
 * of the lock, and then runs it from there.  So what is armed meanwhile, which goes into the
 * queues, waits for the next pass however late it is; a timer in a due list is still armed and can
 * be deleted or moved by anyone; and a nested pass finds the outer one's rest in the due lists and
 * runs that first.
 */
#include "timers/list_int.h"

#include "rcu/atomic_int.h"
#include "rcu/probe_int.h"
#include "rcu/rcu_int.h"
#include "timers/clock_int.h"
#include "timers/icount_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- Life cycle ------------------------------------------------------------------------------ */

QEMUTimerList *timerlist_new(QEMUClockType type, QEMUTimerListNotifyCB *cb, void *opaque)
{
    struct clock *clock;
    QEMUTimerList *tl;

    rcu_check_fork("timerlist_new");
    rcu_mark_used();
    clock = clock_of(type); /* aborts on a bad one */
    tl = aligned_alloc(64, sizeof(*tl));
    if (!tl) {
        errno = ENOMEM;
        return NULL;
    }
    memset(tl, 0, sizeof(*tl));
    tl->type = type;
    tl->clock = clock;
    tl->notify_cb = cb;
    tl->notify_opaque = opaque;
    tl->refs = 1;
    list_lock_init(&tl->lock);
    pthread_cond_init(&tl->run_done, NULL);
    for (int i = 0; i < CLASS_MAX; i++) {
        tl->cls[i].head = tl->cls[i].soft = NO_DEADLINE;
        timer_queue_init(&tl->cls[i].queue);
    }
    clock_add_list(tl);
    return tl;
}

static void free_list(AioRcuHead *head)
{
    QEMUTimerList *tl = container_of(head, QEMUTimerList, rcu);

    for (int i = 0; i < CLASS_MAX; i++) {
        timer_queue_destroy(&tl->cls[i].queue);
    }
    pthread_cond_destroy(&tl->run_done);
    list_lock_destroy(&tl->lock);
    free(tl);
}

void timerlist_get(QEMUTimerList *tl)
{
    fetch_add_seq(&tl->refs, 1);
}

bool timerlist_try_get(QEMUTimerList *tl)
{
    unsigned refs = ld_relaxed(&tl->refs);

    while (refs > 0) {
        if (cas_seq(&tl->refs, &refs, refs + 1)) {
            return true;
        }
    }
    return false;
}

void timerlist_put(QEMUTimerList *tl)
{
    if (sub_fetch_acq_rel(&tl->refs, 1) == 0) {
        aio_call_rcu(&tl->rcu, free_list);
    }
}

/* The class is still to be published. */
static void disarm_locked(QEMUTimerList *tl, QEMUTimer *ts)
{
    timerlist_take_out_locked(tl, ts);
    ts->soonest = ts->expire_time; /* the last deadline, for timer_forward() */
    st_release(&ts->expire_time, -1);
}

static void disarm_all_locked(QEMUTimerList *tl)
{
    for (int i = 0; i < CLASS_MAX; i++) {
        struct timer_class *cls = &tl->cls[i];
        QEMUTimer *ts;

        while ((ts = cls->due_first ? cls->due_first : timer_queue_first(&cls->queue))) {
            disarm_locked(tl, ts);
        }
        timerlist_publish_locked(cls);
    }
}

static void close_list(QEMUTimerList *tl, const char *call, bool free_it)
{
    rcu_check_fork(call);
    list_lock(&tl->lock);
    if (tl->freed) {
        die_misuse(call, "the list was freed before");
    }
    if (ld_seq(&tl->passes) > 0) {
        die_misuse(call, "timerlist_run_timers() of this list is running");
    }
    tl->closed = true;
    tl->freed = free_it;
    disarm_all_locked(tl);
    list_unlock(&tl->lock);
}

void timerlist_free(QEMUTimerList *tl)
{
    if (!tl) {
        return;
    }
    close_list(tl, "timerlist_free", true);
    clock_remove_list(tl);
    timerlist_put(tl);
}

void timerlistgroup_close(QEMUTimerListGroup *tlg)
{
    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        close_list(tlg->tl[type], "timerlistgroup_close", false);
    }
}

/* ---- Arming's half that belongs to the list -------------------------------------------------- */

static void due_remove(struct timer_class *cls, QEMUTimer *ts)
{
    *(ts->prev ? &ts->prev->next : &cls->due_first) = ts->next;
    *(ts->next ? &ts->next->prev : &cls->due_last) = ts->prev;
    ts->place = PLACE_NONE;
}

/* Behind @prev; NULL: first. */
static inline void due_link(struct timer_class *cls, QEMUTimer *prev, QEMUTimer *ts)
{
    QEMUTimer *next = prev ? prev->next : cls->due_first;

    ts->prev = prev;
    ts->next = next;
    *(prev ? &prev->next : &cls->due_first) = ts;
    *(next ? &next->prev : &cls->due_last) = ts;
    ts->place = PLACE_DUE;
}

/* For what does not come in order: ranges, and timer_mod_anticipate() on a due timer. */
static void due_insert(struct timer_class *cls, QEMUTimer *ts)
{
    QEMUTimer *prev = cls->due_last;

    while (prev && timer_before(ts, prev)) {
        prev = prev->prev;
    }
    due_link(cls, prev, ts);
}

/* The new arming has no range, unless it is given one. */
static inline void drop_range(QEMUTimer *ts)
{
    if (unlikely(timer_has_range(ts))) {
        st_release(&ts->state, ts->state & ~TIMER_RANGE);
    }
}

void timerlist_anticipate_due_locked(QEMUTimerList *tl, QEMUTimer *ts, int64_t ns)
{
    struct timer_class *cls = class_of(tl, ts);

    due_remove(cls, ts);
    ts->seq = ++tl->seq;
    drop_range(ts);
    st_release(&ts->expire_time, ns);
    due_insert(cls, ts);
}

void timerlist_take_out_locked(QEMUTimerList *tl, QEMUTimer *ts)
{
    struct timer_class *cls = class_of(tl, ts);

    if (ts->place == PLACE_DUE) {
        due_remove(cls, ts);
    } else {
        timer_queue_remove(&cls->queue, ts);
    }
    drop_range(ts);
}

void timerlist_add_room(QEMUTimerList *tl, const QEMUTimer *ts)
{
    struct timer_class *cls = class_of(tl, ts);
    unsigned timers = fetch_add_seq(&cls->timers, 1) + 1;

    if (unlikely(timers > timer_queue_room(&cls->queue))) {
        list_lock(&tl->lock);
        timer_queue_reserve(&cls->queue, timers); /* when it cannot: queue_int.h */
        list_unlock(&tl->lock);
    }
}

void timerlist_drop_room(QEMUTimerList *tl, const QEMUTimer *ts)
{
    fetch_sub_seq(&class_of(tl, ts)->timers, 1);
}

bool timerlist_publish_change_locked(struct timer_class *cls)
{
    int64_t head = timer_queue_key(&cls->queue), old = cls->head;
    int64_t soft = timer_queue_soft_key(&cls->queue);

    if (unlikely(soft != cls->soft)) {
        st_release(&cls->soft, soft); /* wakes nobody: who is awake looks at it */
    }
    if (cls->due_first && cls->due_first->expire_time < head) {
        head = cls->due_first->expire_time;
    }
    if (head < old) {
        st_seq(&cls->head, head); /* pairs with the sleeper's load: list_int.h */
        return true;
    }
    if (head > old) {
        st_release(&cls->head, head);
    }
    return false;
}

bool timerlist_cancel_locked(QEMUTimerList *tl, QEMUTimer *ts)
{
    if (ts->place == PLACE_NONE) {
        return false;
    }
    disarm_locked(tl, ts);
    timerlist_publish_locked(class_of(tl, ts));
    return true;
}

void timerlist_notify_unlock(QEMUTimerList *tl)
{
    QEMUClockType type = tl->type;

    if (!tl->notify_cb) {
        list_unlock(&tl->lock);
        icount_head_forward(type);
        return;
    }
    aio_rcu_read_lock();
    list_unlock(&tl->lock);
    icount_head_forward(type); /* first: until then VIRTUAL may go past the new head */
    tl->notify_cb(tl->notify_opaque, type);
    aio_rcu_read_unlock();
}

void timerlist_notify(QEMUTimerList *tl)
{
    bool closed;

    aio_rcu_read_lock();
    list_lock(&tl->lock);
    closed = tl->closed;
    list_unlock(&tl->lock);
    if (!closed && tl->notify_cb) {
        tl->notify_cb(tl->notify_opaque, tl->type);
    }
    aio_rcu_read_unlock();
}

/* ---- Lockless reads -------------------------------------------------------------------------- */

/* When the soonest range begins. */
static int64_t soft_moment(QEMUTimerList *tl)
{
    int64_t a = ld_acquire(&tl->cls[CLASS_NORMAL].soft),
            b = ld_acquire(&tl->cls[CLASS_EXTERNAL].soft);

    return a < b ? a : b;
}

/* clock_runs() and qemu_clock_get_ns() of the list's clock, the short way for most lists. */
static inline bool its_clock_runs(const QEMUTimerList *tl)
{
    return tl->type == QEMU_CLOCK_REALTIME ? ld_seq(&tl->clock->enabled) : clock_runs(tl->type);
}

static inline int64_t its_now(const QEMUTimerList *tl)
{
    return tl->type == QEMU_CLOCK_REALTIME && likely(!ld_relaxed(&tl->clock->source))
               ? clock_monotonic_ns()
               : qemu_clock_get_ns(tl->type);
}

bool timerlist_has_timers(QEMUTimerList *tl)
{
    return timerlist_head_ns(tl) != NO_DEADLINE;
}

int64_t timerlist_deadline_ns(QEMUTimerList *tl)
{
    int64_t head = timerlist_head_ns(tl), now;

    if (head == NO_DEADLINE || !its_clock_runs(tl)) {
        return -1;
    }
    now = its_now(tl);
    return head > now ? head - now : 0;
}

bool timerlist_expired(QEMUTimerList *tl)
{
    return timerlist_deadline_ns(tl) == 0;
}

QEMUClockType timerlist_get_clock(QEMUTimerList *tl)
{
    return tl->type;
}

/* ---- Runs: callbacks in progress ------------------------------------------------------------- */

struct timer_run *timerlist_find_run_locked(QEMUTimerList *tl, const QEMUTimer *ts)
{
    struct timer_run *found = NULL;

    for (struct timer_run *run = tl->runs; run; run = run->outer) {
        if (run->ts == ts) {
            found = run;
        }
    }
    return found;
}

void timerlist_wait_run_locked(QEMUTimerList *tl, struct timer_run *run,
                               struct timer_waiter *waiter)
{
    *waiter = (struct timer_waiter){ .next = run->waiters };
    run->waiters = waiter;
    list_lock_to_wait(&tl->lock); /* the run may end meanwhile: it tells the waiter */
    while (!waiter->done) {       /* from then on the runner does not touch it */
        list_lock_cond_wait(&tl->lock, &tl->run_done);
    }
}

static void wake_waiters_locked(QEMUTimerList *tl, struct timer_run *run)
{
    bool disarm = run->ts && timerlist_cancel_locked(tl, run->ts);

    for (struct timer_waiter *w = run->waiters, *next; w; w = next) {
        next = w->next;
        w->disarmed = disarm; /* one arming: the first waiter reports it */
        w->done = true;
        disarm = false;
    }
    pthread_cond_broadcast(&tl->run_done);
}

static void end_run_locked(QEMUTimerList *tl, struct timer_run *run)
{
    must(tl->runs == run);
    tl->runs = run->outer;
    if (run->ts && !timerlist_find_run_locked(tl, run->ts)) {
        st_release(&run->ts->state, run->ts->state & ~TIMER_RUNNING);
    }
    if (run->waiters) {
        wake_waiters_locked(tl, run); /* the timer may be gone as soon as the lock is dropped */
    }
}

/* Calls the callback of a timer by way of the list's observer, and drops the lock. */
static __attribute__((noinline)) void call_observed_unlock(QEMUTimerList *tl, const QEMUTimer *ts,
                                                           struct timer_observer *observer)
{
    struct timer_firing firing = {
        .cb = ts->cb,
        .opaque = ts->opaque,
        .type = tl->type,
        .deadline_ns = ts->soonest,
    };

    if (ts->state & TIMER_HEAP) {
        const char *name = ld_acquire(&container_of(ts, struct heap_timer, timer)->name);

        if (name) { /* under the lock: until that is dropped nobody frees the timer */
            strncpy(firing.name, name, sizeof(firing.name) - 1);
        }
    }
    list_unlock(&tl->lock);
    observer->run(observer, &firing);
}

/* Runs @ts, which is disarmed, with the lock dropped meanwhile. */
static void run_timer_locked(QEMUTimerList *tl, QEMUTimer *ts, struct timer_observer *observer)
{
    struct timer_run run = { .ts = ts, .outer = tl->runs };
    QEMUTimerCB *cb = ts->cb;
    void *opaque = ts->opaque;

    st_release(&ts->state, ts->state | TIMER_RUNNING);
    tl->runs = &run;
    probe4(timer_fire, ts, cb, ts->soonest, tl->pass_now - ts->soonest);
    if (unlikely(observer)) {
        call_observed_unlock(tl, ts, observer);
    } else {
        list_unlock(&tl->lock);
        cb(opaque);
    }
    list_lock(&tl->lock);
    end_run_locked(tl, &run);
    if (run.reap) {
        list_unlock(&tl->lock); /* it is the innermost one */
        heap_timer_reap(container_of(ts, struct heap_timer, timer));
        list_lock(&tl->lock);
    }
}

/* ---- Passes ---------------------------------------------------------------------------------- */

/* Moves what is due at @now into the due lists, in order.  Returns how much of @budget is left. */
static int collect_due_locked(QEMUTimerList *tl, int64_t now, int budget)
{
    struct timer_class *a = &tl->cls[CLASS_NORMAL], *b = &tl->cls[CLASS_EXTERNAL], *cls;

    for (; budget > 0; budget--) {
        int64_t ka = timer_queue_key(&a->queue), kb = timer_queue_key(&b->queue);

        if (ka > now && kb > now) {
            break;
        }
        cls = ka < kb ? a : b;
        if (unlikely(ka == kb) &&
            timer_before(timer_queue_first(&a->queue), timer_queue_first(&b->queue))) {
            cls = a;
        }
        due_link(cls, cls->due_last, timer_queue_take_first(&cls->queue, ka < kb ? ka : kb));
    }
    return budget;
}

/* Likewise what is not due, but has reached the start of its range. */
static void collect_soft_locked(QEMUTimerList *tl, int64_t now, int budget)
{
    for (; budget > 0; budget--) {
        struct timer_class *cls = &tl->cls[CLASS_NORMAL], *other = &tl->cls[CLASS_EXTERNAL];
        QEMUTimer *ts = timer_queue_first_soft(&cls->queue);
        QEMUTimer *t = timer_queue_first_soft(&other->queue);

        if (!ts ||
            (t && (t->soonest < ts->soonest || (t->soonest == ts->soonest && t->seq < ts->seq)))) {
            ts = t;
            cls = other;
        }
        if (!ts || ts->soonest > now) {
            break;
        }
        timer_queue_remove(&cls->queue, ts);
        due_insert(cls, ts);
    }
    timerlist_publish_locked(&tl->cls[CLASS_NORMAL]);
    timerlist_publish_locked(&tl->cls[CLASS_EXTERNAL]);
}

/* Disarms the first of a due list: its callback comes next. */
static inline void take_first_due(QEMUTimerList *tl, QEMUTimer *ts)
{
    struct timer_class *cls = class_of(tl, ts);

    cls->due_first = ts->next;
    *(ts->next ? &ts->next->prev : &cls->due_last) = NULL;
    ts->place = PLACE_NONE;
    ts->soonest = ts->expire_time;
    drop_range(ts);
    st_release(&ts->expire_time, -1);
    timerlist_publish_locked(cls);
}

static QEMUTimer *first_due(QEMUTimerList *tl)
{
    QEMUTimer *a = tl->cls[CLASS_NORMAL].due_first, *b = tl->cls[CLASS_EXTERNAL].due_first;

    return !a || (b && timer_before(b, a)) ? b : a;
}

/* The clock was disabled in mid-pass: what was not run goes back to its place in the order. */
static void put_back_due_locked(QEMUTimerList *tl)
{
    QEMUTimer *ts;

    while ((ts = first_due(tl))) {
        struct timer_class *cls = class_of(tl, ts);

        due_remove(cls, ts);
        timer_queue_insert_in_heap(&cls->queue, ts);
        timerlist_publish_locked(cls);
    }
}

static bool run_pass(QEMUTimerList *tl, struct clock *clock, int64_t now)
{
    struct timer_observer *observer = ld_acquire(&tl->observer);
    bool ran = false;
    QEMUTimer *ts;

    list_lock(&tl->lock);
    if (!first_due(tl)) {
        tl->pass_now = now;
        collect_soft_locked(tl, now, collect_due_locked(tl, now, TIMERLIST_BUDGET));
    }
    tl->depth++;
    this_thread.callbacks++;
    this_thread.timer_callbacks++;
    while ((ts = first_due(tl)) && ld_seq(&clock->enabled)) {
        take_first_due(tl, ts);
        run_timer_locked(tl, ts, observer);
        ran = true;
    }
    this_thread.timer_callbacks--;
    this_thread.callbacks--;
    if (--tl->depth == 0) {
        put_back_due_locked(tl);
    }
    /* Every change has published its class; moving between due list and queue changes no head. */
    list_unlock(&tl->lock);
    return ran;
}

bool timerlist_run_timers(QEMUTimerList *tl)
{
    struct clock *clock = tl->clock;
    int64_t head = timerlist_head_ns(tl), now;
    bool ran = false;

    list_lock_claim(&tl->lock);
    if (head == NO_DEADLINE || !its_clock_runs(tl)) {
        return false;
    }
    now = its_now(tl);
    /* Below a callback: the outer pass may have taken on ranges that are not in the queues now. */
    if (head > now && soft_moment(tl) > now && tl->depth == 0) {
        return false;
    }
    rcu_check_fork("timerlist_run_timers");
    rcu_check_may_wait("timerlist_run_timers");
    fetch_add_seq(&tl->passes, 1); /* pairs with the disabler: clock_int.h */
    if (ld_seq(&clock->enabled)) {
        ran = run_pass(tl, clock, now);
    }
    if (ld_relaxed(&tl->passes) > 1) {
        fetch_sub_seq(&tl->passes, 1);
        return ran;
    }
    fetch_add_seq(&tl->passes_ended, 1); /* first: who sees no pass sees that one has ended */
    fetch_sub_seq(&tl->passes, 1);
    clock_pass_done(clock);
    return ran;
}

/* ---- Walking --------------------------------------------------------------------------------- */

unsigned timerlist_walk(QEMUTimerList *tl, QEMUTimerWalkFunc *func, void *opaque)
{
    unsigned n = 0;
    bool more = true;

    aio_rcu_read_lock();
    for (struct heap_timer *ht = ld_acquire(&tl->walk); ht && more;
         ht = ld_acquire(&ht->walk_next)) {
        uint32_t state = ld_acquire(&ht->timer.state);
        int64_t deadline = ld_acquire(&ht->timer.expire_time);
        QEMUTimerInfo info = {
            .name = ld_acquire(&ht->name),
            .deadline_ns = deadline,
            .armed = deadline >= 0,
            .running = state & TIMER_RUNNING,
            .dead = state & TIMER_DEAD,
            .attributes = ht->timer.attributes,
        };

        n++;
        more = func(&info, opaque);
    }
    aio_rcu_read_unlock();
    return n;
}
