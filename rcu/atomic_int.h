/* SPDX-License-Identifier: MIT */
/*
 * Every atomic operation of the library, over the C11 memory model, so that tests can replace,
 * delay or count them in one place.
 *
 * They act on plain objects, as structs in public headers cannot hold _Atomic members; a field that
 * is ever accessed this way is accessed only this way while others may see it.  The name ends in
 * the memory order.  There are no fences: where two threads must not both miss each other (store,
 * then load), all four accesses are _seq, which is what ThreadSanitizer follows too.  The list's
 * lock alone has a membarrier on one side in their place: timers/list_lock_int.h.
 */
#ifndef RCU_ATOMIC_INT_H
#define RCU_ATOMIC_INT_H

#ifdef AIOCTX_INTERLEAVE
#include <stdbool.h>
#include <stdint.h>
#endif

#ifndef AIOCTX_INTERLEAVE

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

#else

/*
 * Built for tests/interleave.h, which runs a few threads through every order of their accesses:
 * each access is a call, which returns when it is its turn.  @order is an __ATOMIC_* constant;
 * read-modify-writes are full barriers there, as on x86.
 */
enum { INTERLEAVE_XCHG, INTERLEAVE_ADD, INTERLEAVE_OR, INTERLEAVE_AND };
uint64_t interleave_load(const volatile void *p, unsigned size, int order);
void interleave_store(volatile void *p, unsigned size, uint64_t value, int order);
uint64_t interleave_update(volatile void *p, unsigned size, int op, uint64_t value); /* the old */
bool interleave_cas(volatile void *p, unsigned size, void *expected, uint64_t desired);

#define interleave_ld(p, order) ((__typeof__(*(p)))interleave_load((p), sizeof(*(p)), (order)))
#define interleave_st(p, v, order) interleave_store((p), sizeof(*(p)), (uintptr_t)(v), (order))
#define interleave_rmw(p, op, v) \
    ((__typeof__(*(p)))interleave_update((p), sizeof(*(p)), (op), (uintptr_t)(v)))

#define ld_relaxed(p) interleave_ld((p), __ATOMIC_RELAXED)
#define ld_acquire(p) interleave_ld((p), __ATOMIC_ACQUIRE)
#define ld_seq(p) interleave_ld((p), __ATOMIC_SEQ_CST)

#define st_relaxed(p, v) interleave_st((p), (v), __ATOMIC_RELAXED)
#define st_release(p, v) interleave_st((p), (v), __ATOMIC_RELEASE)
#define st_seq(p, v) interleave_st((p), (v), __ATOMIC_SEQ_CST)

#define xchg_seq(p, v) interleave_rmw((p), INTERLEAVE_XCHG, (v))
#define add_fetch_relaxed(p, v) (interleave_rmw((p), INTERLEAVE_ADD, (v)) + (v))
#define sub_fetch_acq_rel(p, v) (interleave_rmw((p), INTERLEAVE_ADD, -(uintptr_t)(v)) - (v))
#define fetch_add_seq(p, v) interleave_rmw((p), INTERLEAVE_ADD, (v))
#define fetch_sub_seq(p, v) interleave_rmw((p), INTERLEAVE_ADD, -(uintptr_t)(v))
#define fetch_or_seq(p, v) interleave_rmw((p), INTERLEAVE_OR, (v))
#define fetch_and_seq(p, v) interleave_rmw((p), INTERLEAVE_AND, (v))
#define cas_seq(p, expected, desired) \
    interleave_cas((p), sizeof(*(p)), (expected), (uintptr_t)(desired))

#endif

/* A counter that one thread writes and any thread reads. */
#define count_own(p, n) st_relaxed((p), ld_relaxed(p) + (n))

#endif
