/* SPDX-License-Identifier: MIT */
/* Instruction-count time while all virtual CPUs sleep: the warp along VIRTUAL_RT, and sleep=off. */
#include "icount_support.h"

#include <memory>

using IcountWarp = Icount;

TEST_F(IcountWarp, SleepOffWarpsAtOnceToTheNextDeadline)
{
    std::vector<int64_t> at;
    HeapTimer a(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    HeapTimer b(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(3, true));
    timer_mod(a, start + INT64_C(1000000007));
    timer_mod(b, start + INT64_C(2000000011));
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), start + 1000000007) << "also where no number of instructions leads to";
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), start + 1000000007) << "not past a deadline whose timer has not run";
    EXPECT_TRUE(timerlist_run_timers(virt()));
    icount_start_warp_timer();
    EXPECT_TRUE(timerlist_run_timers(virt()));
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), start + 2000000011) << "nothing more to wait for";
    icount_account_warp_timer();
    icount_update(1);
    EXPECT_EQ(Virtual(), start + 2000000019);
    EXPECT_EQ(at, (std::vector<int64_t>{ start + 1000000007, start + 2000000011 }));
    EXPECT_EQ(real.Now(), 1000000) << "in no real time";
}

TEST_F(IcountWarp, SleepOffGoesOnByItselfAfterEachPass)
{
    std::vector<int64_t> at;
    std::unique_ptr<HeapTimer> t;

    int64_t start = Start(Fixed(0, true));
    t = std::make_unique<HeapTimer>(
        &g.tlg,
        [&] {
            at.push_back(Virtual() - start);
            if (at.size() < 5) {
                timer_mod(*t, Virtual() + 1000);
            }
        },
        QEMU_CLOCK_VIRTUAL);
    timer_mod(*t, start + 10);
    icount_start_warp_timer();
    while (RunAll()) { /* VIRTUAL_RT's list has the warp timer */
    }
    EXPECT_EQ(at, (std::vector<int64_t>{ 10, 1010, 2010, 3010, 4010 }));
}

TEST_F(IcountWarp, ACallbackThatWakesACpuHoldsVirtualWhereItIs)
{
    std::unique_ptr<HeapTimer> t;
    int fired = 0;
    int64_t start = Start(Fixed(0, true));

    t = std::make_unique<HeapTimer>(
        &g.tlg,
        [&] {
            fired++;
            timer_mod(*t, Virtual() + 1000);
            icount_account_warp_timer();
        },
        QEMU_CLOCK_VIRTUAL);
    timer_mod(*t, start + 1000);
    icount_start_warp_timer();
    while (RunAll()) {
    }
    EXPECT_EQ(fired, 1);
    EXPECT_EQ(Virtual(), start + 1000);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 1000);
}

TEST_F(IcountWarp, VirtualDoesNotJumpBelowACallback)
{
    std::vector<int64_t> at;
    HeapTimer near(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    HeapTimer far(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Fixed(0, true));
    HeapTimer first(
        &g.tlg,
        [&] {
            timer_mod(far, start + 1000);
            icount_start_warp_timer();
            timerlist_run_timers(g.list(QEMU_CLOCK_VIRTUAL_RT));
            EXPECT_EQ(Virtual(), start + 100) << "what the callback will arm may come first";
            timer_mod(near, start + 500);
        },
        QEMU_CLOCK_VIRTUAL);

    timer_mod(first, start + 100);
    icount_start_warp_timer();
    while (RunAll()) {
    }
    EXPECT_EQ(at, (std::vector<int64_t>{ start + 500, start + 1000 }));
}

TEST_F(IcountWarp, ATimerArmedInTheSleepIsWarpedTo)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(0, true));
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), start) << "no deadline";
    timer_mod(t, start + 12345);
    EXPECT_EQ(Virtual(), start) << "not below timer_mod()";
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 0) << "the warp timer";
    while (RunAll()) {
    }
    EXPECT_EQ(fired, 1);
    EXPECT_EQ(Virtual(), start + 12345);
}

