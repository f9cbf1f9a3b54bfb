/* SPDX-License-Identifier: MIT */
/* timer_bench on libuv: uv_timer_start(), which moves a timer that is active.  Milliseconds. */
#include "timer_impl.h"

#include <stdlib.h>
#include <uv.h>

struct libuv_loop {
    struct timer_loop base;
    uv_loop_t uv;
    uint32_t n;
    uv_timer_t timers[];
};

static void on_timer(uv_timer_t *t)
{
    struct libuv_loop *loop = t->loop->data;
    loop->base.fired++;
    loop->base.fired_sum += (uint64_t)(t - loop->timers);
}

static struct timer_loop *libuv_open(uint32_t n)
{
    struct libuv_loop *loop = calloc(1, sizeof(*loop) + n * sizeof(loop->timers[0]));
    if (!loop) {
        return NULL;
    }
    if (uv_loop_init(&loop->uv)) {
        free(loop);
        return NULL;
    }
    loop->uv.data = loop;
    loop->n = n;
    for (uint32_t i = 0; i < n; i++) {
        uv_timer_init(&loop->uv, &loop->timers[i]);
    }
    return &loop->base;
}

static void libuv_close(struct timer_loop *base)
{
    struct libuv_loop *loop = (struct libuv_loop *)base;
    for (uint32_t i = 0; i < loop->n; i++) {
        uv_close((uv_handle_t *)&loop->timers[i], NULL);
    }
    uv_run(&loop->uv, UV_RUN_DEFAULT); /* handles close in the loop */
    uv_loop_close(&loop->uv);
    free(loop);
}

static size_t libuv_timer_bytes(void)
{
    return sizeof(uv_timer_t);
}

static void libuv_refresh(struct timer_loop *base)
{
    uv_update_time(&((struct libuv_loop *)base)->uv);
}

static void libuv_arm(struct timer_loop *base, uint32_t i, uint64_t delay_ns)
{
    struct libuv_loop *loop = (struct libuv_loop *)base;
    uv_timer_start(&loop->timers[i], on_timer, delay_ns / 1000000, 0);
}

static void libuv_cancel(struct timer_loop *base, uint32_t i)
{
    uv_timer_stop(&((struct libuv_loop *)base)->timers[i]);
}

static void libuv_run(struct timer_loop *base)
{
    uv_run(&((struct libuv_loop *)base)->uv, UV_RUN_NOWAIT);
}

const struct timer_impl timer_libuv = {
    .name = "libuv",
    .n_max = UINT32_MAX,
    .open = libuv_open,
    .close = libuv_close,
    .timer_bytes = libuv_timer_bytes,
    .refresh = libuv_refresh,
    .arm = libuv_arm,
    .cancel = libuv_cancel,
    .run = libuv_run,
};
