/* SPDX-License-Identifier: MIT */
/* The file driver on a real file system: on a ring, and on the thread pool. */
#include "block_support.h"
#include "loop_support.h"

#include <aioctx/thread_pool.h>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

class BlkFile : public OnEachMonitor
{
protected:
    std::string Spec(const std::string &options) const
    {
        return "file:" + dir.Path("disk") + "?" + options;
    }
    /* What is in the file at @offset, read behind the library's back. */
    std::string Raw(int64_t offset, size_t n)
    {
        std::string text(n, '\0');
        int fd = open(dir.Path("disk").c_str(), O_RDONLY);

        EXPECT_GE(fd, 0);
        EXPECT_EQ(pread(fd, &text[0], n, offset), static_cast<ssize_t>(n));
        close(fd);
        return text;
    }

    TempDir dir;
};
ON_EACH_MONITOR(BlkFile);

TEST_P(BlkFile, WritesArriveAndReadBack)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));
    std::string out = "some bytes at an odd place", in(out.size(), '\0');

    EXPECT_EQ(blk_pwrite(blk.get(), 12345, static_cast<int64_t>(out.size()), out.data(),
                         BdrvRequestFlags()),
              0);
    EXPECT_EQ(
        blk_pread(blk.get(), 12345, static_cast<int64_t>(in.size()), &in[0], BdrvRequestFlags()),
        0);
    EXPECT_EQ(in, out);
    EXPECT_EQ(blk_flush(blk.get()), 0);
    EXPECT_EQ(Raw(12345, out.size()), out);
    EXPECT_EQ(Stats(blk).bounced, 0u);
}

TEST_P(BlkFile, FuaWritesArrive)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));

    EXPECT_EQ(blk_pwrite(blk.get(), 0, 3, "fua", BDRV_REQ_FUA), 0);
    EXPECT_EQ(Raw(0, 3), "fua");
}

TEST_P(BlkFile, ZeroesAndDiscardsReadAsZeroes)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));
    std::string ones(1 << 20, '\x01');

    ASSERT_EQ(blk_pwrite(blk.get(), 0, 1 << 20, ones.data(), BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 1000, 100000, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 200000, 100000, BDRV_REQ_MAY_UNMAP), 0);
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 400001, 10, BDRV_REQ_FUA), 0);
    EXPECT_EQ(blk_pdiscard(blk.get(), 512 << 10, 512 << 10), 0);
    EXPECT_EQ(blk_flush(blk.get()), 0);
    EXPECT_EQ(Raw(999, 1), "\x01");
    EXPECT_EQ(Raw(1000, 100000), std::string(100000, '\0'));
    EXPECT_EQ(Raw(101000, 1), "\x01");
    EXPECT_EQ(Raw(200000, 100000), std::string(100000, '\0'));
    EXPECT_EQ(Raw(400000, 1) + Raw(400011, 1), "\x01\x01");
    EXPECT_EQ(Raw(400001, 10), std::string(10, '\0'));
    struct stat st;
    ASSERT_EQ(stat(dir.Path("disk").c_str(), &st), 0);
    EXPECT_EQ(st.st_size, 1 << 20);
}

TEST_P(BlkFile, StatusTellsHolesFromData)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=4M"));
    std::vector<char> data(1 << 16, 'd');
    BlkExtent e = {};

    ASSERT_EQ(blk_block_status(blk.get(), 0, 4 << 20, &e), 0);
    if (e.status == BDRV_BLOCK_DATA) {
        GTEST_SKIP() << "the file system knows no holes";
    }
    EXPECT_EQ(e.bytes, 4 << 20);
    ASSERT_EQ(blk_pwrite(blk.get(), 1 << 20, 1 << 16, data.data(), BdrvRequestFlags()), 0);
    ASSERT_EQ(blk_block_status(blk.get(), 4096, (4 << 20) - 4096, &e), 0);
    EXPECT_EQ(e.status, BDRV_BLOCK_ZERO);
    EXPECT_EQ(e.offset, 4096);
    EXPECT_EQ(e.bytes, (1 << 20) - 4096);
    ASSERT_EQ(blk_block_status(blk.get(), 1 << 20, 3 << 20, &e), 0);
    EXPECT_EQ(e.status, BDRV_BLOCK_DATA);
    EXPECT_EQ(e.bytes, 1 << 16);
    ASSERT_EQ(blk_block_status(blk.get(), 1 << 20, 100, &e), 0);
    EXPECT_EQ(e.bytes, 100);
    ASSERT_EQ(blk_block_status(blk.get(), 2 << 20, 2 << 20, &e), 0);
    EXPECT_EQ(e.status, BDRV_BLOCK_ZERO);
    EXPECT_EQ(e.bytes, 2 << 20);
}

