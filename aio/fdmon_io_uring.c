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
 * request looks at the fd's state when it arrives, so that handlers are level-triggered.
 *
 * The wake eventfd is watched by one multishot poll request, which posts a completion for every
 * write(2) and stays: a wake-up needs no read(2) and no new request.  Nobody reads the eventfd, so
 * its count only grows; a request that had to be sent again would find it readable, and end one
 * wait for nothing.  Of what the kernel offers this was the fastest: reading the eventfd, or
 * polling it once, takes a submission for each sleep; so does waiting for a futex; and a message
 * between rings is slower than the write, and may find no memory.
 *
 * Every submission's user_data is its CqeHandler; 0 is for requests whose end nobody awaits.
 * Completions are copied out and their slots released at once (reap), and dispatched later.
 *
 * Source: io_uring_enter(2), io_uring_setup(2), io_uring_prep_poll_add(3).
 */
#include "aio/aio_int.h"
#include "aio/embed_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* Newer than liburing 2.3's headers.  None changes the ring's layout. */
#ifndef IORING_ENTER_ABS_TIMER
#define IORING_ENTER_ABS_TIMER (1U << 5)
#endif
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif

struct uring_mon {
    struct io_uring ring;
    AioHandler *to_arm; /* watched handlers without a poll request */
    CqeHandler wake;    /* the poll request of the wake eventfd */
    bool wake_armed;
    bool woken;           /* it has posted a completion since this wait began */
    bool reg_ring;        /* the ring fd is registered with the home thread */
    unsigned enter_flags; /* of every wait */
    uint64_t inflight;    /* all with a CqeHandler, our own included */
    int event_fd;         /* eventfd registered with the ring, for a host; -1: none */
};

/* Our own completions are told from users' by their callback. */
static void own_completion(CqeHandler *handler)
{
    die_misuse("fdmon_io_uring", "a completion of the loop's own was dispatched");
}

/* ---- Setting up ------------------------------------------------------------------------------ */

/*
 * From what the newest kernel takes to what the oldest does: one that does not know a flag answers
 * EINVAL.  DEFER_TASKRUN 6.1, SINGLE_ISSUER 6.0, COOP_TASKRUN and TASKRUN_FLAG 5.19, SUBMIT_ALL
 * 5.18. R_DISABLED comes with SINGLE_ISSUER, for the one issuer is who enables the ring.
 */
static const unsigned setup_flags[] = {
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_DEFER_TASKRUN |
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED,
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN |
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED,
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
    IORING_SETUP_SUBMIT_ALL,
    0,
};

/*
 * Counts closed rings.  A new ring may get a closed one's addresses from the kernel, and liburing
 * makes these system calls by itself, so that ThreadSanitizer does not see the old mapping go: this
 * tells it that what was done to the old ring came before.
 */
static unsigned rings_closed; /* atomic: written before a ring is unmapped, read after mapping */

static void drop_ring(struct uring_mon *m)
{
    fetch_add_seq(&rings_closed, 1);
    io_uring_queue_exit(&m->ring);
}

static int setup_ring(struct uring_mon *m, unsigned entries, unsigned *ret_flags)
{
    /* RSRC_TAGS stands for 5.13, which has multishot poll requests, and can change the events of
     * one in the kernel. */
    const unsigned need =
        IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_RSRC_TAGS;
    int ret = -EINVAL;

    for (size_t i = 0; i < sizeof(setup_flags) / sizeof(setup_flags[0]) && ret == -EINVAL; i++) {
        struct io_uring_params p = {
            .flags = setup_flags[i] | IORING_SETUP_CQSIZE,
            .cq_entries = entries < 256     ? 1024
                          : entries > 16384 ? 65536
                                            : entries * 4,
        };

        ret = io_uring_queue_init_params(entries, &m->ring, &p);
        *ret_flags = setup_flags[i];
    }
    (void)ld_acquire(&rings_closed);
    if (ret == 0 && (m->ring.features & need) != need) {
        drop_ring(m);
        return -ENOSYS; /* before Linux 5.13 */
    }
    return ret == -EINVAL ? -ENOSYS : ret; /* before 5.5, which came with CQSIZE */
}

static bool is_denial(int ret)
{
    return ret == -EPERM || ret == -EACCES || ret == -ENOSYS;
}

/*
 * A filter of system calls may allow the making of a ring and deny its use.  These calls do
 * nothing: the one has nothing to submit, the other asks about no operation, and the kernel may
 * refuse both of a ring that is not enabled yet.  One that needs no enabling does without
 * io_uring_register(2).
 */
static int try_ring(struct uring_mon *m)
{
    int ret = io_uring_enter(m->ring.ring_fd, 0, 0, 0, NULL);

    if (!is_denial(ret) && (m->ring.flags & IORING_SETUP_R_DISABLED)) {
        ret = io_uring_register(m->ring.ring_fd, IORING_REGISTER_PROBE, NULL, 0);
    }
    return is_denial(ret) ? ret : 0;
}

static int uring_init(AioContext *ctx, unsigned entries)
{
    struct uring_mon *m = calloc(1, sizeof(*m));
    unsigned flags = 0;
    int ret;

    if (!m) {
        return -ENOMEM;
    }
    ret = setup_ring(m, entries, &flags);
    if (ret < 0) {
        goto free_mon;
    }
    ret = try_ring(m);
    if (ret < 0) {
        goto close_ring;
    }
    m->wake.cb = own_completion;
    m->event_fd = -1;
    m->enter_flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    if (m->ring.features & IORING_FEAT_NO_IOWAIT) {
        m->enter_flags |= IORING_ENTER_NO_IOWAIT;
    }
    ctx->mon_state = m;
    return 0;

close_ring:
    drop_ring(m);
free_mon:
    free(m);
    return ret;
}

