/* SPDX-License-Identifier: MIT */
/* A plain ring for the peers, with the flags and registrations that a context's own ring has. */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include <liburing.h>

/* Makes @ring for the calling thread, dropping flags that the kernel does not take.
 * Returns 0 or -errno. */
int bench_ring_init(struct io_uring *ring, unsigned entries);

/* Submits what is queued and waits for @want completions, none when it is 0: one
 * io_uring_enter(2), also when there is nothing to do, with the flags of a context's.  Returns what
 * that does. */
int bench_ring_enter(struct io_uring *ring, unsigned want);

void bench_ring_exit(struct io_uring *ring);

#endif
