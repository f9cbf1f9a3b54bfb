/* SPDX-License-Identifier: MIT */
/* The event loop: polling, notifying, deadlines, home threads. */
#include "loop_support.h"

#include <csignal>
#include <cstring>
#include <sys/wait.h>
#include <thread>

class Loop : public OnEachMonitor
{
};
ON_EACH_MONITOR(Loop);

TEST_P(Loop, NamesItsMonitor)
{
    ScopedContext ctx(GetParam());

    EXPECT_STREQ(aio_context_get_monitor(ctx), GetParam());
}

TEST_P(Loop, NonBlockingPollOfAnIdleContextMakesNoProgress)
{
    ScopedContext ctx(GetParam());

    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(aio_compute_timeout(ctx), -1);
}

TEST_P(Loop, NotifyBeforeABlockingPollLetsItReturnWithoutProgress)
{
    ScopedContext ctx(GetParam());

    aio_notify(ctx);
    EXPECT_FALSE(aio_poll(ctx, true));
}

TEST_P(Loop, NotifyToAnAwakeLoopMakesNoSystemCall)
{
    ScopedContext ctx(GetParam());

    for (int i = 0; i < 1000; i++) {
        aio_notify(ctx);
    }
    aio_poll(ctx, true);
    EXPECT_EQ(ctx.Stats().notifies, 1000u);
    EXPECT_EQ(ctx.Stats().notifies_sent, 0u);
    EXPECT_EQ(ctx.Stats().sleeps, 0u);
}

TEST_P(Loop, NotifyWakesASleepingLoop)
{
    ScopedContext ctx(GetParam());
    std::atomic<bool> flag{ false };
    std::thread other([&] {
        WaitUntil([&] { return ctx.Stats().iterations > 0; });
        usleep(20000);
        flag = true;
        aio_notify(ctx);
    });

    while (!flag) {
        EXPECT_FALSE(aio_poll(ctx, true));
    }
    other.join();
    EXPECT_LE(ctx.Stats().notifies_sent, 1u);
}

/* The caller's own flag, looked at before the poll: the classic lost wake-up. */
TEST_P(Loop, NoWakeupIsLostBetweenAFlagAndTheSleep)
{
    ScopedContext ctx(GetParam());
    const int rounds = kSanitized ? 20000 : 200000;
    std::atomic<int> ping{ 0 }, pong{ 0 };
    std::thread other([&] {
        for (int i = 1; i <= rounds; i++) {
            ping.store(i, std::memory_order_relaxed);
            aio_notify(ctx);
            while (pong.load(std::memory_order_relaxed) < i) {
                if (i % 64 == 0) {
                    std::this_thread::yield();
                }
            }
        }
    });

    for (int i = 1; i <= rounds; i++) {
        while (ping.load(std::memory_order_relaxed) < i) {
            aio_poll(ctx, true);
        }
        pong.store(i, std::memory_order_relaxed);
    }
    other.join();
}

TEST_P(Loop, ManyNotifiersCostFewWakeups)
{
    ScopedContext ctx(GetParam());
    std::atomic<int> finished{ 0 };
    const int each = 20000;
    std::thread start([&] {
        RunThreads(3, [&](int) {
            for (int i = 0; i < each; i++) {
                aio_notify(ctx);
            }
            finished++;
            aio_notify(ctx);
        });
    });

    while (finished < 3) {
        aio_poll(ctx, true);
    }
    start.join();
    aio_notify(ctx); /* so that the count of those after the last poll is taken too */
    aio_poll(ctx, true);
    AioContextStats s = ctx.Stats();
    EXPECT_EQ(s.notifies, 3u * each + 3 + 1);
    /* Each sleep takes one; only notifiers that come at the same moment may send one more each. */
    EXPECT_LE(s.notifies_sent, 3 * (s.sleeps + 1));
}

