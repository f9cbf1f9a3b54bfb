/* SPDX-License-Identifier: MIT */
/* Measuring memory: in a process of its own each time, so that nothing is left from before. */
#ifndef BENCH_MEMORY_H
#define BENCH_MEMORY_H

#include <stdint.h>

/* Bytes of the pages that this process has written, in memory or swapped out, beside rings; with
 * *@ret_ring_bytes, which may be NULL, what is mapped of rings.  The first call takes memory
 * itself. */
uint64_t bench_written_bytes(uint64_t *ret_ring_bytes);

/* Starts this program again with the arguments @argv, NULL-ended, and returns the number that it
 * prints; ends the program when it prints none or fails. */
long long bench_ask_self(const char *const *argv);

#endif
