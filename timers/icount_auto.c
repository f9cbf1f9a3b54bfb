/* SPDX-License-Identifier: MIT */
/*
 * Steers the shift so that VIRTUAL tracks VIRTUAL_RT.
 *
 * Whoever accounts compares the two, once a period of either: the period of VIRTUAL is there for a
 * shift that is far too large, with which VIRTUAL runs away in no real time.  No timer is used,
 * since one on VIRTUAL would cut budgets and sleeps short, and be run late by a busy loop.
 *
 * The error is VIRTUAL less where it should be.  The shift moves by one step when the error is
 * outside the window, and still would be, on the same side, after ICOUNT_AUTO_HORIZON more changes
 * like the one since the last comparison.  So an error that is on its way back soon enough is left
 * alone, and one that shrinks too slowly, as after a host has stood still for seconds, is not.  The
 * last comparison was a period ago, or longer where nobody accounted: the change is that of the
 * whole time.  An ideal shift is hardly ever a whole number: in the steady state the shift goes to
 * and fro between the two next to it, and VIRTUAL between the two ends of the window.
 *
 * While all virtual CPUs sleep nobody accounts, and the warp leads VIRTUAL to VIRTUAL_RT
 * (icount.c).
 */
#include "timers/icount_auto_int.h"

#include "rcu/atomic_int.h"
#include "timers/virtual_int.h"

#include <aioctx/timers.h>

#define ERROR_MAX_NS INT64_C(1000000000000000)

static struct {
    int64_t next_ns;    /* atomic: of VIRTUAL, and the same of VIRTUAL_RT: */
    int64_t next_rt_ns; /* when to compare again; written by a writer of virtual_clock */
    int64_t error_ns;   /* at the last comparison; a writer's */
} steering;

static bool is_time(int64_t now, int64_t rt)
{
    return now >= ld_relaxed(&steering.next_ns) || rt >= ld_relaxed(&steering.next_rt_ns);
}

static int step_of(int64_t error, int64_t change)
{
    int64_t later = error + ICOUNT_AUTO_HORIZON * change;

    if (error > ICOUNT_AUTO_WINDOW_NS && later > ICOUNT_AUTO_WINDOW_NS) {
        return -1;
    }
    return error < -ICOUNT_AUTO_WINDOW_NS && later < -ICOUNT_AUTO_WINDOW_NS;
}

static bool steer_locked(void)
{
    int64_t rt, now = virtual_rebase_locked(&rt), error;
    int shift = virtual_clock.shift, step;

    if (!virtual_clock.counting || !virtual_clock.running || !is_time(now, rt)) {
        return false;
    }
    error = ns_sub(now, ns_sub(rt, virtual_clock.rt_zero_ns));
    error = error > ERROR_MAX_NS ? ERROR_MAX_NS : error < -ERROR_MAX_NS ? -ERROR_MAX_NS : error;
    step = step_of(error, error - steering.error_ns);
    steering.error_ns = error;
    st_relaxed(&steering.next_ns, ns_add(now, ICOUNT_AUTO_PERIOD_NS));
    st_relaxed(&steering.next_rt_ns, ns_add(rt, ICOUNT_AUTO_PERIOD_NS));
    if (shift + step < 0 || shift + step > ICOUNT_MAX_SHIFT) {
        return false;
    }
    st_release(&virtual_clock.shift, shift + step); /* the base is now: no step in VIRTUAL */
    return step != 0;
}

bool icount_auto_steer(void)
{
    bool changed;

    if (!is_time(virtual_get_ns(), qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT))) {
        return false;
    }
    virtual_write_begin();
    changed = steer_locked();
    virtual_write_end();
    return changed;
}

void icount_auto_reset_locked(void)
{
    st_relaxed(&steering.next_ns, 0);
    st_relaxed(&steering.next_rt_ns, 0);
    steering.error_ns = 0;
}
