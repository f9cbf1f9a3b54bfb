/* SPDX-License-Identifier: MIT */
/*
 * The active queue; see queue_int.h for what it is.
 *
 * The two heaps are one algorithm: by expire_time with the index in QEMUTimer.place, and by soonest
 * with the index in QEMUTimer.soft_place.  The compiler makes two copies of it.
 */
#include "timers/queue_int.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

void timer_queue_init(struct timer_queue *q)
{
    memset(q, 0, sizeof(*q));
    for (int i = 0; i < TQ_PARTS; i++) {
        q->soonest_key[i] = NO_DEADLINE;
    }
    for (int i = 0; i < TQ_LANES; i++) {
        q->near[i] = INT64_MIN;
    }
    for (int i = 0; i < TQ_STRAYS; i++) {
        q->stray[i] = INT64_MIN;
    }
    q->heap.end = q->soft.end = HEAP_ROOT;
}

/* ---- Room ------------------------------------------------------------------------------------ */

/*
 * The heaps' arrays are mappings of their own: they grow by moving pages, not by copying, so that
 * growing a large one does not hold up the list; they begin on a page, which aligns siblings; and
 * the one for ranges costs address space only, while no timer has one.
 */
static bool grow(struct timer_heap *h, size_t old_bytes, size_t bytes)
{
    void *p = old_bytes
                  ? mremap(h->group, old_bytes, bytes, MREMAP_MAYMOVE)
                  : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        return false;
    }
    h->group = p;
    return true;
}

static void release(struct timer_heap *h, size_t bytes)
{
    if (h->group) {
        munmap(h->group, bytes);
    }
}

enum { ROOM_LEAST = 4096 / sizeof(struct heap_group) * HEAP_WIDTH };

static size_t bytes_of(uint32_t room)
{
    return (size_t)room / HEAP_WIDTH * sizeof(struct heap_group);
}

static void empty_group(struct heap_group *g)
{
    for (unsigned i = 0; i < HEAP_WIDTH; i++) {
        g->key[i] = NO_DEADLINE;
    }
}

bool timer_queue_reserve(struct timer_queue *q, uint32_t timers)
{
    uint32_t room = q->room ? q->room : ROOM_LEAST;

    while (room - HEAP_ROOT < timers) {
        if (room > UINT32_MAX / HEAP_WIDTH / 2) { /* more would overflow heap_below() */
            return false;
        }
        room *= 2;
    }
    if (room == q->room) {
        return true;
    }
    if (!grow(&q->heap, bytes_of(q->room), bytes_of(room))) {
        return false;
    }
    if (!grow(&q->soft, bytes_of(q->room), bytes_of(room))) {
        /* back to one size for both; shrinking does not fail */
        if (!q->room) {
            release(&q->heap, bytes_of(room));
            q->heap.group = NULL;
        } else {
            grow(&q->heap, bytes_of(room), bytes_of(q->room));
        }
        return false;
    }
    if (!q->room) {
        empty_group(&q->heap.group[0]);
        empty_group(&q->soft.group[0]);
    }
    st_relaxed(&q->room, room);
    return true;
}

void timer_queue_destroy(struct timer_queue *q)
{
    release(&q->heap, bytes_of(q->room));
    release(&q->soft, bytes_of(q->room));
}

/* ---- Heaps ----------------------------------------------------------------------------------- */

static ALWAYS_INLINE uint32_t *index_of(QEMUTimer *ts, bool soft)
{
    return soft ? &ts->soft_place : &ts->place;
}

static ALWAYS_INLINE int64_t key_of(const QEMUTimer *ts, bool soft)
{
    return soft ? ts->soonest : ts->expire_time;
}

static ALWAYS_INLINE int64_t *key_at(const struct timer_heap *h, uint32_t i)
{
    return &h->group[i / HEAP_WIDTH].key[i % HEAP_WIDTH];
}

static ALWAYS_INLINE QEMUTimer **timer_at(const struct timer_heap *h, uint32_t i)
{
    return &h->group[i / HEAP_WIDTH].ts[i % HEAP_WIDTH];
}

static ALWAYS_INLINE void put(struct timer_heap *h, uint32_t i, int64_t key, QEMUTimer *ts,
                              bool soft)
{
    *key_at(h, i) = key;
    *timer_at(h, i) = ts;
    *index_of(ts, soft) = i;
}

