/* SPDX-License-Identifier: MIT */
/*
 * notify_bench: what does it cost to wake another thread, beside the kernel's own means?
 *
 *   roundtrip           two contexts on two processors pass a bottom half to and fro; one operation
 *                       is one round trip: two wake-ups of a sleeping thread
 *   roundtrip-same-cpu  the same on one processor: no idle processor has to be woken, so that
 *                       the software's share shows
 *   notify-awake        one operation is one aio_notify() to a loop that is awake, in a callback;
 *                       the peers make the call that a wake-up would need
 *
 * --threads N: N pairs, or N notifying threads, at once.  Each thread is pinned to a processor, as
 * the cases are about which ones; but in notify-awake not where there are too few for all.
 */
#include "bench.h"
#include "notify_impl.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES_MAX 100000

static void wait_sem(sem_t *sem)
{
    while (sem_wait(sem) && errno == EINTR) {
    }
}

static void call_on(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    if (aio_bh_schedule_oneshot(ctx, cb, opaque)) {
        bench_die("out of memory");
    }
}

static IOThread *new_iothread(const char *name)
{
    IOThread *io = iothread_new(name, NULL);
    if (!io) {
        bench_die("notify_bench: cannot start an iothread: %s", strerror(errno));
    }
    return io;
}

/* ---- Round trips between contexts ------------------------------------------------------------ */

struct pair {
    struct ping_pong *pp;
    IOThread *io[2];
    AioContext *ctx[2];
    QEMUBH *bh[2]; /* 0: ping, 1: pong */
    uint64_t begin_ns, last_ns;
    uint64_t cpu_ns[2];
    uint64_t ponged;
    sem_t done;
};

static void start_side(struct pair *p, int me)
{
    bench_pin(p->pp->cpu[me]);
    p->cpu_ns[me] = bench_cpu_ns();
}

static void end_pong(void *opaque)
{
    struct pair *p = opaque;
    p->cpu_ns[1] = bench_cpu_ns() - p->cpu_ns[1];
    sem_post(&p->done);
}

static void ping(void *opaque)
{
    struct pair *p = opaque;
    if (ping_pong_trip(p->pp, p->begin_ns, &p->last_ns)) {
        qemu_bh_schedule(p->bh[1]);
        return;
    }
    p->cpu_ns[0] = bench_cpu_ns() - p->cpu_ns[0];
    call_on(p->ctx[1], end_pong, p);
}

static void pong(void *opaque)
{
    struct pair *p = opaque;
    p->ponged++;
    qemu_bh_schedule(p->bh[0]);
}

static void start_ping(void *opaque)
{
    struct pair *p = opaque;
    start_side(p, 0);
    p->begin_ns = p->last_ns = bench_now_ns();
    qemu_bh_schedule(p->bh[1]);
}

static void start_pong(void *opaque)
{
    struct pair *p = opaque;
    start_side(p, 1);
    call_on(p->ctx[0], start_ping, p);
}

static bool aioctx_ping_pong(struct ping_pong *pp)
{
    struct pair p = { .pp = pp };
    sem_init(&p.done, 0, 0);
    for (int i = 0; i < 2; i++) {
        p.io[i] = new_iothread(i ? "bench-pong" : "bench-ping");
        p.ctx[i] = iothread_get_aio_context(p.io[i]);
        p.bh[i] = aio_bh_new(p.ctx[i], i ? pong : ping, &p);
        if (!p.bh[i]) {
            bench_die("out of memory");
        }
    }
    call_on(p.ctx[1], start_pong, &p);
    wait_sem(&p.done);
    for (int i = 0; i < 2; i++) {
        qemu_bh_delete(p.bh[i]);
        iothread_destroy(p.io[i]);
    }
    sem_destroy(&p.done);
    pp->cpu_ns = p.cpu_ns[0] + p.cpu_ns[1];
    pp->failed = p.ponged != pp->trips;
    return true;
}

const struct notify_impl notify_aioctx = { "aioctx", aioctx_ping_pong };

static const struct notify_impl *const impls[] = {
    &notify_aioctx, &notify_futex, &notify_eventfd, &notify_eventfd_epoll, &notify_msg_ring,
};
#define IMPLS (sizeof(impls) / sizeof(impls[0]))

struct trip_job {
    const struct notify_impl *impl;
    struct ping_pong *pps; /* one a thread */
    atomic_bool cannot;
};

