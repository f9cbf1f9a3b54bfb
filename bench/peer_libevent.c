/* SPDX-License-Identifier: MIT */
/*
 * timer_bench on libevent: event_add() with a timeout, and a common timeout (a queue of equal
 * timeouts beside the heap) for the delay of io-timeout.  The base keeps its time only while it
 * runs, so the operations are made from a callback; else each event_add() would read the clock.
 *
 * libev exports functions of the same names, so this library must stand before it on the link
 * line; libevent_open() looks whether it did.
 */
#include "bench.h"
#include "timer_impl.h"

#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdlib.h>
#include <string.h>

struct libevent_timer {
    struct event ev; /* first */
    struct timer_tag tag;
};

struct libevent_loop {
    struct timer_loop base;
    struct event_base *eb;
    const struct timeval *io_timeout;
    struct event call; /* runs fn(arg) in the loop */
    void (*fn)(void *arg);
    void *arg;
};

static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    timer_fired(&((struct libevent_timer *)opaque)->tag);
}

static void on_call(evutil_socket_t fd, short what, void *opaque)
{
    struct libevent_loop *loop = opaque;
    loop->fn(loop->arg);
}

static struct event_base *new_base(void)
{
    struct event_config *config = event_config_new();
    if (!config) {
        return NULL;
    }
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    struct event_base *eb = event_base_new_with_config(config);
    event_config_free(config);
    return eb;
}

static struct timer_loop *libevent_open(uint32_t n)
{
    if (strncmp(event_get_version(), "2.", 2)) {
        bench_die("libevent's functions were taken from '%s'", event_get_version());
    }
    struct libevent_loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return NULL;
    }
    loop->eb = new_base();
    if (!loop->eb) {
        free(loop);
        return NULL;
    }
    struct timeval tv = { .tv_sec = IO_TIMEOUT_NS / 1000000000 };
    loop->io_timeout = event_base_init_common_timeout(loop->eb, &tv);
    event_assign(&loop->call, loop->eb, -1, 0, on_call, loop);
    timer_loop_init(&loop->base, n, sizeof(struct libevent_timer),
                    offsetof(struct libevent_timer, tag));
    for (uint32_t i = 0; i < n; i++) {
        struct event *ev = timer_at(&loop->base, i);
        event_assign(ev, loop->eb, -1, 0, on_timer, ev);
    }
    return &loop->base;
}

static void libevent_close(struct timer_loop *base)
{
    struct libevent_loop *loop = (struct libevent_loop *)base;
    for (uint32_t i = 0; i < base->n; i++) {
        event_del(timer_at(base, i));
    }
    event_base_free(loop->eb);
    timer_loop_cleanup(base);
    free(loop);
}

static size_t libevent_timer_bytes(void)
{
    return sizeof(struct event);
}

static void libevent_refresh(struct timer_loop *base)
{
    event_base_update_cache_time(((struct libevent_loop *)base)->eb);
}

static void libevent_arm(struct timer_loop *base, uint32_t i, uint64_t delay_ns)
{
    struct libevent_loop *loop = (struct libevent_loop *)base;
    struct timeval tv = { .tv_sec = (time_t)(delay_ns / 1000000000),
                          .tv_usec = (suseconds_t)(delay_ns % 1000000000 / 1000) };
    event_add(timer_at(base, i), delay_ns == IO_TIMEOUT_NS ? loop->io_timeout : &tv);
}

static void libevent_cancel(struct timer_loop *base, uint32_t i)
{
    event_del(timer_at(base, i));
}

static void libevent_run(struct timer_loop *base)
{
    event_base_loop(((struct libevent_loop *)base)->eb, EVLOOP_NONBLOCK);
}

static void libevent_inside(struct timer_loop *base, void (*fn)(void *arg), void *arg)
{
    struct libevent_loop *loop = (struct libevent_loop *)base;
    loop->fn = fn;
    loop->arg = arg;
    event_active(&loop->call, EV_TIMEOUT, 0);
    event_base_loop(loop->eb, EVLOOP_NONBLOCK);
}

const struct timer_impl timer_libevent = {
    .name = "libevent",
    .n_max = UINT32_MAX,
    .n_max_fire = 100000,
    .open = libevent_open,
    .close = libevent_close,
    .timer_bytes = libevent_timer_bytes,
    .refresh = libevent_refresh,
    .arm = libevent_arm,
    .cancel = libevent_cancel,
    .run = libevent_run,
    .inside = libevent_inside,
};
