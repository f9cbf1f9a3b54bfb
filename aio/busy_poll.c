/* SPDX-License-Identifier: MIT */
/*
 * Adaptive busy polling: before a loop sleeps, it looks for work for a time, without sleeping.
 *
 * How long.  Each wait that came to a sleep is measured from its beginning, polling included:
 *
 *   no longer than the polling          the time stays: it was enough
 *   up to max_ns, but longer than it    the time grows: more would have caught what woke the sleep
 *   longer than max_ns                  the time shrinks: no polling that is allowed would have
 *
 * Growing multiplies by `grow` (0: 2), from POLL_START_NS on, up to max_ns.  Shrinking divides by
 * `shrink`, and is an end of polling below POLL_START_NS and when `shrink` is 0.  A poll ends early
 * for a deadline, and never goes past one.
 * Source: Documentation/virt/kvm/halt-polling.rst in the Linux kernel, whose rule this is.
 *
 * What is looked at.  All sources of work once, at the beginning, as before a sleep but without
 * announcing one: aio_int.h says why the wake word then suffices, and why a notify makes no system
 * call.  After that, in turns: the monitor, the wake word, each polled handler's io_poll, the
 * clock. io_uring's monitor looks at memory that it shares with the kernel, and enters when there
 * is something to submit, or the ring says that task work or overflow waits: each turn asks it.
 * The others are asked by a system call, which would take nearly all of the time: they are asked
 * again when LOOK_SHARE times what the last time took has passed, across polls, so that neither an
 * fd without io_poll nor one that hangs up waits for the end of a polling that goes on finding
 * things. An idle bottom half notifies nobody who is awake: the stack is looked at when IDLE_BH_NS
 * have passed, and a sleep after a poll ends IDLE_BH_NS after the poll's beginning if there is one.
 *
 * Whom.  A handler with an io_poll is on poll.list from its setting on, until it has not been ready
 * for POLL_IDLE_PHASES times max_ns of polling; each event of its fd puts it back.  While it is on
 * the list, io_uring, whose poll requests are one-shot, is not asked to watch it again after an
 * event (it is parked): a peer that writes to the fd finds nobody to tell.  All are watched before
 * a sleep, when aio_poll() is not to block, and after every WATCH_EVERY waits and IDLE_BH_NS of
 * one poll, since io_poll need not see an error of the fd.  epoll keeps its fds, as taking one out
 * and back costs two system calls; nobody who writes to one wakes anybody while the thread is
 * awake. An io_poll that says yes makes a completion of its own (handlers.c), so that what it leads
 * to runs like all callbacks, with no poll on the stack.  It may set and remove handlers, which
 * ends this turn's walk of the list, and whatever else a callback may; for what a poll under way
 * cannot see of that, an earlier timer or a nested iteration, `stale` ends it.
 *
 * When not.  Polling takes the processor from a thread that may be the one which is waited for.
 * The clock is read each turn; a turn of POLL_GAP_NS or more, and a count of involuntary context
 * switches (getrusage(2), ru_nivcsw) that has risen since it was last asked for, say that another
 * thread had the processor: no polling for POLL_BACKOFF_MIN_NS, for twice as long as the last time
 * when that is no longer ago than it lasted, and POLL_BACKOFF_MAX_NS at most.  A long turn alone is
 * a slow io_poll or a machine that its host has stopped, and a count alone may be old.
 */
#include "aio/busy_poll_int.h"

#include "aio/aio_int.h"
#include "aio/wait_int.h"
#include "aio/wake_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>

/* Looks at a monitor that is asked by system calls take one LOOK_SHARE-th of the time, and are
 * taken to cost LOOK_COST_MAX_NS at most. */
enum { LOOK_SHARE = 4, LOOK_COST_MAX_NS = 100000 };

/* Waits after which the kernel watches the polled handlers again. */
enum { WATCH_EVERY = 64 };

enum poll_end {
    POLL_FOUND,   /* there is something to do, or a deadline has come */
    POLL_STOPPED, /* wait anew: what was known at the beginning does not hold any more */
    POLL_IN_VAIN,
};

