/* SPDX-License-Identifier: MIT */
/*
 * Registered files and buffers of the file driver.
 *
 * That a transfer goes through a registered buffer shows when its pages are exchanged behind the
 * kernel's back: it still reaches the old ones.
 */
#include "block_support.h"

extern "C" {
#include "block/driver_int.h"
}
#include "loop_support.h"

#include <atomic>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>

static const size_t kPage = 4096;

static std::string Describe(AioContext *ctx)
{
    char text[512];

    aio_context_describe(ctx, text, sizeof(text));
    return text;
}

static bool Uses(AioContext *ctx, const std::string &feature)
{
    std::string text = Describe(ctx);

    return text.substr(0, text.find(';')).find(feature) != std::string::npos;
}

/* Pages that can be exchanged for fresh ones at the same address. */
class Pages
{
public:
    explicit Pages(size_t bytes) : bytes_(bytes)
    {
        Map(MAP_PRIVATE | MAP_ANONYMOUS, nullptr);
    }
    ~Pages()
    {
        munmap(data, bytes_);
    }
    Pages(const Pages &) = delete;
    Pages &operator=(const Pages &) = delete;
    void Exchange()
    {
        Map(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, data);
    }

    char *data = nullptr;

private:
    void Map(int flags, void *at)
    {
        void *p = mmap(at, bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);

        ASSERT_NE(p, MAP_FAILED);
        data = static_cast<char *>(p);
    }
    size_t bytes_;
};

class BlkRegistered : public testing::Test
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR("io_uring");
    }
    std::string Spec(const std::string &more = "") const
    {
        return "file:" + dir.Path("disk") + "?create=on&size=1M&registered=on" + more;
    }
    /* How often the file is among the open and registered ones of this process's rings. */
    int CountRegistered() const
    {
        int n = 0;

        for (int fd = 0; fd < 200; fd++) {
            std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
            for (std::string line; std::getline(info, line);) {
                n += line.find("disk") != std::string::npos;
            }
        }
        return n;
    }

    TempDir dir;
};

static int Read(BlockBackend *blk, int64_t at, void *buf, size_t n)
{
    return blk_pread(blk, at, static_cast<int64_t>(n), buf, BdrvRequestFlags());
}

static int Write(BlockBackend *blk, int64_t at, const void *buf, size_t n)
{
    return blk_pwrite(blk, at, static_cast<int64_t>(n), buf, BdrvRequestFlags());
}

TEST_F(BlkRegistered, EveryOperationWorksOnARegisteredFile)
{
    LocalContext ctx("io_uring");
    Blk blk = Open(Spec());
    std::string out(3 * kPage, 'a'), in(3 * kPage, '\0');

    EXPECT_EQ(Write(blk.get(), 100, out.data(), out.size()), 0);
    EXPECT_TRUE(Uses(ctx.get(), "registered-files")) << Describe(ctx.get());
    EXPECT_EQ(blk_pwrite(blk.get(), 100, 3, "fua", BDRV_REQ_FUA), 0);
    EXPECT_EQ(blk_flush(blk.get()), 0);
    EXPECT_EQ(Read(blk.get(), 100, &in[0], in.size()), 0);
    EXPECT_EQ(in, "fua" + out.substr(3));
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 0, kPage, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pdiscard(blk.get(), kPage, kPage), 0);
    EXPECT_EQ(Read(blk.get(), 0, &in[0], 2 * kPage), 0);
    EXPECT_EQ(in.substr(0, kPage), std::string(kPage, '\0'));

    /* A vector of two. */
    struct iovec iov[2] = { { &in[0], 10 }, { &in[10], 20 } };
    QEMUIOVector qiov;
    Result done;
    qemu_iovec_init_external(&qiov, iov, 2);
    blk_aio_preadv(blk.get(), 2 * kPage, &qiov, BdrvRequestFlags(), Ended, &done);
    ASSERT_TRUE(ctx.PollUntil([&] { return done.calls == 1; }));
    EXPECT_EQ(done.ret, 0);
    EXPECT_EQ(in.substr(0, 30), out.substr(0, 30));
}

