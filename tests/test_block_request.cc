/* SPDX-License-Identifier: MIT */
/* The life of a request: callbacks, deadlines, cancel, detach, pieces.  On every monitor. */
#include "block_support.h"

#include <cerrno>
#include <cstring>

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

class BlkRequest : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
        ctx.reset(new LocalContext(GetParam()));
    }

    bool Poll(const std::function<bool()> &cond)
    {
        return ctx->PollUntil(cond);
    }
    /* A read of @buf at 0 with a deadline of @ns from now. */
    static BlockAIOCB *TimedRead(const Blk &blk, Buffer *buf, Result *r, int64_t ns)
    {
        BlkReqOpts opts = {};

        opts.deadline_ns = ns < 0 ? -1 : Now() + ns;
        return blk_aio_preadv_opts(blk.get(), 0, &buf->qiov, BdrvRequestFlags(), Ended, r, &opts);
    }
    static BlockAIOCB *Read(const Blk &blk, int64_t offset, Buffer *buf, Result *r)
    {
        return blk_aio_preadv(blk.get(), offset, &buf->qiov, BdrvRequestFlags(), Ended, r);
    }
    static BlockAIOCB *Write(const Blk &blk, int64_t offset, Buffer *buf, Result *r)
    {
        return blk_aio_pwritev(blk.get(), offset, &buf->qiov, BdrvRequestFlags(), Ended, r);
    }

    std::unique_ptr<LocalContext> ctx;
};

INSTANTIATE_TEST_SUITE_P(Monitors, BlkRequest, testing::ValuesIn(kMonitors), MonitorName);

static const int64_t kLong = INT64_C(3600000000000);
/* Ahead when the request is submitted, on a busy machine too. */
static const int64_t kSoon = 100 * SCALE_MS;

TEST_P(BlkRequest, ReadsOfNullGiveZeroes)
{
    Blk blk = Open("null://");
    Buffer buf(4096, 0xff);
    Result r;

    ASSERT_NE(Read(blk, 0, &buf, &r), nullptr);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    for (size_t i = 0; i < buf.size; i++) {
        ASSERT_EQ(buf.data[i], 0);
    }
    EXPECT_EQ(Stats(blk).reads, 1u);
    EXPECT_EQ(Stats(blk).bytes_read, 4096u);
}

TEST_P(BlkRequest, NeverCallsBackInsideTheSubmittingCall)
{
    Blk blk = Open("null://?size=1M");
    Buffer buf(4096);
    Result ok, bad, late;
    BlkReqOpts past = {};

    ASSERT_NE(Read(blk, 0, &buf, &ok), nullptr);
    EXPECT_EQ(ok.calls, 0);
    ASSERT_NE(Read(blk, 1 << 20, &buf, &bad), nullptr);
    EXPECT_EQ(bad.calls, 0);
    ASSERT_NE(blk_aio_preadv_opts(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &late, &past),
              nullptr);
    EXPECT_EQ(late.calls, 0);
    ASSERT_TRUE(Poll([&] { return ok.calls && bad.calls && late.calls; }));
    EXPECT_EQ(ok.ret, 0);
    EXPECT_EQ(bad.ret, -EINVAL);
    EXPECT_EQ(late.ret, -ETIMEDOUT);
}

TEST_P(BlkRequest, LatencyIsWaitedFor)
{
    Blk blk = Open("null://?latency-ns=2000000");
    Buffer buf(512);
    Result r;
    int64_t begin = Now();

    ASSERT_NE(Read(blk, 0, &buf, &r), nullptr);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    EXPECT_GE(Now() - begin, 2000000);
}

