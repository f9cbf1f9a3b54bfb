/* SPDX-License-Identifier: MIT */
/*
 * lock_bench: what does a timer list's lock cost the thread that owns the list, and the others?
 *
 *   home     one operation: the home thread takes the lock, counts, and gives it back, without a
 *            pause
 *   foreign  the same on another thread, which comes n times a second beside home (for the
 *            greatest n: without a pause); the time of its calls alone.  Each visit is timed by
 *            itself, and that holds one read of the clock
 *   both     turns of the two together, each without a pause: only where n is the greatest
 *
 * n = 0: there is no other thread.  Implementations:
 *
 *   none      no lock at all, only with n = 0: what the counting costs
 *   biased    timers/list_lock_int.h
 *   adaptive  a pthread mutex of the adaptive kind, which the biased lock falls back to
 *   mutex     a pthread mutex of the normal kind
 *
 * The implementations take turns within each run, another first each time, each with a new lock.
 */
#include "bench.h"
#include "rcu/atomic_int.h"
#include "timers/list_lock_int.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#define MS_NS UINT64_C(1000000)
#define FLAT_OUT 1000000000
#define BATCH 64
#define VISITS_MAX 65536
#define VISITS_MIN 90 /* fewer in a run have no percentiles */

struct shared {
    struct list_lock biased __attribute__((aligned(BENCH_ALIGN)));
    pthread_mutex_t adaptive __attribute__((aligned(BENCH_ALIGN)));
    pthread_mutex_t mutex __attribute__((aligned(BENCH_ALIGN)));
    uint64_t count __attribute__((aligned(BENCH_ALIGN))); /* under the lock */
    bool stop __attribute__((aligned(BENCH_ALIGN)));      /* atomic */
    bool ready;                                           /* atomic */
};

/* @times turns; inlined for each lock, so that all pay for the same calls: none. */
#define DEFINE_TURNS(name, lock, unlock) \
    static void turns_##name(struct shared *s, unsigned times) \
    { \
        for (unsigned i = 0; i < times; i++) { \
            lock; \
            s->count++; \
            __asm__ volatile("" ::: "memory"); \
            unlock; \
        } \
    }

DEFINE_TURNS(none, (void)0, (void)0)
DEFINE_TURNS(biased, list_lock(&s->biased), list_unlock(&s->biased))
DEFINE_TURNS(adaptive, pthread_mutex_lock(&s->adaptive), pthread_mutex_unlock(&s->adaptive))
DEFINE_TURNS(mutex, pthread_mutex_lock(&s->mutex), pthread_mutex_unlock(&s->mutex))

static const struct lock_impl {
    const char *name;
    void (*turns)(struct shared *s, unsigned times);
    bool alone; /* for one thread only */
} impls[] = {
    { "none", turns_none, true },
    { "biased", turns_biased, false },
    { "adaptive", turns_adaptive, false },
    { "mutex", turns_mutex, false },
};
enum { IMPLS = sizeof(impls) / sizeof(impls[0]) };

static struct shared *shared_new(void)
{
    struct shared *s = bench_alloc(sizeof(*s));
    pthread_mutexattr_t attr;

    list_lock_init(&s->biased);
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&s->adaptive, &attr);
    pthread_mutexattr_destroy(&attr);
    pthread_mutex_init(&s->mutex, NULL);
    return s;
}

