/* SPDX-License-Identifier: MIT */
/*
 * The active queue: armed timers of one attribute class, ordered by deadline, then by arming.
 *
 * It knows no locks, no clocks and no lists.  Arming allocates nothing: room in the heap is made
 * when a timer is initialised (timer_queue_reserve(); the kernel backs it with pages when they are
 * first touched); should that have failed for lack of memory, timers beyond the room go into a
 * sorted list, which is slow but exact, and the ranges of those are not used.
 *
 *   insert, remove   O(log n), of any timer; O(1) in a lane
 *   first            O(1)
 *   no operation is longer than a few walks between a heap's root and a leaf: one or two in each of
 *   the two heaps
 *
 * How it works.  First a few lanes: FIFO lists in rising order.  A timer whose deadline lies at or
 * a little behind that of a lane's last one is appended there.  Timeouts of a fixed length, which
 * is what I/O has, arrive so: arming and cancelling them touches only neighbours, and timeouts of
 * several lengths settle in a lane each.  The last few that found no lane are remembered; one that
 * comes close behind such a stray begins a row, if a lane is empty.  Everything else goes into an
 * implicit 8-ary heap whose nodes are groups of siblings: eight deadlines, which fill a cache line,
 * and beside them the eight pointers.  docs/timer-queue.md has the measurements behind the choice.
 * Source: Johnson, "Priority queues with update and finding minimum spanning trees", 1975 (d-ary
 * heaps); LaMarca and Ladner, "The influence of caches on the performance of heaps", 1996
 * (alignment); Wegener, "Bottom-up-heapsort", 1993 (removal of the root).
 */
#ifndef TIMERS_QUEUE_INT_H
#define TIMERS_QUEUE_INT_H

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

#include <aioctx/timers.h>

#define NO_DEADLINE INT64_MAX

/* A queue's parts, each with its soonest deadline in soonest_key[]. */
enum {
    TQ_LANES = 3,
    TQ_SPILL = TQ_LANES, /* the sorted list for what the heap has no room for */
    TQ_LISTS,
    TQ_HEAP = TQ_LISTS,
    TQ_PARTS,
};

/* How close a deadline must be behind a lane's last one. */
#define TQ_NEAR_SHIFT 20
#define TQ_NEAR_NS (UINT64_C(1) << TQ_NEAR_SHIFT)
enum { TQ_STRAYS = 8 };

/* A lane is stale when none of the last so many timers that were armed on the list came into it. */
#define TQ_STALE 1024

/* QEMUTimer.place: an index into the heap, or from PLACE_LIST on one of these. */
#define PLACE_LIST UINT32_C(0xfffffff0) /* plus the number of the lane, or TQ_SPILL */
#define PLACE_DUE UINT32_C(0xfffffffe)  /* taken out by a pass: in the due list of list_int.h */
#define PLACE_NONE UINT32_C(0xffffffff) /* not armed */

enum { HEAP_WIDTH = 8 };

struct heap_group {
    int64_t key[HEAP_WIDTH]; /* the timers', beside them */
    QEMUTimer *ts[HEAP_WIDTH];
} __attribute__((aligned(64)));

/* Entry i is number i % 8 of group i / 8.  The root is the last one of group 0, whose others hold
 * no timer, but NO_DEADLINE; the children of entry i fill group i - 6. */
enum { HEAP_ROOT = HEAP_WIDTH - 1 };

struct timer_heap {
    struct heap_group *group;
    uint32_t end; /* one past the last entry; HEAP_ROOT: empty */
};

struct timer_queue {
    int64_t soonest_key[TQ_PARTS]; /* NO_DEADLINE: the part is empty */
    int64_t near[TQ_LANES];        /* the lane's last deadline; INT64_MIN: it is empty */
    int64_t stray[TQ_STRAYS];      /* deadlines that found no lane, by their number of TQ_NEAR_NS */
    QEMUTimer *first[TQ_LISTS], *last[TQ_LISTS];
    struct timer_heap heap; /* by expire_time */
    struct timer_heap soft; /* by soonest: the timers that have a range, which are in heap too */
    unsigned hand;          /* the lane to be looked at next for being stale */
    uint32_t room;          /* atomic: one past the last entry that either heap may have */
} __attribute__((aligned(64))); /* readers of the words beside it are not disturbed */

