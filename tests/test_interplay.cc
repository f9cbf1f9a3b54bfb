/* SPDX-License-Identifier: MIT */
/* What parts of the loop do to one another: hosts, busy polling, changes and ends of handlers. */
#include "embed_support.h"
#include "polling_support.h"

#include <pthread.h>
#include <thread>

class Interplay : public OnEachMonitor
{
};
ON_EACH_MONITOR(Interplay);

/* As a host does, but one that waits for long gives up: returns whether @cond came true. */
static bool TurnUntil(AioContext *ctx, int turns, const std::function<bool()> &cond)
{
    for (int i = 0; i < turns && !cond(); i++) {
        struct pollfd p = { GetFd(ctx), POLLIN, 0 };

        if (!aio_context_prepare(ctx) && poll(&p, 1, 10000) == 0) {
            return false;
        }
        aio_context_dispatch(ctx);
    }
    return cond();
}

static void Settle(AioContext *ctx)
{
    for (int i = 0; i < 100 && (aio_context_prepare(ctx) || IsReadable(GetFd(ctx))); i++) {
        aio_context_dispatch(ctx);
    }
}

/* ---- Hosts ----------------------------------------------------------------------------------- */

/*
 * The kernel does not change the events of a poll request that it has just been woken for.  What
 * woke it is taken away, so that the request stays, with the old events.
 */
TEST_P(Interplay, HostIsToldOfEventsThatWereAddedWhenTheFdHadJustBeenReady)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    int writes = 0;
    IOHandler *on_read = [](void *) {};
    IOHandler *on_write = [](void *o) { ++*static_cast<int *>(o); };
    char c;

    GetFd(ctx);
    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, on_read, nullptr, nullptr, nullptr, &writes), 0);
    Settle(ctx);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    ASSERT_EQ(read(s.a, &c, 1), 1);
    ASSERT_EQ(aio_set_fd_handler(ctx, s.a, on_read, on_write, nullptr, nullptr, &writes), 0);
    EXPECT_TRUE(TurnUntil(ctx, 100, [&] { return writes > 0; }));
    aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
}

/* Each prepare finds the bottom half, and nothing polls. */
TEST_P(Interplay, HostServesPolledHandlersBesideABottomHalfThatNeverEnds)
{
    ScopedContext ctx(GetParam());
    Polled p(ctx);
    Call again;
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &again);

    again.func = [&] { qemu_bh_schedule(bh); };
    ASSERT_EQ(aio_context_set_poll_params(ctx, kHour, 0, 0), 0);
    GetFd(ctx);
    p.Set();
    qemu_bh_schedule(bh);
    for (int i = 1; i <= 3; i++) {
        event_notifier_set(&p.e);
        EXPECT_TRUE(TurnUntil(ctx, 1000, [&] { return p.reads == i; })) << i;
    }
    qemu_bh_delete(bh);
}

/* Its file lives on, and nothing can name it to take it out of a set. */
TEST_P(Interplay, NumberOfAClosedEventfdUsedAgainBeforeRemovalLeavesTheHostAsleep)
{
    ScopedContext ctx(GetParam());
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), other = dup(ev);
    SocketPair s;
    Call call{ [] {} };

    GetFd(ctx);
    ASSERT_EQ(aio_set_fd_handler(ctx, ev, Call::Run, nullptr, nullptr, nullptr, &call), 0);
    Settle(ctx);
    ASSERT_EQ(dup2(s.a, ev), ev);
    aio_set_fd_handler(ctx, ev, nullptr, nullptr, nullptr, nullptr, nullptr);
    EXPECT_EQ(eventfd_write(other, 1), 0);
    Settle(ctx);
    EXPECT_FALSE(aio_context_prepare(ctx));
    EXPECT_FALSE(IsReadable(GetFd(ctx)));
    close(ev);
    close(other);
}

/* ---- Busy polling ---------------------------------------------------------------------------- */

TEST_P(Interplay, IoPollMayLeaveItsHandlerWithoutAny)
{
    PollingContext ctx(GetParam());

    for (int i = 0; i < 20; i++) {
        Polled p(ctx);

        p.poll = [&] {
            p.SetWithoutIoPoll();
            return true;
        };
        p.Set();
        while (!p.polls) {
            ctx.Warm();
        }
        ctx.Warm();
        EXPECT_EQ(p.polls, 1);
        EXPECT_EQ(p.readies + p.reads, 0) << "what it found was for the handler that it replaced";
        event_notifier_set(&p.e);
        while (!p.reads) {
            aio_poll(ctx, true);
        }
    }
}

/* One that was found, and set anew before it was called, is asked once more. */
TEST_P(Interplay, IoPollThatIsAskedAgainMayRemoveItsHandler)
{
    PollingContext ctx(GetParam());

    for (int i = 0; i < 20; i++) {
        auto a = std::make_unique<Polled>(ctx), b = std::make_unique<Polled>(ctx);
        bool found = false, replaced = false, removed = false;

        a->poll = [&] { return !found; };
        a->ready = [&] {
            replaced = true;
            b->Set();
        };
        b->poll = [&] {
            if (replaced && !removed) {
                removed = true;
                b->Remove();
            }
            found = true;
            return true;
        };
        b->ready = [&] { EXPECT_FALSE(removed) << "called after its removal"; };
        b->Set();
        a->Set(); /* the last one is asked first */
        while (!removed) {
            ctx.Warm();
        }
        ctx.Warm();
    }
}

/*
 * An iteration below an io_poll takes the notify of an earlier timer that was armed elsewhere; the
 * poll, which knows the old deadline alone, must not go on.
 */
