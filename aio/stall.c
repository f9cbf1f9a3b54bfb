/* SPDX-License-Identifier: MIT */
/*
 * Stalls: callbacks that hold a loop for longer than they may.
 *
 * Home sees one when it has returned.  While it still runs, a thread sees it that there is as long
 * as some context has a limit; it looks at the copy of the innermost callback that home publishes
 * (observe_int.h), a few times in the shortest limit.
 *
 * Reports of one context come once a second at most; in between they are counted.  The return of a
 * callback that was reported while it ran is reported in any case.
 *
 * `lock` comes after a context's; no hook is called under it.  Who closes a context waits until no
 * hook of the thread has it any more.
 */
#include "aio/aio_int.h"
#include "aio/symbol_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REPORT_EVERY_NS INT64_C(1000000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    AioContext *first; /* by observer.next_watched */
    AioContext *told;  /* a hook has it; see above */
    pthread_t thread;
    bool running; /* the thread */
    pthread_cond_t changed;
    AioStallFunc *hook;
    void *hook_opaque;
} w; /* under lock */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_once(void)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w.changed, &attr);
    pthread_condattr_destroy(&attr);
}

void aio_set_stall_hook(AioStallFunc *func, void *opaque)
{
    pthread_mutex_lock(&lock);
    w.hook = func;
    w.hook_opaque = opaque;
    pthread_mutex_unlock(&lock);
}

/* ---- Reports --------------------------------------------------------------------------------- */

static const char *const kind_names[] = {
    [OBSERVE_TIMER] = "timer",           [OBSERVE_BH] = "bottom half",
    [OBSERVE_FD_READ] = "fd read",       [OBSERVE_FD_WRITE] = "fd write",
    [OBSERVE_COMPLETION] = "completion", [OBSERVE_BLOCK] = "block request",
    [OBSERVE_FD_REMOVAL] = "fd removal", [OBSERVE_POLL_NOTIFIER] = "poll notifier",
};

static void thread_name(int tid, char name[16])
{
    char path[64];
    ssize_t n = -1;
    int fd;

    snprintf(path, sizeof(path), "/proc/self/task/%d/comm", tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, name, 15);
        close(fd);
    }
    name[n > 0 ? n - 1 : 0] = '\0'; /* without the newline */
}

static void say(const AioStall *stall)
{
    char thread[16], where[512] = "", what[64] = "";

    thread_name(stall->tid, thread);
    if (stall->name) {
        snprintf(what, sizeof(what), " '%s'", stall->name);
    } else if (stall->fd >= 0) {
        snprintf(what, sizeof(what), " of fd %d", stall->fd);
    }
    if (stall->object) {
        snprintf(where, sizeof(where), " (%s+0x%" PRIx64 ")", stall->object, stall->object_offset);
    }
    fprintf(stderr, "aioctx: stall: %s%s: %s %p%s %s the loop of thread '%s' (%d) for %.3f ms",
            stall->kind, what, stall->symbol ? stall->symbol : "callback", stall->func, where,
            stall->running ? "has held" : "held", thread, stall->tid,
            (double)stall->held_ns / SCALE_MS);
    fprintf(stderr, stall->suppressed ? "; %" PRIu64 " more were not reported\n" : "\n",
            stall->suppressed);
}

/* Whether this one may be reported, and how many were not. */
static bool may_report_locked(struct observer *o, const struct observe_what *what, bool running,
                              uint64_t *ret_suppressed)
{
    int64_t now = clock_monotonic_ns();
    bool due = !o->reported_ns || now - o->reported_ns >= REPORT_EVERY_NS;
    bool again = o->hung_id == what->id;

    if (running ? again || !due : !again && !due) {
        o->suppressed += !running;
        return false;
    }
    o->reported_ns = now;
    *ret_suppressed = o->suppressed;
    o->suppressed = 0;
    if (running) {
        o->hung_id = what->id;
    }
    return true;
}

static void report(AioContext *ctx, const struct observe_what *what, int64_t held_ns, bool running,
                   uint64_t suppressed)
{
    struct symbol symbol = symbol_find((const void *)(uintptr_t)what->func);
    AioStall stall = {
        .ctx = ctx,
        .held_ns = held_ns,
        .limit_ns = ld_relaxed(&ctx->observer.stall_limit_ns),
        .kind = kind_names[what->kind],
        .name = what->name[0] ? (const char *)what->name : NULL,
        .func = (const void *)(uintptr_t)what->func,
        .fd = (int)what->fd,
        .symbol = symbol.name,
        .object = symbol.object,
        .object_offset = symbol.offset,
        .tid = ld_relaxed(&ctx->slot->tid),
        .running = running,
        .suppressed = suppressed,
    };
    AioStallFunc *hook;
    void *opaque;

    pthread_mutex_lock(&lock);
    hook = w.hook;
    opaque = w.hook_opaque;
    pthread_mutex_unlock(&lock);
    this_thread.callbacks++; /* on the thread that watches too: the context's end waits for it */
    if (hook) {
        hook(&stall, opaque);
    } else {
        say(&stall);
    }
    this_thread.callbacks--;
}

