/* SPDX-License-Identifier: MIT */
/*
 * Instruction-count time: turning it on and off, accounting, budgets, and the warp.
 *
 * Time.  virtual_int.h says what VIRTUAL is made of.  Accounting adds to one atomic count and then
 * notifies every list that has a timer due, so that loops need not sleep on VIRTUAL:
 *
 *   accountant  count += n            seq_cst  |  sleeper  S = asleep              seq_cst
 *               load every list's head seq_cst |           load its heads, the count  seq_cst
 *               due: load S (notify_cb)        |           due: do not sleep
 *
 * One of the two sees the other; who arms a timer meanwhile, or moves one back, stands between them
 * as in list_int.h: a forward move notifies, and a head that is due keeps its loop awake until it
 * has gone.  For that a timer of VIRTUAL that is due counts for the timeout of loops, which one
 * that is still to come does not.
 *
 * Warp.  `asleep` lasts from icount_start_warp_timer() to icount_account_warp_timer().  Meanwhile
 * plan() looks for the next deadline of the guest, which becomes the limit of VIRTUAL, and arms
 * the warp timer for the moment of VIRTUAL_RT at which VIRTUAL reaches it (or that of an EXTERNAL
 * timer before it).  The plan is out of date when a head moves forward, a pass ends, or the clock
 * changes: each of these stores, then loads `asleep`, and arms the warp timer for at once.  VIRTUAL
 * jumps only in plan(), never below timer_mod(), so that a callback that arms several timers sees
 * one time; and not while a pass runs, for what its callbacks are about to arm may come first.
 *
 * Who moves a head forward lowers the limit too, before anybody is notified.  A plan that had not
 * seen that head has taken effect by then, since both are writers of virtual_clock; a later one
 * sees it.  So from then on VIRTUAL does not go past that deadline; earlier in timer_mod() it may.
 *
 * The warp timer is on the list group that the options name, by default main_loop_tlg: its callback
 * is short and safe on any thread, and the embedder knows which of its loops is alive while the
 * virtual CPUs sleep.
 */
#include "timers/icount_int.h"

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"
#include "timers/clock_int.h"
#include "timers/icount_auto_int.h"
#include "timers/list_int.h"
#include "timers/virtual_int.h"

#include <aioctx/rcu.h>
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static_assert(sizeof(void *) != 8 || sizeof(IcountOptions) == 64, "part of the binary interface");

/* One call of icount_configure(). */
struct icount_conf {
    IcountOptions opts;
    QEMUTimer *warp_timer;
    AioRcuHead rcu;
};

/* What the guest sees: a warp leads to these timers. */
#define GUEST_ATTRS (QEMU_TIMER_ATTR_ALL & ~QEMU_TIMER_ATTR_EXTERNAL)

struct icount_state icount_state;

int icount_enabled(void)
{
    return ld_acquire(&icount_state.mode);
}

/* ---- The warp -------------------------------------------------------------------------------- */

/*
 * Whether the heads that were read are those of a moment at which no callback of VIRTUAL ran; else
 * a pass was there, whose end has it planned again.  No list may come or go between the looks: one
 * that goes takes its ended passes with it, which looks as if passes had ended, or hides some.
 */
static bool read_heads(int64_t *ret_guest)
{
    struct clock *clock = clock_of(QEMU_CLOCK_VIRTUAL);
    unsigned before, after;
    bool at_rest;

    pthread_mutex_lock(&clock->lists_lock);
    at_rest = !clock_any_pass(QEMU_CLOCK_VIRTUAL, &before);
    *ret_guest = clock_head_ns(QEMU_CLOCK_VIRTUAL, GUEST_ATTRS, -1);
    at_rest = at_rest && !clock_any_pass(QEMU_CLOCK_VIRTUAL, &after) && before == after;
    pthread_mutex_unlock(&clock->lists_lock);
    return at_rest;
}

static void begin_warp_locked(int64_t now, int64_t rt)
{
    if (!virtual_clock.warping) {
        bool track = icount_state.mode == ICOUNT_AUTO;

        st_release(&virtual_clock.warp_start_ns,
                   track ? ns_add(virtual_clock.rt_zero_ns, now) : rt);
        st_release(&virtual_clock.warping, true);
    }
}

