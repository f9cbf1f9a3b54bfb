/* SPDX-License-Identifier: MIT */
/* The peers' rings, set up as aio/fdmon_io_uring.c sets up a context's. */
#include "ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

/* Newer than liburing 2.3's headers. */
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif

/* A ring's memory may be where another thread's was before.  The kernel orders the two, but
 * liburing maps by bare system calls, which ThreadSanitizer does not see: this counter tells it. */
static atomic_uint rings_closed;

int bench_ring_init(struct io_uring *ring, unsigned entries)
{
    /* From the newest kernel's to the oldest's; deferred task work needs a single issuer. */
    static const unsigned tries[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_SINGLE_ISSUER,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN |
            IORING_SETUP_SINGLE_ISSUER,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int ret = -EINVAL;
    for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]) && ret == -EINVAL; i++) {
        struct io_uring_params p = { .flags = tries[i] | IORING_SETUP_CQSIZE, .cq_entries = 1024 };
        ret = io_uring_queue_init_params(entries, ring, &p);
    }
    if (!ret) {
        atomic_load(&rings_closed);
        io_uring_register_ring_fd(ring); /* where the kernel has it */
    }
    return ret;
}

/* Makes queued entries visible to the kernel; returns how many it has not taken. */
static unsigned flush_sq(struct io_uring_sq *sq)
{
    for (; sq->sqe_head != sq->sqe_tail; sq->sqe_head++) {
        if (sq->array) {
            sq->array[sq->sqe_head & *sq->kring_mask] = sq->sqe_head & *sq->kring_mask;
        }
    }
    io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    return sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
}

/* liburing's own waits leave the flags out that need EXT_ARG. */
int bench_ring_enter(struct io_uring *ring, unsigned want)
{
    struct io_uring_getevents_arg arg = { 0 };
    unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    if (ring->enter_ring_fd != ring->ring_fd) { /* an index then, which begins at 0 */
        flags |= IORING_ENTER_REGISTERED_RING;
    }
    if (ring->features & IORING_FEAT_NO_IOWAIT) {
        flags |= IORING_ENTER_NO_IOWAIT;
    }
    return io_uring_enter2(ring->enter_ring_fd, flush_sq(&ring->sq), want, flags, (sigset_t *)&arg,
                           sizeof(arg));
}

void bench_ring_exit(struct io_uring *ring)
{
    atomic_fetch_add(&rings_closed, 1);
    io_uring_queue_exit(ring);
}
