/* SPDX-License-Identifier: MIT */
/*
 * The NBD client: a driver over libnbd's asynchronous calls.
 *
 * A connection (NbdConn) is a libnbd handle that one context drives: its descriptor is watched by
 * fd handlers, and all that libnbd is asked for happens on that context's home thread.
 *
 *   server says multi-conn     each queue has a connection of its own, on its own context
 *   it does not                one connection for all, on an iothread of the driver's, and queues
 *                              hand their pieces over: without the flag, a flush on one connection
 *                              says nothing of what was written on another, and some servers take
 *                              one client only
 *
 * libnbd calls back inside other calls of its own, where it must not be called again.  So a
 * completion only moves its piece to a list of answers, which the callers of libnbd hand out when
 * it has returned.
 */
#ifndef BLOCK_NBD_NBD_INT_H
#define BLOCK_NBD_NBD_INT_H

#include <aioctx/aioctx.h>
#include <aioctx/block_driver.h>
#include <libnbd.h>
#include <netdb.h>
#include <pthread.h>

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

typedef struct NbdConn NbdConn;
typedef struct NbdLookUp NbdLookUp;
typedef struct NbdState NbdState;

/* What a spec says. */
typedef struct NbdConfig {
    char *socket;       /* NULL: over TCP */
    char *host, *port;  /* NULL: over a socket */
    char *export;       /* "": the server's default */
    char *where;        /* for messages */
    char *certificates; /* NULL: libnbd's places */
    char *psk_file;
    char *user;
    int tls; /* LIBNBD_TLS_ */
    bool verify_peer;
    bool read_only;
    int64_t connect_timeout_ns;
    int64_t delay_ns;   /* of the first attempt to connect that follows a failed one */
    int64_t give_up_ns; /* how long requests wait for a connection */
    int64_t stall_ns;   /* for how long a server may answer nothing; 0: any time */
} NbdConfig;

/* What a server says of an export. */
typedef struct NbdCaps {
    int64_t size;
    uint32_t min_block, max_block;
    bool read_only, flush, fua, trim, zero, fast_zero, status, multi_conn;
} NbdCaps;

/* In the room of each piece.  Of the connection's home thread, but for what is said. */
typedef struct NbdPiece {
    struct NbdPiece *next, *prev;
    NbdConn *conn;
    uint64_t done;      /* of a discard or zeroing: bytes that are behind */
    uint64_t asked;     /* bytes of the command in flight */
    int64_t give_up_ns; /* when it has waited long enough; -1: it never lacked a connection */
    int64_t ret;
    int64_t extent;  /* length of the first extent; 0: none came */
    uint32_t status; /* libnbd's flags of it */
    bool flushing;   /* the flush after a write that the server has no FUA for */
    bool sent;       /* in conn->sent: libnbd has it */
    bool waiting;    /* in conn->waiting */
    bool cancelled;  /* atomic: set by the queue's home, read by the connection's; orders nothing */
} NbdPiece;

typedef struct NbdList {
    NbdPiece *head, *tail;
} NbdList;

/* One per context that uses the backend. */
typedef struct NbdQueue {
    NbdState *s;
    NbdConn *own;    /* NULL: all share one */
    QEMUBH *done_bh; /* of a shared one, and so the rest: */
    pthread_mutex_t lock;
    NbdList done;   /* lock: given back, for the queue's home to take */
    bool abandoned; /* lock: the context has gone */
} NbdQueue;

typedef enum {
    NBD_IDLE,       /* nobody has asked for anything yet */
    NBD_RESOLVING,  /* a thread of the pool looks the name up */
    NBD_CONNECTING, /* and negotiating */
    NBD_READY,
    NBD_PAUSED, /* until the next attempt */
} NbdPhase;

/* A connection.  All of it belongs to the home thread of ctx. */
struct NbdConn {
    NbdState *s;
    AioContext *ctx;
    struct nbd_handle *h; /* NULL: none */
    int fd;               /* a duplicate of its own, that is watched; -1: none */
    unsigned watched;     /* LIBNBD_AIO_DIRECTION_ */
    NbdPhase phase;
    bool dropping;     /* libnbd may call back what is not to be taken for answers */
    bool has_answered; /* on this connection */
    bool told;         /* that requests fail */
    bool leaving;      /* the server has said that it shuts down, or it cannot be watched */
    unsigned n_sent;
    uint64_t n_answers; /* that have come, ever */
    NbdList waiting;    /* for a connection, or for their next command to be sent */
    NbdList sent;       /* libnbd has them */
    NbdList answered;   /* to be given back */
    QEMUBH *bh;         /* gives back */
    QEMUTimer timer;    /* PAUSED: the next attempt; CONNECTING: too long; READY: stalled */
    QEMUTimer give_up;  /* of those that wait, the first */
    uint64_t stall_seen;
    int64_t down_since_ns;
    int64_t delay_ns; /* before the next attempt */
    NbdLookUp *look_up;
    struct addrinfo *addrs, *addr_next; /* that were found and have not been tried */
    char why[200];                      /* the last attempt failed */
};

