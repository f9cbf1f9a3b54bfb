/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: churn, io-timeout and fire.
 *
 * Every thread has loops of its own and does the same.  Now is read once per batch of operations,
 * as a loop does once per iteration.  Afterwards all timers are fired once and counted.
 */
#include "bench.h"
#include "timer_cases.h"

#include <pthread.h>
#include <stdlib.h>

#define BATCH 64
#define FIRE_LIMIT_NS (60 * 1000 * MS_NS)

/* A pass over few timers is too short for the CPU clock, and for a processor that has just slept to
 * get going; so that many timers are fired at once, where it must be of several loops of this kind,
 * one loop after the other. */
#define FIRE_TIMERS_MIN 20000
#define FIRE_LOOPS_MAX 200

/* What a loop goes through before it fires: one that has just been made is not what anyone has. */
#define FIRE_WARM_UP 4096

/* Firing a million timers takes a while; still at least 5 runs. */
#define FIRE_RUNS_FEW 5
#define FIRE_MANY 1000000

static const char *const case_names[] = { "churn", "io-timeout", "fire" };

/* What one thread holds of one implementation. */
struct side {
    const struct timer_impl *impl;
    struct timer_loop *loops[FIRE_LOOPS_MAX];
    unsigned nr_loops;
    uint32_t n;
    uint32_t next; /* io-timeout: the timer to arm; the one after it is the oldest */
    uint64_t random;
    uint64_t ops;    /* of one run */
    uint64_t expect; /* timers that ought to have fired, in each loop */
    struct bench_span span;
    bool failed;
};

/* One case with one n: threads that walk through its runs in step. */
struct job {
    struct bench *b;
    enum timer_op which;
    uint32_t n;
    unsigned threads, runs;
    const struct timer_impl *impls[TIMER_IMPLS_MAX];
    unsigned nr_impls;
    pthread_barrier_t barrier;
    struct bench_share *results; /* [run][impl][thread] */
    struct side *ends;           /* [impl][thread]: what is left to be checked */
};

/* ---- The operations -------------------------------------------------------------------------- */

static void churn_ops(void *opaque)
{
    struct side *s = opaque;
    const struct timer_impl *impl = s->impl;
    struct timer_loop *loop = s->loops[0];
    bench_begin(&s->span);
    for (uint64_t done = 0; done < s->ops; done += BATCH) {
        impl->refresh(loop);
        for (int i = 0; i < BATCH; i++) {
            uint64_t r = bench_random(&s->random);
            uint32_t timer = (uint32_t)(((r >> 32) * s->n) >> 32);
            impl->arm(loop, timer, CHURN_LEAST_NS + (r * 0x9e3779b97f4a7c15ULL & CHURN_SPREAD_NS));
        }
    }
    bench_end(&s->span);
}

static void io_timeout_ops(void *opaque)
{
    struct side *s = opaque;
    const struct timer_impl *impl = s->impl;
    struct timer_loop *loop = s->loops[0];
    uint32_t next = s->next;
    bench_begin(&s->span);
    for (uint64_t done = 0; done < s->ops; done += BATCH) {
        impl->refresh(loop);
        for (int i = 0; i < BATCH; i++) {
            impl->arm(loop, next, IO_TIMEOUT_NS);
            next = next == s->n ? 0 : next + 1;
            impl->cancel(loop, next);
        }
    }
    bench_end(&s->span);
    s->next = next;
}

/* Runs one loop until all that was armed has fired. */
static void fire_loop(struct side *s, struct timer_loop *loop)
{
    uint64_t limit = 0;
    for (unsigned pass = 1; loop->fired < s->expect; pass++) {
        s->impl->run(loop);
        if (pass % 4096 == 0) {
            uint64_t now = bench_now_ns();
            limit = limit ? limit : now + FIRE_LIMIT_NS;
            if (now > limit) {
                s->failed = true;
                return;
            }
        }
    }
}

