/* SPDX-License-Identifier: MIT */
/*
 * The wait of an iteration: how long, the sleep, and what precise mode does instead of its end.
 *
 *   [adaptive polling: busy_poll.c] -> announce sleep -> look at every source of work
 *     -> monitor: submit and wait -> take it back
 *     -> precise mode: reap without waiting, until the deadline
 *
 * The announcement is described in aio_int.h.  The deadline is a time of CLOCK_MONOTONIC all the
 * way into the kernel; one look at the clock tells whether it has passed, since a wait for a time
 * that has passed costs far more than the look.
 */
#include "aio/wait_int.h"

#include "aio/aio_int.h"
#include "aio/wake_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>

int64_t wait_compute_timeout(AioContext *ctx)
{
    int64_t timeout;

    if (ctx->done || handlers_have_requests(ctx)) {
        return 0;
    }
    timeout = bh_timeout(ctx);
    if (timeout != 0) {
        timeout = qemu_soonest_timeout(timeout, timerlistgroup_deadline_ns(&ctx->tlg));
    }
    return timeout;
}

static int64_t min_ns(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

struct wait_plan wait_look(AioContext *ctx, int64_t limit)
{
    struct wait_plan plan = { WAIT_NOT, WAIT_NOT };
    int64_t bh_wait, timers, now, until, lead;

    bh_wait = handlers_have_requests(ctx) ? 0 : bh_timeout(ctx);
    if (bh_wait == 0) {
        return plan;
    }
    timers = timerlistgroup_deadline_monotonic_ns(&ctx->tlg);
    until = min_ns(limit, timers);
    if (until == WAIT_FOREVER && bh_wait < 0) {
        plan.sleep_until = WAIT_FOREVER;
        return plan;
    }
    now = clock_monotonic_ns();
    until = bh_wait < 0 ? until : min_ns(until, now + bh_wait);
    lead = until == timers ? ld_relaxed(&ctx->precise_ns) : 0;
    if (until > now) {
        plan.sleep_until = until - lead > now ? until - lead : WAIT_NOT;
        plan.poll_until = lead ? until : WAIT_NOT;
    }
    return plan;
}

static void watch_parked(AioContext *ctx)
{
    if (unlikely(ctx->poll.parked)) {
        poll_hand_over(ctx);
    }
}

/* Announces the sleep before the look, but for a wait that is all polling; see aio_int.h. */
static struct wait_plan begin_wait(AioContext *ctx, int64_t limit)
{
    struct wait_plan plan = { WAIT_NOT, WAIT_NOT };

    watch_parked(ctx);
    if (ctx->done) {
        return plan;
    }
    if (ld_relaxed(&ctx->precise_ns) && !wake_is_notified(ctx)) {
        plan = wait_look(ctx, limit);
        if (plan.sleep_until == WAIT_NOT) {
            return plan;
        }
    }
    if (!wake_begin_sleep(ctx)) {
        return (struct wait_plan){ WAIT_NOT, WAIT_NOT };
    }
    return wait_look(ctx, limit);
}

void wait_count_wakeup(AioContext *ctx, int ret, bool notified)
{
    AioContextStats *st = ctx->stats;
    uint64_t *cause = notified        ? &st->wakeups_notify
                      : ctx->done     ? &st->wakeups_event
                      : ret == -EINTR ? &st->wakeups_signal
                                      : &st->wakeups_timeout;

    count_own(&st->sleeps, 1);
    count_own(cause, 1);
    probe2(wake, ctx, cause - &st->wakeups_notify);
}

/*
 * Precise mode: the rest of a wait, without sleeping.  Ends early for what a sleep would end for.
 * An idle bottom half that another thread schedules meanwhile notifies nobody, as we do not sleep:
 * return in time for it, and let the next iteration poll on.
 */
static void poll_until(AioContext *ctx, const struct wait_plan *plan)
{
    int64_t begin = clock_monotonic_ns(), now = begin,
            end = min_ns(plan->poll_until, begin + IDLE_BH_NS);

    if (now >= end || now < plan->sleep_until) {
        return; /* the sleep has taken too long, or something cut it short */
    }
    while (now < end && !ctx->done && !wake_is_notified(ctx)) {
        ctx->mon->wait(ctx, WAIT_NOT);
        cpu_pause();
        now = clock_monotonic_ns();
    }
    wake_end_sleep(ctx); /* takes the count */
    count_own(&ctx->stats->precise_polls, 1);
    count_own(&ctx->stats->precise_poll_ns, now - begin);
}

void wait_in_kernel(AioContext *ctx, int64_t limit)
{
    struct wait_plan plan = { WAIT_NOT, WAIT_NOT };
    bool notified;
    int ret;

    if (limit != WAIT_NOT) {
        plan = begin_wait(ctx, limit);
    } else {
        watch_parked(ctx);
    }
    if (plan.sleep_until != WAIT_NOT) {
        probe2(sleep, ctx, plan.sleep_until);
    }
    ret = ctx->mon->wait(ctx, plan.sleep_until);
    if (limit == WAIT_NOT) {
        return;
    }
    notified = wake_end_sleep(ctx);
    if (plan.sleep_until != WAIT_NOT) {
        wait_count_wakeup(ctx, ret, notified);
    }
    if (plan.poll_until != WAIT_NOT && !notified && !ctx->done && ret == 0) {
        poll_until(ctx, &plan);
    }
}

void wait_for_events(AioContext *ctx, int64_t limit)
{
    if (unlikely(ld_relaxed(&ctx->poll_max_ns) || ctx->poll.parked)) {
        poll_wait(ctx, limit);
    } else {
        wait_in_kernel(ctx, limit);
    }
}
