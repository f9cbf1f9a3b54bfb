/* SPDX-License-Identifier: MIT */
/*
 * A connection: connecting, watching its descriptor, losing it and connecting again.
 *
 *           submit               (look-up done)            handshake done
 *   IDLE ────────────► RESOLVING ────────────► CONNECTING ────────────► READY
 *                          ▲   │ failed             │ failed, too long    │ lost
 *                          │   └────────► PAUSED ◄──┴─────────────────────┘
 *                          └───────────────┘ time for the next attempt
 *
 * RESOLVING is left out for a socket and for addresses in figures.
 *
 * A piece is in one list: `waiting` for a connection, `sent` to libnbd, or `answered`.  When a
 * connection is lost, what was sent waits again, and is sent again on the next one: reads, writes,
 * discards, zeroing, flushes and status may all be done twice, as the core lets no write begin that
 * overlaps one that has not ended.  They may not when the export at the other end is a lesser one
 * than before; then it counts as no connection.  A piece whose cancel was asked for is not sent
 * again: it comes back when its connection goes.
 *
 * A piece waits give_up_ns at most, from the loss of the connection on, and then fails.  One that
 * has been sent again keeps the time of its first loss: a request that kills every server that it
 * reaches comes to an end.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/nbd/nbd_int.h"

/* The longest pause between two attempts, in first ones. */
enum { DELAY_GROWTH_MAX = 16 };
/* Answers that are taken in one call of the fd handler, so that others get their turn. */
enum { READ_BUDGET = 64 };

static void connect_next(NbdConn *conn);
static void send_waiting(NbdConn *conn);

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static int64_t add_sat(int64_t a, int64_t b)
{
    int64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX - 1 : sum;
}

/* ---- Lists and giving up --------------------------------------------------------------------- */

static void add_waiting(NbdConn *conn, NbdPiece *np)
{
    nbd_list_add(&conn->waiting, np);
    np->waiting = true;
}

static void remove_waiting(NbdConn *conn, NbdPiece *np)
{
    nbd_list_remove(&conn->waiting, np);
    np->waiting = false;
}

static void add_sent(NbdConn *conn, NbdPiece *np)
{
    nbd_list_add(&conn->sent, np);
    np->sent = true;
    conn->n_sent++;
}

static void remove_sent(NbdConn *conn, NbdPiece *np)
{
    nbd_list_remove(&conn->sent, np);
    np->sent = false;
    conn->n_sent--;
}

/* Moves a piece, in no list, to the answers; they are given back soon. */
static void end_piece(NbdConn *conn, NbdPiece *np, int64_t ret)
{
    np->ret = ret;
    nbd_list_add(&conn->answered, np);
    qemu_bh_schedule(conn->bh);
}

/* What has not waited for too long yet decides when to look again. */
static void arm_give_up(NbdConn *conn)
{
    int64_t first = INT64_MAX;

    for (NbdPiece *np = conn->waiting.head; np; np = np->next) {
        if (np->give_up_ns >= 0 && np->give_up_ns < first) {
            first = np->give_up_ns;
        }
    }
    if (first == INT64_MAX) {
        timer_del(&conn->give_up);
    } else {
        timer_mod_ns(&conn->give_up, first);
    }
}

static void tell_once(NbdConn *conn)
{
    if (!conn->told) {
        conn->told = true;
        fprintf(stderr,
                "aioctx: nbd: no connection to %s for %lld ms (%s): requests fail until there is\n",
                conn->s->cfg.where, (long long)(conn->s->cfg.give_up_ns / SCALE_MS),
                *conn->why ? conn->why : "the handshake takes long");
    }
}

static void give_up_cb(void *opaque)
{
    NbdConn *conn = opaque;
    int64_t now = now_ns();
    NbdPiece *next;

    for (NbdPiece *np = conn->waiting.head; np; np = next) {
        next = np->next;
        if (np->give_up_ns >= 0 && np->give_up_ns <= now) {
            tell_once(conn);
            remove_waiting(conn, np);
            end_piece(conn, np, -ESHUTDOWN);
        }
    }
    arm_give_up(conn);
}

