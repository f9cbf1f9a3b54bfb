/* SPDX-License-Identifier: MIT */
/* What the rcu folder offers to the other folders beside <aioctx/rcu.h>. */
#ifndef RCU_RCU_INT_H
#define RCU_RCU_INT_H

/*
 * Aborts, naming @call, when the calling thread is a child that fork() left with the library's
 * state but without its threads.  Cheap: one load.
 */
void rcu_check_fork(const char *call);

/* Aborts, naming @call, when the calling thread is inside a read section: it is about to wait. */
void rcu_check_may_wait(const char *call);

/* Marks the calling thread as one that aio_call_rcu() must never hold up: a context's home. */
void rcu_set_never_block(void);

#endif