/* Returns the VIRTUAL_RT at which to look again; NO_DEADLINE: not by itself. */
static int64_t plan_locked(const struct icount_conf *conf)
{
    int64_t guest, now, rt, next, limit;

    if (!icount_state.asleep || !clock_runs(QEMU_CLOCK_VIRTUAL) || !read_heads(&guest)) {
        return NO_DEADLINE; /* whoever changes that has it planned again */
    }
    now = virtual_rebase_locked(&rt);
    limit = guest > now ? guest : now;
    if (guest >= NO_DEADLINE - 1) { /* none, or one that is armed for never */
        st_release(&virtual_clock.warping, false);
        return NO_DEADLINE;
    }
    if (conf->opts.no_sleep) {
        st_release(&virtual_clock.base_ns, limit);
        return NO_DEADLINE;
    }
    begin_warp_locked(now, rt);
    st_release(&virtual_clock.warp_limit_ns, limit);
    next = clock_head_ns(QEMU_CLOCK_VIRTUAL, QEMU_TIMER_ATTR_ALL, now);
    return next <= limit ? ns_add(virtual_clock.warp_start_ns, next - now) : NO_DEADLINE;
}

static void plan(const struct icount_conf *conf, bool fall_asleep)
{
    int64_t wake_rt = NO_DEADLINE;

    virtual_write_begin();
    if (icount_state.conf == conf) { /* else it was replaced, and a sleep from before is over */
        if (fall_asleep) {
            st_seq(&icount_state.asleep, true); /* before the look at passes and heads */
        }
        wake_rt = plan_locked(conf);
    }
    virtual_write_end();
    if (wake_rt != NO_DEADLINE) {
        /* Only earlier: another thread may have planned since.  Too early does no harm. */
        timer_mod_anticipate_ns(conf->warp_timer, wake_rt);
    }
    clock_notify_due(QEMU_CLOCK_VIRTUAL);
}

/* Plans on the thread that runs the warp timer, as soon as it can. */
static void plan_soon(const struct icount_conf *conf)
{
    if (ld_seq(&icount_state.asleep)) {
        timer_mod_anticipate_ns(conf->warp_timer, 0);
    }
}

/* A head may have moved forward: VIRTUAL must not follow VIRTUAL_RT past it until it is planned
 * again.  Not only while it is warped: a plan that has begun may not have seen that head. */
static void lower_limit(void)
{
    int64_t guest, now, rt;

    if (!ld_seq(&icount_state.asleep)) {
        return;
    }
    virtual_write_begin();
    guest = clock_head_ns(QEMU_CLOCK_VIRTUAL, GUEST_ATTRS, -1);
    if (virtual_clock.warping && guest < virtual_clock.warp_limit_ns) {
        now = virtual_rebase_locked(&rt);
        st_release(&virtual_clock.warp_limit_ns, guest > now ? guest : now);
    }
    virtual_write_end();
}

static void warp_timer_cb(void *opaque)
{
    struct icount_conf *conf;

    aio_rcu_read_lock();
    conf = ld_acquire(&icount_state.conf);
    if (conf) {
        plan(conf, false);
    }
    aio_rcu_read_unlock();
}

void icount_start_warp_timer(void)
{
    struct icount_conf *conf;

    aio_rcu_read_lock();
    conf = ld_acquire(&icount_state.conf);
    if (conf) {
        plan(conf, true);
    }
    aio_rcu_read_unlock();
}

void icount_account_warp_timer(void)
{
    struct icount_conf *conf;
    int64_t rt;

    if (!ld_seq(&icount_state.asleep)) {
        return;
    }
    aio_rcu_read_lock();
    virtual_write_begin();
    st_seq(&icount_state.asleep, false);
    virtual_rebase_locked(&rt);
    st_release(&virtual_clock.warping, false);
    conf = icount_state.conf;
    virtual_write_end();
    if (conf) {
        timer_del(conf->warp_timer);
    }
    clock_notify_due(QEMU_CLOCK_VIRTUAL);
    aio_rcu_read_unlock();
}

void icount_replan(void)
{
    struct icount_conf *conf;

    if (likely(!ld_seq(&icount_state.asleep))) {
        return;
    }
    aio_rcu_read_lock();
    conf = ld_acquire(&icount_state.conf);
    if (conf) {
        plan_soon(conf);
    }
    aio_rcu_read_unlock();
}

void icount_notify_exit(void)
{
    struct icount_conf *conf;

    if (likely(!ld_seq(&icount_state.conf))) {
        return;
    }
    aio_rcu_read_lock();
    conf = ld_acquire(&icount_state.conf);
    if (conf) {
        lower_limit();
        plan_soon(conf);
        if (conf->opts.exit_cb) {
            conf->opts.exit_cb(conf->opts.opaque);
        }
    }
    aio_rcu_read_unlock();
}

/* ---- Accounting ------------------------------------------------------------------------------ */

static void add_instructions(int64_t n)
{
    int64_t count = ld_relaxed(&virtual_clock.count), sum;

    do {
        if (__builtin_add_overflow(count, n, &sum)) {
            sum = INT64_MAX;
        }
    } while (!cas_seq(&virtual_clock.count, &count, sum));
}

