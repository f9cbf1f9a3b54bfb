/* SPDX-License-Identifier: MIT */
/*
 * The block layer: a BlockBackend over a driver, and requests that carry deadlines.
 *
 * A backend may be used from any number of contexts at once.  A request is submitted on the calling
 * thread's current context (qemu_get_current_aio_context()) and completes there, once, never inside
 * the submitting call, and never while the kernel or a library below still owns its buffer.
 *
 *                                       thread                              may block
 *   blk_open, blk_ref, the getters,
 *   blk_register_buf, _unregister_buf   any                                 open: on the disk
 *   blk_unref                           any                                 see there
 *   blk_aio_*                           one with a current context (home)   no
 *   blk_aio_cancel_async                the one that submitted              no
 *   blk_pread and the other sync calls  any                                 yes
 *   blk_drain, blk_drained_begin        any                                 yes
 *   blk_drained_end, qemu_iovec_init_*  any                                 no
 */
#ifndef AIOCTX_BLOCK_H
#define AIOCTX_BLOCK_H

#include <aioctx/aio.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct BlockBackend BlockBackend;
typedef struct BlockAIOCB BlockAIOCB;

/* Called when a request has ended.  @ret: 0, or -errno. */
typedef void BlockCompletionFunc(void *opaque, int ret);

/* ---- I/O vectors ----------------------------------------------------------------------------- */

/* A list of buffers.  Complete, so that it can be embedded; size is the sum of the lengths. */
typedef struct QEMUIOVector {
    struct iovec *iov;
    int niov;
    int pad;
    size_t size;
    struct iovec local_iov; /* for a vector of one buffer */
    uint64_t reserved;
} QEMUIOVector;

/* Makes a vector of one buffer.  The buffer and @qiov are the caller's, and must stay where they
 * are until the request has ended.  Thread: any. */
void qemu_iovec_init_buf(QEMUIOVector *qiov, void *buf, size_t len);

/* Makes a vector over the caller's @iov, which is not copied.  Thread: any. */
void qemu_iovec_init_external(QEMUIOVector *qiov, struct iovec *iov, int niov);

/* ---- Backends -------------------------------------------------------------------------------- */

/*
 * Opens a backend.
 *
 * @spec names a driver and its options: "file:disk.img", "file:///srv/disk.img?direct=on",
 * "null://?size=1G&latency-ns=10000".  A name without a driver is a file; a driver that the library
 * does not have is looked for in a module, docs/backends.md.  Sizes take the suffixes
 * k, M, G and T (powers of 1024); switches take on or off; %XX in a value stands for that byte.  A
 * spec may be JSON instead: {"driver": "file", "path": "disk.img", "direct": true}.
 *
 *   file   direct=on|off (off)      bypass the page cache (O_DIRECT); a file whose size is no
 *                                   multiple of the alignment then opens with read-only=on only
 *          read-only=on|off (off)
 *          create=on|off (off)      make the file when it is not there; needs size
 *          size=N                   with create: the size to make or extend the file to
 *          registered=on|off (off)  register the file, and buffers of blk_register_buf(), with the
 *                                   rings: for a little less work with each request.  The file then
 *                                   stays open until each context that has used it has polled once
 *                                   after the backend was closed
 *          poll=on|off (off)        with direct=on, on a device that has queues to poll: a thread
 *                                   of the pool polls for the end of each transfer
 *          locking=auto|on|off (auto)
 *                                   a writer excludes all others that open the file, a reader
 *                                   (read-only=on) writers; auto: where files can be locked
 *          share=on|off (off)       with read-only=on: reads beside a writer
 *          detach=on|off (off)      see below
 *   null   size=N (1G)              reads give zeroes, writes are dropped
 *          latency-ns=N (0)         each request takes that long, measured by a timer
 *          read-only=on|off (off)
 *          detach=on|off (off)      see below
 *   nbd    a client for NBD servers, in a module: "nbd://host:10809/export"; docs/backends.md
 *   throttle, blkdebug              filters, which lie over another driver:
 *                                   "throttle:iops=1000,file:disk.img"; docs/backends.md
 *   any    deadline-ns=N (0)        every request without a deadline of its own gets this one,
 *                                   counted from its submission; 0: none
 *          on-error=report|stop|enospc|retry (report), on-read-error, on-write-error,
 *          retry-delay-ms=N (1000), retry-limit=N (0): see "Errors" below
 *          close-timeout-ms=N (10000)
 *                                   see blk_unref()
 *
 * detach: requests use buffers of the library's own, so that a request whose deadline passes or
 * that is cancelled ends at once even where the kernel cannot recall it.  The range of such a write
 * is indeterminate, and writes that overlap it wait until it has settled.
 *
 * Returns NULL and a message for people in *@ret_why (to be freed; NULL when out of memory;
 * @ret_why may be NULL), which names the option and the accepted values; errno is set too: EINVAL
 * for a bad spec, EBUSY for a file that another has locked, that of open(2), ENOMEM.  A file is
 * created sparse: a disk that is full shows at a write.
 * Thread: any; blocks on the file system.  Lifetime: one reference, given back with blk_unref().
 */
