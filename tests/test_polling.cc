/* SPDX-License-Identifier: MIT */
/* Adaptive busy polling: what it sees, how long it lasts, and when it stops. */
#include "polling_support.h"

extern "C" {
#include "aio/busy_poll_int.h"
}

#include <csignal>
#include <liburing.h>
#include <sched.h>

class Polling : public OnEachMonitor
{
};
ON_EACH_MONITOR(Polling);

/* ---- Every source of work -------------------------------------------------------------------- */

TEST_P(Polling, SeesAnIoPollAndCallsItsReadyHandler)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);
    std::atomic<bool> flag{ false };

    p.poll = [&] { return flag.load(); };
    p.ready = [&] { flag = false; };
    p.Set();
    ctx.SeesWhilePolling([&] { flag = true; }, &p.readies, true);
    EXPECT_EQ(p.reads, 0);
}

TEST_P(Polling, SeesAnFdWithoutIoPoll)
{
    PollingContext ctx(GetParam());
    SocketPair s;
    std::atomic<int> seen{ 0 };
    Call call{ [&] {
        char c;
        seen += read(s.a, &c, 1) == 1;
    } };

    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &call), 0);
    ctx.SeesWhilePolling([&] { EXPECT_EQ(write(s.b, "x", 1), 1); }, &seen, true);
    aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
}

TEST_P(Polling, SeesBottomHalves)
{
    PollingContext ctx(GetParam());
    std::atomic<int> seen{ 0 };
    Call call{ [&] { seen++; } };

    ctx.SeesWhilePolling([&] { aio_bh_schedule_oneshot(ctx, Call::Run, &call); }, &seen, false);
}

