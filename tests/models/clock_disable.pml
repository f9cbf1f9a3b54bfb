/* SPDX-License-Identifier: MIT */
/*
 * Disabling a clock while its timers run: timers/clock_int.h, timers/clock.c, timers/timerlist.c.
 *
 *   raise, lower, pass_done  timerlist_run_timers(), clock_pass_done()
 *   begin_cb, end_cb         run_pass(), around a callback
 *   runner                   the thread that runs a list; the inner pass is a nested poll's
 *   disabler                 qemu_clock_enable(type, false), wait_for_passes()
 *   enabler                  qemu_clock_enable(type, true) by another thread, at any moment
 *
 * Holds: when disabling returns, no callback runs, nor does any begin later, but of a pass that
 * found the clock enabled again; and it does return, where passes cease (no invalid end state) and
 * where the clock was enabled again and they follow each other for ever (LIVENESS: no acceptance
 * cycle under weak fairness, a search of its own).
 *
 * Abstracted: a thread in a callback goes on by itself; the list of lists does not change;
 * passes_ended is a bit that says whether it has moved since the disabler read it.
 * Bounds: two lists; passes without end, nested once at most, of one callback each; one disabling
 * and one enabling.
 *
 * Broken (each by its macro): PLAIN_DISABLE, a release store of `enabled`; RUNNER_LOOKS_FIRST, at
 * `enabled`, and then raises its count; DISABLER_LOOKS_FIRST, at the counts, and then stores
 * `enabled`; INNER_PASS_ENDS, the end of an inner pass counts as the end of all; PLAIN_WAITERS, a
 * release store of disable_waiters; WAITERS_LATE, the disabler looks whether it has to wait before
 * it says that it waits; ZERO_ALONE, it waits until it sees a count of zero itself, which passes
 * that follow each other may never show it.
 */
#define DISABLER 0
#define RUNNER(l) (1 + (l))
#define PROCS 3

#define ENABLED 0
#define WAITERS 1
#define PASSES(l) (2 + (l))
#define ENDED(l) (4 + (l))
#define VARS 6
#include "tso.pml"

bool wait_lock;
bool asleep; /* the disabler, on pass_done */

/* What the assertions look at. */
bool disabled; /* the disabler has stored so */
bool returned; /* and has returned */
bool again;    /* the enabler came after that store */
byte old[2];   /* callbacks on a list's stack whose pass saw `enabled` before that */

inline take_wait_lock()
{
    atomic { !wait_lock -> wait_lock = true }
}

/* ---- Runners ---- */

/* The pass found the clock enabled: was_old tells when. */
inline look_enabled(l, was_old)
{
    LD(RUNNER(l), ENABLED) -> was_old = !again
}

inline raise(l)
{
    atomic { drained(RUNNER(l)); mem[PASSES(l)]++ }
}

inline begin_cb(l, was_old)
{
    atomic { assert(!returned || !was_old); old[l] = old[l] + was_old }
}

inline end_cb(l, was_old)
{
    atomic { old[l] = old[l] - was_old; was_old = 0 }
}

inline pass_done(l)
{
    if
    :: LD(RUNNER(l), WAITERS) ->
        take_wait_lock();
        asleep = false; /* broadcast */
        wait_lock = false
    :: else
    fi
}

inline lower(l)
{
    atomic { drained(RUNNER(l)); mem[PASSES(l)]-- }
}

/* Who sees no pass sees that one has ended. */
inline end_pass(l)
{
    st_seq(RUNNER(l), ENDED(l), 1);
    lower(l);
    pass_done(l)
}

inline end_inner_pass(l)
{
#ifdef INNER_PASS_ENDS
    end_pass(l)
#else
    lower(l)
#endif
}

proctype runner(byte l)
{
    bool outer_old, inner_old;

end:
    do
#ifdef RUNNER_LOOKS_FIRST
    :: atomic { look_enabled(l, outer_old) };
        raise(l);
#else
    :: LD(RUNNER(l), ENABLED); /* the look without a count */
        raise(l);
        if
        :: atomic { look_enabled(l, outer_old) }
        :: !LD(RUNNER(l), ENABLED) -> goto ended
        fi;
#endif
        begin_cb(l, outer_old);
        if
        :: raise(l);
            if
            :: atomic { look_enabled(l, inner_old) };
                begin_cb(l, inner_old);
                end_cb(l, inner_old)
            :: !LD(RUNNER(l), ENABLED)
            fi;
            end_inner_pass(l)
        :: true
        fi;
        end_cb(l, outer_old);
ended:
        end_pass(l)
    od
}

/* ---- Disabling and enabling ---- */

inline store_disabled()
{
    atomic {
        drained(DISABLER);
        disabled = true;
#ifdef PLAIN_DISABLE
        sb[DISABLER].n = 1 /* ENABLED and 0 are what the slot holds */
#else
        mem[ENABLED] = 0
#endif
    }
}

inline say_waiting()
{
#ifdef PLAIN_WAITERS
    st_rel(DISABLER, WAITERS, 1)
#else
    st_seq(DISABLER, WAITERS, 1)
#endif
}

/* pthread_cond_wait() */
inline cond_wait()
{
    atomic { wait_lock = false; asleep = true };
#ifdef LIVENESS
accept_waiting:
#endif
    !asleep;
    take_wait_lock()
}

proctype disabler()
{
    byte l;

#ifndef DISABLER_LOOKS_FIRST
    store_disabled();
#endif
next_list:
    if
    :: l == 2 -> goto done
    :: l < 2 && LD(DISABLER, PASSES(l)) == 0 -> l++; goto next_list
    :: else
    fi;
    mem[ENDED(l)] = 0; /* passes_ended is read */
    take_wait_lock();
#ifdef WAITERS_LATE
    if
    :: LD(DISABLER, PASSES(l)) > 0 -> say_waiting(); goto sleep
    :: else
    fi;
#endif
    say_waiting();
look:
    if
    :: LD(DISABLER, PASSES(l)) == 0 -> goto waited
    :: else
    fi;
#ifndef ZERO_ALONE
    if
    :: LD(DISABLER, ENDED(l)) -> goto waited
    :: else
    fi;
#endif
sleep:
    cond_wait();
    goto look;
waited:
    st_seq(DISABLER, WAITERS, 0);
    wait_lock = false;
    l++;
    goto next_list;
done:
#ifdef DISABLER_LOOKS_FIRST
    store_disabled();
#endif
    atomic { assert(old[0] == 0 && old[1] == 0); returned = true }
}

proctype enabler()
{
    atomic { mem[ENABLED] = 1; again = disabled }
}

#ifdef LIVENESS
/* Something always runs: the search takes a system that has come to rest for one that waits. */
active proctype idle()
{
    bit beat;

    do
    :: beat = 1 - beat
    od
}
#endif

init
{
    atomic {
        mem[ENABLED] = 1;
        run disabler();
        run runner(0);
        run runner(1);
        if
        :: run enabler()
        :: true
        fi
    }
}
