/* SPDX-License-Identifier: MIT */
/*
 * Clocks: where their time comes from, the lists that depend on them, enabling and disabling.
 *
 * A clock's source is one RCU-protected pointer.  How VIRTUAL and VIRTUAL_RT start, stop and count
 * is in virtual.c, instruction counting in icount.c.
 */
#include "timers/clock_int.h"

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"
#include "timers/icount_int.h"
#include "timers/list_int.h"
#include "timers/timers_ext_int.h"
#include "timers/virtual_int.h"

#include <aioctx/rcu.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct clock_source {
    QEMUClockSourceFunc *get;
    void *opaque;
    AioRcuHead rcu;
};

#define CLOCK_INIT \
    { \
        .enabled = true, .lists_lock = PTHREAD_MUTEX_INITIALIZER, \
        .disable_lock = PTHREAD_MUTEX_INITIALIZER, .wait_lock = PTHREAD_MUTEX_INITIALIZER, \
        .pass_done = PTHREAD_COND_INITIALIZER, \
    }

struct clock clocks[QEMU_CLOCK_MAX] = { CLOCK_INIT, CLOCK_INIT, CLOCK_INIT, CLOCK_INIT };

struct clock *clock_of(QEMUClockType type)
{
    if (unlikely((unsigned)type >= QEMU_CLOCK_MAX)) {
        die_misuse("qemu_clock", "there is no clock number %d", (int)type);
    }
    return &clocks[type];
}

/* ---- Reading --------------------------------------------------------------------------------- */

static int64_t read_posix_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

int64_t clock_monotonic_ns(void)
{
    return read_posix_clock(CLOCK_MONOTONIC);
}

static int64_t read_real(QEMUClockType type)
{
    switch (type) {
    case QEMU_CLOCK_REALTIME:
        return clock_monotonic_ns();
    case QEMU_CLOCK_HOST:
        return read_posix_clock(CLOCK_REALTIME);
    case QEMU_CLOCK_VIRTUAL:
        return virtual_get_ns();
    default:
        return cpu_get_clock();
    }
}

bool clock_read_replaced(QEMUClockType type, int64_t *ret_ns)
{
    struct clock *clock = clock_of(type);
    struct clock_source *source;

    if (likely(!ld_relaxed(&clock->source))) {
        return false;
    }
    aio_rcu_read_lock();
    source = ld_acquire(&clock->source);
    if (source) {
        int64_t ns = source->get(source->opaque);

        *ret_ns = ns < 0 ? 0 : ns < NO_DEADLINE ? ns : NO_DEADLINE - 1;
    }
    aio_rcu_read_unlock();
    return source;
}

int64_t qemu_clock_get_ns(QEMUClockType type)
{
    int64_t ns;

    if (likely(type == QEMU_CLOCK_REALTIME && !clock_is_replaced(type))) {
        return clock_monotonic_ns();
    }
    return clock_read_replaced(type, &ns) ? ns : read_real(type);
}

int64_t qemu_clock_get_us(QEMUClockType type)
{
    return qemu_clock_get_ns(type) / SCALE_US;
}

int64_t qemu_clock_get_ms(QEMUClockType type)
{
    return qemu_clock_get_ns(type) / SCALE_MS;
}

static void free_source(AioRcuHead *head)
{
    free(container_of(head, struct clock_source, rcu));
}

int qemu_clock_set_source(QEMUClockType type, QEMUClockSourceFunc *get, void *opaque)
{
    struct clock_source *new_source = NULL, *old;

    if (get) {
        new_source = calloc(1, sizeof(*new_source));
        if (!new_source) {
            return -ENOMEM;
        }
        new_source->get = get;
        new_source->opaque = opaque;
    }
    if (type == QEMU_CLOCK_REALTIME || type == QEMU_CLOCK_VIRTUAL_RT) {
        old = virtual_swap_source(type, new_source);
    } else {
        old = xchg_seq(&clock_of(type)->source, new_source);
    }
    if (old) {
        aio_call_rcu(&old->rcu, free_source);
    }
    qemu_clock_notify(type);
    if (type == QEMU_CLOCK_REALTIME) {
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL);
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL_RT);
    } else if (type == QEMU_CLOCK_VIRTUAL_RT) {
        icount_replan(); /* a warp's next look was armed in the time before */
    }
    return 0;
}

bool clock_runs(QEMUClockType type)
{
    if (!ld_seq(&clock_of(type)->enabled)) {
        return false;
    }
    return (type != QEMU_CLOCK_VIRTUAL && type != QEMU_CLOCK_VIRTUAL_RT) || virtual_is_running();
}

/* ---- Lists ----------------------------------------------------------------------------------- */

void clock_add_list(QEMUTimerList *tl)
{
    struct clock *clock = clock_of(tl->type);

    pthread_mutex_lock(&clock->lists_lock);
    tl->next_in_clock = clock->lists;
    st_seq(&clock->lists, tl); /* before its first look at `enabled`: clock_int.h */
    pthread_mutex_unlock(&clock->lists_lock);
}

void clock_remove_list(QEMUTimerList *tl)
{
    struct clock *clock = clock_of(tl->type);
    QEMUTimerList **p = &clock->lists;

    pthread_mutex_lock(&clock->lists_lock);
    while (*p != tl) {
        p = &(*p)->next_in_clock;
    }
    st_release(p, tl->next_in_clock); /* tl keeps its next: a walker on it goes on */
    pthread_mutex_unlock(&clock->lists_lock);
}

