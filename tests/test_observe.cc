/* SPDX-License-Identifier: MIT */
/* Histograms, stalls, and the file that the counters lie in. */
#include "loop_support.h"

#include <aioctx/block.h>
#include <aioctx/main_loop.h>
#include <aioctx/observe.h>

#include <csignal>
#include <cstring>
#include <liburing.h>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>
#include <vector>

static AioContextHistograms Histograms(AioContext *ctx)
{
    AioContextHistograms h;

    aio_context_get_histograms(ctx, &h);
    return h;
}

static uint64_t Count(const AioHistogram &h)
{
    return aio_histogram_count(&h);
}

static void RunBh(AioContext *ctx, const std::function<void()> &func)
{
    bool ran = false;
    Call call{ [&] {
        func();
        ran = true;
    } };

    ASSERT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &call), 0);
    while (!ran) {
        aio_poll(ctx, true);
    }
}

/* ---- Percentiles ----------------------------------------------------------------------------- */

TEST(Histogram, PercentileIsTheEndOfItsBucketAndNeverAboveTheLargest)
{
    AioHistogram h = {};

    EXPECT_EQ(aio_histogram_percentile(&h, 50000), 0u);
    h.buckets[0] = 50;
    h.buckets[4] = 49; /* 8 to 15 */
    h.buckets[11] = 1; /* 1024 to 2047 */
    h.max_ns = 1500;
    EXPECT_EQ(aio_histogram_count(&h), 100u);
    EXPECT_EQ(aio_histogram_percentile(&h, 0), 0u);
    EXPECT_EQ(aio_histogram_percentile(&h, 50000), 0u);
    EXPECT_EQ(aio_histogram_percentile(&h, 50001), 15u);
    EXPECT_EQ(aio_histogram_percentile(&h, 99000), 15u);
    EXPECT_EQ(aio_histogram_percentile(&h, 99001), 1500u);
    EXPECT_EQ(aio_histogram_percentile(&h, 100000), 1500u);
    EXPECT_EQ(aio_histogram_percentile(&h, 4000000000u), 1500u);
    h.buckets[47] = 1000;
    h.max_ns = UINT64_C(1) << 62;
    EXPECT_EQ(aio_histogram_percentile(&h, 99000), UINT64_C(1) << 62);
}

TEST(Histogram, PercentileOfManyDoesNotOverflow)
{
    AioHistogram h = {};

    h.buckets[3] = UINT64_C(1) << 62;
    h.buckets[5] = UINT64_C(1) << 62;
    h.max_ns = 31;
    EXPECT_EQ(aio_histogram_percentile(&h, 50000), 7u);
    EXPECT_EQ(aio_histogram_percentile(&h, 50001), 31u);
}

/* ---- Histograms ------------------------------------------------------------------------------ */

class Observe : public OnEachMonitor
{
};
ON_EACH_MONITOR(Observe);

TEST_P(Observe, HistogramsAreOffAtFirstAndCountNothingThen)
{
    ScopedContext ctx(GetParam());
    HeapTimer ts(aio_context_get_timer_list_group(ctx), [] {});

    timer_mod_ns(ts, 0);
    RunBh(ctx, [] {});
    while (timer_pending(ts)) {
        aio_poll(ctx, true);
    }
    AioContextHistograms h = Histograms(ctx);
    EXPECT_EQ(Count(h.timer_lateness) + Count(h.iteration) + Count(h.wake_to_run) +
                  Count(h.notify_to_run),
              0u);
}

/* A clock that stands still tells exactly how late a timer is. */
TEST_P(Observe, LatenessIsWhatTheTimersClockSays)
{
    const struct {
        int64_t late;
        unsigned bucket;
    } cases[] = { { 0, 0 }, { 1, 1 }, { 2, 2 }, { 3, 2 }, { 4, 3 }, { 1023, 10 }, { 1024, 11 } };
    FakeClock clock;
    ScopedContext ctx(GetParam());
    HeapTimer ts(aio_context_get_timer_list_group(ctx), [] {});
    uint64_t sum = 0;

    aio_context_set_histograms(ctx, true);
    for (auto &c : cases) {
        AioHistogram before = Histograms(ctx).timer_lateness, after;

        timer_mod_ns(ts, clock.Now() - c.late);
        aio_poll(ctx, false);
        ASSERT_FALSE(timer_pending(ts));
        after = Histograms(ctx).timer_lateness;
        sum += c.late;
        EXPECT_EQ(after.buckets[c.bucket], before.buckets[c.bucket] + 1) << c.late;
        EXPECT_EQ(Count(after), Count(before) + 1);
        EXPECT_EQ(after.sum_ns, sum);
    }
    EXPECT_EQ(Histograms(ctx).timer_lateness.max_ns, 1024u);
    /* Of a range, one that runs before its end is not late. */
    timer_mod_range_ns(ts, clock.Now() - 10, clock.Now() + 1000);
    aio_poll(ctx, false);
    ASSERT_FALSE(timer_pending(ts));
    EXPECT_EQ(Histograms(ctx).timer_lateness.buckets[0], 2u);
}

