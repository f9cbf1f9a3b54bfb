/* SPDX-License-Identifier: MIT */
/* The NBD client with servers that die, come back, and stall. */
#include "nbd_support.h"

#include <sys/eventfd.h>

INSTANTIATE_NBD_CLIENT();

/* ---- Servers that die ------------------------------------------------------------------------ */

TEST_P(NbdClient, WhatIsInFlightIsSentAgain)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    std::deque<Request> writes;

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5"));
    for (int round = 0; round < 3; round++) {
        Request r(4096, 0);

        r.Read(blk, 0);
        ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_(); }));
        server.Stop();
        writes.clear();
        for (int i = 0; i < 20; i++) {
            writes.emplace_back(65536, round * 20 + i + 1);
            writes.back().Write(blk, i * 65536);
        }
        for (int i = 0; i < 20; i++) {
            aio_poll(ctx.get(), false);
        }
        server.Kill();
        for (int i = 0; i < 20; i++) {
            aio_poll(ctx.get(), false);
        }
        StartFile(server);
        for (Request &w : writes) {
            ASSERT_TRUE(ctx.PollUntil([&] { return w.Ended_(); }));
            EXPECT_EQ(w.end.ret, 0);
        }
        for (int i = 0; i < 20; i++) {
            Request back(65536, 0);

            back.Read(blk, i * 65536);
            ASSERT_TRUE(ctx.PollUntil([&] { return back.Ended_(); }));
            EXPECT_EQ(back.buf.data[0], round * 20 + i + 1);
            EXPECT_EQ(back.buf.data[65535], round * 20 + i + 1);
        }
    }
}

/* Its socket's number may be another's by then. */
TEST_P(NbdClient, ALostConnectionLeavesTheHandlersOfOthersAlone)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    Request first(4096, 0), r(4096, 1);
    int fds[8], told = 0;

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5"));
    first.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return first.Ended_(); }));
    server.Kill();
    r.Read(blk, 0); /* libnbd closes the socket in here */
    for (int &fd : fds) {
        fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        ASSERT_GE(fd, 0);
        ASSERT_EQ(aio_set_fd_handler(
                      ctx.get(), fd, [](void *opaque) { ++*static_cast<int *>(opaque); }, nullptr,
                      nullptr, nullptr, &told),
                  0);
    }
    StartFile(server);
    ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_(); }));
    EXPECT_EQ(r.end.ret, 0);
    for (int fd : fds) {
        int before = told;

        EXPECT_EQ(eventfd_write(fd, 1), 0);
        EXPECT_TRUE(ctx.PollUntil([&] { return told > before; }));
        aio_set_fd_handler(ctx.get(), fd, nullptr, nullptr, nullptr, nullptr, nullptr);
        close(fd);
    }
}

TEST_P(NbdClient, WithoutAServerRequestsFailInTime)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    char buf[512];

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5&reconnect-deadline-ms=60"));
    ASSERT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), 0);
    server.Kill();
    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), -ESHUTDOWN);
    EXPECT_EQ(blk_flush(blk.get()), -ESHUTDOWN);
    StartFile(server);
    EXPECT_TRUE(
        ctx.PollUntil([&] { return blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)) == 0; }));
}

TEST_P(NbdClient, ASmallerExportIsNotWrittenTo)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    char buf[512];

    StartFile(server, "8M");
    Blk blk = Open(Spec("&reconnect-delay-ms=5&reconnect-deadline-ms=100"));
    ASSERT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), 0);
    server.Kill();
    StartFile(server, "4M");
    EXPECT_EQ(blk_pwrite(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), -ESHUTDOWN);
    server.Kill();
    StartFile(server, "16M");
    EXPECT_TRUE(ctx.PollUntil(
        [&] { return blk_pwrite(blk.get(), 0, 512, buf, BdrvRequestFlags(0)) == 0; }));
    EXPECT_EQ(blk_getlength(blk.get()), 8 << 20);
}

TEST_P(NbdClient, ADeadServerDoesNotKeepABackendOpen)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    Request r(4096, 0), w(4096, 1);

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5&reconnect-deadline-ms=60"));
    r.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_(); }));
    server.Stop();
    w.Write(blk, 0);
    for (int i = 0; i < 10; i++) {
        aio_poll(ctx.get(), false);
    }
    server.Kill();
    blk.reset();
    EXPECT_EQ(w.end.calls, 1);
    EXPECT_EQ(w.end.ret, -ESHUTDOWN);
}

