/* SPDX-License-Identifier: MIT */
/* timer_mod_range_ns(): slack that saves wake-ups; timer_forward(): periods without drift. */
#include "support.h"

#include <climits>
#include <memory>
#include <thread>

class TimerRange : public testing::Test
{
protected:
    bool Run()
    {
        return timerlist_run_timers(g.list());
    }
    HeapTimer &New(int id, int attributes = 0)
    {
        timers.push_back(std::make_unique<HeapTimer>(
            &g.tlg, [this, id] { order.push_back(id); }, QEMU_CLOCK_REALTIME, SCALE_NS,
            attributes));
        return *timers.back();
    }
    using Order = std::vector<int>;

    FakeClock clock;
    TestGroup g;
    std::vector<std::unique_ptr<HeapTimer>> timers;
    Order order;
};

/* ---- Ranges ---------------------------------------------------------------------------------- */

TEST_F(TimerRange, DeadlineIsTheLatestTime)
{
    HeapTimer &t = New(1);

    EXPECT_TRUE(timer_mod_range_ns(t, clock.Now() + 10, clock.Now() + 100));
    EXPECT_EQ(timer_expire_time_ns(t), clock.Now() + 100);
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 100);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 100);
    EXPECT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL), 100);
    EXPECT_TRUE(timer_pending(t));
    clock.Advance(50);
    EXPECT_FALSE(timer_expired(t, clock.Now()));
    EXPECT_FALSE(timerlist_expired(g.list())) << "nobody has to wake up for it";
}

TEST_F(TimerRange, FiresAtNoTimeBeforeItsSoonest)
{
    HeapTimer &t = New(1);

    timer_mod_range_ns(t, clock.Now() + 10, clock.Now() + 100);
    clock.Advance(9);
    EXPECT_FALSE(Run());
    clock.Advance(1);
    EXPECT_TRUE(Run()) << "who is awake runs it";
    EXPECT_EQ(order, Order{ 1 });
    EXPECT_FALSE(timer_pending(t));
    clock.Advance(1000);
    EXPECT_FALSE(Run()) << "once per arming";
}

/* Three timers within each other's slack and one exact one cost one wake-up. */
TEST_F(TimerRange, OneWakeUpServesAllWhoseRangesItFallsInto)
{
    int wakeups = 0;

    timer_mod_range_ns(New(1), clock.Now() + 100, clock.Now() + 900);
    timer_mod_range_ns(New(2), clock.Now() + 200, clock.Now() + 800);
    timer_mod(New(3), clock.Now() + 500);
    timer_mod_range_ns(New(4), clock.Now() + 501, clock.Now() + 700);
    while (timerlist_has_timers(g.list())) {
        clock.Advance(timerlist_deadline_ns(g.list())); /* sleeps */
        wakeups++;
        Run();
    }
    EXPECT_EQ(order, (Order{ 3, 2, 1, 4 }));
    EXPECT_EQ(wakeups, 2);
}

TEST_F(TimerRange, OrderIsByTheLatestTimeThenByArming)
{
    int64_t now = clock.Now();

    timer_mod_range_ns(New(1), now + 1, now + 30);
    timer_mod_range_ns(New(2), now + 9, now + 20);
    timer_mod_range_ns(New(3), now + 5, now + 20);
    timer_mod(New(4), now + 25);
    clock.Advance(40);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (Order{ 2, 3, 4, 1 }));
}

TEST_F(TimerRange, SoonestThatIsNotBeforeLatestIsAnExactDeadline)
{
    for (int64_t more : { INT64_C(0), INT64_C(1), INT64_C(1000000), INT64_MAX / 2 }) {
        HeapTimer &t = New(1);
        int64_t at = clock.Now() + 100;

        timer_mod_range_ns(t, at + more, at);
        EXPECT_EQ(timer_expire_time_ns(t), at);
        clock.Advance(99);
        EXPECT_FALSE(Run());
        clock.Advance(1);
        EXPECT_TRUE(Run());
    }
}

TEST_F(TimerRange, EndsAreClamped)
{
    HeapTimer &t = New(1);

    timer_mod_range_ns(t, INT64_MIN, -5);
    EXPECT_EQ(timer_expire_time_ns(t), 0);
    timer_mod_range_ns(t, INT64_MAX, INT64_MAX);
    EXPECT_EQ(timer_expire_time_ns(t), INT64_MAX - 1);
    EXPECT_FALSE(Run());
    timer_mod_range_ns(t, INT64_MIN, INT64_MAX);
    EXPECT_EQ(timer_expire_time_ns(t), INT64_MAX - 1);
    EXPECT_TRUE(Run()) << "any time will do";
    EXPECT_EQ(order, Order{ 1 });
}