/* Runs @poll on the context until @ts, which it arms 200 ms from now, has fired. */
static void PollThroughASleep(AioContext *ctx, QEMUTimer *ts)
{
    timer_mod_ns(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 200 * SCALE_MS);
    while (timer_pending(ts)) {
        aio_poll(ctx, true);
    }
}

/* However slow the machine: the time that the loop was awake is what passed, less its sleep. */
TEST_P(Observe, AnIterationCountsWithoutItsSleep)
{
    ScopedContext ctx(GetParam());
    HeapTimer ts(aio_context_get_timer_list_group(ctx), [] {});
    int64_t begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    aio_context_set_histograms(ctx, true);
    PollThroughASleep(ctx, ts);
    int64_t took = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin;
    AioContextHistograms h = Histograms(ctx);
    EXPECT_EQ(Count(h.iteration), ctx.Stats().iterations);
    EXPECT_LE((int64_t)h.iteration.sum_ns, took - 150 * SCALE_MS);
    EXPECT_GT(h.iteration.sum_ns, 0u);
    EXPECT_LE(Count(h.wake_to_run), ctx.Stats().sleeps);
    if (ctx.Stats().sleeps) {
        EXPECT_EQ(Count(h.wake_to_run), 1u);
    }
    EXPECT_EQ(Count(h.notify_to_run), 0u);
}

TEST_P(Observe, ANestedIterationsTimeIsNotTheOuterOnes)
{
    ScopedContext ctx(GetParam());
    HeapTimer ts(aio_context_get_timer_list_group(ctx), [] { usleep(100000); });
    int64_t begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    aio_context_set_histograms(ctx, true);
    RunBh(ctx, [&] {
        usleep(30000);
        PollThroughASleep(ctx, ts);
    });
    int64_t took = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin;
    AioHistogram h = Histograms(ctx).iteration;
    EXPECT_EQ(Count(h), ctx.Stats().iterations);
    /* 100 ms of the inner one and 30 ms of the outer one, each once, and no sleep. */
    EXPECT_GE((int64_t)h.sum_ns, 130 * SCALE_MS);
    EXPECT_LE((int64_t)h.sum_ns, took - 150 * SCALE_MS);
    EXPECT_LE((int64_t)h.max_ns, took - 180 * SCALE_MS);
}

TEST_P(Observe, ANotifyThatEndsASleepIsTimed)
{
    ScopedIOThread io(GetParam());
    uint64_t before;

    aio_context_set_histograms(io.ctx(), true);
    io.Run([] {});
    for (int i = 0; i < 20; i++) {
        before = Count(Histograms(io.ctx()).iteration);
        usleep(2000); /* it sleeps, as a rule */
        io.Run([] {});
        EXPECT_TRUE(WaitUntil([&] { return Count(Histograms(io.ctx()).iteration) > before; }));
    }
    AioContextHistograms h = Histograms(io.ctx());
    EXPECT_GE(Count(h.notify_to_run), 1u);
    EXPECT_LE(Count(h.notify_to_run), Count(h.wake_to_run));
    /* It includes what the other begins with. */
    EXPECT_GE(h.notify_to_run.max_ns, 100u);
}

TEST_P(Observe, SwitchedOnAndOffBesideTheLoop)
{
    ScopedIOThread io(GetParam());
    std::atomic<bool> stop{ false };
    std::thread toggler([&] {
        for (int i = 0; !stop; i++) {
            aio_context_set_histograms(io.ctx(), i & 1);
            aio_context_set_stall_limit(io.ctx(), i & 2 ? 40 * INT64_C(1000000000) : 0);
            Histograms(io.ctx());
            if (i % 64 == 0) {
                usleep(100);
            }
        }
    });
    std::atomic<int> fired{ 0 };
    HeapTimer ts(aio_context_get_timer_list_group(io.ctx()), [&] {
        fired++;
        aio_poll(io.ctx(), false); /* nested */
        timer_mod_ns(ts, 0);
    });

    timer_mod_ns(ts, 0);
    for (int i = 0; i < (kSanitized ? 200 : 1000); i++) {
        io.Run([] {});
    }
    EXPECT_TRUE(WaitUntil([&] { return fired > 0; }));
    timer_del_sync(ts);
    stop = true;
    toggler.join();
}

