/* SPDX-License-Identifier: MIT */
/* A clock's state, and what timer lists need of it. */
#ifndef TIMERS_CLOCK_INT_H
#define TIMERS_CLOCK_INT_H

#include "rcu/atomic_int.h"

#include <aioctx/timers.h>
#include <pthread.h>

/*
 * Disabling a clock and running its timers, on any number of threads:
 *
 *   runner    passes++ (list)      seq_cst   |  disabler  enabled = false             seq_cst
 *             load enabled         seq_cst   |            load passes of every list   seq_cst
 *
 * One of the two sees the other: a runner that saw `enabled` true had raised its count before the
 * disabler looked, who then waits until the count was zero once.  To sleep, the disabler:
 *
 *   runner    passes--             seq_cst   |  disabler  disable_waiters++           seq_cst
 *             load disable_waiters seq_cst   |            load passes                 seq_cst
 */
struct clock {
    bool enabled;                /* atomic */
    struct clock_source *source; /* atomic, RCU; NULL: the real one */
    pthread_mutex_t lists_lock;  /* writers of `lists` */
    QEMUTimerList *lists;        /* atomic, RCU: every list of this clock, by next_in_clock */

    pthread_mutex_t disable_lock; /* one disabler at a time; held while it waits */
    uint64_t disable_epoch;       /* under disable_lock */
    pthread_mutex_t wait_lock;
    pthread_cond_t pass_done; /* with wait_lock: some list's count reached zero */
    unsigned disable_waiters; /* atomic; written under wait_lock */
};

extern struct clock clocks[QEMU_CLOCK_MAX] __attribute__((visibility("hidden")));

struct clock *clock_of(QEMUClockType type);

/* Whether @type, which is a valid one, does not show its real time. */
static inline bool clock_is_replaced(QEMUClockType type)
{
    return ld_relaxed(&clocks[type].source) != NULL;
}

/* Whether the clock's source was replaced; then *ret_ns is what it says, never below zero. */
bool clock_read_replaced(QEMUClockType type, int64_t *ret_ns);

/* Exchanges the source; VIRTUAL goes on from where it is.  In virtual.c. */
struct clock_source *virtual_swap_source(QEMUClockType type, struct clock_source *source);

/* Whether the clock has deadlines now: enabled and, for the virtual ones, started.  Lock-free. */
bool clock_runs(QEMUClockType type);

/* Puts a list on its clock's, or takes it off.  It may be read until a grace period has passed. */
void clock_add_list(QEMUTimerList *tl);
void clock_remove_list(QEMUTimerList *tl);

/* The soonest head past @after_ns on any list, of timers without attributes outside @attr_mask;
 * NO_DEADLINE: none.  Lock-free. */
int64_t clock_head_ns(QEMUClockType type, int attr_mask, int64_t after_ns);

/* Calls the notify callback of every list that has a timer due. */
void clock_notify_due(QEMUClockType type);

/* Whether a pass is in progress on any list.  *ret_ended grows with every pass that ended. */
bool clock_any_pass(QEMUClockType type, unsigned *ret_ended);

/* Called after a list's pass count went down to zero. */
void clock_pass_done(struct clock *clock);

/* Starts to watch for steps of the host clock, at the first timer that depends on it. */
void host_watch_start(void);

#endif
