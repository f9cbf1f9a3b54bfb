/* SPDX-License-Identifier: MIT */
/* Throttle groups: the rate, bursts, turns, and the filter's waiting requests. */
#include "block_support.h"

extern "C" {
#include "block/throttle_int.h"
}
#include "tools/blk_random.h"

#include <cerrno>
#include <deque>
#include <thread>

static bool Contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

/* ---- The rate, in simulated time ------------------------------------------------------------- */

static const int64_t kSecond = INT64_C(1000000000);

class ThrottleRate : public testing::Test
{
protected:
    ~ThrottleRate() override
    {
        if (group) {
            throttle_group_put(group);
        }
    }
    void Make()
    {
        ASSERT_EQ(throttle_find_fault(&config), nullptr);
        ASSERT_EQ(throttle_group_get(nullptr, &config, &group), 0);
    }
    /* Has someone who always has more do requests of @bytes up to @end, each as soon as it may;
     * returns how many. */
    uint64_t Saturate(bool write, uint64_t bytes, int64_t end, int64_t late = 0)
    {
        uint64_t n = 0;

        throttle_group_lock(group);
        for (;;) {
            int64_t start = throttle_group_start_locked(group, write);

            if (start > now) {
                now = start + late;
            }
            if (now >= end) {
                break;
            }
            throttle_group_charge_locked(group, write, bytes, 1, now);
            n++;
        }
        throttle_group_unlock(group);
        now = end;
        return n;
    }

    ThrottleConfig config = {};
    struct throttle_group *group = nullptr;
    int64_t now = 1000 * kSecond;
};

TEST_F(ThrottleRate, IsHeldOverTenSeconds)
{
    for (uint64_t rate : { 3ull, 10ull, 997ull, 5000ull, 333333ull }) {
        config.bucket[THROTTLE_OPS_TOTAL].avg = rate;
        Make();
        uint64_t n = Saturate(false, 4096, now + 10 * kSecond);
        EXPECT_GE(n, 10 * rate);
        EXPECT_LE(n, 10 * rate + rate / 20 + 1); /* 50 ms of credit */
        throttle_group_put(group);
        group = nullptr;
    }
}

TEST_F(ThrottleRate, IsHeldThoughEveryTurnComesLate)
{
    config.bucket[THROTTLE_OPS_TOTAL].avg = 1000;
    Make();
    uint64_t n = Saturate(false, 4096, now + 10 * kSecond, 5000000);
    EXPECT_GE(n, 9940u);
    EXPECT_LE(n, 10051u);
}

TEST_F(ThrottleRate, BytesCountWhateverTheSize)
{
    config.bucket[THROTTLE_BPS_TOTAL].avg = 1000000;
    Make();
    uint64_t bytes = 512 * Saturate(false, 512, now + 5 * kSecond);
    bytes += 65536 * Saturate(true, 65536, now + 5 * kSecond);
    EXPECT_GE(bytes, 9940000u);
    EXPECT_LE(bytes, 10050000u + 2 * 65536);
}

TEST_F(ThrottleRate, ReadsAndWritesHaveTheirOwn)
{
    config.bucket[THROTTLE_OPS_READ].avg = 100;
    config.bucket[THROTTLE_OPS_WRITE].avg = 700;
    Make();
    int64_t begin = now;
    uint64_t reads = Saturate(false, 512, begin + 10 * kSecond);
    now = begin;
    uint64_t writes = Saturate(true, 512, begin + 10 * kSecond);
    EXPECT_NEAR(static_cast<double>(reads), 1000, 6);
    EXPECT_NEAR(static_cast<double>(writes), 7000, 36);
}

TEST_F(ThrottleRate, LongRequestsCountAsSeveral)
{
    config.bucket[THROTTLE_OPS_TOTAL].avg = 1000;
    config.op_size = 4096;
    Make();
    EXPECT_NEAR(static_cast<double>(Saturate(false, 4097, now + 10 * kSecond)), 5000, 26);
    EXPECT_NEAR(static_cast<double>(Saturate(false, 4096, now + 10 * kSecond)), 10000, 51);
    EXPECT_NEAR(static_cast<double>(Saturate(false, 1, now + 10 * kSecond)), 10000, 51);
}

