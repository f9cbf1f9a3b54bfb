/* SPDX-License-Identifier: MIT */
/* Parts of the NBD server that cannot be seen well from outside; test_nbd_wire has the rest. */
#include "nbd_wire.h"

extern "C" {
#include "nbd/error.h"
#include "nbd/listen.h"
#include "nbd/log.h"
#include "nbd/pool.h"
#include "nbd/stream.h"
}

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <set>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

/* ---- Buffers --------------------------------------------------------------------------------- */

TEST(NbdPool, RoomIsEnoughAndNoMoreThanFourTimesAsMuch)
{
    for (size_t bytes : { 1u, 4096u, 4097u, 65536u, 65537u, 1u << 20, (1u << 20) + 1, 32u << 20 }) {
        EXPECT_GE(nbd_pool_room(bytes), bytes);
        EXPECT_LE(nbd_pool_room(bytes), std::max<size_t>(4096, 4 * bytes));
    }
}

TEST(NbdPool, BuffersAreUsedAgainAndFewAreKept)
{
    NbdPool pool = {};
    std::vector<void *> bufs;

    for (int i = 0; i < 1000; i++) {
        void *buf = nbd_pool_get(&pool, 40000);
        ASSERT_NE(buf, nullptr);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(buf) % 4096, 0u);
        memset(buf, 0xa5, 40000);
        bufs.push_back(buf);
    }
    std::set<void *> distinct(bufs.begin(), bufs.end());
    EXPECT_EQ(distinct.size(), bufs.size());
    for (void *buf : bufs) {
        nbd_pool_put(&pool, buf, 40000);
        EXPECT_LE(pool.kept_bytes, 8u << 20);
    }
    EXPECT_GT(pool.kept_bytes, 0u);
    void *again = nbd_pool_get(&pool, 65536);
    EXPECT_TRUE(distinct.count(again));
    nbd_pool_put(&pool, again, 65536);
    nbd_pool_clear(&pool);
    EXPECT_EQ(pool.kept_bytes, 0u);
}

/* ---- Errors ---------------------------------------------------------------------------------- */

TEST(NbdError, OnlyThoseOfTheProtocolGoOut)
{
    const std::set<uint32_t> allowed = { 1, 5, 12, 22, 28, 75, 108 };

    for (int err = 1; err < 200; err++) {
        EXPECT_TRUE(allowed.count(nbd_error_of(-err))) << strerror(err);
    }
    EXPECT_EQ(nbd_error_of(-ETIMEDOUT), 5u);
    EXPECT_EQ(nbd_error_of(-EDQUOT), 28u);
    EXPECT_EQ(nbd_error_of(-EROFS), 1u);
}

/* ---- The log --------------------------------------------------------------------------------- */

TEST(NbdLog, AFloodIsCutShortAndCounted)
{
    testing::internal::CaptureStderr();
    for (int i = 0; i < 20000; i++) {
        nbd_log_drop("flood");
    }
    nbd_log_end();
    std::string log = testing::internal::GetCapturedStderr();
    size_t lines = 0, left_out = 0, at = 0, found;

    while ((found = log.find('\n', at)) != std::string::npos) {
        std::string line = log.substr(at, found - at);
        unsigned long n;

        if (line == "aioctx-nbd: flood") {
            lines++;
        } else {
            ASSERT_EQ(sscanf(line.c_str(), "aioctx-nbd: %lu more lines about clients", &n), 1)
                << line;
            left_out += n;
        }
        at = found + 1;
    }
    EXPECT_EQ(lines + left_out, 20000u);
    EXPECT_GE(lines, 256u);
    EXPECT_GT(left_out, 0u);
}

/* Nobody reads it, and the server goes on. */
TEST(NbdLog, AFullPipeIsNotWaitedFor)
{
    int fds[2], status;

    ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(30);
        dup2(fds[1], STDERR_FILENO);
        for (int i = 0; i < 5000; i++) {
            nbd_log("a line of some length, of which 64 KiB hold fewer than there are here");
            nbd_log_drop("another one");
        }
        nbd_log_end();
        _exit(0);
    }
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
    close(fds[0]);
    close(fds[1]);
}

/* ---- Unix sockets ---------------------------------------------------------------------------- */

/* What a server leaves that was killed. */
static void LeaveSocket(const std::string &path)
{
    struct sockaddr_un addr = {};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sun_family = AF_UNIX;
    strncpy(addr.sun_path, path.c_str(), sizeof(addr.sun_path) - 1);
    ASSERT_EQ(bind(fd, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)), 0);
    close(fd);
}