TEST_P(NbdClient, ManyContextsAtOnceWhileTheServerRestarts)
{
    Server server(Socket());
    std::vector<std::unique_ptr<ScopedIOThread>> ios;
    std::atomic<int> failed{ 0 }, rounds{ 0 };
    std::atomic<bool> stop{ false };

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5"));
    for (int i = 0; i < 3; i++) {
        ios.push_back(std::make_unique<ScopedIOThread>(Monitor()));
    }
    auto work = [&](int i) {
        std::vector<char> a(4096), b(4096);

        for (int n = 0; !stop; n++) {
            memset(a.data(), n + i, a.size());
            failed += blk_pwrite(blk.get(), i * 4096, 4096, a.data(), BdrvRequestFlags(0)) != 0;
            failed += blk_pread(blk.get(), i * 4096, 4096, b.data(), BdrvRequestFlags(0)) != 0;
            failed += a != b;
            rounds++;
        }
    };
    std::thread workers([&] { RunThreads(3, [&](int i) { ios[i]->Run([&, i] { work(i); }); }); });
    for (int i = 0; i < 3; i++) { /* on this thread: the servers end with the one that made them */
        int before = rounds;

        EXPECT_TRUE(WaitUntil([&] { return rounds > before + 20; }));
        server.Kill();
        StartFile(server);
    }
    stop = true;
    workers.join();
    EXPECT_EQ(failed, 0);
}

/* ---- Servers that stall ---------------------------------------------------------------------- */

TEST_P(NbdClient, ADeadlineHoldsThoughTheServerStalls)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    Request first(4096, 0), r(4096, 0xaa), w(4096, 7), over(4096, 9), other(4096, 5);

    StartFile(server);
    Blk blk = Open(Spec());
    first.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return first.Ended_(); }));
    server.Stop();
    BlkReqOpts opts = In(100);
    r.Read(blk, 0, &opts);
    w.Write(blk, 8192, &opts);
    ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_() && w.Ended_(); }));
    EXPECT_EQ(r.end.ret, -ETIMEDOUT);
    EXPECT_EQ(w.end.ret, -ETIMEDOUT);
    EXPECT_GE(Now(), opts.deadline_ns);
    EXPECT_LE(Stats(blk).detached, 2u); /* fewer on a machine that is busy for 100 ms */
    EXPECT_EQ(Stats(blk).settled, 0u);

    /* What overlaps the write waits until that has settled, and comes after it. */
    over.Write(blk, 8192);
    other.Write(blk, 16384);
    server.Continue();
    ASSERT_TRUE(ctx.PollUntil([&] { return over.Ended_() && other.Ended_(); }));
    EXPECT_EQ(over.end.ret, 0);
    EXPECT_EQ(other.end.ret, 0);
    EXPECT_TRUE(ctx.PollUntil([&] { return Stats(blk).settled == Stats(blk).detached; }));
    EXPECT_EQ(r.buf.data[0], 0xaa) << "the buffer of a read that had ended was written to";
    Request back(4096, 0);
    back.Read(blk, 8192);
    ASSERT_TRUE(ctx.PollUntil([&] { return back.Ended_(); }));
    EXPECT_EQ(back.buf.data[0], 9);
}

TEST_P(NbdClient, CancelEndsARequestThatAServerKeeps)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    std::deque<Request> reqs;

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5"));
    Request first(4096, 0);
    first.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return first.Ended_(); }));
    server.Stop();
    for (int i = 0; i < 8; i++) {
        reqs.emplace_back(4096, 3);
        reqs.back().Read(blk, i * 4096);
    }
    for (int i = 0; i < 8; i += 2) {
        blk_aio_cancel_async(reqs[i].acb);
    }
    for (int i = 0; i < 8; i += 2) {
        ASSERT_TRUE(ctx.PollUntil([&] { return reqs[i].Ended_(); }));
        EXPECT_EQ(reqs[i].end.ret, -ECANCELED);
    }
    EXPECT_FALSE(reqs[1].Ended_());
    server.Kill(); /* what was cancelled settles with its connection, the rest goes on */
    EXPECT_TRUE(ctx.PollUntil([&] { return Stats(blk).settled == Stats(blk).detached; }));
    Request waits(4096, 0);
    waits.Read(blk, 0);
    aio_poll(ctx.get(), false);
    blk_aio_cancel_async(waits.acb);
    ASSERT_TRUE(ctx.PollUntil([&] { return waits.Ended_(); }));
    EXPECT_EQ(waits.end.ret, -ECANCELED);
    StartFile(server);
    for (int i = 1; i < 8; i += 2) {
        ASSERT_TRUE(ctx.PollUntil([&] { return reqs[i].Ended_(); }));
        EXPECT_EQ(reqs[i].end.ret, 0);
    }
}

