/* SPDX-License-Identifier: MIT */
/*
 * The wake word: aio/aio_int.h, aio/wake.c, aio/wait.c.
 *
 *   notify           aio_notify(), wake_up()
 *   notifier         what is published before it; the quiet kind is qemu_bh_schedule_idle()
 *   write_wake_fd    write_wake_fd(), and what the kernel makes of it
 *   begin_sleep      wake_begin_sleep()
 *   arm              arm_all() of the io_uring monitor
 *   home             begin_wait(), the monitor's wait, wake_end_sleep(), the dispatch
 *
 * Holds: while the home thread is in the kernel without a wake-up on its way,
 *   - every notify that has returned was taken by a poll that has ended since: one that came
 *     before a blocking poll makes it return, and so does one that comes during it; no notify
 *     returns before the wake-up that it needs is in the kernel;
 *   - no work is left whose publisher has returned.
 *
 * Abstracted: one word is four variables that change together; the loop around the compare-and-swap
 * that sets SENT is one step.  A signal handler's notify is that of another thread, whose steps
 * come in between in more ways than a handler's.
 * The transport is io_uring's: a multishot poll request on the eventfd, which nobody reads, posts a
 * completion for each write while it is armed.  It may end with any of them, and is armed again
 * before a wait; then it posts one at once if the eventfd was ever written to.  Completions that
 * were not reaped are one flag.  An edge-triggered entry of an epoll set is such a request that
 * never ends; a ppoll(2) that finds the eventfd readable, and empties it, is a reap.  The wait also
 * ends for anything else at any moment (a timeout, an fd, a signal), and then reaps nothing.
 * With the macro HOST a foreign loop waits (embedding): the announcement is made before its wait,
 * which leaves what was posted where it is; that is taken before the next announcement, which may
 * come without the end of the one before.
 * Precise mode's polling is left out.  Every access is sequentially consistent: no store buffers.
 * Bounds: two notifiers of two notifies each, three polls; with the macro THREE three notifiers of
 * one notify each, the third of which has no work, two polls, and no end of the poll request.  The
 * number of the sleep does not wrap.
 *
 * Broken (each by its macro): SENT_FIRST, SENT is set before the write; ANY_SLEEP, SENT is set
 * without a look at the number of the sleep; COUNT_IGNORED, the sleeper does not compare the count;
 * SENT_STAYS, the end of a sleep clears ASLEEP alone; CLEAR_BY_STORE, it loads and stores instead
 * of one fetch_and; DRAIN_LATE, a completion is reaped and forgotten after the next sleep was
 * announced; NO_ANNOUNCE_CAS, the sleeper stores its announcement without comparing; NOT_REARMED, a
 * poll request that has ended is not armed again; ARM_BLIND, one that is armed again does not look
 * at the eventfd; with HOST, AGAIN_BLIND, who has announced a sleep before does not compare the
 * count.
 */
#ifdef THREE
#define TURNS 1
#define POLLS 2
#else
#define TURNS 2
#define POLLS 3
#endif

bool work[2]; /* what each notifier has published */

/* The wake word. */
byte count;
byte number; /* of the sleep */
bool asleep, sent;

/* The transport. */
bool written; /* the eventfd's count is not 0 */
#ifdef HOST
bool armed = true;
#else
bool armed;   /* the poll request */
#endif
bool posted;  /* a completion of it was not reaped */

byte count_seen; /* home thread: stats.notifies */

/* What the assertions look at. */
bool in_kernel;
byte told;     /* notifies that have added to the count */
byte returned; /* the highest of them that has returned */
byte taken;    /* as many of them were taken by the end of a poll */
byte busy;     /* publishers that have not returned */

inline write_wake_fd()
{
    atomic {
        written = true;
        if
        :: armed -> posted = true; armed = true
#if !defined(THREE) && !defined(HOST)
        :: armed -> posted = true; armed = false /* it ends with this one */
#endif
        :: else
        fi
    }
}

