/* SPDX-License-Identifier: MIT */
/* aioctx-blk, run as a user runs it: errors, reports, and how a run ends. */
#include "tool_blk_support.h"

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace
{

TEST(ToolBlk, FileTooLargeForItsLimitIsAnErrorNotAnEnd)
{
    ScratchDir dir;
    /* The limit is 128 KiB (256 units of 512 bytes in sh), the file is made before it. */
    WriteFile(dir / "disk", "");
    ASSERT_EQ(truncate((dir / "disk").c_str(), 1 << 20), 0);
    CommandResult r = RunCommand("ulimit -f 256; " + kBlkProgram + " --file " + dir / "disk" +
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
                   kBlkProgram + " --file " + dir / "disk" +
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
            args.insert(args.begin(), kBlkProgram);
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
