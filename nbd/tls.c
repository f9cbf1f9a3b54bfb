/* SPDX-License-Identifier: MIT */
/*
 * The stream over TLS (tls.h).
 *
 * Receiving: GnuTLS asks for a record's five bytes of header, then for the rest.  What lies below
 * is read ahead here, so that one system call brings several records.  has_input says whether a
 * whole one of them is left, or some of what is decrypted.
 *
 * Sending: what the socket does not take of a record stays here, encrypted, and GnuTLS is told that
 * it was sent: it never has to resume anything, which it cannot do at every moment (a client may
 * ask for new keys in the middle of a record).  The record's bytes are not counted as taken, so
 * that the caller knows that something is left; when he comes again with them, the rest of the
 * record is sent, and they are skipped.  Pieces that are shorter than a record are gathered in one:
 * a reply of 4 KiB is one record, not a header's and the data's.
 */
#include "nbd/tls_int.h"

#include <assert.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    READ_AHEAD_BYTES = 32768,
    MAX_RECORD_BYTES = 16384, /* of plaintext, as TLS has it */
    MAX_WARNINGS = 16,        /* alerts of a client, before it is dropped */
    RECORD_HEADER_BYTES = 5,
    MAX_RECORDS = 64,         /* in one call: a client may send records of one byte */
    ENOUGH_BYTES = 65536,     /* in one call, where it takes another one below to go on */
    MAX_KEPT_BYTES = 1 << 20, /* far more than a handshake or a record takes */
};

typedef struct TlsStream {
    NbdStream stream;
    NbdStream *below;
    gnutls_session_t gnutls;
    NbdTls *tls;
    bool shaken;       /* GnuTLS has done its part of the handshake */
    bool ready;        /* and all of it is sent */
    bool below_ended;  /* there are no more bytes, and never will be */
    bool ended;        /* the client's end was received */
    int error;         /* -errno of a session that has failed, told for ever */
    int below_error;   /* -errno of the last call below that failed */
    unsigned warnings; /* alerts received that do not end the session */
    size_t max_record; /* bytes of plaintext */
    size_t unsent;     /* bytes of plaintext of the record that out[] holds the rest of */
    unsigned char *out;
    size_t out_at, out_end, out_room; /* what is left to send: out[out_at] up to out[out_end] */
    size_t in_at, in_end;             /* what is read ahead: in[in_at] up to in[in_end] */
    char why[256];
    unsigned char in[READ_AHEAD_BYTES];
} TlsStream;

/* ---- The transport --------------------------------------------------------------------------- */

static ssize_t transport_failed(TlsStream *s, ssize_t error)
{
    s->below_error = (int)error;
    gnutls_transport_set_errno(s->gnutls, -s->below_error);
    return -1;
}

static ssize_t transport_recv(gnutls_transport_ptr_t opaque, void *buf, size_t len)
{
    TlsStream *s = opaque;

    if (s->in_at == s->in_end) {
        struct iovec iov = { s->in, sizeof(s->in) };
        ssize_t n = nbd_stream_recvv(s->below, &iov, 1);

        if (n <= 0) {
            s->below_ended = n == 0;
            return n < 0 ? transport_failed(s, n) : 0;
        }
        s->in_at = 0;
        s->in_end = (size_t)n;
    }
    if (len > s->in_end - s->in_at) {
        len = s->in_end - s->in_at;
    }
    memcpy(buf, s->in + s->in_at, len);
    s->in_at += len;
    return (ssize_t)len;
}

/* GnuTLS asks this where it would wait: here nothing does. */
static int transport_has_data(gnutls_transport_ptr_t opaque, unsigned ms)
{
    TlsStream *s = opaque;
    struct pollfd pfd = { .fd = s->below->rfd, .events = POLLIN };

    return s->in_at != s->in_end || poll(&pfd, 1, 0) != 0;
}

/* Keeps all but the first @skip bytes.  Returns 0 or -ENOMEM. */
static int keep(TlsStream *s, const struct iovec *iov, int n_iov, size_t skip)
{
    for (int i = 0; i < n_iov; i++) {
        size_t gone = skip < iov[i].iov_len ? skip : iov[i].iov_len, n = iov[i].iov_len - gone;

        skip -= gone;
        if (n > s->out_room - s->out_end) {
            size_t room = 2 * (s->out_end + n);
            unsigned char *out = room <= MAX_KEPT_BYTES ? realloc(s->out, room) : NULL;

            if (!out) {
                return -ENOMEM;
            }
            s->out = out;
            s->out_room = room;
        }
        if (n > 0) {
            memcpy(s->out + s->out_end, (const char *)iov[i].iov_base + gone, n);
            s->out_end += n;
        }
    }
    return 0;
}

