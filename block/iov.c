/* SPDX-License-Identifier: MIT */
/*
 * I/O vectors, and a request's place in its vector: iov_idx and iov_off say where its first `done`
 * bytes end, so that no walk starts at the front again.
 */
#include "block/block_int.h"

#include <string.h>

void qemu_iovec_init_buf(QEMUIOVector *qiov, void *buf, size_t len)
{
    *qiov =
        (QEMUIOVector){ .niov = 1, .size = len, .local_iov = { .iov_base = buf, .iov_len = len } };
    qiov->iov = &qiov->local_iov;
}

void qemu_iovec_init_external(QEMUIOVector *qiov, struct iovec *iov, int niov)
{
    *qiov = (QEMUIOVector){ .iov = iov, .niov = niov };
    for (int i = 0; i < niov; i++) {
        qiov->size += iov[i].iov_len;
    }
}

/* Moves on by @bytes that have been transferred; at the end nobody asks any more where that is. */
void blk_iov_advance(BlockAIOCB *req, uint64_t bytes)
{
    req->done += bytes;
    if (!req->qiov || req->done == req->bytes) {
        return;
    }
    while (bytes > 0) {
        uint64_t left = req->qiov->iov[req->iov_idx].iov_len - req->iov_off;

        if (bytes < left) {
            req->iov_off += bytes;
            return;
        }
        bytes -= left;
        req->iov_idx++;
        req->iov_off = 0;
    }
}

/* Copies @bytes between @buf and the vector from the request's place on. */
static void copy(const BlockAIOCB *req, char *buf, uint64_t bytes, bool to_vector)
{
    uint64_t off = req->iov_off;

    for (int i = req->iov_idx; bytes > 0; i++, off = 0) {
        must(i < req->qiov->niov);
        const struct iovec *v = &req->qiov->iov[i];
        uint64_t n = v->iov_len - off < bytes ? v->iov_len - off : bytes;

        if (n == 0) {
            continue; /* an empty buffer may be NULL, which memcpy() must not see */
        }
        if (to_vector) {
            memcpy((char *)v->iov_base + off, buf, n);
        } else {
            memcpy(buf, (char *)v->iov_base + off, n);
        }
        buf += n;
        bytes -= n;
    }
}

/* From the vector to @buf; a request without a vector writes zeroes. */
void blk_iov_copy_out(const BlockAIOCB *req, void *buf, uint64_t bytes)
{
    if (req->qiov) {
        copy(req, buf, bytes, false);
    } else {
        memset(buf, 0, bytes);
    }
}

void blk_iov_copy_in(const BlockAIOCB *req, const void *buf, uint64_t bytes)
{
    copy(req, (char *)buf, bytes, true);
}

/* How much of a buffer the driver takes as it is, at most @max; 0: it needs bouncing. */
static uint64_t direct_part(const BlockAIOCB *req, const struct iovec *v, uint64_t max,
                            bool aligned)
{
    const BlockBackend *blk = req->q->blk;
    uint64_t n = v->iov_len < max ? v->iov_len : max;

    if (!aligned) {
        return n;
    }
    if ((uintptr_t)v->iov_base & (blk->limits.memory_alignment - 1)) {
        return 0;
    }
    return n & ~blk->align_mask;
}

/*
 * Points the piece at the caller's own buffers from the request's place on, for at most @max
 * bytes.  Whole buffers go as a slice of the caller's array; a part of one goes alone, so that
 * nothing has to be allocated.  @aligned: the buffers must suit the driver.
 * Returns the bytes that can go this way, 0 when the next ones need bouncing.
 */
uint64_t blk_iov_direct(BlockAIOCB *req, uint64_t max, bool aligned)
{
    const struct iovec *iov = req->qiov->iov;
    int i = req->iov_idx, last = req->qiov->niov, max_iov = (int)req->q->blk->limits.max_iov;
    uint64_t sum = 0, n;

    if (likely(last == 1 && req->done == 0 && iov->iov_len <= max)) { /* as most often */
        n = direct_part(req, iov, max, aligned);
        if (likely(n == iov->iov_len)) {
            req->piece.iov = iov;
            req->piece.niov = 1;
            return n;
        }
    }
    if (req->iov_off == 0) {
        if (last - i > max_iov) {
            last = i + max_iov;
        }
        for (; i < last && iov[i].iov_len <= max - sum; i++) {
            n = direct_part(req, &iov[i], max, aligned);
            if (n < iov[i].iov_len) {
                break;
            }
            sum += n;
        }
        if (sum > 0) {
            req->piece.iov = iov + req->iov_idx;
            req->piece.niov = i - req->iov_idx;
            return sum;
        }
    }
    for (i = req->iov_idx; iov[i].iov_len == req->iov_off; i++) {
        must(i + 1 < req->qiov->niov);
        req->iov_idx = i + 1;
        req->iov_off = 0;
    }
    req->local_iov.iov_base = (char *)iov[i].iov_base + req->iov_off;
    req->local_iov.iov_len = iov[i].iov_len - req->iov_off;
    n = direct_part(req, &req->local_iov, max, aligned);
    req->local_iov.iov_len = n;
    req->piece.iov = &req->local_iov;
    req->piece.niov = 1;
    return n;
}
