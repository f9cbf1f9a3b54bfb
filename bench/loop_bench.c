/* SPDX-License-Identifier: MIT */
/*
 * loop_bench: what does the event loop itself cost, beside the system calls that it makes?
 *
 *   empty-MONITOR, event-MONITOR  an iteration with nothing to do, with one fd: see loop_iter.c
 *   bh, bh-oneshot, bh-foreign    a bottom half scheduled and run: see loop_bh.c
 *   nop, read                     an operation on the ring: see loop_op.c
 *   idle, memory                  a loop with nothing to do: see loop_idle.c
 *
 * --threads N: N threads do the same at once, each on a context of its own; not in idle and memory.
 */
#include "loop_impl.h"
#include "test_file.h"

#include <aioctx/aio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const struct loop_side *const tables[] = { loop_iter_sides, loop_bh_sides, loop_op_sides };
#define TABLES (sizeof(tables) / sizeof(tables[0]))

static const char *const case_names[] = {
    "empty-io_uring", "empty-epoll", "empty-ppoll", "event-io_uring",
    "event-epoll",    "event-ppoll", "bh",          "bh-oneshot",
    "bh-foreign",     "nop",         "read",        "idle",
    "memory",         NULL,
};

static const char *const plain_loop[] = { "liburing" };

enum { SIDES_MAX = 8, N_PER_CASE_MAX = 4 };

const char *const loop_monitors[] = { "io_uring", "epoll", "ppoll", NULL };
const struct test_file *loop_file;

const char *loop_impl_of(const char *monitor)
{
    return !strcmp(monitor, "io_uring") ? "aioctx"
           : !strcmp(monitor, "epoll")  ? "aioctx-epoll"
                                        : "aioctx-ppoll";
}

AioContext *loop_context(const char *monitor)
{
    AioContext *ctx = aio_context_new(&(AioContextOptions){ .monitor = monitor });
    if (ctx) {
        qemu_set_current_aio_context(ctx);
    }
    return ctx;
}

/* ---- Runs ------------------------------------------------------------------------------------ */

struct thread_run {
    _Alignas(BENCH_ALIGN) struct bench_share share;
    uint64_t ops, right; /* asked for, and done as they should be */
    bool cannot;
};

struct job {
    struct bench *b;
    const struct loop_side *side;
    struct thread_run *runs; /* one a thread */
};

/* How many operations take about @run_ns; warms up. */
static uint64_t choose_ops(const struct loop_side *side, void *state, uint64_t run_ns)
{
    for (uint64_t ops = side->n;; ops *= 2) {
        uint64_t begin = bench_now_ns();
        side->run(state, ops);
        uint64_t ns = bench_now_ns() - begin + 1;
        if (ns >= run_ns / 8) {
            uint64_t groups = (uint64_t)((double)ops * (double)run_ns / (double)ns) / side->n;
            return (groups ? groups : 1) * side->n;
        }
    }
}

static void run_thread(unsigned index, void *opaque)
{
    struct job *job = opaque;
    const struct loop_side *side = job->side;
    struct thread_run *run = &job->runs[index];
    struct bench_span span;
    void *state = side->open(side);
    if (!state) {
        run->cannot = true;
        return;
    }
    run->ops = choose_ops(side, state, job->b->run_ms * UINT64_C(1000000));
    bench_begin(&span);
    run->right = side->run(state, run->ops);
    bench_end(&span);
    run->share.cpu_ns_per_op = (double)span.cpu_ns / (double)run->ops;
    run->share.ns_per_op = (double)span.wall_ns / (double)run->ops;
    if (side->part_ns) {
        run->share.ns_per_op = run->share.cpu_ns_per_op = side->part_ns(state);
    }
    side->close(state);
}

