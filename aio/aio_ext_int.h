/* SPDX-License-Identifier: MIT */
/*
 * What the aio folder offers to the block folder beside <aioctx/aio.h>.  All of it is for the
 * context's home thread unless a line says otherwise.
 */
#ifndef AIO_AIO_EXT_INT_H
#define AIO_AIO_EXT_INT_H

#include <aioctx/aio.h>

/* Counts a request in flight that is no ring operation; a context that is being destroyed waits
 * until the count is zero.  @n: +1 or -1. */
void aio_context_count_inflight(AioContext *ctx, int n);

/* Called once on the thread that closes the context, when nothing is in flight any more and before
 * the context's memory goes.  Embedded by its owner, which may take it off again. */
typedef struct AioCloseHook AioCloseHook;
struct AioCloseHook {
    void (*func)(AioCloseHook *hook, AioContext *ctx);
    /* May be NULL: called before, on the home thread, when what is in flight took too long: cancel
     * it. */
    void (*cancel)(AioCloseHook *hook, AioContext *ctx);
    AioCloseHook *next, **pprev;
    bool cancelled; /* the loop's */
};
/* Thread: any. */
void aio_context_add_close_hook(AioContext *ctx, AioCloseHook *hook);
/* Thread: any.  Returns false when the hook has been or is being called. */
bool aio_context_del_close_hook(AioContext *ctx, AioCloseHook *hook);

/* aio_cancel_sqe() on a context of the calling thread that need not be its current one. */
int aio_context_cancel_sqe(AioContext *ctx, CqeHandler *handler);

/* Calls a block request's callback on @ctx's home thread, where this_thread.observed is not 0. */
void aio_context_call_observed(AioContext *ctx, void (*cb)(void *opaque, int ret), void *opaque,
                               int ret);

/* Whether aio_add_sqe() works on @ctx.  Thread: any. */
bool aio_context_has_ring(AioContext *ctx);

/*
 * Has @fd's file among those that are registered with the ring, so that operations can name it by
 * the index that is returned (IOSQE_FIXED_FILE); the file stays open until it is unregistered, when
 * no operation uses the index.  @fd may be closed before.
 * Returns the index; -ENOTSUP where the context has no ring; -ENFILE when the table is full; what
 * else the kernel says: whoever gets an error uses the fd.
 */
int aio_context_register_file(AioContext *ctx, int fd);
/* Nothing after the context's close hooks were called. */
void aio_context_unregister_file(AioContext *ctx, int index);

/* The same for memory, which the kernel pins, and which counts against RLIMIT_MEMLOCK (-ENOMEM);
 * @bytes: up to AIO_BUF_MAX.  For IORING_OP_READ_FIXED and _WRITE_FIXED. */
#define AIO_BUF_MAX ((size_t)1 << 30)
int aio_context_register_buf(AioContext *ctx, void *base, size_t bytes);
void aio_context_unregister_buf(AioContext *ctx, int index);

#endif
