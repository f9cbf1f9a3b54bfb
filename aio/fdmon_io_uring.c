/* SPDX-License-Identifier: MIT */
/*
 * The io_uring monitor: fds, operations, wake-ups and the deadline in one ring.
 *
 * One io_uring_enter(2) submits what was queued since the last one and waits, with the deadline as
 * an argument of the wait: a point in time where the kernel takes one (6.12), else how long from
 * now, which comes late by what the call itself takes.  When there is nothing to submit and nothing
 * to wait for there is none.
 *
 * An fd is watched by a one-shot poll request, sent again when its event is dispatched: a poll
 * request looks at the fd's state when it arrives, so that handlers are level-triggered.  Not by a
 * lasting one (multishot): that tells of an edge as it was when it came, which the handler may have
 * taken already, so that each would have to be looked at again, twice, which costs what it saves.
 *
 * The wake eventfd is watched by one multishot poll request, which posts a completion for every
 * write(2) and stays: a wake-up needs no read(2) and no new request.  Nobody reads the eventfd, so
 * its count only grows; a request that had to be sent again would find it readable, and end one
 * wait for nothing.  Of what the kernel offers this was the fastest: reading the eventfd, or
 * polling it once, takes a submission for each sleep; so does waiting for a futex; and a message
 * between rings is slower than the write, and may find no memory.
 *
 * A change of a request's events finds it in the kernel, or too late (ENOENT), when its completion
 * is on its way; or just when the kernel has been woken for it (EALREADY), which may come to
 * nothing and leave the old events: then the change is made again.  A removal would be refused in
 * the same way, so it is a cancel.
 *
 * With SQPOLL a thread of the kernel's takes what is queued, and a call is made only to wait, or
 * when that thread sleeps.
 *
 * Every submission's user_data is its CqeHandler; 0 is for requests whose end nobody awaits, and a
 * change of a handler's events has the lowest bit set.
 * Completions are copied out and their slots released at once (reap), and dispatched later.
 *
 * Setting a ring up, and which of the kernel's offers it uses, is in fdmon_io_uring_setup.c; files
 * and buffers that are registered with it are in fdmon_io_uring_register.c.
 *
 * Source: io_uring_enter(2), io_uring_setup(2), io_uring_prep_poll_add(3).
 */
#include "aio/embed_int.h"
#include "aio/fdmon_io_uring_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* Marks the user_data of a change of events. */
#define UPDATE_BIT ((uintptr_t)1)

/* Our own completions are told from users' by their callback. */
static void own_completion(CqeHandler *handler)
{
    die_misuse("fdmon_io_uring", "a completion of the loop's own was dispatched");
}

static int uring_init(AioContext *ctx, const AioContextOptions *opts)
{
    struct uring_mon *m = calloc(1, sizeof(*m));
    int ret;

    if (!m) {
        return -ENOMEM;
    }
    ret = uring_setup(ctx, m, opts);
    if (ret < 0) {
        free(m);
        return ret;
    }
    m->wake.cb = own_completion;
    m->event_fd = -1;
    ctx->mon_state = m;
    return 0;
}

static void uring_attach(AioContext *ctx)
{
    uring_setup_home(ctx, ctx->mon_state);
}

/* ---- Submitting and reaping ------------------------------------------------------------------ */

/* Makes queued entries visible to the kernel; returns how many it has not taken yet, short submits
 * included.  The array is the identity; a ring that liburing 2.6 or later has set up may have none,
 * without being asked. */
static unsigned flush_sq(struct uring_mon *m)
{
    struct io_uring_sq *sq = &m->ring.sq;

    if (sq->sqe_head != sq->sqe_tail) {
        if (sq->array) {
            for (; sq->sqe_head != sq->sqe_tail; sq->sqe_head++) {
                sq->array[sq->sqe_head & *sq->kring_mask] = sq->sqe_head & *sq->kring_mask;
            }
        }
        sq->sqe_head = sq->sqe_tail;
        if (m->sqpoll) {
            st_seq(sq->ktail, sq->sqe_tail); /* pairs with sleep_flag() */
        } else {
            io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
        }
    }
    return sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
}

/* What wakes the kernel's submitter, when it sleeps: it sets the flag, then looks at the tail. */
static unsigned sleep_flag(const struct uring_mon *m)
{
    return m->sqpoll && (ld_seq(m->ring.sq.kflags) & IORING_SQ_NEED_WAKEUP) ? IORING_ENTER_SQ_WAKEUP
                                                                            : 0;
}