TEST_P(Loop, DeadlineIsTheWaitsTimeout)
{
    ScopedContext ctx(GetParam());
    bool fired = false;
    Call call{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    /* Where this thread does not get to run until the deadline has passed, there is no sleep. */
    for (int64_t ms = 10; ctx.Stats().wakeups_timeout == 0; ms *= 2) {
        int64_t deadline = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + ms * SCALE_MS;
        uint64_t before = ctx.Stats().iterations;

        fired = false;
        timer_mod(ts, deadline);
        while (!fired) {
            aio_poll(ctx, true);
        }
        EXPECT_GE(qemu_clock_get_ns(QEMU_CLOCK_REALTIME), deadline);
        EXPECT_LE(ctx.Stats().iterations - before, 4u); /* it does not spin */
    }
    timer_free(ts);
}

/* Compared within one clock: how two clocks relate may change. */
TEST_P(Loop, TimerLaterThanTheFirstOfItsClockNotifiesNobody)
{
    ScopedIOThread io(GetParam());
    QEMUTimerListGroup *tlg = aio_context_get_timer_list_group(io.ctx());
    const int64_t hour = INT64_C(3600000) * SCALE_MS;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    auto never = [] { ADD_FAILURE(); };
    HeapTimer first(tlg, never), later(tlg, never), other(tlg, never, QEMU_CLOCK_HOST);
    auto stats = [&] {
        AioContextStats s;

        aio_context_get_stats(io.ctx(), &s);
        return s;
    };

    io.Run([&] { timer_mod(first, now + hour); });
    usleep(10000); /* most likely it sleeps then; it holds in any case */
    AioContextStats before = stats();
    for (int i = 1000; i > 0; i--) {
        timer_mod(later, now + hour + i);
        timer_mod_anticipate(later, now + hour);
        timer_mod_range_ns(later, now + hour + 1, now + hour + i);
        timer_del(later);
    }
    EXPECT_EQ(stats().notifies, before.notifies);
    EXPECT_EQ(stats().notifies_sent, before.notifies_sent);
    timer_mod(first, now + hour + 1); /* the first becomes later */
    EXPECT_EQ(stats().notifies, before.notifies);
    timer_mod(later, now + hour);
    EXPECT_EQ(stats().notifies, before.notifies + 1);
    timer_mod(other, qemu_clock_get_ns(QEMU_CLOCK_HOST) + 2 * hour);
    EXPECT_EQ(stats().notifies, before.notifies + 2);
    io.Run([&] { timer_del(first), timer_del(later), timer_del(other); });
}

TEST_P(Loop, TimerArmedElsewhereWakesASleeperWithALaterDeadline)
{
    ScopedContext ctx(GetParam());
    bool fired = false;
    Call call{ [&] { fired = true; } }, never{ [] { ADD_FAILURE(); } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, Call::Run, &call);
    QEMUTimer *late = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, Call::Run, &never);

    timer_mod(late, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 3600000);
    std::thread other([&] {
        WaitUntil([&] { return ctx.Stats().iterations > 0; });
        usleep(10000);
        timer_mod(ts, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 1);
    });
    while (!fired) {
        aio_poll(ctx, true);
    }
    other.join();
    timer_free(ts);
    timer_free(late);
}

/* Two threads move two timers of one sleeping context all the time: the last armings must fire. */
TEST_P(Loop, ArmingsFromTwoThreadsAreNeverLost)
{
    const int rounds = kSanitized ? 300 : 3000;
    ScopedIOThread io(GetParam());
    struct Side {
        std::atomic<int> fired{ 0 };
        QEMUTimer *ts;
        static void Fire(void *opaque)
        {
            static_cast<Side *>(opaque)->fired++;
        }
    } side[2];

    for (auto &s : side) {
        s.ts = aio_timer_new(io.ctx(), QEMU_CLOCK_REALTIME, SCALE_NS, Side::Fire, &s);
    }
    RunThreads(2, [&](int i) {
        Side &s = side[i];

        for (int r = 0; r < rounds && !testing::Test::HasFailure(); r++) {
            int before = s.fired;

            /* Far, near, far, near: the head moves back and forward under the sleeper's eyes. */
            timer_mod(s.ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + INT64_C(3600000000000));
            timer_mod(s.ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + r % 7 * 3000);
            ASSERT_TRUE(WaitUntil([&] { return s.fired > before; })) << "round " << r;
        }
    });
    for (auto &s : side) {
        timer_free(s.ts);
    }
}

