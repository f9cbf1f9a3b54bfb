/* SPDX-License-Identifier: MIT */
/*
 * A connection.
 *
 * It begins on the server's own context, where the handshake takes place (handshake.c), and moves
 * to an iothread for the transmission (transmit.c), where it ends.  One thread has it at a time: the
 * one that runs its context.  It moves, and ends, by a bottom half on the next one's context, which
 * orders what the two write.
 */
#ifndef NBD_CONN_H
#define NBD_CONN_H

#include <aioctx/block.h>

#include "nbd/export.h"
#include "nbd/stream.h"
#include "nbd/wire.h"

typedef struct NbdServer NbdServer;
typedef struct NbdThread NbdThread;
typedef struct NbdRequest NbdRequest;
typedef struct NbdHandshake NbdHandshake;
typedef struct NbdConn NbdConn;

enum { NBD_RECV_BYTES = 64 << 10 };

struct NbdConn {
    /* Fixed. */
    NbdServer *server;
    uint64_t id;
    char peer[96];    /* for people */
    QEMUBH *ended_bh; /* on the server's context: the iothread is done with the connection */

    /* Of whoever has it. */
    NbdStream *stream;
    AioContext *ctx;
    IOHandler *on_in, *on_out; /* called when the stream's fds are ready */
    unsigned watched;          /* NBD_STREAM_*: what handlers are set for */
    uint8_t *rbuf;             /* NBD_RECV_BYTES; received and not yet used: [rpos, rend) */
    size_t rpos, rend;

    /* What was agreed on. */
    const NbdExport *export;
    bool structured; /* structured replies */
    bool status;     /* base:allocation was selected for this export */

    /* The server's own context. */
    NbdConn *next, **pprev; /* of those in their handshake, the newest first */
    NbdHandshake *handshake;

    /* The iothread's. */
    NbdThread *thread;
    NbdConn *thread_next, **thread_pprev;
    QEMUBH *work_bh;       /* sends replies, goes on reading, ends the connection */
    QEMUTimer stall_timer; /* armed while the connection may be stuck */
    bool stall_armed;
    bool paused;      /* no more requests are taken on until some have ended */
    bool holding;     /* nothing is read while the client is busy with replies */
    bool hold_barred; /* that has taken too long: not again until it has read */
    bool hold_armed;
    QEMUTimer hold_timer;
    uint64_t holds, holds_seen; /* counted; by the timer */
    bool closing;               /* nothing is read any more; it ends when all replies are out */
    bool dropped;           /* nothing is sent any more either; it ends when no request is left */
    bool said;              /* why it ends, in the log */
    bool unwritable;        /* the last send waits for the stream */
    uint64_t progress;      /* goes up when bytes move or a request ends */
    uint64_t progress_seen; /* by the stall timer */
    NbdRequest *filling;    /* a write whose payload is still coming */
    NbdRequest *refused;    /* a write whose payload is thrown away, then answered */
    uint64_t refused_bytes; /* that are still to come */
    NbdRequest *flight;     /* requests that the backend has */
    NbdRequest *out, **out_tail; /* replies to send */
    size_t reply_bytes;          /* the last reply that went out, or is going */
    size_t out_sent;             /* of the first one, bytes */
    unsigned n_requests;         /* from the header to the reply's last byte */
    uint64_t bytes_in_flight;    /* that their buffers take */
};

/* Takes the stream over; NULL when out of memory: then it stays the caller's. */
NbdConn *nbd_conn_new(NbdServer *server, NbdStream *stream, uint64_t id, const char *peer);

/* Closes and frees.  Nothing is watched any more. */
void nbd_conn_free(NbdConn *conn);

/* Has on_in and on_out called when the stream may go on receiving (@in) or sending (@out).
 * Returns 0 or -errno of aio_set_fd_handler(). */
int nbd_conn_watch(NbdConn *conn, bool in, bool out);

/* Makes room behind what is in rbuf.  What is left there is short or was just received. */
void nbd_conn_compact(NbdConn *conn);

#endif
