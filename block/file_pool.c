/* SPDX-License-Identifier: MIT */
/*
 * The file driver on a context without a ring, and calls that a ring has not: each piece is a
 * system call on a thread of the pool.
 *
 * A read that the page cache can answer is made at home (RWF_NOWAIT), as a ring does: two threads
 * that wake each other take many times as long as the copy.  But only one piece of a request: the
 * next one is left to a thread, and by the time that is done the loop has gone round.
 *
 * A piece belongs to the driver until it is done, so the thread reads it without a lock.  What a
 * cancel finds not begun is taken back and ends in -ECANCELED; a call that is under way ends in its
 * own result.  When a context closes and has given up on one, the backend may be closed before it
 * is made or has returned: so each keeps the fds open.
 */
#include "block/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "rcu/util_int.h"

#include "rcu/atomic_int.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x2
#endif
#ifndef RWF_HIPRI
#define RWF_HIPRI 0x1
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x8
#endif

/* ---- On a thread of the pool ----------------------------------------------------------------- */

static ssize_t transfer(const BlkPiece *piece)
{
    const FileState *s = piece->state;
    int fd = blk_file_fd(piece);

    if (unlikely(s->poll) && fd == s->fd) {
        int flags = RWF_HIPRI | (piece->flags & BDRV_REQ_FUA ? RWF_DSYNC : 0);

        return piece->op == BLK_OP_READ
                   ? preadv2(fd, piece->iov, piece->niov, piece->offset, flags)
                   : pwritev2(fd, piece->iov, piece->niov, piece->offset, flags);
    }
    if (piece->op == BLK_OP_READ) {
        return preadv(fd, piece->iov, piece->niov, piece->offset);
    }
    if (piece->flags & BDRV_REQ_FUA) {
        return pwritev2(fd, piece->iov, piece->niov, piece->offset, RWF_DSYNC);
    }
    return pwritev(fd, piece->iov, piece->niov, piece->offset);
}

static int discard_device(const BlkPiece *piece)
{
    uint64_t range[2] = { (uint64_t)piece->offset, piece->bytes };

    return ioctl(blk_file_fd(piece), BLKDISCARD, range);
}

/* What lies at the piece's offset, and for how many bytes.  Returns 0 or -errno.
 * Source: lseek(2), SEEK_DATA and SEEK_HOLE. */
static int find_extent(FilePoolPiece *p)
{
    BlkPiece *piece = p->piece;
    const FileState *s = piece->state;
    int64_t end = piece->offset + (int64_t)piece->bytes, next;

    next = lseek(s->fd, piece->offset, SEEK_DATA);
    if (next < 0 && errno != ENXIO) { /* ENXIO: no data from there on */
        return -ENOTSUP;
    }
    piece->status = next == piece->offset ? BDRV_BLOCK_DATA : BDRV_BLOCK_ZERO;
    if (next == piece->offset) {
        next = lseek(s->fd, piece->offset, SEEK_HOLE);
        if (next == piece->offset) {
            return -ENOTSUP; /* discarded in between: say nothing of it */
        }
    }
    p->extent_bytes = (next < 0 || next > end ? end : next) - piece->offset;
    return 0;
}

static int run(PoolWork *work)
{
    FilePoolPiece *p = container_of(work, FilePoolPiece, work);
    const BlkPiece *piece = p->piece;
    const FileState *s = piece->state;
    ssize_t ret;

    switch (piece->op) {
    case BLK_OP_READ:
    case BLK_OP_WRITE:
        ret = transfer(piece);
        break;
    case BLK_OP_FLUSH:
        ret = fdatasync(s->fd);
        break;
    case BLK_OP_STATUS:
        return find_extent(p);
    case BLK_OP_DISCARD:
        if (s->is_device) {
            ret = discard_device(piece);
            break;
        }
        /* fall through */
    default:
        ret = fallocate(s->fd, blk_file_fallocate_mode(piece), piece->offset, (off_t)piece->bytes);
        break;
    }
    return ret < 0 ? -errno : (int)ret; /* no piece is longer than FILE_MAX_TRANSFER */
}

/* ---- At home --------------------------------------------------------------------------------- */

static void done(PoolWork *work, int ret)
{
    FilePoolPiece *p = container_of(work, FilePoolPiece, work);

    blk_file_put(p->piece->state);
    if (p->piece->op == BLK_OP_STATUS && ret == 0) {
        blk_piece_done(p->piece, p->extent_bytes);
    } else {
        blk_piece_done(p->piece, blk_file_result(p->piece, ret));
    }
}

static void lost(PoolWork *work)
{
    blk_file_put(container_of(work, FilePoolPiece, work)->piece->state);
}

/* Whether a read that was limited to the page cache says that it cannot be, not that it went wrong.
 */
static bool is_refusal(int err)
{
    return err == EOPNOTSUPP || err == EINVAL || err == ENOSYS || err == EPERM;
}

/*
 * Reads what is in the page cache already.  Returns a count, or -EAGAIN: a thread has to read, and
 * to say what is wrong, if anything is, or that the file has ended: Linux 5.9 and 5.10 may say so
 * of what is not in the cache.
 * Source: preadv2(2), BUGS.
 */
static int read_cached(const BlkPiece *piece)
{
    FileState *s = piece->state;
    ssize_t ret;

    /* Direct I/O would wait for the disk.  Beside it, a tail is read whole or not at all. */
    if (piece->op != BLK_OP_READ || s->direct || piece->goes_on || ld_relaxed(&s->no_nowait)) {
        return -EAGAIN;
    }
    ret = preadv2(s->fd, piece->iov, piece->niov, piece->offset, RWF_NOWAIT);
    if (ret < 0 && is_refusal(errno)) {
        st_relaxed(&s->no_nowait, true); /* the file system has no such thing, or the kernel */
    }
    return ret <= 0 ? -EAGAIN : (int)ret;
}

void blk_file_pool_submit(FilePoolPiece *p, BlkPiece *piece, AioContext *ctx)
{
    FileState *s = piece->state;
    int ret = read_cached(piece);

    if (ret != -EAGAIN) {
        blk_piece_done(piece, ret);
        return;
    }
    p->piece = piece;
    p->work.func = run;
    p->work.done = done;
    p->work.lost = lost;
    add_fetch_relaxed(&s->refs, 1);
    ret = pool_work_submit(ctx, &p->work);
    if (unlikely(ret < 0)) {
        blk_file_put(s);
        blk_piece_done(piece, ret);
    }
}

void blk_file_pool_cancel(FilePoolPiece *p)
{
    if (pool_work_cancel(&p->work)) {
        blk_file_put(p->piece->state);
        blk_piece_done(p->piece, -ECANCELED);
    }
}
