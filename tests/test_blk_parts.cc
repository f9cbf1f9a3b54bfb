/* SPDX-License-Identifier: MIT */
/* The parts of aioctx-blk that do no I/O: pattern, checksum, schedule, numbers, JSON. */
#include "tools/blk_random.h"
#include "tools/blk_schedule.h"
#include "tools/blk_verify.h"
#include "tools/crc32c.h"
#include "tools/format.h"
#include "tools/json.h"
#include "tools/parse.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace
{

/* ---- Checksum -------------------------------------------------------------------------------- */

/* A bit at a time, as the polynomial is written down. */
uint32_t Crc32cByBits(const std::string &data)
{
    uint32_t crc = ~0u;

    for (unsigned char c : data) {
        crc ^= c;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
        }
    }
    return ~crc;
}

TEST(Crc32c, KnownAnswers)
{
    /* RFC 3720, B.4, and the usual check string. */
    EXPECT_EQ(crc32c(0, std::string(32, '\0').data(), 32), 0x8a9136aau);
    EXPECT_EQ(crc32c(0, std::string(32, '\xff').data(), 32), 0x62a8ab43u);
    EXPECT_EQ(crc32c(0, "123456789", 9), 0xe3069283u);
    EXPECT_EQ(crc32c(0, "", 0), 0u);
}

TEST(Crc32c, InstructionTableAndDefinitionAgree)
{
    struct blk_random random = { 3 };
    char buf[300];

    blk_random_fill(&random, buf, sizeof(buf));
    for (size_t from = 0; from < 9; from++) {
        for (size_t len = 0; len < 260; len += 1 + len / 16) {
            uint32_t expected = Crc32cByBits(std::string(buf + from, len));
            ASSERT_EQ(crc32c(0, buf + from, len), expected);
            ASSERT_EQ(crc32c_by_table(0, buf + from, len), expected);
            ASSERT_EQ(crc32c(crc32c(0, buf + from, len / 3), buf + from + len / 3, len - len / 3),
                      expected);
        }
    }
}

/* ---- Pattern --------------------------------------------------------------------------------- */

constexpr uint32_t kBlockBytes = 4096;
constexpr uint64_t kBlocks = 8;
constexpr int64_t kRegionOffset = 1 << 20;

/* A region, and a disk of its size in memory. */
class Verify : public testing::Test
{
protected:
    Verify() : disk(kBlockBytes * kBlocks)
    {
    }
    ~Verify() override
    {
        verify_region_destroy(&region);
    }
    void Open(verify_initial initial, uint64_t run_id = 77)
    {
        verify_region_destroy(&region);
        ASSERT_EQ(verify_region_init(&region, kRegionOffset, kBlockBytes, kBlocks, run_id, initial),
                  0);
    }
    char *Block(uint64_t block)
    {
        return disk.data() + block * kBlockBytes;
    }
    void Write(uint64_t block)
    {
        verify_fill(&region, block, Block(block));
        verify_written(&region, block);
    }
    /* A write that timed out, of which the first @sectors made it. */
    void WriteTorn(uint64_t block, unsigned sectors)
    {
        std::vector<char> buf(kBlockBytes);
        verify_fill(&region, block, buf.data());
        memcpy(Block(block), buf.data(), sectors * VERIFY_SECTOR_BYTES);
    }
    verify_result Check(uint64_t block)
    {
        return verify_check(&region, block, Block(block), &mismatch);
    }

    verify_region region = {};
    verify_mismatch mismatch = {};
    std::vector<char> disk;
};

TEST_F(Verify, WhatWasWrittenIsGood)
{
    Open(VERIFY_INITIAL_ZEROES);
    for (uint64_t b = 0; b < kBlocks; b++) {
        EXPECT_EQ(Check(b), VERIFY_OK) << "zeroes of a new file";
        Write(b);
        EXPECT_EQ(Check(b), VERIFY_OK);
        Write(b);
        EXPECT_EQ(Check(b), VERIFY_OK);
    }
}

TEST_F(Verify, EveryFlippedByteIsFound)
{
    Open(VERIFY_INITIAL_ZEROES);
    Write(3);
    for (uint32_t i = 0; i < kBlockBytes; i++) {
        Block(3)[i] ^= 0x10;
        ASSERT_EQ(Check(3), VERIFY_BAD) << "byte " << i;
        ASSERT_EQ(mismatch.offset_bytes, kRegionOffset + 3 * kBlockBytes + i / 512 * 512);
        Block(3)[i] ^= 0x10;
    }
    EXPECT_EQ(Check(3), VERIFY_OK);
}