/* From now on the piece, which has no connection, has only so much time. */
static void limit_wait(NbdConn *conn, NbdPiece *np)
{
    if (np->give_up_ns < 0) {
        np->give_up_ns = add_sat(conn->down_since_ns, conn->s->cfg.give_up_ns);
    }
}

/* ---- Watching the descriptor ----------------------------------------------------------------- */

static void io_read(void *opaque);
static void io_write(void *opaque);

static void unwatch(NbdConn *conn)
{
    if (conn->fd >= 0) {
        aio_set_fd_handler(conn->ctx, conn->fd, NULL, NULL, NULL, NULL, NULL);
        close(conn->fd);
        conn->fd = -1;
        conn->watched = 0;
    }
}

/*
 * Watches for what libnbd waits for, on a duplicate of its descriptor: libnbd closes its own inside
 * any call once the connection has gone, and whoever gets the number next may watch it, on this
 * context too.  While it connects there may be another socket after each call, of the same number
 * if the one before had to be closed: so it is watched anew each time.
 */
static void watch(NbdConn *conn)
{
    unsigned direction = nbd_aio_get_direction(conn->h);

    if (conn->phase != NBD_READY) {
        unwatch(conn);
    }
    if (conn->fd >= 0 && direction == conn->watched) {
        return;
    }
    if (conn->fd < 0) {
        conn->fd = fcntl(nbd_aio_get_fd(conn->h), F_DUPFD_CLOEXEC, 0);
    }
    conn->watched = direction;
    if (conn->fd < 0 || aio_set_fd_handler(conn->ctx, conn->fd,
                                           direction & LIBNBD_AIO_DIRECTION_READ ? io_read : NULL,
                                           direction & LIBNBD_AIO_DIRECTION_WRITE ? io_write : NULL,
                                           NULL, NULL, conn) < 0) {
        conn->leaving = true; /* nothing would ever come of it */
        qemu_bh_schedule(conn->bh);
    }
}

/* ---- Losing a connection --------------------------------------------------------------------- */

/* Closes the handle: nothing of libnbd's touches a buffer of the pieces any more. */
static void drop_handle(NbdConn *conn)
{
    unwatch(conn);
    conn->dropping = true;
    nbd_close(conn->h);
    conn->dropping = false;
    conn->h = NULL;
}

/* What was sent waits again, before all others, but for what nobody wants any more. */
static void take_back_sent(NbdConn *conn)
{
    NbdList again = { 0 };
    NbdPiece *np;

    while ((np = conn->sent.head)) {
        remove_sent(conn, np);
        np->flushing = false;
        if (ld_relaxed(&np->cancelled)) {
            end_piece(conn, np, -ECANCELED);
            continue;
        }
        np->waiting = true;
        nbd_list_add(&again, np);
    }
    nbd_list_prepend(&conn->waiting, &again);
    for (np = conn->waiting.head; np; np = np->next) {
        limit_wait(conn, np);
    }
}

/* The next attempt comes at once, or, as this one has brought nothing, after a longer pause. */
static void pause_conn(NbdConn *conn)
{
    int64_t first = conn->s->cfg.delay_ns;
    int64_t max;

    if (__builtin_mul_overflow(first, (int64_t)DELAY_GROWTH_MAX, &max)) {
        max = first;
    }
    if (conn->has_answered) {
        conn->delay_ns = 0;
    } else if (conn->delay_ns == 0) {
        conn->delay_ns = first;
    } else {
        conn->delay_ns = conn->delay_ns > max / 2 ? max : conn->delay_ns * 2;
    }
    conn->has_answered = false;
    conn->phase = NBD_PAUSED;
    timer_mod_ns(&conn->timer, add_sat(now_ns(), conn->delay_ns));
}

