/* SPDX-License-Identifier: MIT */
/*
 * The server: it listens, accepts, has the handshakes on its own context, spreads connections over
 * iothreads, and ends.
 */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H

#include <aioctx/aio.h>

#include "nbd/conn.h"
#include "nbd/listen.h"
#include "nbd/pool.h"

typedef enum { NBD_TLS_OFF, NBD_TLS_ON, NBD_TLS_REQUIRE } NbdTlsMode;

typedef struct NbdServerOptions {
    const NbdExports *exports;
    const char *monitor, *cpus; /* of the iothreads; NULL: default */
    unsigned threads;
    unsigned max_connections;
    unsigned max_requests; /* of one connection at a time */
    NbdTlsMode tls_mode;
    /* Puts TLS over a stream, which the new one owns; NULL with errno: then it does not.  Needed
     * unless tls_mode is off. */
    NbdStream *(*tls_wrap)(void *tls, NbdStream *plain);
    void *tls;
    uint64_t max_in_flight_bytes; /* of one connection; one request may be larger */
    int64_t handshake_timeout_ns, shutdown_timeout_ns;
    int64_t stall_timeout_ns; /* 0: none */
    int64_t deadline_ns;      /* of a request, from when all of it has come; 0: none */
    int64_t poll_max_ns;      /* as AioContextOptions.poll_max_ns */
    bool verbose;
} NbdServerOptions;

/* An iothread.  Home: its own thread, where nothing else is said. */
struct NbdThread {
    NbdServer *server;           /* fixed */
    IOThread *iothread;          /* fixed */
    AioContext *ctx;             /* fixed */
    QEMUBH *finish_bh, *kill_bh; /* fixed; the server schedules them */
    unsigned n_conns;            /* the server's context: connections that it was given */
    NbdConn *conns;
    NbdPool pool;
    NbdRequest *free_requests;
    unsigned n_free_requests;
    bool finishing; /* connections end as soon as their requests have */
};

struct NbdServer {
    NbdServerOptions opt; /* fixed */
    AioContext *ctx;      /* fixed; all that follows is its home thread's */
    NbdThread *threads;
    unsigned n_threads;
    NbdListener *listeners;
    unsigned n_listeners;
    bool listening;
    QEMUTimer accept_timer; /* when accepting goes on, after descriptors ran short */
    NbdConn *handshakes;
    unsigned n_conns; /* handshakes included */
    uint64_t next_id;
    bool short_of; /* descriptors or memory, and it has been said */
    bool stopping, one_shot;
};

/* Makes the iothreads.  The calling thread becomes the home of the server's context.
 * Returns NULL after a message in the log. */
NbdServer *nbd_server_new(const NbdServerOptions *opt);

/* Has the server listen on @listener, which it takes over.  Returns 0 or -ENOMEM. */
int nbd_server_add_listener(NbdServer *server, const NbdListener *listener);

/* Serves one connection over the two fds, and no other; nbd_server_run() returns when it has ended.
 * Takes the fds over.  Returns 0 after all went well, or -errno after a message. */
int nbd_server_add_stdio(NbdServer *server, int rfd, int wfd);

/* Runs until nbd_server_stop(), or the connection of nbd_server_add_stdio() has ended; then lets
 * requests in flight end.  Returns 0, or -ETIMEDOUT when some do not: then nothing may be freed. */
int nbd_server_run(NbdServer *server);

/* Thread: the server's own, below nbd_server_run(). */
void nbd_server_stop(NbdServer *server);

/* Ends the iothreads and frees; no connection is left. */
void nbd_server_free(NbdServer *server);

/* ---- For handshake.c ------------------------------------------------------------------------- */

/* The handshake has led to an export: hands the connection to an iothread. */
void nbd_server_ready(NbdConn *conn);

/* The connection has ended in its handshake; frees it. */
void nbd_server_gone(NbdConn *conn);

#endif
