/* SPDX-License-Identifier: MIT */
/* Measuring a loop: histograms, and how long callbacks take; see observe_int.h. */
#include "aio/observe_int.h"

#include "aio/aio_int.h"
#include "aio/wake_int.h"
#include "rcu/rcu_int.h"
#include "timers/timers_ext_int.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(((struct observe_what *)0)->name) == sizeof(((struct timer_firing *)0)->name),
              "a name fits");

/* ---- Statistics ------------------------------------------------------------------------------ */

void aio_context_get_stats(AioContext *ctx, AioContextStats *ret_stats)
{
    AioContextStats out = { 0 };
    const uint64_t *from = (const uint64_t *)ctx->stats;
    uint64_t *to = (uint64_t *)&out;

    for (size_t i = 0; i < sizeof(out) / sizeof(*to); i++) {
        to[i] = ld_relaxed(&from[i]);
    }
    out.notifies_sent = ld_seq(&ctx->slot->notifies_sent); /* first: each was counted before it */
    out.notifies = wake_count_notifies(ctx);
    *ret_stats = out;
}

void observe_publish(AioContext *ctx)
{
    AioStatsSlot *slot = ctx->slot;

    slot->created_ns = (uint64_t)clock_monotonic_ns();
    slot->is_main = ctx->is_main;
    strncpy(slot->monitor, ctx->mon->name, sizeof(slot->monitor) - 1);
    ctx->slot = stats_slot_publish(slot);
    ctx->stats = &ctx->slot->stats;
}

/* ---- Histograms ------------------------------------------------------------------------------ */

static unsigned bucket_of(int64_t ns)
{
    unsigned bucket = ns > 0 ? 64 - __builtin_clzll(ns) : 0;

    return bucket < AIO_HISTOGRAM_BUCKETS ? bucket : AIO_HISTOGRAM_BUCKETS - 1;
}

/* Home is the one writer. */
static void record(AioHistogram *h, int64_t ns)
{
    count_own(&h->buckets[bucket_of(ns)], 1);
    if (ns > 0) {
        count_own(&h->sum_ns, (uint64_t)ns);
        if ((uint64_t)ns > ld_relaxed(&h->max_ns)) {
            st_relaxed(&h->max_ns, (uint64_t)ns);
        }
    }
}

void aio_context_get_histograms(AioContext *ctx, AioContextHistograms *ret_histograms)
{
    const uint64_t *from = (const uint64_t *)&ctx->slot->histogram;
    uint64_t *to = (uint64_t *)ret_histograms;

    for (size_t i = 0; i < sizeof(*ret_histograms) / sizeof(*to); i++) {
        to[i] = ld_relaxed(&from[i]);
    }
}

uint64_t aio_histogram_count(const AioHistogram *h)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < AIO_HISTOGRAM_BUCKETS; i++) {
        n += h->buckets[i];
    }
    return n;
}

/* @total * @per_100k / 100000, rounded up. */
static uint64_t share_of(uint64_t total, unsigned per_100k)
{
    return total / 100000 * per_100k + (total % 100000 * per_100k + 99999) / 100000;
}

uint64_t aio_histogram_percentile(const AioHistogram *h, unsigned per_100k)
{
    uint64_t total = aio_histogram_count(h), below = 0, wanted, end;
    unsigned i = 0;

    wanted = share_of(total, per_100k < 100000 ? per_100k : 100000);
    if (total == 0) {
        return 0;
    }
    while (below + h->buckets[i] < (wanted ? wanted : 1)) {
        below += h->buckets[i++];
    }
    end = (UINT64_C(1) << i) - 1;
    return i == AIO_HISTOGRAM_BUCKETS - 1 || end > h->max_ns ? h->max_ns : end;
}

/* ---- Callbacks ------------------------------------------------------------------------------- */

/* Tells the thread that watches which callback is the innermost one now; NULL: none. */
static void publish(struct observer *o, const struct observe_what *what)
{
    static const struct observe_what none;
    const uint64_t *from = (const uint64_t *)(what ? what : &none);
    uint64_t *to = (uint64_t *)&o->now;

    st_release(&o->now_seq, o->now_seq + 1);
    for (size_t i = 0; i < sizeof(o->now) / sizeof(*to); i++) {
        st_release(&to[i], from[i]);
    }
    st_release(&o->now_seq, o->now_seq + 1);
}

static void count_first_callback(AioContext *ctx, int64_t now)
{
    struct observer *o = &ctx->observer;

    if (o->woke_ns) {
        record(&ctx->slot->histogram.wake_to_run, now - o->woke_ns);
        o->woke_ns = 0;
    }
    if (o->notify_ns) {
        record(&ctx->slot->histogram.notify_to_run, now - o->notify_ns);
        o->notify_ns = 0;
    }
}

