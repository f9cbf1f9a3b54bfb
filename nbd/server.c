/* SPDX-License-Identifier: MIT */
/*
 * The server's own context: listening, accepting, who is connected, and the end.
 *
 * Handshakes take place here, so that clients who want none, or TLS, cost those who are served
 * nothing.  A connection that is ready goes to the iothread with the fewest.
 */
#include "nbd/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbd/handshake.h"
#include "nbd/log.h"
#include "nbd/transmit.h"

/* Connections taken from one listener at a time. */
enum { ACCEPT_MAX = 64 };
/* How long accepting rests when descriptors or memory run short. */
#define ACCEPT_REST_NS (INT64_C(200) * 1000000)
/* How old a handshake must be to make room for a new client when there is none. */
#define HANDSHAKE_OLD_NS (INT64_C(1000) * 1000000)
/* How long cancelled requests may take to end. */
#define KILL_NS (INT64_C(10) * 1000000000)

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* ---- Connections ----------------------------------------------------------------------------- */

static void forget(NbdServer *server, NbdConn *conn)
{
    server->n_conns--;
    nbd_conn_free(conn);
    if (server->one_shot && server->n_conns == 0) {
        server->stopping = true;
    }
}

static void leave_handshakes(NbdConn *conn)
{
    *conn->pprev = conn->next;
    if (conn->next) {
        conn->next->pprev = conn->pprev;
    }
}

void nbd_server_gone(NbdConn *conn)
{
    leave_handshakes(conn);
    forget(conn->server, conn);
}

static void on_ended(void *opaque)
{
    NbdConn *conn = opaque;

    conn->thread->n_conns--;
    if (conn->server->opt.verbose) {
        nbd_log("client %llu (%s): ended", (unsigned long long)conn->id, conn->peer);
    }
    forget(conn->server, conn);
}

static NbdThread *least_loaded(NbdServer *server)
{
    NbdThread *best = &server->threads[0];

    for (unsigned i = 1; i < server->n_threads; i++) {
        if (server->threads[i].n_conns < best->n_conns) {
            best = &server->threads[i];
        }
    }
    return best;
}

void nbd_server_ready(NbdConn *conn)
{
    NbdServer *server = conn->server;
    NbdThread *thread = least_loaded(server);

    leave_handshakes(conn);
    conn->ended_bh = aio_bh_new(server->ctx, on_ended, conn);
    conn->thread = thread;
    if (!conn->ended_bh || aio_bh_schedule_oneshot(thread->ctx, nbd_transmit_start, conn) < 0) {
        nbd_log_drop("client %llu (%s): dropped: out of memory", (unsigned long long)conn->id,
                     conn->peer);
        forget(server, conn);
        return;
    }
    thread->n_conns++;
    if (server->opt.verbose) {
        nbd_log("client %llu (%s): export '%s'", (unsigned long long)conn->id, conn->peer,
                conn->export->name);
    }
}

/* Makes room for one more: the oldest handshake goes when it is old enough.  So clients who say
 * nothing cannot keep others out. */
static bool make_room(NbdServer *server)
{
    NbdConn *oldest = server->handshakes;

    if (server->n_conns < server->opt.max_connections) {
        return true;
    }
    while (oldest && oldest->next) {
        oldest = oldest->next;
    }
    if (!oldest || now_ns() - nbd_handshake_began_ns(oldest) < HANDSHAKE_OLD_NS) {
        return false;
    }
    nbd_handshake_drop(oldest, "there are too many connections, and it is slow to begin");
    return true;
}

/* Takes the stream over. */
static void take_client(NbdServer *server, NbdStream *stream, const char *peer)
{
    NbdConn *conn = nbd_conn_new(server, stream, ++server->next_id, peer);

    if (!conn) {
        nbd_log_drop("client (%s): refused: out of memory", peer);
        stream->ops->destroy(stream);
        return;
    }
    conn->ctx = server->ctx;
    conn->next = server->handshakes;
    conn->pprev = &server->handshakes;
    if (conn->next) {
        conn->next->pprev = &conn->next;
    }
    server->handshakes = conn;
    server->n_conns++;
    nbd_handshake_start(conn);
}

/* ---- Accepting ------------------------------------------------------------------------------- */

