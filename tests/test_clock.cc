/* SPDX-License-Identifier: MIT */
/* Clocks: time, sources, starting and stopping VIRTUAL, timeouts. */
#include "support.h"

#include <climits>
#include <memory>
#include <thread>
#include <time.h>
#include <unistd.h>

extern "C" {
#include "timers/timers_ext_int.h"
}

static int64_t PosixNs(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* VIRTUAL is stopped at the begin and at the end of each test. */
class Clock : public testing::Test
{
protected:
    ~Clock() override
    {
        cpu_disable_ticks();
    }
};

/* ---- Time ------------------------------------------------------------------------------------ */

TEST_F(Clock, RealtimeIsMonotonicTime)
{
    int64_t before = PosixNs(CLOCK_MONOTONIC), now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    EXPECT_LE(before, now);
    EXPECT_LE(now, PosixNs(CLOCK_MONOTONIC));
}

/* For times around now and further ahead, over some of the renewals of what it goes by. */
TEST_F(Clock, ATimeHasPassedFromItsNanosecondOnAndNotBefore)
{
    int64_t end = PosixNs(CLOCK_MONOTONIC) + 100000000, before = 0;
    unsigned passed = 0, ahead = 0;

    for (int64_t step = 0; before < end; step = (step + 7919) % 200000) {
        int64_t ns = PosixNs(CLOCK_MONOTONIC) + step * (step % 3 == 0) - step % 2000;

        before = PosixNs(CLOCK_MONOTONIC);
        bool has = realtime_has_passed(ns);
        int64_t after = PosixNs(CLOCK_MONOTONIC);

        ASSERT_TRUE(!has || ns <= after) << ns - after;
        ASSERT_TRUE(has || ns > before) << before - ns;
        passed += has;
        ahead += !has;
    }
    EXPECT_GT(passed, 1000u);
    EXPECT_GT(ahead, 1000u);
    EXPECT_TRUE(realtime_has_passed(0));
    EXPECT_FALSE(realtime_has_passed(INT64_MAX));
}

TEST_F(Clock, ATimeHasPassedWhenTheReplacedClockSaysSo)
{
    FakeClock clock(QEMU_CLOCK_REALTIME, 1000);

    EXPECT_FALSE(realtime_has_passed(1001));
    clock.Set(1001);
    EXPECT_TRUE(realtime_has_passed(1001));
    clock.Set(INT64_MAX / 2);
    EXPECT_TRUE(realtime_has_passed(INT64_MAX / 2));
    EXPECT_FALSE(realtime_has_passed(INT64_MAX / 2 + 1));
}

TEST_F(Clock, HostIsWallClockTime)
{
    int64_t before = PosixNs(CLOCK_REALTIME), now = qemu_clock_get_ns(QEMU_CLOCK_HOST);

    EXPECT_LE(before, now);
    EXPECT_LE(now, PosixNs(CLOCK_REALTIME));
}

TEST_F(Clock, UnitsRoundDown)
{
    FakeClock clock(QEMU_CLOCK_HOST, 1999999);

    EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_HOST), 1999999);
    EXPECT_EQ(qemu_clock_get_us(QEMU_CLOCK_HOST), 1999);
    EXPECT_EQ(qemu_clock_get_ms(QEMU_CLOCK_HOST), 1);
}

TEST_F(Clock, TimeIsNeverBelowZero)
{
    FakeClock clock(QEMU_CLOCK_HOST, -5);

    EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_HOST), 0);
}

TEST_F(Clock, EveryClockIsUsedForDeadlines)
{
    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        EXPECT_TRUE(qemu_clock_use_for_deadline(static_cast<QEMUClockType>(type)));
    }
}

/* ---- Sources --------------------------------------------------------------------------------- */

TEST_F(Clock, SourceCanBeReplacedAndRestored)
{
    {
        FakeClock clock(QEMU_CLOCK_HOST, 1234);

        EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_HOST), 1234);
        EXPECT_NE(qemu_clock_get_ns(QEMU_CLOCK_REALTIME), 1234);
    }
    EXPECT_GT(qemu_clock_get_ns(QEMU_CLOCK_HOST), 1234);
}

