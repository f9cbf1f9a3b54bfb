/* SPDX-License-Identifier: MIT */
/* aioctx-blk, run as a user runs it. */
#include "command.h"
#include "support.h"

#include <algorithm>
#include <fcntl.h>
#include <fstream>
#include <pty.h>
#include <regex>
#include <signal.h>
#include <sstream>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace
{

const std::string kProgram = BLK_PROGRAM;

CommandResult Blk(const std::string &args)
{
    return RunCommand(kProgram + " " + args);
}

/* Status 2, and one line that begins with the program's name and has @part. */
void ExpectRefused(const std::string &args, const std::string &part)
{
    CommandResult r = Blk(args);

    EXPECT_EQ(r.status, 2) << args << "\n" << r.output;
    EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << args << "\n" << r.output;
    EXPECT_EQ(r.output.rfind("aioctx-blk: ", 0), 0u) << args << "\n" << r.output;
    EXPECT_NE(r.output.find(part), std::string::npos) << args << "\n" << r.output;
}

/* The lines of the table whose first word is @name. */
int CountRows(const std::string &output, const std::string &name)
{
    std::regex row("(^|\n)" + name + " +[0-9]");
    return static_cast<int>(std::distance(std::sregex_iterator(output.begin(), output.end(), row),
                                          std::sregex_iterator()));
}

/* The first number that @key has in @json behind the first @behind; -1 without one. */
double JsonNumber(const std::string &json, const std::string &behind, const std::string &key)
{
    size_t from = json.find(behind);
    size_t at = from == std::string::npos ? from : json.find("\"" + key + "\": ", from);

    EXPECT_NE(at, std::string::npos) << key << " in:\n" << json;
    return at == std::string::npos ? -1 : atof(json.c_str() + at + key.size() + 4);
}

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

/* ---- The command line ------------------------------------------------------------------------ */

TEST(ToolBlk, HelpNamesEveryOption)
{
    CommandResult r = Blk("--help");

    EXPECT_EQ(r.status, 0);
    for (const char *name :
         { "file",       "backend",        "size",     "create",      "direct",
           "registered", "iothreads",      "rw",       "rwmixread",   "bs",
           "iodepth",    "rate",           "deadline", "verify",      "verify-errors-max",
           "layout",     "expect-pattern", "runtime",  "ios",         "seed",
           "fsync",      "monitor",        "json",     "no-progress", "help",
           "version" }) {
        EXPECT_NE(r.output.find(std::string("--") + name), std::string::npos) << name;
    }
    EXPECT_NE(r.output.find("Exit status"), std::string::npos);
}

TEST(ToolBlk, VersionIsPrinted)
{
    CommandResult r = Blk("--version");

    EXPECT_EQ(r.status, 0);
    EXPECT_TRUE(std::regex_match(r.output, std::regex("aioctx-blk [0-9.]+\n"))) << r.output;
}

TEST(ToolBlk, NoOptionsGetTheShortUsage)
{
    CommandResult r = RunCommand(kProgram);

    EXPECT_EQ(r.status, 2);
    EXPECT_EQ(r.output.rfind("usage: aioctx-blk", 0), 0u) << r.output;
}

TEST(ToolBlk, WrongOptionsGetOneLineThatSaysWhatWasExpected)
{
    ExpectRefused("--nonsense", "unknown option '--nonsense'");
    ExpectRefused("-x", "unknown option '-x'");
    ExpectRefused("--backend null:// stray", "'stray'");
    ExpectRefused("--backend", "expected a value");
    ExpectRefused("--backend null:// --direct=yes", "expected no value");
    ExpectRefused("--rw read", "expected --file PATH or --backend SPEC");
    ExpectRefused("--file a --backend null://", "expected only one");
    ExpectRefused("--backend null:// --rw backwards", "expected read, write, rw");
    ExpectRefused("--backend null:// --bs 4kk", "expected a size");
    ExpectRefused("--backend null:// --bs 1000", "multiple of 512");
    ExpectRefused("--backend null:// --bs 0", "expected a size");
    ExpectRefused("--backend null:// --iothreads 0", "expected a number from 1 to");
    ExpectRefused("--backend null:// --iodepth -1", "expected a number from 1 to");
    ExpectRefused("--backend null:// --iodepth 99999999999999999999",
                  "expected a number from 1 to");
    ExpectRefused("--backend null:// --rate 0", "requests per second");
    ExpectRefused("--backend null:// --rate 5000M", "requests per second");
    ExpectRefused("--backend null:// --deadline 50", "with a unit");
    ExpectRefused("--backend null:// --runtime 0s", "above 0");
    ExpectRefused("--backend null:// --rw randrw --rwmixread 101", "from 0 to 100");
    ExpectRefused("--backend null:// --rw read --rwmixread 50", "expected --rw rw or --rw randrw");
    ExpectRefused("--backend null:// --fsync 4", "expected a --rw that writes");
    ExpectRefused("--backend null:// --verify md5", "expected crc32c or none");
    ExpectRefused("--backend null:// --expect-pattern", "expected --verify crc32c");
    ExpectRefused("--backend null:// --monitor kqueue", "expected io_uring, epoll or ppoll");
    ExpectRefused("--backend null:// --create", "go with --file");
    ExpectRefused("--file a --create", "expected --size");
    ExpectRefused("--file ''", "not empty");
}

TEST(ToolBlk, WrongBackendsAndSizesGetOneLine)
{
    ScratchDir dir;

    ExpectRefused("--backend nosuchdriver:x", "");
    ExpectRefused("--backend 'null://?sice=1G'", "sice");
    ExpectRefused("--file " + dir / "missing", "missing");
    ExpectRefused("--backend 'null://?size=1M' --size 2M", "smaller than --size");
    ExpectRefused("--backend null:// --size 10240", "multiple of --bs");
    ExpectRefused("--backend null:// --size 1M --bs 2M", "too small");
    ExpectRefused("--backend null:// --size 1M --iothreads 8 --iodepth 33",
                  "8 iothreads x iodepth 33");
    ExpectRefused("--backend null:// --verify crc32c", "keeps what is written");
    ExpectRefused("--backend 'null://?read-only=on' --rw write", "read-only");
    ExpectRefused("--backend null:// --json " + dir / "no/such/dir.json", "--json");
}

TEST(ToolBlk, DeviceSmallerThanAskedForIsRefused)
{
    ScratchDir dir;

    WriteFile(dir / "small", std::string(1 << 20, 'x'));
    ExpectRefused("--file " + dir / "small" + " --size 2M", "smaller than --size 2097152");
}

TEST(ToolBlk, ReadOnlyFileIsReadButNotWritten)
{
    ScratchDir dir;
    std::string disk = dir / "disk";

    WriteFile(disk, std::string(1 << 20, 'x'));
    ASSERT_EQ(chmod(disk.c_str(), 0444), 0);
    EXPECT_EQ(Blk("--file " + disk + " --rw randread --ios 100").status, 0);
    ExpectRefused("--backend 'file:" + disk + "?read-only=on' --rw randwrite", "read-only");
    if (geteuid() != 0) { /* root may write it */
        ExpectRefused("--file " + disk + " --rw randwrite", "ermission");
    }
}

TEST(ToolBlk, BadMonitorInTheEnvironmentGetsOneLine)
{
    CommandResult r = RunCommand("AIOCTX_FDMON=kqueue " + kProgram + " --backend null://");

    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << r.output;
    EXPECT_NE(r.output.find("AIOCTX_FDMON"), std::string::npos) << r.output;
}

TEST(ToolBlk, TooFewDescriptorsIsAnErrorNotACrash)
{
    CommandResult r = RunCommand("ulimit -n 16; " + kProgram + " --backend null:// --iothreads 20");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("cannot start iothread"), std::string::npos) << r.output;
}

