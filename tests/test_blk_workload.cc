/* SPDX-License-Identifier: MIT */
/* The parts of aioctx-blk that choose and remember requests: mixes, sizes, places, traces, plots. */
#include "command.h"
#include "tools/blk_mix.h"
#include "tools/blk_plot.h"
#include "tools/blk_replay.h"
#include "tools/blk_trace.h"
#include "tools/zipf.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace
{

/* ---- Zipf ------------------------------------------------------------------------------------ */

/* Pearson's statistic of @counts against the shares @p of @draws, over bins of at least 50 expected
 * ones; *@ret_freedom is one less than there are bins. */
double ChiSquare(const std::vector<uint64_t> &counts, const std::vector<double> &p, double draws,
                 int *ret_freedom)
{
    double chi = 0, expected = 0, found = 0;
    int bins = 0;

    for (size_t i = 0; i < p.size(); i++) {
        expected += p[i] * draws;
        found += static_cast<double>(counts[i]);
        if (expected >= 50 || i + 1 == p.size()) {
            chi += (found - expected) * (found - expected) / std::max(expected, 1.0);
            bins++;
            expected = found = 0;
        }
    }
    *ret_freedom = bins - 1;
    return chi;
}

TEST(Zipf, RanksComeAsOftenAsTheDistributionSays)
{
    constexpr uint64_t kRanks = 1000;
    constexpr int kDraws = 300000;

    for (double theta : { 0.01, 0.5, 0.99, 1.0, 1.2, 2.5, 10.0 }) {
        struct zipf z;
        struct blk_random random;
        std::vector<uint64_t> counts(kRanks);
        std::vector<double> p(kRanks);
        double sum = 0;
        int freedom;

        zipf_init(&z, kRanks, theta);
        blk_random_init(&random, 42, 0);
        for (int i = 0; i < kDraws; i++) {
            uint64_t rank = zipf_next(&z, &random);
            ASSERT_LT(rank, kRanks);
            counts[rank]++;
        }
        for (uint64_t k = 0; k < kRanks; k++) {
            sum += p[k] = std::pow(static_cast<double>(k + 1), -theta);
        }
        for (double &share : p) {
            share /= sum;
        }
        double chi = ChiSquare(counts, p, kDraws, &freedom);
        EXPECT_LT(chi, freedom + 5 * std::sqrt(2.0 * freedom + 1)) << theta << ", " << freedom;
    }
}

/* The sum of k^-theta from 1 to n, by Euler and Maclaurin from 1000 on. */
double Zeta(double n, double theta)
{
    double sum = 0, m = std::min(n, 1000.0);

    for (double k = 1; k < m; k++) {
        sum += std::pow(k, -theta);
    }
    auto integral = [theta](double x) {
        return theta == 1 ? std::log(x) : std::pow(x, 1 - theta) / (1 - theta);
    };
    return sum + integral(n) - integral(m) + (std::pow(n, -theta) + std::pow(m, -theta)) / 2;
}

TEST(Zipf, HoldsForHugeRegions)
{
    constexpr uint64_t kRanks = UINT64_C(1) << 44;
    constexpr int kDraws = 100000;

    for (double theta : { 0.5, 0.99, 1.0, 1.3 }) {
        struct zipf z;
        struct blk_random random;
        double limit = std::pow(2, 22);
        int below = 0;

        zipf_init(&z, kRanks, theta);
        blk_random_init(&random, 7, 3);
        for (int i = 0; i < kDraws; i++) {
            below += static_cast<double>(zipf_next(&z, &random)) < limit;
        }
        double share = Zeta(limit, theta) / Zeta(static_cast<double>(kRanks), theta);
        EXPECT_NEAR(below, share * kDraws, 5 * std::sqrt(kDraws * share * (1 - share)) + 1)
            << theta;
    }
}

TEST(Zipf, OneRankIsAlwaysThatOne)
{
    struct zipf z;
    struct blk_random random = { 1 };

    zipf_init(&z, 1, 0.99);
    for (int i = 0; i < 1000; i++) {
        ASSERT_EQ(zipf_next(&z, &random), 0u);
    }
}

/* ---- Mixes and sizes ------------------------------------------------------------------------- */

TEST(Mix, WeightsAreKept)
{
    struct blk_mix mix;
    struct blk_random random = { 5 };
    int counts[BLK_KINDS] = {};

    ASSERT_TRUE(blk_mix_parse("read=60,write=30,flush=0,discard=4,zeroes=3,status=3", &mix));
    for (int i = 0; i < 100000; i++) {
        counts[blk_mix_choose(&mix, &random)]++;
    }
    EXPECT_NEAR(counts[KIND_READ], 60000, 800);
    EXPECT_NEAR(counts[KIND_WRITE], 30000, 800);
    EXPECT_EQ(counts[KIND_FLUSH], 0);
    EXPECT_NEAR(counts[KIND_DISCARD], 4000, 320);
    EXPECT_NEAR(counts[KIND_ZEROES], 3000, 280);
    EXPECT_NEAR(counts[KIND_STATUS], 3000, 280);
    EXPECT_TRUE(blk_mix_writes(&mix));
    ASSERT_TRUE(blk_mix_parse("status=1,read=2", &mix));
    EXPECT_FALSE(blk_mix_writes(&mix));
}

TEST(Mix, WhatIsNoMixIsRefused)
{
    struct blk_mix mix = { {}, 99 };

    for (const char *text : { "", "read", "read=", "read=-1", "read=0", "red=1", "read=1,",
                              "read=1,read=2", "read=1x", "=1", "read=1000001" }) {
        EXPECT_FALSE(blk_mix_parse(text, &mix)) << text;
    }
    EXPECT_EQ(mix.total, 99u) << "left alone";
}

TEST(Sizes, OneARangeOrAList)
{
    struct blk_sizes sizes;
    struct blk_random random = { 11 };
    std::set<uint32_t> seen;
    int large = 0;

    ASSERT_TRUE(blk_sizes_parse("8k", 512, 1 << 20, &sizes));
    EXPECT_EQ(blk_sizes_choose(&sizes, &random) * sizes.unit, 8192u);
    ASSERT_TRUE(blk_sizes_parse("4k-32k", 512, 1 << 20, &sizes));
    for (int i = 0; i < 1000; i++) {
        seen.insert(blk_sizes_choose(&sizes, &random) * sizes.unit);
    }
    EXPECT_EQ(seen, (std::set<uint32_t>{ 4096, 8192, 12288, 16384, 20480, 24576, 28672, 32768 }));
    ASSERT_TRUE(blk_sizes_parse("6k/75:64k/25", 512, 1 << 20, &sizes));
    EXPECT_EQ(sizes.unit, 2048u); /* what divides both */
    for (int i = 0; i < 100000; i++) {
        uint32_t bytes = blk_sizes_choose(&sizes, &random) * sizes.unit;
        ASSERT_TRUE(bytes == 6144 || bytes == 65536) << bytes;
        large += bytes == 65536;
    }
    EXPECT_NEAR(large, 25000, 700);
}

TEST(Sizes, WhatIsNoSizeIsRefused)
{
    struct blk_sizes sizes;

    for (const char *text : { "", "0", "1000", "4kk", "2M", "4k-", "-4k", "8k-4k", "4k-6k", "4k/0",
                              "4k/", "/1", "4k/1:", "4k/1:8k", "4k-8k-16k" }) {
        EXPECT_FALSE(blk_sizes_parse(text, 512, 1 << 20, &sizes)) << text;
    }
}

/* ---- Places ---------------------------------------------------------------------------------- */

TEST(Places, WhatIsNoPatternIsRefused)
{
    struct blk_pattern pattern;

    for (const char *text : { "", "randm", "zipf:", "zipf:0", "zipf:-1", "zipf:11", "zipf:1e1",
                              "zipf:nan", "hot:", "hot:90", "hot:0/10", "hot:90/100", "hot:a/b" }) {
        EXPECT_FALSE(blk_pattern_parse(text, &pattern)) << text;
    }
}

TEST(Places, EveryPatternStaysInside)
{
    for (const char *text : { "random", "sequential", "zipf", "zipf:2", "hot:90/10" }) {
        for (uint64_t units : { 5, 64, 1000 }) {
            struct blk_pattern pattern;
            struct blk_places places;
            struct blk_random random = { 3 };

            ASSERT_TRUE(blk_pattern_parse(text, &pattern));
            blk_places_init(&places, &pattern, units);
            for (int i = 0; i < 5000; i++) {
                uint32_t len = 1 + static_cast<uint32_t>(i) % 5;
                uint64_t at = blk_places_choose(&places, len, &random);
                ASSERT_LE(at + len, units) << text;
            }
        }
    }
}

TEST(Places, InOrderMeansOneAfterTheOther)
{
    struct blk_pattern pattern;
    struct blk_places places;
    struct blk_random random = { 3 };

    ASSERT_TRUE(blk_pattern_parse("sequential", &pattern));
    blk_places_init(&places, &pattern, 10);
    for (uint64_t want : { 0, 3, 6, 0, 3 }) {
        EXPECT_EQ(blk_places_choose(&places, 3, &random), want);
    }
}

TEST(Places, RanksHavePlacesOfTheirOwnThatLieApart)
{
    for (uint64_t units : { 1, 2, 3, 8, 1000, 1024, 9973 }) {
        struct blk_pattern pattern = {};
        struct blk_places places;
        std::set<uint64_t> seen;

        ASSERT_TRUE(blk_pattern_parse("zipf", &pattern));
        blk_places_init(&places, &pattern, units);
        for (uint64_t rank = 0; rank < units; rank++) {
            seen.insert(blk_places_spread(&places, rank));
        }
        EXPECT_EQ(seen.size(), units);
        EXPECT_LT(*seen.rbegin(), units);
        if (units >= 1000) {
            auto a = static_cast<int64_t>(blk_places_spread(&places, 0));
            auto b = static_cast<int64_t>(blk_places_spread(&places, 1));
            EXPECT_GT(std::abs(a - b), 100);
        }
    }
}

TEST(Places, HotOnesGetTheirShare)
{
    struct blk_pattern pattern;
    struct blk_places places;
    struct blk_random random = { 9 };
    int hot = 0;

    ASSERT_TRUE(blk_pattern_parse("hot:80/20", &pattern));
    blk_places_init(&places, &pattern, 1000);
    for (int i = 0; i < 100000; i++) {
        hot += blk_places_choose(&places, 1, &random) < 200;
    }
    EXPECT_NEAR(hot, 80000, 700);
}

/* ---- Traces ---------------------------------------------------------------------------------- */

/* Writes @text and loads it; what is wrong with it, without the directory. */
std::string LoadError(const std::string &text)
{
    ScratchDir dir;
    struct blk_replay replay = {};
    char *why = nullptr;
    std::string said;

    WriteFile(dir / "t", text);
    EXPECT_LT(blk_replay_load((dir / "t").c_str(), &replay, &why), 0) << text;
    said = why ? why : "";
    free(why);
    EXPECT_EQ(said.rfind(dir / "t:", 0), 0u) << said;
    return said.substr(std::min(said.size(), dir.path().size() + 1));
}

TEST(Trace, WhatIsWrittenIsReadBackInOrderOfTime)
{
    ScratchDir dir;
    std::string path = dir / "t";
    int woken = 0;
    struct blk_trace *trace = blk_trace_new(
        path.c_str(), [](void *opaque) { ++*static_cast<int *>(opaque); }, &woken);
    ASSERT_NE(trace, nullptr);
    struct blk_trace_stream *one = blk_trace_stream_new(trace, "io0");
    struct blk_trace_stream *two = blk_trace_stream_new(trace, "job/io1");
    struct blk_trace_record a = { 500, 4096, 8192, 1000, 77, 0, 0, KIND_READ, 0 };
    struct blk_trace_record b = { 20, 0,           512,
                                  -1, 5,           -EIO,
                                  0,  KIND_ZEROES, TRACE_FUA | TRACE_MAY_UNMAP };
    struct blk_trace_record c = { 100, 0, 0, -1, 5, -ETIMEDOUT, 0, KIND_FLUSH, 0 };

    blk_trace_add(one, &a);
    blk_trace_add(two, &b);
    blk_trace_add(one, &c);
    EXPECT_EQ(blk_trace_finish(trace, true), 0);
    EXPECT_EQ(ReadFile(path),
              "aioctx-trace 1\n"
              "# time_ns thread op offset bytes flags deadline_ns result latency_ns\n"
              "20 job/io1 zeroes 0 512 fua+unmap - EIO 5\n"
              "100 io0 flush 0 0 - - ETIMEDOUT 5\n"
              "500 io0 read 4096 8192 - 1000 ok 77\n"
              "end 3\n");
    struct blk_replay replay;
    char *why = nullptr;
    ASSERT_EQ(blk_replay_load(path.c_str(), &replay, &why), 0) << why;
    ASSERT_EQ(replay.nr, 3u);
    EXPECT_EQ(replay.streams, 2u);
    EXPECT_EQ(replay.span_ns, 500);
    EXPECT_EQ(replay.end, 12288);
    EXPECT_EQ(replay.end_line, 5u);
    EXPECT_EQ(replay.longest, 8192);
    EXPECT_EQ(replay.requests[0].kind, KIND_ZEROES);
    EXPECT_EQ(replay.requests[0].flags, TRACE_FUA | TRACE_MAY_UNMAP);
    EXPECT_EQ(replay.requests[2].deadline_ns, 1000);
    EXPECT_EQ(replay.requests[1].deadline_ns, -1);
    blk_replay_free(&replay);
}

TEST(Trace, ManyThreadsLoseNothing)
{
    constexpr int kThreads = 3, kEach = 150000; /* more than are kept before they are written */
    ScratchDir dir;
    std::string path = dir / "t";
    std::atomic<bool> wanted{ false };
    struct blk_trace *trace = blk_trace_new(
        path.c_str(), [](void *opaque) { *static_cast<std::atomic<bool> *>(opaque) = true; },
        &wanted);
    std::vector<std::thread> threads;
    std::atomic<int> left{ kThreads };

    ASSERT_NE(trace, nullptr);
    for (int t = 0; t < kThreads; t++) {
        struct blk_trace_stream *stream = blk_trace_stream_new(trace, t == 0   ? "a"
                                                                      : t == 1 ? "b"
                                                                               : "c");
        threads.emplace_back([stream, t, &left] {
            for (int i = 0; i < kEach; i++) {
                struct blk_trace_record r = {
                    i * 10 + t, static_cast<int64_t>(i) * 512, 512, -1, 1, 0, 0, KIND_READ, 0
                };
                blk_trace_add(stream, &r);
            }
            left--;
        });
    }
    while (left > 0) {
        if (wanted.exchange(false)) {
            EXPECT_EQ(blk_trace_write(trace), 0);
        }
        std::this_thread::yield();
    }
    for (std::thread &t : threads) {
        t.join();
    }
    EXPECT_EQ(blk_trace_finish(trace, true), 0);
    struct blk_replay replay;
    char *why = nullptr;
    size_t first[3];
    ASSERT_EQ(blk_replay_load(path.c_str(), &replay, &why), 0) << why;
    ASSERT_EQ(replay.nr, static_cast<size_t>(kThreads) * kEach);
    for (size_t i = 0; i < replay.nr; i++) {
        ASSERT_EQ(replay.requests[i].time_ns,
                  static_cast<int64_t>(i / kThreads * 10 + i % kThreads));
    }
    ASSERT_EQ(blk_replay_deal(&replay, 2, first), 0);
    EXPECT_EQ(first[0], 0u);
    EXPECT_EQ(first[2], replay.nr);
    EXPECT_EQ(std::min(first[1], replay.nr - first[1]), static_cast<size_t>(kEach));
    for (size_t i = 1; i < replay.nr; i++) {
        ASSERT_TRUE(i == first[1] || replay.requests[i].time_ns > replay.requests[i - 1].time_ns);
    }
    blk_replay_free(&replay);
}

TEST(Trace, AFullDiskIsAnError)
{
    struct blk_trace *trace = blk_trace_new(
        "/dev/full", [](void *) {}, nullptr);
    ASSERT_NE(trace, nullptr);
    struct blk_trace_record r = {};

    blk_trace_add(blk_trace_stream_new(trace, "io0"), &r);
    EXPECT_EQ(blk_trace_finish(trace, true), -ENOSPC);
}

TEST(Trace, WhatIsWrongIsSaidWithItsLine)
{
    const std::string head = "aioctx-trace 1\n", good = "0 io0 read 0 512 - - ok 5\n";

    EXPECT_EQ(LoadError(""), "t:1: the file is empty");
    EXPECT_EQ(LoadError("hello\n"),
              "t:1: expected 'aioctx-trace 1', 'fio version 2 iolog' or 'fio version 3 iolog'");
    EXPECT_EQ(LoadError(head + good),
              "t:2: expected 'end' behind the last request: the file is truncated");
    EXPECT_EQ(LoadError(head + good + "5 io0 rea"),
              "t:3: the line has no end: the file is truncated");
    EXPECT_EQ(LoadError(head + good + "end 2\n"),
              "t:3: 1 requests were found, not 2: some of the file is missing");
    EXPECT_EQ(LoadError(head + "end 0\n"), "t:2: there is no request in it");
    EXPECT_EQ(LoadError(head + good + "end\n" + good), "t:4: expected nothing behind 'end'");
    EXPECT_EQ(LoadError(head + "0 io0 read 0 512 -\n"),
              "t:2: 6 fields: expected the 9 fields time_ns thread op offset bytes flags "
              "deadline_ns result latency_ns");
    EXPECT_EQ(LoadError(head + "0 io0 reed 0 512 - - ok 5\n").substr(0, 11), "t:2: 'reed'");
    EXPECT_EQ(LoadError(head + "x io0 read 0 512 - - ok 5\n").substr(0, 13), "t:2: time 'x'");
    EXPECT_EQ(LoadError(head + "0 io0 read -1 512 - - ok 5\n").substr(0, 11), "t:2: offset");
    EXPECT_EQ(LoadError(head + "0 io0 read 0 512 fast - ok 5\n").substr(0, 17),
              "t:2: flags 'fast'");
    EXPECT_EQ(LoadError(head + "0 io0 read 0 2147483648 - - ok 5\n"),
              "t:2: 2147483648 bytes: expected 1 GiB at most");
    EXPECT_EQ(LoadError(head + std::string("0 io0\0read\n", 11)),
              "t:2: expected text, and found a zero byte");
}

TEST(Trace, IologsOfFioAreRead)
{
    ScratchDir dir;
    struct blk_replay replay;
    char *why = nullptr;

    WriteFile(dir / "2", "fio version 2 iolog\n/d/x add\n/d/x open\n/d/x read 0 4096\n"
                         "/d/x wait 250 0\n/d/x write 4096 512\n/d/x datasync 0 0\n"
                         "/d/x wait 1000\n/d/x trim 0 8192\n/d/x close\n");
    ASSERT_EQ(blk_replay_load((dir / "2").c_str(), &replay, &why), 0) << why;
    ASSERT_EQ(replay.nr, 4u);
    EXPECT_EQ(replay.requests[1].time_ns, 250000);
    EXPECT_EQ(replay.requests[2].kind, KIND_FLUSH);
    EXPECT_EQ(replay.requests[3].kind, KIND_DISCARD);
    EXPECT_EQ(replay.span_ns, 1250000);
    blk_replay_free(&replay);

    WriteFile(dir / "3", "fio version 3 iolog\n3 x add\n4 x open\n17 x read 512 4096\n"
                         "9 x write 0 512\n20 x close\n");
    ASSERT_EQ(blk_replay_load((dir / "3").c_str(), &replay, &why), 0) << why;
    ASSERT_EQ(replay.nr, 2u);
    EXPECT_EQ(replay.requests[0].kind, KIND_WRITE); /* by time */
    EXPECT_EQ(replay.requests[1].time_ns, 17000);
    EXPECT_EQ(replay.end, 4608);
    EXPECT_EQ(replay.streams, 1u);
    blk_replay_free(&replay);

    EXPECT_EQ(LoadError("fio version 3 iolog\n3 x add\n4 y add\n"),
              "t:3: 'y': expected a log of one file, and there was 'x' before");
    EXPECT_EQ(LoadError("fio version 3 iolog\n3 x wait 5\n").substr(0, 11), "t:2: 'wait'");
    EXPECT_EQ(LoadError("fio version 2 iolog\nx read 5\n"),
              "t:2: read: expected an offset and a length behind it");
}

/* ---- Plots ----------------------------------------------------------------------------------- */

std::string Plot(const struct hist &h, bool unicode)
{
    char *text = nullptr;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    blk_plot(&h, "it", unicode, out);
    fclose(out);
    std::string s(text, size);
    free(text);
    return s;
}

TEST(Plot, AnEmptyHistogramIsNotDrawn)
{
    struct hist h = {};
    EXPECT_EQ(Plot(h, true), "");
}

TEST(Plot, BarsAreInProportionAndSharesAddUp)
{
    struct hist h = {};

    for (int i = 0; i < 3000; i++) {
        hist_record(&h, i < 2000 ? 1050 : 1250);
    }
    std::string s = Plot(h, false);
    EXPECT_NE(s.find("1.00us - 1.10us   |" + std::string(48, '#') + "|  66.667%   66.667%\n"),
              std::string::npos)
        << s;
    EXPECT_NE(s.find("1.20us - 1.30us   |" + std::string(24, '#') + std::string(24, ' ') +
                     "|  33.333%  100.000%\n"),
              std::string::npos)
        << s;
    EXPECT_NE(Plot(h, true).find("█"), std::string::npos);
}

TEST(Plot, AnyRangeFitsOnAScreen)
{
    struct hist h = {};

    for (int64_t ns = 0; ns < INT64_C(1) << 50; ns = ns * 3 + 1) {
        hist_record(&h, ns);
    }
    std::string s = Plot(h, false);
    EXPECT_LE(std::count(s.begin(), s.end(), '\n'), 22) << s;
    EXPECT_NE(s.find("100.000%\n"), std::string::npos) << s;
}

} // namespace
