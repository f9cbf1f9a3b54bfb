/* SPDX-License-Identifier: MIT */
/*
 * What timer_bench asks of a timer library.
 *
 * A loop holds n timers, numbered from 0, none of them armed at first.  Each thread opens loops of
 * its own and is the only one to use them.  "Now" is the time that the library's loop holds, which
 * refresh() brings up to date, as an iteration of the loop does.
 *
 * Every library's timers lie in an array made by timer_loop_init(): the library's own struct, then
 * the same tag for everyone, one element after the other or --stride bytes apart.
 */
#ifndef BENCH_TIMER_IMPL_H
#define BENCH_TIMER_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* The delay in the case io-timeout.  A library with a special way for equal timeouts may use it. */
#define IO_TIMEOUT_NS (30 * UINT64_C(1000000000))

/* The head of every loop; the callbacks count here. */
struct timer_loop {
    uint64_t fired;     /* callbacks so far */
    uint64_t fired_sum; /* of the numbers of their timers */
    char *timers;
    size_t stride;
    uint32_t n;
};

/* Behind each timer. */
struct timer_tag {
    struct timer_loop *loop;
    uint32_t index;
};

/* --stride: at least this many bytes from one timer to the next. */
extern size_t timer_stride;

/* Makes the array of @n elements of @size bytes, in each of which the tag lies at @tag. */
void timer_loop_init(struct timer_loop *loop, uint32_t n, size_t size, size_t tag);

/* Frees the array. */
void timer_loop_cleanup(struct timer_loop *loop);

static inline void *timer_at(const struct timer_loop *loop, uint32_t i)
{
    return loop->timers + i * loop->stride;
}

/* What each callback does. */
static inline void timer_fired(const struct timer_tag *tag)
{
    tag->loop->fired++;
    tag->loop->fired_sum += tag->index;
}

struct timer_impl {
    const char *name;
    uint32_t n_max;      /* most timers it is measured with: beyond, it takes too long */
    uint32_t n_max_fire; /* in fire; tail is bound by both */

    /* Returns NULL when out of memory.  @n may be 0. */
    struct timer_loop *(*open)(uint32_t n);
    /* Disarms and frees everything. */
    void (*close)(struct timer_loop *loop);
    /* Bytes of memory per timer that the user holds. */
    size_t (*timer_bytes)(void);

    void (*refresh)(struct timer_loop *loop);
    /* Arms timer @i, or moves it when it is armed, to fire once @delay_ns after the loop's now. */
    void (*arm)(struct timer_loop *loop, uint32_t i, uint64_t delay_ns);
    /* Disarms timer @i, which is armed. */
    void (*cancel)(struct timer_loop *loop, uint32_t i);
    /* One pass of the whole loop that does not wait: runs timers that are due. */
    void (*run)(struct timer_loop *loop);
    /* Calls @fn(@arg) from a callback of the loop, for libraries that are slower outside; may be
     * NULL. */
    void (*inside)(struct timer_loop *loop, void (*fn)(void *arg), void *arg);
};

extern const struct timer_impl timer_aioctx;
extern const struct timer_impl timer_aioctx_lists; /* fire: the lists without the loop */
extern const struct timer_impl timer_libev;
extern const struct timer_impl timer_libuv;
extern const struct timer_impl timer_libevent;
extern const struct timer_impl timer_glib;

#endif
