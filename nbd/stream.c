/* SPDX-License-Identifier: MIT */
/* The plain stream: a connected socket, or two fds such as a pair of pipes. */
#include "nbd/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * A unix socket counts what the other side has not read yet, and poll(2) finds it writable while
 * that is a quarter of its buffer or less.  So the buffer's size says what is crowded: some 25
 * replies of 4 KiB, enough for a client to be busy with while we wake up and answer the rest.  (TCP counts what is not acknowledged, which says nothing of the reader.)
 */
enum { SEND_BUFFER = 416 << 10 }; /* what is asked for is half of it: the kernel doubles that */

typedef struct PlainStream {
    NbdStream stream;
    bool is_socket;
    bool is_unix;
} PlainStream;

static ssize_t plain_recvv(NbdStream *s, const struct iovec *iov, int niov)
{
    ssize_t n;

    do {
        n = niov == 1 && ((PlainStream *)s)->is_socket
                ? recv(s->rfd, iov->iov_base, iov->iov_len, 0)
                : readv(s->rfd, iov, niov);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static ssize_t plain_sendv(NbdStream *s, const struct iovec *iov, int niov)
{
    ssize_t n;

    do {
        if (((PlainStream *)s)->is_socket) {
            struct msghdr msg = { .msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)niov };

            n = sendmsg(s->wfd, &msg, MSG_NOSIGNAL);
        } else {
            n = writev(s->wfd, iov, niov);
        }
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static bool plain_is_crowded(NbdStream *s)
{
    int unread;

    return ((PlainStream *)s)->is_unix && ioctl(s->wfd, SIOCOUTQ, &unread) == 0 &&
           unread > SEND_BUFFER / 4;
}

static void plain_bye(NbdStream *s)
{
    if (((PlainStream *)s)->is_socket) {
        (void)shutdown(s->wfd, SHUT_WR);
    }
}

static void plain_destroy(NbdStream *s)
{
    close(s->rfd);
    if (s->wfd != s->rfd) {
        close(s->wfd);
    }
    free(s);
}

static const NbdStreamOps plain_ops = {
    .recvv = plain_recvv,
    .sendv = plain_sendv,
    .is_crowded = plain_is_crowded,
    .bye = plain_bye,
    .destroy = plain_destroy,
};

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

static bool is_socket(int fd)
{
    int type;
    socklen_t len = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0;
}

static bool is_unix(int fd)
{
    int domain;
    socklen_t len = sizeof(domain);

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

NbdStream *nbd_stream_new(int rfd, int wfd)
{
    PlainStream *s;

    if (set_nonblocking(rfd) < 0 || (wfd != rfd && set_nonblocking(wfd) < 0)) {
        return NULL;
    }
    s = malloc(sizeof(*s));
    if (!s) {
        return NULL;
    }
    *s = (PlainStream){
        .stream = { .ops = &plain_ops,
                    .rfd = rfd,
                    .wfd = wfd,
                    .recv_waits = NBD_STREAM_IN,
                    .send_waits = NBD_STREAM_OUT },
        .is_socket = is_socket(rfd) && is_socket(wfd),
        .is_unix = is_unix(wfd),
    };
    if (s->is_unix) {
        (void)setsockopt(wfd, SOL_SOCKET, SO_SNDBUF, &(int){ SEND_BUFFER / 2 }, sizeof(int));
    }
    return &s->stream;
}
