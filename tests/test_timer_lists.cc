/* SPDX-License-Identifier: MIT */
/* Lists and groups on one thread: passes, notification, deadlines, walking, the main group. */
#include "support.h"

#include <algorithm>
#include <memory>
#include <set>

class TimerList : public testing::Test
{
protected:
    bool Run()
    {
        return timerlist_run_timers(g.list());
    }
    HeapTimer &New(std::function<void()> func, int attributes = 0)
    {
        timers.push_back(std::make_unique<HeapTimer>(&g.tlg, std::move(func), QEMU_CLOCK_REALTIME,
                                                     SCALE_NS, attributes));
        return *timers.back();
    }

    FakeClock clock;
    TestGroup g;
    std::vector<std::unique_ptr<HeapTimer>> timers;
    std::vector<int> order;
};

/* ---- Passes ---------------------------------------------------------------------------------- */

TEST_F(TimerList, WhatACallbackArmsWaitsForTheNextPassHoweverLate)
{
    HeapTimer &late = New([&] { order.push_back(9); });
    HeapTimer &first = New([&] {
        order.push_back(1);
        timer_mod(late, 0); /* before everything else, long past */
    });
    HeapTimer &second = New([&] { order.push_back(2); });

    timer_mod(first, 10);
    timer_mod(second, 20);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2 }));
    EXPECT_TRUE(timer_pending(late));
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 0);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2, 9 }));
}

TEST_F(TimerList, CallbackThatAlwaysRearmsEndsThePass)
{
    int fired = 0;
    HeapTimer *p = nullptr;
    HeapTimer &t = New([&] {
        fired++;
        timer_mod(*p, 0);
    });

    p = &t;
    timer_mod(t, 0);
    for (int i = 1; i <= 5; i++) {
        EXPECT_TRUE(Run());
        EXPECT_EQ(fired, i);
    }
}

TEST_F(TimerList, NowIsTakenWhenThePassBegins)
{
    HeapTimer &second = New([&] { order.push_back(2); });
    HeapTimer &first = New([&] {
        order.push_back(1);
        clock.Advance(1000); /* second becomes due while the pass runs */
    });

    timer_mod(first, clock.Now());
    timer_mod(second, clock.Now() + 500);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1 }));
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2 }));
    EXPECT_FALSE(timer_pending(first));
}

TEST_F(TimerList, PassStopsAfterItsBudget)
{
    constexpr int kTimers = 3 * TIMERLIST_BUDGET + 7;
    int fired = 0;

    for (int i = 0; i < kTimers; i++) {
        timer_mod(New([&] { fired++; }), i);
    }
    for (int done = 0; done < kTimers;) {
        EXPECT_TRUE(Run());
        done = std::min(done + TIMERLIST_BUDGET, kTimers);
        EXPECT_EQ(fired, done);
        EXPECT_EQ(timerlist_has_timers(g.list()), done < kTimers);
    }
    EXPECT_FALSE(Run());
}

TEST_F(TimerList, NestedPassFinishesTheOuterOnesFirst)
{
    HeapTimer &armed_inside = New([&] { order.push_back(9); });
    HeapTimer &a = New([&] {
        order.push_back(1);
        timer_mod(armed_inside, 0);
        EXPECT_TRUE(Run()); /* runs 2 and 3, and not what was armed just now */
        order.push_back(-1);
    });
    HeapTimer &b = New([&] { order.push_back(2); });
    HeapTimer &c = New([&] { order.push_back(3); });

    timer_mod(a, 10);
    timer_mod(b, 20);
    timer_mod(c, 30);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2, 3, -1 }));
    EXPECT_TRUE(Run());
    EXPECT_EQ(order.back(), 9);
}

TEST_F(TimerList, NestedPassBeginsItsOwnWhenNothingIsLeft)
{
    HeapTimer &inner = New([&] { order.push_back(2); });
    HeapTimer &outer = New([&] {
        order.push_back(1);
        timer_mod(inner, 0);
        EXPECT_TRUE(Run());
        EXPECT_FALSE(Run());
        order.push_back(3);
    });

    timer_mod(outer, 0);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2, 3 }));
}

