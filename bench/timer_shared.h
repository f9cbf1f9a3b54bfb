/* SPDX-License-Identifier: MIT */
/*
 * What timer_bench asks of a loop whose timers more than one thread arms.
 *
 * Two sides have timers on the loop, n + 1 each, of which n are armed: a foreign thread, and the
 * loop's home thread.  Ahead of all of them is one timer that nobody touches, and the loop sleeps
 * for its deadline: nothing that the sides do moves the head.
 */
#ifndef BENCH_TIMER_SHARED_H
#define BENCH_TIMER_SHARED_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum shared_side { SIDE_FOREIGN, SIDE_HOME, SIDES };

#define SHARED_HEAD_NS (3600 * UINT64_C(1000000000))    /* the head, after open() */
#define SHARED_TIMEOUT_NS (7200 * UINT64_C(1000000000)) /* all others, after now */

struct shared_loop {
    uint32_t n;
    uint32_t next[SIDES]; /* the timer that its side arms next; the one after it is the oldest */
};

struct shared_impl {
    const char *name;
    /* Makes a loop that sleeps, on a thread of its own, or NULL. */
    struct shared_loop *(*open)(uint32_t n);
    void (*close)(struct shared_loop *loop);
    /* Arms timer @i of @side for @deadline_ns (CLOCK_MONOTONIC).  Thread: the side's. */
    void (*arm)(struct shared_loop *loop, enum shared_side side, uint32_t i, uint64_t deadline_ns);
    void (*cancel)(struct shared_loop *loop, enum shared_side side, uint32_t i);
    /* Has @fn(@arg) called once, soon, on the home thread. */
    void (*call_home)(struct shared_loop *loop, void (*fn)(void *arg), void *arg);
    /* How often the home thread has been woken; NULL: it never sleeps. */
    uint64_t (*wakeups)(struct shared_loop *loop);
    /* The ns until the soonest deadline; NULL: cannot be asked. */
    int64_t (*deadline_ns)(struct shared_loop *loop);
};

extern const struct shared_impl shared_aioctx;
extern const struct shared_impl shared_aioctx_group; /* asks the whole group */
extern const struct shared_impl shared_list;
extern const struct shared_impl shared_libev;       /* wakes the loop after each change */
extern const struct shared_impl shared_libev_quiet; /* does not: it knows the head to be sooner */

/* Arms the n timers of both sides; each impl's open() ends with it. */
void shared_fill(const struct shared_impl *impl, struct shared_loop *loop);

/* impl->open(), or ends the program; the home thread is pinned, away from the caller, when @pin. */
struct shared_loop *shared_open(const struct shared_impl *impl, uint32_t n, bool pin);

/* Arms one timer of @side, and cancels its oldest one, @pairs times. */
void shared_pairs(const struct shared_impl *impl, struct shared_loop *loop, enum shared_side side,
                  uint64_t pairs);

/* The home side at work until it is told to stop. */
struct shared_worker {
    const struct shared_impl *impl;
    struct shared_loop *loop;
    bool stop; /* atomic */
    bool pin;
    uint64_t pairs, wall_ns, cpu_ns; /* valid after shared_work_end() */
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool began, ended; /* under the lock */
};

/* Returns once the home thread has begun. */
void shared_work_begin(struct shared_worker *w, const struct shared_impl *impl,
                       struct shared_loop *loop, bool pin);

/* Returns once the home thread has ended. */
void shared_work_end(struct shared_worker *w);

#endif
