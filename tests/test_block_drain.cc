/* SPDX-License-Identifier: MIT */
/* Draining, several contexts on one backend, synchronous calls, closing in any order. */
#include "block_support.h"

#include <cerrno>
#include <cstring>
#include <thread>
#include <unistd.h>

static BlockAIOCB *Read(BlockBackend *blk, Buffer *buf, Result *r)
{
    return blk_aio_preadv(blk, 0, &buf->qiov, BdrvRequestFlags(), Ended, r);
}

/* Waits for streams of requests just told to stop.  A callback that was past its look
 * at the switch may have submitted one more, which comes after the first drain. */
static void DrainStreams(BlockBackend *blk)
{
    EXPECT_EQ(blk_drain(blk), 0);
    EXPECT_EQ(blk_drain(blk), 0);
}

class BlkDrain : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
};

INSTANTIATE_TEST_SUITE_P(Monitors, BlkDrain, testing::ValuesIn(kMonitors), MonitorName);

TEST_P(BlkDrain, APlainThreadWaitsForEveryContext)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    Blk blk = Open("null://?latency-ns=20000000");
    Buffer buf(512);
    Result ra, rb;

    a.Run([&] { Read(blk.get(), &buf, &ra); });
    b.Run([&] { Read(blk.get(), &buf, &rb); });
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(ra.calls, 1); /* callbacks included */
    EXPECT_EQ(rb.calls, 1);
}

TEST_P(BlkDrain, AHomeThreadPollsItsOwnContextMeanwhile)
{
    ScopedIOThread other(GetParam());
    LocalContext own(GetParam());
    Blk blk = Open("null://?latency-ns=5000000");
    Buffer buf(512);
    Result mine, theirs;

    Read(blk.get(), &buf, &mine);
    other.Run([&] { Read(blk.get(), &buf, &theirs); });
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(mine.calls, 1);
    EXPECT_EQ(theirs.calls, 1);
}

TEST_P(BlkDrain, DoesNotWaitForCallbacksOnItsOwnStack)
{
    LocalContext own(GetParam());
    Blk blk = Open("null://");
    Buffer buf(512);
    Result outer, inner;
    int ret = 1;

    outer.then = [&] {
        Read(blk.get(), &buf, &inner);
        ret = blk_drain(blk.get());
        EXPECT_EQ(inner.calls, 1);
    };
    Read(blk.get(), &buf, &outer);
    ASSERT_TRUE(own.PollUntil([&] { return outer.calls == 1; }));
    EXPECT_EQ(ret, 0);
}

TEST_P(BlkDrain, BelowACallbackItDoesNotWaitForAnotherContext)
{
    ScopedIOThread other(GetParam());
    LocalContext own(GetParam());
    MemDisk disk("edeadlk", 65536);
    Blk blk = Open("mem:edeadlk");
    Buffer buf(512);
    Result theirs, mine;
    int ret = 1, begin = 1;

    disk.stall = true;
    other.Run([&] { Read(blk.get(), &buf, &theirs); });
    disk.stall = false;
    mine.then = [&] {
        ret = blk_drain(blk.get());
        begin = blk_drained_begin(blk.get());
    };
    Read(blk.get(), &buf, &mine);
    ASSERT_TRUE(own.PollUntil([&] { return mine.calls == 1; }));
    EXPECT_EQ(ret, -EDEADLK);
    EXPECT_EQ(begin, -EDEADLK);
    blk_drained_end(blk.get());
    other.Run([&] { disk.Release(); });
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(theirs.calls, 1);
}

TEST_P(BlkDrain, DoesNotWaitForWhatComesLater)
{
    ScopedIOThread io(GetParam());
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r;
    std::atomic<bool> stop{ false };

    r.then = [&] { /* a stream that never pauses */
                   if (!stop) {
                       Read(blk.get(), &buf, &r);
                   }
    };
    io.Run([&] {
        for (int i = 0; i < 4; i++) {
            Read(blk.get(), &buf, &r);
        }
    });
    for (int i = 0; i < 20; i++) {
        EXPECT_EQ(blk_drain(blk.get()), 0);
    }
    stop = true;
    DrainStreams(blk.get());
}

