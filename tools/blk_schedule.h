/* SPDX-License-Identifier: MIT */
/*
 * The moments of an open loop: a total rate, dealt out to threads in turn.
 *
 * Thread i of n takes the moments start + (i + k * n) / rate, each rounded down to a nanosecond.
 * What rounding leaves is carried along, so that the rate is exact however long it runs, without a
 * division for each step.
 */
#ifndef TOOLS_BLK_SCHEDULE_H
#define TOOLS_BLK_SCHEDULE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BLK_SCHEDULE_SECOND UINT64_C(1000000000)

struct blk_schedule {
    int64_t next_ns;
    uint64_t carry;               /* what next_ns was rounded down by, in 1/rate ns */
    uint64_t step_ns, step_carry; /* n / rate, likewise */
    uint64_t rate;
};

/* @rate: 1 to 10^9 for all @threads together, of which this is number @thread, from 0. */
static inline void blk_schedule_init(struct blk_schedule *s, int64_t start_ns, uint64_t rate,
                                     unsigned thread, unsigned threads)
{
    uint64_t phase = thread * BLK_SCHEDULE_SECOND, step = threads * BLK_SCHEDULE_SECOND;

    s->next_ns = start_ns + (int64_t)(phase / rate);
    s->carry = phase % rate;
    s->step_ns = step / rate;
    s->step_carry = step % rate;
    s->rate = rate;
}

/* Moves on to the next moment. */
static inline void blk_schedule_step(struct blk_schedule *s)
{
    s->next_ns += (int64_t)s->step_ns;
    s->carry += s->step_carry;
    if (s->carry >= s->rate) {
        s->carry -= s->rate;
        s->next_ns++;
    }
}

#ifdef __cplusplus
}
#endif

#endif
