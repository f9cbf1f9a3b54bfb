/* SPDX-License-Identifier: MIT */
/* tools/hist: the histogram behind the percentiles. */
#include "tools/hist.h"

#include <memory>
#include <random>
#include <vector>

#include <algorithm>
#include <gtest/gtest.h>

namespace
{

std::unique_ptr<hist> NewHist()
{
    return std::make_unique<hist>(); /* zeroed */
}

/* By sorting: what a percentile means. */
uint64_t ExactPercentile(std::vector<uint64_t> values, unsigned per_100k)
{
    std::sort(values.begin(), values.end());
    uint64_t rank = (values.size() * per_100k + 99999) / 100000;
    return values[rank ? rank - 1 : 0];
}

TEST(Hist, CountersCoverTheRangeWithoutGapOrOverlap)
{
    uint64_t begin = 0;

    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        uint64_t end = hist_counter_end(i);
        ASSERT_GE(end, begin);
        ASSERT_EQ(hist_index(begin), i);
        ASSERT_EQ(hist_index(end), i);
        begin = end + 1;
    }
    EXPECT_EQ(begin, uint64_t{ 1 } << HIST_RANGE_BITS);
}

TEST(Hist, CountersAreNoWiderThanOne128thOfTheirValues)
{
    for (unsigned i = 1; i < HIST_COUNTERS; i++) {
        uint64_t begin = hist_counter_end(i - 1) + 1, width = hist_counter_end(i) - begin + 1;
        ASSERT_LE((width - 1) * 128, begin) << "counter " << i;
    }
}

TEST(Hist, EmptyHasNoValues)
{
    auto h = NewHist();

    EXPECT_EQ(hist_total(h.get()), 0u);
    EXPECT_EQ(hist_percentile(h.get(), 50000), 0u);
    EXPECT_EQ(hist_max(h.get()), 0u);
}

TEST(Hist, SmallValuesAreExact)
{
    auto h = NewHist();

    for (int v = 1; v <= 200; v++) {
        hist_record(h.get(), v);
    }
    EXPECT_EQ(hist_percentile(h.get(), 50000), 100u);
    EXPECT_EQ(hist_percentile(h.get(), 99000), 198u);
    EXPECT_EQ(hist_percentile(h.get(), 100000), 200u);
    EXPECT_EQ(hist_percentile(h.get(), 0), 1u);
}

TEST(Hist, PercentilesAreWithinOneCounterOfTheExactOnes)
{
    std::mt19937_64 random(7);
    std::lognormal_distribution<double> times(11, 2);
    auto h = NewHist();
    std::vector<uint64_t> values;

    for (int i = 0; i < 20000; i++) {
        values.push_back(static_cast<uint64_t>(times(random)));
        hist_record(h.get(), static_cast<int64_t>(values.back()));
    }
    EXPECT_EQ(hist_total(h.get()), values.size());
    for (unsigned per_100k : { 1u, 1000u, 50000u, 90000u, 99000u, 99900u, 99999u }) {
        uint64_t exact = ExactPercentile(values, per_100k),
                 got = hist_percentile(h.get(), per_100k);
        EXPECT_GE(got, exact) << per_100k;
        EXPECT_LE(got, exact + exact / 128) << per_100k;
    }
    EXPECT_EQ(hist_percentile(h.get(), 100000), *std::max_element(values.begin(), values.end()));
}

TEST(Hist, RanksDoNotSufferFromFractions)
{
    auto h = NewHist();

    for (int i = 0; i < 999; i++) {
        hist_record(h.get(), 1);
    }
    hist_record(h.get(), 100);
    EXPECT_EQ(hist_percentile(h.get(), 99900), 1u); /* the 999th of 1000 */
    EXPECT_EQ(hist_percentile(h.get(), 99901), 100u);
}

TEST(Hist, NegativeCountsAsZeroAndTheLargestIsExactBeyondTheRange)
{
    auto h = NewHist();

    hist_record(h.get(), -5);
    EXPECT_EQ(hist_max(h.get()), 0u);
    EXPECT_EQ(hist_total(h.get()), 1u);
    hist_record(h.get(), INT64_MAX);
    EXPECT_EQ(hist_max(h.get()), static_cast<uint64_t>(INT64_MAX));
    EXPECT_EQ(hist_percentile(h.get(), 100000), static_cast<uint64_t>(INT64_MAX));
}

TEST(Hist, MergeIsTheHistogramOfBoth)
{
    auto a = NewHist(), b = NewHist(), both = NewHist();

    for (int i = 0; i < 1000; i++) {
        hist_record(a.get(), i * 7);
        hist_record(b.get(), i * 100001);
        hist_record(both.get(), i * 7);
        hist_record(both.get(), i * 100001);
    }
    hist_merge(a.get(), b.get());
    EXPECT_EQ(hist_max(a.get()), hist_max(both.get()));
    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        ASSERT_EQ(a->counts[i], both->counts[i]);
    }
}

TEST(Hist, SubtractLeavesWhatCameInBetween)
{
    auto h = NewHist(), earlier = NewHist();

    hist_record(h.get(), 5000000);
    *earlier = *h;
    hist_record(h.get(), 10);
    hist_record(h.get(), 1000);
    hist_subtract(h.get(), earlier.get());
    EXPECT_EQ(hist_total(h.get()), 2u);
    EXPECT_EQ(hist_percentile(h.get(), 50000), 10u);
    EXPECT_GE(hist_max(h.get()), 1000u);
    EXPECT_LE(hist_max(h.get()), 1000u + 1000 / 128);
}

} // namespace