TEST_P(BlkFile, VectorsAndLargeRequestsArrive)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=32M"));
    Buffer out(20 << 20), in(20 << 20);
    std::vector<struct iovec> iov;
    QEMUIOVector q;
    Result w, r;

    for (size_t i = 0; i < out.size; i++) {
        out.data[i] = static_cast<uint8_t>(i * 13 + i / 4093);
    }
    for (size_t at = 0, n; at < out.size; at += n) {
        n = std::min<size_t>(out.size - at, 1 + at % 9973);
        iov.push_back({ out.data + at, n });
    }
    ASSERT_GT(iov.size(), 2000u);
    qemu_iovec_init_external(&q, iov.data(), static_cast<int>(iov.size()));
    blk_aio_pwritev(blk.get(), 77, &q, BdrvRequestFlags(), Ended, &w);
    ASSERT_TRUE(ctx.PollUntil([&] { return w.calls == 1; }));
    EXPECT_EQ(w.ret, 0);
    blk_aio_preadv(blk.get(), 77, &in.qiov, BdrvRequestFlags(), Ended, &r);
    ASSERT_TRUE(ctx.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
    EXPECT_EQ(memcmp(in.data, out.data, in.size), 0);
    EXPECT_EQ(Stats(blk).split, 2u);
}

TEST_P(BlkFile, AReadPastAnEndThatHasMovedIsAnError)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));
    std::string in(8192, 'x');

    ASSERT_EQ(truncate(dir.Path("disk").c_str(), 4096), 0);
    EXPECT_EQ(blk_pread(blk.get(), 0, 4096, &in[0], BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(blk.get(), 0, 8192, &in[0], BdrvRequestFlags()), -EIO);
    EXPECT_EQ(blk_pread(blk.get(), 8192, 4096, &in[0], BdrvRequestFlags()), -EIO);
}

TEST_P(BlkFile, ReadOnlyFilesRefuseWrites)
{
    {
        Open(Spec("create=on&size=64k"));
    }
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("read-only=on"));
    char c = 1;

    EXPECT_EQ(blk_pwrite(blk.get(), 0, 1, &c, BdrvRequestFlags()), -EPERM);
    EXPECT_EQ(blk_pread(blk.get(), 0, 1, &c, BdrvRequestFlags()), 0);
    EXPECT_EQ(c, 0);
    EXPECT_EQ(blk_flush(blk.get()), 0);
}

TEST_P(BlkFile, ManyContextsShareOneFile)
{
    Blk blk = Open(Spec("create=on&size=4M"));
    const int n = 3, count = kSanitized ? 100 : 500;
    std::vector<std::unique_ptr<ScopedIOThread>> io;
    std::atomic<int> bad{ 0 };

    for (int i = 0; i < n; i++) {
        io.emplace_back(new ScopedIOThread(GetParam()));
    }
    RunThreads(n, [&](int t) {
        io[t]->Run([&] {
            std::string out(4096, static_cast<char>('a' + t)), in(4096, '\0');
            for (int i = 0; i < count; i++) {
                int64_t offset = (i * n + t) % 1024 * 4096;
                bad += blk_pwrite(blk.get(), offset, 4096, out.data(), BdrvRequestFlags()) != 0;
                bad += blk_pread(blk.get(), offset, 4096, &in[0], BdrvRequestFlags()) != 0;
            }
        });
    });
    EXPECT_EQ(bad, 0);
    EXPECT_EQ(Stats(blk).writes, static_cast<uint64_t>(n * count));
}

TEST_P(BlkFile, DeadlinesAndCancelsEndEveryRequestOnce)
{
    for (const char *options : { "create=on&size=4M", "create=on&size=4M&detach=on" }) {
        LocalContext ctx(GetParam());
        Blk blk = Open(Spec(options));
        const int n = 64;
        std::vector<std::unique_ptr<Buffer>> bufs;
        Result r[n];

        for (int i = 0; i < n; i++) {
            BlkReqOpts opts = {};
            bufs.emplace_back(new Buffer(65536, i));
            opts.deadline_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + i * 20000;
            BlockAIOCB *acb = blk_aio_pwritev_opts(blk.get(), i % 8 * 65536, &bufs[i]->qiov,
                                                   BdrvRequestFlags(), Ended, &r[i], &opts);
            ASSERT_NE(acb, nullptr);
            if (i % 3 == 0) {
                blk_aio_cancel_async(acb);
            }
        }
        ASSERT_TRUE(ctx.PollUntil([&] {
            for (Result &one : r) {
                if (!one.calls) {
                    return false;
                }
            }
            return true;
        }));
        for (Result &one : r) {
            EXPECT_EQ(one.calls, 1);
            EXPECT_TRUE(one.ret == 0 || one.ret == -ETIMEDOUT || one.ret == -ECANCELED) << one.ret;
        }
        BlkStats st = Stats(blk);
        EXPECT_EQ(st.failed, st.timed_out + st.cancelled);
    }
}

