/* SPDX-License-Identifier: MIT */
/* The main loop: its beginning and end, its timers, fds, bottom halves and block requests. */
#include "main_loop_support.h"

#include <aioctx/block.h>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <sys/wait.h>

class MainLoop : public OnEachMonitor
{
};
ON_EACH_MONITOR(MainLoop);

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* ---- Beginning and end ----------------------------------------------------------------------- */

TEST_P(MainLoop, IsTheThreadsOwnContextOverTheMainLoopsGroup)
{
    EXPECT_EQ(qemu_get_aio_context(), nullptr);
    {
        ScopedMainLoop loop(GetParam());
        AioContext *ctx = qemu_get_aio_context();

        ASSERT_NE(ctx, nullptr);
        EXPECT_STREQ(aio_context_get_monitor(ctx), GetParam());
        EXPECT_TRUE(in_aio_context_home_thread(ctx));
        EXPECT_EQ(qemu_get_current_aio_context(), ctx);
        EXPECT_EQ(aio_context_get_timer_list_group(ctx), &main_loop_tlg);
    }
    EXPECT_EQ(qemu_get_aio_context(), nullptr);
    EXPECT_EQ(qemu_get_current_aio_context(), nullptr);
}

TEST_P(MainLoop, ThereIsOneAtATime)
{
    ScopedMainLoop loop(GetParam());
    AioContext *ctx = qemu_get_aio_context();
    int ret = 0;

    EXPECT_EQ(qemu_init_main_loop(nullptr), -EBUSY);
    std::thread([&] { ret = qemu_init_main_loop(nullptr); }).join();
    EXPECT_EQ(ret, -EBUSY);
    EXPECT_EQ(qemu_get_aio_context(), ctx);
}

TEST(MainLoopInit, TellsABadOptionAndChangesNothing)
{
    AioContextOptions opts = {};

    opts.monitor = "abacus";
    EXPECT_EQ(qemu_init_main_loop(&opts), -EINVAL);
    EXPECT_EQ(qemu_get_aio_context(), nullptr);
    HeapTimer t(nullptr, [] {});
    EXPECT_TRUE(timer_mod(t, INT64_MAX)); /* the lists are as good as before */
    EXPECT_EQ(qemu_init_main_loop(nullptr), 0);
    qemu_cleanup_main_loop();
}

TEST(MainLoopInit, WithoutALoopANotifyAndACleanupDoNothing)
{
    qemu_notify_event();
    qemu_cleanup_main_loop();
    EXPECT_EQ(qemu_get_aio_context(), nullptr);
}

TEST_P(MainLoop, IsMadeAndEndedManyTimesWithoutALeak)
{
    for (int i = 0; i < (kSanitized ? 50 : 300); i++) {
        ScopedMainLoop loop(GetParam());
        SocketPair s;
        ForeignFd f(s.a);
        f.foreign.ask = [&](MainLoopPoll *p) {
            main_loop_poll_add_fd(p, s.a, POLLIN);
            p->timeout_ns = 1;
        };
        f.foreign.tell = nullptr;
        main_loop_wait(false);
    }
    aio_rcu_barrier();
}

TEST_P(MainLoop, CleanupRunsTheBottomHalvesThatWereAccepted)
{
    int runs = 0;
    Call last{ [&] { runs++; } };
    Call first{ [&] {
        runs++;
        aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &last);
    } };
    AioContext *ctx;
    {
        ScopedMainLoop loop(GetParam());
        ctx = qemu_get_aio_context();
        aio_context_ref(ctx);
        aio_bh_schedule_oneshot(ctx, Call::Run, &first);
    }
    EXPECT_EQ(runs, 2);
    EXPECT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &last), -ESHUTDOWN);
    EXPECT_EQ(qemu_get_current_aio_context(), nullptr);
    aio_context_unref(ctx);
}

TEST_P(MainLoop, ThreadThatExitsEndsItsLoopAndAnyMayCleanUp)
{
    Foreign *foreign = nullptr;
    HeapTimer t(nullptr, [] { ADD_FAILURE(); });

    std::thread([&] {
        AioContextOptions opts = {};
        opts.monitor = GetParam();
        ASSERT_EQ(qemu_init_main_loop(&opts), 0);
        foreign = new Foreign([](MainLoopPoll *p) { p->timeout_ns = 0; }, nullptr);
        main_loop_wait(false);
        timer_mod(t, Now() + INT64_C(3600) * 1000 * SCALE_MS);
    }).join();
    Call never{ [] { ADD_FAILURE(); } };
    EXPECT_EQ(aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &never), -ESHUTDOWN);
    qemu_notify_event();
    qemu_cleanup_main_loop();
    EXPECT_EQ(qemu_get_aio_context(), nullptr);
    EXPECT_TRUE(timer_pending(t));
    ScopedMainLoop again(GetParam());
    EXPECT_FALSE(main_loop_wait(true));
    EXPECT_EQ(foreign->asked, 1); /* it was taken off */
    foreign->Add();
    delete foreign;
}