TEST_P(BlkRequest, RangesOutsideAreRefused)
{
    Blk blk = Open("null://?size=10000");
    Buffer buf(512);
    struct Case {
        int64_t offset;
        int ret;
    } cases[] = { { 10000 - 512, 0 },
                  { 10000 - 511, -EINVAL },
                  { 10000, -EINVAL },
                  { -1, -EINVAL },
                  { INT64_MAX, -EINVAL } };

    for (const Case &c : cases) {
        Result r, w, d, z;

        ASSERT_NE(Read(blk, c.offset, &buf, &r), nullptr);
        ASSERT_NE(Write(blk, c.offset, &buf, &w), nullptr);
        ASSERT_NE(blk_aio_pdiscard(blk.get(), c.offset, 512, Ended, &d), nullptr);
        ASSERT_NE(blk_aio_pwrite_zeroes(blk.get(), c.offset, 512, BdrvRequestFlags(), Ended, &z),
                  nullptr);
        ASSERT_TRUE(Poll([&] { return r.calls && w.calls && d.calls && z.calls; }));
        EXPECT_EQ(r.ret, c.ret) << c.offset;
        EXPECT_EQ(w.ret, c.ret) << c.offset;
        EXPECT_EQ(d.ret, c.ret) << c.offset;
        EXPECT_EQ(z.ret, c.ret) << c.offset;
    }
    Result neg, empty;
    Buffer none(0);
    ASSERT_NE(blk_aio_pdiscard(blk.get(), 0, -1, Ended, &neg), nullptr);
    ASSERT_NE(Read(blk, 10000, &none, &empty), nullptr);
    ASSERT_TRUE(Poll([&] { return neg.calls && empty.calls; }));
    EXPECT_EQ(neg.ret, -EINVAL);
    EXPECT_EQ(empty.ret, 0);
}

TEST_P(BlkRequest, UnknownFlagsAreRefused)
{
    Blk blk = Open("null://");
    Buffer buf(512);
    Result a, b;

    blk_aio_pwritev(blk.get(), 0, &buf.qiov, static_cast<BdrvRequestFlags>(1 << 20), Ended, &a);
    blk_aio_preadv(blk.get(), 0, &buf.qiov, BDRV_REQ_NO_FALLBACK, Ended, &b);
    ASSERT_TRUE(Poll([&] { return a.calls && b.calls; }));
    EXPECT_EQ(a.ret, -EINVAL);
    EXPECT_EQ(b.ret, -EINVAL);
}

TEST_P(BlkRequest, ReadOnlyBackendsRefuseWrites)
{
    Blk blk = Open("null://?read-only=on");
    Buffer buf(512);
    Result w, d, z, r, f;

    Write(blk, 0, &buf, &w);
    blk_aio_pdiscard(blk.get(), 0, 512, Ended, &d);
    blk_aio_pwrite_zeroes(blk.get(), 0, 512, BdrvRequestFlags(), Ended, &z);
    Read(blk, 0, &buf, &r);
    blk_aio_flush(blk.get(), Ended, &f);
    ASSERT_TRUE(Poll([&] { return w.calls && d.calls && z.calls && r.calls && f.calls; }));
    EXPECT_EQ(w.ret, -EPERM);
    EXPECT_EQ(d.ret, -EPERM);
    EXPECT_EQ(z.ret, -EPERM);
    EXPECT_EQ(r.ret, 0);
    EXPECT_EQ(f.ret, 0);
    EXPECT_TRUE(blk_is_read_only(blk.get()));
}

TEST_P(BlkRequest, NullReadsZeroesUnlessToldToLeaveTheBufferAlone)
{
    for (bool off : { false, true }) {
        Blk blk = Open(off ? "null:read-zeroes=off" : "null:");
        Buffer buf(512, 0x5a);
        BlkExtent extent = {};
        Result r, s;

        ASSERT_NE(Read(blk, 0, &buf, &r), nullptr);
        blk_aio_block_status(blk.get(), 0, 512, &extent, Ended, &s);
        ASSERT_TRUE(Poll([&] { return r.calls && s.calls; }));
        EXPECT_EQ(r.ret, 0);
        EXPECT_EQ(buf.data[0], off ? 0x5a : 0);
        EXPECT_EQ(buf.data[511], off ? 0x5a : 0);
        EXPECT_EQ(extent.status & BDRV_BLOCK_ZERO, off ? 0u : uint32_t(BDRV_BLOCK_ZERO));
    }
}

/* ---- Deadlines and cancel -------------------------------------------------------------------- */

