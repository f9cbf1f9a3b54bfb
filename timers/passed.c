/* SPDX-License-Identifier: MIT */
/*
 * Whether a time of REALTIME has passed, for less than a look at the clock where it has not.
 *
 * A thread keeps a mark: what the clock said, and what the processor's counter said just before.
 * Where a tick is less than a nanosecond, the ticks since then are more than the nanoseconds since
 * then: the clock says no more now than the mark plus the ticks.  A time that lies further ahead
 * has not passed; for others, and when the mark is old, the clock is asked, and the mark renewed.
 *
 * The counter is trusted where the processor says that it is steady and it was seen to be fast
 * enough, by a quarter more than is needed, between two marks.  It is trusted no more once it was
 * seen to be too slow.  When it jumps back, as it may while a virtual machine moves to another
 * host, a time that has passed may be taken for one that has not until the mark is renewed, which
 * is in about half a second; so this is for what a timer watches too.
 */
#include "timers/clock_int.h"
#include "timers/ticks_int.h"

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"
#include "timers/timers_ext_int.h"

#if HOST_HAS_TICKS

/* A mark is too old after so many ticks, and says something of the counter's speed, and is renewed,
 * after so many nanoseconds. */
#define MARK_TICKS (UINT64_C(1) << 30)
#define SPEED_NS INT64_C(100000)
/* The counter may be read a little sooner than the program says. */
#define EARLY_NS 1000

enum { SPEED_UNKNOWN, SPEED_FAST, SPEED_NOT_USED };

static int speed; /* atomic; never leaves SPEED_NOT_USED */

/* ns 0: there is none yet, and it is too old. */
static __thread struct {
    uint64_t ticks;
    int64_t ns;
} mark __attribute__((tls_model("initial-exec"))) = { .ticks = UINT64_C(1) << 63 };

/* So many ticks and nanoseconds have passed on this thread since the last mark. */
static void judge_speed(uint64_t ticks, int64_t ns)
{
    bool fast = ticks / 5 >= (uint64_t)ns / 4;
    int unknown = SPEED_UNKNOWN;

    if (fast && ld_relaxed(&speed) == SPEED_UNKNOWN) {
        fast = host_ticks_are_steady();
    }
    if (fast) {
        cas_seq(&speed, &unknown, SPEED_FAST);
    } else {
        st_relaxed(&speed, SPEED_NOT_USED);
    }
}

static __attribute__((noinline)) bool look(int64_t ns)
{
    uint64_t ticks = host_ticks();
    int64_t now = clock_monotonic_ns(); /* waits for what is before it in the program */

    if (now - mark.ns >= SPEED_NS) {
        if (mark.ns && ld_relaxed(&speed) != SPEED_NOT_USED) {
            judge_speed(ticks - mark.ticks, now - mark.ns);
        }
        mark.ticks = ticks;
        mark.ns = now;
    }
    return ns <= now;
}

bool realtime_has_passed(int64_t ns)
{
    uint64_t ticks;

    if (unlikely(clock_is_replaced(QEMU_CLOCK_REALTIME))) {
        return ns <= qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    }
    ticks = host_ticks() - mark.ticks;
    if (likely(ld_relaxed(&speed) == SPEED_FAST && ticks < MARK_TICKS) &&
        likely(ns - mark.ns > (int64_t)ticks + EARLY_NS)) {
        return false;
    }
    return look(ns);
}

#else

bool realtime_has_passed(int64_t ns)
{
    return ns <= qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

#endif
