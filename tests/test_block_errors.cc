/* SPDX-License-Identifier: MIT */
/* What errors lead to: retries, stops, and closing with requests that do not end. */
#include "block_support.h"
#include "loop_support.h"

#include <cerrno>
#include <cstring>
#include <thread>
#include <unistd.h>

static const BdrvRequestFlags kNone = BdrvRequestFlags();

static bool Contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

static BlockAIOCB *Read(const Blk &blk, Buffer *buf, Result *r, int64_t deadline_ns = -1)
{
    BlkReqOpts opts = {};

    opts.deadline_ns = deadline_ns;
    return blk_aio_preadv_opts(blk.get(), 0, &buf->qiov, kNone, Ended, r, &opts);
}

static BlockAIOCB *Write(const Blk &blk, int64_t offset, Buffer *buf, Result *r)
{
    return blk_aio_pwritev(blk.get(), offset, &buf->qiov, kNone, Ended, r);
}

static int ReadSync(const Blk &blk)
{
    char buf[512];

    return blk_pread(blk.get(), 0, sizeof(buf), buf, kNone);
}

static int WriteSync(const Blk &blk)
{
    char buf[512] = {};

    return blk_pwrite(blk.get(), 0, sizeof(buf), buf, kNone);
}

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* Is told of stops. */
struct Stops {
    explicit Stops(const Blk &blk)
    {
        blk_set_stop_cb(blk.get(), Told, this);
    }
    static void Told(void *opaque, int ret)
    {
        Stops *s = static_cast<Stops *>(opaque);

        s->ret = ret;
        s->ctx = qemu_get_current_aio_context();
        if (s->then) {
            s->then();
        }
        s->calls++;
    }
    std::atomic<int> calls{ 0 }, ret{ 0 };
    std::atomic<AioContext *> ctx{ nullptr };
    std::function<void()> then;
};

class BlkErrors : public OnEachMonitor
{
};
ON_EACH_MONITOR(BlkErrors);

TEST(BlkErrorOptions, BadOnesSayWhatIsAccepted)
{
    const struct {
        const char *option, *part;
    } cases[] = {
        { "on-error=halt", "'on-error' takes report, stop, enospc or retry, not 'halt'" },
        { "on-write-error=", "'on-write-error' takes report, stop, enospc or retry" },
        { "on-read-error=enospc", "'on-read-error' takes report, stop or retry, not 'enospc'" },
        { "retry-delay-ms=0", "'retry-delay-ms' takes a number of ms from 1 on" },
        { "close-timeout-ms=9223372036854775807", "'close-timeout-ms' takes" },
        { "retry-limit=-1", "'retry-limit' takes a whole number" },
    };

    for (const auto &c : cases) {
        std::string why = OpenError(std::string("null:") + c.option);

        EXPECT_TRUE(Contains(why, c.part)) << why;
    }
}

/* ---- Retrying -------------------------------------------------------------------------------- */

TEST_P(BlkErrors, ARetryGoesOnUntilItWorks)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:on-error=retry,retry-delay-ms=1,rules=any+times=3+error=EIO,null:");

    EXPECT_EQ(ReadSync(blk), 0);
    EXPECT_EQ(Stats(blk).retried, 3u);
    EXPECT_EQ(Stats(blk).failed, 0u);
}

TEST_P(BlkErrors, ARetryWaitsForItsDelay)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:on-error=retry,retry-delay-ms=20,rules=any+times=1+error=EIO,null:");
    int64_t begin = Now();

    EXPECT_EQ(ReadSync(blk), 0);
    EXPECT_GE(Now() - begin, 20000000);
}

TEST_P(BlkErrors, TheLimitIsOfTriesInARow)
{
    LocalContext ctx(GetParam());
    std::string spec = "blkdebug:on-error=retry,retry-delay-ms=1,retry-limit=2,";

    Blk blk = Open(spec + "rules=any+times=3+error=ENOSPC,null:");
    EXPECT_EQ(ReadSync(blk), -ENOSPC);
    EXPECT_EQ(Stats(blk).retried, 2u);

    /* Three pieces, each of which fails once: 1, 3 and 5. */
    MemDisk disk("pieces", 8192);
    disk.limits.max_transfer = 1024;
    Blk cut = Open(spec + "rules=read+nth=1+error=EIO;read+nth=2+error=EIO;read+nth=3+error=EIO,"
                          "mem:pieces");
    std::vector<char> buf(3072);
    EXPECT_EQ(blk_pread(cut.get(), 0, 3072, buf.data(), kNone), 0);
    EXPECT_EQ(Stats(cut).retried, 3u);
}

