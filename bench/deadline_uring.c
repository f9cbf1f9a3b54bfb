/* SPDX-License-Identifier: MIT */
/* deadline_bench's bare rings: a wait with a timeout, and a timeout request. */
#include "deadline_impl.h"
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Newer than liburing 2.3's headers. */
#define ENTER_ABS_TIMER (1U << 5)
#define ENTER_NO_IOWAIT (1U << 7)
#define FEAT_NO_IOWAIT (1U << 17)

enum { WAIT_REL, WAIT_ABS, TIMEOUT_REQUEST };

struct uring_source {
    struct io_uring ring;
    unsigned flags; /* of the enter */
    bool absolute;
};

static int enter(struct uring_source *s, unsigned submit, unsigned want, uint64_t ns)
{
    struct __kernel_timespec ts = DEADLINE_TIMESPEC((int64_t)ns);
    struct io_uring_getevents_arg arg = { .ts = ns ? (uintptr_t)&ts : 0 };
    return io_uring_enter2(s->ring.enter_ring_fd, submit, want, s->flags, (sigset_t *)&arg,
                           sizeof(arg));
}

static void *uring_open(const struct deadline_source *source)
{
    struct uring_source *s = bench_alloc(sizeof(*s));
    if (bench_ring_init(&s->ring, 8)) {
        free(s);
        return NULL;
    }
    s->absolute = source->variant == WAIT_ABS;
    s->flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    s->flags |= s->absolute ? ENTER_ABS_TIMER : 0;
    s->flags |= s->ring.features & FEAT_NO_IOWAIT ? ENTER_NO_IOWAIT : 0;
    s->flags |= s->ring.enter_ring_fd != s->ring.ring_fd ? IORING_ENTER_REGISTERED_RING : 0;
    if (enter(s, 0, 0, 0) < 0) {
        bench_ring_exit(&s->ring);
        free(s);
        return NULL;
    }
    return s;
}

static void uring_close(void *state)
{
    struct uring_source *s = state;
    bench_ring_exit(&s->ring);
    free(s);
}

static uint64_t uring_wait(void *state, uint64_t deadline_ns)
{
    struct uring_source *s = state;
    int ret = enter(s, 0, 1, s->absolute ? deadline_ns : deadline_left(deadline_ns));
    uint64_t now = bench_now_ns();
    if (ret != -ETIME) {
        bench_die("deadline_bench: io_uring_enter: %s", strerror(-ret));
    }
    return now;
}

static uint64_t uring_timeout_wait(void *state, uint64_t deadline_ns)
{
    struct uring_source *s = state;
    struct __kernel_timespec ts = DEADLINE_TIMESPEC((int64_t)deadline_ns);
    struct io_uring_cqe *cqe;
    io_uring_prep_timeout(io_uring_get_sqe(&s->ring), &ts, 0, IORING_TIMEOUT_ABS);
    int ret = io_uring_submit_and_wait(&s->ring, 1);
    if (ret == 1) {
        ret = io_uring_peek_cqe(&s->ring, &cqe);
    }
    uint64_t now = bench_now_ns();
    if (ret || cqe->res != -ETIME) {
        bench_die("deadline_bench: a timeout request: %d", ret);
    }
    io_uring_cqe_seen(&s->ring, cqe);
    return now;
}

const struct deadline_source deadline_uring_rel = {
    .name = "uring-wait-rel",
    .slack = true,
    .open = uring_open,
    .wait = uring_wait,
    .close = uring_close,
    .variant = WAIT_REL,
};
const struct deadline_source deadline_uring_abs = {
    .name = "uring-wait-abs",
    .slack = true,
    .open = uring_open,
    .wait = uring_wait,
    .close = uring_close,
    .variant = WAIT_ABS,
};
const struct deadline_source deadline_uring_timeout = {
    .name = "uring-timeout",
    .open = uring_open,
    .wait = uring_timeout_wait,
    .close = uring_close,
    .variant = TIMEOUT_REQUEST,
};
