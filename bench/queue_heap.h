/* SPDX-License-Identifier: MIT */
/* The d-ary heaps of queue_heaps.c, in each of their layouts, as inline functions. */
#ifndef BENCH_QUEUE_HEAP_H
#define BENCH_QUEUE_HEAP_H

#include "queue_impl.h"

struct entry {
    int64_t key;
    struct qtimer *t;
};

enum { CHUNK_SHIFT = 10, CHUNK = 1 << CHUNK_SHIFT };

struct chunk {
    int64_t keys[CHUNK];
    struct qtimer *ptrs[CHUNK];
};

struct group {
    int64_t keys[8];
    struct qtimer *ptrs[8];
};

struct heap {
    uint32_t end; /* index behind the last entry */
    struct chunk **chunks;
    struct group *groups;
    int64_t *keys;
    struct qtimer **ptrs;
    struct entry *entries;
    uint32_t *slots, *index; /* -side: the slot of an entry; the index of a slot */
    struct qtimer *timers;
};

enum layout { PAIRS, SPLIT, GROUPS, CHUNKS, SIDE };

/* ---- One access for all layouts; d and layout are constants to the compiler ------------------ */

INLINE int64_t key_at(const struct heap *q, enum layout lay, uint32_t i)
{
    if (lay == GROUPS) {
        return q->groups[i / 8].keys[i % 8];
    }
    if (lay == CHUNKS) {
        return q->chunks[i >> CHUNK_SHIFT]->keys[i % CHUNK];
    }
    return lay == PAIRS ? q->entries[i].key : q->keys[i];
}

INLINE struct qtimer *timer_at(const struct heap *q, enum layout lay, uint32_t i)
{
    if (lay == GROUPS) {
        return q->groups[i / 8].ptrs[i % 8];
    }
    if (lay == CHUNKS) {
        return q->chunks[i >> CHUNK_SHIFT]->ptrs[i % CHUNK];
    }
    return lay == PAIRS ? q->entries[i].t : lay == SPLIT ? q->ptrs[i] : &q->timers[q->slots[i]];
}

INLINE void put(struct heap *q, enum layout lay, uint32_t i, int64_t key, struct qtimer *t)
{
    if (lay == PAIRS) {
        q->entries[i] = (struct entry){ key, t };
        t->index = i;
    } else if (lay == GROUPS) {
        q->groups[i / 8].keys[i % 8] = key;
        q->groups[i / 8].ptrs[i % 8] = t;
        t->index = i;
    } else if (lay == CHUNKS) {
        q->chunks[i >> CHUNK_SHIFT]->keys[i % CHUNK] = key;
        q->chunks[i >> CHUNK_SHIFT]->ptrs[i % CHUNK] = t;
        t->index = i;
    } else if (lay == SPLIT) {
        q->keys[i] = key;
        q->ptrs[i] = t;
        t->index = i;
    } else {
        q->keys[i] = key;
        q->slots[i] = t->slot;
        q->index[t->slot] = i;
    }
}

/* The same from another place of the heap: no timer is needed for -side. */
INLINE void shift(struct heap *q, enum layout lay, uint32_t to, uint32_t from)
{
    if (lay == SIDE) {
        uint32_t slot = q->slots[from];
        q->keys[to] = q->keys[from];
        q->slots[to] = slot;
        q->index[slot] = to;
    } else {
        put(q, lay, to, key_at(q, lay, from), timer_at(q, lay, from));
    }
}

INLINE bool before(const struct heap *q, enum layout lay, int64_t ka, struct qtimer *a, uint32_t b)
{
    int64_t kb = key_at(q, lay, b);
    return ka < kb || (__builtin_expect(ka == kb, 0) && a->seq < timer_at(q, lay, b)->seq);
}

INLINE uint32_t parent(unsigned d, uint32_t i)
{
    return (i - d) / d + d - 1;
}

INLINE uint32_t child(unsigned d, uint32_t i)
{
    return d * (i - d + 2);
}

/* The soonest of the @n children from @c on. */
INLINE uint32_t least(const struct heap *q, enum layout lay, uint32_t c, uint32_t n)
{
    uint32_t best = c;
    int64_t k = key_at(q, lay, c);
    for (uint32_t i = 1; i < n; i++) {
        int64_t ki = key_at(q, lay, c + i);
        if (__builtin_expect(ki == k, 0)) {
            bool sooner = timer_at(q, lay, c + i)->seq < timer_at(q, lay, best)->seq;
            best = sooner ? c + i : best;
        } else {
            best = ki < k ? c + i : best;
            k = ki < k ? ki : k;
        }
    }
    return best;
}

