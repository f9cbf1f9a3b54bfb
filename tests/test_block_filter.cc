/* SPDX-License-Identifier: MIT */
/* Filters: drivers over one another, in both syntaxes, and blkdebug. */
#include "block_support.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

static bool Contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

static std::string Hundred(const std::string &name)
{
    std::string spec = "null:size=1M";

    for (int i = 1; i < 8; i++) {
        spec = name + ":" + spec;
    }
    return spec;
}

/* ---- Specs ----------------------------------------------------------------------------------- */

TEST(BlkFilter, LiesOverWhatFollowsItsOptions)
{
    MemDisk disk("d", 8192);

    for (const char *spec :
         { "blkdebug:mem:d", "blkdebug:seed=3,mem:d", "throttle:iops=5000,blkdebug:seed=3,mem:d",
           "blkdebug://?child=mem:d", "blkdebug://?seed=3&child=blkdebug:seed=4,mem:d" }) {
        Blk blk = Open(spec);

        EXPECT_EQ(blk_getlength(blk.get()), 8192) << spec;
        EXPECT_EQ(std::string(spec).find(blk_get_driver_name(blk.get())), 0u) << spec;
    }
}

TEST(BlkFilter, OptionsThatNobodyCouldGiveAreRefused)
{
    static const BlkOptDesc tables[][3] = {
        { { "read-only", BLK_OPT_STRING, 0, nullptr } },
        { { "child", BLK_OPT_STRING, 0, nullptr } },
        { { "Big", BLK_OPT_SIZE, 0, nullptr } },
        { { "twice", BLK_OPT_SIZE, 0, nullptr }, { "twice", BLK_OPT_SIZE, 0, nullptr } },
        { { "odd", static_cast<BlkOptType>(9), 0, nullptr } },
    };

    for (const BlkOptDesc *table : tables) {
        BlockDriver drv = {};

        drv.abi = BLOCK_DRIVER_ABI;
        drv.name = "bad-options";
        drv.options = table;
        drv.open = [](const BlkOptions *, void **, char **) { return 0; };
        drv.close = [](void *) {};
        drv.getlength = [](void *) { return INT64_C(1); };
        drv.submit = [](BlkPiece *) {};
        EXPECT_EQ(blk_driver_register(&drv), -EINVAL) << table[0].name;
    }
}

TEST(BlkFilter, LimitsAreThoseBelow)
{
    MemDisk disk("d", 8192, 512);
    Blk blk = Open("blkdebug:throttle:iops=9,mem:d");
    BlkLimits l;

    blk_get_limits(blk.get(), &l);
    EXPECT_EQ(l.request_alignment, 512u);
    EXPECT_EQ(l.max_transfer, disk.limits.max_transfer);
    EXPECT_EQ(l.max_iov, disk.limits.max_iov);
}

/* A filter that says of itself what it is told to. */
static BlkLimits odd_limits;
static int64_t odd_length;

static BlockDriver *OddFilter()
{
    static BlockDriver drv = {};

    drv.abi = BLOCK_DRIVER_ABI;
    drv.name = "odd";
    drv.is_filter = true;
    drv.open = [](const BlkOptions *, void **, char **) { return 0; };
    drv.close = [](void *) {};
    drv.getlength = [](void *) { return odd_length; };
    drv.get_limits = [](void *, BlkLimits *ret_limits) { *ret_limits = odd_limits; };
    drv.submit = blk_piece_pass;
    return &drv;
}

