/* SPDX-License-Identifier: MIT */
#include "tls_support.h"

#include "command.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of calls that fail only when a test is wrong. */
static void Check(int ret, const char *what)
{
    if (ret < 0) {
        fprintf(stderr, "%s: %s\n", what, gnutls_strerror(ret));
        abort();
    }
}
#define CHECKED(call) Check((call), #call)

static gnutls_datum_t Datum(const std::string &text)
{
    return { (unsigned char *)text.data(), (unsigned)text.size() };
}

static std::string Taken(gnutls_datum_t *datum)
{
    std::string text((char *)datum->data, datum->size);

    gnutls_free(datum->data);
    return text;
}

static gnutls_x509_privkey_t NewKey()
{
    gnutls_x509_privkey_t key;

    CHECKED(gnutls_x509_privkey_init(&key));
    CHECKED(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA,
                                         GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0));
    return key;
}

static gnutls_x509_crt_t NewCert(gnutls_x509_privkey_t key, const std::string &name, int serial)
{
    gnutls_x509_crt_t cert;
    time_t now = time(nullptr);
    unsigned char number[4] = { 1, 0, 0, (unsigned char)serial };

    CHECKED(gnutls_x509_crt_init(&cert));
    CHECKED(gnutls_x509_crt_set_version(cert, 3));
    CHECKED(gnutls_x509_crt_set_serial(cert, number, sizeof(number)));
    CHECKED(gnutls_x509_crt_set_activation_time(cert, now - 3600));
    CHECKED(gnutls_x509_crt_set_expiration_time(cert, now + 24 * 3600));
    CHECKED(gnutls_x509_crt_set_dn_by_oid(cert, GNUTLS_OID_X520_COMMON_NAME, 0, name.data(),
                                          (unsigned)name.size()));
    CHECKED(gnutls_x509_crt_set_key(cert, key));
    return cert;
}

static std::string Export(gnutls_x509_crt_t cert)
{
    gnutls_datum_t text;

    CHECKED(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_PEM, &text));
    return Taken(&text);
}

Authority::Authority(const std::string &name) : key_(NewKey())
{
    cert_ = NewCert(key_, name, serial_++);
    CHECKED(gnutls_x509_crt_set_basic_constraints(cert_, 1, -1));
    CHECKED(gnutls_x509_crt_set_key_usage(cert_, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN));
    CHECKED(gnutls_x509_crt_sign2(cert_, cert_, key_, GNUTLS_DIG_SHA256, 0));
}

Authority::~Authority()
{
    gnutls_x509_crt_deinit(cert_);
    gnutls_x509_privkey_deinit(key_);
}

std::string Authority::Cert() const
{
    return Export(cert_);
}

PemPair Authority::Issue(const std::string &name, const char *purpose)
{
    gnutls_x509_privkey_t key = NewKey();
    gnutls_x509_crt_t cert = NewCert(key, name, serial_++);
    gnutls_datum_t text;
    PemPair pair;

    CHECKED(gnutls_x509_crt_set_subject_alt_name(cert, GNUTLS_SAN_DNSNAME, name.data(),
                                                 (unsigned)name.size(), GNUTLS_FSAN_SET));
    CHECKED(gnutls_x509_crt_set_key_usage(cert, GNUTLS_KEY_DIGITAL_SIGNATURE));
    CHECKED(gnutls_x509_crt_set_key_purpose_oid(cert, purpose, 0));
    CHECKED(gnutls_x509_crt_sign2(cert, cert_, key_, GNUTLS_DIG_SHA256, 0));
    pair.cert = Export(cert);
    CHECKED(gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, nullptr, GNUTLS_PKCS_PLAIN,
                                              &text));
    pair.key = Taken(&text);
    gnutls_x509_crt_deinit(cert);
    gnutls_x509_privkey_deinit(key);
    return pair;
}