/* QEMUTimer.state */
enum {
    TIMER_DEAD = 1 << 0,    /* timer_free() was called */
    TIMER_HEAP = 1 << 1,    /* made by timer_new(): a struct heap_timer */
    TIMER_RUNNING = 1 << 2, /* shown by timerlist_walk() */
    TIMER_RANGE = 1 << 3,   /* armed to fire from `soonest` on */
};

/* Ranges are rare. */
static inline bool timer_has_range(const QEMUTimer *ts)
{
    return ts->state & TIMER_RANGE;
}

static inline bool timer_before(const QEMUTimer *a, const QEMUTimer *b)
{
    return a->expire_time < b->expire_time || (a->expire_time == b->expire_time && a->seq < b->seq);
}

void timer_queue_init(struct timer_queue *q);
void timer_queue_destroy(struct timer_queue *q);

/* For how many timers there is room.  Thread: any. */
static inline uint32_t timer_queue_room(const struct timer_queue *q)
{
    uint32_t room = ld_relaxed(&q->room);

    return room ? room - HEAP_ROOT : 0;
}

/* Makes room for @timers in all.  Returns false when out of memory. */
bool timer_queue_reserve(struct timer_queue *q, uint32_t timers);

/*
 * What a timer's expire_time, soonest and seq say is set before the insert and stays until the
 * remove; (expire_time, seq) is unique.  The heap takes any timer, while it has room.
 */
void timer_queue_insert_in_heap(struct timer_queue *q, QEMUTimer *ts);
void timer_queue_remove_from_heap(struct timer_queue *q, QEMUTimer *ts);

/* Gives one that is in the heap, without a range before and after, its new place there. */
void timer_queue_move_in_heap(struct timer_queue *q, QEMUTimer *ts, int64_t key);

/* The timer with the soonest deadline; NULL when empty. */
QEMUTimer *timer_queue_first(const struct timer_queue *q);

/* Takes that timer out, whose deadline is @key.  Its place is the caller's to set. */
QEMUTimer *timer_queue_take_first(struct timer_queue *q, int64_t key);

/* The timer with the soonest `soonest` among those with a range; NULL: none. */
static inline QEMUTimer *timer_queue_first_soft(const struct timer_queue *q)
{
    return q->soft.end > HEAP_ROOT ? q->soft.group[0].ts[HEAP_ROOT] : NULL;
}

static inline int64_t timer_queue_soft_key(const struct timer_queue *q)
{
    return unlikely(q->soft.end > HEAP_ROOT) ? q->soft.group[0].key[HEAP_ROOT] : NO_DEADLINE;
}

/* The soonest deadline. */
static inline int64_t timer_queue_key(const struct timer_queue *q)
{
    int64_t key = q->soonest_key[0];

#pragma GCC unroll 4
    for (int i = 1; i < TQ_PARTS; i++) {
        key = q->soonest_key[i] < key ? q->soonest_key[i] : key;
    }
    return key;
}

/* The place in stray[] of @key, and with @back 1 that of a deadline TQ_NEAR_NS before. */
static inline unsigned timer_queue_stray(int64_t key, unsigned back)
{
    return (((uint64_t)key >> TQ_NEAR_SHIFT) - back) % TQ_STRAYS;
}

/* An empty lane; TQ_LANES: there is none. */
unsigned timer_queue_empty_lane(const struct timer_queue *q);

/* The lane whose last deadline is closest before @key, and near it; TQ_LANES: none. */
static ALWAYS_INLINE unsigned timer_queue_near_lane(const struct timer_queue *q, int64_t key)
{
    uint64_t least = TQ_NEAR_NS;
    unsigned lane = TQ_LANES;

#pragma GCC unroll 3
    for (unsigned i = 0; i < TQ_LANES; i++) { /* a deadline further on gives a huge difference */
        uint64_t behind = (uint64_t)key - (uint64_t)q->near[i];

        lane = behind < least ? i : lane;
        least = behind < least ? behind : least;
    }
    return lane;
}