TEST(BlkFilter, LimitsBelowHoldWhateverAFilterSays)
{
    MemDisk disk("d", 10000, 512); /* checks that every piece keeps its limits */
    static int registered = blk_driver_register(OddFilter());
    BlkLimits l;
    char out[3000], in[3000];

    ASSERT_EQ(registered, 0);
    odd_length = 10000;
    odd_limits = {};
    odd_limits.request_alignment = 1;
    odd_limits.memory_alignment = 1;
    odd_limits.max_transfer = 1 << 30;
    odd_limits.max_iov = 1024;
    {
        Blk blk = Open("odd:mem:d");
        blk_get_limits(blk.get(), &l);
        EXPECT_EQ(l.request_alignment, 512u);
        EXPECT_EQ(l.memory_alignment, 512u);
        EXPECT_EQ(l.max_transfer, disk.limits.max_transfer);
        EXPECT_EQ(l.max_iov, disk.limits.max_iov);
        memset(out, 'x', sizeof(out));
        EXPECT_EQ(blk_pwrite(blk.get(), 7000, 3000, out, BdrvRequestFlags()), 0);
        EXPECT_EQ(blk_pread(blk.get(), 7000, 3000, in, BdrvRequestFlags()), 0);
        EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    }
    odd_limits.request_alignment = 4096; /* stricter is the filter's right */
    odd_limits.max_transfer = 8192;
    blk_get_limits(Open("odd:mem:d").get(), &l);
    EXPECT_EQ(l.request_alignment, 4096u);
    EXPECT_EQ(l.max_transfer, 8192u);
    disk.limits.max_transfer = 1024;
    EXPECT_TRUE(Contains(OpenError("odd:mem:d"), "1024 bytes at most"));
    disk.limits.max_transfer = 1 << 20;
    odd_limits.request_alignment = 1;
    odd_length = 5120;
    EXPECT_EQ(blk_getlength(Open("odd:mem:d").get()), 5120);
    for (int64_t bad : { 10001, 20480, 5000 }) {
        odd_length = bad;
        EXPECT_TRUE(Contains(OpenError("odd:mem:d"), "smaller multiple of 512")) << bad;
    }
}

TEST(BlkFilter, WithoutADriverBelowSaysWhatIsExpected)
{
    for (const char *spec : { "throttle:", "throttle:iops=5", "throttle://?iops=5" }) {
        std::string why = OpenError(spec);

        EXPECT_TRUE(Contains(why, "lacks the driver below") && Contains(why, "file:PATH")) << why;
    }
}

TEST(BlkFilter, OptionsAreLookedUpWithTheDriverWhoseTheyAre)
{
    std::string why = OpenError("throttle:latency-ns=5,null:");
    EXPECT_TRUE(Contains(why, "'throttle' has no option 'latency-ns'")) << why;
    why = OpenError("throttle:iops=5,null:iops=5");
    EXPECT_TRUE(Contains(why, "'null' has no option 'iops'")) << why;
}

TEST(BlkFilter, UpToEightLieOverOneAnother)
{
    EXPECT_EQ(blk_getlength(Open(Hundred("blkdebug")).get()), 1 << 20);
    std::string why = OpenError("blkdebug:" + Hundred("blkdebug"));
    EXPECT_TRUE(Contains(why, "more than 8")) << why;
}

TEST(BlkFilter, TheCoresOptionsMayStandAnywhereOnce)
{
    MemDisk disk("d", 8192);

    EXPECT_TRUE(blk_is_read_only(Open("blkdebug:read-only=on,mem:d").get()));
    EXPECT_TRUE(blk_is_read_only(Open("blkdebug:mem:d?read-only=on").get()));
    EXPECT_FALSE(blk_is_read_only(Open("blkdebug:mem:d").get()));
    std::string why = OpenError("blkdebug:read-only=on,mem:d?read-only=on");
    EXPECT_TRUE(Contains(why, "twice")) << why;
}

TEST(BlkFilter, ReadOnlyReachesTheDriverBelow)
{
    TempDir dir;
    std::string path = dir.Path("f");
    int fd = open(path.c_str(), O_CREAT | O_WRONLY, 0444);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, 4096), 0);
    close(fd);
    Blk blk = Open("blkdebug:read-only=on,file:" + path);
    char buf[512];
    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pwrite(blk.get(), 0, 512, buf, BdrvRequestFlags()), -EPERM);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

class BlkJson : public testing::Test
{
protected:
    void SetUp() override
    {
        if (Contains(OpenError("{"), "without jansson")) {
            GTEST_SKIP() << "built without jansson";
        }
    }
};

TEST_F(BlkJson, SaysTheSameAsTheOtherSyntax)
{
    MemDisk disk("d:?,", 8192);

    EXPECT_EQ(blk_getlength(Open("{\"driver\": \"null\", \"size\": 4096}").get()), 4096);
    EXPECT_EQ(blk_getlength(Open("json:{\"driver\": \"null\", \"size\": \"4k\"}").get()), 4096);
    Blk blk = Open("{\"driver\": \"blkdebug\", \"read-only\": true, \"seed\": 5,"
                   " \"child\": {\"driver\": \"mem\", \"path\": \"d:?,\"}}");
    EXPECT_EQ(blk_getlength(blk.get()), 8192);
    EXPECT_TRUE(blk_is_read_only(blk.get()));
    EXPECT_EQ(blk_getlength(Open("{\"driver\": \"blkdebug\", \"child\": \"null:size=7k\"}").get()),
              7168);
    EXPECT_EQ(blk_getlength(Open("blkdebug:{\"driver\": \"null\", \"size\": 512}").get()), 512);
}

