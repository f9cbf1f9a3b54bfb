/* SPDX-License-Identifier: MIT */
/*
 * Keys shared with clients: a file of NAME:HEX lines, read once, so that no handshake waits for the
 * file system and a bad line shows when the server starts.  A name with a colon or unprintable
 * bytes is written in hexadecimal after a '#', as GnuTLS's own reader has it.
 */
#include "nbd/tls_int.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <stdlib.h>
#include <string.h>

/* What an unknown name gets: a key of this length that nobody knows. */
enum { RANDOM_KEY_BYTES = 32 };

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes @d in place.  Returns whether it was hexadecimal, at least one byte. */
static bool decode_hex(gnutls_datum_t *d)
{
    if (d->size == 0 || d->size % 2) {
        return false;
    }
    for (unsigned i = 0; i < d->size; i += 2) {
        int high = hex_digit(d->data[i]), low = hex_digit(d->data[i + 1]);

        if (high < 0 || low < 0) {
            return false;
        }
        d->data[i / 2] = (unsigned char)(high << 4 | low);
    }
    d->size /= 2;
    return true;
}

/* Returns what is wrong with the line of @len bytes at @line, or NULL. */
static const char *parse_line(unsigned char *line, size_t len, struct tls_psk *ret_psk)
{
    unsigned char *colon = memchr(line, ':', len);

    if (!colon) {
        return "there is no ':'";
    }
    ret_psk->name = (gnutls_datum_t){ line, (unsigned)(colon - line) };
    ret_psk->key = (gnutls_datum_t){ colon + 1, (unsigned)(line + len - colon - 1) };
    if (ret_psk->name.size == 0) {
        return "the name is empty";
    }
    if (line[0] == '#') {
        ret_psk->name.data++;
        ret_psk->name.size--;
        if (!decode_hex(&ret_psk->name)) {
            return "the name after '#' is not hexadecimal";
        }
    }
    if (!decode_hex(&ret_psk->key)) {
        return "the key is not an even number of hexadecimal digits";
    }
    return NULL;
}

static bool same(const gnutls_datum_t *a, const gnutls_datum_t *b)
{
    return a->size == b->size && memcmp(a->data, b->data, a->size) == 0;
}

static const struct tls_psk *find(const NbdTls *tls, const gnutls_datum_t *name)
{
    for (size_t i = 0; i < tls->n_keys; i++) {
        if (same(&tls->keys[i].name, name)) {
            return &tls->keys[i];
        }
    }
    return NULL;
}

int tls_parse_keys(NbdTls *tls, unsigned *ret_line, const char **ret_fault)
{
    unsigned char *p = tls->psk_text.data, *end = p + tls->psk_text.size;
    size_t room = 0;

    for (unsigned line = 1; p < end; line++) {
        unsigned char *newline = memchr(p, '\n', (size_t)(end - p));
        size_t len = (size_t)((newline ? newline : end) - p);
        struct tls_psk psk;

        if (len > 0) {
            const char *fault = parse_line(p, len, &psk);

            if (!fault && find(tls, &psk.name)) {
                fault = "the name has a key already";
            }
            if (fault) {
                *ret_line = line;
                *ret_fault = fault;
                return -EINVAL;
            }
            if (tls->n_keys == room) {
                room = room ? 2 * room : 8;
                struct tls_psk *keys = reallocarray(tls->keys, room, sizeof(*keys));
                if (!keys) {
                    return -ENOMEM;
                }
                tls->keys = keys;
            }
            tls->keys[tls->n_keys++] = psk;
        }
        p += len + 1;
    }
    if (tls->n_keys == 0) {
        *ret_line = 1;
        *ret_fault = "there is no key in the file";
        return -EINVAL;
    }
    return 0;
}

void tls_drop_keys(NbdTls *tls)
{
    free(tls->keys);
    if (tls->psk_text.data) {
        gnutls_memset(tls->psk_text.data, 0, tls->psk_text.size);
        free(tls->psk_text.data);
    }
}

int tls_find_key(gnutls_session_t session, const gnutls_datum_t *name, gnutls_datum_t *key)
{
    const NbdTls *tls = gnutls_session_get_ptr(session);
    const struct tls_psk *psk = find(tls, name);

    key->size = psk ? psk->key.size : RANDOM_KEY_BYTES;
    key->data = gnutls_malloc(key->size);
    if (!key->data) {
        return -1;
    }
    if (psk) {
        memcpy(key->data, psk->key.data, key->size);
        return 0;
    }
    /* The handshake fails as with a wrong key: who asks does not learn which names there are. */
    if (gnutls_rnd(GNUTLS_RND_KEY, key->data, key->size) < 0) {
        gnutls_free(key->data);
        key->data = NULL;
        return -1;
    }
    return 0;
}
