/* SPDX-License-Identifier: MIT */
/* aioctx-nbd with TLS, from outside: what the protocol document asks of a server with TLS, clients
 * that go wrong, and the clients that people use. */
#include "nbd_wire.h"
#include "tls_support.h"

#include <algorithm>
#include <regex>
#include <sys/socket.h>
#include <unistd.h>

using namespace nbd;

namespace
{

constexpr uint32_t kRepErrTlsReqd = 0x80000005;
const char kKey[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/* Certificates, a key for "alice" and two disks; made once. */
struct Pki {
    Pki()
    {
        WriteCertificates(dir.Path(""), &ours);
        WriteFile(dir.Path("keys.psk"), std::string("alice:") + kKey + "\n");
        WriteFile(dir.Path("wrong.psk"), "alice:" + std::string(64, 'a') + "\n");
        MakeDisk(dir.Path("disk.img"), kDiskBytes, kDiskSeed);
        MakeSparseDisk(dir.Path("copy.img"), kDiskBytes, 0, {});
    }
    ClientOptions X509() const
    {
        ClientOptions options;
        options.ca = ours.Cert();
        options.pair = { ReadFile(dir.Path("client-cert.pem")),
                         ReadFile(dir.Path("client-key.pem")) };
        return options;
    }
    ClientOptions Psk() const
    {
        ClientOptions options;
        options.psk_name = "alice";
        options.psk_key = kKey;
        return options;
    }

    TempDir dir;
    Authority ours{ "ours" };
};

Pki *pki;

/* For all tests of a suite. */
class WithPki
{
public:
    static void SetUpTestSuite()
    {
        pki = new Pki;
    }
    static void TearDownTestSuite()
    {
        delete pki;
        pki = nullptr;
    }
};

class NbdTlsStdio : public testing::Test, public WithPki
{
public:
    using WithPki::SetUpTestSuite;
    using WithPki::TearDownTestSuite;
};

class NbdTlsServer : public testing::TestWithParam<const char *>, public WithPki
{
public:
    using WithPki::SetUpTestSuite;
    using WithPki::TearDownTestSuite;

protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    /* A server of the two disks that knows certificates and keys. */
    void Start(std::vector<std::string> args)
    {
        args.insert(args.end(),
                    { "--monitor", GetParam(), "--export", "disk=file:" + pki->dir.Path("disk.img"),
                      "--export", "copy=file:" + pki->dir.Path("copy.img"), "--tls-certificates",
                      pki->dir.Path(""), "--tls-verify-peer", "--tls-psk",
                      pki->dir.Path("keys.psk") });
        server_ = std::make_unique<NbdServer>(args);
    }
    /* Asks for TLS, and has its handshake. */
    std::unique_ptr<TlsTunnel> StartTls(NbdClient *plain, const ClientOptions &options)
    {
        EXPECT_EQ(plain->OptionType(OPT_STARTTLS), REP_ACK);
        return std::make_unique<TlsTunnel>(dup(plain->fd()), options);
    }
    std::string Uri(const std::string &name, const std::string &user, const std::string &what) const
    {
        return "'nbds+unix://" + user + "/" + name + "?socket=" + server_->path() + "&" + what +
               "'";
    }
    std::string X509Uri(const std::string &name) const
    {
        return Uri(name, "", "tls-certificates=" + pki->dir.Path(""));
    }
    std::string PskUri(const std::string &name) const
    {
        return Uri(name, "alice@", "tls-psk-file=" + pki->dir.Path("keys.psk"));
    }
    bool LogSays(const std::string &text) const
    {
        return WaitUntil([&] { return server_->Log().find(text) != std::string::npos; });
    }

    std::unique_ptr<NbdServer> server_;
};

ON_EACH_MONITOR_OF_A_SLOW_SUITE(NbdTlsServer);

/* ---- The protocol ---------------------------------------------------------------------------- */

TEST_P(NbdTlsServer, WhoRequiresTlsDoesNothingWithoutIt)
{
    Start({}); /* credentials alone require it */
    NbdClient client(server_->path());

    client.Greet();
    for (uint32_t option : std::vector<uint32_t>{ OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY,
                                                  OPT_LIST_META, OPT_SET_META, 4, 77 }) {
        EXPECT_EQ(client.OptionType(option), kRepErrTlsReqd) << option;
        EXPECT_EQ(client.OptionType(option, InfoData("disk")), kRepErrTlsReqd) << option;
        EXPECT_EQ(client.OptionType(option, std::string(100000, 'x')), kRepErrTlsReqd) << option;
    }
    EXPECT_EQ(client.OptionType(OPT_STARTTLS, "data"), REP_ERR_INVALID);
    EXPECT_EQ(client.OptionType(OPT_ABORT), REP_ACK);
    EXPECT_TRUE(client.Closed());

    NbdClient old(server_->path());
    old.Greet().SendOption(OPT_EXPORT_NAME, "disk");
    EXPECT_TRUE(old.Closed());
    NbdClient unfixed(server_->path());
    unfixed.Greet(0).SendOption(OPT_STARTTLS);
    EXPECT_TRUE(unfixed.Closed());
}

TEST_P(NbdTlsServer, OverTlsAllIsAsWithout)
{
    Start({ "--tls", "require" });
    for (const ClientOptions &options : { pki->X509(), pki->Psk() }) {
        NbdClient plain(server_->path());
        auto tunnel = StartTls(&plain.Greet(), options);
        ASSERT_EQ(tunnel->result(), 0);
        plain.Close();

        NbdClient client(tunnel->TakeFd());
        EXPECT_EQ(client.OptionType(OPT_STARTTLS), REP_ERR_INVALID) << "it is running already";
        EXPECT_EQ(client.Option(OPT_LIST).size(), 3u);
        client.Structured();
        client.SelectAllocation("copy");
        EXPECT_EQ(client.Go("copy").size, kDiskBytes);
        std::string data = Pattern(0, 3 * kMiB, 9);
        EXPECT_EQ(client.Write(kMiB, data).error, OK);
        EXPECT_TRUE(Same(client.Read(kMiB, 3 * kMiB).data, data));
        EXPECT_EQ(client.Request(CMD_BLOCK_STATUS, 0, kMiB).error, OK);
        EXPECT_EQ(client.Read(kDiskBytes, 1).error, E_INVAL);
        EXPECT_EQ(client.Flush(), OK);
        client.SendRequest(CMD_DISC, 0, 0);
        EXPECT_TRUE(client.Closed());
        client.Close();
        EXPECT_TRUE(tunnel->EndedOrderly()) << "TLS's own end";
    }
}

TEST_P(NbdTlsServer, AbortIsAnsweredAndEndsTls)
{
    Start({});
    NbdClient plain(server_->path());
    auto tunnel = StartTls(&plain.Greet(), pki->Psk());
    plain.Close();
    NbdClient client(tunnel->TakeFd());

    EXPECT_EQ(client.OptionType(OPT_ABORT), REP_ACK);
    EXPECT_TRUE(client.Closed());
    client.Close();
    EXPECT_TRUE(tunnel->EndedOrderly());
}

TEST_P(NbdTlsServer, WhatWasAgreedOnBeforeIsForgotten)
{
    Start({ "--tls", "on" });
    NbdClient plain(server_->path());

    plain.Greet().Structured();
    plain.SelectAllocation("disk");
    auto tunnel = StartTls(&plain, pki->Psk());
    ASSERT_EQ(tunnel->result(), 0);
    plain.Close();
    NbdClient client(tunnel->TakeFd());
    EXPECT_EQ(client.OptionType(OPT_SET_META, MetaData("disk", { "base:allocation" })),
              REP_ERR_INVALID);
    NbdInfo info = client.Go("disk");
    EXPECT_EQ(info.flags & SEND_DF, 0) << "no structured replies";
    NbdReply reply = client.Read(4096, 4096);
    EXPECT_FALSE(reply.structured);
    EXPECT_TRUE(Same(reply.data, Pattern(4096, 4096, kDiskSeed)));
    EXPECT_NE(client.Request(CMD_BLOCK_STATUS, 0, 4096).error, OK);

    /* And without TLS, where it is optional. */
    NbdSession session(server_->path(), "disk");
    EXPECT_TRUE(session->Alive(0, Pattern(0, 4096, kDiskSeed)));
}

TEST_P(NbdTlsServer, WithoutTlsStarttlsIsRefused)
{
    Start({ "--tls", "off" });
    NbdClient client(server_->path());

    EXPECT_EQ(client.Greet().OptionType(OPT_STARTTLS), REP_ERR_POLICY);
    EXPECT_EQ(client.Go("disk").size, kDiskBytes);
}

/* What somebody on the way slips in behind STARTTLS must never be taken for the client's. */
TEST_P(NbdTlsServer, WhatComesBehindStarttlsIsNoCommand)
{
    Start({ "--tls", "on" });
    for (const std::string &injected :
         { OptionBytes(OPT_LIST, ""), OptionBytes(OPT_STRUCTURED_REPLY, ""), std::string("\x16"),
           OptionBytes(OPT_GO, InfoData("disk")).substr(0, 10) }) {
        NbdClient client(server_->path());

        client.Greet().Send(OptionBytes(OPT_STARTTLS, "") + injected);
        EXPECT_EQ(client.RecvOptReply(OPT_STARTTLS).type, REP_ACK);
        TlsTunnel tunnel(dup(client.fd()), pki->Psk());
        EXPECT_NE(tunnel.result(), 0) << "else it would come before what the client sends";
    }
    EXPECT_TRUE(LogSays("it sent something before TLS had begun"));
    NbdClient late(server_->path());
    EXPECT_EQ(late.Greet().OptionType(OPT_STARTTLS), REP_ACK);
    late.SendOption(OPT_LIST);
    std::string alert = late.Recv(1);
    EXPECT_EQ(alert, "\x15") << "an alert of TLS, not an answer";
    EXPECT_TRUE(late.DrainUntilClosed());
    EXPECT_TRUE(LogSays("the TLS handshake failed: "));
}

/* ---- Clients that go wrong ------------------------------------------------------------------- */

TEST_P(NbdTlsServer, WhoIsNotBelievedIsDroppedAndNobodyElse)
{
    Start({});
    ClientOptions stranger = pki->X509(), nobody = pki->X509(), wrong = pki->Psk();
    stranger.pair = Authority("theirs").Issue("stranger", GNUTLS_KP_TLS_WWW_CLIENT);
    nobody.pair = {};
    wrong.psk_key = std::string(64, 'a');

    NbdClient first(server_->path());
    auto tunnel = StartTls(&first.Greet(), pki->Psk());
    first.Close();
    NbdClient good(tunnel->TakeFd());
    good.Go("disk");
    for (const ClientOptions &options : { stranger, nobody, wrong }) {
        NbdClient plain(server_->path());
        auto bad = StartTls(&plain.Greet(), options);
        plain.Close();
        NbdClient client(bad->TakeFd());
        /* With TLS 1.3 the client may be done before the server has looked at it. */
        EXPECT_TRUE(bad->result() != 0 || client.DrainUntilClosed());
    }
    EXPECT_TRUE(LogSays("issuer is unknown"));
    EXPECT_TRUE(WaitUntil([&] {
        std::string log = server_->Log();
        std::regex said("dropped: the TLS handshake failed: ");
        return std::distance(std::sregex_iterator(log.begin(), log.end(), said),
                             std::sregex_iterator()) == 3;
    })) << server_->Log();
    EXPECT_TRUE(good.Alive(0, Pattern(0, 4096, kDiskSeed)));
}

/* The beginning of a client's first record, of which no more comes. */
std::string FirstBytes(size_t n)
{
    return (std::string("\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03", 11) + std::string(200, 'r'))
        .substr(0, n);
}

TEST_P(NbdTlsServer, AStalledHandshakeHoldsNobodyUp)
{
    Start({});
    std::vector<std::unique_ptr<NbdClient>> stalled;

    for (size_t bytes : { 0, 1, 5, 20, 100 }) {
        stalled.push_back(std::make_unique<NbdClient>(server_->path()));
        EXPECT_EQ(stalled.back()->Greet().OptionType(OPT_STARTTLS), REP_ACK);
        stalled.back()->Send(FirstBytes(bytes));
    }
    NbdClient plain(server_->path());
    auto tunnel = StartTls(&plain.Greet(), pki->X509());
    ASSERT_EQ(tunnel->result(), 0);
    plain.Close();
    NbdClient client(tunnel->TakeFd());
    client.Go("disk");
    EXPECT_TRUE(client.Alive(0, Pattern(0, 65536, kDiskSeed)));
}

TEST_P(NbdTlsServer, AStalledHandshakeEnds)
{
    /* So short a limit that on a slow machine answers may come too late: nothing relies on any. */
    NbdServer::Start start;
    std::string path = pki->dir.Path("stall");

    start.unix_socket = false;
    start.args = { "--monitor",
                   GetParam(),
                   "--export",
                   "disk=null:size=1M",
                   "--tls-psk",
                   pki->dir.Path("keys.psk"),
                   "--handshake-timeout",
                   "100ms",
                   "--unix",
                   path };
    NbdServer server(start);
    for (size_t bytes : { 0, 20 }) {
        int fd = -1;
        char answers[18 + 20];

        ASSERT_TRUE(WaitUntil([&] { return (fd = NbdClient::ConnectUnix(path)) >= 0; }));
        NbdClient client(fd);
        client.TrySend(Be32(3) + OptionBytes(OPT_STARTTLS, ""));
        (void)!recv(fd, answers, sizeof(answers), MSG_WAITALL);
        client.TrySend(FirstBytes(bytes));
        EXPECT_TRUE(client.DrainUntilClosed());
    }
    EXPECT_TRUE(WaitUntil([&] { return server.Log().find("took too long") != std::string::npos; }))
        << server.Log();
}

TEST_P(NbdTlsServer, ClientsThatVanishHarmNobody)
{
    Start({ "--threads", "2" });
    int fds = server_->Fds();

    for (int i = 0; i < 12; i++) {
        NbdClient plain(server_->path());
        auto tunnel = StartTls(&plain.Greet(), pki->Psk());
        NbdClient client(tunnel->TakeFd());

        if (i % 3 == 0) {
            client.SendOption(OPT_GO, InfoData("disk"));
        } else {
            client.Go("disk");
            for (int n = 0; n < 8; n++) {
                client.SendRequest(CMD_READ, 0, kMiB);
            }
            if (i % 3 == 2) {
                client.Recv(100000);
            }
        }
        shutdown(plain.fd(), SHUT_RDWR); /* under TLS's feet */
    }
    EXPECT_TRUE(WaitUntil([&] { return server_->Fds() <= fds; })) << server_->Log();
    server_->Stop();
}

/* ---- The clients that people use ------------------------------------------------------------- */

/* Runs a client, which has to end by itself, and well when @well; returns what it printed. */
std::string Client(const std::string &command, bool well = true)
{
    CommandResult r = RunCommand("timeout -s KILL 50 " + command);

    EXPECT_EQ(r.status == 0, well) << command << "\n" << r.output;
    EXPECT_LT(r.status, 128) << command << "\n" << r.output;
    return r.output;
}

TEST_P(NbdTlsServer, LibnbdsProgramsUseCertificatesAndKeys)
{
    SKIP_WITHOUT("nbdcopy", "libnbd-bin");
    Start({ "--threads", "2" });
    std::string disk = pki->dir.Path("disk.img"), out = pki->dir.Path("out.img");

    for (const std::string &uri : { X509Uri("disk"), PskUri("disk") }) {
        std::string info = Client("nbdinfo " + uri);
        EXPECT_NE(info.find("newstyle-fixed with TLS"), std::string::npos) << info;
        EXPECT_NE(info.find("base:allocation"), std::string::npos) << info;
    }
    EXPECT_NE(Client("nbdinfo --list " + PskUri("")).find("export=\"copy\""), std::string::npos);
    Client("nbdcopy --connections=4 --requests=16 " + X509Uri("disk") + " " + out);
    EXPECT_TRUE(Same(ReadFile(out), ReadFile(disk)));
    Client("nbdcopy --flush " + disk + " " + PskUri("copy"));
    EXPECT_TRUE(Same(ReadFile(pki->dir.Path("copy.img")), ReadFile(disk)));
    /* And who must not. */
    std::string wrong = "tls-psk-file=" + pki->dir.Path("wrong.psk");
    Client("nbdinfo " + Uri("disk", "alice@", wrong), false);
    Client("nbdinfo 'nbd+unix:///disk?socket=" + server_->path() + "'", false);
}

TEST_P(NbdTlsServer, QemuImgUsesCertificatesAndKeys)
{
    SKIP_WITHOUT("qemu-img", "qemu-utils");
    Start({ "--listen", "127.0.0.1:0" });
    std::string out = pki->dir.Path("qemu.img"), disk = pki->dir.Path("disk.img");
    std::string opts = "driver=nbd,export=disk,tls-creds=t,server.type=";
    std::string tcp =
        opts + "inet,server.host=localhost,server.port=" + std::to_string(server_->TcpPort());
    std::string local = opts + "unix,server.path=" + server_->path();

    Client("qemu-img convert --object tls-creds-x509,id=t,endpoint=client,dir=" +
           pki->dir.Path("") + " -O raw --image-opts " + tcp + " " + out);
    EXPECT_TRUE(Same(ReadFile(out), ReadFile(disk)));
    Client("qemu-img convert --object tls-creds-psk,id=t,endpoint=client,username=alice,dir=" +
           pki->dir.Path("") + " -O raw --image-opts " + local + " " + out);
    EXPECT_TRUE(Same(ReadFile(out), ReadFile(disk)));
    Client("qemu-img info 'nbd+unix:///disk?socket=" + server_->path() + "'", false);
}

/* On one monitor: what a stream lies over is nothing to them. */
TEST_F(NbdTlsStdio, ServesNbdsh)
{
    /* It may find another Python than the one that its module is installed for. */
    const std::string nbdsh = "env PATH=/usr/bin:\"$PATH\" nbdsh";
    SKIP_WITHOUT("nbdsh", "libnbd-bin");
    if (RunCommand(nbdsh + " -c pass").status != 0) {
        GTEST_SKIP() << "nbdsh finds no module nbd (Debian package python3-libnbd)";
    }
    WriteFile(pki->dir.Path("script"), R"(
h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_psk_file(dir + "/keys.psk")
h.set_tls_username("alice")
h.set_export_name("disk")
h.connect_command([program, "--stdio", "--export", "disk=file:" + image,
                   "--tls-psk", dir + "/keys.psk"])
assert h.get_tls_negotiated()
for i in range(8):
    h.pwrite(bytes([i + 1]) * 1000000, i * 1000000)
for i in range(8):
    assert h.pread(1000000, i * 1000000) == bytes([i + 1]) * 1000000
h.shutdown()
print("all well")
)");
    MakeSparseDisk(pki->dir.Path("stdio.img"), kDiskBytes, 0, {});
    std::string set = std::string("program = \"") + NBD_PROGRAM + "\"; dir = \"" +
                      pki->dir.Path("") + "\"; image = dir + \"/stdio.img\"";
    EXPECT_EQ(Client(nbdsh + " -c '" + set + "' -c \"exec(open('" + pki->dir.Path("script") +
                     "').read())\""),
              "all well\n");
}

/* ---- The command line ------------------------------------------------------------------------ */

TEST(NbdTlsCommandLine, WhatIsWrongIsNamed)
{
    TempDir dir;
    std::string always =
        std::string(NBD_PROGRAM) + " --export disk=null:size=1M --unix " + dir.Path("s") + " ";
    struct {
        std::string args, part;
    } const cases[] = {
        { "--tls maybe --tls-psk x", "off, on or require" },
        { "--tls on", "--tls: expected --tls-certificates DIR or --tls-psk FILE" },
        { "--tls-priority NORMAL", "--tls-priority: expected --tls-certificates DIR" },
        { "--tls-verify-peer --tls-psk x", "--tls-verify-peer: expected --tls-certificates" },
        { "--tls-psk /does/not/exist", "/does/not/exist: No such file" },
        { "--tls-certificates /does/not/exist", "/does/not/exist/server-cert.pem: No such file" },
    };

    for (const auto &c : cases) {
        CommandResult r = RunCommand(always + c.args);
        EXPECT_NE(r.status, 0) << c.args;
        EXPECT_LT(r.status, 128) << c.args;
        EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << c.args << r.output;
        EXPECT_NE(r.output.find(c.part), std::string::npos) << c.args << "\n" << r.output;
    }
}

} // namespace
