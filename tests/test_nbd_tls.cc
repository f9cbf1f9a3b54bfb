/* SPDX-License-Identifier: MIT */
/*
 * TLS of the export: credentials, and sessions against a client of GnuTLS.  Both ends of a session
 * are driven by one thread, in turn; a call that waited would end in the time limit.
 */
#include "support.h"

#include "command.h"
#include "tls_support.h"

extern "C" {
#include "nbd/tls.h"
}

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <memory>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <unistd.h>

static const char kAliceKey[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
static const char kWrongKey[] = "10112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
static const char kTls12[] = "NORMAL:-VERS-ALL:+VERS-TLS1.2";
static const char kTls13[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3";

static bool Contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

/* The authorities and files that all tests use: made once. */
struct Files {
    Files()
    {
        WriteCertificates(dir.path(), &ours);
        WriteFile(dir / "keys.psk",
                  std::string("alice:") + kAliceKey + "\n\n#613a62:0102030405\n#626f62:abcdef01\n");
    }
    ClientOptions Client() const
    {
        return { ReadFile(dir / "ca-cert.pem"), {}, "", "" };
    }
    ClientOptions Psk(const std::string &name, const std::string &key) const
    {
        return { "", {}, name, key };
    }

    ScratchDir dir;
    Authority ours{ "ours" }, theirs{ "theirs" };
};

static Files *files;

class NbdTlsTest : public testing::Test
{
protected:
    static void SetUpTestSuite()
    {
        files = new Files;
    }
    static void TearDownTestSuite()
    {
        delete files;
        files = nullptr;
    }
};

static NbdTls *New(const NbdTlsOptions &options)
{
    char *why = nullptr;
    NbdTls *tls = nbd_tls_new(&options, &why);

    EXPECT_NE(tls, nullptr) << why;
    free(why);
    return tls;
}

/* The message of credentials that are refused with @error. */
static std::string Refused(const NbdTlsOptions &options, int error)
{
    char *why = nullptr;
    NbdTls *tls = nbd_tls_new(&options, &why);
    std::string text;

    EXPECT_EQ(tls, nullptr);
    EXPECT_EQ(errno, error);
    text = why ? why : "";
    free(why);
    nbd_tls_unref(tls);
    return text;
}

static NbdTlsOptions Certificates(bool verify_peer = false)
{
    static std::string dir;

    dir = files->dir.path();
    return { dir.c_str(), nullptr, nullptr, verify_peer };
}

static NbdTlsOptions Keys()
{
    static std::string path;

    path = files->dir / "keys.psk";
    return { nullptr, path.c_str(), nullptr, false };
}

static int Shake(NbdStream *s)
{
    return s->ops->handshake(s);
}

static ssize_t Sendv(NbdStream *s, const struct iovec *iov, int n)
{
    return nbd_stream_sendv(s, iov, n);
}

static void Bye(NbdStream *s)
{
    s->ops->bye(s);
}

/* A server's and a client's end over a pair of sockets. */
class Session
{
public:
    Session(const NbdTlsOptions &server, const ClientOptions &client, int buffer_bytes = 0)
    {
        Connect(server, buffer_bytes);
        client_ = std::make_unique<TlsClient>(fds_[1], client);
    }
    /* Without a TLS client: what it sends is the test's. */
    explicit Session(const NbdTlsOptions &server)
    {
        Connect(server, 0);
    }
    ~Session()
    {
        client_.reset();
        s_->ops->destroy(s_);
        if (fds_[1] >= 0) {
            close(fds_[1]);
        }
    }
    /* Until both ends are done or one has failed; returns the server's result.  The client's is in
     * client_result. */
    int Handshake()
    {
        int ret = -EAGAIN;

        client_result = GNUTLS_E_AGAIN;
        for (int i = 0; i < 1000 && (ret == -EAGAIN || client_result == GNUTLS_E_AGAIN); i++) {
            if (client_result == GNUTLS_E_AGAIN) {
                client_result = client_->Handshake();
            }
            if (ret == -EAGAIN) {
                ret = Shake(s_);
            }
            if (ret == 0 && client_result < 0 && client_result != GNUTLS_E_AGAIN) {
                break; /* with TLS 1.3 either side may be the first to be done */
            }
        }
        return ret;
    }
    std::string Why() const
    {
        const char *why = s_->ops->why(s_);

        return why ? why : "";
    }
    void CloseClient()
    {
        close(fds_[1]);
        fds_[1] = -1;
    }
    NbdStream *s() const
    {
        return s_;
    }
    gnutls_session_t c() const
    {
        return client_->get();
    }
    int server_fd() const
    {
        return fds_[0];
    }
    int client_fd() const
    {
        return fds_[1];
    }
    /* The server receives up to @len bytes. */
    std::string Recv(size_t len, ssize_t *ret)
    {
        std::string buf(len, 0);

        struct iovec iov[] = { { buf.data(), len / 3 }, { buf.data() + len / 3, len - len / 3 } };
        *ret = nbd_stream_recvv(s_, iov, 2);
        buf.resize(std::max<ssize_t>(*ret, 0));
        return buf;
    }

    int client_result = 0;

private:
    void Connect(const NbdTlsOptions &options, int buffer_bytes)
    {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds_), 0);
        for (int fd : fds_) {
            if (buffer_bytes) {
                setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
            }
        }
        NbdTls *tls = New(options);
        ASSERT_NE(tls, nullptr);
        s_ = nbd_tls_stream_new(tls, nbd_stream_new(fds_[0], fds_[0]));
        nbd_tls_unref(tls); /* the stream has its own */
        ASSERT_NE(s_, nullptr);
    }

    int fds_[2] = { -1, -1 };
    NbdStream *s_ = nullptr;
    std::unique_ptr<TlsClient> client_;
};

