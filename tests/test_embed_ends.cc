/* SPDX-License-Identifier: MIT */
/* An embedded context that begins and ends, descriptors that run out, misuse, and the GSource. */
#include "embed_support.h"
#include "seccomp_support.h"

#include <aioctx/block.h>
#include <aioctx/main_loop.h>
#include <csignal>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <thread>

class EmbedEnds : public OnEachMonitor
{
};
ON_EACH_MONITOR(EmbedEnds);
using EmbedDeathTest = EmbedEnds;
ON_EACH_MONITOR(EmbedDeathTest);

/* ---- Beginning and end ----------------------------------------------------------------------- */

TEST_P(EmbedEnds, ClosesWithWorkInFlight)
{
    BlockBackend *blk = blk_open("null:?size=1M&latency-ns=5000000", nullptr);
    char buf[512];
    QEMUIOVector qiov;
    int done = 0;
    SocketPair pair;

    ASSERT_NE(blk, nullptr);
    qemu_iovec_init_buf(&qiov, buf, sizeof(buf));
    {
        ScopedContext ctx(GetParam());
        Call nothing{ [] {} };

        GetFd(ctx);
        aio_set_fd_handler(ctx, pair.a, Call::Run, nullptr, nullptr, nullptr, &nothing);
        ASSERT_NE(blk_aio_preadv(
                      blk, 0, &qiov, static_cast<BdrvRequestFlags>(0),
                      [](void *opaque, int) { ++*static_cast<int *>(opaque); }, &done),
                  nullptr);
        EXPECT_FALSE(aio_context_prepare(ctx));
    }
    EXPECT_EQ(done, 1);
    blk_unref(blk);
}

TEST_P(EmbedEnds, LastReferenceMayGoElsewhereAndTheHostOfAnotherClosesIt)
{
    ScopedContext other(GetParam());
    AioContextOptions opts = {};

    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts);
    int fd = GetFd(ctx);
    GetFd(other);
    EXPECT_FALSE(aio_context_prepare(ctx));
    std::thread([&] { aio_context_unref(ctx); }).join();
    EXPECT_NE(fcntl(fd, F_GETFD), -1);
    aio_context_dispatch(other);
    EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

TEST_P(EmbedEnds, HomeThreadMayExitWhileItsContextIsEmbedded)
{
    AioContextOptions opts = {};

    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts);
    std::thread([&] {
        GetFd(ctx);
        EXPECT_FALSE(aio_context_prepare(ctx));
    }).join();
    aio_notify(ctx);
    aio_context_unref(ctx);
}

TEST_P(EmbedEnds, NobodyPaysForWhatIsNotAskedFor)
{
    ScopedContext ctx(GetParam());
    int next = dup(0);

    close(next);
    aio_poll(ctx, false);
    int then = dup(0);
    close(then);
    EXPECT_EQ(then, next); /* no fd was opened */
    EXPECT_EQ(ctx.Stats().syscalls, 0u);
}

TEST_P(EmbedEnds, OutOfFdsLeavesTheContextAsItWas)
{
    ScopedContext ctx(GetParam());
    PollHost *host = nullptr;
    struct rlimit old, none;
    bool fired = false;
    HeapTimer timer(aio_context_get_timer_list_group(ctx), [&] { fired = true; });

    getrlimit(RLIMIT_NOFILE, &old);
    none = old;
    int next = dup(0), failures = 0;
    close(next);
    for (int room = 0; !host; room++) { /* fails at each fd in turn */
        none.rlim_cur = static_cast<rlim_t>(next + room);
        setrlimit(RLIMIT_NOFILE, &none);
        int ret = aio_context_get_fd(ctx);
        setrlimit(RLIMIT_NOFILE, &old);
        if (ret < 0) {
            EXPECT_EQ(ret, -EMFILE);
            failures++;
            aio_poll(ctx, false);
            continue;
        }
        host = new PollHost(ctx);
    }
    EXPECT_GE(failures, 2);
    timer_mod_ns(timer, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + SCALE_MS);
    host->RunUntil([&] { return fired; });
    SocketPair pair;
    ScopedHandler on_byte(ctx, pair.a, [] {});
    SettleEmbedded(ctx);
    EXPECT_EQ(write(pair.b, "x", 1), 1);
    EXPECT_TRUE(IsReadable(host->fd()));
    delete host;
}

