/* SPDX-License-Identifier: MIT */
/* fd_bench on libuv: a uv_poll_t for each fd. */
#include "fd_impl.h"

#include <stdlib.h>
#include <uv.h>

struct loop {
    uv_loop_t uv;
    uint32_t n;
    uv_poll_t polls[];
};

static void on_poll(uv_poll_t *p, int status, int events)
{
    if (!fd_ready(p->data)) {
        uv_stop(p->loop);
    }
}

static void *open_loop(struct fd_chain *chain)
{
    struct loop *loop = calloc(1, sizeof(*loop) + chain->n * sizeof(loop->polls[0]));
    if (!loop) {
        bench_die("out of memory");
    }
    loop->n = chain->n;
    if (uv_loop_init(&loop->uv)) {
        free(loop);
        return NULL;
    }
    for (uint32_t i = 0; i < loop->n; i++) {
        uv_poll_t *p = &loop->polls[i];
        if (uv_poll_init(&loop->uv, p, chain->ends[i].fd) ||
            uv_poll_start(p, UV_READABLE, on_poll)) {
            bench_die("fd_bench: libuv does not take an fd");
        }
        p->data = &chain->ends[i];
    }
    return loop;
}

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    for (uint32_t i = 0; i < loop->n; i++) {
        uv_close((uv_handle_t *)&loop->polls[i], NULL);
    }
    uv_run(&loop->uv, UV_RUN_DEFAULT); /* handles close in the loop */
    uv_loop_close(&loop->uv);
    free(loop);
}

static void run_loop(void *opaque)
{
    uv_run(&((struct loop *)opaque)->uv, UV_RUN_DEFAULT);
}

const struct fd_impl fd_libuv = { "libuv", 0, open_loop, close_loop, run_loop };
