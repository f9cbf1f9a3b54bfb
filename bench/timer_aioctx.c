/* SPDX-License-Identifier: MIT */
/* timer_bench on aioctx: embedded timers on the REALTIME list of a group. */
#include "timer_impl.h"

#include <aioctx/rcu.h>
#include <aioctx/timers.h>
#include <stdlib.h>

struct aioctx_timer {
    QEMUTimer timer; /* first: the callback's opaque is this struct */
    struct aioctx_loop *loop;
};

struct aioctx_loop {
    struct timer_loop base;
    QEMUTimerListGroup group;
    QEMUTimerList *list;
    int64_t now_ns;
    uint64_t notified;
    uint32_t n;
    struct aioctx_timer timers[];
};

static void on_timer(void *opaque)
{
    struct aioctx_timer *t = opaque;
    t->loop->base.fired++;
    t->loop->base.fired_sum += (uint64_t)(t - t->loop->timers);
}

/* A context's callback looks whether the owner sleeps; here it never does. */
static void on_notify(void *opaque, QEMUClockType type)
{
    struct aioctx_loop *loop = opaque;
    loop->notified++;
}

static struct timer_loop *aioctx_open(uint32_t n)
{
    struct aioctx_loop *loop = calloc(1, sizeof(*loop) + n * sizeof(loop->timers[0]));
    if (!loop) {
        return NULL;
    }
    if (timerlistgroup_init(&loop->group, on_notify, loop)) {
        free(loop);
        return NULL;
    }
    loop->list = loop->group.tl[QEMU_CLOCK_REALTIME];
    loop->n = n;
    for (uint32_t i = 0; i < n; i++) {
        struct aioctx_timer *t = &loop->timers[i];
        t->loop = loop;
        timer_init_full(&t->timer, &loop->group, QEMU_CLOCK_REALTIME, SCALE_NS, 0, on_timer, t);
    }
    return &loop->base;
}

static void aioctx_close(struct timer_loop *base)
{
    struct aioctx_loop *loop = (struct aioctx_loop *)base;
    for (uint32_t i = 0; i < loop->n; i++) {
        timer_deinit(&loop->timers[i].timer);
    }
    timerlistgroup_deinit(&loop->group);
    aio_synchronize_rcu(); /* on_notify() may still be running, for a step of the host's clock */
    free(loop);
}

static size_t aioctx_timer_bytes(void)
{
    return sizeof(QEMUTimer);
}

static void aioctx_refresh(struct timer_loop *base)
{
    ((struct aioctx_loop *)base)->now_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void aioctx_arm(struct timer_loop *base, uint32_t i, uint64_t delay_ns)
{
    struct aioctx_loop *loop = (struct aioctx_loop *)base;
    /* A nanosecond later each time: our users read the clock, and equal deadlines are rare. */
    timer_mod_ns(&loop->timers[i].timer, ++loop->now_ns + (int64_t)delay_ns);
}

static void aioctx_cancel(struct timer_loop *base, uint32_t i)
{
    timer_del(&((struct aioctx_loop *)base)->timers[i].timer);
}

static void aioctx_run(struct timer_loop *base)
{
    timerlist_run_timers(((struct aioctx_loop *)base)->list);
}

const struct timer_impl timer_aioctx = {
    .name = "aioctx",
    .n_max = UINT32_MAX,
    .open = aioctx_open,
    .close = aioctx_close,
    .timer_bytes = aioctx_timer_bytes,
    .refresh = aioctx_refresh,
    .arm = aioctx_arm,
    .cancel = aioctx_cancel,
    .run = aioctx_run,
};