TEST_P(Loop, SignalEndsABlockingPollWithoutProgress)
{
    ScopedContext ctx(GetParam());
    static AioContext *target;
    static std::atomic<int> caught;
    struct sigaction sa = {}, old;

    target = ctx;
    caught = 0;
    sa.sa_handler = [](int) {
        caught++;
        aio_notify(target);
    };
    sigaction(SIGUSR1, &sa, &old);
    std::atomic<bool> finished{ false };
    pthread_t self = pthread_self();
    std::thread other([&] {
        WaitUntil([&] { return ctx.Stats().iterations > 0; });
        for (int i = 0; i < 50; i++) {
            usleep(1000);
            finished = i == 49;
            pthread_kill(self, SIGUSR1);
        }
        if (kSanitized) { /* ThreadSanitizer may hold the last one back until the next comes */
            usleep(1000);
            pthread_kill(self, SIGUSR1);
        }
    });
    /* They may come before, in and after the sleep, and two may merge: each must let a poll return,
     * or this hangs once the last one has come. */
    for (int seen = 0; !finished || seen < caught; seen = caught) {
        aio_poll(ctx, true);
        ASSERT_LT(ctx.Stats().iterations, 100000u) << "the loop spins";
    }
    other.join();
    sigaction(SIGUSR1, &old, nullptr);
    aio_poll(ctx, false);
}

TEST_P(Loop, NestedPollRunsOtherTimersOfTheSamePass)
{
    ScopedContext ctx(GetParam());
    std::vector<int> order;
    QEMUTimer *first, *second;
    Call b{ [&] { order.push_back(2); } };
    Call a{ [&] {
        order.push_back(1);
        aio_poll(ctx, false);
        order.push_back(3);
    } };

    first = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &a);
    second = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &b);
    timer_mod(first, 1);
    timer_mod(second, 2);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(order, (std::vector<int>{ 1, 2, 3 }));
    timer_free(first);
    timer_free(second);
}

TEST_P(Loop, NestedPollCanWaitForATimerThatTheCallbackArms)
{
    ScopedContext ctx(GetParam());
    bool inner = false, outer = false;
    Call in{ [&] { inner = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &in);
    Call out{ [&] {
        timer_mod(ts, 0);
        while (!inner) {
            aio_poll(ctx, true);
        }
        outer = true;
    } };
    QEMUTimer *ts2 = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &out);

    timer_mod(ts2, 0);
    while (!outer) {
        aio_poll(ctx, true);
    }
    timer_free(ts);
    timer_free(ts2);
}