/* ---- Credentials ----------------------------------------------------------------------------- */

TEST_F(NbdTlsTest, CredentialsNameWhatIsWrong)
{
    NbdTlsOptions options{};
    EXPECT_TRUE(Contains(Refused(options, EINVAL), "neither certificates nor shared keys"));

    options = Keys();
    options.verify_peer = true;
    EXPECT_TRUE(Contains(Refused(options, EINVAL), "where the server has some itself"));

    options = Keys();
    options.priority = "NORMAL:+NO-SUCH-THING";
    std::string why = Refused(options, EINVAL);
    EXPECT_TRUE(Contains(why, "'NORMAL:+NO-SUCH-THING' at '+NO-SUCH-THING")) << why;

    options = { "/nonexistent", nullptr, nullptr, false };
    EXPECT_EQ(Refused(options, ENOENT),
              "tls: cannot read /nonexistent/server-cert.pem: No such file or directory");
    options = { nullptr, "/nonexistent", nullptr, false };
    EXPECT_EQ(Refused(options, ENOENT), "tls: cannot read /nonexistent: No such file or directory");
    options = { nullptr, "/", nullptr, false };
    EXPECT_EQ(Refused(options, EISDIR), "tls: cannot read /: Is a directory");
    options = { nullptr, "/dev/zero", nullptr, false };
    EXPECT_EQ(Refused(options, EFBIG), "tls: cannot read /dev/zero: File too large");
}

TEST_F(NbdTlsTest, CertificatesHaveToFit)
{
    ScratchDir dir;
    std::string path = dir.path();
    NbdTlsOptions options{ path.c_str(), nullptr, nullptr, true };

    WriteCertificates(path, &files->ours);
    WriteFile(dir / "ca-cert.pem", "");
    EXPECT_TRUE(Contains(Refused(options, EINVAL), "/ca-cert.pem: "));
    unlink((dir / "ca-cert.pem").c_str());
    EXPECT_TRUE(Contains(Refused(options, ENOENT), "/ca-cert.pem: No such file"));
    options.verify_peer = false; /* nobody to verify: no need */
    nbd_tls_unref(New(options));

    options.verify_peer = true;
    WriteFile(dir / "ca-cert.pem", files->ours.Cert());
    WriteFile(dir / "ca-crl.pem", "nonsense");
    EXPECT_TRUE(Contains(Refused(options, EINVAL), "/ca-crl.pem: "));
    unlink((dir / "ca-crl.pem").c_str());

    WriteFile(dir / "server-key.pem", ReadFile(dir / "client-key.pem"));
    EXPECT_TRUE(Contains(Refused(options, EINVAL), "server-cert.pem and server-key.pem of "));
}