/* A poll request has completed. */
static void take_event(AioContext *ctx, AioHandler *h, const struct io_uring_cqe *cqe)
{
    h->ready.res = cqe->res;
    h->armed = false;
    h->queued = true;
    if (h->pprev) {
        handler_unlink(h); /* its events cannot be changed any more */
    }
    context_complete(ctx, &h->ready);
}

/* The events of @h were changed, or not. */
static void take_update(struct uring_mon *m, AioHandler *h, int res)
{
    h->updates--;
    if (res == -EALREADY && h->armed && !h->pprev) {
        handler_link(&m->to_arm, h);
    }
}

/* Takes one completion out of the ring. */
static void take_cqe(AioContext *ctx, struct uring_mon *m, const struct io_uring_cqe *cqe)
{
    uintptr_t data = (uintptr_t)cqe->user_data;
    CqeHandler *handler = (CqeHandler *)(data & ~UPDATE_BIT);

    if (!handler) {
        return;
    }
    if (data & UPDATE_BIT) {
        take_update(m, container_of(handler, AioHandler, ready), cqe->res);
        return;
    }
    if (handler == &m->wake) {
        m->woken = true;
        if (!(cqe->flags & IORING_CQE_F_MORE)) {
            m->wake_armed = false;
            m->inflight--;
        }
        return;
    }
    m->inflight--;
    if (op_is_users(handler)) {
        handler->res = cqe->res;
        handler->flags = cqe->flags;
        context_complete(ctx, handler);
    } else {
        take_event(ctx, container_of(handler, AioHandler, ready), cqe);
    }
}

static void reap(AioContext *ctx, struct uring_mon *m)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&m->ring, head, cqe)
    {
        take_cqe(ctx, m, cqe);
        n++;
    }
    if (n) {
        io_uring_cq_advance(&m->ring, n);
        count_own(&ctx->stats->cqes, n);
    }
}

/*
 * The one place that enters the kernel.  Returns what io_uring_enter(2) does; every outcome leaves
 * entries that were not taken in the queue for the next time.
 */
static int enter(AioContext *ctx, struct uring_mon *m, unsigned want,
                 const struct __kernel_timespec *ts)
{
    struct io_uring_getevents_arg arg = { .ts = (uintptr_t)ts };
    unsigned flags = m->enter_flags | (m->reg_ring ? IORING_ENTER_REGISTERED_RING : 0);
    unsigned to_submit = flush_sq(m);
    int ret;

    if (unlikely(m->sqpoll)) {
        flags |= (to_submit ? sleep_flag(m) : 0) |
                 (io_uring_sq_space_left(&m->ring) ? 0 : IORING_ENTER_SQ_WAIT);
    }

    if (io_uring_smp_load_acquire(m->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW) {
        count_own(&ctx->stats->cq_overflows, 1);
    }
    count_own(&ctx->stats->syscalls, 1);
    ret = io_uring_enter2(m->ring.enter_ring_fd, to_submit, want, flags, (sigset_t *)&arg,
                          sizeof(arg));
    switch (ret) {
    case -EAGAIN: /* no memory for a request: let others get on */
        nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
        break;
    case -EBADR:
        die_misuse("aio_poll", "the kernel has lost completions: out of memory (EBADR)");
    case -EPERM:
    case -EACCES:
    case -ENOSYS:
        die_misuse("aio_poll",
                   "io_uring_enter: error %d; it was allowed where the context was made", -ret);
    case -EBADF:
    case -EEXIST:
    case -EFAULT:
    case -EINVAL:
    case -EOWNERDEAD:
        die_misuse("aio_poll", "io_uring_enter: error %d; was the ring's fd closed?", -ret);
    default: /* a count; -ETIME, -EINTR; -EBUSY: reaping makes room */
        break;
    }
    return ret;
}

static struct io_uring_sqe *get_sqe(AioContext *ctx, struct uring_mon *m)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&m->ring);

    while (unlikely(!sqe)) {
        count_own(&ctx->stats->sq_full, 1);
        enter(ctx, m, 0, NULL);
        reap(ctx, m);
        sqe = io_uring_get_sqe(&m->ring);
    }
    count_own(&ctx->stats->sqes, 1);
    return sqe;
}

