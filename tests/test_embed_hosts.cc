/* SPDX-License-Identifier: MIT */
/*
 * Hosts that wait for a context's fd without a timeout, on each monitor: whatever is to be done
 * ends the wait.  A wake-up that is lost hangs, and the guard's time limit fails the test.
 */
#include "embed_support.h"

#include <aioctx/block.h>
#include <random>
#include <thread>

using Kind = std::tuple<const char *, HostKind>;

class EmbedHost : public testing::TestWithParam<Kind>
{
protected:
    static void SetUpTestSuite()
    {
        WarmUpHosts();
    }
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(monitor());
    }
    static const char *monitor()
    {
        return std::get<0>(GetParam());
    }
    static std::unique_ptr<Host> Make(AioContext *ctx)
    {
        return std::get<1>(GetParam()).make(ctx);
    }
};

INSTANTIATE_TEST_SUITE_P(Monitors, EmbedHost,
                         testing::Combine(testing::ValuesIn(kMonitors), testing::ValuesIn(kHosts)),
                         [](const testing::TestParamInfo<Kind> &info) {
                             return std::string(std::get<0>(info.param)) + "_" +
                                    std::get<1>(info.param).name;
                         });

constexpr int kRounds = kSanitized ? 1000 : 2000;

static int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

TEST_P(EmbedHost, RunsTimersInTheOrderOfTheirDeadlines)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    std::string order;
    HeapTimer late(aio_context_get_timer_list_group(ctx), [&] { order += "late"; });
    HeapTimer soon(aio_context_get_timer_list_group(ctx), [&] { order += "soon "; });

    timer_mod_ns(late, Now() + 6 * SCALE_MS);
    timer_mod_ns(soon, Now() + 2 * SCALE_MS);
    host->RunUntil([&] { return order.size() > 5; });
    EXPECT_EQ(order, "soon late");
}

/* A host that spins would make thousands of turns in this time. */
TEST_P(EmbedHost, WaitsForATimerInAFewTurns)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    bool fired = false;
    HeapTimer timer(aio_context_get_timer_list_group(ctx), [&] { fired = true; });
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    SocketPair pair;
    ScopedHandler quiet(ctx, ev, [] {}), calm(ctx, pair.a, [] {});

    host->Turn(false);
    host->Turn(false);
    timer_mod_ns(timer, Now() + 20 * SCALE_MS);
    host->RunUntil([&] { return fired; });
    EXPECT_LE(host->turns, 3u);
    close(ev);
}

TEST_P(EmbedHost, RunsBottomHalvesOfItsOwnThreadAndOfOthers)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    int count = 0;
    Call call{ [&] { count++; } };

    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    host->RunUntil([&] { return count == 1; });
    std::thread other([&] { aio_bh_schedule_oneshot(ctx, Call::Run, &call); });
    host->RunUntil([&] { return count == 2; });
    other.join();
}

TEST_P(EmbedHost, CompletesBlockRequests)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    BlockBackend *blk = blk_open("null:?size=1M&latency-ns=200000", nullptr);
    char buf[512];
    QEMUIOVector qiov;
    int done = 0;
    Call call{ [&] { done++; } };

    ASSERT_NE(blk, nullptr);
    qemu_iovec_init_buf(&qiov, buf, sizeof(buf));
    for (int i = 0; i < 20; i++) {
        auto cb = [](void *opaque, int ret) {
            EXPECT_EQ(ret, 0);
            Call::Run(opaque);
        };
        ASSERT_NE(blk_aio_preadv(blk, 512 * i, &qiov, static_cast<BdrvRequestFlags>(0), cb, &call),
                  nullptr);
        if (i % 2) {
            host->RunUntil([&] { return done == i + 1; });
        }
    }
    EXPECT_EQ(done, 20);
    blk_unref(blk);
}

/* ---- Races ----------------------------------------------------------------------------------- */

/* Each round, another thread publishes something at some moment of the host's turn. */
enum Source { BH, TIMER, SOCKET, EVENTFD, SOURCES };