static void ArmElsewhereAndIterate(const char *monitor, void (*iterate)(AioContext *ctx))
{
    PollingContext ctx(monitor);
    Polled p(ctx);
    int fired = 0, after = 0;
    bool begin = false, armed = false;
    Call call{ [&] { fired++; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);

    p.poll = [&] {
        if (begin) {
            begin = false;
            std::thread([&] { timer_mod(ts, Now() + 1 * SCALE_MS); }).join();
            armed = true;
            iterate(ctx);
        } else if (armed && ++after % 1000 == 0) {
            aio_notify(ctx);
        }
        return false;
    };
    GetFd(ctx);
    p.Set();
    for (int i = 1; i <= 5; i++) {
        ctx.Warm();
        begin = true;
        armed = false;
        aio_poll(ctx, true); /* ends, as something else was to be done meanwhile */
        EXPECT_TRUE(armed);
        EXPECT_EQ(after, 0);
        armed = false;
        ASSERT_EQ(aio_context_set_poll_params(ctx, kHour, INT64_MAX, 1), 0);
        while (fired < i) {
            aio_poll(ctx, true);
        }
    }
    timer_free(ts);
}

TEST_P(Interplay, DispatchBelowAnIoPollEndsThePoll)
{
    ArmElsewhereAndIterate(GetParam(), [](AioContext *ctx) { aio_context_dispatch(ctx); });
}

TEST_P(Interplay, WaitBelowAnIoPollThatDoesNotPollEndsThePoll)
{
    ArmElsewhereAndIterate(GetParam(), [](AioContext *ctx) {
        EXPECT_EQ(aio_context_set_poll_params(ctx, 0, 0, 0), 0);
        aio_poll(ctx, true);
    });
}

/* ---- Ends of threads ------------------------------------------------------------------------- */

/* A thread ends in its fd's callback, while another one waits to hear that this fd is removed. */
TEST_P(Interplay, RemovalIsToldThoughTheThreadEndsInTheHandlersCallback)
{
    struct Shared {
        AioContext *ctx;
        int fd;
        std::atomic<bool> in{ false }, asked{ false };
        std::atomic<int> told{ 0 };
    } shared;
    SocketPair s;
    AioContextOptions opts = {};
    pthread_t thread;

    opts.monitor = GetParam();
    shared.ctx = aio_context_new(&opts);
    ASSERT_NE(shared.ctx, nullptr);
    shared.fd = s.a;
    auto run = [](void *opaque) -> void * {
        auto sh = static_cast<Shared *>(opaque);

        qemu_set_current_aio_context(sh->ctx);
        aio_set_fd_handler(
            sh->ctx, sh->fd,
            [](void *o) {
                auto in_it = static_cast<Shared *>(o);

                in_it->in = true;
                while (!in_it->asked) {
                    sched_yield();
                }
                pthread_exit(nullptr);
            },
            nullptr, nullptr, nullptr, sh);
        while (true) {
            aio_poll(sh->ctx, true);
        }
    };
    ASSERT_EQ(write(s.b, "x", 1), 1);
    ASSERT_EQ(pthread_create(&thread, nullptr, run, &shared), 0);
    WaitUntil([&] { return shared.in.load(); });
    ASSERT_EQ(aio_remove_fd_handler_async(
                  shared.ctx, s.a, [](void *o) { static_cast<Shared *>(o)->told++; }, &shared),
              0);
    shared.asked = true;
    pthread_join(thread, nullptr);
    EXPECT_EQ(shared.told, 1);
    aio_context_unref(shared.ctx);
}

/* ---- A thread of the kernel's that submits --------------------------------------------------- */

TEST(InterplaySqpoll, HostSleepsWhileWhatItHasSubmittedIsOnItsWay)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    AioContextOptions opts = {};
    SocketPair s;
    int calls = 0;
    Call call{ [&] { calls++; } };

    opts.monitor = "io_uring";
    opts.sqpoll_idle_ms = 1;
    AioContext *ctx = aio_context_new(&opts);
    ASSERT_NE(ctx, nullptr);
    qemu_set_current_aio_context(ctx);
    GetFd(ctx);
    for (int i = 0; i < 10; i++) {
        Settle(ctx);
        usleep(5000); /* the kernel's thread sleeps */
        ASSERT_EQ(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &call), 0);
        EXPECT_FALSE(aio_context_prepare(ctx)) << "nothing is to be done";
        EXPECT_EQ(write(s.b, "x", 1), 1);
        struct pollfd p = { GetFd(ctx), POLLIN, 0 };
        EXPECT_EQ(poll(&p, 1, 10000), 1);
        for (int before = calls; calls == before;) {
            aio_context_dispatch(ctx);
        }
        char c;
        EXPECT_EQ(read(s.a, &c, 1), 1);
        aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
    }
    aio_context_unref(ctx);
}

/* The write is there before that thread has seen it. */
TEST(InterplaySqpoll, HostDoesNotSpinUntilAnEventfdIsHeard)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    AioContextOptions opts = {};
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), heard = 0;
    eventfd_t value;
    Call call{ [&] { heard += eventfd_read(ev, &value) == 0; } };

    opts.monitor = "io_uring";
    opts.sqpoll_idle_ms = 1;
    AioContext *ctx = aio_context_new(&opts);
    ASSERT_NE(ctx, nullptr);
    qemu_set_current_aio_context(ctx);
    GetFd(ctx);
    ASSERT_EQ(aio_set_fd_handler(ctx, ev, Call::Run, nullptr, nullptr, nullptr, &call), 0);
    for (int i = 1; i <= 20; i++) {
        Settle(ctx);
        usleep(3000); /* the kernel's thread sleeps */
        EXPECT_EQ(eventfd_write(ev, 1), 0);
        ASSERT_TRUE(TurnUntil(ctx, 5, [&] { return heard == i; })) << i;
    }
    aio_context_unref(ctx);
    close(ev);
}