/* All is sent or kept, or the connection is broken. */
static ssize_t transport_sendv(gnutls_transport_ptr_t opaque, const giovec_t *iov, int n_iov)
{
    TlsStream *s = opaque;
    ssize_t n = -EAGAIN, total = 0;
    int ret = 0;

    for (int i = 0; i < n_iov; i++) {
        total += (ssize_t)iov[i].iov_len;
    }
    if (s->out_at == s->out_end) {
        s->out_at = s->out_end = 0;
        n = nbd_stream_sendv(s->below, (const struct iovec *)iov, n_iov);
    }
    if (n == -EAGAIN || (n >= 0 && n < total)) {
        ret = keep(s, (const struct iovec *)iov, n_iov, n > 0 ? (size_t)n : 0);
    } else if (n < 0) {
        ret = (int)n;
    }
    return ret < 0 ? transport_failed(s, ret) : total;
}

/* Sends what was kept.  Returns 0 when nothing is left, -EAGAIN, or the error. */
static int flush(TlsStream *s)
{
    while (s->out_at != s->out_end) {
        struct iovec iov = { s->out + s->out_at, s->out_end - s->out_at };
        ssize_t n = nbd_stream_sendv(s->below, &iov, 1);

        if (n < 0) {
            return (int)n;
        }
        s->out_at += (size_t)n;
    }
    return 0;
}

/* ---- Failing --------------------------------------------------------------------------------- */

static int __attribute__((format(printf, 3, 4))) fail(TlsStream *s, int error, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(s->why, sizeof(s->why), fmt, args);
    va_end(args);
    s->error = error;
    return error;
}

/* Why the client's certificate was not believed. */
static int fail_certificate(TlsStream *s)
{
    unsigned status = gnutls_session_get_verify_cert_status(s->gnutls);
    gnutls_datum_t text = { 0 };

    if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0) {
        return fail(s, -EPROTO, "the client's certificate was not accepted (status %#x)", status);
    }
    fail(s, -EPROTO, "%s", (char *)text.data);
    gnutls_free(text.data);
    return s->error;
}

/* A connection that ends within a record ends here, too. */
static int fail_cut(TlsStream *s)
{
    return fail(s, -ECONNRESET, "the connection ended without TLS's own end");
}

static int fail_below(TlsStream *s, int error)
{
    return fail(s, error, "the connection: %s", strerror(-error));
}

/* The session has failed with @ret, of a call of GnuTLS; the client is told, if it is not by whom
 * we know. */
static int fail_gnutls(TlsStream *s, int ret)
{
    if (ret != GNUTLS_E_FATAL_ALERT_RECEIVED && flush(s) == 0) {
        gnutls_alert_send_appropriate(s->gnutls, ret); /* if it can be sent at once */
    }
    switch (ret) {
    case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
        return fail_certificate(s);
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return fail(s, -EPROTO, "the client ended it with the alert '%s'",
                    gnutls_alert_get_name(gnutls_alert_get(s->gnutls)));
    case GNUTLS_E_PREMATURE_TERMINATION:
        return fail_cut(s);
    case GNUTLS_E_PULL_ERROR:
    case GNUTLS_E_PUSH_ERROR:
        return fail_below(s, s->below_error ? s->below_error : -EIO);
    default:
        return fail(s, -EPROTO, "%s", gnutls_strerror(ret));
    }
}

/* Whether a call that returned @ret is to be made again at once. */
static bool again_at_once(TlsStream *s, ssize_t ret)
{
    return ret == GNUTLS_E_INTERRUPTED ||
           (ret == GNUTLS_E_WARNING_ALERT_RECEIVED && ++s->warnings <= MAX_WARNINGS);
}

/* ---- The handshake --------------------------------------------------------------------------- */

/* GnuTLS's part.  Returns 0, -EAGAIN or the error. */
static int shake(TlsStream *s)
{
    int ret;

    do {
        ret = gnutls_handshake(s->gnutls);
    } while (again_at_once(s, ret));
    if (ret == GNUTLS_E_AGAIN) {
        return s->below_ended ? fail_cut(s) : -EAGAIN;
    }
    if (ret < 0) {
        return fail_gnutls(s, ret);
    }
    s->shaken = true;
    s->max_record = gnutls_record_get_max_size(s->gnutls);
    if (s->max_record > MAX_RECORD_BYTES) {
        s->max_record = MAX_RECORD_BYTES;
    }
    return 0;
}

