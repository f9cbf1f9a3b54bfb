/* SPDX-License-Identifier: MIT */
/*
 * TLS for the export, by GnuTLS: who the server is and whom it believes (NbdTls), and a stream over
 * another one.
 *
 * Such a stream keeps what stream.h says, to the letter.  A record that is not sent whole does not
 * count: its bytes are offered again, as with a full socket, and whoever has none left to send has
 * nothing to wait for.  What was received and decrypted already is what has_input tells of.
 *
 *                                             thread
 *   nbd_tls_new, nbd_tls_ref, nbd_tls_unref   any; an NbdTls never changes once made
 *   all of a stream                           one at a time
 * No call blocks, but for nbd_tls_new(), which reads files.
 */
#ifndef NBD_TLS_H
#define NBD_TLS_H

#include "nbd/stream.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct NbdTls NbdTls;

typedef struct NbdTlsOptions {
    /* A directory with server-cert.pem (the server's certificate, then those between it and its
     * root) and server-key.pem; with verify_peer also ca-cert.pem, whose certificates clients must
     * descend from, and ca-crl.pem, if it is there, which says which of them are void.  NULL: no
     * certificates. */
    const char *certificates;
    /* Names and keys, NAME:HEX lines as psktool(1) writes them.  NULL: no shared keys. */
    const char *psk_file;
    /* GnuTLS's priority string; what shared keys need is added.  NULL: GnuTLS's normal one without
     * the versions of TLS before 1.2. */
    const char *priority;
    bool verify_peer; /* a client without a shared key has to show a certificate */
} NbdTlsOptions;

/*
 * Reads the credentials; they are not read again.
 * Returns NULL and a message for people in *@ret_why (to be freed; NULL when out of memory), which
 * names the file or the option; errno is set too: EINVAL for options or contents that do not fit,
 * that of open(2) or read(2), EFBIG, ENOTSUP in a build without GnuTLS, ENOMEM.
 * Thread: any; blocks on the file system.  Lifetime: one reference, for nbd_tls_unref().
 */
NbdTls *nbd_tls_new(const NbdTlsOptions *options, char **ret_why);

/* Takes a reference, gives one back; each stream has its own.  Unref of NULL is ignored. */
NbdTls *nbd_tls_ref(NbdTls *tls);
void nbd_tls_unref(NbdTls *tls);

/*
 * Makes the server's side of TLS over @below, from which the client's first byte of TLS is yet to
 * be received.  Its handshake is called until it is done; there is no limit to how long a client
 * may take: that is the caller's.  What is no valid TLS, and who is not believed, ends in -EPROTO,
 * after the client has been told; a connection that ends without TLS's own end, which anybody on
 * the way can bring about, in -ECONNRESET.  Errors are told again by each later call.
 * Returns NULL with errno ENOMEM.  Lifetime: @below goes with it; on failure it is the caller's.
 */
NbdStream *nbd_tls_stream_new(NbdTls *tls, NbdStream *below);

/*
 * For people: version and algorithms, once the handshake is complete, such as
 * "(TLS1.3)-(ECDHE-SECP256R1)-(ECDSA-SECP256R1-SHA256)-(AES-256-GCM)".
 * Returns NULL when out of memory; else to be freed.
 */
char *nbd_tls_stream_describe(NbdStream *s);

#ifdef __cplusplus
}
#endif

#endif
