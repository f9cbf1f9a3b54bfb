/* SPDX-License-Identifier: MIT */
/*
 * The choice of a context's monitor, and what is to be told about it.
 *
 * Without a choice by option or environment it is the best that can be had; why the better ones
 * cannot is kept with the context.  ctx->features and ctx->dropped are written by the thread that
 * makes the context, then by home; any thread reads them, each by itself.
 */
#include "aio/monitor_int.h"
#include "rcu/rcu_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RING_ENTRIES = 128, RING_ENTRIES_MAX = 32768 };

static const FDMonOps *const monitors[] = { &fdmon_io_uring, &fdmon_epoll, &fdmon_ppoll };
enum { MONITORS = sizeof(monitors) / sizeof(monitors[0]) };

static const char *const feature_names[] = {
    [FEATURE_CQSIZE] = "cqsize",
    [FEATURE_SUBMIT_ALL] = "submit-all",
    [FEATURE_R_DISABLED] = "r-disabled",
    [FEATURE_SINGLE_ISSUER] = "single-issuer",
    [FEATURE_DEFER_TASKRUN] = "defer-taskrun",
    [FEATURE_COOP_TASKRUN] = "coop-taskrun",
    [FEATURE_SQPOLL] = "sqpoll",
    [FEATURE_NO_SQARRAY] = "no-sqarray",
    [FEATURE_ABS_TIMER] = "abs-timer",
    [FEATURE_NO_IOWAIT] = "no-iowait",
    [FEATURE_REGISTERED_RING] = "registered-ring",
    [FEATURE_REGISTERED_FILES] = "registered-files",
    [FEATURE_REGISTERED_BUFFERS] = "registered-buffers",
    [FEATURE_EPOLL_PWAIT2] = "epoll-pwait2",
};
_Static_assert(sizeof(feature_names) / sizeof(feature_names[0]) == FEATURES, "each has a name");
_Static_assert(FEATURES <= 32, "they fit a word");

/* ---- The choice ------------------------------------------------------------------------------ */

static const FDMonOps *find_monitor(const char *name, const char *where)
{
    for (int i = 0; i < MONITORS; i++) {
        if (strcmp(monitors[i]->name, name) == 0) {
            return monitors[i];
        }
    }
    fprintf(stderr, "aioctx: %s: there is no monitor '%s'; use io_uring, epoll or ppoll\n", where,
            name);
    return NULL;
}

/* Missing, forbidden, or no room for it: no memory, too many fds, too many watched ones. */
static bool may_fall_back(int err)
{
    return err == -ENOSYS || err == -EPERM || err == -EACCES || err == -ENOMEM || err == -EMFILE ||
           err == -ENFILE || err == -ENOSPC;
}

static void say_fallback(const char *what_failed, const char *instead)
{
    static bool said;

    if (!xchg_seq(&said, true)) {
        fprintf(stderr, "aioctx: %s; using %s, with file I/O on threads\n", what_failed, instead);
    }
}

bool monitor_try_again(int err, int *tries, unsigned long since)
{
    return (err == -EMFILE || err == -ENFILE || err == -ENOMEM) && ++*tries < 10 &&
           rcu_reclaim(since);
}

static int init_one(AioContext *ctx, const AioContextOptions *opts)
{
    unsigned long since;
    int err, tries = 0;

    do {
        since = rcu_reclaimed();
        ctx->features = ctx->dropped = 0;
        err = ctx->mon->init(ctx, opts);
    } while (err < 0 && monitor_try_again(err, &tries, since));
    return err;
}

/* The first of the monitors that can be had, from the best one on. */
static int init_any_monitor(AioContext *ctx, const AioContextOptions *opts)
{
    char failed[256] = "";
    int err = -EINVAL;

    for (int i = 0; i < MONITORS; i++) {
        size_t len = strlen(failed);

        ctx->mon = monitors[i];
        err = init_one(ctx, opts);
        if (!may_fall_back(err)) {
            break;
        }
        snprintf(failed + len, sizeof(failed) - len, "%sno %s%s (%s)", i ? ", " : "",
                 ctx->mon->name, i ? "" : " here", strerror(-err));
    }
    if (err == 0 && *failed) {
        ctx->fell_back = strdup(failed); /* without memory for it nobody is told why */
        say_fallback(failed, ctx->mon->name);
    }
    return err;
}

int monitor_init(AioContext *ctx, const AioContextOptions *from)
{
    AioContextOptions opts = *from;
    const char *env = getenv("AIOCTX_FDMON");
    const char *name = opts.monitor ? opts.monitor : env && *env ? env : NULL;

    opts.ring_entries = opts.ring_entries ? opts.ring_entries : RING_ENTRIES;
    if (opts.ring_entries > RING_ENTRIES_MAX) {
        fprintf(stderr, "aioctx: ring_entries is %u; it is 1 to %d\n", opts.ring_entries,
                RING_ENTRIES_MAX);
        return -EINVAL;
    }
    if (!name) {
        return init_any_monitor(ctx, &opts);
    }
    ctx->mon = find_monitor(name, opts.monitor ? "AioContextOptions.monitor" : "AIOCTX_FDMON");
    return ctx->mon ? init_one(ctx, &opts) : -EINVAL;
}

const char *aio_context_get_monitor(AioContext *ctx)
{
    return ctx->mon->name;
}

/* ---- What it uses ---------------------------------------------------------------------------- */

void monitor_set_features(AioContext *ctx, uint32_t used, uint32_t dropped)
{
    used |= ctx->features;
    st_relaxed(&ctx->features, used);
    st_relaxed(&ctx->dropped, (ctx->dropped | dropped) & ~used);
}

void monitor_set_feature(AioContext *ctx, AioFeature feature, bool used)
{
    monitor_set_features(ctx, used ? FEATURE_BIT(feature) : 0, used ? 0 : FEATURE_BIT(feature));
}

/* A string of a caller's buffer, which goes on being measured when that is full. */
struct text {
    char *buf;
    size_t size;
    int len;
};

static void __attribute__((format(printf, 2, 3))) add(struct text *t, const char *fmt, ...)
{
    size_t at = (size_t)t->len < t->size ? (size_t)t->len : t->size;
    va_list args;

    va_start(args, fmt);
    t->len += vsnprintf(t->size > at ? t->buf + at : NULL, t->size - at, fmt, args);
    va_end(args);
}

static void add_features(struct text *t, const char *before, uint32_t features)
{
    for (int i = 0; i < FEATURES; i++) {
        if (features & FEATURE_BIT(i)) {
            add(t, "%s%s", before, feature_names[i]);
            before = " ";
        }
    }
}

int aio_context_describe(AioContext *ctx, char *buf, size_t size)
{
    struct text t = { buf, size, 0 };

    if (size > 0) {
        buf[0] = '\0';
    }
    add(&t, "%s", ctx->mon->name);
    add_features(&t, ": ", ld_relaxed(&ctx->features));
    add_features(&t, "; without ", ld_relaxed(&ctx->dropped));
    if (ctx->fell_back) {
        add(&t, "; %s", ctx->fell_back);
    }
    return t.len;
}
