/* SPDX-License-Identifier: MIT */
/* Foreign fds and timeouts in the main loop. */
#include "main_loop_support.h"

#include <random>

class MainLoopPolls : public OnEachMonitor
{
};
ON_EACH_MONITOR(MainLoopPolls);

/* ---- Fds ------------------------------------------------------------------------------------- */

TEST_P(MainLoopPolls, ForeignFdEndsTheSleepAndIsTold)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd f(s.a);
    const int rounds = kSanitized ? 200 : 1000;
    std::atomic<int> seen{ 0 };

    std::thread other([&] {
        for (int i = 0; i < rounds; i++) {
            PutByte(s.b);
            while (seen == i) {
                std::this_thread::yield();
            }
        }
    });
    while (seen < rounds) {
        bool progress = main_loop_wait(false);

        EXPECT_EQ(progress, f.revents != 0);
        if (f.revents) {
            EXPECT_EQ(f.revents, POLLIN);
            TakeByte(s.a);
            seen++;
        }
    }
    other.join();
}

TEST_P(MainLoopPolls, FdThatIsReadyAlreadyIsToldWithoutASleep)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd f(s.a);

    PutByte(s.b);
    EXPECT_TRUE(main_loop_wait(true));
    EXPECT_EQ(f.revents, POLLIN);
    EXPECT_TRUE(main_loop_wait(false)); /* level-triggered: nobody has read it */
    EXPECT_EQ(f.revents, POLLIN);
    EXPECT_EQ(loop.Stats().sleeps, 0u);
    TakeByte(s.a);
    EXPECT_FALSE(main_loop_wait(true));
    EXPECT_EQ(f.revents, 0);
}

TEST_P(MainLoopPolls, FdThatIsNotReadyLetsTheLoopSleep)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd f(s.a);
    std::atomic<bool> slept{ false };
    uint64_t waits = 0;
    std::thread other([&] {
        while (!slept) {
            loop.WaitUntilItRests();
            qemu_notify_event();
        }
    });

    while (loop.Stats().sleeps == 0) {
        EXPECT_FALSE(main_loop_wait(false));
        EXPECT_EQ(f.revents, 0);
        waits++;
    }
    slept = true;
    EXPECT_EQ(loop.Stats().iterations, waits);
    EXPECT_EQ(loop.Stats().wakeups_event, 0u);
    other.join();
}

TEST_P(MainLoopPolls, WorkOfTheContextIsDoneMeanwhile)
{
    ScopedMainLoop loop(GetParam());
    SocketPair foreign, own;
    ForeignFd f(foreign.a);
    int done = 0;
    Call reader{ [&] {
        TakeByte(own.a);
        done |= 1;
    } };
    Call bh{ [&] { done |= 2; } };
    HeapTimer t(nullptr, [&] { done |= 4; });

    qemu_set_fd_handler(own.a, Call::Run, nullptr, &reader);
    PutByte(foreign.b); /* ready for ever: nobody reads it */
    PutByte(own.b);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &bh);
    timer_mod(t, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + SCALE_MS);
    loop.RunUntil([&] { return done == 7; });
    EXPECT_EQ(f.revents, POLLIN);
    qemu_set_fd_handler(own.a, nullptr, nullptr, nullptr);
}

TEST_P(MainLoopPolls, SetMayChangeWithEveryWait)
{
    ScopedMainLoop loop(GetParam());
    std::vector<SocketPair> s(40);
    std::vector<int> index(s.size());
    std::vector<bool> in(s.size());
    std::mt19937 random(7);
    unsigned target = 0;
    bool hit = false;
    std::atomic<int> go{ -1 };
    Foreign f(
        [&](MainLoopPoll *p) {
            for (unsigned i = 0; i < s.size(); i++) {
                in[i] = i == target || random() % 2;
                index[i] = in[i] ? main_loop_poll_add_fd(p, s[i].a, POLLIN) : -1;
            }
        },
        [&](MainLoopPoll *p) {
            for (unsigned i = 0; i < s.size(); i++) {
                if (in[i]) {
                    EXPECT_EQ(p->pollfds[index[i]].fd, s[i].a);
                    EXPECT_TRUE(i == target || p->pollfds[index[i]].revents == 0);
                }
            }
            hit = p->pollfds[index[target]].revents == POLLIN;
        });
    const int rounds = kSanitized ? 100 : 500;
    std::atomic<bool> end{ false };
    std::thread other([&] {
        for (int last = -1; !end;) {
            int now = go;

            if (now != last) {
                PutByte(s[static_cast<unsigned>(now) % s.size()].b);
                last = now;
            }
            std::this_thread::yield();
        }
    });

    for (int i = 0; i < rounds; i++) {
        target = static_cast<unsigned>(i) % s.size();
        hit = false;
        go = i;
        loop.RunUntil([&] { return hit; });
        TakeByte(s[target].a);
    }
    end = true;
    other.join();
}

