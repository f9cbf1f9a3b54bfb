/* SPDX-License-Identifier: MIT */
/* Operations on the ring. */
#include "loop_support.h"

#include <liburing.h>
#include <thread>

struct Op {
    CqeHandler handler = {};
    std::function<void(struct io_uring_sqe *)> prep;
    int calls = 0;

    Op()
    {
        handler.cb = [](CqeHandler *h) { reinterpret_cast<Op *>(h)->calls++; };
    }
    int Add()
    {
        return aio_add_sqe(
            [](struct io_uring_sqe *sqe, void *o) { static_cast<Op *>(o)->prep(sqe); }, this,
            &handler);
    }
};

class Ops : public testing::Test
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR("io_uring");
    }
};

TEST_F(Ops, CompleteOnceWithTheirResult)
{
    ScopedContext ctx("io_uring");
    SocketPair s;
    char c = 0;
    Op op;

    op.prep = [&](struct io_uring_sqe *sqe) { io_uring_prep_recv(sqe, s.a, &c, 1, 0); };
    ASSERT_EQ(op.Add(), 0);
    EXPECT_FALSE(aio_poll(ctx, false));
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!op.calls) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(op.handler.res, 1);
    EXPECT_EQ(c, 'x');
    aio_poll(ctx, false);
    EXPECT_EQ(op.calls, 1);
}

TEST_F(Ops, AreSubmittedWithTheWaitInOneSystemCall)
{
    ScopedContext ctx("io_uring");
    Op ops[32];

    aio_poll(ctx, false);
    uint64_t before = ctx.Stats().syscalls;
    for (Op &op : ops) {
        op.prep = [](struct io_uring_sqe *sqe) { io_uring_prep_nop(sqe); };
        ASSERT_EQ(op.Add(), 0);
    }
    aio_poll(ctx, true);
    EXPECT_EQ(ctx.Stats().syscalls - before, 1u);
    for (Op &op : ops) {
        EXPECT_EQ(op.calls, 1);
    }
}

TEST_F(Ops, MoreThanTheQueueHolds)
{
    ScopedContext ctx("io_uring");
    std::vector<Op> ops(5000); /* also more than the completion queue */
    int done = 0;

    for (Op &op : ops) {
        op.prep = [](struct io_uring_sqe *sqe) { io_uring_prep_nop(sqe); };
        ASSERT_EQ(op.Add(), 0);
    }
    while (done < 5000) {
        aio_poll(ctx, true);
        done = 0;
        for (Op &op : ops) {
            ASSERT_LE(op.calls, 1);
            done += op.calls;
        }
    }
    EXPECT_GT(ctx.Stats().sq_full, 0u);
}

/* Completions beyond the queue's size are held back by the kernel and lost nowhere. */
TEST_F(Ops, CompletionQueueOverflowLosesNothing)
{
    ScopedContext ctx("io_uring");
    std::vector<Op> ops(3000);
    std::vector<char> bytes(3000);
    SocketPair s;
    int done = 0;

    for (size_t i = 0; i < ops.size(); i++) {
        ops[i].prep = [&, i](struct io_uring_sqe *sqe) {
            io_uring_prep_recv(sqe, s.a, &bytes[i], 1, 0);
        };
        ASSERT_EQ(ops[i].Add(), 0);
    }
    aio_poll(ctx, false);
    close(s.b); /* ends them all at once */
    s.b = dup(s.a);
    while (done < 3000) {
        aio_poll(ctx, true);
        done = 0;
        for (Op &op : ops) {
            ASSERT_LE(op.calls, 1);
            done += op.calls;
        }
    }
}

/* What wakes a sleeping loop is a request too: it is there again after whatever has ended it. */
static void ExpectWakeUps(AioContext *ctx)
{
    std::atomic<int> seen{ 0 }, set{ 0 };
    const int rounds = 50;
    std::thread other([&] {
        for (int i = 1; i <= rounds; i++) {
            AioContextStats before, now;

            aio_context_get_stats(ctx, &before);
            usleep(i % 10 ? 0 : 1000); /* mostly it is about to sleep, sometimes asleep */
            set = i;
            aio_notify(ctx);
            WaitUntil([&] { return seen == i; });
            aio_context_get_stats(ctx, &now);
            EXPECT_GT(now.notifies, before.notifies);
        }
    });

    while (seen < rounds) {
        aio_poll(ctx, true);
        seen = set.load();
    }
    other.join();
}