TEST_F(IcountWarp, WarpRunsAlongVirtualRtToTheNextDeadline)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(0));
    icount_update(1000); /* ahead of real time: a fixed shift does not mind */
    timer_mod(t, start + 1500);
    icount_start_warp_timer();
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 500) << "the loop sleeps for the warp timer";
    real.Advance(300);
    EXPECT_EQ(Virtual(), start + 1300);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 200);
    EXPECT_FALSE(timerlist_expired(virt()));
    real.Advance(10000);
    EXPECT_EQ(Virtual(), start + 1500) << "not past the deadline";
    int n = g.notified(QEMU_CLOCK_VIRTUAL);
    EXPECT_TRUE(timerlist_run_timers(g.list(QEMU_CLOCK_VIRTUAL_RT)));
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n + 1) << "told by the warp timer";
    EXPECT_TRUE(timerlist_run_timers(virt()));
    EXPECT_EQ(fired, 1);
}

TEST_F(IcountWarp, AWakingCpuEndsTheWarpWhereItIs)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(2));
    timer_mod(t, start + 1000);
    icount_start_warp_timer();
    real.Advance(401);
    icount_account_warp_timer();
    real.Advance(5000);
    EXPECT_EQ(Virtual(), start + 401);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), -1) << "the warp timer is disarmed";
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 150);
    icount_start_warp_timer();
    real.Advance(10);
    icount_update(1); /* who runs does not sleep */
    real.Advance(100);
    EXPECT_EQ(Virtual(), start + 401 + 10 + 4);
}

TEST_F(IcountWarp, WhatALateLoopOwesIsMadeUpWithoutSkippingADeadline)
{
    std::vector<int64_t> at;
    std::unique_ptr<HeapTimer> t;
    int64_t start = Start(Fixed(0));

    t = std::make_unique<HeapTimer>(
        &g.tlg,
        [&] {
            at.push_back(Virtual() - start);
            timer_mod(*t, Virtual() + 100);
        },
        QEMU_CLOCK_VIRTUAL);
    timer_mod(*t, start + 100);
    icount_start_warp_timer();
    real.Advance(350); /* the loop comes late */
    while (RunAll()) {
    }
    EXPECT_EQ(at, (std::vector<int64_t>{ 100, 200, 300 }));
    EXPECT_EQ(Virtual(), start + 350);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 50);
}

TEST_F(IcountWarp, WithoutADeadlineVirtualStandsStill)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Fixed(0));

    icount_start_warp_timer();
    real.Advance(1000000);
    EXPECT_EQ(Virtual(), start);
    timer_mod(t, start + 500); /* by a device, say */
    while (RunAll()) {
    }
    real.Advance(499);
    while (RunAll()) {
    }
    EXPECT_EQ(fired, 0) << "500 ns from when it was armed";
    real.Advance(1);
    while (RunAll()) {
    }
    EXPECT_EQ(fired, 1);
    EXPECT_EQ(Virtual(), start + 500);
}

TEST_F(IcountWarp, AnEarlierTimerArmedInTheSleepShortensIt)
{
    std::vector<int64_t> at;
    HeapTimer late(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    HeapTimer soon(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Fixed(0));

    timer_mod(late, start + 10000);
    icount_start_warp_timer();
    real.Advance(1000);
    EXPECT_EQ(Virtual(), start + 1000) << "VIRTUAL can be read in the sleep";
    timer_mod(soon, Virtual() + 500);
    while (RunAll()) {
    }
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 500);
    real.Advance(500);
    while (RunAll()) {
    }
    EXPECT_EQ(at, (std::vector<int64_t>{ start + 1500 }));
    timer_del(late);
    while (RunAll()) {
    }
    real.Advance(20000);
    while (RunAll()) {
    }
    EXPECT_EQ(Virtual(), start + 10000) << "a deadline that went away is found out when it comes";
}

