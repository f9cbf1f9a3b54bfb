/* SPDX-License-Identifier: MIT */
/* The peers' rings, set up as aio/fdmon_io_uring.c sets up a context's. */
#include "ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

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

void bench_ring_exit(struct io_uring *ring)
{
    atomic_fetch_add(&rings_closed, 1);
    io_uring_queue_exit(ring);
}
