/* SPDX-License-Identifier: MIT */
/* What the tests of the NBD client share: servers, and requests in flight. */
#ifndef TESTS_NBD_SUPPORT_H
#define TESTS_NBD_SUPPORT_H

#include "block_support.h"
#include "command.h"

extern "C" {
#include "tools/conformance.h"
extern const BlockDriver blk_nbd_driver;
}

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

constexpr int64_t kMs = 1000000;

static inline int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static inline bool HaveNbdkit()
{
    static bool have = RunCommand("command -v nbdkit").status == 0;

    return have;
}

static inline bool HasSocket(const std::string &path)
{
    sockaddr_un addr = {};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sun_family = AF_UNIX;
    strncpy(addr.sun_path, path.c_str(), sizeof(addr.sun_path) - 1);
    bool works = connect(fd, reinterpret_cast<sockaddr *>(&addr), sizeof(addr)) == 0;
    close(fd);
    return works;
}

/* An nbdkit of its own. */
class Server
{
public:
    explicit Server(const std::string &socket) : socket_(socket)
    {
    }
    ~Server()
    {
        Kill();
    }
    /* Starts it, and waits until it can be reached. */
    void Start(std::vector<std::string> args)
    {
        unlink(socket_.c_str());
        Spawn({ "-U", socket_ }, std::move(args));
        WaitUntil([&] { return HasSocket(socket_) || !Runs(); });
        ASSERT_TRUE(Runs()) << "nbdkit has ended";
    }
    void Spawn(std::vector<std::string> where, std::vector<std::string> args)
    {
        std::vector<std::string> all = { "nbdkit", "-f", "--exit-with-parent" };
        std::vector<char *> argv;

        all.insert(all.end(), where.begin(), where.end());
        all.insert(all.end(), args.begin(), args.end());
        for (std::string &arg : all) {
            argv.push_back(&arg[0]);
        }
        argv.push_back(nullptr);
        ASSERT_EQ(posix_spawnp(&pid_, "nbdkit", nullptr, nullptr, argv.data(), environ), 0);
    }
    void Kill()
    {
        if (pid_ > 0) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
            pid_ = -1;
        }
    }
    void Stop()
    {
        int status;

        kill(pid_, SIGSTOP);
        ASSERT_EQ(waitpid(pid_, &status, WUNTRACED), pid_);
        ASSERT_TRUE(WIFSTOPPED(status));
    }
    void Continue()
    {
        kill(pid_, SIGCONT);
    }
    bool Runs()
    {
        if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) != 0) {
            pid_ = -1;
        }
        return pid_ > 0;
    }

private:
    std::string socket_;
    pid_t pid_ = -1;
};

/* With more for a connection nbdkit 1.32 may abort, by an assertion, when a client that has cancelled
 * requests leaves. */
const char *const kOneThread = "--threads=1";

/* On each monitor, with a server that takes several connections and with one that does not. */
class NbdClient : public testing::TestWithParam<std::tuple<const char *, bool>>
{
protected:
    static void SetUpTestSuite()
    {
        static int registered = blk_driver_register(&blk_nbd_driver);

        ASSERT_EQ(registered, 0);
    }
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(Monitor());
        if (!HaveNbdkit()) {
            GTEST_SKIP() << "nbdkit is not installed";
        }
    }
    static const char *Monitor()
    {
        return std::get<0>(GetParam());
    }
    static bool Several()
    {
        return std::get<1>(GetParam());
    }
    std::string Socket() const
    {
        return dir_.Path("s");
    }
    std::string Disk() const
    {
        return dir_.Path("disk");
    }
    std::string Spec(const std::string &more = "") const
    {
        return "nbd+unix:///?socket=" + Socket() + more;
    }
    static std::vector<std::string> With(std::vector<std::string> args)
    {
        if (!Several()) {
            args.insert(args.begin(), "--filter=multi-conn");
            args.push_back("multi-conn-mode=disable");
        }
        return args;
    }
    /* Serves a file, which outlives the server. */
    void StartFile(Server &server, const char *size = "8M")
    {
        ASSERT_EQ(RunCommand("truncate -s " + std::string(size) + " " + Disk()).status, 0);
        server.Start(With({ "file", Disk() }));
    }
    void Conforms(const std::string &spec)
    {
        char *text = nullptr;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);
        ConformanceOptions opts = {};

        opts.monitor = Monitor();
        opts.seed = 1;
        int failed = conformance_run(spec.c_str(), &opts, out);

        fclose(out);
        EXPECT_EQ(failed, 0) << spec << "\n" << text;
        EXPECT_EQ(std::string(text).find("SKIP the backend is too small"), std::string::npos);
        free(text);
    }

    TempDir dir_;
};

using MonitorAndConnections = std::tuple<const char *, bool>;

#define INSTANTIATE_NBD_CLIENT() \
    INSTANTIATE_TEST_SUITE_P( \
        Monitors, NbdClient, \
        testing::Combine(testing::ValuesIn(kMonitorsOfSlowSuites), testing::Bool()), \
        [](const testing::TestParamInfo<MonitorAndConnections> &param) { \
            return std::string(std::get<0>(param.param)) + \
                   (std::get<1>(param.param) ? "_several" : "_one"); \
        })

/* A read or a write in flight, with a buffer of its own. */
struct Request {
    Request(size_t bytes, int fill) : buf(bytes, fill)
    {
    }
    void Read(const Blk &blk, int64_t at, const BlkReqOpts *opts = nullptr)
    {
        acb = blk_aio_preadv_opts(blk.get(), at, &buf.qiov, BdrvRequestFlags(0), Ended, &end, opts);
        ASSERT_NE(acb, nullptr);
    }
    void Write(const Blk &blk, int64_t at, const BlkReqOpts *opts = nullptr)
    {
        acb =
            blk_aio_pwritev_opts(blk.get(), at, &buf.qiov, BdrvRequestFlags(0), Ended, &end, opts);
        ASSERT_NE(acb, nullptr);
    }
    bool Ended_() const
    {
        return end.calls > 0;
    }

    Buffer buf;
    Result end;
    BlockAIOCB *acb = nullptr;
};

static inline BlkReqOpts In(int64_t ms)
{
    BlkReqOpts opts = {};

    opts.deadline_ns = Now() + ms * kMs;
    return opts;
}

#endif
