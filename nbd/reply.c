/* SPDX-License-Identifier: MIT */
/*
 * Replies: put together when a request has ended, sent together with all that have ended in the
 * same pass of the loop.
 *
 * A client with structured replies gets zeroes as holes.  What is zero is seen by looking at what
 * was read, not by asking the backend before: data is told from zeroes by its first bytes, what the
 * client gets is of one moment, and it works with every driver.
 */
#include "nbd/transmit.h"

#include <errno.h>
#include <stdlib.h>

#include "nbd/error.h"
#include "nbd/server.h"

/* Holes are looked for in units of this size, so that a reply does not fall to pieces. */
enum { HOLE_UNIT = 64 << 10, CHUNKS_MAX = 64 };
/* Buffers of one sending call. */
enum { SEND_IOV = 256 };

/* ---- Chunks ---------------------------------------------------------------------------------- */

static void queue(NbdRequest *req)
{
    NbdConn *conn = req->conn;

    req->next = NULL;
    *conn->out_tail = req;
    conn->out_tail = &req->next;
    qemu_bh_schedule(conn->work_bh);
}

/* The reply is its only chunk. */
static NbdChunk *only_chunk(NbdRequest *req)
{
    req->chunks = &req->one;
    req->n_chunks = 1;
    req->one.data_bytes = 0;
    return &req->one;
}

static void finish_chunk(NbdRequest *req, NbdChunk *chunk, const uint8_t *end)
{
    chunk->head_bytes = (uint32_t)(end - chunk->head);
    req->out_bytes += chunk->head_bytes + chunk->data_bytes;
}

/* Writes the header of a structured chunk with @bytes of payload. */
static uint8_t *put_chunk(const NbdRequest *req, NbdChunk *chunk, unsigned type, bool last,
                          uint32_t bytes)
{
    uint8_t *p = put_be32(chunk->head, NBD_STRUCTURED_REPLY_MAGIC);

    p = put_be16(p, last ? NBD_REPLY_FLAG_DONE : 0);
    p = put_be16(p, (uint16_t)type);
    memcpy(p, &req->cookie, sizeof(req->cookie));
    return put_be32(p + sizeof(req->cookie), bytes);
}

static void simple(NbdRequest *req, uint32_t error, const void *data, uint32_t bytes)
{
    NbdChunk *chunk = only_chunk(req);
    uint8_t *p = put_be32(chunk->head, NBD_SIMPLE_REPLY_MAGIC);

    p = put_be32(p, error);
    memcpy(p, &req->cookie, sizeof(req->cookie));
    chunk->data = data;
    chunk->data_bytes = bytes;
    req->out_bytes = 0;
    finish_chunk(req, chunk, p + sizeof(req->cookie));
    queue(req);
}

void nbd_reply_error(NbdRequest *req, uint32_t error)
{
    const char *text = nbd_error_text(error);
    NbdChunk *chunk;
    uint8_t *p;

    if (req->buf) {
        nbd_request_drop_buf(req);
    }
    if (!req->conn->structured) {
        simple(req, error, NULL, 0);
        return;
    }
    chunk = only_chunk(req);
    chunk->data = text;
    chunk->data_bytes = (uint32_t)strlen(text);
    req->out_bytes = 0;
    p = put_chunk(req, chunk, NBD_REPLY_TYPE_ERROR, true, 6 + chunk->data_bytes);
    p = put_be32(p, error);
    finish_chunk(req, chunk, put_be16(p, (uint16_t)chunk->data_bytes));
    queue(req);
}

void nbd_reply_success(NbdRequest *req)
{
    NbdChunk *chunk;

    if (req->buf) {
        nbd_request_drop_buf(req);
    }
    /* The answer to a read is structured, even when it is empty. */
    if (!req->conn->structured || req->type != NBD_CMD_READ) {
        simple(req, 0, NULL, 0);
        return;
    }
    chunk = only_chunk(req);
    req->out_bytes = 0;
    finish_chunk(req, chunk, put_chunk(req, chunk, NBD_REPLY_TYPE_NONE, true, 0));
    queue(req);
}

void nbd_reply_status(NbdRequest *req)
{
    NbdChunk *chunk = only_chunk(req);
    uint32_t bytes = 4 + 8 * req->n_extents;

    put_be32(req->buf, NBD_STATUS_CONTEXT_ID);
    chunk->data = req->buf;
    chunk->data_bytes = bytes;
    req->out_bytes = 0;
    finish_chunk(req, chunk, put_chunk(req, chunk, NBD_REPLY_TYPE_BLOCK_STATUS, true, bytes));
    queue(req);
}

/* ---- Reads ----------------------------------------------------------------------------------- */

/* Whether all @bytes are zero: the first ones are, and each is like the one so many before it. */
static bool is_zero(const uint8_t *p, size_t bytes)
{
    enum { STEP = 16 };

    for (size_t i = 0; i < STEP && i < bytes; i++) {
        if (p[i]) {
            return false;
        }
    }
    return bytes <= STEP || memcmp(p, p + STEP, bytes - STEP) == 0;
}

