/* SPDX-License-Identifier: MIT */
/* Timers between threads: waiting, arming and freeing while a callback runs, lists that go. */
#include "support.h"

#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <unistd.h>

extern "C" {
#include "timers/list_int.h"
}

/* A thread that runs the lists of a group, and never sleeps. */
class Runner
{
public:
    explicit Runner(TestGroup &g)
        : thread_([this, &g] {
              while (!stop_) {
                  timerlistgroup_run_timers(&g.tlg);
                  std::this_thread::yield();
              }
          })
    {
    }
    ~Runner()
    {
        stop_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> stop_{ false };
    std::thread thread_;
};

/* A callback that is told when to return. */
struct Blocker {
    std::atomic<int> running{ 0 };
    std::atomic<bool> leave{ false }, left{ false };

    void Block()
    {
        running++;
        while (!leave) {
            std::this_thread::yield();
        }
        usleep(2000);
        left = true;
    }
    bool WaitRunning()
    {
        return WaitUntil([this] { return running > 0; });
    }
};

static int64_t RealNow()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void BlockCb(void *opaque)
{
    static_cast<Blocker *>(opaque)->Block();
}

/* ---- Waiting --------------------------------------------------------------------------------- */

TEST(TimerRace, DelDoesNotWaitForTheCallback)
{
    TestGroup g;
    Runner runner(g);
    Blocker b;
    HeapTimer t(&g.tlg, [&] { b.Block(); });

    timer_mod(t, 0);
    ASSERT_TRUE(b.WaitRunning());
    EXPECT_FALSE(timer_del(t)) << "it left the list before its callback";
    EXPECT_FALSE(b.left);
    b.leave = true;
    EXPECT_EQ(timer_del_sync(t), 0);
}

TEST(TimerRace, DelSyncWaitsForTheCallback)
{
    for (int rearmed = 0; rearmed < 2; rearmed++) {
        TestGroup g;
        Runner runner(g);
        Blocker b;
        HeapTimer t(&g.tlg, [&] { b.Block(); });

        timer_mod(t, 0);
        ASSERT_TRUE(b.WaitRunning());
        if (rearmed) {
            timer_mod(t, INT64_MAX);
        }
        std::thread release([&] {
            usleep(3000);
            b.leave = true;
        });
        EXPECT_EQ(timer_del_sync(t), rearmed);
        EXPECT_TRUE(b.left);
        EXPECT_FALSE(timer_pending(t));
        release.join();
    }
}

/* The callback arms its timer again each time; the wait still comes to an end. */
TEST(TimerRace, DelSyncEndsThoughTheCallbackRearms)
{
    TestGroup g;
    std::atomic<int> fired{ 0 };
    HeapTimer *p = nullptr;
    HeapTimer t(&g.tlg, [&] {
        fired++;
        timer_mod(*p, 0);
    });

    p = &t;
    Runner runner(g);
    for (int i = 0; i < 200; i++) {
        int before;

        timer_mod(t, 0);
        ASSERT_TRUE(WaitUntil([&] { return fired > i; }));
        EXPECT_EQ(timer_del_sync(t), 1);
        before = fired;
        EXPECT_FALSE(timer_pending(t));
        std::this_thread::yield();
        EXPECT_EQ(fired, before) << "nothing fires after it";
    }
}

TEST(TimerRace, DelSyncBelowItsOwnCallbackIsRefused)
{
    TestGroup g;
    int ret = 0, rearmed = 0;
    HeapTimer *p = nullptr;
    HeapTimer t(&g.tlg, [&] {
        timer_mod(*p, 0);
        ret = timer_del_sync(*p);
        rearmed = timer_pending(*p);
    });

    p = &t;
    timer_mod(t, 0);
    EXPECT_TRUE(timerlist_run_timers(g.list()));
    EXPECT_EQ(ret, -EDEADLK);
    EXPECT_FALSE(rearmed) << "it is disarmed all the same";
}

TEST(TimerRace, DelSyncBelowACallbackIsRefusedOnlyWhereItWouldWait)
{
    TestGroup here, there;
    Runner runner(there);
    Blocker b;
    HeapTimer busy(&there.tlg, [&] { b.Block(); }), idle(&there.tlg, [] {});
    int busy_ret = 0, idle_ret = 0, armed_ret = 0;
    HeapTimer t(&here.tlg, [&] {
        busy_ret = timer_del_sync(busy);
        idle_ret = timer_del_sync(idle);
        timer_mod(idle, INT64_MAX);
        armed_ret = timer_del_sync(idle);
    });

    timer_mod(busy, 0);
    ASSERT_TRUE(b.WaitRunning());
    timer_mod(busy, INT64_MAX);
    timer_mod(t, 0);
    EXPECT_TRUE(timerlist_run_timers(here.list()));
    EXPECT_EQ(busy_ret, -EDEADLK);
    EXPECT_FALSE(timer_pending(busy));
    EXPECT_EQ(idle_ret, 0);
    EXPECT_EQ(armed_ret, 1);
    b.leave = true;
    EXPECT_EQ(timer_del_sync(busy), 0);
}

/* ---- Arming while it runs -------------------------------------------------------------------- */

TEST(TimerRace, ModWhileRunningFiresOnce)
{
    TestGroup g;
    Blocker b;
    HeapTimer t(&g.tlg, [&] { b.Block(); });

    timer_mod(t, 0);
    std::thread runner([&] { timerlist_run_timers(g.list()); });
    ASSERT_TRUE(b.WaitRunning());
    EXPECT_TRUE(timer_mod(t, 0));
    EXPECT_TRUE(timer_mod(t, 1));
    EXPECT_TRUE(timer_pending(t));
    b.leave = true;
    runner.join();
    EXPECT_EQ(b.running, 1);
    EXPECT_TRUE(timerlist_run_timers(g.list()));
    EXPECT_FALSE(timerlist_run_timers(g.list()));
    EXPECT_EQ(b.running, 2);
}

/* Arming with true, and nothing else, makes for a firing; a del with true takes one away. */
TEST(TimerRace, EachArmingFiresOnceOrIsDeleted)
{
    constexpr int kRounds = kSanitized ? 3000 : 30000;
    TestGroup g;
    std::atomic<long> fired{ 0 }, armed{ 0 }, deleted{ 0 };
    HeapTimer t(&g.tlg, [&] { fired++; });

    {
        Runner runner(g);

        RunThreads(2, [&](int i) {
            std::mt19937 rng(i);

            for (int n = 0; n < kRounds || fired < 100; n++) {
                if (rng() % 2) {
                    /* Not armed: arms.  Armed for 0 as it always is: cannot move. */
                    armed += timer_mod_anticipate(t, 0);
                } else {
                    deleted += timer_del(t);
                }
            }
        });
        deleted += timer_del_sync(t);
    }
    EXPECT_EQ(fired + deleted, armed);
}

TEST(TimerRace, WhatTheCallerWroteIsVisibleToTheCallback)
{
    constexpr int kRounds = kSanitized ? 1000 : 10000;
    TestGroup g;
    int plain = 0, wrong = 0; /* no atomics: ThreadSanitizer checks the edges */
    std::atomic<int> fired{ 0 };
    HeapTimer t(&g.tlg, [&] {
        wrong += plain != fired + 1;
        fired++;
    });
    {
        Runner runner(g);

        for (int n = 1; n <= kRounds; n++) {
            plain = n;
            timer_mod(t, 0);
            while (fired != n) {
                std::this_thread::yield();
            }
        }
    }
    EXPECT_EQ(wrong, 0);
}

/* ---- Freeing --------------------------------------------------------------------------------- */

TEST(TimerRace, FreeWhileTheCallbackRunsKeepsItUntilThen)
{
    TestGroup g;
    Blocker b;
    std::atomic<int> mod_ret{ -1 };
    HeapTimer *p = nullptr;
    QEMUTimer *ts;
    HeapTimer t(&g.tlg, [&] {
        b.Block();
        mod_ret = timer_mod(ts, 0); /* freed by now, and still there */
    });

    p = &t;
    ts = t;
    timer_mod(t, 0);
    std::thread runner([&] { timerlist_run_timers(g.list()); });
    ASSERT_TRUE(b.WaitRunning());
    p->Free();
    aio_synchronize_rcu();
    EXPECT_FALSE(b.left) << "it does not wait";
    b.leave = true;
    runner.join();
    EXPECT_EQ(mod_ret, 0) << "a dead timer is never armed again";
    EXPECT_FALSE(timerlist_has_timers(g.list()));
    aio_rcu_barrier();
}

/* Threads that find the timer under RCU arm it while its owner frees it and makes a new one. */
TEST(TimerRace, ModInAReadSectionBesideFree)
{
    constexpr int kRounds = kSanitized ? 1000 : 10000;
    TestGroup g;
    Runner runner(g);
    std::atomic<QEMUTimer *> cur{ nullptr };
    std::atomic<long> fired{ 0 };
    std::atomic<bool> stop{ false };
    auto make = [&] {
        return timer_new_full(
            &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0,
            [](void *o) { ++*static_cast<std::atomic<long> *>(o); }, &fired);
    };

    cur = make();
    RunThreads(2, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                timer_free(cur.exchange(make()));
            }
            stop = true;
        }
        while (!stop) {
            aio_rcu_read_lock();
            timer_mod(cur, 0);
            timer_pending(cur);
            timer_mod_anticipate(cur, 0);
            aio_rcu_read_unlock();
        }
    });
    EXPECT_TRUE(WaitUntil([&] { return !timer_pending(cur); })) << "the last one fires";
    timer_free(cur);
    EXPECT_FALSE(timerlist_has_timers(g.list()));
    aio_rcu_barrier();
}