/* From when timer_mod() has returned, not only from the next plan on. */
TEST_F(IcountWarp, VirtualDoesNotPassATimerThatWasArmedInTheSleep)
{
    std::vector<int64_t> at;
    HeapTimer late(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    HeapTimer soon(
        &g.tlg, [&] { at.push_back(Virtual()); }, QEMU_CLOCK_VIRTUAL);
    HeapTimer external(
        &g.tlg, [&] { at.push_back(-Virtual()); }, QEMU_CLOCK_VIRTUAL, SCALE_NS,
        QEMU_TIMER_ATTR_EXTERNAL);
    int64_t start = Start(Fixed(0));

    timer_mod(late, start + 10000);
    icount_start_warp_timer();
    real.Advance(1000);
    timer_mod(external, start + 1100);
    timer_mod(soon, start + 1500);
    real.Advance(3000); /* the loop comes late */
    EXPECT_EQ(Virtual(), start + 1500);
    timer_mod(soon, start + 1200); /* it is too late for that */
    EXPECT_EQ(Virtual(), start + 1500) << "never back";
    while (RunAll()) {
    }
    EXPECT_EQ(at, (std::vector<int64_t>{ -start - 1500, start + 1500 }));
    EXPECT_EQ(Virtual(), start + 4000) << "what was held back is made up";
    real.Advance(6000);
    while (RunAll()) {
    }
    EXPECT_EQ(at.back(), start + 10000);
}

/* To wake a loop may take longer than the timer has. */
TEST_F(IcountWarp, VirtualDoesNotPassATimerWhileItsLoopIsNotified)
{
    QEMUTimerListGroup slow;

    ASSERT_EQ(
        timerlistgroup_init(
            &slow,
            [](void *opaque, QEMUClockType) { static_cast<FakeClock *>(opaque)->Advance(700); },
            &real),
        0);
    {
        HeapTimer late(
            &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
        HeapTimer soon(
            &slow, [] {}, QEMU_CLOCK_VIRTUAL);
        int64_t start = Start(Fixed(0));

        timer_mod(late, start + 10000);
        icount_start_warp_timer();
        timer_mod(soon, start + 500);
        EXPECT_EQ(Virtual(), start + 500);
    }
    timerlistgroup_deinit(&slow);
    aio_synchronize_rcu();
}

TEST_F(IcountWarp, AnAutoWarpDoesNotPassATimerThatWasArmedInTheSleep)
{
    HeapTimer late(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    HeapTimer soon(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Auto(0));

    timer_mod(late, start + 10000);
    icount_start_warp_timer();
    real.Advance(1000);
    timer_mod(soon, start + 1500);
    real.Advance(3000);
    EXPECT_EQ(Virtual(), start + 1500);
    while (RunAll()) {
    }
    EXPECT_EQ(Virtual(), start + 4000);
}

TEST_F(IcountWarp, ExternalTimersDoNotMoveTheGuestsTime)
{
    int fired = 0;
    HeapTimer external(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL, SCALE_NS, QEMU_TIMER_ATTR_EXTERNAL);
    HeapTimer guest(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(0));
    timer_mod(external, start + 100);
    icount_start_warp_timer();
    real.Advance(1000);
    while (RunAll()) {
    }
    EXPECT_EQ(Virtual(), start);
    EXPECT_EQ(fired, 0);
    timer_mod(guest, start + 300);
    while (RunAll()) {
    }
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 100) << "on the way they are served";
    real.Advance(100);
    while (RunAll()) {
    }
    EXPECT_EQ(fired, 1);
    EXPECT_EQ(Virtual(), start + 100);
    icount_account_warp_timer();

    cpu_disable_ticks();
    start = Start(Fixed(0, true));
    timer_mod(external, start + 10);
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), start + 200) << "at once, to the guest's own";
}

TEST_F(IcountWarp, StopHoldsTheWarpAndStartGoesOn)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Fixed(0));

    timer_mod(t, start + 1000);
    icount_start_warp_timer();
    real.Advance(400);
    cpu_disable_ticks();
    real.Advance(5000);
    EXPECT_EQ(Virtual(), start + 400);
    EXPECT_FALSE(RunAll());
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), -1);
    cpu_enable_ticks();
    EXPECT_EQ(Virtual(), start + 400);
    while (RunAll()) {
    }
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 600);
    real.Advance(600);
    EXPECT_TRUE(timerlist_expired(virt()));
}

