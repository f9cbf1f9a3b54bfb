/* SPDX-License-Identifier: MIT */
/*
 * Buffers for data, of one thread.
 *
 * Buffers that come back are kept for the next request, up to a limit; larger ones than the largest
 * class come from malloc() and go back there.
 */
#ifndef NBD_POOL_H
#define NBD_POOL_H

#include <stddef.h>

enum { NBD_POOL_CLASSES = 5 }; /* 4 KiB to 1 MiB, each four times the one before */

typedef struct NbdPool {
    void *free[NBD_POOL_CLASSES]; /* each begins with a pointer to the next */
    size_t kept_bytes;
} NbdPool;

/* How large a buffer for @bytes really is. */
size_t nbd_pool_room(size_t bytes);

/* A buffer of @bytes or more, aligned to pages; NULL when out of memory. */
void *nbd_pool_get(NbdPool *pool, size_t bytes);

/* Gives back what nbd_pool_get() gave for @bytes.  @buf may be NULL. */
void nbd_pool_put(NbdPool *pool, void *buf, size_t bytes);

void nbd_pool_clear(NbdPool *pool);

#endif