/* Keeps the pool's only thread busy until it is let go. */
class BusyPool
{
public:
    explicit BusyPool(LocalContext *ctx) : ctx_(ctx)
    {
        ThreadPoolParams p = {};

        thread_pool_get_params(&before_);
        p = before_;
        p.max_threads = 1;
        EXPECT_EQ(thread_pool_set_params(&p), 0);
        EXPECT_NE(thread_pool_submit_aio(Wait, this, End, this), nullptr);
        EXPECT_TRUE(WaitUntil([&] { return began_.load(); }));
    }
    ~BusyPool()
    {
        Release();
        EXPECT_TRUE(ctx_->PollUntil([&] { return ended_.load(); }));
        EXPECT_EQ(thread_pool_set_params(&before_), 0);
    }
    void Release()
    {
        let_go_ = true;
    }

private:
    static int Wait(void *opaque)
    {
        BusyPool *self = static_cast<BusyPool *>(opaque);

        self->began_ = true;
        return WaitUntil([&] { return self->let_go_.load(); }) ? 0 : -ETIME;
    }
    static void End(void *opaque, int ret)
    {
        EXPECT_EQ(ret, 0);
        static_cast<BusyPool *>(opaque)->ended_ = true;
    }

    LocalContext *ctx_;
    ThreadPoolParams before_;
    std::atomic<bool> began_{ false }, let_go_{ false }, ended_{ false };
};

/* A ring has no use for the pool; elsewhere, what waits for a thread can be recalled. */
TEST_P(BlkFile, WhatHasNotBegunEndsAtItsDeadlineOrWhenCancelled)
{
    for (const char *options : { "create=on&size=1M", "create=on&size=1M&detach=on" }) {
        LocalContext ctx(GetParam());
        Blk blk = Open(Spec(options));
        bool has_ring = !strcmp(GetParam(), "io_uring");
        Buffer buf(4096, 'x'), kept(4096, 'y');
        Result late, cancelled, waits, flush;
        BlkReqOpts opts = {};
        {
            BusyPool busy(&ctx);
            opts.deadline_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 3 * SCALE_MS;
            blk_aio_pwritev_opts(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &late, &opts);
            BlockAIOCB *acb =
                blk_aio_pwritev(blk.get(), 4096, &buf.qiov, BdrvRequestFlags(), Ended, &cancelled);
            blk_aio_pwritev(blk.get(), 8192, &kept.qiov, BDRV_REQ_FUA, Ended, &waits);
            blk_aio_flush(blk.get(), Ended, &flush);
            blk_aio_cancel_async(acb);
            EXPECT_EQ(cancelled.calls, 0);
            ASSERT_TRUE(ctx.PollUntil([&] { return late.calls && cancelled.calls; }));
            if (!has_ring) {
                EXPECT_EQ(late.ret, -ETIMEDOUT);
                EXPECT_EQ(cancelled.ret, -ECANCELED);
                EXPECT_EQ(waits.calls + flush.calls, 0);
                EXPECT_EQ(Stats(blk).detached, 0u); /* no need to */
                EXPECT_EQ(Raw(0, 8192), std::string(8192, '\0'));
            }
            busy.Release();
            ASSERT_TRUE(ctx.PollUntil([&] { return waits.calls && flush.calls; }));
        }
        EXPECT_EQ(waits.ret, 0);
        EXPECT_EQ(flush.ret, 0);
        EXPECT_EQ(Raw(8192, 4096), std::string(4096, 'y'));
        EXPECT_EQ(late.calls + cancelled.calls + waits.calls + flush.calls, 4);
        blk.reset();
        unlink(dir.Path("disk").c_str());
    }
}