struct runner {
    int64_t key;
    uint32_t i;
};

INLINE struct runner run_at(const struct heap *q, enum layout lay, uint32_t i)
{
    return (struct runner){ key_at(q, lay, i), i };
}

/* The winner of a match; *@ties counts those that were none. */
INLINE struct runner match(struct runner a, struct runner b, unsigned *ties)
{
    *ties += a.key == b.key;
    return (struct runner){ b.key < a.key ? b.key : a.key, b.key < a.key ? b.i : a.i };
}

INLINE struct runner best_of_4(const struct heap *q, enum layout lay, uint32_t c, unsigned *ties)
{
    return match(match(run_at(q, lay, c), run_at(q, lay, c + 1), ties),
                 match(run_at(q, lay, c + 2), run_at(q, lay, c + 3), ties), ties);
}

/* The soonest of @d children from @c on: a tournament without branches. */
INLINE uint32_t least_full(const struct heap *q, unsigned d, enum layout lay, uint32_t c)
{
    unsigned ties = 0;
    struct runner best = best_of_4(q, lay, c, &ties);
    if (d == 8) {
        best = match(best, best_of_4(q, lay, c + 4, &ties), &ties);
    }
    return __builtin_expect(ties != 0, 0) ? least(q, lay, c, d) : best.i;
}

INLINE void up(struct heap *q, unsigned d, enum layout lay, uint32_t i, int64_t key,
               struct qtimer *t)
{
    while (i > d - 1) {
        uint32_t p = parent(d, i);
        if (!before(q, lay, key, t, p)) {
            break;
        }
        shift(q, lay, i, p);
        i = p;
    }
    put(q, lay, i, key, t);
}

INLINE void down(struct heap *q, unsigned d, enum layout lay, uint32_t i, int64_t key,
                 struct qtimer *t)
{
    for (uint32_t c; (c = child(d, i)) < q->end;) {
        uint32_t best = c + d <= q->end ? least_full(q, d, lay, c) : least(q, lay, c, q->end - c);
        if (before(q, lay, key, t, best)) {
            break;
        }
        shift(q, lay, i, best);
        i = best;
    }
    put(q, lay, i, key, t);
}

/* To the bottom without looking at the key, which is likely to belong there, then up. */
INLINE void down_up(struct heap *q, unsigned d, enum layout lay, uint32_t i, int64_t key,
                    struct qtimer *t)
{
    for (uint32_t c; (c = child(d, i)) < q->end;) {
        uint32_t best = c + d <= q->end ? least_full(q, d, lay, c) : least(q, lay, c, q->end - c);
        shift(q, lay, i, best);
        i = best;
    }
    up(q, d, lay, i, key, t);
}

INLINE void any_way(struct heap *q, unsigned d, enum layout lay, uint32_t i, int64_t key,
                    struct qtimer *t)
{
    if (i > d - 1 && before(q, lay, key, t, parent(d, i))) {
        up(q, d, lay, i, key, t);
    } else {
        down(q, d, lay, i, key, t);
    }
}

INLINE uint32_t index_of(const struct heap *q, enum layout lay, const struct qtimer *t)
{
    return lay == SIDE ? q->index[t->slot] : t->index;
}

INLINE void do_remove(struct heap *q, unsigned d, enum layout lay, struct qtimer *t)
{
    uint32_t i = index_of(q, lay, t), last = --q->end;
    if (i == last) {
        return;
    }
    int64_t key = key_at(q, lay, last);
    if (i == d - 1) {
        down_up(q, d, lay, i, key, timer_at(q, lay, last));
    } else {
        any_way(q, d, lay, i, key, timer_at(q, lay, last));
    }
}

INLINE int64_t root_key(const struct heap *q, unsigned d, enum layout lay)
{
    return q->end > d - 1 ? key_at(q, lay, d - 1) : NO_KEY;
}

/* Makes room for @n timers; returns for how many entries. */
uint32_t heap_take_memory(struct heap *q, unsigned d, enum layout lay, struct qtimer *timers,
                          uint32_t n);
void heap_free_memory(struct heap *q);

#endif
