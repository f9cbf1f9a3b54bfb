/* SPDX-License-Identifier: MIT */
/* Precise mode, timer slack, and deadlines as points in time. */
#include "loop_support.h"

#include <csignal>
#include <cstddef>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <thread>

static const int64_t kHour = INT64_C(3600000000000);

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void Nothing(void *)
{
}

/*
 * Another thread and this one pass a number to and fro, each time with a notify, for half a
 * second at most: where the two share a processor each round may cost a time slice.  @prepare is
 * called before each round.  Returns the number of rounds.
 */
static int PingPong(AioContext *ctx, int rounds, const std::function<void(int)> &prepare)
{
    std::atomic<int> ping{ 0 }, pong{ 0 };
    std::atomic<bool> over{ false };
    int64_t end = Now() + 500 * SCALE_MS;
    int i;
    std::thread other([&] {
        for (int r = 1; !over; r++) {
            ping.store(r, std::memory_order_relaxed);
            aio_notify(ctx);
            while (pong.load(std::memory_order_relaxed) < r && !over) {
                std::this_thread::yield();
            }
        }
    });

    for (i = 1; i <= rounds && Now() < end; i++) {
        prepare(i);
        while (ping.load(std::memory_order_relaxed) < i) {
            aio_poll(ctx, true);
        }
        pong.store(i, std::memory_order_relaxed);
    }
    over = true;
    other.join();
    return i;
}

class Precise : public OnEachMonitor
{
};
ON_EACH_MONITOR(Precise);

/* A context that always polls: a timer is armed, and the lead is longer than any wait. */
class PollingContext : public ScopedContext
{
public:
    explicit PollingContext(const char *monitor)
        : ScopedContext(monitor), never_{ [] { ADD_FAILURE() << "fired early"; } }
    {
        aio_timer_init(*this, &ts_, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &never_);
        timer_mod(&ts_, Now() + kHour);
        aio_context_set_precise(*this, INT64_MAX);
    }
    ~PollingContext()
    {
        EXPECT_TRUE(may_sleep || Stats().sleeps == 0);
        timer_deinit(&ts_);
    }
    bool may_sleep = false;

    /* For other threads: waits until it polls, that is, has done so for a while. */
    void WaitPolling() const
    {
        uint64_t before = Stats().precise_polls;

        EXPECT_TRUE(WaitUntil([&] { return Stats().precise_polls > before; }));
    }

private:
    Call never_;
    QEMUTimer ts_ = {};
};