TEST_F(NbdTlsTest, BadLinesOfKeysAreNamed)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        { "", "line 1: there is no key in the file" },
        { "\n\n", "line 1: there is no key in the file" },
        { "a:00\nno colon\n", "line 2: there is no ':'" },
        { ":0011\n", "line 1: the name is empty" },
        { "#:0011\n", "line 1: the name after '#' is not hexadecimal" },
        { "#6:0011\n", "line 1: the name after '#' is not hexadecimal" },
        { "a:\n", "line 1: the key is not an even number" },
        { "a:001\n", "line 1: the key is not an even number" },
        { "a:00xx\n", "line 1: the key is not an even number" },
        { "a:00\r\n", "line 1: the key is not an even number" },
        { "a:00\n\na:01", "line 3: the name has a key already" },
    };
    ScratchDir dir;
    std::string path = dir / "keys";
    NbdTlsOptions options{ nullptr, path.c_str(), nullptr, false };

    for (const auto &c : cases) {
        WriteFile(path, c.text);
        std::string why = Refused(options, EINVAL);
        EXPECT_TRUE(Contains(why, "tls: " + path + ", " + c.why)) << why << "\n" << c.text;
    }
    WriteFile(path, "a:00\nb:FfAa"); /* no newline at the end */
    nbd_tls_unref(New(options));
    std::string many;
    for (int i = 0; i < 1000; i++) { /* more than one buffer */
        many += "user" + std::to_string(i) + ":" + kAliceKey + "\n";
    }
    WriteFile(path, many);
    nbd_tls_unref(New(options));
}

/* ---- Handshakes ------------------------------------------------------------------------------ */

static void Echo(Session *session)
{
    const std::string text = "hello";
    struct iovec iov = { (void *)"world", 5 };
    char buf[16];
    ssize_t ret;

    ASSERT_EQ(gnutls_record_send(session->c(), text.data(), text.size()), 5);
    EXPECT_EQ(session->Recv(16, &ret), text);
    EXPECT_EQ(Sendv(session->s(), &iov, 1), 5);
    ASSERT_EQ(gnutls_record_recv(session->c(), buf, sizeof(buf)), 5);
    EXPECT_EQ(std::string(buf, 5), "world");
}

TEST_F(NbdTlsTest, AServerShowsItsCertificate)
{
    for (const char *priority : { kTls12, kTls13, "NORMAL" }) {
        ClientOptions client = files->Client();
        client.priority = priority;
        Session session(Certificates(), client);

        ASSERT_EQ(session.Handshake(), 0) << session.Why();
        ASSERT_EQ(session.client_result, 0);
        EXPECT_EQ(session.Why(), "");
        char *text = nbd_tls_stream_describe(session.s());
        EXPECT_TRUE(Contains(text, priority == kTls12 ? "TLS1.2" : "TLS1.3")) << text;
        free(text);
        Echo(&session);
    }
}

TEST_F(NbdTlsTest, OldVersionsAreRefused)
{
    ClientOptions client = files->Client();
    client.priority = "NORMAL:-VERS-ALL:+VERS-TLS1.1:%COMPAT";
    Session session(Certificates(), client);

    EXPECT_EQ(session.Handshake(), -EPROTO);
}

TEST_F(NbdTlsTest, APriorityOfOnesOwnIsKept)
{
    NbdTlsOptions options = Certificates();
    options.priority = kTls12;
    Session session(options, files->Client());

    ASSERT_EQ(session.Handshake(), 0);
    EXPECT_EQ(gnutls_protocol_get_version(session.c()), GNUTLS_TLS1_2);
}

TEST_F(NbdTlsTest, AKeyOpensWhatItsNameSays)
{
    for (const char *priority : { kTls12, kTls13 }) {
        for (bool certificates_too : { false, true }) {
            NbdTlsOptions options = Keys();
            if (certificates_too) {
                options.certificates = Certificates().certificates;
                options.verify_peer = true; /* not of who has a key */
            }
            for (ClientOptions client :
                 { files->Psk("alice", kAliceKey), files->Psk("bob", "abcdef01"),
                   files->Psk("a:b", "0102030405") }) {
                client.priority = priority;
                Session session(options, client);
                ASSERT_EQ(session.Handshake(), 0) << session.Why() << priority;
                ASSERT_EQ(session.client_result, 0);
                Echo(&session);
            }
        }
    }
}