TEST_P(BlkErrors, ReadsAndWritesHaveTheirOwnPolicy)
{
    LocalContext ctx(GetParam());
    std::string rules = "retry-delay-ms=1,rules=read+times=1+error=EIO;write+times=1+error=EIO,";

    Blk blk = Open("blkdebug:on-read-error=retry," + rules + "null:");
    EXPECT_EQ(ReadSync(blk), 0);
    EXPECT_EQ(WriteSync(blk), -EIO);
    blk = Open("blkdebug:on-error=retry,on-read-error=report," + rules + "null:");
    EXPECT_EQ(ReadSync(blk), -EIO);
    EXPECT_EQ(WriteSync(blk), 0);
}

/* What the kernel could not write it forgets: the second one would say that all is well. */
TEST_P(BlkErrors, AFlushThatFailsIsReportedWhateverThePolicy)
{
    LocalContext ctx(GetParam());

    for (const char *policy : { "retry", "stop" }) {
        Blk blk = Open(std::string("blkdebug:rules=flush+times=1+error=EIO,on-error=") + policy +
                       ",null:");

        EXPECT_EQ(blk_flush(blk.get()), -EIO);
        EXPECT_EQ(blk_get_stop(blk.get()), 0);
        EXPECT_EQ(blk_flush(blk.get()), 0);
    }
}

TEST_P(BlkErrors, WhatIsRefusedIsReportedWhateverThePolicy)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:on-error=stop,read-only=on,rules=read+error=ENOTSUP,null:");
    char buf[512];

    EXPECT_EQ(blk_pread(blk.get(), -1, 512, buf, kNone), -EINVAL);
    EXPECT_EQ(WriteSync(blk), -EPERM);
    EXPECT_EQ(ReadSync(blk), -ENOTSUP);
    EXPECT_EQ(blk_get_stop(blk.get()), 0);
}

TEST_P(BlkErrors, WhileItWaitsForARetryARequestCanEnd)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:on-error=retry,retry-delay-ms=3600000,rules=any+error=EIO,null:");
    Buffer buf(512);
    Result r[5];
    BlockAIOCB *acb[5];

    for (int i = 0; i < 4; i++) {
        acb[i] = Read(blk, &buf, &r[i]);
    }
    Read(blk, &buf, &r[4], Now() + 1000000);
    while (aio_poll(ctx.get(), false)) {
    }
    EXPECT_GE(Stats(blk).retried, 4u);
    for (int i : { 3, 1, 0, 2 }) { /* the last, one between others, the first, the only one */
        EXPECT_EQ(r[i].calls, 0);
        blk_aio_cancel_async(acb[i]);
        EXPECT_EQ(r[i].calls, 0); /* never inside the call */
    }
    EXPECT_TRUE(ctx.PollUntil([&] { return r[2].calls && r[4].calls; }));
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ(r[i].calls, 1);
        EXPECT_EQ(r[i].ret, -ECANCELED);
    }
    EXPECT_EQ(r[4].ret, -ETIMEDOUT);
    EXPECT_EQ(Stats(blk).cancelled, 4u);
    EXPECT_EQ(Stats(blk).timed_out, 1u);
    EXPECT_EQ(Stats(blk).late, 0u);
}

TEST_P(BlkErrors, ADrainWaitsForRetries)
{
    ScopedIOThread io(GetParam());
    Blk blk = Open("blkdebug:on-error=retry,retry-delay-ms=5,rules=any+times=2+error=EIO,null:");
    Buffer buf(512);
    Result r;

    io.Run([&] { Read(blk, &buf, &r); });
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, 0);

    Blk never = Open("blkdebug:on-error=retry,rules=any+error=EIO,null:");
    io.Run([&] { Read(never, &buf, &r); });
    EXPECT_EQ(blk_drain_until(never.get(), Now() + 2000000), -ETIMEDOUT);
    never.reset(); /* is tried once more, and reported */
    EXPECT_EQ(r.calls, 2);
    EXPECT_EQ(r.ret, -EIO);
}