static void describe_peer(int fd, const struct sockaddr_storage *addr, socklen_t len, char *buf,
                          size_t size)
{
    char host[80], port[8];
    struct ucred cred;
    socklen_t cred_len = sizeof(cred);

    if (addr->ss_family == AF_UNIX) {
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) == 0) {
            snprintf(buf, size, "process %d", (int)cred.pid);
        } else {
            snprintf(buf, size, "unix");
        }
    } else if (getnameinfo((const struct sockaddr *)addr, len, host, sizeof(host), port,
                           sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
        snprintf(buf, size, addr->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    } else {
        snprintf(buf, size, "unknown address");
    }
}

static void accept_client(NbdServer *server, int fd, const struct sockaddr_storage *addr,
                          socklen_t len)
{
    NbdStream *stream;
    char peer[96];
    int on = 1;

    describe_peer(fd, addr, len, peer, sizeof(peer));
    if (!make_room(server)) {
        nbd_log_drop("client (%s): refused: there are %u connections already", peer,
                     server->n_conns);
        close(fd);
        return;
    }
    if (addr->ss_family == AF_INET || addr->ss_family == AF_INET6) {
        /* Replies go out when they are there; a peer whose machine is gone is noticed. */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    stream = nbd_stream_new(fd, fd);
    if (!stream) {
        nbd_log_drop("client (%s): refused: %s", peer, strerror(errno));
        close(fd);
        return;
    }
    take_client(server, stream, peer);
}

static void on_connect(void *opaque);

static void listen_to_all(NbdServer *server, bool on)
{
    if (on == server->listening) {
        return;
    }
    server->listening = on;
    for (unsigned i = 0; i < server->n_listeners; i++) {
        NbdListener *listener = &server->listeners[i];
        IOHandler *func = on && !listener->shut ? on_connect : NULL;
        int ret = aio_set_fd_handler(server->ctx, listener->fd, func, NULL, NULL, NULL, listener);

        if (ret < 0) {
            nbd_log("cannot wait for connections to %s: %s", listener->name, strerror(-ret));
        }
    }
}

static void on_rested(void *opaque)
{
    listen_to_all(opaque, true);
}

/* What has run short does not come back at once: without a rest, the loop would spin. */
static void rest(NbdServer *server, int err)
{
    if (!server->short_of) {
        nbd_log("cannot accept connections for now: %s", strerror(err));
        server->short_of = true;
    }
    listen_to_all(server, false);
    timer_mod_ns(&server->accept_timer, now_ns() + ACCEPT_REST_NS);
}

/* Who has handed it over has shut it down: it would be readable for ever. */
static void give_up(NbdListener *listener)
{
    nbd_log("%s was shut down: no more connections from there", listener->name);
    listener->shut = true;
    (void)aio_set_fd_handler(listener->server->ctx, listener->fd, NULL, NULL, NULL, NULL, NULL);
}

/* A unix socket says EAGAIN then; others EINVAL. */
static bool is_shut(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLRDHUP };

    return poll(&pfd, 1, 0) > 0;
}

static void on_connect(void *opaque)
{
    NbdListener *listener = opaque;
    NbdServer *server = listener->server;

    for (unsigned i = 0; i < ACCEPT_MAX && !server->stopping; i++) {
        struct sockaddr_storage addr = { .ss_family = AF_UNSPEC };
        socklen_t len = sizeof(addr);
        int fd =
            accept4(listener->fd, (struct sockaddr *)&addr, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            server->short_of = false;
            accept_client(server, fd, &addr, len);
        } else if (errno == EAGAIN) {
            if (i == 0 && is_shut(listener->fd)) {
                give_up(listener);
            }
            return;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            rest(server, errno);
            return;
        } else if (errno == EINVAL) {
            give_up(listener);
            return;
        }
        /* Anything else is an error of that one connection, which is gone. */
    }
}

int nbd_server_add_listener(NbdServer *server, const NbdListener *listener)
{
    NbdListener *grown = realloc(server->listeners, (server->n_listeners + 1) * sizeof(*grown));

    if (!grown) {
        return -ENOMEM;
    }
    server->listeners = grown;
    grown[server->n_listeners] = *listener;
    grown[server->n_listeners].server = server;
    server->n_listeners++;
    return 0;
}

int nbd_server_add_stdio(NbdServer *server, int rfd, int wfd)
{
    NbdStream *stream = nbd_stream_new(rfd, wfd);

    if (!stream) {
        int err = errno;

        nbd_log("cannot serve on standard input and output: %s", strerror(err));
        return -err;
    }
    server->one_shot = true;
    take_client(server, stream, "stdio");
    return 0;
}

/* ---- Threads --------------------------------------------------------------------------------- */

/* On the iothread: what is in flight may end. */
static void finish_all(void *opaque)
{
    NbdThread *thread = opaque;

    thread->finishing = true;
    for (NbdConn *conn = thread->conns; conn; conn = conn->thread_next) {
        nbd_transmit_finish(conn);
    }
}

/* On the iothread: it has had its time. */
static void kill_all(void *opaque)
{
    NbdThread *thread = opaque;

    for (NbdConn *conn = thread->conns; conn; conn = conn->thread_next) {
        nbd_transmit_drop(conn, conn->dropped ? NULL : "it was not done when the server ended");
    }
}

static int check_exports(const NbdServer *server, const NbdThread *thread)
{
    const NbdExports *exports = server->opt.exports;

    for (size_t i = 0; i < exports->n; i++) {
        char *why = NULL;
        int ret = blk_check_context(exports->all[i]->blk, thread->ctx, &why);

        if (ret < 0) {
            nbd_log("export '%s' cannot be served with monitor %s: %s", exports->all[i]->name,
                    aio_context_get_monitor(thread->ctx), why ? why : strerror(-ret));
            free(why);
            return ret;
        }
    }
    return 0;
}

static int make_thread(NbdServer *server, unsigned index)
{
    NbdThread *thread = &server->threads[index];
    IOThreadOptions opts = { .context = { .monitor = server->opt.monitor,
                                          .poll_max_ns = server->opt.poll_max_ns },
                             .cpus = server->opt.cpus };
    char name[16];

    snprintf(name, sizeof(name), "nbd%u", index);
    thread->server = server;
    thread->iothread = iothread_new(name, &opts);
    if (!thread->iothread) {
        int err = errno;

        nbd_log("cannot start an iothread: %s", strerror(err));
        return -err;
    }
    server->n_threads++;
    thread->ctx = iothread_get_aio_context(thread->iothread);
    thread->finish_bh = aio_bh_new(thread->ctx, finish_all, thread);
    thread->kill_bh = aio_bh_new(thread->ctx, kill_all, thread);
    if (!thread->finish_bh || !thread->kill_bh) {
        nbd_log("out of memory");
        return -ENOMEM;
    }
    return check_exports(server, thread);
}

/* ---- Beginning and end ----------------------------------------------------------------------- */

NbdServer *nbd_server_new(const NbdServerOptions *opt)
{
    AioContextOptions ctx_opts = { .monitor = opt->monitor };
    NbdServer *server = calloc(1, sizeof(*server));

    if (!server) {
        nbd_log("out of memory");
        return NULL;
    }
    server->opt = *opt;
    server->ctx = aio_context_new(&ctx_opts);
    if (!server->ctx) {
        nbd_log("cannot make an event loop: %s", strerror(errno));
        free(server);
        return NULL;
    }
    qemu_set_current_aio_context(server->ctx);
    aio_timer_init(server->ctx, &server->accept_timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_rested,
                   server);
    server->threads = calloc(opt->threads, sizeof(*server->threads));
    if (!server->threads) {
        nbd_log("out of memory");
        goto fail;
    }
    for (unsigned i = 0; i < opt->threads; i++) {
        if (make_thread(server, i) < 0) {
            goto fail;
        }
    }
    return server;
fail:
    nbd_server_free(server);
    return NULL;
}

void nbd_server_stop(NbdServer *server)
{
    server->stopping = true;
}

static void close_listeners(NbdServer *server)
{
    timer_del(&server->accept_timer);
    listen_to_all(server, false);
    while (server->n_listeners > 0) {
        nbd_listen_close(&server->listeners[--server->n_listeners]);
    }
}

static void on_limit(void *opaque)
{
    *(bool *)opaque = true;
}

/* Polls until no connection is left, for so long at most. */
static bool wait_for_end(NbdServer *server, int64_t limit_ns)
{
    QEMUTimer timer;
    bool passed = false;

    aio_timer_init(server->ctx, &timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_limit, &passed);
    timer_mod_ns(&timer, now_ns() + limit_ns);
    while (server->n_conns > 0 && !passed) {
        aio_poll(server->ctx, true);
    }
    timer_deinit(&timer);
    return server->n_conns == 0;
}

int nbd_server_run(NbdServer *server)
{
    listen_to_all(server, true);
    while (!server->stopping) {
        aio_poll(server->ctx, true);
    }
    close_listeners(server);
    while (server->handshakes) {
        nbd_handshake_drop(server->handshakes, NULL);
    }
    for (unsigned i = 0; i < server->n_threads; i++) {
        qemu_bh_schedule(server->threads[i].finish_bh);
    }
    if (wait_for_end(server, server->opt.shutdown_timeout_ns)) {
        return 0;
    }
    for (unsigned i = 0; i < server->n_threads; i++) {
        qemu_bh_schedule(server->threads[i].kill_bh);
    }
    return wait_for_end(server, KILL_NS) ? 0 : -ETIMEDOUT;
}

void nbd_server_free(NbdServer *server)
{
    close_listeners(server);
    free(server->listeners);
    for (unsigned i = 0; i < server->n_threads; i++) {
        NbdThread *thread = &server->threads[i];

        qemu_bh_delete(thread->finish_bh);
        qemu_bh_delete(thread->kill_bh);
        iothread_destroy(thread->iothread);
        nbd_pool_clear(&thread->pool);
        nbd_requests_clear(thread);
    }
    free(server->threads);
    timer_deinit(&server->accept_timer);
    aio_context_unref(server->ctx);
    free(server);
}
