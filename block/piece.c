/* SPDX-License-Identifier: MIT */
/*
 * Turning a request into pieces that the driver takes as they are.
 *
 * A request has one piece with the driver at a time.  blk_req_step() makes the next one from how
 * far the request has come (`done`), submits it, and goes on while pieces complete at once;
 * results are accounted in take_result().  Since a piece follows from `done` alone, a short
 * transfer is continued and an interrupted one tried again by just making the next piece.
 *
 *   read   as much as the driver takes directly, else an aligned window through the bounce buffer
 *   write  whole units directly, or through the bounce buffer when only the memory does not suit;
 *          a unit that is covered in part is read, changed and written back
 *   zeroes whole units by the driver's own means, or by writing a shared buffer of zeroes; parts
 *   of a
 *          unit as a write
 *
 * A unit is request_alignment bytes; what is left at the end of the backend, the tail, is a unit
 * too.
 */
#include "block/block_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Fallback zeroes: all entries are the same buffer. */
#define ZERO_BUF_BYTES BLK_ALIGN_MAX
#define ZERO_IOV_MAX 16
static const uint8_t zero_buf[ZERO_BUF_BYTES] __attribute__((aligned(4096)));
#define Z \
    { \
        (void *)zero_buf, ZERO_BUF_BYTES \
    }
static const struct iovec zero_iov[ZERO_IOV_MAX] = {
    Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z
};
#undef Z

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The unit around @at. */
static int64_t unit_start(const BlockBackend *blk, int64_t at)
{
    return at & ~(int64_t)blk->align_mask;
}

static int64_t unit_end(const BlockBackend *blk, int64_t at)
{
    return at >= blk->tail ? blk->length : unit_start(blk, at) + (int64_t)blk->align_mask + 1;
}

/* Makes sure that the bounce buffer holds @bytes. */
static int bounce_get(BlockAIOCB *req, size_t bytes)
{
    size_t align = req->q->blk->limits.memory_alignment;
    void *buf;

    if (req->bounce_size >= bytes) {
        return 0;
    }
    free(req->bounce);
    req->bounce = NULL;
    req->bounce_size = 0;
    req->has_bounce = false;
    if (posix_memalign(&buf, align < 4096 ? 4096 : align, bytes) != 0) {
        return -ENOMEM;
    }
    req->bounce = buf;
    req->bounce_size = bytes;
    req->has_bounce = true;
    return 0;
}

/* ---- Making the next piece ------------------------------------------------------------------- */

static int make(BlockAIOCB *req, BlkPieceKind kind, BlkOp op, int64_t offset, uint64_t bytes)
{
    req->piece_kind = (uint8_t)kind;
    req->piece.op = op;
    req->piece.offset = offset;
    req->piece.bytes = bytes;
    req->piece.flags = op == BLK_OP_WRITE ? req->flags & BDRV_REQ_FUA
                       : op == BLK_OP_ZEROES
                           ? req->flags & (BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK)
                           : 0;
    return 1;
}

static int make_bounced(BlockAIOCB *req, BlkPieceKind kind, BlkOp op, int64_t offset,
                        uint64_t bytes)
{
    req->local_iov = (struct iovec){ req->bounce, bytes };
    req->piece.iov = &req->local_iov;
    req->piece.niov = 1;
    /* With detach every piece is bounced, and only what alignment asks for is counted. */
    if (!req->q->blk->detach || kind == BLK_PIECE_RMW_READ) {
        count_own(&req->q->stats.bounced, 1);
    }
    return make(req, kind, op, offset, bytes);
}

static void note_split(BlockAIOCB *req, uint64_t bytes)
{
    if (bytes < req->bytes && !req->is_split) {
        req->is_split = true;
        count_own(&req->q->stats.split, 1);
    }
}