TEST_P(NbdClient, DrainsEndWithTheDeadlineWhenTheServerStalls)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    Request first(4096, 0), late(4096, 1), endless(4096, 2);

    StartFile(server);
    Blk blk = Open(Spec());
    first.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return first.Ended_(); }));
    server.Stop();
    BlkReqOpts opts = In(30);
    late.Write(blk, 0, &opts);
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(late.end.ret, -ETIMEDOUT);
    endless.Read(blk, 4096);
    EXPECT_EQ(blk_drain_until(blk.get(), Now() + 20 * kMs), -ETIMEDOUT);
    EXPECT_FALSE(endless.Ended_());
    server.Continue();
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(endless.end.ret, 0);
}

TEST_P(NbdClient, AStalledServerDoesNotKeepABackendOpen)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    Request first(4096, 0), late(4096, 1), in_callback(4096, 2);

    StartFile(server);
    Blk blk = Open(Spec()), other = Open(Spec());
    first.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return first.Ended_(); }));
    server.Stop();
    BlkReqOpts opts = In(20);
    late.Write(blk, 0, &opts);
    ASSERT_TRUE(ctx.PollUntil([&] { return late.Ended_(); }));
    blk.reset();
    opts = In(20);
    in_callback.end.then = [&] { other.reset(); };
    in_callback.Read(other, 0, &opts);
    ASSERT_TRUE(ctx.PollUntil([&] { return in_callback.Ended_(); }));
    EXPECT_EQ(in_callback.end.ret, -ETIMEDOUT);
}

TEST_P(NbdClient, AStalledServerDoesNotKeepAnIothread)
{
    Server server(Socket());
    Request late(65536, 1), endless(65536, 2);
    char buf[512];

    StartFile(server);
    Blk blk = Open(Spec());
    {
        IOThreadOptions options = {};

        options.context.monitor = Monitor();
        options.stop_timeout_ms = 50;
        IOThread *io = iothread_new("io", &options);
        std::atomic<bool> ready{ false };
        auto begin = [&] {
            EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), 0);
            server.Stop();
            BlkReqOpts opts = In(10);
            late.Write(blk, 0, &opts);
            endless.Write(blk, 1 << 20);
            ready = true;
        };
        aio_bh_schedule_oneshot(
            iothread_get_aio_context(io), [](void *p) { (*static_cast<decltype(begin) *>(p))(); },
            &begin);
        ASSERT_TRUE(WaitUntil([&] { return ready && late.Ended_(); }));
        EXPECT_EQ(iothread_destroy(io), 0);
    }
    EXPECT_EQ(late.end.ret, -ETIMEDOUT);
    EXPECT_EQ(endless.end.calls, 1);
    EXPECT_EQ(endless.end.ret, -ECANCELED);
    server.Kill(); /* not every server lives through a client that left in the middle of a write */
    StartFile(server);
    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), 0);
}

TEST_P(NbdClient, AStallTimeoutConnectsAgain)
{
    LocalContext ctx(Monitor());
    Server server(Socket()), second(Socket());
    Request first(4096, 0), r(4096, 1);

    StartFile(server);
    Blk blk = Open(Spec("&reconnect-delay-ms=5&stall-timeout-ms=30"));
    first.Read(blk, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return first.Ended_(); }));
    server.Stop();
    unlink(Socket().c_str()); /* or it would be waited for in the handshake */
    r.Read(blk, 0);
    aio_poll(ctx.get(), false);
    StartFile(second);
    ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_(); }));
    EXPECT_EQ(r.end.ret, 0);
}
