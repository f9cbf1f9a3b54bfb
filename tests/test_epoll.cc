/* SPDX-License-Identifier: MIT */
/* The epoll monitor's own: deadlines by timerfd and epoll_pwait2(), files that it does not take,
 * and files it cannot let go. */
#include "loop_support.h"
#include "seccomp_support.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <thread>
#include <vector>

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

/* ---- Handlers that the set refuses ----------------------------------------------------------- */

/* Ends waits that nothing else has ended after ten seconds, so that a test fails in time. */
class WaitLimit
{
public:
    explicit WaitLimit(AioContext *ctx)
    {
        ts_ = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &hit_);
        timer_mod(ts_, Now() + INT64_C(10000000000));
    }
    ~WaitLimit()
    {
        timer_free(ts_);
    }
    bool hit = false;

private:
    Call hit_{ [this] {
        hit = true;
        timer_mod(ts_, Now() + 10 * SCALE_MS);
    } };
    QEMUTimer *ts_;
};

static void ServeRefused(AioContext *ctx)
{
    WaitLimit limit(ctx);
    SocketPair s;
    int got = 0, wrote = 0;
    Call receive{ [&] {
        char c;
        EXPECT_EQ(read(s.a, &c, 1), 1) << "called for nothing";
        got++;
    } };
    Call send{ [&] { wrote++; } };
    AioContextStats stats;

    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &receive), 0);
    for (int i = 0; i < 5; i++) {
        EXPECT_FALSE(aio_poll(ctx, true)); /* nothing else ends it */
    }
    aio_context_get_stats(ctx, &stats);
    EXPECT_EQ(stats.sleeps, 5u) << "it spins";

    std::thread other([&] {
        usleep(2000);
        EXPECT_EQ(write(s.b, "xy", 2), 2);
    });
    while (got < 2 && !limit.hit) {
        aio_poll(ctx, true);
    }
    other.join();
    EXPECT_EQ(got, 2);
    EXPECT_FALSE(aio_poll(ctx, false)) << "ready without an event";

    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, nullptr, Call::Run, nullptr, nullptr, &send), 0);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_EQ(wrote, 2);
    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr), 0);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(wrote, 2);
}

class EpollRefuses : public testing::TestWithParam<int>
{
};
INSTANTIATE_TEST_SUITE_P(Error, EpollRefuses, testing::Values(ENOMEM, ENOSPC, ELOOP, EINVAL),
                         [](const testing::TestParamInfo<int> &info) {
                             return "errno" + std::to_string(info.param);
                         });

TEST_P(EpollRefuses, HandlerIsServedAllTheSame)
{
    SKIP_WITHOUT_MONITOR("epoll");
    bool denied = false;

    std::thread([&] {
        ScopedContext ctx("epoll");

        denied = Deny({ { SYS_epoll_ctl, GetParam() } });
        if (denied) {
            ServeRefused(ctx);
        }
    }).join();
    if (!denied) {
        GTEST_SKIP() << "no seccomp filters here";
    }
}

/* An eventfd below as many epoll sets as the kernel allows. */
class Nested
{
public:
    Nested()
    {
        int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

        while (fd >= 0 && fds_.size() < 100) {
            struct epoll_event ev = {};

            fds_.push_back(fd);
            fd = epoll_create1(EPOLL_CLOEXEC);
            ev.events = EPOLLIN;
            if (epoll_ctl(fd, EPOLL_CTL_ADD, Top(), &ev) < 0) {
                too_deep = errno == ELOOP;
                close(fd);
                fd = -1;
            }
        }
    }
    ~Nested()
    {
        for (int fd : fds_) {
            close(fd);
        }
    }
    int Top() const
    {
        return fds_.back();
    }
    int File() const
    {
        return fds_.front();
    }
    /* Takes the file and the undermost set away. */
    void Shorten()
    {
        EXPECT_EQ(epoll_ctl(fds_[2], EPOLL_CTL_DEL, fds_[1], nullptr), 0);
    }

    bool too_deep = false; /* for another set */

private:
    std::vector<int> fds_;
};

TEST(EpollNested, SetThatIsTooDeepIsServed)
{
    SKIP_WITHOUT_MONITOR("epoll");
    BusyContext ctx;
    WaitLimit limit(ctx);
    Nested nested;
    int calls = 0;
    uint64_t value = 0;
    Call take{ [&] {
        EXPECT_EQ(read(nested.File(), &value, sizeof(value)), 8) << "called for nothing";
        calls++;
    } };

    ctx.Rest();
    ASSERT_TRUE(nested.too_deep);
    ASSERT_EQ(aio_set_fd_handler(ctx, nested.Top(), Call::Run, nullptr, nullptr, nullptr, &take),
              0);
    for (uint64_t i = 1; i <= 3; i++) {
        EXPECT_FALSE(aio_poll(ctx, true)); /* nothing else ends it */
        ASSERT_EQ(write(nested.File(), &i, sizeof(i)), 8);
        EXPECT_TRUE(aio_poll(ctx, true));
        EXPECT_EQ(value, i);
    }
    EXPECT_EQ(calls, 3);
    nested.Shorten();
    aio_poll(ctx, false);
    ctx.ExpectSleep(30000); /* as one that epoll has taken */
    aio_set_fd_handler(ctx, nested.Top(), nullptr, nullptr, nullptr, nullptr, nullptr);
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