static void shared_free(struct shared *s)
{
    list_lock_destroy(&s->biased);
    pthread_mutex_destroy(&s->adaptive);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

struct foreign {
    struct shared *s;
    const struct lock_impl *impl;
    uint64_t rate, turns;
    uint64_t spent_ns; /* in its calls */
    uint64_t *visits;  /* ns of each, up to visits_max */
    size_t visits_max;
    bool pin;
};

static void sometimes(struct foreign *f)
{
    uint64_t period_ns = 1000 * MS_NS / f->rate, next = bench_now_ns();

    while (!ld_acquire(&f->s->stop)) {
        uint64_t begin = bench_now_ns(), end;

        f->impl->turns(f->s, 1);
        end = bench_now_ns();
        if (f->turns < f->visits_max) {
            f->visits[f->turns] = end - begin;
        }
        f->spent_ns += end - begin;
        f->turns++;
        next += period_ns;
        if (next > end) {
            bench_sleep_ns(next - end);
        }
    }
}

static void all_the_time(struct foreign *f)
{
    uint64_t begin = bench_now_ns();

    for (; !ld_acquire(&f->s->stop); f->turns += BATCH) {
        f->impl->turns(f->s, BATCH);
    }
    f->spent_ns = bench_now_ns() - begin;
}

static void *foreign_thread(void *opaque)
{
    struct foreign *f = opaque;

    if (f->pin) {
        bench_pin(1);
    }
    st_release(&f->s->ready, true);
    if (f->rate == FLAT_OUT) {
        all_the_time(f);
    } else {
        sometimes(f);
    }
    return NULL;
}

static void sample_home(struct bench *b, const struct foreign *f, uint64_t turns,
                        const struct bench_span *span)
{
    struct bench_row *row = bench_row(b, "home", f->impl->name, 1, f->rate);

    bench_sample(row, BENCH_NS_PER_OP, (double)span->wall_ns / (double)turns);
    bench_sample(row, BENCH_CPU_NS_PER_OP, (double)span->cpu_ns / (double)turns);
    bench_sample(row, BENCH_OPS_PER_S, 1e9 * (double)turns / (double)span->wall_ns);
}

static void sample_foreign(struct bench *b, const struct foreign *f, uint64_t home_turns,
                           const struct bench_span *span)
{
    struct bench_row *row = bench_row(b, "foreign", f->impl->name, 1, f->rate);
    double both = (double)(home_turns + f->turns);

    if (f->turns) {
        bench_sample(row, BENCH_NS_PER_OP, (double)f->spent_ns / (double)f->turns);
    }
    bench_sample(row, BENCH_OPS_PER_S, 1e9 * (double)f->turns / (double)span->wall_ns);
    if (f->rate == FLAT_OUT) {
        row = bench_row(b, "both", f->impl->name, 2, f->rate);
        bench_sample(row, BENCH_OPS_PER_S, 1e9 * both / (double)span->wall_ns);
    } else if (f->turns >= VISITS_MIN) {
        bench_sample_latencies(row, f->visits, f->turns < f->visits_max ? f->turns : f->visits_max);
    }
}

static void run(struct bench *b, const struct lock_impl *impl, uint64_t rate)
{
    struct shared *s = shared_new();
    struct foreign f = { .s = s, .impl = impl, .rate = rate, .pin = b->pin };
    struct bench_span span;
    uint64_t turns = 0, begin;
    pthread_t thread;

    f.visits_max = VISITS_MAX;
    f.visits = bench_alloc(VISITS_MAX * sizeof(f.visits[0]));
    list_lock_claim(&s->biased);
    impl->turns(s, 2 * BIAS_AFTER); /* the owner has its bias */
    if (rate) {
        if (pthread_create(&thread, NULL, foreign_thread, &f) != 0) {
            bench_die("lock_bench: cannot make a thread");
        }
        while (!ld_acquire(&s->ready)) {
            sched_yield();
        }
    }
    begin = bench_now_ns();
    bench_begin(&span);
    do {
        impl->turns(s, BATCH);
        turns += BATCH;
    } while (turns % (16 * BATCH) || bench_now_ns() - begin < b->run_ms * MS_NS);
    bench_end(&span);
    st_release(&s->stop, true);
    if (rate) {
        pthread_join(thread, NULL);
        sample_foreign(b, &f, turns, &span);
    }
    sample_home(b, &f, turns, &span);
    bench_check(b, s->count == turns + f.turns + 2 * BIAS_AFTER, "%s let two in at once",
                impl->name);
    b->checksum = b->checksum * 31 + (s->count == turns + f.turns + 2 * BIAS_AFTER);
    free(f.visits);
    shared_free(s);
}

/* On a thread of its own: the program's first thread is never pinned. */
static void measure(unsigned thread, void *opaque)
{
    static const uint64_t rates[] = { 0, 100, 1000, 10000, FLAT_OUT };
    struct bench *b = opaque;

    for (unsigned r = 0; r < sizeof(rates) / sizeof(rates[0]); r++) {
        for (unsigned i = 0; i < b->runs; i++) {
            for (unsigned turn = 0; turn < IMPLS; turn++) {
                const struct lock_impl *impl = &impls[(turn + i) % IMPLS];

                if (rates[r] == 0 || !impl->alone) {
                    run(b, impl, rates[r]);
                }
            }
        }
    }
}

int main(int argc, char **argv)
{
    const struct bench_opt opts[] = { { "threads", NULL, NULL, NULL }, { 0 } };
    struct bench b;

    bench_init(&b, "lock_bench", "Measures the lock of a timer list beside mutexes.", opts, argc,
               argv);
    b.ours = "biased";
    bench_threads(1, b.pin, measure, &b);
    bench_print(&b, "home", BENCH_CPU_NS_PER_OP);
    bench_print(&b, "foreign", BENCH_NS_PER_OP);
    bench_print(&b, "both", BENCH_OPS_PER_S);
    return bench_finish(&b);
}