/* There is no connection, or none any more. */
static void conn_lost(NbdConn *conn, const char *why)
{
    if (why != conn->why) {
        snprintf(conn->why, sizeof(conn->why), "%s", why ? why : "out of memory");
    }
    if (conn->h) {
        drop_handle(conn);
    }
    if (conn->phase == NBD_READY) {
        conn->down_since_ns = now_ns();
    }
    conn->leaving = false;
    take_back_sent(conn);
    arm_give_up(conn);
    if (conn->phase == NBD_CONNECTING && conn->addr_next) {
        connect_next(conn); /* the name has another address */
    } else {
        pause_conn(conn);
    }
}

/* Keeps what libnbd says of a call that has failed, for messages. */
static void note_error(NbdConn *conn)
{
    const char *why = nbd_get_error();

    snprintf(conn->why, sizeof(conn->why), "%s", why ? why : "the server has gone");
}

static bool is_gone(NbdConn *conn)
{
    return nbd_aio_is_dead(conn->h) || nbd_aio_is_closed(conn->h);
}

/* ---- Connecting ------------------------------------------------------------------------------ */

static void arm_stall(NbdConn *conn)
{
    if (conn->s->cfg.stall_ns > 0 && conn->n_sent > 0 && !timer_pending(&conn->timer)) {
        conn->stall_seen = conn->n_answers;
        timer_mod_ns(&conn->timer, add_sat(now_ns(), conn->s->cfg.stall_ns));
    }
}

/* The handshake is done, on a handle that is in conn->h. */
static void conn_ready(NbdConn *conn)
{
    char *why = NULL;
    const char *lack;
    NbdCaps caps;

    timer_del(&conn->timer);
    if (nbd_handle_caps(conn->h, &caps, &why) < 0) {
        conn_lost(conn, why);
        free(why);
        return;
    }
    lack = nbd_caps_lack(&caps, &conn->s->caps);
    if (lack) {
        conn_lost(conn, lack);
        return;
    }
    if (conn->addrs) {
        freeaddrinfo(conn->addrs);
        conn->addrs = conn->addr_next = NULL;
    }
    unwatch(conn); /* as long as it may be another socket: see watch() */
    conn->phase = NBD_READY;
    conn->told = false;
    *conn->why = 0;
    send_waiting(conn);
}

/* Begins to connect; to the next address that was found, if any was looked for. */
static void connect_next(NbdConn *conn)
{
    const struct addrinfo *addr = conn->addr_next;
    char *why = NULL;
    int ret = -1;

    conn->addr_next = addr ? addr->ai_next : NULL;
    conn->phase = NBD_CONNECTING;
    conn->h = nbd_handle_new(&conn->s->cfg, &why);
    if (conn->h) {
        ret = nbd_handle_connect(conn->h, &conn->s->cfg, addr, &why);
    }
    if (ret < 0 || is_gone(conn)) {
        conn_lost(conn, ret < 0 ? why : "the server cannot be reached");
        free(why);
        return;
    }
    timer_mod_ns(&conn->timer, add_sat(now_ns(), conn->s->cfg.connect_timeout_ns));
    watch(conn);
    if (nbd_aio_is_ready(conn->h)) {
        qemu_bh_schedule(conn->bh); /* a quick server: the descriptor will tell nothing any more */
    }
}

/* What a name stands for has been found, or has not. */
void nbd_conn_looked_up(NbdConn *conn, struct addrinfo *found, const char *why)
{
    conn->look_up = NULL;
    if (!found) {
        conn_lost(conn, why);
        return;
    }
    conn->addrs = conn->addr_next = found;
    connect_next(conn);
}

static void begin(NbdConn *conn)
{
    NbdState *s = conn->s;

    if (conn->addrs) {
        freeaddrinfo(conn->addrs);
        conn->addrs = conn->addr_next = NULL;
    }
    if (conn->phase == NBD_IDLE) {
        conn->down_since_ns = now_ns();
        pthread_mutex_lock(&s->lock);
        conn->h = s->spare;
        s->spare = NULL;
        pthread_mutex_unlock(&s->lock);
    }
    if (conn->h) {
        conn_ready(conn);
    } else if (s->cfg.socket) {
        connect_next(conn);
    } else {
        conn->phase = NBD_RESOLVING;
        nbd_look_up(conn);
    }
}

