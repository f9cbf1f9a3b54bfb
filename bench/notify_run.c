/* SPDX-License-Identifier: MIT */
/* notify_bench: a run of round trips, between two plain threads and between two loops. */
#include "notify_impl.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct run;

struct side {
    struct run *run;
    unsigned me;
    void *loop;
};

struct run {
    const struct notify_impl *impl;
    struct ping_pong *pp;
    void *state; /* of the transport */
    struct side sides[2];
    uint64_t begin_ns;
    pthread_barrier_t barrier;
    atomic_bool cannot, stop;
};

/* ---- Plain threads --------------------------------------------------------------------------- */

static void ping_side(struct run *r)
{
    const struct transport *t = r->impl->transport;
    do {
        t->pass(r->state, 0, true);
    } while (ping_pong_trip(r->pp, r->begin_ns));
    atomic_store(&r->stop, true);
    t->pass(r->state, 0, false);
}

static void pong_side(struct run *r)
{
    const struct transport *t = r->impl->transport;
    for (t->wait(r->state, 1); !atomic_load(&r->stop);) {
        ping_pong_answer(r->pp);
        t->pass(r->state, 1, true);
    }
}

/* ---- Loops ----------------------------------------------------------------------------------- */

static void wake_other(struct side *s)
{
    s->run->impl->loop->wake(s->run->sides[!s->me].loop);
}

static void woken(void *opaque)
{
    struct side *s = opaque;
    struct run *r = s->run;
    bool go_on = s->me == 0 ? ping_pong_trip(r->pp, r->begin_ns) : !atomic_load(&r->stop);
    if (go_on) {
        if (s->me == 1) {
            ping_pong_answer(r->pp);
        }
        wake_other(s);
        return;
    }
    r->impl->loop->stop(s->loop);
    if (s->me == 0) {
        atomic_store(&r->stop, true);
        wake_other(s);
    }
}

static void run_loop(struct side *s)
{
    if (s->me == 0) {
        wake_other(s);
    }
    s->run->impl->loop->run(s->loop);
}

/* ---- The run --------------------------------------------------------------------------------- */

static bool open_side(struct side *s)
{
    const struct notify_impl *impl = s->run->impl;
    if (impl->transport) {
        return impl->transport->open(s->run->state, (int)s->me);
    }
    s->loop = impl->loop->open(woken, s);
    return s->loop;
}

static void close_side(struct side *s)
{
    const struct notify_impl *impl = s->run->impl;
    if (impl->transport) {
        impl->transport->close(s->run->state, (int)s->me);
    } else if (s->loop) {
        impl->loop->close(s->loop);
    }
}

static void run_side(unsigned me, void *opaque)
{
    struct run *r = opaque;
    struct side *s = &r->sides[me];
    bench_pin(r->pp->cpu[me]);
    *s = (struct side){ .run = r, .me = me };
    if (!open_side(s)) {
        atomic_store(&r->cannot, true);
    }
    pthread_barrier_wait(&r->barrier);
    if (!atomic_load(&r->cannot)) {
        uint64_t cpu = bench_cpu_ns();
        if (me == 0) {
            r->begin_ns = bench_now_ns();
            atomic_store(&r->pp->sent_ns, r->begin_ns);
        }
        if (r->impl->loop) {
            run_loop(s);
        } else if (me == 0) {
            ping_side(r);
        } else {
            pong_side(r);
        }
        r->pp->cpu_ns[me] = bench_cpu_ns() - cpu;
    }
    pthread_barrier_wait(&r->barrier); /* neither closes what the other still wakes */
    close_side(s);
}

bool notify_ping_pong(const struct notify_impl *impl, struct ping_pong *pp)
{
    struct run r = { .impl = impl, .pp = pp };
    r.state = bench_alloc(impl->transport ? impl->transport->size : 1);
    pthread_barrier_init(&r.barrier, NULL, 2);
    bench_threads(2, false, run_side, &r);
    pthread_barrier_destroy(&r.barrier);
    free(r.state);
    pp->failed = pp->ponged != pp->trips;
    return !atomic_load(&r.cannot);
}
