/* SPDX-License-Identifier: MIT */
/* Instruction-count time whose shift is steered, on simulated hosts. */
#include "icount_support.h"

#include <algorithm>
#include <cstdlib>

/* A host that needs @ns_per_instruction, in slices of at most @slice, for @run_ns; returns the
 * largest distance between VIRTUAL and VIRTUAL_RT after @settle_ns. */
static int64_t SimulateHost(FakeClock *real, double ns_per_instruction, int64_t slice,
                            int64_t run_ns, int64_t settle_ns, std::vector<int> *shifts)
{
    int64_t zero = real->Now(), worst = 0, n = 0, last = Virtual();

    while (real->Now() < zero + run_ns) {
        int64_t run = std::min(slice, icount_budget(QEMU_TIMER_ATTR_ALL));

        n += run;
        real->Set(zero + static_cast<int64_t>(static_cast<double>(n) * ns_per_instruction));
        icount_update(run);
        int64_t now = Virtual();

        EXPECT_GE(now, last) << "monotone across changes of the shift";
        EXPECT_LE(now - last, run << ICOUNT_MAX_SHIFT) << "and without a step";
        last = now;
        if (real->Now() > zero + settle_ns) {
            worst = std::max(worst, std::abs(now - qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT)));
            if (shifts && (shifts->empty() || shifts->back() != icount_get_shift())) {
                shifts->push_back(icount_get_shift());
            }
        }
    }
    return worst;
}

class IcountAuto : public Icount, public testing::WithParamInterface<int>
{
};
INSTANTIATE_TEST_SUITE_P(FirstShifts, IcountAuto, testing::Values(0, 3, 10));

TEST_P(IcountAuto, ConvergesOnASimulatedHost)
{
    const struct {
        double ns;
        int low;
    } hosts[] = { { 1.1, 0 }, { 3.3, 1 }, { 6.0, 2 }, { 100, 6 }, { 900, 9 } };

    for (const auto &host : hosts) {
        std::vector<int> shifts;
        Start(Auto(GetParam()));
        EXPECT_EQ(icount_enabled(), ICOUNT_AUTO);
        int64_t slice = static_cast<int64_t>(200000 / host.ns); /* 200 us */
        int64_t worst = SimulateHost(&real, host.ns, slice, 4 * INT64_C(1000000000),
                                     2 * INT64_C(1000000000), &shifts);

        EXPECT_LE(worst, 60000000) << host.ns << " ns per instruction";
        for (int shift : shifts) {
            EXPECT_GE(shift, host.low);
            EXPECT_LE(shift, host.low + 1);
        }
        cpu_disable_ticks();
        EXPECT_EQ(icount_configure(nullptr), 0); /* the two clocks are one again */
    }
}

TEST_F(Icount, AutoHoldsAShiftThatFits)
{
    std::vector<int> shifts;

    Start(Auto(3));
    int64_t worst = SimulateHost(&real, 8.0, 10000, 1000000000, 0, &shifts);
    EXPECT_LE(worst, 1000000);
    EXPECT_EQ(shifts, std::vector<int>{ 3 });
}

TEST_F(Icount, AutoRecoversAfterAHostThatStoodStill)
{
    Start(Auto(3));
    SimulateHost(&real, 6.0, 10000, 1000000000, 0, nullptr);
    real.Advance(INT64_C(10000000000)); /* 10 s behind */
    int64_t worst =
        SimulateHost(&real, 6.0, 10000, 6 * INT64_C(1000000000), 4 * INT64_C(1000000000), nullptr);
    EXPECT_LE(worst, 60000000);
}

TEST_F(Icount, AutoChangesAreToldToTheLists)
{
    Start(Auto(10));
    int n = g.notified(QEMU_CLOCK_VIRTUAL), before = icount_get_shift();

    SimulateHost(&real, 1.0, 1000, 1000000, 0, nullptr);
    EXPECT_LT(icount_get_shift(), before);
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL) - n, before - icount_get_shift());
}

TEST_F(Icount, AutoBudgetIsBounded)
{
    Start(Auto(3));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 10000000 >> 3);
}

TEST_F(Icount, AutoSleepLeadsToVirtualRt)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    Start(Auto(0));
    icount_update(5000);
    timer_mod(t, Virtual() + 100000);
    real.Advance(2000); /* VIRTUAL is 3000 ns ahead */
    int64_t ahead = Virtual();
    icount_start_warp_timer();
    real.Advance(2000);
    EXPECT_EQ(Virtual(), ahead) << "waits until real time has caught up";
    real.Advance(2000);
    EXPECT_EQ(Virtual(), qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT));
    icount_account_warp_timer();
    real.Advance(4000); /* 4000 ns behind */
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT));
    real.Advance(10);
    EXPECT_EQ(Virtual(), qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT));
}