/* ---- Runs ------------------------------------------------------------------------------------ */

TEST(ToolBlk, EveryMonitorRunsTheNullBackend)
{
    for (const char *monitor : kMonitors) {
        if (!MonitorWorks(monitor)) {
            continue;
        }
        for (const char *rate : { "", " --rate 20k" }) {
            CommandResult r = Blk(
                std::string("--backend null:// --rw randrw --ios 2000 --deadline 10s --monitor ") +
                monitor + rate);
            EXPECT_EQ(r.status, 0) << r.output;
            EXPECT_EQ(CountRows(r.output, "total"), 1) << r.output;
            EXPECT_NE(r.output.find(monitor), std::string::npos) << r.output;
        }
    }
}

TEST(ToolBlk, TableHasARowForEachIothread)
{
    CommandResult r = Blk("--backend null:// --iothreads 3 --ios 300");

    EXPECT_EQ(r.status, 0) << r.output;
    for (const char *name : { "io0", "io1", "io2", "total" }) {
        EXPECT_EQ(CountRows(r.output, name), 1) << name << "\n" << r.output;
    }
    EXPECT_EQ(CountRows(r.output, "io3"), 0) << r.output;
    std::istringstream lines(r.output.substr(r.output.find("\n\n"))); /* behind the title */
    for (std::string line; std::getline(lines, line);) {
        EXPECT_LE(line.size(), 120u) << line;
    }
}

