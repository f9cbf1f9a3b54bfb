/* SPDX-License-Identifier: MIT */
/*
 * Writing a driver for the block layer: one struct of callbacks, options that the core has parsed,
 * and pieces.
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
 *     length; a status asks for any range within the length.
 *
 * Each request has one piece with the driver at a time, and pieces of one queue are all submitted,
 * cancelled and completed on that queue's home thread, outside any lock.  So what a driver keeps in
 * its queue needs no lock; what it keeps in its state is shared by all contexts.
 *
 *                    thread                                    may block
 *   open             any                                       yes
 *   close            any, when no piece is in flight           yes
 *   check_context    any                                       no
 *   queue_destroy,   home, or the one that closes the          no
 *   piece_fini       context; they may come after close
 *   the rest         home of the queue's context               no
 *
 * docs/writing-a-driver.md is a walk through examples/ramdisk.c.
 */
#ifndef AIOCTX_BLOCK_DRIVER_H
#define AIOCTX_BLOCK_DRIVER_H

#include <aioctx/block.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Options --------------------------------------------------------------------------------- */

typedef enum {
    BLK_OPT_SWITCH, /* on or off: 1 or 0 */
    BLK_OPT_SIZE,   /* bytes, 1 or more, with a suffix k, M, G or T */
    BLK_OPT_NUMBER, /* a whole number of 0 or more */
    BLK_OPT_STRING,
} BlkOptType;

/* One option that a driver takes; a table of them ends with a NULL name. */
typedef struct BlkOptDesc {
    const char *name; /* small letters, digits and '-' */
    BlkOptType type;
    uint32_t pad;
    const char *help; /* a few words for people, or NULL */
} BlkOptDesc;

/* What a backend was opened with.  Its strings are the core's, and go when open returns. */
typedef struct BlkOptions BlkOptions;

/* The path, decoded; "" when there was none.  Thread: any. */
const char *blk_opts_path(const BlkOptions *opts);

/* The name that the spec has for the driver: its own or one of its aliases.  Thread: any. */
const char *blk_opts_name(const BlkOptions *opts);

/* The value of option @name of the driver's own table, or of read-only, which every driver may ask
 * for; @dflt when it was not given.  Thread: any. */
int64_t blk_opt_get(const BlkOptions *opts, const char *name, int64_t dflt);
const char *blk_opt_get_str(const BlkOptions *opts, const char *name, const char *dflt);

/* Whether option @name was given.  Thread: any. */
bool blk_opt_given(const BlkOptions *opts, const char *name);

/* Writes a message for people to *@ret_why, unless @ret_why is NULL; *@ret_why is NULL when out of
 * memory.  Returns -@err, so that it can end a function.  Thread: any. */
