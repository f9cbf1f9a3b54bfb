/* SPDX-License-Identifier: MIT */
/*
 * The active queue: armed timers of one attribute class, ordered by deadline, then by arming.
 *
 * It knows no locks, no clocks and no lists; the timer's links are its only memory, so that arming
 * allocates nothing.  The caller sets expire_time and seq before an insert and leaves them alone
 * until the remove; expire_time is below INT64_MAX, and (expire_time, seq) is unique.
 *
 *   insert   O(1) amortised, O(log n) at worst
 *   remove   O(log n) amortised, of any timer
 *   peek     O(1)
 *
 * How it works.  First a few lanes: FIFO lists in rising order, which take a timer that belongs
 * behind a lane's last one.  Timeouts of a fixed length, which is what I/O has, arrive in rising
 * order, so that arming and cancelling them touches only neighbours.  What fits no lane goes into a
 * forest of pairing heaps, merged as a binary counter is incremented: place i holds what 2^i
 * inserts made, so that the first removal after a million inserts finds trees and not a million
 * children.
 * Source: Fredman, Sedgewick, Sleator and Tarjan, "The Pairing Heap: A New Form of Self-Adjusting
 * Heap", 1986; the auxiliary forest: Stasko and Vitter, "Pairing Heaps: Experiments and Analysis",
 * 1987.
 */
#ifndef TIMERS_QUEUE_INT_H
#define TIMERS_QUEUE_INT_H

#include <aioctx/timers.h>

enum {
    TQ_LANES = 4,
    TQ_HEAPS = 32,
    TQ_PLACES = TQ_LANES + TQ_HEAPS, /* at most 64: one bit each in `used` */
};

/* QEMUTimer.place: a place's index for a lane's member or a heap's root, else one of these. */
enum {
    PLACE_NONE = 0x100,  /* not armed */
    PLACE_INNER = 0x101, /* in a heap, below a root */
    PLACE_DUE = 0x102,   /* taken out by a pass: in the class's due list (see list_int.h) */
};

struct timer_queue {
    uint64_t used;               /* bit i: first[i] is there */
    QEMUTimer *min;              /* the soonest; NULL when empty */
    int64_t key[TQ_PLACES];      /* first[i]->expire_time, to be scanned without touching timers */
    QEMUTimer *first[TQ_PLACES]; /* lane: its head; heap: its root */
    QEMUTimer *lane_tail[TQ_LANES];
    int64_t lane_tail_key[TQ_LANES];
};

static inline bool timer_before(const QEMUTimer *a, const QEMUTimer *b)
{
    return a->expire_time < b->expire_time || (a->expire_time == b->expire_time && a->seq < b->seq);
}

void timer_queue_init(struct timer_queue *q);
void timer_queue_insert(struct timer_queue *q, QEMUTimer *ts);
void timer_queue_remove(struct timer_queue *q, QEMUTimer *ts);

static inline QEMUTimer *timer_queue_peek(const struct timer_queue *q)
{
    return q->min;
}

/* Walks the whole queue, checks every link and the order, aborts on a fault; returns the count. */
unsigned long timer_queue_verify(const struct timer_queue *q);

#endif
