/* SPDX-License-Identifier: MIT */
/* Cases of two threads while all virtual CPUs sleep: who plans a warp, and who arms a timer, frees
 * a list or configures meanwhile. */
#include "tests/interleave_cases_int.h"

#include "rcu/atomic_int.h"
#include "timers/clock_int.h"
#include "timers/icount_int.h"
#include "timers/list_int.h"
#include "timers/virtual_int.h"

#include <aioctx/timers.h>
#include <string.h>

enum { SOON = 500, FAR = 5000 };

static struct {
    QEMUTimerListGroup tlg; /* VIRTUAL and VIRTUAL_RT */
    QEMUTimerList *extra;   /* of VIRTUAL */
    QEMUTimer *soon, *far;
    IcountOptions opts;
    int64_t start;   /* VIRTUAL, when counting began */
    int64_t read[2]; /* VIRTUAL */
} w;

static void on_timer(void *opaque)
{
}

static void set_up(bool no_sleep)
{
    memset(&w, 0, sizeof(w));
    w.tlg.tl[QEMU_CLOCK_VIRTUAL] = timerlist_new(QEMU_CLOCK_VIRTUAL, NULL, NULL);
    w.tlg.tl[QEMU_CLOCK_VIRTUAL_RT] = timerlist_new(QEMU_CLOCK_VIRTUAL_RT, NULL, NULL);
    w.soon = timer_new_full(&w.tlg, QEMU_CLOCK_VIRTUAL, 1, 0, on_timer, NULL);
    w.far = timer_new_full(&w.tlg, QEMU_CLOCK_VIRTUAL, 1, 0, on_timer, NULL);
    w.opts = (IcountOptions){ .no_sleep = no_sleep, .warp_group = &w.tlg };
    icount_configure(&w.opts);
    cpu_enable_ticks();
    w.start = icount_get();
    timer_mod_ns(w.far, w.start + FAR);
    il_name(&virtual_clock.seq, "VIRTUAL's seq");
    il_name(&virtual_clock.lock, "VIRTUAL's mutex");
    il_name(&icount_state.asleep, "asleep");
    il_name(&icount_state.conf, "conf");
    il_name(&w.tlg.tl[QEMU_CLOCK_VIRTUAL]->cls[CLASS_NORMAL].head, "head");
    il_name(&w.tlg.tl[QEMU_CLOCK_VIRTUAL_RT]->cls[CLASS_NORMAL].head, "head of VIRTUAL_RT");
    il_name(&clock_of(QEMU_CLOCK_VIRTUAL)->lists_lock, "VIRTUAL's lists_lock");
    il_name(&il_now_ns, "the time");
}

/* What the loop of the warp timer does. */
static void run_warp_timer(void)
{
    while (timerlist_run_timers(w.tlg.tl[QEMU_CLOCK_VIRTUAL_RT])) {
    }
}

/* ---- Planning beside a list that goes -------------------------------------------------------- */

static void set_up_list_goes(void)
{
    QEMUTimerListGroup tlg = { { NULL } };
    QEMUTimer *ts;

    set_up(true);
    w.extra = timerlist_new(QEMU_CLOCK_VIRTUAL, NULL, NULL);
    tlg.tl[QEMU_CLOCK_VIRTUAL] = w.extra;
    ts = timer_new_full(&tlg, QEMU_CLOCK_VIRTUAL, 1, 0, on_timer, NULL);
    timer_mod_ns(ts, 0);
    timerlist_run_timers(w.extra); /* it has had a pass */
    timer_free(ts);
    if (il_planted) {
        il_plant(IL_NO_MUTEX, &clock_of(QEMU_CLOCK_VIRTUAL)->lists_lock);
    }
}

static void run_list_goes(int thread)
{
    if (thread == 0) {
        icount_start_warp_timer();
    } else {
        timerlist_free(w.extra);
    }
}

static void check_list_goes(void)
{
    run_warp_timer();
    il_assert(icount_get() == w.start + FAR, "VIRTUAL stands %lld ns before the deadline for ever",
              (long long)(w.start + FAR - icount_get()));
}