TEST_F(IcountWarp, WarpFollowsAReplacedVirtualRtFromWhereItIs)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Fixed(0));

    timer_mod(t, start + 1000);
    icount_start_warp_timer();
    real.Advance(100);
    {
        FakeClock rt(QEMU_CLOCK_VIRTUAL_RT, 77);
        EXPECT_EQ(Virtual(), start + 100);
        rt.Advance(50);
        EXPECT_EQ(Virtual(), start + 150);
        cpu_disable_ticks();
        rt.Advance(1000); /* it does not know of the stop */
        EXPECT_EQ(Virtual(), start + 150);
        cpu_enable_ticks();
        EXPECT_EQ(Virtual(), start + 150);
        rt.Advance(10);
    }
    EXPECT_EQ(Virtual(), start + 160);
    real.Advance(40);
    EXPECT_EQ(Virtual(), start + 200);
}

/* The next look was armed in the time of the source before. */
TEST_F(IcountWarp, ReplacingVirtualRtMovesTheNextLookToItsTime)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL);

    real.Advance(1000000);
    cpu_enable_ticks();
    real.Advance(1000000); /* VIRTUAL_RT is far ahead of the source to come */
    cpu_disable_ticks();
    int64_t start = Start(Fixed(0));
    timer_mod(t, start + 1000);
    icount_start_warp_timer();
    real.Advance(100);
    FakeClock rt(QEMU_CLOCK_VIRTUAL_RT, 0);
    while (RunAll()) {
    }
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 900);
    rt.Advance(900);
    while (RunAll()) {
    }
    EXPECT_EQ(fired, 1);
    EXPECT_EQ(Virtual(), start + 1000);
}

TEST_F(IcountWarp, ADisabledVirtualIsNotWarped)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    int64_t start = Start(Fixed(0, true));

    timer_mod(t, start + 1000);
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    icount_start_warp_timer();
    EXPECT_EQ(Virtual(), start);
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, true);
    while (RunAll()) {
    }
    EXPECT_EQ(Virtual(), start + 1000);
}

/* ---- The end of time ------------------------------------------------------------------------- */

TEST_F(IcountWarp, ADeadlineNearTheEndOfTimeIsNotLookedForAtOnce)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    Start(Fixed(0));
    real.Advance(1000000); /* VIRTUAL_RT is ahead of VIRTUAL */
    timer_mod(t, INT64_MAX - 2);
    icount_start_warp_timer();
    EXPECT_GT(timerlistgroup_deadline_ns(&g.tlg), INT64_MAX / 2);
    EXPECT_FALSE(RunAll());
}

TEST_F(IcountWarp, ATimerForNeverIsNoDeadline)
{
    HeapTimer never(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    for (bool no_sleep : { true, false }) {
        int64_t start = Start(Fixed(0, no_sleep));

        timer_mod(never, INT64_MAX);
        icount_start_warp_timer();
        real.Advance(1000);
        while (RunAll()) {
        }
        EXPECT_EQ(Virtual(), start);
        icount_account_warp_timer();
        cpu_disable_ticks();
    }
}

/* In a process of its own, as VIRTUAL never goes back. */
TEST_F(IcountWarp, TimeStandsStillAtItsEnd)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(
        {
            constexpr int64_t kEnd = INT64_MAX - 1;
            HeapTimer t(
                &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
            bool ok;

            Start(Fixed(0, true));
            timer_mod(t, kEnd - 10);
            icount_start_warp_timer();
            ok = Virtual() == kEnd - 10;
            cpu_disable_ticks();
            ok = ok && icount_configure(nullptr) == 0;
            cpu_enable_ticks();
            real.Advance(1000);
            ok = ok && Virtual() == kEnd && cpu_get_clock() == kEnd;
            cpu_disable_ticks();
            real.Advance(1000);
            ok = ok && Virtual() == kEnd;
            Start(Auto(0));
            timer_mod(t, kEnd);
            icount_start_warp_timer();
            real.Advance(1000);
            icount_update(1000000000);
            ok = ok && Virtual() == kEnd;
            cpu_disable_ticks();
            exit(ok && Virtual() == kEnd ? 0 : 1);
        },
        testing::ExitedWithCode(0), "");
}
