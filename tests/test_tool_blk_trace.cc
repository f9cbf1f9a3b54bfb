/* SPDX-License-Identifier: MIT */
/* aioctx-blk, run as a user runs it: traces and their replay. */
#include "tool_blk_support.h"

#include <sstream>
#include <unistd.h>

namespace
{

class ToolBlkTrace : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    CommandResult Run(const std::string &args)
    {
        return Blk(args + " --monitor " + GetParam() + " --json - 2>/dev/null");
    }
    static double Total(const CommandResult &r, const std::string &key)
    {
        return JsonNumber(r.output, "\n  \"total\"", key);
    }

    ScratchDir dir;
    const std::string trace = dir / "trace", again = dir / "again";
};
INSTANTIATE_TEST_SUITE_P(Monitors, ToolBlkTrace, testing::ValuesIn(kMonitorsOfSlowSuites),
                         MonitorName);

/* The words of each request's line. */
std::vector<std::vector<std::string>> Requests(const std::string &path)
{
    std::istringstream lines(ReadFile(path));
    std::vector<std::vector<std::string>> requests;

    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::vector<std::string> one;
        for (std::string word; words >> word;) {
            one.push_back(word);
        }
        if (one.size() == 9 && one[0] != "#") {
            requests.push_back(one);
        }
    }
    return requests;
}

/* What was asked for and how it ended, whenever: op, offset, bytes, flags, result. */
std::multiset<std::string> Asked(const std::string &path)
{
    std::multiset<std::string> asked;

    for (const auto &r : Requests(path)) {
        asked.insert(r[2] + " " + r[3] + " " + r[4] + " " + r[5] + " " + r[7]);
    }
    return asked;
}

TEST_P(ToolBlkTrace, EveryRequestHasItsLineAndIsReplayed)
{
    std::string file = " --file " + dir / "disk";
    CommandResult r =
        Run(file +
            " --create --size 2M --iothreads 2 --iodepth 4 --bs 4k/50:20k/50 --ios 500 "
            "--mix read=25,write=25,flush=1,discard=5,zeroes=5,status=5 --trace " +
            trace);

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(Total(r, "count"), 500);
    EXPECT_EQ(Requests(trace).size(), 500u);
    std::set<std::string> threads;
    int64_t before = 0;
    for (const auto &one : Requests(trace)) {
        threads.insert(one[1]);
        EXPECT_GE(atoll(one[0].c_str()), before);
        before = atoll(one[0].c_str());
    }
    EXPECT_EQ(threads, (std::set<std::string>{ "io0", "io1" }));
    const std::string null = " --backend null:size=2M";
    for (const std::string &how : { file + " --replay-speed max", null + " --replay-speed 20",
                                    null + " --replay-speed max --iothreads 1 --iodepth 2" }) {
        r = Run(how + " --replay " + trace + " --trace " + again);
        EXPECT_EQ(r.status, 0) << how << r.output;
        EXPECT_EQ(Total(r, "count"), 500) << how;
        EXPECT_EQ(Asked(again), Asked(trace)) << how;
    }
}

TEST_P(ToolBlkTrace, ReplayKeepsTheTiming)
{
    std::string text = "aioctx-trace 1\n";
    for (int i = 0; i < 20; i++) {
        text += std::to_string(i * INT64_C(2000000)) + " io" + std::to_string(i % 2) + " read " +
                std::to_string(i * 4096) + " 4096 - - ok 1\n";
    }
    WriteFile(trace, text + "end\n");
    for (double speed : { 1.0, 4.0, 0.5 }) {
        CommandResult r = Run("--backend null: --replay " + trace + " --replay-speed " +
                              std::to_string(speed) + " --trace " + again);
        auto replayed = Requests(again);

        EXPECT_EQ(r.status, 0) << r.output;
        ASSERT_EQ(replayed.size(), 20u);
        for (int i = 0; i < 20; i++) { /* the schedule's times, whenever it was issued */
            EXPECT_NEAR(atof(replayed[static_cast<size_t>(i)][0].c_str()), i * 2e6 / speed, 1.1);
        }
        EXPECT_GE(Total(r, "seconds"), 19 * 2e-3 / speed);
        EXPECT_EQ(Total(r, "unissued"), 0);
    }
}

