/* SPDX-License-Identifier: MIT */
/* The fd of an embedded context: when it is readable and when not, and what may come in between. */
#include "embed_support.h"

#include <aioctx/main_loop.h>
#include <csignal>
#include <cstring>
#include <sys/syscall.h>
#include <thread>

class Embed : public OnEachMonitor
{
};
ON_EACH_MONITOR(Embed);

constexpr int64_t kHour = INT64_C(3600000000000);

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* ---- What makes it readable ------------------------------------------------------------------ */

TEST_P(Embed, FdIsTheSameAtEveryCallAndCloseOnExec)
{
    ScopedContext ctx(GetParam());
    int fd = GetFd(ctx);

    EXPECT_EQ(aio_context_get_fd(ctx), fd);
    EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
}

TEST_P(Embed, IdleContextIsNotReadable)
{
    ScopedContext ctx(GetParam());
    SocketPair pair;
    ScopedHandler quiet(ctx, pair.a, [] { FAIL(); });
    int fd = GetFd(ctx);

    SettleEmbedded(ctx);
    for (int i = 0; i < 10; i++) {
        EXPECT_FALSE(aio_context_prepare(ctx));
        EXPECT_FALSE(IsReadable(fd));
    }
    EXPECT_FALSE(aio_context_dispatch(ctx));
    EXPECT_FALSE(aio_context_prepare(ctx));
    EXPECT_FALSE(IsReadable(fd));
}

TEST_P(Embed, OneNotifyEndsOneWait)
{
    ScopedContext ctx(GetParam());
    int fd = GetFd(ctx);

    for (int i = 0; i < 50; i++) {
        SettleEmbedded(ctx);
        aio_notify(ctx);
        aio_notify(ctx);
        EXPECT_TRUE(IsReadable(fd));
        EXPECT_FALSE(aio_context_dispatch(ctx)); /* a wake-up alone is no progress */
        EXPECT_FALSE(aio_context_prepare(ctx));
        EXPECT_FALSE(IsReadable(fd)) << i;
    }
    EXPECT_EQ(ctx.Stats().notifies_sent, 50u);
}

TEST_P(Embed, NotifyBeforePrepareMakesItSayNotToWait)
{
    ScopedContext ctx(GetParam());

    GetFd(ctx);
    SettleEmbedded(ctx);
    aio_context_dispatch(ctx);
    aio_notify(ctx); /* the thread is awake: no system call */
    EXPECT_EQ(ctx.Stats().notifies_sent, 0u);
    EXPECT_TRUE(aio_context_prepare(ctx));
    EXPECT_TRUE(aio_context_prepare(ctx)); /* until it was taken */
    aio_context_dispatch(ctx);
    EXPECT_FALSE(aio_context_prepare(ctx));
}

/* The announcement holds as long as the host goes on waiting for other things. */
TEST_P(Embed, NotifyAfterSeveralPreparesIsSeen)
{
    ScopedContext ctx(GetParam());
    int fd = GetFd(ctx);

    SettleEmbedded(ctx);
    for (int i = 0; i < 5; i++) {
        EXPECT_FALSE(aio_context_prepare(ctx));
        EXPECT_FALSE(IsReadable(fd));
    }
    std::thread([&] { aio_notify(ctx); }).join();
    EXPECT_TRUE(IsReadable(fd));
    EXPECT_TRUE(aio_context_prepare(ctx));
}

static QEMUBH *signal_bh;

TEST_P(Embed, SignalHandlerMakesItReadable)
{
    ScopedContext ctx(GetParam());
    int fd = GetFd(ctx);
    int ran = 0;
    Call call{ [&] { ran++; } };

    signal_bh = aio_bh_new(ctx, Call::Run, &call);
    auto old = signal(SIGUSR1, [](int) { qemu_bh_schedule(signal_bh); });
    SettleEmbedded(ctx);
    raise(SIGUSR1);
    EXPECT_TRUE(IsReadable(fd));
    EXPECT_TRUE(aio_context_dispatch(ctx));
    EXPECT_EQ(ran, 1);
    signal(SIGUSR1, old);
    qemu_bh_delete(signal_bh);
}

