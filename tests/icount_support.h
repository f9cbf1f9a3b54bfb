/* SPDX-License-Identifier: MIT */
/* What the tests of instruction-count time share. */
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
class CountsInstructions : public testing::Test
{
protected:
    ~CountsInstructions() override
    {
        cpu_disable_ticks();
        EXPECT_EQ(icount_configure(nullptr), 0);
        EXPECT_EQ(icount_enabled(), ICOUNT_DISABLED);
    }
    /* Turns counting on and starts VIRTUAL; returns VIRTUAL. */
    static int64_t StartWith(const IcountOptions &o)
    {
        EXPECT_EQ(icount_configure(&o), 0);
        cpu_enable_ticks();
        return Virtual();
    }
};

/* Real time is simulated: nothing waits for it. */
class Icount : public CountsInstructions
{
protected:
    /* The warp timer is on g. */
    int64_t Start(IcountOptions o)
    {
        o.warp_group = &g.tlg;
        return StartWith(o);
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