TEST_F(Verify, MismatchSaysWhatWasExpectedAndFound)
{
    Open(VERIFY_INITIAL_ZEROES);
    Write(1);
    Block(1)[600] ^= 1;
    ASSERT_EQ(Check(1), VERIFY_BAD);
    EXPECT_STREQ(mismatch.expected, "generation 1");
    EXPECT_NE(strstr(mismatch.found, "a damaged pattern (offset 1053184, generation 1 of this run"),
              nullptr)
        << mismatch.found;
    EXPECT_NE(strstr(mismatch.found, "first bytes 61 69 6f 63 74 78"), nullptr) << mismatch.found;
    memset(Block(1), 0xab, kBlockBytes);
    ASSERT_EQ(Check(1), VERIFY_BAD);
    EXPECT_NE(strstr(mismatch.found, "foreign data, first bytes ab ab"), nullptr) << mismatch.found;
}

TEST_F(Verify, LostWriteIsFound)
{
    Open(VERIFY_INITIAL_ZEROES);
    Write(0);
    std::string old(Block(0), kBlockBytes);
    Write(0);
    memcpy(Block(0), old.data(), kBlockBytes);
    EXPECT_EQ(Check(0), VERIFY_BAD);
    memset(Block(0), 0, kBlockBytes);
    EXPECT_EQ(Check(0), VERIFY_BAD) << "zeroes after a write";
}

TEST_F(Verify, MisplacedAndSwappedBlocksAreFound)
{
    Open(VERIFY_INITIAL_ANY);
    Write(0);
    Write(1);
    std::swap_ranges(Block(0), Block(0) + kBlockBytes, Block(1));
    EXPECT_EQ(Check(0), VERIFY_BAD);
    EXPECT_NE(strstr(mismatch.found, "misplaced"), nullptr) << mismatch.found;
    memcpy(Block(2), Block(0), kBlockBytes);
    EXPECT_EQ(Check(2), VERIFY_BAD)
        << "even where nothing is known, our pattern of another place is wrong";
}

TEST_F(Verify, TimedOutWriteMayLeaveOldNewOrBothBySector)
{
    Open(VERIFY_INITIAL_ZEROES);
    Write(5);
    for (unsigned sectors : { 0u, 3u, 8u, 1u }) {
        WriteTorn(5, sectors);
        EXPECT_EQ(Check(5), VERIFY_OK) << sectors;
    }
    Block(5)[4095] ^= 1;
    EXPECT_EQ(Check(5), VERIFY_BAD) << "but not anything else";
}

TEST_F(Verify, WriteThatEndsWellMakesABlockKnownAgain)
{
    Open(VERIFY_INITIAL_ZEROES);
    Write(5);
    WriteTorn(5, 4);
    std::string torn(Block(5), kBlockBytes);
    EXPECT_EQ(Check(5), VERIFY_OK);
    Write(5);
    EXPECT_EQ(Check(5), VERIFY_OK);
    memcpy(Block(5), torn.data(), kBlockBytes);
    EXPECT_EQ(Check(5), VERIFY_BAD);
}

TEST_F(Verify, FirstTimedOutWriteLeavesZeroesOrNew)
{
    Open(VERIFY_INITIAL_ZEROES);
    WriteTorn(2, 5);
    EXPECT_EQ(Check(2), VERIFY_OK);
    Block(2)[4000] = 1;
    EXPECT_EQ(Check(2), VERIFY_BAD);
}

TEST_F(Verify, UnknownContentIsAcceptedOnceAndThenHasToStay)
{
    Open(VERIFY_INITIAL_ANY);
    memset(Block(4), 0x33, kBlockBytes);
    EXPECT_EQ(Check(4), VERIFY_UNKNOWN);
    EXPECT_EQ(Check(4), VERIFY_OK);
    Block(4)[1234] ^= 1;
    EXPECT_EQ(Check(4), VERIFY_BAD);
    EXPECT_NE(strstr(mismatch.expected, "first read"), nullptr) << mismatch.expected;
    Write(4);
    EXPECT_EQ(Check(4), VERIFY_OK);
}

