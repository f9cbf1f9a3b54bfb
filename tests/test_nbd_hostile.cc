/* SPDX-License-Identifier: MIT */
/*
 * Clients that are hostile, broken or unlucky.  Beside each of them a well-behaved client works on
 * all the time, and every answer it gets must be right; and in the end SIGTERM ends the server with
 * status 0 (the fixture sees to that), whatever is still connected.
 */
#include "nbd_wire.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <fcntl.h>
#include <netinet/in.h>
#include <random>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace nbd;

namespace
{

/* Reads and writes its own region, compares, and counts. */
class WellBehaved
{
public:
    WellBehaved(NbdServer &server, uint64_t from) : from_(from)
    {
        thread_ = std::thread([this, path = server.path()] { Run(path); });
        EXPECT_TRUE(WaitUntil([&] { return rounds_ > 0; }));
    }
    ~WellBehaved()
    {
        Stop();
    }
    /* That it gets on from here: @n rounds more. */
    void Continues(int n = 3)
    {
        int before = rounds_;

        EXPECT_TRUE(WaitUntil([&] { return rounds_ >= before + n || failed_; }));
        EXPECT_FALSE(failed_);
    }
    void Stop()
    {
        if (thread_.joinable()) {
            stop_ = true;
            thread_.join();
        }
    }

private:
    void Run(const std::string &path)
    {
        NbdSession s(path, "disk", NbdSession::PATIENT);
        std::mt19937 random(7);

        while (!stop_ && !failed_) {
            uint64_t at = from_ + random() % 8 * 4096;
            std::string data = Pattern(at, 4096, random());

            failed_ = s->Write(at, data).error != OK || s->Read(at, 4096).data != data ||
                      s->Flush() != OK;
            rounds_++;
            usleep(300); /* others want the processors too */
        }
        EXPECT_FALSE(failed_) << "the well-behaved client got a wrong answer";
    }

    uint64_t from_;
    std::atomic<bool> stop_{ false }, failed_{ false };
    std::atomic<int> rounds_{ 0 };
    std::thread thread_;
};

class NbdHostile : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
        MakeDisk(dir_.Path("disk.img"), 8 * kMiB, kDiskSeed);
    }
    /* The server with @options, and the well-behaved client. */
    void Serve(const std::vector<std::string> &options = {}, const std::string &filter = "")
    {
        std::vector<std::string> args = {
            "--monitor", GetParam(), "--threads",
            "2",         "--export", "disk=" + filter + "file:" + dir_.Path("disk.img")
        };

        /* Who has gone may hold a place for a moment.  Of an option given twice the last counts. */
        args.insert(args.end(), { "--max-connections", "1000" });
        args.insert(args.end(), options.begin(), options.end());
        server_ = std::make_unique<NbdServer>(args);
        good_ = std::make_unique<WellBehaved>(*server_, 7 * kMiB);
        fds_ = server_->Fds();
        rss_kb_ = server_->RssKb();
    }
    /* All is as before; then the end. */
    void TearDown() override
    {
        if (good_) {
            good_->Continues();
            good_->Stop();
        }
        if (server_) {
            EXPECT_TRUE(WaitUntil([&] { return server_->Fds() <= fds_; }))
                << server_->Fds() << " descriptors, and " << fds_ << " before";
            server_->Stop();
        }
    }
    const std::string &path() const
    {
        return server_->path();
    }
    /* What memory it may have taken more than at first; a sanitizer's own counts as well. */
    void ExpectMemoryBelow(long more_kb)
    {
        long limit = rss_kb_ + more_kb * (kSanitized ? 4 : 1);

        EXPECT_LT(server_->RssKb(), limit) << "began with " << rss_kb_;
    }

    TempDir dir_;
    std::unique_ptr<NbdServer> server_;
    std::unique_ptr<WellBehaved> good_;
    int fds_ = 0;
    long rss_kb_ = 0;
};

ON_EACH_MONITOR_OF_A_SLOW_SUITE(NbdHostile);

using Clients = std::vector<std::unique_ptr<NbdClient>>;

/* ---- The handshake --------------------------------------------------------------------------- */

