/* SPDX-License-Identifier: MIT */
/*
 * Leaves: the timers lie in small arrays ("leaves"), the leaves in order of their deadlines, and
 * inside a leaf in any order until that order is needed.
 *
 *   insert  binary search among the leaves' lower bounds, then append; a full leaf is split
 *   remove  the leaf's last entry fills the gap
 *   peek    the soonest timer is remembered.  When it goes, the first leaf is split until few
 *           timers are left, and those are sorted: the sorting of a quicksort, done when it is
 *           asked for, a leaf at a time
 *
 * A leaf to which timers came in rising order knows that it is sorted: timeouts of a fixed length
 * are appended to the last leaf and taken from the front of the first.  Neighbours that have become
 * small are merged, so that the number of leaves is bounded by that of the timers.
 */
#include "queue_impl.h"

#include <stdlib.h>
#include <string.h>

#ifndef LEAF_CAP
#define LEAF_CAP 256
#endif
enum {
    CAP = LEAF_CAP, /* entries of a leaf */
    SORT_MAX = 20,  /* a first leaf that is not longer is sorted, a longer one split */
    MERGE_STEP = 16,
    MERGE_MAX = CAP * 3 / 4,
};

struct entry {
    int64_t key;
    struct qtimer *t;
};

struct leaf {
    uint32_t head, end; /* entries [head, end) */
    bool sorted;        /* they lie in order */
    int64_t bound;      /* no key is below */
    struct leaf *next_free;
    struct entry e[CAP] __attribute__((aligned(64)));
};

struct queue {
    struct qtimer *min;
    struct leaf *first;
    uint32_t lo, hi; /* the leaves in order are leaves[lo .. hi - 1] */
    int64_t *bounds; /* leaves[i]->bound */
    struct leaf **leaves;
    struct leaf *free, *pool;
    uint32_t cap; /* room in bounds and leaves; the leaves there are */
    size_t bytes;
};

static inline bool entry_before(const struct entry *a, const struct entry *b)
{
    return a->key < b->key || (a->key == b->key && a->t->seq < b->t->seq);
}

static inline void put(struct leaf *l, uint32_t i, struct entry e)
{
    l->e[i] = e;
    e.t->leaf = l;
    e.t->index = i;
}

/* ---- The row of leaves ----------------------------------------------------------------------- */

/* The last leaf whose bound is at most @key, else the first one. */
static inline uint32_t find(const struct queue *q, int64_t key)
{
    const int64_t *base = q->bounds + q->lo;
    uint32_t n = q->hi - q->lo;

    if (key >= base[n - 1]) {
        return q->hi - 1;
    }
    while (n > 1) {
        uint32_t half = n / 2;
        base += base[half] <= key ? half : 0;
        n -= half;
    }
    return (uint32_t)(base - q->bounds);
}

/* Where the leaf stands.  Several may have one bound. */
static uint32_t position(const struct queue *q, const struct leaf *l)
{
    uint32_t i = l == q->first ? q->lo : find(q, l->bound);
    while (q->leaves[i] != l) {
        i--;
    }
    return i;
}

static struct leaf *leaf_insert(struct queue *q, uint32_t at, int64_t bound)
{
    struct leaf *l = q->free;

    q->free = l->next_free;
    if (q->hi == q->cap) {
        memmove(q->bounds, q->bounds + q->lo, (q->hi - q->lo) * sizeof(q->bounds[0]));
        memmove(q->leaves, q->leaves + q->lo, (q->hi - q->lo) * sizeof(q->leaves[0]));
        at -= q->lo;
        q->hi -= q->lo;
        q->lo = 0;
    }
    if (at == q->lo + 1 && q->lo > 0) { /* the first leaf is split: move that one alone */
        q->lo--;
        q->bounds[q->lo] = q->bounds[q->lo + 1];
        q->leaves[q->lo] = q->leaves[q->lo + 1];
        at--;
    } else {
        memmove(&q->bounds[at + 1], &q->bounds[at], (q->hi - at) * sizeof(q->bounds[0]));
        memmove(&q->leaves[at + 1], &q->leaves[at], (q->hi - at) * sizeof(q->leaves[0]));
        q->hi++;
    }
    l->head = l->end = 0;
    l->sorted = true;
    l->bound = q->bounds[at] = bound;
    q->leaves[at] = l;
    return l;
}

static void leaf_drop(struct queue *q, uint32_t at)
{
    struct leaf *l = q->leaves[at];

    if (at == q->lo) {
        q->lo++;
        q->first = q->leaves[q->lo];
    } else {
        q->hi--;
        memmove(&q->bounds[at], &q->bounds[at + 1], (q->hi - at) * sizeof(q->bounds[0]));
        memmove(&q->leaves[at], &q->leaves[at + 1], (q->hi - at) * sizeof(q->leaves[0]));
    }
    l->next_free = q->free;
    q->free = l;
}