int blk_fail(char **ret_why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ---- Pieces ---------------------------------------------------------------------------------- */

typedef enum {
    BLK_OP_READ,
    BLK_OP_WRITE,
    BLK_OP_FLUSH,
    BLK_OP_DISCARD,
    BLK_OP_ZEROES,
    BLK_OP_STATUS,
} BlkOp;

typedef struct BlockDriver BlockDriver;
typedef struct BlkPiece BlkPiece;

/* What a driver is asked to do at once; the driver's own room (piece_size bytes) follows it.  The
 * driver reads it only, but for `status`. */
struct BlkPiece {
    void *state; /* what the driver's open gave */
    void *queue; /* what its queue_create gave */
    int64_t offset;
    uint64_t bytes;
    const struct iovec *iov; /* reads and writes; stays as it is until the piece is done */
    int32_t niov;
    uint32_t flags;   /* BDRV_REQ_FUA on writes, the other BDRV_REQ_ on zeroes */
    uint32_t op;      /* BlkOp */
    uint32_t status;  /* BLK_OP_STATUS: of BdrvBlockStatus, set by the driver */
    BlkPiece *child;  /* of a filter: the piece for the driver below */
    BlkPiece *parent; /* from here on the core's */
    const BlockDriver *drv;
    struct iovec local_iov;
    uint32_t goes_on; /* the request's piece before this ended inside submit: nothing else on its
                       * context has had its turn since */
    uint32_t pad;
    uint64_t reserved;
} __attribute__((aligned(16)));

/* The driver's room in a piece, and back.  Thread: any. */
static inline void *blk_piece_priv(BlkPiece *piece)
{
    return piece + 1;
}

static inline BlkPiece *blk_priv_piece(void *priv)
{
    return (BlkPiece *)priv - 1;
}

/*
 * Gives a piece back, once: bytes moved for a read or a write, how many bytes from its offset on
 * have the same status, 0 for the rest, or -errno.  Less than asked for is continued by the core; 0
 * is an error there.  -ECANCELED says that a cancel won, -EINTR and -EAGAIN have the core try again
 * (64 times at most), -ENOTSUP of a discard, a zeroing or a status that the core does without it.
 * May be called inside submit and inside cancel of that piece.
 * Thread: the queue's home; the piece may be submitted again before this returns.
 */
void blk_piece_done(BlkPiece *piece, int64_t ret);

/* ---- Filters --------------------------------------------------------------------------------- */

/*
 * A filter is a driver that lies over another: "throttle:iops=1000,file:disk.img".  Each of its
 * pieces comes with one for the driver below.  What the filter does not define is that driver's:
 * length, limits, and every operation whose piece it hands on.
 */

/* A driver below a filter. */
typedef struct BlkNode BlkNode;

/* The driver below, open; NULL for a driver that is no filter.  It lives until the filter's close
 * has returned.  Thread: any. */
BlkNode *blk_opts_child(const BlkOptions *opts);

/* Its length and limits.  Thread: any. */
int64_t blk_node_getlength(const BlkNode *node);
void blk_node_get_limits(const BlkNode *node, BlkLimits *ret_limits);

/*
 * Hands a piece on to the driver below, as it is.  When it has ended, which may be before this
 * returns, the filter's child_done is called, or, without one, the piece is given back with the
 * same result.  So inside submit and cancel only the piece that they are for may be handed on;
 * others from a timer, a bottom half or the like.
 * Thread: the queue's home.
 */
void blk_piece_pass(BlkPiece *piece);

/* The same for the beginning of a read or a write: @bytes at most, more than 0 and a multiple of
 * request_alignment unless that is all.  Thread: the queue's home. */
void blk_piece_pass_part(BlkPiece *piece, uint64_t bytes);

/* Asks to recall what was handed on; child_done or the end of the piece follows in any case.
 * Thread: the queue's home. */
void blk_piece_cancel_child(BlkPiece *piece);

/* ---- Drivers --------------------------------------------------------------------------------- */

/* Of BlockDriver.abi: goes up when a driver built before would no longer work. */
#define BLOCK_DRIVER_ABI 1

struct BlockDriver {
    uint32_t abi;     /* BLOCK_DRIVER_ABI */
    bool takes_path;  /* a spec needs one, else it must have none */
    bool is_filter;   /* lies over another driver; then without a path */
    bool takes_host;  /* NAME://USER@HOST:PORT/EXPORT gives it options user, host, port, export */
    bool detaches;    /* nothing recalls what it has begun: `detach` is always on above it */
    const char *name; /* small letters, digits, '-' and '+' */
    const BlkOptDesc *options; /* its own; those of "any" in <aioctx/block.h> are the core's;
                                * NULL: none */
    size_t piece_size;         /* room that it needs in each piece, bytes */

    /* Returns 0 and *@ret_state, or what blk_fail() returns. */
    int (*open)(const BlkOptions *opts, void **ret_state, char **ret_why);
    void (*close)(void *state);
    /* Bytes; asked once, after open.  In a filter, what the driver below has, or a smaller multiple
     * of its request_alignment. */
    int64_t (*getlength)(void *state);
    /* *@ret_limits holds the least there is at first: alignment 1, transfers of 1 GiB, 1024
     * buffers; or, in a filter, what the driver below has: what is weaker than that is not used. */
    void (*get_limits)(void *state, BlkLimits *ret_limits);
    /* May be NULL: any context will do.  Returns 0 or blk_fail(ENOTSUP). */
    int (*check_context)(void *state, AioContext *ctx, char **ret_why);

    /* What the driver keeps per context; both may be NULL.  Returns 0 or -errno. */
    int (*queue_create)(void *state, AioContext *ctx, void **ret_queue);
    void (*queue_destroy)(void *queue);
    /* Hints: @bytes at @base will be used for transfers, until the second is called; a driver that
     * has more than hints to offer returns -errno where it fails.  Both may be NULL.  Thread:
     * any. */
    int (*register_buf)(void *state, void *base, size_t bytes);
    void (*unregister_buf)(void *state, void *base, size_t bytes);
    /* Called once for each piece object before its first use and after its last; may be NULL. */
    void (*piece_init)(BlkPiece *piece, AioContext *ctx);
    void (*piece_fini)(BlkPiece *piece);

    /* Takes a piece on; blk_piece_done() follows.  An operation that the driver does not have is
     * answered -ENOTSUP. */
    void (*submit)(BlkPiece *piece);
    /* Asks to recall a piece that is in flight; blk_piece_done() follows in any case.  NULL: it
     * cannot be recalled, and ends by itself soon. */
    void (*cancel)(BlkPiece *piece);
    /* Filters: what was handed on has ended with @ret, as in blk_piece_done().  NULL: so does the
     * piece. */
    void (*child_done)(BlkPiece *piece, int64_t ret);
    /* Someone waits for the requests in flight from now on (@begin), or no longer: what is held
     * back for a while, such as by a limit, is to go on at once meanwhile.  Calls do not nest.
     * NULL: nothing is held back.  Thread: any; not called after close has begun. */
    void (*drain)(void *state, bool begin);

    /* Instead of queue_destroy, when the context goes although pieces of the queue are in flight
     * that nothing could recall: the queue's memory stays for them, but nobody may schedule
     * anything on the context from now on.  NULL: nobody would.  Thread: as queue_destroy. */
    void (*queue_abandon)(void *queue);
    /* Nobody will wait much longer for what this queue has in flight: its backend or its context
     * closes, and requests have detached.  Pieces whose cancel was asked for are to come back now,
     * whatever that takes, such as giving a connection up.  NULL: they take the time they take. */
    void (*queue_settle)(void *queue);
    /* More names that specs may have for it, such as "nbds"; ends with NULL.  NULL: none. */
    const char *const *aliases;

    void *reserved[2];
};

/*
 * Makes a driver known to blk_open() for good; @drv is not copied.
 * Returns 0; -EEXIST when there is one of that name; -EINVAL for one that lacks a callback, has a
 * bad name or another abi, and says which on stderr; -ENOMEM.  Thread: any.
 */
int blk_driver_register(const BlockDriver *drv);

/*
 * Loads a shared module, which stays loaded, and registers its driver.  A module defines it with
 * BLOCK_DRIVER_MODULE().  @path without a '/' is looked up as dlopen(3) does.
 * Returns 0, also when the same module was loaded before, or -errno with a message in *@ret_why (as
 * in blk_open()).  *@ret_name, unless @ret_name is NULL, is the driver's name.  Thread: any.
 */
int blk_driver_load(const char *path, const char **ret_name, char **ret_why);

/* At file level in a module: has blk_driver_load() find @drv, a BlockDriver. */
#define BLOCK_DRIVER_MODULE(drv) \
    __attribute__((visibility("default"))) extern const BlockDriver *const aioctx_block_driver; \
    const BlockDriver *const aioctx_block_driver = &(drv)

#ifdef __cplusplus
}
#endif

#endif
