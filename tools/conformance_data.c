/* SPDX-License-Identifier: MIT */
/* Conformance: bytes come back as they were written, wherever and however they were. */
#include "conformance_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- A copy of what should be there ---------------------------------------------------------- */

struct model {
    char *data;
    int64_t start, bytes; /* which part of the backend */
};

static void check_same(struct conf *c, const struct model *m, int64_t offset, int64_t bytes,
                       const char *found, const char *after)
{
    const char *want = m->data + (offset - m->start);

    if (!memcmp(found, want, (size_t)bytes)) {
        return;
    }
    for (int64_t i = 0; i < bytes; i++) {
        if (found[i] != want[i]) {
            conf_fail(c, "after %s, byte %lld (%lld of %lld bytes read at %lld) is %#x, not %#x",
                      after, (long long)(offset + i), (long long)i, (long long)bytes,
                      (long long)offset, (unsigned char)found[i], (unsigned char)want[i]);
            return;
        }
    }
}

static void check_all(struct conf *c, const struct model *m, const char *after)
{
    char *buf = conf_alloc((size_t)m->bytes);

    if (conf_expect(c, conf_pread(c, m->start, m->bytes, buf), 0, "a read", m->start, m->bytes)) {
        check_same(c, m, m->start, m->bytes, buf, after);
    }
    conf_free(c, buf);
}

/* Fills a part of the backend. */
static struct model model_new(struct conf *c, int64_t start, int64_t bytes)
{
    struct model m = { conf_alloc((size_t)bytes), start, bytes };

    blk_random_fill(&c->random, m.data, (size_t)bytes);
    conf_expect(c, conf_pwrite(c, start, bytes, m.data, 0), 0, "a write", start, bytes);
    return m;
}