/* What an option or the environment says, in a process of its own. */
TEST(ObserveDeathTest, OptionsAndEnvironmentAreCheckedAndTaken)
{
    auto check = [] {
        AioContextOptions bad = {}, on = {}, off = {};

        bad.histograms = 2;
        on.histograms = 1;
        off.histograms = -1;
        if (aio_context_new(&bad) || errno != EINVAL) {
            _exit(2);
        }
        setenv("AIOCTX_HISTOGRAMS", "yes", 1);
        if (aio_context_new(nullptr) || errno != EINVAL) {
            _exit(3);
        }
        setenv("AIOCTX_HISTOGRAMS", "on", 1);
        setenv("AIOCTX_STALL_MS", "10x", 1);
        if (aio_context_new(nullptr) || errno != EINVAL) {
            _exit(4);
        }
        setenv("AIOCTX_STALL_MS", "-1", 1);
        if (aio_context_new(nullptr) || errno != EINVAL) {
            _exit(5);
        }
        unsetenv("AIOCTX_STALL_MS");
        setenv("AIOCTX_STATS", "maybe", 1);
        if (aio_context_new(nullptr) || errno != EINVAL) {
            _exit(6);
        }
        setenv("AIOCTX_STATS", "on", 1);
        for (AioContextOptions *opts : { &on, &off, (AioContextOptions *)nullptr }) {
            AioContext *ctx = aio_context_new(opts);
            aio_poll(ctx, false);
            if (Count(Histograms(ctx).iteration) != (opts == &off ? 0 : 1)) {
                _exit(7);
            }
            aio_context_unref(ctx);
        }
        fprintf(stderr, "all well\n");
        _exit(0);
    };

    EXPECT_EXIT(check(), testing::ExitedWithCode(0),
                "AioContextOptions.histograms is 2.*'yes'.*on or off.*'10x'.*milliseconds.*'-1'"
                ".*'maybe'.*on or off.*all well");
    EXPECT_DEATH(aio_context_set_stall_limit(aio_context_new(nullptr), -5), "limit_ns is -5");
}

/* ---- Stalls ---------------------------------------------------------------------------------- */

struct Stall {
    AioStall s;
    std::string kind, name, symbol, object;
};

/* Collects what the hook is told, with the scope. */
class StallHook
{
public:
    StallHook()
    {
        aio_set_stall_hook(Tell, this);
    }
    ~StallHook()
    {
        aio_set_stall_hook(nullptr, nullptr);
    }
    std::vector<Stall> Get(bool running)
    {
        std::lock_guard<std::mutex> guard(lock_);
        std::vector<Stall> got;

        for (const Stall &s : stalls_) {
            if (s.s.running == running) {
                got.push_back(s);
            }
        }
        return got;
    }

private:
    static void Tell(const AioStall *s, void *opaque)
    {
        auto self = static_cast<StallHook *>(opaque);
        auto text = [](const char *t) { return std::string(t ? t : ""); };
        std::lock_guard<std::mutex> guard(self->lock_);

        self->stalls_.push_back(
            { *s, text(s->kind), text(s->name), text(s->symbol), text(s->object) });
    }

    std::mutex lock_;
    std::vector<Stall> stalls_;
};

constexpr int64_t kLimit = 20 * SCALE_MS;
constexpr unsigned kTooLongUs = 30000;

static void Hog(void *opaque)
{
    usleep(kTooLongUs);
    *static_cast<int *>(opaque) += 1;
}

TEST_P(Observe, EachKindOfCallbackIsNamed)
{
    StallHook hook;
    SocketPair s;
    int ran = 0;
    char c = 'x';

    /* A context for each, as reports of one are rate limited. */
    auto check = [&](const char *kind, const char *name, int fd,
                     const std::function<void(AioContext *)> &start) {
        size_t before = hook.Get(false).size();
        ScopedContext ctx(GetParam());

        aio_context_set_stall_limit(ctx, kLimit);
        start(ctx);
        for (int last = ran; ran == last;) {
            aio_poll(ctx, true);
        }
        std::vector<Stall> got = hook.Get(false);
        ASSERT_EQ(got.size(), before + 1) << kind;
        const Stall &g = got.back();
        EXPECT_EQ(g.kind, kind);
        EXPECT_EQ(g.name, name) << kind;
        EXPECT_EQ(g.s.fd, fd) << kind;
        EXPECT_EQ(g.s.ctx, (AioContext *)ctx);
        EXPECT_EQ(g.s.tid, gettid());
        EXPECT_EQ(g.s.limit_ns, kLimit);
        EXPECT_GE(g.s.held_ns, kTooLongUs * INT64_C(1000)) << kind;
        EXPECT_EQ(g.s.suppressed, 0u);
        EXPECT_NE(g.object, "") << kind;
        if (fd != s.b) {
            EXPECT_EQ(g.s.func, (void *)Hog) << kind;
        }
        aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
    };

    check("bottom half", "", -1, [&](AioContext *ctx) { aio_bh_schedule_oneshot(ctx, Hog, &ran); });
    QEMUTimer ts = {};
    check("timer", "", -1, [&](AioContext *ctx) {
        aio_timer_init(ctx, &ts, QEMU_CLOCK_REALTIME, SCALE_NS, Hog, &ran);
        timer_mod_ns(&ts, 0);
    });
    timer_deinit(&ts);
    QEMUTimer *named = nullptr;
    check("timer", "a name of thirty-one bytes, no ", -1, [&](AioContext *ctx) {
        named = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Hog, &ran);
        timer_set_name(named, "a name of thirty-one bytes, no more");
        timer_mod_ns(named, 0);
    });
    timer_free(named);
    check("fd write", "", s.a, [&](AioContext *ctx) {
        aio_set_fd_handler(ctx, s.a, nullptr, Hog, nullptr, nullptr, &ran);
    });
    ASSERT_EQ(write(s.b, &c, 1), 1);
    check("fd read", "", s.a, [&](AioContext *ctx) {
        aio_set_fd_handler(ctx, s.a, Hog, nullptr, nullptr, nullptr, &ran);
    });
    check("fd removal", "", s.a,
          [&](AioContext *ctx) { aio_remove_fd_handler_async(ctx, s.a, Hog, &ran); });
}

