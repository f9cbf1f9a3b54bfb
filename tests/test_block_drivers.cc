/* SPDX-License-Identifier: MIT */
/* What holds on every driver of the library: deadlines, cancel, detach and their counters;
 * synchronous calls and drains below callbacks and on plain threads. */
#include "block_support.h"
#include "loop_support.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <thread>
#include <unistd.h>

static const BdrvRequestFlags kNone = BdrvRequestFlags();

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

class BlkDrivers : public OnEachMonitor
{
protected:
    /* A file of @bytes, all 0x5a. */
    std::string File(size_t bytes = 65536)
    {
        std::string path = dir.Path("disk");
        std::vector<char> data(bytes, 0x5a);
        int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_TRUNC, 0666);

        EXPECT_EQ(write(fd, data.data(), bytes), static_cast<ssize_t>(bytes));
        EXPECT_EQ(fsync(fd), 0);
        close(fd);
        return path;
    }
    static BlockAIOCB *Read(const Blk &blk, Buffer *buf, Result *r, int64_t deadline_ns = -1)
    {
        BlkReqOpts opts = {};

        opts.deadline_ns = deadline_ns;
        return blk_aio_preadv_opts(blk.get(), 0, &buf->qiov, kNone, Ended, r, &opts);
    }

    TempDir dir;
};
ON_EACH_MONITOR(BlkDrivers);

static bool IsUntouched(const Buffer &buf, uint8_t fill)
{
    for (size_t i = 0; i < buf.size; i++) {
        if (buf.data[i] != fill) {
            return false;
        }
    }
    return true;
}

/* ---- Deadlines, cancel, detach --------------------------------------------------------------- */

TEST_P(BlkDrivers, WhatCanBeRecalledEndsOnTimeAndIsCounted)
{
    LocalContext ctx(GetParam());
    std::string file = "file:" + File();

    for (std::string spec :
         { std::string("null:latency-ns=3600000000000"), std::string("blkdebug:rules=never,null:"),
           "blkdebug:rules=delay=1000s," + file, "blkdebug:blkdebug:rules=never," + file,
           "throttle:iops=100000,blkdebug:rules=never," + file }) {
        for (const char *detach : { "?detach=on", "?detach=off" }) {
            bool in_list = spec.find("null:l") == 0;
            Blk blk = Open(spec + (in_list ? std::string(",") + (detach + 1) : detach));
            Buffer buf(512, 0x77), out(512, 0x11);
            Result timed, cancelled, past, write;

            Read(blk, &buf, &timed, Now() + 2000000);
            Read(blk, &buf, &past, Now() - 1);
            BlockAIOCB *acb = Read(blk, &buf, &cancelled);
            BlockAIOCB *acb_write = blk_aio_pwritev(blk.get(), 0, &out.qiov, kNone, Ended, &write);
            EXPECT_EQ(blk_drain_until(blk.get(), Now()), -ETIMEDOUT);
            blk_aio_cancel_async(acb);
            blk_aio_cancel_async(acb_write);
            EXPECT_EQ(blk_drain(blk.get()), 0);
            EXPECT_EQ(timed.ret, -ETIMEDOUT) << spec;
            EXPECT_EQ(past.ret, -ETIMEDOUT) << spec;
            EXPECT_EQ(cancelled.ret, -ECANCELED) << spec;
            EXPECT_EQ(write.ret, -ECANCELED) << spec;
            EXPECT_EQ(timed.calls + past.calls + cancelled.calls + write.calls, 4);
            EXPECT_TRUE(IsUntouched(buf, 0x77)) << spec;
            BlkStats st = Stats(blk);
            EXPECT_EQ(st.timed_out, 2u) << spec;
            EXPECT_EQ(st.cancelled, 2u) << spec;
            EXPECT_EQ(st.failed, 4u) << spec;
            EXPECT_EQ(st.late + st.detached + st.settled, 0u) << spec;
        }
    }
}

TEST_P(BlkDrivers, WhatCannotBeRecalledBelowAFilterIsDetachedOrLate)
{
    LocalContext ctx(GetParam());
    MemDisk disk("hung", 65536);
    FakeClock clock(QEMU_CLOCK_REALTIME, INT64_C(1) << 60); /* else both could be late already */

    for (const char *above : { "", "throttle:iops=100000,",
                               "blkdebug:", "throttle:iops=100000,blkdebug:rules=short=4k," }) {
        for (bool detach : { false, true }) {
            Blk blk = Open(std::string(above) + "mem:hung?detach=" + (detach ? "on" : "off"));
            Buffer buf(512, 0x77), out(512, 0x11);
            Result read, write, cancelled, over;

            disk.stall = true;
            disk.cancels = 0;
            Read(blk, &buf, &read, Now() + 1000000);
            BlkReqOpts opts = {};
            opts.deadline_ns = Now() + 1000000;
            blk_aio_pwritev_opts(blk.get(), 4096, &out.qiov, kNone, Ended, &write, &opts);
            EXPECT_EQ(disk.Stalled(), 2);
            clock.Advance(2000000);
            ASSERT_TRUE(ctx.PollUntil([&] { return disk.cancels == 2; }));
            ASSERT_TRUE(ctx.PollUntil([&] { return !detach || read.calls + write.calls == 2; }));
            for (int i = 0; i < 5; i++) {
                aio_poll(ctx.get(), false);
            }
            EXPECT_EQ(read.calls, detach) << above;
            EXPECT_EQ(disk.Stalled(), 2);
            EXPECT_EQ(Stats(blk).detached, detach ? 2u : 0u) << above;
            EXPECT_EQ(Stats(blk).settled, 0u);
            EXPECT_EQ(blk_drain_until(blk.get(), Now()), detach ? 0 : -ETIMEDOUT);
            if (detach) { /* a write that overlaps waits until the other has settled */
                blk_aio_pwritev(blk.get(), 4096, &out.qiov, kNone, Ended, &over);
                aio_poll(ctx.get(), false);
                EXPECT_EQ(disk.Stalled(), 2);
            }
            disk.stall = false;
            disk.Release();
            EXPECT_EQ(blk_drain(blk.get()), 0);
            BlkStats st = Stats(blk);
            EXPECT_EQ(read.ret, detach ? -ETIMEDOUT : 0) << above;
            EXPECT_EQ(write.ret, detach ? -ETIMEDOUT : 0) << above;
            EXPECT_EQ(read.calls + write.calls, 2);
            EXPECT_EQ(over.calls, detach);
            EXPECT_EQ(IsUntouched(buf, 0x77), detach) << above;
            EXPECT_EQ(st.timed_out, detach ? 2u : 0u) << above;
            EXPECT_EQ(st.late, detach ? 0u : 2u) << above;
            EXPECT_EQ(st.settled, st.detached) << above;
        }
    }
}

