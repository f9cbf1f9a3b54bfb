/* SPDX-License-Identifier: MIT */
/* The epoll monitor's own: deadlines by timerfd and epoll_pwait2(), and files it cannot let go. */
#include "loop_support.h"
#include "seccomp_support.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <thread>

static const int64_t kHour = INT64_C(3600000000000);

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* Each test runs on a thread with an iothread's timer slack, where short waits are timeouts, and on
 * one with another's. */
class Epoll : public testing::TestWithParam<unsigned long>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR("epoll");
        slack_ = static_cast<unsigned long>(prctl(PR_GET_TIMERSLACK));
        ASSERT_EQ(prctl(PR_SET_TIMERSLACK, GetParam()), 0);
    }
    void TearDown() override
    {
        if (slack_) {
            prctl(PR_SET_TIMERSLACK, slack_);
        }
    }

private:
    unsigned long slack_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Slack, Epoll, testing::Values(1UL, 50000UL),
                         [](const testing::TestParamInfo<unsigned long> &info) {
                             return std::to_string(info.param) + "ns";
                         });

/* A context with an fd that is always ready, so that waits begin, and end at once. */
class BusyContext : public ScopedContext
{
public:
    BusyContext() : ScopedContext("epoll")
    {
        timer = aio_timer_new(*this, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &fire_);
        EXPECT_EQ(write(s_.b, "x", 1), 1);
        EXPECT_EQ(aio_set_fd_handler(*this, s_.a, Call::Run, nullptr, nullptr, nullptr, &ignore_),
                  0);
    }
    ~BusyContext()
    {
        Rest();
        timer_free(timer);
    }
    void Rest()
    {
        aio_set_fd_handler(*this, s_.a, nullptr, nullptr, nullptr, nullptr, nullptr);
    }
    /* Sleeps until another thread's notify, in @us at the earliest; nothing else may end it. */
    void ExpectSleep(unsigned us)
    {
        std::atomic<bool> told{ false };
        std::thread other([&] {
            usleep(us);
            told = true;
            aio_notify(*this);
        });
        uint64_t timeouts = Stats().wakeups_timeout;

        while (!told) {
            EXPECT_FALSE(aio_poll(*this, true));
        }
        other.join();
        EXPECT_EQ(Stats().wakeups_timeout, timeouts) << "woken for nothing";
    }

    QEMUTimer *timer;
    int fired = 0;

private:
    SocketPair s_;
    Call ignore_{ [] {} }, fire_{ [this] { fired++; } };
};

TEST_P(Epoll, DeadlineThatStaysIsSetOnce)
{
    BusyContext ctx;

    timer_mod(ctx.timer, Now() + kHour);
    aio_poll(ctx, true);
    AioContextStats before = ctx.Stats();
    for (int i = 0; i < 100; i++) {
        aio_poll(ctx, true);
    }
    /* One wait each, and a check of the fd now and then. */
    EXPECT_LE(ctx.Stats().syscalls - before.syscalls, 102u);
    EXPECT_EQ(ctx.Stats().sleeps - before.sleeps, 100u);
}

TEST_P(Epoll, DeletedDeadlineLeavesNoExpiryBehind)
{
    BusyContext ctx;

    timer_mod(ctx.timer, Now() + 10 * SCALE_MS);
    aio_poll(ctx, true);
    timer_del(ctx.timer);
    ctx.Rest();
    ctx.ExpectSleep(30000);
    EXPECT_EQ(ctx.fired, 0);
}

TEST_P(Epoll, MovedDeadlineLeavesNoExpiryBehind)
{
    BusyContext ctx;

    timer_mod(ctx.timer, Now() + 10 * SCALE_MS);
    aio_poll(ctx, true);
    timer_mod(ctx.timer, Now() + kHour);
    ctx.Rest();
    ctx.ExpectSleep(30000);
    EXPECT_EQ(ctx.fired, 0);
}

TEST_P(Epoll, ExpiryThatNoWaitHasSeenIsTakenBack)
{
    for (int64_t then : { kHour, INT64_C(0) }) {
        BusyContext ctx;

        timer_mod(ctx.timer, Now() + 2 * SCALE_MS);
        aio_poll(ctx, true);
        usleep(5000); /* it expires */
        if (then) {
            timer_mod(ctx.timer, Now() + then);
        } else {
            timer_del(ctx.timer);
        }
        ctx.Rest();
        ctx.ExpectSleep(10000);
    }
}