void observe_call_begin(AioContext *ctx, struct observe_call *call, enum observe_kind kind,
                        const void *func, int fd, const char *name)
{
    struct observer *o = &ctx->observer;
    bool stalls = ld_relaxed(&ctx->observing) & OBSERVE_STALLS;
    int64_t now;

    if (!o->woke_ns && !o->notify_ns && !stalls) {
        return;
    }
    now = clock_monotonic_ns();
    count_first_callback(ctx, now);
    if (!stalls) {
        return;
    }
    *call = (struct observe_call){
        .on = true,
        .entered_ns = now,
        .what = {
            .id = ++o->calls,
            .kind = kind,
            .func = (uintptr_t)func,
            .fd = fd,
            .begin_ns = now,
        },
        .outer = o->call,
    };
    if (name) {
        memcpy(call->what.name, name, strnlen(name, sizeof(call->what.name) - 1));
    }
    o->call = call;
    publish(o, &call->what);
}

void observe_call_end(AioContext *ctx, struct observe_call *call)
{
    struct observer *o = &ctx->observer;
    int64_t now = clock_monotonic_ns(), held = now - call->what.begin_ns;
    int64_t limit = ld_relaxed(&o->stall_limit_ns);

    must(o->call == call);
    o->call = call->outer;
    if (o->call) {
        o->call->what.begin_ns += now - call->entered_ns;
    }
    publish(o, o->call ? &o->call->what : NULL);
    if (unlikely(limit && held >= limit)) {
        count_own(&ctx->slot->stalls, 1);
        stall_report(ctx, &call->what, held);
    }
}

static void run_timer(struct timer_observer *timers, const struct timer_firing *firing)
{
    AioContext *ctx = container_of(timers, AioContext, observer.timers);
    struct observe_call call = { 0 };

    if (ld_relaxed(&ctx->observing) & OBSERVE_HISTOGRAMS) {
        record(&ctx->slot->histogram.timer_lateness,
               qemu_clock_get_ns(firing->type) - firing->deadline_ns);
    }
    observe_call_begin(ctx, &call, OBSERVE_TIMER, (const void *)(uintptr_t)firing->cb, -1,
                       firing->name);
    firing->cb(firing->opaque);
    if (call.on) {
        observe_call_end(ctx, &call);
    }
}

void aio_context_call_observed(AioContext *ctx, void (*cb)(void *opaque, int ret), void *opaque,
                               int ret)
{
    struct observe_call call;

    observe_begin(ctx, is_observed(ctx), &call, OBSERVE_BLOCK, func_address(cb), -1);
    cb(opaque, ret);
    observe_end(ctx, &call);
}

/* ---- Iterations ------------------------------------------------------------------------------ */

void observe_turn_begin(AioContext *ctx, struct observe_turn *turn)
{
    struct observer *o = &ctx->observer;

    *turn = (struct observe_turn){
        .on = true,
        .begin_ns = clock_monotonic_ns(),
        .sleeps = ctx->stats->sleeps,
        .told = ctx->stats->wakeups_notify,
        .outer = o->turn,
        .call = o->call,
    };
    o->turn = turn;
    o->call = NULL;
    o->woke_ns = o->notify_ns = 0;
    if (turn->call) {
        publish(o, NULL);
    }
    if (ld_relaxed(&ctx->notified_ns)) {
        st_seq(&ctx->notified_ns, 0);
    }
    this_thread.observed++;
}

void observe_turn_awake(AioContext *ctx, struct observe_turn *turn)
{
    struct observer *o = &ctx->observer;
    int64_t told_ns;

    turn->awake_ns = clock_monotonic_ns();
    if (ctx->stats->sleeps == turn->sleeps || !(ld_relaxed(&ctx->observing) & OBSERVE_HISTOGRAMS)) {
        return;
    }
    o->woke_ns = turn->awake_ns;
    told_ns = xchg_seq(&ctx->notified_ns, 0);
    if (ctx->stats->wakeups_notify != turn->told) {
        o->notify_ns = told_ns;
    }
}

void observe_turn_end(AioContext *ctx, struct observe_turn *turn)
{
    struct observer *o = &ctx->observer;
    int64_t now = clock_monotonic_ns(), took = now - turn->begin_ns;

    this_thread.observed--;
    if (ld_relaxed(&ctx->observing) & OBSERVE_HISTOGRAMS) {
        record(&ctx->slot->histogram.iteration, now - turn->awake_ns);
    }
    o->woke_ns = o->notify_ns = 0;
    must(o->turn == turn && !o->call);
    o->turn = turn->outer;
    o->call = turn->call;
    if (o->turn) {
        o->turn->awake_ns += took;
    }
    if (o->call) {
        o->call->what.begin_ns += took;
        publish(o, &o->call->what);
    }
}

