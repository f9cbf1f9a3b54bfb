/* SPDX-License-Identifier: MIT */
/*
 * The epoll monitor: where there is no io_uring.  Costs by the events, not by the fds, and has no
 * operations.
 *
 * Handlers are level-triggered.  The wake eventfd and the timerfd are edge-triggered and never
 * read: each write to the one and each expiry of the other is reported once.
 *
 * A deadline is kept by the timerfd, which is set only when it is not set for that time already: a
 * loop that is busy with fds while its soonest timer stays the same sets nothing.  Setting it takes
 * an expiry back that was not reported yet, so that none ends a later wait.  A short wait of a
 * thread without timer slack leaves the timerfd be, when that is set for later or not at all, and
 * is a timeout of epoll_pwait2(), which costs a system call less.  A long one is not: the kernel
 * makes it late by up to a thousandth of its length, or a 200th for a thread with a positive nice
 * value.  Figures are in docs/deadlines.md.
 *
 * epoll knows a file by its number and the open file behind it.  Where the owner closes the number
 * without removing the handler, while a duplicate keeps the file open, the file goes on being
 * reported and cannot be taken out any more.  So an event carries no pointer but the number and a
 * key that is new with each addition, every so many events the handler's number is checked, and a
 * report that belongs to no handler has the set made anew.
 *
 * Handlers that epoll does not hold yet, or does not take, are on a list of their own and tried at
 * each wait.  Regular files and directories (EPERM) stay there: they are always ready, as with
 * poll(2).  Others are refused for a time: there is no memory (ENOMEM) or no room among the user's
 * watches (ENOSPC), or they are epoll sets that are nested too deep (ELOOP) or reach a file by too
 * many ways (EINVAL).  They are looked at with poll(2) instead, RETRY_NS later at the latest, for
 * nothing ends a sleep for them.
 *
 * After a ring was closed on the thread, epoll_wait() may end with EINTR once without a signal:
 * aio_poll() then returns without progress, as after a signal.
 *
 * Source: epoll(7), epoll_ctl(2), timerfd_create(2); select_estimate_accuracy() in the kernel's
 * fs/select.c for the lateness of timeouts.
 */
#include "aio/aio_int.h"
#include "aio/embed_int.h"
#include "aio/monitor_int.h"
#include "timers/timers_ext_int.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/time_types.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* What a wait collects at most; the rest comes with the next one, in turns. */
enum { EVENTS = DISPATCH_BATCH };

/* Events of a handler from one check of its fd to the next. */
enum { CHECK_EVERY = 64 };

/* Waits of up to this are epoll_pwait2's, where the thread's timer slack is up to a thousandth. */
enum { SHORT_NS = 1000000, SHORT_SLACK_NS = SHORT_NS / 1000 };

/* How soon a handler is tried and looked at again that epoll refuses for a time. */
#define RETRY_NS INT64_C(10000000)

/* Events of our own; a handler's has an fd in its lower half. */
#define WAKE_DATA UINT64_MAX
#define TIMER_DATA (UINT64_MAX - 1)

static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR &&
                  EPOLLHUP == POLLHUP,
              "events of epoll are those of poll");

struct epoll_mon {
    int epoll, timer;
    int64_t timer_ns;    /* what the timerfd is set for; WAIT_FOREVER: it is not */
    bool short_waits;    /* epoll_pwait2() keeps short ones */
    bool stale;          /* a file was reported that is no handler's */
    bool embedded;       /* the set is in that of a host's fd */
    uint32_t last_key;   /* given to a handler */
    unsigned watched;    /* handlers in the set: those that are armed */
    AioHandler *outside; /* watched handlers that are not */
    struct epoll_event events[EVENTS];
};

/* ---- Setting up ------------------------------------------------------------------------------ */

