/* SPDX-License-Identifier: MIT */
/*
 * The transmission: requests in, replies out, all on the connection's iothread.
 *
 * transmit.c receives and parses requests, command.c has the backend do them, reply.c puts their
 * replies together and sends them.
 */
#ifndef NBD_TRANSMIT_H
#define NBD_TRANSMIT_H

#include "nbd/conn.h"

/* A piece of a reply: a header of its own, and data. */
typedef struct NbdChunk {
    const void *data; /* in the request's buffer, or a string */
    uint32_t data_bytes;
    uint32_t head_bytes;
    uint8_t head[32];
} NbdChunk;

/* A request, from its header to the last byte of its reply. */
struct NbdRequest {
    NbdConn *conn;
    NbdRequest *next, **pprev; /* of NbdConn.flight, .out or the thread's free ones */
    BlockAIOCB *acb;           /* while in NbdConn.flight */
    uint64_t cookie;           /* as it came */
    uint64_t offset;
    uint32_t length;
    uint16_t flags, type;
    void *buf; /* buf_bytes of the thread's pool; NULL: none */
    size_t buf_bytes;
    QEMUIOVector qiov;
    int64_t deadline_ns; /* below zero: the backend's */
    uint64_t done;       /* of a write: bytes received; of a status or a cache: bytes dealt with */
    uint32_t n_extents;
    uint32_t error; /* NBD_E*, of a write that was refused */
    BlkExtent extent;
    NbdChunk *chunks; /* n_chunks; one, or an array from malloc() */
    unsigned n_chunks;
    size_t out_bytes; /* of all chunks */
    NbdChunk one;
};

/* ---- transmit.c ------------------------------------------------------------------------------ */

/* A bottom half's function: takes the connection @opaque on, on its iothread. */
void nbd_transmit_start(void *opaque);

/* Lets what is in flight end, then closes. */
void nbd_transmit_finish(NbdConn *conn);

/* Cancels all that is in flight, then closes; @why NULL: without a word in the log. */
void nbd_transmit_drop(NbdConn *conn, const char *why);

/* Frees a request whose reply has been sent or is no longer wanted. */
void nbd_request_free(NbdRequest *req);

/* Gives its buffer back early. */
void nbd_request_drop_buf(NbdRequest *req);

/* Frees what the thread keeps. */
void nbd_requests_clear(NbdThread *thread);

/* Looks again, after the limit, whether the connection is stuck. */
void nbd_transmit_arm_stall(NbdConn *conn);

/* ---- command.c ------------------------------------------------------------------------------- */

/* What is wrong with a request, as NBD_E*; 0: nothing. */
uint32_t nbd_command_check(const NbdRequest *req);

/* How large a buffer a request needs that is all right. */
size_t nbd_command_buf_bytes(const NbdRequest *req);

/* Has it done; a reply follows in any case. */
void nbd_command_submit(NbdRequest *req);

/* ---- reply.c --------------------------------------------------------------------------------- */

/* Each queues the reply; the connection's work_bh sends it. */
void nbd_reply_error(NbdRequest *req, uint32_t error);
void nbd_reply_success(NbdRequest *req);
void nbd_reply_read(NbdRequest *req);
void nbd_reply_status(NbdRequest *req);

/* Sends what can be sent.  Returns 0 or -errno: the connection is over. */
int nbd_reply_flush(NbdConn *conn);

#endif
