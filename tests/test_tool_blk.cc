/* SPDX-License-Identifier: MIT */
/* aioctx-blk, run as a user runs it: options and runs. */
#include "tool_blk_support.h"

#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

namespace
{

/* ---- The command line ------------------------------------------------------------------------ */

TEST(ToolBlk, HelpNamesEveryOption)
{
    CommandResult r = Blk("--help");

    EXPECT_EQ(r.status, 0);
    for (const char *name : { "mix",         "pattern",        "ramp",         "jobs",
                              "trace",       "replay",         "replay-speed", "plot",
                              "offset",      "limit",          "cpus",         "driver",
                              "conformance", "file",           "backend",      "size",
                              "create",      "direct",         "registered",   "iothreads",
                              "rw",          "rwmixread",      "bs",           "iodepth",
                              "rate",        "deadline",       "verify",       "verify-errors-max",
                              "layout",      "expect-pattern", "runtime",      "ios",
                              "seed",        "fsync",          "monitor",      "json",
                              "no-progress", "help",           "version" }) {
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
    CommandResult r = RunCommand(kBlkProgram);

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
    CommandResult r = RunCommand("AIOCTX_FDMON=kqueue " + kBlkProgram + " --backend null://");

    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << r.output;
    EXPECT_NE(r.output.find("AIOCTX_FDMON"), std::string::npos) << r.output;
}

TEST(ToolBlk, TooFewDescriptorsIsAnErrorNotACrash)
{
    CommandResult r =
        RunCommand("ulimit -n 16; " + kBlkProgram + " --backend null:// --iothreads 20");

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

} // namespace
