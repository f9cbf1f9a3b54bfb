/* SPDX-License-Identifier: MIT */
/*
 * What a loop tells of itself beside its counters: histograms, and callbacks that hold it too long.
 *
 * ctx->observing says what is measured; while it is 0 each of these hooks is one branch.  The home
 * thread keeps two stacks whose elements lie on its own: iterations (struct observe_turn), and the
 * callbacks within the innermost one (struct observe_call).  Times of what lies inside are taken
 * out of what lies around it when it ends, by moving the outer one's beginning on: an inner
 * callback or a nested iteration, and that one's sleep, do not count as the outer one's.
 *
 * Beside this, `now` of the observer is a copy of the innermost callback for the thread that
 * watches (stall.c), written by home and read by that one: a sequence lock without fences, in which
 * every store is a release and every load an acquire.  begin_ns is 0 where no callback runs, or a
 * nested iteration is under way.
 *
 * notified_ns of the context is when the notify was sent that ends this sleep.  A notifier stores
 * it before it writes the eventfd, if nobody else has; home clears it before a sleep and takes it
 * after.  One that comes between, too late for its own sleep, stands for the next one's: it is of
 * that moment.
 */
#ifndef AIO_OBSERVE_INT_H
#define AIO_OBSERVE_INT_H

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"
#include "timers/timers_ext_int.h"

#include <aioctx/observe.h>

enum { OBSERVE_HISTOGRAMS = 1 << 0, OBSERVE_STALLS = 1 << 1 };

enum observe_kind {
    OBSERVE_TIMER,
    OBSERVE_BH,
    OBSERVE_FD_READ,
    OBSERVE_FD_WRITE,
    OBSERVE_COMPLETION,
    OBSERVE_BLOCK,
    OBSERVE_FD_REMOVAL,
    OBSERVE_POLL_NOTIFIER,
    OBSERVE_KINDS
};

enum { OBSERVE_NAME_WORDS = 4 };

/* What is told of a callback. */
struct observe_what {
    uint64_t id; /* of this call, in its context */
    uint64_t kind;
    uint64_t func;
    int64_t fd; /* -1 */
    int64_t begin_ns;
    uint64_t name[OBSERVE_NAME_WORDS]; /* characters of a timer's name */
};

/* A callback in progress. */
struct observe_call {
    bool on; /* it is on the stack of calls */
    int64_t entered_ns;
    struct observe_what what; /* begin_ns: entered_ns, moved on by what lies inside */
    struct observe_call *outer;
};

/* An iteration in progress. */
struct observe_turn {
    bool on;
    int64_t begin_ns;
    int64_t awake_ns;      /* the end of its wait, moved on; 0: not yet */
    uint64_t sleeps, told; /* counters at its beginning: sleeps, and those that a notify ended */
    struct observe_turn *outer;
    struct observe_call *call; /* of the outer one, in which this is nested */
};

/* The part of a context. */
struct observer {
    struct timer_observer timers;
    struct observe_turn *turn; /* home thread only: the innermost one */
    struct observe_call *call; /* likewise */
    uint64_t calls;            /* likewise */
    int64_t woke_ns;           /* likewise: no callback has begun since this sleep ended; or 0 */
    int64_t notify_ns;         /* likewise: the notify that ended it; or 0 */
    int64_t stall_limit_ns;    /* atomic; 0: off */
    bool closed;               /* under the context's lock: nothing is switched on any more */

    uint64_t now_seq; /* atomic: odd while home writes `now` */
    struct observe_what now;

    /* Under stall.c's lock. */
    AioContext *next_watched, **pprev_watched;
    int64_t reported_ns; /* when the last report was made */
    uint64_t hung_id;    /* the call that was reported while it ran */
    uint64_t suppressed;
};

/* ---- observe.c ------------------------------------------------------------------------------- */

/* Sets the observer up by @opts and the environment.  Returns 0 or -EINVAL. */
int observe_init(AioContext *ctx, const AioContextOptions *opts);
/* Moves the counters to the process's file: the last step of making a context, as for want of an fd
 * they are to do without, and not the loop. */
void observe_publish(AioContext *ctx);
/* Nothing is measured from now on.  Thread: the one that closes the context. */
void observe_close(AioContext *ctx);
/* The thread has left its callbacks for good. */
void observe_forget(AioContext *ctx);

void observe_turn_begin(AioContext *ctx, struct observe_turn *turn);
void observe_turn_awake(AioContext *ctx, struct observe_turn *turn);
void observe_turn_end(AioContext *ctx, struct observe_turn *turn);
void observe_call_begin(AioContext *ctx, struct observe_call *call, enum observe_kind kind,
                        const void *func, int fd, const char *name);
void observe_call_end(AioContext *ctx, struct observe_call *call);

/* ---- stall.c --------------------------------------------------------------------------------- */

/* Has the context watched while @limit_ns is above 0. */
void stall_watch(AioContext *ctx, int64_t limit_ns);
/* Nobody watches the context, or has it for a report, any more.  Waits for a hook. */
void stall_close(AioContext *ctx);
/* Home: a callback has returned that held the loop for too long. */
void stall_report(AioContext *ctx, const struct observe_what *what, int64_t held_ns);

#endif