TEST_F(BlkRegistered, FileIsLetGoWithTheBackendAndEntriesAreUsedAgain)
{
    LocalContext ctx("io_uring");
    char byte;

    for (int i = 0; i < 1500; i++) { /* more than the table holds */
        Blk blk = Open(Spec());
        ASSERT_EQ(Read(blk.get(), 0, &byte, 1), 0);
        if (i % 500 == 499) {
            EXPECT_EQ(CountRegistered(), 1) << i;
        }
        blk.reset();
        aio_poll(ctx.get(), false);
    }
    EXPECT_EQ(CountRegistered(), 0);
}

TEST_F(BlkRegistered, TailOfAnOddSizeIsReadThroughItsOwnFile)
{
    LocalContext ctx("io_uring");
    std::string path = dir.Path("odd"), in(kPage + 5, '\0');
    std::ofstream(path) << std::string(kPage, 'x') + "tail!";
    std::string why;
    char *text = nullptr;
    BlockBackend *blk =
        blk_open(("file:" + path + "?direct=on&read-only=on&registered=on").c_str(), &text);

    free(text);
    if (!blk) {
        GTEST_SKIP() << "no direct I/O here";
    }
    EXPECT_EQ(Read(blk, 0, &in[0], in.size()), 0);
    EXPECT_EQ(in, std::string(kPage, 'x') + "tail!");
    blk_unref(blk);
}

TEST_F(BlkRegistered, TransfersWithinABufferGoThroughIt)
{
    LocalContext ctx("io_uring");
    Blk blk = Open(Spec());
    Pages pages(4 * kPage);
    std::string out(kPage, 'o');

    ASSERT_EQ(Write(blk.get(), 0, out.data(), kPage), 0);
    ASSERT_EQ(blk_register_buf(blk.get(), pages.data, 4 * kPage), 0);
    memset(pages.data, 'w', kPage);
    EXPECT_EQ(Write(blk.get(), kPage, pages.data, kPage), 0);
    EXPECT_TRUE(Uses(ctx.get(), "registered-buffers")) << Describe(ctx.get());
    pages.Exchange();
    EXPECT_EQ(Read(blk.get(), 0, pages.data, kPage), 0);
    EXPECT_EQ(pages.data[0], 0) << "the read did not go through the registered pages";
    EXPECT_EQ(Write(blk.get(), 2 * kPage, pages.data, kPage), 0); /* what was read before */
    std::string in(2 * kPage, '\0');
    EXPECT_EQ(Read(blk.get(), kPage, &in[0], in.size()), 0);
    EXPECT_EQ(in, std::string(kPage, 'w') + out);
    blk_unregister_buf(blk.get(), pages.data, 4 * kPage);
}

TEST_F(BlkRegistered, TransfersThatLeaveABufferDoNot)
{
    LocalContext ctx("io_uring");
    Blk blk = Open(Spec());
    Pages pages(4 * kPage);
    std::string out(3 * kPage, 'o');

    ASSERT_EQ(Write(blk.get(), 0, out.data(), out.size()), 0);
    ASSERT_EQ(blk_register_buf(blk.get(), pages.data + kPage, 2 * kPage), 0);
    ASSERT_EQ(Read(blk.get(), 0, pages.data + kPage, 1), 0);
    pages.Exchange();
    for (size_t at : { size_t(0), kPage - 1, 2 * kPage + 1, 3 * kPage }) {
        EXPECT_EQ(Read(blk.get(), 0, pages.data + at, kPage), 0);
        EXPECT_EQ(std::string(pages.data + at, kPage), out.substr(0, kPage)) << at;
    }
    memset(pages.data, 0, 4 * kPage);
    for (size_t at : { kPage, kPage + 1, 2 * kPage }) {
        EXPECT_EQ(Read(blk.get(), 0, pages.data + at, kPage), 0);
        EXPECT_EQ(pages.data[at], 0) << at;
    }
    blk_unregister_buf(blk.get(), pages.data + kPage, 2 * kPage);
}

