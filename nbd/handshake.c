/* SPDX-License-Identifier: MIT */
/*
 * The handshake, fixed newstyle, on the server's context.
 *
 * run() goes on as far as it can: it sends what is to be sent first, so that no client can pile
 * replies up, then takes the next message from rbuf.  What happens once a reply is out (closing,
 * TLS, the transmission) is noted in `after`.  Everything that ends the handshake ends run().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "nbd/handshake_int.h"
#include "nbd/log.h"
#include "nbd/server.h"

enum { HEADER_BYTES = 16 };

_Static_assert(NBD_OPTION_MAX + HEADER_BYTES <= NBD_RECV_BYTES, "an option fits into rbuf");

void nbd_handshake_put(NbdHandshake *hs, const void *data, size_t bytes)
{
    if (hs->out_len + bytes > hs->out_room) {
        size_t room = 2 * (hs->out_len + bytes);
        uint8_t *grown = realloc(hs->out, room);

        if (!grown) {
            hs->out_failed = true;
            return;
        }
        hs->out = grown;
        hs->out_room = room;
    }
    memcpy(hs->out + hs->out_len, data, bytes);
    hs->out_len += bytes;
}

/* ---- Ending ---------------------------------------------------------------------------------- */

static void end(NbdConn *conn)
{
    NbdHandshake *hs = conn->handshake;

    (void)nbd_conn_watch(conn, false, false);
    timer_deinit(&hs->timer);
    free(hs->out);
    free(hs);
    conn->handshake = NULL;
}

void nbd_handshake_drop(NbdConn *conn, const char *why)
{
    if (why) {
        nbd_log_drop("client %llu (%s): dropped: %s", (unsigned long long)conn->id, conn->peer,
                     why);
    }
    end(conn);
    nbd_server_gone(conn);
}

bool nbd_handshake_refuse(NbdConn *conn, const char *why)
{
    nbd_handshake_drop(conn, why);
    return false;
}

static bool drop_errno(NbdConn *conn, const char *what, int err)
{
    char why[128];

    snprintf(why, sizeof(why), "%s: %s", what, strerror(-err));
    return nbd_handshake_refuse(conn, why);
}

static void on_timeout(void *opaque)
{
    nbd_handshake_drop(opaque, "the handshake took too long");
}

/* ---- Running --------------------------------------------------------------------------------- */

static size_t buffered(const NbdConn *conn)
{
    return conn->rend - conn->rpos;
}