TEST_P(Precise, IsOffAtFirst)
{
    ScopedContext ctx(GetParam());
    bool fired = false;
    Call call{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    timer_mod(ts, Now() + 2 * SCALE_MS);
    while (!fired) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(ctx.Stats().precise_polls, 0u);
    timer_free(ts);
}

/* A change of an fd's events is a request to io_uring, whose end ends the wait early. */
TEST_P(Precise, DoesNotPollFarBeforeTheLead)
{
    ScopedContext ctx(GetParam());
    bool fired = false;
    Call call{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);
    int fds[2]; /* the end to read from is neither readable nor writable */

    ASSERT_EQ(pipe(fds), 0);
    aio_context_set_precise(ctx, 10 * SCALE_US);
    aio_set_fd_handler(ctx, fds[0], Nothing, NULL, NULL, NULL, NULL);
    aio_poll(ctx, false);
    timer_mod(ts, Now() + 200 * SCALE_MS);
    for (int i = 0; !fired; i++) {
        if (i < 4) {
            aio_set_fd_handler(ctx, fds[0], i % 2 ? Nothing : NULL, i % 2 ? NULL : Nothing, NULL,
                               NULL, NULL);
        }
        aio_poll(ctx, true);
    }
    EXPECT_LE(ctx.Stats().precise_polls, 1u);
    aio_set_fd_handler(ctx, fds[0], NULL, NULL, NULL, NULL, NULL);
    timer_free(ts);
    close(fds[0]);
    close(fds[1]);
}

TEST_P(Precise, SleepsUntilTheLeadAndThenPolls)
{
    ScopedContext ctx(GetParam());
    bool fired = false;
    Call call{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    /* Where this thread does not get to run in time, there is no sleep, or nothing left to poll. */
    for (int64_t lead = 2 * SCALE_MS;
         ctx.Stats().precise_polls == 0 || ctx.Stats().wakeups_timeout == 0; lead *= 2) {
        int64_t deadline = Now() + 4 * lead;
        uint64_t before = ctx.Stats().iterations;

        aio_context_set_precise(ctx, lead);
        aio_poll(ctx, false);
        fired = false;
        timer_mod(ts, deadline);
        while (!fired) {
            aio_poll(ctx, true);
        }
        EXPECT_GE(Now(), deadline);
        EXPECT_LE(ctx.Stats().iterations - before, 10 + (uint64_t)(lead / (5 * SCALE_MS)));
    }
    EXPECT_GT(ctx.Stats().precise_poll_ns, 0u);
    timer_free(ts);
}

TEST_P(Precise, NeverFiresEarly)
{
    for (QEMUClockType type : { QEMU_CLOCK_REALTIME, QEMU_CLOCK_HOST, QEMU_CLOCK_VIRTUAL_RT }) {
        ScopedContext ctx(GetParam());
        int64_t deadline = 0;
        int fired = 0;
        Call call{ [&] {
            EXPECT_GE(qemu_clock_get_ns(type), deadline);
            fired++;
        } };
        QEMUTimer *ts = aio_timer_new(ctx, type, SCALE_NS, Call::Run, &call);

        cpu_enable_ticks();
        for (int i = 0; i < 300; i++) {
            aio_context_set_precise(ctx, i % 3 * 30 * SCALE_US);
            deadline = qemu_clock_get_ns(type) + i * 997 % 100 * SCALE_US;
            timer_mod(ts, deadline);
            while (fired <= i) {
                aio_poll(ctx, true);
            }
        }
        cpu_disable_ticks();
        timer_free(ts);
    }
}

TEST_P(Precise, PollingNeverSleepsAndANotifyCostsNoSystemCall)
{
    PollingContext ctx(GetParam());
    std::atomic<bool> stop{ false };
    std::thread other([&] {
        ctx.WaitPolling();
        for (int i = 0; i < 20000; i++) {
            aio_notify(ctx);
        }
        stop = true;
        aio_notify(ctx);
    });

    while (!stop) {
        EXPECT_FALSE(aio_poll(ctx, true));
    }
    other.join();
    EXPECT_EQ(ctx.Stats().notifies_sent, 0u);
}

TEST_P(Precise, NotifyEndsThePolling)
{
    PollingContext ctx(GetParam());
    int rounds = PingPong(ctx, kSanitized ? 20000 : 200000, [](int) {});

    /* Each poll ended for a notify or after a slice of 10 ms, not because it never polled. */
    EXPECT_LE(ctx.Stats().iterations, 2u * (unsigned)rounds + 2000);
    EXPECT_EQ(ctx.Stats().notifies_sent, 0u);
}

/* Sleeps and polls follow one another closely, and notifies come in all moments between. */
TEST_P(Precise, NoWakeupIsLostBetweenSleepAndPolling)
{
    ScopedContext ctx(GetParam());
    QEMUTimer *ts, *far;
    unsigned n = 0;
    Call rearm{ [&] { timer_mod(ts, Now() + (n++ * 7919) % 40 * SCALE_US); } };
    Call never{ [] { ADD_FAILURE() << "fired early"; } };

    ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &rearm);
    far = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &never);
    aio_context_set_precise(ctx, 20 * SCALE_US);
    PingPong(ctx, kSanitized ? 3000 : 20000, [&](int i) {
        /* In every second round nothing but the notify ends the wait. */
        if (i % 2) {
            timer_mod(ts, Now());
            timer_del(far);
        } else {
            timer_del(ts);
            timer_mod(far, i % 4 ? Now() + kHour : INT64_MAX / 2);
        }
    });
    timer_free(ts);
    timer_free(far);
}

