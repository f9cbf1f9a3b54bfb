/* SPDX-License-Identifier: MIT */
/*
 * Receiving requests, and the connection's life on its iothread.
 *
 * One call receives as many requests as have come, into rbuf.  Their writes' payloads are copied to
 * buffers of their own; what is not there yet of the last one's is received straight into its
 * buffer, together with what follows it.  When too much is in flight, rbuf is left as it is and
 * nothing is received (paused), so that the client has to wait.  Nothing is received either while
 * the client is busy reading replies (holding).
 *
 *             closing                 no request left
 *   serving ------------> finishing ------------------> gone
 *      |                      |                           ^
 *      +----------------------+-----> dropped ------------+
 *
 * Closing: DISC, the end of what the client sends, or of the server.  Dropped: an error, or stuck;
 * replies are thrown away.
 *
 * The connection is taken down by work(), which nothing of its own lies below, so that no caller
 * has to look whether it is still there.
 */
#include "nbd/transmit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "nbd/log.h"
#include "nbd/server.h"

enum { FREE_REQUESTS_MAX = 1024 };
/* Replies larger than this are not worth waiting for more of them. */
enum { HOLD_REPLY_MAX = 20 << 10 };
/* How long a client that does not read is waited for before it is read from all the same. */
#define HOLD_NS (INT64_C(10) * 1000000)

/* ---- Requests -------------------------------------------------------------------------------- */

static NbdRequest *request_new(NbdConn *conn)
{
    NbdThread *thread = conn->thread;
    NbdRequest *req = thread->free_requests;

    if (req) {
        thread->free_requests = req->next;
        thread->n_free_requests--;
    } else {
        req = malloc(sizeof(*req));
        if (!req) {
            return NULL;
        }
    }
    req->conn = conn;
    req->acb = NULL;
    req->buf = NULL;
    req->buf_bytes = 0;
    req->deadline_ns = -1;
    req->done = 0;
    req->n_extents = 0;
    req->chunks = NULL;
    req->n_chunks = 0;
    conn->n_requests++;
    return req;
}

void nbd_request_drop_buf(NbdRequest *req)
{
    nbd_pool_put(&req->conn->thread->pool, req->buf, req->buf_bytes);
    req->conn->bytes_in_flight -= nbd_pool_room(req->buf_bytes);
    req->buf = NULL;
    req->buf_bytes = 0;
}

void nbd_request_free(NbdRequest *req)
{
    NbdConn *conn = req->conn;
    NbdThread *thread = conn->thread;

    if (req->buf) {
        nbd_request_drop_buf(req);
    }
    if (req->chunks != &req->one) {
        free(req->chunks);
    }
    conn->n_requests--;
    if (thread->n_free_requests >= FREE_REQUESTS_MAX) {
        free(req);
        return;
    }
    req->next = thread->free_requests;
    thread->free_requests = req;
    thread->n_free_requests++;
}

void nbd_requests_clear(NbdThread *thread)
{
    while (thread->free_requests) {
        NbdRequest *req = thread->free_requests;

        thread->free_requests = req->next;
        free(req);
    }
    thread->n_free_requests = 0;
}

/* ---- Ending ---------------------------------------------------------------------------------- */

/* The first reason is the one that counts. */
static void say_dropped(NbdConn *conn, const char *why)
{
    if (conn->said) {
        return;
    }
    conn->said = true;
    nbd_log_drop("client %llu (%s): dropped: %s", (unsigned long long)conn->id, conn->peer, why);
}

/* Reads no more: what is in flight ends first. */
static void close_conn(NbdConn *conn)
{
    conn->closing = true;
    conn->holding = false;
    if (conn->filling) {
        nbd_request_free(conn->filling);
        conn->filling = NULL;
    }
    if (conn->refused) {
        nbd_request_free(conn->refused);
        conn->refused = NULL;
    }
    if (conn->n_requests > 0) {
        nbd_transmit_arm_stall(conn);
    }
    qemu_bh_schedule(conn->work_bh);
}

static void throw_replies_away(NbdConn *conn)
{
    while (conn->out) {
        NbdRequest *req = conn->out;

        conn->out = req->next;
        nbd_request_free(req);
    }
    conn->out_tail = &conn->out;
    conn->out_sent = 0;
}

static bool changes_data(const NbdRequest *req)
{
    return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_WRITE_ZEROES ||
           req->type == NBD_CMD_TRIM || req->type == NBD_CMD_FLUSH;
}

static void cancel_flight(NbdConn *conn, bool writes_too)
{
    for (NbdRequest *req = conn->flight; req; req = req->next) {
        if (writes_too || !changes_data(req)) {
            blk_aio_cancel_async(req->acb);
        }
    }
}

