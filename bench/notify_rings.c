/* SPDX-License-Identifier: MIT */
/*
 * notify_bench's peers that sleep in a ring: two threads, a ring each.
 *
 *   msg-ring    they send each other messages; sending and waiting are one system call
 *   msg-send    the same by io_uring_register(2), which needs no ring of the sender's (Linux 6.13)
 *   ring-read   each reads its eventfd, by a request that is sent anew for every wake-up
 *   ring-poll   a poll request that stays tells of each write to the eventfd, which nobody reads
 *   ring-futex  each waits for its futex word, by a request that is sent anew for every wake-up
 *               (Linux 6.7)
 */
#include "notify_impl.h"
#include "ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than liburing 2.3's headers. */
enum { OP_FUTEX_WAIT = 51, REGISTER_SEND_MSG_RING = 31 };
#ifndef FUTEX2_SIZE_U32
#define FUTEX2_SIZE_U32 2
#endif
#ifndef FUTEX2_PRIVATE
#define FUTEX2_PRIVATE FUTEX_PRIVATE_FLAG
#endif

enum { SENT = 1, RECEIVED = 2 };

struct ring_side {
    _Alignas(BENCH_ALIGN) struct io_uring ring;
    bool open;
    int target; /* the fd by which the other side reaches this ring */
    int fd;     /* eventfd */
    bool armed; /* a request waits for it */
    uint64_t value;
    _Alignas(BENCH_ALIGN) atomic_uint word;
};

struct ring_state {
    struct ring_side side[2];
};

static struct ring_side *side_of(void *state, int me)
{
    return &((struct ring_state *)state)->side[me];
}

static bool open_side(struct ring_side *s, unsigned op)
{
    s->fd = -1;
    if (bench_ring_init(&s->ring, 8)) {
        return false;
    }
    s->open = true;
    s->target = s->ring.ring_fd;
    s->fd = eventfd(0, EFD_CLOEXEC);
    struct io_uring_probe *probe = io_uring_get_probe_ring(&s->ring);
    bool can = s->fd >= 0 && probe && io_uring_opcode_supported(probe, (int)op);
    io_uring_free_probe(probe);
    return can;
}

static void ring_close(void *state, int me)
{
    struct ring_side *s = side_of(state, me);
    if (s->open) {
        bench_ring_exit(&s->ring);
    }
    if (s->fd >= 0) {
        close(s->fd);
    }
}

/* Takes all completions.  Returns whether one was a wake-up. */
static bool reap(struct ring_side *s)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    bool woken = false;
    io_uring_for_each_cqe(&s->ring, head, cqe)
    {
        if (cqe->res < 0 && cqe->res != -EAGAIN) { /* EAGAIN: the futex word has changed before */
            bench_die("notify_bench: a wake-up of a ring: %s", strerror(-cqe->res));
        }
        woken |= cqe->user_data == RECEIVED;
        s->armed &= cqe->user_data != RECEIVED || (cqe->flags & IORING_CQE_F_MORE);
        n++;
    }
    io_uring_cq_advance(&s->ring, n);
    return woken;
}

/* Submits what is queued, and waits for a wake-up. */
static void wait_ring(struct ring_side *s)
{
    do {
        int ret = bench_ring_enter(&s->ring, 1);
        if (ret < 0 && ret != -EINTR) {
            bench_die("notify_bench: waiting on a ring: %s", strerror(-ret));
        }
    } while (!reap(s));
}

static void write_eventfd(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        bench_die("notify_bench: writing an eventfd: %s", strerror(errno));
    }
}

/* ---- Messages -------------------------------------------------------------------------------- */

static bool msg_open(void *state, int me)
{
    return open_side(side_of(state, me), IORING_OP_MSG_RING);
}

static void msg_wait(void *state, int me)
{
    wait_ring(side_of(state, me));
}

static void msg_pass(void *state, int me, bool wait)
{
    struct ring_side *s = side_of(state, me);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
    io_uring_prep_msg_ring(sqe, side_of(state, !me)->target, 0, RECEIVED, 0);
    sqe->user_data = SENT;
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    if (wait) {
        wait_ring(s);
    } else {
        bench_ring_enter(&s->ring, 0);
    }
}

