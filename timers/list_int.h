/* SPDX-License-Identifier: MIT */
/*
 * A timer list's state.
 *
 * Writers hold `lock`.  Readers look at nothing but the two head words, which are deadlines and not
 * pointers: no reader ever touches a timer, so its owner may reuse the memory of a disarmed one at
 * once, and a reader that was told a deadline was told one that stood for the head, whichever timer
 * that was.
 *
 * Head words and sleep, with the owner's sleep announcement S (aio's wake word):
 *
 *   writer    head = sooner        seq_cst   |  sleeper   S = asleep      seq_cst
 *             load S (notify_cb)   seq_cst   |            load both heads seq_cst
 *
 * One of the two sees the other.  The rule is per word: a word that moves forward is notified even
 * where the list's other word is sooner, since that one may move back before the sleeper loads it.
 * A word that moves back is a release store, without a notify: a sleeper who misses it wakes early.
 *
 * Lock order: a list's lock is innermost, but for a clock's wait_lock (never together).  No
 * callback is called under it.
 */
#ifndef TIMERS_LIST_INT_H
#define TIMERS_LIST_INT_H

#include "rcu/util_int.h"
#include "timers/list_lock_int.h"
#include "timers/queue_int.h"

#include <aioctx/rcu.h>
#include <aioctx/timers.h>
#include <pthread.h>

/* A timer made by timer_new(). */
struct heap_timer {
    QEMUTimer timer;                /* first */
    const char *name;               /* atomic */
    struct heap_timer *walk_next;   /* atomic, RCU: list->walk; written under the list's lock */
    struct heap_timer **walk_pprev; /* under the list's lock */
    AioRcuHead rcu;
};

/*
 * Who waits until a callback has returned; lives on the waiter's stack, under the list's lock.  The
 * runner disarms the timer for the waiters when the callback has returned: at that moment it is
 * neither armed nor running.  A waiter does not touch the timer any more, which may have been
 * freed.
 */
struct timer_waiter {
    bool done;
    bool disarmed; /* the callback, or someone meanwhile, had armed the timer again */
    struct timer_waiter *next;
};

/* A callback that is running; lives on its runner's stack, under the list's lock. */
struct timer_run {
    QEMUTimer *ts; /* NULL once timer_deinit() has let go of it */
    bool reap;     /* timer_free() came meanwhile: free it afterwards */
    struct timer_waiter *waiters;
    struct timer_run *outer;
};

/* One attribute class: EXTERNAL timers or the others. */
struct timer_class {
    int64_t head;                    /* atomic: the soonest deadline, NO_DEADLINE: none */
    int64_t soft;                    /* atomic: when the soonest range begins, NO_DEADLINE: none */
    unsigned timers;                 /* atomic: initialised ones */
    QEMUTimer *due_first, *due_last; /* taken out by the pass that runs: by next and prev, sorted */
    struct timer_queue queue;
};

enum { CLASS_NORMAL, CLASS_EXTERNAL, CLASS_MAX };

struct QEMUTimerList {
    /* Read by everyone, written rarely. */
    QEMUClockType type;
    struct clock *clock; /* of that type */
    QEMUTimerListNotifyCB *notify_cb;
    void *notify_opaque;
    QEMUTimerList *next_in_clock; /* atomic, RCU */
    unsigned refs;                /* atomic: the owner's and one for each initialised timer */
    unsigned passes;       /* atomic: passes in progress that found a timer due, nested ones too */
    unsigned passes_ended; /* atomic: grows just before passes goes down to 0 */
    uint64_t disabled_epoch; /* under the clock's disable_lock: passes was zero since then */

    struct list_lock lock __attribute__((aligned(64))); /* owner: the thread that runs the list */
    uint64_t seq;
    struct timer_run *runs;          /* innermost first */
    struct heap_timer *walk;         /* atomic, RCU */
    pthread_cond_t run_done;         /* a run that has waiters ended */
    unsigned depth;                  /* passes on the runner's stack; written by the runner alone */
    int64_t pass_now;                /* up to when the due lists were filled */
    bool closed;                     /* nothing can be armed any more */
    bool freed;                      /* timerlist_free() was called */
    struct timer_observer *observer; /* atomic: calls the callbacks; NULL: the pass does */

