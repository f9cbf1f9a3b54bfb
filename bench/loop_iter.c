/* SPDX-License-Identifier: MIT */
/*
 * loop_bench: what an iteration costs beside the system call that it makes.
 *
 *   empty-MONITOR  aio_poll(ctx, false) with one fd watched and nothing to do; beside a bare
 *                  io_uring_enter(2) with the flags of ours and nothing to submit, epoll_wait(2) or
 *                  ppoll(2), each with a timeout of 0.  The io_uring monitor makes no call there
 *   event-MONITOR  aio_poll(ctx, true) that finds one fd readable, and calls its handler, which
 *                  leaves it so; beside the bare call that reports it, and, with io_uring, a poll
 *                  request submitted and reaped by it
 */
#include "loop_impl.h"
#include "ring.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct iter {
    AioContext *ctx;
    EventNotifier fd; /* watched */
    uint64_t called;
    int epoll;
    struct io_uring ring;
};

static bool is_event(const struct loop_side *side)
{
    return !strncmp(side->case_name, "event", 5);
}

static struct iter *new_iter(const struct loop_side *side)
{
    struct iter *it = bench_alloc(sizeof(*it));
    if (event_notifier_init(&it->fd, is_event(side))) {
        bench_die("loop_bench: cannot make an eventfd");
    }
    it->epoll = -1;
    return it;
}

static void free_iter(struct iter *it)
{
    event_notifier_cleanup(&it->fd);
    free(it);
}

/* ---- aioctx ---------------------------------------------------------------------------------- */

static void on_fd(void *opaque)
{
    ((struct iter *)opaque)->called++;
}

static void *open_aioctx(const struct loop_side *side)
{
    struct iter *it = new_iter(side);
    it->ctx = loop_context(side->monitor);
    if (!it->ctx) {
        free_iter(it);
        return NULL;
    }
    aio_set_fd_handler(it->ctx, event_notifier_get_fd(&it->fd), on_fd, NULL, NULL, NULL, it);
    return it;
}

static void close_aioctx(void *state)
{
    struct iter *it = state;
    aio_set_fd_handler(it->ctx, event_notifier_get_fd(&it->fd), NULL, NULL, NULL, NULL, NULL);
    aio_context_unref(it->ctx);
    free_iter(it);
}

static uint64_t run_empty(void *state, uint64_t ops)
{
    struct iter *it = state;
    uint64_t empty = 0;
    for (uint64_t i = 0; i < ops; i++) {
        empty += !aio_poll(it->ctx, false);
    }
    return empty;
}

static uint64_t run_event(void *state, uint64_t ops)
{
    struct iter *it = state;
    it->called = 0;
    while (it->called < ops) {
        aio_poll(it->ctx, true);
    }
    return it->called;
}

/* ---- Bare calls ------------------------------------------------------------------------------ */

static void *open_bare(const struct loop_side *side)
{
    struct iter *it = new_iter(side);
    struct epoll_event ev = { .events = EPOLLIN };
    if (!strcmp(side->monitor, "io_uring")) {
        if (bench_ring_init(&it->ring, 128)) {
            free_iter(it);
            return NULL;
        }
    } else if (!strcmp(side->monitor, "epoll")) {
        it->epoll = epoll_create1(EPOLL_CLOEXEC);
        if (it->epoll < 0 ||
            epoll_ctl(it->epoll, EPOLL_CTL_ADD, event_notifier_get_fd(&it->fd), &ev)) {
            bench_die("loop_bench: epoll: %s", strerror(errno));
        }
    }
    return it;
}

static void close_bare(void *state)
{
    struct iter *it = state;
    if (it->epoll >= 0) {
        close(it->epoll);
    } else if (it->ring.ring_fd) {
        bench_ring_exit(&it->ring);
    }
    free_iter(it);
}

static uint64_t enter_empty(void *state, uint64_t ops)
{
    struct iter *it = state;
    uint64_t empty = 0;
    for (uint64_t i = 0; i < ops; i++) {
        empty += bench_ring_enter(&it->ring, 0) == 0;
    }
    return empty;
}

static uint64_t enter_event(void *state, uint64_t ops)
{
    struct iter *it = state;
    uint64_t seen = 0;
    while (seen < ops) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&it->ring);
        struct io_uring_cqe *cqe;
        unsigned head, n = 0;
        io_uring_prep_poll_add(sqe, event_notifier_get_fd(&it->fd), POLLIN);
        bench_ring_enter(&it->ring, 1);
        io_uring_for_each_cqe(&it->ring, head, cqe)
        {
            n += cqe->res == POLLIN;
        }
        io_uring_cq_advance(&it->ring, n);
        seen += n;
    }
    return seen;
}

static uint64_t epoll_calls(struct iter *it, uint64_t ops, int timeout, int want)
{
    struct epoll_event ev[64];
    uint64_t right = 0;
    for (uint64_t i = 0; i < ops; i++) {
        right += epoll_wait(it->epoll, ev, 64, timeout) == want;
    }
    return right;
}

static uint64_t epoll_empty(void *state, uint64_t ops)
{
    return epoll_calls(state, ops, 0, 0);
}

static uint64_t epoll_event(void *state, uint64_t ops)
{
    return epoll_calls(state, ops, -1, 1);
}

/* A second fd, as a context watches its own wake-up, too. */
static uint64_t ppoll_calls(struct iter *it, uint64_t ops, const struct timespec *ts, int want)
{
    int idle = eventfd(0, EFD_CLOEXEC);
    struct pollfd fds[2] = { { .fd = event_notifier_get_fd(&it->fd), .events = POLLIN },
                             { .fd = idle, .events = POLLIN } };
    uint64_t right = 0;
    for (uint64_t i = 0; i < ops; i++) {
        right += ppoll(fds, 2, ts, NULL) == want;
    }
    close(idle);
    return right;
}

static uint64_t ppoll_empty(void *state, uint64_t ops)
{
    return ppoll_calls(state, ops, &(struct timespec){ 0 }, 0);
}

static uint64_t ppoll_event(void *state, uint64_t ops)
{
    return ppoll_calls(state, ops, NULL, 1);
}

#define OURS(case, mon, run) \
    { \
        case "-" mon, "aioctx", mon, 1, open_aioctx, close_aioctx, run, NULL                       \
    }
#define BARE(case, mon, name, run) \
    { \
        case "-" mon, name, mon, 1, open_bare, close_bare, run, NULL                               \
    }

const struct loop_side loop_iter_sides[] = {
    OURS("empty", "io_uring", run_empty),
    BARE("empty", "io_uring", "enter", enter_empty),
    OURS("empty", "epoll", run_empty),
    BARE("empty", "epoll", "epoll_wait", epoll_empty),
    OURS("empty", "ppoll", run_empty),
    BARE("empty", "ppoll", "ppoll", ppoll_empty),
    OURS("event", "io_uring", run_event),
    BARE("event", "io_uring", "enter", enter_event),
    OURS("event", "epoll", run_event),
    BARE("event", "epoll", "epoll_wait", epoll_event),
    OURS("event", "ppoll", run_event),
    BARE("event", "ppoll", "ppoll", ppoll_event),
    { 0 },
};
