/* SPDX-License-Identifier: MIT */
/*
 * Radix buckets: FIFO lists by the highest digit in which a deadline differs from the last expiry,
 * and by that digit.  radix2 has binary digits, radix64 digits of six bits with a bitmap of the
 * slots in use.  When the lowest bucket is opened, its soonest deadline becomes the last expiry and
 * its timers are put into lower buckets.
 *
 * Arming and cancelling is O(1), but for the minimum: when the soonest goes without being due, the
 * lowest bucket is walked through for the next one; and opening it walks through it, too.  A bucket
 * may hold all timers.
 * Source: Ahuja, Mehlhorn, Orlin and Tarjan, "Faster algorithms for the shortest path problem",
 * 1990.
 */
#include "queue_impl.h"

#include <stdlib.h>

enum { LEVELS = 64, SLOTS = 64, LATE = LEVELS * SLOTS };

struct list {
    struct qtimer *first, *last;
};

struct queue {
    int64_t expired; /* the last expiry: what lies before it is in the list LATE */
    uint64_t levels; /* those in use */
    struct qtimer *min;
    uint64_t slots[LEVELS]; /* those in use, by level */
    struct list lists[LEVELS * SLOTS + 1];
};

/* The number of the list for @key, with digits of @bits bits. */
INLINE uint32_t list_of(const struct queue *q, unsigned bits, int64_t key)
{
    if (key < q->expired) {
        return LATE;
    }
    uint64_t differ = (uint64_t)(key ^ q->expired);
    unsigned level = differ ? (63 - (unsigned)__builtin_clzll(differ)) / bits : 0;
    unsigned slot = (uint64_t)key >> level * bits & ((1u << bits) - 1);
    return level * SLOTS + slot;
}

INLINE void link_timer(struct queue *q, uint32_t i, struct qtimer *t)
{
    struct list *l = &q->lists[i];

    t->place = i;
    t->next = NULL;
    t->prev = l->last;
    *(l->last ? &l->last->next : &l->first) = t;
    l->last = t;
    if (i != LATE) {
        q->levels |= UINT64_C(1) << i / SLOTS;
        q->slots[i / SLOTS] |= UINT64_C(1) << i % SLOTS;
    }
}

INLINE void mark_empty(struct queue *q, uint32_t i)
{
    q->slots[i / SLOTS] &= ~(UINT64_C(1) << i % SLOTS);
    if (!q->slots[i / SLOTS]) {
        q->levels &= ~(UINT64_C(1) << i / SLOTS);
    }
}

INLINE void unlink_timer(struct queue *q, struct qtimer *t)
{
    uint32_t i = t->place;
    struct list *l = &q->lists[i];

    *(t->prev ? &t->prev->next : &l->first) = t->next;
    *(t->next ? &t->next->prev : &l->last) = t->prev;
    if (!l->first && i != LATE) {
        mark_empty(q, i);
    }
}

static struct list *lowest(struct queue *q)
{
    if (q->lists[LATE].first) {
        return &q->lists[LATE];
    }
    if (!q->levels) {
        return NULL;
    }
    unsigned level = (unsigned)__builtin_ctzll(q->levels);
    return &q->lists[level * SLOTS + (unsigned)__builtin_ctzll(q->slots[level])];
}

static void find_min(struct queue *q)
{
    const struct list *l = lowest(q);

    q->min = l ? l->first : NULL;
    for (struct qtimer *t = q->min ? q->min->next : NULL; t; t = t->next) {
        q->min = qtimer_before(t, q->min) ? t : q->min;
    }
}

INLINE void insert(struct queue *q, unsigned bits, struct qtimer *t)
{
    link_timer(q, list_of(q, bits, t->key), t);
    if (!q->min || qtimer_before(t, q->min)) {
        q->min = t;
    }
}

INLINE void take_out(struct queue *q, struct qtimer *t)
{
    unlink_timer(q, t);
    if (t == q->min) {
        find_min(q);
    }
}

/* The soonest expires: what shares its list goes to lower ones. */
INLINE void expire(struct queue *q, unsigned bits, struct qtimer *t)
{
    if (t->place != LATE && t->key > q->expired) {
        uint32_t from = t->place;
        struct qtimer *next = q->lists[from].first;

        q->lists[from] = (struct list){ 0 };
        mark_empty(q, from);
        q->expired = t->key;
        for (struct qtimer *x = next; x; x = next) {
            next = x->next;
            link_timer(q, list_of(q, bits, x->key), x);
        }
    }
    take_out(q, t);
}

INLINE unsigned take_due(struct queue *q, unsigned bits, int64_t limit, struct qtimer **out,
                         unsigned max)
{
    unsigned n = 0;

    for (; n < max && q->min && q->min->key <= limit; n++) {
        out[n] = q->min;
        expire(q, bits, out[n]);
    }
    return n;
}

static struct queue *open_queue(void)
{
    return queue_alloc(sizeof(struct queue), 64);
}

static void close_queue(struct queue *q)
{
    free(q);
}

static size_t bytes(struct queue *q)
{
    return sizeof(*q);
}

#define RADIX(fn, text, bits) \
    static void fn##_reserve(struct queue *q, struct qtimer *timers, uint32_t n) \
    { \
    } \
    static int64_t fn##_insert(struct queue *q, struct qtimer *t) \
    { \
        insert(q, bits, t); \
        return q->min->key; \
    } \
    static int64_t fn##_remove(struct queue *q, struct qtimer *t) \
    { \
        take_out(q, t); \
        return q->min ? q->min->key : NO_KEY; \
    } \
    static int64_t fn##_move(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq) \
    { \
        take_out(q, t); \
        t->key = key; \
        t->seq = seq; \
        insert(q, bits, t); \
        return q->min->key; \
    } \
    static struct qtimer *fn##_peek(struct queue *q) \
    { \
        return q->min; \
    } \
    static unsigned fn##_pop(struct queue *q, int64_t limit, struct qtimer **out, unsigned max) \
    { \
        return take_due(q, bits, limit, out, max); \
    } \
    QUEUE_IMPL_SCANS(fn, text, true)

RADIX(radix2, "radix2", 1)
RADIX(radix64, "radix64", 6)
