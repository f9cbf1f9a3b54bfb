/* SPDX-License-Identifier: MIT */
/* Requests of any alignment on drivers that ask for one, against a model in memory. */
#include "block_support.h"
#include "loop_support.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <unistd.h>

/* ---- Random requests against a model --------------------------------------------------------- */

/* One context's share of the disk, what it should hold, and a stream of requests on it. */
class Model
{
public:
    Model(BlockBackend *blk, int64_t from, int64_t bytes, unsigned seed)
        : blk_(blk), from_(from), bytes_(bytes), data_(static_cast<size_t>(bytes)), rng_(seed)
    {
    }

    /* Runs @n requests, one after the other.  Thread: one with a current context. */
    void Run(int n)
    {
        for (int i = 0; i < n && ok; i++) {
            Step();
        }
    }
    bool ok = true;
    std::string what;

private:
    int64_t Random(int64_t limit)
    {
        return static_cast<int64_t>(rng_() % static_cast<uint64_t>(limit));
    }
    void Expect(bool good, const char *text, int64_t at, int64_t n)
    {
        if (!good && ok) {
            ok = false;
            what = std::string(text) + " at " + std::to_string(at) + " of " + std::to_string(n);
        }
    }
    /* Cuts @buf into buffers of odd lengths. */
    std::vector<struct iovec> Cut(uint8_t *buf, int64_t n)
    {
        std::vector<struct iovec> iov;
        for (int64_t at = 0; at < n;) {
            int64_t len = Random(3) ? n - at : 1 + Random(n - at);
            if (Random(3) == 0) {
                len = std::min(n - at, (len + 511) & ~INT64_C(511));
            }
            iov.push_back({ buf + at, static_cast<size_t>(len) });
            at += len;
        }
        return iov;
    }
    int Wait(Result *r)
    {
        while (!r->calls) {
            aio_poll(qemu_get_current_aio_context(), true);
        }
        return r->ret;
    }
    void Step()
    {
        int64_t at = Random(bytes_), n = 1 + Random(Random(4) ? 3000 : bytes_);
        n = std::min(n, bytes_ - at);
        if (Random(4) == 0) {
            at &= ~INT64_C(511);
            n = std::max<int64_t>(512, n & ~INT64_C(511));
            n = std::min(n, bytes_ - at);
        }
        Buffer buf(static_cast<size_t>(n), 0, static_cast<size_t>(Random(2) ? 0 : Random(600)));
        std::vector<struct iovec> iov = Cut(buf.data, n);
        QEMUIOVector q;
        Result r;
        qemu_iovec_init_external(&q, iov.data(), static_cast<int>(iov.size()));
        switch (Random(8)) {
        case 0: {
            blk_aio_pwrite_zeroes(blk_, from_ + at, n, BdrvRequestFlags(), Ended, &r);
            Expect(Wait(&r) == 0, "zeroes failed", at, n);
            std::fill_n(data_.begin() + at, n, 0);
            break;
        }
        case 1:
        case 2:
        case 3:
            for (int64_t i = 0; i < n; i++) {
                buf.data[i] = static_cast<uint8_t>(rng_());
            }
            blk_aio_pwritev(blk_, from_ + at, &q, BdrvRequestFlags(), Ended, &r);
            Expect(Wait(&r) == 0, "write failed", at, n);
            std::copy_n(buf.data, n, data_.begin() + at);
            break;
        default:
            blk_aio_preadv(blk_, from_ + at, &q, BdrvRequestFlags(), Ended, &r);
            Expect(Wait(&r) == 0, "read failed", at, n);
            Expect(std::equal(buf.data, buf.data + n, data_.begin() + at), "wrong data", at, n);
            break;
        }
    }

    BlockBackend *blk_;
    int64_t from_, bytes_;
    std::vector<uint8_t> data_;
    std::mt19937_64 rng_;
};

