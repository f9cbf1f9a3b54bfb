/* SPDX-License-Identifier: MIT */
/* The NBD client against nbdkit: opening, every operation, and where its module is found. */
#include "nbd_support.h"

#include <dlfcn.h>
#include <netdb.h>

INSTANTIATE_NBD_CLIENT();

/* ---- Operations ------------------------------------------------------------------------------ */

TEST_P(NbdClient, Conforms)
{
    Server server(Socket());

    server.Start(With({ kOneThread, "memory", "9M" }));
    Conforms(Spec());
}

TEST_P(NbdClient, ConformsWithBlocksAndAnOddEndOrWithFewCommands)
{
    Server server(Socket());

    if (!Several()) {
        server.Start(With({ kOneThread, "--filter=nozero", "--filter=noextents", "--filter=fua",
                            "memory", "5M" }));
        Conforms(Spec());
        return;
    }
    server.Start({ kOneThread, "--filter=blocksize-policy", "memory", "1234567",
                   "blocksize-minimum=512", "blocksize-maximum=65536",
                   "blocksize-error-policy=allow" });
    {
        LocalContext ctx(Monitor());
        Blk blk = Open(Spec());
        BlkLimits l;

        blk_get_limits(blk.get(), &l);
        EXPECT_EQ(l.request_alignment, 512u);
        EXPECT_EQ(l.max_transfer, 65536u);
        EXPECT_EQ(blk_getlength(blk.get()), 1234567);
    }
    Conforms(Spec());
}

TEST_P(NbdClient, HolesAndZeroesAreTold)
{
    Server server(Socket());
    LocalContext ctx(Monitor());
    std::vector<char> data(65536, 'x');
    BlkExtent e;

    server.Start(With({ "memory", "8M" }));
    Blk blk = Open(Spec());
    ASSERT_EQ(blk_pwrite(blk.get(), 1 << 20, 65536, data.data(), BDRV_REQ_FUA), 0);
    ASSERT_EQ(blk_block_status(blk.get(), 0, 8 << 20, &e), 0);
    EXPECT_EQ(e.bytes, 1 << 20);
    EXPECT_EQ(e.status, uint32_t(BDRV_BLOCK_ZERO));
    ASSERT_EQ(blk_block_status(blk.get(), (1 << 20) + 100, 6 << 20, &e), 0);
    EXPECT_EQ(e.offset, (1 << 20) + 100);
    EXPECT_EQ(e.status, uint32_t(BDRV_BLOCK_DATA));
    ASSERT_EQ(blk_pdiscard(blk.get(), 1 << 20, 65536), 0);
    ASSERT_EQ(blk_block_status(blk.get(), 1 << 20, 65536, &e), 0);
    EXPECT_EQ(e.status, uint32_t(BDRV_BLOCK_ZERO));
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 0, 1 << 20,
                                BdrvRequestFlags(BDRV_REQ_NO_FALLBACK | BDRV_REQ_MAY_UNMAP)),
              0);
}

TEST_P(NbdClient, MoreThan32BitsOfLength)
{
    Server server(Socket());
    LocalContext ctx(Monitor());
    BlkExtent e;
    char c = 'x';

    server.Start(With({ "memory", "9G" }));
    Blk blk = Open(Spec());
    ASSERT_EQ(blk_pwrite(blk.get(), INT64_C(6) << 30, 1, &c, BdrvRequestFlags(0)), 0);
    EXPECT_EQ(blk_pwrite_zeroes(blk.get(), 1, INT64_C(9) * (1 << 30) - 2, BDRV_REQ_MAY_UNMAP), 0);
    ASSERT_EQ(blk_pread(blk.get(), INT64_C(6) << 30, 1, &c, BdrvRequestFlags(0)), 0);
    EXPECT_EQ(c, 0);
    EXPECT_EQ(blk_pdiscard(blk.get(), 0, INT64_C(9) << 30), 0);
    EXPECT_EQ(blk_block_status(blk.get(), 0, INT64_C(9) << 30, &e), 0);
}

TEST_P(NbdClient, ErrorsOfTheServerComeThrough)
{
    Server server(Socket());
    LocalContext ctx(Monitor());
    char buf[512] = {};

    server.Start(
        With({ "--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%" }));
    Blk blk = Open(Spec());
    EXPECT_EQ(blk_pwrite(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), -ENOSPC);
    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), 0);
}

TEST_P(NbdClient, SlowAnswersComeInAnyOrder)
{
    Server server(Socket());
    LocalContext ctx(Monitor());
    std::deque<Request> reqs;

    server.Start(With({ "--filter=delay", "memory", "1M", "rdelay=2ms", "wdelay=2ms" }));
    Blk blk = Open(Spec());
    for (int i = 0; i < 16; i++) {
        reqs.emplace_back(4096, i + 1);
        reqs.back().Write(blk, i * 4096);
    }
    for (Request &r : reqs) {
        ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_(); }));
        EXPECT_EQ(r.end.ret, 0);
    }
    for (int i = 0; i < 16; i++) {
        Request r(4096, 0);

        r.Read(blk, i * 4096);
        ASSERT_TRUE(ctx.PollUntil([&] { return r.Ended_(); }));
        EXPECT_EQ(r.buf.data[4095], i + 1);
    }
}

