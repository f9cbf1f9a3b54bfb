/* SPDX-License-Identifier: MIT */
/* What notify_bench asks of each way to wake another thread. */
#ifndef BENCH_NOTIFY_IMPL_H
#define BENCH_NOTIFY_IMPL_H

#include "bench.h"

/* One run of round trips between two threads, and its result. */
struct ping_pong {
    _Alignas(BENCH_ALIGN) uint64_t run_ns; /* how long to go on */
    unsigned cpu[2];   /* where the two threads are pinned, as bench_pin() counts */
    uint64_t *samples; /* latencies of round trips, the first samples_max of them */
    size_t samples_max;
    size_t nr_samples;
    uint64_t trips;
    uint64_t wall_ns; /* of all trips */
    uint64_t cpu_ns;  /* of both threads */
    bool failed;      /* a trip was lost or doubled */
};

/* On the pinging thread, at the end of trip number pp->trips; @begin_ns: of the whole run. */
static inline bool ping_pong_trip(struct ping_pong *pp, uint64_t begin_ns, uint64_t *last_ns)
{
    uint64_t now = bench_now_ns();
    if (pp->nr_samples < pp->samples_max) {
        pp->samples[pp->nr_samples++] = now - *last_ns;
    }
    *last_ns = now;
    pp->trips++;
    pp->wall_ns = now - begin_ns;
    return pp->wall_ns < pp->run_ns;
}

struct notify_impl {
    const char *name;
    /* One run.  Returns false when this machine cannot do it. */
    bool (*ping_pong)(struct ping_pong *pp);
};

extern const struct notify_impl notify_aioctx;
extern const struct notify_impl notify_futex;
extern const struct notify_impl notify_eventfd;
extern const struct notify_impl notify_eventfd_epoll;
extern const struct notify_impl notify_msg_ring;

/* Wakes with nobody to be woken, @ops times; returns the time of all. */
struct bench_span notify_eventfd_awake(uint64_t ops);
struct bench_span notify_futex_awake(uint64_t ops);

/* For those made of two plain threads: a transport, and the run over it. */
struct transport {
    size_t size; /* of its state, zeroed at first */
    /* On the thread of side @me; false: cannot.  Both sides are open before the first pass(). */
    bool (*open)(void *state, int me);
    void (*close)(void *state, int me);
    /* Wakes the other side, then, when @wait, sleeps until woken. */
    void (*pass)(void *state, int me, bool wait);
    /* Sleeps until woken. */
    void (*wait)(void *state, int me);
};

bool transport_ping_pong(const struct transport *t, struct ping_pong *pp);

#endif
