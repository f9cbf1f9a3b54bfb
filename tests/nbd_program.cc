/* SPDX-License-Identifier: MIT */
/* The NBD export as a program: how it is reached, when a flush is done, how a connection ends. */
#include "nbd_wire.h"

#include <fcntl.h>
#include <regex>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

using namespace nbd;

namespace
{

class NbdProgram : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
        MakeDisk(Disk(), kMiB, kDiskSeed);
    }
    std::string Disk(const std::string &name = "disk") const
    {
        return dir_.Path(name + ".img");
    }
    /* Arguments for one export, "disk": the file, below @filter. */
    std::vector<std::string> Args(const std::string &filter = "") const
    {
        return { "--monitor", GetParam(), "--export", "disk=" + filter + "file:" + Disk() };
    }

    TempDir dir_;
};

ON_EACH_MONITOR_OF_A_SLOW_SUITE(NbdProgram);

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string> &b)
{
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

/* Greeting, GO and a read. */
void ExpectServes(int connected_fd)
{
    ASSERT_GE(connected_fd, 0);
    NbdClient c(connected_fd);

    c.Greet().Go("disk");
    EXPECT_TRUE(c.Alive(4096, Pattern(4096, 4096, kDiskSeed)));
    c.SendRequest(CMD_DISC, 0, 0);
    EXPECT_TRUE(c.Closed());
}

/* ---- How it is reached ----------------------------------------------------------------------- */

TEST_P(NbdProgram, ServesOnALoopbackPortBesideItsUnixSocket)
{
    NbdServer server(Args() + std::vector<std::string>{ "--listen", "127.0.0.1:0" });
    int port = server.TcpPort();

    ExpectServes(NbdClient::ConnectTcp(port));
    ExpectServes(NbdClient::ConnectUnix(server.path()));
    ExpectServes(NbdClient::ConnectTcp(port));
}

TEST_P(NbdProgram, ServesItsStandardInputAndEndsWithIt)
{
    for (bool disconnect : { true, false }) {
        int fds[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        NbdServer::Start start;
        start.args = Args() + std::vector<std::string>{ "--stdio" };
        start.unix_socket = false;
        start.stdin_fd = fds[1];
        NbdServer server(start);

        close(fds[1]);
        {
            NbdClient c(fds[0]);
            c.Greet().Go("disk");
            EXPECT_TRUE(c.Alive(0, Pattern(0, kMiB, kDiskSeed)));
            if (disconnect) {
                c.SendRequest(CMD_DISC, 0, 0);
                EXPECT_TRUE(c.Closed());
            }
        }
        EXPECT_EQ(server.Wait(), 0);
    }
}

/* A listening socket at @path; -1 and a failure of the test when there can be none. */
static int ListenUnix(const std::string &path)
{
    struct sockaddr_un addr = {};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sun_family = AF_UNIX;
    strncpy(addr.sun_path, path.c_str(), sizeof(addr.sun_path) - 1);
    if (bind(fd, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)) != 0 ||
        listen(fd, 16) != 0) {
        ADD_FAILURE() << path << ": " << strerror(errno);
        close(fd);
        return -1;
    }
    return fd;
}

TEST_P(NbdProgram, ServesASocketThatItWasStartedWith)
{
    ScratchDir dir;
    std::string path = dir / "activated";
    int fd = ListenUnix(path);

    ASSERT_GE(fd, 0);
    NbdServer::Start start;
    start.args = Args();
    start.unix_socket = false;
    start.listen_fd = fd;
    NbdServer server(start);
    close(fd);
    /* The socket takes connections before the program is up: that is what it is for. */
    ExpectServes(NbdClient::ConnectUnix(path));
    ExpectServes(NbdClient::ConnectUnix(path));
    server.Stop();
    struct stat st;
    EXPECT_EQ(stat(path.c_str(), &st), 0) << "the socket is not ours to remove";
}

/* Nobody can connect to it any more, and it is readable for ever. */
TEST_P(NbdProgram, ASocketThatIsShutDownDoesNotKeepItBusy)
{
    ScratchDir dir;
    std::string path = dir / "activated";
    int fd = ListenUnix(path);

    ASSERT_GE(fd, 0);
    NbdServer::Start start;
    start.args = Args();
    start.listen_fd = fd;
    NbdServer server(start);
    ASSERT_EQ(shutdown(fd, SHUT_RDWR), 0);
    close(fd);
    EXPECT_TRUE(WaitUntil([&] { return server.Log().find("was shut down") != std::string::npos; }))
        << "it tries again and again";
    ExpectServes(NbdClient::ConnectUnix(server.path()));
}

TEST_P(NbdProgram, ItsSocketGoesWithItAndALeftOverOneIsReplaced)
{
    ScratchDir dir;
    NbdServer::Start start;
    struct stat st;

    start.args = Args();
    start.path = dir / "sock";
    {
        NbdServer killed(start);
        killed.Kill();
    }
    EXPECT_EQ(stat(start.path.c_str(), &st), 0) << "left over";
    /* The kernel may take a moment to close what a ring of the dead one still holds. */
    EXPECT_TRUE(WaitUntil([&] {
        int fd = NbdClient::ConnectUnix(start.path);
        close(fd);
        return fd < 0;
    }));
    NbdServer server(start);
    ExpectServes(NbdClient::ConnectUnix(start.path));
    server.Stop();
    EXPECT_NE(stat(start.path.c_str(), &st), 0) << "removed";
}

TEST_P(NbdProgram, ReadOnlyHoldsForAllExports)
{
    NbdServer server(Args() + std::vector<std::string>{ "--read-only" });
    NbdSession s(server.path(), "disk");

    EXPECT_TRUE(s.info.flags & READ_ONLY);
    EXPECT_EQ(s->Write(0, std::string(4096, 'x')).error, E_PERM);
    EXPECT_TRUE(s->Alive(0, Pattern(0, kMiB, kDiskSeed)));
}

TEST_P(NbdProgram, AnInterruptEndsItAsWell)
{
    NbdServer server(Args());
    NbdSession s(server.path(), "disk");

    server.Stop(SIGINT);
}

/* ---- Flushes --------------------------------------------------------------------------------- */

/* A flush that the disk refuses shows who asks it for one. */
TEST_P(NbdProgram, AFlushCoversTheWritesOfOtherConnections)
{
    NbdServer server(Args("blkdebug:rules=flush+error=EIO,") +
                     std::vector<std::string>{ "--threads", "2" });
    NbdSession a(server.path(), "disk"), b(server.path(), "disk");

    ASSERT_TRUE(a.info.flags & CAN_MULTI_CONN);
    EXPECT_EQ(a->Write(0, std::string(4096, 'a')).error, OK);
    EXPECT_EQ(b->Flush(), E_IO) << "the write of the other connection is flushed";
    EXPECT_TRUE(Same(b->Read(0, 4096).data, std::string(4096, 'a')));
    EXPECT_EQ(b->Request(CMD_TRIM, 8192, 4096, FUA).error, E_IO);
    EXPECT_EQ(b->Request(CMD_WRITE_ZEROES, 8192, 4096, FUA).error, E_IO);
    EXPECT_EQ(b->Request(CMD_TRIM, 8192, 4096).error, OK);
    EXPECT_EQ(b->Request(CMD_WRITE_ZEROES, 8192, 4096).error, OK);
}

/* What the file driver asks of the kernel, where its calls can be seen: on the thread pool. */
TEST(NbdProgramCalls, FuaAndFlushAreDurable)
{
    if (kSanitized) {
        GTEST_SKIP() << "the leak checker cannot run below strace";
    }
    if (RunCommand("command -v strace").status != 0 ||
        RunCommand("strace -o /dev/null true").status != 0) {
        GTEST_SKIP() << "strace is not installed, or may not trace";
    }
    TempDir dir;
    ScratchDir out;
    MakeDisk(dir.Path("disk.img"), kMiB, kDiskSeed);
    NbdServer::Start start;
    /* -D: the tracer is the child's child, so that signals reach the program itself. */
    start.prefix = { "strace",
                     "-D",
                     "-f",
                     "-o",
                     out / "calls",
                     "-e",
                     "trace=pwritev2,pwrite64,pwritev,fdatasync,fsync" };
    start.args = { "--monitor", "ppoll", "--export", "disk=file:" + dir.Path("disk.img") };
    std::string end;
    {
        NbdServer server(start);
        NbdSession s(server.path(), "disk");
        end = std::to_string(server.pid()) + " +\\+\\+\\+ exited";
        EXPECT_EQ(s->Write(40960, std::string(4096, 'p')).error, OK);
        EXPECT_EQ(s->Write(81920, std::string(4096, 'f'), FUA).error, OK);
        EXPECT_EQ(s->Write(122880, std::string(4096, 'p')).error, OK);
        EXPECT_EQ(s->Flush(), OK);
    }
    std::string calls;
    EXPECT_TRUE(WaitUntil([&] {
        calls = ReadFile(out / "calls");
        return std::regex_search(calls, std::regex(end));
    })) << calls;
    size_t plain = calls.find(", 40960"), fua = calls.find(", 81920"),
           last = calls.find(", 122880");
    ASSERT_TRUE(plain < fua && fua < last && last != std::string::npos) << calls;
    std::regex durable("RWF_DSYNC|sync\\(");
    EXPECT_FALSE(std::regex_search(calls.substr(plain, fua - plain), durable)) << calls;
    EXPECT_TRUE(std::regex_search(calls.substr(fua, last - fua), durable)) << calls;
    EXPECT_TRUE(std::regex_search(calls.substr(last), std::regex("sync\\("))) << calls;
}

/* ---- How a connection ends ------------------------------------------------------------------- */

TEST_P(NbdProgram, ADisconnectFinishesWhatIsInFlight)
{
    NbdServer server(Args("blkdebug:rules=any+delay=50ms,"));

    for (NbdSession::Mode mode : { NbdSession::SIMPLE, NbdSession::STRUCTURED }) {
        NbdSession s(server.path(), "disk", mode);
        std::string data = Pattern(0, 4096, 50 + mode);

        for (uint64_t i = 0; i < 16; i++) {
            s->SendRequest(CMD_WRITE, i * 4096, 4096, 0, data);
            s->SendRequest(CMD_READ, 512 * kKiB + i * 4096, 4096);
        }
        s->SendRequest(CMD_DISC, 0, 0);
        for (int i = 0; i < 32; i++) {
            NbdReply r = s->RecvReply();
            ASSERT_TRUE(r.came);
            EXPECT_EQ(r.error, OK);
        }
        EXPECT_TRUE(s->Closed());
        std::string bytes = ReadFile(Disk());
        for (size_t i = 0; i < 16; i++) {
            EXPECT_TRUE(Same(bytes.substr(i * 4096, 4096), data)) << i;
        }
    }
}

TEST_P(NbdProgram, ASlowRequestHoldsUpNoOther)
{
    /* What never ends is given up after a while, with its connection or with the server. */
    NbdServer server(Args("blkdebug:rules=read+to=4k+never,") +
                     std::vector<std::string>{ "--shutdown-timeout", "200ms" });
    NbdSession s(server.path(), "disk");

    s->SendRequest(CMD_READ, 0, 4096);
    for (uint64_t i = 1; i < 50; i++) {
        uint64_t cookie = s->SendRequest(CMD_READ, i * 4096, 4096);
        NbdReply r = s->RecvReply();
        ASSERT_TRUE(r.came);
        EXPECT_EQ(r.cookie, cookie);
    }
    EXPECT_EQ(s->InFlight(), 1u);
}

TEST_P(NbdProgram, RequestsThatNeverEndGoWithTheirConnections)
{
    NbdServer server(Args("blkdebug:rules=any+from=512k+never,") +
                     std::vector<std::string>{ "--stall-timeout", "300ms" });
    int fds = server.Fds();

    for (int i = 0; i < 10; i++) {
        NbdSession s(server.path(), "disk");
        s->SendRequest(CMD_READ, 512 * kKiB, 65536);
        s->SendRequest(CMD_WRITE, 640 * kKiB, 4096, 0, std::string(4096, 'n'));
        s->SendRequest(CMD_TRIM, 700 * kKiB, 4096);
        EXPECT_TRUE(s->Alive(0, Pattern(0, 4096, kDiskSeed)));
        if (i % 2) {
            s->SendRequest(CMD_DISC, 0, 0); /* finishes what is in flight, but not for ever */
        }
    }
    EXPECT_TRUE(WaitUntil([&] { return server.Fds() <= fds; })) << server.Fds() << " of " << fds;
    ExpectServes(NbdClient::ConnectUnix(server.path()));
}

/* ---- The command line ------------------------------------------------------------------------ */

CommandResult RunNbd(const std::string &args)
{
    return RunCommand(std::string(NBD_PROGRAM) + " " + args);
}

TEST(NbdCommandLine, HelpAndVersion)
{
    CommandResult r = RunNbd("--help");

    EXPECT_EQ(r.status, 0);
    for (const char *option :
         { "export", "unix", "listen", "stdio", "threads", "max-connections", "handshake-timeout",
           "max-in-flight", "read-only", "monitor", "help", "version" }) {
        EXPECT_NE(r.output.find(std::string("--") + option), std::string::npos) << option;
    }
    EXPECT_EQ(RunNbd("--version").status, 0);
}

TEST(NbdCommandLine, ASocketThatSomeoneServesIsNotTakenOver)
{
    TempDir dir;
    MakeDisk(dir.Path("disk.img"), kMiB, kDiskSeed);
    MakeDisk(dir.Path("other.img"), kMiB, 77);
    NbdServer server({ "--export", "disk=file:" + dir.Path("disk.img") });
    CommandResult r =
        RunCommand(std::string(NBD_PROGRAM) + " --export disk=file:" + dir.Path("other.img") +
                   " --unix " + server.path());

    EXPECT_NE(r.status, 0);
    EXPECT_NE(r.output.find(server.path()), std::string::npos) << r.output;
    ExpectServes(NbdClient::ConnectUnix(server.path()));
}

/* A file that is opened in the place of standard error would be written the log. */
TEST(NbdCommandLine, ClosedStandardDescriptorsHarmNoExport)
{
    TempDir dir;
    std::string script = "exec \"$0\" \"$@\" <&- >&- 2>&-";
    NbdServer::Start start;

    start.prefix = { "sh", "-c", script };
    for (const char *name : { "a", "b", "c", "d" }) {
        MakeDisk(dir.Path(name), kMiB, kDiskSeed);
        start.args.insert(start.args.end(),
                          { "--export", std::string(name) + "=file:" + dir.Path(name) });
    }
    NbdServer server(start);
    server.Stop();
    for (const char *name : { "a", "b", "c", "d" }) {
        EXPECT_TRUE(Same(ReadFile(dir.Path(name)), Pattern(0, kMiB, kDiskSeed))) << name;
    }
}

TEST(NbdCommandLine, WhatIsWrongIsNamed)
{
    TempDir dir;
    std::string export_arg = "--export disk=null:size=1M ";
    struct {
        std::string args, part;
    } const cases[] = {
        { "--nonsense", "nonsense" },
        { export_arg, "--unix" }, /* nowhere to listen */
        { "--unix " + dir.Path("s"), "--export" },
        { "--export disk --unix " + dir.Path("s"), "NAME=SPEC" },
        { "--export disk=nosuchdriver:x --unix " + dir.Path("s"), "nosuchdriver" },
        { "--export disk=file:/does/not/exist --unix " + dir.Path("s"), "/does/not/exist" },
        { export_arg + export_arg + "--unix " + dir.Path("s"), "disk" },
        { export_arg + "--unix " + dir.Path("s") + " --threads 0", "--threads" },
        { export_arg + "--unix " + dir.Path("s") + " --max-connections -1", "--max-connections" },
        { export_arg + "--unix " + dir.Path("s") + " --handshake-timeout soon",
          "--handshake-timeout" },
        { export_arg + "--unix " + dir.Path("s") + " --max-in-flight 1q", "--max-in-flight" },
        { export_arg + "--unix " + dir.Path("s") + " --monitor kqueue", "io_uring, epoll" },
        { export_arg + "--unix /does/not/exist/s", "/does/not/exist/s" },
        { export_arg + "--unix " + dir.Path(std::string(200, 'p')), "ppp" },
        { export_arg + "--listen nowhere", "--listen" },
        { export_arg + "--listen 127.0.0.1:65536", "up to 65535" },
    };

    for (const auto &t : cases) {
        CommandResult r = RunNbd(t.args);
        EXPECT_NE(r.status, 0) << t.args;
        EXPECT_LT(r.status, 128) << t.args;
        EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << t.args << "\n"
                                                                         << r.output;
        EXPECT_NE(r.output.find(t.part), std::string::npos) << t.args << "\n" << r.output;
    }
}

TEST(NbdCommandLine, WithoutGnutlsTlsIsRefused)
{
    TempDir dir;

    if (TEST_TLS) {
        GTEST_SKIP() << "this build has TLS";
    }
    CommandResult r = RunNbd("--export disk=null:size=1M --unix " + dir.Path("s") + " --tls-psk x");
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.output.find("this build has no TLS"), std::string::npos) << r.output;
}

} // namespace