BlockBackend *blk_open(const char *spec, char **ret_why);

/* Takes a reference.  Thread: any. */
void blk_ref(BlockBackend *blk);

/*
 * Gives a reference back.  The last one closes the backend once its requests have ended: it waits
 * for them, unless called below a callback on a home thread, where the last request to end closes
 * it.  What detached requests have left behind counts as well.  Errors are reported meanwhile, be
 * the backend stopped or not, and after close-timeout-ms what is left is cancelled, which is said
 * on stderr; what cannot be recalled is waited for.  The last reference must not go inside a
 * drained section: aborts.  NULL is ignored.  Thread: any.
 */
void blk_unref(BlockBackend *blk);

/* The size in bytes.  Thread: any. */
int64_t blk_getlength(BlockBackend *blk);

/* The driver's name, such as "file".  Thread: any. */
const char *blk_get_driver_name(BlockBackend *blk);

/* Whether writes are refused.  Thread: any. */
bool blk_is_read_only(BlockBackend *blk);

typedef struct BlkLimits {
    uint32_t request_alignment; /* offset and length that need no bouncing, bytes, a power of 2 */
    uint32_t memory_alignment;  /* of buffers that need no bouncing */
    uint32_t max_transfer;      /* longest piece that goes to the driver at once, bytes */
    uint32_t max_iov;           /* most buffers in one piece */
    uint64_t reserved[4];
} BlkLimits;

/* What the driver takes as it is; the rest is split and bounced.  Thread: any. */
void blk_get_limits(BlockBackend *blk, BlkLimits *ret_limits);

/*
 * Whether the backend can be used on @ctx.  The library's own drivers can on any: without a ring,
 * the file driver's calls run on the thread pool (<aioctx/thread_pool.h>).
 * Returns 0, or -ENOTSUP with a message in *@ret_why (as in blk_open()) that says why.
 * Thread: any.
 */
int blk_check_context(BlockBackend *blk, AioContext *ctx, char **ret_why);

/*
 * Tells that the @size bytes at @host will often be read into and written from, so that a driver
 * may prepare for it: the file driver with registered=on has them registered with each ring that
 * uses the backend, and their pages pinned in memory; requests of one buffer that lies within them
 * then cost less.  It is a hint: whatever the kernel refuses (RLIMIT_MEMLOCK) goes as before.
 * Returns 0, also when the driver has no use for it; -EINVAL for no memory; -EEXIST when some of it
 * is registered with @blk already; -ENOMEM.
 * Thread: any.  Lifetime: until blk_unregister_buf() the memory must neither be unmapped nor get
 * other pages (mremap(2), MADV_DONTNEED).
 */
int blk_register_buf(BlockBackend *blk, void *host, size_t size);

/*
 * Takes that back, for the same range; one that is not registered is left alone.  No request of
 * @blk may be using the memory, which may be freed when this returns; the contexts that have used
 * it let go of its pages with their next iteration.  Closing the backend takes back all.
 * Thread: any.
 */
void blk_unregister_buf(BlockBackend *blk, void *host, size_t size);

/* ---- Requests -------------------------------------------------------------------------------- */

typedef enum {
    BDRV_REQ_FUA = 1 << 0,       /* writes: on stable storage when it ends */
    BDRV_REQ_MAY_UNMAP = 1 << 1, /* write zeroes: the range may be deallocated */
    BDRV_REQ_NO_FALLBACK =
        1 << 2, /* write zeroes: -ENOTSUP rather than writing buffers of zeroes */
} BdrvRequestFlags;

/* Options of one request.  Zero it first, then set deadline_ns: 0 lies in the past. */
typedef struct BlkReqOpts {
    int64_t deadline_ns; /* in QEMU_CLOCK_REALTIME; below zero: none, not even the backend's */
    uint64_t reserved[3];
} BlkReqOpts;

