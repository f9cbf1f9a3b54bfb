/* SPDX-License-Identifier: MIT */
#include "ring.h"

#include <errno.h>
#include <stddef.h>

int bench_ring_init(struct io_uring *ring, unsigned entries, unsigned *ret_flags)
{
    /* From the newest kernel's to the oldest's; deferred task work needs a single issuer. */
    static const unsigned tries[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int ret = -EINVAL;
    for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]) && ret == -EINVAL; i++) {
        ret = io_uring_queue_init(entries, ring, tries[i]);
        if (!ret && ret_flags) {
            *ret_flags = tries[i];
        }
    }
    if (!ret) {
        io_uring_register_ring_fd(ring); /* where the kernel has it */
    }
    return ret;
}
