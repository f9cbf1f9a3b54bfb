/* SPDX-License-Identifier: MIT */
/* What deadline_bench measures: ways to have the calling thread run at a given time. */
#ifndef BENCH_DEADLINE_IMPL_H
#define BENCH_DEADLINE_IMPL_H

#include "bench.h"

struct deadline_source {
    const char *name;
    /* The thread's timer slack puts its deadlines off. */
    bool slack;
    /* Makes the source's state for the calling thread; NULL: this machine cannot. */
    void *(*open)(const struct deadline_source *source);
    /* Has the calling thread sleep until @deadline_ns of CLOCK_MONOTONIC, and returns the time at
     * which the first line of its code ran after that. */
    uint64_t (*wait)(void *state, uint64_t deadline_ns);
    void (*close)(void *state);
    int variant; /* for open() */
};

extern const struct deadline_source deadline_spin, deadline_sigwait, deadline_handler,
    deadline_timerfd, deadline_timerfd_epoll, deadline_ppoll, deadline_epoll_pwait2,
    deadline_uring_rel, deadline_uring_abs, deadline_uring_timeout, deadline_aioctx,
    deadline_aioctx_epoll, deadline_aioctx_ppoll, deadline_aioctx_precise;

/* deadline_aioctx_precise's lead, set before it is opened. */
extern int64_t deadline_lead_ns;

/* How long from now, at least 1 ns. */
static inline uint64_t deadline_left(uint64_t deadline_ns)
{
    uint64_t now = bench_now_ns();
    return deadline_ns > now ? deadline_ns - now : 1;
}

#define DEADLINE_TIMESPEC(ns) \
    { \
        .tv_sec = (ns) / 1000000000, .tv_nsec = (ns) % 1000000000 \
    }

#endif