static int next_read(BlockAIOCB *req, int64_t cur, uint64_t left)
{
    BlockBackend *blk = req->q->blk;
    bool tail = cur >= blk->tail;
    int64_t limit = tail ? blk->length : blk->tail;
    uint64_t n = min_u64(left, (uint64_t)(limit - cur));

    if (!blk->detach && !(cur & (int64_t)blk->align_mask) && (!tail || cur + (int64_t)n == limit)) {
        uint64_t direct = blk_iov_direct(req, min_u64(n, blk->limits.max_transfer), !tail);

        if (direct > 0 && (!tail || direct == n)) { /* the tail goes whole */
            note_split(req, direct);
            return make(req, BLK_PIECE_DIRECT, BLK_OP_READ, cur, direct);
        }
    }
    int64_t start = unit_start(blk, cur);
    int64_t end = cur + (int64_t)left >= limit ? limit : unit_end(blk, cur + (int64_t)left - 1);
    uint64_t max =
        blk->limits.max_transfer < BLK_BOUNCE_MAX ? blk->limits.max_transfer : BLK_BOUNCE_MAX;

    n = min_u64((uint64_t)(end - start), max);
    note_split(req, n);
    int ret = bounce_get(req, n);
    return ret < 0 ? ret : make_bounced(req, BLK_PIECE_BOUNCE, BLK_OP_READ, start, n);
}

/* Writes into the part of a unit at @cur: reads the unit first, then puts it back. */
static int next_rmw(BlockAIOCB *req, int64_t cur, uint64_t left)
{
    BlockBackend *blk = req->q->blk;
    int64_t start = unit_start(blk, cur), end = unit_end(blk, cur);
    uint64_t n = min_u64(left, (uint64_t)(end - cur));

    note_split(req, n);
    if (req->rmw_loaded) {
        blk_iov_copy_out(req, (char *)req->bounce + (cur - start), n);
        return make_bounced(req, BLK_PIECE_RMW_WRITE, BLK_OP_WRITE, start, (uint64_t)(end - start));
    }
    int ret = bounce_get(req, (size_t)(end - start));
    return ret < 0
               ? ret
               : make_bounced(req, BLK_PIECE_RMW_READ, BLK_OP_READ, start, (uint64_t)(end - start));
}

/* How many of the @left bytes at @cur are whole units; 0: the unit at @cur is covered in part. */
static uint64_t whole_units(const BlockBackend *blk, int64_t cur, uint64_t left)
{
    int64_t end = cur + (int64_t)left;

    if (cur & (int64_t)blk->align_mask) {
        return 0;
    }
    if (cur >= blk->tail) {
        return end == blk->length ? left : 0;
    }
    return (uint64_t)((end < blk->tail ? unit_start(blk, end) : blk->tail) - cur);
}

static int next_write(BlockAIOCB *req, int64_t cur, uint64_t left)
{
    BlockBackend *blk = req->q->blk;
    uint64_t whole = whole_units(blk, cur, left), n;

    if (whole == 0) {
        return next_rmw(req, cur, left);
    }
    whole = min_u64(whole, blk->limits.max_transfer);
    if (!blk->detach) {
        n = blk_iov_direct(req, whole, cur < blk->tail);
        if (n > 0 && (cur < blk->tail || n == whole)) { /* the tail goes whole */
            note_split(req, n);
            return make(req, BLK_PIECE_DIRECT, BLK_OP_WRITE, cur, n);
        }
    }
    n = min_u64(whole, BLK_BOUNCE_MAX);
    note_split(req, n);
    int ret = bounce_get(req, n);
    if (ret < 0) {
        return ret;
    }
    blk_iov_copy_out(req, req->bounce, n);
    return make_bounced(req, BLK_PIECE_BOUNCE, BLK_OP_WRITE, cur, n);
}

