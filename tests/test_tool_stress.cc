/* SPDX-License-Identifier: MIT */
/* aioctx-stress: a clean run passes, every planted bug is caught, wrong options are refused. */
#include "command.h"
#include "support.h"

#include <algorithm>
#include <sstream>

/* Each run has joined its threads, or ends in the midst of them: ThreadSanitizer need not sleep for
 * a second to see what they still do. */
static CommandResult Stress(const std::string &args)
{
    return RunCommand(std::string("TSAN_OPTIONS=\"$TSAN_OPTIONS:atexit_sleep_ms=0\" ") +
                      STRESS_PROGRAM + " " + args);
}

static std::vector<std::string> PlantNames()
{
    std::istringstream lines(Stress("--list-plants").output);
    std::vector<std::string> names;
    std::string line;

    while (std::getline(lines, line)) {
        names.push_back(line.substr(0, line.find(' ')));
    }
    return names;
}

class ToolStress : public testing::TestWithParam<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(Monitors, ToolStress, testing::ValuesIn(kMonitors), MonitorName);

TEST_P(ToolStress, CleanRunFindsNothing)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    CommandResult r = Stress(std::string("--seconds 3 --seed 1 --monitor ") + GetParam());

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("seed 1\n"), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("no violation"), std::string::npos) << r.output;
}

/* Returns the number that stands before a word of the output; -1: the word is not there. */
static long NumberBefore(const std::string &text, const std::string &word)
{
    size_t end = text.find(word), begin = end;

    while (end != std::string::npos && begin > 0 && isdigit(text[begin - 1])) {
        begin--;
    }
    return end == std::string::npos || begin == end ? -1 : std::stol(text.substr(begin));
}

TEST_P(ToolStress, NoWakeUpIsLost)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    CommandResult r =
        Stress(std::string("--mode notify --seconds 1 --seed 1 --monitor ") + GetParam());

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("no violation"), std::string::npos) << r.output;
    EXPECT_GT(NumberBefore(r.output, " notifies, "), 0) << r.output;
    EXPECT_GT(NumberBefore(r.output, " sleeps, "), 0) << r.output;
}

TEST_P(ToolStress, EveryLostWakeUpThatIsPlantedIsCaught)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    unsigned tried = 0;

    SetTimeLimit(300); /* how soon each is caught depends on how the threads interleave */

    for (const std::string &name : PlantNames()) {
        if (name.compare(0, 5, "wake-") != 0) {
            continue;
        }
        CommandResult r = Stress("--seconds 30 --limit 0.1 --seed 3 --plant " + name +
                                 " --monitor " + GetParam());
        std::string monitor = std::string(" (") + GetParam() + ") by ";

        tried++;
        EXPECT_EQ(r.status, 1) << name << ":\n" << r.output;
        EXPECT_NE(r.output.find(name == "wake-bh-twice" ? "\ntwice: " : "\nlost: "),
                  std::string::npos)
            << name << ":\n"
            << r.output;
        EXPECT_NE(r.output.find(monitor), std::string::npos) << name << ":\n" << r.output;
    }
    EXPECT_GE(tried, 9u);
}

TEST(ToolStressRun, OneTimerForAllThreadsFindsNothing)
{
    CommandResult r = Stress("--seconds 1 --seed 2 --timers 1 --threads 6 --contexts 3");

    EXPECT_EQ(r.status, 0) << r.output;
}

TEST(ToolStressRun, EveryPlantedBugIsCaught)
{
    std::vector<std::string> names = PlantNames();

    EXPECT_GE(names.size(), 26u);
    for (const std::string &name : names) {
        if (name.compare(0, 5, "wake-") == 0) {
            continue; /* EveryLostWakeUpThatIsPlantedIsCaught */
        }
        CommandResult r = Stress("--seconds 20 --seed 3 --plant " + name);

        EXPECT_EQ(r.status, 1) << name << ":\n" << r.output;
        EXPECT_NE(r.output.find("VIOLATION (seed 3)"), std::string::npos) << name << ":\n"
                                                                          << r.output;
    }
}

