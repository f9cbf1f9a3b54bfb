/* SPDX-License-Identifier: MIT */
/* Instruction-count time: turning it on and off, counting, who is told, budgets. */
#include "icount_support.h"

#include <algorithm>
#include <climits>
#include <cstddef>
#include <memory>

/* ---- Turning it on and off ------------------------------------------------------------------- */

TEST_F(Icount, LayoutOfTheOptionsIsPinned)
{
    if (sizeof(void *) != 8) {
        GTEST_SKIP() << "the pinned layouts are those of LP64";
    }
    EXPECT_EQ(sizeof(IcountOptions), 64u);
    EXPECT_EQ(offsetof(IcountOptions, warp_group), 8u);
    EXPECT_EQ(offsetof(IcountOptions, exit_cb), 16u);
    EXPECT_EQ(offsetof(IcountOptions, reserved), 32u);
}

TEST_F(Icount, IsOffAtFirst)
{
    EXPECT_EQ(icount_enabled(), ICOUNT_DISABLED);
    EXPECT_TRUE(qemu_clock_use_for_deadline(QEMU_CLOCK_VIRTUAL));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 0);
    icount_start_warp_timer();
    icount_account_warp_timer();
    icount_notify_exit();
    cpu_enable_ticks();
    int64_t before = Virtual();
    icount_update(1000);
    EXPECT_EQ(Virtual(), before) << "nothing counts";
}

TEST_F(Icount, BadOptionsAreRefused)
{
    IcountOptions bad[] = { Fixed(-1), Fixed(ICOUNT_MAX_SHIFT + 1), Auto(11), Fixed(3), Auto(3) };

    bad[3].reserved[3] = 1;
    bad[4].no_sleep = true;
    for (const IcountOptions &o : bad) {
        EXPECT_EQ(icount_configure(&o), -EINVAL);
    }
    EXPECT_EQ(icount_enabled(), ICOUNT_DISABLED);
}

TEST_F(Icount, CanOnlyBeChangedWhileVirtualIsStopped)
{
    IcountOptions o = Fixed(3);

    cpu_enable_ticks();
    EXPECT_EQ(icount_configure(&o), -EBUSY);
    cpu_disable_ticks();
    EXPECT_EQ(icount_configure(&o), 0);
    EXPECT_EQ(icount_enabled(), ICOUNT_FIXED);
    cpu_enable_ticks();
    EXPECT_EQ(icount_configure(nullptr), -EBUSY);
    EXPECT_EQ(icount_enabled(), ICOUNT_FIXED);
}

TEST_F(Icount, CannotBeChangedBelowACallbackOfVirtual)
{
    int ret = 0;
    HeapTimer t(
        &g.tlg,
        [&] {
            cpu_disable_ticks();
            ret = icount_configure(nullptr);
        },
        QEMU_CLOCK_VIRTUAL);

    Start(Fixed(0));
    timer_mod(t, Virtual());
    EXPECT_TRUE(timerlist_run_timers(virt()));
    EXPECT_EQ(ret, -EBUSY);
}

TEST_F(Icount, LoopsDoNotSleepOnVirtualButSeeWhatIsDue)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(0));
    EXPECT_FALSE(qemu_clock_use_for_deadline(QEMU_CLOCK_VIRTUAL));
    EXPECT_TRUE(qemu_clock_use_for_deadline(QEMU_CLOCK_VIRTUAL_RT));
    EXPECT_TRUE(qemu_clock_use_for_deadline(QEMU_CLOCK_REALTIME));
    EXPECT_TRUE(qemu_clock_use_for_deadline(QEMU_CLOCK_HOST));
    timer_mod(t, start + 100);
    EXPECT_EQ(timerlist_deadline_ns(virt()), 100);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), -1);
    icount_update(100);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 0);
}