/* Whether a wait's timeout may be a time of CLOCK_MONOTONIC: an unknown flag is refused with EINVAL
 * before anything else is looked at. */
static bool has_abs_timer(const struct uring_mon *m)
{
    struct io_uring_getevents_arg arg = { 0 };

    return io_uring_enter2(m->ring.ring_fd, 0, 0, m->enter_flags | IORING_ENTER_ABS_TIMER,
                           (sigset_t *)&arg, sizeof(arg)) >= 0;
}

static void uring_attach(AioContext *ctx)
{
    struct uring_mon *m = ctx->mon_state;
    int ret;

    if (m->ring.flags & IORING_SETUP_R_DISABLED) {
        /* Not io_uring_enable_rings(): liburing 2.3's shared library does not export it. */
        ret = io_uring_register(m->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
        if (ret < 0) {
            die_misuse("aio_poll", "the kernel does not enable the ring: error %d", -ret);
        }
    }
    if (has_abs_timer(m)) {
        m->enter_flags |= IORING_ENTER_ABS_TIMER;
    }
    m->reg_ring = io_uring_register_ring_fd(&m->ring) == 1;
}

/* ---- Submitting and reaping ------------------------------------------------------------------ */

/* Makes queued entries visible to the kernel; returns how many it has not taken yet, short submits
 * included.  The array is the identity; a ring that liburing 2.6 or later has set up may have none,
 * without being asked. */
static unsigned flush_sq(struct io_uring_sq *sq)
{
    if (sq->sqe_head != sq->sqe_tail) {
        if (sq->array) {
            for (; sq->sqe_head != sq->sqe_tail; sq->sqe_head++) {
                sq->array[sq->sqe_head & *sq->kring_mask] = sq->sqe_head & *sq->kring_mask;
            }
        }
        sq->sqe_head = sq->sqe_tail;
        io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    }
    return sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
}

/* Takes one completion out of the ring. */
static void take_cqe(AioContext *ctx, struct uring_mon *m, const struct io_uring_cqe *cqe)
{
    CqeHandler *handler = io_uring_cqe_get_data(cqe);

    if (!handler) {
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
    handler->res = cqe->res;
    handler->flags = cqe->flags;
    if (!op_is_users(handler)) {
        AioHandler *h = container_of(handler, AioHandler, ready);

        h->armed = false;
        h->queued = true;
    }
    context_complete(ctx, handler);
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
    int ret;

    if (io_uring_smp_load_acquire(m->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW) {
        count_own(&ctx->stats->cq_overflows, 1);
    }
    count_own(&ctx->stats->syscalls, 1);
    ret = io_uring_enter2(m->ring.enter_ring_fd, flush_sq(&m->ring.sq), want, flags,
                          (sigset_t *)&arg, sizeof(arg));
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

/* @wake: also what wakes a sleep, which needs it alone. */
static void arm_all(AioContext *ctx, struct uring_mon *m, bool wake)
{
    AioHandler *h;

    while ((h = m->to_arm)) {
        struct io_uring_sqe *sqe = get_sqe(ctx, m);

        handler_unlink(h);
        io_uring_prep_poll_add(sqe, h->fd, h->events);
        queue_own(m, sqe, &h->ready);
        h->armed = true;
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

    embed_watch(ctx, h);
    if (h->armed) { /* should it have completed meanwhile, the next arming takes the new events */
        struct io_uring_sqe *sqe = get_sqe(ctx, m);

        io_uring_prep_poll_update(sqe, (uintptr_t)&h->ready, 0, h->events,
                                  IORING_POLL_UPDATE_EVENTS);
        queue_own(m, sqe, NULL);
    } else if (!h->pprev && !h->queued) {
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

/* Submitting the removal is not enough: the request holds the file until it has completed. */
static void uring_unwatch(AioContext *ctx, AioHandler *h)
{
    struct uring_mon *m = ctx->mon_state;

    embed_unwatch(ctx, h);
    if (h->pprev) {
        handler_unlink(h);
    }
    if (h->armed) {
        struct io_uring_sqe *sqe = get_sqe(ctx, m);

        io_uring_prep_poll_remove(sqe, (uintptr_t)&h->ready);
        queue_own(m, sqe, NULL);
        reap(ctx, m);
        while (h->armed) {
            enter(ctx, m, 1, NULL);
            reap(ctx, m);
        }
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
    if (ctx->done || m->woken) {
        wait = false; /* the queue was full, and making room has reaped something */
    }
    to_submit = flush_sq(&m->ring.sq);
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
    int64_t until = embed_watch_rest(ctx);
    unsigned kflags;

    uring_wait(ctx, WAIT_NOT);
    if (ctx->done) {
        return WAIT_NOT;
    }
    embed_take_edges(ctx);
    /* What an edge was about came before it. */
    kflags = io_uring_smp_load_acquire(m->ring.sq.kflags);
    if ((kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) || io_uring_cq_ready(&m->ring) ||
        flush_sq(&m->ring.sq)) {
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
    drop_ring(m);
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
