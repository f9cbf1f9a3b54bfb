/* SPDX-License-Identifier: MIT */
/*
 * The core's own structs.  README.md in this folder has the invariants, the states of a request and
 * the lock order; who may touch a field is said beside it:
 *   "home": only the home thread of the queue's context;
 *   "home w": written there, read anywhere, atomic;
 *   "lock": under BlockBackend.lock;  "fixed": never changes once others can see it.
 */
#ifndef BLOCK_BLOCK_INT_H
#define BLOCK_BLOCK_INT_H

#include <aioctx/block.h>
#include <assert.h>
#include <pthread.h>
#include <stddef.h>

#include "aio/aio_ext_int.h"
#include "block/node_int.h"
#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

typedef struct BlkQueue BlkQueue;

/* ---- Ranges (serialise.c) -------------------------------------------------------------------- */

typedef enum {
    BLK_RANGE_NONE,
    BLK_RANGE_FAST,   /* counted in its queue's fast_writes, in no list */
    BLK_RANGE_LISTED, /* in the backend's list */
} BlkRangeKind;

typedef struct BlkRange {
    int64_t start, end;           /* home: set before it is listed */
    struct BlkRange *next, *prev; /* lock: the backend's list, oldest first */
    BlockAIOCB *ready_next;       /* lock: the queue's ready list */
    unsigned blockers;            /* lock: older ranges that it waits for */
    bool serialising;             /* lock: waits for, and holds up, all that overlap */
    bool active;                  /* lock: granted */
    bool ready;                   /* lock: granted, and its home has not taken it up yet */
    uint8_t kind;                 /* home: BlkRangeKind */
} BlkRange;

/* ---- Requests (request.c, piece.c) ----------------------------------------------------------- */

typedef enum {
    BLK_REQ_FREE,
    BLK_REQ_HELD,     /* in the queue's held list: a drained section, or a stop */
    BLK_REQ_WAITING,  /* for its range */
    BLK_REQ_RUNNING,  /* a piece is with the driver, or about to be */
    BLK_REQ_RETRYING, /* in the queue's retry list: a piece failed and is made again later */
    BLK_REQ_FINISHED, /* the result is known; in the queue's finished list */
    BLK_REQ_CALLING,  /* inside its callback */
    BLK_REQ_DETACHED, /* called back; the driver still has the piece, in buffers of ours */
} BlkReqState;

/* What the piece in flight is for. */
typedef enum {
    BLK_PIECE_DIRECT,     /* between the caller's buffers and the driver */
    BLK_PIECE_BOUNCE,     /* through the bounce buffer */
    BLK_PIECE_RMW_READ,   /* fetches the unit that a write covers in part */
    BLK_PIECE_RMW_WRITE,  /* puts it back, changed */
    BLK_PIECE_ZERO_WRITE, /* zeroes from a shared buffer of zeroes */
    BLK_PIECE_RANGE,      /* discard or zeroes by the driver's own means */
    BLK_PIECE_FLUSH,
} BlkPieceKind;

/* A request.  All of it belongs to the home thread, but for range. */
struct BlockAIOCB {
    /* What every request goes through, in two cache lines. */
    BlkQueue *q;             /* fixed */
    BlockAIOCB *next, *prev; /* in-flight list or held list; next alone: free list */
    uint64_t seq;            /* order of issue */
    BlockCompletionFunc *cb;
    void *opaque;
    QEMUIOVector *qiov; /* reads and writes */
    int64_t offset;
    uint64_t bytes;
    uint64_t done;       /* of bytes */
    uint64_t iov_off;    /* where done is in qiov: this many bytes into */
    int64_t deadline_ns; /* -1: none */
    int64_t piece_ret;
    int iov_idx;    /* of iov_off: this buffer */
    int cancel_ret; /* what it ends in when the cancel wins; 0: nobody asked */
    uint32_t flags; /* BdrvRequestFlags */
    int ret;
    uint8_t op;             /* BlkOp */
    uint8_t state;          /* BlkReqState */
    uint8_t piece_kind;     /* BlkPieceKind */
    uint8_t retries;        /* of this piece after -EINTR or -EAGAIN */
    bool piece_busy;        /* the driver has the piece */
    bool submitting;        /* inside the driver's submit */
    bool direct;            /* the callback may be called as soon as it has finished */
    bool armed : 1;         /* the timer may be armed */
    bool need_flush : 1;    /* a flush follows the last piece */
    bool rmw_loaded : 1;    /* the bounce buffer holds the unit at done */
    bool zero_fallback : 1; /* the driver cannot zero: write zeroes */
    bool is_split : 1;
    bool detaching : 1;  /* in the detaching list */
    bool has_bounce : 1; /* bounce is not NULL */
    bool stopped : 1;    /* held because it failed: in front of what came later, by seq */