static void RunModels(BlockBackend *blk, const char *monitor, int contexts, int64_t share, int n,
                      unsigned seed)
{
    std::vector<std::unique_ptr<ScopedIOThread>> io;
    std::vector<std::unique_ptr<Model>> models;
    std::atomic<int> done{ 0 };
    int64_t length = blk_getlength(blk);

    for (int i = 0; i < contexts; i++) {
        /* The shares meet in the middle of units; the last one has the tail. */
        int64_t bytes = i == contexts - 1 ? length - share * i : share;

        io.emplace_back(new ScopedIOThread(monitor));
        models.emplace_back(new Model(blk, share * i, bytes, seed + static_cast<unsigned>(i)));
    }
    RunThreads(contexts, [&](int i) {
        io[i]->Run([&] { models[i]->Run(n); });
        done++;
    });
    for (auto &m : models) {
        EXPECT_TRUE(m->ok) << m->what << ", seed " << seed;
    }
}

struct AlignCase {
    uint32_t alignment;
    bool later;
    const char *options;
};

class BlkAlign : public testing::TestWithParam<std::tuple<const char *, AlignCase>>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(monitor);
    }
    const char *monitor = std::get<0>(GetParam());
    AlignCase how = std::get<1>(GetParam());
};

INSTANTIATE_TEST_SUITE_P(
    Cases, BlkAlign,
    testing::Combine(testing::ValuesIn(kMonitors),
                     testing::Values(AlignCase{ 1, true, "" }, AlignCase{ 512, true, "" },
                                     AlignCase{ 512, false, "" }, AlignCase{ 4096, true, "" },
                                     AlignCase{ 512, true, "?detach=on" },
                                     AlignCase{ 1, true, "?detach=on" })));

TEST_P(BlkAlign, RandomRequestsMatchAModel)
{
    for (unsigned seed = 1; seed <= 4; seed++) {
        MemDisk disk("model", 20000 + 333, how.alignment);
        disk.later = how.later;
        disk.limits.max_transfer = 8192;
        disk.limits.max_iov = 3;
        if (seed == 2) {
            disk.transfer = std::max<uint32_t>(how.alignment, 1000u);
        }
        disk.no_zeroes = seed == 3;
        Blk blk = Open(std::string("mem:model") + how.options);
        RunModels(blk.get(), monitor, 1, 0, kSanitized ? 200 : 600, seed * 100);
    }
}

TEST_P(BlkAlign, NeighboursFromSeveralContextsLoseNoBytes)
{
    MemDisk disk("neighbours", 3 * 1500 + 77, how.alignment);
    disk.later = true;
    Blk blk = Open(std::string("mem:neighbours") + how.options);

    RunModels(blk.get(), monitor, 3, 1500, kSanitized ? 200 : 1000, 42);
    BlkStats st = Stats(blk);
    EXPECT_EQ(st.failed, 0u);
    EXPECT_EQ(st.bounced > 0, how.alignment > 1);
}

/* ---- One at a time --------------------------------------------------------------------------- */