TEST_F(Verify, PatternOfAnEarlierRunIsCheckedWithoutBeingTold)
{
    Open(VERIFY_INITIAL_ZEROES, 1);
    Write(0);
    Write(1);
    Open(VERIFY_INITIAL_ANY, 2);
    EXPECT_EQ(Check(0), VERIFY_OK);
    Block(1)[100] ^= 1;
    EXPECT_EQ(Check(1), VERIFY_BAD) << "a damaged pattern is damage, whoever wrote it";
}

TEST_F(Verify, ExpectedPatternRefusesAllElse)
{
    Open(VERIFY_INITIAL_ZEROES, 1);
    Write(0);
    Open(VERIFY_INITIAL_PATTERN, 2);
    EXPECT_EQ(Check(0), VERIFY_OK);
    EXPECT_EQ(Check(1), VERIFY_BAD) << "zeroes";
    Write(1);
    EXPECT_EQ(Check(1), VERIFY_OK);
    memcpy(Block(1), Block(0), kBlockBytes);
    EXPECT_EQ(Check(1), VERIFY_BAD);
}

TEST_F(Verify, OldRunsDataAfterAWriteOfThisRunIsFound)
{
    Open(VERIFY_INITIAL_ZEROES, 1);
    Write(0);
    std::string old(Block(0), kBlockBytes);
    Open(VERIFY_INITIAL_ANY, 2);
    Write(0);
    memcpy(Block(0), old.data(), kBlockBytes);
    EXPECT_EQ(Check(0), VERIFY_BAD) << "the same place and generation, but another run";
}

TEST_F(Verify, WipedBufferHoldsNoPattern)
{
    Open(VERIFY_INITIAL_ZEROES);
    Write(0);
    verify_wipe(&region, Block(0));
    EXPECT_EQ(Check(0), VERIFY_BAD);
}

/* ---- Schedule -------------------------------------------------------------------------------- */

TEST(Schedule, ThreadsTogetherHaveTheExactMomentsOfTheTotalRate)
{
    for (uint64_t rate : { uint64_t{ 1 }, uint64_t{ 3 }, uint64_t{ 7919 }, uint64_t{ 20000 },
                           uint64_t{ 1000000000 } }) {
        constexpr unsigned kThreads = 3;
        for (unsigned thread = 0; thread < kThreads; thread++) {
            struct blk_schedule s;
            blk_schedule_init(&s, 5000, rate, thread, kThreads);
            for (uint64_t k = 0; k < 5000; k++) {
                auto number = static_cast<unsigned __int128>(thread + k * kThreads);
                ASSERT_EQ(s.next_ns, 5000 + static_cast<int64_t>(number * 1000000000 / rate))
                    << "rate " << rate << " thread " << thread << " k " << k;
                blk_schedule_step(&s);
            }
        }
    }
}

/* ---- Numbers --------------------------------------------------------------------------------- */

TEST(Parse, Sizes)
{
    uint64_t n = 1;

    EXPECT_TRUE(parse_size("4k", &n) && n == 4096);
    EXPECT_TRUE(parse_size("512", &n) && n == 512);
    EXPECT_TRUE(parse_size("2M", &n) && n == 2u << 20);
    EXPECT_TRUE(parse_size("1G", &n) && n == 1u << 30);
    EXPECT_TRUE(parse_size("3t", &n) && n == uint64_t{ 3 } << 40);
    n = 42;
    for (const char *bad : { "", "k", "-1", "4x", "4kk", "4 k", " 4", "1.5G", "0x10", "9000000T",
                             "99999999999999999999" }) {
        EXPECT_FALSE(parse_size(bad, &n)) << bad;
    }
    EXPECT_EQ(n, 42u) << "left alone";
}

TEST(Parse, Durations)
{
    int64_t n = 1;

    EXPECT_TRUE(parse_duration("50ms", &n) && n == 50000000);
    EXPECT_TRUE(parse_duration("5s", &n) && n == 5000000000);
    EXPECT_TRUE(parse_duration("1.25s", &n) && n == 1250000000);
    EXPECT_TRUE(parse_duration("0.5ns", &n) && n == 0);
    EXPECT_TRUE(parse_duration("100us", &n) && n == 100000);
    EXPECT_TRUE(parse_duration("2m", &n) && n == 120000000000);
    EXPECT_TRUE(parse_duration("1.5h", &n) && n == 5400000000000);
    n = 42;
    for (const char *bad : { "", "5", "s", "5 s", "-5s", "5x", "5sec", ".5s", "5.s", "1e3s", "nans",
                             "9999999999h", "99999999999999999999s" }) {
        EXPECT_FALSE(parse_duration(bad, &n)) << bad;
    }
    EXPECT_EQ(n, 42);
}

