/* SPDX-License-Identifier: MIT */
/*
 * An echo server on one end of a socket pair, served by fd handlers on an iothread; the program
 * itself is the client.  It prints what comes back of each argument.
 * usage: echo WORD...
 */
#include <aioctx/aioctx.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct server {
    AioContext *ctx;
    int fd;
    char buf[256];
    size_t used, sent; /* bytes of buf that were read, and of these, sent back */
    sem_t closed;
};

/* The client has gone: after the removal no callback follows, so the fd may be closed at once. */
static void close_server(struct server *s)
{
    aio_set_fd_handler(s->ctx, s->fd, NULL, NULL, NULL, NULL, NULL);
    close(s->fd);
    s->fd = -1;
    sem_post(&s->closed);
}

static void on_readable(void *opaque);

/* Sends back what was read; returns false when the socket takes no more now, or the client left. */
static bool send_back(struct server *s)
{
    while (s->sent < s->used) {
        ssize_t n = send(s->fd, s->buf + s->sent, s->used - s->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            return false;
        }
        if (n < 0) {
            close_server(s);
            return false;
        }
        s->sent += (size_t)n;
    }
    return true;
}

static void on_writable(void *opaque)
{
    struct server *s = opaque;

    if (send_back(s)) {
        aio_set_fd_handler(s->ctx, s->fd, on_readable, NULL, NULL, NULL, s);
    }
}

/* Handlers are level-triggered: what is left in the socket brings us here again. */
static void on_readable(void *opaque)
{
    struct server *s = opaque;
    ssize_t n = recv(s->fd, s->buf, sizeof(s->buf), 0);

    if (n < 0 && errno == EAGAIN) {
        return;
    }
    if (n <= 0) {
        close_server(s);
        return;
    }
    s->used = (size_t)n;
    s->sent = 0;
    if (!send_back(s) && s->fd >= 0) {
        aio_set_fd_handler(s->ctx, s->fd, NULL, on_writable, NULL, NULL, s);
    }
}

/* Sends @word and prints what comes back; returns whether all of it did. */
static bool ask(int fd, const char *word)
{
    size_t len = strlen(word), got = 0;
    char buf[256];

    if (len > sizeof(buf) || send(fd, word, len, MSG_NOSIGNAL) != (ssize_t)len) {
        return false;
    }
    while (got < len) {
        ssize_t n = recv(fd, buf + got, len - got, 0);
        if (n <= 0) {
            return false;
        }
        got += (size_t)n;
    }
    printf("%.*s\n", (int)got, buf);
    return memcmp(buf, word, len) == 0;
}

int main(int argc, char **argv)
{
    static struct server s;
    int fds[2], status = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
        fcntl(fds[1], F_SETFL, O_NONBLOCK) < 0) {
        perror("echo: socketpair");
        return 1;
    }
    IOThread *io = iothread_new("echo", NULL);
    if (!io) {
        perror("echo: iothread_new");
        return 1;
    }
    s.ctx = iothread_get_aio_context(io);
    s.fd = fds[1];
    sem_init(&s.closed, 0, 0);
    int ret = aio_set_fd_handler(s.ctx, s.fd, on_readable, NULL, NULL, NULL, &s);
    if (ret < 0) {
        fprintf(stderr, "echo: aio_set_fd_handler: %s\n", strerror(-ret));
        iothread_destroy(io);
        return 1;
    }
    for (int i = 1; i < argc; i++) {
        if (!ask(fds[0], argv[i])) {
            fprintf(stderr, "echo: '%s' did not come back\n", argv[i]);
            status = 1;
        }
    }
    close(fds[0]); /* the server sees the end of the stream */
    sem_wait(&s.closed);
    iothread_destroy(io);
    return status;
}