TEST_P(MainLoop, BeganAndEndedBelowAnothersCallbackIsNotCurrentAfterwards)
{
    ScopedContext other(GetParam());
    AioContextOptions opts = {};
    AioContext *ctx = nullptr;
    Call begin{ [&] {
        opts.monitor = GetParam();
        qemu_init_main_loop(&opts);
        ctx = qemu_get_aio_context();
        aio_context_ref(ctx);
        EXPECT_EQ(qemu_get_current_aio_context(), other);
    } };
    Call end{ [] { qemu_cleanup_main_loop(); } };

    aio_bh_schedule_oneshot(other, Call::Run, &begin);
    aio_poll(other, true);
    ASSERT_NE(ctx, nullptr);
    EXPECT_EQ(qemu_get_current_aio_context(), other);
    qemu_set_current_aio_context(ctx);
    aio_bh_schedule_oneshot(other, Call::Run, &end);
    aio_poll(other, true);
    EXPECT_NE(qemu_get_current_aio_context(), ctx); /* it has ended, though we hold it */
    aio_context_unref(ctx);
}

/* ---- Timers ---------------------------------------------------------------------------------- */

TEST_P(MainLoop, RunsTimersWithoutAGroupMadeBeforeAndAfterIt)
{
    int fired = 0;
    HeapTimer before(nullptr, [&] { fired |= 1; });
    timer_mod(before, 0);
    ScopedMainLoop loop(GetParam());
    HeapTimer after(nullptr, [&] { fired |= 2; });
    HeapTimer on_context(aio_context_get_timer_list_group(qemu_get_aio_context()),
                         [&] { fired |= 4; });

    timer_mod(after, Now() + SCALE_MS);
    timer_mod(on_context, Now() + SCALE_MS);
    loop.RunUntil([&] { return fired == 7; });
}

TEST_P(MainLoop, RunsTimersOfEveryClock)
{
    ScopedMainLoop loop(GetParam());
    int fired = 0;
    HeapTimer realtime(
        nullptr, [&] { fired |= 1; }, QEMU_CLOCK_REALTIME);
    HeapTimer host(
        nullptr, [&] { fired |= 2; }, QEMU_CLOCK_HOST);
    HeapTimer virt(
        nullptr, [&] { fired |= 4; }, QEMU_CLOCK_VIRTUAL);
    HeapTimer virt_rt(
        nullptr, [&] { fired |= 8; }, QEMU_CLOCK_VIRTUAL_RT);

    cpu_enable_ticks();
    timer_mod(realtime, Now() + SCALE_MS);
    timer_mod(host, qemu_clock_get_ns(QEMU_CLOCK_HOST) + SCALE_MS);
    timer_mod(virt, qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL) + SCALE_MS);
    timer_mod(virt_rt, qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT) + SCALE_MS);
    loop.RunUntil([&] { return fired == 15; });
    cpu_disable_ticks();
}

TEST_P(MainLoop, TimersStayArmedFromOneLoopToTheNext)
{
    bool fired = false;
    HeapTimer t(nullptr, [&] { fired = true; });
    {
        ScopedMainLoop loop(GetParam());
        timer_mod(t, Now() + INT64_C(3600) * 1000 * SCALE_MS);
    }
    EXPECT_TRUE(timer_pending(t));
    EXPECT_TRUE(timer_mod(t, 0));
    EXPECT_FALSE(fired);
    std::thread([&] { /* on another thread this time */
                      ScopedMainLoop loop(GetParam());
                      loop.RunUntil([&] { return fired; });
    })
        .join();
}

TEST_P(MainLoop, TimerThatAnotherThreadArmsEndsTheSleep)
{
    ScopedMainLoop loop(GetParam());
    std::atomic<int> fired{ 0 };
    HeapTimer t(nullptr, [&] { fired++; });
    const int rounds = kSanitized ? 300 : 2000;

    std::thread other([&] {
        for (int i = 0; i < rounds; i++) {
            timer_mod(t, 0);
            while (fired == i) {
                std::this_thread::yield();
            }
        }
    });
    loop.RunUntil([&] { return fired == rounds; });
    other.join();
}

