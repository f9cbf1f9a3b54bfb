/* SPDX-License-Identifier: MIT */
/* fd_bench on libevent: a persistent event for each fd, over epoll, in a base without locks.  libev
 * exports functions of the same names: libevent must stand before it on the link line. */
#include "fd_impl.h"

#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdlib.h>
#include <string.h>

struct loop {
    struct event_base *eb;
    uint32_t n;
    struct event events[];
};

static _Thread_local struct event_base *running;

static void on_event(evutil_socket_t fd, short what, void *opaque)
{
    if (!fd_ready(opaque)) {
        event_base_loopbreak(running);
    }
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

static void *open_loop(struct fd_chain *chain)
{
    if (strncmp(event_get_version(), "2.", 2)) {
        bench_die("libevent's functions were taken from '%s'", event_get_version());
    }
    struct loop *loop = calloc(1, sizeof(*loop) + chain->n * sizeof(loop->events[0]));
    if (!loop) {
        bench_die("out of memory");
    }
    loop->n = chain->n;
    loop->eb = new_base();
    if (!loop->eb) {
        free(loop);
        return NULL;
    }
    for (uint32_t i = 0; i < loop->n; i++) {
        struct event *ev = &loop->events[i];
        event_assign(ev, loop->eb, chain->ends[i].fd, EV_READ | EV_PERSIST, on_event,
                     &chain->ends[i]);
        event_add(ev, NULL);
    }
    return loop;
}

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    for (uint32_t i = 0; i < loop->n; i++) {
        event_del(&loop->events[i]);
    }
    event_base_free(loop->eb);
    free(loop);
}

static void run_loop(void *opaque)
{
    running = ((struct loop *)opaque)->eb;
    event_base_dispatch(running);
}

const struct fd_impl fd_libevent = { "libevent", 0, open_loop, close_loop, run_loop };