TEST_P(NbdClient, AsManyConnectionsAsTheServerTakes)
{
    Server server(Socket());
    std::vector<std::unique_ptr<ScopedIOThread>> ios;

    server.Start(With({ "--filter=log", "memory", "1M", "logfile=" + dir_.Path("log") }));
    {
        Blk blk = Open(Spec());

        for (int i = 0; i < 3; i++) {
            ios.push_back(std::make_unique<ScopedIOThread>(Monitor()));
            ios.back()->Run([&] {
                char buf[512];

                EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags(0)), 0);
            });
        }
    }
    std::string log = ReadFile(dir_.Path("log"));
    int n = 0;
    for (size_t at = 0; (at = log.find(" Connect ", at)) != std::string::npos; at++) {
        n++;
    }
    EXPECT_EQ(n, Several() ? 3 : 1) << log;
}

/* ---- Opening --------------------------------------------------------------------------------- */

TEST_P(NbdClient, OpeningSaysWhatIsWrong)
{
    Server server(Socket());
    int err = 0;

    EXPECT_NE(OpenError(Spec(), &err).find("at " + Socket()), std::string::npos);
    EXPECT_NE(OpenError("nbd:export=x").find("either a socket or a host"), std::string::npos);
    EXPECT_NE(OpenError("nbd+unix://host/x").find("either a socket or a host"), std::string::npos);
    EXPECT_NE(OpenError("nbd://h:99999/x").find("1 to 65535"), std::string::npos);
    EXPECT_NE(OpenError("nbd://h/x?tls=maybe").find("off, on or allow"), std::string::npos);
    EXPECT_NE(OpenError("nbds://h/x?tls=off").find("with TLS"), std::string::npos);
    EXPECT_NE(OpenError("nbd:name").find("//HOST"), std::string::npos);
    EXPECT_NE(OpenError(Spec("&detach=off")).find("always on with driver 'nbd'"),
              std::string::npos);
    server.Start(With({ "-r", "memory", "1M" }));
    EXPECT_NE(OpenError(Spec(), &err).find("read-only=on"), std::string::npos);
    EXPECT_EQ(err, EROFS);
    Blk blk = Open(Spec("&read-only=on"));
    EXPECT_STREQ(blk_get_driver_name(blk.get()), "nbd");
    Open("{\"driver\": \"nbd\", \"socket\": \"" + Socket() + "\", \"read-only\": true}");
    Open("blkdebug:throttle:iops=1000,nbd:socket=" + Socket() + ",read-only=on");
}

TEST_P(NbdClient, AServerThatSaysNothingIsNotWaitedForLong)
{
    sockaddr_un addr = {};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), err = 0;

    addr.sun_family = AF_UNIX;
    strncpy(addr.sun_path, Socket().c_str(), sizeof(addr.sun_path) - 1);
    ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr *>(&addr), sizeof(addr)), 0);
    ASSERT_EQ(listen(fd, 5), 0);
    EXPECT_NE(OpenError(Spec("&connect-timeout-ms=50"), &err).find("handshake"), std::string::npos);
    EXPECT_EQ(err, ETIMEDOUT);
    close(fd);
}

static int FreePort()
{
    sockaddr_in addr = {};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr *>(&addr), sizeof(addr)), 0);
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr *>(&addr), &len), 0);
    close(fd);
    return ntohs(addr.sin_port);
}

static bool HasPort(const std::string &port)
{
    sockaddr_in addr = {};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    addr.sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
    bool works = connect(fd, reinterpret_cast<sockaddr *>(&addr), sizeof(addr)) == 0;
    close(fd);
    return works;
}

/* Opens @spec once the server can be reached; NULL when it has ended: the port was taken. */
static BlockBackend *OpenSoon(Server &server, const std::string &spec)
{
    BlockBackend *blk = nullptr;

    WaitUntil([&] { return (blk = blk_open(spec.c_str(), nullptr)) || !server.Runs(); });
    return blk;
}

/* libnbd's look-ups come here too: two.test has two addresses, of which no server has the first. */
extern "C" int getaddrinfo(const char *host, const char *port, const addrinfo *hints,
                           addrinfo **ret_found)
{
    static auto *real = reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
    bool two = host && !strcmp(host, "two.test") && !(hints->ai_flags & AI_NUMERICHOST);
    int ret = real(two ? "127.0.0.2" : host, port, hints, ret_found);

    return two && ret == 0 ? real("127.0.0.1", port, hints, &(*ret_found)->ai_next) : ret;
}

