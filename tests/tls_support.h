/* SPDX-License-Identifier: MIT */
/* What tests of TLS share: certificates made on the spot, and a client that never waits. */
#ifndef TESTS_TLS_SUPPORT_H
#define TESTS_TLS_SUPPORT_H

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include <string>
#include <thread>

/* A certificate and its key, in PEM. */
struct PemPair {
    std::string cert, key;
};

/* An authority that issues certificates. */
class Authority
{
public:
    explicit Authority(const std::string &name);
    ~Authority();
    Authority(const Authority &) = delete;
    Authority &operator=(const Authority &) = delete;

    std::string Cert() const; /* its own */
    /* @purpose: GNUTLS_KP_TLS_WWW_SERVER or _CLIENT. */
    PemPair Issue(const std::string &name, const char *purpose);
    /* A list that says that @cert is void. */
    std::string Revoke(const std::string &cert);

private:
    gnutls_x509_privkey_t key_;
    gnutls_x509_crt_t cert_;
    int serial_ = 1;
};

/* Writes what clients and servers look for in a directory: ca-cert.pem, server-cert.pem,
 * server-key.pem, client-cert.pem and client-key.pem. */
void WriteCertificates(const std::string &dir, Authority *authority);

/* How a client shows who it is, and whom it believes. */
struct ClientOptions {
    std::string ca; /* certificates of authorities: the server's is verified; none: it is not */
    PemPair pair;   /* its own */
    std::string psk_name, psk_key; /* the key in hexadecimal */
    std::string priority = "NORMAL";
};

/* The client's side of a session over a non-blocking socket, in GnuTLS's own terms. */
class TlsClient
{
public:
    TlsClient(int fd, const ClientOptions &options);
    ~TlsClient();
    TlsClient(const TlsClient &) = delete;
    TlsClient &operator=(const TlsClient &) = delete;

    /* Goes on with the handshake; after a failure that GnuTLS found the server is told. */
    int Handshake();
    gnutls_session_t get() const
    {
        return session_;
    }

private:
    gnutls_certificate_credentials_t certificates_;
    gnutls_psk_client_credentials_t psk_;
    gnutls_session_t session_;
};

/*
 * TLS over a connected socket, with a plain socket for a test at its other end: what the test sends
 * there goes out encrypted, by a thread that goes with the tunnel.
 */
class TlsTunnel
{
public:
    /* Has the handshake; takes @fd. */
    TlsTunnel(int fd, const ClientOptions &options);
    ~TlsTunnel();
    TlsTunnel(const TlsTunnel &) = delete;
    TlsTunnel &operator=(const TlsTunnel &) = delete;

    /* What the handshake came to: 0, or GnuTLS's error. */
    int result() const
    {
        return result_;
    }
    /* The plain end, to be closed by the caller. */
    int TakeFd();
    /* Waits until the server has closed; whether it said so in TLS's own way. */
    bool EndedOrderly();

private:
    void Pump();
    bool Send();
    void Receive();

    int fd_, plain_[2] = { -1, -1 };
    TlsClient client_;
    int result_;
    std::string to_server_, to_test_;
    bool sending_ = false, test_ended_ = false, server_ended_ = false, orderly_ = false;
    std::thread thread_;
};

#endif
