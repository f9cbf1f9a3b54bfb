/* SPDX-License-Identifier: MIT */
/* Timers for which no room could be made in the queue's heaps: slower, but no different. */
#include "memory_watch.h"
#include "timer_crowd.h"

#include <algorithm>
#include <memory>
#include <random>
#include <set>

/* The parameter: how often the queues get memory for room, for two arrays each time, before there
 * is no more. */
class TimerSpill : public testing::TestWithParam<int>
{
protected:
    static constexpr int kTimers = 2000; /* of which half in each class */

    TimerSpill() : rng(GetParam()), key(kTimers)
    {
    }

    void Make(TimerCrowd::Fire fire)
    {
        MemoryRefused refused(Refuse::kMappings, GetParam());

        timers = std::make_unique<TimerCrowd>(&g.tlg, kTimers, fire, this);
    }

    /* The room that @grown steps of growth make. */
    static unsigned Room(int grown)
    {
        return grown ? (256u << (grown - 1)) - HEAP_ROOT : 0;
    }

    bool Armed(int i) const
    {
        return key[i].at >= 0;
    }

    /* What timer_mod() and timer_del() do, in a sorted set. */
    void Put(int i, int64_t at)
    {
        order.erase(key[i]);
        key[i] = Key{ at, ++seq, i };
        order.insert(key[i]);
    }
    bool Drop(int i)
    {
        bool was = Armed(i);

        order.erase(key[i]);
        key[i].at = -1;
        return was;
    }

    int64_t RandomDeadline()
    {
        int64_t x = static_cast<int64_t>(rng() >> 8);

        switch (rng() % 4) {
        case 0:
            return clock.Now() + x % 4; /* ties */
        case 1:
            return clock.Now() + 30000; /* a lane */
        case 2:
            return clock.Now() + x % (100 * kFar);
        default:
            return clock.Now() + x % 50000;
        }
    }

    void Step(int i)
    {
        int64_t ns = RandomDeadline();
        QEMUTimer *ts = (*timers)[i];
        bool sooner = !Armed(i) || ns < key[i].at;

        switch (rng() % 8) {
        case 0:
            ASSERT_EQ(timer_del(ts), Drop(i));
            break;
        case 1:
            ASSERT_EQ(timer_mod_anticipate(ts, ns), sooner);
            if (sooner) {
                Put(i, ns);
            }
            break;
        default:
            ASSERT_TRUE(timer_mod(ts, ns));
            Put(i, ns);
            break;
        }
    }

    /* All of them; none finds a lane, when nothing was armed near @base before. */
    void ArmFalling(int64_t base)
    {
        for (int i = 0; i < kTimers; i++) {
            ASSERT_EQ(timer_del((*timers)[i]), Drop(i));
        }
        for (int i = 0; i < kTimers; i++) {
            int64_t ns = base + (kTimers - i) * kFar;

            ASSERT_TRUE(timer_mod((*timers)[i], ns));
            Put(i, ns);
        }
    }

    void CheckHead()
    {
        int64_t left = order.empty() ? -1 : order.begin()->at - clock.Now();

        ASSERT_EQ(timerlist_deadline_ns(g.list()), left);
    }

    void Verify()
    {
        unsigned long n = 0;

        for (const struct timer_class &cls : g.list()->cls) {
            n += timer_queue_verify(&cls.queue);
        }
        ASSERT_EQ(n, order.size());
    }

    static void FireInOrder(TimerCrowd *timers, int i)
    {
        TimerSpill *t = static_cast<TimerSpill *>(timers->opaque);

        ASSERT_FALSE(t->order.empty());
        ASSERT_EQ(i, t->order.begin()->i) << "fired out of turn";
        ASSERT_LE(t->order.begin()->at, t->clock.Now());
        t->Drop(i);
        if (t->rng() % 4 == 0) {
            int64_t later = t->clock.Now() + 1 + static_cast<int64_t>(t->rng() % 50000);

            ASSERT_TRUE(timer_mod((*timers)[i], later));
            t->Put(i, later);
        }
    }

    static void FireInWindow(TimerCrowd *timers, int i)
    {
        TimerSpill *t = static_cast<TimerSpill *>(timers->opaque);

        ASSERT_LE(t->windows[i].soonest, t->clock.Now());
        t->windows[i] = Window();
    }

