/* SPDX-License-Identifier: MIT */
/*
 * Lanes in front of a heap.  Timeouts of a fixed length, which is what I/O has, are armed in rising
 * order: a lane is a FIFO list that takes a timer whose deadline lies at or a little behind that of
 * its last one, so that arming and cancelling touches neighbours only.  What is near no lane goes
 * into the heap, and an empty lane remembers the deadline: if the next one lies close behind, they
 * are the beginning of such a row.  Random deadlines stay out of the lanes.
 *
 * A lane that is no longer appended to would be lost for others until its last timer has gone:
 * deadlines that find no lane move such lanes to the heap, a timer at a time.
 *
 * The variant first-fit takes every deadline into the first lane whose last one is not later; far
 * deadlines then block a lane, and random ones go in and out of lanes.
 */
#include "queue_heap.h"

#include <stdlib.h>

enum { LANES = 3, IN_LANE = 1u << 31 };
#define NEAR_NS (UINT64_C(1) << 20)

enum policy { NEAREST, FIRST_FIT };

struct queue {
    int64_t first_key[LANES]; /* NO_KEY: empty */
    int64_t last_key[LANES];  /* of an empty lane: a deadline that found no lane */
    struct qtimer *first[LANES], *last[LANES];
    uint32_t seed;    /* the lane that the next deadline which finds none is for */
    bool warm[LANES]; /* appended to since a deadline that found no lane came by */
    struct heap h;
    uint32_t room;
};

/* The lane that takes @key; LANES: none. */
INLINE unsigned pick_lane(const struct queue *q, enum policy policy, int64_t key)
{
    unsigned lane = LANES;
    uint64_t least = NEAR_NS;

    for (unsigned i = LANES; policy == FIRST_FIT && i-- > 0;) {
        lane = q->first_key[i] == NO_KEY || q->last_key[i] <= key ? i : lane;
    }
    for (unsigned i = 0; policy == NEAREST && i < LANES; i++) {
        /* a key before the last one gives a huge difference */
        uint64_t behind = (uint64_t)key - (uint64_t)q->last_key[i];
        lane = behind < least ? i : lane;
        least = behind < least ? behind : least;
    }
    return lane;
}

INLINE void lane_append(struct queue *q, unsigned lane, struct qtimer *t)
{
    t->next = NULL;
    t->index = IN_LANE | lane;
    q->warm[lane] = true;
    q->last_key[lane] = t->key;
    if (q->first_key[lane] == NO_KEY) {
        t->prev = NULL;
        q->first_key[lane] = t->key;
        q->first[lane] = t;
    } else {
        t->prev = q->last[lane];
        t->prev->next = t;
    }
    q->last[lane] = t;
}

INLINE void lane_remove(struct queue *q, unsigned lane, struct qtimer *t)
{
    if (t->next) {
        t->next->prev = t->prev;
    } else if (t->prev) {
        q->last[lane] = t->prev;
        q->last_key[lane] = t->prev->key;
    }
    if (t->prev) {
        t->prev->next = t->next;
    } else if (t->next) {
        q->first_key[lane] = t->next->key;
        q->first[lane] = t->next;
    } else {
        q->first_key[lane] = NO_KEY; /* last_key stays */
    }
}

/* A deadline found no lane: see to it that the next ones may. */
INLINE void seed_lane(struct queue *q, unsigned d, enum layout lay, int64_t key)
{
    unsigned i = q->seed;

    q->seed = i + 1 == LANES ? 0 : i + 1;
    if (q->first_key[i] == NO_KEY) {
        q->last_key[i] = key;
    } else if (q->warm[i]) {
        q->warm[i] = false;
    } else {
        struct qtimer *t = q->last[i];
        lane_remove(q, i, t);
        up(&q->h, d, lay, q->h.end++, t->key, t);
    }
}

INLINE void do_insert(struct queue *q, unsigned d, enum layout lay, enum policy policy,
                      struct qtimer *t)
{
    unsigned lane = pick_lane(q, policy, t->key);