TEST_F(Clock, ChangeOfSourceReevaluatesTheListsOfThatClock)
{
    TestGroup g;
    int host = g.notified(QEMU_CLOCK_HOST), real = g.notified();

    {
        FakeClock clock(QEMU_CLOCK_HOST);
        EXPECT_EQ(g.notified(QEMU_CLOCK_HOST), host + 1);
    }
    EXPECT_EQ(g.notified(QEMU_CLOCK_HOST), host + 2);
    EXPECT_EQ(g.notified(), real);
    FakeClock clock(QEMU_CLOCK_REALTIME);
    EXPECT_EQ(g.notified(), real + 1);
    EXPECT_GE(g.notified(QEMU_CLOCK_VIRTUAL), 1) << "VIRTUAL counts what REALTIME counts";
}

TEST_F(Clock, NotifyReevaluatesEveryListOfTheClock)
{
    TestGroup a, b;
    int n = a.notified(QEMU_CLOCK_HOST), m = b.notified(QEMU_CLOCK_HOST), r = a.notified();

    qemu_clock_notify(QEMU_CLOCK_HOST);
    EXPECT_EQ(a.notified(QEMU_CLOCK_HOST), n + 1);
    EXPECT_EQ(b.notified(QEMU_CLOCK_HOST), m + 1);
    EXPECT_EQ(a.notified(), r);
}

/* A step of the wall clock, as a source that jumps and says so. */
TEST_F(Clock, StepForwardMakesHostTimersDue)
{
    FakeClock clock(QEMU_CLOCK_HOST, 1000);
    TestGroup g;
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_HOST);

    timer_mod(t, 1000000);
    clock.Set(2000000);
    qemu_clock_notify(QEMU_CLOCK_HOST);
    EXPECT_TRUE(timerlist_expired(g.list(QEMU_CLOCK_HOST)));
    EXPECT_TRUE(timerlist_run_timers(g.list(QEMU_CLOCK_HOST)));
    EXPECT_EQ(fired, 1);
    timer_mod(t, 3000000);
    clock.Set(500);
    qemu_clock_notify(QEMU_CLOCK_HOST);
    EXPECT_EQ(timerlist_deadline_ns(g.list(QEMU_CLOCK_HOST)), 3000000 - 500) << "a step back";
}

TEST_F(Clock, SourceIsNotCalledAfterAGracePeriod)
{
    constexpr int kRounds = kSanitized ? 100 : 400;
    std::atomic<bool> stop{ false };

    RunThreads(3, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                auto clock = std::make_unique<FakeClock>(QEMU_CLOCK_HOST, 77);
                /* freed here: AddressSanitizer sees a reader that comes too late */
            }
            stop = true;
        }
        while (!stop) {
            int64_t now = qemu_clock_get_ns(QEMU_CLOCK_HOST);

            EXPECT_TRUE(now == 77 || now > 1000000000) << now;
        }
    });
}

/* ---- VIRTUAL --------------------------------------------------------------------------------- */

TEST_F(Clock, VirtualRunsOnlyBetweenStartAndStopAndContinues)
{
    FakeClock clock(QEMU_CLOCK_REALTIME, 1000);
    int64_t base = cpu_get_clock();

    clock.Advance(10);
    EXPECT_EQ(cpu_get_clock(), base) << "stopped at first";
    cpu_enable_ticks();
    EXPECT_EQ(cpu_get_clock(), base);
    clock.Advance(25);
    EXPECT_EQ(cpu_get_clock(), base + 25);
    EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL), base + 25);
    EXPECT_EQ(qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT), base + 25);
    cpu_enable_ticks();
    EXPECT_EQ(cpu_get_clock(), base + 25) << "a second start changes nothing";
    cpu_disable_ticks();
    clock.Advance(1000);
    EXPECT_EQ(cpu_get_clock(), base + 25);
    cpu_disable_ticks();
    cpu_enable_ticks();
    EXPECT_EQ(cpu_get_clock(), base + 25) << "continues where it stopped";
    clock.Advance(5);
    EXPECT_EQ(cpu_get_clock(), base + 30);
}

TEST_F(Clock, TicksStopAndContinueToo)
{
    int64_t stopped = cpu_get_ticks(), a, b;

    EXPECT_EQ(cpu_get_ticks(), stopped);
    cpu_enable_ticks();
    a = cpu_get_ticks();
    usleep(1000);
    b = cpu_get_ticks();
    EXPECT_GE(a, stopped);
    EXPECT_GT(b, a);
    cpu_disable_ticks();
    a = cpu_get_ticks();
    usleep(1000);
    EXPECT_EQ(cpu_get_ticks(), a);
    EXPECT_GE(a, b);
}