static int next_zeroes(BlockAIOCB *req, int64_t cur, uint64_t left)
{
    BlockBackend *blk = req->q->blk;
    uint64_t whole = whole_units(blk, cur, left);

    if (whole == 0) {
        return next_rmw(req, cur, left);
    }
    if (!req->zero_fallback) {
        note_split(req, whole);
        return make(req, BLK_PIECE_RANGE, BLK_OP_ZEROES, cur, whole);
    }
    whole = min_u64(whole, blk->limits.max_transfer);
    int max = blk->limits.max_iov < ZERO_IOV_MAX ? (int)blk->limits.max_iov : ZERO_IOV_MAX;
    uint64_t niov = min_u64(whole / ZERO_BUF_BYTES, (uint64_t)max);
    if (niov > 0) {
        req->piece.iov = zero_iov;
        req->piece.niov = (int)niov;
        whole = niov * ZERO_BUF_BYTES;
    } else {
        req->local_iov = (struct iovec){ (void *)zero_buf, whole };
        req->piece.iov = &req->local_iov;
        req->piece.niov = 1;
    }
    note_split(req, whole);
    return make(req, BLK_PIECE_ZERO_WRITE, BLK_OP_WRITE, cur, whole);
}

/* Returns 1 when there is a piece to submit, 0 when the request is done, or -errno. */
static int next_piece(BlockAIOCB *req)
{
    int64_t cur = req->offset + (int64_t)req->done;
    uint64_t left = req->bytes - req->done;

    req->piece.iov = NULL;
    req->piece.niov = 0;
    if (left > 0) {
        switch (req->op) {
        case BLK_OP_READ:
            return next_read(req, cur, left);
        case BLK_OP_WRITE:
            return next_write(req, cur, left);
        case BLK_OP_ZEROES:
            return next_zeroes(req, cur, left);
        default:
            return make(req, BLK_PIECE_RANGE, req->op, cur, left);
        }
    }
    return req->need_flush ? make(req, BLK_PIECE_FLUSH, BLK_OP_FLUSH, 0, 0) : 0;
}

/* ---- Results --------------------------------------------------------------------------------- */

/* Accounts @n bytes that were read or written.  Returns 0 or -errno. */
static int take_transfer(BlockAIOCB *req, uint64_t n)
{
    BlockBackend *blk = req->q->blk;
    BlkPiece *piece = &req->piece;
    int64_t cur = req->offset + (int64_t)req->done;

    if (unlikely(n < piece->bytes)) {
        /* Part of a unit cannot be continued; nothing at all is a file that has become shorter. */
        n = piece->offset >= blk->tail && blk->align_mask ? 0 : n & ~blk->align_mask;
        if (n == 0) {
            return -EIO;
        }
        count_own(&req->q->stats.short_transfers, 1);
    }
    must(n <= piece->bytes);
    switch (req->piece_kind) {
    case BLK_PIECE_RMW_READ:
        req->rmw_loaded = true;
        return n == piece->bytes ? 0 : -EIO;
    case BLK_PIECE_RMW_WRITE:
        req->rmw_loaded = false;
        n -= (uint64_t)(cur - piece->offset);
        blk_iov_advance(req, min_u64(n, req->bytes - req->done));
        return 0;
    case BLK_PIECE_BOUNCE:
        if (piece->op == BLK_OP_READ) {
            uint64_t head = (uint64_t)(cur - piece->offset);

            n = min_u64(n - head, req->bytes - req->done);
            blk_iov_copy_in(req, (char *)req->bounce + head, n);
        }
        break;
    default:
        break;
    }
    blk_iov_advance(req, n);
    return 0;
}

/* One answer ends the request, however little it covers. */
static int take_status(BlockAIOCB *req, uint64_t n, uint32_t status)
{
    if (n == 0) {
        return -EIO;
    }
    *req->extent = (BlkExtent){ .offset = req->offset,
                                .bytes = (int64_t)min_u64(n, req->bytes),
                                .status = status };
    req->done = req->bytes;
    return 0;
}

