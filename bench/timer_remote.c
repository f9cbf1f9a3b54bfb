/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: timers of a loop that runs on another thread.
 *
 *   remote       the loop sleeps for a deadline; a foreign thread arms and cancels timers behind
 *                it.  One operation is an arm and a cancel, in the pattern of io-timeout;
 *                wakeups_per_m counts how often that woke the loop
 *   remote-busy  the home thread does the same at the same time, on timers of its own; the foreign
 *                thread's share
 *   home-busy    the home thread's share
 *   home-alone   the home thread's, before a foreign thread has done anything but fill the loop
 *
 * No library here but ours allows that.  Beside it: libev under a mutex, and a sorted list under a
 * mutex.
 */
#include "timer_cases.h"
#include "timer_shared.h"

#include <aioctx/aio.h>
#include <pthread.h>
#include <stdlib.h>

#define SETTLE_NS (10 * MS_NS) /* until the loop sleeps */
#define PAIRS_FIRST 1024

static const struct shared_impl *const remote_impls[] = {
    &shared_aioctx,
#ifdef HAVE_LIBEV
    &shared_libev,
    &shared_libev_quiet,
#endif
    &shared_list,
};
#define IMPLS (sizeof(remote_impls) / sizeof(remote_impls[0]))

struct remote {
    struct bench *b;
    uint32_t n;
    const char *impl_list;
    struct shared_loop *loops[IMPLS];
};

static bool is_listed(const struct remote *r, unsigned i)
{
    return bench_listed(r->impl_list, remote_impls[i]->name);
}

static void add(const struct remote *r, const char *case_name, unsigned i, uint64_t pairs,
                const struct bench_span *span)
{
    struct bench_row *row = bench_row(r->b, case_name, remote_impls[i]->name, 1, r->n);
    bench_sample(row, BENCH_NS_PER_OP, (double)span->wall_ns / (double)pairs);
    bench_sample(row, BENCH_CPU_NS_PER_OP, (double)span->cpu_ns / (double)pairs);
    bench_sample(row, BENCH_OPS_PER_S, 1e9 * (double)pairs / (double)span->wall_ns);
}

/* The three measurements share the time of a run. */
static uint64_t part_ns(const struct remote *r)
{
    return r->b->run_ms * MS_NS / 3;
}

static uint64_t foreign_pairs(const struct remote *r, unsigned i, struct bench_span *span)
{
    uint64_t pairs = 0, target_ns = part_ns(r), begin = bench_now_ns();
    bench_begin(span);
    for (uint64_t step = PAIRS_FIRST; bench_now_ns() - begin < target_ns; pairs += step) {
        shared_pairs(remote_impls[i], r->loops[i], SIDE_FOREIGN, step);
    }
    bench_end(span);
    return pairs;
}

static void run_asleep(const struct remote *r, unsigned i)
{
    const struct shared_impl *impl = remote_impls[i];
    struct bench_span span;
    bench_sleep_ns(SETTLE_NS);
    uint64_t woken = impl->wakeups ? impl->wakeups(r->loops[i]) : 0;
    uint64_t pairs = foreign_pairs(r, i, &span);
    if (impl->wakeups) {
        bench_sleep_ns(SETTLE_NS); /* a wake-up that is under way counts */
        woken = impl->wakeups(r->loops[i]) - woken;
        bench_sample(bench_row(r->b, "remote", impl->name, 1, r->n), BENCH_WAKEUPS_PER_M,
                     1e6 * (double)woken / (double)pairs);
    }
    add(r, "remote", i, pairs, &span);
    r->b->checksum += pairs != 0;
}

static void run_busy(const struct remote *r, unsigned i)
{
    struct shared_worker w;
    struct bench_span span;
    shared_work_begin(&w, remote_impls[i], r->loops[i], r->b->pin);
    uint64_t pairs = foreign_pairs(r, i, &span);
    shared_work_end(&w);
    add(r, "remote-busy", i, pairs, &span);
    if (w.pairs) {
        add(r, "home-busy", i, w.pairs, &(struct bench_span){ w.wall_ns, w.cpu_ns });
    }
}

static void run_alone(const struct remote *r, unsigned i)
{
    struct shared_worker w;
    shared_work_begin(&w, remote_impls[i], r->loops[i], r->b->pin);
    bench_sleep_ns(part_ns(r));
    shared_work_end(&w);
    if (w.pairs) {
        add(r, "home-alone", i, w.pairs, &(struct bench_span){ w.wall_ns, w.cpu_ns });
    }
}

/* A head that passes meanwhile would wake the loop: each run has a loop of its own. */
static void foreign(unsigned thread, void *opaque)
{
    struct remote *r = opaque;
    for (unsigned run = 0; run < r->b->runs; run++) {
        for (unsigned i = 0; i < IMPLS; i++) {
            if (!is_listed(r, i)) {
                continue;
            }
            r->loops[i] = shared_open(remote_impls[i], r->n, r->b->pin);
            run_alone(r, i);
            run_asleep(r, i);
            run_busy(r, i);
            remote_impls[i]->close(r->loops[i]);
        }
    }
}

void timer_remote_run(struct bench *b, uint32_t n, const char *impl_list)
{
    struct remote r = { .b = b, .n = n, .impl_list = impl_list };
    bench_threads(1, b->pin, foreign, &r);
}

void timer_remote_print(struct bench *b)
{
    bench_print(b, "remote", BENCH_NS_PER_OP);
    bench_print(b, "remote-busy", BENCH_NS_PER_OP);
    bench_print(b, "home-busy", BENCH_NS_PER_OP);
    bench_print(b, "home-alone", BENCH_NS_PER_OP);
}