/* ---- Embedded timers ------------------------------------------------------------------------- */

TEST(TimerRace, DeinitWhileTheCallbackRunsNeverTouchesTheMemoryAgain)
{
    TestGroup g;
    Blocker b;
    QEMUTimer *ts = new QEMUTimer;
    unsigned char pattern[sizeof(*ts)];

    timer_init_full(ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, BlockCb, &b);
    timer_mod(ts, 0);
    std::thread runner([&] {
        timerlist_run_timers(g.list());
        timerlist_run_timers(g.list());
    });
    ASSERT_TRUE(b.WaitRunning());
    timer_mod(ts, 0);
    timer_deinit(ts);
    EXPECT_FALSE(b.left) << "it does not wait";
    memset(pattern, 0xa5, sizeof(pattern));
    memcpy(ts, pattern, sizeof(*ts));
    b.leave = true;
    runner.join();
    EXPECT_EQ(memcmp(ts, pattern, sizeof(*ts)), 0);
    EXPECT_EQ(b.running, 1);
    delete ts;
}

/* The same with the memory gone, for AddressSanitizer. */
TEST(TimerRace, MemoryMayBeFreedWhileTheCallbackRuns)
{
    TestGroup g;
    Blocker b;
    auto ts = std::make_unique<QEMUTimer>();

    timer_init_full(ts.get(), &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, BlockCb, &b);
    timer_mod(ts.get(), 0);
    std::thread runner([&] { timerlist_run_timers(g.list()); });
    ASSERT_TRUE(b.WaitRunning());
    timer_deinit(ts.get());
    ts.reset();
    b.leave = true;
    runner.join();
    EXPECT_TRUE(b.left);
}

