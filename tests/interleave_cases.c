/* SPDX-License-Identifier: MIT */
/* Cases of two or three threads on timer lists and clocks, each with what must hold in every
 * order, and with faults that some order must show. */
#include "tests/interleave_cases_int.h"

#include "rcu/atomic_int.h"
#include "timers/clock_int.h"
#include "timers/list_int.h"
#include "timers/virtual_int.h"

#include <aioctx/rcu.h>
#include <aioctx/timers.h>
#include <string.h>

static struct {
    QEMUTimerListGroup tlg;
    QEMUTimerList *tl;
    QEMUTimer *a, *b;
    QEMUTimer *published; /* atomic */
    int fired;
    int inside;   /* atomic: callbacks in progress */
    int disabled; /* atomic: qemu_clock_enable(false) has returned */
    bool armed, was_armed;
    int ret;
    /* A sleeper that is not the library's: the list's own protocol alone. */
    int asleep; /* atomic */
    bool notified;
    int64_t sleeps_until;
    int64_t read[2], at_stop;
} w;

static void notify(void *opaque, QEMUClockType type)
{
    if (ld_seq(&w.asleep)) {
        w.notified = true;
    }
}

static void on_timer(void *opaque)
{
    w.fired++;
}

/* The list of REALTIME, and a timer on it. */
static void set_up_list(QEMUTimerCB *cb)
{
    memset(&w, 0, sizeof(w));
    w.tl = timerlist_new(QEMU_CLOCK_REALTIME, notify, NULL);
    w.tlg.tl[QEMU_CLOCK_REALTIME] = w.tl;
    w.a = timer_new_full(&w.tlg, QEMU_CLOCK_REALTIME, 1, 0, cb, NULL);
    il_name(&w.tl->lock.mutex, "list's mutex");
    il_name(&w.tl->lock.in, "list's in");
    il_name(&w.tl->lock.biased, "list's biased");
    il_name(&w.tl->cls[CLASS_NORMAL].head, "head");
    il_name(&w.tl->cls[CLASS_EXTERNAL].head, "head of EXTERNAL");
    il_name(&w.tl->passes, "passes");
    il_name(&w.tl->run_done, "run_done");
    il_name(&w.a->expire_time, "a's expire_time");
    il_name(&w.a->state, "a's state");
    il_name(&w.asleep, "asleep");
    il_name(&w.inside, "inside");
    il_name(&clock_of(QEMU_CLOCK_REALTIME)->enabled, "enabled");
    il_name(&clock_of(QEMU_CLOCK_REALTIME)->pass_done, "pass_done");
    il_name(&clock_of(QEMU_CLOCK_REALTIME)->disable_waiters, "disable_waiters");
    il_name(&w.disabled, "disabled");
}

/* Thread 0 runs the list, and has the bias of its lock.  Comes after what set-up arms, since that
 * takes the bias away. */
static void give_bias(void)
{
    w.tl->lock.owner = il_thread_number(0);
    w.tl->lock.biased = true;
}

static void no_list_lock(void)
{
    il_plant(IL_NO_MUTEX, &w.tl->lock.mutex);
}

/* What the list says is what the timer says, and it fires once if it is armed. */
static void check_one_timer(bool armed)
{
    int64_t at = timer_expire_time_ns(w.a);
    int before = w.fired;

    il_assert(timer_pending(w.a) == armed, "the timer is %sarmed", armed ? "not " : "");
    il_assert(timerlist_has_timers(w.tl) == armed, "the head word says %d", !armed);
    if (armed) {
        il_assert(timerlist_deadline_ns(w.tl) == at - il_now_ns, "the head word is not its time");
    }
    il_now_ns = 10000;
    timerlist_run_timers(w.tl);
    il_assert(w.fired - before == armed, "it fired %d times", w.fired - before);
    il_assert(!timerlist_run_timers(w.tl), "something was left");
}

/* ---- Arming beside arming and cancelling ----------------------------------------------------- */

static void set_up_mod(void)
{
    set_up_list(on_timer);
    if (il_planted) {
        no_list_lock();
    } else {
        give_bias();
    }
}

static void run_mod_mod(int thread)
{
    timer_mod_ns(w.a, thread ? 3000 : 2000);
}

static void check_mod_mod(void)
{
    int64_t at = timer_expire_time_ns(w.a);

    il_assert(at == 2000 || at == 3000, "it is armed for %lld", (long long)at);
    check_one_timer(true);
}

const struct il_case il_mod_mod = {
    .name = "ModBesideMod",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_mod,
    .run = run_mod_mod,
    .check = check_mod_mod,
    .plants = { "no list lock" },
};