static void pick_range(struct conf *c, const struct model *m, int64_t max, int64_t *ret_offset,
                       int64_t *ret_bytes)
{
    int64_t bytes = 1 + (int64_t)blk_random_below(&c->random, (uint64_t)max);

    *ret_bytes = bytes < m->bytes ? bytes : m->bytes;
    *ret_offset =
        m->start + (int64_t)blk_random_below(&c->random, (uint64_t)(m->bytes - *ret_bytes + 1));
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static void length_and_limits(struct conf *c)
{
    const BlkLimits *l = &c->limits;

    CHECK(c, l->request_alignment && !(l->request_alignment & (l->request_alignment - 1)),
          "request_alignment is %u, no power of 2", l->request_alignment);
    CHECK(c, l->memory_alignment && !(l->memory_alignment & (l->memory_alignment - 1)),
          "memory_alignment is %u, no power of 2", l->memory_alignment);
    CHECK(c, l->max_transfer && l->max_transfer % l->request_alignment == 0,
          "max_transfer is %u, no multiple of %u", l->max_transfer, l->request_alignment);
    CHECK(c, l->max_iov, "max_iov is 0");
    CHECK(c, blk_getlength(c->blk) == c->length, "the length changes");
}

static void any_offset_and_length(struct conf *c)
{
    struct model m = model_new(c, 0, conf_window(c));
    int64_t max = 5 * (int64_t)c->limits.request_alignment + 4096, offset, bytes;
    char *buf = conf_alloc((size_t)max);

    for (int i = 0; i < 500 && !c->faults; i++) {
        pick_range(c, &m, max, &offset, &bytes);
        if (blk_random_below(&c->random, 2)) {
            blk_random_fill(&c->random, m.data + offset, (size_t)bytes);
            conf_expect(c, conf_pwrite(c, offset, bytes, m.data + offset, 0), 0, "a write", offset,
                        bytes);
        } else if (conf_expect(c, conf_pread(c, offset, bytes, buf), 0, "a read", offset, bytes)) {
            check_same(c, &m, offset, bytes, buf, "a write");
        }
    }
    check_all(c, &m, "writes at random places");
    conf_free(c, buf);
    conf_free(c, m.data);
}

static void the_end(struct conf *c)
{
    int64_t bytes = conf_window(c), at;
    struct model m = model_new(c, c->length - bytes, bytes);
    char byte = 'e';

    for (int64_t n = 1; n <= bytes && n <= 5000; n = n * 3 + 1) {
        at = c->length - n;
        memset(m.data + (at - m.start), (int)n, (size_t)n);
        conf_expect(c, conf_pwrite(c, at, n, m.data + (at - m.start), 0), 0, "a write", at, n);
    }
    check_all(c, &m, "writes up to the end");
    conf_expect(c, conf_pread(c, c->length, 1, &byte), -EINVAL, "a read", c->length, 1);
    conf_expect(c, conf_pwrite(c, c->length - 1, 2, "ab", 0), -EINVAL, "a write", c->length - 1, 2);
    conf_expect(c, conf_pwrite(c, c->length, 1, &byte, 0), -EINVAL, "a write", c->length, 1);
    check_all(c, &m, "writes past the end");
    conf_expect(c, conf_pread(c, c->length, 0, &byte), 0, "a read", c->length, 0);
    conf_free(c, m.data);
}

static void longer_than_one_transfer(struct conf *c)
{
    int64_t bytes = (int64_t)c->limits.max_transfer * 2 + 12345;
    struct model m;

    bytes = bytes > 32 << 20 ? 32 << 20 : bytes;
    m = model_new(c, 0, bytes < c->length ? bytes : c->length);
    check_all(c, &m, "one long write");
    conf_free(c, m.data);
}

/* Many small buffers at odd addresses, some of them empty. */
static void many_buffers(struct conf *c)
{
    enum { BUFFERS = 700 };
    struct model m = model_new(c, 0, conf_window(c) < 1 << 18 ? conf_window(c) : 1 << 18);
    char *mem = conf_alloc((size_t)m.bytes + BUFFERS * 8), *at = mem;
    struct iovec *iov = conf_alloc(BUFFERS * sizeof(*iov));
    struct conf_req *r = conf_alloc(sizeof(*r));
    int64_t left = m.bytes - 1;
    int n = 0;

    for (; n < BUFFERS && left > 0; n++) {
        size_t len = blk_random_below(&c->random, 700);

        len = (int64_t)len > left || n == BUFFERS - 1 ? (size_t)left : len;
        at += blk_random_below(&c->random, 8);
        iov[n] = (struct iovec){ at, len };
        at += len;
        left -= (int64_t)len;
    }
    qemu_iovec_init_external(&r->qiov, iov, n);
    conf_submit(c, r, CONF_READ, 1, (int64_t)r->qiov.size, NULL, 0, NULL);
    if (conf_wait(c, r) && conf_expect(c, r->ret, 0, "a read", 1, r->bytes)) {
        int64_t offset = 1;

        for (int i = 0; i < n; offset += (int64_t)iov[i++].iov_len) {
            check_same(c, &m, offset, (int64_t)iov[i].iov_len, iov[i].iov_base, "one write");
        }
    }
    for (int i = 0, k = 1; i < n; k += (int)iov[i++].iov_len) {
        blk_random_fill(&c->random, iov[i].iov_base, iov[i].iov_len);
        memcpy(m.data + k, iov[i].iov_base, iov[i].iov_len);
    }
    if (!c->lost) {
        conf_submit(c, r, CONF_WRITE, 1, r->bytes, NULL, BDRV_REQ_FUA, NULL);
        conf_wait(c, r);
        conf_expect(c, r->ret, 0, "a write", 1, r->bytes);
    }
    check_all(c, &m, "a write from many buffers");
    conf_free(c, r);
    conf_free(c, iov);
    conf_free(c, mem);
    conf_free(c, m.data);
}

static void zeroes(struct conf *c)
{
    struct model m = model_new(c, 0, conf_window(c));
    const BdrvRequestFlags flags[] = { 0, BDRV_REQ_MAY_UNMAP, BDRV_REQ_FUA };
    int64_t offset, bytes;

    for (int i = 0; i < 60 && !c->faults; i++) {
        pick_range(c, &m, i % 2 ? 70000 : 9 * (int64_t)c->limits.request_alignment, &offset,
                   &bytes);
        memset(m.data + offset, 0, (size_t)bytes);
        conf_expect(c, conf_do(c, CONF_ZEROES, offset, bytes, NULL, flags[i % 3]), 0, "a zeroing",
                    offset, bytes);
    }
    check_all(c, &m, "zeroing");
    conf_free(c, m.data);
}

/* What is discarded may read as anything, the rest must not. */
static void discards(struct conf *c)
{
    struct model m = model_new(c, 0, conf_window(c));
    int64_t offset, bytes;
    char *buf = conf_alloc((size_t)m.bytes);

    for (int i = 0; i < 60 && !c->faults; i++) {
        pick_range(c, &m, 70000, &offset, &bytes);
        conf_expect(c, conf_do(c, CONF_DISCARD, offset, bytes, NULL, 0), 0, "a discard", offset,
                    bytes);
        if (conf_expect(c, conf_pread(c, offset, bytes, buf), 0, "a read", offset, bytes)) {
            memcpy(m.data + offset, buf, (size_t)bytes);
        }
    }
    check_all(c, &m, "discards");
    conf_free(c, buf);
    conf_free(c, m.data);
}

/* Extents follow one another without a gap, and where one is said to be zero it reads so. */
static void status(struct conf *c)
{
    struct model m = model_new(c, 0, conf_window(c));
    BlkExtent e;
    int n = 0;

    if (m.bytes >= 1 << 18) {
        memset(m.data + 65536, 0, 131072);
        conf_do(c, CONF_ZEROES, 65536, 131072, NULL, BDRV_REQ_MAY_UNMAP);
    }
    for (int64_t at = 0; at < m.bytes && n < 100000 && !c->faults; at += e.bytes, n++) {
        if (!conf_expect(c, conf_status(c, at, m.bytes - at, &e), 0, "a status", at,
                         m.bytes - at)) {
            break;
        }
        CHECK(c, e.offset == at && e.bytes > 0 && e.bytes <= m.bytes - at,
              "the status at %lld is of %lld bytes at %lld", (long long)at, (long long)e.bytes,
              (long long)e.offset);
        CHECK(c, !(e.status & ~(uint32_t)(BDRV_BLOCK_DATA | BDRV_BLOCK_ZERO)), "the status is %#x",
              e.status);
        if (c->faults) {
            break;
        }
        for (int64_t i = 0; (e.status & BDRV_BLOCK_ZERO) && i < e.bytes; i++) {
            if (m.data[at + i]) {
                conf_fail(c, "byte %lld is said to be zero, and is not", (long long)(at + i));
                break;
            }
        }
    }
    conf_expect(c, conf_status(c, c->length, 1, &e), -EINVAL, "a status", c->length, 1);
    check_all(c, &m, "asking for the status");
    conf_free(c, m.data);
}

/* It reads the same twice. */
static void reads_repeat(struct conf *c)
{
    int64_t bytes = conf_window(c);
    char *a = conf_alloc((size_t)bytes), *b = conf_alloc((size_t)bytes);

    conf_expect(c, conf_pread(c, 0, bytes, a), 0, "a read", 0, bytes);
    conf_expect(c, conf_pread(c, 0, bytes, b), 0, "a read", 0, bytes);
    CHECK(c, !memcmp(a, b, (size_t)bytes), "two reads of the same bytes differ");
    conf_free(c, a);
    conf_free(c, b);
}

const check conformance_data[] = {
    { "length and limits make sense", length_and_limits, false },
    { "reading twice gives the same", reads_repeat, false },
    { "any offset and length", any_offset_and_length, true },
    { "up to the end, and not past it", the_end, true },
    { "longer than one transfer", longer_than_one_transfer, true },
    { "many buffers at odd addresses", many_buffers, true },
    { "zeroing", zeroes, true },
    { "discards leave the rest alone", discards, true },
    { "block status", status, true },
    { 0 },
};
