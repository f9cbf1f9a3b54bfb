/* SPDX-License-Identifier: MIT */
/* Bottom halves. */
#include "loop_support.h"

#include <csignal>
#include <random>
#include <thread>

class BottomHalf : public OnEachMonitor
{
};
ON_EACH_MONITOR(BottomHalf);

TEST_P(BottomHalf, OneshotRunsOnceAndNeedsNoFree)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    Call call{ [&] { runs++; } };

    ASSERT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &call), 0);
    EXPECT_EQ(aio_compute_timeout(ctx), 0);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(runs, 1);
}

TEST_P(BottomHalf, ScheduledTwiceRunsOnce)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);

    qemu_bh_schedule(bh);
    qemu_bh_schedule(bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(runs, 1);
    qemu_bh_schedule(bh);
    aio_poll(ctx, false);
    EXPECT_EQ(runs, 2);
    qemu_bh_delete(bh);
}

TEST_P(BottomHalf, CancelledDoesNotRunUntilScheduledAgain)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);

    qemu_bh_schedule(bh);
    qemu_bh_cancel(bh);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(runs, 0);
    qemu_bh_schedule(bh);
    qemu_bh_cancel(bh);
    qemu_bh_schedule(bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_EQ(runs, 1);
    qemu_bh_delete(bh);
}

TEST_P(BottomHalf, RunInTheOrderOfScheduling)
{
    ScopedContext ctx(GetParam());
    std::vector<int> order;
    std::vector<Call> calls;
    std::vector<QEMUBH *> bhs;

    calls.reserve(20);
    for (int i = 0; i < 20; i++) {
        calls.push_back({ [&order, i] { order.push_back(i); } });
        bhs.push_back(aio_bh_new(ctx, Call::Run, &calls[i]));
    }
    for (int i = 0; i < 20; i++) {
        qemu_bh_schedule(bhs[i * 7 % 20]);
    }
    aio_poll(ctx, false);
    ASSERT_EQ(order.size(), 20u);
    for (int i = 0; i < 20; i++) {
        EXPECT_EQ(order[i], i * 7 % 20);
    }
    for (QEMUBH *bh : bhs) {
        qemu_bh_delete(bh);
    }
}

TEST_P(BottomHalf, OneScheduledFromABottomHalfRunsInTheNextPass)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    QEMUBH *bh;
    Call call{ [&] {
        if (++runs < 3) {
            qemu_bh_schedule(bh);
        }
    } };

    bh = aio_bh_new(ctx, Call::Run, &call);
    qemu_bh_schedule(bh);
    aio_poll(ctx, false);
    EXPECT_EQ(runs, 1);
    aio_poll(ctx, false);
    EXPECT_EQ(runs, 2);
    aio_poll(ctx, false);
    EXPECT_EQ(runs, 3);
    EXPECT_FALSE(aio_poll(ctx, false));
    qemu_bh_delete(bh);
}

TEST_P(BottomHalf, NestedPollFinishesTheOuterPassFirst)
{
    ScopedContext ctx(GetParam());
    std::vector<int> order;
    Call c{ [&] { order.push_back(3); } }, b{ [&] { order.push_back(2); } };
    Call a{ [&] {
        order.push_back(1);
        aio_bh_schedule_oneshot(ctx, Call::Run, &c);
        aio_poll(ctx, false);
        order.push_back(4);
    } };

    aio_bh_schedule_oneshot(ctx, Call::Run, &a);
    aio_bh_schedule_oneshot(ctx, Call::Run, &b);
    aio_poll(ctx, false);
    EXPECT_EQ(order, (std::vector<int>{ 1, 2, 3, 4 }));
}

TEST_P(BottomHalf, DeletesItselfInItsCallback)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    QEMUBH *bh;
    Call call{ [&] {
        runs++;
        qemu_bh_schedule(bh);
        qemu_bh_delete(bh);
    } };

    bh = aio_bh_new(ctx, Call::Run, &call);
    qemu_bh_schedule(bh);
    aio_poll(ctx, false);
    aio_poll(ctx, false);
    EXPECT_EQ(runs, 1);
}

