/* SPDX-License-Identifier: MIT */
/* Two threads that arm and cancel timers of one loop; and the loop of aioctx. */
#include "timer_shared.h"

#include "bench.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 64

/* ---- The two sides --------------------------------------------------------------------------- */

void shared_fill(const struct shared_impl *impl, struct shared_loop *loop)
{
    uint64_t deadline = bench_now_ns() + SHARED_TIMEOUT_NS;
    for (uint32_t i = 0; i < loop->n; i++) {
        impl->arm(loop, SIDE_FOREIGN, i, deadline + i);
        impl->arm(loop, SIDE_HOME, i, deadline + i);
    }
    loop->next[SIDE_FOREIGN] = loop->next[SIDE_HOME] = loop->n;
}

void shared_pairs(const struct shared_impl *impl, struct shared_loop *loop, enum shared_side side,
                  uint64_t pairs)
{
    uint32_t next = loop->next[side];
    for (uint64_t done = 0; done < pairs; done += BATCH) {
        uint64_t deadline = bench_now_ns() + SHARED_TIMEOUT_NS;
        for (int i = 0; i < BATCH; i++) {
            impl->arm(loop, side, next, deadline++);
            next = next == loop->n ? 0 : next + 1;
            impl->cancel(loop, side, next);
        }
    }
    loop->next[side] = next;
}

static void say(struct shared_worker *w, bool *what)
{
    pthread_mutex_lock(&w->lock);
    *what = true;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static void wait_for(struct shared_worker *w, const bool *what)
{
    pthread_mutex_lock(&w->lock);
    while (!*what) {
        pthread_cond_wait(&w->cond, &w->lock);
    }
    pthread_mutex_unlock(&w->lock);
}

/* Threads inherit the caller's processor. */
static void pin_home(void *opaque)
{
    struct shared_worker *w = opaque;
    bench_pin(1);
    say(w, &w->began);
}

static void call_and_wait(struct shared_worker *w, void (*fn)(void *arg))
{
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->cond, NULL);
    w->impl->call_home(w->loop, fn, w);
    wait_for(w, &w->began);
}

static void worker_destroy(struct shared_worker *w)
{
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->lock);
}

struct shared_loop *shared_open(const struct shared_impl *impl, uint32_t n, bool pin)
{
    struct shared_loop *loop = impl->open(n);
    if (!loop) {
        bench_die("timer_bench: cannot make a loop of %s with %u timers", impl->name, n);
    }
    if (pin) {
        struct shared_worker w = { .impl = impl, .loop = loop };
        call_and_wait(&w, pin_home);
        worker_destroy(&w);
    }
    return loop;
}

static void work(void *opaque)
{
    struct shared_worker *w = opaque;
    struct bench_span span;
    if (w->pin) { /* where the home thread is a new one each time */
        bench_pin(1);
    }
    say(w, &w->began);
    bench_begin(&span);
    while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
        shared_pairs(w->impl, w->loop, SIDE_HOME, BATCH);
        w->pairs += BATCH;
    }
    bench_end(&span);
    w->wall_ns = span.wall_ns;
    w->cpu_ns = span.cpu_ns;
    say(w, &w->ended);
}

void shared_work_begin(struct shared_worker *w, const struct shared_impl *impl,
                       struct shared_loop *loop, bool pin)
{
    *w = (struct shared_worker){ .impl = impl, .loop = loop, .pin = pin };
    call_and_wait(w, work);
}

void shared_work_end(struct shared_worker *w)
{
    __atomic_store_n(&w->stop, true, __ATOMIC_RELAXED);
    wait_for(w, &w->ended);
    worker_destroy(w);
}

/* ---- aioctx ---------------------------------------------------------------------------------- */

struct aioctx_shared {
    struct shared_loop base;
    IOThread *io;
    AioContext *ctx;
    QEMUTimer head;
    QEMUTimer *timers[SIDES];
    uint64_t fired;
};

