/* SPDX-License-Identifier: MIT */
/*
 * The driver "nbd": options, opening, queues, and the hand-over of pieces to a shared connection.
 *
 * Hand-over.  A queue appends a piece to NbdState.in under its lock and schedules in_bh on the
 * connection's iothread; that appends it to NbdQueue.done under the queue's lock and schedules
 * done_bh there.  Bottom halves are scheduled with the lock held: who has taken the last piece of a
 * list may destroy the bottom half as soon as it has had the lock once more.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/nbd/nbd_int.h"

static const BlkOptDesc nbd_options[] = {
    { "socket", BLK_OPT_STRING, .help = "path of the server's unix socket" },
    { "host", BLK_OPT_STRING, .help = "its name or address" },
    { "port", BLK_OPT_NUMBER, .help = "10809" },
    { "export", BLK_OPT_STRING, .help = "the export's name; the server's default" },
    { "tls", BLK_OPT_STRING, .help = "off, on or allow" },
    { "tls-certificates", BLK_OPT_STRING, .help = "directory of certificates" },
    { "tls-psk-file", BLK_OPT_STRING, .help = "file of a pre-shared key" },
    { "tls-verify-peer", BLK_OPT_SWITCH, .help = "check the server's certificate; on" },
    { "user", BLK_OPT_STRING, .help = "name that goes with the pre-shared key" },
    { "connect-timeout-ms", BLK_OPT_NUMBER, .help = "for one attempt; 10000" },
    { "reconnect-delay-ms", BLK_OPT_NUMBER, .help = "after a failed attempt; 100, then doubled" },
    { "reconnect-deadline-ms", BLK_OPT_NUMBER, .help = "then requests fail; 30000" },
    { "stall-timeout-ms", BLK_OPT_NUMBER, .help = "connect again when nothing comes; 0: never" },
    { NULL },
};

static const char *const nbd_aliases[] = { "nbd+unix", "nbds", "nbds+unix", NULL };

/* ---- Options --------------------------------------------------------------------------------- */

static void free_config(NbdConfig *cfg)
{
    free(cfg->socket);
    free(cfg->host);
    free(cfg->port);
    free(cfg->export);
    free(cfg->where);
    free(cfg->certificates);
    free(cfg->psk_file);
    free(cfg->user);
}

/* Copies a text, if there is one.  Returns false when out of memory. */
static bool copy(char **to, const char *text)
{
    *to = text ? strdup(text) : NULL;
    return !text || *to;
}

static int take_tls(const BlkOptions *opts, NbdConfig *cfg, char **ret_why)
{
    const char *name = blk_opts_name(opts);
    const char *tls = blk_opt_get_str(opts, "tls", strncmp(name, "nbds", 4) ? "off" : "on");

    if (strcmp(tls, "off") && strcmp(tls, "on") && strcmp(tls, "allow")) {
        return blk_fail(ret_why, EINVAL, "option 'tls' takes off, on or allow, not '%s'", tls);
    }
    cfg->tls = !strcmp(tls, "off")  ? LIBNBD_TLS_DISABLE
               : !strcmp(tls, "on") ? LIBNBD_TLS_REQUIRE
                                    : LIBNBD_TLS_ALLOW;
    cfg->verify_peer = blk_opt_get(opts, "tls-verify-peer", 1);
    if (!strncmp(name, "nbds", 4) && cfg->tls == LIBNBD_TLS_DISABLE) {
        return blk_fail(ret_why, EINVAL, "'%s:' is with TLS: option 'tls' cannot be off", name);
    }
    return 0;
}

static int64_t get_ms(const BlkOptions *opts, const char *name, int64_t dflt)
{
    int64_t ms = blk_opt_get(opts, name, dflt);

    return ms > INT64_MAX / SCALE_MS ? INT64_MAX - 1 : ms * SCALE_MS;
}

