/* SPDX-License-Identifier: MIT */
/* What the files of the TLS part share; only these include GnuTLS's headers. */
#ifndef NBD_TLS_INT_H
#define NBD_TLS_INT_H

#include "nbd/tls.h"

#include <gnutls/gnutls.h>

/* A name and its key, both within NbdTls.psk_text. */
struct tls_psk {
    gnutls_datum_t name, key;
};

/* Nothing but refs changes once it is made; GnuTLS only reads it, from any number of threads. */
struct NbdTls {
    unsigned refs; /* atomic */
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t certificates; /* NULL: none */
    gnutls_psk_server_credentials_t psk;           /* NULL: none */
    struct tls_psk *keys;
    size_t n_keys;
    gnutls_datum_t psk_text; /* the file, decoded in place */
    bool verify_peer;
};

/* The key callback of tls->psk: @session's gnutls_session_get_ptr() is the NbdTls. */
int tls_find_key(gnutls_session_t session, const gnutls_datum_t *name, gnutls_datum_t *key);

/*
 * Takes @tls->psk_text apart into names and keys.
 * Returns 0; -EINVAL and the line at fault in *@ret_line, and why in *@ret_fault; or -ENOMEM.
 */
int tls_parse_keys(NbdTls *tls, unsigned *ret_line, const char **ret_fault);

/* Frees names and keys and wipes them from memory. */
void tls_drop_keys(NbdTls *tls);

#endif