TEST_P(NbdHostile, AHandshakeThatTakesTooLongIsDroppedWithOneLine)
{
    Serve({ "--handshake-timeout", "300ms" });
    NbdSession idle(path(), "disk",
                    NbdSession::PATIENT); /* may be silent for as long as it likes */
    size_t lines = server_->LogLines();
    Clients clients;
    const std::string parts[] = {
        "",
        Be32(3).substr(0, 2),
        Be32(3),
        Be32(3) + OptionBytes(OPT_LIST, "").substr(0, 9),
        Be32(3) + OptionBytes(OPT_GO, InfoData("disk")).substr(0, 20),
        Be32(3) + OptionBytes(99, "xyz"),
    };

    for (const std::string &part : parts) {
        clients.push_back(std::make_unique<NbdClient>(path()));
        clients.back()->Send(part);
    }
    for (auto &c : clients) {
        EXPECT_TRUE(c->DrainUntilClosed());
    }
    EXPECT_TRUE(WaitUntil([&] { return server_->LogLines() >= lines + clients.size(); }));
    EXPECT_EQ(server_->LogLines(), lines + clients.size()) << server_->Log();
    EXPECT_TRUE(idle->Alive(0, Pattern(0, 4096, kDiskSeed)));
}

/* The limit is for the whole of it: bytes that trickle in do not put it off. */
TEST_P(NbdHostile, AHandshakeThatTricklesIsDroppedToo)
{
    Serve({ "--handshake-timeout", "300ms" });
    NbdClient c(path());

    c.Greet();
    EXPECT_TRUE(WaitUntil([&] {
        usleep(20000);
        return !c.TrySend(OptionBytes(OPT_LIST, ""));
    }));
}

TEST_P(NbdHostile, WhoAsksForTooMuchIsNotListenedToForever)
{
    Serve({ "--handshake-timeout", "300ms" });
    NbdClient c(path());

    c.Greet();
    c.Send(Be64(kOptionMagic) + Be32(99) + Be32(0xffffffff));
    EXPECT_TRUE(WaitUntil([&] { return !c.TrySend(std::string(1000, 'x')); }));
    ExpectMemoryBelow(16 * 1024);
}

/* ---- How many -------------------------------------------------------------------------------- */

TEST_P(NbdHostile, MoreConnectionsThanTheCapAreTurnedAway)
{
    Serve({ "--max-connections", "4" });
    std::vector<std::unique_ptr<NbdSession>> held;

    for (int i = 0; i < 3; i++) { /* and the well-behaved one */
        held.push_back(std::make_unique<NbdSession>(path(), "disk", NbdSession::PATIENT));
    }
    for (int i = 0; i < 20; i++) {
        NbdClient more(path());
        EXPECT_TRUE(more.Closed());
    }
    for (auto &s : held) {
        EXPECT_TRUE((*s)->Alive(0, Pattern(0, 512, kDiskSeed)));
    }
    held.clear();
    /* A place is free once the server has seen the end. */
    EXPECT_TRUE(WaitUntil([&] {
        int fd = NbdClient::ConnectUnix(path());
        char magic[8];
        bool served = recv(fd, magic, sizeof(magic), MSG_WAITALL) == 8;
        close(fd);
        return served;
    }));
}

TEST_P(NbdHostile, TwoHundredConnectsAtOnceAreServed)
{
    Serve();

    RunThreads(8, [&](int) {
        Clients clients;
        for (int i = 0; i < 25; i++) {
            clients.push_back(std::make_unique<NbdClient>(path()));
        }
        for (auto &c : clients) {
            c->Greet().Go("disk");
        }
        for (auto &c : clients) {
            EXPECT_TRUE(c->Alive(4096, Pattern(4096, 512, kDiskSeed)));
        }
    });
}

TEST_P(NbdHostile, TwoHundredConnectsAboveTheCapHarmNobody)
{
    Serve({ "--max-connections", "20" });
    size_t lines = server_->LogLines();
    Clients clients;

    for (int i = 0; i < 200; i++) {
        clients.push_back(std::make_unique<NbdClient>(path()));
    }
    good_->Continues();
    clients.clear();
    EXPECT_LE(server_->LogLines(), lines + 200) << "a line for each at the most";
}

/* ---- Clients that do not take part ----------------------------------------------------------- */