TEST_P(Precise, BottomHalfFromAnotherThreadRunsWhilePolling)
{
    PollingContext ctx(GetParam());
    int runs = 0;
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);
    std::thread other([&] {
        ctx.WaitPolling();
        qemu_bh_schedule(bh);
        aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    });

    while (runs < 2) {
        aio_poll(ctx, true);
    }
    other.join();
    qemu_bh_delete(bh);
}

TEST_P(Precise, IdleBottomHalfFromAnotherThreadRunsWhilePolling)
{
    PollingContext ctx(GetParam());
    ctx.may_sleep = true; /* the bottom half's 10 ms are no timer's deadline */
    bool ran = false;
    Call call{ [&] { ran = true; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);
    std::thread other([&] {
        ctx.WaitPolling();
        qemu_bh_schedule_idle(bh);
    });

    while (!ran) {
        aio_poll(ctx, true);
    }
    other.join();
    qemu_bh_delete(bh);
}

TEST_P(Precise, FdEndsThePolling)
{
    PollingContext ctx(GetParam());
    SocketPair s;
    std::atomic<int> seen{ 0 };
    std::atomic<bool> at_once{ false };
    Call call{ [&] {
        char c;
        seen += read(s.a, &c, 1) == 1;
    } };

    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &call), 0);
    std::thread other([&] {
        for (int i = 1; !at_once; i++) {
            ctx.WaitPolling();
            EXPECT_EQ(write(s.b, "x", 1), 1);
            WaitUntil([&] { return seen >= i; });
        }
    });
    /* A poll that no event ends lasts for 10 ms; one that an event ends may, on a busy machine. */
    while (!at_once) {
        AioContextStats before = ctx.Stats();
        int seen_before = seen;

        aio_poll(ctx, true);
        AioContextStats after = ctx.Stats();
        at_once = seen > seen_before && after.precise_polls > before.precise_polls &&
                  after.precise_poll_ns - before.precise_poll_ns < 9 * SCALE_MS;
    }
    /* The last one waits for a poll that goes its full length. */
    std::atomic<bool> joined{ false };
    std::thread join([&] {
        other.join();
        joined = true;
        aio_notify(ctx);
    });
    while (!joined) {
        aio_poll(ctx, true);
    }
    join.join();
    aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
}

TEST_P(Precise, EarlierTimerArmedElsewhereFiresWhilePolling)
{
    PollingContext ctx(GetParam());
    int fired = 0;
    Call call{ [&] { fired++; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);
    std::thread other([&] {
        ctx.WaitPolling();
        timer_mod(ts, Now() + SCALE_MS);
    });

    while (!fired) {
        aio_poll(ctx, true);
    }
    other.join();
    timer_free(ts);
}

TEST_P(Precise, SignalHandlersNotifyEndsThePolling)
{
    PollingContext ctx(GetParam());
    static AioContext *target;
    static std::atomic<bool> caught;
    struct sigaction sa = {}, old;
    pthread_t self = pthread_self();

    target = ctx;
    caught = false;
    sa.sa_handler = [](int) {
        caught = true;
        aio_notify(target);
    };
    sigaction(SIGUSR1, &sa, &old);
    std::thread other([&] {
        ctx.WaitPolling();
        pthread_kill(self, SIGUSR1);
    });
    while (!caught) {
        aio_poll(ctx, true);
    }
    other.join();
    sigaction(SIGUSR1, &old, nullptr);
    EXPECT_EQ(ctx.Stats().notifies_sent, 0u);
}

/* With deferred task work a completion is not in the ring before its owner enters the kernel. */
TEST(PreciseRing, OperationsCompletionIsSeenWhilePolling)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    PollingContext ctx("io_uring");
    SocketPair s;
    struct Op {
        CqeHandler handler; /* first */
        char byte;
        int fd;
        bool done;
    } op = {};

    op.fd = s.a;
    op.handler.cb = [](CqeHandler *h) { reinterpret_cast<Op *>(h)->done = true; };
    ASSERT_EQ(aio_add_sqe(
                  [](struct io_uring_sqe *sqe, void *opaque) {
                      Op *o = static_cast<Op *>(opaque);
                      io_uring_prep_recv(sqe, o->fd, &o->byte, 1, 0);
                  },
                  &op, &op.handler),
              0);
    std::thread other([&] {
        ctx.WaitPolling();
        EXPECT_EQ(write(s.b, "x", 1), 1);
    });
    while (!op.done) {
        aio_poll(ctx, true);
    }
    other.join();
    EXPECT_EQ(op.handler.res, 1);
}

