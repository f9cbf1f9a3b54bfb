/* SPDX-License-Identifier: MIT */
/* IOThreads: starting, stopping, what destroying one does. */
#include "loop_support.h"

#include <csignal>
#include <fstream>
#include <liburing.h>
#include <sys/prctl.h>
#include <thread>

class IOThreads : public OnEachMonitor
{
};
ON_EACH_MONITOR(IOThreads);

TEST_P(IOThreads, RunCallbacksOnTheirOwnThread)
{
    ScopedIOThread io(GetParam(), "my-name");
    std::string comm;
    bool home = false, current = false;

    EXPECT_STREQ(iothread_get_name(io.get()), "my-name");
    EXPECT_FALSE(in_aio_context_home_thread(io.ctx()));
    io.Run([&] {
        home = in_aio_context_home_thread(io.ctx());
        current = qemu_get_current_aio_context() == io.ctx();
        std::getline(std::ifstream("/proc/thread-self/comm"), comm);
    });
    EXPECT_TRUE(home);
    EXPECT_TRUE(current);
    EXPECT_EQ(comm, "my-name");
}

TEST_P(IOThreads, BlockSignalsAndSetTheirSlack)
{
    ScopedIOThread io(GetParam());
    sigset_t set;
    int slack = 0;

    sigemptyset(&set);
    io.Run([&] {
        pthread_sigmask(SIG_BLOCK, nullptr, &set);
        slack = prctl(PR_GET_TIMERSLACK);
    });
    EXPECT_EQ(sigismember(&set, SIGTERM), 1);
    EXPECT_EQ(sigismember(&set, SIGUSR1), 1);
    EXPECT_EQ(slack, 1);
}

TEST_P(IOThreads, AreMadeAndDestroyedManyTimesWithoutALeak)
{
    AioContextOptions copts = {};
    IOThreadOptions opts = {};

    copts.monitor = GetParam();
    opts.context = copts;
    for (int i = 0; i < (kSanitized ? 100 : 500); i++) {
        IOThread *io = iothread_new("many", &opts);
        ASSERT_NE(io, nullptr);
        ASSERT_EQ(iothread_destroy(io), 0);
    }
    aio_rcu_barrier();
}

TEST_P(IOThreads, DestroyRunsTheBottomHalvesThatWereAccepted)
{
    for (int i = 0; i < 50; i++) {
        IOThreadOptions opts = {};
        opts.context.monitor = GetParam();
        IOThread *io = iothread_new("bh", &opts);
        std::atomic<int> runs{ 0 };
        Call last{ [&] { runs++; } };
        Call first{ [&] {
            runs++;
            aio_bh_schedule_oneshot(qemu_get_current_aio_context(), Call::Run, &last);
        } };

        for (int k = 0; k < 10; k++) {
            aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &first);
        }
        ASSERT_EQ(iothread_destroy(io), 0);
        ASSERT_EQ(runs, 20);
    }
}

TEST_P(IOThreads, DestroyRunsAnIdleBottomHalfToo)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("idle", &opts);
    std::atomic<int> runs{ 0 };
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(iothread_get_aio_context(io), Call::Run, &call);
    AioContext *ctx = iothread_get_aio_context(io);

    aio_context_ref(ctx);
    qemu_bh_schedule_idle(bh);
    ASSERT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(runs, 1);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(IOThreads, StopLimitDoesNotDependOnTheClocksSource)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    FakeClock frozen(QEMU_CLOCK_REALTIME);
    IOThreadOptions opts = {};
    opts.stop_timeout_ms = 50;
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("frozen", &opts);
    QEMUBH *bh;
    Call again{ [&] { qemu_bh_schedule(bh); } };

    bh = aio_bh_new(iothread_get_aio_context(io), Call::Run, &again);
    AioContext *ctx = iothread_get_aio_context(io);
    aio_context_ref(ctx);
    qemu_bh_schedule(bh); /* for ever */
    EXPECT_EQ(iothread_destroy(io), 0);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(IOThreads, DestroyDisarmsTimersWhichMayBeFreedAfterwards)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("timers", &opts);
    Call never{ [] { ADD_FAILURE(); } };
    QEMUTimer *ts = aio_timer_new(iothread_get_aio_context(io), QEMU_CLOCK_REALTIME, SCALE_MS,
                                  Call::Run, &never);
    QEMUTimer embedded;

    aio_timer_init(iothread_get_aio_context(io), &embedded, QEMU_CLOCK_REALTIME, SCALE_MS,
                   Call::Run, &never);
    timer_mod(ts, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 100000);
    timer_mod(&embedded, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 100000);
    ASSERT_EQ(iothread_destroy(io), 0);
    EXPECT_FALSE(timer_pending(ts));
    EXPECT_FALSE(timer_mod(ts, 0));
    EXPECT_FALSE(timer_mod(&embedded, 0));
    timer_free(ts);
    timer_deinit(&embedded);
}

