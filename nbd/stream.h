/* SPDX-License-Identifier: MIT */
/*
 * The bytes of one connection: a socket, a pair of pipes, or TLS over either.
 *
 * Nothing here blocks.  A call that cannot go on returns -EAGAIN, and the stream says what it waits
 * for (recv_waits, send_waits); its user waits for that and calls again.  One thread at a time uses
 * a stream; the connection's code sees to that, also when it moves from one thread to another.
 */
#ifndef NBD_STREAM_H
#define NBD_STREAM_H

#include <stdbool.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of recv_waits and send_waits. */
enum {
    NBD_STREAM_IN = 1 << 0,  /* for rfd to be readable */
    NBD_STREAM_OUT = 1 << 1, /* for wfd to be writable */
};

typedef struct NbdStream NbdStream;

typedef struct NbdStreamOps {
    /*
     * Goes on with what has to happen before data can pass, such as a TLS handshake.  NULL: there
     * is nothing.  It is called until it has returned 0, and before any other call.
     * Returns 0 when it is done; -EAGAIN with recv_waits set; else -errno: the connection is over.
     */
    int (*handshake)(NbdStream *s);
    /*
     * Receives at least one byte into the buffers, which are filled in order.
     * Returns how many, less than there is room for also when more has come already; 0: the other
     * side has ended the stream; -EAGAIN with recv_waits set; else -errno.
     */
    ssize_t (*recvv)(NbdStream *s, const struct iovec *iov, int niov);
    /*
     * Sends at least one byte from the buffers.
     * Returns how many; -EAGAIN with send_waits set: then the next call begins with the same bytes,
     * at the same address or another, and may have more behind them; else -errno.
     */
    ssize_t (*sendv)(NbdStream *s, const struct iovec *iov, int niov);
    /* Whether recvv would find something although rfd is not readable: bytes that the stream has
     * read ahead.  NULL: never. */
    bool (*has_input)(NbdStream *s);
    /* Whether the other side has so much to read still that wfd is not writable, as poll(2) sees
     * it, although sendv may find room.  NULL: never. */
    bool (*is_crowded)(NbdStream *s);
    /* Tells the other side that no more will come, as far as that goes without waiting. */
    void (*bye)(NbdStream *s);
    /* For people: why the stream has failed; NULL: no more than the error says.  May be NULL
     * itself.  Lifetime: the stream's. */
    const char *(*why)(NbdStream *s);
    /* Closes the fds and frees the stream. */
    void (*destroy)(NbdStream *s);
} NbdStreamOps;

/* What every stream begins with. */
struct NbdStream {
    const NbdStreamOps *ops;
    int rfd, wfd; /* to wait for; the same one, or two */
    unsigned recv_waits, send_waits;
};

/* A stream over a connected socket, or over two pipes or sockets.  It makes them non-blocking, owns
 * and closes them.  Returns NULL with errno ENOMEM, or that of fcntl(2); then the fds stay open. */
NbdStream *nbd_stream_new(int rfd, int wfd);

static inline ssize_t nbd_stream_recvv(NbdStream *s, const struct iovec *iov, int niov)
{
    return s->ops->recvv(s, iov, niov);
}

static inline ssize_t nbd_stream_sendv(NbdStream *s, const struct iovec *iov, int niov)
{
    return s->ops->sendv(s, iov, niov);
}

static inline bool nbd_stream_has_input(NbdStream *s)
{
    return s->ops->has_input && s->ops->has_input(s);
}

static inline bool nbd_stream_is_crowded(NbdStream *s)
{
    return s->ops->is_crowded && s->ops->is_crowded(s);
}

/* What to tell people of @err, -errno, that a call has returned. */
static inline const char *nbd_stream_why(NbdStream *s, int err)
{
    const char *why = s->ops->why ? s->ops->why(s) : NULL;

    return why ? why : strerror(-err);
}

#ifdef __cplusplus
}
#endif

#endif
