/* SPDX-License-Identifier: MIT */
/*
 * Head words and the owner's sleep: timers/list_int.h, timers/timerlist.c, aio/wait.c.
 *
 *   change, publish       timer_mod(), timer_del(); timerlist_publish_locked()
 *   notify                notify_cb, below timerlist_unlock_notify()
 *   home                  plan_wait(), the monitor's wait, wake_end_sleep()
 *   pass, publish_back    timerlist_run_timers() of what is due
 *
 * Holds: when the home thread is in the kernel, no wake-up is on its way to it, and every call that
 * changes a timer has returned, then no head word is sooner than the time that it sleeps for.
 *
 * Three timers, 0 and 1 of one class, 2 of the other; two points in time, or none.  They begin with
 * any times, and each change gives any timer any time.  notify is the least that list_int.h asks of
 * a callback: it looks whether the owner sleeps.  aio_notify() does more, it adds to the wake word,
 * which is a barrier as well; wake_word.pml has that half.
 * Abstracted: the list's lock is one word, given back by a release store (list_lock.pml has it);
 * the queue is the minimum over a class; time passes when the sleep's time runs out.
 * Bounds: two writers, of two changes and of one; any number of sleeps.
 *
 * Broken (each by its macro): PLAIN_HEAD, a release store where a head moves forward;
 * PLAIN_ANNOUNCE, the same for the sleeper; LOOK_FIRST, the sleeper loads the head words before it
 * announces; LIST_MINIMUM, notify where the sooner of both words moves forward, and not for each
 * word; MOVED_HEAD, the sleeper follows a pointer to the head timer and reads that timer's time,
 * with no store buffer in the way: the trap of the moved head.
 */
#define HOME 0
#define PROCS 3 /* home, two writers */

#define HEAD(c) (c) /* 0, 1: the head word of a class */
#define ASLEEP 2
#define LOCK 3
#define VARS 4
#include "tso.pml"

#define NONE 3 /* later than any time */
#define CLASS(t) ((t) == 2)
#define MIN(a, b) ((a) < (b) -> (a) : (b))

byte expire[3] = NONE; /* under the lock, but for a reader in the trap */
byte first;            /* which of 0 and 1 is the head: the trap's pointer */
byte until;            /* what the home thread sleeps for */
bool wake_fd;          /* the eventfd is readable */
byte running;          /* writers that are not done */

inline lock(p)
{
    atomic { drained(p) && mem[LOCK] == 0; mem[LOCK] = 1 }
}

#define QUEUE_HEAD(c) ((c) -> expire[2] : MIN(expire[0], expire[1]))

/* Under the lock. */
inline publish(p, c)
{
    d_step {
        new = QUEUE_HEAD(c);
        old = LD(p, HEAD(c));
        other = LD(p, HEAD(1 - c));
        first = expire[1] < expire[0]
    };
    if
    :: new < old ->
#ifdef PLAIN_HEAD
        st_rel(p, HEAD(c), new);
#else
        st_seq(p, HEAD(c), new);
#endif
#ifdef LIST_MINIMUM
        forward = new < other
#else
        forward = true
#endif
    :: new > old -> st_rel(p, HEAD(c), new)
    :: else
    fi
}

/* The same, by the home thread, which has disarmed timers. */
inline publish_back(c)
{
    atomic {
        new = QUEUE_HEAD(c);
        old = LD(HOME, HEAD(c));
        if
        :: new > old -> st_rel(HOME, HEAD(c), new)
        :: else
        fi;
        new = 0;
        old = 0
    }
}

inline pick(t)
{
    if :: expire[t] = 1 :: expire[t] = 2 :: expire[t] = NONE fi
}

inline change(p)
{
    lock(p);
    atomic {
        if :: t = 0 :: t = 1 :: t = 2 fi;
        pick(t)
    };
    publish(p, CLASS(t));
    st_rel(p, LOCK, 0)
}

inline notify(p)
{
    if
    :: LD(p, ASLEEP) -> wake_fd = true
    :: else
    fi
}

proctype writer(byte p; byte changes)
{
    byte t, new, old, other;
    bool forward;

    do
    :: changes > 0 ->
        changes--;
        change(p);
        if
        :: forward -> forward = false; notify(p)
        :: else
        fi;
        atomic { t = 0; new = 0; old = 0; other = 0 } /* equal states look equal */
    :: else -> break
    od;
    atomic { drained(p); running-- }
}

inline look()
{
#ifdef MOVED_HEAD
    t = first;
    until = expire[t];
#else
    until = LD(HOME, HEAD(0));
#endif
    until = MIN(until, LD(HOME, HEAD(1)))
}

/* Disarms what is due: the time is `until`. */
inline pass()
{
    lock(HOME);
    d_step {
        if :: expire[0] <= until -> expire[0] = NONE :: else fi;
        if :: expire[1] <= until -> expire[1] = NONE :: else fi;
        if :: expire[2] <= until -> expire[2] = NONE :: else fi
    };
    publish_back(0);
    publish_back(1);
    st_rel(HOME, LOCK, 0)
}

proctype home()
{
    byte new, old;
#ifdef MOVED_HEAD
    byte t;
#endif

    do
    :: true ->
#ifdef LOOK_FIRST
        look();
#endif
#ifdef PLAIN_ANNOUNCE
        st_rel(HOME, ASLEEP, 1);
#else
        st_seq(HOME, ASLEEP, 1);
#endif
#ifndef LOOK_FIRST
        look();
#endif
end_asleep:
        if
        :: atomic {
                !wake_fd && running == 0 ->
                assert(until <= mem[HEAD(0)] && until <= mem[HEAD(1)]);
                goto end_asleep
            }
        :: wake_fd -> wake_fd = false; st_seq(HOME, ASLEEP, 0)
        :: until != NONE -> st_seq(HOME, ASLEEP, 0); pass()
        fi;
        until = 0
    od
}

init
{
    atomic {
        pick(0);
        pick(1);
        pick(2);
        mem[HEAD(0)] = QUEUE_HEAD(0);
        mem[HEAD(1)] = QUEUE_HEAD(1);
        first = expire[1] < expire[0];
        running = 2;
        run home();
        run writer(1, 2);
        run writer(2, 1)
    }
}