/* Whether (@key, @ts) comes before entry @i. */
static ALWAYS_INLINE bool is_before(const struct timer_heap *h, int64_t key, const QEMUTimer *ts,
                                    uint32_t i)
{
    int64_t other = *key_at(h, i);

    return key < other || (unlikely(key == other) && ts->seq < (*timer_at(h, i))->seq);
}

/* The first of a group that may have empty places, or equal keys. */
static __attribute__((noinline)) unsigned first_by_seq(const struct heap_group *g)
{
    unsigned best = 0;

    for (unsigned i = 1; i < HEAP_WIDTH; i++) {
        if (g->key[i] < g->key[best] || (g->key[i] == g->key[best] && g->key[i] != NO_DEADLINE &&
                                         g->ts[i]->seq < g->ts[best]->seq)) {
            best = i;
        }
    }
    return best;
}

struct rival {
    int64_t key;
    uint64_t i;
};

/* Without a branch, which would be guessed wrong: the compiler must not know that @later is 0 or 1.
 */
static ALWAYS_INLINE struct rival match(struct rival a, struct rival b, unsigned *ties)
{
    uint64_t later = b.key < a.key;

    *ties |= a.key == b.key;
    __asm__("" : "+r"(later));
    return (struct rival){ b.key < a.key ? b.key : a.key, a.i + ((b.i - a.i) & -later) };
}

static ALWAYS_INLINE struct rival match_two(const int64_t *key, unsigned i, unsigned *ties)
{
    uint64_t later = key[i + 1] < key[i];

    *ties |= key[i] == key[i + 1];
    __asm__("" : "+r"(later));
    return (struct rival){ key[i + 1] < key[i] ? key[i + 1] : key[i], i + later };
}

/* The first of a group, by a tournament. */
static ALWAYS_INLINE struct rival first_of_group(const struct heap_group *g)
{
    unsigned ties = 0;
    struct rival a = match_two(g->key, 0, &ties), b = match_two(g->key, 2, &ties),
                 c = match_two(g->key, 4, &ties), d = match_two(g->key, 6, &ties);
    struct rival best = match(match(a, b, &ties), match(c, d, &ties), &ties);

    if (unlikely(ties)) {
        best.i = first_by_seq(g);
    }
    return best;
}

/* Fills the hole at @i with @ts, or pulls down what is above it until @ts fits. */
static ALWAYS_INLINE void sift_up(struct timer_heap *h, uint32_t i, int64_t key, QEMUTimer *ts,
                                  bool soft)
{
    while (i > HEAP_ROOT && is_before(h, key, ts, heap_parent(i))) {
        uint32_t up = heap_parent(i);

        put(h, i, *key_at(h, up), *timer_at(h, up), soft);
        i = up;
    }
    put(h, i, key, ts, soft);
}

/* The reverse. */
static ALWAYS_INLINE void sift_down(struct timer_heap *h, uint32_t i, int64_t key, QEMUTimer *ts,
                                    bool soft)
{
    while (heap_below(i) * HEAP_WIDTH < h->end) {
        const struct heap_group *g = &h->group[heap_below(i)];
        struct rival first = first_of_group(g);
        uint32_t child = heap_below(i) * HEAP_WIDTH + first.i;

        if (is_before(h, key, ts, child)) {
            break;
        }
        put(h, i, first.key, g->ts[first.i], soft);
        i = child;
    }
    put(h, i, key, ts, soft);
}

/* For a timer that is likely to belong to the bottom: down without looking at it, then up. */
static ALWAYS_INLINE void sift_to_bottom(struct timer_heap *h, uint32_t i, int64_t key,
                                         QEMUTimer *ts, bool soft)
{
    struct heap_group *groups = h->group, *to = &groups[i / HEAP_WIDTH];
    uint32_t end = h->end, below;
    uint64_t hole = i % HEAP_WIDTH;

    while ((below = heap_below(i)) * HEAP_WIDTH < end) {
        struct heap_group *from = &groups[below];
        struct rival first = first_of_group(from);
        QEMUTimer *up = from->ts[first.i];

        to->key[hole] = first.key;
        to->ts[hole] = up;
        *index_of(up, soft) = i;
        i = below * HEAP_WIDTH + first.i;
        to = from;
        hole = first.i;
    }
    sift_up(h, i, key, ts, soft);
}