struct Race {
    AioContext *ctx;
    std::atomic<int> published{ 0 }, taken{ 0 };
    QEMUBH *bh;
    QEMUTimer *timer;
    SocketPair pair;
    int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    explicit Race(AioContext *c) : ctx(c)
    {
        bh = aio_bh_new(c, Take, this);
        timer = aio_timer_new(c, QEMU_CLOCK_REALTIME, SCALE_NS, Take, this);
    }
    ~Race()
    {
        qemu_bh_delete(bh);
        timer_free(timer);
        close(ev);
    }
    static void Take(void *opaque)
    {
        Race *r = static_cast<Race *>(opaque);

        r->taken = r->published.load();
    }
    void Publish(Source source, std::mt19937 &rng)
    {
        const uint64_t one = 1;

        published++;
        switch (source) {
        case BH:
            qemu_bh_schedule(bh);
            break;
        case TIMER:
            timer_mod_ns(timer, Now() + static_cast<int64_t>(rng() % 20000));
            break;
        case SOCKET:
            EXPECT_EQ(write(pair.b, "x", 1), 1);
            break;
        default:
            EXPECT_EQ(write(ev, &one, sizeof(one)), 8);
            break;
        }
    }
};

static void Spin(unsigned n)
{
    for (volatile unsigned i = 0; i < n; i = i + 1) {
    }
}

/* @turn: one wait for the context, which may be the host's or the context's own. */
static void RunRaces(AioContext *ctx, int rounds, const std::function<void()> &turn)
{
    Race race(ctx);
    char byte;
    uint64_t value;
    ScopedHandler on_socket(ctx, race.pair.a, [&] {
        EXPECT_EQ(read(race.pair.a, &byte, 1), 1);
        race.Take(&race);
    });
    ScopedHandler on_eventfd(ctx, race.ev, [&] {
        EXPECT_EQ(read(race.ev, &value, sizeof(value)), 8);
        race.Take(&race);
    });

    std::thread other([&] {
        std::mt19937 rng(1);

        for (int i = 1; i <= rounds; i++) {
            Spin(rng() % 3000);
            race.Publish(static_cast<Source>(rng() % SOURCES), rng);
            while (race.taken < i) {
                std::this_thread::yield();
            }
        }
    });
    while (race.taken < rounds) {
        turn();
    }
    other.join();
}

TEST_P(EmbedHost, MissesNothingThatComesBesidePrepareAndWait)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);

    RunRaces(ctx, kRounds, [&] { host->Turn(true); });
}

TEST_P(EmbedHost, MissesNothingWhereItsOwnWaitsTakeTurns)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    std::mt19937 rng(2);

    RunRaces(ctx, kRounds, [&] {
        switch (rng() % 4) {
        case 0:
            aio_poll(ctx, true);
            break;
        case 1:
            aio_poll(ctx, false);
            break;
        default:
            host->Turn(rng() % 4 != 0);
        }
    });
}

/* A notify alone: the wait ends, though there is no work. */
TEST_P(EmbedHost, EndsItsWaitForEveryNotify)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    const int rounds = kRounds;
    std::atomic<int> asked{ 0 }, seen{ 0 };

    std::thread other([&] {
        std::mt19937 rng(3);

        for (int i = 1; i <= rounds; i++) {
            Spin(rng() % 3000);
            asked = i;
            aio_notify(ctx);
            while (seen < i) {
                std::this_thread::yield();
            }
        }
    });
    while (seen < rounds) {
        host->Turn(true);
        seen = asked.load();
    }
    other.join();
    EXPECT_EQ(ctx.Stats().notifies, static_cast<uint64_t>(rounds));
}

TEST_P(EmbedHost, ManyThreadsWithEverySourceAtOnce)
{
    ScopedContext ctx(monitor());
    std::unique_ptr<Host> host = Make(ctx);
    const int threads = 3, each = kRounds / 2;
    std::atomic<int> done{ 0 };
    Call call{ [&] { done++; } };
    QEMUTimer *timer = aio_timer_new(
        ctx, QEMU_CLOCK_REALTIME, SCALE_NS, [](void *) {}, nullptr);

    std::thread others([&] {
        RunThreads(threads, [&](int n) {
            std::mt19937 rng(static_cast<unsigned>(n));

            for (int i = 0; i < each; i++) {
                timer_mod_ns(timer, Now() + static_cast<int64_t>(rng() % 100000));
                aio_bh_schedule_oneshot(ctx, Call::Run, &call);
                Spin(rng() % 500);
            }
        });
    });
    host->RunUntil([&] { return done == threads * each; });
    others.join();
    timer_free(timer);
}