TEST(ToolBlk, NoProgressLineWhereStderrIsNoTerminal)
{
    CommandResult r = Blk("--backend null:// --runtime 700ms");

    EXPECT_EQ(r.status, 0);
    EXPECT_EQ(r.output.find('\r'), std::string::npos) << r.output;
}

TEST(ToolBlk, IosAreExact)
{
    for (const char *how :
         { "", " --rate 50k", " --iothreads 3", " --iothreads 3 --rate 50k", " --iodepth 1" }) {
        CommandResult r =
            Blk(std::string("--backend null:// --rw randrw --ios 1001 --json - 2>/dev/null") + how);
        double reads = JsonNumber(r.output, "\"total\"", "reads");
        double writes = JsonNumber(r.output, "\"total\"", "writes");
        EXPECT_EQ(r.status, 0) << how;
        EXPECT_EQ(reads + writes, 1001) << how;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "count"), 1001) << how; /* of latencies */
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "unissued"), 0) << how;
    }
    /* More threads than requests. */
    CommandResult r = Blk("--backend null:// --ios 1 --iothreads 2 --json - 2>/dev/null");
    EXPECT_EQ(JsonNumber(r.output, "\"total\"", "reads"), 1);
}

TEST(ToolBlk, SeedRepeatsTheChoices)
{
    auto reads = [](const char *seed) {
        CommandResult r =
            Blk(std::string("--backend null:// --rw randrw --ios 5001 --json - --seed ") + seed +
                " 2>/dev/null");
        return JsonNumber(r.output, "\"total\"", "reads");
    };

    EXPECT_EQ(reads("5"), reads("5"));
    EXPECT_NE(reads("5"), reads("6")); /* what these two seeds choose is fixed */
}

TEST(ToolBlk, StallDoesNotHideInOpenLoop)
{
    /* Each request takes 20 ms and one goes at a time, so 500 a second cannot be met: the 50th is
     * to begin at 98 ms but begins after 49 others, at 980 ms.  Closed loop would show 20 ms for
     * all. */
    CommandResult r =
        Blk("--backend 'null://?latency-ns=20000000' --iodepth 1 --rate 500 --ios 50 --json - "
            "2>/dev/null");

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_GE(JsonNumber(r.output, "\"total\"", "max_ns"), 50 * 20e6 - 49 * 2e6);
}

TEST(ToolBlk, BacklogIsReported)
{
    CommandResult r =
        Blk("--backend 'null://?latency-ns=300000000' --iodepth 2 --rate 1000 --runtime 500ms "
            "--json - 2>/dev/null");

    /* Of 500, at most 2 begin in each 300 ms. */
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(JsonNumber(r.output, "\"total\"", "reads") +
                  JsonNumber(r.output, "\"total\"", "unissued"),
              500);
    EXPECT_LE(JsonNumber(r.output, "\"total\"", "reads"), 4);
}

