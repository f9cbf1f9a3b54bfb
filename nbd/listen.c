/* SPDX-License-Identifier: MIT */
#include "nbd/listen.h"

#include <aioctx/block_driver.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BACKLOG = 1024, FIRST_ACTIVATED_FD = 3 };
#define DEFAULT_PORT "10809"

/* Steps of waiting for something that takes others a moment; how many. */
#define STEP_NS (20 * 1000000)
enum { LOCK_STEPS = 250, CONNECT_STEPS = 50, BIND_STEPS = 50, GREETING_MS = 1000 };

static void wait_a_step(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = STEP_NS }, NULL);
}

/* ---- Unix sockets ---------------------------------------------------------------------------- */

/*
 * Servers that begin at once with the same path take turns, so that none of them takes the socket
 * of another for a left-over one, between its bind() and its listen() or between the look at it and
 * the unlink().  Whose turn it is holds flock(2) on the directory, which leaves no file behind.
 * Returns a fd to close, or -errno: then nothing may be removed.
 */
static int take_turn(const char *path)
{
    char *copy = strdup(path);
    int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int err = fd < 0 ? errno : 0;

    free(copy);
    for (unsigned i = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        if ((errno != EWOULDBLOCK && errno != EINTR) || i == LOCK_STEPS) {
            err = errno;
            close(fd);
            return -err;
        }
        wait_a_step();
    }
    return fd < 0 ? -err : fd;
}

/* Returns a connected socket or -errno. */
static int connect_to(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), err;

    if (fd >= 0 && connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
        err = errno;
        close(fd);
        return -err;
    }
    return fd < 0 ? -errno : fd;
}

/* Whether somebody is at the other end: he says something, or keeps the connection open. */
static bool is_answered(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    char byte;

    return poll(&pfd, 1, GREETING_MS) == 0 || recv(fd, &byte, 1, 0) > 0;
}

/*
 * Whether somebody listens at @addr.  To be connected does not mean that: a server that was killed
 * may leave its socket to the kernel, which takes its ring down, and closes the connection, in its
 * own time.  Nor does being refused once mean that nobody does: somebody may be about to listen.
 */
static bool is_served(const struct sockaddr_un *addr)
{
    unsigned refused = 0;

    for (unsigned i = 0; i < CONNECT_STEPS && refused < 2; i++) {
        int fd = connect_to(addr);

        if (fd == -ENOENT) {
            return false;
        }
        if (fd >= 0) {
            bool answered = is_answered(fd);

            close(fd);
            if (answered) {
                return true;
            }
        }
        refused = fd == -ECONNREFUSED ? refused + 1 : 0;
        wait_a_step();
    }
    return refused < 2;
}

/* Removes a socket that nobody listens on any more.  @turn: of take_turn().  Returns 0 when nothing
 * is in the way. */
static int remove_stale(const char *path, const struct sockaddr_un *addr, int turn, char **ret_why)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        return 0; /* bind() says what is wrong, if something is */
    }
    if (!S_ISSOCK(st.st_mode)) {
        return blk_fail(ret_why, EEXIST, "'%s' is there already, and is no socket", path);
    }
    if (is_served(addr)) {
        return blk_fail(ret_why, EADDRINUSE, "another program listens on '%s'", path);
    }
    if (turn < 0) {
        return blk_fail(ret_why, EADDRINUSE,
                        "'%s' is there already, and may not be replaced as its directory cannot be "
                        "locked: %s",
                        path, strerror(-turn));
    }
    if (unlink(path) < 0 && errno != ENOENT) {
        return blk_fail(ret_why, errno, "cannot replace the socket '%s': %s", path,
                        strerror(errno));
    }
    return 0;
}

/* A socket that listens at @addr.  Returns its fd, or -errno with a message. */
static int bind_and_listen(const struct sockaddr_un *addr, char **ret_why)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool bound;
    int ret;

    if (fd < 0) {
        return blk_fail(ret_why, errno, "cannot make a socket: %s", strerror(errno));
    }
    bound = bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0;
    if (!bound || listen(fd, BACKLOG) < 0) {
        ret =
            blk_fail(ret_why, errno, "cannot listen on '%s': %s", addr->sun_path, strerror(errno));
        if (bound) {
            unlink(addr->sun_path);
        }
        close(fd);
        return ret;
    }
    return fd;
}

