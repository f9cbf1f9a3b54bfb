/* SPDX-License-Identifier: MIT */
/* notify_bench's peers: two plain threads over a futex, an eventfd, and an eventfd below epoll. */
#include "notify_impl.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- The run --------------------------------------------------------------------------------- */

struct run {
    const struct transport *t;
    struct ping_pong *pp;
    void *state;
    pthread_barrier_t barrier;
    atomic_bool cannot, stop;
    uint64_t cpu_ns[2];
    uint64_t ponged;
};

static void ping_side(struct run *r)
{
    uint64_t begin = bench_now_ns(), last = begin;
    do {
        r->t->pass(r->state, 0, true);
    } while (ping_pong_trip(r->pp, begin, &last));
    atomic_store(&r->stop, true);
    r->t->pass(r->state, 0, false);
}

static void pong_side(struct run *r)
{
    for (r->t->wait(r->state, 1); !atomic_load(&r->stop); r->ponged++) {
        r->t->pass(r->state, 1, true);
    }
}

static void run_side(unsigned me, void *opaque)
{
    struct run *r = opaque;
    bench_pin(r->pp->cpu[me]);
    if (!r->t->open(r->state, (int)me)) {
        atomic_store(&r->cannot, true);
    }
    pthread_barrier_wait(&r->barrier);
    if (!atomic_load(&r->cannot)) {
        uint64_t cpu = bench_cpu_ns();
        if (me == 0) {
            ping_side(r);
        } else {
            pong_side(r);
        }
        r->cpu_ns[me] = bench_cpu_ns() - cpu;
    }
    pthread_barrier_wait(&r->barrier); /* neither closes what the other still wakes */
    r->t->close(r->state, (int)me);
}

bool transport_ping_pong(const struct transport *t, struct ping_pong *pp)
{
    struct run r = { .t = t, .pp = pp, .state = calloc(1, t->size) };
    if (!r.state) {
        bench_die("out of memory");
    }
    pthread_barrier_init(&r.barrier, NULL, 2);
    bench_threads(2, false, run_side, &r);
    pthread_barrier_destroy(&r.barrier);
    free(r.state);
    pp->cpu_ns = r.cpu_ns[0] + r.cpu_ns[1];
    pp->failed = r.ponged != pp->trips;
    return !r.cannot;
}

/* ---- futex ----------------------------------------------------------------------------------- */

/* Each side sleeps on its own word, which the other sets to 1. */
struct futex_state {
    struct {
        _Alignas(64) atomic_uint word;
    } side[2];
};

static bool futex_open(void *state, int me)
{
    return true;
}

static void futex_close(void *state, int me)
{
}

static void futex_wait(void *state, int me)
{
    atomic_uint *word = &((struct futex_state *)state)->side[me].word;
    while (!atomic_exchange(word, 0)) {
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    }
}

static void futex_pass(void *state, int me, bool wait)
{
    atomic_uint *word = &((struct futex_state *)state)->side[!me].word;
    atomic_store(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    if (wait) {
        futex_wait(state, me);
    }
}

static bool futex_ping_pong(struct ping_pong *pp)
{
    static const struct transport t = { sizeof(struct futex_state), futex_open, futex_close,
                                        futex_pass, futex_wait };
    return transport_ping_pong(&t, pp);
}

const struct notify_impl notify_futex = { "futex", futex_ping_pong };

struct bench_span notify_futex_awake(uint64_t ops)
{
    struct bench_span span;
    atomic_uint word = 0;
    bench_begin(&span);
    for (uint64_t i = 0; i < ops; i++) {
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    bench_end(&span);
    return span;
}

/* ---- eventfd --------------------------------------------------------------------------------- */

struct eventfd_state {
    int fd[2], epoll[2];
};

static void set_eventfd(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        bench_die("notify_bench: writing an eventfd: %s", strerror(errno));
    }
}

static void read_eventfd(int fd)
{
    uint64_t count;
    if (read(fd, &count, sizeof(count)) != sizeof(count)) {
        bench_die("notify_bench: reading an eventfd: %s", strerror(errno));
    }
}

static bool eventfd_open(void *state, int me)
{
    struct eventfd_state *s = state;
    s->epoll[me] = -1;
    s->fd[me] = eventfd(0, EFD_CLOEXEC);
    return s->fd[me] >= 0;
}

static void eventfd_close(void *state, int me)
{
    struct eventfd_state *s = state;
    if (s->fd[me] >= 0) {
        close(s->fd[me]);
    }
    if (s->epoll[me] >= 0) {
        close(s->epoll[me]);
    }
}

static void eventfd_wait(void *state, int me)
{
    read_eventfd(((struct eventfd_state *)state)->fd[me]);
}

static void eventfd_pass(void *state, int me, bool wait)
{
    set_eventfd(((struct eventfd_state *)state)->fd[!me]);
    if (wait) {
        eventfd_wait(state, me);
    }
}

static bool eventfd_ping_pong(struct ping_pong *pp)
{
    static const struct transport t = { sizeof(struct eventfd_state), eventfd_open, eventfd_close,
                                        eventfd_pass, eventfd_wait };
    return transport_ping_pong(&t, pp);
}

const struct notify_impl notify_eventfd = { "eventfd", eventfd_ping_pong };

struct bench_span notify_eventfd_awake(uint64_t ops)
{
    struct bench_span span;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        bench_die("notify_bench: eventfd: %s", strerror(errno));
    }
    bench_begin(&span);
    for (uint64_t i = 0; i < ops; i++) {
        set_eventfd(fd);
    }
    bench_end(&span);
    close(fd);
    return span;
}

/* ---- eventfd and epoll ----------------------------------------------------------------------- */

static bool epoll_open(void *state, int me)
{
    struct eventfd_state *s = state;
    if (!eventfd_open(state, me)) {
        return false;
    }
    struct epoll_event ev = { .events = EPOLLIN };
    s->epoll[me] = epoll_create1(EPOLL_CLOEXEC);
    return s->epoll[me] >= 0 && !epoll_ctl(s->epoll[me], EPOLL_CTL_ADD, s->fd[me], &ev);
}

static void epoll_wait_side(void *state, int me)
{
    struct eventfd_state *s = state;
    struct epoll_event ev;
    while (epoll_wait(s->epoll[me], &ev, 1, -1) < 0 && errno == EINTR) {
    }
    read_eventfd(s->fd[me]);
}

static void epoll_pass(void *state, int me, bool wait)
{
    set_eventfd(((struct eventfd_state *)state)->fd[!me]);
    if (wait) {
        epoll_wait_side(state, me);
    }
}

static bool epoll_ping_pong(struct ping_pong *pp)
{
    static const struct transport t = { sizeof(struct eventfd_state), epoll_open, eventfd_close,
                                        epoll_pass, epoll_wait_side };
    return transport_ping_pong(&t, pp);
}

const struct notify_impl notify_eventfd_epoll = { "eventfd-epoll", epoll_ping_pong };