/* ---- Stopping -------------------------------------------------------------------------------- */

TEST_P(BlkErrors, AStopHoldsTheFailedRequestAndAllThatComeLater)
{
    LocalContext own(GetParam());
    ScopedIOThread other(GetParam());
    MemDisk disk("full", 65536);
    Blk blk = Open("blkdebug:on-error=stop,rules=write+to=512+times=2+error=ENOSPC,mem:full");
    Stops stops(blk);
    Buffer one(512, 1), two(512, 2), three(512, 3), there(512, 4);
    Result first, second, third, theirs;

    Write(blk, 0, &one, &first);
    EXPECT_EQ(blk_get_stop(blk.get()), -ENOSPC);
    Write(blk, 0, &two, &second);
    other.Run([&] { Write(blk, 4096, &there, &theirs); });
    Read(blk, &three, &third);
    ASSERT_TRUE(own.PollUntil([&] { return stops.calls == 1; }));
    EXPECT_EQ(stops.ret, -ENOSPC);
    EXPECT_EQ(stops.ctx, own.get());
    while (aio_poll(own.get(), false)) {
    }
    EXPECT_EQ(first.calls + second.calls + third.calls + theirs.calls, 0);
    EXPECT_EQ(disk.submitted, 0);

    EXPECT_TRUE(blk_resume(blk.get())); /* the first fails once more */
    ASSERT_TRUE(own.PollUntil([&] { return stops.calls == 2; }));
    EXPECT_EQ(first.calls + second.calls + third.calls, 0);
    EXPECT_TRUE(blk_resume(blk.get()));
    ASSERT_TRUE(own.PollUntil([&] { return third.calls && theirs.calls; }));
    EXPECT_EQ(first.ret | second.ret | third.ret | theirs.ret, 0);
    EXPECT_EQ(disk.data[0], 2); /* in the order in which they came */
    EXPECT_EQ(three.data[0], 2);
    EXPECT_EQ(disk.data[4096], 4);
    EXPECT_EQ(blk_get_stop(blk.get()), 0);
    EXPECT_FALSE(blk_resume(blk.get()));
    EXPECT_GE(Stats(blk).stopped, 2u);
    EXPECT_EQ(Stats(blk).failed, 0u);
}

TEST_P(BlkErrors, WhatFailsWhileStoppedGoesOnInTheOrderOfIssue)
{
    LocalContext own(GetParam());
    MemDisk disk("in-order", 65536);
    Blk blk = Open("mem:in-order?on-error=stop");
    Stops stops(blk);
    Buffer buf(512);
    Result r[3];
    std::vector<int> order;

    disk.stall = true;
    for (int i = 0; i < 3; i++) {
        r[i].then = [&order, i] { order.push_back(i); };
        Read(blk, &buf, &r[i]);
    }
    for (int i = 0; i < 3; i++) {
        disk.fail = -EIO;
        disk.ReleaseOne();
    }
    while (aio_poll(own.get(), false)) {
    }
    EXPECT_EQ(stops.calls, 1); /* one stop, whatever fails besides */
    EXPECT_EQ(Stats(blk).stopped, 3u);
    EXPECT_TRUE(order.empty());
    blk_resume(blk.get());
    ASSERT_TRUE(own.PollUntil([&] { return disk.Stalled() == 3; }));
    disk.Release();
    ASSERT_TRUE(own.PollUntil([&] { return order.size() == 3; }));
    EXPECT_EQ(order, (std::vector<int>{ 0, 1, 2 }));
}

TEST_P(BlkErrors, TheCallbackMayResume)
{
    LocalContext own(GetParam());
    Blk blk = Open("blkdebug:on-error=stop,rules=any+times=3+error=EIO,null:");
    Stops stops(blk);

    stops.then = [&] { EXPECT_TRUE(blk_resume(blk.get())); };
    EXPECT_EQ(ReadSync(blk), 0);
    EXPECT_EQ(stops.calls, 3);
}

