/* SPDX-License-Identifier: MIT */
/* notify_bench's peer msg-ring: two threads, a ring each, that send each other messages; sending
 * and waiting are one system call. */
#include "notify_impl.h"
#include "ring.h"

#include <errno.h>
#include <string.h>

enum { SENT = 1, RECEIVED = 2 };

struct msg_ring_state {
    struct io_uring ring[2];
    bool open[2];
    int target[2]; /* the fd by which the other side reaches this ring */
};

static bool msg_ring_open(void *state, int me)
{
    struct msg_ring_state *s = state;
    if (bench_ring_init(&s->ring[me], 8)) {
        return false;
    }
    s->open[me] = true;
    s->target[me] = s->ring[me].ring_fd;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&s->ring[me]);
    bool can = probe && io_uring_opcode_supported(probe, IORING_OP_MSG_RING);
    io_uring_free_probe(probe);
    return can;
}

static void msg_ring_close(void *state, int me)
{
    struct msg_ring_state *s = state;
    if (s->open[me]) {
        bench_ring_exit(&s->ring[me]);
    }
}

/* Submits what was queued and consumes completions up to a message. */
static void wait_message(struct io_uring *ring)
{
    for (;;) {
        struct io_uring_cqe *cqe;
        int ret = io_uring_submit_and_wait(ring, 1);
        if (ret < 0 && ret != -EINTR) {
            bench_die("notify_bench: waiting on a ring: %s", strerror(-ret));
        }
        while (!io_uring_peek_cqe(ring, &cqe)) {
            uint64_t what = cqe->user_data;
            int res = cqe->res;
            io_uring_cqe_seen(ring, cqe);
            if (what == RECEIVED) {
                return;
            }
            if (res < 0) {
                bench_die("notify_bench: sending a message to a ring: %s", strerror(-res));
            }
        }
    }
}

static void msg_ring_wait(void *state, int me)
{
    wait_message(&((struct msg_ring_state *)state)->ring[me]);
}

static void msg_ring_pass(void *state, int me, bool wait)
{
    struct msg_ring_state *s = state;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring[me]);
    io_uring_prep_msg_ring(sqe, s->target[!me], 0, RECEIVED, 0);
    sqe->user_data = SENT;
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    if (wait) {
        wait_message(&s->ring[me]);
    } else {
        io_uring_submit(&s->ring[me]);
    }
}

static bool msg_ring_ping_pong(struct ping_pong *pp)
{
    static const struct transport t = { sizeof(struct msg_ring_state), msg_ring_open,
                                        msg_ring_close, msg_ring_pass, msg_ring_wait };
    return transport_ping_pong(&t, pp);
}

const struct notify_impl notify_msg_ring = { "msg-ring", msg_ring_ping_pong };