/* What a handler leaves comes again, and nothing else does. */
TEST_P(Embed, IsReadableAsLongAsAHandlerLeavesSomething)
{
    ScopedContext ctx(GetParam());
    SocketPair pair;
    PollHost host(ctx);
    int calls = 0;
    ScopedHandler on_byte(ctx, pair.a, [&] {
        char c;

        if (++calls == 3) {
            EXPECT_EQ(read(pair.a, &c, 1), 1);
        }
    });

    SettleEmbedded(ctx);
    EXPECT_EQ(write(pair.b, "x", 1), 1);
    host.RunUntil([&] { return calls == 3; });
    SettleEmbedded(ctx);
    EXPECT_EQ(calls, 3);
    EXPECT_FALSE(IsReadable(host.fd()));
}

/* The kernel does not tell an eventfd of what another eventfd has brought about. */
TEST_P(Embed, EventNotifiersAreHeardEachTime)
{
    ScopedContext ctx(GetParam());
    static EventNotifier e;
    static int heard;
    PollHost host(ctx);

    heard = 0;
    ASSERT_EQ(event_notifier_init(&e, 0), 0);
    ASSERT_EQ(aio_set_event_notifier(
                  ctx, &e, [](EventNotifier *n) { heard += event_notifier_test_and_clear(n); },
                  nullptr, nullptr),
              0);
    for (int i = 1; i <= 20; i++) {
        SettleEmbedded(ctx);
        std::thread([&] { event_notifier_set(&e); }).join();
        EXPECT_TRUE(IsReadable(host.fd())) << i;
        host.RunUntil([&] { return heard == i; });
    }
    EXPECT_LE(host.turns, 60u);
    aio_set_event_notifier(ctx, &e, nullptr, nullptr, nullptr);
    event_notifier_cleanup(&e);
}

/* An epoll set that holds an eventfd, watched before there is a host. */
TEST_P(Embed, SetsOfEventfdsAreHeardEachTime)
{
    ScopedContext ctx(GetParam());
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), set = epoll_create1(EPOLL_CLOEXEC), heard = 0;
    struct epoll_event in = {};
    const uint64_t one = 1;
    uint64_t value;

    in.events = EPOLLIN;
    ASSERT_EQ(epoll_ctl(set, EPOLL_CTL_ADD, ev, &in), 0);
    {
        ScopedHandler on_set(ctx, set, [&] {
            EXPECT_EQ(read(ev, &value, sizeof(value)), 8);
            heard++;
        });
        aio_poll(ctx, false);
        PollHost host(ctx);

        for (int i = 1; i <= 20; i++) {
            SettleEmbedded(ctx);
            std::thread([&] { EXPECT_EQ(write(ev, &one, sizeof(one)), 8); }).join();
            EXPECT_TRUE(IsReadable(host.fd())) << i;
            host.RunUntil([&] { return heard == i; });
        }
        EXPECT_LE(host.turns, 60u);
    }
    close(set);
    close(ev);
}

TEST_P(Embed, RegularFilesAreAlwaysReady)
{
    ScopedContext ctx(GetParam());
    FILE *file = tmpfile();
    int calls = 0;

    ASSERT_NE(file, nullptr);
    {
        PollHost host(ctx);
        ScopedHandler ready(ctx, fileno(file), [&] { calls++; });

        host.RunUntil([&] { return calls == 5; });
    }
    SettleEmbedded(ctx);
    fclose(file);
}

TEST_P(Embed, MoreFdsThanOneTurnTakesAreAllServed)
{
    ScopedContext ctx(GetParam());
    const int n = 200;
    std::vector<std::unique_ptr<SocketPair>> pairs;
    std::vector<std::unique_ptr<ScopedHandler>> handlers;
    PollHost host(ctx);
    int served = 0;

    for (int i = 0; i < n; i++) {
        pairs.push_back(std::make_unique<SocketPair>());
        int fd = pairs.back()->a;
        handlers.push_back(std::make_unique<ScopedHandler>(ctx, fd, [&, fd] {
            char c;

            served += static_cast<int>(read(fd, &c, 1));
        }));
    }
    SettleEmbedded(ctx);
    for (auto &pair : pairs) {
        EXPECT_EQ(write(pair->b, "x", 1), 1);
    }
    host.RunUntil([&] { return served == n; });
    SettleEmbedded(ctx);
    EXPECT_FALSE(IsReadable(host.fd()));
}

