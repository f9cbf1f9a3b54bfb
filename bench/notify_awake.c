/* SPDX-License-Identifier: MIT */
/*
 * notify_bench: notifies that nobody has to be woken for.
 *
 *   notify-awake      the loop is in a callback all the time and does not look; with one thread the
 *                     line of memory stays in the caller's cache
 *   notify-contended  the loop runs callbacks that have it call them again, and takes the line in
 *                     each iteration
 *   notify-burst      the loop sleeps, on the processor of the caller, and is notified BURST times
 *                     in a row: one operation is one notify, and `syscalls` is how many of a whole
 *                     burst made one
 *
 * aioctx is aio_notify(), which calls nothing; libuv and glib have no such call, and have a
 * callback called once.  eventfd and futex make the system call that a wake-up would need.
 */
#include "notify_impl.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { BURST = 1000, SLEEP_NS = 100000 };

enum mode { AWAKE, CONTENDED, ASLEEP };

struct awake {
    const struct notify_impl *impl;
    void *loop;
    enum mode mode;
    bool pin, cannot;
    sem_t ready, called;
    pthread_t home;
    uint64_t ops;             /* of each thread */
    struct bench_span *spans; /* one a thread */
    _Alignas(BENCH_ALIGN) atomic_bool stop;
};

static void wait_sem(sem_t *sem)
{
    while (sem_wait(sem) && errno == EINTR) {
    }
}

/* ---- The loop's thread ----------------------------------------------------------------------- */

static void stay_awake(struct awake *a)
{
    while (!atomic_load_explicit(&a->stop, memory_order_relaxed)) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
}

static void woken(void *opaque)
{
    struct awake *a = opaque;
    if (a->mode == AWAKE) {
        sem_post(&a->called);
        stay_awake(a);
    } else if (a->mode == CONTENDED) {
        a->impl->loop->wake(a->loop);
    }
    if (atomic_load_explicit(&a->stop, memory_order_relaxed)) {
        a->impl->loop->stop(a->loop);
    }
}

static void *home_thread(void *opaque)
{
    struct awake *a = opaque;
    if (a->pin) {
        bench_pin(0);
    }
    a->loop = a->impl->loop->open(woken, a);
    a->cannot = !a->loop;
    sem_post(&a->ready);
    if (a->loop) {
        a->impl->loop->run(a->loop);
    }
    return NULL;
}

/* Returns false when this machine cannot do it. */
static bool start_home(struct awake *a)
{
    atomic_store(&a->stop, false);
    int err = pthread_create(&a->home, NULL, home_thread, a);
    if (err) {
        bench_die("notify_bench: cannot start a thread: %s", strerror(err));
    }
    wait_sem(&a->ready);
    if (a->cannot) {
        pthread_join(a->home, NULL);
        return false;
    }
    if (a->mode != ASLEEP) {
        a->impl->loop->wake(a->loop);
    }
    if (a->mode == AWAKE) {
        wait_sem(&a->called);
    }
    return true;
}

/* The loop is left open, for its statistics. */
static void stop_home(struct awake *a)
{
    atomic_store(&a->stop, true);
    a->impl->loop->wake(a->loop);
    pthread_join(a->home, NULL);
}

/* ---- Who notifies ---------------------------------------------------------------------------- */

static void notify_loop(struct awake *a, uint64_t ops)
{
    const struct wake_loop *l = a->impl->loop;
    void (*notify)(void *) = l->notify ? l->notify : l->wake;
    for (uint64_t i = 0; i < ops; i++) {
        notify(a->loop);
    }
}

static void notify_thread(unsigned index, void *opaque)
{
    struct awake *a = opaque;
    if (a->pin) {
        bench_pin(a->mode == ASLEEP ? 0 : 1 + index); /* beside the loop, or on its processor */
    }
    bench_begin(&a->spans[index]);
    if (a->impl->loop) {
        notify_loop(a, a->ops);
    } else if (a->impl == &notify_eventfd) {
        notify_eventfd_awake(a->ops);
    } else {
        notify_futex_awake(a->ops);
    }
    bench_end(&a->spans[index]);
}

/* ---- Cases ----------------------------------------------------------------------------------- */