/* The number is the same, and so are the events: only the file is another one. */
TEST_P(MainLoopPolls, NumberThatIsUsedAgainIsWaitedForAnew)
{
    ScopedMainLoop loop(GetParam());
    SocketPair first, second;
    int fd = fcntl(first.a, F_DUPFD_CLOEXEC, 100);
    ForeignFd f(fd);

    ASSERT_GE(fd, 0);
    for (int i = 0; i < 20; i++) {
        SocketPair &s = i % 2 ? second : first;
        std::thread other;

        ASSERT_EQ(dup3(s.a, fd, O_CLOEXEC), fd);
        other = std::thread([&] {
            loop.WaitUntilItRests();
            PutByte(s.b);
        });
        loop.RunUntil([&] { return f.revents == POLLIN; });
        TakeByte(fd);
        other.join();
        f.revents = 0;
    }
    close(fd);
}

/* A file that is watched, and whose number was closed while another one keeps it open. */
TEST_P(MainLoopPolls, FileWithoutItsNumberDoesNotKeepTheLoopAwake)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s, quiet;
    int fd = fcntl(s.a, F_DUPFD_CLOEXEC, 100);
    ForeignFd f(fd);
    Foreign limit([](MainLoopPoll *p) { p->timeout_ns = 2 * SCALE_MS; }, nullptr);

    main_loop_wait(false);
    close(fd);
    f.fd = quiet.a;
    PutByte(s.b);
    uint64_t before = loop.Stats().wakeups_event;
    for (int i = 0; i < 20; i++) {
        main_loop_wait(false);
        EXPECT_EQ(f.revents, 0);
    }
    EXPECT_LE(loop.Stats().wakeups_event, before + 2);
}

TEST_P(MainLoopPolls, FdThatIsNotNamedAnyMoreDoesNotEndASleep)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s, quiet;
    ForeignFd f(s.a), g(quiet.a);
    Foreign limit([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);

    main_loop_wait(false);
    f.fd = -1;
    main_loop_wait(false);
    PutByte(s.b);
    uint64_t before = loop.Stats().wakeups_event;
    for (int i = 0; i < 5; i++) {
        main_loop_wait(false);
    }
    EXPECT_EQ(loop.Stats().wakeups_event, before);
}

TEST_P(MainLoopPolls, SeveralMayNameOneFdWhichMayHaveHandlersToo)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd in(s.a, POLLIN), out(s.a, POLLOUT), both(s.a, POLLIN | POLLOUT);
    int calls = 0;
    Call reader{ [&] { calls++; } };

    EXPECT_TRUE(main_loop_wait(false));
    EXPECT_EQ(in.revents, 0);
    EXPECT_EQ(out.revents, POLLOUT);
    EXPECT_EQ(both.revents, POLLOUT);
    qemu_set_fd_handler(s.a, Call::Run, nullptr, &reader);
    PutByte(s.b);
    loop.RunUntil([&] { return calls > 0; });
    EXPECT_EQ(in.revents, POLLIN);
    EXPECT_EQ(both.revents, POLLIN | POLLOUT);
    qemu_set_fd_handler(s.a, nullptr, nullptr, nullptr);
}

/* Of two that name one fd in a sleep, the second must not take the place of the first. */
TEST_P(MainLoopPolls, SleepEndsForTheEventsOfEveryNotifierOfAnFd)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd none(s.a, 0), hup(s.a, POLLRDHUP), in(s.a, POLLIN), last(s.a, 0);
    std::thread other([&] {
        loop.WaitUntilItRests();
        PutByte(s.b);
    });

    loop.RunUntil([&] { return in.revents != 0; });
    other.join();
    EXPECT_EQ(in.revents, POLLIN);
    EXPECT_EQ(hup.revents, 0);
    TakeByte(s.a);
    other = std::thread([&] {
        loop.WaitUntilItRests();
        shutdown(s.b, SHUT_WR);
    });
    loop.RunUntil([&] { return hup.revents != 0; });
    other.join();
    EXPECT_EQ(hup.revents, POLLRDHUP);
}