static void arm_all_soon(struct side *s, uint32_t timers)
{
    for (unsigned l = 0; l < s->nr_loops; l++) {
        s->impl->refresh(s->loops[l]);
        for (uint32_t i = 0; i < timers; i++) {
            s->impl->arm(s->loops[l], i,
                         FIRE_LEAST_NS + bench_random_below(&s->random, FIRE_SPREAD_NS));
        }
    }
    s->expect += timers;
}

static void fire_ops(struct side *s)
{
    struct bench_span sum = { 0 };
    for (uint64_t done = 0; done < s->ops; done += (uint64_t)s->n * s->nr_loops) {
        arm_all_soon(s, s->n);
        bench_sleep_ns(FIRE_WAIT_NS);
        bench_begin(&s->span);
        for (unsigned l = 0; l < s->nr_loops; l++) {
            fire_loop(s, s->loops[l]);
        }
        bench_end(&s->span);
        sum.wall_ns += s->span.wall_ns;
        sum.cpu_ns += s->span.cpu_ns;
    }
    s->span = sum;
}

static void side_run(struct side *s, enum timer_op which)
{
    void (*ops)(void *) = which == CHURN ? churn_ops : io_timeout_ops;
    if (which == FIRE) {
        fire_ops(s);
    } else if (s->impl->inside) {
        s->impl->inside(s->loops[0], ops, s);
    } else {
        ops(s);
    }
}

/* ---- Setting up and checking ----------------------------------------------------------------- */

/* Arms and cancels, as often on every loop. */
static void warm_up_loops(struct side *s)
{
    for (unsigned l = 0; l < s->nr_loops; l++) {
        s->impl->refresh(s->loops[l]);
        for (unsigned i = 0; i < FIRE_WARM_UP; i++) {
            s->impl->arm(s->loops[l], 0, IO_TIMEOUT_NS);
            s->impl->cancel(s->loops[l], 0);
        }
    }
}

/* Finds how many operations fill the time of a run; this warms up, too. */
static void calibrate(struct side *s, enum timer_op which, unsigned run_ms)
{
    uint64_t round = (uint64_t)s->n * s->nr_loops;
    if (which == FIRE) { /* the waiting fills the time */
        s->ops = round * (round > 10000 ? 1 : 1 + run_ms / 20);
        return;
    }
    uint64_t target_ns = run_ms * MS_NS;
    for (s->ops = 16 * BATCH;; s->ops *= 2) {
        side_run(s, which);
        if (s->span.cpu_ns >= target_ns / 4) {
            break;
        }
    }
    double ops = (double)s->ops * (double)target_ns / (double)s->span.cpu_ns;
    s->ops = (uint64_t)ops / BATCH * BATCH + BATCH;
}

static void side_open(struct side *s, const struct timer_impl *impl, enum timer_op which,
                      uint32_t n, unsigned thread)
{
    *s = (struct side){ .impl = impl, .n = n, .nr_loops = 1 };
    s->random = 0x2545f491u + thread * 0x9e3779b9u; /* every implementation gets the same numbers */
    if (which == FIRE && n < FIRE_TIMERS_MIN) {
        s->nr_loops = FIRE_TIMERS_MIN / n < FIRE_LOOPS_MAX ? FIRE_TIMERS_MIN / n : FIRE_LOOPS_MAX;
    }
    for (unsigned l = 0; l < s->nr_loops; l++) {
        s->loops[l] = impl->open(which == IO_TIMEOUT ? n + 1 : n);
        if (!s->loops[l]) {
            bench_die("timer_bench: cannot make a loop of %s with %u timers", impl->name, n);
        }
    }
    if (which == FIRE) {
        warm_up_loops(s);
        return;
    }
    impl->refresh(s->loops[0]);
    for (uint32_t i = 0; i < n; i++) {
        impl->arm(s->loops[0], i,
                  which == CHURN ? CHURN_LEAST_NS + (bench_random(&s->random) & CHURN_SPREAD_NS)
                                 : IO_TIMEOUT_NS);
    }
    s->next = which == IO_TIMEOUT ? n : 0;
}

