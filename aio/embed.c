/* SPDX-License-Identifier: MIT */
/*
 * Embedding: a context whose waits are those of a foreign loop, the host.
 *
 *   prepare: submit, collect -> announce sleep -> look at every source of work -> set the timerfd
 *   host:    waits for one fd
 *   dispatch: take the announcement back -> one iteration that does not wait
 *
 * The fd is an epoll set, which holds a timerfd and what the monitor puts into it:
 *
 *   io_uring  an eventfd that is registered with the ring, and the wake eventfd, edge-triggered; a
 *             second set, see below
 *   epoll     its own set
 *   ppoll     a poll set (poll_set.c) with the fds of its array, the wake eventfd among them
 *
 * The host may know the fd by an epoll set of its own, where a file that was put in its place would
 * be missing: so the fd is always the outer set, and the sets inside may be made anew.
 *
 * prepare beside notify and completions.  The announcement is that of aio_int.h, and holds until
 * dispatch, or a blocking aio_poll(), takes it back; a second prepare makes it anew.
 *
 *   1. The monitor submits, reaps, and takes the edges that lie in the set.
 *   2. It looks whether something has completed.         yes: true
 *   3. CAS of the wake word: has the count changed?      yes: true
 *   4. Look at every source of work.                     some: true
 *   5. Set the timerfd, when it is not set for the deadline already.
 *
 * Nothing is lost:
 *  - A notify before 3 makes the CAS fail.  One after it finds ASLEEP and writes the eventfd, after
 *    the edges were taken; or finds SENT, which means that another one has, for this announcement:
 *    SENT is set only where the number of the sleep is still the same, and until the count is seen
 *    no CAS gives it another.  What the look at 4 missed was published after it, and is followed by
 *    such a notify.
 *  - A completion whose edge was taken at 1 is seen at 2: the kernel queues it, and sets the ring's
 *    flag, before it signals.  One that comes later leaves its edge.  The kernel does not signal
 *    when others are queued already; those are seen at 2.
 *  - A level stays readable until it is dealt with.
 *  - The deadline is absolute, so that it does not matter when the host gets round to waiting.
 *
 * Nothing is left readable for nothing: what an iteration or a submission reaps has signalled too,
 * and those edges, the wake eventfd's too, are taken at 1 of the next prepare.  Setting the timerfd
 * takes its expiry back, and an expiry whose deadline has not moved is work.
 *
 * Eventfds on the ring.  A completion that a write to an eventfd brings about, as of a poll request
 * on it, is not signalled to a registered eventfd: the kernel does not let eventfds nest, puts the
 * signal off by a grace period, and some versions (6.18 is one) do so only once and drop all later
 * ones.  So the fds that may be eventfds, or sets that hold some, are watched beside the ring,
 * level-triggered, in a set of their own: they wake the host, and the ring says what has
 * happened.  For the same reason no request on the wake eventfd is on the ring while the host
 * waits, other than one that a blocking aio_poll() has left.  A file that was closed without the
 * removal of its handlers cannot be taken out of the set: then that is made anew.  With
 * SQPOLL there is no second set: the kernel's thread completes such requests, and signals, a while
 * after the write, and until then the set would have the host spin.
 *
 * Everything here belongs to the home thread.
 *
 * Source: io_uring_register_eventfd(3), epoll(7), timerfd_create(2); io_uring/eventfd.c in the
 * kernel for what is not signalled.
 */
#include "aio/embed_int.h"

#include "aio/aio_int.h"
#include "aio/home_int.h"
#include "aio/wake_int.h"
#include "rcu/rcu_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

struct embed {
    int set;            /* the host's fd */
    int timer;          /* timerfd */
    int64_t timer_ns;   /* what it is set for; WAIT_FOREVER: it is not */
    int64_t idle_until; /* when idle bottom halves are to run; 0: not known of any */
    uint64_t done_then; /* done_now() when the edges were taken last */
    bool waits;         /* prepare has let the host wait, and no dispatch has come */
    int eventfds;       /* io_uring: the second set; -1: none, as no fd needs it */
    bool incomplete;    /* the second set lacks an fd, or has one too many */
};

/* ---- The set --------------------------------------------------------------------------------- */