TEST_P(Polling, SeesAnIdleBottomHalf)
{
    PollingContext ctx(GetParam());
    std::atomic<int> seen{ 0 };
    Call call{ [&] { seen++; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);

    ctx.SeesWhilePolling([&] { qemu_bh_schedule_idle(bh); }, &seen, true);
    qemu_bh_delete(bh);
}

TEST_P(Polling, SeesAnEarlierTimerArmedElsewhere)
{
    PollingContext ctx(GetParam());
    std::atomic<int> seen{ 0 };
    Call call{ [&] { seen++; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);
    QEMUTimer *far = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    timer_mod(far, Now() + kHour);
    ctx.SeesWhilePolling([&] { timer_mod(ts, Now() + SCALE_MS); }, &seen, false);
    timer_free(ts);
    timer_free(far);
}

TEST_P(Polling, SeesAHandlerSetElsewhere)
{
    PollingContext ctx(GetParam());
    SocketPair s;
    std::atomic<int> seen{ 0 };
    Call call{ [&] {
        seen++;
        aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
    } };

    ctx.SeesWhilePolling(
        [&] { aio_set_fd_handler(ctx, s.a, nullptr, Call::Run, nullptr, nullptr, &call); }, &seen,
        false);
}

TEST_P(Polling, SeesTheNotifyOfASignalHandler)
{
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "ThreadSanitizer now and then holds a signal back until the next comes";
#endif
    PollingContext ctx(GetParam());
    static AioContext *target;
    static std::atomic<int> caught;
    struct sigaction sa = {}, old;
    pthread_t self = pthread_self();

    target = ctx;
    caught = 0;
    sa.sa_handler = [](int) {
        caught++;
        aio_notify(target);
    };
    sigaction(SIGUSR1, &sa, &old);
    ctx.SeesWhilePolling([&] { pthread_kill(self, SIGUSR1); }, &caught, false);
    sigaction(SIGUSR1, &old, nullptr);
}

/* With deferred task work a completion is not in the ring before its owner enters the kernel. */
TEST(PollingRing, SeesTheCompletionOfAnOperation)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    PollingContext ctx("io_uring");
    SocketPair s;
    struct Op {
        CqeHandler handler; /* first */
        char byte;
        int fd;
        std::atomic<int> done;
    } op = {};

    op.fd = s.a;
    op.handler.cb = [](CqeHandler *h) { reinterpret_cast<Op *>(h)->done++; };
    Call submit{ [&] {
        op.handler.reserved = 0;
        EXPECT_EQ(aio_add_sqe(
                      [](struct io_uring_sqe *sqe, void *opaque) {
                          Op *o = static_cast<Op *>(opaque);
                          io_uring_prep_recv(sqe, o->fd, &o->byte, 1, 0);
                      },
                      &op, &op.handler),
                  0);
    } };
    int submitted = 0;

    ctx.SeesWhilePolling(
        [&] {
            aio_bh_schedule_oneshot(ctx, Call::Run, &submit);
            submitted++;
            usleep(1000); /* as a rule it is submitted and the loop polls again */
            EXPECT_EQ(write(s.b, "x", 1), 1);
        },
        &op.done, true);
    EXPECT_EQ(op.done, submitted);
}

TEST_P(Polling, EndsAtATimersDeadlineAndNotBefore)
{
    for (QEMUClockType type : { QEMU_CLOCK_REALTIME, QEMU_CLOCK_HOST, QEMU_CLOCK_VIRTUAL_RT }) {
        PollingContext ctx(GetParam());
        int64_t deadline = 0;
        int fired = 0;
        Call call{ [&] {
            EXPECT_GE(qemu_clock_get_ns(type), deadline);
            fired++;
        } };
        QEMUTimer *ts = aio_timer_new(ctx, type, SCALE_NS, Call::Run, &call);

        cpu_enable_ticks();
        for (int i = 0; i < 200 || ctx.Stats().polls_found < 20; i++) {
            /* with precise mode, and without */
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

/* ---- How long -------------------------------------------------------------------------------- */

TEST(PollAdapt, FollowsItsRule)
{
    const int64_t start = POLL_START_NS, max = 100 * start;

    EXPECT_EQ(poll_adapt(0, 10, max, 0, 0), start) << "grows from nothing";
    EXPECT_EQ(poll_adapt(0, 10, 1000, 0, 0), 1000) << "not past the ceiling";
    EXPECT_EQ(poll_adapt(start, start, max, 0, 0), start) << "was enough";
    EXPECT_EQ(poll_adapt(start, start + 1, max, 0, 0), 2 * start);
    EXPECT_EQ(poll_adapt(start, max, max, 0, 0), 2 * start);
    EXPECT_EQ(poll_adapt(start, max, max, 7, 0), 7 * start);
    EXPECT_EQ(poll_adapt(start, max, max, 1, 0), start);
    EXPECT_EQ(poll_adapt(99 * start, max, max, 2, 0), max);
    EXPECT_EQ(poll_adapt(start, INT64_MAX, INT64_MAX, INT64_MAX, 0), INT64_MAX) << "no overflow";
    EXPECT_EQ(poll_adapt(max, max + 1, max, 2, 0), 0) << "shrinks all at once";
    EXPECT_EQ(poll_adapt(max, max + 1, max, 2, 4), max / 4);
    EXPECT_EQ(poll_adapt(max, max + 1, max, 2, 1), max);
    EXPECT_EQ(poll_adapt(start, max + 1, max, 2, 2), 0) << "too short to be worth it";
    EXPECT_EQ(poll_adapt(0, max + 1, max, 2, 2), 0);
}

TEST_P(Polling, GrowsWhenItWouldHaveHelpedAndShrinksWhenInVain)
{
    ScopedContext ctx(GetParam());
    Call nothing{ [] {} };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &nothing);
    auto sleep_for = [&](int64_t ns) {
        uint64_t timers = ctx.Stats().timers;

        timer_mod(ts, Now() + ns);
        while (ctx.Stats().timers == timers) {
            aio_poll(ctx, true);
        }
    };

    for (int round = 0; round < 3; round++) {
        uint64_t polls = ctx.Stats().polls;
        ASSERT_EQ(aio_context_set_poll_params(ctx, kHour, 0, 0), 0);
        while (ctx.Stats().polls == polls) {
            sleep_for(200 * SCALE_US);
        }
        uint64_t ns = ctx.Stats().poll_ns;
        ASSERT_EQ(aio_context_set_poll_params(ctx, 1, 0, 0), 0); /* every wait is longer */
        EXPECT_GT(ns, 0u);
        for (uint64_t sleeps = ctx.Stats().sleeps; ctx.Stats().sleeps < sleeps + 2;) {
            sleep_for(200 * SCALE_US);
        }
        polls = ctx.Stats().polls;
        for (int i = 0; i < 5; i++) {
            sleep_for(200 * SCALE_US);
        }
        EXPECT_EQ(ctx.Stats().polls, polls);
    }
    timer_free(ts);
}

/* Within the ceiling, a wait is polled to its end; past it, it is slept. */
TEST_P(Polling, SleepsPastTheCeiling)
{
    ScopedContext ctx(GetParam());
    bool fired, both = false;
    Call call{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    while (!both) {
        /* It grows below a high ceiling, and stays as it is above a low one. */
        aio_context_set_poll_params(ctx, kHour, 2, 1);
        for (uint64_t polls = ctx.Stats().polls; ctx.Stats().polls < polls + 2;) {
            timer_mod(ts, Now() + 100 * SCALE_US);
            aio_poll(ctx, true);
        }
        aio_context_set_poll_params(ctx, 5 * SCALE_US, 2, 1);
        aio_poll(ctx, false);
        fired = false;
        timer_mod(ts, Now() + 5 * SCALE_MS);
        aio_poll(ctx, true); /* ends for the notify of the change */
        AioContextStats before = ctx.Stats();
        while (!fired) {
            aio_poll(ctx, true);
        }
        AioContextStats after = ctx.Stats();
        both = after.polls == before.polls + 1 && after.sleeps == before.sleeps + 1 &&
               after.polls_found == before.polls_found &&
               after.poll_ns - before.poll_ns < 4u * SCALE_MS;
    }
    timer_free(ts);
}

TEST_P(Polling, IsOffAtFirst)
{
    ScopedContext ctx(GetParam());
    Polled p(ctx);

    p.poll = [] { return true; };
    p.Set();
    event_notifier_set(&p.e);
    while (!p.reads) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(p.polls, 0);
    EXPECT_EQ(p.readies, 0);
    EXPECT_EQ(ctx.Stats().polls, 0u);
}

TEST_P(Polling, BareNotifyIsNoProgressAndAFindIs)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);
    bool found = false;

    p.poll = [&] { return found; };
    p.ready = [&] { found = false; };
    p.Set();
    ctx.Warm();
    aio_notify(ctx);
    EXPECT_FALSE(aio_poll(ctx, true));
    for (int before = p.readies; p.readies == before;) {
        ctx.Warm();
        found = true;
        aio_notify(ctx); /* where it does not poll at present */
        bool progress = aio_poll(ctx, true);
        EXPECT_EQ(progress, p.readies > before);
    }
}

/* ---- Threads --------------------------------------------------------------------------------- */

TEST_P(Polling, NothingIsLostWhileParametersChange)
{
    ScopedContext ctx(GetParam());
    Polled p(ctx);
    const int64_t times[] = { 0, 1, 4000, 50000, INT64_MAX };
    const int rounds = kSanitized ? 3000 : 20000;
    std::atomic<int> ping{ 0 }, pong{ 0 };
    std::atomic<bool> over{ false }, set{ false };
    /* The notifier may be seen before `set`, or after it. */
    auto serve = [&] {
        if (event_notifier_test_and_clear(&p.e)) {
            set = false;
        }
    };

    p.poll = [&] { return set.load(); };
    p.ready = p.read = serve;
    p.Set();
    std::thread changer([&] {
        for (unsigned i = 0; !over; i++) {
            EXPECT_EQ(aio_context_set_poll_params(ctx, times[i % 5], i % 4, i % 3), 0);
            usleep(i % 7 * 10);
        }
    });
    std::thread other([&] {
        int64_t end = Now() + 500 * SCALE_MS;

        for (int r = 1; r <= rounds && Now() < end; r++) {
            if (r % 3) {
                set = true;
                event_notifier_set(&p.e);
                while (set) {
                    std::this_thread::yield();
                }
            } else {
                ping = r;
                aio_notify(ctx);
                while (pong != r) {
                    std::this_thread::yield();
                }
            }
        }
        over = true;
        aio_notify(ctx);
    });
    while (!over) {
        aio_poll(ctx, true);
        pong = ping.load();
    }
    changer.join();
    other.join();
    EXPECT_GT(p.readies + p.reads, 0);
}

TEST_P(Polling, StopsWhereAnotherThreadWantsTheProcessor)
{
    cpu_set_t old, one;
    ASSERT_EQ(pthread_getaffinity_np(pthread_self(), sizeof(old), &old), 0);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &old)) {
        cpu++;
    }
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    std::atomic<bool> over{ false };
    PollingContext ctx(GetParam());
    std::thread rival([&] {
        ASSERT_EQ(pthread_setaffinity_np(pthread_self(), sizeof(one), &one), 0);
        while (!over) {
        }
    });
    /* A poll lasts for an hour, unless it stops. */
    std::thread judge([&] {
        uint64_t polls = ctx.Stats().polls, sleeps;
        EXPECT_TRUE(WaitUntil([&] {
            aio_notify(ctx);
            usleep(1000);
            return ctx.Stats().polls > polls;
        }));
        sleeps = ctx.Stats().sleeps;
        EXPECT_TRUE(WaitUntil([&] {
            aio_notify(ctx); /* a sleep is counted when it ends */
            usleep(20000);
            return ctx.Stats().sleeps >= sleeps + 5; /* two make it poll */
        }));
        over = true;
        aio_notify(ctx);
    });
    ASSERT_EQ(pthread_setaffinity_np(pthread_self(), sizeof(one), &one), 0);
    while (!over) {
        aio_poll(ctx, true);
    }
    pthread_setaffinity_np(pthread_self(), sizeof(old), &old);
    rival.join();
    judge.join();
}