TEST(ToolBlk, MissedDeadlinesAreCountedAndNoError)
{
    for (const char *how : { "", " --rate 1000" }) {
        CommandResult r =
            Blk(std::string("--backend 'null://?latency-ns=30000000000' --deadline 5ms --ios 64 "
                            "--json - 2>/dev/null") +
                how);
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "missed"), 64) << r.output;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "reads"), 0) << r.output;
        EXPECT_GE(JsonNumber(r.output, "\"total\"", "p50_ns"), 5e6) << r.output;
    }
}

TEST(ToolBlk, FlushFollowsEveryNthWrite)
{
    auto flushes = [](const char *every) {
        ScratchDir dir;
        CommandResult r = Blk("--file " + dir / "disk" +
                              " --create --size 1M --rw write --iodepth 1 --ios 40 "
                              "--json - 2>/dev/null --fsync " +
                              every);
        EXPECT_EQ(r.status, 0) << r.output;
        return JsonNumber(r.output, "\"total\"", "flushes");
    };

    EXPECT_EQ(flushes("40"), 1);
    EXPECT_EQ(flushes("41"), 0);
    /* Those that come due while one runs become one. */
    double some = flushes("10");
    EXPECT_GE(some, 2);
    EXPECT_LE(some, 4);
}

/* ---- Verification ---------------------------------------------------------------------------- */

class ToolBlkFiles : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    const std::string monitor = std::string(" --monitor ") + GetParam();
};
INSTANTIATE_TEST_SUITE_P(Monitors, ToolBlkFiles, testing::ValuesIn(kMonitors), MonitorName);

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

/* ---- Errors and ends ------------------------------------------------------------------------- */

TEST(ToolBlk, FileTooLargeForItsLimitIsAnErrorNotAnEnd)
{
    ScratchDir dir;
    /* The limit is 128 KiB (256 units of 512 bytes in sh), the file is made before it. */
    WriteFile(dir / "disk", "");
    ASSERT_EQ(truncate((dir / "disk").c_str(), 1 << 20), 0);
    CommandResult r = RunCommand("ulimit -f 256; " + kProgram + " --file " + dir / "disk" +
                                 " --rw write --ios 256 --iothreads 2 --iodepth 4");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("failed: File too large"), std::string::npos) << r.output;
    EXPECT_EQ(CountRows(r.output, "total"), 1) << r.output;
}

TEST(ToolBlk, FullDiskIsAClearErrorAndNothingHangs)
{
    ScratchDir dir;
    /* A mount namespace of its own: nothing is left behind. */
    const std::string in_namespace = "unshare -m sh -c ";

    if (RunCommand(in_namespace + "'mount -t tmpfs -o size=1m tmpfs " + dir.path() + "'").status !=
        0) {
        GTEST_SKIP() << "mounting a small tmpfs is not allowed here";
    }
    CommandResult r =
        RunCommand(in_namespace + "'mount -t tmpfs -o size=1m tmpfs " + dir.path() + " && " +
                   kProgram + " --file " + dir / "disk" +
                   " --create --size 16M --rw randwrite --iothreads 2 --runtime 30s'");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("failed: No space left on device"), std::string::npos) << r.output;
    EXPECT_EQ(CountRows(r.output, "total"), 1) << r.output;
}