TEST_P(BlkRequest, ADeadlineInThePastIsNotIssued)
{
    MemDisk disk("past", 65536);
    Blk blk = Open("mem:past");
    Buffer buf(512);
    Result zero, now;
    BlkReqOpts opts = {};

    blk_aio_preadv_opts(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &zero, &opts);
    TimedRead(blk, &buf, &now, 0);
    ASSERT_TRUE(Poll([&] { return zero.calls && now.calls; }));
    EXPECT_EQ(zero.ret, -ETIMEDOUT);
    EXPECT_EQ(now.ret, -ETIMEDOUT);
    EXPECT_EQ(disk.submitted, 0);
    EXPECT_EQ(Stats(blk).timed_out, 2u);
    EXPECT_EQ(Stats(blk).failed, 2u);
}

TEST_P(BlkRequest, ARequestPastItsDeadlineEndsOnceInETIMEDOUT)
{
    Blk blk = Open("null://?latency-ns=3600000000000");
    Buffer buf(512);
    Result r;

    ASSERT_NE(TimedRead(blk, &buf, &r, kSoon), nullptr);
    ASSERT_TRUE(Poll([&] { return r.calls > 0; }));
    while (aio_poll(ctx->get(), false)) {
    }
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, -ETIMEDOUT);
    EXPECT_EQ(Stats(blk).timed_out, 1u);
    EXPECT_EQ(Stats(blk).late, 0u);
}

TEST_P(BlkRequest, TheBackendsDeadlineCountsFromSubmission)
{
    Blk blk = Open("null://?latency-ns=3600000000000&deadline-ns=1000000");
    Buffer buf(512);
    Result r, none;

    ASSERT_NE(Read(blk, 0, &buf, &r), nullptr);
    BlockAIOCB *acb = TimedRead(blk, &buf, &none, -1); /* not even the backend's */
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ETIMEDOUT);
    EXPECT_EQ(none.calls, 0);
    blk_aio_cancel_async(acb);
    ASSERT_TRUE(Poll([&] { return none.calls == 1; }));
    EXPECT_EQ(none.ret, -ECANCELED);
}

TEST_P(BlkRequest, ADeadlineThatIsMetDoesNothing)
{
    Blk blk = Open("null://?latency-ns=1000");
    Buffer buf(512);
    Result r;

    ASSERT_NE(TimedRead(blk, &buf, &r, kLong), nullptr);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    EXPECT_EQ(Stats(blk).timed_out + Stats(blk).late, 0u);
}

TEST_P(BlkRequest, WhatCannotBeRecalledEndsInItsOwnResultAndIsLate)
{
    MemDisk disk("late", 65536);
    Blk blk = Open("mem:late");
    Buffer buf(512);
    Result r;

    disk.stall = true;
    ASSERT_NE(TimedRead(blk, &buf, &r, kSoon), nullptr);
    ASSERT_TRUE(Poll([&] { return disk.cancels == 1; }));
    for (int i = 0; i < 10; i++) {
        aio_poll(ctx->get(), false);
    }
    EXPECT_EQ(r.calls, 0); /* the driver still owns the buffer */
    disk.Release();
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    EXPECT_EQ(Stats(blk).late, 1u);
    EXPECT_EQ(Stats(blk).timed_out, 0u);
}

TEST_P(BlkRequest, CancelledRequestsEndOnceInECANCELED)
{
    Blk blk = Open("null://?latency-ns=3600000000000");
    Buffer buf(512);
    Result r;
    BlockAIOCB *acb = Read(blk, 0, &buf, &r);

    ASSERT_NE(acb, nullptr);
    blk_aio_cancel_async(acb);
    EXPECT_EQ(r.calls, 0); /* not inside the call */
    blk_aio_cancel_async(acb);
    ASSERT_TRUE(Poll([&] { return r.calls > 0; }));
    while (aio_poll(ctx->get(), false)) {
    }
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, -ECANCELED);
    EXPECT_EQ(Stats(blk).cancelled, 1u);
    EXPECT_EQ(Stats(blk).failed, 1u);
}