TEST_F(ThrottleRate, ABurstLastsAsLongAsItMay)
{
    config.bucket[THROTTLE_OPS_TOTAL] = { 100, 1000, 2000, 0 };
    Make();
    uint64_t first = Saturate(false, 512, now + 2 * kSecond);
    uint64_t then = Saturate(false, 512, now + 10 * kSecond);
    EXPECT_NEAR(static_cast<double>(first), 2000, 60);
    EXPECT_NEAR(static_cast<double>(then), 1000, 60);
    now += 100 * kSecond; /* a quiet time earns it again */
    EXPECT_NEAR(static_cast<double>(Saturate(false, 512, now + 2 * kSecond)), 2000, 60);
}

TEST_F(ThrottleRate, AQuietTimeEarnsNoMoreThanItsCredit)
{
    config.bucket[THROTTLE_OPS_TOTAL].avg = 1000;
    Make();
    now += 1000 * kSecond;
    EXPECT_NEAR(static_cast<double>(Saturate(false, 512, now + kSecond)), 1050, 2);
}

TEST_F(ThrottleRate, HugeRequestsAndRatesDoNotOverflow)
{
    config.bucket[THROTTLE_BPS_TOTAL].avg = 1;
    config.bucket[THROTTLE_OPS_TOTAL].avg = UINT64_C(1000000000000000);
    Make();
    throttle_group_lock(group);
    for (int i = 0; i < 100; i++) {
        throttle_group_charge_locked(group, true, UINT64_C(1) << 62, 1, now);
    }
    EXPECT_GT(throttle_group_start_locked(group, true), now);
    throttle_group_unlock(group);
}

/* 15 * 10^18 ns: more than an int64_t, less than a uint64_t holds. */
TEST_F(ThrottleRate, AClockNeverGoesBack)
{
    config.bucket[THROTTLE_BPS_TOTAL].avg = 1;
    Make();
    throttle_group_lock(group);
    EXPECT_GT(throttle_group_charge_locked(group, true, UINT64_C(15000000000), 1, now), 0);
    EXPECT_GT(throttle_group_start_locked(group, true), now);
    throttle_group_unlock(group);
}

TEST_F(ThrottleRate, WhatIsGivenBackIsThereAgain)
{
    config.bucket[THROTTLE_BPS_TOTAL].avg = 333;
    config.bucket[THROTTLE_OPS_WRITE] = { 7, 77, 2000, 0 };
    config.op_size = 1000;
    Make();
    throttle_group_lock(group);
    throttle_group_charge_locked(group, true, 4097, 1, now);
    int64_t start = throttle_group_start_locked(group, true);
    for (int i = 0; i < 1000; i++) {
        throttle_group_charge_locked(group, true, 12345, 1, start);
        throttle_group_refund_locked(group, true, 12345, 1);
    }
    EXPECT_NEAR(static_cast<double>(throttle_group_start_locked(group, true) - start), 0, 51e6);
    throttle_group_unlock(group);
}

TEST_F(ThrottleRate, LimitsThatAreSetOftenLetNoMoreThrough)
{
    ThrottleConfig other;
    uint64_t n = 0;

    config.bucket[THROTTLE_OPS_TOTAL] = { 1000, 0, 0, 0 };
    config.bucket[THROTTLE_BPS_TOTAL] = { 1000000, 10000000, 1000, 0 };
    other = config;
    other.bucket[THROTTLE_BPS_TOTAL] = { 1000000, 0, 0, 0 };
    Make();
    Saturate(false, 1000, now + 20 * kSecond); /* no credit is left */
    for (int i = 0; i < 1000; i++) {
        n += Saturate(false, 1000, now + kSecond / 100);
        throttle_group_lock(group);
        throttle_group_change_locked(group, i % 2 ? &config : &other, now);
        throttle_group_unlock(group);
    }
    EXPECT_NEAR(static_cast<double>(n), 10000, 100);
}

