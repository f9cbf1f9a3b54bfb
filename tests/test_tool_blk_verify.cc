/* SPDX-License-Identifier: MIT */
/* aioctx-blk, run as a user runs it: the checking of what is read. */
#include "tool_blk_support.h"

#include <fstream>
#include <regex>

namespace
{

void FlipByte(const std::string &path, std::streamoff offset)
{
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    char c = 0;

    file.seekg(offset);
    file.get(c);
    file.seekp(offset);
    file.put(static_cast<char>(c ^ 0x40));
    file.close();
    ASSERT_FALSE(file.fail());
}

class ToolBlkFiles : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    const std::string monitor = std::string(" --monitor ") + GetParam();
};
INSTANTIATE_TEST_SUITE_P(Monitors, ToolBlkFiles, testing::ValuesIn(kMonitorsOfSlowSuites),
                         MonitorName);

TEST_P(ToolBlkFiles, VerifyRoundTripFindsNoMismatch)
{
    for (const char *how : { "", " --rate 20k", " --rate 20k --deadline 2ms",
                             " --bs 16k --iodepth 4", " --rw rw", " --fsync 8", " --registered" }) {
        ScratchDir dir;
        CommandResult r = Blk("--file " + dir / "disk" +
                              " --create --size 4M --iothreads 2 --iodepth 8 "
                              "--rw randrw --verify crc32c --ios 6000 --json - 2>/dev/null" +
                              how + monitor);
        EXPECT_EQ(r.status, 0) << how << r.output;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "verify_mismatches"), 0) << how;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "verify_checked"),
                  JsonNumber(r.output, "\"total\"", "reads"))
            << how << r.output;
    }
}

TEST_P(ToolBlkFiles, TimedOutDetachedWritesLeaveOldOrNewData)
{
    ScratchDir dir;
    WriteFile(dir / "disk", std::string(2 << 20, '\0'));
    CommandResult r = Blk("--backend 'file:" + dir / "disk" +
                          "?detach=on' --iothreads 2 --iodepth 64 --bs 4k "
                          "--rw randrw --verify crc32c --layout --deadline 200us --ios 20000" +
                          monitor);

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find(" 0 mismatches"), std::string::npos) << r.output;
}

class ToolBlkLaidOut : public testing::Test
{
protected:
    void SetUp() override
    {
        CommandResult r = Blk("--file " + disk +
                              " --create --size 1M --iothreads 2 --iodepth 4 --layout "
                              "--verify crc32c --ios 10");
        ASSERT_EQ(r.status, 0) << r.output;
    }
    CommandResult ReadBack(const std::string &more = "")
    {
        return Blk("--file " + disk +
                   " --rw read --iodepth 4 --verify crc32c --expect-pattern --ios 256" + more);
    }

    ScratchDir dir;
    std::string disk = dir / "disk";
};

TEST_F(ToolBlkLaidOut, UntouchedFilePasses)
{
    CommandResult r = ReadBack();

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("256 reads checked, 0 of content not known before, 0 mismatches"),
              std::string::npos)
        << r.output;
}

TEST_F(ToolBlkLaidOut, PlantedCorruptionIsFoundAtItsOffset)
{
    FlipByte(disk, 300000);
    CommandResult r = ReadBack();

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(
        r.output.find("mismatch at offset " + std::to_string(300000 / 512 * 512) + " (iothread 0)"),
        std::string::npos)
        << r.output;
    EXPECT_NE(r.output.find("damaged pattern"), std::string::npos) << r.output;
    EXPECT_EQ(CountRows(r.output, "total"), 1) << "the table comes all the same:\n" << r.output;
    FlipByte(disk, 300000);
    EXPECT_EQ(ReadBack().status, 0);
}

TEST_F(ToolBlkLaidOut, CorruptionIsFoundWithoutExpectPatternToo)
{
    FlipByte(disk, 700001);
    CommandResult r =
        Blk("--file " + disk + " --rw read --iodepth 4 --verify crc32c --ios 256 --iothreads 2");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(
        r.output.find("mismatch at offset " + std::to_string(700001 / 512 * 512) + " (iothread 1)"),
        std::string::npos)
        << r.output;
}

TEST_F(ToolBlkLaidOut, ForeignAndSwappedBlocksAreFound)
{
    std::string good = ReadFile(disk), bad = good;

    bad.replace(8192, 4096, 4096, '\0');
    WriteFile(disk, bad);
    CommandResult r = ReadBack();
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("mismatch at offset 8192 "), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("found zeroes"), std::string::npos) << r.output;

    bad = good;
    std::swap_ranges(bad.begin() + 16384, bad.begin() + 20480, bad.begin() + 40960);
    WriteFile(disk, bad);
    r = ReadBack();
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("misplaced pattern (offset 40960"), std::string::npos) << r.output;
}

TEST_F(ToolBlkLaidOut, VerifyErrorsMaxGoesOnUntilThen)
{
    for (int i = 0; i < 5; i++) {
        FlipByte(disk, 4096 * (10 + 20 * i));
    }
    CommandResult r = ReadBack(" --iodepth 1 --verify-errors-max 3");
    std::regex line("mismatch at offset");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_EQ(std::distance(std::sregex_iterator(r.output.begin(), r.output.end(), line),
                            std::sregex_iterator()),
              3)
        << r.output;
    r = ReadBack(" --verify-errors-max 100");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("256 reads"), std::string::npos) << "ran to its end\n" << r.output;
    EXPECT_NE(r.output.find(" 5 mismatches"), std::string::npos) << r.output;
}

} // namespace
