/* SPDX-License-Identifier: MIT */
/*
 * A memory barrier on every thread of the process at once, so that the frequent side of a protocol
 * can do without one.
 * Source: membarrier(2), MEMBARRIER_CMD_PRIVATE_EXPEDITED.
 */
#ifndef RCU_BARRIER_INT_H
#define RCU_BARRIER_INT_H

#include <stdbool.h>

/* Whether barrier_all_threads() can be used; the answer never changes.  Thread: any. */
bool barrier_available(void);

/*
 * When it returns, every other thread has passed through a full barrier since the call.  Some
 * microseconds, and an interrupt for each processor that runs a thread of the process.  Aborts when
 * the system call fails though barrier_available() has said that it was there: when it has come to
 * be forbidden.
 * Thread: any.
 */
void barrier_all_threads(void);

/* The other side's half: keeps the compiler from moving accesses across it. */
#define barrier_compiler() __atomic_signal_fence(__ATOMIC_SEQ_CST)

#endif
