/* SPDX-License-Identifier: MIT */
/*
 * The state of VIRTUAL and VIRTUAL_RT, under one sequence lock.
 *
 * VIRTUAL_RT counts what REALTIME counts, between start and stop.  Without instruction counting
 * VIRTUAL is the same.  With it VIRTUAL is
 *
 *     base_ns + ((count - base_count) << shift)      instructions since the base
 *             + warp_start_ns .. VIRTUAL_RT          while it is warped, up to warp_limit_ns
 *
 * and every change of a part but `count` moves the base to the time at which it happens, so that
 * VIRTUAL has neither step nor gap there.  While it is stopped VIRTUAL is base_ns; instructions
 * that are accounted meanwhile show from the next start on.
 *
 * `count` moves outside the sequence lock.  A reader that saw no writer has loaded a count from
 * before that writer's own look at it (both look at the count, and store or load `seq`,
 * sequentially consistent), so no reading lies past the base that the writer sets.
 *
 * Readers never hold a writer up.  A reader that comes while a writer is in waits until it is out,
 * usually for some hundred ns at most; where that takes longer, since the writer was switched off
 * inside, it sleeps between its looks, so that a writer of lower priority gets the processor.
 */
#ifndef TIMERS_VIRTUAL_INT_H
#define TIMERS_VIRTUAL_INT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct virtual_clock {
    /* Writers.  Below it is taken a clock's lists_lock and nothing else, no list's lock. */
    pthread_mutex_t lock;
    /* The rest is atomic, and written under the lock. */
    unsigned seq; /* odd while a writer is in */
    bool running;
    bool counting; /* instruction counting is on */
    bool warping;
    int shift;
    int64_t rt_base_ns; /* VIRTUAL_RT while stopped; while running, that less REALTIME */
    int64_t base_ticks; /* the same of the host's cycle counter */
    int64_t base_ns, base_count;
    int64_t warp_start_ns; /* of VIRTUAL_RT: where VIRTUAL began to follow it; may lie ahead */
    int64_t warp_limit_ns; /* of VIRTUAL: how far it follows */
    int64_t stop_rt_ns;    /* VIRTUAL_RT at the stop: a replaced source may go on */
    int64_t rt_zero_ns;    /* `auto` aims at VIRTUAL == VIRTUAL_RT - rt_zero_ns */

    int64_t count __attribute__((aligned(64))); /* atomic: instructions, by anyone */
};

extern struct virtual_clock virtual_clock;

/* Sums and differences of times saturate, above at INT64_MAX - 1: INT64_MAX is no time. */
static inline int64_t ns_add(int64_t a, int64_t b)
{
    int64_t sum;

    if (__builtin_add_overflow(a, b, &sum)) {
        return b < 0 ? INT64_MIN : INT64_MAX - 1;
    }
    return sum == INT64_MAX ? INT64_MAX - 1 : sum;
}

static inline int64_t ns_sub(int64_t a, int64_t b)
{
    int64_t difference;

    if (__builtin_sub_overflow(a, b, &difference)) {
        return b > 0 ? INT64_MIN : INT64_MAX - 1;
    }
    return difference == INT64_MAX ? INT64_MAX - 1 : difference;
}

/* Negative for a reader alone who meets a writer, and who reads again. */
static inline int64_t ns_of_instructions(int64_t n, int shift)
{
    return n > (INT64_MAX - 1) >> shift ? INT64_MAX - 1 : (int64_t)((uint64_t)n << shift);
}

/* VIRTUAL, whatever its source was replaced by.  Takes no lock; waits for a writer who is in. */
int64_t virtual_get_ns(void);

/* Whether VIRTUAL was started.  Lock-free; sequentially consistent with the start. */
bool virtual_is_running(void);

/* A writer: readers repeat their reading from begin to end. */
void virtual_write_begin(void);
void virtual_write_end(void);

/* What follows is for a writer. */

/* Moves the base to now; returns VIRTUAL and, in *ret_rt_ns, VIRTUAL_RT of one moment. */
int64_t virtual_rebase_locked(int64_t *ret_rt_ns);

/* Turns counting on, from 0 instructions and where VIRTUAL is, or off; then VIRTUAL and
 * VIRTUAL_RT go on from the later of the two.  VIRTUAL is stopped. */
void virtual_count_on_locked(int shift);
void virtual_count_off_locked(void);

#endif