static void run_mod_del(int thread)
{
    if (thread == 0) {
        timer_mod_ns(w.a, 2000);
    } else {
        w.was_armed = timer_del(w.a);
    }
}

static void check_mod_del(void)
{
    check_one_timer(!w.was_armed);
}

const struct il_case il_mod_del = {
    .name = "ModBesideDel",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_mod,
    .run = run_mod_del,
    .check = check_mod_del,
    .plants = { "no list lock" },
};

/* ---- Arming beside freeing ------------------------------------------------------------------- */

static void set_up_free(void)
{
    set_up_list(on_timer);
    w.published = w.a;
    if (il_planted == 1) {
        il_plant(IL_NO_GRACE, NULL);
    }
}

static void run_mod_free(int thread)
{
    QEMUTimer *ts;

    if (thread == 1) {
        ts = w.a;
        st_release(&w.published, NULL);
        timer_free(ts);
        return;
    }
    if (il_planted != 2) {
        aio_rcu_read_lock();
    }
    ts = ld_acquire(&w.published);
    if (ts) {
        w.armed = timer_mod_ns(ts, 2000);
        w.was_armed = timer_mod_ns(ts, 3000);
    }
    if (il_planted != 2) {
        aio_rcu_read_unlock();
    }
}

static void check_mod_free(void)
{
    il_assert(!timerlist_has_timers(w.tl), "a dead timer is armed");
    il_assert(w.armed || !w.was_armed, "a dead timer came back");
    il_assert(il_is_freed(container_of(w.a, struct heap_timer, timer)), "it was not freed");
}

const struct il_case il_mod_free = {
    .name = "ModBesideFree",
    .threads = 2,
    .flags = IL_RCU,
    .setup = set_up_free,
    .run = run_mod_free,
    .check = check_mod_free,
    .plants = { "grace periods wait for nobody", "no read section" },
};

/* ---- Waiting for a callback ------------------------------------------------------------------ */

static void on_timer_that_rearms(void *opaque)
{
    w.fired++;
    fetch_add_seq(&w.inside, 1);
    timer_mod_ns(w.a, 3000);
    fetch_sub_seq(&w.inside, 1);
}

static void set_up_del_sync(void)
{
    set_up_list(on_timer_that_rearms);
    timer_mod_ns(w.a, 500);
    give_bias();
    if (il_planted == 2) {
        il_plant(IL_NO_SIGNAL, &w.tl->run_done);
    }
}

static void run_del_sync(int thread)
{
    if (thread == 0) {
        timerlist_run_timers(w.tl);
    } else {
        w.ret = il_planted == 1 ? timer_del(w.a) : timer_del_sync(w.a);
        il_assert(ld_seq(&w.inside) == 0, "the callback is still running");
        il_assert(!timer_pending(w.a), "it is armed again");
    }
}

static void check_del_sync(void)
{
    il_assert(w.ret == 1 || il_planted, "timer_del_sync() returned %d", w.ret);
    il_assert(w.fired <= 1, "it fired %d times", w.fired);
    il_assert(!timerlist_has_timers(w.tl), "the head word is left");
}

const struct il_case il_del_sync = {
    .name = "DelSyncBesideRearm",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_del_sync,
    .run = run_del_sync,
    .check = check_del_sync,
    .plants = { "timer_del() instead", "a lost wake-up" },
};

static bool thread_1_waits(void *unused)
{
    return il_in_cond_wait(1);
}

static bool callback_runs(void *unused)
{
    return w.inside;
}

static void on_timer_that_frees(void *opaque)
{
    st_seq(&w.inside, 1);
    il_wait(&w.tl->run_done, thread_1_waits, NULL);
    timer_free(w.a);
}

static void set_up_del_sync_free(void)
{
    set_up_list(on_timer_that_frees);
    timer_mod_ns(w.a, 500);
    give_bias();
    if (il_planted == 1) {
        il_plant(IL_NO_SIGNAL, &w.tl->run_done);
    }
}

static void run_del_sync_free(int thread)
{
    if (thread == 0) {
        timerlist_run_timers(w.tl);
    } else {
        il_wait(&w.inside, callback_runs, NULL);
        w.ret = timer_del_sync(w.a);
        if (il_planted == 2) {
            timer_pending(w.a);
        }
    }
}

static void check_del_sync_free(void)
{
    il_assert(w.ret == 0, "timer_del_sync() returned %d", w.ret);
    il_assert(il_is_freed(container_of(w.a, struct heap_timer, timer)), "it was not freed");
}

const struct il_case il_del_sync_free = {
    .name = "DelSyncBesideFree",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_del_sync_free,
    .run = run_del_sync_free,
    .check = check_del_sync_free,
    .plants = { "a lost wake-up", "the waiter looks at the timer" },
};

