/* SPDX-License-Identifier: MIT */
/* Taking requests on: the asynchronous calls of <aioctx/block.h>. */
#include "block/block_int.h"
#include "rcu/probe_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>

/* The flags that each operation takes. */
static inline uint32_t flags_of(BlkOp op)
{
    switch (op) {
    case BLK_OP_WRITE:
        return BDRV_REQ_FUA;
    case BLK_OP_ZEROES:
        return BDRV_REQ_FUA | BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK;
    default:
        return 0;
    }
}

static uint64_t *counter_of(BlkStats *st, BlkOp op)
{
    static const uint8_t at[] = {
        [BLK_OP_READ] = offsetof(BlkStats, reads) / sizeof(uint64_t),
        [BLK_OP_WRITE] = offsetof(BlkStats, writes) / sizeof(uint64_t),
        [BLK_OP_FLUSH] = offsetof(BlkStats, flushes) / sizeof(uint64_t),
        [BLK_OP_DISCARD] = offsetof(BlkStats, discards) / sizeof(uint64_t),
        [BLK_OP_ZEROES] = offsetof(BlkStats, zeroes) / sizeof(uint64_t),
        [BLK_OP_STATUS] = offsetof(BlkStats, statuses) / sizeof(uint64_t),
    };

    return (uint64_t *)st + at[op];
}

/* Shrinks a discard to the whole units in it. */
static void shrink_discard(BlockBackend *blk, BlockAIOCB *req)
{
    int64_t end = req->offset + (int64_t)req->bytes;
    int64_t mask = (int64_t)blk->align_mask;

    if (end < blk->length) {
        end &= ~mask;
    }
    if (req->offset & mask) {
        /* A unit that begins past the tail does not exist. */
        req->offset = req->offset >= blk->tail ? blk->length : (req->offset + mask) & ~mask;
    }
    req->bytes = end > req->offset ? (uint64_t)(end - req->offset) : 0;
}

/* Whether a zeroing has parts of units in it, which only writing can zero. */
static bool has_parts(const BlockBackend *blk, const BlockAIOCB *req)
{
    int64_t end = req->offset + (int64_t)req->bytes;

    return (req->offset & (int64_t)blk->align_mask) ||
           ((end & (int64_t)blk->align_mask) && end != blk->length);
}

static bool is_write(BlkOp op)
{
    return op == BLK_OP_WRITE || op == BLK_OP_DISCARD || op == BLK_OP_ZEROES;
}

/* Returns 0, or what the request ends in without being issued. */
static ALWAYS_INLINE int check(BlockBackend *blk, BlockAIOCB *req, int64_t bytes)
{
    if ((req->flags & ~flags_of(req->op)) || req->offset < 0 || bytes < 0 || bytes > blk->length ||
        req->offset > blk->length - bytes) {
        return -EINVAL;
    }
    if (blk->read_only && is_write(req->op)) {
        return -EPERM;
    }
    if (!req->q->usable) {
        return -ENOTSUP;
    }
    req->bytes = (uint64_t)bytes;
    if (req->op == BLK_OP_DISCARD) {
        shrink_discard(blk, req);
    } else if (req->op == BLK_OP_ZEROES && (req->flags & BDRV_REQ_NO_FALLBACK) &&
               has_parts(blk, req)) {
        return -ENOTSUP;
    }
    return 0;
}

/* Arms the deadline.  Returns 0, or -ETIMEDOUT when it lies in the past. */
static int set_deadline(BlockBackend *blk, BlockAIOCB *req, const BlkReqOpts *opts)
{
    if (opts ? opts->deadline_ns < 0 : blk->deadline_ns == 0) {
        return 0;
    }
    if (opts) {
        req->deadline_ns = opts->deadline_ns;
        if (realtime_has_passed(req->deadline_ns)) {
            return -ETIMEDOUT;
        }
    } else if (__builtin_add_overflow(qemu_clock_get_ns(QEMU_CLOCK_REALTIME), blk->deadline_ns,
                                      &req->deadline_ns)) {
        req->deadline_ns = INT64_MAX - 1;
    }
    req->armed = timer_mod_ns(&req->timer, req->deadline_ns);
    return 0;
}

/* @data: a QEMUIOVector or a BlkExtent. */
static ALWAYS_INLINE void reset(BlockAIOCB *req, BlkOp op, int64_t offset, void *data,
                                uint32_t flags)
{
    req->op = (uint8_t)op;
    req->offset = offset;
    req->qiov = op == BLK_OP_STATUS ? NULL : data;
    if (op == BLK_OP_STATUS) {
        req->extent = data;
    }
    req->flags = flags;
    req->bytes = req->done = req->iov_off = 0;
    req->iov_idx = 0;
    req->deadline_ns = -1;
    req->cancel_ret = 0;
    req->retries = 0;
    if (unlikely(req->q->blk->on_error.any)) {
        req->tries = 0;
    }
    req->stopped = false;
    req->direct = false;
    req->armed = req->rmw_loaded = req->zero_fallback = req->is_split = false;
    req->need_flush = op == BLK_OP_FLUSH;
}