TEST_P(BlkDrain, ASectionHoldsNewRequestsBackAndIssuesThemInOrder)
{
    LocalContext own(GetParam());
    MemDisk disk("held", 65536);
    Blk blk = Open("mem:held");
    std::vector<std::unique_ptr<Buffer>> bufs;
    Result r[8];

    EXPECT_EQ(blk_drained_begin(blk.get()), 0);
    EXPECT_EQ(blk_drained_begin(blk.get()), 0); /* they nest */
    for (int i = 0; i < 8; i++) {
        bufs.emplace_back(new Buffer(512, i + 1));
        blk_aio_pwritev(blk.get(), 0, &bufs[i]->qiov, BdrvRequestFlags(), Ended, &r[i]);
    }
    EXPECT_EQ(blk_drain(blk.get()), 0); /* what is held is not waited for */
    blk_drained_end(blk.get());
    while (aio_poll(own.get(), false)) {
    }
    EXPECT_EQ(disk.submitted, 0);
    blk_drained_end(blk.get());
    EXPECT_EQ(blk_drain(blk.get()), 0); /* and now they are */
    for (Result &one : r) {
        EXPECT_EQ(one.calls, 1);
        EXPECT_EQ(one.ret, 0);
    }
    EXPECT_EQ(disk.data[0], 8); /* the last one came last */
}

TEST_P(BlkDrain, HeldRequestsKeepTheirDeadlinesAndCanBeCancelled)
{
    LocalContext own(GetParam());
    MemDisk disk("held-cancel", 65536);
    Blk blk = Open("mem:held-cancel?deadline-ns=1000000");
    Buffer buf(512);
    BlkReqOpts none = {};
    Result timed, cancelled, kept;

    none.deadline_ns = -1;
    EXPECT_EQ(blk_drained_begin(blk.get()), 0);
    Read(blk.get(), &buf, &timed);
    BlockAIOCB *acb =
        blk_aio_preadv_opts(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &cancelled, &none);
    blk_aio_preadv_opts(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &kept, &none);
    blk_aio_cancel_async(acb);
    ASSERT_TRUE(own.PollUntil([&] { return timed.calls && cancelled.calls; }));
    EXPECT_EQ(timed.ret, -ETIMEDOUT);
    EXPECT_EQ(cancelled.ret, -ECANCELED);
    EXPECT_EQ(kept.calls, 0);
    blk_drained_end(blk.get());
    ASSERT_TRUE(own.PollUntil([&] { return kept.calls == 1; }));
    EXPECT_EQ(disk.submitted, 1);
}

TEST_P(BlkDrain, SectionsKeepSubmittersOnOtherThreadsOut)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r;
    std::atomic<bool> stop{ false };
    std::atomic<bool> inside{ false };
    std::atomic<int> intruders{ 0 };

    r.then = [&] {
        intruders += inside;
        if (!stop) {
            Read(blk.get(), &buf, &r);
        }
    };
    for (ScopedIOThread *io : { &a, &b }) {
        io->Run([&] { Read(blk.get(), &buf, &r); });
    }
    for (int i = 0; i < (kSanitized ? 100 : 500); i++) {
        ASSERT_EQ(blk_drained_begin(blk.get()), 0);
        inside = true;
        if (i % 8 == 0) {
            std::this_thread::yield();
        }
        inside = false;
        blk_drained_end(blk.get());
    }
    stop = true;
    DrainStreams(blk.get());
    EXPECT_EQ(intruders, 0);
    EXPECT_EQ(Stats(blk).reads, static_cast<uint64_t>(r.calls));
}

/* ---- Contexts -------------------------------------------------------------------------------- */

TEST_P(BlkDrain, ARequestCompletesOnTheContextThatSubmittedIt)
{
    const int n = 3, count = 2000;
    std::vector<std::unique_ptr<ScopedIOThread>> io;
    Blk blk = Open("null://");
    struct Stream {
        AioContext *ctx;
        Buffer buf{ 512 };
        Result r;
        std::atomic<int> elsewhere{ 0 }, left{ count };
    } streams[n];

    for (Stream &s : streams) {
        io.emplace_back(new ScopedIOThread(GetParam()));
        s.ctx = io.back()->ctx();
        s.r.then = [&] {
            s.elsewhere += qemu_get_current_aio_context() != s.ctx;
            if (--s.left > 0) {
                Read(blk.get(), &s.buf, &s.r);
            }
        };
    }
    for (int i = 0; i < n; i++) {
        io[i]->Run([&] { Read(blk.get(), &streams[i].buf, &streams[i].r); });
    }
    for (Stream &s : streams) {
        ASSERT_TRUE(WaitUntil([&] { return s.left == 0; }));
        EXPECT_EQ(s.elsewhere, 0);
    }
    EXPECT_EQ(blk_drain(blk.get()), 0);
    BlkStats st = Stats(blk);
    EXPECT_EQ(st.reads, static_cast<uint64_t>(n * count));
    EXPECT_EQ(st.bytes_read, static_cast<uint64_t>(n * count * 512));
    EXPECT_EQ(st.failed, 0u);
}