static void queue_own(struct uring_mon *m, struct io_uring_sqe *sqe, CqeHandler *handler)
{
    io_uring_sqe_set_data(sqe, handler);
    m->inflight += handler != NULL;
}

/* ---- Fds ------------------------------------------------------------------------------------- */

static void queue_update(AioContext *ctx, struct uring_mon *m, AioHandler *h)
{
    struct io_uring_sqe *sqe = get_sqe(ctx, m);

    io_uring_prep_poll_update(sqe, (uintptr_t)&h->ready, 0, h->events, IORING_POLL_UPDATE_EVENTS);
    sqe->user_data = (uintptr_t)&h->ready | UPDATE_BIT;
    h->updates++;
}

/* @wake: also what wakes a sleep, which needs it alone. */
static void arm_all(AioContext *ctx, struct uring_mon *m, bool wake)
{
    AioHandler *h;

    while ((h = m->to_arm)) {
        handler_unlink(h);
        if (h->armed) {
            queue_update(ctx, m, h);
        } else {
            struct io_uring_sqe *sqe = get_sqe(ctx, m);

            io_uring_prep_poll_add(sqe, h->fd, h->events);
            queue_own(m, sqe, &h->ready);
            h->armed = true;
        }
    }
    if (wake && !m->wake_armed) {
        struct io_uring_sqe *sqe = get_sqe(ctx, m);

        io_uring_prep_poll_multishot(sqe, ctx->wake_fd, POLLIN);
        queue_own(m, sqe, &m->wake);
        m->wake_armed = true;
    }
}

static void uring_watch(AioContext *ctx, AioHandler *h)
{
    struct uring_mon *m = ctx->mon_state;

    if (!m->sqpoll) {
        embed_watch(ctx, h);
    }
    /* Should it complete before it is changed, the next arming takes the new events. */
    if (!h->pprev && !h->queued) {
        handler_link(&m->to_arm, h);
    }
}

static void uring_rewatch(AioContext *ctx, AioHandler *h)
{
    struct uring_mon *m = ctx->mon_state;

    if (!h->pprev && !h->armed) {
        handler_link(&m->to_arm, h);
    }
}

/* Submitting the removal is not enough: the request holds the file until it has completed.  Nor is
 * it a removal, which the kernel may refuse when it has just been woken for the request. */
static void uring_unwatch(AioContext *ctx, AioHandler *h)
{
    struct uring_mon *m = ctx->mon_state;

    embed_unwatch(ctx, h);
    if (h->armed) {
        struct io_uring_sqe *sqe = get_sqe(ctx, m);

        io_uring_prep_cancel(sqe, &h->ready, 0);
        queue_own(m, sqe, NULL);
        reap(ctx, m);
    }
    while (h->armed || h->updates) {
        enter(ctx, m, 1, NULL);
        reap(ctx, m);
    }
    if (h->pprev) {
        handler_unlink(h);
    }
}

/* ---- Waiting --------------------------------------------------------------------------------- */

static struct __kernel_timespec wait_time(const struct uring_mon *m, int64_t deadline_ns)
{
    int64_t ns = deadline_ns;

    if (!(m->enter_flags & IORING_ENTER_ABS_TIMER)) {
        int64_t now = clock_monotonic_ns();

        ns = deadline_ns > now ? deadline_ns - now : 0;
    }
    return (struct __kernel_timespec){
        .tv_sec = ns / INT64_C(1000000000),
        .tv_nsec = ns % INT64_C(1000000000),
    };
}

static int uring_wait(AioContext *ctx, int64_t deadline_ns)
{
    struct uring_mon *m = ctx->mon_state;
    struct __kernel_timespec ts;
    unsigned to_submit, kflags;
    bool wait = deadline_ns != WAIT_NOT, look;
    int ret = 0;

    m->woken = false;
    arm_all(ctx, m, wait);
    if (ctx->done || m->woken || m->to_arm) {
        wait = false; /* the queue was full, and making room has reaped something */
    }
    to_submit = flush_sq(m);
    if (unlikely(m->sqpoll) && !sleep_flag(m)) {
        to_submit = 0; /* they are taken without us */
    }
    kflags = io_uring_smp_load_acquire(m->ring.sq.kflags);
    look = kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
    if (look || io_uring_cq_ready(&m->ring)) {
        wait = false; /* something is there */
    }
    if (wait && deadline_ns != WAIT_FOREVER) {
        ts = wait_time(m, deadline_ns);
    }
    if (to_submit || wait || look) {
        ret = enter(ctx, m, wait, wait && deadline_ns != WAIT_FOREVER ? &ts : NULL);
    }
    reap(ctx, m);
    return ret == -EINTR ? -EINTR : 0;
}