    if (lane < LANES) {
        lane_append(q, lane, t);
        return;
    }
    if (policy == NEAREST) {
        seed_lane(q, d, lay, t->key);
    }
    up(&q->h, d, lay, q->h.end++, t->key, t);
}

INLINE void take_out(struct queue *q, unsigned d, enum layout lay, struct qtimer *t)
{
    if (t->index & IN_LANE) {
        lane_remove(q, t->index & ~IN_LANE, t);
    } else {
        do_remove(&q->h, d, lay, t);
    }
}

INLINE void do_move(struct queue *q, unsigned d, enum layout lay, enum policy policy,
                    struct qtimer *t, int64_t key, uint64_t seq)
{
    if (!(t->index & IN_LANE) && pick_lane(q, policy, key) == LANES) {
        t->key = key;
        t->seq = seq;
        if (policy == NEAREST) {
            seed_lane(q, d, lay, key);
        }
        any_way(&q->h, d, lay, t->index, key, t);
        return;
    }
    take_out(q, d, lay, t);
    t->key = key;
    t->seq = seq;
    do_insert(q, d, lay, policy, t);
}

INLINE int64_t soonest(const struct queue *q, unsigned d, enum layout lay)
{
    int64_t key = root_key(&q->h, d, lay);

    for (unsigned i = 0; i < LANES; i++) {
        key = q->first_key[i] < key ? q->first_key[i] : key;
    }
    return key;
}

INLINE struct qtimer *do_peek(struct queue *q, unsigned d, enum layout lay)
{
    int64_t key = root_key(&q->h, d, lay);
    struct qtimer *best = key == NO_KEY ? NULL : timer_at(&q->h, lay, d - 1);

    for (unsigned i = 0; i < LANES; i++) {
        int64_t k = q->first_key[i];
        if (k < key || (k == key && k != NO_KEY && q->first[i]->seq < best->seq)) {
            best = q->first[i];
            key = k;
        }
    }
    return best;
}

/* ---- The queues ------------------------------------------------------------------------------ */

static struct queue *open_queue(void)
{
    struct queue *q = queue_alloc(sizeof(*q), 64);

    for (unsigned i = 0; i < LANES; i++) {
        q->first_key[i] = NO_KEY;
    }
    return q;
}

static void close_queue(struct queue *q)
{
    heap_free_memory(&q->h);
    free(q);
}

static size_t bytes(struct queue *q)
{
    return sizeof(*q) + (size_t)q->room * 16;
}

#define LANED(fn, text, d, lay, policy) \
    static void fn##_reserve(struct queue *q, struct qtimer *timers, uint32_t n) \
    { \
        q->room = heap_take_memory(&q->h, d, lay, timers, n); \
    } \
    static int64_t fn##_insert(struct queue *q, struct qtimer *t) \
    { \
        do_insert(q, d, lay, policy, t); \
        return soonest(q, d, lay); \
    } \
    static int64_t fn##_remove(struct queue *q, struct qtimer *t) \
    { \
        take_out(q, d, lay, t); \
        return soonest(q, d, lay); \
    } \
    static int64_t fn##_move(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq) \
    { \
        do_move(q, d, lay, policy, t, key, seq); \
        return soonest(q, d, lay); \
    } \
    static struct qtimer *fn##_peek(struct queue *q) \
    { \
        return do_peek(q, d, lay); \
    } \
    QUEUE_POP(fn##_pop, fn##_peek, fn##_remove) \
    QUEUE_IMPL(fn, text)

LANED(heap4_lanes, "lanes+heap4", 4, PAIRS, NEAREST)
LANED(heap8_lanes, "lanes+heap8", 8, SPLIT, NEAREST)
LANED(heap8_groups_lanes, "lanes+groups8", 8, GROUPS, NEAREST)
LANED(heap4_first_fit, "first-fit+heap4", 4, PAIRS, FIRST_FIT)
