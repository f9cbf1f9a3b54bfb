/* SPDX-License-Identifier: MIT */
/* notify_bench on libuv: uv_async_send(). */
#include "notify_impl.h"

#include <stdlib.h>
#include <uv.h>

struct loop {
    uv_loop_t uv;
    uv_async_t async;
    void (*woken)(void *opaque);
    void *opaque;
};

static void on_async(uv_async_t *async)
{
    struct loop *loop = async->data;
    loop->woken(loop->opaque);
}

static void *open_loop(void (*woken)(void *opaque), void *opaque)
{
    struct loop *loop = bench_alloc(sizeof(*loop));
    loop->woken = woken;
    loop->opaque = opaque;
    if (uv_loop_init(&loop->uv)) {
        free(loop);
        return NULL;
    }
    if (uv_async_init(&loop->uv, &loop->async, on_async)) {
        bench_die("notify_bench: libuv makes no uv_async_t");
    }
    loop->async.data = loop;
    return loop;
}

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    uv_close((uv_handle_t *)&loop->async, NULL);
    uv_run(&loop->uv, UV_RUN_DEFAULT); /* handles close in the loop */
    uv_loop_close(&loop->uv);
    free(loop);
}

static void run_loop(void *opaque)
{
    uv_run(&((struct loop *)opaque)->uv, UV_RUN_DEFAULT);
}

static void stop_loop(void *opaque)
{
    uv_stop(&((struct loop *)opaque)->uv);
}

static void wake_loop(void *opaque)
{
    uv_async_send(&((struct loop *)opaque)->async);
}

static const struct wake_loop libuv = { open_loop, close_loop, run_loop, stop_loop, wake_loop };
const struct notify_impl notify_libuv = { .name = "libuv", .loop = &libuv };