TEST(BlkAlignment, AlignedRequestsAreNotBounced)
{
    LocalContext ctx;
    MemDisk disk("aligned", 65536, 512);
    Blk blk = Open("mem:aligned");
    Buffer buf(4096);

    EXPECT_EQ(blk_pwrite(blk.get(), 512, 4096, buf.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(blk.get(), 512, 4096, buf.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(Stats(blk).bounced, 0u);
    EXPECT_EQ(disk.submitted, 2);
    EXPECT_EQ(blk_pread(blk.get(), 512, 1024, buf.data + 1, BdrvRequestFlags()), 0);
    EXPECT_EQ(Stats(blk).bounced, 1u); /* its memory does not suit */
    EXPECT_EQ(disk.submitted, 3);
}

TEST(BlkAlignment, AnOverlappingWriteWaitsForAReadModifyWrite)
{
    LocalContext own;
    ScopedIOThread other;
    MemDisk disk("rmw", 65536, 512);
    Blk blk = Open("mem:rmw");
    Buffer part(10, 0x11), whole(512, 0x22), apart(512, 0x33);
    Result first, second, third;

    disk.stall = true;
    blk_aio_pwritev(blk.get(), 100, &part.qiov, BdrvRequestFlags(), Ended, &first);
    ASSERT_EQ(disk.Stalled(), 1); /* it reads the unit */
    disk.stall = false;
    other.Run([&] {
        blk_aio_pwritev(blk.get(), 0, &whole.qiov, BdrvRequestFlags(), Ended, &second);
        blk_aio_pwritev(blk.get(), 512, &apart.qiov, BdrvRequestFlags(), Ended, &third);
    });
    ASSERT_TRUE(WaitUntil([&] { return third.calls == 1; }));
    EXPECT_EQ(second.calls, 0);
    disk.Release();
    ASSERT_TRUE(own.PollUntil([&] { return first.calls && second.calls; }));
    EXPECT_EQ(disk.data[0], 0x22);
    EXPECT_EQ(disk.data[105], 0x22); /* the second write came second */
}

TEST(BlkAlignment, AReadModifyWriteWaitsForWritesThatCameBefore)
{
    LocalContext own;
    ScopedIOThread other;
    MemDisk disk("rmw-after", 65536, 512);
    Blk blk = Open("mem:rmw-after");
    Buffer part(10, 0x11), whole(512, 0x22);
    Result first, second;

    disk.stall = true;
    other.Run(
        [&] { blk_aio_pwritev(blk.get(), 0, &whole.qiov, BdrvRequestFlags(), Ended, &first); });
    blk_aio_pwritev(blk.get(), 100, &part.qiov, BdrvRequestFlags(), Ended, &second);
    for (int i = 0; i < 10; i++) {
        aio_poll(own.get(), false);
    }
    EXPECT_EQ(disk.submitted, 1);
    disk.stall = false;
    other.Run([&] { disk.Release(other.ctx()); });
    ASSERT_TRUE(own.PollUntil([&] { return second.calls == 1; }));
    EXPECT_EQ(first.calls, 1);
    EXPECT_EQ(disk.data[99], 0x22);
    EXPECT_EQ(disk.data[100], 0x11);
    EXPECT_EQ(disk.data[110], 0x22);
}

TEST(BlkAlignment, DiscardsLeaveWhatIsNotAligned)
{
    LocalContext ctx;
    MemDisk disk("discard", 4096 + 100, 512);
    Blk blk = Open("mem:discard");
    struct Case {
        int64_t offset, bytes, from, to;
    } cases[] = { { 0, 511, 0, 0 },          { 1, 1023, 512, 1024 },
                  { 512, 1024, 512, 1536 },  { 600, 4096 + 100 - 600, 1024, 4096 + 100 },
                  { 4096, 100, 4096, 4196 }, { 4096, 99, 0, 0 },
                  { 4100, 96, 0, 0 } };

    for (const Case &c : cases) {
        std::fill(disk.data.begin(), disk.data.end(), 0xee);
        EXPECT_EQ(blk_pdiscard(blk.get(), c.offset, c.bytes), 0);
        for (int64_t i = 0; i < 4196; i++) {
            ASSERT_EQ(disk.data[i], i >= c.from && i < c.to ? 0 : 0xee)
                << i << " after " << c.offset << "+" << c.bytes;
        }
    }
}

TEST(BlkAlignment, ZeroesWithoutFallbackRefuseParts)
{
    LocalContext ctx;
    MemDisk disk("zero-part", 4096, 512);
    Blk blk = Open("mem:zero-part");

    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 1, 511, BDRV_REQ_NO_FALLBACK), -ENOTSUP);
    EXPECT_EQ(disk.submitted, 0);
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 512, 1024, BDRV_REQ_NO_FALLBACK), 0);
}

/* ---- Direct I/O on a real file --------------------------------------------------------------- */