TEST_P(BlkRequest, ACancelThatLosesLeavesTheResult)
{
    MemDisk disk("lost", 65536);
    Blk blk = Open("mem:lost");
    Buffer buf(512);
    Result stalled, done;

    disk.stall = true;
    BlockAIOCB *acb = Read(blk, 0, &buf, &stalled);
    blk_aio_cancel_async(acb);
    disk.fail = -EIO;
    disk.Release();
    ASSERT_TRUE(Poll([&] { return stalled.calls == 1; }));
    EXPECT_EQ(stalled.ret, -EIO);
    disk.stall = false;
    acb = Read(blk, 0, &buf, &done); /* has ended already, but was not called back */
    blk_aio_cancel_async(acb);
    ASSERT_TRUE(Poll([&] { return done.calls == 1; }));
    EXPECT_EQ(done.ret, 0);
}

TEST_P(BlkRequest, TheRestOfASplitRequestIsNotIssuedAfterACancel)
{
    MemDisk disk("split-cancel", 65536);
    disk.limits.max_transfer = 4096;
    Blk blk = Open("mem:split-cancel");
    Buffer buf(16384);
    Result r;

    disk.stall = true;
    BlockAIOCB *acb = Read(blk, 0, &buf, &r);
    blk_aio_cancel_async(acb);
    disk.Release();
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ECANCELED);
    EXPECT_EQ(disk.submitted, 1);
}

/* ---- Callbacks and the loop ------------------------------------------------------------------ */

TEST_P(BlkRequest, ANestedPollGoesOnWithWhatHasFinished)
{
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r[5];

    r[0].then = [&] {
        EXPECT_TRUE(Poll([&] { return r[1].calls && r[2].calls && r[3].calls && r[4].calls; }));
    };
    r[2].then = [&] { EXPECT_TRUE(Poll([&] { return r[3].calls && r[4].calls; })); };
    for (Result &one : r) {
        ASSERT_NE(Read(blk, 0, &buf, &one), nullptr);
    }
    ASSERT_TRUE(Poll([&] { return r[0].calls == 1; }));
    for (Result &one : r) {
        EXPECT_EQ(one.calls, 1);
    }
}

TEST_P(BlkRequest, ABlockingPollInsideACallbackDoesNotSleepOnFinishedOnes)
{
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r[3];

    r[0].then = [&] {
        while (!r[2].calls) {
            aio_poll(ctx->get(), true);
        }
    };
    for (Result &one : r) {
        ASSERT_NE(Read(blk, 0, &buf, &one), nullptr);
    }
    while (!r[0].calls) {
        aio_poll(ctx->get(), true);
    }
    EXPECT_EQ(r[1].calls, 1);
}

TEST_P(BlkRequest, AStreamOfRequestsLeavesTimersTheirTurn)
{
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r;
    std::atomic<bool> fired{ false };

    r.then = [&] {
        if (!fired) {
            Read(blk, 0, &buf, &r);
        }
    };
    HeapTimer timer(aio_context_get_timer_list_group(ctx->get()), [&] { fired = true; });
    timer_mod_ns(timer, Now() + 1000000);
    ASSERT_NE(Read(blk, 0, &buf, &r), nullptr);
    ASSERT_TRUE(Poll([&] { return fired.load(); }));
    EXPECT_EQ(blk_drain(blk.get()), 0);
}

TEST_P(BlkRequest, TheLastReferenceMayGoInACallback)
{
    BlockBackend *blk = blk_open("null://?latency-ns=1000", nullptr);
    Buffer buf(512);
    Result a, b;

    ASSERT_NE(blk, nullptr);
    a.then = [&] { blk_unref(blk); };
    blk_aio_preadv(blk, 0, &buf.qiov, BdrvRequestFlags(), Ended, &a);
    BlkReqOpts opts = {};
    opts.deadline_ns = -1;
    blk_aio_preadv_opts(blk, 0, &buf.qiov, BdrvRequestFlags(), Ended, &b, &opts);
    ASSERT_TRUE(Poll([&] { return a.calls && b.calls; }));
    EXPECT_EQ(a.ret, 0);
    EXPECT_EQ(b.ret, 0);
}

