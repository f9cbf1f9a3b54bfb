/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: the slowest single operation, the pause that a loop would notice.
 *
 * One trial takes a new loop and n timers through the same operations in the same order, each timed
 * by itself:
 *
 *   tail-arm     arms all of them, to random deadlines far ahead: the n-th among them
 *   tail-expire  one becomes due, four times; one operation is one pass of the loop: the first
 *                expiry after n arms
 *   tail-move    moves random ones to random deadlines
 *   tail-cancel  cancels a random one (arming it again is not timed)
 *   tail-head    cancels the soonest, until none is left: the head of n timers first
 *   tail-pass    all of them due; one operation is one pass of the loop, which with us runs 64 of
 *                them and with others all
 *   tail         all of the above
 *
 * On a shared machine any operation may be hit by an interrupt, or by another program that gets the
 * processor, and among millions some are.  Two things tell this from the library's own time:
 *
 *   p50 to max   of the n-th operation of each trial the least counts, and the percentiles and the
 *                maximum are over these.  A pause that the operation needs comes in every trial,
 *                what came from outside does not hit the same operation in all of them.  (What a
 *                library does at a time that it chooses itself would be hidden, too.)
 *   raw_max      the slowest operation of a trial, with all that came from outside.  Beside it,
 *                empty_max: the longest gap that a loop which only reads the clock saw, right after
 *                the trial and for as long as all its operations took; and over_empty, by how much
 *                the one passes the other, 0 where it does not.  Of each the median of the trials.
 *
 * Nothing is subtracted from p50 to max, and an operation's time includes one read of the clock.
 * How many operations of each kind there are: n, 4, 20000, 20000, n, and with us n / 64.
 */
#include "timer_cases.h"

#include <stdlib.h>
#include <string.h>

#define TRIALS_MAX 5
#define MOVES 20000
#define PASSES_MORE 64
#define MOVES_SMOKE 1000
#define DUE 4
#define DUE_PASSES 8 /* room for passes that find nothing due yet */
#define RUN_LIMIT_NS (60 * 1000 * MS_NS)

enum { ARM, EXPIRE, MOVE, CANCEL, HEAD, PASS, KINDS };
static const char *const case_names[KINDS] = { "tail-arm",    "tail-expire", "tail-move",
                                               "tail-cancel", "tail-head",   "tail-pass" };

/* The operations of one kind, over all trials. */
struct kind {
    uint32_t *least; /* ns of each operation, its least so far; UINT32_MAX: not done yet */
    uint32_t max, nr;
    uint64_t raw_max[TRIALS_MAX];
};

struct entrant {
    const struct timer_impl *impl;
    struct kind kinds[KINDS];
    uint64_t raw_max[TRIALS_MAX], empty_max[TRIALS_MAX];
    bool failed;
};

struct tail {
    struct bench *b;
    uint32_t n, moves;
    unsigned trials;
    struct entrant entrants[TIMER_IMPLS_MAX];
    unsigned nr_entrants;
    uint64_t *delays;
    uint32_t *order;
    /* Of the trial that runs: */
    struct entrant *e;
    struct timer_loop *loop;
    unsigned nr; /* its number */
    uint64_t random;
    uint64_t timed_ns; /* of all operations */
};

static inline void note(struct tail *t, int which, uint32_t op, uint64_t ns)
{
    struct kind *k = &t->e->kinds[which];
    if (op >= k->max) {
        op = k->max - 1;
    }
    if (op >= k->nr) {
        k->nr = op + 1;
    }
    if (ns > k->raw_max[t->nr]) {
        k->raw_max[t->nr] = ns;
    }
    if (ns < k->least[op]) {
        k->least[op] = (uint32_t)ns;
    }
}

/* Ends an operation that began at *@since, where the next one begins. */
static inline void lap(struct tail *t, int which, uint32_t op, uint64_t *since)
{
    uint64_t now = bench_now_ns();
    uint64_t ns = now - *since;
    t->timed_ns += ns;
    note(t, which, op, ns);
    *since = now;
}

static uint64_t far_ahead(struct tail *t)
{
    return CHURN_LEAST_NS + (bench_random(&t->random) & CHURN_SPREAD_NS);
}

/* ---- The operations -------------------------------------------------------------------------- */

static void arm_ops(void *opaque)
{
    struct tail *t = opaque;
    void (*arm)(struct timer_loop *, uint32_t, uint64_t) = t->e->impl->arm;
    t->e->impl->refresh(t->loop);
    for (uint32_t i = 0; i < t->n; i++) {
        t->delays[i] = far_ahead(t);
    }
    uint64_t since = bench_now_ns();
    for (uint32_t i = 0; i < t->n; i++) {
        arm(t->loop, i, t->delays[i]);
        lap(t, ARM, i, &since);
    }
}