/* Fires every timer once more: had one been lost or doubled, the numbers would tell. */
static void side_close(struct side *s, enum timer_op which)
{
    uint32_t timers = which == IO_TIMEOUT ? s->n + 1 : s->n;
    s->failed |= s->loops[0]->fired != s->expect; /* before: none too early */
    arm_all_soon(s, timers);
    bench_sleep_ns(FIRE_WAIT_NS);
    for (unsigned l = 0; l < s->nr_loops; l++) {
        struct timer_loop *loop = s->loops[l];
        fire_loop(s, loop);
        s->impl->run(loop); /* nothing is left */
        uint64_t rounds = s->expect / timers;
        s->failed |= loop->fired != s->expect ||
                     loop->fired_sum != rounds * ((uint64_t)timers * (timers - 1) / 2);
        s->impl->close(loop);
        s->loops[l] = NULL;
    }
}

static void job_thread(unsigned thread, void *opaque)
{
    struct job *job = opaque;
    struct side sides[TIMER_IMPLS_MAX];
    for (unsigned i = 0; i < job->nr_impls; i++) {
        side_open(&sides[i], job->impls[i], job->which, job->n, thread);
        calibrate(&sides[i], job->which, job->b->run_ms);
    }
    for (unsigned run = 0; run < job->runs; run++) {
        for (unsigned turn = 0; turn < job->nr_impls; turn++) {
            unsigned i = (turn + run) % job->nr_impls; /* each comes behind each */
            struct side *s = &sides[i];
            pthread_barrier_wait(&job->barrier);
            side_run(s, job->which);
            size_t index = ((size_t)run * job->nr_impls + i) * job->threads + thread;
            job->results[index] = (struct bench_share){
                .ns_per_op = (double)s->span.wall_ns / (double)s->ops,
                .cpu_ns_per_op = (double)s->span.cpu_ns / (double)s->ops,
            };
        }
    }
    for (unsigned i = 0; i < job->nr_impls; i++) {
        side_close(&sides[i], job->which);
        job->ends[i * job->threads + thread] = sides[i];
    }
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

static void job_collect(struct job *job)
{
    const char *case_name = case_names[job->which];
    const struct bench_share *shares = job->results;
    for (unsigned run = 0; run < job->runs; run++) {
        for (unsigned i = 0; i < job->nr_impls; i++, shares += job->threads) {
            bench_sample_threads(job->b, case_name, job->impls[i]->name, job->threads, job->n,
                                 shares);
        }
    }
    for (unsigned i = 0; i < job->nr_impls; i++) {
        for (unsigned t = 0; t < job->threads; t++) {
            const struct side *s = &job->ends[i * job->threads + t];
            bench_check(job->b, !s->failed, "%s, n %u: %s lost or doubled timers", case_name,
                        job->n, s->impl->name);
            job->b->checksum = job->b->checksum * 31 + s->expect;
        }
    }
}

void timer_ops_run(struct bench *b, enum timer_op which, uint32_t n, const char *impl_list)
{
    struct job job = { .b = b, .which = which, .n = n, .threads = b->threads ? b->threads : 1 };
    job.runs = which == FIRE && n >= FIRE_MANY && b->runs > FIRE_RUNS_FEW ? FIRE_RUNS_FEW : b->runs;
    job.nr_impls = timer_select(job.impls, impl_list, n, which == FIRE ? LIMIT_FIRE : LIMIT_OPS);
    if (!job.nr_impls) {
        return;
    }
    job.results = calloc((size_t)job.runs * job.nr_impls * job.threads, sizeof(*job.results));
    job.ends = calloc((size_t)job.nr_impls * job.threads, sizeof(*job.ends));
    if (!job.results || !job.ends) {
        bench_die("out of memory");
    }
    pthread_barrier_init(&job.barrier, NULL, job.threads);
    bench_threads(job.threads, b->pin, job_thread, &job);
    pthread_barrier_destroy(&job.barrier);
    job_collect(&job);
    free(job.ends);
    free(job.results);
}