/*
 * Reads into, or writes from, @qiov at @offset bytes; qiov->size is the length.  @flags: of
 * BdrvRequestFlags.  The _opts forms take a deadline; @opts NULL: the backend's.
 *
 * @cb(@opaque, ret) ends the request: 0; -EINVAL for a range outside the backend, a negative
 * offset or an unknown flag; -EPERM for a write to a read-only backend; -ENOTSUP for a driver that
 * cannot run on this context (blk_check_context()) or cannot do it; -ETIMEDOUT when the deadline
 * passed and the cancel won (or the deadline lay in the past: then nothing was issued); -ECANCELED
 * when blk_aio_cancel_async() won; else what the driver says: -EIO, -ENOSPC and so on, -EAGAIN when
 * no thread could be started that it needs.
 *
 * Returns a handle for blk_aio_cancel_async(), valid until @cb is called.  NULL: @cb is not called,
 * and errno says why: ENOMEM; EINVAL without a current context; ESHUTDOWN when that is closing and
 * has begun to cancel.
 * Thread: one with a current context.  Lifetime: @qiov and its buffers belong to the request until
 * @cb is called.  The backend must not be unreferenced for the last time before the call returns.
 */
BlockAIOCB *blk_aio_preadv(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                           BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque);
BlockAIOCB *blk_aio_preadv_opts(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                                BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque,
                                const BlkReqOpts *opts);
BlockAIOCB *blk_aio_pwritev(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                            BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque);
BlockAIOCB *blk_aio_pwritev_opts(BlockBackend *blk, int64_t offset, QEMUIOVector *qiov,
                                 BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque,
                                 const BlkReqOpts *opts);

/* Makes every write that has ended durable.  The rest is as above. */
BlockAIOCB *blk_aio_flush(BlockBackend *blk, BlockCompletionFunc *cb, void *opaque);
BlockAIOCB *blk_aio_flush_opts(BlockBackend *blk, BlockCompletionFunc *cb, void *opaque,
                               const BlkReqOpts *opts);

/* Tells that the @bytes at @offset are not needed: they may read as anything old or as zeroes.
 * What is not aligned is left as it is.  The rest is as above. */
BlockAIOCB *blk_aio_pdiscard(BlockBackend *blk, int64_t offset, int64_t bytes,
                             BlockCompletionFunc *cb, void *opaque);
BlockAIOCB *blk_aio_pdiscard_opts(BlockBackend *blk, int64_t offset, int64_t bytes,
                                  BlockCompletionFunc *cb, void *opaque, const BlkReqOpts *opts);

/* Makes the @bytes at @offset read as zeroes, by the driver's own means or by writing them. */
BlockAIOCB *blk_aio_pwrite_zeroes(BlockBackend *blk, int64_t offset, int64_t bytes,
                                  BdrvRequestFlags flags, BlockCompletionFunc *cb, void *opaque);
BlockAIOCB *blk_aio_pwrite_zeroes_opts(BlockBackend *blk, int64_t offset, int64_t bytes,
                                       BdrvRequestFlags flags, BlockCompletionFunc *cb,
                                       void *opaque, const BlkReqOpts *opts);

/* Of BlkExtent.status.  None: nobody has written there, and it may read as anything. */
typedef enum {
    BDRV_BLOCK_DATA = 1 << 0, /* takes room */
    BDRV_BLOCK_ZERO = 1 << 1, /* reads as zeroes */
} BdrvBlockStatus;

typedef struct BlkExtent {
    int64_t offset, bytes;
    uint32_t status; /* of BdrvBlockStatus */
    uint32_t pad;
    uint64_t reserved;
} BlkExtent;

/*
 * Asks what is in the @bytes at @offset.  *@ret_extent then begins at @offset and is at least one
 * byte long, @bytes at most; what follows it may have the same status.  A driver that does not know
 * says that all is data.  @bytes 0 leaves *@ret_extent alone.  The rest is as above.
 */
BlockAIOCB *blk_aio_block_status(BlockBackend *blk, int64_t offset, int64_t bytes,
                                 BlkExtent *ret_extent, BlockCompletionFunc *cb, void *opaque);
BlockAIOCB *blk_aio_block_status_opts(BlockBackend *blk, int64_t offset, int64_t bytes,
                                      BlkExtent *ret_extent, BlockCompletionFunc *cb, void *opaque,
                                      const BlkReqOpts *opts);

/*
 * Asks for a request to be cancelled.  Its callback follows in any case: with -ECANCELED when the
 * cancel won, else with its own result.
 * Thread: the one that submitted it, before its callback is called.
 */
void blk_aio_cancel_async(BlockAIOCB *acb);

/*
 * The same, waiting for the result: 0 or -errno.  On a home thread they poll its context
 * meanwhile; from a plain thread an iothread that the backend keeps for this serves them.
 * Thread: any; blocks.
 */
int blk_pread(BlockBackend *blk, int64_t offset, int64_t bytes, void *buf, BdrvRequestFlags flags);
int blk_pwrite(BlockBackend *blk, int64_t offset, int64_t bytes, const void *buf,
               BdrvRequestFlags flags);
