/* SPDX-License-Identifier: MIT */
/*
 * The file driver: registered files and buffers.
 *
 * With registered=on each context that uses the backend has its file, and the buffers of
 * blk_register_buf(), among those of its ring: an operation then needs no look-up of the fd, and a
 * transfer of one buffer that lies within a registered one no look-up of its pages.  Whatever the
 * kernel refuses is used without.
 *
 * FileFixed holds what was registered by the user, under its lock; FileFixedQueue is the part of
 * one context, and belongs to its home thread.  Whoever changes the buffers raises `change`,
 * release, and schedules a bottom half on each context; home compares it, acquire, before it uses
 * an entry, and brings its own up to date first.  So a buffer that was taken back, and whose
 * address may be that of other memory by now, is never used: who submits a request to that memory
 * knows of it after the change.
 *
 * The last of the state and the queues frees FileFixed, since a queue may outlive the state.
 */
#include "block/file_int.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "aio/aio_ext_int.h"
#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

/* A buffer of the user's. */
struct buf {
    char *base;
    size_t bytes;
    uint64_t id; /* never used again, unlike the address */
};

/* A part of one that a ring may have. */
struct part {
    char *base;
    size_t bytes;
    uint64_t id;
    int index; /* below 0: refused */
};

struct FileFixed {
    unsigned refs;   /* atomic */
    unsigned change; /* atomic: lock to write */
    pthread_mutex_t lock;
    FileFixedQueue *queues; /* lock */
    struct buf *bufs;       /* lock */
    unsigned n;             /* lock: of bufs */
    uint64_t next_id;       /* lock */
};

struct FileFixedQueue {
    FileFixed *fx;
    AioContext *ctx;
    QEMUBH *bh;
    int fd[2], file[2]; /* fds and what they are registered as, below 0: not */
    unsigned change;    /* up to which part is right */
    struct part *parts; /* by base */
    unsigned n;
    FileFixedQueue *next, **pprev; /* lock */
};

/* ---- The user's buffers ---------------------------------------------------------------------- */

FileFixed *blk_file_fixed_new(void)
{
    FileFixed *fx = calloc(1, sizeof(*fx));

    if (fx) {
        fx->refs = 1;
        pthread_mutex_init(&fx->lock, NULL);
    }
    return fx;
}

void blk_file_fixed_put(FileFixed *fx)
{
    if (fx && sub_fetch_acq_rel(&fx->refs, 1) == 0) {
        pthread_mutex_destroy(&fx->lock);
        free(fx->bufs);
        free(fx);
    }
}

static void changed_locked(FileFixed *fx)
{
    st_release(&fx->change, fx->change + 1);
    for (FileFixedQueue *q = fx->queues; q; q = q->next) {
        qemu_bh_schedule(q->bh);
    }
}

static int add_buf_locked(FileFixed *fx, char *base, size_t bytes)
{
    struct buf *bufs;

    for (unsigned i = 0; i < fx->n; i++) {
        if (base < fx->bufs[i].base + fx->bufs[i].bytes && fx->bufs[i].base < base + bytes) {
            return -EEXIST;
        }
    }
    bufs = realloc(fx->bufs, (fx->n + 1) * sizeof(*bufs));
    if (!bufs) {
        return -ENOMEM;
    }
    fx->bufs = bufs;
    bufs[fx->n++] = (struct buf){ base, bytes, fx->next_id++ };
    changed_locked(fx);
    return 0;
}

int blk_file_register_buf(void *state, void *base, size_t bytes)
{
    FileFixed *fx = ((FileState *)state)->fixed;
    int ret = 0;

    if (fx) {
        pthread_mutex_lock(&fx->lock);
        ret = add_buf_locked(fx, base, bytes);
        pthread_mutex_unlock(&fx->lock);
    }
    return ret;
}

void blk_file_unregister_buf(void *state, void *base, size_t bytes)
{
    FileFixed *fx = ((FileState *)state)->fixed;

    if (!fx) {
        return;
    }
    pthread_mutex_lock(&fx->lock);
    for (unsigned i = 0; i < fx->n; i++) {
        if (fx->bufs[i].base == base && fx->bufs[i].bytes == bytes) {
            fx->bufs[i] = fx->bufs[--fx->n];
            changed_locked(fx);
            break;
        }
    }
    pthread_mutex_unlock(&fx->lock);
}

/* ---- A context's part ------------------------------------------------------------------------ */

static int by_base(const void *a, const void *b)
{
    const struct part *x = a, *y = b;

    return x->base < y->base ? -1 : x->base > y->base;
}

/* The entry of the part at @base of buffer @id, taken out of those that the queue has; else a new
 * one. */
static int take_index(FileFixedQueue *q, uint64_t id, char *base, size_t bytes)
{
    for (unsigned i = 0; i < q->n; i++) {
        if (q->parts[i].id == id && q->parts[i].base == base) {
            int index = q->parts[i].index;

            q->parts[i].index = -1;
            return index;
        }
    }
    return aio_context_register_buf(q->ctx, base, bytes);
}