TEST_F(ThrottleRate, ALongRequestIsNotWaitedForLongerThanAHigherLimitAsks)
{
    ThrottleConfig fast = {};

    config.bucket[THROTTLE_BPS_TOTAL].avg = 10;
    fast.bucket[THROTTLE_BPS_TOTAL].avg = 1000;
    Make();
    throttle_group_lock(group);
    throttle_group_charge_locked(group, true, 1000, 1, now); /* 100 s */
    throttle_group_change_locked(group, &fast, now);
    EXPECT_NEAR(static_cast<double>(throttle_group_start_locked(group, true) - now), 1e9, 1e8);
    throttle_group_change_locked(group, &config, now);
    EXPECT_NEAR(static_cast<double>(throttle_group_start_locked(group, true) - now), 1e9, 1e8);
    throttle_group_unlock(group);
}

TEST_F(ThrottleRate, WhatWaitedThroughAStallIsMadeUpFor)
{
    config.bucket[THROTTLE_OPS_TOTAL].avg = 1000;
    Make();
    int64_t begin = now;
    uint64_t n = Saturate(false, 512, begin + kSecond);
    now += 400 * 1000000; /* its thread got no processor */
    throttle_group_lock(group);
    throttle_group_late_locked(group, now);
    throttle_group_unlock(group);
    n += Saturate(false, 512, begin + 10 * kSecond);
    EXPECT_NEAR(static_cast<double>(n), 10050, 2);
    now += 100 * kSecond; /* a quiet time is not */
    EXPECT_NEAR(static_cast<double>(Saturate(false, 512, now + kSecond)), 1050, 2);
}

TEST_F(ThrottleRate, OfAnEndlessStallASecondIsMadeUpFor)
{
    config.bucket[THROTTLE_OPS_TOTAL].avg = 1000;
    Make();
    Saturate(false, 512, now + kSecond);
    now += 60 * kSecond;
    throttle_group_lock(group);
    throttle_group_late_locked(group, now);
    throttle_group_unlock(group);
    EXPECT_NEAR(static_cast<double>(Saturate(false, 512, now + kSecond)), 2050, 2);
}

TEST_F(ThrottleRate, ATurnIsWorthTheLongestRequestOfLate)
{
    config.bucket[THROTTLE_BPS_TOTAL].avg = 50 << 20;
    Make();
    throttle_group_lock(group);
    EXPECT_EQ(throttle_group_turn_locked(group), THROTTLE_TURN_NS);
    int64_t ns = throttle_group_charge_locked(group, false, 512 << 10, 1, now);
    EXPECT_EQ(throttle_group_turn_locked(group), ns);
    for (int i = 0; i < 1000; i++) {
        throttle_group_charge_locked(group, false, 4096, 1, now);
    }
    EXPECT_EQ(throttle_group_turn_locked(group), THROTTLE_TURN_NS);
    throttle_group_charge_locked(group, false, 1 << 30, 1, now);
    EXPECT_EQ(throttle_group_turn_locked(group), THROTTLE_TOLERANCE_NS);
    throttle_group_unlock(group);
}

TEST_F(ThrottleRate, BadLimitsHaveAFault)
{
    for (const ThrottleBucket &b :
         { ThrottleBucket{ 0, 5, 0, 0 }, ThrottleBucket{ 5, 5, 0, 0 }, ThrottleBucket{ 5, 0, 5, 0 },
           ThrottleBucket{ 5, 6, 3600001, 0 },
           ThrottleBucket{ UINT64_C(1000000000000001), 0, 0, 0 } }) {
        config.bucket[THROTTLE_BPS_READ] = b;
        EXPECT_NE(throttle_find_fault(&config), nullptr);
    }
}

/* ---- Members, in simulated time -------------------------------------------------------------- */

/* Members of one group, each on a context of its own that this thread polls in turn.  Nothing
 * sleeps: when no context has anything to do, the clock goes on to the next deadline. */
class ThrottleMembers : public testing::Test
{
protected:
    struct Member {
        AioContext *ctx;
        Blk blk;
        std::unique_ptr<Buffer> buf;
        std::deque<Result> slots;
        uint64_t done = 0;
        int64_t stalled_until = 0;
    };

