/* SPDX-License-Identifier: MIT */
/*
 * The file driver: one ring operation per piece; on a context without a ring, and for what rings
 * have no operation for, one call on the thread pool (file_pool.c).
 *
 * Opening is in file_open.c.  Buffers, requests and retries are the core's; here a completion is
 * only translated.
 */
#include "block/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>

#include "aio/aio_ext_int.h"
#include "rcu/util_int.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x2
#endif

/* In the room of each piece. */
typedef struct FilePiece {
    CqeHandler cqe;
    AioContext *ctx;
    bool has_ring; /* ctx has one */
    bool on_pool;  /* where the piece is */
    FilePoolPiece pool;
} FilePiece;

static const BlkOptDesc file_options[] = {
    { "direct", BLK_OPT_SWITCH }, { "create", BLK_OPT_SWITCH },
    { "size", BLK_OPT_SIZE },     { "registered", BLK_OPT_SWITCH },
    { "poll", BLK_OPT_SWITCH },   { "locking", BLK_OPT_STRING, .help = "auto, on or off" },
    { "share", BLK_OPT_SWITCH },  { NULL },
};

/* A piece this long keeps the loop busy for no more than some 400 us when it is copied from the
 * cache. */
enum { FILE_MAX_TRANSFER = 4 << 20, FILE_MAX_IOV = 1024 };

static int64_t file_getlength(void *state)
{
    return ((FileState *)state)->length;
}

static void file_get_limits(void *state, BlkLimits *ret_limits)
{
    FileState *s = state;

    *ret_limits = (BlkLimits){ .request_alignment = s->offset_align,
                               .memory_alignment = s->memory_align,
                               .max_transfer = FILE_MAX_TRANSFER,
                               .max_iov = FILE_MAX_IOV };
}

/*
 * ThreadSanitizer does not see the kernel write into a buffer: tell it.  A thread that looks at the
 * buffer before the request has ended is then reported.
 */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
void __tsan_write_range(void *addr, long size);

static void tell_tsan(const BlkPiece *piece)
{
    for (int i = 0; piece->op == BLK_OP_READ && i < piece->niov; i++) {
        __tsan_write_range(piece->iov[i].iov_base, (long)piece->iov[i].iov_len);
    }
}
#else
static void tell_tsan(const BlkPiece *piece)
{
}
#endif

/* ---- Completion ------------------------------------------------------------------------------ */

/* Whether fallocate() says that this file has no such operation, rather than that it went wrong. */
static bool is_unsupported(const BlkPiece *piece, int res)
{
    const FileState *s = piece->state;

    /* A device says EINVAL of a range that does not suit its own sectors. */
    return res == -EOPNOTSUPP || res == -ENOSYS || res == -ENODEV ||
           (res == -EINVAL && s->is_device);
}

int blk_file_result(const BlkPiece *piece, int res)
{
    return (piece->op == BLK_OP_DISCARD || piece->op == BLK_OP_ZEROES) && res < 0 &&
                   is_unsupported(piece, res)
               ? -ENOTSUP
               : res;
}

static void file_done(CqeHandler *cqe)
{
    BlkPiece *piece = blk_priv_piece(cqe);

    if (likely(cqe->res >= 0)) {
        tell_tsan(piece);
    }
    blk_piece_done(piece, blk_file_result(piece, cqe->res));
}

/* ---- Submission ------------------------------------------------------------------------------ */

int blk_file_fd(const BlkPiece *piece)
{
    const FileState *s = piece->state;

    return unlikely(s->tail_fd >= 0) && piece->offset >= s->tail ? s->tail_fd : s->fd;
}

