/* SPDX-License-Identifier: MIT */
/*
 * What each command asks for, checked, and done by the export's backend.
 *
 * Most are one request of the backend.  A trim with FUA is a discard and a flush; a block status
 * asks for one extent after the other; a cache reads piece by piece into a buffer that nobody
 * looks at.
 */
#include "nbd/transmit.h"

#include <errno.h>

#include "nbd/error.h"
#include "nbd/server.h"

/* A block status reply is put together in a buffer of this size. */
enum { STATUS_BYTES = 4096, EXTENTS_MAX = (STATUS_BYTES - 4) / 8 };
/* What a cache command reads at once. */
enum { CACHE_BYTES = 256 << 10 };

/* ---- Checks ---------------------------------------------------------------------------------- */

/* The flags of each command, beside FUA, which goes with all. */
static unsigned flags_of(const NbdRequest *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
        return req->conn->structured ? NBD_CMD_FLAG_DF : 0;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_REQ_ONE;
    default:
        return 0;
    }
}

static bool is_write(const NbdRequest *req)
{
    return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_WRITE_ZEROES ||
           req->type == NBD_CMD_TRIM;
}

uint32_t nbd_command_check(const NbdRequest *req)
{
    const NbdConn *conn = req->conn;
    uint64_t size = conn->export->size;

    if (req->type > NBD_CMD_BLOCK_STATUS || req->type == NBD_CMD_DISC ||
        (req->flags & ~(NBD_CMD_FLAG_FUA | flags_of(req)))) {
        return NBD_EINVAL;
    }
    if (req->type == NBD_CMD_FLUSH) {
        return req->offset || req->length ? NBD_EINVAL : 0;
    }
    if (req->type == NBD_CMD_BLOCK_STATUS && (!conn->status || req->length == 0)) {
        return NBD_EINVAL;
    }
    if (is_write(req) && conn->export->read_only) {
        return NBD_EPERM;
    }
    if (req->offset > size || req->length > size - req->offset) {
        return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC
                                                                               : NBD_EINVAL;
    }
    if ((req->type == NBD_CMD_READ || req->type == NBD_CMD_WRITE) &&
        req->length > NBD_TRANSFER_MAX) {
        return NBD_EINVAL;
    }
    return 0;
}

size_t nbd_command_buf_bytes(const NbdRequest *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return req->length;
    case NBD_CMD_BLOCK_STATUS:
        return STATUS_BYTES;
    case NBD_CMD_CACHE:
        return req->length < CACHE_BYTES ? req->length : CACHE_BYTES;
    default:
        return 0;
    }
}

/* ---- The backend's requests ------------------------------------------------------------------ */

static void flight_add(NbdRequest *req)
{
    NbdConn *conn = req->conn;

    req->next = conn->flight;
    req->pprev = &conn->flight;
    if (req->next) {
        req->next->pprev = &req->next;
    }
    conn->flight = req;
}

static void flight_remove(NbdRequest *req)
{
    *req->pprev = req->next;
    if (req->next) {
        req->next->pprev = req->pprev;
    }
    req->acb = NULL;
    req->conn->progress++;
}

/* Notes that the backend has it, or answers when it does not. */
static void taken(NbdRequest *req, BlockAIOCB *acb)
{
    if (!acb) {
        nbd_reply_error(req, nbd_error_of(-errno));
        return;
    }
    req->acb = acb;
    flight_add(req);
}

static void on_read(void *opaque, int ret)
{
    NbdRequest *req = opaque;

    flight_remove(req);
    if (ret < 0) {
        nbd_reply_error(req, nbd_error_of(ret));
    } else {
        nbd_reply_read(req);
    }
}

static void on_done(void *opaque, int ret)
{
    NbdRequest *req = opaque;

    flight_remove(req);
    if (ret < 0) {
        nbd_reply_error(req, nbd_error_of(ret));
    } else {
        nbd_reply_success(req);
    }
}

static void on_zeroed(void *opaque, int ret)
{
    NbdRequest *req = opaque;

    if (ret == -ENOTSUP && (req->flags & NBD_CMD_FLAG_FAST_ZERO)) {
        flight_remove(req);
        nbd_reply_error(req, NBD_ENOTSUP);
        return;
    }
    on_done(req, ret);
}

static BlkReqOpts options_of(const NbdRequest *req)
{
    return (BlkReqOpts){ .deadline_ns = req->deadline_ns };
}

/* NULL: the backend's own deadline. */
#define OPTS(req, storage) \
    ((req)->deadline_ns < 0 ? NULL : (*(storage) = options_of(req), (storage)))

static void flush(NbdRequest *req)
{
    BlkReqOpts opts;

    taken(req, blk_aio_flush_opts(req->conn->export->blk, on_done, req, OPTS(req, &opts)));
}

static void on_trimmed(void *opaque, int ret)
{
    NbdRequest *req = opaque;

    if (ret < 0 || !(req->flags & NBD_CMD_FLAG_FUA)) {
        on_done(req, ret);
        return;
    }
    flight_remove(req);
    flush(req);
}