/* Whether @key is close behind a stray. */
static ALWAYS_INLINE bool timer_queue_near_stray(const struct timer_queue *q, int64_t key)
{
    uint64_t a = (uint64_t)key - (uint64_t)q->stray[timer_queue_stray(key, 0)];
    uint64_t b = (uint64_t)key - (uint64_t)q->stray[timer_queue_stray(key, 1)];

    return (a < b ? a : b) < TQ_NEAR_NS;
}

/* The lane that takes @key: a near one, or behind a stray an empty one; TQ_LANES: none. */
static inline unsigned timer_queue_pick_lane(const struct timer_queue *q, int64_t key)
{
    unsigned lane = timer_queue_near_lane(q, key);

    return lane == TQ_LANES && unlikely(timer_queue_near_stray(q, key)) ? timer_queue_empty_lane(q)
                                                                        : lane;
}

/* The place of a heap's entry @i's parent; of the root's, one before it, where a key stands that is
 * not sooner than any. */
static ALWAYS_INLINE uint32_t heap_parent(uint32_t i)
{
    return i / HEAP_WIDTH + HEAP_ROOT - 1;
}

/* The number of the group that holds its children. */
static ALWAYS_INLINE uint32_t heap_below(uint32_t i)
{
    return i - (HEAP_ROOT - 1);
}

/* For a timer without a range, in the heap at @i: gives it deadline @key if it may stay there and
 * that is seen at once, as most often; else changes nothing and returns false. */
static ALWAYS_INLINE bool timer_queue_stays(struct timer_queue *q, uint32_t i, int64_t key)
{
    struct heap_group *group = q->heap.group;
    uint32_t up = heap_parent(i);

    if (unlikely(heap_below(i) * HEAP_WIDTH < q->heap.end) ||
        unlikely(group[up / HEAP_WIDTH].key[up % HEAP_WIDTH] >= key)) {
        return false;
    }
    group[i / HEAP_WIDTH].key[i % HEAP_WIDTH] = key;
    return true;
}

/* @key found no lane. */
static ALWAYS_INLINE void timer_queue_note_stray(struct timer_queue *q, int64_t key)
{
    q->stray[timer_queue_stray(key, 0)] = key;
}

static inline void timer_queue_append(struct timer_queue *q, unsigned lane, QEMUTimer *ts,
                                      int64_t key)
{
    QEMUTimer *last = q->last[lane];

    ts->place = PLACE_LIST + lane;
    ts->next = NULL;
    ts->prev = last;
    q->last[lane] = ts;
    q->near[lane] = key;
    if (last) {
        last->next = ts;
    } else {
        q->first[lane] = ts;
        q->soonest_key[lane] = key;
    }
}

/* Inserts a timer whose seq is newer than any other's. */
static inline void timer_queue_insert(struct timer_queue *q, QEMUTimer *ts)
{
    unsigned lane = timer_queue_pick_lane(q, ts->expire_time);

    if (lane < TQ_LANES && likely(!timer_has_range(ts))) {
        timer_queue_append(q, lane, ts, ts->expire_time);
    } else {
        timer_queue_insert_in_heap(q, ts);
    }
}

static inline void timer_queue_remove_from_list(struct timer_queue *q, QEMUTimer *ts)
{
    unsigned i = ts->place - PLACE_LIST;
    QEMUTimer *next = ts->next, *prev = ts->prev;

    if (next) {
        next->prev = prev;
    } else {
        q->last[i] = prev;
        if (i < TQ_LANES) {
            q->near[i] = prev ? prev->expire_time : INT64_MIN;
        }
    }
    if (prev) {
        prev->next = next;
    } else {
        q->first[i] = next;
        q->soonest_key[i] = next ? next->expire_time : NO_DEADLINE;
    }
}

static inline void timer_queue_remove(struct timer_queue *q, QEMUTimer *ts)
{
    if (ts->place >= PLACE_LIST) {
        timer_queue_remove_from_list(q, ts);
    } else {
        timer_queue_remove_from_heap(q, ts);
    }
    ts->place = PLACE_NONE;
}

/* Walks the whole queue, checks every link and the order, aborts on a fault; returns the count. */
unsigned long timer_queue_verify(const struct timer_queue *q);

#endif