    ThrottleMembers() : clock(QEMU_CLOCK_REALTIME, 1000 * kSecond)
    {
    }
    void Add(const std::string &limits, int depth, size_t bytes)
    {
        auto m = std::make_unique<Member>();

        m->ctx = aio_context_new(nullptr);
        ASSERT_NE(m->ctx, nullptr);
        m->blk = Open("throttle:group=members," + limits + ",null:");
        m->buf = std::make_unique<Buffer>(bytes);
        m->slots.resize(static_cast<size_t>(depth));
        for (Result &slot : m->slots) {
            Member *member = m.get();
            slot.then = [this, member, &slot] {
                if (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < end) {
                    member->done++;
                    Submit(member, &slot);
                }
            };
        }
        members.push_back(std::move(m));
    }
    static void Submit(Member *m, Result *slot)
    {
        blk_aio_preadv(m->blk.get(), 0, &m->buf->qiov, BdrvRequestFlags(), Ended, slot);
    }
    /* Polls whoever is not stalled until nothing happens; the time of the next deadline. */
    int64_t PollAll()
    {
        int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME), next = end;
        bool progress = true;

        while (progress) {
            progress = false;
            size_t first = blk_random_below(&order, members.size()); /* nobody is always first */
            for (size_t i = 0; i < members.size(); i++) {
                auto &m = members[(first + i) % members.size()];
                if (m->stalled_until <= now) {
                    qemu_set_current_aio_context(m->ctx);
                    progress |= aio_poll(m->ctx, false);
                }
            }
        }
        for (auto &m : members) {
            qemu_set_current_aio_context(m->ctx);
            int64_t timeout = aio_compute_timeout(m->ctx);
            int64_t at = timeout < 0 ? end : now + timeout;
            next = std::min(next, std::max(at, m->stalled_until));
        }
        return std::max(next, now + 1);
    }
    /* Runs for 10 s; each wake-up comes up to @late_ns late, and once in a while a member gets no
     * processor for up to @stall_ns. */
    void Run(int64_t late_ns, int64_t stall_ns = 0)
    {
        struct blk_random random = { 17 };

        end = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 10 * kSecond;
        for (auto &m : members) {
            qemu_set_current_aio_context(m->ctx);
            for (Result &slot : m->slots) {
                Submit(m.get(), &slot);
            }
        }
        while (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < end) {
            int64_t next = PollAll();

            if (stall_ns && blk_random_below(&random, 1000) == 0) {
                members[blk_random_below(&random, members.size())]->stalled_until =
                    next + static_cast<int64_t>(
                               blk_random_below(&random, static_cast<uint64_t>(stall_ns)));
            }
            clock.Set(next + static_cast<int64_t>(
                                 blk_random_below(&random, static_cast<uint64_t>(late_ns) + 1)));
        }
    }
    /* What was let through, in units of the limit; and that everyone has got a fair share of it. */
    double CheckShares()
    {
        double all = 0;

        for (auto &m : members) {
            all += static_cast<double>(m->done * per_request(*m));
        }
        for (auto &m : members) {
            double fair = all / static_cast<double>(members.size());
            EXPECT_GE(static_cast<double>(m->done * per_request(*m)), 0.9 * fair)
                << members.size() << " members, depth " << m->slots.size();
        }
        return all;
    }
    void End()
    {
        for (auto &m : members) {
            qemu_set_current_aio_context(m->ctx);
            m->blk.reset();
            aio_context_unref(m->ctx);
        }
        members.clear();
    }
    uint64_t per_request(const Member &m) const
    {
        return in_bytes ? m.buf->size : 1;
    }

    FakeClock clock;
    std::vector<std::unique_ptr<Member>> members;
    int64_t end = 0;
    bool in_bytes = false;
    struct blk_random order = { 5 };
};

