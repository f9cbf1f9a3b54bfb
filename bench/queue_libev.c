/* SPDX-License-Identifier: MIT */
/* The peer of queue_bench: libev's heap of ev_timer, on its own clock. */
#include "queue_impl.h"

#include <ev.h>
#include <stdlib.h>

struct queue {
    struct ev_loop *ev;
    int64_t now;
    unsigned fired;
    uint32_t n;
};

_Static_assert(sizeof(ev_timer) <= sizeof(((struct qtimer *)0)->peer), "an ev_timer fits");

static void on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
    struct queue *q = ev_userdata(ev);
    q->fired++;
}

static inline ev_timer *watcher(struct qtimer *t)
{
    return (ev_timer *)t->peer;
}

static struct queue *open_queue(void)
{
    struct queue *q = queue_alloc(sizeof(*q), 64);
    q->ev = ev_loop_new(EVFLAG_AUTO);
    ev_set_userdata(q->ev, q);
    return q;
}

static void close_queue(struct queue *q)
{
    ev_loop_destroy(q->ev);
    free(q);
}

static void reserve(struct queue *q, struct qtimer *timers, uint32_t n)
{
    q->n = n;
    for (uint32_t i = 0; i < n; i++) {
        ev_timer_init(watcher(&timers[i]), on_timer, 0., 0.);
    }
}

/* What its heap needs; it doubles an array of 16 bytes an entry. */
static size_t bytes(struct queue *q)
{
    return (size_t)q->n * 16;
}

static int64_t move(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq)
{
    ev_timer *w = watcher(t);
    w->repeat = (ev_tstamp)(key - q->now) * 1e-9;
    ev_timer_again(q->ev, w);
    w->repeat = 0.;
    return NO_KEY;
}

static int64_t insert(struct queue *q, struct qtimer *t)
{
    return move(q, t, t->key, t->seq);
}

static int64_t remove_timer(struct queue *q, struct qtimer *t)
{
    ev_timer_stop(q->ev, watcher(t));
    return NO_KEY;
}

static void refresh(struct queue *q, int64_t now)
{
    q->now = now;
    ev_now_update(q->ev);
}

static unsigned run(struct queue *q)
{
    q->fired = 0;
    ev_run(q->ev, EVRUN_NOWAIT);
    return q->fired;
}

const struct queue_impl queue_libev = {
    .name = "libev",
    .inexact = true,
    .open = open_queue,
    .close = close_queue,
    .reserve = reserve,
    .bytes = bytes,
    .insert = insert,
    .remove = remove_timer,
    .move = move,
    .refresh = refresh,
    .run = run,
};