void nbd_transmit_finish(NbdConn *conn)
{
    if (!conn->closing) {
        close_conn(conn);
    }
}

/* The connection is over.  What the client has written may go on to its end. */
static void lose(NbdConn *conn, const char *why)
{
    if (conn->dropped) {
        return;
    }
    if (why) {
        say_dropped(conn, why);
    }
    conn->dropped = true;
    close_conn(conn);
    cancel_flight(conn, false);
}

static void lose_errno(NbdConn *conn, const char *what, int err)
{
    char why[128];

    snprintf(why, sizeof(why), "%s: %s", what, strerror(-err));
    lose(conn, why);
}

void nbd_transmit_drop(NbdConn *conn, const char *why)
{
    lose(conn, why);
    cancel_flight(conn, true);
}

static void take_down(NbdConn *conn)
{
    NbdThread *thread = conn->thread;

    (void)nbd_conn_watch(conn, false, false);
    timer_deinit(&conn->stall_timer);
    timer_deinit(&conn->hold_timer);
    qemu_bh_delete(conn->work_bh);
    *conn->thread_pprev = conn->thread_next;
    if (conn->thread_next) {
        conn->thread_next->thread_pprev = conn->thread_pprev;
    }
    if (!conn->dropped) {
        conn->stream->ops->bye(conn->stream);
    }
    /* Without connections there is nothing to keep buffers for. */
    if (!thread->conns) {
        nbd_pool_clear(&thread->pool);
        nbd_requests_clear(thread);
    }
    qemu_bh_schedule(conn->ended_bh); /* the server frees it: the last that we do with it */
}

/* ---- Stalls ---------------------------------------------------------------------------------- */

/* Whether the connection cannot go on without its client, or without the end of requests that
 * nobody waits for any more. */
static bool may_be_stuck(const NbdConn *conn)
{
    if (conn->closing) {
        return conn->n_requests > 0;
    }
    return conn->out ||
           (!conn->paused && (conn->filling || conn->refused || conn->rend > conn->rpos));
}

void nbd_transmit_arm_stall(NbdConn *conn)
{
    int64_t limit = conn->server->opt.stall_timeout_ns;

    if (limit == 0 || conn->stall_armed) {
        return;
    }
    conn->stall_armed = true;
    conn->progress_seen = conn->progress;
    timer_mod_ns(&conn->stall_timer, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + limit);
}

/* After what was received has been looked at. */
static void arm_stall_if_needed(NbdConn *conn)
{
    if (!conn->stall_armed && may_be_stuck(conn)) {
        nbd_transmit_arm_stall(conn);
    }
}

static void on_stall(void *opaque)
{
    NbdConn *conn = opaque;

    conn->stall_armed = false;
    if (!may_be_stuck(conn)) {
        return;
    }
    if (conn->progress != conn->progress_seen) {
        nbd_transmit_arm_stall(conn);
        return;
    }
    if (conn->out) {
        nbd_transmit_drop(conn, "it does not read its replies");
    } else if (conn->closing) {
        nbd_transmit_drop(conn, NULL);
    } else {
        nbd_transmit_drop(conn, "it stalled in the middle of a request");
    }
}

/* ---- Parsing --------------------------------------------------------------------------------- */

static size_t buffered(const NbdConn *conn)
{
    return conn->rend - conn->rpos;
}

/* Whether there is room for one more request, with @bytes of buffer. */
static bool has_room(const NbdConn *conn, uint64_t bytes)
{
    const NbdServerOptions *opt = &conn->server->opt;

    return conn->n_requests == 0 || (conn->n_requests < opt->max_requests &&
                                     conn->bytes_in_flight + bytes <= opt->max_in_flight_bytes);
}

/* Whether as much has ended as should before reading goes on: not for each request by itself. */
static bool may_resume(const NbdConn *conn)
{
    const NbdServerOptions *opt = &conn->server->opt;

    return conn->n_requests <= opt->max_requests / 2 &&
           conn->bytes_in_flight <= opt->max_in_flight_bytes / 2;
}

static void fill(NbdConn *conn)
{
    NbdRequest *req = conn->filling;
    size_t left = req->length - (size_t)req->done;
    size_t n = buffered(conn) < left ? buffered(conn) : left;

    memcpy((char *)req->buf + req->done, conn->rbuf + conn->rpos, n);
    conn->rpos += n;
    req->done += n;
    if (req->done == req->length) {
        conn->filling = NULL;
        nbd_command_submit(req);
    }
}

/* Throws the payload of a refused write away. */
static void skip(NbdConn *conn)
{
    size_t n = buffered(conn) < conn->refused_bytes ? buffered(conn) : (size_t)conn->refused_bytes;

    conn->rpos += n;
    conn->refused_bytes -= n;
    if (conn->refused_bytes == 0) {
        NbdRequest *req = conn->refused;

        conn->refused = NULL;
        nbd_reply_error(req, req->error);
    }
}