TEST(ToolBlk, JsonIsValidAndHasTheTablesNumbers)
{
    ScratchDir dir;
    CommandResult r =
        Blk("--backend null:// --rw randrw --rwmixread 30 --iothreads 2 --rate 10k --deadline 1s "
            "--runtime 300ms --json " +
            dir / "r.json");
    ASSERT_EQ(r.status, 0) << r.output;
    std::string json = ReadFile(dir / "r.json");

    for (const char *key :
         { "status", "config", "backend", "iothreads", "rate", "deadline_ns", "latency", "p999_ns",
           "timer_lateness", "missed", "cancelled", "late", "syscalls_per_io", "wakeups_sent",
           "wakeups_saved", "iops", "mib_per_s", "total" }) {
        EXPECT_NE(json.find(std::string("\"") + key + "\": "), std::string::npos) << key;
    }
    EXPECT_NE(json.find("\"status\": \"ok\""), std::string::npos);
    EXPECT_EQ(JsonNumber(json, "\"config\"", "rwmixread"), 30);
    EXPECT_EQ(JsonNumber(json, "\"total\"", "bytes_read"),
              4096 * JsonNumber(json, "\"total\"", "reads"));
    EXPECT_EQ(JsonNumber(json, "\"io0\"", "reads") + JsonNumber(json, "\"io1\"", "reads"),
              JsonNumber(json, "\"total\"", "reads"));
    /* 10000 a second for 0.3 s: each moment of the schedule is accounted for. */
    EXPECT_EQ(JsonNumber(json, "\"total\"", "count") + JsonNumber(json, "\"total\"", "unissued"),
              3000);
    if (RunCommand("command -v python3").status != 0) {
        GTEST_SKIP() << "no python3 to check the syntax";
    }
    r = RunCommand("python3 -m json.tool " + dir / "r.json");
    EXPECT_EQ(r.status, 0) << r.output << json;
}

TEST(ToolBlk, JsonToStdoutLeavesTheTableToStderr)
{
    CommandResult r = Blk("--backend null:// --ios 10 --json - 2>/dev/null");

    EXPECT_EQ(r.status, 0);
    EXPECT_EQ(r.output.rfind("{\n", 0), 0u) << r.output;
    EXPECT_EQ(CountRows(r.output, "total"), 0) << r.output;
    r = Blk("--backend null:// --ios 10 --json - 2>&1 >/dev/null");
    EXPECT_EQ(CountRows(r.output, "total"), 1) << r.output;
}

TEST(ToolBlk, ReportsThatCannotBeWrittenAreAnError)
{
    CommandResult r = Blk("--backend null:// --ios 10 --json /dev/full");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("cannot write /dev/full: No space left on device"), std::string::npos)
        << r.output;
    EXPECT_EQ(CountRows(r.output, "total"), 1) << r.output;
    r = Blk("--backend null:// --ios 10 2>&1 >/dev/full");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("cannot write the table"), std::string::npos) << r.output;
}

/* The program, with a terminal as its stderr, and its stdout in a file. */
class OnTerminal
{
public:
    OnTerminal(std::vector<std::string> args, const std::string &output)
    {
        int slave = -1, out = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        if (openpty(&master_, &slave, nullptr, nullptr, nullptr) == 0) {
            fcntl(master_, F_SETFL, O_NONBLOCK);
            fcntl(master_, F_SETFD, FD_CLOEXEC);
            args.insert(args.begin(), kProgram);
            pid_ = Spawn(args, out, slave);
            close(slave);
        }
        close(out);
    }
    ~OnTerminal()
    {
        if (pid_ > 0) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        }
        close(master_);
    }
    void Kill(int number) const
    {
        kill(pid_, number);
    }
    /* Waits until @text has come on the terminal; false when the program ends without. */
    bool Shows(const std::string &text)
    {
        bool shown = false;

        WaitUntil([&] {
            siginfo_t info = {};
            waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
            Read();
            shown = seen_.find(text) != std::string::npos;
            return shown || info.si_pid == pid_;
        });
        return shown;
    }
    /* Whether it has ended; then with which status. */
    bool Ended(int *ret_status)
    {
        int status;

        Read();
        if (waitpid(pid_, &status, WNOHANG) != pid_) {
            return false;
        }
        pid_ = -1;
        Read();
        *ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        return true;
    }
    /* Waits for the end; the exit status. */
    int Wait()
    {
        int status = -1;

        EXPECT_TRUE(WaitUntil([&] { return Ended(&status); }));
        return status;
    }
    const std::string &seen() const
    {
        return seen_;
    }

