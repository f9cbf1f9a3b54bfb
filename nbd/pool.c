/* SPDX-License-Identifier: MIT */
#include "nbd/pool.h"

#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 4096, ALIGNMENT = 4096, KEEP_MAX = 8 << 20 };

static size_t class_bytes(unsigned index)
{
    return (size_t)SMALLEST << (2 * index);
}

/* NBD_POOL_CLASSES: too large for any. */
static unsigned class_of(size_t bytes)
{
    unsigned index = 0;

    while (index < NBD_POOL_CLASSES && class_bytes(index) < bytes) {
        index++;
    }
    return index;
}

size_t nbd_pool_room(size_t bytes)
{
    unsigned index = class_of(bytes);

    return index < NBD_POOL_CLASSES ? class_bytes(index) : bytes;
}

void *nbd_pool_get(NbdPool *pool, size_t bytes)
{
    unsigned index = class_of(bytes);
    void *buf;

    if (index < NBD_POOL_CLASSES && pool->free[index]) {
        buf = pool->free[index];
        memcpy(&pool->free[index], buf, sizeof(void *));
        pool->kept_bytes -= class_bytes(index);
        return buf;
    }
    return posix_memalign(&buf, ALIGNMENT, nbd_pool_room(bytes)) == 0 ? buf : NULL;
}

void nbd_pool_put(NbdPool *pool, void *buf, size_t bytes)
{
    unsigned index = class_of(bytes);

    if (!buf) {
        return;
    }
    if (index == NBD_POOL_CLASSES || pool->kept_bytes + class_bytes(index) > KEEP_MAX) {
        free(buf);
        return;
    }
    memcpy(buf, &pool->free[index], sizeof(void *));
    pool->free[index] = buf;
    pool->kept_bytes += class_bytes(index);
}

void nbd_pool_clear(NbdPool *pool)
{
    for (unsigned i = 0; i < NBD_POOL_CLASSES; i++) {
        while (pool->free[i]) {
            void *buf = pool->free[i];

            memcpy(&pool->free[i], buf, sizeof(void *));
            free(buf);
        }
    }
    pool->kept_bytes = 0;
}