/* ---- Synchronous calls and drains ------------------------------------------------------------ */

static std::vector<std::string> SyncSpecs(const std::string &path)
{
    return { "null:latency-ns=1000",
             "file:" + path,
             "file:" + path + "?detach=on",
             "throttle:iops=100000,bps=1G,file:" + path,
             "blkdebug:rules=every=3+delay=100us;short=1k,file:" + path,
             "blkdebug:rules=read+every=4+error=EIO;write+every=3+error=EIO,on-error=retry,"
             "retry-delay-ms=1,file:" +
                 path };
}

/* Each kind of call once, and what it did. */
static void CallEach(BlockBackend *blk, bool has_data, int64_t at)
{
    std::vector<uint8_t> out(4096, 0x33), in(4096);
    BlkExtent extent = {};

    EXPECT_EQ(blk_pwrite(blk, at, 4096, out.data(), kNone), 0);
    EXPECT_EQ(blk_pread(blk, at, 4096, in.data(), kNone), 0);
    EXPECT_EQ(blk_flush(blk), 0);
    EXPECT_EQ(blk_block_status(blk, at, 4096, &extent), 0);
    EXPECT_GT(extent.bytes, 0);
    if (has_data) {
        EXPECT_EQ(in, out);
    }
    EXPECT_EQ(blk_pwrite_zeroes(blk, at, 4096, kNone), 0);
    EXPECT_EQ(blk_pread(blk, at, 4096, in.data(), kNone), 0);
    EXPECT_EQ(in, std::vector<uint8_t>(4096, 0));
    EXPECT_EQ(blk_pdiscard(blk, at, 4096), 0);
}

TEST_P(BlkDrivers, SyncCallsAndDrainsWorkBelowCallbacksOfCallbacks)
{
    LocalContext ctx(GetParam());
    std::string path = File();

    for (const std::string &spec : SyncSpecs(path)) {
        Blk blk = Open(spec);
        bool has_data = spec.find("null:") != 0;
        Buffer buf(4096);
        Result outer, inner, beside;
        int drained = 1, drained_inner = 1;

        inner.then = [&] { /* inside a synchronous call of the outer callback, or its drain */
                           CallEach(blk.get(), has_data, 8192);
                           drained_inner = blk_drain(blk.get());
        };
        outer.then = [&] {
            Read(blk, &buf, &inner);
            CallEach(blk.get(), has_data, 16384);
            Read(blk, &buf, &beside);
            drained = blk_drain(blk.get());
            EXPECT_EQ(inner.calls, 1) << spec;
            EXPECT_EQ(beside.calls, 1) << spec;
        };
        Read(blk, &buf, &outer);
        ASSERT_TRUE(ctx.PollUntil([&] { return outer.calls == 1; })) << spec;
        EXPECT_EQ(drained, 0) << spec;
        EXPECT_EQ(drained_inner, 0) << spec;
        EXPECT_EQ(outer.ret | inner.ret | beside.ret, 0) << spec;
        EXPECT_EQ(Stats(blk).failed, 0u) << spec;
    }
}

TEST_P(BlkDrivers, PlainThreadsCallAndDrainBesideAContext)
{
    ScopedIOThread io(GetParam());
    std::string path = File();

    for (const std::string &spec : SyncSpecs(path)) {
        Blk blk = Open(spec);
        Buffer buf(4096);
        Result r;
        std::atomic<bool> stop{ false };

        r.then = [&] {
            if (!stop) {
                Read(blk, &buf, &r);
            }
        };
        io.Run([&] { Read(blk, &buf, &r); });
        CallEach(blk.get(), spec.find("null:") != 0, 8192); /* this thread has no context */
        EXPECT_EQ(blk_drain(blk.get()), 0) << spec;
        stop = true;
        EXPECT_EQ(blk_drain(blk.get()), 0) << spec;
        EXPECT_EQ(blk_drain(blk.get()), 0) << spec;
        EXPECT_EQ(Stats(blk).failed, 0u) << spec;
    }
}
