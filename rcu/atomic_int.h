/* SPDX-License-Identifier: MIT */
/*
 * Every atomic operation of the library, over the C11 memory model, so that tests can replace,
 * delay or count them in one place.
 *
 * They act on plain objects, as structs in public headers cannot hold _Atomic members; a field that
 * is ever accessed this way is accessed only this way while others may see it.  The name ends in
 * the memory order.  There are no fences: where two threads must not both miss each other (store,
 * then load), all four accesses are _seq, which is what ThreadSanitizer follows too.
 */
#ifndef RCU_ATOMIC_INT_H
#define RCU_ATOMIC_INT_H

#define ld_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define ld_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define ld_seq(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)

#define st_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define st_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define st_seq(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)

#define xchg_seq(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define add_fetch_relaxed(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
#define sub_fetch_acq_rel(p, v) __atomic_sub_fetch((p), (v), __ATOMIC_ACQ_REL)
#define fetch_add_seq(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define fetch_sub_seq(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_SEQ_CST)
#define fetch_or_seq(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define fetch_and_seq(p, v) __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)

/* On failure *expected is what was there. */
#define cas_seq(p, expected, desired) \
    __atomic_compare_exchange_n((p), (expected), (desired), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

/* A counter that one thread writes and any thread reads. */
#define count_own(p, n) st_relaxed((p), ld_relaxed(p) + (n))

#endif
