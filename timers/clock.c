/* SPDX-License-Identifier: MIT */
/*
 * Clocks: where their time comes from, starting and stopping VIRTUAL, enabling and disabling.
 *
 * A lock-free reader meets two kinds of change.  The source is one RCU-protected pointer.
 * VIRTUAL's state is read under a sequence lock: the writer makes `seq` odd, writes, makes it even;
 * a reader whose two looks at `seq` differ, or are odd, reads again.  The fields are stored with
 * release and loaded with acquire order, which keeps them between the two accesses to `seq` without
 * fences.
 * Source: Boehm, "Can Seqlocks Get Along With Programming Language Memory Models?", 2012.
 */
#include "timers/clock_int.h"

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"
#include "timers/list_int.h"
#include "timers/timers_ext_int.h"

#include <aioctx/rcu.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__) || defined(__i386__)
#include <x86intrin.h>
#endif

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

static struct clock clocks[QEMU_CLOCK_MAX] = { CLOCK_INIT, CLOCK_INIT, CLOCK_INIT, CLOCK_INIT };

/* VIRTUAL: time and ticks are a base while it is stopped, and base plus "now" while it runs. */
static struct {
    pthread_mutex_t lock; /* writers */
    unsigned seq;         /* atomic; odd while a writer is in */
    bool running;         /* atomic */
    int64_t base_ns;      /* atomic */
    int64_t base_ticks;   /* atomic */
} virtual_clock = { .lock = PTHREAD_MUTEX_INITIALIZER };

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

static int64_t read_host_ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return (int64_t)__rdtsc();
#elif defined(__aarch64__)
    int64_t v;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(v));
    return v;
#else
    return clock_monotonic_ns();
#endif
}

static int64_t read_real(QEMUClockType type)
{
    switch (type) {
    case QEMU_CLOCK_REALTIME:
        return clock_monotonic_ns();
    case QEMU_CLOCK_HOST:
        return read_posix_clock(CLOCK_REALTIME);
    default:
        return cpu_get_clock();
    }
}

int64_t qemu_clock_get_ns(QEMUClockType type)
{
    struct clock *clock = clock_of(type);
    struct clock_source *source;
    int64_t ns;

    if (likely(!ld_relaxed(&clock->source))) {
        return read_real(type);
    }
    aio_rcu_read_lock();
    source = ld_acquire(&clock->source);
    ns = source ? source->get(source->opaque) : read_real(type);
    aio_rcu_read_unlock();
    return ns < 0 ? 0 : ns;
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

/* ---- VIRTUAL --------------------------------------------------------------------------------- */

struct virtual_time {
    int64_t ns, ticks;
    bool running;
};

static struct virtual_time read_virtual(bool want_ns, bool want_ticks)
{
    struct virtual_time v;
    unsigned seq;

    do {
        seq = ld_acquire(&virtual_clock.seq);
        v.running = ld_seq(&virtual_clock.running);
        v.ns = ld_acquire(&virtual_clock.base_ns);
        v.ticks = ld_acquire(&virtual_clock.base_ticks);
        /* The reading of the time lies between the looks at seq too: it is not past the stop. */
        if (v.running && want_ns) {
            v.ns += qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        }
        if (v.running && want_ticks) {
            v.ticks += read_host_ticks();
        }
    } while (unlikely((seq & 1) || ld_relaxed(&virtual_clock.seq) != seq));
    return v;
}

static void set_running(bool run)
{
    rcu_check_fork(run ? "cpu_enable_ticks" : "cpu_disable_ticks");
    pthread_mutex_lock(&virtual_clock.lock);
    bool change = virtual_clock.running != run;
    if (change) {
        int64_t ns, ticks, sign = run ? -1 : 1;

        /* seq is odd before the time is read, not just before a field changes: else a reader could
         * still return a time past the one at which the clock is about to stop. */
        st_seq(&virtual_clock.seq, virtual_clock.seq + 1);
        ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        ticks = read_host_ticks();
        st_seq(&virtual_clock.running, run); /* pairs with a sleeper's look at its deadlines */
        st_release(&virtual_clock.base_ns, virtual_clock.base_ns + sign * ns);
        st_release(&virtual_clock.base_ticks, virtual_clock.base_ticks + sign * ticks);
        st_release(&virtual_clock.seq, virtual_clock.seq + 1);
    }
    pthread_mutex_unlock(&virtual_clock.lock);
    if (change) {
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL);
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL_RT);
    }
}

