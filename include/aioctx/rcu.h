/* SPDX-License-Identifier: MIT */
/*
 * Read-copy-update: read sections, deferred frees and grace periods.
 *
 * A thin face over liburcu, so that no program has to know which of its flavours this library
 * uses.  A thread registers itself at its first call and is unregistered when it exits.
 *
 *                       may run beside     may block   inside a read section
 *   aio_rcu_read_lock   everything         no          yes (sections nest)
 *   aio_rcu_read_unlock everything         no          ends it
 *   aio_call_rcu        everything         see below   yes
 *   aio_synchronize_rcu everything         yes         no: aborts
 *   aio_rcu_barrier     everything         yes         no: aborts
 */
#ifndef AIOCTX_RCU_H
#define AIOCTX_RCU_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Room for one deferred call; embed it in the object that is to be freed.  Contents are private. */
typedef struct AioRcuHead {
    void *opaque[4];
} AioRcuHead;

/* A deferred call; @head is the one given to aio_call_rcu(). */
typedef void AioRcuFunc(AioRcuHead *head);

/*
 * Begins an RCU read section on the calling thread: what is freed through aio_call_rcu() after
 * this point stays valid until the matching aio_rcu_read_unlock().  Sections nest.
 * Thread: any; never blocks.  Not from a signal handler.
 * Source: Desnoyers et al., "User-Level Implementations of Read-Copy Update", 2012.
 */
void aio_rcu_read_lock(void);

/* Ends the innermost read section.  Thread: the one that began it; never blocks. */
void aio_rcu_read_unlock(void);

/* Returns whether the calling thread is inside a read section.  Thread: any; never blocks. */
bool aio_rcu_read_ongoing(void);

/*
 * Calls @func(@head) on a thread of the library, once every read section that exists now has
 * ended.  @func must not block for long and must not poll a context.
 * Thread: any.  Blocks only when a great many calls are pending (65536) and the caller is neither
 * in a read section nor on a context's home thread: then it waits for the backlog to shrink.
 * Lifetime: the library owns @head until @func is called, and does not touch it from then on.
 */
void aio_call_rcu(AioRcuHead *head, AioRcuFunc *func);

/*
 * Waits until every read section that exists now has ended.
 * Thread: any, but not inside an RCU read section; blocks.
 */
void aio_synchronize_rcu(void);

/*
 * Waits until every deferred call that was queued before has returned.  Call it before unloading
 * code that such calls run, or at exit when a leak checker is to see everything freed.
 * Thread: any, but neither inside an RCU read section nor in a deferred call; blocks.
 */
void aio_rcu_barrier(void);

#ifdef __cplusplus
}
#endif

#endif