TEST_P(Embed, HandlersOfOtherThreadsAreSetAndRemoved)
{
    ScopedContext ctx(GetParam());
    SocketPair pair;
    PollHost host(ctx);
    int calls = 0;
    bool removed = false;
    Call take{ [&] {
        char c;

        calls += static_cast<int>(read(pair.a, &c, 1));
    } };
    Call gone{ [&] { removed = true; } };

    SettleEmbedded(ctx);
    std::thread([&] {
        aio_set_fd_handler(ctx, pair.a, Call::Run, nullptr, nullptr, nullptr, &take);
        EXPECT_EQ(write(pair.b, "x", 1), 1);
    }).join();
    host.RunUntil([&] { return calls == 1; });
    std::thread([&] { aio_remove_fd_handler_async(ctx, pair.a, Call::Run, &gone); }).join();
    host.RunUntil([&] { return removed; });
    EXPECT_EQ(write(pair.b, "x", 1), 1);
    SettleEmbedded(ctx);
    EXPECT_FALSE(IsReadable(host.fd()));
    EXPECT_EQ(calls, 1);
}

/* The file goes on being reported to whoever watches it, and nobody can take it out. */
TEST_P(Embed, FileThatWasClosedWithoutRemovalDoesNotMakeItReadableForEver)
{
    ScopedContext ctx(GetParam());
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), again = -1, calls = 0;
    EpollHost host(ctx);
    Call call{ [&] { calls++; } };
    bool heard = false;
    SocketPair pair;
    char byte;
    ScopedHandler on_byte(ctx, pair.a, [&] { heard = read(pair.a, &byte, 1) == 1; });

    ASSERT_EQ(aio_set_fd_handler(ctx, ev, Call::Run, nullptr, nullptr, nullptr, &call), 0);
    SettleEmbedded(ctx);
    again = dup(ev);
    close(ev);
    EXPECT_EQ(eventfd_write(again, 1), 0);
    for (int i = 0; i < 300 && (aio_context_prepare(ctx) || IsReadable(GetFd(ctx))); i++) {
        host.Turn(false);
    }
    aio_set_fd_handler(ctx, ev, nullptr, nullptr, nullptr, nullptr, nullptr);
    for (int i = 0; i < 10; i++) {
        host.Turn(false);
    }
    EXPECT_FALSE(aio_context_prepare(ctx));
    EXPECT_FALSE(IsReadable(GetFd(ctx)));
    EXPECT_EQ(write(pair.b, "x", 1), 1); /* the host still knows the fd */
    host.RunUntil([&] { return heard; });
    close(again);
}

/* ---- Between two steps of prepare ------------------------------------------------------------ */

static std::function<void()> before_epoll_wait;

/* The library's calls come here too. */
extern "C" int epoll_wait(int epfd, struct epoll_event *events, int n, int timeout)
{
    if (before_epoll_wait) {
        std::function<void()> func;

        func.swap(before_epoll_wait);
        func();
    }
    return static_cast<int>(syscall(SYS_epoll_pwait, epfd, events, n, timeout, nullptr, 8));
}

/* Has @func called when prepare, after an iteration, is about to take the set's edges.  Returns
 * whether the host would go on at once. */
static bool PrepareBeside(AioContext *ctx, const std::function<void()> &func)
{
    before_epoll_wait = func;
    bool now = aio_context_prepare(ctx);
    bool called = !before_epoll_wait;
    before_epoll_wait = nullptr;
    if (!called) { /* takes none: then beside the wait */
        func();
    }
    return now || IsReadable(GetFd(ctx));
}

TEST_P(Embed, EdgesThatPrepareTakesAreNotLost)
{
    ScopedContext ctx(GetParam());
    SocketPair pair;
    int bytes = 0, ran = 0;
    ScopedHandler on_byte(ctx, pair.a, [&] {
        char c;

        bytes += static_cast<int>(read(pair.a, &c, 1));
    });
    Call call{ [&] { ran++; } };
    auto schedule = [&] {
        std::thread([&] { aio_bh_schedule_oneshot(ctx, Call::Run, &call); }).join();
    };

    GetFd(ctx);
    for (int i = 1; i <= 20; i++) {
        SettleEmbedded(ctx);
        aio_context_dispatch(ctx);
        EXPECT_TRUE(PrepareBeside(ctx, [&] { EXPECT_EQ(write(pair.b, "x", 1), 1); })) << i;
        SettleEmbedded(ctx);
        EXPECT_EQ(bytes, i);

        aio_context_dispatch(ctx);
        EXPECT_TRUE(PrepareBeside(ctx, schedule)) << i;
        SettleEmbedded(ctx);
        aio_poll(ctx, false); /* the announcement of before is in force */
        EXPECT_TRUE(PrepareBeside(ctx, schedule)) << i;
        SettleEmbedded(ctx);
        EXPECT_EQ(ran, 2 * i);
    }
}

