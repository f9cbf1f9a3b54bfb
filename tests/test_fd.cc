/* SPDX-License-Identifier: MIT */
/* File descriptor handlers. */
#include "loop_support.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <thread>

class Fd : public OnEachMonitor
{
};
ON_EACH_MONITOR(Fd);

static void SetRead(AioContext *ctx, int fd, Call *call)
{
    ASSERT_EQ(aio_set_fd_handler(ctx, fd, Call::Run, nullptr, nullptr, nullptr, call), 0);
}

static int Remove(AioContext *ctx, int fd)
{
    return aio_set_fd_handler(ctx, fd, nullptr, nullptr, nullptr, nullptr, nullptr);
}

TEST_P(Fd, ReadHandlerRunsWhenThereIsSomething)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    char c = 0;
    Call call{ [&] { EXPECT_EQ(read(s.a, &c, 1), 1); } };

    SetRead(ctx, s.a, &call);
    EXPECT_FALSE(aio_poll(ctx, false));
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!c) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(c, 'x');
    EXPECT_FALSE(aio_poll(ctx, false));
    Remove(ctx, s.a);
}

TEST_P(Fd, IsLevelTriggered)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    std::string got;
    Call call{ [&] {
        char c;
        ASSERT_EQ(read(s.a, &c, 1), 1); /* one of three */
        got += c;
    } };

    SetRead(ctx, s.a, &call);
    ASSERT_EQ(write(s.b, "abc", 3), 3);
    while (got.size() < 3) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(got, "abc");
    EXPECT_FALSE(aio_poll(ctx, false));
    Remove(ctx, s.a);
}

TEST_P(Fd, WriteHandlerAndHangUp)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    int writable = 0, readable = 0;
    struct Both {
        int *w, *r;
    } both{ &writable, &readable };

    ASSERT_EQ(aio_set_fd_handler(
                  ctx, s.a, [](void *o) { ++*static_cast<Both *>(o)->r; },
                  [](void *o) { ++*static_cast<Both *>(o)->w; }, nullptr, nullptr, &both),
              0);
    while (!writable) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(readable, 0);
    /* Only reading from now on: the change takes effect although the fd stays writable. */
    ASSERT_EQ(aio_set_fd_handler(
                  ctx, s.a, [](void *o) { ++*static_cast<Both *>(o)->r; }, nullptr, nullptr,
                  nullptr, &both),
              0);
    aio_poll(ctx, false);
    aio_poll(ctx, false);
    int before = writable;
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(writable, before);
    shutdown(s.b, SHUT_RDWR);
    while (!readable) {
        aio_poll(ctx, true);
    }
    Remove(ctx, s.a);
}

TEST_P(Fd, AddingAWriteHandlerToAWatchedFdTakesEffect)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    int writable = 0;

    ASSERT_EQ(aio_set_fd_handler(
                  ctx, s.a, [](void *) {}, nullptr, nullptr, nullptr, &writable),
              0);
    EXPECT_FALSE(aio_poll(ctx, false)); /* the poll for reading is in the kernel now */
    ASSERT_EQ(aio_set_fd_handler(
                  ctx, s.a, [](void *) {}, [](void *o) { ++*static_cast<int *>(o); }, nullptr,
                  nullptr, &writable),
              0);
    while (!writable) {
        aio_poll(ctx, true);
    }
    Remove(ctx, s.a);
}

TEST_P(Fd, NoCallbackAfterRemovalEvenIfTheEventWasSeen)
{
    ScopedContext ctx(GetParam());
    SocketPair s, t;
    int calls = 0;
    /* Both are ready in one iteration; whichever runs first removes the other. */
    Call one{ [&] {
        calls++;
        Remove(ctx, t.a);
    } };
    Call two{ [&] {
        calls++;
        Remove(ctx, s.a);
    } };

    SetRead(ctx, s.a, &one);
    SetRead(ctx, t.a, &two);
    aio_poll(ctx, false);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    ASSERT_EQ(write(t.b, "x", 1), 1);
    while (!calls) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(calls, 1);
    Remove(ctx, s.a);
    Remove(ctx, t.a);
    EXPECT_FALSE(aio_poll(ctx, false));
}

TEST_P(Fd, RemovesItselfInItsCallback)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    int calls = 0;
    Call call{ [&] {
        calls++;
        Remove(ctx, s.a);
    } };

    SetRead(ctx, s.a, &call);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!calls) {
        aio_poll(ctx, true);
    }
    aio_poll(ctx, false);
    aio_poll(ctx, false);
    EXPECT_EQ(calls, 1);
}