class BlkDirect : public OnEachMonitor
{
protected:
    /* Opens a new file of @bytes with direct=on; skips where the file system has none. */
    bool OpenDirect(int64_t bytes, Blk *ret)
    {
        std::string path = dir.Path("direct");
        char *why = nullptr;
        int fd = open(path.c_str(), O_CREAT | O_RDWR, 0666);

        if (fd < 0 || ftruncate(fd, bytes) < 0) {
            ADD_FAILURE() << strerror(errno);
            return false;
        }
        close(fd);
        ret->reset(blk_open(("file:" + path + "?direct=on").c_str(), &why));
        if (!*ret) {
            skip_reason = why ? why : "";
            free(why);
        }
        return *ret != nullptr;
    }

    TempDir dir;
    std::string skip_reason;
};
ON_EACH_MONITOR(BlkDirect);

#define OPEN_DIRECT(bytes, blk) \
    do { \
        if (!OpenDirect((bytes), &(blk))) { \
            GTEST_SKIP() << "no direct I/O: " << skip_reason; \
        } \
    } while (0)

TEST_P(BlkDirect, RandomRequestsFromSeveralContextsMatchAModel)
{
    for (unsigned seed = 1; seed <= 3; seed++) {
        Blk blk;
        OPEN_DIRECT(61440, blk);
        RunModels(blk.get(), GetParam(), 3, 20001, kSanitized ? 60 : 200, seed * 1000);
        EXPECT_GT(Stats(blk).bounced, 0u);
        EXPECT_EQ(Stats(blk).failed, 0u);
        blk.reset();
        unlink(dir.Path("direct").c_str());
    }
}

TEST_P(BlkDirect, AnOddSizeOpensForReadingOnly)
{
    Blk even;
    OPEN_DIRECT(8192, even);
    std::string spec = "file:" + dir.Path("direct") + "?direct=on";
    LocalContext ctx(GetParam());
    std::vector<char> out(600, 'z'), in(600);
    int err = 0;

    ASSERT_EQ(blk_pwrite(even.get(), 8192 - 500, 500, out.data(), BdrvRequestFlags()), 0);
    even.reset();
    int fd = open(dir.Path("direct").c_str(), O_WRONLY);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(pwrite(fd, out.data(), 100, 8192), 100);
    close(fd);
    std::string why = OpenError(spec, &err);
    EXPECT_EQ(err, EINVAL);
    EXPECT_NE(why.find("8292 bytes"), std::string::npos) << why;
    EXPECT_NE(why.find("read-only=on"), std::string::npos) << why;
    EXPECT_NE(why.find("truncate -s"), std::string::npos) << why;

    Blk blk = Open(spec + "&read-only=on");
    EXPECT_EQ(blk_getlength(blk.get()), 8292);
    EXPECT_EQ(blk_pread(blk.get(), 8292 - 600, 600, in.data(), BdrvRequestFlags()), 0);
    EXPECT_EQ(in, out);
    EXPECT_EQ(blk_pread(blk.get(), 8291, 1, in.data(), BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(blk.get(), 8292, 1, in.data(), BdrvRequestFlags()), -EINVAL);
}

TEST_P(BlkDirect, ACreateThatFailsLeavesNoFile)
{
    Blk probe;
    OPEN_DIRECT(8192, probe);
    std::string path = dir.Path("new");

    EXPECT_NE(OpenError("file:" + path + "?create=on&direct=on&size=1000"), "");
    EXPECT_NE(access(path.c_str(), F_OK), 0);
    EXPECT_EQ(blk_getlength(Open("file:" + path + "?create=on&direct=on&size=8k").get()), 8192);
}

TEST_P(BlkDirect, LimitsSayTheAlignment)
{
    Blk blk;
    OPEN_DIRECT(65536, blk);
    BlkLimits l;

    blk_get_limits(blk.get(), &l);
    EXPECT_GE(l.request_alignment, 512u);
    EXPECT_EQ(l.request_alignment & (l.request_alignment - 1), 0u);
    EXPECT_GT(l.memory_alignment, 0u);
}