TEST_P(Precise, ChangeTakesEffectAtOnce)
{
    ScopedIOThread io(GetParam());
    Call never{ [] {} };
    QEMUTimer *ts = aio_timer_new(io.ctx(), QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &never);
    auto stats = [&] {
        AioContextStats s;

        aio_context_get_stats(io.ctx(), &s);
        return s;
    };

    timer_mod(ts, Now() + kHour);
    io.Run([] {}); /* it sleeps, or will */
    aio_context_set_precise(io.ctx(), INT64_MAX);
    ASSERT_TRUE(WaitUntil([&] { return stats().precise_polls >= 2; }));
    aio_context_set_precise(io.ctx(), 0);
    uint64_t polls = 0;
    ASSERT_TRUE(WaitUntil([&] {
        uint64_t before = polls;

        usleep(30000); /* three slices of polling */
        polls = stats().precise_polls;
        return polls == before;
    }));
    timer_free(ts);
}

TEST_P(Precise, OptionAtCreation)
{
    IOThreadOptions opts = {};

    opts.context.monitor = GetParam();
    opts.context.precise_ns = INT64_MAX;
    IOThread *io = iothread_new("precise", &opts);
    ASSERT_NE(io, nullptr);
    AioContext *ctx = iothread_get_aio_context(io);
    Call never{ [] {} };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &never);

    timer_mod(ts, Now() + kHour);
    EXPECT_TRUE(WaitUntil([&] {
        AioContextStats s;

        aio_context_get_stats(ctx, &s);
        return s.precise_polls > 0;
    }));
    timer_free(ts);
    EXPECT_EQ(iothread_destroy(io), 0);
}

TEST_P(Precise, NegativeOptionIsRefused)
{
    AioContextOptions opts = {};

    opts.monitor = GetParam();
    opts.precise_ns = -1;
    testing::internal::CaptureStderr();
    EXPECT_EQ(aio_context_new(&opts), nullptr);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_NE(testing::internal::GetCapturedStderr().find("precise_ns"), std::string::npos);
}

TEST(PreciseDeath, NegativeLeadAborts)
{
    ScopedContext ctx;

    EXPECT_DEATH(aio_context_set_precise(ctx, -1), "aio_context_set_precise: lead_ns is -1");
}

/* ---- Deadlines as points in time ------------------------------------------------------------- */

class Deadline : public OnEachMonitor
{
};
ON_EACH_MONITOR(Deadline);

/* The deadline of a replaced source says nothing about CLOCK_MONOTONIC, which may be past it or far
 * behind it. */
TEST_P(Deadline, OfAReplacedSourceComesWhenTheSourceSaysSo)
{
    for (int64_t start : { (int64_t)SCALE_MS, INT64_MAX / 2 }) {
        for (int64_t lead : { INT64_C(0), INT64_MAX }) {
            FakeClock clock(QEMU_CLOCK_REALTIME, start);
            ScopedContext ctx(GetParam());
            bool fired = false;
            Call call{ [&] { fired = true; } };
            QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

            aio_context_set_precise(ctx, lead);
            timer_mod(ts, clock.Now() + (1000 * SCALE_MS));
            aio_poll(ctx, true); /* ends for set_precise() */
            EXPECT_FALSE(fired);
            std::thread other([&] {
                usleep(5000);
                clock.Advance((1000 * SCALE_MS));
                qemu_clock_notify(QEMU_CLOCK_REALTIME);
            });
            while (!fired) {
                aio_poll(ctx, true);
            }
            other.join();
            EXPECT_LE(ctx.Stats().iterations, 1000u) << "it spins";
            timer_free(ts);
        }
    }
}

