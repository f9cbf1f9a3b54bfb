/* SPDX-License-Identifier: MIT */
/*
 * Counters that one thread writes and any thread reads while it runs.
 *
 * A reader gets each counter exactly, but not several of one moment.  Writing is a plain load, add
 * and store on every machine that matters: no locked instruction on the hot path.
 */
#ifndef TOOLS_LIVE_H
#define TOOLS_LIVE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Thread: any. */
static inline uint64_t live_get(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/* Thread: the counter's owner. */
static inline void live_set(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

/* Thread: the counter's owner. */
static inline void live_add(uint64_t *counter, uint64_t n)
{
    live_set(counter, live_get(counter) + n);
}

#ifdef __cplusplus
}
#endif

#endif