/* A callback that arms its own timer and polls is called below itself; both calls count. */
TEST_F(TimerList, TimerMayFireBelowItsOwnCallback)
{
    int depth = 0, fired = 0;
    HeapTimer *p = nullptr;
    HeapTimer &t = New([&] {
        fired++;
        if (++depth < 4) {
            timer_mod(*p, 0);
            EXPECT_TRUE(Run());
        }
        depth--;
    });

    p = &t;
    timer_mod(t, 0);
    EXPECT_TRUE(Run());
    EXPECT_EQ(fired, 4);
    EXPECT_EQ(depth, 0);
}

TEST_F(TimerList, TimerMayBeFreedBelowItsOwnCallback)
{
    int fired = 0;
    HeapTimer *p = nullptr;
    HeapTimer &t = New([&] {
        if (++fired == 1) {
            timer_mod(*p, 0);
            EXPECT_TRUE(Run());
            fired += 10;
        } else {
            p->Free();
        }
    });

    p = &t;
    timer_mod(t, 0);
    EXPECT_TRUE(Run());
    EXPECT_EQ(fired, 12);
    aio_rcu_barrier(); /* for AddressSanitizer: freed once */
}

/* ---- Notification ---------------------------------------------------------------------------- */

TEST_F(TimerList, NotifiesOnlyWhenTheHeadMovesEarlier)
{
    HeapTimer &a = New([] {}), &b = New([] {});
    int n = g.notified();

    timer_mod(a, 1000);
    EXPECT_EQ(g.notified(), ++n) << "the first one";
    timer_mod(b, 2000);
    EXPECT_EQ(g.notified(), n) << "behind the head";
    timer_mod(b, 1000);
    EXPECT_EQ(g.notified(), n) << "equal to the head";
    timer_mod(b, 999);
    EXPECT_EQ(g.notified(), ++n) << "before the head";
    timer_mod(b, 1500);
    EXPECT_EQ(g.notified(), n) << "the head moved later";
    timer_mod_anticipate(b, 1400);
    EXPECT_EQ(g.notified(), n) << "earlier, but not the head";
    timer_mod_anticipate(b, 10);
    EXPECT_EQ(g.notified(), ++n);
    timer_del(b);
    timer_del(a);
    EXPECT_EQ(g.notified(), n) << "deleting";
}

TEST_F(TimerList, LookingAndRunningDoNotNotify)
{
    timer_mod(New([] {}), 0);
    timer_mod(New([] {}), 100);
    int n = g.notified();

    timerlist_has_timers(g.list());
    timerlist_expired(g.list());
    timerlist_deadline_ns(g.list());
    timerlistgroup_deadline_ns(&g.tlg);
    qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL);
    qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    timerlist_walk(
        g.list(), [](const QEMUTimerInfo *, void *) { return true; }, nullptr);
    EXPECT_TRUE(Run());
    EXPECT_EQ(g.notified(), n);
    timerlist_notify(g.list());
    EXPECT_EQ(g.notified(), n + 1);
}

/* notify_cb comes with no lock held, inside a read section, and sees what was armed. */
TEST(TimerListNotify, ComesWithoutTheListsLockInsideAReadSection)
{
    struct State {
        QEMUTimerList *tl;
        QEMUTimer *ts;
        int64_t seen;
        bool in_section, deleted;
    } s = {};

    s.tl = timerlist_new(
        QEMU_CLOCK_REALTIME,
        [](void *opaque, QEMUClockType type) {
            State *st = static_cast<State *>(opaque);

            EXPECT_EQ(type, QEMU_CLOCK_REALTIME);
            st->in_section = aio_rcu_read_ongoing();
            st->seen = timer_expire_time_ns(st->ts);
            st->deleted = timer_del(st->ts); /* would hang on a lock that is held */
        },
        &s);
    ASSERT_NE(s.tl, nullptr);
    QEMUTimerListGroup group = {};
    group.tl[QEMU_CLOCK_REALTIME] = s.tl;
    HeapTimer t(&group, [] {});

    s.ts = t;
    timer_mod(t, 77);
    EXPECT_EQ(s.seen, 77);
    EXPECT_TRUE(s.in_section);
    EXPECT_TRUE(s.deleted);
    EXPECT_EQ(timerlist_get_clock(s.tl), QEMU_CLOCK_REALTIME);
    t.Free();
    timerlist_free(s.tl);
    aio_synchronize_rcu();
}