static void move_ops(void *opaque)
{
    struct tail *t = opaque;
    void (*arm)(struct timer_loop *, uint32_t, uint64_t) = t->e->impl->arm;
    uint64_t since = bench_now_ns();
    for (uint32_t op = 0; op < t->moves; op++) {
        uint32_t i = bench_random_below(&t->random, t->n);
        t->delays[i] = far_ahead(t);
        arm(t->loop, i, t->delays[i]);
        lap(t, MOVE, op, &since);
    }
}

static void cancel_ops(void *opaque)
{
    struct tail *t = opaque;
    for (uint32_t op = 0; op < t->moves; op++) {
        uint32_t i = bench_random_below(&t->random, t->n);
        uint64_t since = bench_now_ns();
        t->e->impl->cancel(t->loop, i);
        lap(t, CANCEL, op, &since);
        t->e->impl->arm(t->loop, i, t->delays[i]);
    }
}

static const uint64_t *sort_delays; /* one thread sorts */

static int compare_delay(const void *a, const void *b)
{
    uint64_t x = sort_delays[*(const uint32_t *)a], y = sort_delays[*(const uint32_t *)b];
    return (x > y) - (x < y);
}

/* The loop's time has moved since some were armed, which may let neighbours change places: then the
 * second is cancelled before the head. */
static void head_ops(void *opaque)
{
    struct tail *t = opaque;
    void (*cancel)(struct timer_loop *, uint32_t) = t->e->impl->cancel;
    uint64_t since = bench_now_ns();
    for (uint32_t op = 0; op < t->n; op++) {
        cancel(t->loop, t->order[op]);
        lap(t, HEAD, op, &since);
    }
}

static void inside(struct tail *t, void (*fn)(void *))
{
    if (t->e->impl->inside) {
        t->e->impl->inside(t->loop, fn, t);
    } else {
        fn(t);
    }
}

/* Makes the timers from @first to below @end due, and times the passes of the loop until they have
 * fired, as operations from @op on. */
static void pass_ops(struct tail *t, int which, uint32_t op, uint32_t first, uint32_t end)
{
    uint64_t expect = t->loop->fired + end - first;
    t->e->impl->refresh(t->loop);
    for (uint32_t i = first; i < end; i++) {
        t->e->impl->arm(t->loop, i, FIRE_LEAST_NS + bench_random_below(&t->random, FIRE_SPREAD_NS));
    }
    bench_sleep_ns(FIRE_WAIT_NS);
    uint64_t since = bench_now_ns(), limit = since + RUN_LIMIT_NS;
    for (; t->loop->fired < expect; op++) {
        t->e->impl->run(t->loop);
        lap(t, which, op, &since);
        if (since > limit) {
            break;
        }
    }
    t->e->failed |= t->loop->fired != expect;
}

static void arm_again(void *opaque)
{
    struct tail *t = opaque;
    t->e->impl->refresh(t->loop);
    for (uint32_t i = 0; i < t->n && i < DUE; i++) {
        t->e->impl->arm(t->loop, i, t->delays[i]);
    }
}

/* ---- Trials ---------------------------------------------------------------------------------- */

static uint64_t empty_loop(uint64_t ns)
{
    uint64_t begin = bench_now_ns(), since = begin, max = 0;
    while (since - begin < ns) {
        uint64_t now = bench_now_ns();
        max = now - since > max ? now - since : max;
        since = now;
    }
    return max;
}

static void trial(struct tail *t, struct entrant *e, unsigned nr)
{
    t->e = e;
    t->nr = nr;
    t->random = 0x2545f491u; /* every trial gets the same numbers */
    t->timed_ns = 0;
    t->loop = e->impl->open(t->n);
    if (!t->loop) {
        bench_die("timer_bench: cannot make a loop of %s with %u timers", e->impl->name, t->n);
    }
    inside(t, arm_ops);
    for (uint32_t i = 0; i < DUE && i < t->n; i++) {
        pass_ops(t, EXPIRE, i * DUE_PASSES, i, i + 1);
    }
    inside(t, arm_again);
    inside(t, move_ops);
    inside(t, cancel_ops);
    for (uint32_t i = 0; i < t->n; i++) {
        t->order[i] = i;
    }
    sort_delays = t->delays;
    qsort(t->order, t->n, sizeof(*t->order), compare_delay);
    inside(t, head_ops);
    pass_ops(t, PASS, 0, 0, t->n);
    e->impl->close(t->loop);
    e->empty_max[nr] = empty_loop(t->timed_ns);
    for (int kind = 0; kind < KINDS; kind++) {
        uint64_t max = e->kinds[kind].raw_max[nr];
        e->raw_max[nr] = max > e->raw_max[nr] ? max : e->raw_max[nr];
    }
}

