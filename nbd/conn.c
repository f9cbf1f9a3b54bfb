/* SPDX-License-Identifier: MIT */
#include "nbd/conn.h"

#include <stdio.h>
#include <stdlib.h>

NbdConn *nbd_conn_new(NbdServer *server, NbdStream *stream, uint64_t id, const char *peer)
{
    NbdConn *conn = calloc(1, sizeof(*conn));

    if (!conn) {
        return NULL;
    }
    conn->rbuf = malloc(NBD_RECV_BYTES);
    if (!conn->rbuf) {
        free(conn);
        return NULL;
    }
    conn->server = server;
    conn->stream = stream;
    conn->id = id;
    snprintf(conn->peer, sizeof(conn->peer), "%s", peer);
    conn->out_tail = &conn->out;
    return conn;
}

void nbd_conn_free(NbdConn *conn)
{
    conn->stream->ops->destroy(conn->stream);
    qemu_bh_delete(conn->ended_bh);
    free(conn->rbuf);
    free(conn);
}

static int watch_fd(NbdConn *conn, int fd, unsigned events)
{
    return aio_set_fd_handler(conn->ctx, fd, events & NBD_STREAM_IN ? conn->on_in : NULL,
                              events & NBD_STREAM_OUT ? conn->on_out : NULL, NULL, NULL, conn);
}

int nbd_conn_watch(NbdConn *conn, bool in, bool out)
{
    NbdStream *s = conn->stream;
    unsigned events = (in ? s->recv_waits : 0) | (out ? s->send_waits : 0);
    unsigned changed = events ^ conn->watched;
    int ret = 0;

    if (!changed) {
        return 0;
    }
    if (s->rfd == s->wfd) {
        ret = watch_fd(conn, s->rfd, events);
    } else {
        if (changed & NBD_STREAM_IN) {
            ret = watch_fd(conn, s->rfd, events & NBD_STREAM_IN);
        }
        if (changed & NBD_STREAM_OUT) {
            int ret2 = watch_fd(conn, s->wfd, events & NBD_STREAM_OUT);

            ret = ret < 0 ? ret : ret2;
        }
    }
    if (ret == 0) {
        conn->watched = events;
    }
    return ret;
}

void nbd_conn_compact(NbdConn *conn)
{
    if (conn->rpos == 0) {
        return;
    }
    memmove(conn->rbuf, conn->rbuf + conn->rpos, conn->rend - conn->rpos);
    conn->rend -= conn->rpos;
    conn->rpos = 0;
}