/* Where the server is: a socket, or a host and a port. */
static int take_address(const BlkOptions *opts, NbdConfig *cfg, char **ret_why)
{
    const char *name = blk_opts_name(opts), *socket = blk_opt_get_str(opts, "socket", NULL);
    const char *host = blk_opt_get_str(opts, "host", NULL);
    const char *export = blk_opt_get_str(opts, "export", "");
    int64_t port = blk_opt_get(opts, "port", 10809);
    int n;

    if (!socket == !host || (strchr(name, '+') && !socket)) {
        return blk_fail(ret_why, EINVAL,
                        "'%s:' needs either a socket or a host; expected something like "
                        "nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT",
                        name);
    }
    if (port < 1 || port > 65535 || (socket && blk_opt_given(opts, "port"))) {
        return blk_fail(ret_why, EINVAL,
                        "option 'port' takes 1 to 65535, and goes with 'host' only");
    }
    if (!copy(&cfg->socket, socket) || !copy(&cfg->host, host) || !copy(&cfg->export, export) ||
        asprintf(&cfg->port, "%d", (int)port) < 0) {
        cfg->port = NULL;
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    n = socket ? asprintf(&cfg->where, "export '%s' at %s", export, socket)
               : asprintf(&cfg->where, "export '%s' at %s:%d", export, host, (int)port);
    if (n < 0) {
        cfg->where = NULL;
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    return 0;
}

static int take_config(const BlkOptions *opts, NbdConfig *cfg, char **ret_why)
{
    int ret = take_address(opts, cfg, ret_why);

    if (ret == 0) {
        ret = take_tls(opts, cfg, ret_why);
    }
    if (ret < 0) {
        return ret;
    }
    cfg->read_only = blk_opt_get(opts, "read-only", 0);
    cfg->connect_timeout_ns = get_ms(opts, "connect-timeout-ms", 10000);
    cfg->delay_ns = get_ms(opts, "reconnect-delay-ms", 100);
    cfg->give_up_ns = get_ms(opts, "reconnect-deadline-ms", 30000);
    cfg->stall_ns = get_ms(opts, "stall-timeout-ms", 0);
    if (cfg->delay_ns == 0 || cfg->connect_timeout_ns == 0) {
        return blk_fail(ret_why, EINVAL,
                        "options 'reconnect-delay-ms' and 'connect-timeout-ms' take 1 or more");
    }
    return copy(&cfg->certificates, blk_opt_get_str(opts, "tls-certificates", NULL)) &&
                   copy(&cfg->psk_file, blk_opt_get_str(opts, "tls-psk-file", NULL)) &&
                   copy(&cfg->user, blk_opt_get_str(opts, "user", NULL))
               ? 0
               : blk_fail(ret_why, ENOMEM, "out of memory");
}

/* ---- The state ------------------------------------------------------------------------------- */

static void state_ref(NbdState *s)
{
    add_fetch_relaxed(&s->refs, 1);
}

static void state_unref(NbdState *s)
{
    if (sub_fetch_acq_rel(&s->refs, 1) > 0) {
        return;
    }
    nbd_handle_close(s->spare);
    pthread_mutex_destroy(&s->lock);
    free_config(&s->cfg);
    free(s);
}

/* On the iothread: takes up what the queues ask for. */
static void in_bh(void *opaque)
{
    NbdState *s = opaque;
    NbdList in;
    NbdPiece *np;
    bool look, settle;

    pthread_mutex_lock(&s->lock);
    in = s->in;
    look = s->look;
    settle = s->settle;
    s->in = (NbdList){ 0 };
    s->look = s->settle = false;
    pthread_mutex_unlock(&s->lock);
    while ((np = in.head)) {
        nbd_list_remove(&in, np);
        nbd_conn_submit(&s->conn, np);
    }
    if (look || settle) {
        nbd_conn_cancel_some(&s->conn);
    }
    if (settle) {
        nbd_conn_settle(&s->conn);
    }
}

/* A server that takes one connection only. */
static int start_shared(NbdState *s, char **ret_why)
{
    AioContext *ctx;
    int ret;

    s->io = iothread_new("nbd", NULL);
    if (!s->io) {
        return blk_fail(ret_why, errno, "cannot start the thread of the connection: %s",
                        strerror(errno));
    }
    ctx = iothread_get_aio_context(s->io);
    s->in_bh = aio_bh_new(ctx, in_bh, s);
    ret = s->in_bh ? nbd_conn_init(&s->conn, s, ctx) : -ENOMEM;
    if (ret < 0) {
        qemu_bh_delete(s->in_bh);
        iothread_destroy(s->io);
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    s->shared = true;
    state_ref(s);
    return 0;
}

/* On the iothread, which ends. */
static void end_shared(void *opaque)
{
    NbdState *s = opaque;

    nbd_conn_destroy(&s->conn);
    qemu_bh_delete(s->in_bh);
    state_unref(s);
}

static int check_access(const NbdState *s, char **ret_why)
{
    if (s->caps.read_only && !s->cfg.read_only) {
        return blk_fail(ret_why, EROFS, "%s is read-only; read-only=on opens it for reading",
                        s->cfg.where);
    }
    return 0;
}

static int nbd_open(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    NbdState *s = calloc(1, sizeof(*s));
    int ret;

    if (!s) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    s->refs = 1;
    pthread_mutex_init(&s->lock, NULL);
    ret = take_config(opts, &s->cfg, ret_why);
    ret = ret < 0 ? ret : nbd_open_first(&s->cfg, &s->spare, &s->caps, ret_why);
    ret = ret < 0 ? ret : check_access(s, ret_why);
    if (ret == 0 && !s->caps.multi_conn) {
        ret = start_shared(s, ret_why);
    }
    if (ret < 0) {
        state_unref(s);
        return ret;
    }
    *ret_state = s;
    return 0;
}

static void nbd_close_state(void *state)
{
    NbdState *s = state;

    if (s->shared) {
        IOThread *io = s->io;

        aio_bh_schedule_oneshot(iothread_get_aio_context(io), end_shared, s);
        iothread_destroy(io); /* below a callback it does not wait */
    }
    state_unref(s);
}

static int64_t nbd_getlength(void *state)
{
    return ((NbdState *)state)->caps.size;
}

static void nbd_get_limits(void *state, BlkLimits *ret_limits)
{
    const NbdCaps *c = &((NbdState *)state)->caps;

    ret_limits->request_alignment = c->min_block;
    ret_limits->max_transfer = c->max_block;
    ret_limits->max_iov = 1;
}

/* ---- Queues ---------------------------------------------------------------------------------- */

/* Gives back what the shared connection has done.  Whoever is called back may poll. */
static void done_bh(void *opaque)
{
    NbdQueue *q = opaque;
    NbdPiece *np;

    do {
        pthread_mutex_lock(&q->lock);
        np = q->done.head;
        if (np) {
            nbd_list_remove(&q->done, np);
            if (q->done.head) {
                qemu_bh_schedule(q->done_bh);
            }
        }
        pthread_mutex_unlock(&q->lock);
        if (np) {
            blk_piece_done(blk_priv_piece(np), np->ret);
        }
    } while (np);
}

void nbd_piece_finish(NbdPiece *np)
{
    BlkPiece *piece = blk_priv_piece(np);
    NbdQueue *q = piece->queue;

    if (q->own) {
        blk_piece_done(piece, np->ret);
        return;
    }
    pthread_mutex_lock(&q->lock);
    nbd_list_add(&q->done, np);
    if (!q->abandoned) {
        qemu_bh_schedule(q->done_bh);
    }
    pthread_mutex_unlock(&q->lock);
}

static int make_own(NbdQueue *q, AioContext *ctx)
{
    int ret;

    q->own = calloc(1, sizeof(*q->own));
    ret = q->own ? nbd_conn_init(q->own, q->s, ctx) : -ENOMEM;
    if (ret < 0) {
        free(q->own);
    }
    return ret;
}

static int nbd_queue_create(void *state, AioContext *ctx, void **ret_queue)
{
    NbdState *s = state;
    NbdQueue *q = calloc(1, sizeof(*q));
    int ret;

    if (!q) {
        return -ENOMEM;
    }
    q->s = s;
    if (s->shared) {
        q->done_bh = aio_bh_new(ctx, done_bh, q);
        ret = q->done_bh ? 0 : -ENOMEM;
    } else {
        ret = make_own(q, ctx);
    }
    if (ret < 0) {
        free(q);
        return ret;
    }
    pthread_mutex_init(&q->lock, NULL);
    state_ref(s);
    *ret_queue = q;
    return 0;
}

static void nbd_queue_destroy(void *queue)
{
    NbdQueue *q = queue;

    if (q->own) {
        nbd_conn_destroy(q->own);
        free(q->own);
    } else {
        pthread_mutex_lock(&q->lock); /* who gave the last piece back has left the lock */
        pthread_mutex_unlock(&q->lock);
        qemu_bh_delete(q->done_bh);
    }
    pthread_mutex_destroy(&q->lock);
    state_unref(q->s);
    free(q);
}

/* Only pieces that a shared connection has can be left here: their memory stays, and the list of
 * what comes back is looked at no more. */
static void nbd_queue_abandon(void *queue)
{
    NbdQueue *q = queue;

    pthread_mutex_lock(&q->lock);
    q->abandoned = true;
    pthread_mutex_unlock(&q->lock);
}

static void nbd_queue_settle(void *queue)
{
    NbdQueue *q = queue;
    NbdState *s = q->s;

    if (q->own) {
        nbd_conn_settle(q->own);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->settle = true;
    qemu_bh_schedule(s->in_bh);
    pthread_mutex_unlock(&s->lock);
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

static void nbd_submit(BlkPiece *piece)
{
    NbdState *s = piece->state;
    NbdQueue *q = piece->queue;
    NbdPiece *np = blk_piece_priv(piece);
    int64_t ret;

    if (nbd_command_needs_none(&s->caps, piece, &ret)) {
        blk_piece_done(piece, ret);
        return;
    }
    st_relaxed(&np->cancelled, false);
    if (q->own) {
        nbd_conn_submit(q->own, np);
        return;
    }
    pthread_mutex_lock(&s->lock);
    nbd_list_add(&s->in, np);
    qemu_bh_schedule(s->in_bh);
    pthread_mutex_unlock(&s->lock);
}

/* What the server has cannot be recalled: it comes back with its answer, or with the end of the
 * connection. */
static void nbd_cancel(BlkPiece *piece)
{
    NbdState *s = piece->state;
    NbdQueue *q = piece->queue;
    NbdPiece *np = blk_piece_priv(piece);

    st_relaxed(&np->cancelled, true);
    if (q->own) {
        nbd_conn_cancel(q->own, np);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->look = true;
    qemu_bh_schedule(s->in_bh);
    pthread_mutex_unlock(&s->lock);
}

const BlockDriver blk_nbd_driver = {
    .abi = BLOCK_DRIVER_ABI,
    .name = "nbd",
    .aliases = nbd_aliases,
    .takes_host = true,
    .detaches = true,
    .options = nbd_options,
    .piece_size = sizeof(NbdPiece),
    .open = nbd_open,
    .close = nbd_close_state,
    .getlength = nbd_getlength,
    .get_limits = nbd_get_limits,
    .queue_create = nbd_queue_create,
    .queue_destroy = nbd_queue_destroy,
    .queue_abandon = nbd_queue_abandon,
    .queue_settle = nbd_queue_settle,
    .submit = nbd_submit,
    .cancel = nbd_cancel,
};

BLOCK_DRIVER_MODULE(blk_nbd_driver);