TEST_F(Clock, StoppedVirtualHasNoDeadline)
{
    FakeClock clock(QEMU_CLOCK_REALTIME, 1000);
    TestGroup g;
    QEMUTimerList *tl = g.list(QEMU_CLOCK_VIRTUAL);
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_VIRTUAL);

    timer_mod(t, cpu_get_clock());
    EXPECT_TRUE(timerlist_has_timers(tl));
    EXPECT_EQ(timerlist_deadline_ns(tl), -1);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), -1);
    EXPECT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_VIRTUAL, QEMU_TIMER_ATTR_ALL), -1);
    EXPECT_FALSE(timerlist_expired(tl));
    EXPECT_FALSE(timerlist_run_timers(tl));
    EXPECT_EQ(fired, 0);
    cpu_enable_ticks();
    EXPECT_EQ(timerlist_deadline_ns(tl), 0);
    EXPECT_TRUE(timerlist_run_timers(tl));
    EXPECT_EQ(fired, 1);
}

TEST_F(Clock, StartAndStopReevaluateTheLists)
{
    TestGroup g;
    int n = g.notified(QEMU_CLOCK_VIRTUAL);

    cpu_enable_ticks();
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n + 1);
    cpu_enable_ticks();
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n + 1) << "nothing changed";
    cpu_disable_ticks();
    EXPECT_EQ(g.notified(QEMU_CLOCK_VIRTUAL), n + 2);
    EXPECT_EQ(g.notified(), 0) << "REALTIME is not concerned";
}

TEST_F(Clock, VirtualNeverGoesBackwardsForReaders)
{
    constexpr int kRounds = kSanitized ? 5000 : 100000;
    std::atomic<bool> stop{ false };
    std::atomic<int64_t> backwards{ 0 };

    RunThreads(3, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                cpu_enable_ticks();
                cpu_disable_ticks();
            }
            stop = true;
        }
        for (int64_t last = 0; !stop;) {
            int64_t now = cpu_get_clock();

            if (now < last) {
                backwards = last - now;
            }
            last = now;
        }
    });
    EXPECT_EQ(backwards, 0) << "ns";
}

/* A source that is slow on the thread that stops VIRTUAL, and moves on meanwhile for others. */
struct SlowSource {
    std::thread::id slow;
    std::atomic<int64_t> now{ 0 };
    std::atomic<bool> reading{ false };

    static int64_t Read(void *opaque)
    {
        SlowSource *s = static_cast<SlowSource *>(opaque);

        if (std::this_thread::get_id() != s->slow) {
            return s->now;
        }
        s->reading = true;
        usleep(20000);
        return 1000;
    }
};

TEST_F(Clock, NoReadingIsPastTheStop)
{
    SlowSource source;
    int64_t seen = 0, stopped;

    ASSERT_EQ(qemu_clock_set_source(QEMU_CLOCK_REALTIME, SlowSource::Read, &source), 0);
    cpu_enable_ticks();
    source.now = 2000;
    source.slow = std::this_thread::get_id();
    std::thread reader([&] {
        WaitUntil([&] { return source.reading.load(); });
        seen = cpu_get_clock();
    });
    cpu_disable_ticks();
    reader.join();
    stopped = cpu_get_clock();
    EXPECT_LE(seen, stopped);
    qemu_clock_set_source(QEMU_CLOCK_REALTIME, nullptr, nullptr);
    aio_synchronize_rcu();
}

/* A loop that waits for VIRTUAL wakes when it is started. */
class ClockOnMonitor : public testing::TestWithParam<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(Monitors, ClockOnMonitor, testing::ValuesIn(kMonitors), MonitorName);

TEST_P(ClockOnMonitor, SleepingLoopsSeeStartAndSteps)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    FakeClock host(QEMU_CLOCK_HOST, 1000);
    ScopedIOThread io(GetParam());
    std::atomic<int> virt{ 0 }, wall{ 0 };
    QEMUTimerListGroup *tlg = aio_context_get_timer_list_group(io.ctx());
    HeapTimer v(
        tlg, [&] { virt++; }, QEMU_CLOCK_VIRTUAL);
    HeapTimer w(
        tlg, [&] { wall++; }, QEMU_CLOCK_HOST);

    timer_mod(v, cpu_get_clock());
    timer_mod(w, INT64_C(3600000) * SCALE_MS);
    io.Run([] {});
    EXPECT_EQ(virt, 0);
    EXPECT_EQ(wall, 0);
    cpu_enable_ticks();
    EXPECT_TRUE(WaitUntil([&] { return virt == 1; }));
    cpu_disable_ticks();
    host.Advance(INT64_C(3600001) * SCALE_MS);
    qemu_clock_notify(QEMU_CLOCK_HOST);
    EXPECT_TRUE(WaitUntil([&] { return wall == 1; }));
    EXPECT_EQ(timer_del_sync(v), 0);
    EXPECT_EQ(timer_del_sync(w), 0);
}