static ALWAYS_INLINE void sift(struct timer_heap *h, uint32_t i, int64_t key, QEMUTimer *ts,
                               bool soft)
{
    if (i > HEAP_ROOT && is_before(h, key, ts, heap_parent(i))) {
        sift_up(h, i, key, ts, soft);
    } else {
        sift_down(h, i, key, ts, soft);
    }
}

static ALWAYS_INLINE void heap_insert(struct timer_heap *h, QEMUTimer *ts, bool soft)
{
    uint32_t i = h->end++;

    if (i % HEAP_WIDTH == 0) {
        empty_group(&h->group[i / HEAP_WIDTH]);
    }
    sift_up(h, i, key_of(ts, soft), ts, soft);
}

static ALWAYS_INLINE void heap_remove(struct timer_heap *h, QEMUTimer *ts, bool soft)
{
    uint32_t i = *index_of(ts, soft), last = --h->end;
    int64_t key = *key_at(h, last);

    *key_at(h, last) = NO_DEADLINE;
    if (i == last) {
        return;
    }
    if (i == HEAP_ROOT) {
        sift_to_bottom(h, i, key, *timer_at(h, last), soft);
    } else {
        sift(h, i, key, *timer_at(h, last), soft);
    }
}

/* The same for the root, without a look at its timer, which may be cold. */
static ALWAYS_INLINE void heap_remove_root(struct timer_heap *h, bool soft)
{
    uint32_t last = --h->end;
    int64_t key = *key_at(h, last);

    *key_at(h, last) = NO_DEADLINE;
    if (last != HEAP_ROOT) {
        sift_to_bottom(h, HEAP_ROOT, key, *timer_at(h, last), soft);
    }
}

static ALWAYS_INLINE void note_root(struct timer_queue *q)
{
    q->soonest_key[TQ_HEAP] =
        q->heap.end > HEAP_ROOT ? q->heap.group[0].key[HEAP_ROOT] : NO_DEADLINE;
}

/* ---- The queue ------------------------------------------------------------------------------- */

/* Linear: for want of memory only. */
static void spill(struct timer_queue *q, QEMUTimer *ts)
{
    QEMUTimer *prev = q->last[TQ_SPILL];

    while (prev && timer_before(ts, prev)) {
        prev = prev->prev;
    }
    ts->place = PLACE_LIST + TQ_SPILL;
    ts->prev = prev;
    ts->next = prev ? prev->next : q->first[TQ_SPILL];
    *(ts->next ? &ts->next->prev : &q->last[TQ_SPILL]) = ts;
    *(prev ? &prev->next : &q->first[TQ_SPILL]) = ts;
    q->soonest_key[TQ_SPILL] = q->first[TQ_SPILL]->expire_time;
}

static __attribute__((noinline)) void soft_insert(struct timer_queue *q, QEMUTimer *ts)
{
    heap_insert(&q->soft, ts, true);
}

static __attribute__((noinline)) void soft_remove(struct timer_queue *q, QEMUTimer *ts)
{
    heap_remove(&q->soft, ts, true);
}

unsigned timer_queue_empty_lane(const struct timer_queue *q)
{
    for (unsigned i = 0; i < TQ_LANES; i++) {
        if (!q->first[i]) {
            return i;
        }
    }
    return TQ_LANES;
}

/*
 * A lane that a few long timers have begun would be lost to others until they are over: when all
 * lanes are taken, one of them that has got nothing for long moves a timer into the heap with each
 * stray that comes.
 */
static void empty_stale_lane(struct timer_queue *q, uint64_t seq)
{
    unsigned i = q->hand;
    QEMUTimer *ts = q->first[i];

    q->hand = i + 1 < TQ_LANES ? i + 1 : 0;
    if ((int64_t)(seq - q->last[i]->seq) > TQ_STALE && q->heap.end < q->room) {
        timer_queue_remove_from_list(q, ts);
        heap_insert(&q->heap, ts, false);
    }
}

static ALWAYS_INLINE void end_insert(struct timer_queue *q, int64_t key, uint64_t seq)
{
    timer_queue_note_stray(q, key);
    if (unlikely(q->first[0] && q->first[1] && q->first[2])) {
        empty_stale_lane(q, seq);
    }
    note_root(q);
}
static_assert(TQ_LANES == 3, "three are asked for");