TEST_F(NbdTlsTest, AWrongKeyAndAnUnknownNameLookTheSame)
{
    for (const char *priority : { kTls12, kTls13 }) {
        ClientOptions wrong = files->Psk("alice", kWrongKey),
                      unknown = files->Psk("eve", kAliceKey);
        wrong.priority = unknown.priority = priority;
        Session a(Keys(), wrong), b(Keys(), unknown);

        EXPECT_EQ(a.Handshake(), -EPROTO);
        EXPECT_NE(a.client_result, 0);
        EXPECT_NE(a.Why(), "");
        EXPECT_EQ(b.Handshake(), -EPROTO);
        EXPECT_EQ(b.client_result, a.client_result);
        EXPECT_EQ(gnutls_alert_get(b.c()), gnutls_alert_get(a.c()));
        EXPECT_EQ(b.Why(), a.Why());
    }
}

TEST_F(NbdTlsTest, AClientThatDoesNotBelieveUsIsToldOf)
{
    ClientOptions client = files->Client();
    client.ca = files->theirs.Cert();
    client.priority = kTls12; /* with 1.3 the server's part may be complete before the alert */
    Session session(Certificates(), client);

    EXPECT_EQ(session.Handshake(), -EPROTO);
    EXPECT_EQ(session.client_result, GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR);
    EXPECT_TRUE(Contains(session.Why(), "the client ended it with the alert")) << session.Why();
    EXPECT_EQ(Shake(session.s()), -EPROTO); /* for ever */
}

TEST_F(NbdTlsTest, ACertificateIsDemanded)
{
    ScratchDir dir;
    std::string path = dir.path();
    NbdTlsOptions options{ path.c_str(), nullptr, nullptr, true };
    PemPair good = files->ours.Issue("good", GNUTLS_KP_TLS_WWW_CLIENT),
            stranger = files->theirs.Issue("stranger", GNUTLS_KP_TLS_WWW_CLIENT),
            revoked = files->ours.Issue("revoked", GNUTLS_KP_TLS_WWW_CLIENT),
            server = files->ours.Issue("server", GNUTLS_KP_TLS_WWW_SERVER);

    WriteCertificates(path, &files->ours);
    WriteFile(dir / "ca-crl.pem", files->ours.Revoke(revoked.cert));
    struct {
        PemPair pair;
        const char *why; /* NULL: let in */
    } cases[] = {
        { good, nullptr },      { {}, "ertificate" },           { stranger, "issuer is unknown" },
        { revoked, "revoked" }, { server, "intended purpose" },
    };
    for (const char *priority : { kTls12, kTls13 }) {
        for (const auto &c : cases) {
            ClientOptions client = files->Client();
            client.pair = c.pair;
            client.priority = priority;
            Session session(options, client);

            EXPECT_EQ(session.Handshake(), c.why ? -EPROTO : 0) << c.why << session.Why();
            if (c.why) {
                EXPECT_TRUE(Contains(session.Why(), c.why)) << session.Why();
            } else {
                Echo(&session);
            }
        }
    }
}

TEST_F(NbdTlsTest, WhatIsNoTlsFailsAtOnce)
{
    std::string option("IHAVEOPT\0\0\0\3\0\0\0\0", 16);
    std::string noise(65536, 0);
    std::mt19937 random(1);

    std::generate(noise.begin(), noise.end(), [&] { return (char)random(); });
    for (const std::string &text : { option, noise, std::string(100, '\0') }) {
        Session session(Certificates());

        ASSERT_EQ(write(session.client_fd(), text.data(), text.size()), (ssize_t)text.size());
        EXPECT_EQ(Shake(session.s()), -EPROTO);
        EXPECT_NE(session.Why(), "");
        EXPECT_EQ(Shake(session.s()), -EPROTO);
        Bye(session.s()); /* does no harm */
    }
}

TEST_F(NbdTlsTest, AClientThatLeavesInTheHandshake)
{
    Session silent(Certificates()), partly(Certificates());

    EXPECT_EQ(Shake(silent.s()), -EAGAIN);
    silent.CloseClient();
    EXPECT_EQ(Shake(silent.s()), -ECONNRESET);
    ASSERT_EQ(write(partly.client_fd(), "\x16\x03\x01\x02", 4), 4);
    partly.CloseClient();
    EXPECT_EQ(Shake(partly.s()), -ECONNRESET);
}

/* What the client sends goes through byte by byte, up to @limit bytes; the server's answers at
 * once. */