struct NbdState {
    unsigned refs; /* atomic: open, each queue, the shared connection */
    NbdConfig cfg;
    NbdCaps caps;
    pthread_mutex_t lock;
    struct nbd_handle *spare; /* lock: what open connected, for who first needs a connection */
    bool shared;              /* fixed: all queues use conn */
    IOThread *io;             /* of the shared connection, and so the rest */
    NbdConn conn;
    QEMUBH *in_bh;
    NbdList in;  /* lock: handed over by the queues */
    bool look;   /* lock: a piece has been cancelled */
    bool settle; /* lock: cancelled pieces are to come back whatever it takes */
};

/* ---- handle.c -------------------------------------------------------------------------------- */

/* A handle that is set up, not connected.  Returns NULL with a message. */
struct nbd_handle *nbd_handle_new(const NbdConfig *cfg, char **ret_why);
/* Begins to connect; to @addr unless that is NULL.  Returns 0, or -errno with a message. */
int nbd_handle_connect(struct nbd_handle *h, const NbdConfig *cfg, const struct addrinfo *addr,
                       char **ret_why);
/* Of one that is connected.  Returns 0, or -errno with a message. */
int nbd_handle_caps(struct nbd_handle *h, NbdCaps *ret_caps, char **ret_why);
/* Returns NULL, or what @now lacks that @before had. */
const char *nbd_caps_lack(const NbdCaps *now, const NbdCaps *before);
/* Connects, waiting, and asks.  Returns 0 or -errno with a message. */
int nbd_open_first(const NbdConfig *cfg, struct nbd_handle **ret_h, NbdCaps *ret_caps,
                   char **ret_why);
/* Says goodbye if that is possible, and closes.  NULL is ignored. */
void nbd_handle_close(struct nbd_handle *h);

/* ---- command.c ------------------------------------------------------------------------------- */

/* Asks libnbd for what is next of a piece, which is in conn->sent.  Returns 0 or -errno. */
int nbd_command_issue(NbdConn *conn, NbdPiece *np);
/* Takes an answer in.  Returns false when there is more to ask for, else np->ret is the result. */
bool nbd_command_answered(NbdConn *conn, NbdPiece *np, int error);
/* An operation that needs no server, or that this one has not.  Returns true with *@ret_ret. */
bool nbd_command_needs_none(const NbdCaps *caps, const BlkPiece *piece, int64_t *ret_ret);

/* ---- conn.c ---------------------------------------------------------------------------------- */

/* Thread: any; nothing happens on @ctx before nbd_conn_submit().  Returns 0 or -ENOMEM. */
int nbd_conn_init(NbdConn *conn, NbdState *s, AioContext *ctx);
/* No piece is left.  Thread: home, or the one that closes the context. */
void nbd_conn_destroy(NbdConn *conn);
/* Thread of these: home. */
void nbd_conn_submit(NbdConn *conn, NbdPiece *np);
/* np->cancelled has been set. */
void nbd_conn_cancel(NbdConn *conn, NbdPiece *np);
/* The same for all, of which some may have been cancelled. */
void nbd_conn_cancel_some(NbdConn *conn);
/* Gives the connection up if a cancelled piece is with the server. */
void nbd_conn_settle(NbdConn *conn);
/* Called inside libnbd: the command for @np has ended in @error. */
void nbd_conn_answer(NbdConn *conn, NbdPiece *np, int error);

/* What nbd_look_up() has found, to be freed with freeaddrinfo(3); NULL: nothing, for @why. */
void nbd_conn_looked_up(NbdConn *conn, struct addrinfo *found, const char *why);

/* look_up.c.  Looks the host up; nbd_conn_looked_up() follows, maybe at once.  Thread: home. */
void nbd_look_up(NbdConn *conn);
/* Nobody wants to know any more.  NULL is ignored. */
void nbd_look_up_forget(NbdLookUp *l);

/* driver.c.  Gives a piece back.  Thread: the connection's home. */
void nbd_piece_finish(NbdPiece *np);

/* ---- Lists ----------------------------------------------------------------------------------- */

static inline void nbd_list_add(NbdList *list, NbdPiece *np)
{
    np->next = NULL;
    np->prev = list->tail;
    *(np->prev ? &np->prev->next : &list->head) = np;
    list->tail = np;
}

static inline void nbd_list_remove(NbdList *list, NbdPiece *np)
{
    *(np->prev ? &np->prev->next : &list->head) = np->next;
    *(np->next ? &np->next->prev : &list->tail) = np->prev;
}

/* @from in front of what is in @list; @from is empty then. */
static inline void nbd_list_prepend(NbdList *list, NbdList *from)
{
    if (from->head) {
        from->tail->next = list->head;
        *(list->head ? &list->head->prev : &list->tail) = from->tail;
        list->head = from->head;
        *from = (NbdList){ 0 };
    }
}

#endif
