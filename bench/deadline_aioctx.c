/* SPDX-License-Identifier: MIT */
/* deadline_bench's loops of our own: a timer's callback on a context. */
#include "deadline_impl.h"

#include <aioctx/aio.h>
#include <stdlib.h>

int64_t deadline_lead_ns;

enum { NORMAL, EPOLL, PPOLL, PRECISE };

struct aioctx_source {
    AioContext *ctx;
    QEMUTimer timer;
    uint64_t fired_ns; /* 0: not yet */
};

static void on_timer(void *opaque)
{
    struct aioctx_source *s = opaque;
    s->fired_ns = bench_now_ns();
}

static void *aioctx_open(const struct deadline_source *source)
{
    struct aioctx_source *s = bench_alloc(sizeof(*s));
    AioContextOptions opts = {
        .monitor = source->variant == EPOLL   ? "epoll"
                   : source->variant == PPOLL ? "ppoll"
                                              : NULL,
        .precise_ns = source->variant == PRECISE ? deadline_lead_ns : 0,
    };
    s->ctx = aio_context_new(&opts);
    if (!s->ctx) {
        free(s);
        return NULL;
    }
    aio_timer_init(s->ctx, &s->timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_timer, s);
    return s;
}

static uint64_t aioctx_wait(void *state, uint64_t deadline_ns)
{
    struct aioctx_source *s = state;
    s->fired_ns = 0;
    timer_mod(&s->timer, (int64_t)deadline_ns);
    while (!s->fired_ns) {
        aio_poll(s->ctx, true);
    }
    return s->fired_ns;
}

static void aioctx_close(void *state)
{
    struct aioctx_source *s = state;
    timer_deinit(&s->timer);
    aio_context_unref(s->ctx);
    free(s);
}

const struct deadline_source deadline_aioctx = {
    .name = "aioctx",
    .slack = true,
    .open = aioctx_open,
    .wait = aioctx_wait,
    .close = aioctx_close,
    .variant = NORMAL,
};
/* With a thread's usual timer slack it waits on a timerfd alone. */
const struct deadline_source deadline_aioctx_epoll = {
    .name = "aioctx-epoll",
    .slack = true,
    .open = aioctx_open,
    .wait = aioctx_wait,
    .close = aioctx_close,
    .variant = EPOLL,
};
const struct deadline_source deadline_aioctx_ppoll = {
    .name = "aioctx-ppoll",
    .open = aioctx_open,
    .wait = aioctx_wait,
    .close = aioctx_close,
    .variant = PPOLL,
};
const struct deadline_source deadline_aioctx_precise = {
    .name = "aioctx-precise",
    .slack = true,
    .open = aioctx_open,
    .wait = aioctx_wait,
    .close = aioctx_close,
    .variant = PRECISE,
};
