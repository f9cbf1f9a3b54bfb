/* SPDX-License-Identifier: MIT */
/* fd_bench on libev: an ev_io for each fd, over epoll. */
#include "fd_impl.h"

#include <ev.h>
#include <stdlib.h>

struct loop {
    struct ev_loop *ev;
    uint32_t n;
    ev_io watchers[];
};

static void on_io(struct ev_loop *ev, ev_io *w, int revents)
{
    if (!fd_ready(w->data)) {
        ev_break(ev, EVBREAK_ALL);
    }
}

static void *open_loop(struct fd_chain *chain)
{
    struct loop *loop = calloc(1, sizeof(*loop) + chain->n * sizeof(loop->watchers[0]));
    if (!loop) {
        bench_die("out of memory");
    }
    loop->n = chain->n;
    loop->ev = ev_loop_new(EVBACKEND_EPOLL);
    if (!loop->ev) {
        free(loop);
        return NULL;
    }
    for (uint32_t i = 0; i < loop->n; i++) {
        ev_io *w = &loop->watchers[i];
        ev_io_init(w, on_io, chain->ends[i].fd, EV_READ);
        w->data = &chain->ends[i];
        ev_io_start(loop->ev, w);
    }
    return loop;
}

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    for (uint32_t i = 0; i < loop->n; i++) {
        ev_io_stop(loop->ev, &loop->watchers[i]);
    }
    ev_loop_destroy(loop->ev);
    free(loop);
}

static void run_loop(void *opaque)
{
    ev_run(((struct loop *)opaque)->ev, 0);
}

const struct fd_impl fd_libev = { "libev", 0, open_loop, close_loop, run_loop };