#define for_each_list_rcu(tl, clock) \
    for ((tl) = ld_seq(&(clock)->lists); (tl); (tl) = ld_acquire(&(tl)->next_in_clock))

void qemu_clock_notify(QEMUClockType type)
{
    QEMUTimerList *tl;

    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock_of(type)) {
        timerlist_notify(tl);
    }
    aio_rcu_read_unlock();
    if (type == QEMU_CLOCK_VIRTUAL) {
        icount_notify_exit();
    }
}

static int64_t head_of(QEMUTimerList *tl, int attr_mask)
{
    int64_t head = ld_seq(&tl->cls[CLASS_NORMAL].head), external;

    if (attr_mask & QEMU_TIMER_ATTR_EXTERNAL) {
        external = ld_seq(&tl->cls[CLASS_EXTERNAL].head);
        head = external < head ? external : head;
    }
    return head;
}

int64_t clock_head_ns(QEMUClockType type, int attr_mask, int64_t after_ns)
{
    int64_t soonest = NO_DEADLINE;
    QEMUTimerList *tl;

    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock_of(type)) {
        int64_t head = head_of(tl, attr_mask);

        if (head > after_ns && head < soonest) {
            soonest = head;
        }
    }
    aio_rcu_read_unlock();
    return soonest;
}

void clock_notify_due(QEMUClockType type)
{
    QEMUTimerList *tl;
    int64_t now;

    if (!clock_runs(type)) {
        return;
    }
    now = qemu_clock_get_ns(type);
    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock_of(type)) {
        if (head_of(tl, QEMU_TIMER_ATTR_ALL) <= now) {
            timerlist_notify(tl);
        }
    }
    aio_rcu_read_unlock();
}

int64_t qemu_clock_deadline_ns_all(QEMUClockType type, int attr_mask)
{
    int64_t soonest, now;

    if (!clock_runs(type)) {
        return -1;
    }
    soonest = clock_head_ns(type, attr_mask, -1);
    if (soonest == NO_DEADLINE) {
        return -1;
    }
    now = qemu_clock_get_ns(type);
    return soonest > now ? soonest - now : 0;
}

bool qemu_clock_use_for_deadline(QEMUClockType type)
{
    clock_of(type);
    return type != QEMU_CLOCK_VIRTUAL || !icount_enabled();
}

/* ---- Enabling and disabling ------------------------------------------------------------------ */

void clock_pass_done(struct clock *clock)
{
    if (unlikely(ld_seq(&clock->disable_waiters) > 0)) {
        pthread_mutex_lock(&clock->wait_lock);
        pthread_cond_broadcast(&clock->pass_done);
        pthread_mutex_unlock(&clock->wait_lock);
    }
    if (clock == &clocks[QEMU_CLOCK_VIRTUAL]) {
        icount_replan();
    }
}

bool clock_any_pass(QEMUClockType type, unsigned *ret_ended)
{
    QEMUTimerList *tl;
    bool found = false;

    *ret_ended = 0;
    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock_of(type)) {
        found |= ld_seq(&tl->passes) > 0;
        *ret_ended += ld_seq(&tl->passes_ended);
    }
    aio_rcu_read_unlock();
    return found;
}

/* A list with a pass in progress that was not seen without one in this epoch; with a reference. */
static QEMUTimerList *find_busy_list(struct clock *clock)
{
    QEMUTimerList *tl, *busy = NULL;

    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock) {
        if (tl->disabled_epoch == clock->disable_epoch) {
            continue;
        }
        if (ld_seq(&tl->passes) == 0) {
            tl->disabled_epoch = clock->disable_epoch;
        } else if (timerlist_try_get(tl)) {
            busy = tl;
            break;
        }
    }
    aio_rcu_read_unlock();
    return busy;
}

static void wait_for_passes(struct clock *clock)
{
    int cancel = cancel_off();
    QEMUTimerList *tl;

    pthread_mutex_lock(&clock->disable_lock);
    clock->disable_epoch++;
    while ((tl = find_busy_list(clock))) {
        unsigned ended = ld_seq(&tl->passes_ended);

        pthread_mutex_lock(&clock->wait_lock);
        st_seq(&clock->disable_waiters, clock->disable_waiters + 1);
        /* Once is enough: another thread may have enabled the clock again. */
        while (ld_seq(&tl->passes) > 0 && ld_seq(&tl->passes_ended) == ended) {
            pthread_cond_wait(&clock->pass_done, &clock->wait_lock);
        }
        st_seq(&clock->disable_waiters, clock->disable_waiters - 1);
        pthread_mutex_unlock(&clock->wait_lock);
        tl->disabled_epoch = clock->disable_epoch;
        timerlist_put(tl);
    }
    pthread_mutex_unlock(&clock->disable_lock);
    cancel_restore(cancel);
}

int qemu_clock_enable(QEMUClockType type, bool enabled)
{
    struct clock *clock = clock_of(type);
    unsigned ended;

    if (enabled) {
        if (!xchg_seq(&clock->enabled, true)) {
            qemu_clock_notify(type);
        }
        return 0;
    }
    rcu_check_may_wait("qemu_clock_enable");
    st_seq(&clock->enabled, false);
    if (this_thread.timer_callbacks || (this_thread.callbacks && clock_any_pass(type, &ended))) {
        return -EDEADLK;
    }
    if (!this_thread.callbacks) {
        wait_for_passes(clock);
    }
    return 0;
}