TEST_F(Icount, TurningOnAndOffIsContinuous)
{
    cpu_enable_ticks();
    real.Advance(500);
    cpu_disable_ticks();
    int64_t before = Virtual();
    EXPECT_EQ(Start(Fixed(2)), before);
    icount_update(100);
    real.Advance(150);
    EXPECT_EQ(Virtual(), before + 400);
    EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT), before + 150);
    cpu_disable_ticks();
    EXPECT_EQ(icount_configure(nullptr), 0);
    EXPECT_EQ(Virtual(), before + 400) << "the later of the two";
    EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT), before + 400);
    Start(Fixed(0));
    real.Advance(1000);
    icount_update(10);
    EXPECT_EQ(Virtual(), before + 410);
    cpu_disable_ticks();
    EXPECT_EQ(icount_configure(nullptr), 0);
    EXPECT_EQ(Virtual(), before + 1400);
    cpu_enable_ticks();
    real.Advance(5);
    EXPECT_EQ(Virtual(), before + 1405) << "real time again";
}

TEST_F(Icount, ConfiguringAgainCountsFromZeroAndGoesOn)
{
    int64_t start = Start(Fixed(0));

    icount_update(50);
    cpu_disable_ticks();
    Start(Fixed(4));
    EXPECT_EQ(icount_get_raw(), 0);
    EXPECT_EQ(Virtual(), start + 50);
    icount_update(1);
    EXPECT_EQ(Virtual(), start + 66);
}

/* ---- Counting -------------------------------------------------------------------------------- */

class IcountShift : public Icount, public testing::WithParamInterface<int>
{
};
INSTANTIATE_TEST_SUITE_P(Shifts, IcountShift, testing::Range(0, ICOUNT_MAX_SHIFT + 1));

TEST_P(IcountShift, AnInstructionTakesTwoToTheShift)
{
    int64_t start = Start(Fixed(GetParam())), ns = INT64_C(1) << GetParam();

    EXPECT_EQ(icount_get_shift(), GetParam());
    icount_update(1);
    EXPECT_EQ(Virtual(), start + ns);
    icount_update(0);
    EXPECT_EQ(Virtual(), start + ns);
    icount_update(12345);
    EXPECT_EQ(Virtual(), start + 12346 * ns);
    EXPECT_EQ(icount_get(), Virtual());
    EXPECT_EQ(cpu_get_ticks(), Virtual()) << "a guest's cycle counter repeats too";
    EXPECT_EQ(icount_get_raw(), 12346);
    real.Advance(1000000);
    EXPECT_EQ(Virtual(), start + 12346 * ns) << "real time does not count";
}

TEST_P(IcountShift, Conversions)
{
    int shift = GetParam();
    int64_t ns = INT64_C(1) << shift;

    Start(Fixed(shift));
    EXPECT_EQ(icount_to_ns(0), 0);
    EXPECT_EQ(icount_to_ns(-5), 0);
    EXPECT_EQ(icount_to_ns(7), 7 * ns);
    EXPECT_EQ(icount_to_ns((INT64_MAX - 1) >> shift), ((INT64_MAX - 1) >> shift) << shift);
    EXPECT_EQ(icount_to_ns(INT64_MAX), INT64_MAX - 1);
    EXPECT_EQ(icount_to_ns((INT64_MAX >> shift) + (shift != 0)), INT64_MAX - 1);
    EXPECT_EQ(icount_round(0), 0);
    EXPECT_EQ(icount_round(INT64_MIN), 0);
    EXPECT_EQ(icount_round(1), 1);
    EXPECT_EQ(icount_round(ns), 1);
    EXPECT_EQ(icount_round(ns + 1), 2);
    EXPECT_EQ(icount_round(INT64_MAX), shift == 0 ? INT64_MAX : (INT64_MAX >> shift) + 1);
    for (int64_t n : { 1, 2, 1000, INT_MAX }) {
        EXPECT_EQ(icount_round(icount_to_ns(n)), n);
        EXPECT_EQ(icount_round(icount_to_ns(n) - ns + 1), n);
    }
}

/* In a process of its own, as VIRTUAL never goes back. */
TEST_F(Icount, CountAndTimeSaturate)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(
        {
            bool ok;

            Start(Fixed(10));
            icount_update(INT64_MAX / 2);
            ok = Virtual() == INT64_MAX - 1;
            icount_update(INT64_MAX);
            ok = ok && icount_get_raw() == INT64_MAX && Virtual() == INT64_MAX - 1;
            cpu_disable_ticks();
            exit(ok && Virtual() == INT64_MAX - 1 ? 0 : 1);
        },
        testing::ExitedWithCode(0), "");
}

