/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: what does it cost to arm, move, cancel and fire a timer as the number of armed
 * timers grows, here and in other libraries?
 *
 *   churn       n timers armed; one operation moves a random one to a random deadline
 *   io-timeout  n timers armed; one operation arms one at now + 30 s and cancels the oldest, which
 *               is what a request with a deadline costs
 *   fire        n timers armed and due; one operation is one of them fired by the loop
 *   tail        every operation timed by itself, the slowest counts: see timer_tail.c
 *   remote      a thread arms and cancels timers of a loop that another thread runs: see
 *               timer_remote.c
 *   read        one operation reads the soonest deadline, while others write: see timer_read.c
 *   slack       wake-ups that timer_mod_range_ns() saves: see timer_slack.c
 *   memory      bytes per timer, the user's and the library's, and per loop: see timer_memory.c
 */
#include "timer_cases.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SIZES_MAX 16

const struct timer_impl *const timer_impls[] = {
    &timer_aioctx,
    &timer_aioctx_lists,
#ifdef HAVE_LIBEV
    &timer_libev,
#endif
#ifdef HAVE_LIBUV
    &timer_libuv,
#endif
#ifdef HAVE_LIBEVENT
    &timer_libevent,
#endif
#ifdef HAVE_GLIB
    &timer_glib,
#endif
    NULL,
};
#define IMPLS (sizeof(timer_impls) / sizeof(timer_impls[0]) - 1)

/* The first three as in enum timer_op. */
enum { TAIL = FIRE + 1, REMOTE, READ, SLACK, MEMORY, CASES };
static const char *const case_names[] = { "churn", "io-timeout", "fire",   "tail", "remote",
                                          "read",  "slack",      "memory", NULL };

/* In remote and read alone. */
static const char *const shared_names[] = { "aioctx-group", "libev-mutex", "libev-quiet",
                                            "list-mutex" };
#define SHARED_NAMES (sizeof(shared_names) / sizeof(shared_names[0]))

size_t timer_stride;

void timer_loop_init(struct timer_loop *loop, uint32_t n, size_t size, size_t tag)
{
    loop->stride = size > timer_stride ? size : timer_stride;
    loop->n = n;
    loop->timers = bench_alloc(n * loop->stride + 1);
    for (uint32_t i = 0; i < n; i++) {
        struct timer_tag *t = (struct timer_tag *)((char *)timer_at(loop, i) + tag);
        *t = (struct timer_tag){ .loop = loop, .index = i };
    }
}

void timer_loop_cleanup(struct timer_loop *loop)
{
    free(loop->timers);
}

static uint32_t limit_of(const struct timer_impl *impl, enum timer_limit limit)
{
    uint32_t ops = impl->n_max, fire = impl->n_max_fire;
    return limit == LIMIT_OPS ? ops : limit == LIMIT_FIRE || fire < ops ? fire : ops;
}

unsigned timer_select(const struct timer_impl **selected, const char *impl_list, uint32_t n,
                      enum timer_limit limit)
{
    static_assert(IMPLS <= TIMER_IMPLS_MAX, "room for all");
    unsigned nr = 0;
    for (unsigned i = 0; i < IMPLS; i++) {
        if (n <= limit_of(timer_impls[i], limit) && bench_listed(impl_list, timer_impls[i]->name)) {
            selected[nr++] = timer_impls[i];
        }
    }
    return nr;
}