    /* What only some do. */
    BlockAIOCB *fin_next;    /* finished list or retry list */
    BlockAIOCB *detach_next; /* detaching list */
    BlkExtent *extent;       /* BLK_OP_STATUS */
    void *bounce;
    size_t bounce_size;
    int64_t retry_at;
    uint64_t tries; /* of this piece, after errors; where on_error.any */
    struct iovec local_iov;
    uint8_t detach_passes;
    QEMUTimer timer;
    BlkRange range; /* other than BLK_RANGE_NONE only where the backend is ordered */
    BlkPiece piece; /* last: the driver's room follows */
};
static_assert(offsetof(BlockAIOCB, fin_next) == 128, "two lines, as a request begins one");

/* ---- Queues (queue.c) ------------------------------------------------------------------------ */

/* What a backend keeps for one context. */
struct BlkQueue {
    /* Read by other threads; written seldom. */
    BlockBackend *blk;    /* fixed */
    BlkQueue *next;       /* fixed: queues are only ever added in front */
    AioContext *ctx;      /* lock to write, atomic to read; NULL: free to serve another context */
    AioContext *home_ctx; /* home: the same while requests run */
    AioCloseHook hook;    /* home */
    QEMUBH *finished_bh, *resume_bh, *detach_bh, *close_bh; /* fixed while ctx is set */
    void *node_queues[BLK_NODES_MAX];                       /* home */
    bool usable;                                            /* home: the driver can run on ctx */
    QEMUTimer timer; /* home: the next retry; or, of a backend that is being closed,
                                      * when what is left is cancelled */
    BlockAIOCB *retry_head, **retry_tail; /* home: by retry_at */
    bool tell_stop;   /* home: this queue may have to tell of a stop: see BlkOnError.teller */
    bool close_armed; /* home: timer is that of closing */
    bool closing;     /* home: ctx is closing and cancels; nothing new is taken on */
    bool abandoned;   /* atomic: ctx closed with pieces in the kernel; nobody waits for them */
    BlockAIOCB *ready, **ready_tail; /* lock: requests whose range was granted */
    uint64_t quiet_period;           /* lock: fast_writes was seen 0 in this period */

    /* Written by the home thread all the time. */
    uint64_t next_seq __attribute__((aligned(64))); /* home w, pairs with held and watch */
    uint64_t oldest_seq;  /* home w: of the in-flight list's head, next_seq when that is empty */
    uint64_t n_held;      /* home w */
    uint64_t n_detached;  /* home w */
    uint64_t fast_writes; /* home w, pairs with BlockBackend.serialisers */
    BlockAIOCB *flight_head, *flight_tail; /* home: issued and not yet called back, by seq */
    BlockAIOCB *held_head, *held_tail;     /* home */
    BlockAIOCB *fin_head, **fin_tail;      /* home */
    BlockAIOCB *detach_head;               /* home */
    BlockAIOCB *free;                      /* home */
    bool fin_scheduled;                    /* home */
    bool cancelling;                       /* home: inside the driver's cancel */
    BlkStats stats;                        /* home w */
} __attribute__((aligned(64)));