/* ---- Timeouts -------------------------------------------------------------------------------- */

TEST(Timeout, SoonestTreatsNegativeAsNone)
{
    EXPECT_EQ(qemu_soonest_timeout(5, 9), 5);
    EXPECT_EQ(qemu_soonest_timeout(9, 5), 5);
    EXPECT_EQ(qemu_soonest_timeout(-1, 5), 5);
    EXPECT_EQ(qemu_soonest_timeout(5, -1), 5);
    EXPECT_EQ(qemu_soonest_timeout(0, -1), 0);
    EXPECT_EQ(qemu_soonest_timeout(-1, -1), -1);
    EXPECT_EQ(qemu_soonest_timeout(INT64_MAX, -1), INT64_MAX);
}

TEST(Timeout, MillisecondsRoundUp)
{
    EXPECT_EQ(qemu_timeout_ns_to_ms(-1), -1);
    EXPECT_EQ(qemu_timeout_ns_to_ms(INT64_MIN), -1);
    EXPECT_EQ(qemu_timeout_ns_to_ms(0), 0);
    EXPECT_EQ(qemu_timeout_ns_to_ms(1), 1);
    EXPECT_EQ(qemu_timeout_ns_to_ms(999999), 1);
    EXPECT_EQ(qemu_timeout_ns_to_ms(1000000), 1);
    EXPECT_EQ(qemu_timeout_ns_to_ms(1000001), 2);
    EXPECT_EQ(qemu_timeout_ns_to_ms(INT64_MAX), INT_MAX);
    EXPECT_EQ(qemu_timeout_ns_to_ms(INT64_C(1000000) * INT_MAX), INT_MAX);
    EXPECT_EQ(qemu_timeout_ns_to_ms(INT64_C(1000000) * INT_MAX + 1), INT_MAX);
}

TEST(Timeout, PollNsWaitsAndSeesReadiness)
{
    int fds[2];
    struct pollfd pfd = {};
    int64_t before;

    ASSERT_EQ(pipe(fds), 0);
    pfd.fd = fds[0];
    pfd.events = POLLIN;
    EXPECT_EQ(qemu_poll_ns(&pfd, 1, 0), 0);
    before = PosixNs(CLOCK_MONOTONIC);
    EXPECT_EQ(qemu_poll_ns(&pfd, 1, 2000000), 0);
    EXPECT_GE(PosixNs(CLOCK_MONOTONIC) - before, 2000000) << "never too short";
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    EXPECT_EQ(qemu_poll_ns(&pfd, 1, -1), 1);
    EXPECT_EQ(pfd.revents, POLLIN);
    EXPECT_EQ(qemu_poll_ns(&pfd, 1, INT64_MAX), 1);
    close(fds[0]);
    close(fds[1]);
}

TEST_F(Clock, VirtualGoesOnFromWhereItIsWhenRealtimesSourceIsReplaced)
{
    cpu_enable_ticks();
    int64_t before = cpu_get_clock();
    {
        FakeClock fake(QEMU_CLOCK_REALTIME, 5);
        int64_t at = cpu_get_clock();

        EXPECT_GE(at, before);
        fake.Advance(1000);
        EXPECT_EQ(cpu_get_clock(), at + 1000);
        before = cpu_get_clock();
    }
    EXPECT_GE(cpu_get_clock(), before);
    EXPECT_LT(cpu_get_clock(), before + INT64_C(600000000000));
    cpu_disable_ticks();
}

/* In a process of its own. */
TEST(FirstUse, MayBeATimerOfTheMainLoopsGroup)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(
        {
            QEMUTimer ts;
            timer_init_full(
                &ts, &main_loop_tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, [](void *) {}, nullptr);
            timer_mod(&ts, 0);
            exit(qemu_clock_run_all_timers() ? 0 : 1);
        },
        testing::ExitedWithCode(0), "");
}
