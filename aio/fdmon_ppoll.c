/* SPDX-License-Identifier: MIT */
/*
 * The ppoll(2) monitor: works everywhere, costs a scan of all fds at each wait, and has no
 * operations.  The wake eventfd is the last entry of the array, which is rebuilt after a change:
 * from the first fd on that is ready, the kernel puts nobody on a wait queue any more, so that what
 * follows costs a fraction, and the wake eventfd seldom is that one.
 *
 * A host's fd (embed.c) holds the array as a poll set, which is brought up to date when the array
 * is rebuilt.  It only wakes the host; what is ready, poll(2) tells.  A file that was closed while
 * it had handlers may be in the set for ever: a set that wakes the host for nothing is made anew.
 */
#include "aio/aio_int.h"
#include "aio/embed_int.h"
#include "aio/poll_set_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

struct ppoll_mon {
    AioHandler *watched;
    unsigned count;
    bool changed;        /* since the arrays were built */
    unsigned size, used; /* of the arrays */
    struct pollfd *fds;  /* the last one in use is the wake eventfd */
    AioHandler **owner;  /* [i] of fds[i] */

    /* Of a host's fd. */
    struct poll_set set;
    bool set_is_old;          /* the array was rebuilt, or something is missing in the set */
    bool embedded;            /* the set is in that of the host's fd */
    uint64_t seen_iterations; /* stats.iterations, and stats.fd_events, at the last prepare */
    uint64_t seen_fd_events;
};

static void ppoll_close(AioContext *ctx)
{
    struct ppoll_mon *m = ctx->mon_state;

    poll_set_close(&m->set);
    free(m->fds);
    free(m->owner);
    free(m);
    ctx->mon_state = NULL;
}

static int resize(struct ppoll_mon *m, unsigned size)
{
    struct pollfd *fds = realloc(m->fds, size * sizeof(*fds));
    AioHandler **owner;

    if (!fds) {
        return -ENOMEM;
    }
    m->fds = fds;
    owner = realloc(m->owner, size * sizeof(*owner));
    if (!owner) {
        return -ENOMEM;
    }
    m->owner = owner;
    m->size = size;
    return 0;
}

static int ppoll_init(AioContext *ctx, const AioContextOptions *opts)
{
    struct ppoll_mon *m = calloc(1, sizeof(*m));

    if (!m) {
        return -ENOMEM;
    }
    if (resize(m, 16) < 0) {
        free(m->fds);
        free(m);
        return -ENOMEM;
    }
    m->set = (struct poll_set)POLL_SET_INIT;
    m->fds[0] = (struct pollfd){ .fd = ctx->wake_fd, .events = POLLIN };
    m->used = 1;
    ctx->mon_state = m;
    return 0;
}

static void ppoll_attach(AioContext *ctx)
{
}

static void ppoll_watch(AioContext *ctx, AioHandler *h)
{
    struct ppoll_mon *m = ctx->mon_state;

    m->changed = true;
    if (h->pprev) {
        return;
    }
    handler_link(&m->watched, h);
    m->count++;
}

static void ppoll_unwatch(AioContext *ctx, AioHandler *h)
{
    struct ppoll_mon *m = ctx->mon_state;

    if (!h->pprev) {
        return;
    }
    handler_unlink(h);
    m->count--;
    m->changed = true;
}

static void ppoll_rewatch(AioContext *ctx, AioHandler *h)
{
}

static void build(AioContext *ctx, struct ppoll_mon *m)
{
    unsigned n = 0;

    /* Out of memory: wait with those that fit, and try again at the next wait. */
    m->changed = m->count + 1 > m->size && resize(m, 2 * m->count) < 0;
    for (AioHandler *h = m->watched; h && n + 1 < m->size; h = h->next, n++) {
        m->fds[n] = (struct pollfd){ .fd = h->fd, .events = (short)h->events };
        m->owner[n] = h;
    }
    m->fds[n] = (struct pollfd){ .fd = ctx->wake_fd, .events = POLLIN };
    m->used = n + 1;
    m->set_is_old = true;
}

static int64_t timeout_of(int64_t deadline_ns)
{
    int64_t now;

    if (deadline_ns == WAIT_NOT || deadline_ns == WAIT_FOREVER) {
        return deadline_ns == WAIT_NOT ? 0 : -1;
    }
    now = clock_monotonic_ns();
    return deadline_ns > now ? deadline_ns - now : 0;
}