/* ---- Head words and sleep -------------------------------------------------------------------- */

static void sleep_now(void)
{
    int64_t ns;

    if (il_planted == 1) { /* the look before the announcement */
        ns = timerlist_deadline_ns(w.tl);
        st_seq(&w.asleep, 1);
    } else {
        st_seq(&w.asleep, 1);
        ns = timerlist_deadline_ns(w.tl);
    }
    w.sleeps_until = ns < 0 ? INT64_MAX : il_now_ns + ns;
}

static void check_sleep(void)
{
    int64_t ns = timerlist_deadline_ns(w.tl);

    il_assert(w.notified || (ns >= 0 && w.sleeps_until <= il_now_ns + ns),
              "sleeps until %lld, past a deadline in %lld ns, and nobody notified",
              (long long)w.sleeps_until, (long long)ns);
}

/* b stands at 2000; a, not armed, or later, comes to 1500. */
static void set_up_sooner(void)
{
    set_up_list(on_timer);
    w.b = timer_new_full(&w.tlg, QEMU_CLOCK_REALTIME, 1, QEMU_TIMER_ATTR_EXTERNAL, on_timer, NULL);
    timer_mod_ns(w.b, 2000);
    if (il_planted == 2) {
        il_plant(IL_WEAK_STORE, &w.tl->cls[CLASS_NORMAL].head);
    }
}

static void run_sooner(int thread)
{
    if (thread == 0) {
        sleep_now();
    } else {
        timer_mod_ns(w.a, 1500);
    }
}

const struct il_case il_sooner = {
    .name = "SoonerHeadBesideSleep",
    .threads = 2,
    .flags = 0,
    .setup = set_up_sooner,
    .run = run_sooner,
    .check = check_sleep,
    .plants = { "the look before the announcement", "a release store of the head" },
};

/* Two writers on two words, one of which moves back again. */
static void run_two_writers(int thread)
{
    if (thread == 0) {
        sleep_now();
    } else if (thread == 1) {
        timer_mod_ns(w.a, 1500);
    } else {
        timer_mod_ns(w.b, 1200);
        timer_mod_ns(w.b, 1800);
    }
}

const struct il_case il_two_writers = {
    .name = "TwoHeadsBesideSleep",
    .threads = 3,
    .flags = 0,
    .setup = set_up_sooner,
    .run = run_two_writers,
    .check = check_sleep,
    .plants = { "the look before the announcement", "a release store of a head" },
};

/* a, the head, moves from 1500 to 3000, past b at 2000. */
static void set_up_moved_head(void)
{
    set_up_list(on_timer);
    w.b = timer_new_full(&w.tlg, QEMU_CLOCK_REALTIME, 1, 0, on_timer, NULL);
    timer_mod_ns(w.a, 1500);
    timer_mod_ns(w.b, 2000);
}

/* As a reader would that looks at the timer which is the head, and not at a word. */
static void sleep_by_timer(void)
{
    QEMUTimer *head;

    st_seq(&w.asleep, 1);
    head = timer_expire_time_ns(w.a) < timer_expire_time_ns(w.b) ? w.a : w.b;
    w.sleeps_until = timer_expire_time_ns(head);
}

static void run_moved_head(int thread)
{
    if (thread == 1) {
        timer_mod_ns(w.a, 3000);
    } else if (il_planted) {
        sleep_by_timer();
    } else {
        sleep_now();
    }
}

const struct il_case il_moved_head = {
    .name = "MovedHeadBesideSleep",
    .threads = 2,
    .flags = 0,
    .setup = set_up_moved_head,
    .run = run_moved_head,
    .check = check_sleep,
    .plants = { "a reader that looks at the head timer" },
};

/* ---- Passes ---------------------------------------------------------------------------------- */

static void on_timer_outer(void *opaque)
{
    fetch_add_seq(&w.inside, 1);
    il_assert(!ld_seq(&w.disabled), "a callback began on a disabled clock");
    timerlist_run_timers(w.tl);
    fetch_sub_seq(&w.inside, 1);
}

static void on_timer_inner(void *opaque)
{
    fetch_add_seq(&w.inside, 1);
    il_assert(!ld_seq(&w.disabled), "a nested callback began on a disabled clock");
    fetch_sub_seq(&w.inside, 1);
}

static void set_up_disable(void)
{
    set_up_list(on_timer_outer);
    w.b = timer_new_full(&w.tlg, QEMU_CLOCK_REALTIME, 1, 0, on_timer_inner, NULL);
    timer_mod_ns(w.a, 500);
    timer_mod_ns(w.b, 600);
    give_bias();
    if (il_planted == 2) {
        il_plant(IL_NO_SIGNAL, &clock_of(QEMU_CLOCK_REALTIME)->pass_done);
    } else if (il_planted == 3) {
        il_plant(IL_WEAK_UPDATE, &w.tl->passes);
    }
}