/* A long turn without an involuntary switch is none: a slow io_poll, a host's pause. */
TEST(PollContention, PausesGrowWhileItComesBackAndBeginAnew)
{
    struct poll_state p = {};
    int64_t now = kHour, pause = POLL_BACKOFF_MIN_NS;

    p.ns = 1000;
    p.switches = 5;
    EXPECT_FALSE(poll_note_switches(&p, now, 5));
    EXPECT_EQ(p.ns, 1000);
    for (uint64_t i = 6; i < 20; i++) {
        EXPECT_TRUE(poll_note_switches(&p, now, i));
        EXPECT_EQ(p.ns, 0);
        EXPECT_EQ(p.off_until_ns, now + pause);
        now = p.off_until_ns + pause - 1;
        pause = std::min(2 * pause, POLL_BACKOFF_MAX_NS);
    }
    now = p.off_until_ns + p.backoff_ns;
    EXPECT_TRUE(poll_note_switches(&p, now, 20));
    EXPECT_EQ(p.off_until_ns, now + POLL_BACKOFF_MIN_NS);
}

/* ---- Settings -------------------------------------------------------------------------------- */

TEST_P(Polling, OptionsAtCreationReachIothreads)
{
    IOThreadOptions opts = {};

    opts.context.monitor = GetParam();
    opts.context.poll_max_ns = kHour;
    IOThread *io = iothread_new("polling", &opts);
    ASSERT_NE(io, nullptr);
    EXPECT_TRUE(WaitUntil([&] {
        AioContextStats s;

        aio_notify(iothread_get_aio_context(io));
        aio_context_get_stats(iothread_get_aio_context(io), &s);
        return s.polls > 0;
    }));
    EXPECT_EQ(iothread_destroy(io), 0);
}

TEST_P(Polling, NegativeParametersAreRefused)
{
    ScopedContext ctx(GetParam());

    EXPECT_EQ(aio_context_set_poll_params(ctx, -1, 0, 0), -EINVAL);
    EXPECT_EQ(aio_context_set_poll_params(ctx, 0, -1, 0), -EINVAL);
    EXPECT_EQ(aio_context_set_poll_params(ctx, 0, 0, -1), -EINVAL);
    for (int64_t AioContextOptions::*field :
         { &AioContextOptions::poll_max_ns, &AioContextOptions::poll_grow,
           &AioContextOptions::poll_shrink }) {
        AioContextOptions opts = {};

        opts.monitor = GetParam();
        opts.*field = -1;
        testing::internal::CaptureStderr();
        EXPECT_EQ(aio_context_new(&opts), nullptr);
        EXPECT_EQ(errno, EINVAL);
        EXPECT_NE(testing::internal::GetCapturedStderr().find("AioContextOptions.poll_"),
                  std::string::npos);
    }
}