void timer_queue_insert_in_heap(struct timer_queue *q, QEMUTimer *ts)
{
    if (unlikely(q->heap.end >= q->room)) {
        spill(q, ts); /* and its range is not used */
        return;
    }
    heap_insert(&q->heap, ts, false);
    if (unlikely(timer_has_range(ts))) {
        note_root(q);
        soft_insert(q, ts);
    } else {
        end_insert(q, ts->expire_time, ts->seq);
    }
}

void timer_queue_remove_from_heap(struct timer_queue *q, QEMUTimer *ts)
{
    if (unlikely(timer_has_range(ts))) {
        soft_remove(q, ts);
    }
    heap_remove(&q->heap, ts, false);
    note_root(q);
}

void timer_queue_move_in_heap(struct timer_queue *q, QEMUTimer *ts, int64_t key)
{
    sift(&q->heap, ts->place, key, ts, false);
    end_insert(q, key, ts->seq);
}

static QEMUTimer *first_of(const struct timer_queue *q, int part)
{
    return part == TQ_HEAP ? q->heap.group[0].ts[HEAP_ROOT] : q->first[part];
}

/* The part whose first timer is the queue's, with deadline @key. */
static ALWAYS_INLINE int part_of(const struct timer_queue *q, int64_t key)
{
    int part = TQ_PARTS;

#pragma GCC unroll 5
    for (int i = TQ_PARTS - 1; i >= 0; i--) {
        if (q->soonest_key[i] == key &&
            (likely(part == TQ_PARTS) || first_of(q, i)->seq < first_of(q, part)->seq)) {
            part = i;
        }
    }
    return part;
}

QEMUTimer *timer_queue_first(const struct timer_queue *q)
{
    int64_t key = timer_queue_key(q);

    return key == NO_DEADLINE ? NULL : first_of(q, part_of(q, key));
}

QEMUTimer *timer_queue_take_first(struct timer_queue *q, int64_t key)
{
    int part = part_of(q, key);
    QEMUTimer *ts = first_of(q, part);

    /* Its callback is called soon; it lies in another cache line than what is needed before. */
    __builtin_prefetch(&ts->cb);
    if (part == TQ_HEAP) {
        heap_remove_root(&q->heap, false);
        note_root(q);
        if (unlikely(timer_has_range(ts))) {
            soft_remove(q, ts);
        }
    } else {
        timer_queue_remove_from_list(q, ts);
    }
    return ts;
}

/* ---- Checking -------------------------------------------------------------------------------- */

static unsigned long verify_list(const struct timer_queue *q, unsigned i)
{
    const QEMUTimer *prev = NULL;
    unsigned long n = 0;

    for (const QEMUTimer *ts = q->first[i]; ts; prev = ts, ts = ts->next, n++) {
        must(ts->place == PLACE_LIST + i);
        must(ts->prev == prev);
        must(!prev || timer_before(prev, ts));
    }
    must(q->last[i] == prev);
    must(i >= TQ_LANES || q->near[i] == (prev ? prev->expire_time : INT64_MIN));
    must(q->soonest_key[i] == (q->first[i] ? q->first[i]->expire_time : NO_DEADLINE));
    return n;
}

static unsigned long verify_heap(const struct timer_heap *h, bool soft)
{
    for (uint32_t i = HEAP_ROOT; i < h->end; i++) {
        QEMUTimer *ts = *timer_at(h, i);

        must(*index_of(ts, soft) == i && *key_at(h, i) == key_of(ts, soft));
        must(i == HEAP_ROOT || !is_before(h, *key_at(h, i), ts, heap_parent(i)));
        must(!soft || (timer_has_range(ts) && ts->place < PLACE_LIST));
    }
    for (uint32_t i = h->end; i % HEAP_WIDTH && i > HEAP_WIDTH; i++) {
        must(*key_at(h, i) == NO_DEADLINE);
    }
    return h->end - HEAP_ROOT;
}

unsigned long timer_queue_verify(const struct timer_queue *q)
{
    unsigned long n = verify_heap(&q->heap, false), ranges = 0;

    for (uint32_t i = HEAP_ROOT; i < q->heap.end; i++) {
        ranges += timer_has_range(*timer_at(&q->heap, i));
    }
    must(verify_heap(&q->soft, true) == ranges);
    must(q->soonest_key[TQ_HEAP] == (n ? *key_at(&q->heap, HEAP_ROOT) : NO_DEADLINE));
    for (unsigned i = 0; i < TQ_LISTS; i++) {
        n += verify_list(q, i);
    }
    return n;
}
