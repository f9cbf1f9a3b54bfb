/* SPDX-License-Identifier: MIT */
/*
 * An AioContext's state.
 *
 * Sleeping and waking.  One word, `wake`, holds how many notifies there were (33 bits), how many
 * sleeps (29 bits), whether the home thread sleeps or is about to, and whether this sleep's wake-up
 * is in the kernel already.
 *
 *   notifier   publish work            seq_cst   |  sleeper   count as last seen?
 *              old = wake, count + 1   seq_cst   |            sleep + 1, ASLEEP    CAS, seq_cst
 *              old ASLEEP, not SENT:             |            look at every source of work
 *                write the eventfd               |            wait in the kernel
 *                same sleep: set SENT  CAS       |            clear both, count is seen
 *
 * Nothing is lost: an addition before the sleeper's CAS makes that fail, and nothing sleeps; one
 * after it finds ASLEEP.  Work that the sleeper's look did not see was published after it, so the
 * addition came after the CAS.  A needed wake-up is in the kernel before aio_notify() returns: a
 * notifier that makes no system call saw the thread awake, or SENT, which is set after the write.
 * SENT set late cannot hit the next sleep, since the CAS compares the number of the sleep.  A
 * notify that finds the thread awake stays counted, and the next blocking poll does not sleep: the
 * caller may have set a flag that the home thread had looked at before.
 *
 * Busy polling, adaptive and precise, needs no announcement: it looks at the sources of work once,
 * and then reaps and compares the count with the one that it had seen before that look, in turns.
 * What the look missed was published after it, and adds to the count.  The notifier finds no
 * ASLEEP, and makes no system call.
 *
 * A host (embed.c) announces with prepare, which is followed by the host's own wait, and takes it
 * back with dispatch.
 *
 * Sources of work: bh_stack, fd_requests, the head words of the timer lists (timers/list_int.h),
 * and, home thread only, the completions that were reaped but not yet dispatched.
 */
#ifndef AIO_AIO_INT_H
#define AIO_AIO_INT_H

#include "aio/aio_ext_int.h"
#include "aio/busy_poll_int.h"
#include "aio/observe_int.h"
#include "aio/stats_file_int.h"
#include "rcu/atomic_int.h"
#include "rcu/probe_int.h"
#include "rcu/util_int.h"

#include <aioctx/aio.h>
#include <aioctx/rcu.h>
#include <pthread.h>

typedef struct FDMonOps FDMonOps;
typedef struct AioHandler AioHandler;
struct home_thread;
struct fd_request;
struct embed;
struct pool_queue;

#define WAKE_ASLEEP UINT64_C(1)
#define WAKE_SENT UINT64_C(2)
#define WAKE_SLEEP_ONE UINT64_C(4)
#define WAKE_SLEEP_MASK (((UINT64_C(1) << 31) - 1) & ~UINT64_C(3))
#define WAKE_COUNT_SHIFT 31
#define WAKE_COUNT_ONE (UINT64_C(1) << WAKE_COUNT_SHIFT)

/* Completions dispatched before the timers are looked at again. */
enum { DISPATCH_BATCH = 64 };

/* An idle bottom half runs after this long at the latest. */
#define IDLE_BH_NS INT64_C(10000000)

/* Deadlines of waits, beside times of CLOCK_MONOTONIC. */
#define WAIT_NOT INT64_C(0)
#define WAIT_FOREVER INT64_MAX

/* A FIFO of requests; `last` means something while there is a first. */
struct fd_queue {
    struct fd_request *first, *last;
};

/* Instead of one, for context_iterate(): a host has waited. */
#define WAIT_WAS_HOSTS INT64_C(-1)