/* A port is free again only when the kernel has dropped the last reference to the socket. */
TEST_P(Fd, PortCanBeReboundRightAfterRemoval)
{
    ScopedContext ctx(GetParam());
    struct sockaddr_in addr = {};
    socklen_t len = sizeof(addr);
    Call never{ [] {} };

    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 200; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        ASSERT_EQ(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0)
            << "round " << i << ": " << strerror(errno);
        ASSERT_EQ(listen(fd, 1), 0);
        ASSERT_EQ(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
        SetRead(ctx, fd, &never);
        aio_poll(ctx, false);
        Remove(ctx, fd);
        close(fd);
    }
}

TEST_P(Fd, NumberCanBeUsedAgainAtOnce)
{
    ScopedContext ctx(GetParam());
    int wrong = 0, right = 0;
    Call old_call{ [&] { wrong++; } };

    for (int i = 0; i < 100; i++) {
        SocketPair *first = new SocketPair;
        int number = first->a;

        SetRead(ctx, number, &old_call);
        aio_poll(ctx, false);
        ASSERT_EQ(write(first->b, "x", 1), 1); /* an event is on its way */
        Remove(ctx, number);
        delete first;
        SocketPair second;
        int fd = second.a == number ? second.a : second.b;
        ASSERT_EQ(fd, number);
        Call call{ [&] {
            char c;
            right += read(fd, &c, 1) == 1;
        } };
        SetRead(ctx, fd, &call);
        ASSERT_EQ(write(fd == second.a ? second.b : second.a, "y", 1), 1);
        while (right == i) {
            aio_poll(ctx, true);
        }
        Remove(ctx, fd);
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(right, 100);
}

TEST_P(Fd, BadFdIsAnError)
{
    ScopedContext ctx(GetParam());
    Call never{ [] {} };

    EXPECT_EQ(aio_set_fd_handler(ctx, -1, Call::Run, nullptr, nullptr, nullptr, &never), -EBADF);
    EXPECT_EQ(aio_set_fd_handler(ctx, 19999, Call::Run, nullptr, nullptr, nullptr, &never), -EBADF);
    EXPECT_EQ(aio_remove_fd_handler_async(ctx, -1, Call::Run, &never), -EBADF);
}

TEST_P(Fd, AnotherThreadSetsAndRemoves)
{
    ScopedIOThread io(GetParam());
    SocketPair s;
    std::atomic<int> calls{ 0 }, done{ 0 };
    Call call{ [&] {
        char c;
        while (read(s.a, &c, 1) == 1) {
            calls++;
        }
    } };
    Call removed{ [&] { done++; } };

    for (int i = 1; i <= 200; i++) {
        SetRead(io.ctx(), s.a, &call);
        ASSERT_EQ(write(s.b, "x", 1), 1);
        ASSERT_TRUE(WaitUntil([&] { return calls == i; }));
        ASSERT_EQ(aio_remove_fd_handler_async(io.ctx(), s.a, Call::Run, &removed), 0);
        ASSERT_TRUE(WaitUntil([&] { return done == i; }));
    }
}

TEST_P(Fd, AsyncRemovalFromHomeCallsBackLater)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    bool done = false;
    Call never{ [] { ADD_FAILURE(); } }, removed{ [&] { done = true; } };

    SetRead(ctx, s.a, &never);
    ASSERT_EQ(aio_remove_fd_handler_async(ctx, s.a, Call::Run, &removed), 0);
    EXPECT_FALSE(done);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!done) {
        aio_poll(ctx, true);
    }
    EXPECT_FALSE(aio_poll(ctx, false));
}

TEST_P(Fd, AsyncRemovalIsToldOnlyWhenItsCallbackHasReturned)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    bool inside = false, told = false, told_inside = false;
    Call removed{ [&] {
        told = true;
        told_inside = inside;
    } };
    Call call{ [&] {
        inside = true;
        aio_remove_fd_handler_async(ctx, s.a, Call::Run, &removed);
        for (int i = 0; i < 5; i++) {
            aio_poll(ctx, false);
        }
        inside = false;
    } };

    SetRead(ctx, s.a, &call);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!told) {
        aio_poll(ctx, true);
    }
    EXPECT_FALSE(told_inside);
}

TEST_P(Fd, AsyncRemovalOfOneRemovedByItsRunningCallbackIsToldAfterwards)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    bool inside = false, told = false, told_inside = false;
    Call removed{ [&] {
        told = true;
        told_inside = inside;
    } };
    Call call{ [&] {
        inside = true;
        Remove(ctx, s.a);
        aio_remove_fd_handler_async(ctx, s.a, Call::Run, &removed);
        for (int i = 0; i < 5; i++) {
            aio_poll(ctx, false);
        }
        inside = false;
    } };

    SetRead(ctx, s.a, &call);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    while (!told) {
        aio_poll(ctx, true);
    }
    EXPECT_FALSE(told_inside);
}