/* What has no timeout in nanoseconds is poll(2)'s: it copies and checks less. */
static int look_or_sleep(const struct ppoll_mon *m, int64_t timeout_ns)
{
    return timeout_ns > 0 ? qemu_poll_ns(m->fds, m->used, timeout_ns)
                          : poll(m->fds, m->used, (int)timeout_ns);
}

static int wait_for(AioContext *ctx, struct ppoll_mon *m, int64_t deadline_ns)
{
    unsigned wake = m->used - 1;
    uint64_t value;
    int ready;

    ready = look_or_sleep(m, timeout_of(deadline_ns));
    count_own(&ctx->stats->syscalls, 1);
    if (ready < 0) {
        return -errno;
    }
    if (m->fds[wake].revents && ready-- > 0) {
        count_own(&ctx->stats->syscalls, 1);
        if (read(ctx->wake_fd, &value, sizeof(value)) < 0) {
            return -errno;
        }
    }
    for (unsigned i = 0; i < wake && ready > 0; i++) {
        AioHandler *h = m->owner[i];

        if (m->fds[i].revents) {
            ready--;
        }
        /* A handler whose event waits to be dispatched, in an outer iteration, is not queued twice.
         * */
        if (m->fds[i].revents && !h->queued) {
            h->ready.res = m->fds[i].revents;
            h->queued = true;
            context_complete(ctx, &h->ready);
        }
    }
    return 0;
}

static int ppoll_wait(AioContext *ctx, int64_t deadline_ns)
{
    struct ppoll_mon *m = ctx->mon_state;

    if (m->changed) {
        build(ctx, m);
    }
    if (deadline_ns == WAIT_NOT && m->used == 1 && !ctx->embed) {
        return 0; /* nobody to ask but the wake eventfd, and we are awake */
    }
    return wait_for(ctx, m, deadline_ns);
}

/* ---- Embedding ------------------------------------------------------------------------------- */

static int update_set(AioContext *ctx, struct ppoll_mon *m)
{
    int ret = poll_set_update(&m->set, m->fds, m->used);

    if (!m->embedded && m->set.epfd >= 0) {
        int err = embed_add(ctx, m->set.epfd, EPOLLIN);

        m->embedded = err == 0;
        ret = err < 0 ? err : ret;
    }
    m->set_is_old = ret < 0 || m->changed;
    return ret;
}

static void drop_set(struct ppoll_mon *m)
{
    poll_set_close(&m->set);
    m->embedded = false;
    m->set_is_old = true;
}

static int ppoll_embed(AioContext *ctx)
{
    struct ppoll_mon *m = ctx->mon_state;
    int ret;

    build(ctx, m);
    ret = update_set(ctx, m);
    if (ret == -EBADF) {
        return 0; /* poll(2) tells whose handler it was */
    }
    if (ret < 0) {
        drop_set(m);
    }
    return ret;
}

/* Whether the host was woken for nothing, and is going to be again. */
static bool set_is_stale(AioContext *ctx, struct ppoll_mon *m)
{
    bool for_nothing =
        m->seen_iterations != ctx->stats->iterations && m->seen_fd_events == ctx->stats->fd_events;

    m->seen_iterations = ctx->stats->iterations;
    m->seen_fd_events = ctx->stats->fd_events;
    return for_nothing && poll_set_is_ready(&m->set);
}

static int64_t ppoll_prepare(AioContext *ctx)
{
    struct ppoll_mon *m = ctx->mon_state;
    int ret = 0;

    if (m->changed) {
        build(ctx, m);
    }
    wait_for(ctx, m, WAIT_NOT); /* regular files are ready at any time, and not in the set */
    if (ctx->done) {
        return WAIT_NOT;
    }
    if (set_is_stale(ctx, m)) {
        drop_set(m);
    }
    if (m->set_is_old) {
        ret = update_set(ctx, m);
    }
    return ret == -EBADF   ? WAIT_NOT
           : m->set_is_old ? clock_monotonic_ns() + EMBED_RETRY_NS
                           : WAIT_FOREVER;
}

const FDMonOps fdmon_ppoll = {
    .name = "ppoll",
    .init = ppoll_init,
    .attach = ppoll_attach,
    .wait = ppoll_wait,
    .watch = ppoll_watch,
    .unwatch = ppoll_unwatch,
    .rewatch = ppoll_rewatch,
    .embed = ppoll_embed,
    .prepare = ppoll_prepare,
    .close = ppoll_close,
};