/* ---- Embedding ------------------------------------------------------------------------------- */

static int uring_embed(AioContext *ctx)
{
    struct uring_mon *m = ctx->mon_state;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), ret;

    if (fd < 0) {
        return -errno;
    }
    ret = embed_add(ctx, fd, EPOLLIN | EPOLLET); /* an edge a signal: it is never read */
    if (ret == 0) {
        ret = embed_add(ctx, ctx->wake_fd, EPOLLIN | EPOLLET);
    }
    if (ret == 0) {
        ret = io_uring_register_eventfd(&m->ring, fd);
    }
    if (ret < 0) {
        close(fd);
        return ret;
    }
    m->event_fd = fd;
    return 0;
}

static int64_t uring_prepare(AioContext *ctx)
{
    struct uring_mon *m = ctx->mon_state;
    int64_t until = m->sqpoll ? WAIT_FOREVER : embed_watch_rest(ctx);
    unsigned kflags;

    uring_wait(ctx, WAIT_NOT);
    if (ctx->done || m->to_arm) { /* the latter: a change of events was refused */
        return WAIT_NOT;
    }
    embed_take_edges(ctx);
    /* What an edge was about came before it. */
    kflags = io_uring_smp_load_acquire(m->ring.sq.kflags);
    if ((kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) || io_uring_cq_ready(&m->ring) ||
        (!m->sqpoll && flush_sq(m))) { /* with it, they are taken without us */
        return WAIT_NOT;
    }
    return until;
}

/* ---- Operations ------------------------------------------------------------------------------ */

static int uring_add_sqe(AioContext *ctx, void (*prep)(struct io_uring_sqe *, void *), void *opaque,
                         CqeHandler *handler)
{
    struct uring_mon *m = ctx->mon_state;
    struct io_uring_sqe *sqe = get_sqe(ctx, m);

    prep(sqe, opaque);
    handler->reserved = 1 + (uint64_t)sqe->opcode;
    queue_own(m, sqe, handler);
    ctx->inflight_ops++;
    ctx->inflight_by_op[sqe->opcode & 63]++;
    return 0;
}

static int uring_cancel_sqe(AioContext *ctx, CqeHandler *handler)
{
    struct uring_mon *m = ctx->mon_state;
    struct io_uring_sqe *sqe = get_sqe(ctx, m);

    io_uring_prep_cancel(sqe, handler, 0);
    queue_own(m, sqe, NULL);
    return 0;
}

static void uring_cancel_all(AioContext *ctx)
{
    struct uring_mon *m = ctx->mon_state;
    struct io_uring_sqe *sqe = get_sqe(ctx, m);

    io_uring_prep_cancel(sqe, NULL, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    queue_own(m, sqe, NULL);
}

/* ---- Tearing down ---------------------------------------------------------------------------- */

/* The kernel must not refer to m->wake any more. */
static void stop_wake_poll(AioContext *ctx, struct uring_mon *m)
{
    if (m->wake_armed) {
        uring_cancel_sqe(ctx, &m->wake);
    }
    while (m->wake_armed) {
        enter(ctx, m, 1, NULL);
        reap(ctx, m);
    }
}

static void uring_close(AioContext *ctx)
{
    struct uring_mon *m = ctx->mon_state;

    stop_wake_poll(ctx, m);
    ctx->mon_state = NULL;
    if (m->event_fd >= 0) {
        close(m->event_fd);
    }
    if (m->inflight > 0) {
        return; /* the kernel may still write to memory of theirs: leave the ring and m be */
    }
    uring_drop_ring(m);
    uring_free_tables(m);
    free(m);
}

const FDMonOps fdmon_io_uring = {
    .name = "io_uring",
    .cheap_look = true,
    .one_shot = true,
    .init = uring_init,
    .attach = uring_attach,
    .wait = uring_wait,
    .watch = uring_watch,
    .unwatch = uring_unwatch,
    .rewatch = uring_rewatch,
    .embed = uring_embed,
    .prepare = uring_prepare,
    .add_sqe = uring_add_sqe,
    .cancel_sqe = uring_cancel_sqe,
    .cancel_all = uring_cancel_all,
    .close = uring_close,
};