    struct timer_class cls[CLASS_MAX] __attribute__((aligned(64)));
    AioRcuHead rcu;
};

static inline struct timer_class *class_of(QEMUTimerList *tl, const QEMUTimer *ts)
{
    struct timer_class *cls = &tl->cls[CLASS_NORMAL];

    if (unlikely(ts->attributes & QEMU_TIMER_ATTR_EXTERNAL)) {
        cls = &tl->cls[CLASS_EXTERNAL];
        __asm__(""
                : "+r"(cls)); /* a jump that can be guessed, and no sum that must be waited for */
    }
    return cls;
}

/* The soonest deadline on the list; NO_DEADLINE: none.  Pairs with the writer's store. */
static inline int64_t timerlist_head_ns(const QEMUTimerList *tl)
{
    int64_t a = ld_seq(&tl->cls[CLASS_NORMAL].head), b = ld_seq(&tl->cls[CLASS_EXTERNAL].head);

    return a < b ? a : b;
}

/* The rest is for a caller that holds the list's lock. */

/* Takes an armed timer out of where it waits, for a caller who arms it again: expire_time stays, so
 * that no reader sees it not armed.  Its class must be published afterwards. */
void timerlist_take_out_locked(QEMUTimerList *tl, QEMUTimer *ts);

/* Disarms a timer and publishes its class.  Returns whether it was armed. */
bool timerlist_cancel_locked(QEMUTimerList *tl, QEMUTimer *ts);

/* Gives a timer that a pass has taken out an earlier deadline: it stays in that pass. */
void timerlist_anticipate_due_locked(QEMUTimerList *tl, QEMUTimer *ts, int64_t ns);

/* Stores the class's words as they are now.  Returns true when the head moved forward: notify after
 * the unlock. */
bool timerlist_publish_change_locked(struct timer_class *cls);

static inline bool timerlist_publish_locked(struct timer_class *cls)
{
    /* Most changes lie behind the head. */
    if (likely(timer_queue_key(&cls->queue) == cls->head &&
               timer_queue_soft_key(&cls->queue) == cls->soft && !cls->due_first)) {
        return false;
    }
    return timerlist_publish_change_locked(cls);
}

/* Makes room for one more timer of @ts's class, and gives it back. */
void timerlist_add_room(QEMUTimerList *tl, const QEMUTimer *ts);
void timerlist_drop_room(QEMUTimerList *tl, const QEMUTimer *ts);

/* The oldest callback of @ts that is running, the last one to return; NULL: none. */
struct timer_run *timerlist_find_run_locked(QEMUTimerList *tl, const QEMUTimer *ts);

/* Drops the lock while it waits for the run to end.  @waiter tells how it ended. */
void timerlist_wait_run_locked(QEMUTimerList *tl, struct timer_run *run,
                               struct timer_waiter *waiter);

/* Unlocks and, when @forward, calls the notify callback; the two lie in one read section, so that
 * what the callback uses cannot go in between: closing the list takes the lock, and its owner waits
 * for a grace period after that. */
void timerlist_notify_unlock(QEMUTimerList *tl);

static inline void timerlist_unlock_notify(QEMUTimerList *tl, bool forward)
{
    if (unlikely(forward)) {
        timerlist_notify_unlock(tl);
    } else {
        list_unlock(&tl->lock);
    }
}

/* References; the last one frees the list after a grace period. */
void timerlist_get(QEMUTimerList *tl);
bool timerlist_try_get(QEMUTimerList *tl);
void timerlist_put(QEMUTimerList *tl);

/* Frees a timer_new() timer after a grace period, and its reference with it. */
void heap_timer_reap(struct heap_timer *ht);

#endif