/* Asks for everything and reads nothing: the server stops listening to it before memory goes. */
TEST_P(NbdHostile, AClientThatReadsNothingTakesNoMemory)
{
    Serve({ "--max-in-flight", "4M" });
    Clients clients;

    for (int i = 0; i < 4; i++) {
        clients.push_back(std::make_unique<NbdClient>(path()));
        NbdClient &c = *clients.back();
        c.Greet();
        if (i % 2) {
            c.Structured();
        }
        c.Go("disk");
        fcntl(c.fd(), F_SETFL, O_NONBLOCK);
        std::string requests;
        for (uint64_t n = 0; n < 500; n++) {
            requests += RequestBytes(CMD_READ, 0, n, n % 7 * kMiB, kMiB);
        }
        c.TrySend(requests);
    }
    good_->Continues(10);
    /* Four connections of 4 MiB, and as much again for what lies in between. */
    ExpectMemoryBelow(4 * 4 * 1024 * 2 + 16 * 1024);
}

/* Large requests within the cap's reach still work, one after the other. */
TEST_P(NbdHostile, ARequestLargerThanTheCapIsStillServed)
{
    Serve({ "--max-in-flight", "1M" });
    NbdSession s(path(), "disk");
    std::string data = Pattern(0, 4 * kMiB, 9);

    for (int i = 0; i < 4; i++) {
        s->SendRequest(CMD_READ, 0, 4 * kMiB);
    }
    for (int i = 0; i < 4; i++) {
        EXPECT_TRUE(Same(s->RecvReply().data, Pattern(0, 4 * kMiB, kDiskSeed)));
    }
    EXPECT_EQ(s->Write(0, data).error, OK);
    EXPECT_TRUE(Same(s->Read(0, 4 * kMiB).data, data));
}

TEST_P(NbdHostile, WritesThatNeverArriveTakeNoMemory)
{
    Serve();
    Clients clients;

    for (int i = 0; i < 16; i++) {
        clients.push_back(std::make_unique<NbdClient>(path()));
        clients.back()->Greet().Go("disk");
        clients.back()->Send(RequestBytes(CMD_WRITE, 0, 1, 0, 8 * kMiB) + std::string(1000, 'x'));
    }
    good_->Continues(10);
    ExpectMemoryBelow(32 * 1024);
}

TEST_P(NbdHostile, OneThatStallsInTheMiddleOfARequestHoldsUpNoOther)
{
    Serve();
    std::string request = RequestBytes(CMD_WRITE, 0, 1, 4096, 65536) + Pattern(0, 65536, 3);

    for (size_t n : { size_t(1), size_t(27), size_t(28), size_t(29), size_t(40000) }) {
        NbdClient c(path());
        c.Greet().Go("disk");
        c.Send(request.substr(0, n));
        good_->Continues();
        c.Send(request.substr(n));
        EXPECT_EQ(c.Recv(16), Be32(0x67446698) + Be32(0) + Be64(1));
    }
}

/* Who stops in the middle of a request, or leaves its replies, is dropped; who is silent is not. */
TEST_P(NbdHostile, WhoStallsForTooLongIsDroppedWithOneLine)
{
    Serve({ "--stall-timeout", "300ms" });
    NbdSession idle(path(), "disk");
    size_t lines = server_->LogLines();
    Clients clients;
    std::string reads;

    for (uint64_t i = 0; i < 50; i++) {
        reads += RequestBytes(CMD_READ, 0, i, 0, kMiB);
    }
    for (const std::string &part :
         { RequestBytes(CMD_READ, 0, 1, 0, 4096).substr(0, 27),
           RequestBytes(CMD_WRITE, 0, 1, 4096, 65536) + std::string(1000, 's'), reads }) {
        clients.push_back(std::make_unique<NbdClient>(path()));
        clients.back()->Greet().Go("disk");
        clients.back()->Send(part);
    }
    EXPECT_TRUE(WaitUntil([&] { return server_->LogLines() >= lines + clients.size(); }));
    for (auto &c : clients) {
        EXPECT_TRUE(c->DrainUntilClosed());
    }
    EXPECT_EQ(server_->LogLines(), lines + clients.size()) << server_->Log();
    EXPECT_TRUE(idle->Alive(0, Pattern(0, 4096, kDiskSeed)));
}