TEST(TimerRace, DeinitSyncWaitsForTheCallback)
{
    TestGroup g;
    Runner runner(g);
    auto b = std::make_unique<Blocker>();
    QEMUTimer ts;

    timer_init_full(&ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, BlockCb, b.get());
    timer_mod(&ts, 0);
    ASSERT_TRUE(b->WaitRunning());
    std::thread release([&] {
        usleep(3000);
        b->leave = true;
    });
    EXPECT_EQ(timer_deinit_sync(&ts), 0);
    EXPECT_TRUE(b->left);
    release.join();
    b.reset(); /* the object around the timer may go */
}

TEST(TimerRace, DeinitSyncBelowACallbackLetsGoButDoesNotWait)
{
    TestGroup here, there;
    Blocker b;
    QEMUTimer ts;
    int ret = 0;
    HeapTimer t(&here.tlg, [&] {
        ret = timer_deinit_sync(&ts);
        memset(&ts, 0xa5, sizeof(ts));
    });
    Runner runner(there);

    timer_init_full(&ts, &there.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, BlockCb, &b);
    timer_mod(&ts, 0);
    ASSERT_TRUE(b.WaitRunning());
    timer_mod(t, 0);
    EXPECT_TRUE(timerlist_run_timers(here.list()));
    EXPECT_EQ(ret, -EDEADLK);
    EXPECT_FALSE(b.left);
    b.leave = true;
    EXPECT_TRUE(WaitUntil([&] { return b.left.load(); }));
}

TEST(TimerRace, EmbedArmDeinitSyncOverAndOver)
{
    constexpr int kRounds = kSanitized ? 1000 : 10000;
    TestGroup g;
    Runner runner(g);
    std::atomic<long> fired{ 0 };

    RunThreads(2, [&](int i) {
        std::mt19937 rng(i);

        for (int n = 0; n < kRounds; n++) {
            struct Object {
                QEMUTimer ts;
                std::atomic<long> *fired;
            };
            auto o = std::make_unique<Object>();

            o->fired = &fired;
            timer_init_full(
                &o->ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0,
                [](void *opaque) { ++*static_cast<Object *>(opaque)->fired; }, o.get());
            timer_mod(&o->ts, RealNow() + rng() % 20000);
            for (unsigned spin = rng() % 2000; spin > 0; spin--) {
                timer_pending(&o->ts);
            }
            EXPECT_EQ(timer_deinit_sync(&o->ts), 0);
        }
    });
    EXPECT_FALSE(timerlist_has_timers(g.list()));
}

