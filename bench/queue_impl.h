/* SPDX-License-Identifier: MIT */
/*
 * What queue_bench measures: ordered queues of timers as bare data structures, without a lock.
 *
 * Each orders by deadline, then by arming (seq, which rises with every insert and move).  Memory is
 * taken in reserve(), never in insert() or move().  libev is the peer; it orders by deadline only,
 * as a double, and runs on its own clock.
 */
#ifndef BENCH_QUEUE_IMPL_H
#define BENCH_QUEUE_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NO_KEY INT64_MAX

#define INLINE static inline __attribute__((always_inline))

/* As large as a timer of the library, the queue's own fields being part of it. */
struct qtimer {
    int64_t key; /* the deadline, ns; INT64_MAX is none */
    uint64_t seq;
    union {
        struct {
            union {
                struct qtimer *child;
                void *leaf;
            };
            struct qtimer *next, *prev;
            union {
                uint32_t place;
                uint32_t index; /* in the heap or the leaf */
            };
            uint32_t slot; /* of a queue that keeps its indices beside */
        };
        _Alignas(8) char peer[48];
    };
    uint32_t id;
    uint32_t user[3];
};
_Static_assert(sizeof(struct qtimer) == 80, "the size of a timer");

static inline bool qtimer_before(const struct qtimer *a, const struct qtimer *b)
{
    return a->key < b->key || (a->key == b->key && a->seq < b->seq);
}

struct queue;

struct queue_impl {
    const char *name;
    bool scans;   /* one operation may walk through all timers: left out where that takes minutes */
    bool inexact; /* a peer that orders in its own way */
    struct queue *(*open)(void);
    void (*close)(struct queue *q);

    /* Makes room for @n timers in all; @timers are they. */
    void (*reserve)(struct queue *q, struct qtimer *timers, uint32_t n);
    size_t (*bytes)(struct queue *q); /* allocated, without the timers */

    /* Each returns the soonest deadline there is now, which a list publishes; INT64_MAX: none. */
    int64_t (*insert)(struct queue *q, struct qtimer *t); /* key and seq are set */
    int64_t (*remove)(struct queue *q, struct qtimer *t);
    int64_t (*move)(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq);
    struct qtimer *(*peek)(struct queue *q);

    /* Takes out, in order, at most @max timers whose key is at most @limit. */
    unsigned (*pop)(struct queue *q, int64_t limit, struct qtimer **out, unsigned max);

    /* The peer only: takes over the time once a batch; runs its loop and returns how many fired. */
    void (*refresh)(struct queue *q, int64_t now);
    unsigned (*run)(struct queue *q);
};

/* Defines an implementation's pop() from its peek and remove; both inline. */
#define QUEUE_POP(name, peek_fn, remove_fn) \
    static unsigned name(struct queue *q, int64_t limit, struct qtimer **out, unsigned max) \
    { \
        unsigned n = 0; \
        for (struct qtimer * t; n < max && (t = peek_fn(q)) && t->key <= limit; n++) { \
            remove_fn(q, t); \
            out[n] = t; \
        } \
        return n; \
    }

/* Defines queue_<fn> from functions named <fn>_*, and from open_queue() and what is beside it. */
#define QUEUE_IMPL(fn, text) QUEUE_IMPL_SCANS(fn, text, false)
#define QUEUE_IMPL_SCANS(fn, text, may_scan) \
    const struct queue_impl queue_##fn = { \
        .name = text, \
        .scans = may_scan, \
        .open = open_queue, \
        .close = close_queue, \
        .reserve = fn##_reserve, \
        .bytes = bytes, \
        .insert = fn##_insert, \
        .remove = fn##_remove, \
        .move = fn##_move, \
        .peek = fn##_peek, \
        .pop = fn##_pop, \
    };

void *queue_alloc(size_t bytes, size_t align); /* zeroed, or ends the program */

extern const struct queue_impl queue_pairing, queue_heap4, queue_heap4_split, queue_heap8_split,
    queue_heap8_groups, queue_heap8_groups_lanes, queue_heap8_chunks, queue_heap4_side,
    queue_heap8_side, queue_heap4_lanes, queue_heap8_lanes, queue_heap4_first_fit, queue_leaves,
    queue_radix2, queue_radix64, queue_libev;

#endif
