/* SPDX-License-Identifier: MIT */
/* aioctx-top: what it shows of this very process, and what it says where it cannot. */
#include "command.h"
#include "loop_support.h"

#include <aioctx/main_loop.h>
#include <aioctx/observe.h>

#include <cmath>
#include <csignal>
#include <regex>
#include <sstream>
#include <sys/wait.h>
#include <thread>

static CommandResult Top(const std::string &args)
{
    return RunCommand(std::string(TOP_PROGRAM) + " " + args);
}

static std::string Me()
{
    return std::to_string(getpid());
}

static std::vector<std::string> Lines(const std::string &text)
{
    std::istringstream in(text);
    std::vector<std::string> lines;
    std::string line;

    while (std::getline(in, line)) {
        lines.push_back(line);
    }
    return lines;
}

/* The object of the context whose thread is @name, from JSON with one member a line. */
static std::string ContextOf(const std::string &json, const std::string &name)
{
    size_t at = json.find("\"thread\": \"" + name + "\"");

    if (at == std::string::npos) {
        ADD_FAILURE() << "no thread '" << name << "' in " << json;
        return "";
    }
    size_t begin = json.rfind("\"slot\":", at), end = json.find("\"slot\":", at);
    return json.substr(begin, end == std::string::npos ? end : end - begin);
}

/* The number of a member that comes after @after. */
static double Number(const std::string &json, const std::string &after, const std::string &member)
{
    size_t at = json.find("\"" + after + "\"");
    at = at == std::string::npos ? at : json.find("\"" + member + "\": ", at);

    if (at == std::string::npos) {
        ADD_FAILURE() << "no " << after << "." << member << " in " << json;
        return NAN;
    }
    return strtod(json.c_str() + at + member.size() + 4, nullptr);
}

class ToolTop : public OnEachMonitor
{
};
ON_EACH_MONITOR(ToolTop);

TEST_P(ToolTop, ShowsEachContextWithItsThread)
{
    ScopedIOThread a(GetParam(), "top-a"), b(GetParam(), "top-b");

    a.Run([] {});
    b.Run([] {});
    CommandResult r = Top("--once -i 50ms " + Me());
    ASSERT_EQ(r.status, 0) << r.output;
    std::vector<std::string> lines = Lines(r.output);
    ASSERT_EQ(lines.size(), 4u) << r.output;
    EXPECT_NE(lines[0].find("test_tool_top (" + Me() + "): 2 contexts, "), std::string::npos)
        << lines[0];
    EXPECT_EQ(lines[1].substr(0, 38), "THREAD              TID MONITOR   CPU%");
    for (int i = 0; i < 2; i++) {
        std::smatch m;
        std::regex row(std::string("top-[ab] +([0-9]+) ") + GetParam() + " .*");
        EXPECT_TRUE(std::regex_match(lines[2 + i], m, row)) << lines[2 + i];
        EXPECT_EQ(lines[2 + i].size(), lines[1].size()) << r.output;
    }
    EXPECT_EQ(r.output.find('\033'), std::string::npos);
}

