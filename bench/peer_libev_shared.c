/* SPDX-License-Identifier: MIT */
/*
 * timer_bench on a libev loop that two threads share in the way that its manual tells (ev(3),
 * "Threads"): a mutex, which the loop drops while it waits and takes back when it wakes.  A thread
 * that has changed something wakes the loop with ev_async_send(), so that the loop sees it;
 * "libev-quiet" saves that, which is right only for who knows that the loop wakes early enough.
 */
#include "bench.h"
#include "timer_shared.h"

#include <ev.h>
#include <stdlib.h>

struct libev_shared {
    struct shared_loop base;
    struct ev_loop *ev;
    bool wake;
    bool stop;        /* under the lock */
    uint64_t wakeups; /* under the lock: returns from the wait */
    ev_async async;
    ev_timer head;
    ev_timer *timers[SIDES];
    pthread_t home;
    void (*fn)(void *arg); /* under the lock */
    void *arg;
    pthread_mutex_t lock __attribute__((aligned(BENCH_ALIGN)));
};

static void release_cb(struct ev_loop *ev)
{
    struct libev_shared *loop = ev_userdata(ev);
    pthread_mutex_unlock(&loop->lock);
}

static void acquire_cb(struct ev_loop *ev)
{
    struct libev_shared *loop = ev_userdata(ev);
    pthread_mutex_lock(&loop->lock);
    loop->wakeups++;
}

static void on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
}

static void on_async(struct ev_loop *ev, ev_async *w, int revents)
{
    struct libev_shared *loop = ev_userdata(ev);
    void (*fn)(void *) = loop->fn;
    void *arg = loop->arg;
    loop->fn = NULL;
    if (loop->stop) {
        ev_break(ev, EVBREAK_ALL);
    } else if (fn) { /* which takes the lock for each operation */
        pthread_mutex_unlock(&loop->lock);
        fn(arg);
        pthread_mutex_lock(&loop->lock);
    }
}

static void *home_run(void *opaque)
{
    struct libev_shared *loop = opaque;
    pthread_mutex_lock(&loop->lock);
    ev_run(loop->ev, 0);
    pthread_mutex_unlock(&loop->lock);
    return NULL;
}

/* The loop's own now is that of its last wake-up. */
static void libev_arm(struct shared_loop *base, enum shared_side side, uint32_t i,
                      uint64_t deadline_ns)
{
    struct libev_shared *loop = (struct libev_shared *)base;
    ev_timer *w = &loop->timers[side][i];
    pthread_mutex_lock(&loop->lock);
    w->repeat = (ev_tstamp)SHARED_TIMEOUT_NS * 1e-9;
    ev_timer_again(loop->ev, w);
    w->repeat = 0.;
    if (loop->wake && side == SIDE_FOREIGN) {
        ev_async_send(loop->ev, &loop->async);
    }
    pthread_mutex_unlock(&loop->lock);
}

static void libev_cancel(struct shared_loop *base, enum shared_side side, uint32_t i)
{
    struct libev_shared *loop = (struct libev_shared *)base;
    pthread_mutex_lock(&loop->lock);
    ev_timer_stop(loop->ev, &loop->timers[side][i]);
    pthread_mutex_unlock(&loop->lock);
}

static struct shared_loop *open_loop(uint32_t n, bool wake, const struct shared_impl *impl)
{
    struct libev_shared *loop = bench_alloc(sizeof(*loop));
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&loop->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    loop->base.n = n;
    loop->ev = ev_loop_new(EVFLAG_AUTO);
    if (!loop->ev) {
        free(loop);
        return NULL;
    }
    ev_set_userdata(loop->ev, loop);
    ev_set_loop_release_cb(loop->ev, release_cb, acquire_cb);
    ev_async_init(&loop->async, on_async);
    ev_async_start(loop->ev, &loop->async);
    ev_timer_init(&loop->head, on_timer, (ev_tstamp)SHARED_HEAD_NS * 1e-9, 0.);
    ev_timer_start(loop->ev, &loop->head);
    for (int side = 0; side < SIDES; side++) {
        loop->timers[side] = bench_alloc((n + 1) * sizeof(ev_timer));
        for (uint32_t i = 0; i <= n; i++) {
            ev_timer_init(&loop->timers[side][i], on_timer, 0., 0.);
        }
    }
    shared_fill(impl, &loop->base);
    loop->wake = wake;
    if (pthread_create(&loop->home, NULL, home_run, loop)) {
        bench_die("cannot start a thread");
    }
    return &loop->base;
}

static struct shared_loop *libev_open(uint32_t n)
{
    return open_loop(n, true, &shared_libev);
}

static struct shared_loop *libev_open_quiet(uint32_t n)
{
    return open_loop(n, false, &shared_libev_quiet);
}

static void libev_close(struct shared_loop *base)
{
    struct libev_shared *loop = (struct libev_shared *)base;
    pthread_mutex_lock(&loop->lock);
    loop->stop = true;
    ev_async_send(loop->ev, &loop->async);
    pthread_mutex_unlock(&loop->lock);
    pthread_join(loop->home, NULL);
    ev_loop_destroy(loop->ev);
    for (int side = 0; side < SIDES; side++) {
        free(loop->timers[side]);
    }
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static void libev_call_home(struct shared_loop *base, void (*fn)(void *arg), void *arg)
{
    struct libev_shared *loop = (struct libev_shared *)base;
    pthread_mutex_lock(&loop->lock);
    loop->fn = fn;
    loop->arg = arg;
    ev_async_send(loop->ev, &loop->async);
    pthread_mutex_unlock(&loop->lock);
}

static uint64_t libev_wakeups(struct shared_loop *base)
{
    struct libev_shared *loop = (struct libev_shared *)base;
    pthread_mutex_lock(&loop->lock);
    uint64_t wakeups = loop->wakeups;
    pthread_mutex_unlock(&loop->lock);
    return wakeups;
}

const struct shared_impl shared_libev = {
    .name = "libev-mutex",
    .open = libev_open,
    .close = libev_close,
    .arm = libev_arm,
    .cancel = libev_cancel,
    .call_home = libev_call_home,
    .wakeups = libev_wakeups,
};

const struct shared_impl shared_libev_quiet = {
    .name = "libev-quiet",
    .open = libev_open_quiet,
    .close = libev_close,
    .arm = libev_arm,
    .cancel = libev_cancel,
    .call_home = libev_call_home,
    .wakeups = libev_wakeups,
};
