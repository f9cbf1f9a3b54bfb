/* SPDX-License-Identifier: MIT */
/*
 * Implicit d-ary heaps, in the layouts that queue_impl.h's users may ask about:
 *
 *   heap4        4-ary; {deadline, timer} in 16 bytes, the four children in one cache line
 *   heap4-split  4-ary; deadlines and timers in an array each
 *   heap8-split  8-ary; the same, eight deadlines being one cache line
 *   heap8-groups  8-ary; eight deadlines and after them their eight timers, group by group
 *   heap8-chunks  the same in pieces of 16 KiB, so that growing copies nothing
 *   heap4-side, heap8-side  as -split, with 32-bit slot numbers for timers, and the index of each
 *                timer in an array beside instead of in the timer: moving an entry touches no timer
 *
 * The root stands at d - 1, so that the children of i, from d * (i - d + 2) on, are aligned.
 * Removal moves a hole down and then the last entry into it (heap4: down while it is later).
 */
#include "queue_heap.h"

#include <stdlib.h>

struct queue {
    struct heap h;
    uint32_t room;
};

/* ---- Memory ---------------------------------------------------------------------------------- */

uint32_t heap_take_memory(struct heap *h, unsigned d, enum layout lay, struct qtimer *timers,
                          uint32_t n)
{
    uint32_t room = n + 2 * d;

    h->end = d - 1;
    h->timers = timers;
    if (lay == PAIRS) {
        h->entries = queue_alloc(room * sizeof(h->entries[0]), 64);
    } else if (lay == GROUPS) {
        h->groups = queue_alloc((room / 8 + 1) * sizeof(h->groups[0]), 64);
    } else if (lay == CHUNKS) {
        uint32_t chunks = room / CHUNK + 1;
        room = chunks * CHUNK;
        h->chunks = queue_alloc((chunks + 1) * sizeof(h->chunks[0]), 64);
        for (uint32_t i = 0; i < chunks; i++) {
            h->chunks[i] = queue_alloc(sizeof(struct chunk), 64);
        }
    } else {
        h->keys = queue_alloc(room * sizeof(h->keys[0]), 64);
    }
    if (lay == SPLIT) {
        h->ptrs = queue_alloc(room * sizeof(h->ptrs[0]), 64);
    } else if (lay == SIDE) {
        h->slots = queue_alloc(room * sizeof(h->slots[0]), 64);
        h->index = queue_alloc(room * sizeof(h->index[0]), 64);
        for (uint32_t i = 0; i < n; i++) {
            timers[i].slot = i;
        }
    }
    return room;
}

void heap_free_memory(struct heap *h)
{
    for (struct chunk **c = h->chunks; c && *c; c++) {
        free(*c);
    }
    free(h->chunks);
    free(h->groups);
    free(h->keys);
    free(h->ptrs);
    free(h->entries);
    free(h->slots);
    free(h->index);
}

/* ---- The queues ------------------------------------------------------------------------------ */

static struct queue *open_queue(void)
{
    return queue_alloc(sizeof(struct queue), 64);
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

#define HEAP(fn, text, d, lay) \
    static void fn##_reserve(struct queue *q, struct qtimer *timers, uint32_t n) \
    { \
        q->room = heap_take_memory(&q->h, d, lay, timers, n); \
    } \
    static int64_t fn##_insert(struct queue *q, struct qtimer *t) \
    { \
        up(&q->h, d, lay, q->h.end++, t->key, t); \
        return key_at(&q->h, lay, d - 1); \
    } \
    static int64_t fn##_remove(struct queue *q, struct qtimer *t) \
    { \
        do_remove(&q->h, d, lay, t); \
        return root_key(&q->h, d, lay); \
    } \
    static int64_t fn##_move(struct queue *q, struct qtimer *t, int64_t key, uint64_t seq) \
    { \
        t->key = key; \
        t->seq = seq; \
        any_way(&q->h, d, lay, index_of(&q->h, lay, t), key, t); \
        return key_at(&q->h, lay, d - 1); \
    } \
    static struct qtimer *fn##_peek(struct queue *q) \
    { \
        return q->h.end > d - 1 ? timer_at(&q->h, lay, d - 1) : NULL; \
    } \
    QUEUE_POP(fn##_pop, fn##_peek, fn##_remove) \
    QUEUE_IMPL(fn, text)

HEAP(heap4, "heap4", 4, PAIRS)
HEAP(heap4_split, "heap4-split", 4, SPLIT)
HEAP(heap8_split, "heap8-split", 8, SPLIT)
HEAP(heap8_groups, "heap8-groups", 8, GROUPS)
HEAP(heap8_chunks, "heap8-chunks", 8, CHUNKS)
HEAP(heap4_side, "heap4-side", 4, SIDE)
HEAP(heap8_side, "heap8-side", 8, SIDE)
