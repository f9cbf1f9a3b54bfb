/* SPDX-License-Identifier: MIT */
/*
 * The active queue; see queue_int.h for what it is.
 *
 * A heap's node points to its first child; children are a list by next; prev is the left sibling,
 * or the parent for a first child (parent->child tells which); a root has neither prev nor next.
 */
#include "timers/queue_int.h"

#include "rcu/util_int.h"

#include <string.h>

void timer_queue_init(struct timer_queue *q)
{
    memset(q, 0, sizeof(*q));
}

static inline bool is_used(const struct timer_queue *q, unsigned place)
{
    return q->used >> place & 1;
}

static inline void set_first(struct timer_queue *q, unsigned place, QEMUTimer *ts)
{
    q->used |= UINT64_C(1) << place;
    q->first[place] = ts;
    q->key[place] = ts->expire_time;
    ts->place = place;
}

static inline void clear_place(struct timer_queue *q, unsigned place)
{
    q->used &= ~(UINT64_C(1) << place);
    q->first[place] = NULL;
}

/* ---- Lanes ----------------------------------------------------------------------------------- */

/* The lane whose last timer is the closest one before @ts, else an empty one, else -1. */
static int pick_lane(const struct timer_queue *q, const QEMUTimer *ts)
{
    int best = -1, empty = -1;

    for (int i = 0; i < TQ_LANES; i++) {
        if (!is_used(q, i)) {
            empty = i;
        } else if (q->lane_tail_key[i] <= ts->expire_time &&
                   (best < 0 || q->lane_tail_key[i] > q->lane_tail_key[best]) &&
                   timer_before(q->lane_tail[i], ts)) {
            best = i;
        }
    }
    return best >= 0 ? best : empty;
}

static void lane_append(struct timer_queue *q, int lane, QEMUTimer *ts)
{
    ts->child = ts->next = NULL;
    if (is_used(q, lane)) {
        ts->prev = q->lane_tail[lane];
        ts->prev->next = ts;
        ts->place = lane;
    } else {
        ts->prev = NULL;
        set_first(q, lane, ts);
    }
    q->lane_tail[lane] = ts;
    q->lane_tail_key[lane] = ts->expire_time;
}

static void lane_remove(struct timer_queue *q, QEMUTimer *ts)
{
    unsigned lane = ts->place;

    if (ts->next) {
        ts->next->prev = ts->prev;
    } else if (ts->prev) {
        q->lane_tail[lane] = ts->prev;
        q->lane_tail_key[lane] = ts->prev->expire_time;
    }
    if (ts->prev) {
        ts->prev->next = ts->next;
    } else if (ts->next) {
        set_first(q, lane, ts->next);
    } else {
        clear_place(q, lane);
    }
}

/* ---- Heaps ----------------------------------------------------------------------------------- */

/* Joins two heaps; the later root becomes the sooner one's first child. */
static inline QEMUTimer *meld(QEMUTimer *a, QEMUTimer *b)
{
    if (timer_before(b, a)) {
        QEMUTimer *t = a;
        a = b;
        b = t;
    }
    b->place = PLACE_INNER;
    b->prev = a;
    b->next = a->child;
    if (a->child) {
        a->child->prev = b;
    }
    a->child = b;
    return a;
}

/* Makes one heap of @ts's children: pairs from left to right, then those from right to left. */
static QEMUTimer *meld_children(QEMUTimer *ts)
{
    QEMUTimer *stack = NULL, *root = NULL;

    for (QEMUTimer *a = ts->child, *rest; a; a = rest) {
        QEMUTimer *b = a->next;
        QEMUTimer *pair = a;

        rest = NULL;
        if (b) {
            rest = b->next;
            pair = meld(a, b);
        }
        pair->next = stack;
        stack = pair;
    }
    while (stack) {
        QEMUTimer *t = stack;

        stack = t->next;
        root = root ? meld(root, t) : t;
    }
    if (root) {
        root->prev = root->next = NULL;
    }
    return root;
}

static void heap_insert(struct timer_queue *q, QEMUTimer *ts)
{
    unsigned place = TQ_LANES;
    QEMUTimer *root = ts;

    ts->child = ts->next = ts->prev = NULL;
    while (is_used(q, place)) {
        root = meld(root, q->first[place]);
        clear_place(q, place);
        place += place < TQ_PLACES - 1;
    }
    root->prev = root->next = NULL;
    set_first(q, place, root);
}

