/* SPDX-License-Identifier: MIT */
/*
 * What fd_bench asks of an event loop, and the chain that runs through it.
 *
 * A chain has n pairs of connected sockets, whose reading ends the loop watches.  A callback reads
 * one byte from its pair and, until the run's time is over, writes one to the next pair.  So as
 * many events are under way as bytes were put in at the beginning, and a run has ended when the
 * last of them was read.
 */
#ifndef BENCH_FD_IMPL_H
#define BENCH_FD_IMPL_H

#include "bench.h"

#include <unistd.h>

/* Events from one look at the clock to the next. */
enum { FD_CLOCK_EVERY = 64 };

struct fd_chain;

/* What a callback gets. */
struct fd_end {
    struct fd_chain *chain;
    int fd;      /* to read from */
    int next_fd; /* to write to: the next pair's */
};

struct fd_chain {
    _Alignas(BENCH_ALIGN) uint32_t n;
    struct fd_end *ends;
    int *write_fds;
    uint64_t run_ns;
    bool over;          /* no byte is passed on any more */
    uint32_t under_way; /* bytes that were written and not yet read */
    uint64_t events;    /* bytes read */
    uint64_t failed;    /* reads or writes of other than one byte */
    struct bench_span span;
};

/* The one callback.  Returns false when this was the last event of the run: the loop has to end. */
static inline bool fd_ready(struct fd_end *end)
{
    struct fd_chain *c = end->chain;
    char byte;
    if (read(end->fd, &byte, 1) != 1) {
        c->failed++;
        return true;
    }
    if (++c->events % FD_CLOCK_EVERY == 0 && bench_now_ns() - c->span.wall_ns >= c->run_ns) {
        c->over = true;
    }
    if (!c->over) {
        c->failed += write(end->next_fd, &byte, 1) != 1;
        return true;
    }
    return --c->under_way > 0;
}

/* A loop is used by the thread that has opened it. */
struct fd_impl {
    const char *name;
    uint32_t n_max; /* 0: any */
    /* Returns a loop that watches all of @chain's ends, or NULL when this machine cannot do it. */
    void *(*open)(struct fd_chain *chain);
    void (*close)(void *loop);
    /* Runs the loop until fd_ready() has returned false. */
    void (*run)(void *loop);
};

extern const struct fd_impl fd_aioctx; /* io_uring */
extern const struct fd_impl fd_aioctx_epoll;
extern const struct fd_impl fd_aioctx_ppoll;
extern const struct fd_impl fd_libev;
extern const struct fd_impl fd_libuv;
extern const struct fd_impl fd_libevent;

#endif