TEST_F(TimerRange, WhatIsDueComesBeforeWhatOnlyMayRun)
{
    HeapTimer &soft = New(-1);

    timer_mod_range_ns(soft, clock.Now(), clock.Now() + 1000);
    for (int i = 0; i < TIMERLIST_BUDGET; i++) {
        timer_mod(New(i), clock.Now());
    }
    EXPECT_TRUE(Run());
    EXPECT_EQ(order.size(), static_cast<size_t>(TIMERLIST_BUDGET));
    EXPECT_TRUE(timer_pending(soft)) << "the budget went to those that are due";
    EXPECT_TRUE(Run());
    EXPECT_EQ(order.back(), -1);
}

/* Of those that may run, those whose ranges began first are taken when the budget is short. */
TEST_F(TimerRange, RangesThatBeganFirstAreTakenFirst)
{
    for (int i = 0; i < TIMERLIST_BUDGET + 8; i++) {
        /* The later it begins the sooner it must run; every other one is EXTERNAL. */
        timer_mod_range_ns(New(i, i % 2 ? QEMU_TIMER_ATTR_EXTERNAL : 0), clock.Now() + i,
                           clock.Now() + 100000 - i);
    }
    clock.Advance(1000);
    EXPECT_TRUE(Run());
    ASSERT_EQ(order.size(), static_cast<size_t>(TIMERLIST_BUDGET));
    for (int i = 0; i < TIMERLIST_BUDGET; i++) {
        EXPECT_EQ(order[i], TIMERLIST_BUDGET - 1 - i) << "they run by their deadlines";
    }
}

TEST_F(TimerRange, ModAnticipateAndDelReplaceTheRange)
{
    HeapTimer &t = New(1);
    int64_t now = clock.Now();

    timer_mod_range_ns(t, now, now + 100);
    EXPECT_TRUE(timer_mod(t, now + 50));
    EXPECT_FALSE(Run()) << "an exact deadline now";
    timer_mod_range_ns(t, now, now + 100);
    EXPECT_FALSE(timer_mod_anticipate(t, now + 100)) << "not earlier than the latest time";
    EXPECT_TRUE(timer_mod_anticipate(t, now + 99));
    EXPECT_FALSE(Run());
    timer_mod_range_ns(t, now, now + 100);
    EXPECT_TRUE(timer_del(t));
    EXPECT_FALSE(Run());
    EXPECT_FALSE(timerlist_has_timers(g.list()));
}

/* What a pass has taken on by its range is still never run before a deadline given to it later. */
TEST_F(TimerRange, AnticipateOfARangeTakenOnDoesNotFireEarly)
{
    HeapTimer *soft = nullptr;
    HeapTimer first(&g.tlg, [&] {
        order.push_back(1);
        EXPECT_TRUE(timer_mod_anticipate(*soft, clock.Now() + 50));
    });

    soft = &New(2);
    timer_mod(first, clock.Now());
    timer_mod_range_ns(*soft, clock.Now(), clock.Now() + 100);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, Order{ 1 });
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 50);
    clock.Advance(50);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (Order{ 1, 2 }));
}

TEST_F(TimerRange, NestedPassFinishesRangesOfTheOuterOne)
{
    HeapTimer outer(&g.tlg, [&] {
        order.push_back(1);
        EXPECT_TRUE(Run()) << "the outer pass has taken on another one";
        order.push_back(-1);
    });

    timer_mod_range_ns(outer, clock.Now(), clock.Now() + 10);
    timer_mod_range_ns(New(2), clock.Now(), clock.Now() + 100);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (Order{ 1, 2, -1 }));
}

TEST_F(TimerRange, NotifiesForTheLatestTimeAlone)
{
    HeapTimer &a = New(1), &b = New(2);
    int n;

    timer_mod(a, clock.Now() + 100);
    n = g.notified();
    timer_mod_range_ns(b, clock.Now() + 1, clock.Now() + 200);
    EXPECT_EQ(g.notified(), n) << "the loop sleeps on";
    timer_mod_range_ns(b, clock.Now() + 1, clock.Now() + 99);
    EXPECT_EQ(g.notified(), n + 1);
}