TEST_P(Loop, StoppedVirtualClockDoesNotMakeTheLoopSpin)
{
    ScopedContext ctx(GetParam());
    Call call{ [] { ADD_FAILURE() << "fired on a stopped clock"; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_VIRTUAL, SCALE_NS, Call::Run, &call);

    cpu_disable_ticks();
    timer_mod(ts, 0);
    EXPECT_EQ(aio_compute_timeout(ctx), -1);
    EXPECT_FALSE(aio_poll(ctx, false));
    timer_free(ts);
}

TEST_P(Loop, StartOfVirtualWakesASleeper)
{
    ScopedIOThread io(GetParam());
    std::atomic<bool> fired{ false };
    Call call{ [&] { fired = true; } };

    cpu_disable_ticks();
    QEMUTimer *ts = aio_timer_new(io.ctx(), QEMU_CLOCK_VIRTUAL, SCALE_NS, Call::Run, &call);
    timer_mod(ts, cpu_get_clock());
    usleep(20000);
    EXPECT_FALSE(fired);
    cpu_enable_ticks();
    EXPECT_TRUE(WaitUntil([&] { return fired.load(); }));
    cpu_disable_ticks();
    timer_free(ts);
}

TEST_P(Loop, EventNotifierHandlerRunsAndClears)
{
    ScopedContext ctx(GetParam());
    static EventNotifier e;
    static int calls;

    calls = 0;
    ASSERT_EQ(event_notifier_init(&e, 0), 0);
    ASSERT_EQ(aio_set_event_notifier(
                  ctx, &e,
                  [](EventNotifier *n) {
                      EXPECT_EQ(n, &e);
                      calls += event_notifier_test_and_clear(n);
                  },
                  nullptr, nullptr),
              0);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(event_notifier_set(&e), 0);
    EXPECT_EQ(event_notifier_set(&e), 0);
    while (!calls) {
        aio_poll(ctx, true);
    }
    aio_poll(ctx, false);
    EXPECT_EQ(calls, 1);
    aio_set_event_notifier(ctx, &e, nullptr, nullptr, nullptr);
    event_notifier_cleanup(&e);
}

TEST(EventNotifier, ActiveAtFirst)
{
    EventNotifier e;

    ASSERT_EQ(event_notifier_init(&e, 1), 0);
    EXPECT_TRUE(event_notifier_test_and_clear(&e));
    EXPECT_FALSE(event_notifier_test_and_clear(&e));
    event_notifier_cleanup(&e);
    event_notifier_cleanup(&e); /* left alone */
}

TEST(Context, UnknownMonitorIsRefused)
{
    AioContextOptions opts = {};

    opts.monitor = "kqueue";
    testing::internal::CaptureStderr();
    EXPECT_EQ(aio_context_new(&opts), nullptr);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_NE(testing::internal::GetCapturedStderr().find("io_uring, epoll or ppoll"),
              std::string::npos);
}

TEST(Context, EnvironmentForcesAMonitor)
{
    const char *was = getenv("AIOCTX_FDMON");
    std::string saved = was ? was : "";

    setenv("AIOCTX_FDMON", "ppoll", 1);
    {
        ScopedContext ctx;
        EXPECT_STREQ(aio_context_get_monitor(ctx), "ppoll");
    }
    setenv("AIOCTX_FDMON", "nonsense", 1);
    testing::internal::CaptureStderr();
    EXPECT_EQ(aio_context_new(nullptr), nullptr);
    EXPECT_NE(testing::internal::GetCapturedStderr().find("AIOCTX_FDMON"), std::string::npos);
    if (was) {
        setenv("AIOCTX_FDMON", saved.c_str(), 1);
    } else {
        unsetenv("AIOCTX_FDMON");
    }
}

TEST(Context, RefusesARingThatIsTooLarge)
{
    AioContextOptions opts = {};

    opts.ring_entries = 40000;
    testing::internal::CaptureStderr();
    EXPECT_EQ(aio_context_new(&opts), nullptr);
    EXPECT_EQ(errno, EINVAL);
    testing::internal::GetCapturedStderr();
}

TEST_P(Loop, LastReferenceElsewhereLeavesTheClosingToHome)
{
    AioContextOptions opts = {};
    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts), *other = aio_context_new(&opts);

    qemu_set_current_aio_context(ctx);
    aio_poll(ctx, false);
    std::thread([&] { aio_context_unref(ctx); }).join();
    aio_poll(other, false); /* closes it; the guard around the test counts the fds */
    aio_context_unref(other);
}

TEST_P(Loop, HomeThreadMayExitBeforeTheLastReference)
{
    AioContextOptions opts = {};
    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts);
    SocketPair s;
    Call never{ [] {} };

    std::thread([&] {
        aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &never);
        aio_poll(ctx, false);
    }).join();
    aio_notify(ctx);
    aio_context_unref(ctx);
}

TEST_P(Loop, ThreadThatExitsClosesItsZombies)
{
    AioContextOptions opts = {};
    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts);
    std::atomic<int> step{ 0 };
    std::thread home([&] {
        aio_poll(ctx, false);
        step = 1;
        WaitUntil([&] { return step == 2; });
    });

    WaitUntil([&] { return step == 1; });
    aio_context_unref(ctx);
    step = 2;
    home.join();
}

/* The last reference of a context goes on another thread while home is below one of its callbacks
 * and polls another context: it must not be closed under the feet of its own iteration. */