TEST_F(ThrottleMembers, ReachTheLimitWithinTwoPercentAndShareItFairly)
{
    for (int n = 1; n <= 4; n++) {
        for (int64_t late_ns : { 0, 60000, 2000000 }) {
            for (int i = 0; i < n; i++) {
                Add("iops=1000", 32, 512);
            }
            Run(late_ns);
            EXPECT_NEAR(CheckShares(), 10000, 200) << n << " members, late by " << late_ns;
            End();
        }
    }
}

TEST_F(ThrottleMembers, WhoHasOneRequestWaitingGetsAsMuchAsWhoHasMany)
{
    Add("iops=2000", 1, 512);
    Add("iops=2000", 32, 512);
    Add("iops=2000", 4, 512);
    Run(60000);
    EXPECT_NEAR(CheckShares(), 20000, 400);
    End();
}

TEST_F(ThrottleMembers, BytesAreSharedBetweenLargeAndSmallRequests)
{
    in_bytes = true;
    Add("bps=8M", 8, 65536);
    Add("bps=8M", 32, 4096);
    Run(60000);
    EXPECT_NEAR(CheckShares() / (1 << 20), 80, 1.6);
    End();
}

TEST_F(ThrottleMembers, TheLimitIsReachedThoughThreadsStall)
{
    for (int n : { 1, 3 }) {
        for (int i = 0; i < n; i++) {
            Add("iops=1000", 32, 512);
        }
        Run(60000, 300 * 1000000);
        double all = 0;
        for (auto &m : members) {
            all += static_cast<double>(m->done);
        }
        EXPECT_NEAR(all, 10000, 200) << n;
        End();
    }
}

/* ---- The filter ------------------------------------------------------------------------------ */

class Throttle : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    static BlockAIOCB *Read(const Blk &blk, Buffer *buf, Result *r)
    {
        return blk_aio_preadv(blk.get(), 0, &buf->qiov, BdrvRequestFlags(), Ended, r);
    }
};

INSTANTIATE_TEST_SUITE_P(Monitors, Throttle, testing::ValuesIn(kMonitors), MonitorName);

TEST_P(Throttle, IsNeverFasterThanItsLimit)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:iops=2000,null:");
    Buffer buf(512);
    std::vector<Result> r(400);
    int64_t begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    for (Result &one : r) {
        Read(blk, &buf, &one);
    }
    EXPECT_TRUE(ctx.PollUntil([&] { return r.back().calls == 1; }));
    /* 50 ms of credit, a turn of 1 ms, and the last one need not wait for its own time */
    EXPECT_GE(qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin, 399 * 500000 - 51000000);
    for (Result &one : r) {
        EXPECT_EQ(one.calls, 1);
        EXPECT_EQ(one.ret, 0);
    }
}

/* Limits so low that what waits would wait for ever. */
TEST_P(Throttle, WhatWaitsIsCancelled)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    Result first, second, third;

    Read(blk, &buf, &first);
    BlockAIOCB *acb = Read(blk, &buf, &second);
    EXPECT_TRUE(ctx.PollUntil([&] { return first.calls == 1; }));
    BlockAIOCB *acb3 = Read(blk, &buf, &third);
    blk_aio_cancel_async(acb);
    EXPECT_TRUE(ctx.PollUntil([&] { return second.calls == 1; }));
    EXPECT_EQ(second.ret, -ECANCELED);
    EXPECT_EQ(third.calls, 0);
    blk_aio_cancel_async(acb3);
    EXPECT_TRUE(ctx.PollUntil([&] { return third.calls == 1; }));
}

TEST_P(Throttle, ADeadlinePassesWhileARequestWaits)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:bps=1,deadline-ns=1000000,null:");
    char buf[512];

    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags()), -ETIMEDOUT);
}

TEST_P(Throttle, ADrainLetsAllGo)
{
    ScopedIOThread io(GetParam());
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    std::vector<Result> r(50);

    for (int round = 0; round < 20; round++) {
        for (Result &one : r) {
            one.calls = 0;
        }
        io.Run([&] {
            for (Result &one : r) {
                Read(blk, &buf, &one);
            }
        });
        EXPECT_EQ(blk_drain(blk.get()), 0);
        for (Result &one : r) {
            EXPECT_EQ(one.calls, 1);
        }
    }
}