TEST_F(Icount, NegativeCountAborts)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    Start(Fixed(0));
    EXPECT_DEATH(icount_update(-1), "icount_update: executed is -1");
}

TEST_F(Icount, StoppedVirtualStandsStillAndInstructionsShowLater)
{
    int64_t start = Start(Fixed(1));

    icount_update(10);
    cpu_disable_ticks();
    icount_update(7); /* the rest of a slice that was on its way */
    real.Advance(1000);
    EXPECT_EQ(Virtual(), start + 20);
    EXPECT_EQ(icount_get_raw(), 17);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 0) << "wait for the start";
    cpu_enable_ticks();
    EXPECT_EQ(Virtual(), start + 34);
}

TEST_F(Icount, StoppedVirtualHasNoDeadline)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL);

    Start(Fixed(0));
    timer_mod(t, Virtual() + 10);
    cpu_disable_ticks();
    icount_update(20);
    EXPECT_EQ(timerlist_deadline_ns(virt()), -1);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), -1);
    EXPECT_FALSE(RunAll());
    cpu_enable_ticks();
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 0);
    EXPECT_TRUE(RunAll());
    EXPECT_EQ(fired, 1);
}

/* ---- Who is told ----------------------------------------------------------------------------- */

TEST_F(Icount, AccountingPastADeadlineNotifiesThatList)
{
    TestGroup other;
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    HeapTimer late(
        &other.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(0));
    timer_mod(t, start + 100);
    timer_mod(late, start + 1000);
    int n = g.notified(QEMU_CLOCK_VIRTUAL), m = other.notified(QEMU_CLOCK_VIRTUAL);
    icount_update(99);
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n) << "not yet";
    icount_update(1);
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n + 1);
    EXPECT_EQ(other.notified(QEMU_CLOCK_VIRTUAL), m);
    EXPECT_EQ(g.notified(QEMU_CLOCK_REALTIME), 0);
}

TEST_F(Icount, ExternalTimersAreToldToo)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL, SCALE_NS, QEMU_TIMER_ATTR_EXTERNAL);

    int64_t start = Start(Fixed(0));
    timer_mod(t, start + 100);
    int n = g.notified(QEMU_CLOCK_VIRTUAL);
    icount_update(100);
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n + 1);
}

struct Exits {
    std::atomic<int> n{ 0 };

    static void Cb(void *opaque)
    {
        static_cast<Exits *>(opaque)->n++;
    }
};

TEST_F(Icount, SlicesAreEndedWhenADeadlineMovesForward)
{
    Exits exits;
    IcountOptions o = Fixed(0);
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    HeapTimer u(&g.tlg, [] {});

    o.exit_cb = Exits::Cb;
    o.opaque = &exits;
    int64_t start = Start(o);
    exits.n = 0;
    timer_mod(t, start + 100);
    EXPECT_EQ(exits.n, 1);
    timer_mod(t, start + 200);
    EXPECT_EQ(exits.n, 1) << "moved back";
    timer_mod(t, start + 50);
    EXPECT_EQ(exits.n, 2);
    timer_mod(u, 5);
    EXPECT_EQ(exits.n, 2) << "another clock";
    icount_notify_exit();
    EXPECT_EQ(exits.n, 3);
    cpu_disable_ticks();
    EXPECT_EQ(exits.n, 4) << "stopped";
    cpu_enable_ticks();
    EXPECT_EQ(exits.n, 5);
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, true);
    EXPECT_EQ(exits.n, 6);
    icount_update(10);
    EXPECT_EQ(exits.n, 6) << "time going on is no reason";
    cpu_disable_ticks();
    EXPECT_EQ(icount_configure(nullptr), 0);
    aio_synchronize_rcu();
    int n = exits.n;
    timer_mod(t, 1);
    EXPECT_EQ(exits.n, n) << "off";
}