/* ---- Errors (on_error.c) --------------------------------------------------------------------- */

typedef enum { BLK_ERR_REPORT, BLK_ERR_STOP, BLK_ERR_RETRY, BLK_ERR_ENOSPC } BlkErrorPolicy;

typedef struct BlkOnError {
    /* Fixed from blk_open() on. */
    uint8_t policy[2]; /* BlkErrorPolicy, of reads and of what writes */
    bool any;          /* one of them does not report */
    int64_t delay_ns, close_ns;
    uint64_t retry_limit; /* 0: none */

    bool final;       /* atomic, lock to write: the backend is being closed */
    int stopped_by;   /* atomic, lock to write: -errno; 0: it runs */
    uint64_t resumes; /* atomic, lock to write: how often it went on after a stop */
    struct BlkQueue
        *teller;          /* lock: whose home is to tell of the stop; NULL: it need not be told */
    BlkStopFunc *stop_cb; /* lock */
    void *stop_opaque;    /* lock */
} BlkOnError;

/* In BlockBackend.held: a stop, besides the number of drained sections. */
#define BLK_HELD_STOP 0x80000000u

/* ---- Backends (backend.c) -------------------------------------------------------------------- */

/* Someone who waits for requests to end (drain.c). */
typedef struct BlkWaiter {
    AioContext *ctx; /* lock: whose loop it polls; NULL: it sleeps on BlockBackend.cond */
    struct BlkWaiter *next;
} BlkWaiter;

struct BlockBackend {
    /* Fixed from blk_open() on. */
    BlkNode *root;
    BlkLimits limits;
    int64_t length;
    int64_t tail;        /* length rounded down to request_alignment */
    int64_t deadline_ns; /* from submission; 0: none */
    uint64_t align_mask; /* request_alignment - 1 */
    bool read_only, detach;
    bool ordered; /* writes take part in the ranges: there is an alignment, or detach */

    /* Read on every request, written seldom. */
    BlkQueue *queues;     /* atomic; lock to write */
    unsigned held;        /* atomic: drained sections, BLK_HELD_STOP; pairs with next_seq, n_held */
    unsigned serialisers; /* atomic, lock to write: serialising ranges; pairs with fast_writes */
    unsigned watch;       /* atomic: someone looks for endings; pairs with oldest_seq and others */
    bool settling; /* atomic, lock to write: the last reference has gone, and what has detached is
                    * to end; pairs with n_detached: settle() stores it and then looks who has
                    * detached, blk_detach_bh() detaches and then looks at it */

    unsigned refcnt __attribute__((aligned(64))); /* atomic */
    unsigned pins; /* atomic: the open state and each live queue; memory goes at 0 */
    pthread_mutex_t lock;
    pthread_cond_t cond;            /* of plain threads in drain.c */
    BlkWaiter *waiters;             /* lock */
    BlkRange *ranges, *ranges_tail; /* lock */
    uint64_t period;                /* lock: counts the times serialisers left 0 */
    bool fast_quiet; /* lock: no fast write is in flight, for as long as serialisers > 0 */
    bool closing, close_begun; /* lock */
    BlkOnError on_error;

    pthread_mutex_t drain_lock;
    unsigned drainers; /* drain_lock: who waits; the drivers have been told of the first */

    pthread_mutex_t sync_lock;
    IOThread *sync_thread; /* sync_lock */
};

/* The longest bounce buffer; longer requests take turns in it. */
#define BLK_BOUNCE_MAX (1u << 20)
/* The largest request_alignment: what the shared buffer of zeroes holds. */
#define BLK_ALIGN_MAX 65536
/* Requests called back in one run of the bottom half, so that timers and fds get their turn. */
#define BLK_FINISH_BUDGET 64
/* Passes of the loop that a cancel gets before a request detaches: one submits it, one reaps it. */
#define BLK_DETACH_PASSES 2
/* Times that one piece is tried again after -EINTR or -EAGAIN. */
#define BLK_RETRIES_MAX 64