TEST_F(BlkRegistered, BufferThatWasTakenBackIsNeverUsed)
{
    LocalContext ctx("io_uring");
    Blk blk = Open(Spec());
    Pages pages(kPage);
    std::string out(kPage, 'o');

    ASSERT_EQ(Write(blk.get(), 0, out.data(), kPage), 0);
    for (int i = 0; i < 20; i++) {
        ASSERT_EQ(blk_register_buf(blk.get(), pages.data, kPage), 0);
        ASSERT_EQ(Read(blk.get(), 0, pages.data, kPage), 0);
        if (i % 2) {
            aio_poll(ctx.get(), false);
        }
        blk_unregister_buf(blk.get(), pages.data, kPage);
        pages.Exchange();
        ASSERT_EQ(Read(blk.get(), 0, pages.data, kPage), 0);
        EXPECT_EQ(std::string(pages.data, kPage), out);
        pages.Exchange();
        if (i % 4 == 3) { /* there again, with other pages behind it */
            ASSERT_EQ(blk_register_buf(blk.get(), pages.data, kPage), 0);
            ASSERT_EQ(Read(blk.get(), 0, pages.data, kPage), 0);
            EXPECT_EQ(std::string(pages.data, kPage), out);
            blk_unregister_buf(blk.get(), pages.data, kPage);
        }
    }
}

TEST_F(BlkRegistered, BadBuffersAreRefused)
{
    Blk blk = Open(Spec()), null = Open("null:");
    Blk plain = Open("file:" + dir.Path("disk") + "?locking=off");
    std::vector<char> mem(100);

    EXPECT_EQ(blk_register_buf(blk.get(), nullptr, 10), -EINVAL);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data(), 0), -EINVAL);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data(), SIZE_MAX), -EINVAL);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 10, 10), 0);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 10, 10), -EEXIST);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 19, 10), -EEXIST);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 1, 10), -EEXIST);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 20, 10), 0);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data(), 10), 0);
    blk_unregister_buf(blk.get(), mem.data() + 10, 9); /* none that is registered */
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 10, 10), -EEXIST);
    blk_unregister_buf(blk.get(), mem.data() + 10, 10);
    EXPECT_EQ(blk_register_buf(blk.get(), mem.data() + 10, 10), 0);
    for (Blk *other : { &plain, &null }) { /* which have no use for it */
        EXPECT_EQ(blk_register_buf(other->get(), mem.data(), 10), 0);
        EXPECT_EQ(blk_register_buf(other->get(), mem.data(), 10), 0);
        blk_unregister_buf(other->get(), mem.data(), 10);
        EXPECT_EQ(blk_register_buf(other->get(), nullptr, 10), -EINVAL);
    }
}

TEST_F(BlkRegistered, SeveralContextsWhileBuffersComeAndGo)
{
    const int kThreads = 3, kRounds = kSanitized ? 15 : 50;
    Blk blk = Open(Spec());
    std::string out(kThreads * kPage, '\0');
    std::atomic<bool> stop{ false };

    for (size_t i = 0; i < out.size(); i++) {
        out[i] = static_cast<char>('a' + i / kPage);
    }
    ASSERT_EQ(Write(blk.get(), 0, out.data(), out.size()), 0);
    std::thread other([&] { /* registers memory of its own beside theirs */
                            std::vector<char> mem(8 * kPage);
                            while (!stop) {
                                for (int i = 0; i < 8; i++) {
                                    EXPECT_EQ(blk_register_buf(blk.get(), &mem[i * kPage], kPage),
                                              0);
                                }
                                for (int i = 7; i >= 0; i--) {
                                    blk_unregister_buf(blk.get(), &mem[i * kPage], kPage);
                                }
                                usleep(100);
                            }
    });
    RunThreads(kThreads, [&](int i) {
        Pages pages(kPage);
        for (int round = 0; round < kRounds; round++) {
            LocalContext *ctx = new LocalContext("io_uring");
            for (int n = 0; n < 5; n++) {
                EXPECT_EQ(blk_register_buf(blk.get(), pages.data, kPage), 0);
                EXPECT_EQ(Read(blk.get(), static_cast<int64_t>(i * kPage), pages.data, kPage), 0);
                EXPECT_EQ(pages.data[7], 'a' + i);
                blk_unregister_buf(blk.get(), pages.data, kPage);
                pages.Exchange();
                EXPECT_EQ(Read(blk.get(), static_cast<int64_t>(i * kPage), pages.data, kPage), 0);
                EXPECT_EQ(pages.data[7], 'a' + i);
                pages.Exchange();
            }
            delete ctx; /* before the backend */
        }
    });
    stop = true;
    other.join();
}