/* What came of it was left unread for a while, as too much was in flight. */
TEST_P(NbdHostile, WhoStallsBehindAPauseIsDroppedToo)
{
    constexpr uint32_t kBytes = 64 * kKiB;
    Serve({ "--stall-timeout", "300ms", "--max-in-flight", "64k" },
          "blkdebug:rules=read+to=4k+delay=50ms,");
    NbdClient c(path());

    c.Greet().Go("disk");
    c.Send(RequestBytes(CMD_READ, 0, 1, 0, kBytes) + RequestBytes(CMD_WRITE, 0, 2, kMiB, kBytes) +
           std::string(1000, 's'));
    EXPECT_EQ(c.Recv(16), Be32(0x67446698) + Be32(0) + Be64(1));
    EXPECT_TRUE(c.DrainUntilClosed());
    EXPECT_NE(server_->Log().find("stalled in the middle of a request"), std::string::npos)
        << server_->Log();
}

/* ---- Clients that die ------------------------------------------------------------------------ */

/* One side of the work of a client that is about to vanish. */
void BeBusy(NbdClient &c, std::mt19937 &random)
{
    c.Greet();
    if (random() % 2) {
        c.Structured();
    }
    c.Go("disk");
    std::string all;
    for (unsigned i = 0, n = 1 + random() % 20; i < n; i++) {
        uint32_t length = 512 << random() % 9;
        uint64_t offset = random() % 6 * kMiB;
        switch (random() % 5) {
        case 0:
            all += RequestBytes(CMD_WRITE, 0, i, offset, length) + std::string(length, 'k');
            break;
        case 1:
            all += RequestBytes(CMD_FLUSH, 0, i, 0, 0);
            break;
        case 2:
            all += RequestBytes(CMD_TRIM, 0, i, offset, length);
            break;
        default:
            all += RequestBytes(CMD_READ, 0, i, offset, length);
        }
    }
    /* Up to any byte. */
    c.TrySend(all.substr(0, random() % 4 ? all.size() : random() % all.size()));
}

