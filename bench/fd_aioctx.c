/* SPDX-License-Identifier: MIT */
/* fd_bench on aioctx: a context of the calling thread on each of the monitors. */
#include "fd_impl.h"

#include <aioctx/aio.h>
#include <stdlib.h>
#include <string.h>

struct loop {
    AioContext *ctx;
    struct fd_chain *chain;
    bool ended;
};

/* The chain is found through its end, so that the callback's argument is as small as with the
 * others; the loop is found through a thread's variable only when the run has ended. */
static _Thread_local struct loop *running;

static void on_read(void *opaque)
{
    if (!fd_ready(opaque)) {
        running->ended = true;
    }
}

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    for (uint32_t i = 0; i < loop->chain->n; i++) {
        aio_set_fd_handler(loop->ctx, loop->chain->ends[i].fd, NULL, NULL, NULL, NULL, NULL);
    }
    aio_context_unref(loop->ctx);
    free(loop);
}

static void *open_on(struct fd_chain *chain, const char *monitor)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        bench_die("out of memory");
    }
    loop->chain = chain;
    loop->ctx = aio_context_new(&(AioContextOptions){ .monitor = monitor });
    if (!loop->ctx) {
        free(loop);
        return NULL;
    }
    qemu_set_current_aio_context(loop->ctx);
    for (uint32_t i = 0; i < chain->n; i++) {
        struct fd_end *end = &chain->ends[i];
        int ret = aio_set_fd_handler(loop->ctx, end->fd, on_read, NULL, NULL, NULL, end);
        if (ret) {
            bench_die("fd_bench: aio_set_fd_handler: %s", strerror(-ret));
        }
    }
    return loop;
}

static void *open_uring(struct fd_chain *chain)
{
    return open_on(chain, "io_uring");
}

static void *open_epoll(struct fd_chain *chain)
{
    return open_on(chain, "epoll");
}

static void *open_ppoll(struct fd_chain *chain)
{
    return open_on(chain, "ppoll");
}

static void run_loop(void *opaque)
{
    struct loop *loop = running = opaque;
    loop->ended = false;
    while (!loop->ended) {
        aio_poll(loop->ctx, true);
    }
}

const struct fd_impl fd_aioctx = { "aioctx", 0, open_uring, close_loop, run_loop };
const struct fd_impl fd_aioctx_epoll = { "aioctx-epoll", 0, open_epoll, close_loop, run_loop };
/* What ppoll(2) costs grows with every fd that it is given. */
const struct fd_impl fd_aioctx_ppoll = { "aioctx-ppoll", 1000, open_ppoll, close_loop, run_loop };