/* What is caught is what was planted, where the oracle can tell it apart. */
TEST(ToolStressRun, ViolationsAreNamedForWhatTheyAre)
{
    const std::pair<const char *, const char *> expected[] = {
        { "early --mix mod=1", "\nearly: " },
        { "del-sync-no-wait --mix mod=4,del-sync=1", "\ndel-sync: " },
        { "touch-deinit --mix embed=1", "\ntouch-deinit: " },
        { "range-early --mix range=1", "\nearly: " },
        { "forward-drift --mix forward=1", "\nresult: " },
        { "disable-no-wait --mix mod=8,disable=1", "\ndisabled: " },
        { "stop-ignored --mix stop=1", "\nstopped: " },
        { "walk-misses --mix walk=1", "\nwalk: " },
        { "deadline-late --mix deadline=1", "\ndeadline: " },
        { "notify-skipped --mix lists=1", "\nnotify: " },
        { "notify-freed --mix lists=1", "\nnotify-freed: " },
        { "context-lost --mix contexts=1", "\ncontexts: " },
    };

    for (const auto &e : expected) {
        bool named = false;
        CommandResult r;

        /* What a planted bug breaks first depends on how the threads interleave. */
        for (int seed = 1; seed <= 20 && !named; seed++) {
            r = Stress("--seconds 20 --seed " + std::to_string(seed) + " --plant " + e.first);
            ASSERT_EQ(r.status, 1) << e.first << ":\n" << r.output;
            named = r.output.find(e.second) != std::string::npos;
        }
        EXPECT_TRUE(named) << e.first << ":\n" << r.output;
    }
}

/* Each operation works by itself. */
TEST(ToolStressRun, EveryOperationOfTheMixRuns)
{
    for (const char *op :
         { "mod", "anticipate", "range", "forward", "del", "del-sync", "free", "embed", "read",
           "walk", "deadline", "disable", "stop", "lists", "contexts" }) {
        CommandResult r = Stress(std::string("--seconds 0.1 --seed 4 --mix ") + op + "=1");

        EXPECT_EQ(r.status, 0) << op << ":\n" << r.output;
    }
    for (const std::string op :
         { "notify", "bh", "event", "oneshot", "idle", "timer", "fd", "remove", "signal" }) {
#ifdef __SANITIZE_THREAD__
        if (op == "signal") {
            continue; /* ThreadSanitizer holds signals back while a thread waits for its ring */
        }
#endif
        CommandResult r =
            Stress(std::string("--mode notify --monitor all --seconds 0.1 --mix ") + op + "=1");

        EXPECT_EQ(r.status, 0) << op << ":\n" << r.output;
        for (const char *monitor : { " io_uring ", " epoll ", " ppoll " }) {
            EXPECT_NE(r.output.find(monitor), std::string::npos) << op << ":\n" << r.output;
        }
    }
}

TEST(ToolStressRun, InterruptStopsWithTheSummary)
{
    CommandResult r = RunCommand(std::string("timeout --preserve-status -s INT 2 ") +
                                 STRESS_PROGRAM + " --seconds 100");

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("interrupted"), std::string::npos) << r.output;
}

TEST(ToolStressOptions, WrongOnesGetOneLineAndStatus2)
{
    const char *wrong[] = { "--seconds abc",
                            "--seconds -1",
                            "--seed x",
                            "--threads 0",
                            "--threads 31",
                            "--contexts 0",
                            "--timers 0",
                            "--monitor kqueue",
                            "--mix mod",
                            "--mix fly=1",
                            "--mix mod=-1",
                            "--mix mod=0",
                            "--plant none",
                            "extra",
                            "--mode fly",
                            "--limit 0",
                            "--mix notify=1",
                            "--mode notify --mix mod=1",
                            "--mode timers --plant wake-skipped",
                            "--mode notify --plant lost",
                            "--mode notify --cpus 0",
                            "--unknown",
                            "-Z",
                            "--seed",
                            "-s" };

    for (const char *args : wrong) {
        CommandResult r = Stress(args);

        EXPECT_EQ(r.status, 2) << args;
        EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << args << ":\n"
                                                                         << r.output;
        EXPECT_EQ(r.output.find("aioctx-stress: "), 0u) << args << ":\n" << r.output;
    }
}

/* Status 1 is for violations. */
TEST(ToolStressOptions, WhatKeepsItFromRunningIsNoViolation)
{
    for (const char *mode : { "timers", "notify" }) {
        CommandResult r = RunCommand(
            std::string("AIOCTX_STALL_MS=soon " STRESS_PROGRAM " --seconds 1 --mode ") + mode);

        EXPECT_EQ(r.status, 2) << mode;
        EXPECT_NE(r.output.find("AIOCTX_STALL_MS is 'soon'"), std::string::npos) << r.output;
        EXPECT_EQ(r.output.find("cannot start"), std::string::npos) << r.output;
    }
    CommandResult r = Stress("--seconds 1 --cpus 8000");
    EXPECT_EQ(r.status, 2);
    EXPECT_NE(r.output.find("IOThreadOptions.cpus is '8000'"), std::string::npos) << r.output;
}

TEST(ToolStressOptions, HelpSaysWhatASeedRepeats)
{
    CommandResult r = Stress("--help");

    EXPECT_EQ(r.status, 0);
    EXPECT_NE(r.output.find("not\n                     repeat how the threads interleave"),
              std::string::npos)
        << r.output;
}