TEST_P(Throttle, ClosingLetsAllGo)
{
    Result first, second;
    Buffer buf(4096);
    {
        ScopedIOThread io(GetParam());
        Blk blk = Open("throttle:bps=1,null:");

        io.Run([&] {
            Read(blk, &buf, &first);
            Read(blk, &buf, &second);
        });
        blk.reset();
        EXPECT_EQ(first.ret, 0);
        EXPECT_EQ(second.ret, 0);
    }
    EXPECT_EQ(second.calls, 1);
}

TEST_P(Throttle, AContextMayEndFirst)
{
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    Result first, second;
    IOThreadOptions opts = {};

    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("ends", &opts);
    ASSERT_NE(io, nullptr);
    std::function<void()> submit = [&] {
        Read(blk, &buf, &first);
        Read(blk, &buf, &second);
    };
    aio_bh_schedule_oneshot(
        iothread_get_aio_context(io),
        [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); }, &submit);
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(first.ret, 0);
    EXPECT_EQ(second.ret, -ECANCELED);
}

TEST_P(Throttle, ACallbackMayPollForWhatWaitsBehindIt)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:iops=1000,null:");
    Buffer buf(4096);
    std::vector<Result> r(200);
    int nested = 0;

    for (size_t i = 0; i < r.size(); i += 20) {
        r[i].then = [&, i] {
            EXPECT_TRUE(ctx.PollUntil([&] { return r[i + 19].calls == 1; }));
            nested++;
        };
    }
    for (Result &one : r) {
        Read(blk, &buf, &one);
    }
    EXPECT_TRUE(ctx.PollUntil([&] { return r.back().calls == 1 && nested == 10; }));
}

TEST_P(Throttle, LimitsMayChangeWhileRequestsWait)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    Blk blk = Open("throttle:group=changes,bps=1,null:"),
        other = Open("throttle:group=changes,null:");
    Buffer buf(4096);
    std::vector<Result> r(20);
    ThrottleConfig config;

    a.Run([&] {
        for (int i = 0; i < 10; i++) {
            Read(blk, &buf, &r[i]);
        }
    });
    b.Run([&] {
        for (int i = 10; i < 20; i++) {
            Read(other, &buf, &r[i]);
        }
    });
    int waiting = 0;
    for (Result &one : r) {
        waiting += one.calls == 0;
    }
    EXPECT_GE(waiting, 18);
    ASSERT_EQ(throttle_group_get_config("changes", &config), 0);
    EXPECT_EQ(config.bucket[THROTTLE_BPS_TOTAL].avg, 1u);
    config.bucket[THROTTLE_BPS_TOTAL].avg = 1 << 30;
    ASSERT_EQ(throttle_group_set_config("changes", &config), 0);
    EXPECT_TRUE(WaitUntil([&] {
        for (Result &one : r) {
            if (one.calls == 0) {
                return false;
            }
        }
        return true;
    }));
}

TEST_P(Throttle, WhatWasCreditedUnderHigherLimitsIsForgottenWithThem)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:group=credit,iops=1000000000,null:");
    Buffer buf(4096), large(8192);
    ThrottleConfig config = {};
    Result high[2], low[8];

    Read(blk, &buf, &high[0]);
    Read(blk, &large, &high[1]); /* more than the first one's credit is for */
    ASSERT_TRUE(ctx.PollUntil([&] { return high[0].calls && high[1].calls; }));
    config.bucket[THROTTLE_BPS_TOTAL].avg = 1;
    ASSERT_EQ(throttle_group_set_config("credit", &config), 0);
    for (Result &one : low) {
        Read(blk, &buf, &one);
    }
    ASSERT_TRUE(ctx.PollUntil([&] { return low[0].calls == 1; }));
    while (aio_poll(ctx.get(), false)) {
    }
    for (int i = 1; i < 8; i++) {
        EXPECT_EQ(low[i].calls, 0);
    }
    config.bucket[THROTTLE_BPS_TOTAL].avg = 0;
    ASSERT_EQ(throttle_group_set_config("credit", &config), 0);
    EXPECT_TRUE(ctx.PollUntil([&] { return low[7].calls == 1; }));
}