/* Puts @sub, which may be NULL, in the place of @ts among its siblings. */
static void replace_inner(QEMUTimer *ts, QEMUTimer *sub)
{
    QEMUTimer *prev = ts->prev, *next = ts->next;
    QEMUTimer *link = sub ? sub : next;

    if (sub) {
        sub->place = PLACE_INNER;
        sub->prev = prev;
        sub->next = next;
    }
    if (next) {
        next->prev = sub ? sub : prev;
    }
    if (prev->child == ts) {
        prev->child = link;
    } else {
        prev->next = link;
    }
}

static void heap_remove(struct timer_queue *q, QEMUTimer *ts)
{
    QEMUTimer *sub = meld_children(ts);

    if (ts->place == PLACE_INNER) {
        replace_inner(ts, sub);
    } else if (sub) {
        set_first(q, ts->place, sub);
    } else {
        clear_place(q, ts->place);
    }
}

/* ---- The queue ------------------------------------------------------------------------------- */

static QEMUTimer *find_min(const struct timer_queue *q)
{
    uint64_t left = q->used;
    int best = -1;

    for (; left; left &= left - 1) {
        int i = __builtin_ctzll(left);

        if (best < 0 || q->key[i] < q->key[best] ||
            (q->key[i] == q->key[best] && q->first[i]->seq < q->first[best]->seq)) {
            best = i;
        }
    }
    return best < 0 ? NULL : q->first[best];
}

void timer_queue_insert(struct timer_queue *q, QEMUTimer *ts)
{
    int lane = pick_lane(q, ts);

    if (lane >= 0) {
        lane_append(q, lane, ts);
    } else {
        heap_insert(q, ts);
    }
    if (!q->min || timer_before(ts, q->min)) {
        q->min = ts;
    }
}

void timer_queue_remove(struct timer_queue *q, QEMUTimer *ts)
{
    if (ts->place < TQ_LANES) {
        lane_remove(q, ts);
    } else {
        heap_remove(q, ts);
    }
    ts->place = PLACE_NONE;
    if (ts == q->min) {
        q->min = find_min(q);
    }
}

/* ---- Checking -------------------------------------------------------------------------------- */

static unsigned long verify_lane(const struct timer_queue *q, unsigned lane)
{
    const QEMUTimer *prev = NULL;
    unsigned long n = 0;

    for (const QEMUTimer *ts = q->first[lane]; ts; prev = ts, ts = ts->next, n++) {
        must(ts->place == lane);
        must(ts->prev == prev);
        must(!prev || timer_before(prev, ts));
    }
    must(q->lane_tail[lane] == prev);
    must(q->lane_tail_key[lane] == prev->expire_time);
    return n;
}

/* Depth first without recursion: a heap can be as deep as it has timers. */
static unsigned long verify_heap(const QEMUTimer *root)
{
    const QEMUTimer *ts = root;
    unsigned long n = 0;

    must(!root->prev && !root->next);
    for (;;) {
        n++;
        if (ts->child) {
            must(ts->child->prev == ts);
            must(ts->child->place == PLACE_INNER && timer_before(ts, ts->child));
            ts = ts->child;
            continue;
        }
        while (ts != root && !ts->next) { /* up: to the first sibling, then to the parent */
            while (ts->prev->child != ts) {
                ts = ts->prev;
            }
            ts = ts->prev;
        }
        if (ts == root) {
            return n;
        }
        must(ts->next->prev == ts && ts->next->place == PLACE_INNER);
        const QEMUTimer *first = ts; /* siblings are later than their common parent */
        while (first->prev->child != first) {
            first = first->prev;
        }
        must(timer_before(first->prev, ts->next));
        ts = ts->next;
    }
}

unsigned long timer_queue_verify(const struct timer_queue *q)
{
    unsigned long n = 0;

    for (unsigned i = 0; i < TQ_PLACES; i++) {
        must(is_used(q, i) == (q->first[i] != NULL));
        if (!is_used(q, i)) {
            continue;
        }
        must(q->first[i]->place == i && q->key[i] == q->first[i]->expire_time);
        n += i < TQ_LANES ? verify_lane(q, i) : verify_heap(q->first[i]);
    }
    must(q->min == find_min(q));
    return n;
}