/* Whoever arms while there is no context yet, or none any more, is seen by the next one. */
TEST_P(MainLoop, TimersArmedBesideInitAndCleanupAreNotLost)
{
    for (int i = 0; i < (kSanitized ? 30 : 200); i++) {
        std::atomic<int> fired{ 0 };
        HeapTimer a(nullptr, [&] { fired++; }), b(nullptr, [&] { fired++; });
        std::atomic<int> begun{ 0 };
        std::thread one([&] {
            begun++;
            timer_mod(a, 0);
        });
        std::thread two([&] {
            begun++;
            timer_mod(b, 0);
        });
        while (begun < 1) {
            std::this_thread::yield();
        }
        for (int turn = 0; turn < 3; turn++) {
            ScopedMainLoop loop(GetParam());
            main_loop_wait(true);
        }
        ScopedMainLoop loop(GetParam());
        loop.RunUntil([&] { return fired == 2; });
        one.join();
        two.join();
    }
}

static std::atomic<int> users_calls;

TEST_P(MainLoop, InitClocksCallbackIsCalledBesideIt)
{
    ScopedMainLoop loop(GetParam());
    std::atomic<bool> fired{ false };
    HeapTimer t(nullptr, [&] { fired = true; });

    users_calls = 0;
    init_clocks([](void *, QEMUClockType) { users_calls++; });
    std::thread other([&] {
        loop.WaitUntilItRests();
        timer_mod(t, 0);
    });
    loop.RunUntil([&] { return fired.load(); });
    other.join();
    EXPECT_EQ(users_calls, 1);
    init_clocks([](void *, QEMUClockType) {});
}

/* ---- Waiting, notifies, bottom halves, fds --------------------------------------------------- */

TEST_P(MainLoop, WaitThatDoesNotBlockReturnsWithNothingDone)
{
    ScopedMainLoop loop(GetParam());

    EXPECT_FALSE(main_loop_wait(true));
    EXPECT_EQ(loop.Stats().sleeps, 0u);
}

TEST_P(MainLoop, NotifyBeforeTheWaitLetsItReturnAtOnce)
{
    ScopedMainLoop loop(GetParam());

    qemu_notify_event();
    EXPECT_FALSE(main_loop_wait(false)); /* a wake-up alone is no progress */
    EXPECT_EQ(loop.Stats().sleeps, 0u);
}

TEST_P(MainLoop, NotifyFromAnotherThreadEndsTheSleep)
{
    ScopedMainLoop loop(GetParam());
    const int rounds = kSanitized ? 300 : 2000;
    std::atomic<int> woken{ 0 };

    std::thread other([&] {
        for (int i = 0; i < rounds; i++) {
            qemu_notify_event();
            while (woken == i) {
                std::this_thread::yield();
            }
        }
    });
    while (woken < rounds) {
        main_loop_wait(false);
        woken++;
    }
    other.join();
}

/* Polls once, which takes the count of notifies. */
static void PollOnce()
{
    Call nothing{ [] {} };

    aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &nothing);
    aio_poll(qemu_get_aio_context(), true);
}

TEST_P(MainLoop, NotifyEventIsForTheNextWaitThatBlocks)
{
    ScopedMainLoop loop(GetParam());
    HeapTimer t(nullptr, [] {}); /* ends a wait that has lost it */

    timer_mod(t, Now() + 50 * SCALE_MS);
    qemu_notify_event();
    PollOnce();
    main_loop_wait(true);
    main_loop_wait(false);
    EXPECT_EQ(loop.Stats().sleeps, 0u);
    while (loop.Stats().sleeps == 0) { /* for one, not for all */
        timer_mod(t, Now() + SCALE_MS);
        main_loop_wait(false);
    }
}

TEST_P(MainLoop, NotifyEventBesideAPollEndsTheWaitAndShowsWhatWasWrittenBefore)
{
    ScopedMainLoop loop(GetParam());
    const int rounds = kSanitized ? 300 : 2000;
    std::atomic<int> asked{ 0 }, seen{ 0 };

    std::thread other([&] {
        for (int i = 1; i <= rounds; i++) {
            asked.store(i, std::memory_order_relaxed);
            qemu_notify_event();
            while (seen.load(std::memory_order_relaxed) < i) {
                std::this_thread::yield();
            }
        }
    });
    while (seen < rounds) {
        PollOnce();
        main_loop_wait(false);
        seen = asked.load(std::memory_order_relaxed);
    }
    other.join();
}

