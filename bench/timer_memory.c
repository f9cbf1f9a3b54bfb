/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: memory.
 *
 *   memory       bytes of one timer that is armed: what the user holds, and with it what the
 *                library has allocated for it
 *   memory-loop  bytes of one loop without timers, beside what is mapped for a ring
 *
 * The allocator is asked before and after, for n timers and for many loops; what the benchmark
 * itself allocates is subtracted.  Without an answer (in a build with AddressSanitizer, for one)
 * only the user's part is told.
 */
#include "timer_cases.h"

#include <malloc.h>
#include <stdlib.h>

#define TIMERS 10000
#define TIMERS_SMOKE 1000
#define LOOPS 16

static size_t allocated(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static uint32_t timers_of(const struct bench *b, const struct timer_impl *impl)
{
    uint32_t n = b->smoke ? TIMERS_SMOKE : TIMERS;
    return n < impl->n_max ? n : impl->n_max;
}

/* Bytes of an empty loop; 0: not known. */
static size_t measure_loops(const struct timer_impl *impl)
{
    struct timer_loop *loops[LOOPS];
    size_t own = 0, before = allocated();
    for (int i = 0; i < LOOPS; i++) {
        loops[i] = impl->open(0);
        if (!loops[i]) {
            bench_die("timer_bench: cannot make a loop of %s", impl->name);
        }
        own += sizeof(*loops[i]) + malloc_usable_size(loops[i]->timers);
    }
    size_t bytes = allocated() - before;
    for (int i = 0; i < LOOPS; i++) {
        impl->close(loops[i]);
    }
    return bytes > own && bytes <= SIZE_MAX / 2 ? (bytes - own) / LOOPS : 0;
}

/* Bytes that a loop and @n armed timers take, beside the array that the timers lie in; 0: not
 * known. */
static size_t measure_timers(const struct timer_impl *impl, uint32_t n)
{
    size_t before = allocated();
    struct timer_loop *loop = impl->open(n);
    if (!loop) {
        bench_die("timer_bench: cannot make a loop of %s with %u timers", impl->name, n);
    }
    uint64_t random = 0x2545f491u;
    impl->refresh(loop);
    for (uint32_t i = 0; i < n; i++) {
        impl->arm(loop, i, CHURN_LEAST_NS + (bench_random(&random) & CHURN_SPREAD_NS));
    }
    size_t bytes = allocated() - before, array = n * loop->stride;
    impl->close(loop);
    return bytes > array && bytes <= SIZE_MAX / 2 ? bytes - array : 0;
}

static void measure(struct bench *b, const struct timer_impl *impl)
{
    impl->close(impl->open(1)); /* what is made once */
    uint32_t n = timers_of(b, impl);
    size_t user = impl->timer_bytes();
    size_t loop = measure_loops(impl), with_timers = measure_timers(impl, n);
    struct bench_row *row = bench_row(b, "memory", impl->name, 1, n);
    bench_sample(row, BENCH_USER_BYTES, (double)user);
    if (loop && with_timers) {
        double library = with_timers > loop ? (double)(with_timers - loop) / n : 0;
        bench_sample(row, BENCH_BYTES, (double)user + library);
        bench_sample(bench_row(b, "memory-loop", impl->name, 1, 1), BENCH_BYTES, (double)loop);
    }
}

void timer_memory_run(struct bench *b, const char *impl_list)
{
    for (unsigned i = 0; timer_impls[i]; i++) {
        if (timer_impls[i]->n_max && bench_listed(impl_list, timer_impls[i]->name)) {
            measure(b, timer_impls[i]);
        }
    }
}

void timer_memory_print(struct bench *b)
{
    bench_print(b, "memory", BENCH_BYTES);
    bench_print(b, "memory-loop", BENCH_BYTES);
}