TEST_P(ToolBlkTrace, LateOnesAreCountedAndShown)
{
    std::string text = "aioctx-trace 1\n";
    for (int i = 0; i < 10; i++) {
        text += std::to_string(i) + " io0 read 0 4096 - - ok 1\n";
    }
    WriteFile(trace, text + "end 10\n");
    /* One at a time, each of 5 ms. */
    CommandResult r = Run("--backend null:latency-ns=5000000 --replay " + trace + " --iodepth 1");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_GE(Total(r, "begun_late"), 9);
    r = Blk("--backend null:latency-ns=5000000 --replay " + trace + " --iodepth 1");
    EXPECT_TRUE(std::regex_search(
        r.output, std::regex("schedule: (9|10) requests began more than 1 ms late")))
        << r.output;
}

TEST_P(ToolBlkTrace, DeadlinesAndErrorsAreRecordedAndDeadlinesReplayed)
{
    CommandResult r = Run("--backend null:latency-ns=10000000000 --deadline 3ms --ios 20 "
                          "--iodepth 4 --trace " +
                          trace);
    EXPECT_EQ(r.status, 0) << r.output;
    for (const auto &one : Requests(trace)) {
        EXPECT_EQ(one[6], "3000000");
        EXPECT_EQ(one[7], "ETIMEDOUT");
        EXPECT_GE(atof(one[8].c_str()), 3e6);
    }
    r = Run("--backend null:latency-ns=10000000000 --replay " + trace);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(Total(r, "missed"), 20);
    r = Run("--backend blkdebug:rules=read+nth=7+error=EIO,null: --ios 100 --iodepth 1 --trace " +
            trace);
    EXPECT_EQ(r.status, 1);
    EXPECT_EQ(Requests(trace).back()[7], "EIO");
    EXPECT_EQ(Requests(trace).size(), 7u);
}

TEST(ToolBlkTraceErrors, AFullDiskEndsTheRun)
{
    /* So many that they are written meanwhile: without its end it would take an hour. */
    CommandResult r = Blk("--backend null: --runtime 1h --trace /dev/full");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("aioctx-blk: cannot write /dev/full: No space left on device\n"),
              std::string::npos)
        << r.output;
    EXPECT_EQ(CountRows(r.output, "total"), 1) << r.output;
    r = Blk("--backend null: --ios 10 --trace /dev/full");
    EXPECT_EQ(r.status, 1) << r.output;
    ExpectRefused("--backend null: --trace /no/such/file", "--trace /no/such/file: expected a file "
                                                           "that can be written");
}

TEST(ToolBlkTraceErrors, WhatIsWrongWithATraceIsSaidWithFileAndLine)
{
    ScratchDir dir;
    const std::string t = dir / "t", head = "aioctx-trace 1\n";

    ExpectRefused("--backend null: --replay " + t, t + ": expected a trace that can be read");
    WriteFile(t, head + "0 io0 read 0 512 - - ok 5\n0 io0 rea");
    ExpectRefused("--backend null: --replay " + t, t + ":3: the line has no end");
    WriteFile(t, head + "0 io0 read 0 512 - - ok 5\n");
    ExpectRefused("--backend null: --replay " + t, t + ":2: expected 'end' behind the last");
    WriteFile(t, head + "0 io0 read 0 512 - - ok 5\n0 io0 write 1048064 1024 - - ok 5\nend 2\n");
    ExpectRefused("--backend null:size=1M --replay " + t, t + ":3: the request ends at 1049088");
    ExpectRefused("--backend 'null:size=2M,read-only=on' --replay " + t, "read-only");
}

TEST(ToolBlkTraceErrors, AnIologThatFioWroteIsReplayed)
{
    ScratchDir dir;

    if (RunCommand("command -v fio").status != 0) {
        GTEST_SKIP() << "no fio to write an iolog";
    }
    CommandResult r =
        RunCommand("cd " + dir.path() +
                   " && fio --name=j --filename=disk --size=1M --rw=randrw "
                   "--bs=4k --fsync=16 --number_ios=100 --write_iolog=log --ioengine=psync");
    ASSERT_EQ(r.status, 0) << r.output;
    r = Blk("--file " + dir / "disk --replay " +
            dir / "log --replay-speed max --json - "
                  "2>/dev/null");
    EXPECT_EQ(r.status, 0) << r.output;
    std::string log = ReadFile(dir / "log");
    std::regex moves(" (read|write) [0-9]+ 4096\n");
    auto n =
        std::distance(std::sregex_iterator(log.begin(), log.end(), moves), std::sregex_iterator());
    EXPECT_GE(n, 50);
    EXPECT_EQ(JsonNumber(r.output, "\n  \"total\"", "reads") +
                  JsonNumber(r.output, "\n  \"total\"", "writes"),
              n);
}

} // namespace
