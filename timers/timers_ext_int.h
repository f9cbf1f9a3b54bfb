/* SPDX-License-Identifier: MIT */
/* What the timers folder offers to the aio folder beside <aioctx/timers.h>. */
#ifndef TIMERS_TIMERS_EXT_INT_H
#define TIMERS_TIMERS_EXT_INT_H

#include <aioctx/timers.h>

/* A timer whose callback is to be called. */
struct timer_firing {
    QEMUTimerCB *cb;
    void *opaque;
    QEMUClockType type;
    int64_t deadline_ns; /* in the clock's time; of a range, its end */
    char name[32];       /* timer_set_name()'s, cut; "": none */
};

/* Who calls the callbacks of a list's timers in the list's place: run() is to call
 * firing->cb(firing->opaque). */
struct timer_observer {
    void (*run)(struct timer_observer *observer, const struct timer_firing *firing);
};

/*
 * Sets the observer of all lists of a group; NULL: none.  It holds from the next pass on; passes
 * that have begun still use the one before.
 * Thread: any.
 */
void timerlistgroup_set_observer(QEMUTimerListGroup *tlg, struct timer_observer *observer);

/* Disarms every timer and lets none be armed any more; timers may still be initialised, deleted and
 * freed.  timerlistgroup_deinit() is to follow.  Thread: the one that runs the lists. */
void timerlistgroup_close(QEMUTimerListGroup *tlg);

/* The main loop's notify callback for main_loop_tlg, called beside the one of init_clocks(), with a
 * NULL opaque.  Thread: any. */
void main_loop_tlg_set_notify(QEMUTimerListNotifyCB *cb);

/* CLOCK_MONOTONIC itself, whatever the source of QEMU_CLOCK_REALTIME was replaced by.  Thread: any.
 * */
int64_t clock_monotonic_ns(void);

/*
 * Whether REALTIME shows @ns or more, for less than a look at the clock where it does not, by more
 * than a microsecond; passed.c says when it may be wrong.  Thread: any.
 */
bool realtime_has_passed(int64_t ns);

/*
 * The soonest deadline of the clocks that loops sleep by, as a time of CLOCK_MONOTONIC; it may lie
 * in the past; INT64_MAX: none.  Thread: any.
 * Ordering: loads each head after what the caller did before, see list_int.h.
 */
int64_t timerlistgroup_deadline_monotonic_ns(QEMUTimerListGroup *tlg);

#endif