TEST_P(BlkDrain, ContextsMayCloseBeforeTheBackend)
{
    Blk blk = Open("null://");
    Buffer buf(512);

    for (int i = 0; i < 5; i++) {
        ScopedIOThread a(GetParam()), b(GetParam());
        Result ra, rb;

        a.Run([&] { Read(blk.get(), &buf, &ra); });
        b.Run([&] { Read(blk.get(), &buf, &rb); });
        ASSERT_TRUE(WaitUntil([&] { return ra.calls && rb.calls; }));
    }
    EXPECT_EQ(Stats(blk).reads, 10u); /* counters outlive the contexts */
    EXPECT_EQ(blk_drain(blk.get()), 0);
}

TEST_P(BlkDrain, AContextThatClosesWaitsForItsRequests)
{
    Blk blk = Open("null://?latency-ns=20000000");
    Buffer buf(512);
    Result r;
    {
        ScopedIOThread io(GetParam());
        io.Run([&] { Read(blk.get(), &buf, &r); });
    }
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, 0);
}

TEST_P(BlkDrain, AThreadThatStopsCancelsWhatOutlastsItsTimeout)
{
    Blk blk = Open("null://?latency-ns=3600000000000");
    Buffer buf(512);
    Result r;
    IOThreadOptions opts = {};

    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("stops", &opts);
    ASSERT_NE(io, nullptr);
    struct Arg {
        BlockBackend *blk;
        Buffer *buf;
        Result *r;
    } arg = { blk.get(), &buf, &r };
    auto submit = [](void *opaque) {
        Arg *a = static_cast<Arg *>(opaque);
        Read(a->blk, a->buf, a->r);
    };
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), submit, &arg), 0);
    ASSERT_TRUE(WaitUntil([&] { return Stats(blk).reads == 1; }));
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, -ECANCELED);
}

TEST_P(BlkDrain, AStreamThatNeverPausesEndsWithItsThread)
{
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r;
    std::atomic<int> refused{ 0 };
    IOThreadOptions opts = {};

    r.then = [&] {
        if (!Read(blk.get(), &buf, &r)) {
            EXPECT_EQ(errno, ESHUTDOWN);
            refused++;
        }
    };
    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("stream", &opts);
    ASSERT_NE(io, nullptr);
    struct Arg {
        BlockBackend *blk;
        Buffer *buf;
        Result *r;
    } arg = { blk.get(), &buf, &r };
    auto submit = [](void *opaque) {
        Arg *a = static_cast<Arg *>(opaque);
        Read(a->blk, a->buf, a->r);
    };
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), submit, &arg), 0);
    ASSERT_TRUE(WaitUntil([&] { return r.calls > 0; }));
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(refused, 1);
    EXPECT_EQ(Stats(blk).reads, static_cast<uint64_t>(r.calls));
}

TEST_P(BlkDrain, AContextThatGivesUpOnItsRequestsReleasesTheirRanges)
{
    LocalContext own(GetParam());
    MemDisk disk("given-up", 65536, 512), other("given-up-fast", 65536, 512);
    Blk blk = Open("mem:given-up"), quick = Open("mem:given-up-fast");
    Buffer part(10, 0x11), whole(512, 0x22);
    Result serialising, listed, waits, fast, mine, second;
    IOThreadOptions opts = {};

    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("gives-up", &opts);
    ASSERT_NE(io, nullptr);
    std::function<void()> submit = [&] {
        blk_aio_pwritev(blk.get(), 100, &part.qiov, BdrvRequestFlags(), Ended, &serialising);
        blk_aio_pwritev(blk.get(), 512, &whole.qiov, BdrvRequestFlags(), Ended, &listed);
        blk_aio_pwritev(blk.get(), 200, &part.qiov, BdrvRequestFlags(), Ended, &waits);
        blk_aio_pwritev(quick.get(), 512, &whole.qiov, BdrvRequestFlags(), Ended, &fast);
    };
    auto call = [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); };
    disk.stall = other.stall = true;
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), call, &submit), 0);
    ASSERT_TRUE(WaitUntil([&] { return disk.Stalled() == 2 && other.Stalled() == 1; }));
    blk_aio_pwritev(blk.get(), 600, &part.qiov, BdrvRequestFlags(), Ended, &mine);
    blk_aio_pwritev(quick.get(), 600, &part.qiov, BdrvRequestFlags(), Ended, &second);
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(waits.ret, -ECANCELED);
    EXPECT_EQ(serialising.calls + listed.calls + fast.calls, 0);
    disk.stall = other.stall = false;
    EXPECT_TRUE(own.PollUntil([&] { return mine.calls && second.calls; }));
    EXPECT_EQ(mine.ret, 0);
    EXPECT_EQ(second.ret, 0);
    EXPECT_EQ(blk_pwrite(blk.get(), 100, 10, part.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_drain(blk.get()), 0);
    disk.Forget();
    other.Forget();
}