#ifndef HOST
inline arm()
{
#ifdef NOT_REARMED
    atomic {
        if
        :: !armed && !written -> armed = true
        :: else
        fi
    }
#else
    atomic {
        if
        :: !armed ->
            armed = true;
#ifndef ARM_BLIND
            posted = posted || written
#endif
        :: else
        fi
    }
#endif
}
#endif

inline set_sent()
{
    atomic {
        if
#ifdef ANY_SLEEP
        :: asleep && !sent -> sent = true
#else
        :: asleep && number == slept && !sent -> sent = true
#endif
        :: else
        fi
    }
}

inline notify(p)
{
    atomic {
        wakes = asleep && !sent;
        slept = number;
        count++;
        told++;
        mine = told
    };
    if
    :: wakes ->
#ifdef SENT_FIRST
        set_sent();
        write_wake_fd()
#else
        write_wake_fd();
        set_sent()
#endif
    :: else
    fi;
    atomic {
        returned = (mine > returned -> mine : returned);
        assert(!in_kernel || posted || taken >= mine);
        mine = 0;
        slept = 0;
        wakes = false
    }
}

/* A compare-and-swap that puts the work on a stack or a list: never left in a buffer. */
inline publish(p)
{
    atomic { work[p] = true; busy++ }
}

proctype notifier(byte p)
{
    byte turns = TURNS, mine, slept;
    bool wakes;

    do
    :: turns > 0 ->
        turns--;
        if
        :: notify(p) /* the caller has set a flag of its own */
        :: p < 2 -> publish(p); notify(p); busy--
#ifndef THREE
        :: publish(p);
            if
            :: asleep -> notify(p)
            :: else
            fi;
            busy--
#endif
        fi
    :: else -> break
    od
}

/* Sets ok. */
inline begin_sleep()
{
    atomic {
        old_count = count;
#ifdef COUNT_IGNORED
        ok = true
#else
#ifdef AGAIN_BLIND
        ok = asleep || count == count_seen
#else
        ok = count == count_seen
#endif
#endif
    };
    atomic {
        if
#ifdef NO_ANNOUNCE_CAS
        :: ok -> number++; asleep = true
#else
        :: ok && count == old_count -> number++; asleep = true
#endif
        :: else -> ok = false
        fi;
        old_count = 0
    }
}

/* No work at all. */
inline look()
{
    ok = ok && !work[0];
    ok = ok && !work[1];
    ok = ok
}

inline take_count()
{
    count_seen = count;
    taken = told
}

inline end_sleep()
{
    if
    :: asleep ->
#ifdef CLEAR_BY_STORE
        atomic { old_count = count; taken = told };
        atomic {
            count = old_count;
            asleep = false;
            sent = false;
            count_seen = old_count;
            old_count = 0
        }
#else
        atomic {
            asleep = false;
#ifndef SENT_STAYS
            sent = false;
#endif
            take_count()
        }
#endif
    :: else -> atomic { take_count() }
    fi
}

inline dispatch()
{
    work[0] = false;
    work[1] = false
}

inline wait()
{
#ifndef HOST
    arm();
#endif
    atomic {
        in_kernel = true;
        assert(posted || taken >= returned)
    };
end_waiting:
    if
    :: atomic {
            !posted && busy == 0 ->
            assert(!work[0] && !work[1]);
            goto end_waiting
        }
    :: posted ->
        in_kernel = false;
#if !defined(DRAIN_LATE) && !defined(HOST)
        posted = false
#endif
    :: in_kernel = false /* for something else */
    fi
}

active proctype home()
{
    byte polls, old_count;
    bool ok;

    do
    :: polls < POLLS ->
        polls++;
#ifdef HOST
again:
#ifndef DRAIN_LATE
        posted = false;
#endif
#endif
        begin_sleep();
#ifdef DRAIN_LATE
        posted = false;
#endif
        look();
        if
        :: ok ->
            ok = false;
            wait();
#ifdef HOST
            if
            :: polls < POLLS -> polls++; goto again /* prepare without a dispatch before */
            :: true
            fi
#endif
        :: else
        fi;
        end_sleep();
        dispatch()
    :: else -> break
    od
}

init
{
    atomic {
        run notifier(0);
        run notifier(1);
#ifdef THREE
        run notifier(2)
#endif
    }
}