static bool take_flags(NbdConn *conn)
{
    NbdHandshake *hs = conn->handshake;
    uint32_t flags = get_be32(conn->rbuf + conn->rpos);

    conn->rpos += 4;
    if (flags & ~(uint32_t)(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) {
        return nbd_handshake_refuse(conn, "it set flags that there are not");
    }
    hs->fixed = flags & NBD_FLAG_C_FIXED_NEWSTYLE;
    hs->no_zeroes = flags & NBD_FLAG_C_NO_ZEROES;
    hs->state = STATE_OPTION;
    return true;
}

/* Takes the next message from rbuf.  *@ret_more: it is not all there.  Returns false when the
 * handshake is over. */
static bool take_message(NbdConn *conn, bool *ret_more)
{
    NbdHandshake *hs = conn->handshake;
    const uint8_t *head = conn->rbuf + conn->rpos;
    uint32_t bytes;

    if (hs->skip > 0) {
        size_t n = buffered(conn) < hs->skip ? buffered(conn) : (size_t)hs->skip;

        conn->rpos += n;
        hs->skip -= n;
        *ret_more = hs->skip > 0;
        return true;
    }
    if (hs->state == STATE_FLAGS) {
        *ret_more = buffered(conn) < 4;
        return *ret_more || take_flags(conn);
    }
    *ret_more = buffered(conn) < HEADER_BYTES;
    if (*ret_more) {
        return true;
    }
    if (get_be64(head) != NBD_OPTS_MAGIC) {
        return nbd_handshake_refuse(conn, "it does not speak NBD");
    }
    hs->option = get_be32(head + 8);
    bytes = get_be32(head + 12);
    if (bytes > (hs->option == NBD_OPT_EXPORT_NAME ? NBD_STRING_MAX : NBD_OPTION_MAX)) {
        conn->rpos += HEADER_BYTES;
        return nbd_option_too_long(conn, bytes);
    }
    *ret_more = buffered(conn) < HEADER_BYTES + bytes;
    if (*ret_more) {
        return true;
    }
    conn->rpos += HEADER_BYTES + bytes;
    return nbd_option(conn, head + HEADER_BYTES, bytes);
}

/* Each returns whether to go on; false: the handshake waits, or is over. */
static bool wait_for(NbdConn *conn, bool in, bool out)
{
    int ret = nbd_conn_watch(conn, in, out);

    if (ret < 0) {
        drop_errno(conn, "it cannot be waited for", ret);
    }
    return false;
}

static bool receive(NbdConn *conn)
{
    NbdHandshake *hs = conn->handshake;
    struct iovec iov;
    ssize_t n;

    /* Once in a run, so that nobody keeps the loop to himself. */
    if (hs->received && !nbd_stream_has_input(conn->stream)) {
        return wait_for(conn, true, false);
    }
    hs->received = true;
    nbd_conn_compact(conn);
    iov = (struct iovec){ conn->rbuf + conn->rend, NBD_RECV_BYTES - conn->rend };
    n = nbd_stream_recvv(conn->stream, &iov, 1);
    if (n == -EAGAIN) {
        return wait_for(conn, true, false);
    }
    if (n == 0) {
        return nbd_handshake_refuse(conn, "it went away during the handshake");
    }
    if (n < 0) {
        return drop_errno(conn, "receiving from it failed", (int)n);
    }
    conn->rend += (size_t)n;
    return true;
}

static bool send_out(NbdConn *conn)
{
    NbdHandshake *hs = conn->handshake;
    struct iovec iov = { hs->out + hs->out_pos, hs->out_len - hs->out_pos };
    ssize_t n = nbd_stream_sendv(conn->stream, &iov, 1);

    if (n == -EAGAIN) {
        return wait_for(conn, false, true);
    }
    if (n < 0) {
        return drop_errno(conn, "sending to it failed", (int)n);
    }
    hs->out_pos += (size_t)n;
    if (hs->out_pos == hs->out_len) {
        hs->out_pos = hs->out_len = 0;
    }
    return true;
}

/* Wraps the stream in TLS; all that was agreed on before is forgotten. */
static bool start_tls(NbdConn *conn)
{
    NbdHandshake *hs = conn->handshake;
    NbdStream *stream;

    if (buffered(conn) > 0) {
        return nbd_handshake_refuse(conn, "it sent something before TLS had begun");
    }
    (void)nbd_conn_watch(conn, false, false);
    stream = conn->server->opt.tls_wrap(conn->server->opt.tls, conn->stream);
    if (!stream) {
        return drop_errno(conn, "TLS cannot begin", -errno);
    }
    conn->stream = stream;
    conn->structured = false;
    hs->status_export = NULL;
    hs->tls = true;
    hs->state = STATE_TLS;
    return true;
}

static bool go_on_with_tls(NbdConn *conn)
{
    int ret = conn->stream->ops->handshake ? conn->stream->ops->handshake(conn->stream) : 0;

    if (ret == -EAGAIN) {
        return wait_for(conn, true, false);
    }
    if (ret < 0) {
        char why[320];

        snprintf(why, sizeof(why), "the TLS handshake failed: %s",
                 nbd_stream_why(conn->stream, ret));
        return nbd_handshake_refuse(conn, why);
    }
    conn->handshake->state = STATE_OPTION;
    return true;
}

/* All that was to be sent is out. */
static bool go_on(NbdConn *conn)
{
    NbdHandshakeAfter after = conn->handshake->after;

    conn->handshake->after = AFTER_NOTHING;
    switch (after) {
    case AFTER_CLOSE:
        conn->stream->ops->bye(conn->stream);
        return nbd_handshake_refuse(conn, NULL);
    case AFTER_SERVE:
        end(conn);
        nbd_server_ready(conn);
        return false;
    case AFTER_TLS:
        return start_tls(conn);
    default: {
        bool more = false;

        if (conn->handshake->state == STATE_TLS) {
            return go_on_with_tls(conn);
        }
        return take_message(conn, &more) && (!more || receive(conn));
    }
    }
}

static void run(void *opaque)
{
    NbdConn *conn = opaque;
    NbdHandshake *hs = conn->handshake;
    bool on = true;

    hs->received = false;
    while (on) {
        if (hs->out_failed) {
            on = nbd_handshake_refuse(conn, "out of memory");
        } else if (hs->out_len > 0) {
            on = send_out(conn);
        } else {
            on = go_on(conn);
        }
    }
}

int64_t nbd_handshake_began_ns(const NbdConn *conn)
{
    return conn->handshake->began_ns;
}

void nbd_handshake_start(NbdConn *conn)
{
    NbdHandshake *hs = calloc(1, sizeof(*hs));
    uint8_t greeting[18], *p = greeting;

    conn->handshake = hs;
    if (!hs) {
        nbd_log_drop("client %llu (%s): dropped: out of memory", (unsigned long long)conn->id,
                     conn->peer);
        nbd_server_gone(conn);
        return;
    }
    conn->on_in = conn->on_out = run;
    hs->began_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    aio_timer_init(conn->ctx, &hs->timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_timeout, conn);
    timer_mod_ns(&hs->timer, hs->began_ns + conn->server->opt.handshake_timeout_ns);
    p = put_be64(p, NBD_MAGIC);
    p = put_be64(p, NBD_OPTS_MAGIC);
    put_be16(p, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_handshake_put(hs, greeting, sizeof(greeting));
    run(conn);
}