TEST(Parse, RatesAndNumbers)
{
    uint64_t n = 1;

    EXPECT_TRUE(parse_rate("20000", &n) && n == 20000);
    EXPECT_TRUE(parse_rate("20k", &n) && n == 20000);
    EXPECT_TRUE(parse_rate("1M", &n) && n == 1000000);
    EXPECT_FALSE(parse_rate("1G", &n));
    EXPECT_FALSE(parse_rate("1/s", &n));
    EXPECT_TRUE(parse_number("18446744073709551615", &n) && n == UINT64_MAX);
    EXPECT_FALSE(parse_number("18446744073709551616", &n));
    EXPECT_FALSE(parse_number("1k", &n));
}

TEST(Format, ThreeDigitsAndAUnit)
{
    EXPECT_STREQ(format_time(0).s, "0ns");
    EXPECT_STREQ(format_time(999).s, "999ns");
    EXPECT_STREQ(format_time(1000).s, "1.00us");
    EXPECT_STREQ(format_time(12345).s, "12.3us");
    EXPECT_STREQ(format_time(999499).s, "999us");
    EXPECT_STREQ(format_time(999500).s, "1.00ms");
    EXPECT_STREQ(format_time(999499999).s, "999ms");
    EXPECT_STREQ(format_time(5000000000).s, "5.00s");
    EXPECT_STREQ(format_count(0).s, "0");
    EXPECT_STREQ(format_count(999999).s, "999999");
    EXPECT_STREQ(format_count(1000000).s, "1.00M");
    EXPECT_STREQ(format_count(45.6e9).s, "45.6G");
    EXPECT_STREQ(format_size(4096).s, "4k");
    EXPECT_STREQ(format_size(1 << 30).s, "1G");
    EXPECT_STREQ(format_size(4608).s, "4608");
    EXPECT_STREQ(format_size(512).s, "512");
}

/* ---- JSON ------------------------------------------------------------------------------------ */

std::string Json(const std::function<void(struct json *)> &write)
{
    char *text = nullptr;
    size_t len = 0;
    struct json j = {};

    j.stream = open_memstream(&text, &len);
    write(&j);
    fclose(j.stream);
    std::string result(text, len);
    free(text);
    return result;
}

TEST(Json, StringsAreEscaped)
{
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "a\"b\\c\n\x01\x7f/\xc3\xa9"); }),
              "\"a\\\"b\\\\c\\u000a\\u0001\\u007f/\xc3\xa9\"");
    /* A lone byte, an overlong form, a surrogate, one beyond Unicode, one cut short. */
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "\xff"); }), "\"\\ufffd\"");
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "\xc0\xaf"); }),
              "\"\\ufffd\\ufffd\"");
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "\xed\xa0\x80"); }),
              "\"\\ufffd\\ufffd\\ufffd\"");
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "\xf4\x90\x80\x80"); }),
              "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "x\xe2\x82"); }),
              "\"x\\ufffd\\ufffd\"");
    EXPECT_EQ(Json([](struct json *j) { json_string(j, nullptr, "\xf0\x9f\x98\x80"); }),
              "\"\xf0\x9f\x98\x80\"");
}

TEST(Json, NestsWithCommasInTheRightPlaces)
{
    EXPECT_EQ(Json([](struct json *j) {
                  json_open_object(j, nullptr);
                  json_u64(j, "a", UINT64_MAX);
                  json_open_array(j, "b");
                  json_bool(j, nullptr, true);
                  json_double(j, nullptr, 0.5);
                  json_close_array(j);
                  json_open_object(j, "c");
                  json_close_object(j);
                  json_double(j, "d", NAN);
                  json_string(j, "e", nullptr);
                  json_close_object(j);
              }),
              "{\n  \"a\": 18446744073709551615,\n  \"b\": [\n    true,\n    0.5\n  ],\n"
              "  \"c\": {},\n  \"d\": null,\n  \"e\": null\n}\n");
}

} // namespace
