/* SPDX-License-Identifier: MIT */
/* Steering the shift of instruction counting. */
#ifndef TIMERS_ICOUNT_AUTO_INT_H
#define TIMERS_ICOUNT_AUTO_INT_H

#include <stdbool.h>
#include <stdint.h>

#define ICOUNT_AUTO_PERIOD_NS INT64_C(10000000) /* between two comparisons */
#define ICOUNT_AUTO_WINDOW_NS INT64_C(30000000) /* how far off VIRTUAL may be */
#define ICOUNT_AUTO_HORIZON 8                   /* comparisons in which it is to come back */

/* Compares VIRTUAL with VIRTUAL_RT when it is time to, and changes the shift by one where that is
 * called for.  Returns whether it did: VIRTUAL's lists are to be re-evaluated.  Thread: any. */
bool icount_auto_steer(void);

/* Forgets what was measured.  The caller is a writer of virtual_clock. */
void icount_auto_reset_locked(void);

#endif
