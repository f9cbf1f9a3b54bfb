/* SPDX-License-Identifier: MIT */
/*
 * timer_bench, read: how long is it until the soonest deadline?
 *
 * One operation asks that, which includes one read of the clock.  n is the number of threads that
 * arm and cancel timers behind the head meanwhile, 0 or 1: the writer is the home thread.
 *
 * The reader turns between it and reads of the clock alone, millisecond by millisecond; to_clock is
 * the CPU time of the one as a multiple of the other's.
 *
 *   clock         one read of CLOCK_MONOTONIC and nothing else
 *   aioctx        timerlist_deadline_ns()
 *   aioctx-group  timerlistgroup_deadline_ns(), which asks the lists of four clocks
 *   list-mutex    the head of a sorted list, under the lock that its writer takes
 */
#include "timer_cases.h"
#include "timer_shared.h"

#define ARMED 1000
#define BATCH 256

static const struct shared_impl *const read_impls[] = { &shared_aioctx, &shared_aioctx_group,
                                                        &shared_list };
#define IMPLS (sizeof(read_impls) / sizeof(read_impls[0]))

#define SLICE_NS MS_NS

struct reading {
    struct bench *b;
    const char *impl_list;
    uint64_t sum;
    bool failed;
    bool clock_done; /* in this run: the clock's own row */
};

/* Operations and the time they took. */
struct work {
    uint64_t ops;
    struct bench_span span;
};

static void work_add(struct work *w, uint64_t ops, const struct bench_span *span)
{
    w->ops += ops;
    w->span.wall_ns += span->wall_ns;
    w->span.cpu_ns += span->cpu_ns;
}

static double cpu_ns_per_op(const struct work *w)
{
    return (double)w->span.cpu_ns / (double)w->ops;
}

static void sample(struct bench *b, const char *impl, unsigned writers, const struct work *w)
{
    struct bench_row *row = bench_row(b, "read", impl, 1, writers);
    bench_sample(row, BENCH_NS_PER_OP, (double)w->span.wall_ns / (double)w->ops);
    bench_sample(row, BENCH_CPU_NS_PER_OP, cpu_ns_per_op(w));
    bench_sample(row, BENCH_OPS_PER_S, 1e9 * (double)w->ops / (double)w->span.wall_ns);
}

static void read_deadlines(struct reading *r, const struct shared_impl *impl,
                           struct shared_loop *loop, struct work *w)
{
    uint64_t ops = 0, begin = bench_now_ns();
    int64_t least = INT64_MAX, most = INT64_MIN;
    struct bench_span span;
    bench_begin(&span);
    for (; bench_now_ns() - begin < SLICE_NS; ops += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            int64_t ns = impl->deadline_ns(loop);
            least = ns < least ? ns : least;
            most = ns > most ? ns : most;
        }
    }
    bench_end(&span);
    r->failed |= least <= 0 || most > (int64_t)SHARED_HEAD_NS; /* always the head's */
    work_add(w, ops, &span);
}

static void read_clock(struct reading *r, struct work *w)
{
    uint64_t ops = 0, begin = bench_now_ns();
    struct bench_span span;
    bench_begin(&span);
    for (; bench_now_ns() - begin < SLICE_NS; ops += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            r->sum += bench_now_ns();
        }
    }
    bench_end(&span);
    work_add(w, ops, &span);
}

static void run_with(struct reading *r, const struct shared_impl *impl, struct shared_loop *loop,
                     unsigned writers)
{
    struct work deadlines = { 0 }, clock = { 0 };
    while (deadlines.span.wall_ns < r->b->run_ms * MS_NS) {
        read_deadlines(r, impl, loop, &deadlines);
        read_clock(r, &clock);
    }
    sample(r->b, impl->name, writers, &deadlines);
    bench_sample(bench_row(r->b, "read", impl->name, 1, writers), BENCH_TO_CLOCK,
                 cpu_ns_per_op(&deadlines) / cpu_ns_per_op(&clock));
    if (!r->clock_done) {
        sample(r->b, "clock", writers, &clock);
    }
}

static void run_one(struct reading *r, const struct shared_impl *impl)
{
    struct shared_worker w;
    struct shared_loop *loop = shared_open(impl, ARMED, r->b->pin);
    run_with(r, impl, loop, 0);
    shared_work_begin(&w, impl, loop, r->b->pin);
    run_with(r, impl, loop, 1);
    shared_work_end(&w);
    impl->close(loop);
    r->clock_done = true;
}

static void reader(unsigned thread, void *opaque)
{
    struct reading *r = opaque;
    for (unsigned run = 0; run < r->b->runs; run++) {
        r->clock_done = false;
        for (unsigned i = 0; i < IMPLS; i++) {
            if (bench_listed(r->impl_list, read_impls[i]->name)) {
                run_one(r, read_impls[i]);
            }
        }
    }
}

void timer_read_run(struct bench *b, const char *impl_list)
{
    struct reading r = { .b = b, .impl_list = impl_list };
    bench_threads(1, b->pin, reader, &r);
    bench_check(b, !r.failed, "read: a deadline was not the head's");
    b->checksum += r.sum != 0;
}