/* ---- Deadlines ------------------------------------------------------------------------------- */

TEST_F(TimerList, DeadlineIsTheTimeLeft)
{
    HeapTimer &t = New([] {});

    EXPECT_EQ(timerlist_deadline_ns(g.list()), -1);
    EXPECT_FALSE(timerlist_has_timers(g.list()));
    timer_mod(t, clock.Now() + 30);
    EXPECT_TRUE(timerlist_has_timers(g.list()));
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 30);
    clock.Advance(31);
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 0);
    timer_del(t);
    EXPECT_EQ(timerlist_deadline_ns(g.list()), -1);
}

TEST_F(TimerList, MaskLeavesExternalTimersOut)
{
    HeapTimer &external = New([] {}, QEMU_TIMER_ATTR_EXTERNAL), &normal = New([] {});
    auto all = [](int mask) { return qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, mask); };

    timer_mod(external, clock.Now() + 10);
    EXPECT_EQ(all(QEMU_TIMER_ATTR_ALL), 10);
    EXPECT_EQ(all(QEMU_TIMER_ATTR_EXTERNAL), 10);
    EXPECT_EQ(all(0), -1);
    EXPECT_EQ(all(QEMU_TIMER_ATTR_ALL & ~QEMU_TIMER_ATTR_EXTERNAL), -1);
    timer_mod(normal, clock.Now() + 20);
    EXPECT_EQ(all(QEMU_TIMER_ATTR_ALL), 10);
    EXPECT_EQ(all(0), 20);
    timer_del(external);
    EXPECT_EQ(all(QEMU_TIMER_ATTR_ALL), 20);
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 20);
}

TEST_F(TimerList, DeadlineOfAllListsIsTheSoonest)
{
    TestGroup other;
    HeapTimer here(&g.tlg, [] {}), there(&other.tlg, [] {});

    timer_mod(here, clock.Now() + 50);
    timer_mod(there, clock.Now() + 20);
    EXPECT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL), 20);
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 50);
    clock.Advance(60);
    EXPECT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL), 0);
}

TEST_F(TimerList, GroupTakesTheSoonestOfItsClocks)
{
    FakeClock host(QEMU_CLOCK_HOST, 5000000);
    HeapTimer a(&g.tlg, [&] { order.push_back(1); });
    HeapTimer b(
        &g.tlg, [&] { order.push_back(2); }, QEMU_CLOCK_HOST);

    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), -1);
    timer_mod(a, clock.Now() + 70);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 70);
    timer_mod(b, host.Now() + 40);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 40);
    EXPECT_EQ(g.notified(QEMU_CLOCK_HOST) > 0, true);
    host.Advance(40);
    clock.Advance(70);
    EXPECT_EQ(timerlistgroup_deadline_ns(&g.tlg), 0);
    EXPECT_TRUE(timerlistgroup_run_timers(&g.tlg));
    EXPECT_FALSE(timerlistgroup_run_timers(&g.tlg));
    std::sort(order.begin(), order.end());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2 }));
}

/* ---- Walking --------------------------------------------------------------------------------- */