/* The file driver, but flushes never end. */
static const BlockDriver *StuckDriver()
{
    static BlockDriver drv = [] {
        BlockDriver d = blk_file_driver;

        d.name = "stuck-file";
        d.submit = [](BlkPiece *piece) {
            if (piece->op != BLK_OP_FLUSH) {
                blk_file_driver.submit(piece);
            }
        };
        d.cancel = [](BlkPiece *) {};
        return d;
    }();
    static bool known = blk_driver_register(&drv) == 0;

    return known ? &drv : nullptr;
}

/* A context that closes with a request in flight goes all the same: its rings know of no buffer
 * that comes or goes later. */
TEST_F(BlkRegistered, BuffersMayComeAfterAContextWasGivenUp)
{
    LocalContext ctx("io_uring");
    IOThreadOptions opts = {};
    static auto *left = new std::vector<BlockBackend *>; /* with what was given up, for ever */
    Pages pages(2 * kPage);
    Result never;
    Blk blk;

    ASSERT_NE(StuckDriver(), nullptr);
    blk = Open("stuck-" + Spec());
    ASSERT_EQ(blk_register_buf(blk.get(), pages.data, kPage), 0);
    opts.stop_timeout_ms = 1;
    opts.context.monitor = "io_uring";
    IOThread *io = iothread_new("gives-up", &opts);
    ASSERT_NE(io, nullptr);
    std::function<void()> submit = [&] { blk_aio_flush(blk.get(), Ended, &never); };
    ASSERT_EQ(aio_bh_schedule_oneshot(
                  iothread_get_aio_context(io),
                  [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); }, &submit),
              0);
    testing::internal::CaptureStderr();
    EXPECT_EQ(iothread_destroy(io), 0);
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("given up"), std::string::npos) << said;
    aio_rcu_barrier(); /* the context's memory is gone */
    ASSERT_EQ(blk_register_buf(blk.get(), pages.data + kPage, kPage), 0);
    EXPECT_EQ(Write(blk.get(), 0, pages.data + kPage, kPage), 0);
    blk_unregister_buf(blk.get(), pages.data, kPage);
    blk_unregister_buf(blk.get(), pages.data + kPage, kPage);
    EXPECT_EQ(never.calls, 0);
    left->push_back(blk.get());
}

/* ---- What the kernel refuses ----------------------------------------------------------------- */

static void Check(bool ok, const std::string &what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what.c_str());
        _exit(1);
    }
}

/* With too little memory that may be locked, enough for a ring, and with so many files. */
[[noreturn]] static void UseWithLimits(const std::string &spec, rlim_t files)
{
    const size_t kBytes = 4 << 20;
    struct rlimit little = { kBytes / 4, kBytes / 4 }, few = { files, files };
    Pages pages(kBytes);

    /* A process that may do all may lock all: be nobody. */
    Check(setrlimit(RLIMIT_MEMLOCK, &little) == 0 && setrlimit(RLIMIT_NOFILE, &few) == 0, "limits");
    {
        Blk blk = Open(spec);
        if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) {
            _exit(77);
        }
        LocalContext ctx("io_uring"); /* its rights are those of this moment */
        Check(blk_register_buf(blk.get(), pages.data, kBytes) == 0, "a hint was refused");
        strcpy(pages.data, "hello");
        Check(Write(blk.get(), 0, pages.data, kPage) == 0, "write");
        memset(pages.data, 0, kPage);
        Check(Read(blk.get(), 0, pages.data, kPage) == 0, "read");
        Check(!strcmp(pages.data, "hello"), "what was read is not what was written");
        std::string text = Describe(ctx.get());
        Check(!Uses(ctx.get(), "registered-buffers") &&
                  text.find("; without ") < text.find("registered-buffers") &&
                  text.find("registered-buffers") != std::string::npos,
              "it says: " + text);
        Check(Uses(ctx.get(), "registered-files"), "it says: " + text);
        blk_unregister_buf(blk.get(), pages.data, kBytes);
    }
    _exit(0);
}

TEST_F(BlkRegistered, WithoutLockedMemoryItWorksAndIsSaid)
{
    bool skipped = false;

    for (rlim_t files : { rlim_t(1024), rlim_t(64) }) {
        EXPECT_EXIT(
            UseWithLimits(Spec(), files),
            [&](int status) {
                skipped = WIFEXITED(status) && WEXITSTATUS(status) == 77;
                return skipped || (WIFEXITED(status) && WEXITSTATUS(status) == 0);
            },
            "");
        if (skipped) {
            GTEST_SKIP() << "cannot give up root's rights";
        }
    }
}