int embed_add(AioContext *ctx, int fd, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.fd = fd };

    count_own(&ctx->stats->syscalls, 1);
    return epoll_ctl(ctx->embed->set, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

/* Grows with all that may signal without leaving work behind. */
static uint64_t done_now(const AioContext *ctx)
{
    return ctx->stats->iterations + ctx->stats->syscalls;
}

bool embed_take_edges(AioContext *ctx)
{
    struct embed *e = ctx->embed;
    struct epoll_event events[4]; /* there are no more in the set */
    bool wake = false;
    int n;

    if (e->done_then == done_now(ctx)) {
        return false;
    }
    count_own(&ctx->stats->syscalls, 1);
    n = epoll_wait(e->set, events, 4, 0);
    for (int i = 0; i < n; i++) {
        wake |= events[i].data.fd == ctx->wake_fd;
    }
    e->done_then = n < 0 ? 0 : done_now(ctx);
    return wake;
}

static void close_all(struct embed *e)
{
    if (e->eventfds >= 0) {
        close(e->eventfds);
    }
    close(e->timer);
    close(e->set);
    free(e);
}

void embed_close(AioContext *ctx)
{
    if (ctx->embed) {
        close_all(ctx->embed);
        ctx->embed = NULL;
    }
}

/* What a later call needs: a filter of system calls may allow the making and deny the use. */
static int try_timer(int timer)
{
    const struct itimerspec off = { 0 };

    return timerfd_settime(timer, TFD_TIMER_ABSTIME, &off, NULL) < 0 ? -errno : 0;
}

static int make_embed(AioContext *ctx)
{
    struct embed *e = calloc(1, sizeof(*e));
    int ret;

    if (!e) {
        return -ENOMEM;
    }
    e->timer_ns = WAIT_FOREVER;
    e->eventfds = -1;
    e->incomplete = true; /* of what is watched already */
    e->set = epoll_create1(EPOLL_CLOEXEC);
    if (e->set < 0) {
        ret = -errno;
        goto free_embed;
    }
    e->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (e->timer < 0) {
        ret = -errno;
        goto close_set;
    }
    ctx->embed = e;
    ret = try_timer(e->timer);
    if (ret == 0) {
        ret = embed_add(ctx, e->timer, EPOLLIN);
    }
    if (ret == 0) {
        ret = ctx->mon->embed(ctx);
    }
    if (ret < 0) {
        embed_close(ctx);
    }
    return ret;

close_set:
    close(e->set);
free_embed:
    free(e);
    return ret;
}

int aio_context_get_fd(AioContext *ctx)
{
    int ret = 0;

    context_enter_home(ctx, "aio_context_get_fd");
    if (!ctx->embed) {
        ret = make_embed(ctx);
    }
    return ret < 0 ? ret : ctx->embed->set;
}

/* ---- Eventfds beside the ring ---------------------------------------------------------------- */

/* Whether a write to an eventfd may be what makes @fd ready: anonymous files, and what is not
 * known to be another. */
static bool may_be_eventfd(int fd)
{
    struct stat st;

    return fstat(fd, &st) < 0 ||
           !(S_ISSOCK(st.st_mode) || S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode));
}

static int make_eventfds(AioContext *ctx)
{
    struct embed *e = ctx->embed;
    int ret;

    e->eventfds = epoll_create1(EPOLL_CLOEXEC);
    if (e->eventfds < 0) {
        return -errno;
    }
    ret = embed_add(ctx, e->eventfds, EPOLLIN);
    if (ret < 0) {
        close(e->eventfds);
        e->eventfds = -1;
    }
    return ret;
}

static int watch_eventfd(AioContext *ctx, AioHandler *h)
{
    struct embed *e = ctx->embed;
    struct epoll_event ev = { .events = h->events, .data.fd = h->fd };
    int ret;

    if (h->events == 0 || !may_be_eventfd(h->fd)) {
        return 0;
    }
    if (e->eventfds < 0) {
        ret = make_eventfds(ctx);
        if (ret < 0) {
            return ret;
        }
    }
    count_own(&ctx->stats->syscalls, 1);
    if (epoll_ctl(e->eventfds, EPOLL_CTL_MOD, h->fd, &ev) == 0 ||
        (errno == ENOENT && epoll_ctl(e->eventfds, EPOLL_CTL_ADD, h->fd, &ev) == 0)) {
        h->beside_ring = true;
        return 0;
    }
    /* A file that is always ready, or closed: the ring says so at once. */
    return errno == EPERM || errno == EBADF ? 0 : -errno;
}

/* Makes the second set anew, with every fd that belongs there. */
static int renew_eventfds(AioContext *ctx)
{
    struct embed *e = ctx->embed;
    int ret = 0;

    if (e->eventfds >= 0) {
        close(e->eventfds);
        e->eventfds = -1;
    }
    for (int fd = 0; fd < ctx->handlers_size && ret == 0; fd++) {
        if (ctx->handlers[fd]) {
            ctx->handlers[fd]->beside_ring = false;
            ret = watch_eventfd(ctx, ctx->handlers[fd]);
        }
    }
    return ret;
}

void embed_watch(AioContext *ctx, AioHandler *h)
{
    if (ctx->embed && watch_eventfd(ctx, h) < 0) {
        ctx->embed->incomplete = true;
    }
}