static void drop_parts(FileFixedQueue *q)
{
    for (unsigned i = 0; i < q->n; i++) {
        if (q->parts[i].index >= 0) {
            aio_context_unregister_buf(q->ctx, q->parts[i].index);
        }
    }
    free(q->parts);
    q->parts = NULL;
    q->n = 0;
}

/* Makes the parts what the user's buffers are.  Without memory for them there are none. */
static void update_locked(FileFixedQueue *q)
{
    FileFixed *fx = q->fx;
    struct part *parts = NULL;
    unsigned n = 0, max = 0;

    for (unsigned i = 0; i < fx->n; i++) {
        max += (unsigned)((fx->bufs[i].bytes + AIO_BUF_MAX - 1) / AIO_BUF_MAX);
    }
    parts = max ? calloc(max, sizeof(*parts)) : NULL;
    for (unsigned i = 0; parts && i < fx->n; i++) {
        const struct buf *b = &fx->bufs[i];

        for (size_t at = 0; at < b->bytes; at += AIO_BUF_MAX, n++) {
            size_t bytes = b->bytes - at < AIO_BUF_MAX ? b->bytes - at : AIO_BUF_MAX;

            parts[n] = (struct part){ b->base + at, bytes, b->id,
                                      take_index(q, b->id, b->base + at, bytes) };
        }
    }
    drop_parts(q);
    if (n > 0) {
        qsort(parts, n, sizeof(*parts), by_base);
    }
    q->parts = parts;
    q->n = n;
    q->change = fx->change;
}

static void update(void *opaque)
{
    FileFixedQueue *q = opaque;

    if (q->change != ld_acquire(&q->fx->change)) {
        pthread_mutex_lock(&q->fx->lock);
        update_locked(q);
        pthread_mutex_unlock(&q->fx->lock);
    }
}

int blk_file_queue_create(void *state, AioContext *ctx, void **ret_queue)
{
    FileState *s = state;
    FileFixed *fx = s->fixed;
    FileFixedQueue *q;

    *ret_queue = NULL;
    if (!fx || !aio_context_has_ring(ctx)) {
        return 0;
    }
    q = calloc(1, sizeof(*q));
    if (!q) {
        return -ENOMEM;
    }
    q->bh = aio_bh_new(ctx, update, q);
    if (!q->bh) {
        free(q);
        return -ENOMEM;
    }
    q->fx = fx;
    q->ctx = ctx;
    q->fd[0] = s->fd;
    q->fd[1] = s->tail_fd;
    for (int i = 0; i < 2; i++) {
        q->file[i] = q->fd[i] < 0 ? -1 : aio_context_register_file(ctx, q->fd[i]);
    }
    add_fetch_relaxed(&fx->refs, 1);
    pthread_mutex_lock(&fx->lock);
    q->next = fx->queues;
    q->pprev = &fx->queues;
    if (q->next) {
        q->next->pprev = &q->next;
    }
    fx->queues = q;
    update_locked(q);
    pthread_mutex_unlock(&fx->lock);
    *ret_queue = q;
    return 0;
}

void blk_file_queue_destroy(void *queue)
{
    FileFixedQueue *q = queue;

    pthread_mutex_lock(&q->fx->lock);
    *q->pprev = q->next;
    if (q->next) {
        q->next->pprev = q->pprev;
    }
    pthread_mutex_unlock(&q->fx->lock);
    qemu_bh_delete(q->bh);
    drop_parts(q);
    for (int i = 0; i < 2; i++) {
        if (q->file[i] >= 0) {
            aio_context_unregister_file(q->ctx, q->file[i]);
        }
    }
    blk_file_fixed_put(q->fx);
    free(q);
}

/* ---- Operations ------------------------------------------------------------------------------ */

/* The part that holds all of the @bytes at @base; NULL: none does. */
static const struct part *find_part(const FileFixedQueue *q, const char *base, size_t bytes)
{
    unsigned lo = 0, hi = q->n; /* parts below lo begin at base or before it, from hi on after */

    while (lo < hi) {
        unsigned mid = lo + (hi - lo) / 2;

        if (q->parts[mid].base <= base) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (lo == 0) {
        return NULL;
    }
    const struct part *p = &q->parts[lo - 1];

    return p->index >= 0 && bytes <= p->bytes && (size_t)(base - p->base) <= p->bytes - bytes
               ? p
               : NULL;
}

void blk_file_fixed_prep(struct io_uring_sqe *sqe, const BlkPiece *piece)
{
    FileFixedQueue *q = piece->queue;
    int file = q->file[sqe->fd != q->fd[0]];

    if (likely(file >= 0)) {
        sqe->fd = file;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
    if (sqe->opcode == IORING_OP_READ || sqe->opcode == IORING_OP_WRITE) {
        update(q);
        if (q->n) {
            const struct part *p = find_part(q, piece->iov->iov_base, piece->bytes);

            if (p) {
                sqe->opcode =
                    sqe->opcode == IORING_OP_READ ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
                sqe->buf_index = (uint16_t)p->index;
            }
        }
    }
}
