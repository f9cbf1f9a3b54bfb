/* SPDX-License-Identifier: MIT */
/* Adaptive busy polling: handlers with an io_poll, who watches them, and what they may do. */
#include "polling_support.h"

class PolledHandler : public OnEachMonitor
{
};
ON_EACH_MONITOR(PolledHandler);

TEST_P(PolledHandler, IdleHandlerIsLeftToTheKernelUntilItIsActive)
{
    ScopedContext ctx(GetParam());
    Polled idle(ctx), active(ctx);
    Call nothing{ [] {} };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &nothing);
    auto poll_times = [&](uint64_t n) {
        for (uint64_t end = ctx.Stats().polls + n; ctx.Stats().polls < end;) {
            timer_mod(ts, Now() + 20 * SCALE_US);
            aio_poll(ctx, true);
        }
    };

    ASSERT_EQ(aio_context_set_poll_params(ctx, 200 * SCALE_US, 0, 1), 0);
    active.poll = [&] { return active.polls % 8 == 0; };
    idle.Set();
    active.Set();
    poll_times(10);
    EXPECT_GT(idle.polls, 0);
    for (int round = 0; round < 3; round++) {
        for (int before = -1; idle.polls != before;) {
            before = idle.polls;
            poll_times(20);
        }
        int polls = active.polls;
        poll_times(200);
        EXPECT_GT(active.polls, polls) << "it was active all along";
        int reads = idle.reads;
        polls = idle.polls;
        event_notifier_set(&idle.e);
        while (idle.reads == reads) {
            EXPECT_EQ(idle.polls, polls);
            poll_times(1);
        }
        poll_times(10);
        EXPECT_GT(idle.polls, polls) << "it is polled again";
    }
    timer_free(ts);
}

/* io_poll says no all the time, such as of a peer that has hung up; the kernel knows better, and a
 * poll of an hour must not keep it from saying so, twice. */
TEST_P(PolledHandler, EventsThatIoPollDoesNotSeeArriveDuringAPoll)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);

    p.Set();
    ctx.Warm();
    for (int i = 1; i <= 3; i++) {
        event_notifier_set(&p.e);
        while (p.reads < i) {
            aio_poll(ctx, true);
        }
    }
    EXPECT_EQ(p.readies, 0);
}

/* What io_poll says is answered, and then the kernel does not say it once more. */
TEST_P(PolledHandler, FdThatPollingServesHasNothingForItsReadHandler)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);
    const int rounds = kSanitized ? 2000 : 20000;
    std::atomic<int> sent{ 0 }, answered{ 0 };
    std::atomic<bool> over{ false };
    int spurious = 0;
    auto serve = [&] { answered.fetch_add(event_notifier_test_and_clear(&p.e)); };

    p.poll = [&] { return sent != answered; };
    p.ready = serve;
    p.read = [&] {
        int before = answered;

        serve();
        spurious += answered == before;
    };
    p.Set();
    std::thread other([&] {
        for (int i = 1; i <= rounds && !over; i++) {
            if (i % 8) { /* seen by io_poll or by the kernel first */
                event_notifier_set(&p.e);
                sent++;
            } else {
                sent++;
                event_notifier_set(&p.e);
            }
            while (answered < i && !over) {
                std::this_thread::yield();
            }
            if (i % 64 == 0) {
                aio_notify(ctx);
            }
        }
        over = true;
        aio_notify(ctx);
    });
    int64_t end = Now() + SCALE_MS * 500;
    while (!over) {
        aio_poll(ctx, true);
        if (Now() > end) {
            over = true; /* only ever set: the other thread sets it too */
        }
    }
    other.join();
    EXPECT_EQ(spurious, 0);
    EXPECT_GT(answered, 0);
}

/* The kernel watches the fd, and tells after it was served that there was something. */
TEST_P(PolledHandler, KernelsEventOfWhatWasServedMeanwhileCallsNobody)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);
    bool want = false;

    p.poll = [&] {
        bool found = want;

        want = false;
        return found && event_notifier_set(&p.e) == 0;
    };
    p.ready = p.read;
    p.Set();
    for (int i = 0; i < 20; i++) {
        ctx.Warm();
        aio_poll(ctx, false); /* watched from now on */
        want = true;
        while (want) {
            ctx.Warm();
        }
        while (aio_poll(ctx, false)) {
        }
    }
    EXPECT_EQ(p.readies, 20);
    EXPECT_EQ(p.reads, 0);
}

