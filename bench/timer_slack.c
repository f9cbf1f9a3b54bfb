/* SPDX-License-Identifier: MIT */
/*
 * timer_bench, slack: how many wake-ups does timer_mod_range_ns() save?
 *
 * An iothread has 200 periodic timers of 20 ms, with random phases.  Each may fire up to n
 * microseconds after its time; its next time does not depend on when it fired.  One operation is
 * one timer fired; wakeups_per_k is how often the loop woke per 1000 of them, and cpu_ns_per_op is
 * all the CPU time of its thread.
 */
#include "timer_cases.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#define TIMERS 200
#define PERIOD_NS (20 * (int64_t)MS_NS)
#define WARM_UP_NS (2 * (uint64_t)PERIOD_NS)
#define RUN_MIN_NS (100 * MS_NS)
#define RUN_SMOKE_NS (20 * MS_NS)

static const uint32_t slacks_us[] = { 0, 10, 100, 1000, 5000, 10000 };
#define SLACKS (sizeof(slacks_us) / sizeof(slacks_us[0]))

struct periodic {
    QEMUTimer timer;
    struct ticker *ticker;
    int64_t time_ns; /* the soonest of the arming that waits */
};

struct ticker {
    AioContext *ctx;
    int64_t slack_ns;
    struct periodic timers[TIMERS];
    /* The home thread's: */
    uint64_t fired, early, cpu_ns;
    bool stop;
    sem_t done;
};

/* What the home thread knows at one moment. */
struct moment {
    struct ticker *t;
    uint64_t fired, cpu_ns, woken, wall_ns;
    bool stop;
};

static void arm(struct periodic *p)
{
    timer_mod_range_ns(&p->timer, p->time_ns, p->time_ns + p->ticker->slack_ns);
}

static void on_timer(void *opaque)
{
    struct periodic *p = opaque;
    struct ticker *t = p->ticker;
    t->fired++;
    t->early += qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < p->time_ns;
    if (!t->stop) {
        p->time_ns += PERIOD_NS;
        arm(p);
    }
}

static void take(void *opaque)
{
    struct moment *m = opaque;
    AioContextStats s;
    aio_context_get_stats(m->t->ctx, &s);
    m->fired = m->t->fired;
    m->woken = s.wakeups_notify + s.wakeups_timeout + s.wakeups_event + s.wakeups_signal;
    m->cpu_ns = bench_cpu_ns();
    m->wall_ns = bench_now_ns();
    m->t->stop = m->stop;
    sem_post(&m->t->done);
}

static void take_at_home(struct moment *m)
{
    if (aio_bh_schedule_oneshot(m->t->ctx, take, m)) {
        bench_die("out of memory");
    }
    while (sem_wait(&m->t->done) && errno == EINTR) {
    }
}

static void start(struct ticker *t)
{
    uint64_t random = 0x2545f491u;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + PERIOD_NS;
    for (int i = 0; i < TIMERS; i++) {
        struct periodic *p = &t->timers[i];
        p->ticker = t;
        p->time_ns = now + bench_random_below(&random, (uint32_t)PERIOD_NS);
        aio_timer_init(t->ctx, &p->timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_timer, p);
        arm(p);
    }
}

static void run_slack(struct bench *b, uint32_t slack_us)
{
    struct ticker *t = bench_alloc(sizeof(*t));
    IOThread *io = iothread_new("bench-slack", NULL);
    if (!io) {
        bench_die("timer_bench: cannot start an iothread: %s", strerror(errno));
    }
    t->ctx = iothread_get_aio_context(io);
    t->slack_ns = (int64_t)slack_us * 1000;
    sem_init(&t->done, 0, 0);
    start(t);
    bench_sleep_ns(WARM_UP_NS);
    struct moment begin = { .t = t }, end = { .t = t, .stop = true };
    take_at_home(&begin);
    uint64_t run_ns = 2 * b->run_ms * MS_NS, least_ns = b->smoke ? RUN_SMOKE_NS : RUN_MIN_NS;
    bench_sleep_ns(run_ns > least_ns ? run_ns : least_ns);
    take_at_home(&end);
    for (int i = 0; i < TIMERS; i++) {
        timer_deinit_sync(&t->timers[i].timer);
    }
    iothread_destroy(io);

    double fired = (double)(end.fired - begin.fired);
    bench_check(b, fired > 0, "slack: no timer fired");
    bench_check(b, !t->early, "slack: %llu timers fired too early", (unsigned long long)t->early);
    struct bench_row *row = bench_row(b, "slack", "aioctx", 1, slack_us);
    bench_sample(row, BENCH_CPU_NS_PER_OP, (double)(end.cpu_ns - begin.cpu_ns) / fired);
    bench_sample(row, BENCH_OPS_PER_S, 1e9 * fired / (double)(end.wall_ns - begin.wall_ns));
    bench_sample(row, BENCH_WAKEUPS_PER_K, 1000 * (double)(end.woken - begin.woken) / fired);
    b->checksum += fired > 0;
    sem_destroy(&t->done);
    free(t);
}

void timer_slack_run(struct bench *b, const char *impl_list)
{
    if (!bench_listed(impl_list, "aioctx")) {
        return;
    }
    for (unsigned run = 0; run < b->runs; run++) {
        for (unsigned i = 0; i < SLACKS; i += b->smoke ? 3 : 1) {
            run_slack(b, slacks_us[i]);
        }
    }
}
