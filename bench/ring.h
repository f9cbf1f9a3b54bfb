/* SPDX-License-Identifier: MIT */
/* A plain ring for the peers, with the flags and registrations that a context's own ring has. */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include <liburing.h>

/* Makes @ring for the calling thread, dropping flags that the kernel does not take; tells the flags
 * it has.  Returns 0 or -errno. */
int bench_ring_init(struct io_uring *ring, unsigned entries, unsigned *ret_flags);

#endif
