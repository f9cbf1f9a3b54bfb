/* SPDX-License-Identifier: MIT */
/* What the clocks and lists tell to instruction counting. */
#ifndef TIMERS_ICOUNT_INT_H
#define TIMERS_ICOUNT_INT_H

#include <aioctx/timers.h>

/* Called when a list of VIRTUAL has no pass in progress any more. */
void icount_pass_done(void);

/* Called, with no lock held, when arming has moved a list's head forward. */
static inline void icount_head_forward(QEMUClockType type)
{
    if (type == QEMU_CLOCK_VIRTUAL) {
        icount_notify_exit();
    }
}

#endif