static void trials(unsigned thread, void *opaque)
{
    struct tail *t = opaque;
    for (unsigned nr = 0; nr < t->trials; nr++) {
        for (unsigned i = 0; i < t->nr_entrants; i++) {
            trial(t, &t->entrants[i], nr);
        }
    }
}

/* ---- Rows ------------------------------------------------------------------------------------ */

/* Adds a kind's operations to @all; returns how many. */
static size_t copy_least(const struct kind *k, uint64_t *all)
{
    size_t nr = 0;
    for (uint32_t op = 0; op < k->nr; op++) {
        if (k->least[op] != UINT32_MAX) {
            all[nr++] = k->least[op];
        }
    }
    return nr;
}

static void collect(struct tail *t, struct entrant *e, uint64_t *all, uint64_t *part)
{
    size_t nr = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        struct kind *k = &e->kinds[kind];
        size_t here = copy_least(k, part);
        memcpy(all + nr, part, here * sizeof(*part));
        nr += here;
        struct bench_row *row = bench_row(t->b, case_names[kind], e->impl->name, 1, t->n);
        bench_sample_latencies(row, part, here);
        for (unsigned nr_trial = 0; nr_trial < t->trials; nr_trial++) {
            bench_sample(row, BENCH_RAW_MAX_NS, (double)k->raw_max[nr_trial]);
        }
        free(k->least);
    }
    struct bench_row *row = bench_row(t->b, "tail", e->impl->name, 1, t->n);
    bench_sample_latencies(row, all, nr);
    for (unsigned i = 0; i < t->trials; i++) {
        uint64_t raw = e->raw_max[i], empty = e->empty_max[i];
        bench_sample(row, BENCH_RAW_MAX_NS, (double)raw);
        bench_sample(row, BENCH_EMPTY_MAX_NS, (double)empty);
        bench_sample(row, BENCH_OVER_EMPTY_NS, raw > empty ? (double)(raw - empty) : 0);
    }
    bench_check(t->b, !e->failed, "tail, n %u: %s lost or doubled timers", t->n, e->impl->name);
    t->b->checksum = t->b->checksum * 31 + nr;
}

static void *need(void *p)
{
    if (!p) {
        bench_die("out of memory");
    }
    return p;
}

static void entrant_init(struct tail *t, struct entrant *e, const struct timer_impl *impl)
{
    const uint32_t max[KINDS] = { t->n, DUE * DUE_PASSES,  t->moves, t->moves,
                                  t->n, t->n + PASSES_MORE };
    e->impl = impl;
    for (int kind = 0; kind < KINDS; kind++) {
        struct kind *k = &e->kinds[kind];
        k->max = max[kind];
        k->least = need(malloc(k->max * sizeof(*k->least)));
        memset(k->least, 0xff, k->max * sizeof(*k->least));
    }
}

void timer_tail_run(struct bench *b, uint32_t n, const char *impl_list)
{
    const struct timer_impl *impls[TIMER_IMPLS_MAX];
    struct tail t = { .b = b, .n = n, .moves = b->smoke ? MOVES_SMOKE : MOVES };
    t.trials = b->runs < TRIALS_MAX ? b->runs : TRIALS_MAX;
    t.nr_entrants = timer_select(impls, impl_list, n, LIMIT_BOTH);
    if (!t.nr_entrants) {
        return;
    }
    for (unsigned i = 0; i < t.nr_entrants; i++) {
        entrant_init(&t, &t.entrants[i], impls[i]);
    }
    t.delays = need(calloc(n, sizeof(*t.delays)));
    t.order = need(calloc(n, sizeof(*t.order)));
    bench_threads(1, b->pin, trials, &t);
    size_t ops = (size_t)3 * n + 2 * (size_t)t.moves + DUE * DUE_PASSES + PASSES_MORE;
    uint64_t *all = need(calloc(ops, sizeof(*all)));
    uint64_t *part = need(calloc(ops, sizeof(*part)));
    for (unsigned i = 0; i < t.nr_entrants; i++) {
        collect(&t, &t.entrants[i], all, part);
    }
    free(part);
    free(all);
    free(t.order);
    free(t.delays);
}

void timer_tail_print(struct bench *b)
{
    for (int kind = 0; kind < KINDS; kind++) {
        bench_print(b, case_names[kind], BENCH_MAX_NS);
    }
    bench_print(b, "tail", BENCH_MAX_NS);
}