int blk_flush(BlockBackend *blk);
int blk_pdiscard(BlockBackend *blk, int64_t offset, int64_t bytes);
int blk_pwrite_zeroes(BlockBackend *blk, int64_t offset, int64_t bytes, BdrvRequestFlags flags);
int blk_block_status(BlockBackend *blk, int64_t offset, int64_t bytes, BlkExtent *ret_extent);

/* ---- Errors ---------------------------------------------------------------------------------- */

/*
 * What an error of the driver leads to is said by on-error, or for reads (and status) and for what
 * writes by itself by on-read-error and on-write-error:
 *
 *   report   the request ends with it
 *   retry    the failed part is tried again after retry-delay-ms, retry-limit times in a row (0:
 *            for ever) before the error is reported
 *   stop     the request is held back, and with it all that come after it on any context, until
 *            blk_resume(); then it goes on where it failed.  What is in flight already goes on, and
 *            is held back when it fails
 *   enospc   stop when the disk is full (-ENOSPC, -EDQUOT), else report; not for reads
 *
 * Requests keep their deadlines meanwhile and can be cancelled.  Flushes are always reported: what
 * the kernel could not write it forgets, and the next flush would say that all is well.  So is what
 * is refused before it reaches the driver, and -ENOTSUP.
 */

/*
 * Called when a backend has stopped, once each time.  @ret: the error, -errno.  It may resume the
 * backend.
 * Thread: the home of the context whose request failed, from its loop.
 */
typedef void BlkStopFunc(void *opaque, int ret);

/* Sets what is called when @blk stops; NULL: nothing.  A stop that has come before is not told: see
 * blk_get_stop().  What was set before may still be running when this returns.  Thread: any. */
void blk_set_stop_cb(BlockBackend *blk, BlkStopFunc *cb, void *opaque);

/* Why the backend is stopped: -errno, or 0 when it is not.  Thread: any. */
int blk_get_stop(BlockBackend *blk);

/* Has a stopped backend go on, on each context with what failed first.  Returns whether it was
 * stopped.  Thread: any. */
bool blk_resume(BlockBackend *blk);

/* ---- Draining -------------------------------------------------------------------------------- */

/*
 * Waits until every request submitted before, on any context, has ended, its callback included.
 * Requests whose callback is on the caller's own stack are not waited for, nor are those that a
 * drained section holds back, nor pieces that detached requests have left behind.  Those that are
 * being retried are waited for.
 * Returns 0; -EBUSY when the backend is stopped (blk_get_stop()) and holds requests back: those
 * were not waited for; -EDEADLK when called below a callback on a home thread while requests of
 * another context are in flight: those were not waited for.
 * Thread: any; blocks.  On a home thread it polls that context.
 */
int blk_drain(BlockBackend *blk);

/*
 * The same, until the moment @until_ns of QEMU_CLOCK_REALTIME at the latest.
 * Returns as blk_drain(), or -ETIMEDOUT when requests are left then.  Thread: as blk_drain().
 */
int blk_drain_until(BlockBackend *blk, int64_t until_ns);

/*
 * Holds new requests back on all contexts and waits as blk_drain() does; requests submitted until
 * the matching blk_drained_end() are issued then, in order; their deadlines count meanwhile.  Calls
 * nest.  A synchronous call inside the section waits for its end: not by the thread that ends it.
 * Returns as blk_drain(); new requests are held back in any case.  Thread: any; blocks.
 */
int blk_drained_begin(BlockBackend *blk);

/* Ends a drained section.  Thread: any. */
void blk_drained_end(BlockBackend *blk);

/* ---- Statistics ------------------------------------------------------------------------------ */

typedef struct BlkStats {
    uint64_t reads, writes, flushes, discards, zeroes; /* requests submitted */
    uint64_t bytes_read, bytes_written;                /* by requests that ended well */
    uint64_t failed;          /* requests that ended with an error, the next two included */
    uint64_t timed_out;       /* ended with -ETIMEDOUT */
    uint64_t cancelled;       /* ended with -ECANCELED */
    uint64_t late;            /* ended with another result after their deadline */
    uint64_t detached;        /* ended by detach while the kernel still had the operation */
    uint64_t settled;         /* of these: have since left the kernel */
    uint64_t bounced;         /* pieces that went through a bounce buffer for alignment */
    uint64_t split;           /* requests that were cut into pieces */
    uint64_t short_transfers; /* pieces that had to be continued */
    uint64_t statuses;        /* requests submitted */
    uint64_t retried;         /* pieces that were made again after an error */
    uint64_t stopped;         /* times that a request was held back by a stop */
    uint64_t reserved[5];
} BlkStats;

/* Sums the backend's counters over its contexts.  Each is exact, but they are not of one moment.
 * Thread: any. */
void blk_get_stats(BlockBackend *blk, BlkStats *ret_stats);

#ifdef __cplusplus
}
#endif

#endif