/* Accounts a piece that has gone well.  Returns 0 or -errno. */
static int take_success(BlockAIOCB *req, int64_t n)
{
    switch (req->piece_kind) {
    case BLK_PIECE_RANGE:
        if (req->op == BLK_OP_STATUS) {
            return take_status(req, (uint64_t)n, req->piece.status);
        }
        req->done += req->piece.bytes;
        req->need_flush |= (req->flags & BDRV_REQ_FUA) != 0;
        return 0;
    case BLK_PIECE_FLUSH:
        req->need_flush = false;
        return 0;
    default:
        return take_transfer(req, (uint64_t)n);
    }
}

/* Accounts the error -@n.  Returns 0 when the request goes on all the same, or what it ends in. */
static int take_error(BlockAIOCB *req, int n)
{
    bool again = n == -EINTR || n == -EAGAIN;

    if (req->cancel_ret && (again || n == -ECANCELED)) {
        return req->cancel_ret;
    }
    if (again && req->retries < BLK_RETRIES_MAX) {
        req->retries++;
        return 0;
    }
    if (n == -ENOTSUP && req->piece_kind == BLK_PIECE_RANGE) {
        if (req->op == BLK_OP_STATUS) {
            return take_status(req, req->bytes, BDRV_BLOCK_DATA);
        }
        if (req->op == BLK_OP_DISCARD) {
            req->done = req->bytes; /* it was a hint */
            return 0;
        }
        if (!(req->flags & BDRV_REQ_NO_FALLBACK)) {
            req->zero_fallback = true;
            return 0;
        }
    }
    return n;
}

/* Accounts the piece's result.  Returns whether the request goes on; else it has finished, or is
 * kept for later. */
static bool take_result(BlockAIOCB *req)
{
    int ret;

    if (req->piece_ret < 0) {
        ret = take_error(req, (int)req->piece_ret);
    } else {
        req->retries = 0;
        if (unlikely(req->q->blk->on_error.any)) {
            req->tries = 0;
        }
        ret = take_success(req, req->piece_ret);
    }
    bool more = ret == 0 && (req->done < req->bytes || req->need_flush);
    if (more && req->cancel_ret) {
        ret = req->cancel_ret; /* what is left is not issued */
        more = false;
    }
    if (unlikely(ret < 0)) {
        req->retries = 0;
        if (!req->q->blk->on_error.any || !blk_error_keeps(req, ret)) {
            blk_req_finish(req, ret);
        }
    } else if (!more) {
        blk_req_finish(req, ret);
    }
    return more;
}

/* Goes on with a request in state RUNNING until the driver has a piece or it has finished. */
void blk_req_step(BlockAIOCB *req)
{
    req->piece.goes_on = 0;
    do {
        int ret = next_piece(req);

        if (ret <= 0) {
            blk_req_finish(req, ret);
            return;
        }
        req->piece_busy = true;
        req->submitting = true;
        req->piece.drv->submit(&req->piece);
        req->submitting = false;
        req->piece.goes_on = 1;
    } while (!req->piece_busy && take_result(req));
}

void blk_piece_done(BlkPiece *piece, int64_t ret)
{
    BlockAIOCB *req = container_of(piece, BlockAIOCB, piece);

    if (unlikely(piece->parent)) {
        blk_piece_child_done(piece, ret);
        return;
    }
    must(req->piece_busy);
    req->piece_busy = false;
    req->piece_ret = ret;
    if (req->submitting) {
        return; /* blk_req_step() goes on */
    }
    if (unlikely(req->state != BLK_REQ_RUNNING)) {
        blk_req_settle(req);
        return;
    }
    /* The loop has called the driver, so nobody's submitting call is below: no detour. */
    req->direct = !req->q->cancelling;
    if (take_result(req)) {
        blk_req_step(req);
    }
    if (req->direct && req->state == BLK_REQ_FINISHED) {
        blk_req_end(req, -1);
    } else {
        req->direct = false;
    }
}