/* One run on all threads; returns false when this machine cannot do it. */
static bool run_side(struct bench *b, const struct loop_side *side)
{
    unsigned threads = b->threads ? b->threads : 1;
    struct thread_run *runs = bench_alloc(threads * sizeof(*runs));
    struct job job = { b, side, runs };
    struct bench_share shares[256];
    bool can = true;
    bench_threads(threads, b->pin, run_thread, &job);
    for (unsigned t = 0; t < threads; t++) {
        can &= !runs[t].cannot;
        shares[t] = runs[t].share;
        bench_check(b, runs[t].cannot || runs[t].right == runs[t].ops,
                    "%s: %s did %llu of %llu operations", side->case_name, side->impl,
                    (unsigned long long)runs[t].right, (unsigned long long)runs[t].ops);
        b->checksum += !runs[t].cannot;
    }
    if (can) {
        bench_sample_threads(b, side->case_name, side->impl, threads, side->n, shares);
    }
    free(runs);
    return can;
}

/* The sides of a case with the same n, in turns; each round begins with another one. */
static void run_sides(struct bench *b, const struct loop_side *first, unsigned nr,
                      const char *impl_list)
{
    bool cannot[SIDES_MAX] = { 0 };
    for (unsigned round = 0; round < b->runs; round++) {
        for (unsigned k = 0; k < nr; k++) {
            unsigned i = (k + round) % nr;
            if (cannot[i] || !bench_listed(impl_list, first[i].impl)) {
                continue;
            }
            cannot[i] = !run_side(b, &first[i]);
            if (cannot[i]) {
                printf("%s: %s skipped: this machine cannot do it\n", first[i].case_name,
                       first[i].impl);
            }
        }
    }
}

static bool same_group(const struct loop_side *a, const struct loop_side *b)
{
    return b->case_name && a->n == b->n && !strcmp(a->case_name, b->case_name);
}

static void run_table_case(struct bench *b, const char *name, const char *impl_list)
{
    for (unsigned t = 0; t < TABLES; t++) {
        for (const struct loop_side *s = tables[t]; s->case_name;) {
            unsigned nr = 1;
            while (same_group(s, &s[nr]) && nr < SIDES_MAX) {
                nr++;
            }
            if (!strcmp(s->case_name, name)) {
                run_sides(b, s, nr, impl_list);
            }
            s += nr;
        }
    }
    bench_sample_best(b, name, plain_loop, 1);
    bench_print(b, name, BENCH_CPU_NS_PER_OP);
}

static void run_case(struct bench *b, const char *name, const char *impl_list, unsigned idle_ms)
{
    struct test_file file;
    if (!strcmp(name, "idle")) {
        loop_idle_run(b, idle_ms);
    } else if (!strcmp(name, "memory")) {
        loop_memory_run(b);
    } else if (strcmp(name, "read")) {
        run_table_case(b, name, impl_list);
    } else if (test_file_open(&file, NULL, b->smoke)) {
        loop_file = &file;
        run_table_case(b, name, impl_list);
        test_file_close(&file);
    }
}

int main(int argc, char **argv)
{
    static const char *const known_impls[] = {
        "aioctx", "aioctx-epoll", "aioctx-ppoll", "aioctx-blk",     "enter", "epoll_wait",
        "ppoll",  "mutex-list",   "liburing",     "liburing-fixed", NULL,
    };
    const char *case_list = NULL, *impl_list = NULL, *idle = NULL, *memory_of = NULL;
    const struct bench_opt opts[] = {
        { "case", "CASE,...", "of those that the table's headers name, idle, memory (default all)",
          &case_list },
        { "impl", "IMPL,...", "rows of the tables (default all)", &impl_list },
        { "idle-ms", "N", "how long the loops of idle do nothing (default 5000)", &idle },
        { "memory-of", "MONITOR", NULL, &memory_of }, /* see loop_idle.c */
        { 0 },
    };
    struct bench b;
    bench_init(&b, "loop_bench",
               "Measures iterations of the event loop, bottom halves, operations, and idling.",
               opts, argc, argv);
    if (memory_of) {
        return loop_memory_child(memory_of);
    }
    bench_check_list("--case", case_list, case_names);
    bench_check_list("--impl", impl_list, known_impls);
    unsigned idle_ms = idle      ? (unsigned)bench_number("--idle-ms", idle, 1, 600000)
                       : b.smoke ? 40
                                 : 5000;

    for (unsigned c = 0; case_names[c]; c++) {
        if (bench_listed(case_list, case_names[c])) {
            run_case(&b, case_names[c], impl_list, idle_ms);
        }
    }
    return bench_finish(&b);
}
