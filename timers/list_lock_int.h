/* SPDX-License-Identifier: MIT */
/*
 * A timer list's lock: a mutex that costs its owner, the thread that runs the list, two stores.
 *
 * While the lock is biased, the owner says with `in` that it is inside, and takes no mutex.
 * Another thread takes the mutex, takes the bias away, waits until the owner is out, and from then
 * on everyone uses the mutex.  The owner takes the bias back, holding the mutex, when it has had
 * the mutex many times and nobody else has.
 *
 *   owner     in = 1                          |  other, holding the mutex
 *             compiler barrier                |            biased = 0
 *             load biased                     |            barrier on all threads (membarrier)
 *             0: in = 0, take the mutex       |            load in, until it is 0   acquire
 *             ...
 *             in = 0              release     |
 *
 * Nobody enters beside another: the membarrier comes after `biased = 0`, so an owner whose store
 * of `in` it did not bring out loads `biased` after it, and gets 0; one whose store it did bring
 * out is waited for.  `in` and the return of the bias are written by the owner alone, and the owner
 * is one thread at a time: the first that runs the list, or one that has got its number after its
 * end.  What the owner did inside happens before the other's
 * entry (in, release to acquire), and the reverse by the mutex, without which the owner gets no
 * bias back.  Who takes the bias while the owner is switched off inside waits for it to be switched
 * on again, as with any lock that is held.
 * Source of the idea: Kawachiya, Koseki and Onodera, "Lock Reservation", 2002; of its barrier:
 * Dice, Huang and Yang, "Asymmetric Dekker Synchronization", 2001.
 */
#ifndef TIMERS_LIST_LOCK_INT_H
#define TIMERS_LIST_LOCK_INT_H

#include "rcu/atomic_int.h"
#include "rcu/barrier_int.h"
#include "rcu/util_int.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct list_lock {
    uintptr_t owner; /* atomic; 0: none yet */
    bool biased;     /* atomic; written under the mutex */
    bool in;         /* atomic; written by the owner: it is inside by the bias, or about to see */
    unsigned streak; /* under the mutex: the owner's turns in a row */
    unsigned wait;   /* under the mutex: the streak after which the bias comes back */
    int64_t biased_at_ns; /* under the mutex: when it did so last */
    pthread_mutex_t mutex;
};

/*
 * The bias saves the owner some 5 ns a turn, and taking it away costs both sides some 10 us.  So it
 * comes back after BIAS_AFTER turns, and after four times as many, up to BIAS_AFTER_MAX, each time
 * that it was not kept for BIAS_KEPT_NS: where others come often, the lock stays a mutex.
 */
enum { BIAS_AFTER = 4096, BIAS_AFTER_MAX = 1 << 22 };
#define BIAS_KEPT_NS INT64_C(20000000)

/* A number that no other living thread has. */
static inline uintptr_t thread_number(void)
{
    return (uintptr_t)&this_thread;
}

void list_lock_init(struct list_lock *l);
void list_lock_destroy(struct list_lock *l);

/* Makes the calling thread the owner, unless there is one.  It takes no lock; the bias comes later,
 * with one of the owner's turns. */
static inline void list_lock_claim(struct list_lock *l)
{
    uintptr_t none = 0;

    if (unlikely(ld_relaxed(&l->owner) == 0)) {
        cas_seq(&l->owner, &none, thread_number());
    }
}

void list_lock_slow(struct list_lock *l);

/* For whoever has the lock: drops it and takes it again with the mutex, also where the caller is
 * the owner, for list_lock_cond_wait(). */
void list_lock_to_wait(struct list_lock *l);

/* pthread_cond_wait(), after list_lock_to_wait(). */
void list_lock_cond_wait(struct list_lock *l, pthread_cond_t *cond);

static inline bool list_lock_is_owner(const struct list_lock *l)
{
    return ld_relaxed(&l->owner) == thread_number();
}

/* Takes the lock if that takes no mutex. */
static ALWAYS_INLINE bool list_lock_by_bias(struct list_lock *l)
{
    if (likely(list_lock_is_owner(l))) {
        st_relaxed(&l->in, true);
        barrier_compiler(); /* pairs with barrier_all_threads() in take_bias() */
        if (likely(ld_acquire(&l->biased))) {
            return true;
        }
        st_release(&l->in, false);
    }
    return false;
}

static ALWAYS_INLINE void list_unlock_by_bias(struct list_lock *l)
{
    st_release(&l->in, false); /* pairs with the load in take_bias() */
}

static inline void list_lock(struct list_lock *l)
{
    if (!list_lock_by_bias(l)) {
        list_lock_slow(l);
    }
}

static inline void list_unlock(struct list_lock *l)
{
    if (likely(list_lock_is_owner(l) && ld_relaxed(&l->in))) {
        list_unlock_by_bias(l);
    } else {
        pthread_mutex_unlock(&l->mutex);
    }
}

#endif