/* Whose turn it is. */
static int listen_in_turn(const struct sockaddr_un *addr, int turn, NbdListener *ret_listener,
                          char **ret_why)
{
    const char *path = addr->sun_path;
    NbdListener listener = { .fd = -1 };
    struct stat st;
    int ret = remove_stale(path, addr, turn, ret_why);

    if (ret < 0) {
        return ret;
    }
    listener.fd = bind_and_listen(addr, ret_why);
    if (listener.fd < 0) {
        return listener.fd;
    }
    listener.unlink_path = strdup(path);
    if (asprintf(&listener.name, "unix:%s", path) < 0) {
        listener.name = NULL;
    }
    if (!listener.unlink_path || !listener.name) {
        unlink(path);
        close(listener.fd);
        free(listener.unlink_path);
        free(listener.name);
        return -ENOMEM;
    }
    if (lstat(path, &st) == 0) {
        listener.dev = st.st_dev;
        listener.ino = st.st_ino;
    }
    *ret_listener = listener;
    return 0;
}

int nbd_listen_unix(const char *path, NbdListener *ret_listener, char **ret_why)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int turn, ret;

    if (!path[0] || strlen(path) >= sizeof(addr.sun_path)) {
        return blk_fail(ret_why, EINVAL, "'%s' is no path of a socket: expected 1 to %zu bytes",
                        path, sizeof(addr.sun_path) - 1);
    }
    strcpy(addr.sun_path, path);
    turn = take_turn(path);
    ret = listen_in_turn(&addr, turn, ret_listener, ret_why);
    if (turn >= 0) {
        close(turn);
    }
    return ret;
}

/* ---- TCP ------------------------------------------------------------------------------------- */

static char *name_of(const struct sockaddr *addr, socklen_t len)
{
    char host[NI_MAXHOST], port[NI_MAXSERV], *name;
    const char *form = addr->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s";

    if (getnameinfo(addr, len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return strdup("an unknown address");
    }
    return asprintf(&name, form, host, port) < 0 ? NULL : name;
}

/* The address that the socket is bound to, for people. */
static char *name_of_socket(int fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);
    char *name;

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0) {
        return strdup("an unknown address");
    }
    if (addr.ss_family != AF_UNIX) {
        return name_of((struct sockaddr *)&addr, len);
    }
    if (len <= offsetof(struct sockaddr_un, sun_path)) {
        return strdup("unix");
    }
    return asprintf(&name, "unix:%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path)),
                    ((struct sockaddr_un *)&addr)->sun_path) < 0
               ? NULL
               : name;
}

/* A server that was killed leaves its port, too, in its own time.  Returns 0 or errno. */
static int bind_patiently(int fd, const struct addrinfo *ai)
{
    for (unsigned i = 0; bind(fd, ai->ai_addr, ai->ai_addrlen) < 0; i++) {
        if (errno != EADDRINUSE || i == BIND_STEPS) {
            return errno;
        }
        wait_a_step();
    }
    return 0;
}