static void put_data(NbdRequest *req, NbdChunk *chunk, uint32_t at, uint32_t bytes, bool last)
{
    uint8_t *p = put_chunk(req, chunk, NBD_REPLY_TYPE_OFFSET_DATA, last, 8 + bytes);

    chunk->data = (const uint8_t *)req->buf + at;
    chunk->data_bytes = bytes;
    finish_chunk(req, chunk, put_be64(p, req->offset + at));
}

static void put_hole(NbdRequest *req, NbdChunk *chunk, uint32_t at, uint32_t bytes, bool last)
{
    uint8_t *p = put_chunk(req, chunk, NBD_REPLY_TYPE_OFFSET_HOLE, last, 12);

    chunk->data_bytes = 0;
    finish_chunk(req, chunk, put_be32(put_be64(p, req->offset + at), bytes));
}

/* The length of the unit of holes that begins at @at of the request. */
static uint32_t unit_at(const NbdRequest *req, uint32_t at)
{
    uint32_t unit = HOLE_UNIT - (uint32_t)((req->offset + at) % HOLE_UNIT);

    return unit < req->length - at ? unit : req->length - at;
}

/* The length of the run of holes, or of data, that begins at @at. */
static uint32_t run_at(const NbdRequest *req, uint32_t at, bool *ret_hole)
{
    const uint8_t *buf = req->buf;
    uint32_t bytes = unit_at(req, at);
    bool hole = is_zero(buf + at, bytes);

    while (at + bytes < req->length) {
        uint32_t unit = unit_at(req, at + bytes);

        if (is_zero(buf + at + bytes, unit) != hole) {
            break;
        }
        bytes += unit;
    }
    *ret_hole = hole;
    return bytes;
}

/* More than one chunk.  Returns false when out of memory. */
static bool put_runs(NbdRequest *req)
{
    NbdChunk *chunks = malloc(CHUNKS_MAX * sizeof(*chunks));
    unsigned n = 0;

    if (!chunks) {
        return false;
    }
    for (uint32_t at = 0; at < req->length; n++) {
        bool hole = false;
        uint32_t bytes = n < CHUNKS_MAX - 1 ? run_at(req, at, &hole) : req->length - at;
        bool last = at + bytes == req->length;

        if (hole) {
            put_hole(req, &chunks[n], at, bytes, last);
        } else {
            put_data(req, &chunks[n], at, bytes, last);
        }
        at += bytes;
    }
    req->chunks = chunks;
    req->n_chunks = n;
    return true;
}

void nbd_reply_read(NbdRequest *req)
{
    bool hole;
    uint32_t first;

    if (!req->conn->structured) {
        simple(req, 0, req->buf, req->length);
        return;
    }
    req->out_bytes = 0;
    first = run_at(req, 0, &hole);
    if (first == req->length && hole) {
        put_hole(req, only_chunk(req), 0, first, true);
        nbd_request_drop_buf(req);
    } else if (first == req->length || (req->flags & NBD_CMD_FLAG_DF) || !put_runs(req)) {
        put_data(req, only_chunk(req), 0, req->length, true);
    }
    queue(req);
}

/* ---- Sending --------------------------------------------------------------------------------- */

static int add_iov(struct iovec *iov, int n, const void *base, size_t bytes, size_t *skip)
{
    if (*skip >= bytes) {
        *skip -= bytes;
        return n;
    }
    iov[n] = (struct iovec){ (char *)base + *skip, bytes - *skip };
    *skip = 0;
    return n + 1;
}

/* Lists what is to be sent, behind the @skip bytes that have been. */
static int gather(const NbdConn *conn, struct iovec *iov, int max)
{
    size_t skip = conn->out_sent;
    int n = 0;

    for (const NbdRequest *req = conn->out; req; req = req->next) {
        for (unsigned i = 0; i < req->n_chunks; i++) {
            const NbdChunk *chunk = &req->chunks[i];

            if (n + 2 > max) {
                return n;
            }
            n = add_iov(iov, n, chunk->head, chunk->head_bytes, &skip);
            if (chunk->data_bytes > 0) {
                n = add_iov(iov, n, chunk->data, chunk->data_bytes, &skip);
            }
        }
    }
    return n;
}

/* Frees the requests whose replies are out. */
static void account(NbdConn *conn, size_t sent)
{
    conn->out_sent += sent;
    conn->reply_bytes = conn->out->out_bytes;
    while (conn->out && conn->out_sent >= conn->out->out_bytes) {
        NbdRequest *req = conn->out;

        conn->out_sent -= req->out_bytes;
        conn->out = req->next;
        if (!conn->out) {
            conn->out_tail = &conn->out;
        }
        nbd_request_free(req);
    }
    conn->progress++;
}

int nbd_reply_flush(NbdConn *conn)
{
    struct iovec iov[SEND_IOV];

    conn->unwritable = false;
    while (conn->out) {
        ssize_t n = nbd_stream_sendv(conn->stream, iov, gather(conn, iov, SEND_IOV));

        if (n == -EAGAIN) {
            conn->unwritable = true;
            nbd_transmit_arm_stall(conn);
            return 0;
        }
        if (n < 0) {
            return (int)n;
        }
        account(conn, (size_t)n);
    }
    return 0;
}