TEST_F(Ops, LoopWakesUpAfterEveryRequestOfTheRingWasCancelled)
{
    ScopedContext ctx("io_uring");

    for (int i = 0; i < 3; i++) {
        Op cancel;

        aio_poll(ctx, false);
        cancel.prep = [](struct io_uring_sqe *sqe) {
            io_uring_prep_cancel(sqe, nullptr, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
        };
        ASSERT_EQ(cancel.Add(), 0);
        while (!cancel.calls) {
            aio_poll(ctx, true);
        }
        EXPECT_GE(cancel.handler.res, 0);
        ExpectWakeUps(ctx);
    }
}

TEST_F(Ops, LoopWakesUpAfterTheCompletionQueueOverflowed)
{
    ScopedContext ctx("io_uring");
    std::vector<Op> ops(3000);
    std::vector<char> bytes(3000);
    SocketPair s;
    std::atomic<bool> end{ false };
    std::thread other([&] {
        while (!end) {
            aio_notify(ctx);
            std::this_thread::yield();
        }
    });
    int done = 0;

    for (size_t i = 0; i < ops.size(); i++) {
        ops[i].prep = [&, i](struct io_uring_sqe *sqe) {
            io_uring_prep_recv(sqe, s.a, &bytes[i], 1, 0);
        };
        ASSERT_EQ(ops[i].Add(), 0);
    }
    aio_poll(ctx, false);
    close(s.b);
    s.b = dup(s.a);
    while (done < 3000) {
        aio_poll(ctx, true);
        done = 0;
        for (Op &op : ops) {
            done += op.calls;
        }
    }
    end = true;
    other.join();
    ExpectWakeUps(ctx);
}

/* Making room in a full queue for the loop's own requests reaps completions: it must not sleep
 * then. */
TEST_F(Ops, FullQueueAtTheWaitDoesNotSleepOnCompletions)
{
    for (int n = 120; n <= 136; n++) { /* 128 entries */
        ScopedContext ctx("io_uring");
        std::vector<Op> ops(n);
        Call submit{ [&] {
            for (Op &op : ops) {
                op.prep = [](struct io_uring_sqe *sqe) { io_uring_prep_nop(sqe); };
                ASSERT_EQ(op.Add(), 0);
            }
        } };
        int done = 0;

        std::thread other([&] {
            WaitUntil([&] { return ctx.Stats().iterations > 0; });
            usleep(1000);
            aio_bh_schedule_oneshot(ctx, Call::Run, &submit); /* takes the wake-up's read */
        });
        while (done < n) {
            aio_poll(ctx, true);
            done = 0;
            for (Op &op : ops) {
                done += op.calls;
            }
        }
        other.join();
    }
}

TEST_F(Ops, CancelEndsAWaitingOne)
{
    ScopedContext ctx("io_uring");
    SocketPair s;
    char c;
    Op op;

    op.prep = [&](struct io_uring_sqe *sqe) { io_uring_prep_recv(sqe, s.a, &c, 1, 0); };
    ASSERT_EQ(op.Add(), 0);
    aio_poll(ctx, false);
    ASSERT_EQ(aio_cancel_sqe(&op.handler), 0);
    while (!op.calls) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(op.handler.res, -ECANCELED);
}

TEST_F(Ops, CancelOfOneNotYetSubmittedFollowsIt)
{
    ScopedContext ctx("io_uring");
    SocketPair s;
    char c;
    Op op;

    op.prep = [&](struct io_uring_sqe *sqe) { io_uring_prep_recv(sqe, s.a, &c, 1, 0); };
    ASSERT_EQ(op.Add(), 0);
    ASSERT_EQ(aio_cancel_sqe(&op.handler), 0);
    while (!op.calls) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(op.handler.res, -ECANCELED);
}

/* With deferred task work nothing completes unless the loop enters the kernel: it must notice. */
TEST_F(Ops, NonBlockingPollsSeeCompletions)
{
    ScopedContext ctx("io_uring");
    SocketPair s;
    char c;
    Op op;

    op.prep = [&](struct io_uring_sqe *sqe) { io_uring_prep_recv(sqe, s.a, &c, 1, 0); };
    ASSERT_EQ(op.Add(), 0);
    aio_poll(ctx, false);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    EXPECT_TRUE(WaitUntil([&] {
        aio_poll(ctx, false);
        return op.calls == 1;
    }));
}

TEST_F(Ops, CallbackMayAddTheNextWithTheSameHandler)
{
    ScopedContext ctx("io_uring");
    static int left;
    struct Chain {
        CqeHandler handler = {};
        static void Prep(struct io_uring_sqe *sqe, void *)
        {
            io_uring_prep_nop(sqe);
        }
        static void Next(CqeHandler *h)
        {
            if (--left > 0) {
                aio_add_sqe(Prep, nullptr, h);
            }
        }
    } chain;

    left = 1000;
    chain.handler.cb = Chain::Next;
    ASSERT_EQ(aio_add_sqe(Chain::Prep, nullptr, &chain.handler), 0);
    while (left > 0) {
        aio_poll(ctx, true);
    }
    aio_poll(ctx, false);
    EXPECT_EQ(left, 0);
}

TEST_F(Ops, NestedPollInACompletionGoesOn)
{
    ScopedContext ctx("io_uring");
    static AioContext *c;
    static int depth, done;
    struct Nest {
        CqeHandler handler = {};
        static void Cb(CqeHandler *)
        {
            done++;
            if (++depth < 4) {
                aio_poll(c, false);
            }
            depth--;
        }
    };
    std::vector<Nest> nest(20);

    c = ctx;
    depth = done = 0;
    for (Nest &n : nest) {
        n.handler.cb = Nest::Cb;
        ASSERT_EQ(aio_add_sqe([](struct io_uring_sqe *sqe, void *) { io_uring_prep_nop(sqe); },
                              nullptr, &n.handler),
                  0);
    }
    while (done < 20) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(done, 20);
}

TEST(OpsElsewhere, OtherMonitorsSayThatThereAreNone)
{
    for (const char *monitor : kMonitors) {
        if (strcmp(monitor, "io_uring") == 0) {
            continue;
        }
        ScopedContext ctx(monitor);
        Op op;

        op.prep = [](struct io_uring_sqe *) { ADD_FAILURE(); };
        EXPECT_EQ(op.Add(), -ENOTSUP) << monitor;
        EXPECT_EQ(aio_cancel_sqe(&op.handler), -ENOTSUP) << monitor;
    }
}

TEST(OpsElsewhere, ThreadWithoutAContextIsRefused)
{
    Op op;

    ASSERT_EQ(qemu_get_current_aio_context(), nullptr);
    EXPECT_EQ(op.Add(), -EINVAL);
}