/* ---- Splitting, sorting, merging ------------------------------------------------------------- */

static inline int64_t median3(int64_t a, int64_t b, int64_t c)
{
    int64_t lo = a < b ? a : b, hi = a < b ? b : a;
    return c < lo ? lo : c > hi ? hi : c;
}

/* A key near the median that is not the least one; the least one when all are equal. */
static int64_t pick_pivot(const struct leaf *l)
{
    const struct entry *e = l->e + l->head;
    uint32_t n = l->end - l->head, step = n / 9;
    int64_t least = e[0].key, above = INT64_MAX;
    int64_t pivot = median3(median3(e[0].key, e[step].key, e[2 * step].key),
                            median3(e[3 * step].key, e[4 * step].key, e[5 * step].key),
                            median3(e[6 * step].key, e[7 * step].key, e[8 * step].key));
    for (uint32_t i = 1; i < n; i++) {
        least = e[i].key < least ? e[i].key : least;
    }
    if (pivot != least) {
        return pivot;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (e[i].key != least && e[i].key < above) {
            above = e[i].key;
        }
    }
    return above == INT64_MAX ? least : above;
}

/* Moves what is not before a pivot to a new leaf behind and returns that; keys differ. */
static struct leaf *split(struct queue *q, uint32_t at)
{
    struct leaf *l = q->leaves[at];
    int64_t pivot = pick_pivot(l);
    uint32_t head = l->head, end = l->end, low = 0, high = 0;
    bool sorted = l->sorted;

    struct leaf *r = leaf_insert(q, at + 1, pivot);
    for (uint32_t i = head; i < end; i++) {
        struct entry e = l->e[i];
        bool is_low = e.key < pivot;
        l->e[low] = r->e[high] = e;
        low += is_low;
        high += !is_low;
    }
    r->sorted = sorted;
    l->head = 0;
    l->end = low;
    r->end = high;
    for (uint32_t i = 0; i < low; i++) {
        l->e[i].t->index = i;
    }
    for (uint32_t i = 0; i < high; i++) {
        r->e[i].t->leaf = r;
        r->e[i].t->index = i;
    }
    return r;
}

static void sort(struct leaf *l)
{
    for (uint32_t i = l->head + 1; i < l->end; i++) {
        struct entry e = l->e[i];
        uint32_t j = i;
        for (; j > l->head && entry_before(&e, &l->e[j - 1]); j--) {
            l->e[j] = l->e[j - 1];
        }
        l->e[j] = e;
    }
    for (uint32_t i = l->head; i < l->end; i++) {
        l->e[i].t->index = i;
    }
    l->sorted = true;
}

static bool all_equal(const struct leaf *l)
{
    for (uint32_t i = l->head; i < l->end; i++) {
        if (l->e[i].key != l->e[l->head].key) {
            return false;
        }
    }
    return true;
}

/* Merges the leaf behind @at into that one when both are small. */
static bool try_merge(struct queue *q, uint32_t at)
{
    struct leaf *l = q->leaves[at], *r = q->leaves[at + 1];
    uint32_t left = l->end - l->head, right = r->end - r->head;

    if (left + right > MERGE_MAX) {
        return false;
    }
    if (l->head) {
        for (uint32_t i = 0; i < left; i++) {
            put(l, i, l->e[l->head + i]);
        }
        l->head = 0;
        l->end = left;
    }
    for (uint32_t i = 0; i < right; i++) {
        put(l, left + i, r->e[r->head + i]);
    }
    l->end += right;
    l->sorted &= r->sorted;
    leaf_drop(q, at + 1);
    return true;
}

static void shrunk(struct queue *q, struct leaf *l)
{
    if (q->hi - q->lo == 1) {
        if (l->head == l->end) {
            l->head = l->end = 0;
            l->sorted = true;
        }
        return;
    }
    uint32_t at = position(q, l);
    if (l->head == l->end) {
        leaf_drop(q, at);
        if (at > q->lo + 1 && at < q->hi) {
            try_merge(q, at - 1);
        }
        return;
    }
    if (at > q->lo + 1 && try_merge(q, at - 1)) {
        return;
    }
    if (at > q->lo && at + 1 < q->hi) {
        try_merge(q, at);
    }
}

/* After a split of the first leaf: the leaves behind it grow by half or more from one to the next,
 * so that repeated splits leave few of them. */