TEST_P(BlkRequest, WithoutACurrentContextThereIsNoRequest)
{
    Blk blk = Open("null://");
    Buffer buf(512);
    Result r;
    BlockAIOCB *acb = nullptr;
    int err = 0;

    RunThreads(1, [&](int) {
        acb = Read(blk, 0, &buf, &r);
        err = errno;
    });
    EXPECT_EQ(acb, nullptr);
    EXPECT_EQ(err, EINVAL);
    EXPECT_EQ(r.calls, 0);
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

TEST_P(BlkRequest, LargeRequestsAreSplit)
{
    MemDisk disk("large", 1 << 20);
    disk.limits.max_transfer = 65536;
    Blk blk = Open("mem:large");
    Buffer out(1 << 20), in(1 << 20);
    Result w, r;

    for (size_t i = 0; i < out.size; i++) {
        out.data[i] = static_cast<uint8_t>(i * 7 + i / 251);
    }
    Write(blk, 0, &out, &w);
    ASSERT_TRUE(Poll([&] { return w.calls == 1; }));
    Read(blk, 0, &in, &r);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(w.ret, 0);
    EXPECT_EQ(r.ret, 0);
    EXPECT_EQ(memcmp(out.data, in.data, in.size), 0);
    EXPECT_EQ(Stats(blk).split, 2u);
    EXPECT_EQ(disk.submitted, 32);
    EXPECT_EQ(disk.longest, 65536u);
}

TEST_P(BlkRequest, ShortTransfersAreContinued)
{
    MemDisk disk("short", 65536);
    Blk blk = Open("mem:short");
    Buffer out(10000, 0x5a), in(10000);
    Result w, r;

    disk.transfer = 4097;
    Write(blk, 5, &out, &w);
    ASSERT_TRUE(Poll([&] { return w.calls == 1; }));
    Read(blk, 5, &in, &r);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(w.ret, 0);
    EXPECT_EQ(r.ret, 0);
    EXPECT_EQ(memcmp(out.data, in.data, in.size), 0);
    EXPECT_EQ(Stats(blk).short_transfers, 4u);
    EXPECT_EQ(disk.data[4], 0);
    EXPECT_EQ(disk.data[10005], 0);
}

TEST_P(BlkRequest, AnEmptyTransferIsAnError)
{
    MemDisk disk("empty", 65536, 512);
    Blk blk = Open("mem:empty");
    Buffer buf(1024);
    Result r;

    disk.transfer = 100; /* less than the unit that it asks for */
    Read(blk, 0, &buf, &r);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -EIO);
}

TEST_P(BlkRequest, InterruptedPiecesAreTriedAgain)
{
    MemDisk disk("eintr", 65536);
    Blk blk = Open("mem:eintr");
    Buffer buf(1024);
    Result few, many;

    disk.interrupt = 3;
    Read(blk, 0, &buf, &few);
    ASSERT_TRUE(Poll([&] { return few.calls == 1; }));
    EXPECT_EQ(few.ret, 0);
    disk.interrupt = 1000000;
    Read(blk, 0, &buf, &many);
    ASSERT_TRUE(Poll([&] { return many.calls == 1; }));
    EXPECT_EQ(many.ret, -EINTR); /* not for ever */
    disk.interrupt = 0;
}

TEST_P(BlkRequest, VectorsOfManyBuffersArriveInOrder)
{
    MemDisk disk("iov", 1 << 20);
    disk.limits.max_iov = 7;
    disk.limits.max_transfer = 5000;
    Blk blk = Open("mem:iov");
    const int n = 1500;
    std::vector<std::vector<uint8_t>> bufs(n);
    std::vector<struct iovec> iov(n);
    std::vector<uint8_t> flat;
    QEMUIOVector qiov;
    Result w, r;

    for (int i = 0; i < n; i++) {
        bufs[i].resize(i % 97 == 0 ? 9000 : i % 13 * 17); /* empty and long ones, too */
        for (uint8_t &b : bufs[i]) {
            b = static_cast<uint8_t>(flat.size() * 31 + flat.size() / 255);
            flat.push_back(b);
        }
        iov[i] = { bufs[i].data(), bufs[i].size() };
    }
    qemu_iovec_init_external(&qiov, iov.data(), n);
    blk_aio_pwritev(blk.get(), 3, &qiov, BdrvRequestFlags(), Ended, &w);
    ASSERT_TRUE(Poll([&] { return w.calls == 1; }));
    EXPECT_EQ(w.ret, 0);
    ASSERT_EQ(memcmp(disk.data.data() + 3, flat.data(), flat.size()), 0);
    for (auto &b : bufs) {
        std::fill(b.begin(), b.end(), 0);
    }
    blk_aio_preadv(blk.get(), 3, &qiov, BdrvRequestFlags(), Ended, &r);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    size_t at = 0;
    for (auto &b : bufs) {
        ASSERT_EQ(std::vector<uint8_t>(flat.begin() + at, flat.begin() + at + b.size()), b);
        at += b.size();
    }
    EXPECT_EQ(disk.most_iov, 7);
}

