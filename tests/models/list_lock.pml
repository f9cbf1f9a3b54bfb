/* SPDX-License-Identifier: MIT */
/*
 * The owner-biased lock of a timer list: timers/list_lock_int.h, timers/list_lock.c.
 *
 *   owner_lock, owner_unlock    list_lock(), list_lock_slow(), list_unlock() by the owner
 *   owner_lock_to_wait          list_lock_to_wait() by the owner
 *   other_lock, mutex_unlock    list_lock() or list_lock_to_wait(), list_unlock() by another
 *   take_bias, membarrier       take_bias(), barrier_all_threads()
 *   cond_wait                   list_lock_cond_wait() by another
 *
 * Holds: one thread at a time is inside, and it sees what the one before has written there; no
 * thread gives back a mutex that it does not hold; nobody waits for ever, also where any of the
 * others has stopped calling (invalid end state).
 *
 * Abstracted: the mutex is one word, given back by a plain release store, which is weaker than what
 * the C library does; a condition wait may wake for nothing at any time, as POSIX allows, and does
 * so here; spinning, yielding and napping are waiting.  membarrier: one thread after another has
 * had an empty buffer at some moment since the call.
 * Bounds: the owner and two others, each any number of turns; BIAS_AFTER is 1; SLOTS stores.
 *
 * Broken (each by its macro): NO_MEMBARRIER; BARRIER_BEFORE_STORE of `biased`; REBIAS_UNLOCKED,
 * after the mutex was given back; UNLOCK_BY_BIAS, which looks at `biased`, taken away meanwhile,
 * where `in` tells; WAIT_KEEPS_BIAS, after a condition wait; NO_WAIT for the owner to come out;
 * STAYS_IN, the owner waits for the mutex with `in` still set.
 */
#define OWNER 0
#define PROCS 3
#define BIAS_AFTER 1

#define IN 0
#define BIASED 1
#define MUTEX 2 /* 0: free, else who holds it, plus 1 */
#define DATA 3  /* what the lock protects: who wrote it last, plus 1 */
#define VARS 4
#include "tso.pml"

byte streak = BIAS_AFTER; /* under the mutex */
byte inside;              /* how many are */
byte last;                /* what DATA should be */
byte seen, holder;        /* for the assertions alone */

inline mutex_lock(p)
{
    atomic { drained(p) && mem[MUTEX] == 0; mem[MUTEX] = p + 1 }
}

inline mutex_unlock(p)
{
    atomic { holder = LD(p, MUTEX); assert(holder == p + 1); holder = 0 };
    st_rel(p, MUTEX, 0)
}

/* The caller passes through a barrier itself, before the others do. */
inline membarrier(p)
{
    drained(p);
    drained(0);
    drained(1);
    drained(2)
}

inline critical(p)
{
    atomic {
        inside++;
        assert(inside == 1);
        seen = LD(p, DATA);
        assert(seen == last);
        seen = 0
    };
    atomic { st_rel(p, DATA, p + 1); last = p + 1 };
    inside--
}

/* Holding the mutex.  The owner is not inside, since it is here. */
inline owner_take_bias()
{
    if
    :: LD(OWNER, BIASED) -> st_rel(OWNER, BIASED, 0)
    :: else
    fi
}

inline take_bias(p)
{
    if
    :: LD(p, BIASED) ->
#ifdef BARRIER_BEFORE_STORE
        membarrier(p);
        st_rel(p, BIASED, 0);
#else
        st_rel(p, BIASED, 0);
#ifndef NO_MEMBARRIER
        membarrier(p);
#endif
#endif
#ifndef NO_WAIT
        !LD(p, IN)
#endif
    :: else
    fi
}

inline owner_lock_to_wait()
{
    mutex_lock(OWNER);
    streak = 0;
    owner_take_bias()
}

inline other_lock(p)
{
    mutex_lock(p);
    streak = 0;
    take_bias(p)
}

/* In between others may have had the lock, and the owner the bias. */
inline cond_wait(p)
{
    mutex_unlock(p);
    mutex_lock(p);
    streak = 0;
#ifndef WAIT_KEEPS_BIAS
    take_bias(p)
#endif
}

inline owner_lock_slow()
{
    mutex_lock(OWNER);
    if
    :: streak >= BIAS_AFTER ->
        streak = 0;
        st_rel(OWNER, IN, 1);
#ifdef REBIAS_UNLOCKED
        mutex_unlock(OWNER);
        st_rel(OWNER, BIASED, 1)
#else
        st_rel(OWNER, BIASED, 1);
        mutex_unlock(OWNER)
#endif
    :: else -> streak++
    fi
}

inline owner_lock()
{
    st_rel(OWNER, IN, 1);
    /* a compiler barrier, and no other */
    if
    :: LD(OWNER, BIASED)
    :: else ->
#ifndef STAYS_IN
        st_rel(OWNER, IN, 0);
#endif
        owner_lock_slow()
    fi
}

inline owner_unlock()
{
    if
#ifdef UNLOCK_BY_BIAS
    :: LD(OWNER, BIASED) -> st_rel(OWNER, IN, 0)
#else
    :: LD(OWNER, IN) -> st_rel(OWNER, IN, 0)
#endif
    :: else -> mutex_unlock(OWNER)
    fi
}

active proctype owner()
{
    do
    :: owner_lock(); critical(OWNER); owner_unlock()
    :: owner_lock_to_wait(); critical(OWNER); mutex_unlock(OWNER)
    :: break
    od
}

proctype other(byte p)
{
    do
    :: other_lock(p);
        critical(p);
        if
        :: cond_wait(p); critical(p)
        :: skip
        fi;
        mutex_unlock(p)
    :: break
    od
}

init { atomic { run other(1); run other(2) } }