/* The peer is the io_poll itself, so that nothing but the loop decides. */
TEST(PolledHandlerRing, KernelDoesNotWatchWhatIsPolled)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    PollingContext ctx("io_uring");
    Polled p(ctx);

    p.poll = [&] { return event_notifier_set(&p.e) == 0; };
    p.ready = [&] { EXPECT_EQ(event_notifier_test_and_clear(&p.e), 1); };
    ctx.Warm();
    p.Set();
    for (int i = 0; i < 3; i++) {
        aio_poll(ctx, true);
    }
    AioContextStats before = ctx.Stats();
    while (ctx.Stats().polls_found < before.polls_found + 2000) {
        aio_poll(ctx, true);
        ctx.Stats().polls == before.polls ? ctx.Warm() : void();
    }
    AioContextStats after = ctx.Stats();
    EXPECT_LE(after.cqes - before.cqes, 2000 / 16 + 2 * (after.sleeps - before.sleeps));
}

/* A hang-up is nothing that io_poll sees; another handler keeps the loop from ever sleeping. */
TEST_P(PolledHandler, HangUpIsSeenThoughTheLoopNeverSleeps)
{
    PollingContext ctx(GetParam());
    Polled busy(ctx);
    SocketPair s;
    struct Peer {
        int fd, answered, hang_ups;
        bool full;
    } peer = { s.a, 0, 0, false };

    busy.poll = [] { return true; };
    ASSERT_EQ(aio_set_fd_handler(
                  ctx, s.a,
                  [](void *o) {
                      Peer *p = static_cast<Peer *>(o);
                      char c;
                      ssize_t n = read(p->fd, &c, 1);
                      p->answered += n == 1;
                      p->hang_ups += n == 0;
                  },
                  nullptr,
                  [](void *o) {
                      bool full = static_cast<Peer *>(o)->full;
                      static_cast<Peer *>(o)->full = false;
                      return full;
                  },
                  nullptr, &peer),
              0);
    ctx.Warm();
    busy.Set();
    for (int i = 0; i < 3; i++) { /* by io_read, since there is no io_poll_ready */
        EXPECT_EQ(write(s.b, "x", 1), 1);
        peer.full = true;
        while (peer.answered == i) {
            aio_poll(ctx, true);
        }
    }
    EXPECT_EQ(peer.answered, 3);
    shutdown(s.b, SHUT_RDWR);
    while (!peer.hang_ups) {
        aio_poll(ctx, true);
    }
    aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
}

TEST_P(PolledHandler, NonBlockingPollSeesAHandlerThatWasPolled)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);

    p.Set();
    for (int i = 0; i < 3; i++) {
        ctx.Warm();
        int polls = p.polls, reads = p.reads;
        event_notifier_set(&p.e);
        while (p.reads == reads) {
            aio_poll(ctx, false);
        }
        EXPECT_EQ(p.polls, polls);
    }
}

TEST_P(PolledHandler, TurningItOffLeavesNoHandlerUnwatched)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);

    for (int i = 0; i < 20; i++) {
        ASSERT_EQ(aio_context_set_poll_params(ctx, kHour, INT64_MAX, 1), 0);
        p.poll = [&] { return true; };
        p.Set();
        for (int before = p.readies; p.readies < before + 3;) {
            ctx.Warm();
            aio_poll(ctx, true);
        }
        p.poll = [&] { return false; };
        ASSERT_EQ(aio_context_set_poll_params(ctx, 0, 0, 0), 0);
        int reads = p.reads;
        event_notifier_set(&p.e);
        while (p.reads == reads) {
            aio_poll(ctx, true);
        }
        p.Remove();
    }
}

TEST_P(PolledHandler, IoPollMayRemoveHandlers)
{
    PollingContext ctx(GetParam());

    for (int i = 0; i < 50; i++) {
        auto a = std::make_unique<Polled>(ctx), b = std::make_unique<Polled>(ctx);
        bool gone = false;

        a->poll = [&] {
            if (!gone) {
                gone = true;
                b.reset();
                a->Remove();
            }
            return true;
        };
        (i % 2 ? a : b)->Set();
        (i % 2 ? b : a)->Set();
        while (!gone) {
            ctx.Warm();
        }
        EXPECT_EQ(a->readies, 0) << "it was removed before";
        a.reset();
        ctx.Warm();
    }
}