static int DripHandshake(NbdStream *s, int to_server, int client_side, TlsClient *client,
                         size_t limit)
{
    size_t done = 0;
    int ret = -EAGAIN, theirs = GNUTLS_E_AGAIN;
    char byte, buf[4096];

    while (ret == -EAGAIN || theirs == GNUTLS_E_AGAIN) {
        if (theirs == GNUTLS_E_AGAIN) {
            theirs = client->Handshake();
        }
        if (done < limit && read(client_side, &byte, 1) == 1) {
            EXPECT_EQ(write(to_server, &byte, 1), 1);
            done++;
        } else if (done == limit) {
            break;
        }
        if (ret == -EAGAIN) {
            ret = Shake(s);
            if (ret == -EAGAIN) {
                EXPECT_EQ(s->recv_waits, (unsigned)NBD_STREAM_IN);
            }
        }
        ssize_t n = read(to_server, buf, sizeof(buf));
        if (n > 0) {
            EXPECT_EQ(write(client_side, buf, (size_t)n), n);
        }
    }
    return ret;
}

TEST_F(NbdTlsTest, AHandshakeComesByteByByteOrNotToAnEnd)
{
    for (size_t limit : { SIZE_MAX, (size_t)3, (size_t)150 }) {
        int a[2], b[2];
        NbdTls *tls = New(Certificates());

        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, a), 0);
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, b), 0);
        {
            TlsClient client(b[0], files->Client());
            NbdStream *s = nbd_tls_stream_new(tls, nbd_stream_new(a[0], a[0]));
            EXPECT_EQ(DripHandshake(s, a[1], b[1], &client, limit),
                      limit == SIZE_MAX ? 0 : -EAGAIN);
            s->ops->destroy(s); /* in mid-handshake too */
        }
        nbd_tls_unref(tls);
        for (int fd : { a[1], b[0], b[1] }) {
            close(fd);
        }
    }
}

TEST_F(NbdTlsTest, AClientThatReadsNothingStallsOnlyItself)
{
    ClientOptions options = files->Client();
    Session session(Certificates(), options);
    std::string fill(1 << 16, 'x');

    /* The server's way out is full before it begins. */
    while (write(session.server_fd(), fill.data(), fill.size()) > 0) {
    }
    ASSERT_EQ(errno, EAGAIN);
    EXPECT_EQ(gnutls_handshake(session.c()) < 0, true);
    EXPECT_EQ(Shake(session.s()), -EAGAIN);
    EXPECT_EQ(session.s()->recv_waits, (unsigned)NBD_STREAM_OUT);
    EXPECT_EQ(Shake(session.s()), -EAGAIN);
}

TEST_F(NbdTlsTest, OneSetOfCredentialsServesManyThreads)
{
    NbdTls *tls = New(Certificates());

    RunThreads(4, [tls](int) {
        for (int i = 0; i < 5; i++) {
            int fds[2];
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
            NbdStream *s = nbd_tls_stream_new(tls, nbd_stream_new(fds[0], fds[0]));
            {
                TlsClient client(fds[1], files->Client());
                int ret, theirs;
                do {
                    theirs = client.Handshake();
                    ret = Shake(s);
                } while (ret == -EAGAIN && theirs == GNUTLS_E_AGAIN);
                EXPECT_TRUE(ret == 0 || theirs == 0);
            }
            s->ops->destroy(s);
            close(fds[1]);
        }
    });
    nbd_tls_unref(tls);
}

/* ---- Data ------------------------------------------------------------------------------------ */

class NbdTlsDataTest : public NbdTlsTest, public testing::WithParamInterface<const char *>
{
protected:
    std::unique_ptr<Session> Open(int buffer_bytes = 0)
    {
        ClientOptions client = files->Client();
        client.priority = GetParam();
        auto session = std::make_unique<Session>(Certificates(), client, buffer_bytes);
        EXPECT_EQ(session->Handshake(), 0);
        EXPECT_EQ(session->client_result, 0);
        return session;
    }
};

INSTANTIATE_TEST_SUITE_P(Versions, NbdTlsDataTest, testing::Values(kTls12, kTls13),
                         [](const auto &info) {
                             return std::string(info.param == kTls12 ? "Tls12" : "Tls13");
                         });

/* What a loop goes by: whether recvv is to be called. */
static bool MayReceive(NbdStream *s)
{
    struct pollfd pfd = { s->rfd, POLLIN, 0 };

    return nbd_stream_has_input(s) || poll(&pfd, 1, 0) == 1;
}