/* A request that waits is neither counted again each time nor let through early. */
TEST_P(Throttle, LimitsMayBeSetAgainAndAgainWhileRequestsWait)
{
    ScopedIOThread a(GetParam());
    Blk blk = Open("throttle:group=again,iops=100,null:");
    Buffer buf(512);
    std::vector<Result> r(16);
    std::atomic<int> done{ 0 };
    ThrottleConfig config;

    ASSERT_EQ(throttle_group_get_config("again", &config), 0);
    for (Result &one : r) {
        one.then = [&] { done++; };
    }
    int64_t begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    a.Run([&] {
        for (Result &one : r) {
            Read(blk, &buf, &one);
        }
    });
    EXPECT_TRUE(WaitUntil([&] {
        EXPECT_EQ(throttle_group_set_config("again", &config), 0);
        return done == 16;
    }));
    /* The first 6 are what 50 ms are good for; one may be taken back as it is handed on. */
    EXPECT_GE(qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin, 40000000);
}

TEST_P(Throttle, MembersOnSeveralThreadsAllGetThrough)
{
    ScopedIOThread a(GetParam()), b(GetParam()), c(GetParam());
    const ScopedIOThread *threads[] = { &a, &b, &c };
    Blk blk = Open("throttle:group=several,iops=20000,null:");
    Buffer buf(4096);
    std::atomic<int> done{ 0 };
    struct Stream {
        Result r;
        int left;
    };
    std::vector<std::unique_ptr<Stream>> streams;

    for (int i = 0; i < 24; i++) {
        streams.emplace_back(new Stream);
        Stream *s = streams.back().get();
        s->left = 50;
        s->r.then = [&, s] {
            if (--s->left > 0) {
                Read(blk, &buf, &s->r);
            } else {
                done++;
            }
        };
        threads[i % 3]->Run([&] { Read(blk, &buf, &s->r); });
    }
    EXPECT_TRUE(WaitUntil([&] { return done == 24; }));
    EXPECT_EQ(blk_drain(blk.get()), 0);
}

/* Each cost 50 ms if what was reserved for it were lost. */
TEST_P(Throttle, WhatIsCancelledUsesNothingUp)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:iops=20,null:");
    Buffer buf(512);
    std::vector<Result> r(2000);
    Result last;

    for (Result &one : r) {
        BlockAIOCB *acb = Read(blk, &buf, &one);
        blk_aio_cancel_async(acb);
    }
    Read(blk, &buf, &last);
    EXPECT_TRUE(ctx.PollUntil([&] { return last.calls == 1 && r.back().calls == 1; }));
    EXPECT_EQ(last.ret, 0);
    EXPECT_EQ(r.back().ret, -ECANCELED);
}

TEST_P(Throttle, ADrainThatIsOverAtOnceTakesNoReservationAway)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:iops=20,null:");
    Buffer buf(512);
    std::vector<Result> r(4);

    for (Result &one : r) {
        Read(blk, &buf, &one);
    }
    for (int i = 0; i < 2000; i++) {
        blk_drain_until(blk.get(), 0);
        aio_poll(ctx.get(), false);
    }
    EXPECT_TRUE(ctx.PollUntil([&] { return r.back().calls == 1; }));
}

TEST_P(Throttle, ADrainEndsThoughCallbacksSubmitMore)
{
    ScopedIOThread io(GetParam());
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    std::vector<Result> r(10);
    std::atomic<bool> stop{ false }, ran{ false };

    for (Result &one : r) {
        one.then = [&] {
            if (!stop) {
                Read(blk, &buf, &one);
            }
        };
    }
    io.Run([&] {
        for (Result &one : r) {
            Read(blk, &buf, &one);
        }
    });
    EXPECT_EQ(blk_drain(blk.get()), 0);
    aio_bh_schedule_oneshot(
        io.ctx(), [](void *opaque) { *static_cast<std::atomic<bool> *>(opaque) = true; }, &ran);
    EXPECT_TRUE(WaitUntil([&] { return ran.load(); }));
    stop = true;
    EXPECT_EQ(blk_drain(blk.get()), 0);
}

