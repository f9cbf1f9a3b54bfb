/* SPDX-License-Identifier: MIT */
/*
 * Memory with store buffers (total store order), for models to include.
 *
 * Promela alone is sequentially consistent, and would find nothing wrong with a missing barrier.
 * Here each process has a first-in first-out buffer of stores that nobody else sees yet; they come
 * out one by one at any later moment, and a process reads its own ones back.  That is what x86 does
 * (Sewell et al., "x86-TSO", 2010), and how the atomics of rcu/atomic_int.h map to it:
 *
 *   ld_*                            LD(p, a)          own buffer, newest first, then memory
 *   st_relaxed, st_release          st_rel(p, a, v)   into the buffer
 *   st_seq                          st_seq(p, a, v)   the buffer runs empty, then memory
 *   xchg, cas, fetch_*              atomic { drained(p); ... mem[a] ... }
 *
 * A buffer holds SLOTS stores; a store into a full one waits.  Orders that only a weaker machine
 * than this takes apart are not tried: two stores of one thread, two loads of one thread.
 *
 * Defined before the include: PROCS (processes with a buffer), VARS (bytes of memory).
 */
#define SLOTS 3

typedef store_buffer {
    byte n; /* the oldest is at 0; what lies beyond n is 0, so that equal states look equal */
    byte addr[SLOTS];
    byte val[SLOTS]
};

store_buffer sb[PROCS];
byte mem[VARS];

#define AT(p, a, i) (sb[p].n > (i) && sb[p].addr[i] == (a))
#define LD(p, a) \
    (AT(p, a, 2) -> sb[p].val[2] : \
        (AT(p, a, 1) -> sb[p].val[1] : (AT(p, a, 0) -> sb[p].val[0] : mem[a])))

#define drained(p) (sb[p].n == 0)

inline st_rel(p, a, v)
{
    atomic {
        sb[p].n < SLOTS;
        sb[p].addr[sb[p].n] = a;
        sb[p].val[sb[p].n] = v;
        sb[p].n++
    }
}

inline st_seq(p, a, v)
{
    atomic { drained(p); mem[a] = v }
}

inline come_out(p)
{
    d_step {
        sb[p].n > 0;
        mem[sb[p].addr[0]] = sb[p].val[0];
        sb[p].n--;
        sb[p].addr[0] = sb[p].addr[1];
        sb[p].val[0] = sb[p].val[1];
        sb[p].addr[1] = sb[p].addr[2];
        sb[p].val[1] = sb[p].val[2];
        sb[p].addr[2] = 0;
        sb[p].val[2] = 0
    }
}

active proctype buffers()
{
end:
    do
    :: come_out(0)
    :: come_out(1)
#if PROCS > 2
    :: come_out(2)
#endif
#if PROCS > 3
    :: come_out(3)
#endif
    od
}