std::string Authority::Revoke(const std::string &cert)
{
    gnutls_x509_crl_t crl;
    gnutls_x509_crt_t revoked;
    gnutls_datum_t text = Datum(cert);
    time_t now = time(nullptr);

    CHECKED(gnutls_x509_crt_init(&revoked));
    CHECKED(gnutls_x509_crt_import(revoked, &text, GNUTLS_X509_FMT_PEM));
    CHECKED(gnutls_x509_crl_init(&crl));
    CHECKED(gnutls_x509_crl_set_version(crl, 2));
    CHECKED(gnutls_x509_crl_set_this_update(crl, now - 3600));
    CHECKED(gnutls_x509_crl_set_next_update(crl, now + 24 * 3600));
    CHECKED(gnutls_x509_crl_set_crt(crl, revoked, now - 1800));
    CHECKED(gnutls_x509_crl_set_number(crl, "\1", 1));
    CHECKED(gnutls_x509_crl_set_authority_key_id(crl, "\1", 1));
    CHECKED(gnutls_x509_crl_sign2(crl, cert_, key_, GNUTLS_DIG_SHA256, 0));
    CHECKED(gnutls_x509_crl_export2(crl, GNUTLS_X509_FMT_PEM, &text));
    gnutls_x509_crl_deinit(crl);
    gnutls_x509_crt_deinit(revoked);
    return Taken(&text);
}

void WriteCertificates(const std::string &dir, Authority *authority)
{
    PemPair server = authority->Issue("localhost", GNUTLS_KP_TLS_WWW_SERVER);
    PemPair client = authority->Issue("client", GNUTLS_KP_TLS_WWW_CLIENT);

    WriteFile(dir + "/ca-cert.pem", authority->Cert());
    WriteFile(dir + "/server-cert.pem", server.cert);
    WriteFile(dir + "/server-key.pem", server.key);
    WriteFile(dir + "/client-cert.pem", client.cert);
    WriteFile(dir + "/client-key.pem", client.key);
}

TlsClient::TlsClient(int fd, const ClientOptions &options)
{
    std::string priority = options.priority;
    gnutls_datum_t ca = Datum(options.ca), cert = Datum(options.pair.cert),
                   key = Datum(options.pair.key), psk = Datum(options.psk_key);

    CHECKED(gnutls_certificate_allocate_credentials(&certificates_));
    CHECKED(gnutls_psk_allocate_client_credentials(&psk_));
    /* A certificate is shown whichever authorities the server names. */
    CHECKED(gnutls_init(&session_, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL |
                                       GNUTLS_FORCE_CLIENT_CERT));
    if (ca.size) {
        CHECKED(gnutls_certificate_set_x509_trust_mem(certificates_, &ca, GNUTLS_X509_FMT_PEM));
        gnutls_session_set_verify_cert(session_, "localhost", 0);
    }
    if (cert.size) {
        CHECKED(gnutls_certificate_set_x509_key_mem2(certificates_, &cert, &key,
                                                     GNUTLS_X509_FMT_PEM, nullptr, 0));
    }
    if (psk.size) {
        CHECKED(gnutls_psk_set_client_credentials(psk_, options.psk_name.c_str(), &psk,
                                                  GNUTLS_PSK_KEY_HEX));
        CHECKED(gnutls_credentials_set(session_, GNUTLS_CRD_PSK, psk_));
        priority += ":-KX-ALL:+ECDHE-PSK:+DHE-PSK:+PSK";
    } else {
        CHECKED(gnutls_credentials_set(session_, GNUTLS_CRD_CERTIFICATE, certificates_));
    }
    CHECKED(gnutls_priority_set_direct(session_, priority.c_str(), nullptr));
    gnutls_transport_set_int(session_, fd);
    gnutls_handshake_set_timeout(session_, GNUTLS_INDEFINITE_TIMEOUT);
}

TlsClient::~TlsClient()
{
    gnutls_deinit(session_);
    gnutls_psk_free_client_credentials(psk_);
    gnutls_certificate_free_credentials(certificates_);
}

int TlsClient::Handshake()
{
    int ret = gnutls_handshake(session_);

    if (ret < 0 && gnutls_error_is_fatal(ret)) {
        gnutls_alert_send_appropriate(session_, ret);
    }
    return ret;
}

/* ---- The tunnel ------------------------------------------------------------------------------ */