TEST_P(MainLoop, BottomHalvesRunOnItWhoeverSchedules)
{
    ScopedMainLoop loop(GetParam());
    std::atomic<int> runs{ 0 };
    Call call{ [&] {
        EXPECT_TRUE(in_aio_context_home_thread(qemu_get_aio_context()));
        runs++;
    } };
    QEMUBH *bh = qemu_bh_new(Call::Run, &call);

    ASSERT_NE(bh, nullptr);
    qemu_bh_schedule(bh);
    EXPECT_TRUE(main_loop_wait(false));
    EXPECT_EQ(runs, 1);
    std::thread other([&] { qemu_bh_schedule(bh); });
    loop.RunUntil([&] { return runs == 2; });
    other.join();
    qemu_bh_delete(bh);
}

static QEMUBH *signal_bh;

TEST_P(MainLoop, BottomHalfFromASignalHandlerRuns)
{
    if (kSanitized && std::string(GetParam()) == "io_uring") {
        GTEST_SKIP() << "ThreadSanitizer holds a signal back until the thread's next call of libc, "
                        "and the wait of a ring is none";
    }
    ScopedMainLoop loop(GetParam());
    std::atomic<int> runs{ 0 };
    Call call{ [&] { runs++; } };
    struct sigaction sa = {}, old;
    pthread_t self = pthread_self();
    const int rounds = 200;

    signal_bh = qemu_bh_new(Call::Run, &call);
    sa.sa_handler = [](int) {
        qemu_bh_schedule(signal_bh);
        qemu_notify_event();
    };
    sigaction(SIGUSR1, &sa, &old);
    std::thread other([&] {
        for (int i = 0; i < rounds; i++) {
            pthread_kill(self, SIGUSR1);
            for (int turn = 1; runs <= i; turn++) {
                if (kSanitized && turn % 20000 == 0) { /* ThreadSanitizer may hold one back */
                    pthread_kill(self, SIGUSR1);
                }
                std::this_thread::yield();
            }
        }
    });
    loop.RunUntil([&] { return runs >= rounds; });
    other.join();
    sigaction(SIGUSR1, &old, nullptr);
    qemu_bh_delete(signal_bh);
}

TEST_P(MainLoop, FdHandlersReadAndWrite)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    std::string got;
    int writable = 0;
    Call reader{ [&] {
        char c;
        while (read(s.a, &c, 1) == 1) {
            got += c;
        }
    } };
    Call writer{ [&] {
        writable++;
        ASSERT_EQ(write(s.b, "x", 1), 1);
        EXPECT_EQ(qemu_set_fd_handler(s.b, nullptr, nullptr, nullptr), 0);
    } };

    EXPECT_EQ(qemu_set_fd_handler(s.a, Call::Run, nullptr, &reader), 0);
    EXPECT_EQ(qemu_set_fd_handler(s.b, nullptr, Call::Run, &writer), 0);
    loop.RunUntil([&] { return got == "x"; });
    EXPECT_EQ(writable, 1);
    EXPECT_EQ(qemu_set_fd_handler(s.a, nullptr, nullptr, nullptr), 0);
    EXPECT_EQ(qemu_set_fd_handler(-1, Call::Run, nullptr, &reader), -EBADF);
}

TEST_P(MainLoop, WaitMayBeNestedInAnyCallback)
{
    ScopedMainLoop loop(GetParam());
    int inner = 0;
    bool outer = false;
    Call in{ [&] { inner++; } };
    Call out{ [&] {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &in);
        while (inner == 0) {
            main_loop_wait(false);
        }
        outer = true;
    } };
    HeapTimer t(nullptr, [&] { Call::Run(&out); });

    aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &out);
    loop.RunUntil([&] { return outer; });
    outer = false;
    inner = 0;
    timer_mod(t, 0);
    loop.RunUntil([&] { return outer; });
    EXPECT_EQ(inner, 1);
}

/* ---- Block I/O without an iothread ----------------------------------------------------------- */

static void StoreResult(void *opaque, int ret)
{
    *static_cast<int *>(opaque) = ret;
}

TEST_P(MainLoop, BlockRequestsOfItsThreadCompleteOnIt)
{
    ScopedMainLoop loop(GetParam());
    BlockBackend *blk = blk_open("null:?size=1M&latency-ns=1000000", nullptr);
    char buf[4096];
    QEMUIOVector qiov;
    int ret = 1;

    ASSERT_NE(blk, nullptr);
    qemu_iovec_init_buf(&qiov, buf, sizeof(buf));
    ASSERT_NE(blk_aio_preadv(blk, 0, &qiov, BdrvRequestFlags(), StoreResult, &ret), nullptr);
    loop.RunUntil([&] { return ret != 1; });
    EXPECT_EQ(ret, 0);
    EXPECT_EQ(blk_pread(blk, 0, sizeof(buf), buf, BdrvRequestFlags()), 0);
    blk_unref(blk);
}