/* Greets who comes, as a server does, until @done. */
static void GreetUntil(int listen_fd, const std::function<bool()> &done)
{
    while (!done()) {
        struct pollfd p = { listen_fd, POLLIN, 0 };
        int fd = poll(&p, 1, 5) == 1 ? accept(listen_fd, nullptr, nullptr) : -1;

        if (fd >= 0) {
            (void)!send(fd, "NBDMAGIC", 8, MSG_NOSIGNAL); /* who only looks may have gone */
            close(fd);
        }
    }
}

TEST(NbdListen, OfServersThatBeginAtOnceOneGetsALeftOverSocket)
{
    constexpr int kServers = 6;
    TempDir dir;
    std::string path = dir.Path("s");

    for (int round = 0; round < (kSanitized ? 3 : 5); round++) {
        std::atomic<int> won{ 0 }, ready{ 0 }, left{ kServers - 1 };
        std::vector<std::thread> servers;

        LeaveSocket(path);
        for (int i = 0; i < kServers; i++) {
            servers.emplace_back([&] {
                NbdListener listener;
                char *why = nullptr;
                struct stat st;

                ready++;
                while (ready < kServers) {
                    sched_yield();
                }
                if (nbd_listen_unix(path.c_str(), &listener, &why) < 0) {
                    free(why);
                    left--;
                    return;
                }
                won++;
                GreetUntil(listener.fd, [&] { return left <= 0 || won > 1; });
                EXPECT_EQ(stat(path.c_str(), &st), 0) << "another one has removed it";
                nbd_listen_close(&listener);
            });
        }
        for (std::thread &t : servers) {
            t.join();
        }
        ASSERT_EQ(won, 1) << "in round " << round;
    }
}

TEST(NbdListen, WhoEndsLeavesTheSocketOfWhoComesNext)
{
    TempDir dir;
    std::string path = dir.Path("s");

    for (int round = 0; round < (kSanitized ? 30 : 100); round++) {
        NbdListener before, next;
        char *why = nullptr;
        int ret = -1;

        ASSERT_EQ(nbd_listen_unix(path.c_str(), &before, &why), 0) << why;
        std::thread comes([&] {
            int fd;
            while ((fd = NbdClient::ConnectUnix(path)) >= 0) {
                close(fd);
            }
            ret = nbd_listen_unix(path.c_str(), &next, &why);
        });
        usleep(static_cast<unsigned>(round) % 10 * 50);
        nbd_listen_close(&before);
        comes.join();
        ASSERT_EQ(ret, 0) << why;
        int fd = NbdClient::ConnectUnix(path);
        ASSERT_GE(fd, 0) << "removed in round " << round;
        close(fd);
        nbd_listen_close(&next);
    }
}

/* A server that was killed may leave its port to the kernel for a moment. */
TEST(NbdListen, APortThatIsBeingLeftIsWaitedFor)
{
    int ret = -1;

    /* Again where the one who leaves did not get to run in time. */
    for (int round = 0; round < 5 && ret < 0; round++) {
        struct sockaddr_in addr = {};
        socklen_t len = sizeof(addr);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char *why = nullptr;

        addr.sin_family = AF_INET;
        addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ASSERT_EQ(bind(fd, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)), 0);
        ASSERT_EQ(listen(fd, 1), 0);
        ASSERT_EQ(getsockname(fd, reinterpret_cast<struct sockaddr *>(&addr), &len), 0);
        std::thread leaves([fd] {
            usleep(50000);
            close(fd);
        });
        ret = nbd_listen_tcp(("127.0.0.1:" + std::to_string(ntohs(addr.sin_port))).c_str(),
                             [](void *, const NbdListener *listener) {
                                 NbdListener mine = *listener;
                                 nbd_listen_close(&mine);
                                 return 0;
                             },
                             nullptr, &why);
        leaves.join();
        free(why);
    }
    EXPECT_EQ(ret, 0);
}

/* ---- Streams --------------------------------------------------------------------------------- */

class NbdStreamTest : public testing::Test
{
protected:
    void SetUp() override
    {
        int fds[2];

        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        peer_ = fds[1];
        stream_ = nbd_stream_new(fds[0], fds[0]);
        ASSERT_NE(stream_, nullptr);
    }
    void TearDown() override
    {
        stream_->ops->destroy(stream_);
        close(peer_);
    }
    ssize_t Send(size_t bytes)
    {
        std::string data(bytes, 'x');
        struct iovec iov = { &data[0], bytes };
        return nbd_stream_sendv(stream_, &iov, 1);
    }
    bool Writable()
    {
        struct pollfd p = { stream_->wfd, POLLOUT, 0 };
        return poll(&p, 1, 0) == 1 && (p.revents & POLLOUT);
    }
    NbdStream *stream_ = nullptr;
    int peer_ = -1;
};