/* Far ahead of the kernel's clock, which the condition that a plain thread sleeps on goes by. */
TEST_P(BlkDrain, ADeadlineIsOfTheClockThatWasPutInItsPlace)
{
    MemDisk disk("clock", 8192);
    ScopedIOThread io(GetParam());
    Blk blk = Open("mem:clock");
    Buffer buf(512);
    Result r;
    FakeClock clock(QEMU_CLOCK_REALTIME, INT64_C(1) << 60);
    std::atomic<bool> over{ false };

    disk.stall = true;
    io.Run([&] { Read(blk.get(), &buf, &r); });
    int64_t until = clock.Now() + 1000000000;
    std::thread drainer([&] {
        EXPECT_EQ(blk_drain_until(blk.get(), until), -ETIMEDOUT);
        over = true;
    });
    usleep(30000);
    EXPECT_FALSE(over);
    clock.Advance(1000000000);
    EXPECT_TRUE(WaitUntil([&] { return over.load(); }));
    disk.stall = false;
    io.Run([&] { disk.Release(); });
    drainer.join();
}

TEST_P(BlkDrain, AThreadMayDrainAndCloseWithAnotherOfItsContextsCurrent)
{
    LocalContext a(GetParam()), b(GetParam());
    Blk blk = Open("null://?latency-ns=2000000");
    Buffer buf(512);
    Result ra, rb;

    for (int i = 0; i < 3; i++) {
        qemu_set_current_aio_context(a.get());
        Read(blk.get(), &buf, &ra);
        qemu_set_current_aio_context(b.get());
        if (i != 1) {
            Read(blk.get(), &buf, &rb);
        }
        if (i == 2) {
            blk.reset();
        } else {
            EXPECT_EQ(blk_drain(blk.get()), 0);
        }
        EXPECT_EQ(ra.calls, i + 1);
        EXPECT_EQ(qemu_get_current_aio_context(), b.get());
    }
    EXPECT_EQ(rb.calls, 2);
}