TEST_P(MainLoop, FileIoRunsOnIt)
{
    ScopedMainLoop loop(GetParam());
    char path[] = "/tmp/aioctx-main-loop-XXXXXX", text[] = "sixteen letters!", back[16] = "";
    int fd = mkstemp(path), ret = 1;
    QEMUIOVector out, in;

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, 65536), 0);
    close(fd);
    BlockBackend *blk = blk_open((std::string("file:") + path).c_str(), nullptr);
    ASSERT_NE(blk, nullptr);
    qemu_iovec_init_buf(&out, text, 16);
    qemu_iovec_init_buf(&in, back, 16);
    ASSERT_NE(blk_aio_pwritev(blk, 4096, &out, BdrvRequestFlags(), StoreResult, &ret), nullptr);
    loop.RunUntil([&] { return ret != 1; });
    EXPECT_EQ(ret, 0);
    ret = 1;
    ASSERT_NE(blk_aio_preadv(blk, 4096, &in, BdrvRequestFlags(), StoreResult, &ret), nullptr);
    loop.RunUntil([&] { return ret != 1; });
    EXPECT_EQ(ret, 0);
    EXPECT_EQ(std::string(back, 16), "sixteen letters!");
    blk_unref(blk);
    unlink(path);
}

/* ---- Misuse ---------------------------------------------------------------------------------- */

TEST(MainLoopMisuse, CallsThatNeedALoopAbortWithoutOne)
{
    EXPECT_DEATH(main_loop_wait(true), "main_loop_wait: there is no main loop");
    EXPECT_DEATH(qemu_bh_new([](void *) {}, nullptr), "qemu_bh_new: there is no main loop");
    EXPECT_DEATH(qemu_set_fd_handler(0, nullptr, nullptr, nullptr),
                 "qemu_set_fd_handler: there is no main loop");
    MainLoopPollNotifier n = {};
    EXPECT_DEATH(main_loop_poll_add_notifier(&n), "there is no main loop");
}

TEST(MainLoopMisuse, AnotherThreadMayNeitherWaitNorEndIt)
{
    MainLoopPollNotifier n = {};
    auto elsewhere = [](const std::function<void()> &func) {
        qemu_init_main_loop(nullptr);
        std::thread(func).join();
    };

    EXPECT_DEATH(elsewhere([] { main_loop_wait(true); }), "home is another thread");
    EXPECT_DEATH(elsewhere([] { qemu_cleanup_main_loop(); }), "called on another thread");
    EXPECT_DEATH(elsewhere([&] { main_loop_poll_add_notifier(&n); }), "called on another thread");
}

static void CleanUpBelowACallback()
{
    qemu_init_main_loop(nullptr);
    aio_bh_schedule_oneshot(
        qemu_get_aio_context(), [](void *) { qemu_cleanup_main_loop(); }, nullptr);
    main_loop_wait(true);
}

TEST(MainLoopMisuse, EndBelowACallbackAborts)
{
    EXPECT_DEATH(CleanUpBelowACallback(), "called below a callback of the main loop");
}

static void WaitInAReadSection()
{
    qemu_init_main_loop(nullptr);
    aio_rcu_read_lock();
    main_loop_wait(true);
}

TEST(MainLoopMisuse, WaitInAReadSectionAborts)
{
    EXPECT_DEATH(WaitInAReadSection(), "main_loop_wait: called inside an RCU read section");
}

TEST(MainLoopMisuse, ChildOfForkAborts)
{
    for (int call = 0; call < 4; call++) {
        ScopedMainLoop loop;
        pid_t pid = fork();

        ASSERT_GE(pid, 0);
        if (pid == 0) {
            signal(SIGABRT, SIG_DFL);
            close(STDERR_FILENO);
            call == 0   ? static_cast<void>(main_loop_wait(true))
            : call == 1 ? qemu_cleanup_main_loop()
            : call == 2 ? qemu_notify_event()
                        : static_cast<void>(qemu_init_main_loop(nullptr));
            _exit(0);
        }
        int status = 0;
        ASSERT_EQ(waitpid(pid, &status, 0), pid);
        EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) << "call " << call;
    }
}
