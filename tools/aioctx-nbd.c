/* SPDX-License-Identifier: MIT */
/*
 * aioctx-nbd: serves backends to NBD clients.
 *
 * Options (nbd_options.c), then the exports are opened, the server (nbd/server.h) is made, sockets
 * are bound, and it runs until a signal.
 */
#include <aioctx/block_driver.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "nbd/log.h"
#include "nbd/server.h"
#include "nbd/tls.h"
#include "nbd_options.h"

#define EXIT_FAILED 1
#define EXIT_USAGE 2

struct app {
    struct nbd_options opt;
    NbdExports exports;
    NbdTls *tls; /* NULL: off */
    NbdServer *server;
    int signal_fd;
};

/* Says @why, or that there was no memory even for that. */
static void complain(const char *what, char *why)
{
    nbd_log("%s%s%s", what ? what : "", what ? ": " : "", why ? why : "out of memory");
    free(why);
}

/* ---- Exports --------------------------------------------------------------------------------- */

static int load_drivers(const struct app *app)
{
    for (unsigned i = 0; i < app->opt.n_drivers; i++) {
        char *why = NULL;

        if (blk_driver_load(app->opt.drivers[i], NULL, &why) < 0) {
            complain(NULL, why);
            return -1;
        }
    }
    return 0;
}

static int open_exports(struct app *app)
{
    for (unsigned i = 0; i < app->opt.n_exports; i++) {
        const struct nbd_export_option *e = &app->opt.exports[i];
        char *why = NULL, what[64];

        snprintf(what, sizeof(what), "export '%s'", e->name);
        if (nbd_exports_add(&app->exports, e->name, e->spec, e->description, app->opt.read_only,
                            &why) < 0) {
            complain(what, why);
            return -1;
        }
    }
    return 0;
}

/* ---- TLS ------------------------------------------------------------------------------------- */

static NbdStream *wrap(void *tls, NbdStream *plain)
{
    return nbd_tls_stream_new(tls, plain);
}

static int load_tls(struct app *app)
{
    char *why = NULL;

    if (app->opt.server.tls_mode == NBD_TLS_OFF) {
        return 0;
    }
    app->tls = nbd_tls_new(&app->opt.tls, &why);
    if (!app->tls) {
        complain(NULL, why);
        return -1;
    }
    app->opt.server.tls = app->tls;
    app->opt.server.tls_wrap = wrap;
    return 0;
}

/* ---- Listening ------------------------------------------------------------------------------- */

static int add_listener(void *opaque, const NbdListener *listener)
{
    struct app *app = opaque;
    int ret = nbd_server_add_listener(app->server, listener);

    if (ret == 0) {
        nbd_log("listening on %s", listener->name);
    }
    return ret;
}

static int add_or_close(struct app *app, NbdListener *listener)
{
    if (add_listener(app, listener) < 0) {
        nbd_listen_close(listener);
        complain(NULL, NULL);
        return -1;
    }
    return 0;
}

static int listen_to_inherited(struct app *app, int n)
{
    for (int i = 0; i < n; i++) {
        NbdListener listener;
        char *why = NULL;

        if (nbd_listen_inherit(3 + i, &listener, &why) < 0) {
            complain(NULL, why);
            return -1;
        }
        if (add_or_close(app, &listener) < 0) {
            return -1;
        }
    }
    return 0;
}

static int listen_to_all(struct app *app, int n_inherited)
{
    if (listen_to_inherited(app, n_inherited) < 0) {
        return -1;
    }
    for (unsigned i = 0; i < app->opt.n_unix; i++) {
        NbdListener listener;
        char *why = NULL;

        if (nbd_listen_unix(app->opt.unix_paths[i], &listener, &why) < 0) {
            complain("--unix", why);
            return -1;
        }
        if (add_or_close(app, &listener) < 0) {
            return -1;
        }
    }
    for (unsigned i = 0; i < app->opt.n_tcp; i++) {
        char *why = NULL;

        if (nbd_listen_tcp(app->opt.tcp[i], add_listener, app, &why) < 0) {
            complain("--listen", why);
            return -1;
        }
    }
    return 0;
}

/* ---- Signals --------------------------------------------------------------------------------- */

static void on_signal(void *opaque)
{
    struct app *app = opaque;
    struct signalfd_siginfo info;

    while (read(app->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        nbd_server_stop(app->server);
    }
}

/* Before any thread starts: SIGTERM and SIGINT are read from a fd. */
static int set_up_signals(struct app *app)
{
    sigset_t ends;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that grows too large is an error, not an end */
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    app->signal_fd = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC);
    if (app->signal_fd < 0) {
        nbd_log("cannot wait for signals: %s", strerror(errno));
        return -1;
    }
    return 0;
}

/* Where standard input, output or error is closed, the next file that is opened would take its
 * place, and be written to as the log: a disk image, for one. */
static int fill_standard_fds(void)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            return -1;
        }
    }
    return 0;
}

/* Each connection takes a descriptor: as many as we may have. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* ---- Main ------------------------------------------------------------------------------------ */

static int start(struct app *app, int n_inherited)
{
    int ret;

    if (load_tls(app) < 0 || load_drivers(app) < 0 || open_exports(app) < 0) {
        return -1;
    }
    app->opt.server.exports = &app->exports;
    app->server = nbd_server_new(&app->opt.server);
    if (!app->server) {
        return -1;
    }
    ret = aio_set_fd_handler(app->server->ctx, app->signal_fd, on_signal, NULL, NULL, NULL, app);
    if (ret < 0) {
        nbd_log("cannot wait for signals: %s", strerror(-ret));
        return -1;
    }
    if (app->opt.use_stdio) {
        return nbd_server_add_stdio(app->server, STDIN_FILENO, STDOUT_FILENO);
    }
    return listen_to_all(app, n_inherited);
}

static int run(struct app *app)
{
    if (nbd_server_run(app->server) < 0) {
        nbd_log("requests were cancelled but do not end; giving up");
        nbd_log_end();
        _exit(EXIT_FAILED); /* nothing that they use may be freed */
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct app app;
    int n_inherited = nbd_listen_activated();
    int status = nbd_options_parse(&app.opt, argc, argv, n_inherited > 0);

    if (fill_standard_fds() < 0) {
        return EXIT_FAILED;
    }
    if (status >= 0) {
        return status;
    }
    raise_descriptor_limit();
    if (set_up_signals(&app) < 0) {
        return EXIT_FAILED;
    }
    status = start(&app, n_inherited) < 0 ? EXIT_FAILED : run(&app);
    if (app.server) {
        (void)aio_set_fd_handler(app.server->ctx, app.signal_fd, NULL, NULL, NULL, NULL, NULL);
        nbd_server_free(app.server);
    }
    nbd_exports_clear(&app.exports);
    nbd_tls_unref(app.tls);
    nbd_options_free(&app.opt);
    close(app.signal_fd);
    nbd_log_end();
    return status;
}
