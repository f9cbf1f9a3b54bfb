/* SPDX-License-Identifier: MIT */
/* From pieces to NBD's commands, and from answers to results. */
#include <errno.h>

#include "block/nbd/nbd_int.h"

/* The most that one command discards, zeroes or asks the status of: a length has 32 bits. */
#define RANGE_MAX (UINT64_C(1) << 30)

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int completed(void *opaque, int *error)
{
    NbdPiece *np = opaque;

    nbd_conn_answer(np->conn, np, *error);
    return 1; /* libnbd forgets it */
}

/* Only the first extent counts; the others will be asked for. */
static int got_extent(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
                      size_t n, int *error)
{
    NbdPiece *np = opaque;

    if (n >= 2 && np->extent == 0) {
        np->extent = entries[0];
        np->status = entries[1];
    }
    return 0;
}

bool nbd_command_needs_none(const NbdCaps *caps, const BlkPiece *piece, int64_t *ret_ret)
{
    bool lacks = false;

    switch (piece->op) {
    case BLK_OP_FLUSH:
        *ret_ret = 0; /* a server without flush keeps nothing back */
        return !caps->flush;
    case BLK_OP_DISCARD:
        lacks = !caps->trim;
        break;
    case BLK_OP_ZEROES:
        /* Whether a server writes zeroes itself, only one with fast zeroing would say. */
        lacks = !caps->zero || ((piece->flags & BDRV_REQ_NO_FALLBACK) && !caps->fast_zero);
        break;
    case BLK_OP_STATUS:
        lacks = !caps->status;
        break;
    default:
        break;
    }
    *ret_ret = -ENOTSUP;
    return lacks;
}

/* Whole blocks around the range. */
static int64_t issue_status(NbdConn *conn, NbdPiece *np, const BlkPiece *piece,
                            nbd_completion_callback cb)
{
    uint64_t mask = conn->s->caps.min_block - 1, size = (uint64_t)conn->s->caps.size;
    uint64_t start = (uint64_t)piece->offset & ~mask;
    uint64_t end = ((uint64_t)piece->offset + min_u64(piece->bytes, RANGE_MAX) + mask) & ~mask;
    nbd_extent_callback extent = { .callback = got_extent, .user_data = np };

    np->extent = 0;
    end = min_u64(end, size);
    return nbd_aio_block_status(conn->h, end - start, start, extent, cb, LIBNBD_CMD_FLAG_REQ_ONE);
}

static uint32_t zero_flags(uint32_t flags)
{
    return (flags & BDRV_REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
           (flags & BDRV_REQ_NO_FALLBACK ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
}

int nbd_command_issue(NbdConn *conn, NbdPiece *np)
{
    const BlkPiece *piece = blk_priv_piece(np);
    nbd_completion_callback cb = { .callback = completed, .user_data = np };
    uint64_t at = (uint64_t)piece->offset + np->done;
    struct nbd_handle *h = conn->h;
    int64_t ret;

    np->asked = min_u64(piece->bytes - np->done, RANGE_MAX);
    switch (np->flushing ? BLK_OP_FLUSH : (BlkOp)piece->op) {
    case BLK_OP_READ:
        ret = nbd_aio_pread(h, piece->iov[0].iov_base, piece->bytes, at, cb, 0);
        break;
    case BLK_OP_WRITE:
        ret = nbd_aio_pwrite(h, piece->iov[0].iov_base, piece->bytes, at, cb,
                             piece->flags & BDRV_REQ_FUA && conn->s->caps.fua ? LIBNBD_CMD_FLAG_FUA
                                                                              : 0);
        break;
    case BLK_OP_FLUSH:
        ret = nbd_aio_flush(h, cb, 0);
        break;
    case BLK_OP_DISCARD:
        ret = nbd_aio_trim(h, np->asked, at, cb, 0);
        break;
    case BLK_OP_ZEROES:
        ret = nbd_aio_zero(h, np->asked, at, cb, zero_flags(piece->flags));
        break;
    default:
        ret = issue_status(conn, np, piece, cb);
        break;
    }
    return ret >= 0 ? 0 : nbd_get_errno() > 0 ? -nbd_get_errno() : -EIO;
}

/* For how many bytes from the piece's offset on the extent holds, or -EIO. */
static int64_t take_status(const NbdConn *conn, NbdPiece *np, BlkPiece *piece)
{
    int64_t before = piece->offset & (int64_t)(conn->s->caps.min_block - 1);

    if (np->extent <= before) {
        return -EIO; /* a server that does not say */
    }
    piece->status = (np->status & LIBNBD_STATE_HOLE ? 0 : BDRV_BLOCK_DATA) |
                    (np->status & LIBNBD_STATE_ZERO ? BDRV_BLOCK_ZERO : 0);
    return (int64_t)min_u64((uint64_t)(np->extent - before), piece->bytes);
}

bool nbd_command_answered(NbdConn *conn, NbdPiece *np, int error)
{
    BlkPiece *piece = blk_priv_piece(np);

    np->ret = -error;
    if (error) {
        return true;
    }
    switch (piece->op) {
    case BLK_OP_WRITE:
        if ((piece->flags & BDRV_REQ_FUA) && !np->flushing && !conn->s->caps.fua &&
            conn->s->caps.flush) {
            np->flushing = true;
            return false;
        }
        np->ret = (int64_t)piece->bytes;
        return true;
    case BLK_OP_READ:
        np->ret = (int64_t)piece->bytes;
        return true;
    case BLK_OP_DISCARD:
    case BLK_OP_ZEROES:
        np->done += np->asked;
        return np->done >= piece->bytes;
    case BLK_OP_STATUS:
        np->ret = take_status(conn, np, piece);
        return true;
    default:
        return true;
    }
}