TEST_P(PolledHandler, ReadyHandlerMayRemoveOthersThatWereFoundToo)
{
    PollingContext ctx(GetParam());

    for (int i = 0; i < 50; i++) {
        auto a = std::make_unique<Polled>(ctx), b = std::make_unique<Polled>(ctx);
        int calls = 0;

        for (Polled *p : { a.get(), b.get() }) {
            p->poll = [] { return true; };
            p->ready = [&, p] {
                calls++;
                (p == a.get() ? b : a)->Remove();
                p->Remove();
            };
            p->Set();
        }
        while (!calls) {
            ctx.Warm();
            aio_notify(ctx);
            aio_poll(ctx, true);
        }
        EXPECT_EQ(calls, 1);
    }
}

TEST_P(PolledHandler, RemovalFromAnotherThreadIsTheLastOfItsCallbacks)
{
    PollingContext ctx(GetParam());
    std::atomic<int> told{ 0 };
    const int rounds = kSanitized ? 50 : 200;

    std::thread other([&] {
        for (int i = 1; i <= rounds; i++) {
            auto p = std::make_unique<Polled>(ctx);
            p->poll = [] { return true; };
            p->Set();
            WaitUntil([&] {
                aio_notify(ctx);
                return p->polls > 0;
            });
            aio_remove_fd_handler_async(
                ctx, event_notifier_get_fd(&p->e),
                [](void *o) { static_cast<std::atomic<int> *>(o)->fetch_add(1); }, &told);
            WaitUntil([&] { return told == i; });
        }
        told = -1;
        aio_notify(ctx);
    });
    while (told >= 0) {
        aio_poll(ctx, true);
    }
    other.join();
}

TEST_P(PolledHandler, NestedPollsInBothCallbacks)
{
    PollingContext ctx(GetParam());
    Polled outer(ctx), inner(ctx);
    bool want = false, inside = false;
    int64_t deadline = 0;
    int fired = 0;
    Call call{ [&] {
        EXPECT_GE(Now(), deadline);
        fired++;
    } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    inner.poll = [&] { return want; };
    inner.ready = [&] { want = false; };
    outer.poll = [&] {
        bool found = outer.polls % 64 == 0;

        if (!inside && outer.polls % 16 == 0) { /* a nested poll, and a sooner deadline */
            inside = true;
            aio_poll(ctx, false);
            aio_notify(ctx);
            aio_poll(ctx, true);
            if (!timer_pending(ts)) {
                deadline = Now() + 50 * SCALE_US;
                timer_mod(ts, deadline);
            }
            inside = false;
        }
        return found;
    };
    outer.ready = [&] {
        want = true;
        for (int i = 0; want; i++) {
            if (i == 100) { /* polling has stopped: it is contended */
                event_notifier_set(&inner.e);
            }
            aio_notify(ctx);
            aio_poll(ctx, true);
        }
    };
    inner.read = [&] {
        event_notifier_test_and_clear(&inner.e);
        want = false;
    };
    inner.Set();
    outer.Set();
    while (fired < 20 || outer.readies < 20) {
        ctx.Warm();
    }
    timer_free(ts);
}

/* Nothing ends this poll but the deadline that its own io_poll has made; where the loop sleeps, as
 * it is contended, another timer does. */
TEST_P(PolledHandler, TimerThatAnIoPollArmsEndsThePoll)
{
    PollingContext ctx(GetParam());
    Polled p(ctx);
    int fired = 0, alone = 0;
    bool armed = true, late = false;
    Call call{ [&] { fired++; } }, end{ [&] { late = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);
    QEMUTimer *guard = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &end);

    p.poll = [&] {
        if (!armed) {
            armed = true;
            timer_mod(ts, Now() + 100 * SCALE_US);
        }
        return false;
    };
    p.Set();
    while (alone < 3) {
        ctx.Warm();
        armed = late = false;
        timer_mod(guard, Now() + 200 * SCALE_MS);
        AioContextStats was = ctx.Stats();
        for (int before = fired; fired == before && !late;) {
            aio_poll(ctx, true);
        }
        /* One poll that was stopped, and one up to the deadline. */
        AioContextStats is = ctx.Stats();
        alone += !late && is.polls >= was.polls + 2 && is.polls_found > was.polls_found;
        timer_del(ts);
        timer_del(guard);
    }
    timer_free(ts);
    timer_free(guard);
}