TEST_P(Loop, ZombieIsNotClosedWhileItIsOnTheStack)
{
    AioContextOptions opts = {};
    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts), *other = aio_context_new(&opts);
    bool done = false;
    Call call{ [&] {
        std::thread([&] { aio_context_unref(ctx); }).join();
        aio_poll(other, false);
        done = true;
    } };

    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    aio_poll(ctx, false);
    EXPECT_TRUE(done);
    aio_poll(other, false);
    aio_context_unref(other);
}

TEST_P(Loop, ContextFirstPolledAtThreadExitIsEndedToo)
{
    AioContextOptions opts = {};
    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts), *late = aio_context_new(&opts);
    bool ran = false;
    Call call{ [&] {
        aio_poll(late, false);
        ran = true;
    } };

    std::thread([&] {
        aio_poll(ctx, false);
        aio_bh_schedule_oneshot(ctx, Call::Run, &call); /* runs when the thread exits */
    }).join();
    EXPECT_TRUE(ran);
    aio_context_unref(late);
    aio_context_unref(ctx);
}

TEST_P(Loop, NeverPolledContextRunsWhatWasAcceptedWhenItCloses)
{
    AioContextOptions opts = {};
    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts);
    bool ran = false;
    Call call{ [&] { ran = true; } };

    EXPECT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &call), 0);
    aio_context_unref(ctx);
    EXPECT_TRUE(ran);
}

TEST_P(Loop, SecondPollerAborts)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            ScopedContext ctx(GetParam());
            std::thread([&] { aio_poll(ctx, false); }).join();
        },
        "home is another thread");
}

TEST_P(Loop, PollInsideAReadSectionAborts)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            ScopedContext ctx(GetParam());
            aio_rcu_read_lock();
            aio_poll(ctx, false);
        },
        "RCU read section");
}

TEST_P(Loop, UseInAForkedChildAborts)
{
    ScopedContext ctx(GetParam());
    int pipefd[2], status;
    char text[256] = "";

    aio_poll(ctx, false);
    ASSERT_EQ(pipe2(pipefd, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipefd[1], 2);
        signal(SIGABRT, SIG_DFL);
        aio_poll(ctx, false);
        _exit(0);
    }
    close(pipefd[1]);
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_GT(read(pipefd[0], text, sizeof(text) - 1), 0);
    close(pipefd[0]);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    EXPECT_NE(strstr(text, "fork()"), nullptr);
}

/* Timers that are due and completions take turns: neither keeps the other from running. */
TEST_P(Loop, TimersRunBesideABusyFd)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    bool fired = false;
    long reads = 0;
    Call busy{ [&] { reads++; } }; /* leaves the byte: level-triggered, ready for ever */
    Call call{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    ASSERT_EQ(write(s.b, "x", 1), 1);
    aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &busy);
    timer_mod(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 5 * SCALE_MS);
    while (!fired) {
        aio_poll(ctx, true);
    }
    EXPECT_GE(reads, 1);
    aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
    timer_free(ts);
}

TEST_P(Loop, StatisticsCountWhatHappened)
{
    ScopedContext ctx(GetParam());
    Call nothing{ [] {} };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &nothing);

    aio_bh_schedule_oneshot(ctx, Call::Run, &nothing);
    timer_mod(ts, 0);
    aio_poll(ctx, true);
    AioContextStats s = ctx.Stats();
    EXPECT_EQ(s.iterations, 1u);
    EXPECT_EQ(s.bhs, 1u);
    EXPECT_EQ(s.timers, 1u);
    EXPECT_EQ(s.sleeps, 0u);
    for (int64_t ms = 1; ctx.Stats().sleeps == 0; ms *= 2) { /* until it is not late already */
        timer_mod(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + ms * SCALE_MS);
        while (timer_pending(ts)) {
            aio_poll(ctx, true);
        }
    }
    s = ctx.Stats();
    EXPECT_EQ(s.wakeups_timeout, s.sleeps);
    EXPECT_GE(s.syscalls, 1u);
    timer_free(ts);
}
