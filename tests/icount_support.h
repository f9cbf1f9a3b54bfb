/* SPDX-License-Identifier: MIT */
/*
 * What the tests of instruction-count time share.  Real time is simulated: nothing there waits for
 * it.
 */
#ifndef TESTS_ICOUNT_SUPPORT_H
#define TESTS_ICOUNT_SUPPORT_H

#include "support.h"

inline IcountOptions Fixed(int shift, bool no_sleep = false)
{
    IcountOptions opts = {};

    opts.shift = shift;
    opts.no_sleep = no_sleep;
    return opts;
}

inline IcountOptions Auto(int shift)
{
    IcountOptions opts = Fixed(shift);

    opts.auto_shift = true;
    return opts;
}

inline int64_t Virtual()
{
    return qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
}

/* VIRTUAL is stopped and counts real time at the begin and at the end of each test. */
class Icount : public testing::Test
{
protected:
    ~Icount() override
    {
        cpu_disable_ticks();
        EXPECT_EQ(icount_configure(nullptr), 0);
        EXPECT_EQ(icount_enabled(), ICOUNT_DISABLED);
    }
    /* Turns counting on, with the warp timer on g, and starts VIRTUAL; returns VIRTUAL. */
    int64_t Start(IcountOptions o)
    {
        o.warp_group = &g.tlg;
        EXPECT_EQ(icount_configure(&o), 0);
        cpu_enable_ticks();
        return Virtual();
    }
    QEMUTimerList *virt() const
    {
        return g.list(QEMU_CLOCK_VIRTUAL);
    }
    /* What a loop does for g when it wakes. */
    bool RunAll()
    {
        return timerlistgroup_run_timers(&g.tlg);
    }

    FakeClock real{ QEMU_CLOCK_REALTIME, 1000000 };
    TestGroup g;
};

#endif