TEST_P(ToolTop, JsonHasTheTotalsThatTheCallsTell)
{
    ScopedIOThread io(GetParam(), "top-json");
    AioContextStats stats;

    aio_context_set_histograms(io.ctx(), true);
    aio_context_set_stall_limit(io.ctx(), 3600 * INT64_C(1000000000));
    io.Run([] {});
    for (int i = 0; i < 10; i++) {
        io.Run([&] {
            HeapTimer ts(aio_context_get_timer_list_group(io.ctx()), [] {});
            timer_mod_ns(ts, 0);
            aio_poll(io.ctx(), false);
        });
    }
    WaitUntil([&] { /* it sleeps again */
                    AioContextStats before;
                    aio_context_get_stats(io.ctx(), &before);
                    usleep(20000);
                    aio_context_get_stats(io.ctx(), &stats);
                    return before.iterations == stats.iterations;
    });
    CommandResult r = Top("--once --json -i 20ms " + Me());
    ASSERT_EQ(r.status, 0) << r.output;
    std::string c = ContextOf(r.output, "top-json");
    EXPECT_EQ(Number(r.output, "pid", "pid"), getpid());
    EXPECT_NE(c.find("\"monitor\": \"" + std::string(GetParam()) + "\""), std::string::npos);
    EXPECT_NE(c.find("\"state\": \"running\""), std::string::npos);
    EXPECT_NE(c.find("\"main_loop\": false"), std::string::npos);
    EXPECT_EQ(Number(c, "total", "iterations"), (double)stats.iterations);
    EXPECT_EQ(Number(c, "total", "sleeps"), (double)stats.sleeps);
    EXPECT_EQ(Number(c, "total", "bhs"), (double)stats.bhs);
    EXPECT_EQ(Number(c, "total", "notifies_sent"), (double)stats.notifies_sent);
    EXPECT_EQ(Number(c, "per_second", "iterations"), 0);
    EXPECT_EQ(Number(c, "timer_lateness", "count"), 10);
    EXPECT_GT(Number(c, "timer_lateness", "p50_ns"), 0);
    EXPECT_GE(Number(c, "timer_lateness", "max_ns"), Number(c, "timer_lateness", "p99_ns"));
    EXPECT_EQ(Number(c, "stall_limit_ns", "stall_limit_ns"), 3600e9);
    EXPECT_GE(Number(c, "cpu_ns", "cpu_ns"), 0);
}

TEST_P(ToolTop, RatesAreOfTheInterval)
{
    ScopedIOThread io(GetParam(), "top-rate");
    std::atomic<int> fired{ 0 };
    HeapTimer ts(aio_context_get_timer_list_group(io.ctx()), [&] {
        fired++;
        timer_forward(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME), SCALE_MS);
    });

    aio_context_set_histograms(io.ctx(), true);
    timer_mod_ns(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    int before = fired;
    CommandResult r = Top("--json -n 2 -i 200ms " + Me());
    int after = fired;
    timer_del_sync(ts);
    ASSERT_EQ(r.status, 0) << r.output;
    size_t second = r.output.find("\n{", 1); /* two objects */
    ASSERT_NE(second, std::string::npos) << r.output;
    std::string one = r.output.substr(0, second), two = r.output.substr(second);
    for (const std::string &json : { one, two }) {
        std::string c = ContextOf(json, "top-rate");
        double seconds = Number(json, "seconds", "seconds");
        EXPECT_GE(seconds, 0.2);
        EXPECT_GT(Number(c, "per_second", "timers"), 0);
        EXPECT_LE(Number(c, "per_second", "timers") * seconds, after - before);
        EXPECT_NEAR(Number(c, "per_second", "iterations"), Number(c, "per_second", "timers"),
                    Number(c, "per_second", "timers") * 0.5 + 100);
    }
    EXPECT_GT(Number(two, "total", "timers"), Number(one, "total", "timers"));
    /* The table says how late they were. */
    timer_mod_ns(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    r = Top("--once -i 100ms " + Me());
    timer_del_sync(ts);
    EXPECT_TRUE(std::regex_search(
        r.output, std::regex("top-rate .* [0-9.]+(ns|us|ms|s) +[0-9.]+(ns|us|ms|s) ")))
        << r.output;
}

TEST(ToolTopMain, NewMainAndEndedContextsAreTold)
{
    AioContext *ctx = aio_context_new(nullptr);
    ScopedIOThread io(nullptr, "top-ended");

    ASSERT_EQ(qemu_init_main_loop(nullptr), 0);
    io.Run([] {});
    iothread_stop(io.get());
    iothread_join(io.get());
    CommandResult r = Top("--once -i 10ms " + Me());
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("\n(new)  "), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("\n(ended)"), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("\ntest_tool_top"), std::string::npos) << r.output;
    r = Top("-1j -i 10ms " + Me());
    EXPECT_NE(r.output.find("\"main_loop\": true"), std::string::npos) << r.output;
    qemu_cleanup_main_loop();
    aio_context_unref(ctx);
}

