/* SPDX-License-Identifier: MIT */
/* timer_bench on aioctx: embedded timers on a context whose home is the calling thread. */
#include "timer_impl.h"

#include <aioctx/aio.h>
#include <stdlib.h>

struct aioctx_timer {
    QEMUTimer timer; /* first */
    struct timer_tag tag;
};

struct aioctx_loop {
    struct timer_loop base;
    AioContext *ctx;
    int64_t now_ns;
};

static void on_timer(void *opaque)
{
    timer_fired(&((struct aioctx_timer *)opaque)->tag);
}

static struct timer_loop *aioctx_open(uint32_t n)
{
    struct aioctx_loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return NULL;
    }
    loop->ctx = aio_context_new(NULL);
    if (!loop->ctx) {
        free(loop);
        return NULL;
    }
    aio_poll(loop->ctx, false); /* this thread is its home */
    timer_loop_init(&loop->base, n, sizeof(struct aioctx_timer),
                    offsetof(struct aioctx_timer, tag));
    for (uint32_t i = 0; i < n; i++) {
        QEMUTimer *ts = timer_at(&loop->base, i);
        aio_timer_init(loop->ctx, ts, QEMU_CLOCK_REALTIME, SCALE_NS, on_timer, ts);
    }
    return &loop->base;
}

static void aioctx_close(struct timer_loop *base)
{
    struct aioctx_loop *loop = (struct aioctx_loop *)base;
    for (uint32_t i = 0; i < base->n; i++) {
        timer_deinit(timer_at(base, i));
    }
    aio_context_unref(loop->ctx);
    timer_loop_cleanup(base);
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
    timer_mod_ns(timer_at(base, i), ++loop->now_ns + (int64_t)delay_ns);
}

static void aioctx_cancel(struct timer_loop *base, uint32_t i)
{
    timer_del(timer_at(base, i));
}

static void aioctx_run(struct timer_loop *base)
{
    aio_poll(((struct aioctx_loop *)base)->ctx, false);
}

static void aioctx_run_lists(struct timer_loop *base)
{
    AioContext *ctx = ((struct aioctx_loop *)base)->ctx;
    timerlistgroup_run_timers(aio_context_get_timer_list_group(ctx));
}

const struct timer_impl timer_aioctx = {
    .name = "aioctx",
    .n_max = UINT32_MAX,
    .n_max_fire = UINT32_MAX,
    .open = aioctx_open,
    .close = aioctx_close,
    .timer_bytes = aioctx_timer_bytes,
    .refresh = aioctx_refresh,
    .arm = aioctx_arm,
    .cancel = aioctx_cancel,
    .run = aioctx_run,
};

const struct timer_impl timer_aioctx_lists = {
    .name = "aioctx-lists",
    .n_max = 0, /* elsewhere it would be the same */
    .n_max_fire = UINT32_MAX,
    .open = aioctx_open,
    .close = aioctx_close,
    .timer_bytes = aioctx_timer_bytes,
    .refresh = aioctx_refresh,
    .arm = aioctx_arm,
    .cancel = aioctx_cancel,
    .run = aioctx_run_lists,
};