TEST_P(NbdTlsDataTest, WhatIsLeftInTheStreamIsTold)
{
    auto session = Open();
    ssize_t ret;

    EXPECT_FALSE(MayReceive(session->s()));
    session->Recv(10, &ret);
    EXPECT_EQ(ret, -EAGAIN);

    for (const char *text : { "abcd", "efgh", "ijkl" }) {
        ASSERT_EQ(gnutls_record_send(session->c(), text, 4), 4);
    }
    EXPECT_FALSE(nbd_stream_has_input(session->s()));
    EXPECT_TRUE(MayReceive(session->s()));
    EXPECT_EQ(session->Recv(6, &ret), "abcdef");
    struct pollfd pfd = { session->server_fd(), POLLIN, 0 };
    EXPECT_EQ(poll(&pfd, 1, 0), 0); /* all of it is in the stream already */
    EXPECT_TRUE(nbd_stream_has_input(session->s()));
    EXPECT_EQ(session->Recv(5, &ret), "ghijk");
    EXPECT_TRUE(nbd_stream_has_input(session->s()));
    EXPECT_EQ(session->Recv(5, &ret), "l");
    EXPECT_FALSE(MayReceive(session->s()));
    session->Recv(1, &ret);
    EXPECT_EQ(ret, -EAGAIN);

    ASSERT_EQ(gnutls_record_send(session->c(), "last", 4), 4);
    ASSERT_EQ(gnutls_bye(session->c(), GNUTLS_SHUT_WR), 0); /* the socket stays open */
    EXPECT_EQ(session->Recv(10, &ret), "last");
    EXPECT_TRUE(nbd_stream_has_input(session->s()));
    session->Recv(10, &ret);
    EXPECT_EQ(ret, 0);
}

TEST_P(NbdTlsDataTest, TinyRecordsAreTakenSomeAtATime)
{
    auto session = Open();
    std::string got;
    int calls = 0;

    for (int i = 0; i < 200; i++) {
        ASSERT_EQ(gnutls_record_send(session->c(), "x", 1), 1);
    }
    do {
        ssize_t ret;
        got += session->Recv(1000, &ret);
        calls++;
    } while (nbd_stream_has_input(session->s()));
    EXPECT_EQ(got, std::string(200, 'x'));
    EXPECT_GT(calls, 2);
}

/* What the client receives in one record. */
static size_t RecordBytes(gnutls_session_t c)
{
    static char buf[65536];
    ssize_t n = gnutls_record_recv(c, buf, sizeof(buf));

    return n < 0 ? 0 : (size_t)n;
}

TEST_P(NbdTlsDataTest, SmallPiecesShareARecord)
{
    auto session = Open();
    std::string small(16, 's'), data(40000, 'd');
    struct iovec iov[] = { { small.data(), 16 },   { nullptr, 0 },       { small.data(), 16 },
                           { data.data(), 40000 }, { small.data(), 16 }, { nullptr, 0 } };

    EXPECT_EQ(Sendv(session->s(), iov, 3), 32);
    EXPECT_EQ(RecordBytes(session->c()), 32u);
    EXPECT_EQ(Sendv(session->s(), iov, 6), 40048);
    EXPECT_EQ(RecordBytes(session->c()), 16384u);
    EXPECT_EQ(RecordBytes(session->c()), 16384u);
    EXPECT_EQ(RecordBytes(session->c()), 40048u - 2 * 16384u);
    EXPECT_EQ(Sendv(session->s(), iov, 0), 0);
    EXPECT_EQ(Sendv(session->s(), iov + 1, 1), 0);
    EXPECT_EQ(RecordBytes(session->c()), 0u);
}

TEST_P(NbdTlsDataTest, TheEndIsToldFromACut)
{
    for (bool orderly : { true, false }) {
        auto session = Open();
        ssize_t ret;

        ASSERT_EQ(gnutls_record_send(session->c(), "last", 4), 4);
        if (orderly) {
            ASSERT_EQ(gnutls_bye(session->c(), GNUTLS_SHUT_WR), 0);
        }
        session->CloseClient();
        EXPECT_EQ(session->Recv(100, &ret), "last");
        for (int i = 0; i < 2; i++) {
            EXPECT_TRUE(MayReceive(session->s()));
            session->Recv(100, &ret);
            EXPECT_EQ(ret, orderly ? 0 : -ECONNRESET);
        }
        struct iovec iov = { (void *)"x", 1 };
        EXPECT_LT(Sendv(session->s(), &iov, 1), 0); /* and no SIGPIPE */
        EXPECT_NE(session->Why(), "");
    }
}