/* The time that the phase gives has passed. */
static void timer_cb(void *opaque)
{
    NbdConn *conn = opaque;

    switch (conn->phase) {
    case NBD_PAUSED:
        begin(conn);
        break;
    case NBD_CONNECTING:
        conn_lost(conn, "the handshake takes longer than connect-timeout-ms");
        break;
    case NBD_READY:
        if (conn->n_sent > 0 && conn->stall_seen == conn->n_answers) {
            conn_lost(conn, "nothing came for stall-timeout-ms");
        } else {
            arm_stall(conn);
        }
        break;
    default:
        break;
    }
}

/* ---- Sending and answers --------------------------------------------------------------------- */

/* Returns false when the connection turns out to have gone. */
static bool send_piece(NbdConn *conn, NbdPiece *np)
{
    int ret;

    add_sent(conn, np);
    ret = nbd_command_issue(conn, np);
    if (ret < 0) {
        note_error(conn);
    }
    if (is_gone(conn)) {
        return false;
    }
    if (ret < 0 && np->sent) {
        remove_sent(conn, np);
        end_piece(conn, np, ret);
    }
    return true;
}

static void send_waiting(NbdConn *conn)
{
    NbdPiece *np;

    while ((np = conn->waiting.head)) {
        remove_waiting(conn, np);
        if (!send_piece(conn, np)) {
            conn_lost(conn, conn->why);
            return;
        }
    }
    arm_give_up(conn);
    arm_stall(conn);
    watch(conn);
}

/* libnbd may be in the middle of something, or its connection gone. */
void nbd_conn_answer(NbdConn *conn, NbdPiece *np, int error)
{
    if (conn->dropping || error == ENOTCONN || !np->sent) {
        return; /* ENOTCONN is libnbd's own: the piece waits for the next connection */
    }
    if (error == ESHUTDOWN) {
        conn->leaving = true; /* and so does this one */
        return;
    }
    remove_sent(conn, np);
    conn->n_answers++;
    conn->has_answered = true;
    if (nbd_command_answered(conn, np, error)) {
        nbd_list_add(&conn->answered, np);
    } else if (ld_relaxed(&np->cancelled)) { /* nobody would look at it again, should it wait */
        np->ret = -ECANCELED;
        nbd_list_add(&conn->answered, np);
    } else {
        add_waiting(conn, np);
    }
}

/* Gives back what has been answered.  Whoever is called back may poll: the bottom half goes on. */
static void give_back(NbdConn *conn)
{
    NbdPiece *np;

    while ((np = conn->answered.head)) {
        nbd_list_remove(&conn->answered, np);
        if (conn->answered.head) {
            qemu_bh_schedule(conn->bh);
        }
        nbd_piece_finish(np);
    }
}

/* What libnbd has left to do, when it has returned. */
static void after_libnbd(NbdConn *conn)
{
    if (conn->leaving) {
        conn_lost(conn, "the server shuts down, or there was no memory");
    } else if (is_gone(conn)) {
        conn_lost(conn, *conn->why ? conn->why : "the server has closed the connection");
    } else if (conn->phase == NBD_CONNECTING) {
        if (nbd_aio_is_ready(conn->h)) {
            conn_ready(conn);
        } else {
            watch(conn);
        }
    } else if (conn->waiting.head) {
        send_waiting(conn);
    } else {
        watch(conn);
    }
    give_back(conn);
}

/*
 * Whether there is something to read, be it the end.  libnbd that has been told of an answer sends
 * no command before it has read one, and would wait for ever if nothing was asked for.
 */