static struct clock_source *swap_source(QEMUClockType type, struct clock_source *source)
{
    struct clock_source *old;
    int64_t before;

    if (type != QEMU_CLOCK_REALTIME) {
        return xchg_seq(&clock_of(type)->source, source);
    }
    /* VIRTUAL, while it runs, goes on from where it is. */
    pthread_mutex_lock(&virtual_clock.lock);
    st_seq(&virtual_clock.seq, virtual_clock.seq + 1);
    before = qemu_clock_get_ns(type);
    old = xchg_seq(&clock_of(type)->source, source);
    if (virtual_clock.running) {
        st_release(&virtual_clock.base_ns,
                   virtual_clock.base_ns + before - qemu_clock_get_ns(type));
    }
    st_release(&virtual_clock.seq, virtual_clock.seq + 1);
    pthread_mutex_unlock(&virtual_clock.lock);
    return old;
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
    old = swap_source(type, new_source);
    if (old) {
        aio_call_rcu(&old->rcu, free_source);
    }
    qemu_clock_notify(type);
    if (type == QEMU_CLOCK_REALTIME) {
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL);
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL_RT);
    }
    return 0;
}

void cpu_enable_ticks(void)
{
    set_running(true);
}

void cpu_disable_ticks(void)
{
    set_running(false);
}

int64_t cpu_get_clock(void)
{
    int64_t ns = read_virtual(true, false).ns;

    return ns < 0 ? 0 : ns; /* a replaced source may step back */
}

int64_t cpu_get_ticks(void)
{
    return read_virtual(false, true).ticks;
}

bool clock_runs(QEMUClockType type)
{
    if (!ld_seq(&clock_of(type)->enabled)) {
        return false;
    }
    return (type != QEMU_CLOCK_VIRTUAL && type != QEMU_CLOCK_VIRTUAL_RT) ||
           read_virtual(false, false).running;
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
}

int64_t qemu_clock_deadline_ns_all(QEMUClockType type, int attr_mask)
{
    struct clock *clock = clock_of(type);
    int64_t soonest = NO_DEADLINE, now;
    QEMUTimerList *tl;

    if (!clock_runs(type)) {
        return -1;
    }
    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock) {
        for (int i = 0; i < CLASS_MAX; i++) {
            int64_t head = ld_seq(&tl->cls[i].head);

            if ((i != CLASS_EXTERNAL || (attr_mask & QEMU_TIMER_ATTR_EXTERNAL)) && head < soonest) {
                soonest = head;
            }
        }
    }
    aio_rcu_read_unlock();
    if (soonest == NO_DEADLINE) {
        return -1;
    }
    now = qemu_clock_get_ns(type);
    return soonest > now ? soonest - now : 0;
}

bool qemu_clock_use_for_deadline(QEMUClockType type)
{
    clock_of(type);
    return true;
}

/* ---- Enabling and disabling ------------------------------------------------------------------ */

void clock_pass_done(struct clock *clock)
{
    if (unlikely(ld_seq(&clock->disable_waiters) > 0)) {
        pthread_mutex_lock(&clock->wait_lock);
        pthread_cond_broadcast(&clock->pass_done);
        pthread_mutex_unlock(&clock->wait_lock);
    }
}

static bool any_pass_runs(struct clock *clock)
{
    QEMUTimerList *tl;
    bool found = false;

    aio_rcu_read_lock();
    for_each_list_rcu (tl, clock) {
        found |= ld_seq(&tl->passes) > 0;
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
}

int qemu_clock_enable(QEMUClockType type, bool enabled)
{
    struct clock *clock = clock_of(type);

    if (enabled) {
        if (!xchg_seq(&clock->enabled, true)) {
            qemu_clock_notify(type);
        }
        return 0;
    }
    rcu_check_may_wait("qemu_clock_enable");
    st_seq(&clock->enabled, false);
    if (callback_depth.timer || (callback_depth.any && any_pass_runs(clock))) {
        return -EDEADLK;
    }
    if (!callback_depth.any) {
        wait_for_passes(clock);
    }
    return 0;
}
