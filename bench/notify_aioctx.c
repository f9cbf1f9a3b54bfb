/* SPDX-License-Identifier: MIT */
/* notify_bench on aioctx: another thread schedules a bottom half of a context that sleeps, or, in
 * the rows -polling, of one that busy-polls before it would. */
#include "notify_impl.h"

#include <aioctx/aio.h>
#include <stdlib.h>

struct loop {
    AioContext *ctx;
    QEMUBH *bh;
    bool stop;
};

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    qemu_bh_delete(loop->bh);
    aio_context_unref(loop->ctx);
    free(loop);
}

/* Longer than any round trip between loops that poll. */
#define POLL_MAX_NS INT64_C(1000000)

static void *open_on(const char *monitor, void (*woken)(void *opaque), void *opaque)
{
    struct loop *loop = bench_alloc(sizeof(*loop));
    loop->ctx = aio_context_new(&(AioContextOptions){ .monitor = monitor });
    if (!loop->ctx) {
        free(loop);
        return NULL;
    }
    qemu_set_current_aio_context(loop->ctx);
    loop->bh = aio_bh_new(loop->ctx, woken, opaque);
    if (!loop->bh) {
        bench_die("out of memory");
    }
    return loop;
}

static void *open_uring(void (*woken)(void *opaque), void *opaque)
{
    return open_on("io_uring", woken, opaque);
}

static void *open_epoll(void (*woken)(void *opaque), void *opaque)
{
    return open_on("epoll", woken, opaque);
}

static void *open_ppoll(void (*woken)(void *opaque), void *opaque)
{
    return open_on("ppoll", woken, opaque);
}

static void *open_polling(const char *monitor, void (*woken)(void *opaque), void *opaque)
{
    struct loop *loop = open_on(monitor, woken, opaque);
    if (loop && aio_context_set_poll_params(loop->ctx, POLL_MAX_NS, 0, 0)) {
        bench_die("notify_bench: aio_context_set_poll_params failed");
    }
    return loop;
}

static void *open_uring_polling(void (*woken)(void *opaque), void *opaque)
{
    return open_polling("io_uring", woken, opaque);
}

static void *open_epoll_polling(void (*woken)(void *opaque), void *opaque)
{
    return open_polling("epoll", woken, opaque);
}

static void run_loop(void *opaque)
{
    struct loop *loop = opaque;
    while (!loop->stop) {
        aio_poll(loop->ctx, true);
    }
}

static void stop_loop(void *opaque)
{
    ((struct loop *)opaque)->stop = true;
}

static void wake_loop(void *opaque)
{
    qemu_bh_schedule(((struct loop *)opaque)->bh);
}

static void notify_loop(void *opaque)
{
    aio_notify(((struct loop *)opaque)->ctx);
}

static uint64_t sent_by(void *opaque)
{
    AioContextStats stats;
    aio_context_get_stats(((struct loop *)opaque)->ctx, &stats);
    return stats.notifies_sent;
}

static const struct wake_loop uring = { open_uring, close_loop,  run_loop, stop_loop,
                                        wake_loop,  notify_loop, sent_by };
static const struct wake_loop epoll = { open_epoll, close_loop,  run_loop, stop_loop,
                                        wake_loop,  notify_loop, sent_by };
static const struct wake_loop ppoll_loop = { open_ppoll, close_loop,  run_loop, stop_loop,
                                             wake_loop,  notify_loop, sent_by };

static const struct wake_loop uring_polling = {
    open_uring_polling, close_loop, run_loop, stop_loop, wake_loop, notify_loop, sent_by
};
static const struct wake_loop epoll_polling = {
    open_epoll_polling, close_loop, run_loop, stop_loop, wake_loop, notify_loop, sent_by
};

const struct notify_impl notify_aioctx = { .name = "aioctx", .loop = &uring };
const struct notify_impl notify_aioctx_epoll = { .name = "aioctx-epoll", .loop = &epoll };
const struct notify_impl notify_aioctx_ppoll = { .name = "aioctx-ppoll", .loop = &ppoll_loop };
const struct notify_impl notify_aioctx_polling = { .name = "aioctx-polling",
                                                   .loop = &uring_polling,
                                                   .spins = true };
const struct notify_impl notify_aioctx_epoll_polling = { .name = "aioctx-epoll-polling",
                                                         .loop = &epoll_polling,
                                                         .spins = true };