TEST_P(BottomHalf, DeletedWhileScheduledDoesNotRun)
{
    ScopedContext ctx(GetParam());
    Call call{ [] { ADD_FAILURE(); } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);

    qemu_bh_schedule(bh);
    qemu_bh_delete(bh);
    EXPECT_FALSE(aio_poll(ctx, false));
}

TEST_P(BottomHalf, DoubleDeleteAborts)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            ScopedContext ctx(GetParam());
            Call call{ [] {} };
            QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);
            qemu_bh_delete(bh);
            qemu_bh_delete(bh);
        },
        "deleted before");
}

TEST_P(BottomHalf, IdleRunsWithoutProgressAndWithoutSpinning)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    QEMUBH *bh;
    Call call{ [&] {
        runs++;
        qemu_bh_schedule_idle(bh);
    } };

    bh = aio_bh_new(ctx, Call::Run, &call);
    qemu_bh_schedule_idle(bh);
    EXPECT_GT(aio_compute_timeout(ctx), 0);
    for (int i = 0; i < 5; i++) {
        EXPECT_FALSE(aio_poll(ctx, true));
    }
    EXPECT_GE(runs, 4);
    EXPECT_LE(runs, 5);
    EXPECT_GE(ctx.Stats().sleeps, 4u); /* it waited between them */
    qemu_bh_delete(bh);
}

TEST_P(BottomHalf, IdleThatIsScheduledInEarnestWakesTheLoop)
{
    ScopedContext ctx(GetParam());
    int runs = 0;
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);

    qemu_bh_schedule_idle(bh);
    qemu_bh_schedule(bh);
    EXPECT_EQ(aio_compute_timeout(ctx), 0);
    qemu_bh_schedule_idle(bh); /* does not make it less urgent */
    EXPECT_EQ(aio_compute_timeout(ctx), 0);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(runs, 1);
    qemu_bh_delete(bh);
}

TEST_P(BottomHalf, IdleFromAnotherThreadRunsOnASleepingLoop)
{
    ScopedIOThread io(GetParam());
    std::atomic<int> runs{ 0 };
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(io.ctx(), Call::Run, &call);

    for (int i = 1; i <= 20; i++) {
        usleep(500); /* lets it sleep */
        qemu_bh_schedule_idle(bh);
        ASSERT_TRUE(WaitUntil([&] { return runs == i; }));
    }
    io.Run([&] { qemu_bh_delete(bh); });
}

/* One schedules without urgency and may be held up between taking the flag and the push; the other
 * schedules in earnest and finds the flag taken. */
TEST_P(BottomHalf, UrgentSchedulingBesideAnIdleOneIsNotLost)
{
    ScopedIOThread io(GetParam());
    const int rounds = kSanitized ? 300 : 5000;
    std::atomic<int> round{ 0 }, seen{ 0 };
    Call call{ [&] { seen = round.load(); } };
    QEMUBH *bh = aio_bh_new(io.ctx(), Call::Run, &call);
    std::atomic<bool> stop{ false };
    std::thread idler([&] {
        while (!stop) {
            qemu_bh_schedule_idle(bh);
        }
    });

    for (int i = 1; i <= rounds; i++) {
        round = i;
        qemu_bh_schedule(bh);
        ASSERT_TRUE(WaitUntil([&] { return seen >= i; }));
    }
    stop = true;
    idler.join();
    io.Run([&] { qemu_bh_delete(bh); });
}

TEST_P(BottomHalf, SchedulingWakesASleepingThread)
{
    ScopedIOThread io(GetParam());

    for (int i = 0; i < (kSanitized ? 300 : 3000); i++) {
        std::atomic<bool> ran{ false };
        Call call{ [&] { ran = true; } };

        ASSERT_EQ(aio_bh_schedule_oneshot(io.ctx(), Call::Run, &call), 0);
        ASSERT_TRUE(WaitUntil([&] { return ran.load(); }));
    }
}