TEST_P(NbdClient, OverTcpByNameAndAfterARestart)
{
    /* With TLS it is libnbd that goes through the addresses. */
    for (const char *where : { "localhost", "two.test", "two.test:allow" }) {
        LocalContext ctx(Monitor());
        std::string host = where, query = "?reconnect-delay-ms=5", port;
        Server server("");
        Blk blk;
        char buf[512] = { 'x' };

        if (host.find(':') != std::string::npos) {
            host.resize(host.find(':'));
            query += "&tls=allow&connect-timeout-ms=60000";
        }
        ASSERT_EQ(RunCommand("truncate -s 1M " + Disk()).status, 0);
        for (int i = 0; i < 10 && !blk; i++) {
            port = std::to_string(FreePort());
            server.Kill();
            server.Spawn({ "-i", "127.0.0.1", "-p", port }, With({ "file", Disk() }));
            blk.reset(OpenSoon(server, "nbd://" + host + ":" + port + query));
        }
        ASSERT_TRUE(blk);
        ASSERT_EQ(blk_pwrite(blk.get(), 512, 512, buf, BdrvRequestFlags(0)), 0);
        buf[0] = 0;
        server.Kill();
        auto is_back =
            [&] { /* somebody may have the port for a moment */
                  if (!server.Runs()) {
                      server.Spawn({ "-i", "127.0.0.1", "-p", port }, With({ "file", Disk() }));
                  }
                  return HasPort(port) && server.Runs();
            };
        ASSERT_TRUE(WaitUntil(is_back));
        EXPECT_EQ(blk_pread(blk.get(), 512, 512, buf, BdrvRequestFlags(0)), 0) << where;
        EXPECT_EQ(buf[0], 'x');
    }
}

TEST_P(NbdClient, WithTls)
{
    LocalContext ctx(Monitor());
    Server server(Socket());
    std::string psk = dir_.Path("psk");
    std::vector<char> data(3 << 20, 'x'), back(3 << 20);

    WriteFile(psk, "alice:000102030405060708090a0b0c0d0e0f\n");
    server.Start(With({ "--tls=require", "--tls-psk=" + psk, "memory", "9M" }));
    EXPECT_NE(OpenError(Spec()), "");
    std::string spec = "nbds+unix://alice@/?socket=" + Socket() + "&tls-psk-file=" + psk;
    Blk blk = Open(spec);
    ASSERT_EQ(blk_pwrite(blk.get(), 1, 3 << 20, data.data(), BdrvRequestFlags(0)), 0);
    ASSERT_EQ(blk_pread(blk.get(), 1, 3 << 20, back.data(), BdrvRequestFlags(0)), 0);
    EXPECT_EQ(data, back);
}

/* ---- Modules --------------------------------------------------------------------------------- */

#ifdef BLOCK_NBD_DIR
/* The program, which does not link the driver. */
static CommandResult Tool(const std::string &env, const std::string &args)
{
    return RunCommand(env + " " BLK_PROGRAM " " + args);
}

TEST(NbdModule, IsFoundByItsNames)
{
    if (!HaveNbdkit()) {
        GTEST_SKIP() << "nbdkit is not installed";
    }
    TempDir dir;
    std::string socket = dir.Path("s"), env = "AIOCTX_MODULE_DIR=/nowhere:" BLOCK_NBD_DIR;
    Server server(socket);

    server.Start({ kOneThread, "memory", "9M" });
    CommandResult r;
    if (!kSanitized) {
        r = Tool(env, "--conformance nbd+unix:///?socket=" + socket);
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_NE(r.output.find("1..23"), std::string::npos) << r.output;
    }
    for (const std::string &spec : { "blkdebug:nbd:socket=" + socket,
                                     "module:" BLOCK_NBD_DIR "/block-nbd.so,socket=" + socket,
                                     "throttle:iops=100000,module:block-nbd.so?socket=" + socket,
                                     "{\"driver\": \"nbd\", \"socket\": \"" + socket + "\"}",
                                     "{\"driver\": \"module\", \"module\": \"" BLOCK_NBD_DIR
                                     "/block-nbd.so\", \"socket\": \"" +
                                         socket + "\"}" }) {
        r = Tool(env, "--ios 10 --rw randwrite --verify crc32c --backend '" + spec + "'");
        EXPECT_EQ(r.status, 0) << spec << "\n" << r.output;
    }
    r = Tool("AIOCTX_MODULE_DIR=/nowhere:/neither", "--conformance nbdx:a=b");
    EXPECT_NE(r.output.find("unknown driver 'nbdx'; there are file, null"), std::string::npos)
        << r.output;
    EXPECT_NE(r.output.find("no module block-nbdx.so in /nowhere:/neither:"), std::string::npos)
        << r.output;
    r = Tool(env, "--conformance module:/nowhere/my.so,a=b");
    EXPECT_NE(r.output.find("cannot load '/nowhere/my.so'"), std::string::npos) << r.output;
}
#endif