private:
    static pid_t Spawn(std::vector<std::string> &args, int out, int err)
    {
        std::vector<char *> argv;

        for (std::string &arg : args) {
            argv.push_back(arg.data());
        }
        argv.push_back(nullptr);
        pid_t pid = fork();
        if (pid == 0) {
            dup2(out, 1);
            dup2(err, 2);
            signal(SIGINT, SIG_DFL); /* who runs us in the background may ignore it */
            execv(argv[0], argv.data());
            _exit(127);
        }
        return pid;
    }
    void Read()
    {
        char buf[4096];
        ssize_t n;

        while ((n = read(master_, buf, sizeof(buf))) > 0) {
            seen_.append(buf, static_cast<size_t>(n));
        }
    }

    int master_ = -1;
    pid_t pid_ = -1;
    std::string seen_;
};

TEST(ToolBlk, ProgressLineShowsOnATerminalAndIsWipedAtTheEnd)
{
    ScratchDir dir;
    OnTerminal run({ "--backend", "null://", "--rate", "1000", "--runtime", "1s" }, dir / "out");

    EXPECT_TRUE(run.Shows(" s left")) << run.seen();
    EXPECT_EQ(run.Wait(), 0);
    for (const char *part : { " IOPS, ", " MiB/s, ", "p50 ", "p99 ", " missed, " }) {
        EXPECT_NE(run.seen().find(part), std::string::npos) << part << "\n" << run.seen();
    }
    EXPECT_EQ(run.seen().substr(run.seen().size() - 4), "\r\033[K");
    EXPECT_EQ(CountRows(ReadFile(dir / "out"), "total"), 1);
}

TEST(ToolBlk, NoProgressOptionKeepsTheTerminalEmpty)
{
    ScratchDir dir;
    OnTerminal run(
        { "--backend", "null://", "--rate", "1000", "--runtime", "700ms", "--no-progress" },
        dir / "out");

    EXPECT_EQ(run.Wait(), 0);
    EXPECT_EQ(run.seen(), "");
}

TEST(ToolBlk, SignalEndsTheRunWithTheTable)
{
    for (int number : { SIGINT, SIGTERM }) {
        ScratchDir dir;
        OnTerminal run(
            { "--backend", "null://", "--iothreads", "2", "--runtime", "1h", "--rate", "1000" },
            dir / "out");
        ASSERT_TRUE(run.Shows(" s left")) << run.seen();
        run.Kill(number);
        EXPECT_EQ(run.Wait(), 128 + number);
        EXPECT_EQ(CountRows(ReadFile(dir / "out"), "io1"), 1) << ReadFile(dir / "out");
        EXPECT_EQ(CountRows(ReadFile(dir / "out"), "total"), 1) << ReadFile(dir / "out");
    }
}

TEST(ToolBlk, SecondSignalQuitsAtOnce)
{
    ScratchDir dir;
    OnTerminal run({ "--backend", "null://?latency-ns=3600000000000", "--runtime", "1h" },
                   dir / "out");
    int status = -1;

    ASSERT_TRUE(run.Shows(" s left")) << run.seen();
    run.Kill(SIGINT);
    /* The run now waits for requests that take an hour.  Again and again, since those that come
     * together count as one. */
    EXPECT_TRUE(WaitUntil([&] {
        usleep(50000);
        run.Kill(SIGINT);
        return run.Ended(&status);
    }));
    EXPECT_EQ(status, 130);
    EXPECT_EQ(CountRows(ReadFile(dir / "out"), "total"), 0) << ReadFile(dir / "out");
}

TEST(ToolBlk, RequestsThatOutliveTheRunAreCancelledAndCounted)
{
    CommandResult r =
        Blk("--backend 'null://?latency-ns=3600000000000' --iodepth 8 --runtime 100ms --json - "
            "2>/dev/null");

    EXPECT_EQ(r.status, 1) << r.output; /* not what was asked for, and not by a signal */
    EXPECT_EQ(JsonNumber(r.output, "\"total\"", "cancelled"), 8) << r.output;
}

} // namespace