static void refuse(NbdRequest *req, uint32_t error)
{
    NbdConn *conn = req->conn;

    if (req->type != NBD_CMD_WRITE || req->length == 0) {
        nbd_reply_error(req, error);
        return;
    }
    req->error = error;
    conn->refused = req;
    conn->refused_bytes = req->length;
}

/* Takes on the request whose header is at @head; there is room. */
static void start_request(NbdConn *conn, const uint8_t *head)
{
    NbdRequest *req = request_new(conn);
    uint32_t error;
    size_t bytes;

    if (!req) {
        lose(conn, "out of memory");
        return;
    }
    req->flags = get_be16(head + 4);
    req->type = get_be16(head + 6);
    memcpy(&req->cookie, head + 8, sizeof(req->cookie));
    req->offset = get_be64(head + 16);
    req->length = get_be32(head + 24);
    if (req->type == NBD_CMD_DISC) {
        nbd_request_free(req);
        close_conn(conn);
        return;
    }
    error = nbd_command_check(req);
    if (error) {
        refuse(req, error);
        return;
    }
    bytes = nbd_command_buf_bytes(req);
    if (bytes > 0) {
        req->buf = nbd_pool_get(&conn->thread->pool, bytes);
        if (!req->buf) {
            refuse(req, NBD_ENOMEM);
            return;
        }
        req->buf_bytes = bytes;
        conn->bytes_in_flight += nbd_pool_room(bytes);
    }
    if (req->type == NBD_CMD_WRITE && req->length > 0) {
        conn->filling = req;
    } else {
        nbd_command_submit(req);
    }
}

/* How much buffer a request would take; all that its header says is as yet unchecked. */
static uint64_t bytes_asked_for(const uint8_t *head)
{
    unsigned type = get_be16(head + 6);
    uint32_t length = get_be32(head + 24);

    if ((type != NBD_CMD_READ && type != NBD_CMD_WRITE) || length > NBD_TRANSFER_MAX) {
        return 0;
    }
    return nbd_pool_room(length);
}