static void run_disable(int thread)
{
    if (thread == 0) {
        timerlist_run_timers(w.tl);
        return;
    }
    if (il_planted == 1) {
        st_seq(&clock_of(QEMU_CLOCK_REALTIME)->enabled, false);
    } else {
        qemu_clock_enable(QEMU_CLOCK_REALTIME, false);
    }
    st_seq(&w.disabled, 1);
    il_assert(ld_seq(&w.inside) == 0, "a callback is running on a disabled clock");
}

const struct il_case il_disable = {
    .name = "DisableBesideNestedPasses",
    .threads = 2,
    .flags = 0,
    .setup = set_up_disable,
    .run = run_disable,
    .plants = { "no wait", "a lost wake-up", "passes raised without a barrier" },
};

/* a, due, is armed again beside the pass that runs it: once for both armings, or once for each. */
static void set_up_mod_pass(void)
{
    set_up_list(on_timer);
    timer_mod_ns(w.a, 500);
    give_bias();
    if (il_planted) {
        il_plant(IL_NO_BARRIER, NULL);
    }
}

static void run_mod_pass(int thread)
{
    if (thread == 0) {
        timerlist_run_timers(w.tl);
    } else {
        w.was_armed = timer_pending(w.a);
        w.armed = timer_mod_ns(w.a, 600);
    }
}

static void check_mod_pass(void)
{
    int before = w.fired;

    il_assert(w.armed, "timer_mod() did not arm");
    il_assert(timer_pending(w.a) == timerlist_has_timers(w.tl), "the list and the timer differ");
    timerlist_run_timers(w.tl);
    il_assert(w.fired == 2 || (w.fired == 1 && w.was_armed),
              "it fired %d times, before and after: "
              "%d",
              w.fired, before);
    il_assert(!timerlist_has_timers(w.tl), "something was left");
}

const struct il_case il_mod_pass = {
    .name = "ModBesidePass",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_mod_pass,
    .run = run_mod_pass,
    .check = check_mod_pass,
    .plants = { "no barrier on all threads" },
};

static void set_up_deinit(void)
{
    QEMUTimer *ts = il_malloc(sizeof(*ts));

    set_up_list(on_timer);
    timer_init_full(ts, &w.tlg, QEMU_CLOCK_REALTIME, 1, 0, on_timer, NULL);
    timer_mod_ns(ts, 500);
    give_bias();
    w.b = ts;
}

static void run_deinit(int thread)
{
    if (thread == 0) {
        timerlist_run_timers(w.tl);
        return;
    }
    if (il_planted) {
        timer_del(w.b);
    } else {
        timer_deinit(w.b);
    }
    il_free(w.b);
}

static void check_deinit(void)
{
    il_assert(w.fired <= 1, "it fired %d times", w.fired);
    il_assert(!timerlist_has_timers(w.tl), "the head word is left");
}

const struct il_case il_deinit = {
    .name = "DeinitBesidePass",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_deinit,
    .run = run_deinit,
    .check = check_deinit,
    .plants = { "timer_del() instead" },
};

/* ---- VIRTUAL --------------------------------------------------------------------------------- */

static void set_up_stop(void)
{
    memset(&w, 0, sizeof(w));
    cpu_enable_ticks();
    if (il_planted) {
        il_plant(IL_WEAK_STORE, &virtual_clock.seq);
    }
    il_name(&virtual_clock.seq, "VIRTUAL's seq");
    il_name(&il_now_ns, "the time");
}

static void run_stop(int thread)
{
    if (thread == 0) {
        cpu_disable_ticks();
        w.at_stop = cpu_get_clock();
    } else {
        w.read[0] = cpu_get_clock();
        fetch_add_seq(&il_now_ns, 1); /* time passes */
        w.read[1] = cpu_get_clock();
    }
}

static void check_stop(void)
{
    il_assert(w.read[0] <= w.read[1], "VIRTUAL went back");
    il_assert(w.read[1] <= w.at_stop, "VIRTUAL was seen at %lld, and stopped at %lld",
              (long long)w.read[1], (long long)w.at_stop);
    il_assert(cpu_get_clock() == w.at_stop, "VIRTUAL runs on");
}

const struct il_case il_stop = {
    .name = "StopBesideReads",
    .threads = 2,
    .flags = 0,
    .setup = set_up_stop,
    .run = run_stop,
    .check = check_stop,
    .plants = { "seq made odd without a barrier" },
};