TEST_F(BlkJson, ErrorsNameThePlaceAndWhatIsExpected)
{
    const struct {
        const char *spec, *part;
    } cases[] = {
        { "{\"driver\": \"null\"", "line 1" },
        { "{}", "lacks \"driver\"" },
        { "{\"driver\": \"nil\"}", "unknown driver 'nil'" },
        { "{\"driver\": \"null\", \"size\": 0}", "'size'" },
        { "{\"driver\": \"null\", \"size\": [1]}", "'size'" },
        { "{\"driver\": \"null\", \"size\": 1.5}", "'size'" },
        { "{\"driver\": \"null\", \"siz\": 1}", "no option 'siz'" },
        { "{\"driver\": \"null\", \"size\": 1, \"size\": 2}", "duplicate" },
        { "{\"driver\": \"file\"}", "names no file" },
        { "{\"driver\": \"blkdebug\"}", "lacks the driver below" },
        { "{\"driver\": \"blkdebug\", \"child\": 5}", "\"child\"" },
        { "{\"driver\": \"null\", \"child\": \"null:\"}", "no option 'child'" },
        { "json:[]", "no object" },
    };

    for (const auto &c : cases) {
        int err = 0;
        std::string why = OpenError(c.spec, &err);

        EXPECT_EQ(err, EINVAL) << c.spec;
        EXPECT_TRUE(Contains(why, c.part)) << c.spec << ": " << why;
    }
}

/* ---- blkdebug -------------------------------------------------------------------------------- */

class BlkDebug : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    static int Read(const Blk &blk, int64_t offset = 0, int64_t bytes = 512)
    {
        std::vector<char> buf(static_cast<size_t>(bytes));

        return blk_pread(blk.get(), offset, bytes, buf.data(), BdrvRequestFlags());
    }
    /* What @n reads end in: a '.' for 0, an 'x' for -EIO. */
    static std::string Reads(const Blk &blk, int n)
    {
        std::string out;

        for (int i = 0; i < n; i++) {
            int ret = Read(blk);
            out += ret == 0 ? '.' : ret == -EIO ? 'x' : '?';
        }
        return out;
    }
};

INSTANTIATE_TEST_SUITE_P(Monitors, BlkDebug, testing::ValuesIn(kMonitors), MonitorName);

TEST_P(BlkDebug, RulesChooseByNumber)
{
    LocalContext ctx(GetParam());

    EXPECT_EQ(Reads(Open("blkdebug:rules=read+nth=3+error=EIO,null:"), 6), "..x...");
    EXPECT_EQ(Reads(Open("blkdebug:rules=read+every=2+error=EIO,null:"), 6), ".x.x.x");
    EXPECT_EQ(Reads(Open("blkdebug:rules=read+times=2+error=EIO,null:"), 6), "xx....");
    EXPECT_EQ(Reads(Open("blkdebug:rules=write+error=EIO,null:"), 6), "......");
    EXPECT_EQ(Reads(Open("blkdebug:rules=any+nth=1+error=EIO;read+nth=1+error=EIO,null:"), 3),
              "xx.");
}

TEST_P(BlkDebug, ChanceRepeatsItselfWithItsSeed)
{
    LocalContext ctx(GetParam());
    std::string rules = ",rules=read+chance=0.5+error=EIO,null:";
    std::string a = Reads(Open("blkdebug:seed=1" + rules), 100);

    EXPECT_EQ(Reads(Open("blkdebug:seed=1" + rules), 100), a);
    EXPECT_NE(Reads(Open("blkdebug:seed=2" + rules), 100), a);
    EXPECT_GT(std::count(a.begin(), a.end(), 'x'), 25);
    EXPECT_LT(std::count(a.begin(), a.end(), 'x'), 75);
}