/* The handlers of one fd.  Home thread only. */
struct AioHandler {
    AioContext *ctx;
    int fd;
    uint32_t events; /* POLL*: what is watched for */
    IOHandler *io_read, *io_write;
    AioPollFn *io_poll;
    IOHandler *io_poll_ready;
    void *opaque;
    AioHandler *busy_below;  /* while busy: the one whose callback is further down the stack */
    EventNotifier *notifier; /* io_read takes this: it is an EventNotifierHandler */
    unsigned busy;           /* its callbacks on the stack */
    bool removed;            /* call nothing any more; free when nothing below refers to it */
    bool queued;             /* its completion is among ctx->done */
    bool poll_queued;        /* likewise, for what its io_poll has found */
    bool poll_replaced;      /* the handler has changed since */
    bool recheck;            /* the next event of the monitor's may be older than what io_poll has
                                * found: look at the fd */
    bool armed;              /* io_uring: a poll request is in the kernel or on its way there;
                                * epoll: the set holds it */
    bool beside_ring;        /* io_uring: in a host's set of eventfds, see embed.c */
    unsigned updates;        /* io_uring: changes of its events on their way */
    uint32_t epoll_key;      /* epoll: of this addition to the set */
    uint32_t epoll_events;   /* epoll: how many there were */
    struct fd_queue told;    /* removals to be told of once busy is 0 */
    CqeHandler ready;        /* its completion: res is a POLL* mask */
    CqeHandler poll_ready;   /* its completion when io_poll has found something */
    int64_t poll_active_ns;  /* poll.spent_ns when it was last ready */
    AioHandler *poll_next, **poll_pprev; /* ctx->poll.list; on it when pprev is not NULL */
    AioHandler *next, **pprev; /* the monitor's list: io_uring to arm, epoll not in the set,
                                * ppoll watched */
};

struct AioContext {
    /* Any thread writes. */
    uint64_t wake __attribute__((aligned(64))); /* atomic, see above */
    QEMUBH *bh_stack;                           /* atomic: pushed by anyone, taken whole by home */
    struct fd_request *fd_requests;             /* atomic: likewise */
    unsigned refs;                              /* atomic */
    int64_t precise_ns;                         /* atomic: the lead of precise mode; 0: off */
    int64_t notified_ns;                        /* atomic, see observe_int.h */
    int64_t poll_max_ns;                        /* atomic: of adaptive polling; 0: off */
    int64_t poll_grow, poll_shrink;             /* atomic */

    /* Fixed from aio_context_new() on. */
    const FDMonOps *mon __attribute__((aligned(64)));
    int wake_fd;  /* eventfd, blocking: read only when it is readable */
    bool is_main; /* the main loop's: the lists of tlg are main_loop_tlg's */
    QEMUTimerListGroup tlg;
    AioStatsSlot *slot;     /* the counters, in the process's file or by themselves */
    AioContextStats *stats; /* &slot->stats: home thread writes, others read */
    unsigned observing;     /* atomic: OBSERVE_*; written under `lock`; 0: nothing is measured */
    char *fell_back; /* why it is not a better monitor; NULL: it was asked for, or is the best */

    /* Under `lock`. */
    pthread_mutex_t lock;
    struct home_thread *home; /* atomic to read; NULL: none yet, or it has exited */
    bool home_gone;           /* it has exited, and has shut the context before */
    bool zombie;              /* the last reference is gone and home is to close it */
    AioCloseHook *close_hooks;
    AioContext *next_of_home; /* home thread only: its contexts */

    /* Home thread only; others read the counters. */
    void *mon_state __attribute__((aligned(64)));
    QEMUBH *bh_first, *bh_last;    /* taken from bh_stack, not yet run */
    CqeHandler *done, **done_tail; /* reaped, not yet dispatched */
    AioHandler **handlers;         /* by fd */
    int handlers_size;
    struct fd_queue fd_taken; /* from fd_requests, not yet applied */
    struct fd_queue fd_told;  /* removals that were applied and are to be told of */
    AioHandler *busy;         /* whose callback is on top of the stack */
    unsigned depth;           /* of aio_poll() */
    unsigned idle_events;     /* completions of this iteration that were no progress */
    bool shut;                /* context_shutdown() was here */
    uint64_t inflight_ops;    /* of users, on the ring; until their callbacks are called */
    uint64_t inflight_other;  /* aio_context_count_inflight() */
    uint32_t inflight_by_op[64];
    struct poll_state poll;
    struct pool_queue *pool;    /* its part of the thread pool; NULL: none yet */
    uint32_t features, dropped; /* atomic: of the monitor, see monitor_int.h */
    struct embed *embed;        /* a host's, see embed.c; NULL: nobody asked for the fd */
    struct observer observer;