/* Who waits for the other side to read waits for POLLOUT: so it has to come, and not before. */
TEST_F(NbdStreamTest, ACrowdedOneIsNotWritableUntilItHasBeenRead)
{
    char buf[4096];
    int sent = 0;

    EXPECT_FALSE(nbd_stream_is_crowded(stream_));
    while (!nbd_stream_is_crowded(stream_)) {
        EXPECT_TRUE(Writable()) << sent;
        ASSERT_EQ(Send(4096), 4096) << sent;
        ASSERT_LT(++sent, 1000);
    }
    EXPECT_GT(sent, 4);
    EXPECT_FALSE(Writable());
    while (nbd_stream_is_crowded(stream_)) {
        EXPECT_FALSE(Writable()) << sent;
        ASSERT_GT(sent, 0);
        ASSERT_EQ(recv(peer_, buf, sizeof(buf), MSG_WAITALL), 4096);
        sent--;
    }
    EXPECT_TRUE(Writable());
    EXPECT_GT(sent, 0);
}

TEST_F(NbdStreamTest, FullAndEmptyAreEagainAndAnEndIsZero)
{
    char buf[16];
    struct iovec iov[2] = { { buf, 3 }, { buf + 3, 13 } };
    ssize_t n;

    EXPECT_EQ(nbd_stream_recvv(stream_, iov, 2), -EAGAIN);
    do {
        n = Send(100000);
    } while (n > 0);
    EXPECT_EQ(n, -EAGAIN);
    ASSERT_EQ(send(peer_, "hello", 5, 0), 5);
    EXPECT_EQ(nbd_stream_recvv(stream_, iov, 2), 5);
    EXPECT_EQ(std::string(buf, 5), "hello");
    ASSERT_EQ(shutdown(peer_, SHUT_WR), 0);
    EXPECT_EQ(nbd_stream_recvv(stream_, iov, 1), 0);
    close(peer_);
    peer_ = -1;
    EXPECT_EQ(Send(10), -EPIPE);
}

/* ---- Holding --------------------------------------------------------------------------------- */

class NbdHold : public NbdWireTest
{
};

ON_EACH_MONITOR(NbdHold);

/* Who is busy reading is not read from; who has a write to get rid of first is. */
TEST_P(NbdHold, WhoDoesNotReadMayWriteAllTheSame)
{
    constexpr int kReads = 60;
    constexpr uint32_t kReadBytes = 16 * kKiB;
    NbdSession s(path(), "scratch");
    std::string data = Pattern(64 * kMiB, 4 * kMiB, 7);

    s->Write(0, Pattern(0, kMiB, 3)); /* no holes */
    for (int i = 0; i < kReads; i++) {
        s->SendRequest(nbd::CMD_READ, static_cast<uint64_t>(i) * kReadBytes, kReadBytes);
    }
    /* Blocks until the server has taken nearly all of it. */
    s->SendRequest(nbd::CMD_WRITE, 64 * kMiB, 4 * kMiB, 0, data);
    for (int i = 0; i < kReads + 1; i++) {
        NbdReply reply = s->RecvReply();
        ASSERT_TRUE(reply.came);
        EXPECT_EQ(reply.error, 0u);
    }
    EXPECT_TRUE(s->Alive(64 * kMiB, data));
}

/* It is read from again as soon as it has read. */
TEST_P(NbdHold, ManyAtOnceAreAllAnswered)
{
    constexpr int kDepth = 100;
    NbdSession s(path(), "scratch");
    int left = 5000;

    s->Write(0, Pattern(0, kMiB, 3));
    for (int i = 0; i < kDepth; i++) {
        s->SendRequest(nbd::CMD_READ, static_cast<uint64_t>(i) * 4096, 4096);
    }
    for (int got = 0; got < kDepth + 5000; got++) {
        NbdReply reply = s->RecvReply();
        ASSERT_TRUE(reply.came);
        ASSERT_EQ(reply.error, 0u);
        if (left > 0) {
            s->SendRequest(nbd::CMD_READ, static_cast<uint64_t>(left-- % 256) * 4096, 4096);
        }
    }
    EXPECT_EQ(s->InFlight(), 0u);
}