TEST_F(Icount, EveryChangeReevaluatesTheLists)
{
    IcountOptions o = Fixed(3);
    auto changed = [&](int type) {
        static int last[QEMU_CLOCK_MAX];
        int now = g.notified(static_cast<QEMUClockType>(type));
        bool more = now > last[type];

        last[type] = now;
        return more;
    };

    changed(QEMU_CLOCK_VIRTUAL);
    EXPECT_EQ(icount_configure(&o), 0);
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL)) << "on";
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL_RT)) << "on";
    cpu_enable_ticks();
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL)) << "start";
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL_RT)) << "start";
    cpu_disable_ticks();
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL)) << "stop";
    o.shift = 4;
    EXPECT_EQ(icount_configure(&o), 0);
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL)) << "shift";
    {
        FakeClock virt(QEMU_CLOCK_VIRTUAL, 5);
        EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL)) << "source";
        EXPECT_EQ(Virtual(), 5);
    }
    changed(QEMU_CLOCK_VIRTUAL_RT);
    {
        FakeClock rt(QEMU_CLOCK_VIRTUAL_RT, 5);
        EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL_RT)) << "source";
    }
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL));
    EXPECT_EQ(icount_configure(nullptr), 0);
    EXPECT_TRUE(changed(QEMU_CLOCK_VIRTUAL)) << "off";
}

/* ---- Budgets --------------------------------------------------------------------------------- */

TEST_F(Icount, BudgetReachesTheNextDeadlineAndNotFurther)
{
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(Fixed(3));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), INT32_MAX) << "no deadline";
    timer_mod(t, start + 81);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 11) << "rounded up";
    icount_update(10);
    EXPECT_FALSE(timerlist_expired(virt()));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 1);
    icount_update(1);
    EXPECT_TRUE(timerlist_expired(virt()));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 0) << "run the timers first";
    timer_mod(t, INT64_MAX);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), INT32_MAX) << "capped";
    timer_mod(t, Virtual() + (int64_t{ INT32_MAX } << 3));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), INT32_MAX);
    timer_mod(t, Virtual() + (int64_t{ INT32_MAX - 1 } << 3));
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), INT32_MAX - 1);
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), INT32_MAX) << "a disabled clock has no deadline";
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, true);
}

TEST_F(Icount, BudgetPassesOverExternalTimersWhenAsked)
{
    HeapTimer guest(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);
    HeapTimer external(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL, SCALE_NS, QEMU_TIMER_ATTR_EXTERNAL);

    int64_t start = Start(Fixed(0));
    timer_mod(guest, start + 100);
    timer_mod(external, start + 10);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL), 10);
    EXPECT_EQ(icount_budget(QEMU_TIMER_ATTR_ALL & ~QEMU_TIMER_ATTR_EXTERNAL), 100);
}

/* ---- Determinism ----------------------------------------------------------------------------- */

/* A guest that computes in slices of any length, with timers that re-arm themselves. */
static std::vector<int64_t> Firings(QEMUTimerListGroup *tlg, int64_t max_slice)
{
    std::vector<int64_t> log;
    std::vector<std::unique_ptr<HeapTimer>> timers;
    const int64_t periods[] = { 1000, 777, 1, 12345 };
    int64_t start = Virtual();

    for (int64_t period : periods) {
        size_t i = timers.size();
        timers.push_back(std::make_unique<HeapTimer>(
            tlg,
            [&, i, period] {
                log.push_back(static_cast<int64_t>(i));
                log.push_back(Virtual() - start);
                timer_mod(*timers[i], Virtual() + period * 100);
            },
            QEMU_CLOCK_VIRTUAL));
        timer_mod(*timers[i], start + period);
    }
    while (Virtual() < start + 1000000) {
        icount_update(std::min(icount_budget(QEMU_TIMER_ATTR_ALL), max_slice));
        while (timerlist_run_timers(tlg->tl[QEMU_CLOCK_VIRTUAL])) {
        }
    }
    return log;
}

TEST_F(Icount, TimersFireAtTheSameInstructionInEveryRun)
{
    Start(Fixed(2));
    std::vector<int64_t> a = Firings(&g.tlg, INT64_MAX), b = Firings(&g.tlg, 37);

    EXPECT_GT(a.size(), 2000u);
    EXPECT_EQ(a, b) << "whatever the slices";
}