/* The fds beside the ring need one more, which may not be had when they come. */
TEST_P(EmbedEnds, OutOfFdsLaterLosesNothing)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);
    struct rlimit old, none;
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), heard = 0;

    {
        ScopedHandler on_event(ctx, ev, [&] {
            eventfd_t value;

            heard += eventfd_read(ev, &value) == 0;
        });
        getrlimit(RLIMIT_NOFILE, &old);
        none = old;
        none.rlim_cur = 3;
        setrlimit(RLIMIT_NOFILE, &none);
        aio_context_prepare(ctx);
        for (int i = 1; i <= 3; i++) {
            EXPECT_EQ(eventfd_write(ev, 1), 0);
            if (i == 3) {
                setrlimit(RLIMIT_NOFILE, &old);
            }
            host.RunUntil([&] { return heard == i; });
        }
        SettleEmbedded(ctx);
    }
    close(ev);
}

TEST_P(EmbedDeathTest, PrepareAndDispatchWithoutAnFdAbort)
{
    ScopedContext ctx(GetParam());

    EXPECT_DEATH(aio_context_prepare(ctx), "aio_context_prepare: aio_context_get_fd");
    EXPECT_DEATH(aio_context_dispatch(ctx), "aio_context_dispatch: aio_context_get_fd");
}

TEST_P(EmbedDeathTest, AnotherThreadAborts)
{
    ScopedContext ctx(GetParam());

    GetFd(ctx);
    EXPECT_DEATH(std::thread([&] { aio_context_get_fd(ctx); }).join(), "home is another thread");
    EXPECT_DEATH(std::thread([&] { aio_context_prepare(ctx); }).join(), "home is another thread");
    EXPECT_DEATH(std::thread([&] { aio_context_dispatch(ctx); }).join(), "home is another thread");
}

/* Where epoll is denied there is no fd, and the context works as before. */
TEST_P(EmbedEnds, SaysThatTheKernelDeniesWhatItNeeds)
{
    for (long call : { SYS_epoll_create1, SYS_timerfd_create, SYS_timerfd_settime }) {
        std::thread([&] {
            ScopedContext ctx(GetParam());
            Call nothing{ [] {} };

            if (!Deny({ { call, EPERM } })) {
                return;
            }
            EXPECT_EQ(aio_context_get_fd(ctx), -EPERM) << call;
            aio_bh_schedule_oneshot(ctx, Call::Run, &nothing);
            EXPECT_TRUE(aio_poll(ctx, false));
        }).join();
    }
}

#ifdef HAVE_GLIB
TEST_P(EmbedEnds, GSourceHoldsAReferenceAndEndsWithIt)
{
    AioContextOptions opts = {};

    opts.monitor = GetParam();
    AioContext *ctx = aio_context_new(&opts);
    GMainContext *main = g_main_context_new();
    GSource *source = aio_get_g_source(ctx);
    int fd = GetFd(ctx), ran = 0;
    Call call{ [&] { ran++; } };

    g_source_attach(source, main);
    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    aio_context_unref(ctx); /* the source's is the last */
    while (ran == 0) {
        g_main_context_iteration(main, TRUE);
    }
    g_source_destroy(source);
    EXPECT_NE(fcntl(fd, F_GETFD), -1);
    g_source_unref(source);
    EXPECT_EQ(fcntl(fd, F_GETFD), -1);
    g_main_context_unref(main);
}

TEST_P(EmbedEnds, GSourceRecursesWhereThatIsAllowed)
{
    ScopedContext ctx(GetParam());
    GlibHost host(ctx);
    bool inner = false, outer = false;
    Call deep{ [&] { inner = true; } };
    Call call{ [&] {
        std::thread other([&] { aio_bh_schedule_oneshot(ctx, Call::Run, &deep); });

        host.RunUntil([&] { return inner; });
        other.join();
        outer = true;
    } };

    g_source_set_can_recurse(host.source(), TRUE);
    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    host.RunUntil([&] { return outer; });
}

TEST_P(EmbedEnds, GSourcesCallbackEndsIt)
{
    ScopedContext ctx(GetParam());
    GlibHost host(ctx);
    static int calls;

    calls = 0;
    g_source_set_callback(
        host.source(), [](gpointer) -> gboolean { return ++calls < 2; }, nullptr, nullptr);
    for (int i = 0; i < 2; i++) {
        aio_notify(ctx);
        host.Turn(true);
    }
    EXPECT_EQ(calls, 2);
    EXPECT_TRUE(g_source_is_destroyed(host.source()));
}
#endif
