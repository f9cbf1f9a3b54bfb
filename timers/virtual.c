/* SPDX-License-Identifier: MIT */
/*
 * VIRTUAL and VIRTUAL_RT: reading, starting and stopping; see virtual_int.h.
 *
 * A writer makes `seq` odd, writes, makes it even; a reader waits while it is odd, and reads again
 * when its two looks at `seq` differ.  The fields are stored with release and loaded with acquire
 * order, which keeps them between the two accesses to `seq` without fences.
 * Source: Boehm, "Can Seqlocks Get Along With Programming Language Memory Models?", 2012.
 */
#include "timers/virtual_int.h"

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"
#include "timers/clock_int.h"
#include "timers/ticks_int.h"

#include <sched.h>
#include <time.h>

struct virtual_clock virtual_clock = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int64_t read_host_ticks(void)
{
#if HOST_HAS_TICKS
    return (int64_t)host_ticks();
#else
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
#endif
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* Without a replaced source of VIRTUAL_RT. */
static int64_t rt_now(void)
{
    bool running = ld_seq(&virtual_clock.running);
    int64_t ns = ld_acquire(&virtual_clock.rt_base_ns);

    if (running) {
        ns = ns_add(ns, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    }
    return ns < 0 ? 0 : ns; /* a replaced source may step back */
}

static int64_t rt_now_or_replaced(void)
{
    int64_t ns;

    return clock_read_replaced(QEMU_CLOCK_VIRTUAL_RT, &ns) ? ns : rt_now();
}

/* VIRTUAL while instructions are counted, in its parts. */
struct counted {
    int64_t ns;      /* the sum */
    int64_t warp_ns; /* of it: by the warp */
    int64_t count;   /* instructions that it holds */
    int64_t rt_ns;   /* VIRTUAL_RT; only while it is warped */
};

static struct counted counted_now(void)
{
    struct counted c = { .ns = ld_acquire(&virtual_clock.base_ns),
                         .count = ld_acquire(&virtual_clock.base_count) };
    int64_t base_count = c.count, rt, end, limit;

    if (!ld_seq(&virtual_clock.running)) {
        return c;
    }
    c.count = ld_seq(&virtual_clock.count);
    c.ns = ns_add(c.ns, ns_of_instructions(c.count - base_count, ld_acquire(&virtual_clock.shift)));
    if (ld_acquire(&virtual_clock.warping)) {
        c.rt_ns = rt_now_or_replaced();
        rt = ns_sub(c.rt_ns, ld_acquire(&virtual_clock.warp_start_ns));
        limit = ld_acquire(&virtual_clock.warp_limit_ns);
        end = rt > 0 ? ns_add(c.ns, rt) : c.ns;
        end = end < limit ? end : limit;
        c.warp_ns = end > c.ns ? end - c.ns : 0;
        c.ns += c.warp_ns;
    }
    return c;
}

/* A writer is inside for less than a microsecond, unless it was switched off there. */
static __attribute__((noinline, cold)) unsigned wait_for_writer(void)
{
    const struct timespec nap = { .tv_nsec = 50000 };
    unsigned seq;

    for (unsigned round = 0; (seq = ld_seq(&virtual_clock.seq)) & 1; round++) {
        rcu_check_fork("a clock"); /* it may have been left odd */
        if (round >= 200) {        /* the writer may have a lower priority */
            int cancel = cancel_off();

            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
            cancel_restore(cancel);
        } else if (round >= 100) {
            sched_yield();
        }
    }
    return seq;
}

static inline unsigned read_begin(void)
{
    unsigned seq = ld_seq(&virtual_clock.seq);

    return likely(!(seq & 1)) ? seq : wait_for_writer();
}

/* The reading of the time lies between the looks at seq too: it is not past the stop. */
static inline bool read_again(unsigned seq)
{
    return unlikely(ld_seq(&virtual_clock.seq) != seq);
}

int64_t virtual_get_ns(void)
{
    unsigned seq;
    int64_t ns;

    do {
        seq = read_begin();
        ns = ld_acquire(&virtual_clock.counting) ? counted_now().ns : rt_now();
    } while (read_again(seq));
    return ns;
}

int64_t cpu_get_clock(void)
{
    unsigned seq;
    int64_t ns;

    do {
        seq = read_begin();
        ns = rt_now();
    } while (read_again(seq));
    return ns;
}

int64_t cpu_get_ticks(void)
{
    unsigned seq;
    int64_t ticks;

    do {
        seq = read_begin();
        if (ld_acquire(&virtual_clock.counting)) {
            ticks = counted_now().ns;
        } else {
            ticks = ld_acquire(&virtual_clock.base_ticks);
            ticks += ld_seq(&virtual_clock.running) ? read_host_ticks() : 0;
        }
    } while (read_again(seq));
    return ticks;
}

bool virtual_is_running(void)
{
    return ld_seq(&virtual_clock.running);
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* seq is odd before the time is read, not just before a field changes: else a reader could still
 * return a time past the one at which the clock is about to stop. */
void virtual_write_begin(void)
{
    pthread_mutex_lock(&virtual_clock.lock);
    st_seq(&virtual_clock.seq, virtual_clock.seq + 1);
}

void virtual_write_end(void)
{
    st_seq(&virtual_clock.seq, virtual_clock.seq + 1);
    pthread_mutex_unlock(&virtual_clock.lock);
}

int64_t virtual_rebase_locked(int64_t *ret_rt_ns)
{
    struct counted c = counted_now();

    st_release(&virtual_clock.base_ns, c.ns);
    st_release(&virtual_clock.base_count, c.count);
    if (virtual_clock.warping) { /* what the limit held back stays owed */
        st_release(&virtual_clock.warp_start_ns, ns_add(virtual_clock.warp_start_ns, c.warp_ns));
    }
    *ret_rt_ns = virtual_clock.warping && virtual_clock.running ? c.rt_ns : rt_now_or_replaced();
    return c.ns;
}

void virtual_count_on_locked(int shift)
{
    int64_t rt = rt_now_or_replaced();
    int64_t now = virtual_clock.counting ? virtual_clock.base_ns : rt_now();

    st_release(&virtual_clock.base_ns, now);
    st_release(&virtual_clock.base_count, 0);
    st_seq(&virtual_clock.count, 0);
    st_release(&virtual_clock.shift, shift);
    st_release(&virtual_clock.warping, false);
    st_release(&virtual_clock.rt_zero_ns, rt - now);
    st_release(&virtual_clock.stop_rt_ns, rt);
    st_release(&virtual_clock.counting, true);
}

void virtual_count_off_locked(void)
{
    if (virtual_clock.base_ns > virtual_clock.rt_base_ns) {
        st_release(&virtual_clock.rt_base_ns, virtual_clock.base_ns);
    }
    st_release(&virtual_clock.shift, 0);
    st_release(&virtual_clock.warping, false);
    st_release(&virtual_clock.counting, false);
}

/* VIRTUAL_RT makes a step that is none of VIRTUAL's. */
static void skip_rt_locked(int64_t step_ns)
{
    st_release(&virtual_clock.warp_start_ns, ns_add(virtual_clock.warp_start_ns, step_ns));
    st_release(&virtual_clock.rt_zero_ns, ns_add(virtual_clock.rt_zero_ns, step_ns));
    st_release(&virtual_clock.stop_rt_ns, ns_add(virtual_clock.stop_rt_ns, step_ns));
}

static void set_running_locked(bool run)
{
    int64_t sign = run ? -1 : 1, rt;

    if (virtual_clock.counting && !run) {
        virtual_rebase_locked(&rt);
        st_release(&virtual_clock.stop_rt_ns, rt);
    }
    /* The start is sequentially consistent with a sleeper's look at its deadlines. */
    st_release(&virtual_clock.rt_base_ns,
               ns_add(virtual_clock.rt_base_ns, sign * qemu_clock_get_ns(QEMU_CLOCK_REALTIME)));
    st_release(&virtual_clock.base_ticks, virtual_clock.base_ticks + sign * read_host_ticks());
    st_seq(&virtual_clock.running, run);
    if (virtual_clock.counting && run) {
        skip_rt_locked(ns_sub(rt_now_or_replaced(), virtual_clock.stop_rt_ns));
    }
}

static void set_running(bool run)
{
    bool change;

    rcu_check_fork(run ? "cpu_enable_ticks" : "cpu_disable_ticks");
    virtual_write_begin();
    change = virtual_clock.running != run;
    if (change) {
        set_running_locked(run);
    }
    virtual_write_end();
    if (change) {
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL);
        qemu_clock_notify(QEMU_CLOCK_VIRTUAL_RT);
    }
}

void cpu_enable_ticks(void)
{
    set_running(true);
}

void cpu_disable_ticks(void)
{
    set_running(false);
}

/* VIRTUAL goes on from where it is, whichever clock the source is of. */
struct clock_source *virtual_swap_source(QEMUClockType type, struct clock_source *source)
{
    struct clock_source *old;
    int64_t before, rt;

    virtual_write_begin();
    before = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    rt = rt_now_or_replaced();
    old = xchg_seq(&clock_of(type)->source, source);
    if (type == QEMU_CLOCK_REALTIME && virtual_clock.running) {
        st_release(
            &virtual_clock.rt_base_ns,
            ns_add(virtual_clock.rt_base_ns, before - qemu_clock_get_ns(QEMU_CLOCK_REALTIME)));
    }
    if (type == QEMU_CLOCK_VIRTUAL_RT) {
        skip_rt_locked(rt_now_or_replaced() - rt);
    }
    virtual_write_end();
    return old;
}
