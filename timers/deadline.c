/* SPDX-License-Identifier: MIT */
/*
 * A group's soonest deadline as a time of CLOCK_MONOTONIC, for who sleeps until then.
 *
 * REALTIME is CLOCK_MONOTONIC, so that its heads are the answer as they stand, without a look at
 * the clock; deadlines of other clocks, and of a replaced source, are told from now.
 */
#include "rcu/atomic_int.h"
#include "timers/clock_int.h"
#include "timers/list_int.h"
#include "timers/timers_ext_int.h"

/* Of a list whose soonest deadline was @head. */
static int64_t list_deadline(QEMUTimerList *tl, int64_t head)
{
    int64_t ns, now;

    if (tl->type == QEMU_CLOCK_REALTIME && !ld_seq(&tl->clock->source)) {
        return clock_runs(tl->type) ? head : NO_DEADLINE;
    }
    now = clock_monotonic_ns(); /* first: what lies between the two looks is not slept for */
    ns = timerlist_deadline_ns(tl);
    if (ns <= 0) {
        return ns < 0 ? NO_DEADLINE : 0;
    }
    if (!qemu_clock_use_for_deadline(tl->type)) {
        return NO_DEADLINE; /* not to be slept for; what is due counts: icount.c */
    }
    return ns < NO_DEADLINE - now ? now + ns : NO_DEADLINE;
}

int64_t timerlistgroup_deadline_monotonic_ns(QEMUTimerListGroup *tlg)
{
    int64_t soonest = NO_DEADLINE;

    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        int64_t deadline = timerlist_head_ns(tlg->tl[type]);

        if (deadline != NO_DEADLINE) {
            deadline = list_deadline(tlg->tl[type], deadline);
        }
        soonest = deadline < soonest ? deadline : soonest;
    }
    return soonest;
}