static void prep_rw(struct io_uring_sqe *sqe, BlkPiece *piece)
{
    int fd = blk_file_fd(piece);
    uint64_t offset = (uint64_t)piece->offset;

    if (likely(piece->niov == 1)) {
        void *base = piece->iov->iov_base;

        if (piece->op == BLK_OP_READ) {
            io_uring_prep_read(sqe, fd, base, (unsigned)piece->bytes, offset);
        } else {
            io_uring_prep_write(sqe, fd, base, (unsigned)piece->bytes, offset);
        }
    } else if (piece->op == BLK_OP_READ) {
        io_uring_prep_readv(sqe, fd, piece->iov, (unsigned)piece->niov, offset);
    } else {
        io_uring_prep_writev(sqe, fd, piece->iov, (unsigned)piece->niov, offset);
    }
    if (piece->flags & BDRV_REQ_FUA) {
        sqe->rw_flags = RWF_DSYNC;
    }
}

int blk_file_fallocate_mode(const BlkPiece *piece)
{
    bool punch = piece->op == BLK_OP_DISCARD || (piece->flags & BDRV_REQ_MAY_UNMAP);

    return FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

static void prep_fallocate(struct io_uring_sqe *sqe, BlkPiece *piece)
{
    FileState *s = piece->state;

    io_uring_prep_fallocate(sqe, s->fd, blk_file_fallocate_mode(piece), piece->offset,
                            (off_t)piece->bytes);
}

static void file_prep(struct io_uring_sqe *sqe, void *opaque)
{
    BlkPiece *piece = opaque;
    FileState *s = piece->state;

    switch (piece->op) {
    case BLK_OP_READ:
    case BLK_OP_WRITE:
        prep_rw(sqe, piece);
        break;
    case BLK_OP_FLUSH:
        io_uring_prep_fsync(sqe, s->fd, IORING_FSYNC_DATASYNC);
        break;
    default:
        prep_fallocate(sqe, piece);
        break;
    }
    if (piece->queue) {
        blk_file_fixed_prep(sqe, piece);
    }
}

static void file_piece_init(BlkPiece *piece, AioContext *ctx)
{
    FilePiece *fp = blk_piece_priv(piece);

    fp->ctx = ctx;
    fp->has_ring = aio_context_has_ring(ctx);
}

/* A device is told of a discard by an ioctl: fallocate() would have it read as zeroes after, which
 * many cannot do.  For the status, a ring has nothing. */
static bool needs_pool(const FilePiece *fp, const BlkPiece *piece)
{
    const FileState *s = piece->state;

    return !fp->has_ring || piece->op == BLK_OP_STATUS ||
           (piece->op == BLK_OP_DISCARD && s->is_device) ||
           (unlikely(s->poll) && (piece->op == BLK_OP_READ || piece->op == BLK_OP_WRITE));
}

/* Called with the piece's context as the current one; cancel need not be. */
static void file_submit(BlkPiece *piece)
{
    FilePiece *fp = blk_piece_priv(piece);
    int ret;

    fp->on_pool = needs_pool(fp, piece);
    if (unlikely(fp->on_pool)) {
        blk_file_pool_submit(&fp->pool, piece, fp->ctx);
        return;
    }
    fp->cqe = (CqeHandler){ .cb = file_done };
    ret = aio_add_sqe(file_prep, piece, &fp->cqe);
    if (unlikely(ret < 0)) {
        blk_piece_done(piece, ret);
    }
}

static void file_cancel(BlkPiece *piece)
{
    FilePiece *fp = blk_piece_priv(piece);

    if (unlikely(fp->on_pool)) {
        blk_file_pool_cancel(&fp->pool);
        return;
    }
    /* When it cannot be queued the operation just runs to its end. */
    (void)aio_context_cancel_sqe(fp->ctx, &fp->cqe);
}

const BlockDriver blk_file_driver = {
    .abi = BLOCK_DRIVER_ABI,
    .name = "file",
    .options = file_options,
    .piece_size = sizeof(FilePiece),
    .takes_path = true,
    .open = blk_file_open,
    .close = blk_file_close,
    .getlength = file_getlength,
    .get_limits = file_get_limits,
    .queue_create = blk_file_queue_create,
    .queue_destroy = blk_file_queue_destroy,
    .queue_abandon = blk_file_queue_destroy,
    .register_buf = blk_file_register_buf,
    .unregister_buf = blk_file_unregister_buf,
    .piece_init = file_piece_init,
    .submit = file_submit,
    .cancel = file_cancel,
};