/* A ring with fewer entries than fds to arm, and wake-ups that come while it is being filled. */
TEST(FdSmallRing, NoWakeupIsLostWhileTheQueueIsFull)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    AioContextOptions opts = {};
    opts.monitor = "io_uring";
    opts.ring_entries = 1;
    IOThreadOptions iopts = {};
    iopts.context = opts;
    IOThread *io = iothread_new("small", &iopts);
    AioContext *ctx = iothread_get_aio_context(io);
    std::vector<std::unique_ptr<SocketPair>> pairs;
    std::vector<std::unique_ptr<Call>> calls;

    for (int i = 0; i < 32; i++) {
        pairs.push_back(std::make_unique<SocketPair>());
        int fd = pairs[i]->a;
        calls.push_back(std::make_unique<Call>(Call{ [fd] {
            char c;
            EXPECT_EQ(read(fd, &c, 1), 1);
        } }));
        SetRead(ctx, fd, calls[i].get());
    }
    for (int round = 0; round < (kSanitized ? 500 : 5000); round++) {
        std::atomic<bool> ran{ false };
        Call call{ [&] { ran = true; } };

        for (auto &p : pairs) {
            ASSERT_EQ(write(p->b, "x", 1), 1);
        }
        ASSERT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &call), 0);
        ASSERT_TRUE(WaitUntil([&] { return ran.load(); })) << "round " << round;
    }
    EXPECT_EQ(iothread_destroy(io), 0);
}

/* A request that was taken but not yet applied is not applied after a later removal by home. */
TEST_P(Fd, RemovalByHomeInAToldCallbackComesAfterEarlierRequests)
{
    ScopedContext ctx(GetParam());
    SocketPair s, t;
    Call never{ [] { ADD_FAILURE() << "callback after its removal returned"; } };
    bool told = false;
    Call removed{ [&] {
        Remove(ctx, t.a);
        told = true;
    } };

    aio_poll(ctx, false);
    std::thread([&] {
        aio_remove_fd_handler_async(ctx, s.a, Call::Run, &removed);
        aio_set_fd_handler(ctx, t.a, Call::Run, nullptr, nullptr, nullptr, &never);
    }).join();
    ASSERT_EQ(write(t.b, "x", 1), 1);
    while (!told) {
        aio_poll(ctx, true);
    }
    aio_poll(ctx, false);
    aio_poll(ctx, false);
}

TEST_P(Fd, RemovalAskedForAfterTheEndIsTold)
{
    AioContextOptions copts = {};
    IOThreadOptions opts = {};
    SocketPair s;
    int told = 0;
    Call removed{ [&] { told++; } };

    copts.monitor = GetParam();
    opts.context = copts;
    IOThread *io = iothread_new("ends", &opts);
    iothread_stop(io);
    iothread_join(io);
    aio_remove_fd_handler_async(iothread_get_aio_context(io), s.a, Call::Run, &removed);
    iothread_destroy(io);
    EXPECT_EQ(told, 1);
}