TEST_P(BlkDrain, ContextsOfOneThreadWaitForEachOthersRanges)
{
    LocalContext a(GetParam()), b(GetParam());
    MemDisk disk("one-thread", 65536, 512);
    Blk blk = Open("mem:one-thread");
    Buffer part(10, 0x11), whole(512, 0x22);
    Result first, second;

    disk.later = true;
    disk.lag = 3;
    blk_aio_pwritev(blk.get(), 100, &part.qiov, BdrvRequestFlags(), Ended, &first); /* on b */
    qemu_set_current_aio_context(a.get());
    blk_aio_pwritev(blk.get(), 0, &whole.qiov, BdrvRequestFlags(), Ended, &second);
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(first.calls, 1);
    EXPECT_EQ(second.calls, 1);
    EXPECT_EQ(disk.data[105], 0x22);

    qemu_set_current_aio_context(b.get());
    blk_aio_pwritev(blk.get(), 100, &part.qiov, BdrvRequestFlags(), Ended, &first);
    qemu_set_current_aio_context(a.get());
    EXPECT_EQ(blk_pwrite(blk.get(), 0, 512, whole.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(disk.data[105], 0x22);
    EXPECT_EQ(blk_drain(blk.get()), 0);
}

TEST_P(BlkDrain, ALaterSectionDoesNotKeepAWaiterThatNeedNotWait)
{
    LocalContext own(GetParam());
    Blk blk = Open("null://");
    Buffer buf(512);
    Result held;
    std::atomic<bool> drained{ false };

    ASSERT_EQ(blk_drained_begin(blk.get()), 0);
    Read(blk.get(), &buf, &held);
    blk_drained_end(blk.get());
    std::thread waiter([&] {
        blk_drain(blk.get()); /* the held request is on its way, so this sleeps */
        drained = true;
    });
    usleep(20000);
    ASSERT_EQ(blk_drained_begin(blk.get()), 0); /* now it is held, and nobody waits for it */
    EXPECT_TRUE(WaitUntil([&] { return drained.load(); }));
    blk_drained_end(blk.get());
    ASSERT_TRUE(own.PollUntil([&] { return held.calls == 1; }));
    waiter.join();
}

TEST_P(BlkDrain, BackendsComeAndGoOnLivingContexts)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    Buffer buf(512);

    for (int i = 0; i < (kSanitized ? 20 : 100); i++) {
        BlockBackend *blk = blk_open("null://", nullptr);
        Result ra, rb;

        ASSERT_NE(blk, nullptr);
        a.Run([&] { Read(blk, &buf, &ra); });
        b.Run([&] { Read(blk, &buf, &rb); });
        blk_unref(blk); /* waits */
        EXPECT_EQ(ra.calls, 1);
        EXPECT_EQ(rb.calls, 1);
    }
}

TEST_P(BlkDrain, TheLastReferenceMayGoBelowACallbackOfAnotherContext)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    Buffer buf(512);

    for (int i = 0; i < (kSanitized ? 10 : 50); i++) {
        BlockBackend *blk = blk_open("null://?latency-ns=300000", nullptr);
        Result ra;

        ASSERT_NE(blk, nullptr);
        a.Run([&] { Read(blk, &buf, &ra); });
        b.Run([&] { blk_unref(blk); }); /* in a bottom half */
        ASSERT_TRUE(WaitUntil([&] { return ra.calls == 1; }));
        EXPECT_EQ(ra.ret, 0);
    }
}

/* ---- Synchronous calls ----------------------------------------------------------------------- */

TEST_P(BlkDrain, SyncCallsOnAHomeThreadPollItsContext)
{
    LocalContext own(GetParam());
    MemDisk disk("sync-home", 65536);
    Blk blk = Open("mem:sync-home");
    char out[100], in[100] = {};

    disk.later = true;
    memset(out, 'x', sizeof(out));
    EXPECT_EQ(blk_pwrite(blk.get(), 7, sizeof(out), out, BDRV_REQ_FUA), 0);
    EXPECT_EQ(blk_pread(blk.get(), 7, sizeof(in), in, BdrvRequestFlags()), 0);
    EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    EXPECT_EQ(disk.fua, 1);
    EXPECT_EQ(blk_flush(blk.get()), 0);
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 7, 50, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pdiscard(blk.get(), 60, 10), 0);
    EXPECT_EQ(disk.data[56], 0);
    EXPECT_EQ(disk.data[57], 'x');
    EXPECT_EQ(blk_pread(blk.get(), 65536, 1, in, BdrvRequestFlags()), -EINVAL);
    EXPECT_EQ(blk_pread(blk.get(), 0, -1, in, BdrvRequestFlags()), -EINVAL);
}