void icount_update(int64_t executed)
{
    int mode = icount_enabled();

    if (unlikely(executed < 0)) {
        die_misuse("icount_update", "executed is %lld; it is 0 or more", (long long)executed);
    }
    if (mode == ICOUNT_DISABLED) {
        return;
    }
    icount_account_warp_timer();
    add_instructions(executed);
    if (mode == ICOUNT_AUTO && icount_auto_steer()) {
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL);
    }
    clock_notify_due(QEMU_CLOCK_VIRTUAL);
}

int64_t icount_get(void)
{
    return virtual_get_ns();
}

int64_t icount_get_raw(void)
{
    return ld_seq(&virtual_clock.count);
}

int icount_get_shift(void)
{
    return ld_acquire(&virtual_clock.shift);
}

int64_t icount_to_ns(int64_t instructions)
{
    return instructions <= 0 ? 0 : ns_of_instructions(instructions, icount_get_shift());
}

int64_t icount_round(int64_t ns)
{
    int shift = icount_get_shift();
    int64_t rest = (INT64_C(1) << shift) - 1;

    return ns <= 0 ? 0 : (ns >> shift) + ((ns & rest) != 0);
}

int64_t icount_budget(int attr_mask)
{
    int mode = icount_enabled();
    int64_t ns, n;

    if (mode == ICOUNT_DISABLED || !virtual_is_running()) {
        return 0;
    }
    ns = qemu_clock_deadline_ns_all(QEMU_CLOCK_VIRTUAL, attr_mask);
    if (mode == ICOUNT_AUTO) {
        ns = qemu_soonest_timeout(ns, ICOUNT_AUTO_PERIOD_NS);
    }
    n = ns < 0 ? INT32_MAX : icount_round(ns);
    return n < INT32_MAX ? n : INT32_MAX;
}

/* ---- Turning it on and off ------------------------------------------------------------------- */

static bool options_are_good(const IcountOptions *opts)
{
    for (unsigned i = 0; i < sizeof(opts->reserved) / sizeof(opts->reserved[0]); i++) {
        if (opts->reserved[i]) {
            return false;
        }
    }
    return opts->shift >= 0 && opts->shift <= ICOUNT_MAX_SHIFT &&
           !(opts->auto_shift && opts->no_sleep);
}

static struct icount_conf *new_conf(const IcountOptions *opts)
{
    struct icount_conf *conf = calloc(1, sizeof(*conf));

    if (!conf) {
        return NULL;
    }
    conf->opts = *opts;
    conf->warp_timer =
        timer_new_full(opts->warp_group, QEMU_CLOCK_VIRTUAL_RT, SCALE_NS, 0, warp_timer_cb, NULL);
    if (!conf->warp_timer) {
        free(conf);
        return NULL;
    }
    timer_set_name(conf->warp_timer, "icount-warp");
    return conf;
}

static void free_conf(AioRcuHead *head)
{
    free(container_of(head, struct icount_conf, rcu));
}

/* Who still holds @conf from before may arm its timer, which does nothing once it is freed. */
static void drop_conf(struct icount_conf *conf)
{
    if (conf) {
        timer_free(conf->warp_timer);
        aio_call_rcu(&conf->rcu, free_conf);
    }
}

/* Puts *conf in the place of the one before, which becomes *conf. */
static int swap_conf_locked(struct icount_conf **conf)
{
    const IcountOptions *opts = *conf ? &(*conf)->opts : NULL;
    unsigned ended;

    if (virtual_clock.running || clock_any_pass(QEMU_CLOCK_VIRTUAL, &ended)) {
        return -EBUSY;
    }
    if (opts) {
        virtual_count_on_locked(opts->shift);
        icount_auto_reset_locked();
    } else if (icount_state.conf) {
        virtual_count_off_locked();
    }
    st_seq(&icount_state.asleep, false);
    st_release(&icount_state.mode, !opts              ? ICOUNT_DISABLED
                                   : opts->auto_shift ? ICOUNT_AUTO
                                                      : ICOUNT_FIXED);
    *conf = xchg_seq(&icount_state.conf, *conf);
    return 0;
}

int icount_configure(const IcountOptions *opts)
{
    struct icount_conf *conf = NULL;
    int ret;

    rcu_check_fork("icount_configure");
    if (opts) {
        if (!options_are_good(opts)) {
            return -EINVAL;
        }
        conf = new_conf(opts);
        if (!conf) {
            return -ENOMEM;
        }
    }
    virtual_write_begin();
    ret = swap_conf_locked(&conf);
    virtual_write_end();
    drop_conf(conf);
    if (ret == 0) {
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL);
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL_RT);
    }
    return ret;
}