/* Deals with what is in rbuf, as far as it goes. */
static void consume(NbdConn *conn)
{
    while (!conn->closing) {
        if (conn->filling && buffered(conn) > 0) {
            fill(conn);
        } else if (conn->refused && buffered(conn) > 0) {
            skip(conn);
        } else if (buffered(conn) < NBD_REQUEST_BYTES) {
            break;
        } else {
            const uint8_t *head = conn->rbuf + conn->rpos;

            if (get_be32(head) != NBD_REQUEST_MAGIC) {
                lose(conn, "it sent what is no request");
                break;
            }
            if (!has_room(conn, bytes_asked_for(head))) {
                conn->paused = true;
                break;
            }
            conn->rpos += NBD_REQUEST_BYTES;
            start_request(conn, head);
        }
    }
    nbd_conn_compact(conn);
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* Waits for what the connection needs now. */
static void watch(NbdConn *conn)
{
    bool in = !conn->closing && !conn->paused && !conn->holding;
    int ret = nbd_conn_watch(conn, in, (conn->unwritable || conn->holding) && !conn->dropped);

    if (ret < 0) {
        lose_errno(conn, "it cannot be waited for", ret);
    }
}

static void end_of_input(NbdConn *conn)
{
    say_dropped(conn, conn->n_requests > 0 || conn->rend > conn->rpos
                          ? "it went away with requests under way"
                          : "it went away without a word");
    close_conn(conn);
}

/* One receiving call.  Returns whether something came. */
static bool receive_once(NbdConn *conn)
{
    NbdRequest *req = conn->filling;
    struct iovec iov[2];
    int niov = 0;
    ssize_t n;

    if (req) {
        iov[niov++] = (struct iovec){ (char *)req->buf + req->done, req->length - req->done };
    }
    iov[niov++] = (struct iovec){ conn->rbuf + conn->rend, NBD_RECV_BYTES - conn->rend };
    n = nbd_stream_recvv(conn->stream, iov, niov);
    if (n == -EAGAIN) {
        return false;
    }
    if (n == 0) {
        end_of_input(conn);
        return false;
    }
    if (n < 0) {
        lose_errno(conn, "receiving from it failed", (int)n);
        return false;
    }
    conn->progress++;
    if (req) {
        size_t direct = (size_t)n < iov[0].iov_len ? (size_t)n : iov[0].iov_len;

        req->done += direct;
        n -= (ssize_t)direct;
        if (req->done == req->length) {
            conn->filling = NULL;
            nbd_command_submit(req);
        }
    }
    conn->rend += (size_t)n;
    return true;
}

static void receive(NbdConn *conn)
{
    if (conn->closing || conn->paused || conn->holding) {
        return;
    }
    do {
        if (!receive_once(conn)) {
            break;
        }
        consume(conn);
    } while (!conn->closing && !conn->paused && nbd_stream_has_input(conn->stream));
    arm_stall_if_needed(conn);
    watch(conn);
}

static void send_replies(NbdConn *conn)
{
    int ret;

    if (conn->dropped) {
        return;
    }
    ret = nbd_reply_flush(conn);
    if (ret < 0) {
        lose_errno(conn, "sending to it failed", ret);
    }
}

static void on_in(void *opaque)
{
    NbdConn *conn = opaque;

    if (conn->unwritable && (conn->stream->send_waits & NBD_STREAM_IN)) {
        send_replies(conn);
        qemu_bh_schedule(conn->work_bh);
    }
    if (conn->stream->recv_waits & NBD_STREAM_IN) {
        receive(conn);
    }
}

static void on_out(void *opaque)
{
    NbdConn *conn = opaque;
    bool held = conn->holding;

    if (conn->unwritable && (conn->stream->send_waits & NBD_STREAM_OUT)) {
        send_replies(conn);
        qemu_bh_schedule(conn->work_bh);
    }
    if (!conn->unwritable) {
        conn->holding = false;
    }
    if (held || (conn->stream->recv_waits & NBD_STREAM_OUT)) {
        receive(conn);
    }
    watch(conn);
}

/* ---- Holding --------------------------------------------------------------------------------- */

/*
 * While the client has much to read still, it gains nothing from a quick answer, and answering its
 * requests one by one as they come would cost a wake-up, a receiving and a sending call for each.
 * So they are left where they are until it has read most of it; then they are many.  Where replies
 * are large, that would save little, and keep the backend idle meanwhile.
 */

static void arm_hold(NbdConn *conn)
{
    conn->hold_armed = true;
    conn->holds_seen = conn->holds;
    timer_mod_ns(&conn->hold_timer, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + HOLD_NS);
}

/* It does not read, perhaps since it has something to say first. */
static void on_hold_timer(void *opaque)
{
    NbdConn *conn = opaque;

    conn->hold_armed = false;
    if (!conn->holding) {
        return;
    }
    if (conn->holds != conn->holds_seen) {
        arm_hold(conn);
        return;
    }
    conn->holding = false;
    conn->hold_barred = true;
    receive(conn);
    watch(conn);
}

/* Replies have been sent: decides whether to hold. */
static void hold(NbdConn *conn)
{
    if (conn->closing || conn->reply_bytes > HOLD_REPLY_MAX) {
        return;
    }
    if (!conn->unwritable && !nbd_stream_is_crowded(conn->stream)) {
        conn->hold_barred = false;
        return;
    }
    if (conn->holding || conn->hold_barred) {
        return;
    }
    conn->holding = true;
    conn->holds++;
    if (!conn->hold_armed) {
        arm_hold(conn);
    }
}

/* ---- The bottom half ------------------------------------------------------------------------- */

static void work(void *opaque)
{
    NbdConn *conn = opaque;

    if (!conn->unwritable && conn->out) {
        send_replies(conn);
        hold(conn);
    }
    if (conn->dropped) {
        throw_replies_away(conn);
    }
    if (conn->paused && !conn->closing && may_resume(conn)) {
        conn->paused = false;
        consume(conn);
        if (!conn->paused && nbd_stream_has_input(conn->stream)) {
            receive(conn);
        }
        arm_stall_if_needed(conn);
    }
    watch(conn);
    if (conn->closing && conn->n_requests == 0) {
        take_down(conn);
    }
}

void nbd_transmit_start(void *opaque)
{
    NbdConn *conn = opaque;
    NbdThread *thread = conn->thread;

    conn->ctx = thread->ctx;
    conn->work_bh = aio_bh_new(conn->ctx, work, conn);
    if (!conn->work_bh) {
        say_dropped(conn, "out of memory");
        qemu_bh_schedule(conn->ended_bh);
        return;
    }
    aio_timer_init(conn->ctx, &conn->stall_timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_stall, conn);
    aio_timer_init(conn->ctx, &conn->hold_timer, QEMU_CLOCK_REALTIME, SCALE_NS, on_hold_timer,
                   conn);
    conn->on_in = on_in;
    conn->on_out = on_out;
    conn->thread_next = thread->conns;
    conn->thread_pprev = &thread->conns;
    if (thread->conns) {
        thread->conns->thread_pprev = &conn->thread_next;
    }
    thread->conns = conn;
    if (thread->finishing) {
        close_conn(conn);
        return;
    }
    consume(conn);
    receive(conn);
}