static int NonBlocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
}

TlsTunnel::TlsTunnel(int fd, const ClientOptions &options)
    : fd_(NonBlocking(fd)), client_(fd, options)
{
    while ((result_ = client_.Handshake()) < 0 && !gnutls_error_is_fatal(result_)) {
        bool out = gnutls_record_get_direction(client_.get()) != 0;
        struct pollfd pfd = { fd_, static_cast<short>(out ? POLLOUT : POLLIN), 0 };

        if (poll(&pfd, 1, 40000) == 0) {
            result_ = GNUTLS_E_TIMEDOUT;
            break;
        }
    }
    Check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, plain_), "socketpair");
    NonBlocking(plain_[1]);
    if (result_ == 0) {
        thread_ = std::thread([this] { Pump(); });
    }
}

TlsTunnel::~TlsTunnel()
{
    EndedOrderly();
    close(plain_[1]);
    close(fd_);
}

int TlsTunnel::TakeFd()
{
    int fd = plain_[0];

    plain_[0] = -1;
    return fd;
}

bool TlsTunnel::EndedOrderly()
{
    if (plain_[0] >= 0) {
        close(plain_[0]);
        plain_[0] = -1;
    }
    if (thread_.joinable()) {
        thread_.join();
    }
    return orderly_;
}

/* Returns false when the server takes nothing more. */
bool TlsTunnel::Send()
{
    ssize_t n = sending_ ? gnutls_record_send(client_.get(), nullptr, 0)
                         : gnutls_record_send(client_.get(), to_server_.data(), to_server_.size());

    sending_ = n == GNUTLS_E_AGAIN;
    if (n > 0) {
        to_server_.erase(0, static_cast<size_t>(n));
    }
    return n > 0 || sending_;
}

void TlsTunnel::Receive()
{
    char buf[16384];
    ssize_t n;

    do {
        n = gnutls_record_recv(client_.get(), buf, sizeof(buf));
        if (n > 0) {
            to_test_.append(buf, static_cast<size_t>(n));
        }
    } while (n > 0);
    if (n != GNUTLS_E_AGAIN) {
        server_ended_ = true;
        orderly_ = n == 0;
    }
}

void TlsTunnel::Pump()
{
    bool told = false; /* the test knows that the server has ended */

    while (!test_ended_ || !server_ended_) {
        char buf[16384];
        struct pollfd pfd[] = { { plain_[1], 0, 0 }, { fd_, 0, 0 } };

        pfd[0].events = static_cast<short>((test_ended_ || !to_server_.empty() ? 0 : POLLIN) |
                                           (to_test_.empty() ? 0 : POLLOUT));
        pfd[1].events =
            static_cast<short>((server_ended_ ? 0 : POLLIN) | (to_server_.empty() ? 0 : POLLOUT));
        pfd[0].fd = pfd[0].events ? pfd[0].fd : -1; /* else an end would be told again and again */
        pfd[1].fd = pfd[1].events ? pfd[1].fd : -1;
        poll(pfd, 2, -1);
        if (!test_ended_ && to_server_.empty()) {
            ssize_t n = read(plain_[1], buf, sizeof(buf));
            if (n > 0) {
                to_server_.assign(buf, static_cast<size_t>(n));
            } else if (n == 0 || errno != EAGAIN) {
                test_ended_ = true;
                gnutls_bye(client_.get(), GNUTLS_SHUT_WR);
                shutdown(fd_, SHUT_WR);
            }
        }
        if (!server_ended_) {
            Receive();
        }
        if (!to_server_.empty() && (server_ended_ || !Send())) {
            to_server_.clear();
        }
        if (!to_test_.empty()) {
            ssize_t n = send(plain_[1], to_test_.data(), to_test_.size(), MSG_NOSIGNAL);
            if (n > 0) {
                to_test_.erase(0, static_cast<size_t>(n));
            } else if (errno != EAGAIN) {
                to_test_.clear(); /* the test has gone */
            }
        }
        if (server_ended_ && to_test_.empty() && !told) {
            told = true;
            shutdown(plain_[1], SHUT_WR);
        }
    }
}