/* Returns -EINVAL where the kernel has no such call. */
static int send_message(int target)
{
    struct io_uring_sqe sqe;
    memset(&sqe, 0, sizeof(sqe));
    io_uring_prep_msg_ring(&sqe, target, 0, RECEIVED, 0);
    return io_uring_register((unsigned)-1, REGISTER_SEND_MSG_RING, &sqe, 1);
}

static bool send_open(void *state, int me)
{
    struct ring_side *s = side_of(state, me);
    if (!msg_open(state, me) || send_message(s->target) < 0) {
        return false;
    }
    wait_ring(s); /* the message that we have sent ourselves */
    return true;
}

static void send_pass(void *state, int me, bool wait)
{
    int ret = send_message(side_of(state, !me)->target);
    if (ret < 0) {
        bench_die("notify_bench: sending a message to a ring: %s", strerror(-ret));
    }
    if (wait) {
        msg_wait(state, me);
    }
}

/* ---- Reading an eventfd ---------------------------------------------------------------------- */

static bool read_open(void *state, int me)
{
    return open_side(side_of(state, me), IORING_OP_READ);
}

static void read_wait(void *state, int me)
{
    struct ring_side *s = side_of(state, me);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
    io_uring_prep_read(sqe, s->fd, &s->value, sizeof(s->value), 0);
    sqe->user_data = RECEIVED;
    wait_ring(s);
}

static void read_pass(void *state, int me, bool wait)
{
    write_eventfd(side_of(state, !me)->fd);
    if (wait) {
        read_wait(state, me);
    }
}

/* ---- Polling an eventfd ---------------------------------------------------------------------- */

static void poll_wait(void *state, int me)
{
    struct ring_side *s = side_of(state, me);
    if (!s->armed) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
        io_uring_prep_poll_multishot(sqe, s->fd, POLLIN | EPOLLET);
        sqe->user_data = RECEIVED;
        s->armed = true;
    }
    wait_ring(s);
}

static void poll_pass(void *state, int me, bool wait)
{
    write_eventfd(side_of(state, !me)->fd);
    if (wait) {
        poll_wait(state, me);
    }
}

/* ---- A futex --------------------------------------------------------------------------------- */

static bool futex_open(void *state, int me)
{
    return open_side(side_of(state, me), OP_FUTEX_WAIT);
}

static void futex_wait(void *state, int me)
{
    struct ring_side *s = side_of(state, me);
    while (!atomic_exchange(&s->word, 0)) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
        io_uring_prep_rw(OP_FUTEX_WAIT, sqe, FUTEX2_SIZE_U32 | FUTEX2_PRIVATE, &s->word, 0, 0);
        sqe->addr3 = FUTEX_BITSET_MATCH_ANY;
        sqe->user_data = RECEIVED;
        wait_ring(s);
    }
}

static void futex_pass(void *state, int me, bool wait)
{
    atomic_uint *word = &side_of(state, !me)->word;
    atomic_store(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    if (wait) {
        futex_wait(state, me);
    }
}

#define TRANSPORT(open, pass, wait) \
    { \
        sizeof(struct ring_state), open, ring_close, pass, wait \
    }

static const struct transport msg = TRANSPORT(msg_open, msg_pass, msg_wait);
static const struct transport send_transport = TRANSPORT(send_open, send_pass, msg_wait);
static const struct transport read_transport = TRANSPORT(read_open, read_pass, read_wait);
static const struct transport poll_transport = TRANSPORT(read_open, poll_pass, poll_wait);
static const struct transport futex = TRANSPORT(futex_open, futex_pass, futex_wait);

const struct notify_impl notify_msg_ring = { .name = "msg-ring", .transport = &msg };
const struct notify_impl notify_msg_send = { .name = "msg-send", .transport = &send_transport };
const struct notify_impl notify_ring_read = { .name = "ring-read", .transport = &read_transport };
const struct notify_impl notify_ring_poll = { .name = "ring-poll", .transport = &poll_transport };
const struct notify_impl notify_ring_futex = { .name = "ring-futex", .transport = &futex };