TEST_P(Deadline, FarAwayIsAWaitWithoutOverflow)
{
    ScopedContext ctx(GetParam());
    Call never{ [] { ADD_FAILURE() << "fired"; } };
    std::atomic<bool> told{ false };
    QEMUTimer *ts[4];
    int i = 0;

    cpu_enable_ticks();
    for (QEMUClockType type :
         { QEMU_CLOCK_REALTIME, QEMU_CLOCK_HOST, QEMU_CLOCK_VIRTUAL, QEMU_CLOCK_VIRTUAL_RT }) {
        ts[i] = aio_timer_new(ctx, type, SCALE_NS, Call::Run, &never);
        timer_mod(ts[i++], INT64_MAX - 1);
    }
    std::thread other([&] {
        WaitUntil([&] { return ctx.Stats().iterations > 0; });
        usleep(5000);
        told = true;
        aio_notify(ctx);
    });
    while (!told) {
        EXPECT_FALSE(aio_poll(ctx, true));
        EXPECT_LE(ctx.Stats().iterations, 1000u) << "it spins";
    }
    other.join();
    cpu_disable_ticks();
    while (i > 0) {
        timer_free(ts[--i]);
    }
}

/* Refuses io_uring_enter() with IORING_ENTER_ABS_TIMER on the calling thread, as an older kernel
 * does.  Returns false where filters are not to be had. */
static bool ForbidAbsoluteTimeouts()
{
    const unsigned abs_timer = 1U << 5, flags = offsetof(struct seccomp_data, args[3]);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_enter, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, flags), /* little-endian: the low half */
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, abs_timer, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {
        .len = sizeof(code) / sizeof(code[0]),
        .filter = code,
    };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

TEST_P(Deadline, KernelWithoutAbsoluteTimeoutsServesToo)
{
    bool skipped = false;
    std::thread([&] {
        if (!ForbidAbsoluteTimeouts()) {
            skipped = true;
            return;
        }
        ScopedContext ctx(GetParam());
        int64_t deadline = 0;
        int fired = 0;
        Call call{ [&] {
            EXPECT_GE(Now(), deadline);
            fired++;
        } };
        QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

        for (int i = 0; i < 50; i++) {
            aio_context_set_precise(ctx, i % 2 * 50 * SCALE_US);
            deadline = Now() + i * 20 * SCALE_US;
            timer_mod(ts, deadline);
            while (fired <= i) {
                aio_poll(ctx, true);
            }
        }
        EXPECT_LE(ctx.Stats().iterations, 1000u) << "it spins";
        timer_free(ts);
    }).join();
    if (skipped) {
        GTEST_SKIP() << "no seccomp filters here";
    }
}

TEST_P(Deadline, IothreadsHaveNoTimerSlackAndOtherThreadsKeepTheirs)
{
    std::thread([&] { /* a thread of its own, as the slack is a thread's */
                      ASSERT_EQ(prctl(PR_SET_TIMERSLACK, 12345UL), 0);
                      ScopedIOThread io(GetParam());
                      ScopedContext ctx(GetParam());
                      int slack = 0;

                      io.Run([&] { slack = prctl(PR_GET_TIMERSLACK); });
                      EXPECT_EQ(slack, 1);
                      aio_context_set_precise(ctx, SCALE_MS);
                      aio_poll(ctx, true);
                      EXPECT_EQ(prctl(PR_GET_TIMERSLACK), 12345);
    })
        .join();
}
