/* SPDX-License-Identifier: MIT */
/* The program aioctx-nbd as a test's fixture. */
#include "nbd_raw.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <regex>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* How long a server may take to come and to go; only one that hangs does. */
static const double kLimit_s = 50;

static bool Exists(const std::string &path)
{
    struct stat st;

    return stat(path.c_str(), &st) == 0;
}

NbdServer::NbdServer(const std::vector<std::string> &args)
{
    Start start;

    start.args = args;
    Spawn(start);
}

NbdServer::NbdServer(const Start &start)
{
    Spawn(start);
}

NbdServer::~NbdServer()
{
    if (pid_ > 0) {
        Stop();
    }
}

/* In the child: nothing but system calls. */
[[noreturn]] static void Exec(const NbdServer::Start &start, char **argv, const char *log,
                              pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that crashes leaves no server behind */
    if (getppid() != parent) {
        _exit(127);
    }
    int null_fd = open("/dev/null", O_RDWR);
    int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(start.stdin_fd >= 0 ? start.stdin_fd : null_fd, 0);
    dup2(start.stdin_fd >= 0 ? start.stdin_fd : log_fd, 1);
    dup2(log_fd, 2);
    if (start.listen_fd >= 0) {
        char pid[32];
        int n = 0;

        for (pid_t p = getpid(); p; p /= 10) {
            n++;
        }
        pid[n] = '\0';
        for (pid_t p = getpid(); p; p /= 10) {
            pid[--n] = static_cast<char>('0' + p % 10);
        }
        setenv("LISTEN_PID", pid, 1);
        setenv("LISTEN_FDS", "1", 1);
        if (start.listen_fd == 3) {
            fcntl(3, F_SETFD, 0);
        } else {
            dup2(start.listen_fd, 3);
        }
    }
    execvp(argv[0], argv);
    _exit(127);
}

/* Whether somebody serves there.  The one who asks leaves as the protocol wants it. */
static bool Answers(const std::string &path)
{
    int fd = NbdClient::ConnectUnix(path);

    if (fd < 0) {
        return false;
    }
    NbdClient probe(fd);
    probe.SetQuiet(true);
    probe.Greet();
    return probe.OptionType(nbd::OPT_ABORT) == nbd::REP_ACK;
}

void NbdServer::Spawn(const Start &start)
{
    std::vector<std::string> args = start.prefix;
    std::vector<char *> argv;

    path_ = start.path.empty() ? dir_ / "s" : start.path;
    args.push_back(NBD_PROGRAM);
    args.insert(args.end(), start.args.begin(), start.args.end());
    if (start.unix_socket) {
        args.insert(args.end(), { "--unix", path_ });
    }
    for (std::string &a : args) {
        argv.push_back(&a[0]);
    }
    argv.push_back(nullptr);
    std::string log = dir_ / "log";
    pid_t parent = getpid();
    pid_ = fork();
    if (pid_ == 0) {
        Exec(start, argv.data(), log.c_str(), parent);
    }
    if (!start.unix_socket) {
        return;
    }
    bool ready =
        WaitUntil([&] { return !Running() || (Exists(path_) && Answers(path_)); }, kLimit_s);
    EXPECT_TRUE(ready && Running()) << "the server did not start:\n" << Log();
}

std::string NbdServer::Uri(const std::string &name) const
{
    return "nbd+unix:///" + name + "?socket=" + path_;
}

std::string NbdServer::Log() const
{
    return Exists(dir_ / "log") ? ReadFile(dir_ / "log") : "";
}

size_t NbdServer::LogLines() const
{
    std::string log = Log();

    return static_cast<size_t>(std::count(log.begin(), log.end(), '\n'));
}

bool NbdServer::Running()
{
    siginfo_t info = {};

    return pid_ > 0 &&
           waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

/* The number behind @key in /proc/PID/status; -1 without one. */
static long StatusNumber(pid_t pid, const std::string &key)
{
    std::ifstream in("/proc/" + std::to_string(pid) + "/status");
    std::string line;

    while (std::getline(in, line)) {
        if (line.rfind(key + ":", 0) == 0) {
            return atol(line.c_str() + key.size() + 1);
        }
    }
    return -1;
}

long NbdServer::RssKb() const
{
    return StatusNumber(pid_, "VmRSS");
}

int NbdServer::Threads() const
{
    return static_cast<int>(StatusNumber(pid_, "Threads"));
}

int NbdServer::Fds() const
{
    DIR *dir = opendir(("/proc/" + std::to_string(pid_) + "/fd").c_str());
    int n = 0;

    while (dir && readdir(dir)) {
        n++;
    }
    if (dir) {
        closedir(dir);
    }
    return n - 2;
}

int NbdServer::TcpPort()
{
    std::smatch found;
    std::string log;
    std::regex wanted("127\\.0\\.0\\.1:([1-9][0-9]*)");

    EXPECT_TRUE(WaitUntil(
        [&] {
            log = Log();
            return std::regex_search(log, found, wanted) || !Running();
        },
        kLimit_s));
    if (found.empty()) {
        ADD_FAILURE() << "no port is named:\n" << log;
        return 0;
    }
    return atoi(found[1].str().c_str());
}

void NbdServer::CheckLog() const
{
    std::string log = Log();

    for (const char *bad :
         { "Sanitizer", "runtime error:", "Assertion", "aborted", "core dumped" }) {
        if (log.find(bad) != std::string::npos) {
            ADD_FAILURE() << "the server's log:\n" << log;
            return;
        }
    }
}

int NbdServer::Wait()
{
    int status = 0;
    pid_t got = 0;

    if (pid_ <= 0) {
        return -1;
    }
    bool ended = WaitUntil(
        [&] {
            got = waitpid(pid_, &status, WNOHANG);
            return got != 0;
        },
        kLimit_s);
    if (!ended) {
        ADD_FAILURE() << "the server does not end:\n" << Log();
        Kill();
        return -1;
    }
    pid_ = -1;
    CheckLog();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void NbdServer::Stop(int signal)
{
    if (pid_ <= 0) {
        return;
    }
    EXPECT_TRUE(Running()) << "the server has ended by itself:\n" << Log();
    kill(pid_, signal);
    EXPECT_EQ(Wait(), 0) << "the server's log:\n" << Log();
}

void NbdServer::Kill()
{
    if (pid_ > 0) {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }
}