/* ---- Deadlines ------------------------------------------------------------------------------- */

TEST_P(Embed, TimerfdIsSetOnlyWhenTheDeadlineChanges)
{
    ScopedContext ctx(GetParam());
    HeapTimer timer(aio_context_get_timer_list_group(ctx), [] { FAIL(); });

    GetFd(ctx);
    SettleEmbedded(ctx);
    timer_mod_ns(timer, Now() + kHour);
    aio_context_prepare(ctx);
    uint64_t before = ctx.Stats().syscalls, looks = strcmp(GetParam(), "ppoll") == 0;
    for (int i = 0; i < 10; i++) {
        EXPECT_FALSE(aio_context_prepare(ctx));
    }
    EXPECT_EQ(ctx.Stats().syscalls, before + 10 * looks); /* poll(2) at each */
    timer_del(timer);
    EXPECT_FALSE(aio_context_prepare(ctx));
    EXPECT_EQ(ctx.Stats().syscalls, before + 11 * looks + 1);
}

/* With io_uring one wake-up may be left, which the kernel has put off (embed.c). */
TEST_P(Embed, DeadlineOfAnOwnWaitDoesNotEndTheHosts)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);
    bool fired = false, done = false;
    HeapTimer far(aio_context_get_timer_list_group(ctx), [&] { fired = true; });
    Call call{ [&] { done = true; } };

    timer_mod_ns(far, Now() + 10 * SCALE_MS);
    std::thread other([&] { aio_bh_schedule_oneshot(ctx, Call::Run, &call); });
    while (!done) {
        aio_poll(ctx, true); /* has the monitor keep that deadline */
    }
    other.join();
    fired = false;
    SettleEmbedded(ctx);
    timer_mod_ns(far, Now() + 60 * SCALE_MS);
    host.RunUntil([&] { return fired; });
    EXPECT_LE(host.turns, strcmp(GetParam(), "io_uring") == 0 ? 2u : 1u);
}

TEST_P(Embed, TimerThatIsArmedSoonerElsewhereEndsTheWait)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);
    int fired = 0;
    HeapTimer timer(aio_context_get_timer_list_group(ctx), [&] { fired++; });

    for (int i = 1; i <= 20; i++) {
        timer_mod_ns(timer, Now() + kHour);
        SettleEmbedded(ctx);
        std::thread([&] { timer_mod_ns(timer, Now() + 100 * SCALE_US); }).join();
        host.RunUntil([&] { return fired == i; });
    }
    EXPECT_LE(host.turns, 60u);
}

TEST_P(Embed, TimersOfTheOtherClocksEndTheWait)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);

    cpu_enable_ticks();
    for (QEMUClockType type : { QEMU_CLOCK_VIRTUAL, QEMU_CLOCK_HOST, QEMU_CLOCK_VIRTUAL_RT }) {
        bool fired = false;
        HeapTimer timer(
            aio_context_get_timer_list_group(ctx), [&] { fired = true; }, type);

        timer_mod_ns(timer, qemu_clock_get_ns(type) + 2 * SCALE_MS);
        host.RunUntil([&] { return fired; });
    }
    cpu_disable_ticks();
    EXPECT_LE(host.turns, 15u);
}

/* A busy host prepares all the time; that must not put the bottom half off. */
TEST_P(Embed, IdleBottomHalfRunsBesideABusyHost)
{
    ScopedContext ctx(GetParam());
    int fd = GetFd(ctx);
    bool ran = false;
    Call call{ [&] { ran = true; } };
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &call);

    SettleEmbedded(ctx);
    aio_context_dispatch(ctx); /* awake: nobody is told of the bottom half */
    qemu_bh_schedule_idle(bh);
    aio_context_prepare(ctx);
    uint64_t before = ctx.Stats().syscalls, looks = strcmp(GetParam(), "ppoll") == 0;
    for (int i = 0; i < 10; i++) {
        aio_context_prepare(ctx);
    }
    EXPECT_LE(ctx.Stats().syscalls, before + 10 * looks); /* the deadline is the same */
    while (!ran) {
        if (aio_context_prepare(ctx) || IsReadable(fd)) {
            aio_context_dispatch(ctx);
        }
    }
    qemu_bh_delete(bh);
}