static void on_timer(void *opaque)
{
    ((struct aioctx_shared *)opaque)->fired++;
}

static void aioctx_arm(struct shared_loop *base, enum shared_side side, uint32_t i,
                       uint64_t deadline_ns)
{
    timer_mod_ns(&((struct aioctx_shared *)base)->timers[side][i], (int64_t)deadline_ns);
}

static void aioctx_cancel(struct shared_loop *base, enum shared_side side, uint32_t i)
{
    timer_del(&((struct aioctx_shared *)base)->timers[side][i]);
}

static struct shared_loop *aioctx_open(uint32_t n)
{
    struct aioctx_shared *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return NULL;
    }
    loop->io = iothread_new("bench-timers", NULL);
    if (!loop->io) {
        bench_die("timer_bench: cannot start an iothread: %s", strerror(errno));
    }
    loop->ctx = iothread_get_aio_context(loop->io);
    loop->base.n = n;
    aio_timer_init(loop->ctx, &loop->head, QEMU_CLOCK_REALTIME, SCALE_NS, on_timer, loop);
    for (int side = 0; side < SIDES; side++) {
        loop->timers[side] = bench_alloc((n + 1) * sizeof(QEMUTimer));
        for (uint32_t i = 0; i <= n; i++) {
            aio_timer_init(loop->ctx, &loop->timers[side][i], QEMU_CLOCK_REALTIME, SCALE_NS,
                           on_timer, loop);
        }
    }
    timer_mod_ns(&loop->head, (int64_t)(bench_now_ns() + SHARED_HEAD_NS));
    shared_fill(&shared_aioctx, &loop->base);
    return &loop->base;
}

static void aioctx_close(struct shared_loop *base)
{
    struct aioctx_shared *loop = (struct aioctx_shared *)base;
    timer_deinit(&loop->head);
    for (int side = 0; side < SIDES; side++) {
        for (uint32_t i = 0; i <= base->n; i++) {
            timer_deinit(&loop->timers[side][i]);
        }
    }
    iothread_destroy(loop->io);
    for (int side = 0; side < SIDES; side++) {
        free(loop->timers[side]);
    }
    free(loop);
}

static void aioctx_call_home(struct shared_loop *base, void (*fn)(void *arg), void *arg)
{
    if (aio_bh_schedule_oneshot(((struct aioctx_shared *)base)->ctx, fn, arg)) {
        bench_die("out of memory");
    }
}

static uint64_t aioctx_wakeups(struct shared_loop *base)
{
    AioContextStats s;
    aio_context_get_stats(((struct aioctx_shared *)base)->ctx, &s);
    return s.wakeups_notify + s.wakeups_timeout + s.wakeups_event + s.wakeups_signal;
}

static int64_t aioctx_deadline_ns(struct shared_loop *base)
{
    struct aioctx_shared *loop = (struct aioctx_shared *)base;
    return timerlist_deadline_ns(
        aio_context_get_timer_list_group(loop->ctx)->tl[QEMU_CLOCK_REALTIME]);
}

static int64_t aioctx_group_deadline_ns(struct shared_loop *base)
{
    return timerlistgroup_deadline_ns(
        aio_context_get_timer_list_group(((struct aioctx_shared *)base)->ctx));
}

const struct shared_impl shared_aioctx = {
    .name = "aioctx",
    .open = aioctx_open,
    .close = aioctx_close,
    .arm = aioctx_arm,
    .cancel = aioctx_cancel,
    .call_home = aioctx_call_home,
    .wakeups = aioctx_wakeups,
    .deadline_ns = aioctx_deadline_ns,
};

const struct shared_impl shared_aioctx_group = {
    .name = "aioctx-group",
    .open = aioctx_open,
    .close = aioctx_close,
    .arm = aioctx_arm,
    .cancel = aioctx_cancel,
    .call_home = aioctx_call_home,
    .deadline_ns = aioctx_group_deadline_ns,
};