/* The backend and its queue go inside the callback. */
TEST_P(BlkErrors, TheCallbackMayCloseAndPoll)
{
    LocalContext own(GetParam());
    Blk blk = Open("blkdebug:on-error=stop,rules=any+error=EIO,null:");
    Stops stops(blk);
    Buffer buf(512);
    Result r;

    stops.then = [&] {
        blk.reset();
        EXPECT_TRUE(own.PollUntil([&] { return r.calls == 1; }));
        while (aio_poll(own.get(), false)) {
        }
    };
    Read(blk, &buf, &r);
    ASSERT_TRUE(own.PollUntil([&] { return stops.calls == 1; }));
    EXPECT_EQ(r.ret, -EIO);
}

TEST_P(BlkErrors, AStopThatCameAfterAnotherIsToldOnceAndWhereItFailed)
{
    LocalContext own(GetParam());
    ScopedIOThread other(GetParam());
    Blk blk = Open("blkdebug:on-error=stop,rules=any+error=EIO,null:");
    Stops stops(blk);
    Buffer buf(512), there(512);
    Result r, theirs;
    AioContext *ctx = nullptr;

    Read(blk, &buf, &r);
    EXPECT_TRUE(blk_resume(blk.get())); /* before anybody was told */
    other.Run([&] {
        ctx = qemu_get_current_aio_context();
        Read(blk, &there, &theirs);
    });
    ASSERT_TRUE(WaitUntil([&] { return stops.calls == 1; }));
    while (aio_poll(own.get(), false)) {
    }
    EXPECT_EQ(stops.calls, 1);
    EXPECT_EQ(stops.ctx, ctx);
    blk.reset();
    EXPECT_EQ(r.calls + theirs.calls, 2);
}

TEST_P(BlkErrors, AnotherThreadMayResume)
{
    LocalContext own(GetParam());
    Blk blk = Open("blkdebug:on-error=stop,rules=any+times=1+error=EIO,null:");
    std::thread user([&] {
        EXPECT_TRUE(WaitUntil([&] { return blk_get_stop(blk.get()) != 0; }));
        EXPECT_TRUE(blk_resume(blk.get()));
    });

    EXPECT_EQ(ReadSync(blk), 0);
    user.join();
}

TEST_P(BlkErrors, EnospcStopsForAFullDiskOnly)
{
    LocalContext own(GetParam());
    Blk blk = Open("blkdebug:on-error=enospc,rules=read+times=1+error=ENOSPC;"
                   "write+nth=1+error=EIO;write+nth=1+error=ENOSPC,null:");
    Buffer buf(512);
    Result r;

    EXPECT_EQ(ReadSync(blk), -ENOSPC);
    EXPECT_EQ(WriteSync(blk), -EIO);
    EXPECT_EQ(blk_get_stop(blk.get()), 0);
    Write(blk, 0, &buf, &r);
    EXPECT_EQ(blk_get_stop(blk.get()), -ENOSPC);
    blk_resume(blk.get());
    ASSERT_TRUE(own.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
}

TEST_P(BlkErrors, WhatAStopHoldsCanEndAndItStaysStopped)
{
    LocalContext own(GetParam());
    MemDisk disk("stopped", 8192);
    Blk blk = Open("mem:stopped?on-error=stop");
    Buffer buf(512);
    Result failed, later, kept;

    disk.fail = -EIO;
    BlockAIOCB *acb = Read(blk, &buf, &failed);
    Read(blk, &buf, &later, Now() + 1000000);
    Read(blk, &buf, &kept);
    blk_aio_cancel_async(acb);
    ASSERT_TRUE(own.PollUntil([&] { return failed.calls && later.calls; }));
    EXPECT_EQ(failed.ret, -ECANCELED);
    EXPECT_EQ(later.ret, -ETIMEDOUT);
    EXPECT_EQ(kept.calls, 0);
    EXPECT_EQ(blk_get_stop(blk.get()), -EIO);
    blk_resume(blk.get());
    ASSERT_TRUE(own.PollUntil([&] { return kept.calls == 1; }));
    EXPECT_EQ(disk.submitted, 2);
}

TEST_P(BlkErrors, ADrainOfAStoppedBackendSaysSoAndEnds)
{
    LocalContext own(GetParam());
    MemDisk disk("busy", 8192);
    Blk blk = Open("mem:busy?on-error=stop");
    Buffer buf(512);
    Result r;

    disk.fail = -EIO;
    Read(blk, &buf, &r);
    EXPECT_EQ(blk_drain(blk.get()), -EBUSY);
    EXPECT_EQ(blk_drain_until(blk.get(), Now() + 1000000000), -EBUSY);
    EXPECT_EQ(blk_drained_begin(blk.get()), -EBUSY);
    EXPECT_TRUE(blk_resume(blk.get())); /* but the section holds it still */
    while (aio_poll(own.get(), false)) {
    }
    EXPECT_EQ(disk.submitted, 1);
    EXPECT_EQ(blk_drain(blk.get()), 0);
    blk_drained_end(blk.get());
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, 0);
}