TEST_P(Observe, WhatLiesInsideACallbackIsNotItsOwn)
{
    StallHook hook;
    ScopedContext ctx(GetParam());
    HeapTimer ts(aio_context_get_timer_list_group(ctx), [] {});
    int64_t took = 0;
    int ran = 0;

    aio_context_set_stall_limit(ctx, SCALE_MS);
    RunBh(ctx, [&] {
        int64_t begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

        usleep(3000);
        PollThroughASleep(ctx, ts);
        took = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin;
    });
    /* The outer one's 3 ms make a stall, but not the sleep of the inner iteration. */
    std::vector<Stall> got = hook.Get(false);
    ASSERT_GE(got.size(), 1u);
    EXPECT_GE(got.back().s.held_ns, 3 * SCALE_MS);
    EXPECT_LE(got.back().s.held_ns, took - 150 * SCALE_MS);
    for (const Stall &s : hook.Get(true)) {
        EXPECT_LE(s.s.held_ns, took - 150 * SCALE_MS);
    }
    /* Below a nested iteration a callback is seen as anywhere else. */
    ScopedContext other(GetParam());
    size_t before = got.size();
    aio_context_set_stall_limit(ctx, 0);
    aio_context_set_stall_limit(other, kLimit);
    RunBh(other, [&] {
        aio_bh_schedule_oneshot(other, Hog, &ran);
        while (ran == 0) {
            aio_poll(other, true);
        }
    });
    ASSERT_GE(hook.Get(false).size(), before + 1);
    EXPECT_EQ(hook.Get(false)[before].s.func, (void *)Hog);
}

TEST_P(Observe, AHangingCallbackIsReportedWhileItHangs)
{
    StallHook hook;
    ScopedIOThread io(GetParam());
    std::atomic<bool> go{ false };
    Call hang{ [&] { WaitUntil([&] { return go.load(); }); } };

    aio_context_set_stall_limit(io.ctx(), kLimit);
    aio_bh_schedule_oneshot(io.ctx(), Call::Run, &hang);
    EXPECT_TRUE(WaitUntil([&] { return hook.Get(true).size() == 1; }));
    EXPECT_EQ(hook.Get(false).size(), 0u);
    usleep(50000);
    EXPECT_EQ(hook.Get(true).size(), 1u); /* once */
    go = true;
    io.Run([] {});
    std::vector<Stall> hung = hook.Get(true), ended = hook.Get(false);
    ASSERT_EQ(ended.size(), 1u); /* though the last report was not a second ago */
    EXPECT_EQ(hung[0].s.func, (void *)Call::Run);
    EXPECT_EQ(hung[0].kind, "bottom half");
    EXPECT_EQ(hung[0].s.tid, ended[0].s.tid);
    EXPECT_GE(ended[0].s.held_ns, hung[0].s.held_ns);
    aio_context_set_stall_limit(io.ctx(), 0);
    static int ran;
    aio_bh_schedule_oneshot(io.ctx(), Hog, &ran);
    io.Run([] {});
    EXPECT_EQ(hook.Get(false).size() + hook.Get(true).size(), 2u);
}

