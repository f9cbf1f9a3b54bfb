/* SPDX-License-Identifier: MIT */
/* timer_bench on libev: ev_timer, moved in place by ev_timer_again(). */
#include "timer_impl.h"

#include <ev.h>
#include <stdlib.h>

struct libev_timer {
    ev_timer timer; /* first */
    struct timer_tag tag;
};

struct libev_loop {
    struct timer_loop base;
    struct ev_loop *ev;
};

static void on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    timer_fired(&((struct libev_timer *)w)->tag);
}

static struct timer_loop *libev_open(uint32_t n)
{
    struct libev_loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return NULL;
    }
    loop->ev = ev_loop_new(EVFLAG_AUTO);
    if (!loop->ev) {
        free(loop);
        return NULL;
    }
    timer_loop_init(&loop->base, n, sizeof(struct libev_timer), offsetof(struct libev_timer, tag));
    for (uint32_t i = 0; i < n; i++) {
        ev_timer *w = timer_at(&loop->base, i);
        ev_timer_init(w, on_timer, 0., 0.);
    }
    return &loop->base;
}

static void libev_close(struct timer_loop *base)
{
    struct libev_loop *loop = (struct libev_loop *)base;
    for (uint32_t i = 0; i < base->n; i++) {
        ev_timer_stop(loop->ev, timer_at(base, i));
    }
    ev_loop_destroy(loop->ev);
    timer_loop_cleanup(base);
    free(loop);
}

static size_t libev_timer_bytes(void)
{
    return sizeof(ev_timer);
}

static void libev_refresh(struct timer_loop *base)
{
    ev_now_update(((struct libev_loop *)base)->ev);
}

/* ev_timer_again() takes the delay from `repeat`, which is then cleared: the timer fires once. */
static void libev_arm(struct timer_loop *base, uint32_t i, uint64_t delay_ns)
{
    struct libev_loop *loop = (struct libev_loop *)base;
    ev_timer *w = timer_at(base, i);
    w->repeat = (ev_tstamp)delay_ns * 1e-9;
    ev_timer_again(loop->ev, w);
    w->repeat = 0.;
}

static void libev_cancel(struct timer_loop *base, uint32_t i)
{
    ev_timer_stop(((struct libev_loop *)base)->ev, timer_at(base, i));
}

static void libev_run(struct timer_loop *base)
{
    ev_run(((struct libev_loop *)base)->ev, EVRUN_NOWAIT);
}

const struct timer_impl timer_libev = {
    .name = "libev",
    .n_max = UINT32_MAX,
    .n_max_fire = UINT32_MAX,
    .open = libev_open,
    .close = libev_close,
    .timer_bytes = libev_timer_bytes,
    .refresh = libev_refresh,
    .arm = libev_arm,
    .cancel = libev_cancel,
    .run = libev_run,
};