const struct il_case il_warp_list_goes = {
    .name = "WarpBesideListFree",
    .threads = 2,
    .flags = IL_RCU | IL_SC,
    .setup = set_up_list_goes,
    .run = run_list_goes,
    .check = check_list_goes,
    .preemptions = 2,
    .plants = { "no lists_lock" },
};

/* ---- Planning beside another configuration --------------------------------------------------- */

static void set_up_configure(void)
{
    set_up(true);
    if (il_planted) {
        il_plant(IL_NO_MUTEX, &virtual_clock.lock);
    }
}

static void run_configure(int thread)
{
    if (thread == 0) {
        icount_start_warp_timer();
        return;
    }
    cpu_disable_ticks();
    w.opts.no_sleep = false;
    il_assert(icount_configure(&w.opts) == 0, "it was not configured");
    cpu_enable_ticks();
    w.read[0] = icount_get();
    icount_start_warp_timer();
    w.read[1] = icount_get();
}

static void check_configure(void)
{
    run_warp_timer();
    il_assert(w.read[1] == w.read[0], "VIRTUAL jumped by %lld ns", //
              (long long)(w.read[1] - w.read[0]));
    il_assert(icount_get() == w.read[0], "VIRTUAL jumped by %lld ns, late",
              (long long)(icount_get() - w.read[0]));
}

const struct il_case il_warp_configure = {
    .name = "WarpBesideConfigure",
    .threads = 2,
    .flags = IL_RCU | IL_SC,
    .setup = set_up_configure,
    .run = run_configure,
    .check = check_configure,
    .preemptions = 2,
    .plants = { "no lock of VIRTUAL's" },
};

/* ---- Planning beside arming ------------------------------------------------------------------ */

/* VIRTUAL follows real time, or will from now on. */
static void set_up_arm(void)
{
    set_up(false);
    if (il_planted) {
        il_plant(IL_WEAK_STORE, &w.tlg.tl[QEMU_CLOCK_VIRTUAL]->cls[CLASS_NORMAL].head);
    }
}

static void run_arm(int thread)
{
    if (thread == 0) {
        icount_start_warp_timer();
        return;
    }
    timer_mod_ns(w.soon, w.start + SOON);
    fetch_add_seq(&il_now_ns, 10 * FAR); /* time passes, and nobody runs a timer */
    w.read[0] = icount_get();
}

static void check_arm(void)
{
    il_assert(w.read[0] <= w.start + SOON, "VIRTUAL was seen %lld ns past a deadline",
              (long long)(w.read[0] - w.start - SOON));
    il_assert(icount_get() <= w.start + SOON, "VIRTUAL stands past a deadline");
    run_warp_timer();
    il_now_ns += 10 * FAR;
    il_assert(icount_get() == w.start + SOON, "VIRTUAL did not come to the deadline");
}

const struct il_case il_warp_arm = {
    .name = "WarpBesideArm",
    .threads = 2,
    .flags = IL_SC,
    .setup = set_up_arm,
    .run = run_arm,
    .check = check_arm,
    .preemptions = 2,
    .plants = { "a head stored without a barrier" },
};

/* The same where VIRTUAL jumps. */
static void set_up_jump(void)
{
    set_up(true);
    if (il_planted) {
        il_plant(IL_WEAK_STORE, &w.tlg.tl[QEMU_CLOCK_VIRTUAL]->cls[CLASS_NORMAL].head);
    }
}

static void run_jump(int thread)
{
    if (thread == 0) {
        icount_start_warp_timer();
        return;
    }
    timer_mod_ns(w.soon, w.start + SOON);
    w.read[0] = icount_get();
}

static void check_jump(void)
{
    run_warp_timer();
    il_assert(w.read[0] > w.start + SOON || icount_get() == w.start + SOON,
              "VIRTUAL went from %lld to %lld ns with a timer armed for %d",
              (long long)(w.read[0] - w.start), (long long)(icount_get() - w.start), SOON);
}

const struct il_case il_warp_jump = {
    .name = "WarpJumpBesideArm",
    .threads = 2,
    .flags = IL_SC,
    .setup = set_up_jump,
    .run = run_jump,
    .check = check_jump,
    .preemptions = 2,
    .plants = { "a head stored without a barrier" },
};
