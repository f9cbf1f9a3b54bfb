/* SPDX-License-Identifier: MIT */
/* qemu_clock_enable(): disabling waits for callbacks, except where it could wait for itself. */
#include "support.h"

#include <memory>
#include <thread>
#include <unistd.h>

/* HOST is enabled again at the end of each test. */
class ClockEnable : public testing::Test
{
protected:
    ~ClockEnable() override
    {
        qemu_clock_enable(QEMU_CLOCK_HOST, true);
    }
    QEMUTimerList *list() const
    {
        return g.list(QEMU_CLOCK_HOST);
    }

    FakeClock clock{ QEMU_CLOCK_HOST };
    TestGroup g;
};

TEST_F(ClockEnable, DisabledClockHasNoDeadlineAndFiresNothing)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_HOST);

    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, false), 0);
    EXPECT_TRUE(timer_mod(t, clock.Now()));
    EXPECT_EQ(timerlist_deadline_ns(list()), -1);
    EXPECT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_HOST, QEMU_TIMER_ATTR_ALL), -1);
    EXPECT_FALSE(timerlist_expired(list()));
    EXPECT_FALSE(timerlist_run_timers(list()));
    EXPECT_EQ(fired, 0);
}

TEST_F(ClockEnable, TimersStayArmedAndFireOnceEnabled)
{
    int fired = 0;
    HeapTimer t(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_HOST);
    int n;

    timer_mod(t, clock.Now() + 10);
    qemu_clock_enable(QEMU_CLOCK_HOST, false);
    clock.Advance(10);
    EXPECT_TRUE(timer_pending(t));
    EXPECT_TRUE(timerlist_has_timers(list()));
    n = g.notified(QEMU_CLOCK_HOST);
    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, true), 0);
    EXPECT_EQ(g.notified(QEMU_CLOCK_HOST), n + 1) << "every list is re-evaluated";
    EXPECT_TRUE(timerlist_run_timers(list()));
    EXPECT_EQ(fired, 1);
}

TEST_F(ClockEnable, OtherClocksGoOn)
{
    FakeClock real;
    int fired = 0;
    HeapTimer t(&g.tlg, [&] { fired++; });

    qemu_clock_enable(QEMU_CLOCK_HOST, false);
    timer_mod(t, real.Now());
    EXPECT_TRUE(timerlist_run_timers(g.list()));
    EXPECT_EQ(fired, 1);
}

TEST_F(ClockEnable, BelowItsOwnCallbackItDisablesButDoesNotWait)
{
    int ret = 0, fired = 0;
    HeapTimer second(
        &g.tlg, [&] { fired++; }, QEMU_CLOCK_HOST);
    HeapTimer first(
        &g.tlg, [&] { ret = qemu_clock_enable(QEMU_CLOCK_HOST, false); }, QEMU_CLOCK_HOST);

    timer_mod(first, 1);
    timer_mod(second, 2);
    EXPECT_TRUE(timerlist_run_timers(list()));
    EXPECT_EQ(ret, -EDEADLK);
    EXPECT_EQ(fired, 0) << "disabled in mid-pass";
    EXPECT_TRUE(timer_pending(second)) << "it kept its deadline";
    EXPECT_EQ(timer_expire_time_ns(second), 2);
    qemu_clock_enable(QEMU_CLOCK_HOST, true);
    EXPECT_TRUE(timerlist_run_timers(list()));
    EXPECT_EQ(fired, 1);
}

/* Timer callback, nested poll, bottom half: still below a timer callback. */
TEST_F(ClockEnable, BelowANestedPollAndABottomHalfItDoesNotWait)
{
    AioContext *ctx = aio_context_new(nullptr);
    ASSERT_NE(ctx, nullptr);
    struct State {
        AioContext *ctx;
        int ret;
        bool ran;
    } s = { ctx, 0, false };
    FakeClock real;
    HeapTimer t(aio_context_get_timer_list_group(ctx), [&] {
        aio_bh_schedule_oneshot(
            s.ctx,
            [](void *opaque) {
                State *st = static_cast<State *>(opaque);

                st->ret = qemu_clock_enable(QEMU_CLOCK_HOST, false);
                st->ran = true;
            },
            &s);
        while (!s.ran) {
            aio_poll(s.ctx, true);
        }
    });

    timer_mod(t, real.Now());
    while (!s.ran) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(s.ret, -EDEADLK);
    EXPECT_FALSE(timerlist_run_timers(list()));
    t.Free();
    aio_context_unref(ctx);
}

/* A callback on another thread that is told when to return. */
struct Blocker {
    std::atomic<bool> running{ false }, leave{ false }, left{ false };