static unsigned parse_sizes(const char *list, uint32_t *sizes)
{
    unsigned nr = 0;
    char *copy = strdup(list), *save = NULL;
    for (char *p = strtok_r(copy, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        if (nr < SIZES_MAX) {
            sizes[nr++] = (uint32_t)bench_number("--n", p, 1, 1000000);
        }
    }
    free(copy);
    if (!nr) {
        bench_number("--n", list, 1, 1000000); /* says what was expected */
    }
    return nr;
}

/* The table's reader is told where a library is missing and why. */
static void print_left_out(const uint32_t *sizes, unsigned nr_sizes, const char *impl_list,
                           enum timer_limit limit)
{
    uint32_t most = 0;
    for (unsigned s = 0; s < nr_sizes; s++) {
        most = sizes[s] > most ? sizes[s] : most;
    }
    for (unsigned i = 0; i < IMPLS; i++) {
        uint32_t n_max = limit_of(timer_impls[i], limit);
        if (n_max && most > n_max && bench_listed(impl_list, timer_impls[i]->name)) {
            printf("  %s: no more than %u timers, it takes too long beyond\n", timer_impls[i]->name,
                   n_max);
        }
    }
}

static void run_sized_case(struct bench *b, int which, const uint32_t *sizes, unsigned nr_sizes,
                           const char *impl_list)
{
    for (unsigned i = 0; i < nr_sizes; i++) {
        if (which == TAIL) {
            timer_tail_run(b, sizes[i], impl_list);
        } else if (which == REMOTE) {
            timer_remote_run(b, sizes[i], impl_list);
        } else {
            timer_ops_run(b, which, sizes[i], impl_list);
        }
    }
    if (which == TAIL) {
        timer_tail_print(b);
    } else if (which == REMOTE) {
        timer_remote_print(b);
        return;
    } else {
        bench_print(b, case_names[which], BENCH_CPU_NS_PER_OP);
    }
    print_left_out(sizes, nr_sizes, impl_list,
                   which == FIRE   ? LIMIT_FIRE
                   : which == TAIL ? LIMIT_BOTH
                                   : LIMIT_OPS);
}

static void run_case(struct bench *b, int which, const uint32_t *sizes, unsigned nr_sizes,
                     const char *impl_list)
{
    switch (which) {
    case READ:
        timer_read_run(b, impl_list);
        bench_print(b, "read", BENCH_OPS_PER_S);
        break;
    case SLACK:
        timer_slack_run(b, impl_list);
        bench_print(b, "slack", BENCH_WAKEUPS_PER_K);
        break;
    case MEMORY:
        timer_memory_run(b, impl_list);
        timer_memory_print(b);
        break;
    default:
        run_sized_case(b, which, sizes, nr_sizes, impl_list);
    }
}

int main(int argc, char **argv)
{
    const char *n_list = NULL, *case_list = NULL, *impl_list = NULL, *stride = NULL;
    const char *memory_of = NULL;
    const struct bench_opt opts[] = {
        { "n", "N,...", "armed timers, 1 to 1000000 (default: powers of ten)", &n_list },
        { "case", "CASE,...",
          "of churn, io-timeout, fire, tail, remote, read, slack, memory (default all)",
          &case_list },
        { "impl", "IMPL,...", "of those that were built in (default all)", &impl_list },
        { "stride", "BYTES", "from one timer to the next (default: their size)", &stride },
        { "memory-of", "IMPL", NULL, &memory_of }, /* see timer_memory.c */
        { 0 },
    };
    struct bench b;
    bench_init(&b, "timer_bench",
               "Measures arming, moving, cancelling and firing timers as their number grows.", opts,
               argc, argv);
    const char *known[IMPLS + SHARED_NAMES + 1] = { 0 };
    for (unsigned i = 0; i < IMPLS; i++) {
        known[i] = timer_impls[i]->name;
    }
    memcpy(known + IMPLS, shared_names, sizeof(shared_names));
    bench_check_list("--impl", impl_list, known);
    bench_check_list("--case", case_list, case_names);
    timer_stride = stride ? (size_t)bench_number("--stride", stride, 16, 4096) / 16 * 16 : 0;
    if (memory_of) {
        return timer_memory_child(memory_of, n_list ? n_list : "");
    }
    uint32_t sizes[SIZES_MAX];
    const char *usual = b.smoke ? "1,1000" : "1,10,100,1000,10000,100000,1000000";
    const char *usual_remote = b.smoke ? "1,1000" : "1,1000,1000000";

    for (int i = 0; i < CASES; i++) {
        if (bench_listed(case_list, case_names[i])) {
            const char *list = n_list ? n_list : i == REMOTE ? usual_remote : usual;
            unsigned nr_sizes = parse_sizes(list, sizes);
            run_case(&b, i, sizes, nr_sizes, impl_list);
        }
    }
    return bench_finish(&b);
}