TEST_P(BlkRequest, FuaGoesWithEveryPiece)
{
    MemDisk disk("fua", 65536);
    disk.limits.max_transfer = 4096;
    Blk blk = Open("mem:fua");
    Buffer buf(8192);
    Result w, z, f;

    blk_aio_pwritev(blk.get(), 0, &buf.qiov, BDRV_REQ_FUA, Ended, &w);
    ASSERT_TRUE(Poll([&] { return w.calls == 1; }));
    EXPECT_EQ(disk.fua, 2);
    EXPECT_EQ(disk.flushes, 0);
    blk_aio_pwrite_zeroes(blk.get(), 0, 8192, BDRV_REQ_FUA, Ended, &z);
    ASSERT_TRUE(Poll([&] { return z.calls == 1; }));
    EXPECT_EQ(disk.range_ops, 1);
    EXPECT_EQ(disk.flushes, 1);
    blk_aio_flush(blk.get(), Ended, &f);
    ASSERT_TRUE(Poll([&] { return f.calls == 1; }));
    EXPECT_EQ(disk.flushes, 2);
    EXPECT_EQ(w.ret + z.ret + f.ret, 0);
}

TEST_P(BlkRequest, ZeroesAreWrittenWhereTheDriverCannotZero)
{
    MemDisk disk("zeroes", 3 << 20);
    Blk blk = Open("mem:zeroes");
    Result z, no, d;
    size_t from = 1000, bytes = (2 << 20) + 77777;

    std::fill(disk.data.begin(), disk.data.end(), 0xee);
    disk.no_zeroes = true;
    blk_aio_pwrite_zeroes(blk.get(), from, bytes, BDRV_REQ_NO_FALLBACK, Ended, &no);
    ASSERT_TRUE(Poll([&] { return no.calls == 1; }));
    EXPECT_EQ(no.ret, -ENOTSUP);
    blk_aio_pwrite_zeroes(blk.get(), from, bytes, BdrvRequestFlags(), Ended, &z);
    blk_aio_pdiscard(blk.get(), 0, 100, Ended, &d); /* a hint: no error */
    ASSERT_TRUE(Poll([&] { return z.calls == 1 && d.calls == 1; }));
    EXPECT_EQ(z.ret, 0);
    EXPECT_EQ(d.ret, 0);
    for (size_t i = 0; i < disk.data.size(); i++) {
        ASSERT_EQ(disk.data[i], i >= from && i < from + bytes ? 0 : 0xee) << i;
    }
}

/* ---- Detach ---------------------------------------------------------------------------------- */

TEST_P(BlkRequest, DetachEndsOnTimeAndNeverTouchesTheBufferAgain)
{
    MemDisk disk("detach-read", 65536);
    Blk blk = Open("mem:detach-read?detach=on");
    Buffer buf(4096, 0x77);
    Result r;

    disk.stall = true;
    ASSERT_NE(TimedRead(blk, &buf, &r, kSoon), nullptr);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ETIMEDOUT);
    EXPECT_EQ(disk.Stalled(), 1); /* the driver has not let go */
    EXPECT_EQ(Stats(blk).detached, 1u);
    EXPECT_EQ(Stats(blk).settled, 0u);
    disk.Release();
    EXPECT_EQ(Stats(blk).settled, 1u);
    while (aio_poll(ctx->get(), false)) {
    }
    EXPECT_EQ(r.calls, 1);
    for (size_t i = 0; i < buf.size; i++) {
        ASSERT_EQ(buf.data[i], 0x77);
    }
}

