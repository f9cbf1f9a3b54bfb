/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: memory.
 *
 *   memory       bytes of one timer that is armed, of n with random deadlines: what the user holds,
 *                and with it what the library needs for it
 *   memory-loop  bytes of one loop without timers, beside what is mapped for its ring
 *
 * Each measurement is a process of its own, this program again, so that nothing is left from the
 * one before.  It adds up what the kernel says of its mappings (/proc/self/smaps): pages that the
 * process has written, in memory or swapped out, whoever mapped them and for what, but for rings.
 * So memory that a library has reserved and never touched does not count, nor does what the kernel
 * holds for a file descriptor.  Pages are small ones.  What the benchmark itself holds is
 * subtracted, and what a library makes once is there before the first look.  A sanitizer's own
 * memory counts like all other: in such a build the figures say nothing.
 */
#include "memory.h"
#include "timer_cases.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define LOOPS 64
#define RUNS_MAX 5

static const uint32_t sizes[] = { 1000, 10000, 100000, 1000000 };
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

/* ---- The process that is measured ------------------------------------------------------------ */

static struct timer_loop *need_loop(const struct timer_impl *impl, uint32_t n)
{
    struct timer_loop *loop = impl->open(n);
    if (!loop) {
        bench_die("timer_bench: cannot make a loop of %s with %u timers", impl->name, n);
    }
    return loop;
}

static void arm_all(const struct timer_impl *impl, struct timer_loop *loop)
{
    uint64_t random = 0x2545f491u;
    impl->refresh(loop);
    for (uint32_t i = 0; i < loop->n; i++) {
        impl->arm(loop, i, CHURN_LEAST_NS + (bench_random(&random) & CHURN_SPREAD_NS));
    }
}

/* Bytes of one of LOOPS empty loops, beside what the benchmark holds for it. */
static int64_t loop_bytes(const struct timer_impl *impl)
{
    struct timer_loop *loops[LOOPS];
    int64_t before = (int64_t)bench_written_bytes(NULL), own = 0;
    for (unsigned i = 0; i < LOOPS; i++) {
        loops[i] = need_loop(impl, 0);
        own +=
            (int64_t)malloc_usable_size(loops[i]) + (int64_t)malloc_usable_size(loops[i]->timers);
    }
    int64_t bytes = (int64_t)bench_written_bytes(NULL) - before - own;
    for (unsigned i = 0; i < LOOPS; i++) {
        impl->close(loops[i]);
    }
    return bytes / LOOPS;
}

/* Bytes of a loop and its @n armed timers, beside the array that the timers lie in. */
static int64_t timers_bytes(const struct timer_impl *impl, uint32_t n)
{
    int64_t before = (int64_t)bench_written_bytes(NULL);
    struct timer_loop *loop = need_loop(impl, n);
    arm_all(impl, loop);
    int64_t bytes = (int64_t)bench_written_bytes(NULL) - before - (int64_t)(n * loop->stride);
    impl->close(loop);
    return bytes;
}

static const struct timer_impl *find_impl(const char *name)
{
    for (unsigned i = 0; timer_impls[i]; i++) {
        if (!strcmp(timer_impls[i]->name, name)) {
            return timer_impls[i];
        }
    }
    bench_die("timer_bench: --memory-of: there is no '%s'", name);
}

int timer_memory_child(const char *impl_name, const char *n_text)
{
    const struct timer_impl *impl = find_impl(impl_name);
    uint32_t n = (uint32_t)bench_number("--n", n_text, 0, 1000000);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    bench_written_bytes(NULL); /* what reading takes */
    struct timer_loop *first = need_loop(impl, 1);
    arm_all(impl, first); /* it stays: freed memory would be handed out again, unseen */
    if (n) {
        printf("%lld\n", (long long)timers_bytes(impl, n));
    } else {
        printf("%lld\n", (long long)loop_bytes(impl));
    }
    impl->close(first);
    return 0;
}

/* ---- The parent ------------------------------------------------------------------------------ */

/* What a process says that measures @n timers; 0: empty loops. */
static double ask_child(const struct bench *b, const struct timer_impl *impl, uint32_t n)
{
    char n_text[16], stride[40];
    const char *argv[7] = { "--memory-of", impl->name, "--n", n_text };
    unsigned nr = 4;
    snprintf(n_text, sizeof(n_text), "%u", n);
    if (b->smoke) {
        argv[nr++] = "--smoke";
    }
    if (timer_stride) {
        snprintf(stride, sizeof(stride), "--stride=%zu", timer_stride);
        argv[nr++] = stride;
    }
    return (double)bench_ask_self(argv);
}

static void measure(struct bench *b, const struct timer_impl *impl)
{
    double loop = ask_child(b, impl, 0), user = (double)impl->timer_bytes();
    bench_check(b, loop > 0, "memory: a loop of %s takes no memory", impl->name);
    bench_sample(bench_row(b, "memory-loop", impl->name, 1, 0), BENCH_BYTES, loop);
    b->checksum = b->checksum * 31 + (loop > 0);
    for (unsigned i = 0; i < (b->smoke ? 1 : SIZES); i++) {
        if (sizes[i] > impl->n_max) {
            break;
        }
        struct bench_row *row = bench_row(b, "memory", impl->name, 1, sizes[i]);
        bench_sample(row, BENCH_USER_BYTES, user);
        bench_sample(row, BENCH_BYTES, user + (ask_child(b, impl, sizes[i]) - loop) / sizes[i]);
    }
}

void timer_memory_run(struct bench *b, const char *impl_list)
{
    for (unsigned run = 0; run < b->runs && run < RUNS_MAX; run++) {
        for (unsigned i = 0; timer_impls[i]; i++) {
            if (timer_impls[i]->n_max && bench_listed(impl_list, timer_impls[i]->name)) {
                measure(b, timer_impls[i]);
            }
        }
    }
}

void timer_memory_print(struct bench *b)
{
    bench_print(b, "memory", BENCH_BYTES);
    bench_print(b, "memory-loop", BENCH_BYTES);
}