TEST_P(BlkDrain, SyncCallsWorkBelowACallback)
{
    LocalContext own(GetParam());
    Blk blk = Open("null://?latency-ns=1000");
    Buffer buf(512);
    Result r;
    int ret = 1;

    r.then = [&] { ret = blk_pread(blk.get(), 0, buf.size, buf.data, BdrvRequestFlags()); };
    Read(blk.get(), &buf, &r);
    ASSERT_TRUE(own.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(ret, 0);
}

TEST(BlkSync, PlainThreadsAreServedByAnIothreadOfTheBackend)
{
    MemDisk disk("sync-plain", 1 << 20);
    Blk blk = Open("mem:sync-plain");
    std::atomic<int> bad{ 0 };

    disk.later = true;
    RunThreads(4, [&](int t) {
        std::vector<char> out(4096, static_cast<char>('a' + t)), in(4096);
        for (int i = 0; i < 20; i++) {
            int64_t offset = t * 131072 + i * 4096;
            bad += blk_pwrite(blk.get(), offset, 4096, out.data(), BdrvRequestFlags()) != 0;
            bad += blk_pread(blk.get(), offset, 4096, in.data(), BdrvRequestFlags()) != 0;
            bad += in != out;
        }
        bad += blk_flush(blk.get()) != 0;
    });
    EXPECT_EQ(bad, 0);
    EXPECT_EQ(Stats(blk).writes, 80u);
}

TEST(BlkSync, ErrorsComeBack)
{
    MemDisk disk("sync-error", 65536);
    Blk blk = Open("mem:sync-error");
    char c;

    disk.fail = -EIO;
    EXPECT_EQ(blk_pread(blk.get(), 0, 1, &c, BdrvRequestFlags()), -EIO);
    EXPECT_EQ(blk_pread(blk.get(), 0, 1, &c, BdrvRequestFlags()), 0);
}

/* ---- All at once ----------------------------------------------------------------------------- */

struct Chaos {
    BlockBackend *blk;
    unsigned seed;
    std::atomic<int> submitted{ 0 }, ended{ 0 }, twice{ 0 };
};

/* Keeps up to 16 requests in flight on the current context, with deadlines, cancels and overlaps.
 * */
static void RunChaos(Chaos *c, int count)
{
    struct Slot {
        Buffer buf{ 3000 };
        QEMUIOVector qiov;
        Result r;
        BlockAIOCB *acb;
        bool busy = false;
    };
    std::vector<std::unique_ptr<Slot>> slots(16);
    unsigned seed = c->seed;
    auto random = [&](int n) {
        return static_cast<int>((seed = seed * 1103515245 + 12345) >> 16) % n;
    };
    int busy = 0;

    for (auto &s : slots) {
        s.reset(new Slot);
    }
    while (count > 0 || busy > 0) {
        for (auto &s : slots) {
            if (s->busy && s->r.calls) {
                c->twice += s->r.calls != 1;
                s->r.calls = 0;
                s->busy = false;
                busy--;
                c->ended++;
            }
            if (s->busy && random(300) == 0) {
                blk_aio_cancel_async(s->acb);
            }
            if (!s->busy && count > 0 && random(2)) {
                int64_t offset = random(16000);
                BlkReqOpts opts = {};

                opts.deadline_ns =
                    random(3) ? -1 : qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + random(60000);
                qemu_iovec_init_buf(&s->qiov, s->buf.data, static_cast<size_t>(1 + random(3000)));
                s->acb = random(3) ? blk_aio_pwritev_opts(c->blk, offset, &s->qiov,
                                                          BdrvRequestFlags(), Ended, &s->r, &opts)
                                   : blk_aio_preadv_opts(c->blk, offset, &s->qiov,
                                                         BdrvRequestFlags(), Ended, &s->r, &opts);
                ASSERT_NE(s->acb, nullptr);
                s->busy = true;
                busy++;
                count--;
                c->submitted++;
            }
        }
        aio_poll(qemu_get_current_aio_context(), false);
    }
}

TEST_P(BlkDrain, DeadlinesCancelsOverlapsAndSectionsTogetherLoseNothing)
{
    for (const char *options : { "", "?detach=on" }) {
        const int n = 3, count = kSanitized ? 1500 : 5000;
        MemDisk disk("chaos", 20000, 512);
        Blk blk = Open(std::string("mem:chaos") + options);
        Chaos chaos[n];
        std::atomic<int> left{ n };

        disk.later = true;
        disk.lag = 6;
        RunThreads(n + 1, [&](int t) {
            if (t < n) {
                LocalContext ctx(GetParam());

                chaos[t].blk = blk.get();
                chaos[t].seed = static_cast<unsigned>(t + 1);
                RunChaos(&chaos[t], count);
                left--;
                return;
            }
            while (left > 0) {
                ASSERT_EQ(blk_drained_begin(blk.get()), 0);
                blk_drained_end(blk.get());
                usleep(500);
            }
        });
        for (Chaos &c : chaos) {
            EXPECT_EQ(c.ended, count);
            EXPECT_EQ(c.twice, 0);
        }
        BlkStats st = Stats(blk);
        EXPECT_EQ(st.reads + st.writes, static_cast<uint64_t>(n * count));
        EXPECT_EQ(st.failed, st.timed_out + st.cancelled);
        EXPECT_EQ(st.detached, st.settled);
        EXPECT_EQ(st.detached > 0, *options != 0);
        EXPECT_GT(st.bounced, 0u);
        EXPECT_LT(st.failed, st.reads + st.writes);
    }
}