TEST_P(BlkDebug, RangesChooseByPlace)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:rules=from=4k+to=8k+error=ENOSPC,null:");

    EXPECT_EQ(Read(blk, 0, 4096), 0);
    EXPECT_EQ(Read(blk, 4095, 1), 0);
    EXPECT_EQ(Read(blk, 4095, 2), -ENOSPC);
    EXPECT_EQ(Read(blk, 8191, 1), -ENOSPC);
    EXPECT_EQ(Read(blk, 8192, 512), 0);
}

TEST_P(BlkDebug, EveryOperationCanBeChosen)
{
    LocalContext ctx(GetParam());
    char buf[512] = {};
    BlkExtent extent;

    for (const char *op : { "write", "flush", "discard", "zeroes", "status" }) {
        Blk blk = Open(std::string("blkdebug:rules=") + op + "+error=ENODEV,null:");

        EXPECT_EQ(Read(blk), 0) << op;
        EXPECT_EQ(blk_pwrite(blk.get(), 0, 512, buf, BdrvRequestFlags()),
                  strcmp(op, "write") ? 0 : -ENODEV);
        EXPECT_EQ(blk_flush(blk.get()), strcmp(op, "flush") ? 0 : -ENODEV);
        EXPECT_EQ(blk_pdiscard(blk.get(), 0, 512), strcmp(op, "discard") ? 0 : -ENODEV);
        EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 0, 512, BdrvRequestFlags()),
                  strcmp(op, "zeroes") ? 0 : -ENODEV);
        EXPECT_EQ(blk_block_status(blk.get(), 0, 512, &extent), strcmp(op, "status") ? 0 : -ENODEV);
    }
}

TEST_P(BlkDebug, ShortTransfersAreContinued)
{
    LocalContext ctx(GetParam());
    MemDisk disk("d", 65536, 512);
    Blk blk = Open("blkdebug:rules=short=1k,mem:d");
    Buffer out(16384, 7), in(16384, 0);

    for (size_t i = 0; i < out.size; i++) {
        out.data[i] = static_cast<uint8_t>(i * 131 >> 3);
    }
    EXPECT_EQ(blk_pwrite(blk.get(), 512, 16384, out.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(blk.get(), 512, 16384, in.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(memcmp(in.data, out.data, 16384), 0);
    EXPECT_EQ(Stats(blk).short_transfers, 30u);
}

TEST_P(BlkDebug, ADelayLetsADeadlinePass)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:rules=delay=1000s,null:deadline-ns=1000000");

    EXPECT_EQ(Read(blk), -ETIMEDOUT);
    EXPECT_EQ(Stats(blk).timed_out, 1u);
}

TEST_P(BlkDebug, ADelayEnds)
{
    LocalContext ctx(GetParam());

    EXPECT_EQ(Read(Open("blkdebug:rules=delay=100us,null:")), 0);
}

TEST_P(BlkDebug, WhatNeverEndsIsCancelled)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("blkdebug:rules=never,null:");
    Buffer buf(512);
    Result r;
    BlockAIOCB *acb = blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r);

    aio_poll(ctx.get(), false);
    EXPECT_EQ(r.calls, 0);
    blk_aio_cancel_async(acb);
    EXPECT_TRUE(ctx.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ECANCELED);
}

TEST_P(BlkDebug, WhatNeverEndsDoesNotKeepAContextFromEnding)
{
    Blk blk = Open("blkdebug:rules=never,null:");
    Buffer buf(512);
    Result r;
    IOThreadOptions opts = {};
    IOThread *io;

    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 1;
    io = iothread_new("never", &opts);
    ASSERT_NE(io, nullptr);
    std::function<void()> submit = [&] {
        blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r);
    };
    ASSERT_EQ(aio_bh_schedule_oneshot(
                  iothread_get_aio_context(io),
                  [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); }, &submit),
              0);
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(r.calls, 1);
    EXPECT_EQ(r.ret, -ECANCELED);
}

TEST_P(BlkDebug, BadRulesSayWhatARuleIsMadeOf)
{
    for (const char *rules : { "x", "read", "error=EFOO", "read+nth=0+error=EIO", "delay=5",
                               "error=EIO+delay=1ms", "chance=2+error=EIO", "nth=x+error=EIO" }) {
        std::string why = OpenError(std::string("blkdebug:rules=") + rules + ",null:");

        EXPECT_TRUE(Contains(why, "'rules': rule 1")) << why;
    }
}