TEST_P(Epoll, ExpiryThatAWaitHasSeenIsReportedOnce)
{
    BusyContext ctx;

    timer_mod(ctx.timer, Now() + 2 * SCALE_MS);
    aio_poll(ctx, true);
    while (!ctx.fired) {
        aio_poll(ctx, true);
    }
    ctx.Rest();
    ctx.ExpectSleep(10000);
    EXPECT_EQ(ctx.fired, 1);
}

TEST_P(Epoll, EarlierAndLaterDeadlinesInTurns)
{
    ScopedContext ctx("epoll");
    int fired = 0;
    int64_t due = 0;
    Call fire{ [&] {
        EXPECT_GE(Now(), due);
        fired++;
    } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &fire);
    Call never{ [] { ADD_FAILURE(); } };
    QEMUTimer *far = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &never);
    const int64_t ahead[] = { 100 * SCALE_US, 3 * SCALE_MS, 900 * SCALE_US, 1100 * SCALE_US, 0 };

    for (int i = 0; i < 100; i++) {
        if (i % 3 == 0) {
            timer_mod(far, Now() + kHour + i);
        }
        due = Now() + ahead[i % 5];
        timer_mod(ts, due);
        while (fired <= i) {
            aio_poll(ctx, true);
        }
    }
    EXPECT_LE(ctx.Stats().iterations, 300u) << "it spins";
    timer_free(ts);
    timer_free(far);
}

/* Fires @n timers that are 200 us ahead.  Returns how many system calls a sleep took. */
static double CallsForEachShortSleep(int n)
{
    ScopedContext ctx("epoll");
    int fired = 0;
    Call fire{ [&] { fired++; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &fire);

    for (int i = 0; i < n; i++) {
        timer_mod(ts, Now() + 200 * SCALE_US);
        while (fired <= i) {
            aio_poll(ctx, true);
        }
    }
    timer_free(ts);
    AioContextStats stats = ctx.Stats();
    return stats.sleeps ? static_cast<double>(stats.syscalls) / static_cast<double>(stats.sleeps)
                        : 0;
}

TEST_P(Epoll, ShortWaitWithoutTimerSlackIsOneSystemCall)
{
#ifdef SYS_epoll_pwait2
    if (syscall(SYS_epoll_pwait2, -1, nullptr, 0, nullptr, nullptr, 0) < 0 && errno == ENOSYS) {
        GTEST_SKIP() << "no epoll_pwait2 here";
    }
    double calls = CallsForEachShortSleep(50);

    EXPECT_EQ(calls, GetParam() == 1 ? 1 : 2);
#else
    GTEST_SKIP() << "no epoll_pwait2 here";
#endif
}

#ifdef SYS_epoll_pwait2
TEST_P(Epoll, TimerfdServesWhereThereIsNoEpollPwait2)
{
    for (int err : { ENOSYS, EPERM }) {
        bool denied = false;
        double calls = 0;

        std::thread([&] {
            denied = Deny({ { SYS_epoll_pwait2, err } });
            calls = denied ? CallsForEachShortSleep(50) : 0;
        }).join();
        if (!denied) {
            GTEST_SKIP() << "no seccomp filters here";
        }
        EXPECT_EQ(calls, 2);
    }
}
#endif

/* The kernel may end the next wait of the thread with EINTR. */
TEST_P(Epoll, ServesAfterARingWasClosedOnTheThread)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    ScopedContext ctx("epoll");
    int fired = 0;
    Call fire{ [&] { fired++; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &fire);

    for (int i = 0; i < 50; i++) {
        {
            ScopedContext ring("io_uring");
            SocketPair s;

            aio_set_fd_handler(ring, s.a, Call::Run, nullptr, nullptr, nullptr, &fire);
            aio_poll(ring, false);
        }
        timer_mod(ts, Now() + 500 * SCALE_US);
        while (fired <= i) {
            aio_poll(ctx, true);
        }
    }
    EXPECT_EQ(fired, 50);
    EXPECT_LE(ctx.Stats().iterations, 1000u) << "it spins";
    timer_free(ts);
}

/* It cannot be told of by the kernel that there is room again. */
TEST(EpollFull, HandlerThatTheSetHasNoRoomForIsTriedAgain)
{
    SKIP_WITHOUT_MONITOR("epoll");
    bool denied = false;

    std::thread([&] {
        ScopedContext ctx("epoll");
        SocketPair s;
        Call never{ [] { ADD_FAILURE(); } };

        denied = Deny({ { SYS_epoll_ctl, ENOSPC } });
        if (denied) {
            ASSERT_EQ(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &never),
                      0);
            for (int i = 0; i < 5; i++) {
                EXPECT_FALSE(aio_poll(ctx, true)); /* nothing else ends it */
            }
            EXPECT_EQ(ctx.Stats().sleeps, 5u) << "it spins";
            aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
        }
    }).join();
    if (!denied) {
        GTEST_SKIP() << "no seccomp filters here";
    }
}

