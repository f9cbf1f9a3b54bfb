/* SPDX-License-Identifier: MIT */
/* Random numbers that a seed repeats.  Source: splitmix64 (Steele, Lea and Flood, 2014). */
#ifndef TOOLS_BLK_RANDOM_H
#define TOOLS_BLK_RANDOM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

struct blk_random {
    uint64_t state;
};

static inline uint64_t blk_random_next(struct blk_random *r)
{
    uint64_t x = r->state += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* Each @stream of one @seed is a sequence of its own. */
static inline void blk_random_init(struct blk_random *r, uint64_t seed, uint64_t stream)
{
    r->state = stream;
    r->state = seed ^ blk_random_next(r);
}

/* A number from 0 to @bound - 1. */
static inline uint64_t blk_random_below(struct blk_random *r, uint64_t bound)
{
    return (uint64_t)((unsigned __int128)blk_random_next(r) * bound >> 64);
}

static inline void blk_random_fill(struct blk_random *r, char *buf, size_t len)
{
    for (; len >= 8; buf += 8, len -= 8) {
        uint64_t word = blk_random_next(r);

        memcpy(buf, &word, 8);
    }
    memset(buf, 0x5a, len);
}

#ifdef __cplusplus
}
#endif

#endif