    AioRcuHead rcu;
};

/* ---- The monitors' interface ----------------------------------------------------------------- */

/*
 * What waits for fds and completions.  A monitor puts what has completed on ctx->done with
 * context_complete(), and never calls back.  All but init: home thread only, and never re-entered.
 */
struct FDMonOps {
    const char *name;
    bool cheap_look; /* wait(WAIT_NOT) with nothing to submit and to reap makes no system call */
    bool one_shot;   /* an event ends the watching; one that was not asked for again may be old */
    /* Makes mon_state; opts->ring_entries is set.  Returns 0 or -errno; may_fall_back() in
     * monitor.c says which errors let the next monitor be tried. */
    int (*init)(AioContext *ctx, const AioContextOptions *opts);
    /* The calling thread is home from now on. */
    void (*attach)(AioContext *ctx);
    /* Submits what is queued and waits until deadline_ns, a time of CLOCK_MONOTONIC; WAIT_NOT: not
     * at all; WAIT_FOREVER: without limit.  Returns 0, or -EINTR when a signal ended the wait. */
    int (*wait)(AioContext *ctx, int64_t deadline_ns);
    /* Handler is new, or its events have changed; events is not 0. */
    void (*watch)(AioContext *ctx, AioHandler *h);
    /* When this returns the kernel has let go of the fd; h->ready may still be queued. */
    void (*unwatch)(AioContext *ctx, AioHandler *h);
    /* Completed h->ready is about to be dispatched: watch again. */
    void (*rewatch)(AioContext *ctx, AioHandler *h);
    /* Puts what is to make a host's fd readable into ctx->embed's set.  Returns 0 or -errno. */
    int (*embed)(AioContext *ctx);
    /* Does what wait() does before it waits, and collects what is there.  Whatever comes afterwards
     * makes the host's fd readable.  Returns a deadline by which wait() is to be called; WAIT_NOT:
     * something is there. */
    int64_t (*prepare)(AioContext *ctx);
    /* Operations; NULL where there are none. */
    int (*add_sqe)(AioContext *ctx, void (*prep)(struct io_uring_sqe *, void *), void *opaque,
                   CqeHandler *handler);
    int (*cancel_sqe)(AioContext *ctx, CqeHandler *handler);
    void (*cancel_all)(AioContext *ctx);
    /* Frees mon_state.  No handler is watched any more. */
    void (*close)(AioContext *ctx);
};

extern const FDMonOps fdmon_io_uring, fdmon_epoll, fdmon_ppoll;

/* Appends a completion to those to be dispatched. */
static inline void context_complete(AioContext *ctx, CqeHandler *handler)
{
    handler->next = NULL;
    *ctx->done_tail = handler;
    ctx->done_tail = &handler->next;
}

/* Whether a completion is a user's, and not a handler's: add_sqe keeps the operation's code, plus
 * one, in `reserved`. */
static inline bool op_is_users(const CqeHandler *handler)
{
    return handler->reserved != 0;
}

/* Puts a handler on the monitor's list, and takes it off; it is on one when pprev is not NULL. */
static inline void handler_link(AioHandler **list, AioHandler *h)
{
    h->next = *list;
    h->pprev = list;
    if (h->next) {
        h->next->pprev = &h->next;
    }
    *list = h;
}

static inline void handler_unlink(AioHandler *h)
{
    *h->pprev = h->next;
    if (h->next) {
        h->next->pprev = h->pprev;
    }
    h->pprev = NULL;
}