/* ---- Lists that go --------------------------------------------------------------------------- */

TEST(TimerRace, ModBesideTheEndOfItsListReturnsFalse)
{
    constexpr int kRounds = kSanitized ? 100 : 500;

    for (int n = 0; n < kRounds; n++) {
        auto g = std::make_unique<TestGroup>();
        HeapTimer t(&g->tlg, [] {});
        std::atomic<bool> refused{ false };

        RunThreads(2, [&](int i) {
            if (i == 0) {
                g->Close(); /* waits for the notify that may be on its way */
                g.reset();
                return;
            }
            while (timer_mod(t, RealNow() + 1000000) && timer_mod_anticipate(t, 5)) {
                timer_del(t);
            }
            refused = true;
        });
        EXPECT_TRUE(refused);
        EXPECT_FALSE(timer_pending(t));
        EXPECT_FALSE(timer_mod(t, 0));
    }
}

/*
 * What timer_del_sync() waits for may free the timer: it must not look at it afterwards.  The
 * caller may not be in a read section, so the timer must stay until the call has come as far as to
 * wait: only the list itself can tell.
 */
TEST(TimerRace, CallbackMayFreeTheTimerThatDelSyncWaitsFor)
{
    for (int i = 0; i < (kSanitized ? 20 : 100); i++) {
        TestGroup g;
        Runner runner(g);
        std::atomic<bool> running{ false };
        QEMUTimerList *tl = g.list();
        QEMUTimer *ts;
        struct Args {
            QEMUTimer **ts;
            QEMUTimerList *tl;
            std::atomic<bool> *running;
        } args{ &ts, tl, &running };

        ts = timer_new_full(
            &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0,
            [](void *o) {
                Args *a = static_cast<Args *>(o);
                *a->running = true;
                EXPECT_TRUE(WaitUntil([a] {
                    list_lock(&a->tl->lock);
                    bool waited_for = a->tl->runs->waiters;
                    list_unlock(&a->tl->lock);
                    return waited_for;
                }));
                timer_free(*a->ts);
            },
            &args);
        timer_mod(ts, 0);
        ASSERT_TRUE(WaitUntil([&] { return running.load(); }));
        EXPECT_EQ(timer_del_sync(ts), 0);
        if (i % 4 == 0) {
            aio_rcu_barrier();
        }
    }
}

TEST(TimerRace, DeinitSyncWaitsForACallbackThatArmsItsTimerAgain)
{
    for (int i = 0; i < 20; i++) {
        TestGroup g;
        Runner runner(g);
        struct Periodic {
            QEMUTimer timer;
            std::atomic<int> calls{ 0 };
            static void Fire(void *o)
            {
                Periodic *p = static_cast<Periodic *>(o);
                p->calls++;
                usleep(1000);
                timer_mod(&p->timer, 0);
            }
        };
        auto p = std::make_unique<Periodic>();

        timer_init_full(&p->timer, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, Periodic::Fire,
                        p.get());
        timer_mod(&p->timer, 0);
        ASSERT_TRUE(WaitUntil([&] { return p->calls > 0; }));
        EXPECT_EQ(timer_deinit_sync(&p->timer), 0);
        p.reset(); /* under AddressSanitizer a late callback would be seen */
    }
}

TEST(TimerRace, DelSyncTakesAwayWhatTheCallbackArmed)
{
    TestGroup g;
    Runner runner(g);
    Blocker b;
    QEMUTimer *ts;
    std::atomic<int> calls{ 0 };
    HeapTimer timer(&g.tlg, [&] {
        calls++;
        timer_mod(ts, 0);
        b.Block();
    });

    ts = timer;
    timer_mod(ts, 0);
    ASSERT_TRUE(b.WaitRunning());
    std::thread other([&] {
        usleep(10000);
        b.leave = true;
    });
    EXPECT_EQ(timer_del_sync(ts), 1);
    other.join();
    EXPECT_FALSE(timer_pending(ts));
    EXPECT_EQ(calls, 1);
}