TEST_F(TimerRange, DeadTimerAndClosedListRefuse)
{
    HeapTimer &t = New(1);
    bool mod = true;
    uint64_t forward = 1;
    QEMUTimer *ts = nullptr;
    HeapTimer self(&g.tlg, [&] {
        self.Free();
        mod = timer_mod_range_ns(ts, 0, 5);
        forward = timer_forward(ts, 1000, 10);
    });

    ts = self;
    timer_mod(self, 0);
    EXPECT_TRUE(Run());
    EXPECT_FALSE(mod);
    EXPECT_EQ(forward, 0u);
    EXPECT_FALSE(timerlist_has_timers(g.list()));
    g.Close();
    EXPECT_FALSE(timer_mod_range_ns(t, 0, 5));
    EXPECT_EQ(timer_forward(t, 1000, 10), 0u);
    EXPECT_FALSE(timer_pending(t));
}

/* ---- Periods --------------------------------------------------------------------------------- */

TEST_F(TimerRange, ForwardCountsFromTheDeadlineThatFired)
{
    HeapTimer &t = New(1);
    int64_t first = clock.Now() + 100;

    timer_mod(t, first);
    clock.Advance(107); /* late by 7 */
    EXPECT_TRUE(Run());
    EXPECT_EQ(timer_forward(t, clock.Now(), 100), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), first + 100) << "no drift";
    clock.Advance(350);
    EXPECT_TRUE(Run());
    EXPECT_EQ(timer_forward(t, clock.Now(), 100), 2u) << "two were missed";
    EXPECT_EQ(timer_expire_time_ns(t), first + 400);
}

TEST_F(TimerRange, ForwardFromItsCallbackNeverDrifts)
{
    int64_t first = clock.Now() + 10, missed = 0;
    int fired = 0;
    HeapTimer *p = nullptr;
    HeapTimer t(&g.tlg, [&] {
        fired++;
        missed += static_cast<int64_t>(timer_forward(*p, clock.Now(), 10));
        EXPECT_EQ(timer_expire_time_ns(*p), first + 10 * (fired + missed));
        EXPECT_GT(timer_expire_time_ns(*p), clock.Now());
    });

    p = &t;
    timer_mod(t, first);
    for (int i = 0; i < 1000; i++) {
        clock.Advance(i * 7 % 31);
        Run();
    }
    EXPECT_GT(fired, 100);
    EXPECT_GT(missed, 100);
}

TEST_F(TimerRange, ForwardOfAnArmedTimerCountsFromItsDeadline)
{
    HeapTimer &t = New(1);
    int64_t at = clock.Now() + 1000;

    timer_mod(t, at);
    EXPECT_EQ(timer_forward(t, clock.Now(), 300), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), at + 300) << "one period at least";
    timer_mod_range_ns(t, at, at + 50);
    EXPECT_EQ(timer_forward(t, at + 50, 300), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), at + 350) << "a range counts by its latest time";
}

TEST_F(TimerRange, ForwardAfterDelCountsFromWhatWasDeleted)
{
    HeapTimer &t = New(1);
    int64_t at = clock.Now() + 10;

    timer_mod(t, at);
    timer_del(t);
    EXPECT_EQ(timer_forward(t, at + 25, 10), 2u);
    EXPECT_EQ(timer_expire_time_ns(t), at + 30);
}

TEST_F(TimerRange, ForwardOfATimerNeverArmedCountsFromNow)
{
    HeapTimer &t = New(1);

    EXPECT_EQ(timer_forward(t, clock.Now(), 40), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), clock.Now() + 40);
}

TEST_F(TimerRange, ForwardLandsAfterNowAndNotOnIt)
{
    HeapTimer &t = New(1);
    int64_t at = clock.Now();

    timer_mod(t, at);
    EXPECT_EQ(timer_forward(t, at + 30, 10), 3u);
    EXPECT_EQ(timer_expire_time_ns(t), at + 40);
}

TEST_F(TimerRange, ForwardSaturates)
{
    HeapTimer &t = New(1);

    timer_mod(t, 0);
    EXPECT_EQ(timer_forward(t, 5, INT64_MAX), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), INT64_MAX - 1);
    EXPECT_EQ(timer_forward(t, 5, 1), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), INT64_MAX - 1) << "it cannot go further";
    timer_mod(t, 0);
    EXPECT_EQ(timer_forward(t, INT64_MAX, 1), static_cast<uint64_t>(INT64_MAX - 1));
    EXPECT_EQ(timer_expire_time_ns(t), INT64_MAX - 1);
    timer_mod(t, -100);
    EXPECT_EQ(timer_forward(t, -100, 7), 0u);
    EXPECT_EQ(timer_expire_time_ns(t), 7) << "a time below zero counts as zero";
}

TEST(TimerRangeDeathTest, ForwardByNoTimeAborts)
{
    TestGroup g;
    HeapTimer t(&g.tlg, [] {});

    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(timer_forward(t, 0, 0), "timer_forward");
}