static int add_own(const AioContext *ctx, const struct epoll_mon *m, int epoll)
{
    struct epoll_event wake = { .events = EPOLLIN | EPOLLET, .data.u64 = WAKE_DATA };
    struct epoll_event timer = { .events = EPOLLIN | EPOLLET, .data.u64 = TIMER_DATA };

    return epoll_ctl(epoll, EPOLL_CTL_ADD, ctx->wake_fd, &wake) < 0 ||
                   epoll_ctl(epoll, EPOLL_CTL_ADD, m->timer, &timer) < 0
               ? -errno
               : 0;
}

/* What the waits are going to need: a filter of system calls may allow the making of both and deny
 * their use. */
static int try_own(struct epoll_mon *m)
{
    const struct itimerspec off = { 0 };

    if (timerfd_settime(m->timer, TFD_TIMER_ABSTIME, &off, NULL) < 0) {
        return -errno;
    }
    return epoll_wait(m->epoll, m->events, EVENTS, 0) < 0 && errno != EINTR ? -errno : 0;
}

static int epoll_init(AioContext *ctx, const AioContextOptions *opts)
{
    struct epoll_mon *m = calloc(1, sizeof(*m));
    int ret;

    if (!m) {
        return -ENOMEM;
    }
    m->timer_ns = WAIT_FOREVER;
    m->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (m->epoll < 0) {
        ret = -errno;
        goto free_mon;
    }
    m->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (m->timer < 0) {
        ret = -errno;
        goto close_epoll;
    }
    ret = add_own(ctx, m, m->epoll);
    if (ret < 0) {
        goto close_timer;
    }
    ret = try_own(m);
    if (ret < 0) {
        goto close_timer;
    }
    ctx->mon_state = m;
    return 0;

close_timer:
    close(m->timer);
close_epoll:
    close(m->epoll);
free_mon:
    free(m);
    return ret;
}

static void epoll_close(AioContext *ctx)
{
    struct epoll_mon *m = ctx->mon_state;

    close(m->epoll);
    close(m->timer);
    free(m);
    ctx->mon_state = NULL;
}