TEST_P(Fd, OneThatWasClosedDoesNotMakeTheLoopSpin)
{
    ScopedContext ctx(GetParam());
    int fd = dup(0), calls = 0;
    Call call{ [&] { calls++; } };
    SocketPair s;

    dup2(s.a, fd);
    SetRead(ctx, fd, &call);
    close(fd); /* misuse: before the removal, and before the monitor has seen it */
    for (int i = 0; i < 10; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_LE(calls, 1);
    Remove(ctx, fd);
}

/* Watching it is not to be told of, but the loop must get on. */
TEST_P(Fd, OneThatWasClosedWhileItsFileLivesOnDoesNotMakeTheLoopSpin)
{
    ScopedContext ctx(GetParam());
    SocketPair s;
    int fd = dup(s.a), calls = 0;
    bool fired = false;
    Call call{ [&] { calls++; } }, fire{ [&] { fired = true; } };
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, Call::Run, &fire);

    SetRead(ctx, fd, &call);
    aio_poll(ctx, false);
    close(fd);
    ASSERT_EQ(write(s.b, "x", 1), 1);
    for (int i = 0; i < 1000; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_LE(calls, 100);
    uint64_t before = ctx.Stats().iterations;
    timer_mod(ts, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 10);
    while (!fired) {
        aio_poll(ctx, true);
    }
    EXPECT_LE(ctx.Stats().iterations - before, 100u) << "it spins";
    EXPECT_EQ(Remove(ctx, fd), 0);
    timer_free(ts);
}

TEST_P(Fd, RegularFileIsAlwaysReady)
{
    ScopedContext ctx(GetParam());
    FILE *file = tmpfile();
    int reads = 0, writes = 0;
    struct Both {
        int *r, *w;
    } both{ &reads, &writes };
    auto count_read = [](void *o) { ++*static_cast<Both *>(o)->r; };
    auto count_write = [](void *o) { ++*static_cast<Both *>(o)->w; };

    ASSERT_NE(file, nullptr);
    int fd = fileno(file);
    ASSERT_EQ(aio_set_fd_handler(ctx, fd, count_read, nullptr, nullptr, nullptr, &both), 0);
    for (int i = 1; i <= 3; i++) {
        while (reads < i) {
            aio_poll(ctx, true);
        }
    }
    EXPECT_EQ(writes, 0);
    ASSERT_EQ(aio_set_fd_handler(ctx, fd, nullptr, count_write, nullptr, nullptr, &both), 0);
    while (!writes) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(Remove(ctx, fd), 0);
    reads = writes = 0;
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(reads + writes, 0);
    fclose(file);
}

TEST_P(Fd, RegularFileThatWasClosedDoesNotMakeTheLoopSpin)
{
    ScopedContext ctx(GetParam());
    FILE *file = tmpfile();
    int calls = 0;
    Call call{ [&] { calls++; } };

    ASSERT_NE(file, nullptr);
    int fd = fileno(file);
    SetRead(ctx, fd, &call);
    while (!calls) {
        aio_poll(ctx, true);
    }
    fclose(file); /* misuse: before the removal */
    int before = calls;
    for (int i = 0; i < 100; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_GE(calls - before, 1) << "it is to see the error";
    EXPECT_LE(calls - before, 5);
    EXPECT_EQ(Remove(ctx, fd), 0);
}

TEST_P(Fd, NestedPollServesOtherFds)
{
    ScopedContext ctx(GetParam());
    SocketPair s, t;
    char inner = 0, outer = 0;
    Call in{ [&] { EXPECT_EQ(read(t.a, &inner, 1), 1); } };
    Call out{ [&] {
        EXPECT_EQ(read(s.a, &outer, 1), 1);
        ASSERT_EQ(write(t.b, "i", 1), 1);
        while (!inner) {
            aio_poll(ctx, true);
        }
    } };

    SetRead(ctx, s.a, &out);
    SetRead(ctx, t.a, &in);
    ASSERT_EQ(write(s.b, "o", 1), 1);
    while (!inner) {
        aio_poll(ctx, true);
    }
    Remove(ctx, s.a);
    Remove(ctx, t.a);
}

TEST_P(Fd, NestedPollDoesNotDispatchAnEventTwice)
{
    ScopedContext ctx(GetParam());
    SocketPair s, t;
    int calls = 0;
    struct One {
        AioContext *ctx;
        int fd, *calls;
    } one{ ctx, s.a, &calls }, two{ ctx, t.a, &calls };
    auto handler = [](void *opaque) {
        One *o = static_cast<One *>(opaque);
        char c;

        ++*o->calls;
        EXPECT_EQ(read(o->fd, &c, 1), 1) << "nothing was there";
        aio_poll(o->ctx, false); /* the other one waits to be dispatched, and is ready still */
    };

    for (One *o : { &one, &two }) {
        ASSERT_EQ(aio_set_fd_handler(ctx, o->fd, handler, nullptr, nullptr, nullptr, o), 0);
    }
    for (int i = 1; i <= 50; i++) {
        ASSERT_EQ(write(s.b, "x", 1), 1);
        ASSERT_EQ(write(t.b, "x", 1), 1);
        while (calls < 2 * i) {
            aio_poll(ctx, true);
        }
        EXPECT_EQ(calls, 2 * i);
    }
    Remove(ctx, s.a);
    Remove(ctx, t.a);
}

TEST_P(Fd, ManyAtOnce)
{
    ScopedContext ctx(GetParam());
    const int n = 600; /* more than the ring's queue */
    std::vector<std::unique_ptr<SocketPair>> pairs;
    std::vector<std::unique_ptr<Call>> calls;
    int got = 0;

    for (int i = 0; i < n; i++) {
        pairs.push_back(std::make_unique<SocketPair>());
        int fd = pairs[i]->a;
        calls.push_back(std::make_unique<Call>(Call{ [&got, fd] {
            char c;
            got += read(fd, &c, 1) == 1;
        } }));
        SetRead(ctx, fd, calls[i].get());
    }
    for (int round = 1; round <= 3; round++) {
        for (auto &p : pairs) {
            ASSERT_EQ(write(p->b, "x", 1), 1);
        }
        while (got < round * n) {
            aio_poll(ctx, true);
        }
    }
    EXPECT_EQ(got, 3 * n);
    for (auto &p : pairs) {
        EXPECT_EQ(Remove(ctx, p->a), 0);
    }
}

TEST_P(Fd, ClosedContextLeavesNothingBehind)
{
    SocketPair s;
    Call never{ [] {} };

    for (int i = 0; i < 50; i++) {
        ScopedContext ctx(GetParam());
        SetRead(ctx, s.a, &never);
        aio_poll(ctx, false);
        std::thread([&] { SetRead(ctx, s.b, &never); }).join(); /* still a request when it closes */
    }
}