/* The end of the thread that hangs waits for the hook: the hook cannot wait for it. */
TEST_P(Observe, AHookMayEndTheThreadThatHangs)
{
    struct Hook {
        IOThread *io;
        std::atomic<int> ret{ 1 };

        static void Run(const AioStall *stall, void *opaque)
        {
            auto h = static_cast<Hook *>(opaque);

            if (stall->running) {
                h->ret = iothread_destroy(h->io);
            }
        }
    } hook;
    IOThreadOptions opts = {};
    Call hang{ [&] { WaitUntil([&] { return hook.ret != 1; }); } };

    opts.context.monitor = GetParam();
    opts.context.stall_limit_ns = kLimit;
    hook.io = iothread_new("hangs", &opts);
    ASSERT_NE(hook.io, nullptr);
    AioContext *ctx = iothread_get_aio_context(hook.io);
    aio_context_ref(ctx);
    aio_set_stall_hook(Hook::Run, &hook);
    aio_bh_schedule_oneshot(ctx, Call::Run, &hang);
    EXPECT_TRUE(WaitUntil([&] { return hook.ret != 1; }));
    EXPECT_EQ(hook.ret, -EDEADLK);
    EXPECT_TRUE(WaitUntil([&] { /* it has ended */
                                return aio_bh_schedule_oneshot(
                                           ctx, [](void *) {}, nullptr) == -ESHUTDOWN;
    }));
    aio_set_stall_hook(nullptr, nullptr);
    aio_context_unref(ctx);
}

TEST_P(Observe, ABlockRequestsOwnCallbackIsNamed)
{
    StallHook hook;
    ScopedContext ctx(GetParam());
    BlockBackend *blk = blk_open("null://?size=1M", nullptr);
    char buf[512];
    QEMUIOVector qiov;
    int ran = 0;
    auto cb = [](void *opaque, int) { Hog(opaque); };
    BlockCompletionFunc *func = cb;

    ASSERT_NE(blk, nullptr);
    qemu_iovec_init_buf(&qiov, buf, sizeof(buf));
    aio_context_set_stall_limit(ctx, kLimit);
    ASSERT_NE(blk_aio_preadv(blk, 0, &qiov, BdrvRequestFlags(), func, &ran), nullptr);
    while (ran == 0) {
        aio_poll(ctx, true);
    }
    std::vector<Stall> got = hook.Get(false);
    ASSERT_GE(got.size(), 1u);
    EXPECT_EQ(got[0].kind, "block request");
    EXPECT_EQ(got[0].s.func, reinterpret_cast<void *>(func));
    EXPECT_GE(got[0].s.held_ns, kTooLongUs * INT64_C(1000));
    for (const Stall &s : got) { /* what called it has not held the loop as long */
        EXPECT_TRUE(s.kind == "block request" || s.s.held_ns < got[0].s.held_ns) << s.kind;
    }
    blk_unref(blk);
}

static int completed;

TEST(ObserveStalls, ACompletionOfTheRingIsNamed)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    StallHook hook;
    ScopedContext ctx("io_uring");
    CqeHandler handler = {};

    handler.cb = [](CqeHandler *) { Hog(&completed); };
    aio_context_set_stall_limit(ctx, kLimit);
    ASSERT_EQ(aio_add_sqe([](struct io_uring_sqe *sqe, void *) { io_uring_prep_nop(sqe); }, nullptr,
                          &handler),
              0);
    while (completed == 0) {
        aio_poll(ctx, true);
    }
    ASSERT_EQ(hook.Get(false).size(), 1u);
    EXPECT_EQ(hook.Get(false)[0].kind, "completion");
    EXPECT_EQ(hook.Get(false)[0].s.func, reinterpret_cast<void *>(handler.cb));
}

/* The address of a function that the program does not export has no name, only a place. */
TEST_P(Observe, AnExportedFunctionIsNamed)
{
    if (kSanitized) {
        GTEST_SKIP() << "the sanitizer has a usleep() of its own";
    }
    StallHook hook;
    ScopedContext ctx(GetParam());
    auto cb = reinterpret_cast<QEMUBHFunc *>(reinterpret_cast<void *>(usleep));

    aio_context_set_stall_limit(ctx, kLimit);
    aio_bh_schedule_oneshot(ctx, cb, reinterpret_cast<void *>(uintptr_t(kTooLongUs)));
    while (ctx.Stats().bhs == 0) {
        aio_poll(ctx, true);
    }
    ASSERT_EQ(hook.Get(false).size(), 1u);
    EXPECT_EQ(hook.Get(false)[0].symbol, "usleep");
    EXPECT_NE(hook.Get(false)[0].object.find("libc"), std::string::npos);
}

TEST(ObserveStalls, ReportsAreRateLimitedAndSayWhatTheyLeftOut)
{
    StallHook hook;
    ScopedContext ctx;
    Call hog{ [] { usleep(5000); } };
    AioContextStats before = ctx.Stats();

    aio_context_set_stall_limit(ctx, 2 * SCALE_MS);
    for (int i = 0; i < 8; i++) {
        RunBh(ctx, hog.func);
    }
    usleep(1001000);
    RunBh(ctx, hog.func);
    uint64_t suppressed = 0;
    for (bool running : { false, true }) {
        for (const Stall &s : hook.Get(running)) {
            suppressed += s.s.suppressed;
        }
    }
    EXPECT_EQ(hook.Get(false).size() + suppressed, 9u); /* none is left out silently */
    EXPECT_GE(suppressed, 1u);
    EXPECT_EQ(ctx.Stats().bhs - before.bhs, 9u);
}

