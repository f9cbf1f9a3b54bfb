/* SPDX-License-Identifier: MIT */
/*
 * What a driver is made of: one struct of callbacks, options that the core has parsed, and pieces.
 *
 * The core owns requests, deadlines, alignment, splitting, ranges and statistics.  A driver only
 * moves pieces that keep its limits:
 *
 *   - a read or a write starts at a multiple of request_alignment, and ends at one or at the length
 *     of the backend; it never crosses the last multiple of request_alignment before the length, so
 *     that a last part of odd size (the "tail") comes alone;
 *   - it has at most max_iov buffers and max_transfer bytes; except in the tail its buffers begin
 *     at multiples of memory_alignment and have lengths that are multiples of request_alignment;
 *   - a discard or a zeroing keeps the first rule, but may end with the tail in it and be of any
 *     length.
 *
 * Each request has one piece with the driver at a time, and pieces of one queue are all submitted,
 * cancelled and completed on that queue's home thread, outside any lock.
 *
 *               thread                                     may block
 *   open        any                                        yes
 *   close       any, when no piece is in flight            yes
 *   the rest    home of the queue's context                no
 *   check_context, queue_destroy: any thread; queue_destroy may come after close
 */
#ifndef BLOCK_DRIVER_INT_H
#define BLOCK_DRIVER_INT_H

#include <aioctx/block.h>

/* ---- Options --------------------------------------------------------------------------------- */

typedef enum { BLK_OPT_SWITCH, BLK_OPT_SIZE, BLK_OPT_NUMBER } BlkOptType;

/* One option that a driver takes; a table of them ends with a NULL name. */
typedef struct BlkOptDesc {
    const char *name;
    BlkOptType type;
} BlkOptDesc;

#define BLK_OPTS_MAX 16

/* A parsed spec.  Values are checked against the driver's table already. */
typedef struct BlkOptions {
    char *path; /* decoded; "" when there was none */
    struct {
        const char *name; /* of the table */
        int64_t value;    /* a switch: 0 or 1 */
    } opt[BLK_OPTS_MAX];
    int n;
} BlkOptions;

/* The value of option @name, or @dflt when it was not given. */
int64_t blk_opt_get(const BlkOptions *opts, const char *name, int64_t dflt);
/* Whether option @name was given. */
bool blk_opt_given(const BlkOptions *opts, const char *name);

/* Writes a message for people to *@ret_why, unless that is NULL; *@ret_why is NULL when out of
 * memory.  Returns -@err, so that it can end a function. */
int blk_fail(char **ret_why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ---- Pieces ---------------------------------------------------------------------------------- */

typedef enum { BLK_OP_READ, BLK_OP_WRITE, BLK_OP_FLUSH, BLK_OP_DISCARD, BLK_OP_ZEROES } BlkOp;

/* What a driver is asked to do at once; the driver's own room (piece_size bytes) follows it. */
typedef struct BlkPiece {
    void *state; /* what the driver's open gave */
    void *queue; /* what its queue_create gave */
    int64_t offset;
    uint64_t bytes;
    const struct iovec *iov; /* reads and writes; stays as it is until the piece is done */
    int niov;
    uint32_t flags; /* BDRV_REQ_FUA on writes, BDRV_REQ_MAY_UNMAP on zeroes */
    BlkOp op;
    bool goes_on; /* the one before it ended inside submit: nothing else has had its turn since */
} __attribute__((aligned(16))) BlkPiece;

static inline void *blk_piece_priv(BlkPiece *piece)
{
    return piece + 1;
}

static inline BlkPiece *blk_priv_piece(void *priv)
{
    return (BlkPiece *)priv - 1;
}

/*
 * Gives a piece back to the core, once: bytes moved for a read or a write, 0 for the rest, or
 * -errno.  Less than asked for is continued by the core, 0 is an error there.  -ECANCELED says that
 * a cancel won, -EINTR and -EAGAIN have the core try again, -ENOTSUP of a discard or a zeroing that
 * the core does without it.  May be called inside submit and inside cancel
 * of that piece.
 * Thread: the queue's home; the piece may be submitted again before this returns.
 */
void blk_piece_done(BlkPiece *piece, int64_t ret);

/* ---- Drivers --------------------------------------------------------------------------------- */

typedef struct BlockDriver BlockDriver;
struct BlockDriver {
    const char *name;
    const BlkOptDesc *options; /* its own; read-only, detach and deadline-ns are the core's */
    size_t piece_size;         /* room that it needs in each piece */
    bool takes_path;           /* a spec needs one, else it must have none */

    /* Returns 0 and *@ret_state, or what blk_fail() returns. */
    int (*open)(const BlkOptions *opts, void **ret_state, char **ret_why);
    void (*close)(void *state);
    int64_t (*getlength)(void *state);
    void (*get_limits)(void *state, BlkLimits *ret_limits);
    /* May be NULL: any context will do.  Returns 0 or blk_fail(-ENOTSUP). */
    int (*check_context)(void *state, AioContext *ctx, char **ret_why);

    /* What the driver keeps per context; both may be NULL.  The context goes after queue_destroy;
     * pieces that are in flight then, which the loop has given up on, are never given back. */
    int (*queue_create)(void *state, AioContext *ctx, void **ret_queue);
    void (*queue_destroy)(void *queue);
    /* Hints: @base will be used for transfers.  Both may be NULL.  Any thread. */
    int (*register_buf)(void *state, void *base, size_t bytes);
    void (*unregister_buf)(void *state, void *base, size_t bytes);
    /* Called once for each piece object before its first use and after its last; may be NULL. */
    void (*piece_init)(BlkPiece *piece, AioContext *ctx);
    void (*piece_fini)(BlkPiece *piece);

    /* Takes a piece on; blk_piece_done() follows. */
    void (*submit)(BlkPiece *piece);
    /* Asks to recall a piece that is in flight; blk_piece_done() follows in any case. */
    void (*cancel)(BlkPiece *piece);

    BlockDriver *next; /* the core's */
};

/* Makes a driver known to blk_open() for good.  Thread: any. */
void blk_driver_register(BlockDriver *drv);

extern BlockDriver blk_file_driver, blk_null_driver;

#endif