TEST_P(NbdTlsDataTest, AForgedByteEndsIt)
{
    auto session = Open();
    ssize_t ret;

    ASSERT_EQ(gnutls_record_send(session->c(), "good", 4), 4);
    ASSERT_EQ(write(session->client_fd(), "\x17\x03\x03\x00\x20", 5), 5);
    ASSERT_EQ(write(session->client_fd(), std::string(32, 'f').data(), 32), 32);
    EXPECT_EQ(session->Recv(100, &ret), "good");
    session->Recv(100, &ret);
    EXPECT_EQ(ret, -EPROTO);
    EXPECT_TRUE(nbd_stream_has_input(session->s()));
    char c;
    EXPECT_EQ(gnutls_record_recv(session->c(), &c, 1), GNUTLS_E_FATAL_ALERT_RECEIVED);
    EXPECT_EQ(gnutls_alert_get(session->c()), GNUTLS_A_BAD_RECORD_MAC);
}

TEST_P(NbdTlsDataTest, ByeNeverWaits)
{
    auto session = Open(4096);
    std::string data(1 << 20, 'd');
    struct iovec iov = { data.data(), data.size() };
    ssize_t n = Sendv(session->s(), &iov, 1);
    char buf[16384];

    EXPECT_TRUE(n == -EAGAIN || (n > 0 && n < (ssize_t)data.size()));
    EXPECT_EQ(Sendv(session->s(), &iov, 1), -EAGAIN);
    Bye(session->s()); /* half a record is out: there is no place for it */
    while (gnutls_record_recv(session->c(), buf, sizeof(buf)) > 0) {
    }
    auto other = Open();
    Bye(other->s());
    EXPECT_EQ(gnutls_record_recv(other->c(), buf, sizeof(buf)), 0);
    ASSERT_EQ(gnutls_record_send(other->c(), "yet", 3), 3);
    ssize_t ret;
    EXPECT_EQ(other->Recv(10, &ret), "yet");
}

/* One direction of a transfer: what was sent is there to be compared with. */
struct Stream {
    explicit Stream(unsigned seed) : data(kBytes, 0)
    {
        std::mt19937 random(seed);
        std::generate(data.begin(), data.end(), [&] { return (char)random(); });
    }
    static constexpr size_t kBytes = kSanitized ? 1 << 18 : 2 << 20;
    std::string data, got;
    size_t sent = 0;
};

/* Sends some of @stream, cut into pieces as chance has it: other ones at each attempt. */
static void ServerSends(NbdStream *s, Stream *stream, std::mt19937 *random)
{
    std::vector<struct iovec> iov;
    size_t at = stream->sent, most = 64;

    while (at < Stream::kBytes && iov.size() < most) {
        static const size_t sizes[] = { 0, 1, 16, 100, 4096, 16384, 16385, 70000, 300000 };
        size_t n = std::min(sizes[(*random)() % 9], Stream::kBytes - at);
        iov.push_back({ stream->data.data() + at, n });
        at += n;
    }
    if (at - stream->sent < 65536 && at < Stream::kBytes) { /* never less than the last time */
        iov.push_back({ stream->data.data() + at, Stream::kBytes - at });
    }
    ssize_t n = Sendv(s, iov.data(), (int)iov.size());
    if (n > 0) {
        stream->sent += (size_t)n;
    } else {
        ASSERT_EQ(n, stream->sent == Stream::kBytes ? 0 : -EAGAIN);
    }
}

static void ServerReceives(NbdStream *s, Stream *stream, std::mt19937 *random)
{
    static char buf[100000];

    if (!MayReceive(s)) {
        return; /* as a loop would: it comes again only when this changes */
    }
    struct iovec iov = { buf, 1 + (*random)() % sizeof(buf) };
    ssize_t n = nbd_stream_recvv(s, &iov, 1);

    if (n > 0) {
        stream->got.append(buf, (size_t)n);
    } else {
        ASSERT_EQ(n, -EAGAIN);
    }
}

static void ClientSends(gnutls_session_t c, Stream *stream, std::mt19937 *random, size_t *unsent)
{
    size_t len = *unsent ? *unsent
                         : std::min<size_t>(1 + (*random)() % 16384, Stream::kBytes - stream->sent);
    ssize_t n = *unsent ? gnutls_record_send(c, nullptr, 0)
                        : gnutls_record_send(c, stream->data.data() + stream->sent, len);

    *unsent = n == GNUTLS_E_AGAIN ? len : 0;
    stream->sent += n > 0 ? (size_t)n : 0;
    ASSERT_TRUE(n > 0 || n == GNUTLS_E_AGAIN) << gnutls_strerror((int)n);
}