/* ---- Block status ---------------------------------------------------------------------------- */

static void ask_status(NbdRequest *req);

static uint32_t state_of(uint32_t status)
{
    return (status & BDRV_BLOCK_DATA ? 0 : NBD_STATE_HOLE) |
           (status & BDRV_BLOCK_ZERO ? NBD_STATE_ZERO : 0);
}

/* Adds req->extent to the descriptors, which begin behind the 4 bytes of the context's number. */
static void add_extent(NbdRequest *req)
{
    uint8_t *p = (uint8_t *)req->buf + 4 + 8 * (size_t)req->n_extents;
    uint32_t state = state_of(req->extent.status), bytes = (uint32_t)req->extent.bytes;

    if (req->n_extents > 0 && get_be32(p - 4) == state) {
        put_be32(p - 8, get_be32(p - 8) + bytes);
    } else {
        put_be32(put_be32(p, bytes), state);
        req->n_extents++;
    }
    req->done += bytes;
}

static void on_status(void *opaque, int ret)
{
    NbdRequest *req = opaque;

    flight_remove(req);
    if (ret < 0) {
        nbd_reply_error(req, nbd_error_of(ret));
        return;
    }
    add_extent(req);
    if (req->done == req->length || req->n_extents == EXTENTS_MAX ||
        (req->flags & NBD_CMD_FLAG_REQ_ONE) || req->conn->closing) {
        nbd_reply_status(req);
    } else {
        ask_status(req);
    }
}

static void ask_status(NbdRequest *req)
{
    BlkReqOpts opts;

    taken(req, blk_aio_block_status_opts(req->conn->export->blk, (int64_t)(req->offset + req->done),
                                         (int64_t)(req->length - req->done), &req->extent,
                                         on_status, req, OPTS(req, &opts)));
}

/* ---- Cache ----------------------------------------------------------------------------------- */

static void cache(NbdRequest *req);

static void on_cached(void *opaque, int ret)
{
    NbdRequest *req = opaque;

    flight_remove(req);
    req->done += req->qiov.size;
    if (ret < 0) {
        nbd_reply_error(req, nbd_error_of(ret));
    } else if (req->done == req->length || req->conn->closing) {
        nbd_reply_success(req);
    } else {
        cache(req);
    }
}

static void cache(NbdRequest *req)
{
    uint64_t left = req->length - req->done;
    BlkReqOpts opts;

    qemu_iovec_init_buf(&req->qiov, req->buf, left < req->buf_bytes ? left : req->buf_bytes);
    taken(req, blk_aio_preadv_opts(req->conn->export->blk, (int64_t)(req->offset + req->done),
                                   &req->qiov, 0, on_cached, req, OPTS(req, &opts)));
}

/* ---- Submission ------------------------------------------------------------------------------ */

static void zero(NbdRequest *req)
{
    unsigned flags = (req->flags & NBD_CMD_FLAG_FUA ? BDRV_REQ_FUA : 0) |
                     (req->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : BDRV_REQ_MAY_UNMAP) |
                     (req->flags & NBD_CMD_FLAG_FAST_ZERO ? BDRV_REQ_NO_FALLBACK : 0);
    BlkReqOpts opts;

    taken(req,
          blk_aio_pwrite_zeroes_opts(req->conn->export->blk, (int64_t)req->offset, req->length,
                                     (BdrvRequestFlags)flags, on_zeroed, req, OPTS(req, &opts)));
}

void nbd_command_submit(NbdRequest *req)
{
    BlockBackend *blk = req->conn->export->blk;
    int64_t offset = (int64_t)req->offset, limit_ns = req->conn->server->opt.deadline_ns;
    BlkReqOpts opts;

    if (limit_ns > 0) {
        req->deadline_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + limit_ns;
    }
    if (req->length == 0 && req->type != NBD_CMD_FLUSH) {
        nbd_reply_success(req);
        return;
    }
    switch (req->type) {
    case NBD_CMD_READ:
        qemu_iovec_init_buf(&req->qiov, req->buf, req->length);
        taken(req, blk_aio_preadv_opts(blk, offset, &req->qiov, 0, on_read, req, OPTS(req, &opts)));
        break;
    case NBD_CMD_WRITE:
        qemu_iovec_init_buf(&req->qiov, req->buf, req->length);
        taken(req, blk_aio_pwritev_opts(blk, offset, &req->qiov,
                                        req->flags & NBD_CMD_FLAG_FUA ? BDRV_REQ_FUA : 0, on_done,
                                        req, OPTS(req, &opts)));
        break;
    case NBD_CMD_FLUSH:
        flush(req);
        break;
    case NBD_CMD_TRIM:
        taken(req,
              blk_aio_pdiscard_opts(blk, offset, req->length, on_trimmed, req, OPTS(req, &opts)));
        break;
    case NBD_CMD_CACHE:
        cache(req);
        break;
    case NBD_CMD_WRITE_ZEROES:
        zero(req);
        break;
    default:
        ask_status(req);
        break;
    }
}