static bool CollectNames(const QEMUTimerInfo *info, void *opaque)
{
    EXPECT_TRUE(aio_rcu_read_ongoing());
    static_cast<std::multiset<std::string> *>(opaque)->insert(
        std::string(info->name ? info->name : "-") + (info->armed ? "+" : "") +
        (info->running ? "!" : "") + ":" + std::to_string(info->deadline_ns) + ":" +
        std::to_string(info->attributes));
    return true;
}

TEST_F(TimerList, WalkShowsEveryTimerFromNew)
{
    std::multiset<std::string> names, inside;
    HeapTimer &a = New([&] { timerlist_walk(g.list(), CollectNames, &inside); });
    HeapTimer &b = New([] {}, QEMU_TIMER_ATTR_EXTERNAL);
    QEMUTimer embedded;

    New([] {});
    timer_init_full(
        &embedded, &g.tlg, QEMU_CLOCK_REALTIME, 1, 0, [](void *) {}, nullptr);
    timer_set_name(a, "tick");
    timer_set_name(b, "tock");
    timer_mod(a, 5);
    EXPECT_EQ(timerlist_walk(g.list(), CollectNames, &names), 3u);
    EXPECT_EQ(names, (std::multiset<std::string>{ "tick+:5:0", "tock:-1:1", "-:-1:0" }));
    EXPECT_TRUE(Run());
    EXPECT_EQ(inside.count("tick!:-1:0"), 1u) << "it is running, and not armed";

    b.Free();
    names.clear();
    EXPECT_EQ(timerlist_walk(g.list(), CollectNames, &names), 2u);
    EXPECT_EQ(names, (std::multiset<std::string>{ "tick:-1:0", "-:-1:0" }));
    timer_deinit(&embedded);
}

TEST_F(TimerList, WalkStopsWhenTold)
{
    int n = 0;

    New([] {});
    New([] {});
    EXPECT_EQ(timerlist_walk(
                  g.list(),
                  [](const QEMUTimerInfo *, void *opaque) {
                      ++*static_cast<int *>(opaque);
                      return false;
                  },
                  &n),
              1u);
    EXPECT_EQ(n, 1);
}

/* ---- The main loop's group ------------------------------------------------------------------- */

static std::atomic<int> main_notified[2];

TEST(MainLoopGroup, CallsActOnIt)
{
    FakeClock clock;
    int fired = 0;

    init_clocks(nullptr);
    EXPECT_EQ(qemu_clock_get_main_loop_timerlist(QEMU_CLOCK_REALTIME),
              main_loop_tlg.tl[QEMU_CLOCK_REALTIME]);
    HeapTimer t(nullptr, [&] { fired++; });

    EXPECT_FALSE(qemu_clock_has_timers(QEMU_CLOCK_REALTIME));
    timer_mod(t, clock.Now() + 10);
    EXPECT_TRUE(qemu_clock_has_timers(QEMU_CLOCK_REALTIME));
    EXPECT_FALSE(qemu_clock_expired(QEMU_CLOCK_REALTIME));
    EXPECT_FALSE(qemu_clock_run_timers(QEMU_CLOCK_REALTIME));
    clock.Advance(10);
    EXPECT_TRUE(qemu_clock_expired(QEMU_CLOCK_REALTIME));
    EXPECT_FALSE(qemu_clock_run_timers(QEMU_CLOCK_HOST));
    EXPECT_TRUE(qemu_clock_run_all_timers());
    EXPECT_EQ(fired, 1);
    EXPECT_FALSE(qemu_clock_run_all_timers());
}

TEST(MainLoopGroup, LaterInitReplacesTheCallback)
{
    HeapTimer t(nullptr, [] {});

    init_clocks([](void *, QEMUClockType) { main_notified[0]++; });
    timer_mod(t, 1000);
    EXPECT_EQ(main_notified[0], 1);
    init_clocks([](void *, QEMUClockType) { main_notified[1]++; });
    timer_mod(t, 500);
    EXPECT_EQ(main_notified[0], 1);
    EXPECT_EQ(main_notified[1], 1);
    timer_del(t);
}