static int tls_handshake(NbdStream *stream)
{
    TlsStream *s = (TlsStream *)stream;
    int ret = 0, flushed;

    if (s->error || s->ready) {
        return s->error;
    }
    flushed = flush(s);
    if (flushed == 0 && !s->shaken) {
        ret = shake(s);
        flushed = s->error ? 0 : flush(s);
    }
    if (flushed < 0 && flushed != -EAGAIN) {
        return fail_below(s, flushed);
    }
    /* The client does not go on before it has all that we have to say. */
    s->stream.recv_waits = flushed ? s->below->send_waits : s->below->recv_waits;
    s->ready = ret == 0 && flushed == 0;
    return ret ? ret : flushed;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* Whether a whole record has been read ahead.  What lies there begins with one: GnuTLS takes whole
 * records, or all there is. */
static bool record_ahead(const TlsStream *s)
{
    const unsigned char *p = s->in + s->in_at;
    size_t n = s->in_end - s->in_at;

    return n >= RECORD_HEADER_BYTES && n - RECORD_HEADER_BYTES >= (size_t)(p[3] << 8 | p[4]);
}

/* Whether there is more to receive, or to be told, although nothing may come from below. */
static bool tls_has_input(NbdStream *stream)
{
    TlsStream *s = (TlsStream *)stream;

    return s->error || s->ended || record_ahead(s) || gnutls_record_check_pending(s->gnutls) > 0;
}

/* Receives of one record at most.  Returns how many bytes, 0 at the end, or -errno. */
static ssize_t receive(TlsStream *s, void *buf, size_t len)
{
    ssize_t n;

    do {
        n = gnutls_record_recv(s->gnutls, buf, len);
    } while (again_at_once(s, n));
    if (n == GNUTLS_E_AGAIN) {
        return s->below_ended ? fail_cut(s) : -EAGAIN;
    }
    s->ended = n == 0;
    return n < 0 ? fail_gnutls(s, (int)n) : n;
}

static ssize_t tls_recvv(NbdStream *stream, const struct iovec *iov, int n_iov)
{
    TlsStream *s = (TlsStream *)stream;
    size_t done = 0, at = 0;

    assert(s->ready);
    for (int records = 0; n_iov > 0 && records < MAX_RECORDS; records++) {
        ssize_t n;

        if (at == iov->iov_len) {
            iov++;
            n_iov--;
            at = 0;
            continue;
        }
        if (s->error || s->ended || (done >= ENOUGH_BYTES && !tls_has_input(stream))) {
            break;
        }
        n = receive(s, (char *)iov->iov_base + at, iov->iov_len - at);
        if (n == -EAGAIN) {
            return done ? (ssize_t)done : -EAGAIN;
        }
        if (n > 0) {
            done += (size_t)n;
            at += (size_t)n;
        }
    }
    return done ? (ssize_t)done : s->error;
}

/* ---- Sending --------------------------------------------------------------------------------- */

/* A place in the caller's bytes. */
struct cursor {
    const struct iovec *iov;
    int n;
    size_t skip; /* within iov[0] */
};

/* Leaves pieces behind that are used up. */
static void settle(struct cursor *c)
{
    while (c->n > 0 && c->skip == c->iov->iov_len) {
        c->iov++;
        c->n--;
        c->skip = 0;
    }
}

/* Copies up to @max bytes to @buf, unless it is NULL, and moves on.  Returns how many. */
static size_t take(struct cursor *c, unsigned char *buf, size_t max)
{
    size_t done = 0;

    for (settle(c); c->n > 0 && done < max; settle(c)) {
        size_t n = c->iov->iov_len - c->skip;

        if (n > max - done) {
            n = max - done;
        }
        if (buf) {
            memcpy(buf + done, (const char *)c->iov->iov_base + c->skip, n);
        }
        done += n;
        c->skip += n;
    }
    return done;
}

/* Sends, or keeps, one record.  Returns how many bytes of plaintext it holds, or GnuTLS's error. */
static ssize_t send_record(TlsStream *s, const struct cursor *at)
{
    unsigned char gathered[MAX_RECORD_BYTES];
    struct cursor c = *at;
    size_t len = c.iov->iov_len - c.skip;
    const void *data = (const char *)c.iov->iov_base + c.skip;

    if (len > s->max_record) {
        len = s->max_record;
    } else if (c.n > 1 && len < s->max_record) {
        len = take(&c, gathered, s->max_record);
        data = gathered;
    }
    return gnutls_record_send(s->gnutls, data, len);
}

static ssize_t tls_sendv(NbdStream *stream, const struct iovec *iov, int n_iov)
{
    TlsStream *s = (TlsStream *)stream;
    struct cursor c = { .iov = iov, .n = n_iov };
    size_t done = 0;

    assert(s->ready);
    for (settle(&c); c.n > 0 && !s->error; settle(&c)) {
        int ret = flush(s);

        if (ret == 0 && s->unsent) {
            size_t skipped = take(&c, NULL, s->unsent);

            assert(skipped == s->unsent); /* else the caller has come back with fewer bytes */
            done += skipped;
            s->unsent = 0;
        } else if (ret == 0) {
            ssize_t n = send_record(s, &c);

            if (n > 0) {
                s->unsent = (size_t)n;
            } else if (!again_at_once(s, n)) {
                fail_gnutls(s, (int)n);
            }
        } else if (ret == -EAGAIN) {
            return done ? (ssize_t)done : -EAGAIN;
        } else {
            fail_below(s, ret);
        }
    }
    return done ? (ssize_t)done : s->error;
}

/* ---- Beginning and end ----------------------------------------------------------------------- */

static bool tls_is_crowded(NbdStream *stream)
{
    return nbd_stream_is_crowded(((TlsStream *)stream)->below);
}

static void tls_bye(NbdStream *stream)
{
    TlsStream *s = (TlsStream *)stream;

    if (s->ready && !s->error && flush(s) == 0) {
        gnutls_bye(s->gnutls, GNUTLS_SHUT_WR);
    }
    s->below->ops->bye(s->below);
}

static void drop(TlsStream *s)
{
    gnutls_deinit(s->gnutls);
    nbd_tls_unref(s->tls);
    free(s->out);
    free(s);
}

static void tls_destroy(NbdStream *stream)
{
    TlsStream *s = (TlsStream *)stream;
    NbdStream *below = s->below;

    drop(s);
    below->ops->destroy(below);
}

static const char *tls_why(NbdStream *stream)
{
    TlsStream *s = (TlsStream *)stream;

    return s->error ? s->why : NULL;
}

static const NbdStreamOps tls_ops = {
    .handshake = tls_handshake,
    .recvv = tls_recvv,
    .sendv = tls_sendv,
    .has_input = tls_has_input,
    .is_crowded = tls_is_crowded,
    .bye = tls_bye,
    .why = tls_why,
    .destroy = tls_destroy,
};

static int set_up(TlsStream *s)
{
    NbdTls *tls = s->tls;
    int ret = gnutls_priority_set(s->gnutls, tls->priority);

    if (ret >= 0 && tls->certificates) {
        ret = gnutls_credentials_set(s->gnutls, GNUTLS_CRD_CERTIFICATE, tls->certificates);
    }
    if (ret >= 0 && tls->psk) {
        ret = gnutls_credentials_set(s->gnutls, GNUTLS_CRD_PSK, tls->psk);
    }
    if (ret >= 0 && tls->verify_peer) {
        static gnutls_typed_vdata_st purpose = { .type = GNUTLS_DT_KEY_PURPOSE_OID,
                                                 .data = (void *)GNUTLS_KP_TLS_WWW_CLIENT };

        gnutls_certificate_server_set_request(s->gnutls, GNUTLS_CERT_REQUIRE);
        gnutls_session_set_verify_cert2(s->gnutls, &purpose, 1, 0);
    }
    gnutls_session_set_ptr(s->gnutls, tls);
    gnutls_transport_set_ptr(s->gnutls, s);
    gnutls_transport_set_pull_function(s->gnutls, transport_recv);
    gnutls_transport_set_pull_timeout_function(s->gnutls, transport_has_data);
    gnutls_transport_set_vec_push_function(s->gnutls, transport_sendv);
    gnutls_handshake_set_timeout(s->gnutls, GNUTLS_INDEFINITE_TIMEOUT);
    return ret;
}

NbdStream *nbd_tls_stream_new(NbdTls *tls, NbdStream *below)
{
    TlsStream *s = calloc(1, sizeof(*s));

    if (!s || gnutls_init(&s->gnutls, GNUTLS_SERVER | GNUTLS_NONBLOCK) < 0) {
        free(s);
        errno = ENOMEM;
        return NULL;
    }
    s->tls = nbd_tls_ref(tls);
    s->below = below;
    s->stream = *below;
    s->stream.ops = &tls_ops;
    if (set_up(s) < 0) {
        drop(s);
        errno = ENOMEM;
        return NULL;
    }
    return &s->stream;
}

char *nbd_tls_stream_describe(NbdStream *stream)
{
    char *theirs = gnutls_session_get_desc(((TlsStream *)stream)->gnutls);
    char *text = theirs ? strdup(theirs) : NULL;

    gnutls_free(theirs);
    return text;
}