    void FireUpTo(int64_t now)
    {
        clock.Set(now);
        while (timerlist_run_timers(g.list()) && !HasFatalFailure()) {
        }
        ASSERT_TRUE(order.empty() || order.begin()->at > now) << "one that was due did not fire";
    }

    void Steps(int n)
    {
        for (int step = 0; step < n && !HasFatalFailure(); step++) {
            Step(static_cast<int>(rng() % kTimers));
            if (step % 16 == 0) {
                FireUpTo(clock.Now() + static_cast<int64_t>(rng() % 300));
            }
            CheckHead();
            if (step % 256 == 0) {
                Verify();
            }
        }
    }

    struct Key {
        int64_t at = -1; /* -1: not armed */
        uint64_t seq = 0;
        int i = 0;

        bool operator<(const Key &other) const
        {
            return at < other.at || (at == other.at && seq < other.seq);
        }
    };

    struct Window { /* of a timer that is armed for a range */
        int64_t soonest = INT64_MAX, latest = INT64_MAX;
    };

    std::mt19937_64 rng;
    FakeClock clock;
    TestGroup g;
    uint64_t seq = 0;
    std::vector<Key> key;
    std::set<Key> order;
    std::vector<Window> windows;
    std::unique_ptr<TimerCrowd> timers;
};
INSTANTIATE_TEST_SUITE_P(Granted, TimerSpill, testing::Range(0, 13),
                         testing::PrintToStringParamName());

TEST_P(TimerSpill, OrderHoldsWithoutRoom)
{
    const int kSteps = kSanitized ? 3000 : 10000;
    int grown = GetParam() / 2;

    Make(FireInOrder);
    /* A step that got memory for one of its two arrays alone was taken back. */
    ASSERT_EQ(timer_queue_room(&g.list()->cls[CLASS_NORMAL].queue), Room((grown + 1) / 2));
    ASSERT_EQ(timer_queue_room(&g.list()->cls[CLASS_EXTERNAL].queue), Room(grown / 2));

    Steps(kSteps);
    FireUpTo(clock.Now() + 100 * kFar);
    ArmFalling(INT64_C(1) << 59);
    unsigned in_heaps = std::min(Room((grown + 1) / 2), 1000u) + std::min(Room(grown / 2), 1000u);
    EXPECT_EQ(InHeaps(g.list()), in_heaps);
    EXPECT_EQ(Spilt(g.list()), kTimers - in_heaps);
    Steps(kSteps);

    /* Memory is there again: the next timers make room for all. */
    TimerCrowd more(&g.tlg, 4, [](TimerCrowd *, int) {});
    Steps(kSteps);
    FireUpTo(clock.Now() + 100 * kFar);
    ArmFalling(INT64_C(1) << 60);
    EXPECT_EQ(InHeaps(g.list()), static_cast<unsigned>(kTimers));
    FireUpTo(INT64_C(1) << 61);
    EXPECT_GT(timers->fired, static_cast<unsigned long>(kSteps));
}

/* A range that has found no room ends no sooner, but at its end. */
TEST_P(TimerSpill, RangesHoldWithoutRoom)
{
    unsigned most_spilt = 0;

    windows.resize(kTimers);
    Make(FireInWindow);
    for (int round = 0; round < 20 && !HasFatalFailure(); round++) {
        for (int n = 0; n < kTimers; n++) {
            int i = static_cast<int>(rng() % kTimers);

            windows[i].latest = RandomDeadline();
            windows[i].soonest = windows[i].latest - static_cast<int64_t>(rng() % 5000);
            timer_mod_range_ns((*timers)[i], windows[i].soonest, windows[i].latest);
        }
        most_spilt = std::max(most_spilt, Spilt(g.list()));
        clock.Advance(static_cast<int64_t>(rng() % (10 * kFar)));
        while (timerlist_run_timers(g.list())) {
        }
        for (int i = 0; i < kTimers; i++) {
            ASSERT_GT(windows[i].latest, clock.Now()) << "one that was due did not fire";
            ASSERT_EQ(timer_pending((*timers)[i]), windows[i].latest != INT64_MAX);
        }
    }
    EXPECT_GT(timers->fired, kTimers * 2ul);
    EXPECT_EQ(most_spilt > 0, GetParam() < 12) << most_spilt;
}