    void Block()
    {
        running = true;
        while (!leave) {
            std::this_thread::yield();
        }
        usleep(1000);
        left = true;
    }
};

TEST_F(ClockEnable, DisableWaitsForCallbacksOnOtherThreads)
{
    Blocker b;
    HeapTimer t(
        &g.tlg, [&] { b.Block(); }, QEMU_CLOCK_HOST);

    timer_mod(t, clock.Now());
    std::thread runner([&] { timerlist_run_timers(list()); });
    ASSERT_TRUE(WaitUntil([&] { return b.running.load(); }));
    std::thread release([&] {
        usleep(5000);
        b.leave = true;
    });
    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, false), 0);
    EXPECT_TRUE(b.left);
    release.join();
    runner.join();
}

/* An inner pass that ends is not the end: the outer callback still runs. */
TEST_F(ClockEnable, DisableWaitsForTheOuterCallbackOfNestedPasses)
{
    Blocker b;
    std::atomic<bool> inner{ false };
    HeapTimer in(
        &g.tlg, [&] { inner = true; }, QEMU_CLOCK_HOST);
    HeapTimer out(
        &g.tlg,
        [&] {
            timer_mod(in, 0);
            EXPECT_TRUE(timerlist_run_timers(list()));
            b.Block();
        },
        QEMU_CLOCK_HOST);

    timer_mod(out, clock.Now());
    std::thread runner([&] { timerlist_run_timers(list()); });
    ASSERT_TRUE(WaitUntil([&] { return b.running && inner; }));
    std::thread release([&] {
        usleep(5000);
        b.leave = true;
    });
    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, false), 0);
    EXPECT_TRUE(b.left);
    release.join();
    runner.join();
}

TEST_F(ClockEnable, EnablingNeverBlocks)
{
    Blocker b;
    HeapTimer t(
        &g.tlg, [&] { b.Block(); }, QEMU_CLOCK_HOST);

    timer_mod(t, clock.Now());
    std::thread runner([&] { timerlist_run_timers(list()); });
    ASSERT_TRUE(WaitUntil([&] { return b.running.load(); }));
    std::thread disabler([&] { EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, false), 0); });
    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, true), 0); /* would hang here */
    b.leave = true;
    disabler.join();
    runner.join();
}

/* No callback runs once a disable has returned, from any number of threads and lists. */
TEST_F(ClockEnable, NoCallbackRunsOnceDisabled)
{
    constexpr int kLists = 2, kRounds = kSanitized ? 200 : 2000;
    TestGroup groups[kLists];
    std::atomic<int> inside{ 0 }, seen{ 0 };
    std::atomic<bool> stop{ false };
    std::atomic<uint64_t> fired{ 0 };
    std::vector<std::unique_ptr<HeapTimer>> timers;

    SetTimeLimit(100);
    for (int i = 0; i < kLists; i++) {
        timers.push_back(std::make_unique<HeapTimer>(
            &groups[i].tlg,
            [&, i] {
                inside++;
                fired++;
                timer_mod(*timers[i], 0);
                inside--;
            },
            QEMU_CLOCK_HOST));
    }
    RunThreads(kLists + 1, [&](int i) {
        if (i < kLists) {
            timer_mod(*timers[i], 0);
            while (!stop) {
                timerlist_run_timers(groups[i].list(QEMU_CLOCK_HOST));
            }
            return;
        }
        for (int n = 0; n < kRounds; n++) {
            uint64_t before = fired;

            EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, false), 0);
            seen = seen + inside;
            EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_HOST, true), 0);
            while (fired == before) {
                std::this_thread::yield();
            }
        }
        stop = true;
    });
    EXPECT_EQ(seen, 0);
}

/* Lists come and go while a disabler walks them. */
TEST_F(ClockEnable, ListsMayComeAndGoMeanwhile)
{
    constexpr int kRounds = kSanitized ? 100 : 1000;
    std::atomic<bool> stop{ false };

    RunThreads(3, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                TestGroup group;
                HeapTimer t(
                    &group.tlg, [] {}, QEMU_CLOCK_HOST);

                timer_mod(t, 0);
                timerlist_run_timers(group.list(QEMU_CLOCK_HOST));
            }
            stop = true;
        }
        while (!stop) {
            if (i == 1) {
                qemu_clock_enable(QEMU_CLOCK_HOST, false);
                qemu_clock_enable(QEMU_CLOCK_HOST, true);
            } else {
                EXPECT_LE(qemu_clock_deadline_ns_all(QEMU_CLOCK_HOST, QEMU_TIMER_ATTR_ALL), 0);
                qemu_clock_notify(QEMU_CLOCK_HOST);
            }
        }
    });
}