TEST_P(NbdHostile, ClientsThatVanishWhileBusyAreForgotten)
{
    Serve({ "--listen", "127.0.0.1:0" });
    const int port = server_->TcpPort(), rounds = kSanitized ? 50 : 100;
    std::mt19937 random(11);
    size_t lines = server_->LogLines();

    for (int i = 0; i < rounds; i++) {
        bool tcp = i % 2;
        NbdClient c(tcp ? NbdClient::ConnectTcp(port) : NbdClient::ConnectUnix(path()));
        BeBusy(c, random);
        if (tcp && random() % 2) {
            struct linger reset = { 1, 0 }; /* close() sends a reset */
            setsockopt(c.fd(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        }
    }
    EXPECT_TRUE(WaitUntil([&] { return server_->Fds() <= fds_; }));
    EXPECT_LE(server_->LogLines(), lines + static_cast<size_t>(rounds)) << server_->Log();
}

/* The same with processes that are killed, in the middle of whatever they do. */
TEST_P(NbdHostile, ProcessesThatAreKilledWhileBusyAreForgotten)
{
    Serve();
    const int rounds = kSanitized ? 4 : 10;

    for (int i = 0; i < rounds; i++) {
        int fd = NbdClient::ConnectUnix(path());
        ASSERT_GE(fd, 0);
        std::string hello = Be32(3) + OptionBytes(OPT_GO, InfoData("disk"));
        std::string work = RequestBytes(CMD_READ, 0, 1, 0, 256 * kKiB) +
                           RequestBytes(CMD_WRITE, 0, 2, kMiB, 4096) + std::string(4096, 'z');
        pid_t child = fork();
        if (child == 0) {
            char buf[4096];

            if (write(fd, hello.data(), hello.size()) > 0) {
                while (write(fd, work.data(), work.size()) > 0 && read(fd, buf, sizeof(buf)) > 0) {
                }
            }
            _exit(0);
        }
        close(fd);
        usleep(static_cast<useconds_t>(i * 300));
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
    }
}

TEST_P(NbdHostile, ClientsThatVanishWithSlowRequestsAreForgotten)
{
    Serve({}, "blkdebug:rules=any+from=0+to=6M+delay=20ms,");
    std::mt19937 random(12);

    for (int i = 0; i < 50; i++) {
        NbdClient c(path());
        BeBusy(c, random);
    }
}

/* ---- Sockets that are shut on one side ------------------------------------------------------- */

TEST_P(NbdHostile, AClientThatSendsNoMoreGetsItsAnswersAndTheEnd)
{
    Serve();
    for (bool structured : { false, true }) {
        NbdClient c(path());
        c.Greet();
        if (structured) {
            c.Structured();
        }
        c.Go("disk");
        for (uint64_t i = 0; i < 10; i++) {
            c.SendRequest(CMD_READ, i * 4096, 4096);
        }
        shutdown(c.fd(), SHUT_WR);
        for (int i = 0; i < 10; i++) {
            ASSERT_TRUE(c.RecvReply().came);
        }
        EXPECT_TRUE(c.Closed());
    }
}

TEST_P(NbdHostile, AHandshakeThatIsShutIsOver)
{
    Serve();
    for (const std::string &part :
         { std::string(), Be32(3),
           Be32(3) + OptionBytes(OPT_GO, InfoData("disk")).substr(0, 13) }) {
        NbdClient c(path());
        c.Send(part);
        shutdown(c.fd(), SHUT_WR);
        EXPECT_TRUE(c.DrainUntilClosed());
    }
}

TEST_P(NbdHostile, AClientThatReceivesNoMoreIsDropped)
{
    Serve();
    NbdClient c(path());

    c.Greet().Go("disk");
    shutdown(c.fd(), SHUT_RD);
    EXPECT_TRUE(WaitUntil([&] { return !c.TrySend(RequestBytes(CMD_READ, 0, 1, 0, 65536)); }));
}

/* ---- Anything at all ------------------------------------------------------------------------- */

/* Bytes that are right but for some: each kind is wrong at another depth. */
std::string Garbage(std::mt19937 &random, int kind)
{
    auto any = [&](size_t n) {
        std::string s(n, '\0');
        for (char &c : s) {
            c = static_cast<char>(random());
        }
        return s;
    };
    auto small = [&] { return static_cast<uint32_t>(random() % 4 ? random() % 70000 : random()); };
    std::string good = Be32(3) + OptionBytes(OPT_STRUCTURED_REPLY, "") +
                       OptionBytes(OPT_SET_META, MetaData("disk", { "base:allocation" })) +
                       OptionBytes(OPT_GO, InfoData("disk", { INFO_BLOCK_SIZE }));
    std::string s;

    switch (kind) {
    case 0:
        return any(random() % 300);
    case 1: /* options with any data */
        s = Be32(3);
        for (int i = 0; i < 5; i++) {
            s += OptionBytes(random() % 13, any(random() % 60));
        }
        return s;
    case 2: /* options whose lengths lie */
        s = Be32(3);
        for (int i = 0; i < 5; i++) {
            s += Be64(kOptionMagic) + Be32(6 + random() % 5) + Be32(small()) + Be32(small()) +
                 "disk" + any(random() % 40);
        }
        return s;
    case 3: /* a good handshake, then requests of any kind, not on the last MiB */
        s = good;
        for (int i = 0; i < 10; i++) {
            uint16_t type = static_cast<uint16_t>(random() % 9);
            uint32_t length = random() % 65536;
            uint64_t offset = random() % 4 ? random() % (6 * kMiB) : UINT64_MAX - random() % 100000;
            s += RequestBytes(type, static_cast<uint16_t>(random() % 2 ? 0 : random()), i, offset,
                              length);
            s += type == CMD_WRITE ? any(length) : "";
        }
        return s;
    case 4: /* the same, with lengths that lie; nothing that writes can follow from it */
        s = good + RequestBytes(random() % 2 ? CMD_READ : CMD_BLOCK_STATUS, 0, 1,
                                random() % (8 * kMiB), random());
        return s + any(random() % 500);
    default: /* a byte or two changed, in what was good */
        s = good + RequestBytes(CMD_READ, 0, 1, 0, 4096) + RequestBytes(CMD_FLUSH, 0, 2, 0, 0);
        for (int i = 0; i < 2; i++) {
            s[random() % good.size()] ^= static_cast<char>(1 << random() % 8);
        }
        return s;
    }
}

TEST_P(NbdHostile, GarbageEndsNothingButItsConnection)
{
    Serve({ "--handshake-timeout", "2s" });
    const unsigned seed = 20;
    const int connections = kSanitized ? 100 : 300;
    std::mt19937 random(seed);

    SCOPED_TRACE("seed " + std::to_string(seed));
    for (int i = 0; i < connections; i++) {
        NbdClient c(path());
        fcntl(c.fd(), F_SETFL, O_NONBLOCK); /* what does not fit is not sent */
        c.TrySend(Garbage(random, i % 6));
        if (random() % 2) { /* half of them look what comes */
            shutdown(c.fd(), SHUT_WR);
            fcntl(c.fd(), F_SETFL, 0);
            EXPECT_TRUE(c.DrainUntilClosed()) << "connection " << i;
        }
    }
    ExpectMemoryBelow(64 * 1024);
}

/* ---- The end --------------------------------------------------------------------------------- */

TEST_P(NbdHostile, SigtermEndsItWhateverGoesOn)
{
    for (int round = 0; round < 2; round++) {
        Serve({ "--max-in-flight", "2M", "--shutdown-timeout", "100ms" },
              "blkdebug:rules=read+to=4k+never;write+to=4k+never,");
        std::mt19937 random(static_cast<unsigned>(round));
        Clients clients;

        for (int i = 0; i < 24; i++) {
            clients.push_back(std::make_unique<NbdClient>(path()));
            NbdClient &c = *clients.back();
            fcntl(c.fd(), F_SETFL, 0);
            switch (i % 6) {
            case 0: /* in its handshake */
                c.Greet();
                break;
            case 1: /* silent */
                c.Greet().Go("disk");
                break;
            case 2: /* in the middle of a write */
                c.Greet().Go("disk");
                c.Send(RequestBytes(CMD_WRITE, 0, 1, kMiB, kMiB) + "x");
                break;
            case 3: /* reads nothing */
                c.Greet().Go("disk");
                for (uint64_t n = 0; n < 20; n++) {
                    c.Send(RequestBytes(CMD_READ, 0, n, kMiB, kMiB));
                }
                break;
            case 4: /* waits for what never comes */
                c.Greet().Go("disk");
                c.Send(RequestBytes(CMD_READ, 0, 1, 0, 4096) +
                       RequestBytes(CMD_WRITE, 0, 2, 0, 4096) + std::string(4096, 'w'));
                break;
            default:
                BeBusy(c, random);
            }
        }
        good_->Continues();
        good_->Stop();
        good_ = nullptr;
        server_->Stop();
        server_ = nullptr;
    }
}

/* The well-behaved client, too, may find the server gone in the middle of anything. */
TEST_P(NbdHostile, SigtermAmidBusyClientsEndsIt)
{
    for (int round = 0; round < (kSanitized ? 2 : 4); round++) {
        std::vector<std::string> args = { "--monitor", GetParam(), "--export",
                                          "disk=file:" + dir_.Path("disk.img") };
        NbdServer server(args);
        std::atomic<bool> ended{ false };
        std::atomic<int> busy{ 0 };
        std::vector<std::thread> threads;

        for (int t = 0; t < 4; t++) {
            threads.emplace_back([&] {
                int fd = NbdClient::ConnectUnix(server.path());
                std::string buf(65536, '\0');
                std::string all = Be32(3) + OptionBytes(OPT_GO, InfoData("disk"));

                for (uint64_t i = 0; !ended; i++) {
                    all += RequestBytes(CMD_READ, 0, i, i % 64 * 4096, 4096) +
                           RequestBytes(CMD_WRITE, 0, i, kMiB, 512) + std::string(512, 'b');
                    if (send(fd, all.data(), all.size(), MSG_NOSIGNAL) <= 0 ||
                        recv(fd, &buf[0], buf.size(), 0) <= 0) {
                        break;
                    }
                    all.clear();
                    busy += i == 5;
                }
                close(fd);
            });
        }
        EXPECT_TRUE(WaitUntil([&] { return busy == 4; }));
        server.Stop();
        ended = true;
        for (std::thread &t : threads) {
            t.join();
        }
    }
}

} // namespace