/* As with a ring: whatever the page cache holds is copied by the thread that asks. */
TEST_P(BlkFile, CachedReadsNeedNoThread)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));
    Buffer buf(4096, 'x');
    struct iovec iov = { buf.data, buf.size };
    Result r;

    ASSERT_EQ(blk_pwrite(blk.get(), 0, 4096, buf.data, BdrvRequestFlags()), 0);
    int fd = open(dir.Path("disk").c_str(), O_RDONLY);
    ssize_t n = preadv2(fd, &iov, 1, 0, RWF_NOWAIT);
    close(fd);
    if (n != 4096) {
        GTEST_SKIP() << "this file system does not say what is cached";
    }
    BusyPool busy(&ctx);
    blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r);
    EXPECT_EQ(r.calls, 0); /* never inside the submitting call */
    ASSERT_TRUE(ctx.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, 0);
}

/* What a read that is limited to the page cache is told instead of being made; 0: it is made. */
static std::atomic<int> cached_read_says{ 0 };
enum { END_OF_FILE = -1 }; /* else an errno */

extern "C" ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
    int says = flags & RWF_NOWAIT ? cached_read_says.load() : 0;

    if (says > 0) {
        errno = says;
    }
    return says == END_OF_FILE ? 0
           : says > 0          ? -1
                               : syscall(SYS_preadv2, fd, iov, n, offset, 0, flags);
}

/* Some kernels do so of what is not in the cache, or has to be waited for. */
TEST_P(BlkFile, ACachedReadThatFindsTheEndOrAnErrorIsMadeByAThread)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));
    char byte = 0;

    ASSERT_EQ(blk_pwrite(blk.get(), 7, 1, "x", BdrvRequestFlags()), 0);
    for (int says : { int(END_OF_FILE), EIO, EINTR, EAGAIN }) {
        cached_read_says = says;
        EXPECT_EQ(blk_pread(blk.get(), 7, 1, &byte, BdrvRequestFlags()), 0) << says;
        EXPECT_EQ(byte, 'x');
        byte = 0;
    }
    cached_read_says = 0;
}

/* However much of it is cached, it does not keep the loop, nor its deadline, for all of it. */
TEST_P(BlkFile, ALongCachedReadLeavesOthersTheirTurn)
{
    LocalContext ctx(GetParam());
    Blk blk = Open(Spec("create=on&size=16M"));
    Buffer buf(16 << 20, 'x');
    Result r;

    ASSERT_EQ(blk_pwrite(blk.get(), 0, 16 << 20, buf.data, BdrvRequestFlags()), 0);
    {
        BusyPool busy(&ctx);
        BlockAIOCB *acb = blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r);
        ASSERT_NE(acb, nullptr);
        blk_aio_cancel_async(acb);
        ASSERT_TRUE(ctx.PollUntil([&] { return r.calls == 1; }));
        EXPECT_TRUE(r.ret == -ECANCELED || (r.ret == 0 && !strcmp(GetParam(), "io_uring")))
            << r.ret;
    }
    Result whole;
    blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &whole);
    ASSERT_TRUE(ctx.PollUntil([&] { return whole.calls == 1; }));
    EXPECT_EQ(whole.ret, 0);
}

/* Where fdatasync() waits before it is made. */
static std::atomic<bool> hold_syncs{ false };
static std::atomic<int> held_syncs{ 0 };
static std::atomic<ino_t> synced{ 0 };

extern "C" int fdatasync(int fd)
{
    struct stat st = {};

    if (hold_syncs) {
        held_syncs++;
        WaitUntil([] { return !hold_syncs.load(); });
        fstat(fd, &st);
        synced = st.st_ino;
        held_syncs--;
    }
    return static_cast<int>(syscall(SYS_fdatasync, fd));
}

/* A call on the pool that its context has given up on may be made after the backend has gone. */
TEST(BlkFilePool, AGivenUpCallIsMadeOnItsOwnFile)
{
    LocalContext ctx("epoll");
    TempDir dir;
    IOThreadOptions opts = {};
    struct stat st = {};
    static Result never;
    static Blk blk; /* what is given up stays */

    blk = Open("file:" + dir.Path("disk") + "?create=on&size=1M");
    ASSERT_EQ(stat(dir.Path("disk").c_str(), &st), 0);
    hold_syncs = true;
    opts.stop_timeout_ms = 1;
    opts.context.monitor = "epoll";
    IOThread *io = iothread_new("gives-up", &opts);
    ASSERT_NE(io, nullptr);
    ASSERT_EQ(aio_bh_schedule_oneshot(
                  iothread_get_aio_context(io),
                  [](void *) { blk_aio_flush(blk.get(), Ended, &never); }, nullptr),
              0);
    ASSERT_TRUE(WaitUntil([] { return held_syncs == 1; }));
    testing::internal::CaptureStderr();
    EXPECT_EQ(iothread_destroy(io), 0);
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("given up"), std::string::npos) << said;
    static BlockBackend *left = blk.release();
    blk_unref(left);
    int other = open(dir.Path("other").c_str(), O_RDWR | O_CREAT, 0600); /* takes a free number */
    hold_syncs = false;
    ASSERT_TRUE(WaitUntil([] { return held_syncs == 0; }));
    EXPECT_EQ(synced, st.st_ino);
    close(other);
    ThreadPoolStats s;
    EXPECT_TRUE(WaitUntil([&] {
        thread_pool_get_stats(&s);
        return s.running == 0;
    }));
    EXPECT_EQ(never.calls, 0);
}