static int64_t min_ns(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- How long -------------------------------------------------------------------------------- */

int64_t poll_adapt(int64_t ns, int64_t blocked_ns, int64_t max_ns, int64_t grow, int64_t shrink)
{
    if (blocked_ns <= ns) {
        return ns;
    }
    if (blocked_ns > max_ns) {
        ns = shrink ? ns / shrink : 0;
        return ns < POLL_START_NS ? 0 : ns;
    }
    if (ns < POLL_START_NS) {
        return min_ns(POLL_START_NS, max_ns);
    }
    grow = grow ? grow : POLL_GROW;
    return ns > max_ns / grow ? max_ns : ns * grow;
}

/* ---- When not -------------------------------------------------------------------------------- */

static uint64_t count_switches(AioContext *ctx)
{
    struct rusage usage = { 0 };

    count_own(&ctx->stats->syscalls, 1);
    getrusage(RUSAGE_THREAD, &usage);
    return (uint64_t)usage.ru_nivcsw;
}

bool poll_note_switches(struct poll_state *p, int64_t now_ns, uint64_t switches)
{
    if (switches == p->switches) {
        return false;
    }
    p->switches = switches;
    if (now_ns - p->off_until_ns < p->backoff_ns) {
        p->backoff_ns = min_ns(2 * p->backoff_ns, POLL_BACKOFF_MAX_NS);
    } else {
        p->backoff_ns = POLL_BACKOFF_MIN_NS;
    }
    p->off_until_ns = now_ns + p->backoff_ns;
    p->ns = 0;
    return true;
}

static void adapt(AioContext *ctx, int64_t blocked_ns, int64_t max_ns)
{
    struct poll_state *p = &ctx->poll;
    int64_t ns = poll_adapt(p->ns, blocked_ns, max_ns, ld_relaxed(&ctx->poll_grow),
                            ld_relaxed(&ctx->poll_shrink));

    if (p->ns == 0 && ns > 0) {
        p->switches = count_switches(ctx); /* what came before does not count */
    }
    p->ns = ns;
}

/* ---- Whom ------------------------------------------------------------------------------------ */

void poll_add(AioContext *ctx, AioHandler *h)
{
    struct poll_state *p = &ctx->poll;

    h->poll_active_ns = p->spent_ns;
    if (h->poll_pprev) {
        return;
    }
    p->changes++;
    h->poll_next = p->list;
    h->poll_pprev = &p->list;
    if (h->poll_next) {
        h->poll_next->poll_pprev = &h->poll_next;
    }
    p->list = h;
}

/* One whose event waits to be dispatched is watched again then. */
static void watch(AioContext *ctx, AioHandler *h)
{
    if (h->events && !h->queued) {
        ctx->mon->rewatch(ctx, h);
    }
}

void poll_remove(AioContext *ctx, AioHandler *h)
{
    if (!h->poll_pprev) {
        return;
    }
    ctx->poll.changes++;
    *h->poll_pprev = h->poll_next;
    if (h->poll_next) {
        h->poll_next->poll_pprev = h->poll_pprev;
    }
    h->poll_pprev = NULL;
    if (!h->removed) {
        watch(ctx, h);
    }
}

bool poll_parks(AioContext *ctx, AioHandler *h)
{
    poll_add(ctx, h);
    if (!ctx->mon->one_shot || !ld_relaxed(&ctx->poll_max_ns)) {
        return false;
    }
    ctx->poll.parked = true;
    return true;
}

void poll_hand_over(AioContext *ctx)
{
    ctx->poll.parked = false;
    ctx->poll.unwatched = 0;
    for (AioHandler *h = ctx->poll.list; h; h = h->poll_next) {
        watch(ctx, h);
    }
}

/* Leaves handlers that were not ready for long to the kernel. */
static void drop_idle(AioContext *ctx, int64_t max_ns)
{
    struct poll_state *p = &ctx->poll;
    int64_t idle_ns = max_ns > INT64_MAX / POLL_IDLE_PHASES ? INT64_MAX : max_ns * POLL_IDLE_PHASES;

    if (p->spent_ns - p->scanned_ns < idle_ns / 8) {
        return;
    }
    p->scanned_ns = p->spent_ns;
    for (AioHandler *h = p->list, *next; h; h = next) {
        next = h->poll_next;
        if (p->spent_ns - h->poll_active_ns >= idle_ns) {
            poll_remove(ctx, h);
        }
    }
}

/* ---- A poll ---------------------------------------------------------------------------------- */

static void look_at_monitor(AioContext *ctx, int64_t now)
{
    struct poll_state *p = &ctx->poll;

    if (ctx->mon->cheap_look) {
        ctx->mon->wait(ctx, WAIT_NOT);
    } else if (now >= p->next_look_ns) {
        ctx->mon->wait(ctx, WAIT_NOT);
        p->next_look_ns = now + LOOK_SHARE * min_ns(clock_monotonic_ns() - now, LOOK_COST_MAX_NS);
    }
}

static void look_at_handlers(AioContext *ctx)
{
    struct poll_state *p = &ctx->poll;
    unsigned changes = p->changes;

    for (AioHandler *h = p->list; h; h = h->poll_next) {
        handler_poll(h);
        if (unlikely(changes != p->changes)) {
            return; /* h may be gone; the next turn begins with the first */
        }
    }
}

static bool is_contended(AioContext *ctx, int64_t before, int64_t now)
{
    return unlikely(now - before >= POLL_GAP_NS) &&
           poll_note_switches(&ctx->poll, now, count_switches(ctx));
}

/* @plan was made at or after @begin, and says that there is something to wait for. */
static enum poll_end poll_until(AioContext *ctx, int64_t begin, int64_t end,
                                const struct wait_plan *plan)
{
    int64_t now = begin, before, idle_bh_ns = begin + IDLE_BH_NS;

    ctx->poll.stale = false;
    for (;;) {
        look_at_monitor(ctx, now);
        if (ctx->done || wake_is_notified(ctx)) {
            return POLL_FOUND;
        }
        look_at_handlers(ctx);
        if (ctx->done) {
            return POLL_FOUND;
        }
        before = now;
        now = clock_monotonic_ns();
        if (now >= plan->sleep_until && plan->poll_until == WAIT_NOT) {
            return POLL_FOUND;
        }
        if (now >= idle_bh_ns) {
            if (bh_is_any(ctx)) {
                return POLL_FOUND;
            }
            idle_bh_ns = now + IDLE_BH_NS;
            if (ctx->poll.parked) {
                poll_hand_over(ctx);
            }
        }
        if (unlikely(ctx->poll.stale)) {
            return POLL_STOPPED;
        }
        if (is_contended(ctx, before, now) || now >= end) {
            return POLL_IN_VAIN;
        }
        cpu_pause();
    }
}

/* Returns whether the wait is over. */
static bool try_poll(AioContext *ctx, int64_t begin, int64_t max_ns, int64_t limit)
{
    struct poll_state *p = &ctx->poll;
    struct wait_plan plan = { WAIT_NOT, WAIT_NOT };
    int64_t ns = min_ns(p->ns, max_ns), took;
    enum poll_end how;

    if (!ctx->done && !wake_is_notified(ctx)) {
        plan = wait_look(ctx, limit);
    }
    if (plan.sleep_until == WAIT_NOT) {
        if (plan.poll_until != WAIT_NOT) {
            return false; /* it is all precise mode's */
        }
        look_at_monitor(ctx, begin); /* there is work: fds have their turn all the same */
        look_at_handlers(ctx);
        return true;
    }
    how = poll_until(ctx, begin, plan.sleep_until - begin > ns ? begin + ns : plan.sleep_until,
                     &plan);
    p->stale = true; /* as it was: for a poll further down the stack */
    took = clock_monotonic_ns() - begin;
    count_own(&ctx->stats->polls, 1);
    count_own(&ctx->stats->polls_found, how == POLL_FOUND);
    count_own(&ctx->stats->poll_ns, took);
    p->spent_ns += min_ns(took, ns);
    drop_idle(ctx, max_ns);
    return how != POLL_IN_VAIN;
}

void poll_wait(AioContext *ctx, int64_t limit)
{
    struct poll_state *p = &ctx->poll;
    int64_t max_ns = ld_relaxed(&ctx->poll_max_ns), begin;
    uint64_t sleeps = ctx->stats->sleeps;

    if (limit == WAIT_NOT || max_ns == 0) {
        wait_in_kernel(ctx, limit);
        return;
    }
    if (p->parked && ++p->unwatched >= WATCH_EVERY) {
        poll_hand_over(ctx);
    }
    begin = clock_monotonic_ns();
    if (begin >= p->off_until_ns && p->ns > 0) {
        if (try_poll(ctx, begin, max_ns, limit)) {
            wake_end_sleep(ctx); /* takes the count */
            return;
        }
        if (bh_is_any(ctx)) {
            limit = min_ns(limit, begin + IDLE_BH_NS);
        }
    }
    wait_in_kernel(ctx, limit);
    if (begin >= p->off_until_ns && sleeps != ctx->stats->sleeps) {
        adapt(ctx, clock_monotonic_ns() - begin, max_ns);
    }
}

/* ---- Settings -------------------------------------------------------------------------------- */

static const char *check_params(int64_t max_ns, int64_t grow, int64_t shrink)
{
    return max_ns < 0   ? "poll_max_ns is negative; it is 0 (off) or more"
           : grow < 0   ? "poll_grow is negative; it is 0 (default) or more"
           : shrink < 0 ? "poll_shrink is negative; it is 0 (default) or more"
                        : NULL;
}

/*
 * The home thread may come to see one of the new values beside an old one: whatever it computes
 * with is a time from 0 to the max_ns that it compares with, and the next waits put it right.
 */
static void set_params(AioContext *ctx, int64_t max_ns, int64_t grow, int64_t shrink)
{
    st_relaxed(&ctx->poll_grow, grow);
    st_relaxed(&ctx->poll_shrink, shrink);
    st_seq(&ctx->poll_max_ns, max_ns);
}

int poll_init(AioContext *ctx, const AioContextOptions *opts)
{
    const char *wrong = check_params(opts->poll_max_ns, opts->poll_grow, opts->poll_shrink);

    if (wrong) {
        fprintf(stderr, "aioctx: AioContextOptions.%s\n", wrong);
        return -EINVAL;
    }
    set_params(ctx, opts->poll_max_ns, opts->poll_grow, opts->poll_shrink);
    return 0;
}

int aio_context_set_poll_params(AioContext *ctx, int64_t max_ns, int64_t grow, int64_t shrink)
{
    if (check_params(max_ns, grow, shrink)) {
        return -EINVAL;
    }
    set_params(ctx, max_ns, grow, shrink);
    aio_notify(ctx); /* a poll that has begun ends */
    return 0;
}
