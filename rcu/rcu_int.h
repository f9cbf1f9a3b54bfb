/* SPDX-License-Identifier: MIT */
/* What the rcu folder offers to the other folders beside <aioctx/rcu.h>. */
#ifndef RCU_RCU_INT_H
#define RCU_RCU_INT_H

#include <stdbool.h>

/* Set in a child of fork(), which has the library's state but none of its threads. */
extern bool rcu_forked;
/* From now on a child of fork() is one that must not use the library. */
void rcu_mark_used(void);
_Noreturn void rcu_die_forked(const char *call);

/* Aborts, naming @call, in a child of fork(). */
static inline void rcu_check_fork(const char *call)
{
    if (__builtin_expect(rcu_forked, 0)) {
        rcu_die_forked(call);
    }
}

/* Aborts, naming @call, when the calling thread is inside a read section: it is about to wait. */
void rcu_check_may_wait(const char *call);

/* Whether the calling thread may wait for a grace period: it is neither inside a read section or a
 * deferred call nor below a callback. */
bool rcu_may_wait(void);
/* From now on it may not: another thread that may not waits for it. */
void rcu_set_may_not_wait(void);

/* How many deferred calls have been made. */
unsigned long rcu_reclaimed(void);

/*
 * Waits for the deferred calls that were queued before, which give memory and descriptors back; two
 * seconds at most, since one of them may wait for a lock that the caller holds.  Where there are
 * none, or the calling thread may not wait, it returns at once whether any was made since
 * rcu_reclaimed() was @since; else false when they were not made by then.
 */
bool rcu_reclaim(unsigned long since);

/* Marks the calling thread as one that aio_call_rcu() must never hold up: a context's home. */
void rcu_set_never_block(void);

#endif