/* Inline, as every caller names an operation, of which all that is not its own is left out. */
static ALWAYS_INLINE BlockAIOCB *submit(BlockBackend *blk, BlkOp op, int64_t offset, int64_t bytes,
                                        void *data, uint32_t flags, BlockCompletionFunc *cb,
                                        void *opaque, const BlkReqOpts *opts)
{
    AioContext *ctx = qemu_get_current_aio_context();
    BlockAIOCB *req;
    BlkQueue *q;
    int ret;

    if (unlikely(!ctx)) {
        errno = EINVAL;
        return NULL;
    }
    q = blk_queue_get(blk, ctx);
    if (unlikely(q && q->closing)) {
        errno = ESHUTDOWN;
        return NULL;
    }
    req = q ? blk_req_alloc(q) : NULL;
    if (unlikely(!req)) {
        errno = ENOMEM;
        return NULL;
    }
    reset(req, op, offset, data, flags);
    req->cb = cb;
    req->opaque = opaque;
    uint64_t *counter = counter_of(&q->stats, op);
    count_own(counter, 1);
    aio_context_count_inflight(ctx, 1);
    probe4(blk_begin, req, op, offset, bytes);

    ret = check(blk, req, bytes);
    if (ret == 0) {
        ret = set_deadline(blk, req, opts);
    }
    if (unlikely(ret < 0)) {
        blk_flight_add(req);
        blk_req_finish(req, ret);
    } else {
        blk_req_issue(req);
    }
    return req;
}

void blk_aio_cancel_async(BlockAIOCB *acb)
{
    blk_req_cancel(acb, -ECANCELED);
}

/* A length that no int64_t holds is one that no backend has. */
static int64_t length_of(const QEMUIOVector *qiov)
{
    return qiov->size > INT64_MAX ? -1 : (int64_t)qiov->size;
}

BlockAIOCB *blk_aio_preadv_opts(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                                BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque,
                                const BlkReqOpts *opts)
{
    return submit(blk, BLK_OP_READ, offset, length_of(qiov), qiov, flags, cb, opaque, opts);
}

BlockAIOCB *blk_aio_pwritev_opts(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                                 BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque,
                                 const BlkReqOpts *opts)
{
    return submit(blk, BLK_OP_WRITE, offset, length_of(qiov), qiov, flags, cb, opaque, opts);
}

BlockAIOCB *blk_aio_flush_opts(BlockBackend *blk, BlockCompletionFunc *cb, void *opaque,
                               const BlkReqOpts *opts)
{
    return submit(blk, BLK_OP_FLUSH, 0, 0, NULL, 0, cb, opaque, opts);
}

BlockAIOCB *blk_aio_pdiscard_opts(BlockBackend *blk, int64_t offset, int64_t bytes,
                                  BlockCompletionFunc *cb, void *opaque, const BlkReqOpts *opts)
{
    return submit(blk, BLK_OP_DISCARD, offset, bytes, NULL, 0, cb, opaque, opts);
}

BlockAIOCB *blk_aio_pwrite_zeroes_opts(BlockBackend *blk, int64_t offset, int64_t bytes,
                                       BdrvRequestFlags flags, BlockCompletionFunc *cb,
                                       void *opaque, const BlkReqOpts *opts)
{
    return submit(blk, BLK_OP_ZEROES, offset, bytes, NULL, flags, cb, opaque, opts);
}

BlockAIOCB *blk_aio_block_status_opts(BlockBackend *blk, int64_t offset, int64_t bytes,
                                      BlkExtent *ret_extent, BlockCompletionFunc *cb, void *opaque,
                                      const BlkReqOpts *opts)
{
    return submit(blk, BLK_OP_STATUS, offset, bytes, ret_extent, 0, cb, opaque, opts);
}

BlockAIOCB *blk_aio_preadv(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                           BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque)
{
    return blk_aio_preadv_opts(blk, offset, qiov, flags, cb, opaque, NULL);
}

BlockAIOCB *blk_aio_pwritev(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                            BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque)
{
    return blk_aio_pwritev_opts(blk, offset, qiov, flags, cb, opaque, NULL);
}

BlockAIOCB *blk_aio_flush(BlockBackend *blk, BlockCompletionFunc *cb, void *opaque)
{
    return blk_aio_flush_opts(blk, cb, opaque, NULL);
}

BlockAIOCB *blk_aio_pdiscard(BlockBackend *blk, int64_t offset, int64_t bytes,
                             BlockCompletionFunc *cb, void *opaque)
{
    return blk_aio_pdiscard_opts(blk, offset, bytes, cb, opaque, NULL);
}

BlockAIOCB *blk_aio_pwrite_zeroes(BlockBackend *blk, int64_t offset, int64_t bytes,
                                  BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque)
{
    return blk_aio_pwrite_zeroes_opts(blk, offset, bytes, flags, cb, opaque, NULL);
}

BlockAIOCB *blk_aio_block_status(BlockBackend *blk, int64_t offset, int64_t bytes,
                                 BlkExtent *ret_extent, BlockCompletionFunc *cb, void *opaque)
{
    return blk_aio_block_status_opts(blk, offset, bytes, ret_extent, cb, opaque, NULL);
}