TEST_P(MainLoopPolls, HangUpIsToldWithoutAnyEventsAskedFor)
{
    ScopedMainLoop loop(GetParam());
    int fds[2];

    ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
    ForeignFd f(fds[0], 0);
    std::thread other([&] {
        loop.WaitUntilItRests();
        close(fds[1]);
    });
    loop.RunUntil([&] { return f.revents != 0; });
    other.join();
    EXPECT_EQ(f.revents, POLLHUP);
    close(fds[0]);
}

TEST_P(MainLoopPolls, BadNegativeAndRegularFdsAreAsPollHasThem)
{
    ScopedMainLoop loop(GetParam());
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    {
        ForeignFd closed(4000);

        EXPECT_TRUE(main_loop_wait(false));
        EXPECT_EQ(closed.revents, POLLNVAL);
    }
    {
        ForeignFd regular(file, POLLIN | POLLOUT);

        EXPECT_TRUE(main_loop_wait(false));
        EXPECT_EQ(regular.revents, POLLIN | POLLOUT);
    }
    ForeignFd negative(-1), never(file, 0);
    Foreign limit([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);
    EXPECT_FALSE(main_loop_wait(false));
    EXPECT_EQ(negative.revents, 0);
    EXPECT_EQ(never.revents, 0);
    close(file);
}

/* Such as blk_pread() below a callback: no notifier is told there. */
TEST_P(MainLoopPolls, ReadyFdDoesNotKeepABlockingPollBelowACallbackAwake)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd f(s.a);
    Foreign limit([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);
    std::atomic<bool> inside{ false }, over{ false };
    int polls = 0;
    Call finish{ [&] { over = true; } };
    Call block{ [&] {
        PutByte(s.b); /* the set has watched it since the first wait */
        inside = true;
        while (!over) {
            aio_poll(qemu_get_aio_context(), true);
            polls++;
        }
    } };
    std::thread other([&] {
        while (!inside) {
            std::this_thread::yield();
        }
        loop.WaitUntilItRests();
        aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &finish);
    });

    main_loop_wait(false);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &block);
    loop.RunUntil([&] { return over.load(); });
    other.join();
    EXPECT_LE(polls, 10); /* thousands, were they not to sleep */
    EXPECT_EQ(f.revents, POLLIN);
    TakeByte(s.a);
    other = std::thread([&] {
        loop.WaitUntilItRests();
        PutByte(s.b);
    });
    limit.Remove();
    f.revents = 0;
    loop.RunUntil([&] { return f.revents == POLLIN; }); /* it is watched again */
    other.join();
}

/* ---- Timeouts -------------------------------------------------------------------------------- */

TEST_P(MainLoopPolls, ForeignTimeoutEndsTheWait)
{
    ScopedMainLoop loop(GetParam());
    int64_t wanted = SCALE_MS, begin;
    uint64_t signals;
    Foreign f(
        [&](MainLoopPoll *p) {
            EXPECT_EQ(p->timeout_ns, -1);
            p->timeout_ns = qemu_soonest_timeout(p->timeout_ns, wanted);
        },
        nullptr);

    do { /* a ring that was closed before may end a wait as a signal does */
        signals = loop.Stats().wakeups_signal;
        begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        EXPECT_FALSE(main_loop_wait(false));
    } while (loop.Stats().wakeups_signal > signals);
    EXPECT_GE(qemu_clock_get_ns(QEMU_CLOCK_REALTIME), begin + wanted); /* nor before */
    wanted = 0;
    uint64_t sleeps = loop.Stats().sleeps;
    EXPECT_FALSE(main_loop_wait(false));
    EXPECT_EQ(loop.Stats().sleeps, sleeps);
    wanted = INT64_MAX;
    qemu_notify_event();
    EXPECT_FALSE(main_loop_wait(false));
}

TEST_P(MainLoopPolls, TimeoutIsNeverRaised)
{
    ScopedMainLoop loop(GetParam());
    std::vector<int64_t> seen;
    Foreign a([&](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);
    Foreign b([&](MainLoopPoll *p) { p->timeout_ns = -1; }, nullptr);
    Foreign c(
        [&](MainLoopPoll *p) {
            seen.push_back(p->timeout_ns);
            p->timeout_ns = 2 * SCALE_MS;
        },
        nullptr);
    Foreign d([&](MainLoopPoll *p) { seen.push_back(p->timeout_ns); }, nullptr);

    main_loop_wait(false);
    EXPECT_EQ(seen, (std::vector<int64_t>{ SCALE_MS, SCALE_MS }));
    seen.clear();
    main_loop_wait(true);
    EXPECT_EQ(seen, (std::vector<int64_t>{ 0, 0 }));
}
