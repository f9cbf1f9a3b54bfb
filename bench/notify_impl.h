/* SPDX-License-Identifier: MIT */
/* What notify_bench asks of each way to wake another thread. */
#ifndef BENCH_NOTIFY_IMPL_H
#define BENCH_NOTIFY_IMPL_H

#include "bench.h"

#include <stdatomic.h>

/* One run of round trips between two threads, and its result. */
struct ping_pong {
    _Alignas(BENCH_ALIGN) uint64_t run_ns; /* how long to go on */
    unsigned cpu[2];   /* where the two threads are pinned, as bench_pin() counts */
    bool oneway;       /* the samples are of the way there alone */
    uint64_t *samples; /* latencies, the first samples_max of them */
    size_t samples_max;
    size_t nr_samples;
    /* When the trip that is under way began.  Atomic, since not every way to wake is one that
     * ThreadSanitizer knows as an ordering. */
    _Atomic uint64_t sent_ns;
    uint64_t trips, ponged;
    uint64_t wall_ns;   /* of all trips */
    uint64_t cpu_ns[2]; /* of each thread */
    bool failed;        /* a trip was lost or doubled */
};

static inline void ping_pong_sample(struct ping_pong *pp, uint64_t now)
{
    if (pp->nr_samples < pp->samples_max) {
        pp->samples[pp->nr_samples++] =
            now - atomic_load_explicit(&pp->sent_ns, memory_order_relaxed);
    }
}

/* On the pinging thread, at the end of trip number pp->trips; @begin_ns: of the whole run.  Returns
 * whether there is another one, which begins now. */
static inline bool ping_pong_trip(struct ping_pong *pp, uint64_t begin_ns)
{
    uint64_t now = bench_now_ns();
    if (!pp->oneway) {
        ping_pong_sample(pp, now);
    }
    atomic_store_explicit(&pp->sent_ns, now, memory_order_relaxed);
    pp->trips++;
    pp->wall_ns = now - begin_ns;
    return pp->wall_ns < pp->run_ns;
}

/* On the other thread, when it has been woken, and is going to answer. */
static inline void ping_pong_answer(struct ping_pong *pp)
{
    pp->ponged++;
    if (pp->oneway) {
        ping_pong_sample(pp, bench_now_ns());
    }
}

/* What wakes a plain thread. */
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

/* An event loop that another thread can have call back. */
struct wake_loop {
    /* On the thread that is going to run it.  NULL: cannot.  @woken is called in the loop. */
    void *(*open)(void (*woken)(void *opaque), void *opaque);
    void (*close)(void *loop);
    /* Runs, sleeping where there is nothing to do, until stop(). */
    void (*run)(void *loop);
    /* In a callback of the loop. */
    void (*stop)(void *loop);
    /* Any thread: has woken() called, once for several calls before that. */
    void (*wake)(void *loop);
    /* Any thread: as wake(), but calls nothing.  NULL: there is only wake(). */
    void (*notify)(void *loop);
    /* The wake-ups that made a system call so far.  NULL: it does not say. */
    uint64_t (*sent)(void *loop);
};

/* One of the two. */
struct notify_impl {
    const char *name;
    const struct transport *transport;
    const struct wake_loop *loop;
    bool spins; /* on both sides: nothing to be learnt on one processor */
};

extern const struct notify_impl notify_aioctx; /* io_uring */
extern const struct notify_impl notify_aioctx_epoll;
extern const struct notify_impl notify_aioctx_ppoll;
extern const struct notify_impl notify_aioctx_polling;
extern const struct notify_impl notify_aioctx_epoll_polling;
extern const struct notify_impl notify_futex;
extern const struct notify_impl notify_eventfd;
extern const struct notify_impl notify_eventfd_epoll;
extern const struct notify_impl notify_msg_ring;
extern const struct notify_impl notify_msg_send;
extern const struct notify_impl notify_ring_read;
extern const struct notify_impl notify_ring_poll;
extern const struct notify_impl notify_ring_futex;
extern const struct notify_impl notify_libuv;
extern const struct notify_impl notify_glib;
extern const struct notify_impl notify_spin;

extern const struct notify_impl *const notify_impls[]; /* all of this build, NULL-ended */

/* One run.  Returns false when this machine cannot do it. */
bool notify_ping_pong(const struct notify_impl *impl, struct ping_pong *pp);

/* notify_awake.c: the cases notify-awake, notify-contended and notify-burst. */
void notify_awake_run(struct bench *b, const char *case_name, const char *impl_list);

/* Wakes with nobody to be woken, @ops times. */
void notify_eventfd_awake(uint64_t ops);
void notify_futex_awake(uint64_t ops);

#endif