/* ---- Mixed with aio_poll(), and nested ------------------------------------------------------- */

TEST_P(Embed, OwnWaitsBelowCallbacksOfDispatch)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);
    SocketPair pair;
    int depth = 0, fired = 0;
    bool done = false;
    HeapTimer timer(aio_context_get_timer_list_group(ctx), [&] { fired++; });
    ScopedHandler on_byte(ctx, pair.a, [&] {
        char c;

        EXPECT_EQ(read(pair.a, &c, 1), 1);
        depth++;
    });
    Call call{ [&] {
        EXPECT_EQ(write(pair.b, "x", 1), 1);
        timer_mod_ns(timer, Now() + SCALE_MS);
        while (depth == 0 || fired == 0) {
            aio_poll(ctx, true);
        }
        done = true;
    } };

    SettleEmbedded(ctx);
    std::thread([&] { aio_bh_schedule_oneshot(ctx, Call::Run, &call); }).join();
    host.RunUntil([&] { return done; });
    SettleEmbedded(ctx);
    EXPECT_FALSE(IsReadable(host.fd()));
}

TEST_P(Embed, HostMayRunBelowACallbackOfDispatch)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);
    SocketPair pair;
    int bytes = 0;
    bool done = false;
    ScopedHandler on_byte(ctx, pair.a, [&] {
        char c;

        EXPECT_EQ(read(pair.a, &c, 1), 1);
        bytes++;
    });
    Call call{ [&] {
        std::thread other([&] { EXPECT_EQ(write(pair.b, "x", 1), 1); });

        host.RunUntil([&] { return bytes == 1; });
        other.join();
        EXPECT_FALSE(aio_context_prepare(ctx)); /* as if the host were about to wait, and did not */
        done = true;
    } };

    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    host.RunUntil([&] { return done; });
    EXPECT_EQ(write(pair.b, "x", 1), 1);
    host.RunUntil([&] { return bytes == 2; });
}

/* A blocking aio_poll() after a prepare returns for a notify that came between them. */
TEST_P(Embed, OwnWaitTakesANotifyThatWasMeantForTheHost)
{
    ScopedContext ctx(GetParam());

    GetFd(ctx);
    for (int i = 0; i < 20; i++) {
        SettleEmbedded(ctx);
        std::thread([&] { aio_notify(ctx); }).join();
        EXPECT_FALSE(aio_poll(ctx, true));
        SettleEmbedded(ctx);
    }
}

TEST_P(Embed, CountsSleepsByWhatEndedThem)
{
    ScopedContext ctx(GetParam());
    PollHost host(ctx);
    bool fired = false;
    HeapTimer timer(aio_context_get_timer_list_group(ctx), [&] { fired = true; });

    SettleEmbedded(ctx);
    AioContextStats before = ctx.Stats();
    aio_notify(ctx);
    aio_context_dispatch(ctx);
    timer_mod_ns(timer, Now() + SCALE_MS);
    host.RunUntil([&] { return fired; });
    AioContextStats after = ctx.Stats();
    EXPECT_EQ(after.wakeups_notify, before.wakeups_notify + 1);
    EXPECT_GE(after.wakeups_timeout, before.wakeups_timeout + 1);
    EXPECT_EQ(after.sleeps, after.wakeups_notify + after.wakeups_timeout + after.wakeups_event);
}

TEST_P(Embed, MainLoopsContextCanBeEmbedded)
{
    AioContextOptions opts = {};
    bool fired = false;
    Call call{ [&] { fired = true; } };

    opts.monitor = GetParam();
    ASSERT_EQ(qemu_init_main_loop(&opts), 0);
    {
        PollHost host(qemu_get_aio_context());
        QEMUTimer *timer = timer_new_ns(QEMU_CLOCK_REALTIME, Call::Run, &call);

        timer_mod_ns(timer, Now() + SCALE_MS);
        host.RunUntil([&] { return fired; });
        timer_free(timer);
    }
    qemu_cleanup_main_loop();
}