/* backend.c */
void blk_unpin(BlockBackend *blk);
/* Closes when it is due: the last reference has gone and nothing is in flight. */
void blk_close_check(BlockBackend *blk);

/* queue.c; home */
BlkQueue *blk_queue_find(BlockBackend *blk, AioContext *ctx);

/* The queue of @ctx, whose home the caller is.  Returns NULL when out of memory. */
static inline BlkQueue *blk_queue_get(BlockBackend *blk, AioContext *ctx)
{
    BlkQueue *q = ld_acquire(&blk->queues);

    return likely(q && ld_relaxed(&q->ctx) == ctx) ? q : blk_queue_find(blk, ctx);
}

/* request.c; home */
void blk_req_finish(BlockAIOCB *req, int ret);
void blk_req_cancel(BlockAIOCB *req, int ret);
void blk_req_start(BlockAIOCB *req);
void blk_req_end(BlockAIOCB *req, int64_t now);
void blk_req_settle(BlockAIOCB *req);
BlockAIOCB *blk_req_alloc(BlkQueue *q);
void blk_req_free_all(BlkQueue *q);
void blk_req_issue(BlockAIOCB *req);
void blk_req_withhold(BlockAIOCB *req);
void blk_flight_add(BlockAIOCB *req);
void blk_req_cancel_all(BlkQueue *q);
void blk_req_settle_all(BlkQueue *q);
void blk_finished_bh(void *opaque);
void blk_resume_bh(void *opaque);
void blk_detach_bh(void *opaque);
void blk_deadline_cb(void *opaque);

/* piece.c; home */
void blk_req_step(BlockAIOCB *req);

/* on_error.c */
int blk_on_error_parse(BlockBackend *blk, const BlkOptions *opts, char **ret_why);
/* Whether a request whose piece failed with @ret is kept, rather than to end so; home. */
bool blk_error_keeps(BlockAIOCB *req, int ret);
void blk_retry_remove(BlockAIOCB *req); /* home */
void blk_stop_tell(BlkQueue *q);        /* home */
void blk_queue_timer_cb(void *opaque);  /* home */
/* From now on errors are reported, and what goes on for too long is cancelled. */
void blk_errors_final(BlockBackend *blk);
void blk_closing_bh(BlkQueue *q); /* home: the queue's part of that */
/* Has every home issue what was held back. */
void blk_issue_held(BlockBackend *blk);

/* iov.c */
void blk_iov_advance(BlockAIOCB *req, uint64_t bytes);
void blk_iov_copy_out(const BlockAIOCB *req, void *buf, uint64_t bytes);
void blk_iov_copy_in(const BlockAIOCB *req, const void *buf, uint64_t bytes);
uint64_t blk_iov_direct(BlockAIOCB *req, uint64_t max, bool aligned);

/* serialise.c; home */
bool blk_range_begin(BlockAIOCB *req);
void blk_range_end(BlockAIOCB *req);
void blk_range_keep(BlockAIOCB *req);
BlockAIOCB *blk_range_take_ready(BlkQueue *q);
void blk_range_drop_all(BlkQueue *q);

/* drain.c */
void blk_kick(BlockBackend *blk);
void blk_wait_idle(BlockBackend *blk);
bool blk_queues_idle(BlockBackend *blk);
/* Tells the drivers that someone waits from now on, without waiting. */
void blk_drain_for_good(BlockBackend *blk);
/* One iteration of all contexts here whose home the caller is; it is that of one at least. */
void blk_poll_own(BlockBackend *blk);

/* Says that something ended; call after the store that shows it (sequentially consistent). */
static inline void blk_ended(BlockBackend *blk)
{
    if (unlikely(ld_seq(&blk->watch))) {
        blk_kick(blk);
    }
}

#endif