TEST_P(IOThreads, ContextOutlivesItsThreadWithAReference)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("ref", &opts);
    AioContext *ctx = iothread_get_aio_context(io);
    Call never{ [] { ADD_FAILURE(); } };
    AioContextStats stats;
    std::atomic<bool> ran{ false };
    Call call{ [&] { ran = true; } };

    aio_context_ref(ctx);
    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    ASSERT_TRUE(WaitUntil([&] { return ran.load(); }));
    ASSERT_EQ(iothread_destroy(io), 0);
    aio_notify(ctx);
    aio_context_get_stats(ctx, &stats);
    EXPECT_GT(stats.iterations, 0u);
    EXPECT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &never), -ESHUTDOWN);
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, Call::Run, &never);
    EXPECT_FALSE(timer_mod(ts, 0));
    timer_free(ts);
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &never);
    qemu_bh_schedule(bh);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(IOThreads, DestroyBelowACallbackDoesNotWait)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    ScopedIOThread io(GetParam());
    IOThread *other = iothread_new("other", &opts);
    int ret = 0;

    io.Run([&] { ret = iothread_destroy(other); });
    EXPECT_EQ(ret, -EDEADLK); /* its thread frees what is left; the guard counts threads and fds */
}

TEST_P(IOThreads, DestroyOfItselfAborts)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            IOThreadOptions opts = {};
            opts.context.monitor = GetParam();
            static IOThread *io = iothread_new("self", &opts);
            aio_bh_schedule_oneshot(
                iothread_get_aio_context(io), [](void *) { iothread_destroy(io); }, nullptr);
            sleep(5);
        },
        "cannot wait for itself");
}

TEST_P(IOThreads, StopThenJoinThenDestroy)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("stop", &opts);

    iothread_stop(io);
    EXPECT_EQ(iothread_join(io), 0);
    EXPECT_EQ(iothread_join(io), 0);
    EXPECT_EQ(iothread_destroy(io), 0);
}

TEST_P(IOThreads, DestroyBelowACallbackAfterAJoinEndsIt)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    ScopedIOThread io(GetParam());
    IOThread *other = iothread_new("other", &opts);
    int ret = -1;

    iothread_stop(other);
    ASSERT_EQ(iothread_join(other), 0);
    io.Run([&] { ret = iothread_destroy(other); });
    EXPECT_EQ(ret, 0);
}

TEST_P(IOThreads, PingPongLosesNoWakeup)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    static std::atomic<int> left;
    struct Side {
        AioContext *other;
        Side *peer;
        static void Hit(void *opaque)
        {
            Side *s = static_cast<Side *>(opaque);
            if (--left > 0) {
                aio_bh_schedule_oneshot(s->other, Hit, s->peer);
            }
        }
    } sa{ b.ctx(), nullptr }, sb{ a.ctx(), &sa };

    sa.peer = &sb;
    left = kSanitized ? 5000 : 50000;
    aio_bh_schedule_oneshot(a.ctx(), Side::Hit, &sa);
    EXPECT_TRUE(WaitUntil([] { return left <= 0; }));
}

TEST(IOThreadOps, DestroyWaitsForOperationsThenCancelsAndNamesThem)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    IOThreadOptions opts = {};
    opts.context.monitor = "io_uring";
    opts.stop_timeout_ms = 100;
    IOThread *io = iothread_new("hangs", &opts);
    SocketPair s;
    struct Recv {
        CqeHandler handler = {};
        char c;
        int fd;
        std::atomic<int> submitted{ 0 }, calls{ 0 };
    } recv;

    recv.fd = s.a;
    recv.handler.cb = [](CqeHandler *h) { reinterpret_cast<Recv *>(h)->calls++; };
    aio_bh_schedule_oneshot(
        iothread_get_aio_context(io),
        [](void *o) {
            Recv *r = static_cast<Recv *>(o);
            EXPECT_EQ(aio_add_sqe(
                          [](struct io_uring_sqe *sqe, void *p) {
                              Recv *rr = static_cast<Recv *>(p);
                              io_uring_prep_recv(sqe, rr->fd, &rr->c, 1, 0);
                          },
                          r, &r->handler),
                      0);
            r->submitted = 1;
        },
        &recv);
    ASSERT_TRUE(WaitUntil([&] { return recv.submitted == 1; }));
    testing::internal::CaptureStderr();
    EXPECT_EQ(iothread_destroy(io), 0);
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(recv.calls, 1);
    EXPECT_EQ(recv.handler.res, -ECANCELED);
    EXPECT_NE(said.find("hangs"), std::string::npos) << said;
    EXPECT_NE(said.find("1 recv"), std::string::npos) << said;
}
