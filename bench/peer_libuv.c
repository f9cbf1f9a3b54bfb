/* SPDX-License-Identifier: MIT */
/* timer_bench on libuv: uv_timer_start(), which moves a timer that is active.  Milliseconds. */
#include "timer_impl.h"

#include <stdlib.h>
#include <uv.h>

struct libuv_timer {
    uv_timer_t timer; /* first */
    struct timer_tag tag;
};

struct libuv_loop {
    struct timer_loop base;
    uv_loop_t uv;
};

static void on_timer(uv_timer_t *t)
{
    timer_fired(&((struct libuv_timer *)t)->tag);
}

static struct timer_loop *libuv_open(uint32_t n)
{
    struct libuv_loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return NULL;
    }
    if (uv_loop_init(&loop->uv)) {
        free(loop);
        return NULL;
    }
    timer_loop_init(&loop->base, n, sizeof(struct libuv_timer), offsetof(struct libuv_timer, tag));
    for (uint32_t i = 0; i < n; i++) {
        uv_timer_init(&loop->uv, timer_at(&loop->base, i));
    }
    return &loop->base;
}

static void libuv_close(struct timer_loop *base)
{
    struct libuv_loop *loop = (struct libuv_loop *)base;
    for (uint32_t i = 0; i < base->n; i++) {
        uv_close(timer_at(base, i), NULL);
    }
    uv_run(&loop->uv, UV_RUN_DEFAULT); /* handles close in the loop */
    uv_loop_close(&loop->uv);
    timer_loop_cleanup(base);
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
    uv_timer_start(timer_at(base, i), on_timer, delay_ns / 1000000, 0);
}

static void libuv_cancel(struct timer_loop *base, uint32_t i)
{
    uv_timer_stop(timer_at(base, i));
}

static void libuv_run(struct timer_loop *base)
{
    uv_run(&((struct libuv_loop *)base)->uv, UV_RUN_NOWAIT);
}

const struct timer_impl timer_libuv = {
    .name = "libuv",
    .n_max = UINT32_MAX,
    .n_max_fire = 100000,
    .open = libuv_open,
    .close = libuv_close,
    .timer_bytes = libuv_timer_bytes,
    .refresh = libuv_refresh,
    .arm = libuv_arm,
    .cancel = libuv_cancel,
    .run = libuv_run,
};