TEST_P(BlkRequest, DetachPrefersACancelThatWins)
{
    MemDisk disk("detach-recall", 65536);
    Blk blk = Open("mem:detach-recall?detach=on");
    Buffer buf(4096);
    Result r;

    disk.stall = disk.recall = true;
    ASSERT_NE(TimedRead(blk, &buf, &r, kSoon), nullptr);
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ETIMEDOUT);
    EXPECT_EQ(Stats(blk).detached, 0u);
}

TEST_P(BlkRequest, WritesThatOverlapADetachedOneWaitUntilItHasSettled)
{
    MemDisk disk("detach-write", 65536);
    Blk blk = Open("mem:detach-write?detach=on");
    Buffer old_data(4096, 0x11), new_data(4096, 0x22), far(4096, 0x33);
    Result first, overlap, apart;

    disk.stall = true;
    BlockAIOCB *acb = Write(blk, 0, &old_data, &first);
    blk_aio_cancel_async(acb);
    ASSERT_TRUE(Poll([&] { return first.calls == 1; }));
    EXPECT_EQ(first.ret, -ECANCELED);
    memset(old_data.data, 0xdd, old_data.size); /* it is ours again */

    disk.stall = false;
    Write(blk, 2048, &new_data, &overlap);
    Write(blk, 8192, &far, &apart);
    ASSERT_TRUE(Poll([&] { return apart.calls == 1; }));
    for (int i = 0; i < 10; i++) {
        aio_poll(ctx->get(), false);
    }
    EXPECT_EQ(overlap.calls, 0);
    disk.Release();
    ASSERT_TRUE(Poll([&] { return overlap.calls == 1; }));
    EXPECT_EQ(overlap.ret, 0);
    EXPECT_EQ(disk.data[0], 0x11);
    EXPECT_EQ(disk.data[2047], 0x11);
    EXPECT_EQ(disk.data[2048], 0x22);
    EXPECT_EQ(disk.data[6143], 0x22);
    EXPECT_EQ(Stats(blk).detached, 1u);
    EXPECT_EQ(Stats(blk).settled, 1u);
}

TEST_P(BlkRequest, AWriteThatWaitsForItsRangeCanBeCancelled)
{
    MemDisk disk("detach-wait", 65536);
    Blk blk = Open("mem:detach-wait?detach=on");
    Buffer a(4096, 1), b(4096, 2), c(4096, 3);
    Result ra, rb, rc;

    disk.stall = true;
    blk_aio_cancel_async(Write(blk, 0, &a, &ra));
    ASSERT_TRUE(Poll([&] { return ra.calls == 1; }));
    BlockAIOCB *waiting = Write(blk, 0, &b, &rb);
    Write(blk, 4095, &c, &rc);
    EXPECT_EQ(disk.submitted, 1);
    blk_aio_cancel_async(waiting);
    ASSERT_TRUE(Poll([&] { return rb.calls == 1; }));
    EXPECT_EQ(rb.ret, -ECANCELED);
    EXPECT_EQ(disk.submitted, 1);
    disk.stall = false;
    disk.Release();
    ASSERT_TRUE(Poll([&] { return rc.calls == 1; }));
    EXPECT_EQ(rc.ret, 0);
    EXPECT_EQ(disk.data[0], 1);
    EXPECT_EQ(disk.data[4095], 3);
}

TEST_P(BlkRequest, ABackendWithADetachedPieceClosesWhenItHasSettled)
{
    MemDisk disk("detach-close", 65536);
    BlockBackend *blk = blk_open("mem:detach-close?detach=on", nullptr);
    Buffer buf(4096);
    Result r;

    ASSERT_NE(blk, nullptr);
    disk.stall = true;
    r.then = [&] { blk_unref(blk); }; /* below a callback: does not wait */
    blk_aio_cancel_async(blk_aio_preadv(blk, 0, &buf.qiov, BdrvRequestFlags(), Ended, &r));
    ASSERT_TRUE(Poll([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ECANCELED);
    disk.Release();
    while (aio_poll(ctx->get(), false)) {
    }
}