TEST_P(Observe, WithoutAHookItIsSaidOnStderr)
{
    testing::internal::CaptureStderr();
    {
        ScopedIOThread io(GetParam(), "named-thread");
        QEMUTimer *ts;
        int ran = 0;

        aio_context_set_stall_limit(io.ctx(), kLimit);
        ts = aio_timer_new(io.ctx(), QEMU_CLOCK_REALTIME, SCALE_NS, Hog, &ran);
        timer_set_name(ts, "tick");
        timer_mod_ns(ts, 0);
        WaitUntil([&] { return !timer_pending(ts); });
        timer_del_sync(ts);
        io.Run([] {});
        timer_free(ts);
    }
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("aioctx: stall: timer 'tick': callback 0x"), std::string::npos) << said;
    EXPECT_NE(said.find("test_observe+0x"), std::string::npos) << said;
    EXPECT_NE(said.find("held the loop of thread 'named-thread' ("), std::string::npos) << said;
}

TEST(ObserveMainLoop, PollNotifiersAreWatchedAndItsListsAreLetGo)
{
    StallHook hook;
    AioContextOptions opts = {};
    MainLoopPollNotifier n = {};

    opts.stall_limit_ns = kLimit;
    opts.histograms = 1;
    ASSERT_EQ(qemu_init_main_loop(&opts), 0);
    n.notify = [](MainLoopPollNotifier *, MainLoopPoll *poll) {
        if (poll->state == MAIN_LOOP_POLL_FILL) {
            usleep(kTooLongUs);
            poll->timeout_ns = 0;
        }
    };
    main_loop_poll_add_notifier(&n);
    main_loop_wait(false);
    main_loop_poll_remove_notifier(&n);
    ASSERT_EQ(hook.Get(false).size(), 1u);
    EXPECT_EQ(hook.Get(false)[0].kind, "poll notifier");
    EXPECT_EQ(Count(Histograms(qemu_get_aio_context()).iteration), 1u);
    qemu_cleanup_main_loop();
    aio_rcu_barrier(); /* its memory has gone: AddressSanitizer sees who still looks at it */
    /* The lists live on without it. */
    HeapTimer ts(nullptr, [] { usleep(kTooLongUs); });
    timer_mod_ns(ts, 0);
    EXPECT_TRUE(qemu_clock_run_all_timers());
    EXPECT_EQ(hook.Get(false).size(), 1u);
}

/* What lay on the stack of a thread that has gone is not looked at any more, nor reported. */
TEST_P(Observe, AThreadMayEndInACallback)
{
    constexpr int64_t limit = 300 * SCALE_MS;
    StallHook hook;
    AioContextOptions opts = {};
    pthread_t thread;
    size_t before;
    auto run = [](void *opaque) -> void * {
        auto c = static_cast<AioContext *>(opaque);

        aio_bh_schedule_oneshot(
            c, [](void *) { pthread_exit(nullptr); }, nullptr);
        aio_poll(c, true);
        return nullptr;
    };

    opts.monitor = GetParam();
    opts.histograms = 1;
    opts.stall_limit_ns = limit;
    AioContext *ctx = aio_context_new(&opts);
    ASSERT_EQ(pthread_create(&thread, nullptr, run, ctx), 0);
    pthread_join(thread, nullptr);
    before = hook.Get(true).size(); /* a slow exit is one */
    if (before == 0) {
        usleep((limit + limit / 2) / 1000);
    }
    EXPECT_EQ(hook.Get(true).size(), before);
    aio_context_unref(ctx);
}

/* ---- The file -------------------------------------------------------------------------------- */