static void sample(struct bench *b, const char *case_name, const struct awake *a, unsigned threads,
                   uint64_t n)
{
    double wall = 0, cpu = 0;
    for (unsigned t = 0; t < threads; t++) {
        wall += (double)a->spans[t].wall_ns / (double)a->ops / threads;
        cpu += (double)a->spans[t].cpu_ns / (double)a->ops / threads;
    }
    struct bench_row *row = bench_row(b, case_name, a->impl->name, threads, n);
    bench_sample(row, BENCH_NS_PER_OP, wall);
    bench_sample(row, BENCH_CPU_NS_PER_OP, cpu);
    b->checksum++;
}

/* The loop is awake, so that no notify of ours may make a system call. */
static bool run_awake(struct bench *b, const char *case_name, struct awake *a, unsigned threads)
{
    const struct wake_loop *l = a->impl->loop;
    a->ops = (uint64_t)b->run_ms * (l ? 10000 : 1000);
    if (l && !start_home(a)) {
        return false;
    }
    uint64_t before = l && l->sent ? l->sent(a->loop) : 0;
    bench_threads(threads, false, notify_thread, a);
    if (l && l->sent) {
        uint64_t sent = l->sent(a->loop) - before;
        bench_check(b, !sent, "%s: %llu notifies made a system call", case_name,
                    (unsigned long long)sent);
    }
    sample(b, case_name, a, threads, 1);
    if (l) {
        stop_home(a);
    }
    return true;
}

/* Bursts, with time for the loop to go to sleep before each. */
static bool run_burst(struct bench *b, const char *case_name, struct awake *a)
{
    const struct wake_loop *l = a->impl->loop;
    struct bench_span sum = { 0 };
    unsigned bursts = b->run_ms / 2 + 1;
    a->ops = BURST;
    if (!start_home(a)) {
        return false;
    }
    bench_sleep_ns(SLEEP_NS);
    uint64_t before = l->sent ? l->sent(a->loop) : 0;
    for (unsigned i = 0; i < bursts; i++) {
        bench_sleep_ns(SLEEP_NS);
        bench_threads(1, false, notify_thread, a);
        sum.wall_ns += a->spans[0].wall_ns;
        sum.cpu_ns += a->spans[0].cpu_ns;
    }
    uint64_t sent = l->sent ? l->sent(a->loop) - before : 0;
    a->ops = (uint64_t)BURST * bursts;
    a->spans[0] = sum;
    sample(b, case_name, a, 1, BURST);
    if (l->sent) {
        bench_check(b, sent >= 1 && sent <= a->ops, "%s: %llu of %llu notifies made a system call",
                    case_name, (unsigned long long)sent, (unsigned long long)a->ops);
        bench_sample(bench_row(b, case_name, a->impl->name, 1, BURST), BENCH_SYSCALLS,
                     (double)sent / bursts);
    }
    stop_home(a);
    return true;
}

static bool fits(const struct notify_impl *impl, enum mode mode)
{
    return (impl->loop && !impl->spins) ||
           (mode == AWAKE && (impl == &notify_eventfd || impl == &notify_futex));
}

void notify_awake_run(struct bench *b, const char *case_name, const char *impl_list)
{
    unsigned threads = b->threads ? b->threads : 1;
    struct awake *a = bench_alloc(sizeof(*a));
    a->spans = bench_alloc(threads * sizeof(*a->spans));
    a->mode = !strcmp(case_name, "notify-awake")   ? AWAKE
              : !strcmp(case_name, "notify-burst") ? ASLEEP
                                                   : CONTENDED;
    a->pin = a->mode == ASLEEP || bench_cpus() > threads;
    sem_init(&a->ready, 0, 0);
    sem_init(&a->called, 0, 0);
    for (unsigned run = 0; run < b->runs; run++) {
        for (unsigned i = 0; notify_impls[i]; i++) {
            a->impl = notify_impls[i];
            if (!fits(a->impl, a->mode) || !bench_listed(impl_list, a->impl->name)) {
                continue;
            }
            bool can = a->mode == ASLEEP ? run_burst(b, case_name, a)
                                         : run_awake(b, case_name, a, threads);
            if (can && a->impl->loop) {
                a->impl->loop->close(a->loop);
            } else if (!can && run == 0) {
                printf("%s: %s skipped: this machine cannot do it\n", case_name, a->impl->name);
            }
        }
    }
    sem_destroy(&a->ready);
    sem_destroy(&a->called);
    free(a->spans);
    free(a);
    bench_print(b, case_name, BENCH_NS_PER_OP);
}