TEST_P(BlkErrors, AStopKeepsNoRange)
{
    LocalContext own(GetParam());
    MemDisk disk("range", 8192, 512);
    Blk blk = Open("mem:range?on-error=stop");
    Buffer a(10, 0xaa), b(10, 0xbb);
    Result first, second;

    disk.stall = true;
    Write(blk, 0, &a, &first); /* reads its unit first */
    Write(blk, 100, &b, &second);
    disk.stall = false;
    disk.fail = -EIO;
    disk.Release();
    /* The second one was issued before the stop and goes on. */
    ASSERT_TRUE(own.PollUntil([&] { return second.calls == 1; }));
    EXPECT_EQ(blk_drain(blk.get()), -EBUSY);
    blk_resume(blk.get());
    ASSERT_TRUE(own.PollUntil([&] { return first.calls == 1; }));
    EXPECT_EQ(first.ret | second.ret, 0);
    EXPECT_EQ(disk.data[9], 0xaa);
    EXPECT_EQ(disk.data[100], 0xbb);
}

TEST_P(BlkErrors, AContextThatEndsTellsOfItsStopAndCancels)
{
    Blk blk = Open("blkdebug:on-error=stop,rules=any+error=EIO,null:");
    Stops stops(blk);
    Buffer buf(512);
    Result failed, later;
    IOThreadOptions opts = {};

    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("stopped", &opts);
    ASSERT_NE(io, nullptr);
    std::function<void()> submit = [&] {
        Read(blk, &buf, &failed);
        Read(blk, &buf, &later);
    };
    auto call = [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); };
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), call, &submit), 0);
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(stops.calls, 1);
    EXPECT_EQ(failed.ret, -ECANCELED);
    EXPECT_EQ(later.ret, -ECANCELED);
    EXPECT_EQ(blk_get_stop(blk.get()), -EIO);
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_TRUE(blk_resume(blk.get()));
}

/* ---- Closing --------------------------------------------------------------------------------- */

TEST_P(BlkErrors, ClosingReportsWhatWasHeldOrRetried)
{
    for (const char *policy : { "stop", "retry,retry-delay-ms=3600000" }) {
        for (bool below : { false, true }) {
            ScopedIOThread io(GetParam()), other(GetParam());
            Blk blk =
                Open(std::string("blkdebug:rules=read+error=EIO,on-error=") + policy + ",null:");
            Buffer buf(512);
            Result r, w;

            io.Run([&] {
                Read(blk, &buf, &r);
                Write(blk, 0, &buf, &w);
            });
            if (below) {
                other.Run([&] { blk.reset(); });
                ASSERT_TRUE(WaitUntil([&] { return r.calls && w.calls; }));
            }
            blk.reset();
            EXPECT_EQ(r.calls, 1);
            EXPECT_EQ(r.ret, -EIO);
            EXPECT_EQ(w.calls, 1);
            EXPECT_EQ(w.ret, 0);
        }
    }
}