static void trip_thread(unsigned index, void *opaque)
{
    struct trip_job *job = opaque;
    if (!job->impl->ping_pong(&job->pps[index])) {
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
        cpu += (double)pp->cpu_ns / (double)pp->trips / threads;
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

static void run_trips(struct bench *b, const char *case_name, bool same_cpu, const char *impl_list)
{
    unsigned threads = b->threads ? b->threads : 1;
    bool cannot[IMPLS] = { 0 };
    uint64_t *samples = calloc((size_t)threads * SAMPLES_MAX, sizeof(*samples));
    struct ping_pong *pps = bench_alloc(threads * sizeof(*pps));
    if (!samples) {
        bench_die("out of memory");
    }
    for (unsigned run = 0; run < b->runs; run++) {
        for (unsigned i = 0; i < IMPLS; i++) {
            if (cannot[i] || !bench_listed(impl_list, impls[i]->name)) {
                continue;
            }
            for (unsigned t = 0; t < threads; t++) {
                pps[t] = (struct ping_pong){
                    .cpu = { same_cpu ? t : 2 * t, same_cpu ? t : 2 * t + 1 },
                    .run_ns = b->run_ms * UINT64_C(1000000),
                    .samples = samples + (size_t)t * SAMPLES_MAX,
                    .samples_max = SAMPLES_MAX,
                };
            }
            struct trip_job job = { .impl = impls[i], .pps = pps };
            bench_threads(threads, false, trip_thread, &job);
            if (atomic_load(&job.cannot)) {
                cannot[i] = true;
                printf("%s: %s skipped: this machine cannot do it\n", case_name, impls[i]->name);
            } else {
                collect_trips(b, case_name, &job, threads);
            }
        }
    }
    free(pps);
    free(samples);
    bench_print(b, case_name, BENCH_NS_PER_OP);
}

/* ---- Notifying a loop that is awake ---------------------------------------------------------- */

struct awake {
    AioContext *ctx;
    atomic_bool stop;
    sem_t awake, ended;
    bool pin;
    uint64_t ops;
    struct bench_span *spans; /* one a thread */
    struct bench_span (*peer)(uint64_t ops);
};

static void stay_awake(void *opaque)
{
    struct awake *a = opaque;
    if (a->pin) {
        bench_pin(0);
    }
    sem_post(&a->awake);
    while (!atomic_load_explicit(&a->stop, memory_order_relaxed)) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
    sem_post(&a->ended);
}

static struct bench_span notify_awake(struct awake *a)
{
    struct bench_span span;
    bench_begin(&span);
    for (uint64_t i = 0; i < a->ops; i++) {
        aio_notify(a->ctx);
    }
    bench_end(&span);
    return span;
}

static void awake_thread(unsigned index, void *opaque)
{
    struct awake *a = opaque;
    if (a->pin) {
        bench_pin(1 + index); /* beside the loop, not on its processor */
    }
    a->spans[index] = a->peer ? a->peer(a->ops) : notify_awake(a);
}

static void sample_awake(struct bench *b, const char *impl, struct awake *a, unsigned threads)
{
    double wall = 0, cpu = 0;
    bench_threads(threads, false, awake_thread, a);
    for (unsigned t = 0; t < threads; t++) {
        wall += (double)a->spans[t].wall_ns / (double)a->ops / threads;
        cpu += (double)a->spans[t].cpu_ns / (double)a->ops / threads;
    }
    struct bench_row *row = bench_row(b, "notify-awake", impl, threads, 1);
    bench_sample(row, BENCH_NS_PER_OP, wall);
    bench_sample(row, BENCH_CPU_NS_PER_OP, cpu);
}

/* The loop sits in a callback the whole time, so no notify may make a system call. */
static void sample_awake_aioctx(struct bench *b, struct awake *a, unsigned threads)
{
    AioContextStats before, after;
    IOThread *io = new_iothread("bench-awake");
    a->ctx = iothread_get_aio_context(io);
    a->peer = NULL;
    atomic_store(&a->stop, false);
    call_on(a->ctx, stay_awake, a);
    wait_sem(&a->awake);
    aio_context_get_stats(a->ctx, &before);
    sample_awake(b, "aioctx", a, threads);
    aio_context_get_stats(a->ctx, &after);
    atomic_store(&a->stop, true);
    wait_sem(&a->ended);
    uint64_t sent = after.notifies_sent - before.notifies_sent;
    bench_check(b, !sent, "notify-awake: %llu notifies made a system call",
                (unsigned long long)sent);
    iothread_destroy(io);
}

static void run_awake(struct bench *b, const char *impl_list)
{
    unsigned threads = b->threads ? b->threads : 1;
    struct awake a = { .ops = (uint64_t)b->run_ms * 10000 };
    a.spans = calloc(threads, sizeof(*a.spans));
    if (!a.spans) {
        bench_die("out of memory");
    }
    a.pin = bench_cpus() > threads;
    sem_init(&a.awake, 0, 0);
    sem_init(&a.ended, 0, 0);
    for (unsigned run = 0; run < b->runs; run++) {
        if (bench_listed(impl_list, "aioctx")) {
            sample_awake_aioctx(b, &a, threads);
        }
        if (bench_listed(impl_list, "eventfd")) {
            a.peer = notify_eventfd_awake;
            sample_awake(b, "eventfd", &a, threads);
        }
        if (bench_listed(impl_list, "futex")) {
            a.peer = notify_futex_awake;
            sample_awake(b, "futex", &a, threads);
        }
    }
    sem_destroy(&a.awake);
    sem_destroy(&a.ended);
    free(a.spans);
    bench_print(b, "notify-awake", BENCH_NS_PER_OP);
}

int main(int argc, char **argv)
{
    static const char *const cases[] = { "roundtrip", "roundtrip-same-cpu", "notify-awake", NULL };
    const char *case_list = NULL, *impl_list = NULL;
    const struct bench_opt opts[] = {
        { "pin", NULL, NULL, NULL }, /* they always are, as each case says */
        { "case", "CASE,...", "of roundtrip, roundtrip-same-cpu, notify-awake (default all)",
          &case_list },
        { "impl", "IMPL,...", "of aioctx, futex, eventfd, eventfd-epoll, msg-ring (default all)",
          &impl_list },
        { 0 },
    };
    struct bench b;
    bench_init(&b, "notify_bench", "Measures wake-ups from one thread to another.", opts, argc,
               argv);
    const char *known[IMPLS + 1] = { 0 };
    for (unsigned i = 0; i < IMPLS; i++) {
        known[i] = impls[i]->name;
    }
    bench_check_list("--impl", impl_list, known);
    bench_check_list("--case", case_list, cases);

    if (bench_listed(case_list, cases[0])) {
        if (bench_cpus() > 1) {
            run_trips(&b, cases[0], false, impl_list);
        } else {
            printf("%s skipped: there is one processor\n", cases[0]);
        }
    }
    if (bench_listed(case_list, cases[1])) {
        run_trips(&b, cases[1], true, impl_list);
    }
    if (bench_listed(case_list, cases[2])) {
        run_awake(&b, impl_list);
    }
    return bench_finish(&b);
}