/* Two threads schedule one bottom half at will: each scheduling is followed by a run. */
TEST_P(BottomHalf, NoSchedulingIsLostBetweenThreads)
{
    ScopedIOThread io(GetParam());
    std::atomic<int64_t> tickets[3] = {};
    std::atomic<int64_t> seen[3] = {};
    Call call{ [&] {
        for (int i = 0; i < 3; i++) {
            seen[i] = tickets[i].load();
        }
    } };
    QEMUBH *bh = aio_bh_new(io.ctx(), Call::Run, &call);

    RunThreads(3, [&](int t) {
        std::mt19937 rng(t);
        for (int i = 1; i <= (kSanitized ? 1000 : 20000); i++) {
            tickets[t] = i;
            if (rng() % 4 == 0) {
                qemu_bh_schedule_idle(bh);
            }
            qemu_bh_schedule(bh);
            if (rng() % 8 == 0) {
                ASSERT_TRUE(WaitUntil([&] { return seen[t] >= i; }));
            }
        }
    });
    io.Run([&] { qemu_bh_delete(bh); });
}

TEST_P(BottomHalf, ThoseOfOneThreadRunInItsOrderBesideOthers)
{
    ScopedIOThread io(GetParam());
    const int each = kSanitized ? 2000 : 20000;
    struct Item {
        std::atomic<int> *next;
        std::atomic<int> *faults;
        int number;
        static void Run(void *opaque)
        {
            Item *item = static_cast<Item *>(opaque);
            *item->faults += item->next->fetch_add(1) != item->number;
            delete item;
        }
    };
    std::atomic<int> next[3] = {}, faults{ 0 };

    RunThreads(3, [&](int t) {
        for (int i = 0; i < each; i++) {
            ASSERT_EQ(
                aio_bh_schedule_oneshot(io.ctx(), Item::Run, new Item{ &next[t], &faults, i }), 0);
        }
    });
    EXPECT_TRUE(WaitUntil([&] { return next[0] + next[1] + next[2] == 3 * each; }));
    EXPECT_EQ(faults, 0);
}

/* More self-schedulings than the end has patience for: the last one polls a closed stack. */
TEST_P(BottomHalf, LastOneMayPollItsContext)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("last", &opts);
    AioContext *ctx = iothread_get_aio_context(io);
    QEMUBH *bh;
    int runs = 0;
    Call call{ [&] {
        runs++;
        aio_poll(ctx, false);
        aio_compute_timeout(ctx);
        qemu_bh_schedule(bh);
    } };

    aio_context_ref(ctx);
    bh = aio_bh_new(ctx, Call::Run, &call);
    qemu_bh_schedule(bh);
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_GT(runs, 0);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(BottomHalf, SignalHandlerMaySchedule)
{
    ScopedContext ctx(GetParam());
    static QEMUBH *bh;
    static std::atomic<int> sent, runs;
    std::atomic<bool> finished{ false };
    struct sigaction sa = {}, old;
    Call call{ [] { runs++; } };

    sent = runs = 0;
    bh = aio_bh_new(ctx, Call::Run, &call);
    sa.sa_handler = [](int) {
        sent++;
        qemu_bh_schedule(bh);
    };
    sigaction(SIGUSR2, &sa, &old);
    pthread_t self = pthread_self();
    std::thread other([&] {
        for (int i = 0; i < 200; i++) {
            usleep(200);
            pthread_kill(self, SIGUSR2);
        }
        finished = true;
        aio_notify(ctx);
    });
    while (!finished) {
        int before = sent, ran = runs;

        /* What was sent before this poll has run when a blocking poll has returned. */
        aio_poll(ctx, before == ran || before > 0);
        if (before > 0) {
            ASSERT_GT(runs, 0);
        }
    }
    other.join();
    aio_poll(ctx, false);
    EXPECT_GT(runs, 0);
    EXPECT_LE(runs, sent);
    sigaction(SIGUSR2, &old, nullptr);
    qemu_bh_delete(bh);
}
