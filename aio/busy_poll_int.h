/* SPDX-License-Identifier: MIT */
/* Adaptive busy polling before a sleep; how it works is at the top of busy_poll.c. */
#ifndef AIO_BUSY_POLL_INT_H
#define AIO_BUSY_POLL_INT_H

#include <aioctx/aio.h>

struct AioHandler;

/* The first time that a loop polls, and below which it does not. */
#define POLL_START_NS INT64_C(4000)
/* What grow 0 stands for. */
#define POLL_GROW 2
/* A handler is polled no longer when it was not ready for so many times max_ns of polling. */
#define POLL_IDLE_PHASES 64
/* A round of polling that takes this long may have been interrupted by another thread. */
#define POLL_GAP_NS INT64_C(100000)
/* How long there is no polling once it was. */
#define POLL_BACKOFF_MIN_NS INT64_C(10000000)
#define POLL_BACKOFF_MAX_NS INT64_C(1280000000)

/* A context's part.  Home thread only. */
struct poll_state {
    struct AioHandler *list; /* those whose io_poll is called */
    unsigned changes;        /* of the list */
    bool parked;             /* the kernel does not watch all of them */
    bool stale;              /* deadlines may have come that a poll under way does not know of */
    unsigned unwatched;      /* waits since the kernel was last told to watch all of them */
    int64_t ns;              /* how long the next poll may last; 0: there is none */
    int64_t spent_ns;        /* in polls, each for as long as it might last at most */
    int64_t scanned_ns;      /* spent_ns when the list was last searched for idle handlers */
    int64_t next_look_ns;    /* when to ask a monitor again that is asked by system calls */
    int64_t off_until_ns;    /* contended: no polling until then, a time of CLOCK_MONOTONIC */
    int64_t backoff_ns;      /* how long the last pause was to be */
    uint64_t switches;       /* involuntary ones of the home thread, when last asked for */
};

/* Sets what aio_context_new() was given.  Returns -EINVAL, and says why on stderr, for bad ones. */
int poll_init(AioContext *ctx, const AioContextOptions *opts);

/* wait_for_events() where polling is on, or has left something to be undone. */
void poll_wait(AioContext *ctx, int64_t limit_ns);

/* Has the kernel watch every handler that is polled: before a sleep, and when polling is off. */
void poll_hand_over(AioContext *ctx);

/* @h, which has an io_poll, is polled from now on, or has shown that it is active. */
void poll_add(AioContext *ctx, struct AioHandler *h);

/* @h is polled no longer. */
void poll_remove(AioContext *ctx, struct AioHandler *h);

/* After an event of @h, which has an io_poll: poll_add(), and returns true when the kernel need not
 * watch it now. */
bool poll_parks(AioContext *ctx, struct AioHandler *h);

/* How long to poll next time, after a wait of @blocked_ns. */
int64_t poll_adapt(int64_t ns, int64_t blocked_ns, int64_t max_ns, int64_t grow, int64_t shrink);

/* @switches is the thread's present count of involuntary switches.  Returns whether it has risen:
 * then polling is off for a while. */
bool poll_note_switches(struct poll_state *p, int64_t now_ns, uint64_t switches);

#endif