TEST_P(Throttle, ACallbackMayDrainInsideADrain)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    std::vector<Result> r(20);
    int inner = 1;

    r[5].then = [&] {
        inner = blk_drain_until(blk.get(), qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 10 * kSecond);
    };
    for (Result &one : r) {
        Read(blk, &buf, &one);
    }
    EXPECT_EQ(blk_drain(blk.get()), 0);
    EXPECT_EQ(inner, 0);
    EXPECT_EQ(r.back().calls, 1);
}

TEST_P(Throttle, ASectionThatCannotWaitLetsAllGo)
{
    LocalContext ctx(GetParam());
    ScopedIOThread io(GetParam());
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    std::vector<Result> r(200);
    bool done = false;
    std::function<void()> func = [&] {
        EXPECT_EQ(blk_drained_begin(blk.get()), -EDEADLK);
        EXPECT_TRUE(WaitUntil([&] { return r.back().calls == 1; }));
        blk_drained_end(blk.get());
        done = true;
    };

    io.Run([&] {
        for (Result &one : r) {
            Read(blk, &buf, &one);
        }
    });
    aio_bh_schedule_oneshot(
        ctx.get(), [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); }, &func);
    EXPECT_TRUE(ctx.PollUntil([&] { return done; }));
}

TEST_P(Throttle, ClosingBelowACallbackLetsAllGo)
{
    LocalContext ctx(GetParam());
    Blk blk = Open("throttle:bps=1,null:");
    Buffer buf(4096);
    std::vector<Result> r(10);

    r[0].then = [&] { blk.reset(); };
    for (Result &one : r) {
        Read(blk, &buf, &one);
    }
    EXPECT_TRUE(ctx.PollUntil([&] { return r.back().calls == 1; }));
    EXPECT_EQ(r.back().ret, 0);
}

TEST(ThrottleQueue, AContextThatGaveUpOnItsRequestsIsLeftAlone)
{
    MemDisk disk("gave-up", 65536);
    Blk blk = Open("throttle:group=gave-up,bps=1G,mem:gave-up");
    Buffer buf(4096);
    Result r;
    IOThreadOptions opts = {};

    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("gives-up", &opts);
    ASSERT_NE(io, nullptr);
    std::function<void()> submit = [&] {
        blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r);
    };
    auto call = [](void *opaque) { (*static_cast<std::function<void()> *>(opaque))(); };
    disk.stall = true;
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), call, &submit), 0);
    ASSERT_TRUE(WaitUntil([&] { return disk.Stalled() == 1; }));
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(r.calls, 0);
    aio_rcu_barrier(); /* its memory has gone */
    ThrottleConfig config;
    ASSERT_EQ(throttle_group_get_config("gave-up", &config), 0);
    EXPECT_EQ(throttle_group_set_config("gave-up", &config), 0);
    EXPECT_EQ(blk_drain(blk.get()), 0);
    disk.Forget();
}

TEST_P(Throttle, GroupsAndLimitsThatDoNotFitAreRefused)
{
    Blk blk = Open("throttle:group=fits,iops=100,null:");

    EXPECT_NE(Open("throttle:group=fits,iops=100,null:"), nullptr);
    EXPECT_NE(Open("throttle:group=fits,null:"), nullptr);
    std::string why = OpenError("throttle:group=fits,iops=101,null:");
    EXPECT_TRUE(Contains(why, "'fits' exists with other limits")) << why;
    why = OpenError("throttle:iops-max=5,null:");
    EXPECT_TRUE(Contains(why, "needs an average")) << why;
    blk.reset();
    EXPECT_NE(Open("throttle:group=fits,iops=101,null:"), nullptr); /* it went with its members */
    ThrottleConfig config = {};
    EXPECT_EQ(throttle_group_get_config("fits", &config), -ENOENT);
    EXPECT_EQ(throttle_group_set_config("fits", &config), -ENOENT);
}