/* ---- Files that were closed without being removed -------------------------------------------- */

/* What epoll goes on reporting although its number is closed and its handler gone. */
class Unreachable
{
public:
    explicit Unreachable(AioContext *ctx)
    {
        int fd = dup(s.a);

        EXPECT_EQ(aio_set_fd_handler(ctx, fd, Call::Run, nullptr, nullptr, nullptr, &never_), 0);
        aio_poll(ctx, false);
        close(fd);
        EXPECT_EQ(aio_set_fd_handler(ctx, fd, nullptr, nullptr, nullptr, nullptr, nullptr), 0);
        EXPECT_EQ(write(s.b, "x", 1), 1);
    }
    SocketPair s;

private:
    Call never_{ [] { ADD_FAILURE() << "called after its removal"; } };
};

TEST(EpollStale, FileThatCannotBeTakenOutIsLetGo)
{
    SKIP_WITHOUT_MONITOR("epoll");
    BusyContext ctx;
    Unreachable stale(ctx);

    for (int i = 0; i < 3; i++) {
        EXPECT_TRUE(aio_poll(ctx, false)) << "the other fd is served on";
    }
    ctx.Rest();
    aio_poll(ctx, false);
    ctx.ExpectSleep(10000);
    timer_mod(ctx.timer, Now() + 2 * SCALE_MS); /* the timerfd is in the new set too */
    while (!ctx.fired) {
        aio_poll(ctx, true);
    }
    EXPECT_LE(ctx.Stats().iterations, 100u) << "it spins";
}

TEST(EpollStale, WithoutAnFdToSpareItTriesAgain)
{
    SKIP_WITHOUT_MONITOR("epoll");
    BusyContext ctx;
    Unreachable stale(ctx);
    struct rlimit was, none;

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    none = was;
    none.rlim_cur = 0;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (int i = 0; i < 3; i++) {
        EXPECT_TRUE(aio_poll(ctx, false));
    }
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &was), 0);
    aio_poll(ctx, false);
    ctx.Rest();
    aio_poll(ctx, false);
    ctx.ExpectSleep(10000);
}

TEST(EpollStale, NumberOfOneIsWatchedForItsNewFile)
{
    SKIP_WITHOUT_MONITOR("epoll");
    ScopedContext ctx("epoll");
    SocketPair old, s;
    int fd = dup(old.a), calls = 0;
    Call never{ [] { ADD_FAILURE() << "called for the old file"; } };
    Call call{ [&] {
        char c;
        calls += read(fd, &c, 1) == 1;
    } };

    ASSERT_EQ(aio_set_fd_handler(ctx, fd, Call::Run, nullptr, nullptr, nullptr, &never), 0);
    aio_poll(ctx, false);
    ASSERT_EQ(dup2(s.a, fd), fd); /* closes it */
    ASSERT_EQ(aio_set_fd_handler(ctx, fd, nullptr, nullptr, nullptr, nullptr, nullptr), 0);
    ASSERT_EQ(aio_set_fd_handler(ctx, fd, Call::Run, nullptr, nullptr, nullptr, &call), 0);
    ASSERT_EQ(write(old.b, "x", 1), 1);
    aio_poll(ctx, true); /* ends for what it let go of */
    EXPECT_EQ(calls, 0);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!calls) {
        aio_poll(ctx, true);
    }
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_set_fd_handler(ctx, fd, nullptr, nullptr, nullptr, nullptr, nullptr);
    close(fd);
}