/* The retry is due in the very pass over the timers in which the backend is closed. */
TEST_P(BlkErrors, ClosingDoesNotCancelARetryThatIsDue)
{
    LocalContext own(GetParam());
    Blk blk = Open("blkdebug:on-error=retry,retry-delay-ms=1,rules=any+times=1+error=EIO,null:");
    QEMUTimer *timer = aio_timer_new(
        own.get(), QEMU_CLOCK_REALTIME, SCALE_NS,
        [](void *opaque) { static_cast<Blk *>(opaque)->reset(); }, &blk);
    Buffer buf(512);
    Result r;

    timer_mod_ns(timer, Now());
    Read(blk, &buf, &r);
    usleep(5000);
    ASSERT_TRUE(own.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    timer_free(timer);
}

TEST_P(BlkErrors, ClosingCancelsWhatNeverEnds)
{
    for (const char *spec :
         { "blkdebug:rules=never,close-timeout-ms=1,null:",
           "null:latency-ns=3600000000000,close-timeout-ms=1",
           "throttle:iops=1000,close-timeout-ms=1,blkdebug:rules=never,null:" }) {
        for (bool below : { false, true }) {
            ScopedIOThread io(GetParam()), other(GetParam());
            Blk blk = Open(spec);
            Buffer buf(512);
            Result r[2];

            io.Run([&] { Read(blk, &buf, &r[0]); });
            other.Run([&] { Read(blk, &buf, &r[1]); });
            if (below) {
                other.Run([&] { blk.reset(); });
                ASSERT_TRUE(WaitUntil([&] { return r[0].calls && r[1].calls; }));
            }
            blk.reset();
            for (Result &one : r) {
                EXPECT_EQ(one.calls, 1) << spec;
                EXPECT_EQ(one.ret, -ECANCELED) << spec;
            }
        }
    }
}

TEST_P(BlkErrors, ClosingWaitsForWhatEndsInTime)
{
    LocalContext own(GetParam());
    Blk blk = Open("null:latency-ns=5000000");
    Buffer buf(512);
    Result r;

    Read(blk, &buf, &r);
    blk.reset();
    EXPECT_EQ(r.ret, 0);
}

/* ---- All at once ----------------------------------------------------------------------------- */

TEST_P(BlkErrors, StopsDrainsAndSectionsTogetherLoseNothing)
{
    for (const char *policy : { "stop", "retry" }) {
        const int n = 3, count = kSanitized ? 400 : 1500, depth = 8;
        MemDisk disk("chaos", 20000, 512);
        Blk blk = Open(std::string("blkdebug:rules=chance=0.05+error=EIO,retry-delay-ms=1,"
                                   "on-error=") +
                       policy + ",mem:chaos");
        std::atomic<int> left{ n }, bad{ 0 }, ended{ 0 };

        disk.later = true;
        disk.lag = 3;
        RunThreads(n + 2, [&](int t) {
            if (t == n) {
                while (left > 0) {
                    blk_resume(blk.get());
                    usleep(100);
                }
                return;
            }
            if (t == n + 1) {
                while (left > 0) {
                    int ret = blk_drain(blk.get());
                    bad += ret != 0 && ret != -EBUSY;
                    ret = blk_drained_begin(blk.get());
                    bad += ret != 0 && ret != -EBUSY;
                    blk_drained_end(blk.get());
                    usleep(500);
                }
                return;
            }
            LocalContext ctx(GetParam());
            struct Slot {
                Buffer buf{ 700 };
                Result r;
                int submitted = 0;
            } slots[depth];
            unsigned seed = static_cast<unsigned>(t + 1);
            int todo = count;

            ASSERT_TRUE(ctx.PollUntil([&] {
                bool busy = false;
                for (Slot &s : slots) {
                    if (s.r.calls == s.submitted && todo > 0) {
                        bad += s.submitted && s.r.ret != 0;
                        s.submitted++;
                        todo--;
                        int64_t offset = rand_r(&seed) % 19000;
                        if (rand_r(&seed) % 2) {
                            Write(blk, offset, &s.buf, &s.r);
                        } else {
                            blk_aio_preadv(blk.get(), offset, &s.buf.qiov, kNone, Ended, &s.r);
                        }
                    }
                    busy |= s.r.calls != s.submitted;
                }
                return !busy && todo == 0;
            }));
            for (Slot &s : slots) {
                bad += s.r.ret != 0;
                ended += s.r.calls;
            }
            left--;
        });
        EXPECT_EQ(bad, 0);
        EXPECT_EQ(ended, n * count);
        BlkStats st = Stats(blk);
        EXPECT_EQ(st.failed, 0u);
        EXPECT_EQ(st.reads + st.writes, static_cast<uint64_t>(n * count));
        EXPECT_GT(st.stopped + st.retried, 0u);
    }
}