void observe_forget(AioContext *ctx)
{
    struct observer *o = &ctx->observer;

    o->turn = NULL;
    o->call = NULL;
    o->woke_ns = o->notify_ns = 0;
    publish(o, NULL);
}

/* ---- On and off ------------------------------------------------------------------------------ */

/* A callback that is in progress, and an iteration, end as they began. */
static void change_locked(AioContext *ctx, unsigned set, unsigned clear)
{
    unsigned now = (ctx->observing & ~clear) | set;

    if (!ctx->observer.closed) {
        st_seq(&ctx->observing, now);
        timerlistgroup_set_observer(&ctx->tlg, now ? &ctx->observer.timers : NULL);
        st_relaxed(&ctx->slot->histograms, !!(now & OBSERVE_HISTOGRAMS));
    }
}

void aio_context_set_histograms(AioContext *ctx, bool on)
{
    rcu_check_fork("aio_context_set_histograms"); /* the slot is the parent's */
    pthread_mutex_lock(&ctx->lock);
    change_locked(ctx, on ? OBSERVE_HISTOGRAMS : 0, on ? 0 : OBSERVE_HISTOGRAMS);
    pthread_mutex_unlock(&ctx->lock);
}

static void set_limit_locked(AioContext *ctx, int64_t limit_ns)
{
    st_seq(&ctx->observer.stall_limit_ns, limit_ns);
    st_relaxed(&ctx->slot->stall_limit_ns, (uint64_t)limit_ns);
    change_locked(ctx, limit_ns ? OBSERVE_STALLS : 0, limit_ns ? 0 : OBSERVE_STALLS);
}

void aio_context_set_stall_limit(AioContext *ctx, int64_t limit_ns)
{
    if (limit_ns < 0) {
        die_misuse("aio_context_set_stall_limit", "limit_ns is %lld; it is 0 (off) or more",
                   (long long)limit_ns);
    }
    rcu_check_fork("aio_context_set_stall_limit");
    pthread_mutex_lock(&ctx->lock);
    if (!ctx->observer.closed) {
        set_limit_locked(ctx, limit_ns);
        stall_watch(ctx, limit_ns);
    }
    pthread_mutex_unlock(&ctx->lock);
}

void observe_close(AioContext *ctx)
{
    must(!ctx->observer.call && !ctx->observer.turn); /* they would lie on a stack that is gone */
    pthread_mutex_lock(&ctx->lock);
    if (!ctx->observer.closed) {
        set_limit_locked(ctx, 0);
        change_locked(ctx, 0, OBSERVE_HISTOGRAMS);
        ctx->observer.closed = true;
    }
    pthread_mutex_unlock(&ctx->lock);
    stall_close(ctx);
}

/* Returns 1, 0 or -EINVAL, having said why. */
static int wants_histograms(const AioContextOptions *opts)
{
    const char *env = getenv("AIOCTX_HISTOGRAMS");

    if (opts->histograms) {
        if (opts->histograms == 1 || opts->histograms == -1) {
            return opts->histograms > 0;
        }
        fprintf(stderr, "aioctx: AioContextOptions.histograms is %d; it is 1 (on), -1 (off) or 0\n",
                opts->histograms);
        return -EINVAL;
    }
    if (!env || !*env || strcmp(env, "off") == 0) {
        return 0;
    }
    if (strcmp(env, "on") == 0) {
        return 1;
    }
    fprintf(stderr, "aioctx: AIOCTX_HISTOGRAMS is '%s'; it is on or off\n", env);
    return -EINVAL;
}

/* Returns the limit, or -EINVAL, having said why. */
static int64_t wanted_limit(const AioContextOptions *opts)
{
    const char *env = getenv("AIOCTX_STALL_MS");
    unsigned long long ms;
    char *end;

    if (opts->stall_limit_ns) {
        return opts->stall_limit_ns > 0 ? opts->stall_limit_ns : 0;
    }
    if (!env || !*env) {
        return 0;
    }
    errno = 0;
    ms = strtoull(env, &end, 10);
    if (errno || *end || *env < '0' || *env > '9' || ms > INT64_MAX / SCALE_MS) {
        fprintf(stderr, "aioctx: AIOCTX_STALL_MS is '%s'; it is a number of milliseconds, 0: off\n",
                env);
        return -EINVAL;
    }
    return (int64_t)ms * SCALE_MS;
}

int observe_init(AioContext *ctx, const AioContextOptions *opts)
{
    int histograms = wants_histograms(opts);
    int64_t limit = wanted_limit(opts);

    if (histograms < 0 || limit < 0) {
        return -EINVAL;
    }
    ctx->observer.timers.run = run_timer;
    if (histograms) {
        aio_context_set_histograms(ctx, true);
    }
    if (limit) {
        aio_context_set_stall_limit(ctx, limit);
    }
    return 0;
}
