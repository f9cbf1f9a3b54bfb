/* SPDX-License-Identifier: MIT */
/* Instruction-count time.  Real time is simulated: nothing here waits for it. */
#include "support.h"

#include <climits>
#include <cstddef>
#include <memory>
#include <thread>

static IcountOptions Fixed(int shift, bool no_sleep = false)
{
    IcountOptions opts = {};

    opts.shift = shift;
    opts.no_sleep = no_sleep;
    return opts;
}

static IcountOptions Auto(int shift)
{
    IcountOptions opts = Fixed(shift);

    opts.auto_shift = true;
    return opts;
}

static int64_t Virtual()
{
    return qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
}

/* VIRTUAL is stopped and counts real time at the begin and at the end of each test. */
class Icount : public testing::Test
{
protected:
    Icount()
    {
        opts.warp_group = &g.tlg;
    }
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
    IcountOptions opts = {};
};

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

/* ---- Warp ------------------------------------------------------------------------------------ */

TEST_F(Icount, SleepOffWarpsAtOnceToTheNextDeadline)
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

TEST_F(Icount, SleepOffGoesOnByItselfAfterEachPass)
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

TEST_F(Icount, VirtualDoesNotJumpBelowACallback)
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

TEST_F(Icount, ATimerArmedInTheSleepIsWarpedTo)
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

TEST_F(Icount, WarpRunsAlongVirtualRtToTheNextDeadline)
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

TEST_F(Icount, AWakingCpuEndsTheWarpWhereItIs)
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

TEST_F(Icount, WhatALateLoopOwesIsMadeUpWithoutSkippingADeadline)
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

TEST_F(Icount, WithoutADeadlineVirtualStandsStill)
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

TEST_F(Icount, AnEarlierTimerArmedInTheSleepShortensIt)
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

TEST_F(Icount, ExternalTimersDoNotMoveTheGuestsTime)
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

TEST_F(Icount, StopHoldsTheWarpAndStartGoesOn)
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

TEST_F(Icount, WarpFollowsAReplacedVirtualRtFromWhereItIs)
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

TEST_F(Icount, ADisabledVirtualIsNotWarped)
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

/* ---- Auto ------------------------------------------------------------------------------------ */

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