static int wait_short(struct epoll_mon *m, int64_t timeout_ns)
{
#ifdef SYS_epoll_pwait2
    struct __kernel_timespec ts = { .tv_nsec = timeout_ns };

    return (int)syscall(SYS_epoll_pwait2, m->epoll, m->events, EVENTS, &ts, NULL, (size_t)0);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static void epoll_attach(AioContext *ctx)
{
    struct epoll_mon *m = ctx->mon_state;
    int slack = prctl(PR_GET_TIMERSLACK);

    /* What it may report here are edges of our own, which mean nothing yet. */
    m->short_waits = slack >= 0 && slack <= SHORT_SLACK_NS && wait_short(m, 0) >= 0;
    monitor_set_feature(ctx, FEATURE_EPOLL_PWAIT2, m->short_waits);
}

/* ---- Fds ------------------------------------------------------------------------------------- */

static uint64_t data_of(const AioHandler *h)
{
    return (uint64_t)h->epoll_key << 32 | (uint32_t)h->fd;
}

static int control(AioContext *ctx, int op, const AioHandler *h)
{
    const struct epoll_mon *m = ctx->mon_state;
    struct epoll_event ev = { .events = h->events, .data.u64 = data_of(h) };

    count_own(&ctx->stats->syscalls, 1);
    return epoll_ctl(m->epoll, op, h->fd, &ev) < 0 ? -errno : 0;
}

static void move_outside(struct epoll_mon *m, AioHandler *h)
{
    if (h->armed) {
        h->armed = false;
        m->watched--;
    }
    if (!h->pprev) {
        handler_link(&m->outside, h);
    }
}

static int move_inside(AioContext *ctx, struct epoll_mon *m, AioHandler *h)
{
    int ret;

    h->epoll_key = ++m->last_key;
    ret = control(ctx, EPOLL_CTL_ADD, h);
    if (ret == -EEXIST) { /* closed without removal, and opened again as the same */
        ret = control(ctx, EPOLL_CTL_MOD, h);
    }
    if (ret == 0) {
        handler_unlink(h);
        h->armed = true;
        m->watched++;
    }
    return ret;
}

static void epoll_watch(AioContext *ctx, AioHandler *h)
{
    if (!h->armed || control(ctx, EPOLL_CTL_MOD, h) < 0) {
        move_outside(ctx->mon_state, h);
    }
}

static void epoll_rewatch(AioContext *ctx, AioHandler *h)
{
}

static void epoll_unwatch(AioContext *ctx, AioHandler *h)
{
    struct epoll_mon *m = ctx->mon_state;

    if (h->pprev) {
        handler_unlink(h);
    }
    if (h->armed) {
        control(ctx, EPOLL_CTL_DEL, h); /* fails when the owner has closed the fd */
        h->armed = false;
        m->watched--;
    }
}

static void complete(AioContext *ctx, AioHandler *h, int32_t res)
{
    h->ready.res = res;
    h->queued = true;
    context_complete(ctx, &h->ready);
}

/* The events that are there now of one that epoll refuses. */
static void look_at(AioContext *ctx, AioHandler *h)
{
    struct pollfd now = { .fd = h->fd, .events = (short)h->events };

    count_own(&ctx->stats->syscalls, 1);
    if (poll(&now, 1, 0) > 0) {
        complete(ctx, h, now.revents);
    }
}

/* Tries those that epoll does not hold.  Returns when to wait no longer. */
static int64_t try_outside(AioContext *ctx, struct epoll_mon *m, int64_t deadline_ns)
{
    AioHandler *h, *next;
    bool refused = false;

    for (h = m->outside; h; h = next) {
        next = h->next;
        if (h->queued) {
            continue;
        }
        int ret = move_inside(ctx, m, h);
        if (ret == -EPERM) {
            complete(ctx, h, (int32_t)h->events);
        } else if (ret == -EBADF) { /* it is closed */
            handler_unlink(h);
            complete(ctx, h, -EBADF);
        } else if (ret < 0) {
            look_at(ctx, h);
            refused = true;
        }
    }
    if (ctx->done) {
        return WAIT_NOT;
    }
    if (refused && deadline_ns != WAIT_NOT) {
        int64_t again = clock_monotonic_ns() + RETRY_NS;
        deadline_ns = deadline_ns < again ? deadline_ns : again;
    }
    return deadline_ns;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

static void set_timer(AioContext *ctx, struct epoll_mon *m, int64_t deadline_ns)
{
    struct itimerspec its = { 0 };

    if (deadline_ns != WAIT_FOREVER) {
        its.it_value.tv_sec = (time_t)(deadline_ns / 1000000000);
        its.it_value.tv_nsec = (long)(deadline_ns % 1000000000);
    }
    count_own(&ctx->stats->syscalls, 1);
    if (timerfd_settime(m->timer, TFD_TIMER_ABSTIME, &its, NULL) < 0) {
        die_misuse("aio_poll",
                   "timerfd_settime: error %d; was the timerfd closed, or the call denied?", errno);
    }
    m->timer_ns = deadline_ns;
}

/* Sees to it that a wait ends at @deadline_ns.  Returns the timeout that it is to have, in ns; -1:
 * none. */
static int64_t set_deadline(AioContext *ctx, struct epoll_mon *m, int64_t deadline_ns)
{
    if (deadline_ns == m->timer_ns) {
        return -1;
    }
    if (m->short_waits && deadline_ns < m->timer_ns) {
        int64_t left = deadline_ns - clock_monotonic_ns();

        if (left <= SHORT_NS) {
            return left > 0 ? left : 0;
        }
    }
    set_timer(ctx, m, deadline_ns);
    return -1;
}

static int wait_for(AioContext *ctx, struct epoll_mon *m, int64_t deadline_ns)
{
    int64_t timeout = deadline_ns == WAIT_NOT ? 0 : set_deadline(ctx, m, deadline_ns);
    int n;

    count_own(&ctx->stats->syscalls, 1);
    n = timeout > 0 ? wait_short(m, timeout)
                    : epoll_wait(m->epoll, m->events, EVENTS, (int)timeout);
    if (n < 0 && errno != EINTR) {
        die_misuse("aio_poll", "epoll_wait: error %d; was the epoll fd closed, or the call denied?",
                   errno);
    }
    return n < 0 ? -errno : n;
}

static AioHandler *find_armed(AioContext *ctx, uint64_t data)
{
    uint32_t fd = (uint32_t)data;
    AioHandler *h = fd < (uint32_t)ctx->handlers_size ? ctx->handlers[fd] : NULL;

    return h && h->armed && data_of(h) == data ? h : NULL;
}

static void take_event(AioContext *ctx, struct epoll_mon *m, const struct epoll_event *ev)
{
    AioHandler *h;

    if (ev->data.u64 == WAKE_DATA) {
        return;
    }
    if (ev->data.u64 == TIMER_DATA) {
        m->timer_ns = WAIT_FOREVER;
        return;
    }
    h = find_armed(ctx, ev->data.u64);
    if (!h) {
        m->stale = true;
        return;
    }
    if (h->queued) { /* an outer iteration has yet to dispatch it */
        return;
    }
    bool lost = ++h->epoll_events % CHECK_EVERY == 0 && control(ctx, EPOLL_CTL_MOD, h) < 0;
    complete(ctx, h, lost ? -EBADF : (int32_t)ev->events);
}

/* Makes the set anew, under the same number, without the files that nobody can take out. */
static void renew(AioContext *ctx, struct epoll_mon *m)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll < 0 || add_own(ctx, m, epoll) < 0 || dup3(epoll, m->epoll, O_CLOEXEC) < 0) {
        if (epoll >= 0) {
            close(epoll);
        }
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL); /* the report comes again */
        return;
    }
    close(epoll);
    m->embedded = false; /* the old one was */
    for (int fd = 0; fd < ctx->handlers_size; fd++) {
        if (ctx->handlers[fd] && ctx->handlers[fd]->armed) {
            move_outside(m, ctx->handlers[fd]);
        }
    }
}