/* A reader beside contexts that come and go all the time. */
TEST(ToolTopMain, ReadsWhileContextsComeAndGo)
{
    std::atomic<bool> stop{ false };
    std::thread churn([&] {
        AioContextOptions opts = {};

        opts.monitor = "ppoll";
        while (!stop) {
            AioContext *ctx[4];
            for (AioContext *&c : ctx) {
                c = aio_context_new(&opts);
            }
            for (AioContext *c : ctx) {
                aio_poll(c, false);
                aio_context_unref(c);
            }
        }
    });

    CommandResult r = Top("-n 20 -i 10ms " + Me());
    stop = true;
    churn.join();
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_GE(Lines(r.output).size(), 59u);
    for (const std::string &line : Lines(r.output)) {
        EXPECT_TRUE(std::regex_match(
            line, std::regex("|test_tool_top .*|THREAD .*|(\\(new\\)|\\(ended\\)|test_tool_top) .*"
                             "ppoll .*")))
            << line;
    }
}

TEST(ToolTopErrors, SayWhatIsWrong)
{
    struct {
        const char *args;
        int status;
        const char *says;
    } cases[] = {
        { "", 2, "the PID of a process is missing" },
        { "1 2", 2, "one PID at a time" },
        { "abc", 2, "'abc' is not the number of a process" },
        { "-- -3", 2, "'-3' is not the number of a process" },
        { "0", 2, "'0' is not the number of a process" },
        { "99999999999", 2, "is not the number of a process" },
        { "-i 1ms 1", 2, "--interval: '1ms' is not a time from 10ms to 1h" },
        { "-i 2 1", 2, "--interval: '2' is not" },
        { "-n 0 1", 2, "--count: '0' is not" },
        { "--frob 1", 2, "option '--frob' is none" },
        { "-5", 2, "option '-5' is none" },
        { "1 -i", 2, "option '-i' needs a value" },
        { "2147483646", 1, "there is no process 2147483646" },
        { "$$", 1, "has no counters of aioctx" }, /* the shell */
        { "--help", 0, "Usage: aioctx-top" },
        { "--version", 0, "aioctx-top 0." },
    };

    for (auto &c : cases) {
        CommandResult r = Top(c.args);
        EXPECT_EQ(r.status, c.status) << c.args << ": " << r.output;
        EXPECT_NE(r.output.find(c.says), std::string::npos) << c.args << ": " << r.output;
        if (c.status) {
            EXPECT_EQ(Lines(r.output).size(), 1u) << r.output;
            EXPECT_EQ(r.output.find("aioctx-top: "), 0u) << r.output;
        }
    }
}

TEST(ToolTopErrors, SayWhenAnotherUsersProcessIsClosed)
{
    if (getuid() != 0) {
        GTEST_SKIP() << "needs root, to be somebody else";
    }
    ScopedIOThread io;
    CommandResult have = RunCommand("command -v setpriv");
    if (have.status) {
        GTEST_SKIP() << "needs setpriv(1)";
    }
    ScratchDir dir;
    std::string copy = dir / "aioctx-top";
    RunCommand("chmod 755 " + dir.path() + "; cp " TOP_PROGRAM " " + copy + "; chmod 755 " + copy);
    CommandResult r = RunCommand("LD_LIBRARY_PATH=" TEST_BUILD_DIR
                                 " setpriv --reuid 65534 --regid 65534 --clear-groups " +
                                 copy + " --once " + Me());
    if (r.output.find("libaioctx") != std::string::npos) {
        GTEST_SKIP() << "nobody may read the build directory: " << r.output;
    }
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.output.find("may not be looked into (Permission denied): run aioctx-top as"),
              std::string::npos)
        << r.output;
}

/* A child of fork() has its parent's file, and says nothing about it. */
TEST(ToolTopErrors, SayThatAChildHasNoneOfItsOwn)
{
    ScopedIOThread io;
    pid_t child = fork();

    if (child == 0) {
        pause();
        _exit(0);
    }
    CommandResult r = Top("--once " + std::to_string(child));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.output.find("is a child of fork()"), std::string::npos) << r.output;
}