/* The process's file, as another process would see it. */
class StatsFile
{
public:
    StatsFile()
    {
        for (int fd = 0; fd < 1024; fd++) {
            char target[64] = "";
            std::string path = "/proc/self/fd/" + std::to_string(fd);

            if (readlink(path.c_str(), target, sizeof(target) - 1) > 0 &&
                std::string(target) == "/memfd:" AIO_STATS_FILE_NAME " (deleted)") {
                theirs_ = fd;
                fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
                break;
            }
        }
        EXPECT_GE(fd_, 0);
        EXPECT_EQ(pread(fd_, &header, sizeof(header), 0), (ssize_t)sizeof(header));
    }
    ~StatsFile()
    {
        close(fd_);
    }
    StatsFile(const StatsFile &) = delete;
    StatsFile &operator=(const StatsFile &) = delete;
    int theirs() const
    {
        return theirs_;
    }
    /* The slot, if it was one context's all the time. */
    bool Read(unsigned i, AioStatsSlot *slot) const
    {
        off_t at = header.slot_offset + (off_t)i * header.slot_size;
        uint64_t before = 0, after = 0;

        EXPECT_EQ(pread(fd_, &before, sizeof(before), at), (ssize_t)sizeof(before));
        EXPECT_EQ(pread(fd_, slot, sizeof(*slot), at), (ssize_t)sizeof(*slot));
        EXPECT_EQ(pread(fd_, &after, sizeof(after), at), (ssize_t)sizeof(after));
        return (before & 1) && before == after;
    }
    std::vector<AioStatsSlot> All()
    {
        std::vector<AioStatsSlot> slots;
        AioStatsSlot slot;

        EXPECT_EQ(pread(fd_, &header, sizeof(header), 0), (ssize_t)sizeof(header));
        for (unsigned i = 0; i < header.used; i++) {
            if (Read(i, &slot)) {
                slots.push_back(slot);
            }
        }
        return slots;
    }
    AioStatsFileHeader header;

private:
    int theirs_ = -1, fd_ = -1;
};