static int listen_tcp_one(const struct addrinfo *ai, NbdListener *ret_listener, char **ret_why)
{
    NbdListener listener = { .fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                                          0) };
    int on = 1, err, ret;

    if (listener.fd < 0) {
        return blk_fail(ret_why, errno, "cannot make a socket: %s", strerror(errno));
    }
    (void)setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (ai->ai_family == AF_INET6) {
        (void)setsockopt(listener.fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    err = bind_patiently(listener.fd, ai);
    if (err == 0 && listen(listener.fd, BACKLOG) < 0) {
        err = errno;
    }
    if (err) {
        char *name = name_of(ai->ai_addr, ai->ai_addrlen);

        ret = blk_fail(ret_why, err, "cannot listen on %s: %s", name ? name : "it", strerror(err));
        free(name);
        close(listener.fd);
        return ret;
    }
    listener.name = name_of_socket(listener.fd);
    if (!listener.name) {
        close(listener.fd);
        return -ENOMEM;
    }
    *ret_listener = listener;
    return 0;
}

/* Splits ADDR:PORT and its kin in place; *@ret_host is NULL for all addresses.  Returns whether it
 * is one. */
static bool split_address(char *text, char **ret_host, char **ret_port)
{
    static char default_port[] = DEFAULT_PORT;
    char *host = text, *colon, *end;

    if (text[0] == '[') {
        end = strchr(text, ']');
        if (!end || (end[1] && end[1] != ':')) {
            return false;
        }
        host = text + 1;
        colon = end[1] ? end + 1 : NULL;
        *end = '\0';
    } else {
        colon = strchr(text, ':');
        if (colon && strchr(colon + 1, ':')) {
            return false; /* an IPv6 address without brackets */
        }
    }
    *ret_port = default_port;
    if (colon) {
        *colon = '\0';
        *ret_port = colon + 1;
    }
    *ret_host = *host ? host : NULL;
    return **ret_port && (*ret_host || colon);
}

/* getaddrinfo(3) takes numbers beyond 65535 modulo 65536. */
static bool is_port_too_large(const char *port)
{
    char *end;
    unsigned long n = strtoul(port, &end, 10);

    return end != port && !*end && n > 65535;
}

static int resolve(const char *text, char *copy, struct addrinfo **ret_ai, char **ret_why)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
    char *host, *port;
    int ret;

    if (!split_address(copy, &host, &port)) {
        return blk_fail(ret_why, EINVAL,
                        "'%s' is no address: expected ADDR:PORT, [ADDR]:PORT, ADDR or :PORT", text);
    }
    if (is_port_too_large(port)) {
        return blk_fail(ret_why, EINVAL, "'%s': the port is a number up to 65535", text);
    }
    ret = getaddrinfo(host, port, &hints, ret_ai);
    if (ret != 0) {
        return blk_fail(ret_why, EINVAL, "cannot resolve '%s': %s", text,
                        ret == EAI_SYSTEM ? strerror(errno) : gai_strerror(ret));
    }
    return 0;
}

int nbd_listen_tcp(const char *text, int (*cb)(void *opaque, const NbdListener *listener),
                   void *opaque, char **ret_why)
{
    struct addrinfo *all = NULL;
    char *copy = strdup(text);
    unsigned n = 0;
    int ret = copy ? resolve(text, copy, &all, ret_why) : -ENOMEM;

    free(copy);
    if (ret < 0) {
        return ret;
    }
    for (const struct addrinfo *ai = all; ai && ret == 0; ai = ai->ai_next) {
        NbdListener listener;

        ret = listen_tcp_one(ai, &listener, ret_why);
        if (ret == -EAFNOSUPPORT && (n > 0 || ai->ai_next)) {
            free(*ret_why); /* a machine without IPv6 has names with such addresses too */
            *ret_why = NULL;
            ret = 0;
            continue;
        }
        if (ret == 0) {
            ret = cb(opaque, &listener);
            if (ret < 0) {
                nbd_listen_close(&listener);
            }
            n++;
        }
    }
    freeaddrinfo(all);
    return ret;
}

/* ---- Socket activation ----------------------------------------------------------------------- */

/* Source: sd_listen_fds(3). */
int nbd_listen_activated(void)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    char *end = NULL;
    long n = 0;

    if (pid && fds && strtol(pid, &end, 10) == getpid() && *pid && !*end) {
        n = strtol(fds, &end, 10);
        n = *fds && !*end && n > 0 && n < 65536 ? n : 0;
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return (int)n;
}

int nbd_listen_inherit(int fd, NbdListener *ret_listener, char **ret_why)
{
    int listening = 0, type = 0, flags = fcntl(fd, F_GETFL);
    socklen_t len = sizeof(int);

    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 ||
        !listening) {
        return blk_fail(ret_why, EINVAL, "fd %d, handed over by LISTEN_FDS, is no listening socket",
                        fd);
    }
    len = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM) {
        return blk_fail(ret_why, EINVAL, "fd %d, handed over by LISTEN_FDS, is no stream socket",
                        fd);
    }
    if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return blk_fail(ret_why, errno, "fd %d, handed over by LISTEN_FDS: %s", fd,
                        strerror(errno));
    }
    *ret_listener = (NbdListener){ .fd = fd, .name = name_of_socket(fd) };
    return ret_listener->name ? 0 : -ENOMEM;
}

void nbd_listen_close(NbdListener *listener)
{
    struct stat st;

    /* First, while it is listened on: nobody replaces it meanwhile, and the number of its inode is
     * not given to the socket of another server. */
    if (listener->unlink_path && lstat(listener->unlink_path, &st) == 0 &&
        st.st_dev == listener->dev && st.st_ino == listener->ino) {
        unlink(listener->unlink_path);
    }
    close(listener->fd);
    free(listener->unlink_path);
    free(listener->name);
}