void stall_report(AioContext *ctx, const struct observe_what *what, int64_t held_ns)
{
    uint64_t suppressed;
    bool may;

    probe3(stall, ctx, what->func, held_ns);
    pthread_mutex_lock(&lock);
    may = may_report_locked(&ctx->observer, what, false, &suppressed);
    pthread_mutex_unlock(&lock);
    if (may) {
        report(ctx, what, held_ns, false, suppressed);
    }
}

/* ---- The thread that watches ----------------------------------------------------------------- */

/* Copies what home has published.  Returns false when it was being written. */
static bool read_now(struct observer *o, struct observe_what *ret_what)
{
    const uint64_t *from = (const uint64_t *)&o->now;
    uint64_t *to = (uint64_t *)ret_what, seq = ld_acquire(&o->now_seq);

    for (size_t i = 0; i < sizeof(*ret_what) / sizeof(*to); i++) {
        to[i] = ld_acquire(&from[i]);
    }
    return !(seq & 1) && ld_acquire(&o->now_seq) == seq;
}

/* Returns whether it has made a report, for which it drops the lock. */
static bool look_at_locked(AioContext *ctx)
{
    struct observer *o = &ctx->observer;
    int64_t limit = ld_relaxed(&o->stall_limit_ns), held;
    struct observe_what what;
    uint64_t suppressed;

    if (!limit || !read_now(o, &what) || !what.begin_ns) {
        return false;
    }
    held = clock_monotonic_ns() - what.begin_ns;
    if (held < limit || !may_report_locked(o, &what, true, &suppressed)) {
        return false;
    }
    w.told = ctx;
    pthread_mutex_unlock(&lock);
    report(ctx, &what, held, true, suppressed);
    pthread_mutex_lock(&lock);
    w.told = NULL;
    pthread_cond_broadcast(&w.changed);
    return true;
}

/* How long until the next look: a quarter of the shortest limit, from 1 ms to 1 s. */
static int64_t period_locked(void)
{
    int64_t shortest = 4 * REPORT_EVERY_NS;

    for (AioContext *ctx = w.first; ctx; ctx = ctx->observer.next_watched) {
        int64_t limit = ld_relaxed(&ctx->observer.stall_limit_ns);

        shortest = limit < shortest ? limit : shortest;
    }
    return shortest / 4 > SCALE_MS ? shortest / 4 : SCALE_MS;
}

static void *watch(void *unused)
{
    pthread_mutex_lock(&lock);
    while (w.first) {
        int64_t until = clock_monotonic_ns() + period_locked();
        struct timespec ts = { until / 1000000000, until % 1000000000 };

        pthread_cond_timedwait(&w.changed, &lock, &ts);
        /* After a report the list may be another: the rest comes next time. */
        for (AioContext *ctx = w.first; ctx && !look_at_locked(ctx);) {
            ctx = ctx->observer.next_watched;
        }
    }
    w.running = false;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void start_locked(void)
{
    pthread_attr_t attr;
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    /* Without the thread, what has returned is reported all the same. */
    w.running = pthread_create(&w.thread, &attr, watch, NULL) == 0;
    if (w.running) {
        pthread_setname_np(w.thread, "aioctx-watch");
    }
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void wake_thread_locked(void)
{
    if (w.first && !w.running) {
        start_locked();
    }
    if (w.running) {
        pthread_cond_broadcast(&w.changed);
    }
}

static void unwatch_locked(AioContext *ctx)
{
    struct observer *o = &ctx->observer;

    *o->pprev_watched = o->next_watched;
    if (o->next_watched) {
        o->next_watched->observer.pprev_watched = o->pprev_watched;
    }
    o->pprev_watched = NULL;
}

void stall_watch(AioContext *ctx, int64_t limit_ns)
{
    struct observer *o = &ctx->observer;

    pthread_once(&once, init_once);
    pthread_mutex_lock(&lock);
    if (limit_ns && !o->pprev_watched) {
        o->next_watched = w.first;
        o->pprev_watched = &w.first;
        if (w.first) {
            w.first->observer.pprev_watched = &o->next_watched;
        }
        w.first = ctx;
    } else if (!limit_ns && o->pprev_watched) {
        unwatch_locked(ctx);
    }
    wake_thread_locked();
    pthread_mutex_unlock(&lock);
}

void stall_close(AioContext *ctx)
{
    int cancel = cancel_off(); /* it would end with the lock held */

    pthread_once(&once, init_once);
    pthread_mutex_lock(&lock);
    if (ctx->observer.pprev_watched) {
        unwatch_locked(ctx);
        wake_thread_locked();
    }
    while (w.told == ctx) {
        pthread_cond_wait(&w.changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    cancel_restore(cancel);
}