/* A block device over a file; gone with the scope. */
class LoopDevice
{
public:
    explicit LoopDevice(const std::string &file)
    {
        int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
        int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
        int below = open(file.c_str(), O_RDWR | O_CLOEXEC);

        if (number >= 0) {
            path = "/dev/loop" + std::to_string(number);
            fd_ = open(path.c_str(), O_RDWR | O_CLOEXEC);
        }
        works = fd_ >= 0 && ioctl(fd_, LOOP_SET_FD, below) == 0;
        close(below);
        if (control >= 0) {
            close(control);
        }
    }
    ~LoopDevice()
    {
        if (works) {
            EXPECT_EQ(ioctl(fd_, LOOP_CLR_FD), 0);
        }
        if (fd_ >= 0) {
            close(fd_);
        }
    }

    std::string path;
    bool works;

private:
    int fd_ = -1;
};

TEST_P(BlkFile, DevicesAreDiscardedByAnIoctlOfThePool)
{
    {
        Open(Spec("create=on&size=1M"));
    }
    LoopDevice device(dir.Path("disk"));
    if (!device.works) {
        GTEST_SKIP() << "no loop devices for us";
    }
    LocalContext ctx(GetParam());
    Blk blk = Open("file:" + device.path);
    Buffer out(65536, 'x');
    ThreadPoolStats before, after;

    ASSERT_EQ(blk_getlength(blk.get()), 1 << 20);
    ASSERT_EQ(blk_pwrite(blk.get(), 0, 65536, out.data, BDRV_REQ_FUA), 0);
    ASSERT_EQ(Raw(4096, 3), "xxx");
    thread_pool_get_stats(&before);
    EXPECT_EQ(blk_pdiscard(blk.get(), 4096, 8192), 0);
    thread_pool_get_stats(&after);
    EXPECT_EQ(after.submitted, before.submitted + 1);
    std::string middle = Raw(4096, 8192); /* it is a hint: the file below may have no holes */
    EXPECT_TRUE(middle == std::string(8192, '\0') || middle == std::string(8192, 'x'));
    EXPECT_EQ(Raw(4095, 1) + Raw(12288, 1), "xx");
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 32768, 4096, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_flush(blk.get()), 0);
    EXPECT_EQ(Raw(32767, 4098), "x" + std::string(4096, '\0') + "x");
}

TEST(BlkFileSync, PlainThreadsReadAndWriteFiles)
{
    TempDir dir;
    Blk blk = Open("file:" + dir.Path("disk") + "?create=on&size=64k");
    char in[5] = {};

    EXPECT_EQ(blk_flush(blk.get()), 0);
    EXPECT_EQ(blk_pwrite(blk.get(), 100, 5, "plain", BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(blk.get(), 100, 5, in, BdrvRequestFlags()), 0);
    EXPECT_EQ(std::string(in, 5), "plain");
}

TEST_P(BlkFile, ACancelGoesToTheContextOfTheRequest)
{
    LocalContext a(GetParam()), b(GetParam());
    Blk blk = Open(Spec("create=on&size=1M"));
    Buffer buf(4096);
    Result r;
    AioContextStats before, after, other;

    qemu_set_current_aio_context(a.get());
    BlockAIOCB *acb = blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r);
    qemu_set_current_aio_context(b.get());
    aio_context_get_stats(a.get(), &before);
    blk_aio_cancel_async(acb);
    aio_context_get_stats(a.get(), &after);
    aio_context_get_stats(b.get(), &other);
    if (!strcmp(GetParam(), "io_uring")) {
        EXPECT_EQ(after.sqes, before.sqes + 1);
        EXPECT_EQ(other.sqes, 0u);
    }
    ASSERT_TRUE(a.PollUntil([&] { return r.calls == 1; }));
    EXPECT_TRUE(r.ret == 0 || r.ret == -ECANCELED) << r.ret;
}