void embed_unwatch(AioContext *ctx, AioHandler *h)
{
    struct embed *e = ctx->embed;

    if (!h->beside_ring) {
        return;
    }
    h->beside_ring = false;
    count_own(&ctx->stats->syscalls, 1);
    if (epoll_ctl(e->eventfds, EPOLL_CTL_DEL, h->fd, &(struct epoll_event){ 0 }) < 0) {
        e->incomplete = true; /* it was closed before, and may be in the set for ever */
    }
}

int64_t embed_watch_rest(AioContext *ctx)
{
    struct embed *e = ctx->embed;

    if (likely(!e->incomplete)) {
        return WAIT_FOREVER;
    }
    e->incomplete = renew_eventfds(ctx) < 0;
    return e->incomplete ? clock_monotonic_ns() + EMBED_RETRY_NS : WAIT_FOREVER;
}

/* ---- Before the wait ------------------------------------------------------------------------- */

static struct embed *enter(AioContext *ctx, const char *call)
{
    context_enter_home(ctx, call);
    if (!ctx->embed) {
        die_misuse(call, "aio_context_get_fd() has to come before");
    }
    return ctx->embed;
}

static int64_t min_ns(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* When idle bottom halves are to run.  It does not move on with each prepare, else a busy host
 * would put them off for ever. */
static int64_t idle_deadline(struct embed *e, int64_t timeout_ns)
{
    if (timeout_ns < 0) {
        e->idle_until = 0;
        return WAIT_FOREVER;
    }
    if (!e->idle_until) {
        e->idle_until = clock_monotonic_ns() + timeout_ns;
    }
    return e->idle_until;
}

/* Looks at every source of work.  Returns a deadline, WAIT_NOT when there is some. */
static int64_t look(AioContext *ctx, struct embed *e, int64_t until)
{
    int64_t bh_wait = handlers_have_requests(ctx) ? 0 : bh_timeout(ctx);

    if (bh_wait == 0) {
        return WAIT_NOT;
    }
    until = min_ns(until, idle_deadline(e, bh_wait));
    until = min_ns(until, timerlistgroup_deadline_monotonic_ns(&ctx->tlg));
    return until == WAIT_FOREVER || until > clock_monotonic_ns() ? until : WAIT_NOT;
}

static void set_timer(AioContext *ctx, struct embed *e, int64_t deadline_ns)
{
    struct itimerspec its = { 0 };

    if (deadline_ns == e->timer_ns) {
        return;
    }
    if (deadline_ns != WAIT_FOREVER) {
        its.it_value.tv_sec = (time_t)(deadline_ns / 1000000000);
        its.it_value.tv_nsec = (long)(deadline_ns % 1000000000);
    }
    count_own(&ctx->stats->syscalls, 1);
    e->done_then++; /* it leaves no edge */
    if (timerfd_settime(e->timer, TFD_TIMER_ABSTIME, &its, NULL) < 0) {
        die_misuse("aio_context_prepare",
                   "timerfd_settime: error %d; was the timerfd closed, or the call denied?", errno);
    }
    e->timer_ns = deadline_ns;
}

bool aio_context_prepare(AioContext *ctx)
{
    struct embed *e = enter(ctx, "aio_context_prepare");
    int64_t until;

    e->waits = false;
    if (ctx->done || handlers_have_requests(ctx) || bh_timeout(ctx) == 0) {
        return true; /* without an announcement, so that notifies stay cheap */
    }
    if (unlikely(ctx->poll.parked)) {
        poll_hand_over(ctx);
    }
    until = ctx->mon->prepare(ctx);
    if (until == WAIT_NOT || ctx->done || !wake_begin_sleep(ctx)) {
        return true;
    }
    until = look(ctx, e, until);
    if (until == WAIT_NOT) {
        return true;
    }
    set_timer(ctx, e, until);
    e->waits = true;
    return false;
}

/* ---- After the wait -------------------------------------------------------------------------- */

void embed_end_wait(AioContext *ctx)
{
    struct embed *e = ctx->embed;
    bool notified = wake_end_sleep(ctx);

    e->idle_until = 0;
    if (unlikely(ctx->poll.parked)) {
        poll_hand_over(ctx); /* prepare may always find work, and never come to it */
    }
    ctx->mon->wait(ctx, WAIT_NOT);
    if (e->waits) {
        e->waits = false;
        wait_count_wakeup(ctx, 0, notified);
    }
}

bool aio_context_dispatch(AioContext *ctx)
{
    enter(ctx, "aio_context_dispatch");
    rcu_check_may_wait("aio_context_dispatch");
    home_close_zombies();
    return context_iterate(ctx, WAIT_WAS_HOSTS);
}