static int epoll_monitor_wait(AioContext *ctx, int64_t deadline_ns)
{
    struct epoll_mon *m = ctx->mon_state;
    int n;

    if (m->outside) {
        deadline_ns = try_outside(ctx, m, deadline_ns);
    }
    if (deadline_ns == WAIT_NOT && !m->watched && !ctx->embed) {
        return 0; /* nobody to ask; a host's fd stays readable until we have */
    }
    n = wait_for(ctx, m, deadline_ns);
    for (int i = 0; i < n; i++) {
        take_event(ctx, m, &m->events[i]);
    }
    if (unlikely(m->stale)) {
        m->stale = false;
        renew(ctx, m);
    }
    return n < 0 ? n : 0;
}

/* ---- Embedding ------------------------------------------------------------------------------- */

static int epoll_embed(AioContext *ctx)
{
    struct epoll_mon *m = ctx->mon_state;
    int ret = embed_add(ctx, m->epoll, EPOLLIN);

    m->embedded = ret == 0;
    return ret;
}

/* The host's deadline is kept by another timerfd: what an aio_poll() has set is not to wake it. */
static int64_t epoll_prepare(AioContext *ctx)
{
    struct epoll_mon *m = ctx->mon_state;
    int64_t until = m->outside ? try_outside(ctx, m, WAIT_FOREVER) : WAIT_FOREVER;

    if (until == WAIT_NOT) {
        return until;
    }
    if (m->timer_ns != WAIT_FOREVER) {
        set_timer(ctx, m, WAIT_FOREVER);
    }
    if (!m->embedded && epoll_embed(ctx) < 0) {
        int64_t again = clock_monotonic_ns() + EMBED_RETRY_NS;
        until = until < again ? until : again;
    }
    return until;
}

const FDMonOps fdmon_epoll = {
    .name = "epoll",
    .init = epoll_init,
    .attach = epoll_attach,
    .wait = epoll_monitor_wait,
    .watch = epoll_watch,
    .unwatch = epoll_unwatch,
    .rewatch = epoll_rewatch,
    .embed = epoll_embed,
    .prepare = epoll_prepare,
    .close = epoll_close,
};