/* Whether there is work for bh_poll() and handlers_apply_requests().  Inline, since a call of them
 * after a sleep would first have to fetch their code from memory. */
static inline bool bh_is_any(AioContext *ctx)
{
    return ctx->bh_first || ld_seq(&ctx->bh_stack);
}

static inline bool handlers_have_requests(AioContext *ctx)
{
    return ld_seq(&ctx->fd_requests) || ctx->fd_taken.first || ctx->fd_told.first;
}

/* Around a callback: see observe_int.h.  @observed: is_observed(), which a batch asks once. */
static inline bool is_observed(const AioContext *ctx)
{
    return unlikely(ld_relaxed(&ctx->observing));
}

static inline void observe_begin(AioContext *ctx, bool observed, struct observe_call *call,
                                 enum observe_kind kind, const void *func, int fd)
{
    call->on = false;
    if (unlikely(observed)) {
        observe_call_begin(ctx, call, kind, func, fd, NULL);
    }
}

static inline void observe_end(AioContext *ctx, struct observe_call *call)
{
    if (unlikely(call->on)) {
        observe_call_end(ctx, call);
    }
}

/* A callback's address as an object's; C has no conversion but by way of an integer. */
#define func_address(func) ((const void *)(uintptr_t)(func))

/* ---- Between the files of this folder -------------------------------------------------------- */

/* context.c: aio_context_new(), also for the main loop. */
AioContext *context_new(const AioContextOptions *opts, bool is_main);
/* context.c: makes the calling thread home, or aborts, naming @call, when another one is. */
void context_enter_home(AioContext *ctx, const char *call);
/* context.c: one iteration that waits until @limit_ns at most: a time of CLOCK_MONOTONIC, WAIT_NOT,
 * WAIT_FOREVER or WAIT_WAS_HOSTS. */
bool context_iterate(AioContext *ctx, int64_t limit_ns);
/* wait.c: what aio_compute_timeout() returns. */
int64_t wait_compute_timeout(AioContext *ctx);
/* wait.c: waits until there is something to do, @limit_ns at most, which is as above.  Whatever has
 * completed is on ctx->done. */
void wait_for_events(AioContext *ctx, int64_t limit_ns);
/* wait.c: counts a sleep, and what has ended it; @ret is the monitor's. */
void wait_count_wakeup(AioContext *ctx, int ret, bool notified);
/* context.c: aio_notify(), and for timers, which never arm in a signal handler, not on home. */
void context_notify_from_timer(void *opaque, QEMUClockType type);
/* context.c: ends all that the context does; see iothread_stop(). */
void context_shutdown(AioContext *ctx, const char *name, int64_t limit_ns);
#define CONTEXT_STOP_LIMIT_NS INT64_C(10000000000)

/* bh.c */
bool bh_poll(AioContext *ctx);
/* 0: run now; IDLE_BH_NS: idle ones only; -1: none. */
int64_t bh_timeout(AioContext *ctx);
/* Lets nothing be accepted any more, if nothing waits to be run. */
bool bh_try_close(AioContext *ctx);
/* The same in any case, and runs what was accepted. */
void bh_run_last(AioContext *ctx);
void bh_drop_all(AioContext *ctx);
/* qemu_bh_delete() when the context has run its last ones; it may be gone. */
void bh_free_ended(QEMUBH *bh);

/* handlers.c: calls its io_poll, unless its event waits already, and completes it on true.  @h may
 * be gone when it has changed the list of polled handlers. */
void handler_poll(AioHandler *h);
/* handlers.c: what other threads have asked for.  Returns whether a callback ran. */
bool handlers_apply_requests(AioContext *ctx);
/* The thread has left its callbacks for good: none is on the stack. */
void handlers_forget_callbacks(AioContext *ctx);
void handlers_drop_all(AioContext *ctx);
/* Drops what was asked for after the end, and tells who wanted to be told. */
void handlers_drop_requests(AioContext *ctx);

#endif
