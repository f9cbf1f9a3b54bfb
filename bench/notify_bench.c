/* SPDX-License-Identifier: MIT */
/*
 * notify_bench: what does it cost to wake another thread, beside the kernel's own means and other
 * loops?
 *
 *   roundtrip           two loops on two processors wake each other in turn; one operation is one
 *                       round trip: two wake-ups of a sleeping thread
 *   oneway              the same, and the latencies are from the call that wakes to the callback
 *   roundtrip-same-cpu  the same as roundtrip on one processor: no idle processor has to be woken,
 *                       so that the software's share shows
 *   notify-awake, notify-contended, notify-burst
 *                       wake-ups that nobody sleeps for: see notify_awake.c
 *
 * --threads N: N pairs, or N notifying threads, at once.  Each thread is pinned to a processor, as
 * the cases are about which ones; but in notify-awake not where there are too few for all.
 */
#include "notify_impl.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES_MAX 100000

const struct notify_impl *const notify_impls[] = {
    &notify_aioctx,
    &notify_aioctx_epoll,
    &notify_aioctx_ppoll,
    &notify_futex,
    &notify_eventfd,
    &notify_eventfd_epoll,
    &notify_msg_ring,
    &notify_msg_send,
    &notify_ring_read,
    &notify_ring_poll,
    &notify_ring_futex,
#ifdef HAVE_LIBUV
    &notify_libuv,
#endif
#ifdef HAVE_GLIB
    &notify_glib,
#endif
    &notify_spin,
    &notify_aioctx_polling,
    &notify_aioctx_epoll_polling,
    NULL,
};
#define IMPLS (sizeof(notify_impls) / sizeof(notify_impls[0]) - 1)

/* ---- Round trips ----------------------------------------------------------------------------- */

struct trip_job {
    const struct notify_impl *impl;
    struct ping_pong *pps; /* one a thread */
    atomic_bool cannot;
};

static void trip_thread(unsigned index, void *opaque)
{
    struct trip_job *job = opaque;
    if (!notify_ping_pong(job->impl, &job->pps[index])) {
        atomic_store(&job->cannot, true);
    }
}

/* The latencies of all pairs go into one distribution. */
static void collect_trips(struct bench *b, const char *case_name, const struct trip_job *job,
                          unsigned threads)
{
    double wall = 0, cpu = 0, per_s = 0;
    size_t nr = 0;
    uint64_t *all = job->pps[0].samples;
    for (unsigned t = 0; t < threads; t++) {
        struct ping_pong *pp = &job->pps[t];
        wall += (double)pp->wall_ns / (double)pp->trips / threads;
        cpu += (double)(pp->cpu_ns[0] + pp->cpu_ns[1]) / (double)pp->trips / threads;
        per_s += 1e9 * (double)pp->trips / (double)pp->wall_ns;
        memmove(all + nr, pp->samples, pp->nr_samples * sizeof(*all));
        nr += pp->nr_samples;
        bench_check(b, !pp->failed, "%s: %s lost or doubled a trip", case_name, job->impl->name);
        b->checksum += !pp->failed;
    }
    struct bench_row *row = bench_row(b, case_name, job->impl->name, threads, 1);
    bench_sample(row, BENCH_NS_PER_OP, wall);
    bench_sample(row, BENCH_CPU_NS_PER_OP, cpu);
    bench_sample(row, BENCH_OPS_PER_S, per_s);
    bench_sample_latencies(row, all, nr);
}

/* One run; returns false when this machine cannot do it. */
static bool run_trip(struct bench *b, const char *case_name, const struct notify_impl *impl,
                     struct ping_pong *pps, uint64_t *samples)
{
    unsigned threads = b->threads ? b->threads : 1;
    bool same_cpu = !strcmp(case_name, "roundtrip-same-cpu");
    for (unsigned t = 0; t < threads; t++) {
        pps[t] = (struct ping_pong){
            .cpu = { same_cpu ? t : 2 * t, same_cpu ? t : 2 * t + 1 },
            .oneway = !strcmp(case_name, "oneway"),
            .run_ns = b->run_ms * UINT64_C(1000000),
            .samples = samples + (size_t)t * SAMPLES_MAX,
            .samples_max = SAMPLES_MAX,
        };
    }
    struct trip_job job = { .impl = impl, .pps = pps };
    bench_threads(threads, false, trip_thread, &job);
    if (!atomic_load(&job.cannot)) {
        collect_trips(b, case_name, &job, threads);
        return true;
    }
    printf("%s: %s skipped: this machine cannot do it\n", case_name, impl->name);
    return false;
}

/* All implementations in turn; each round begins with another one. */
static void run_trips(struct bench *b, const char *case_name, const char *impl_list)
{
    unsigned threads = b->threads ? b->threads : 1;
    bool cannot[IMPLS] = { 0 }, same_cpu = !strcmp(case_name, "roundtrip-same-cpu");
    uint64_t *samples = bench_alloc((size_t)threads * SAMPLES_MAX * sizeof(*samples));
    struct ping_pong *pps = bench_alloc(threads * sizeof(*pps));
    for (unsigned run = 0; run < b->runs; run++) {
        for (unsigned k = 0; k < IMPLS; k++) {
            unsigned i = (k + run) % IMPLS;
            const struct notify_impl *impl = notify_impls[i];
            if (!cannot[i] && bench_listed(impl_list, impl->name) && !(same_cpu && impl->spins)) {
                cannot[i] = !run_trip(b, case_name, impl, pps, samples);
            }
        }
    }
    free(pps);
    free(samples);
    bench_print(b, case_name, BENCH_P50_NS);
}

/* ---- The program ----------------------------------------------------------------------------- */

static void run_case(struct bench *b, const char *name, const char *impl_list)
{
    if (!strncmp(name, "notify", 6)) {
        notify_awake_run(b, name, impl_list);
    } else if (bench_cpus() > 1 || !strcmp(name, "roundtrip-same-cpu")) {
        run_trips(b, name, impl_list);
    } else {
        printf("%s skipped: there is one processor\n", name);
    }
}

int main(int argc, char **argv)
{
    static const char *const cases[] = {
        "roundtrip",    "oneway", "roundtrip-same-cpu", "notify-awake", "notify-contended",
        "notify-burst", NULL,
    };
    const char *case_list = NULL, *impl_list = NULL;
    const struct bench_opt opts[] = {
        { "pin", NULL, NULL, NULL }, /* they always are, as each case says */
        { "case", "CASE,...",
          "of roundtrip, oneway, roundtrip-same-cpu, notify-awake, notify-contended,\n"
          "                       notify-burst (default all)",
          &case_list },
        { "impl", "IMPL,...", "rows of the tables (default all)", &impl_list },
        { 0 },
    };
    struct bench b;
    bench_init(&b, "notify_bench", "Measures wake-ups from one thread to another.", opts, argc,
               argv);
    const char *known[IMPLS + 1] = { 0 };
    for (unsigned i = 0; i < IMPLS; i++) {
        known[i] = notify_impls[i]->name;
    }
    bench_check_list("--impl", impl_list, known);
    bench_check_list("--case", case_list, cases);
#ifndef HAVE_LIBUV
    printf("libuv is not in this build: the library was not found\n");
#endif
#ifndef HAVE_GLIB
    printf("glib is not in this build: the library was not found\n");
#endif
    for (unsigned i = 0; cases[i]; i++) {
        if (bench_listed(case_list, cases[i])) {
            run_case(&b, cases[i], impl_list);
        }
    }
    return bench_finish(&b);
}
