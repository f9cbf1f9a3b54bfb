/* SPDX-License-Identifier: MIT */
/*
 * A pairing forest behind FIFO lanes.  A timer that belongs behind a lane's last one is appended
 * there; what fits no lane goes into a forest of pairing heaps that are merged as a binary counter
 * is incremented, so that the first removal after many inserts finds trees and not all of them.
 *
 * A heap's node points to its first child; children are a list by next; prev is the left sibling,
 * or the parent for a first child; a root has neither prev nor next.
 * Source: Fredman, Sedgewick, Sleator and Tarjan, "The Pairing Heap: A New Form of Self-Adjusting
 * Heap", 1986; the auxiliary forest: Stasko and Vitter, "Pairing Heaps: Experiments and Analysis",
 * 1987.
 */
#include "queue_impl.h"

#include <stdlib.h>

enum {
    TQ_LANES = 4,
    TQ_HEAPS = 32,
    TQ_PLACES = TQ_LANES + TQ_HEAPS,
    PLACE_NONE = 0x100,
    PLACE_INNER = 0x101, /* in a heap, below a root */
};

struct queue {
    uint64_t used; /* bit i: first[i] is there */
    struct qtimer *min;
    int64_t key[TQ_PLACES];
    struct qtimer *first[TQ_PLACES]; /* lane: its head; heap: its root */
    struct qtimer *lane_tail[TQ_LANES];
    int64_t lane_tail_key[TQ_LANES];
};

static inline bool is_used(const struct queue *q, unsigned place)
{
    return q->used >> place & 1;
}

static inline void set_first(struct queue *q, unsigned place, struct qtimer *ts)
{
    q->used |= UINT64_C(1) << place;
    q->first[place] = ts;
    q->key[place] = ts->key;
    ts->place = place;
}

static inline void clear_place(struct queue *q, unsigned place)
{
    q->used &= ~(UINT64_C(1) << place);
    q->first[place] = NULL;
}

/* ---- Lanes ----------------------------------------------------------------------------------- */

/* The lane whose last timer is the closest one before @ts, else an empty one, else -1. */
static int pick_lane(const struct queue *q, const struct qtimer *ts)
{
    int best = -1, empty = -1;

    for (int i = 0; i < TQ_LANES; i++) {
        if (!is_used(q, i)) {
            empty = i;
        } else if (q->lane_tail_key[i] <= ts->key &&
                   (best < 0 || q->lane_tail_key[i] > q->lane_tail_key[best]) &&
                   qtimer_before(q->lane_tail[i], ts)) {
            best = i;
        }
    }
    return best >= 0 ? best : empty;
}

static void lane_append(struct queue *q, int lane, struct qtimer *ts)
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
    q->lane_tail_key[lane] = ts->key;
}

static void lane_remove(struct queue *q, struct qtimer *ts)
{
    unsigned lane = ts->place;

    if (ts->next) {
        ts->next->prev = ts->prev;
    } else if (ts->prev) {
        q->lane_tail[lane] = ts->prev;
        q->lane_tail_key[lane] = ts->prev->key;
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
static inline struct qtimer *meld(struct qtimer *a, struct qtimer *b)
{
    if (qtimer_before(b, a)) {
        struct qtimer *t = a;
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
static struct qtimer *meld_children(struct qtimer *ts)
{
    struct qtimer *stack = NULL, *root = NULL;

    for (struct qtimer *a = ts->child, *rest; a; a = rest) {
        struct qtimer *b = a->next;
        struct qtimer *pair = a;

        rest = NULL;
        if (b) {
            rest = b->next;
            pair = meld(a, b);
        }
        pair->next = stack;
        stack = pair;
    }
    while (stack) {
        struct qtimer *t = stack;

        stack = t->next;
        root = root ? meld(root, t) : t;
    }
    if (root) {
        root->prev = root->next = NULL;
    }
    return root;
}

static void heap_insert(struct queue *q, struct qtimer *ts)
{
    unsigned place = TQ_LANES;
    struct qtimer *root = ts;

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
static void replace_inner(struct qtimer *ts, struct qtimer *sub)
{
    struct qtimer *prev = ts->prev, *next = ts->next;
    struct qtimer *link = sub ? sub : next;

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

static void heap_remove(struct queue *q, struct qtimer *ts)
{
    struct qtimer *sub = meld_children(ts);

    if (ts->place == PLACE_INNER) {
        replace_inner(ts, sub);
    } else if (sub) {
        set_first(q, ts->place, sub);
    } else {
        clear_place(q, ts->place);
    }
}

/* ---- The queue ------------------------------------------------------------------------------- */

static struct qtimer *find_min(const struct queue *q)
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

static inline void insert(struct queue *q, struct qtimer *ts)
{
    int lane = pick_lane(q, ts);

    if (lane >= 0) {
        lane_append(q, lane, ts);
    } else {
        heap_insert(q, ts);
    }
    if (!q->min || qtimer_before(ts, q->min)) {
        q->min = ts;
    }
}

static inline void remove_timer(struct queue *q, struct qtimer *ts)
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

/* ---- For the bench --------------------------------------------------------------------------- */

static struct queue *open_queue(void)
{
    return queue_alloc(sizeof(struct queue), 64);
}

static void close_queue(struct queue *q)
{
    free(q);
}

static void pairing_reserve(struct queue *q, struct qtimer *timers, uint32_t n)
{
}

static size_t bytes(struct queue *q)
{
    return sizeof(*q);
}

static inline int64_t soonest(const struct queue *q)
{
    return q->min ? q->min->key : NO_KEY;
}

static int64_t pairing_insert(struct queue *q, struct qtimer *t)
{
    insert(q, t);
    return soonest(q);
}

static int64_t pairing_remove(struct queue *q, struct qtimer *t)
{
    remove_timer(q, t);
    return soonest(q);
}

static int64_t pairing_move(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq)
{
    remove_timer(q, t);
    t->key = key;
    t->seq = seq;
    insert(q, t);
    return soonest(q);
}

static struct qtimer *pairing_peek(struct queue *q)
{
    return q->min;
}

QUEUE_POP(pairing_pop, pairing_peek, remove_timer)

QUEUE_IMPL(pairing, "pairing")