TEST(StatsFile, IsPrivateSealedAndClosedOnExec)
{
    StatsFile file;
    struct stat st;

    EXPECT_EQ(file.header.magic, AIO_STATS_FILE_MAGIC);
    EXPECT_EQ(memcmp(&file.header.magic, "aioctxst", 8), 0);
    EXPECT_EQ(file.header.version, (unsigned)AIO_STATS_FILE_VERSION);
    EXPECT_EQ(file.header.pid, getpid());
    EXPECT_EQ(file.header.slot_size, sizeof(AioStatsSlot));
    ASSERT_EQ(fstat(file.theirs(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0600u);
    EXPECT_EQ(st.st_size,
              file.header.slot_offset + (off_t)file.header.slots * (off_t)sizeof(AioStatsSlot));
    EXPECT_TRUE(fcntl(file.theirs(), F_GETFD) & FD_CLOEXEC);
    EXPECT_EQ(ftruncate(file.theirs(), 4096), -1);
    EXPECT_EQ(ftruncate(file.theirs(), st.st_size * 2), -1);
    /* Sparse: what was never used takes no memory. */
    EXPECT_LT(st.st_blocks * 512, st.st_size / 2);
}

TEST_P(Observe, TheFileHoldsWhatTheCallsTell)
{
    aio_rcu_barrier(); /* contexts of tests before this one have gone */
    StatsFile file;
    size_t before = file.All().size();
    ScopedContext ctx(GetParam());
    const AioStatsSlot *mine = nullptr;

    aio_context_set_histograms(ctx, true);
    aio_context_set_stall_limit(ctx, 3600 * INT64_C(1000000000));
    RunBh(ctx, [] {});
    std::vector<AioStatsSlot> slots = file.All();
    ASSERT_EQ(slots.size(), before + 1);
    for (const AioStatsSlot &slot : slots) {
        if (slot.tid == gettid() && slot.state == AIO_STATS_HOME) {
            mine = &slot;
        }
    }
    ASSERT_NE(mine, nullptr);
    AioContextStats stats = ctx.Stats();
    AioContextHistograms h = Histograms(ctx);
    EXPECT_STREQ(mine->monitor, GetParam());
    EXPECT_EQ(mine->is_main, 0u);
    EXPECT_EQ(mine->histograms, 1u);
    EXPECT_EQ(mine->stall_limit_ns, 3600 * UINT64_C(1000000000));
    EXPECT_GT(mine->created_ns, 0u);
    EXPECT_LE(mine->created_ns, (uint64_t)qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    EXPECT_EQ(mine->stats.iterations, stats.iterations);
    EXPECT_EQ(mine->stats.bhs, 1u);
    EXPECT_EQ(memcmp(&mine->histogram, &h, sizeof(h)), 0);
}

TEST_P(Observe, ASlotEndsWithItsContextAndIsUsedAgain)
{
    StatsFile file;
    unsigned used = 0;

    aio_rcu_barrier();
    for (int i = 0; i < 20; i++) {
        size_t before = file.All().size();

        {
            ScopedContext ctx(GetParam());
            aio_poll(ctx, false);
            std::vector<AioStatsSlot> slots = file.All();
            ASSERT_EQ(slots.size(), before + 1);
            for (const AioStatsSlot &slot : slots) { /* nothing of the last one is left */
                EXPECT_LE(slot.stats.iterations, 1u);
            }
        }
        aio_rcu_barrier();
        EXPECT_EQ(file.All().size(), before);
        used = used ? used : file.header.used;
        EXPECT_EQ(file.header.used, used);
    }
}

/* Contexts of two kinds come and go; whoever reads sees one of them, and never half of each. */
TEST(StatsFile, ReadersNeverSeeTwoContextsInOneSlot)
{
    const struct {
        const char *monitor;
        int64_t limit_ns;
    } kinds[] = { { "ppoll", 3601 * INT64_C(1000000000) },
                  { "epoll", 3602 * INT64_C(1000000000) } };
    std::atomic<int> left{ 2 };
    std::atomic<uint64_t> seen{ 0 };

    RunThreads(3, [&](int thread) {
        StatsFile file;

        for (int i = 0; thread < 2 && i < 300; i++) {
            AioContextOptions opts = {};

            opts.monitor = kinds[thread].monitor;
            opts.stall_limit_ns = kinds[thread].limit_ns;
            AioContext *ctx = aio_context_new(&opts);
            ASSERT_NE(ctx, nullptr);
            usleep(100);
            aio_context_unref(ctx);
        }
        left -= thread < 2;
        /* A life of a slot, by its number and generation, is one context's. */
        std::map<std::pair<unsigned, uint64_t>, uint64_t> created;
        while (thread == 2 && left > 0) {
            for (unsigned i = 0; i < 64; i++) {
                AioStatsSlot slot;

                if (!file.Read(i, &slot)) {
                    continue;
                }
                auto life = created.insert({ { i, slot.generation }, slot.created_ns });
                EXPECT_EQ(life.first->second, slot.created_ns) << "slot " << i;
                seen++;
                for (auto &k : kinds) {
                    if (strcmp(slot.monitor, k.monitor) == 0 && slot.stall_limit_ns) {
                        EXPECT_EQ(slot.stall_limit_ns, (uint64_t)k.limit_ns) << slot.monitor;
                    }
                }
            }
        }
    });
    EXPECT_GT(seen, 0u);
    aio_rcu_barrier();
}

TEST(StatsFile, MoreContextsThanSlotsCountForThemselves)
{
    StatsFile file;
    std::vector<AioContext *> many;
    AioContextOptions opts = {};

    opts.monitor = "ppoll";
    SetTimeLimit(120);
    struct rlimit limit, all;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    all = limit;
    all.rlim_cur = all.rlim_max;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &all), 0);
    for (unsigned i = 0; i < file.header.slots + 3; i++) {
        AioContext *ctx = aio_context_new(&opts);
        if (!ctx) {
            break;
        }
        many.push_back(ctx);
    }
    bool all_there = many.size() == file.header.slots + 3;
    if (all_there) {
        AioContextStats stats;

        EXPECT_EQ(file.All().size(), file.header.slots);
        EXPECT_EQ(file.header.without_slot, 3u);
        aio_poll(many.back(), false);
        aio_context_get_stats(many.back(), &stats);
        EXPECT_EQ(stats.iterations, 1u);
    }
    for (AioContext *ctx : many) {
        aio_context_unref(ctx);
    }
    setrlimit(RLIMIT_NOFILE, &limit);
    aio_rcu_barrier();
    EXPECT_EQ(file.All().size(), 0u);
    if (!all_there) {
        GTEST_SKIP() << "too few file descriptors for " << file.header.slots << " contexts";
    }
}

TEST(StatsFileDeathTest, OffMeansNoSlot)
{
    auto check = [] {
        setenv("AIOCTX_STATS", "off", 1);
        StatsFile file;
        AioContext *ctx = aio_context_new(nullptr);
        AioContextStats stats;

        aio_poll(ctx, false);
        aio_context_get_stats(ctx, &stats);
        _exit(file.All().empty() && stats.iterations == 1 ? 0 : 1);
    };

    EXPECT_EXIT(check(), testing::ExitedWithCode(0), "");
}

/* Making a file past the limit would be a SIGXFSZ. */
TEST(StatsFileDeathTest, ALimitOfFileSizesIsNoDeath)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe"); /* in a process that has no file yet */
    const char *was = getenv("AIOCTX_STATS");
    std::string stats = was ? was : "on";
    auto check = [] {
        struct rlimit limit;

        setenv("AIOCTX_STATS", "on", 1);
        signal(SIGXFSZ, SIG_DFL);
        getrlimit(RLIMIT_FSIZE, &limit);
        limit.rlim_cur = 65536;
        setrlimit(RLIMIT_FSIZE, &limit);
        AioContext *ctx = aio_context_new(nullptr);
        AioContextStats stats;

        aio_poll(ctx, false);
        aio_context_get_stats(ctx, &stats);
        _exit(stats.iterations == 1 ? 0 : 1);
    };

    setenv("AIOCTX_STATS", "off", 1); /* for the contexts that look which monitors there are */
    EXPECT_EXIT(check(), testing::ExitedWithCode(0), "");
    setenv("AIOCTX_STATS", stats.c_str(), 1);
}
