/* SPDX-License-Identifier: MIT */
/* AIO_WAIT_WHILE(), aio_wait_kick() and aio_wait_bh_oneshot(). */
#include "loop_support.h"

#include <aioctx/aio_wait.h>

#include <memory>
#include <pthread.h>
#include <thread>

class AioWait : public OnEachMonitor
{
};
ON_EACH_MONITOR(AioWait);

TEST_P(AioWait, EndsWhenAnotherThreadKicks)
{
    ScopedContext ctx(GetParam());
    std::atomic<bool> looked{ false }, done{ false };
    std::thread other([&] {
        EXPECT_TRUE(WaitUntil([&] { return looked.load(); }));
        usleep(1000); /* it sleeps by then, as a rule */
        done = true;
        aio_wait_kick();
    });
    auto is_done = [&] {
        bool result = done;
        looked = true;
        return result;
    };

    EXPECT_TRUE(AIO_WAIT_WHILE(ctx, !is_done()));
    other.join();
    EXPECT_FALSE(AIO_WAIT_WHILE(ctx, !done)) << "there was nothing to wait for";
}

TEST_P(AioWait, LoopGoesOnAndItsCallbacksNeedNoKick)
{
    ScopedContext ctx(GetParam());
    int ticks = 0;
    QEMUTimer *ts = nullptr;
    Call tick{ [&] {
        if (++ticks < 3) {
            timer_mod(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 1000);
        }
    } };

    ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &tick);
    timer_mod(ts, 0);
    EXPECT_TRUE(AIO_WAIT_WHILE(nullptr, ticks < 3)); /* the current context */
    timer_free(ts);
}

TEST_P(AioWait, OneKickReachesEveryWaiter)
{
    std::atomic<int> waiting{ 0 };
    std::atomic<bool> done{ false };
    std::vector<std::thread> threads;

    for (int i = 0; i < 6; i++) {
        threads.emplace_back([&, i] {
            std::unique_ptr<ScopedContext> ctx;
            if (i % 2) {
                ctx.reset(new ScopedContext(GetParam()));
            }
            waiting++;
            AIO_WAIT_WHILE(nullptr, !done);
        });
    }
    EXPECT_TRUE(WaitUntil([&] { return waiting == 6; }));
    done = true;
    aio_wait_kick();
    for (std::thread &t : threads) {
        t.join();
    }
}

/* Each waits for the other's number; the one that is odd has no context. */
TEST_P(AioWait, NoKickIsLost)
{
    const int rounds = kSanitized ? 300 : 3000;
    std::atomic<int> said[2] = { { 0 }, { 0 } };

    RunThreads(2, [&](int i) {
        std::unique_ptr<ScopedContext> ctx;
        if (i == 0) {
            ctx.reset(new ScopedContext(GetParam()));
        }
        for (int n = 1; n <= rounds; n++) {
            said[i] = n;
            aio_wait_kick();
            AIO_WAIT_WHILE(nullptr, said[1 - i] < n);
        }
    });
}

TEST_P(AioWait, NestedOnesEndEachWithItsOwn)
{
    ScopedContext ctx(GetParam());
    std::atomic<bool> inner{ false }, outer{ false };
    bool order_kept = false;
    std::atomic<bool> waits{ false };
    Call nest{ [&] {
        waits = true;
        AIO_WAIT_WHILE(ctx, !inner);
        order_kept = outer; /* what the outer one waits for has come, but it is below us */
    } };
    std::thread other([&] {
        EXPECT_TRUE(WaitUntil([&] { return waits.load(); }));
        outer = true;
        aio_wait_kick();
        usleep(1000);
        inner = true;
        aio_wait_kick();
    });

    aio_bh_schedule_oneshot(ctx, Call::Run, &nest);
    EXPECT_TRUE(AIO_WAIT_WHILE(ctx, !outer));
    EXPECT_TRUE(order_kept);
    other.join();
}

TEST_P(AioWait, BottomHalfElsewhereHasReturned)
{
    ScopedIOThread io(GetParam());
    ScopedContext ctx(GetParam());
    bool ran = false, home = false; /* plain: the call orders them */
    Call call{ [&] {
        ran = true;
        home = in_aio_context_home_thread(io.ctx());
    } };

    EXPECT_EQ(aio_wait_bh_oneshot(io.ctx(), Call::Run, &call), 0);
    EXPECT_TRUE(ran && home);
    ran = home = false;
    std::thread([&] { /* without a context */
                      EXPECT_EQ(aio_wait_bh_oneshot(io.ctx(), Call::Run, &call), 0);
    })
        .join();
    EXPECT_TRUE(ran && home);
    ran = false;
    EXPECT_EQ(aio_wait_bh_oneshot(ctx, Call::Run, &call), 0); /* its own */
    EXPECT_TRUE(ran);
    EXPECT_FALSE(home);
}

TEST_P(AioWait, TwoLoopsMayWaitForEachOther)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    const int rounds = kSanitized ? 30 : 300;

    for (int i = 0; i < rounds; i++) {
        int ran = 0; /* the calls order its changes */
        Call inner{ [&] { ran++; } };
        Call there{ [&] { EXPECT_EQ(aio_wait_bh_oneshot(a.ctx(), Call::Run, &inner), 0); } };
        Call here{ [&] { EXPECT_EQ(aio_wait_bh_oneshot(b.ctx(), Call::Run, &there), 0); } };
        EXPECT_EQ(aio_wait_bh_oneshot(a.ctx(), Call::Run, &here), 0);
        EXPECT_EQ(ran, 1);
    }
}

TEST_P(AioWait, ContextThatHasEndedIsAnError)
{
    IOThread *io = iothread_new("ends", nullptr);
    ASSERT_NE(io, nullptr);
    AioContext *ctx = iothread_get_aio_context(io);
    Call call{ [] { ADD_FAILURE() << "called"; } };

    iothread_stop(io);
    ASSERT_EQ(iothread_join(io), 0);
    EXPECT_EQ(aio_wait_bh_oneshot(ctx, Call::Run, &call), -ESHUTDOWN);
    iothread_destroy(io);
}

TEST_P(AioWait, ThreadThatIsCancelledMeanwhileIsForgotten)
{
    for (bool with_context : { false, true }) {
        std::atomic<bool> waits{ false };
        Call wait{ [&] {
            AioContextOptions opts = {};
            opts.monitor = GetParam();
            AioContext *ctx = with_context ? aio_context_new(&opts) : nullptr;
            if (ctx) {
                qemu_set_current_aio_context(ctx);
                aio_context_unref(ctx); /* ends with the thread */
            }
            waits = true;
            AIO_WAIT_WHILE(nullptr, true);
        } };
        pthread_t thread;
        void *result = nullptr;
        ASSERT_EQ(pthread_create(
                      &thread, nullptr,
                      [](void *opaque) -> void * {
                          Call::Run(opaque);
                          return nullptr;
                      },
                      &wait),
                  0);
        EXPECT_TRUE(WaitUntil([&] { return waits.load(); }));
        usleep(1000);
        pthread_cancel(thread);
        aio_wait_kick();
        pthread_join(thread, &result);
        EXPECT_EQ(result, PTHREAD_CANCELED);
        aio_wait_kick(); /* nobody is there any more */
    }
}

TEST(AioWaitDeathTest, ReadSectionAborts)
{
    EXPECT_DEATH(
        {
            aio_rcu_read_lock();
            AIO_WAIT_WHILE(nullptr, true);
        },
        "AIO_WAIT_WHILE");
}