/* Runs a program that has contexts, with @env before it, and aioctx-top on it until that has
 * status @until: it may have made none yet. */
static CommandResult TopOf(const std::string &env, const std::string &args, int until)
{
    return RunCommand(env +
                      " " STRESS_PROGRAM
                      " --quiet --seconds 3 --seed 1 --contexts 1 >/dev/null 2>&1 & p=$!; "
                      "for i in $(seq 100); do o=$(timeout 50 " TOP_PROGRAM " " +
                      args + " $p 2>&1); s=$?; [ $s = " + std::to_string(until) +
                      " ] && break; sleep 0.05; done; kill -INT $p 2>/dev/null; wait $p; "
                      "echo \"$o\"; echo status $s");
}

TEST(ToolTopOther, ShowsAnotherProgram)
{
    CommandResult r = TopOf("AIOCTX_HISTOGRAMS=on", "--once -i 100ms", 0);

    EXPECT_NE(r.output.find("status 0"), std::string::npos) << r.output;
    EXPECT_TRUE(
        std::regex_search(r.output, std::regex("aioctx-stress \\([0-9]+\\): [0-9]+ context")))
        << r.output;
}

TEST(ToolTopOther, SaysWhenTheProgramHasItSwitchedOff)
{
    CommandResult r = TopOf("AIOCTX_STATS=off", "--once", 1);

    EXPECT_NE(r.output.find("status 1"), std::string::npos) << r.output;
    EXPECT_TRUE(std::regex_search(r.output, std::regex("has (aioctx, but )?no counters")))
        << r.output;
}

TEST(ToolTopOther, EndsWhenTheProgramDoes)
{
    CommandResult r = TopOf("", "-i 50ms", 0);

    EXPECT_NE(r.output.find("has ended\nstatus 0"), std::string::npos) << r.output;
}

TEST(ToolTopOther, ASignalEndsItBetweenTables)
{
    ScopedIOThread io;
    ScratchDir dir;
    std::string out = dir / "out";

    for (const char *sig : { "INT", "TERM" }) {
        CommandResult r = RunCommand(
            std::string(TOP_PROGRAM) + " -i 50ms " + Me() + " >" + out + " & p=$!; while ! [ -s " +
            out + " ]; do sleep 0.02; done; kill -" + sig + " $p; wait $p; echo status $?");
        EXPECT_EQ(r.output, "status 0\n");
        std::string text = ReadFile(out);
        EXPECT_EQ(text.back(), '\n');
        EXPECT_EQ((Lines(text).size() + 1) % 4, 0u) << text; /* whole tables */
        WriteFile(out, "");
    }
}

/* On a terminal: drawn in place, and cut at its width. */
TEST(ToolTopOther, DrawsInPlaceOnATerminal)
{
    if (RunCommand("command -v script").status) {
        GTEST_SKIP() << "needs script(1)";
    }
    ScopedIOThread io(nullptr, "top-term");
    CommandResult r =
        RunCommand("script -qec 'stty cols 60 rows 20; exec " TOP_PROGRAM " -n 3 -i 50ms " + Me() +
                   "' /dev/null");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("\033[H\033[2J"), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("top-term"), std::string::npos) << r.output;
    for (std::string line : Lines(r.output)) {
        line = std::regex_replace(line, std::regex("\033\\[[0-9]*[A-Z]|\r"), "");
        EXPECT_LE(line.size(), 60u) << line;
    }
}

/* The file is made after the monitor: it takes no fd that a loop would need. */
TEST(ToolTopOther, TheFileTakesNoFdThatALoopNeeds)
{
    auto least = [](const std::string &env) {
        for (int n = 4; n < 40; n++) {
            CommandResult r = RunCommand("ulimit -n " + std::to_string(n) + "; " + env +
                                         " AIOCTX_FDMON=epoll " HELLO_PROGRAM);
            if (r.status == 0) {
                return n;
            }
        }
        return -1;
    };
    int with = least("AIOCTX_STATS=on"), without = least("AIOCTX_STATS=off");

    EXPECT_GT(with, 4);
    EXPECT_EQ(with, without);
}