static void ClientReceives(gnutls_session_t c, Stream *stream)
{
    char buf[16384];
    ssize_t n = gnutls_record_recv(c, buf, sizeof(buf));

    if (n > 0) {
        stream->got.append(buf, (size_t)n);
    } else {
        ASSERT_EQ(n, GNUTLS_E_AGAIN) << gnutls_strerror((int)n);
    }
}

TEST_P(NbdTlsDataTest, BothWaysAtOnceThroughShortBuffers)
{
    auto session = Open(4096);
    Stream out(1), in(2);
    std::mt19937 random(3);
    size_t unsent = 0;
    bool updated = false;

    for (int i = 0; out.got.size() < Stream::kBytes || in.got.size() < Stream::kBytes; i++) {
        ASSERT_LT(i, 10000000);
        switch (random() % 4) {
        case 0:
            ServerSends(session->s(), &out, &random);
            break;
        case 1:
            ServerReceives(session->s(), &in, &random);
            break;
        case 2:
            /* Once, new keys on the way, in both directions. */
            if (GetParam() == kTls13 && !updated && !unsent && in.sent > Stream::kBytes / 2) {
                int ret = gnutls_session_key_update(session->c(), GNUTLS_KU_PEER);
                ASSERT_TRUE(ret == 0 || ret == GNUTLS_E_AGAIN);
                updated = ret == 0;
            } else if (in.sent < Stream::kBytes) {
                ClientSends(session->c(), &in, &random, &unsent);
            }
            break;
        default:
            ClientReceives(session->c(), &out);
        }
        if (HasFatalFailure()) {
            FAIL() << session->Why();
        }
    }
    EXPECT_TRUE(out.got == out.data);
    EXPECT_TRUE(in.got == in.data);
}

/* Where two records have to be kept, the first of new keys, they are kept in their order. */
TEST_F(NbdTlsTest, NewKeysAreSentWhenASocketIsFull)
{
    ClientOptions options = files->Client();
    options.priority = kTls13;
    Session session(Certificates(), options, 4096);
    std::string data(100000, 0), got;
    size_t sent = 0;
    char buf[1000];

    ASSERT_EQ(session.Handshake(), 0);
    for (size_t i = 0; i < data.size(); i++) {
        data[i] = (char)(i / 100);
    }
    auto send = [&] {
        struct iovec iov = { &data[sent], 100 };
        ssize_t n = Sendv(session.s(), &iov, 1);
        sent += n > 0 ? (size_t)n : 0;
        return n;
    };
    while (send() == 100) {
    }
    ASSERT_EQ(gnutls_session_key_update(session.c(), GNUTLS_KU_PEER), 0);
    ssize_t ret;
    session.Recv(1, &ret);
    ASSERT_EQ(ret, -EAGAIN);
    ASSERT_EQ(gnutls_record_recv(session.c(), buf, sizeof(buf)), 100); /* room for one record */
    got.append(buf, 100);
    EXPECT_EQ(send(), 100); /* the one that waited; the next one waits behind the new keys */
    EXPECT_EQ(send(), -EAGAIN);
    for (size_t enough = sent + 200; got.size() < enough;) {
        ssize_t n = gnutls_record_recv(session.c(), buf, sizeof(buf));
        if (n > 0) {
            got.append(buf, (size_t)n);
        } else {
            ASSERT_EQ(n, GNUTLS_E_AGAIN) << gnutls_strerror((int)n);
            ASSERT_EQ(send(), 100);
        }
    }
    EXPECT_EQ(got, data.substr(0, got.size()));
}

/* TLS 1.2 lets either side ask for another handshake in the middle of data. */
TEST_F(NbdTlsTest, AnotherHandshakeIsRefused)
{
    ClientOptions client = files->Client();
    client.priority = kTls12;
    Session session(Certificates(), client);
    ssize_t ret;

    ASSERT_EQ(session.Handshake(), 0);
    ASSERT_EQ(gnutls_handshake(session.c()), GNUTLS_E_AGAIN);
    session.Recv(10, &ret);
    EXPECT_EQ(ret, -EPROTO);
}
