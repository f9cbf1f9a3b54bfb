/* SPDX-License-Identifier: MIT */
/* Memory that notices when it is used after it was freed; see interleave.h.  Blocks come from one
 * array, so that their addresses are the same in each run, and are not reused within one. */
#include "tests/interleave_int.h"

#include "rcu/util_int.h"

#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
#endif

enum {
    BLOCKS = 64,
    ARENA_SIZE = 1 << 19,
    ACCESSES_MAX = 20000, /* of a run: more than any that ends has */
};

static unsigned long accesses; /* of the run */
static _Alignas(64) unsigned char arena[ARENA_SIZE];
static size_t arena_used;
static struct block {
    unsigned char *p;
    size_t size;
    bool freed;
} blocks[BLOCKS];
static int block_count;

enum { FRESH = 0xa5, FREED = 0xdb };

void *il_aligned_alloc(size_t align, size_t size)
{
    struct block *b = &blocks[block_count];
    size_t at = (arena_used + 63) & ~(size_t)63;

    must(align <= 64 && block_count < BLOCKS && at + size + 64 <= ARENA_SIZE);
    block_count++;
    *b = (struct block){ .p = arena + at, .size = size };
    arena_used = at + size + 64;
    ASAN_UNPOISON_MEMORY_REGION(b->p, size);
    memset(b->p, FRESH, size);
    return b->p;
}

void *il_malloc(size_t size)
{
    return il_aligned_alloc(16, size);
}

void *il_calloc(size_t n, size_t size)
{
    void *p = il_malloc(n * size);

    memset(p, 0, n * size);
    return p;
}

static struct block *find_block(const volatile void *p)
{
    const volatile unsigned char *c = p;

    for (int i = 0; i < block_count; i++) {
        if (c >= blocks[i].p && c < blocks[i].p + blocks[i].size) {
            return &blocks[i];
        }
    }
    return NULL;
}

void il_free(void *p)
{
    struct block *b = p ? find_block(p) : NULL;

    if (!p) {
        return;
    }
    if (!b || b->p != p || b->freed) {
        il_fail("a free of memory that is not there");
    }
    b->freed = true;
    memset(p, FREED, b->size);
    if (!il_planted) { /* a fault is to be found by the checks here, which end a run and not us */
        ASAN_POISON_MEMORY_REGION(p, b->size);
    }
}

bool il_is_freed(const void *p)
{
    const struct block *b = find_block(p);

    return b && b->freed;
}

void il_check_access(const volatile void *p)
{
    const volatile unsigned char *c = p;

    if (++accesses > ACCESSES_MAX) {
        il_fail("the run does not end");
    }
    if (c >= arena && c < arena + ARENA_SIZE) {
        struct block *b = find_block(p);

        if (!b || b->freed) {
            il_fail("an access to memory that was freed");
        }
    }
}

void il_arena_check(void)
{
    for (int i = 0; i < block_count; i++) {
        if (!blocks[i].freed) {
            continue;
        }
        ASAN_UNPOISON_MEMORY_REGION(blocks[i].p, blocks[i].size);
        for (size_t k = 0; k < blocks[i].size; k++) {
            if (blocks[i].p[k] != FREED) {
                il_fail("memory was written after it had been freed");
            }
        }
    }
}

void il_arena_reset(void)
{
    for (int i = 0; i < block_count; i++) {
        ASAN_UNPOISON_MEMORY_REGION(blocks[i].p, blocks[i].size);
    }
    block_count = 0;
    arena_used = 0;
    accesses = 0;
}