static bool is_readable(const NbdConn *conn)
{
    char byte;

    return recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

static void io_read(void *opaque)
{
    NbdConn *conn = opaque;
    uint64_t before = conn->n_answers;
    int budget = READ_BUDGET, ret = 0;

    if (!conn->h || !(nbd_aio_get_direction(conn->h) & LIBNBD_AIO_DIRECTION_READ)) {
        return;
    }
    if (conn->phase != NBD_READY || conn->n_sent > 0 || is_readable(conn)) {
        ret = nbd_aio_notify_read(conn->h);
    }
    while (ret == 0 && conn->n_answers != before && conn->n_sent > 0 && --budget > 0 &&
           is_readable(conn)) {
        before = conn->n_answers;
        ret = nbd_aio_notify_read(conn->h);
    }
    if (ret < 0) {
        note_error(conn);
    }
    after_libnbd(conn);
}

static void io_write(void *opaque)
{
    NbdConn *conn = opaque;

    if (!conn->h) {
        return;
    }
    if ((nbd_aio_get_direction(conn->h) & LIBNBD_AIO_DIRECTION_WRITE) &&
        nbd_aio_notify_write(conn->h) < 0) {
        note_error(conn);
    }
    after_libnbd(conn);
}

static void conn_bh(void *opaque)
{
    NbdConn *conn = opaque;

    if (conn->h) {
        after_libnbd(conn);
    } else {
        give_back(conn);
    }
}

/* ---- What the driver calls ------------------------------------------------------------------- */

void nbd_conn_submit(NbdConn *conn, NbdPiece *np)
{
    np->conn = conn;
    np->done = 0;
    np->give_up_ns = -1;
    np->sent = np->waiting = np->flushing = false;
    if (conn->phase == NBD_IDLE) {
        begin(conn);
    }
    if (conn->phase == NBD_READY) {
        if (!send_piece(conn, np) || conn->leaving || conn->waiting.head || conn->answered.head) {
            qemu_bh_schedule(conn->bh); /* nobody may be called back in here */
        } else {
            watch(conn);
            arm_stall(conn);
        }
        return;
    }
    limit_wait(conn, np);
    if (np->give_up_ns <= now_ns()) {
        tell_once(conn);
        end_piece(conn, np, -ESHUTDOWN);
        return;
    }
    add_waiting(conn, np);
    if (!timer_pending(&conn->give_up)) {
        arm_give_up(conn);
    }
}

void nbd_conn_cancel(NbdConn *conn, NbdPiece *np)
{
    if (np->waiting) {
        remove_waiting(conn, np);
        np->ret = -ECANCELED;
        nbd_piece_finish(np);
    }
}

void nbd_conn_cancel_some(NbdConn *conn)
{
    NbdPiece *next;

    for (NbdPiece *np = conn->waiting.head; np; np = next) {
        next = np->next;
        if (ld_relaxed(&np->cancelled)) {
            remove_waiting(conn, np);
            end_piece(conn, np, -ECANCELED);
        }
    }
}

void nbd_conn_settle(NbdConn *conn)
{
    for (NbdPiece *np = conn->sent.head; np; np = np->next) {
        if (ld_relaxed(&np->cancelled)) {
            conn_lost(conn, "the connection was given up with requests in flight");
            break;
        }
    }
    give_back(conn);
}

int nbd_conn_init(NbdConn *conn, NbdState *s, AioContext *ctx)
{
    conn->s = s;
    conn->ctx = ctx;
    conn->fd = -1;
    conn->bh = aio_bh_new(ctx, conn_bh, conn);
    if (!conn->bh) {
        return -ENOMEM;
    }
    aio_timer_init(ctx, &conn->timer, QEMU_CLOCK_REALTIME, SCALE_NS, timer_cb, conn);
    aio_timer_init(ctx, &conn->give_up, QEMU_CLOCK_REALTIME, SCALE_NS, give_up_cb, conn);
    return 0;
}

void nbd_conn_destroy(NbdConn *conn)
{
    unwatch(conn);
    conn->dropping = true;
    nbd_handle_close(conn->h);
    conn->h = NULL;
    timer_deinit(&conn->timer);
    timer_deinit(&conn->give_up);
    qemu_bh_delete(conn->bh);
    nbd_look_up_forget(conn->look_up);
    if (conn->addrs) {
        freeaddrinfo(conn->addrs);
    }
}