static void merge_behind_first(struct queue *q)
{
    while (q->lo + 2 < q->hi) {
        const struct leaf *l = q->leaves[q->lo + 1], *r = q->leaves[q->lo + 2];
        uint32_t n = l->end - l->head;
        if (r->end - r->head >= n + n / 2 || !try_merge(q, q->lo + 1)) {
            return;
        }
    }
}

static void find_min(struct queue *q)
{
    while (!q->first->sorted) {
        struct leaf *l = q->first;
        if (l->end - l->head <= SORT_MAX || all_equal(l)) {
            sort(l);
        } else {
            split(q, q->lo);
            merge_behind_first(q);
        }
    }
    q->min = q->first->head < q->first->end ? q->first->e[q->first->head].t : NULL;
}

/* ---- Operations ------------------------------------------------------------------------------ */

/* Makes room in a full leaf for @key.  Returns the leaf that is to take it. */
static __attribute__((noinline)) struct leaf *make_room(struct queue *q, uint32_t at, int64_t key)
{
    struct leaf *l = q->leaves[at];

    if (l->head >= CAP / 4) {
        uint32_t n = l->end - l->head;
        for (uint32_t i = 0; i < n; i++) {
            put(l, i, l->e[l->head + i]);
        }
        l->head = 0;
        l->end = n;
        return l;
    }
    if (key >= l->e[CAP - 1].key && (l->sorted || all_equal(l))) {
        return leaf_insert(q, at + 1, key);
    }
    struct leaf *r = split(q, at);
    return key >= r->bound ? r : l;
}

static inline void insert(struct queue *q, struct qtimer *t)
{
    int64_t key = t->key;
    uint32_t at = find(q, key);
    struct leaf *l = q->leaves[at];

    if (__builtin_expect(l->end == CAP, 0)) {
        l = make_room(q, at, key);
    }
    uint32_t i = l->end++;
    if (l->sorted && i > l->head && key < l->e[i - 1].key) {
        l->sorted = false;
    }
    put(l, i, (struct entry){ key, t });
    if (l == q->first && (!q->min || key < q->min->key)) {
        q->min = t;
    }
}

static inline void remove_timer(struct queue *q, struct qtimer *t)
{
    struct leaf *l = t->leaf;
    uint32_t i = t->index;

    if (l->sorted && i == l->head) {
        l->head++;
    } else {
        uint32_t last = --l->end;
        if (i != last) {
            l->sorted = false;
            l->e[i] = l->e[last];
            l->e[i].t->index = i;
        }
    }
    uint32_t n = l->end - l->head;
    if (n % MERGE_STEP == 0 && n <= CAP / 2 && (n == 0 || l != q->first)) {
        shrunk(q, l);
    }
    if (t == q->min) {
        find_min(q);
    }
}

static inline int64_t soonest(const struct queue *q)
{
    return q->min ? q->min->key : NO_KEY;
}

static int64_t leaves_insert(struct queue *q, struct qtimer *t)
{
    insert(q, t);
    return soonest(q);
}

static int64_t leaves_remove(struct queue *q, struct qtimer *t)
{
    remove_timer(q, t);
    return soonest(q);
}

static int64_t leaves_move(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq)
{
    remove_timer(q, t);
    t->key = key;
    t->seq = seq;
    insert(q, t);
    return soonest(q);
}

static struct qtimer *leaves_peek(struct queue *q)
{
    return q->min;
}

QUEUE_POP(leaves_pop, leaves_peek, remove_timer)

static struct queue *open_queue(void)
{
    return queue_alloc(sizeof(struct queue), 64);
}

static void close_queue(struct queue *q)
{
    free(q->bounds);
    free(q->leaves);
    free(q->pool);
    free(q);
}

static void leaves_reserve(struct queue *q, struct qtimer *timers, uint32_t n)
{
    (void)timers;
    q->cap = 2 * n / (MERGE_MAX - 2 * MERGE_STEP) + 12;
    q->bounds = queue_alloc(q->cap * sizeof(q->bounds[0]), 64);
    q->leaves = queue_alloc(q->cap * sizeof(q->leaves[0]), 64);
    q->pool = queue_alloc(q->cap * sizeof(*q->pool), 64);
    for (uint32_t i = q->cap; i-- > 0;) {
        q->pool[i].next_free = q->free;
        q->free = &q->pool[i];
    }
    q->first = leaf_insert(q, 0, INT64_MIN);
    q->bytes = sizeof(*q) + q->cap * (sizeof(*q->pool) + 16);
}

static size_t bytes(struct queue *q)
{
    return q->bytes;
}

QUEUE_IMPL(leaves, "leaves")
