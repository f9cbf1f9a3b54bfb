/* SPDX-License-Identifier: MIT */
/* The state of instruction counting, and what the clocks and lists tell to it. */
#ifndef TIMERS_ICOUNT_INT_H
#define TIMERS_ICOUNT_INT_H

#include <aioctx/timers.h>

/* Written by a writer of virtual_clock. */
struct icount_state {
    struct icount_conf *conf; /* atomic, RCU; NULL: off */
    int mode;                 /* atomic */
    bool asleep;              /* atomic: every virtual CPU sleeps */
};

extern struct icount_state icount_state;

/* Has the next deadline looked for again, while all virtual CPUs sleep.  Called when a list of
 * VIRTUAL has no pass in progress any more, and when VIRTUAL_RT has another source. */
void icount_replan(void);

/* Called, with no lock held, when arming has moved a list's head forward. */
static inline void icount_head_forward(QEMUClockType type)
{
    if (type == QEMU_CLOCK_VIRTUAL) {
        icount_notify_exit();
    }
}

#endif
