/* SPDX-License-Identifier: MIT */
/*
 * loop_bench: operations on the ring, n of them in flight, each issued by the callback of the one
 * before.
 *
 *   nop   IORING_OP_NOP through aio_add_sqe()
 *   read  4 KiB of a cached file through aio_add_sqe(); in aioctx-blk through the block layer
 *
 * Beside the plain loop that one writes with liburing, on a ring with the flags, the size and the
 * registrations that a context's has; liburing-fixed has the file and the buffers registered, too.
 */
#include "loop_impl.h"
#include "ring.h"
#include "test_file.h"

#include <aioctx/aio.h>
#include <aioctx/block.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 32, READ_BYTES = TEST_FILE_BLOCK, RING_ENTRIES = 128 };

struct ops;

struct op {
    CqeHandler cqe; /* first */
    struct ops *ops;
    uint64_t *buf;
    uint32_t block;
    QEMUIOVector qiov;
};

struct ops {
    AioContext *ctx;
    BlockBackend *blk;
    struct io_uring ring;
    bool is_read, fixed;
    unsigned depth;
    uint64_t random;
    uint64_t left, ended, right; /* to be issued; ended; ended as they should */
    struct op op[DEPTH_MAX];
};

static struct ops *new_ops(const struct loop_side *side)
{
    struct ops *o = bench_alloc(sizeof(*o));
    char *bufs = bench_alloc((size_t)DEPTH_MAX * READ_BYTES);
    o->is_read = !strcmp(side->case_name, "read");
    o->depth = side->n;
    o->random = 1;
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        o->op[i].ops = o;
        o->op[i].buf = (uint64_t *)(bufs + (size_t)i * READ_BYTES);
        qemu_iovec_init_buf(&o->op[i].qiov, o->op[i].buf, READ_BYTES);
    }
    return o;
}

static void free_ops(struct ops *o)
{
    free(o->op[0].buf);
    free(o);
}

/* Chooses what the operation is to do. */
static void next_op(struct op *op)
{
    struct ops *o = op->ops;
    o->left--;
    if (o->is_read) {
        op->block = bench_random_below(&o->random, loop_file->blocks);
        *op->buf = ~UINT64_C(0); /* spoilt, so that a read that never was would show */
    }
}

static off_t offset_of(const struct op *op)
{
    return (off_t)op->block * READ_BYTES;
}

/* Returns whether to issue another one. */
static bool end_op(struct op *op, int res)
{
    struct ops *o = op->ops;
    o->ended++;
    o->right += o->is_read ? res == READ_BYTES && *op->buf == loop_file->expect[op->block] : !res;
    return o->left > 0;
}

static uint64_t begin_run(struct ops *o, uint64_t ops)
{
    ops = ops > o->depth ? ops : o->depth;
    o->left = ops;
    o->ended = o->right = 0;
    return ops;
}

/* ---- aioctx ---------------------------------------------------------------------------------- */

static void prep_nop(struct io_uring_sqe *sqe, void *opaque)
{
    io_uring_prep_nop(sqe);
}

static void prep_read(struct io_uring_sqe *sqe, void *opaque)
{
    struct op *op = opaque;
    io_uring_prep_read(sqe, loop_file->fd, op->buf, READ_BYTES, offset_of(op));
}

static void issue(struct op *op);

static void on_cqe(CqeHandler *cqe)
{
    struct op *op = (struct op *)cqe;
    if (end_op(op, cqe->res)) {
        issue(op);
    }
}

static void issue(struct op *op)
{
    next_op(op);
    op->cqe = (CqeHandler){ .cb = on_cqe };
    if (aio_add_sqe(op->ops->is_read ? prep_read : prep_nop, op, &op->cqe)) {
        bench_die("loop_bench: aio_add_sqe failed");
    }
}

static void *open_aioctx(const struct loop_side *side)
{
    struct ops *o = new_ops(side);
    o->ctx = !o->is_read || loop_file ? loop_context("io_uring") : NULL;
    if (!o->ctx) {
        free_ops(o);
        return NULL;
    }
    return o;
}

static void close_aioctx(void *state)
{
    struct ops *o = state;
    if (o->blk) {
        blk_unref(o->blk);
    }
    aio_context_unref(o->ctx);
    free_ops(o);
}

static uint64_t run_aioctx(void *state, uint64_t ops)
{
    struct ops *o = state;
    ops = begin_run(o, ops);
    for (unsigned i = 0; i < o->depth; i++) {
        issue(&o->op[i]);
    }
    while (o->ended < ops) {
        aio_poll(o->ctx, true);
    }
    return o->right;
}

/* ---- The block layer ------------------------------------------------------------------------- */

static void issue_blk(struct op *op);

static void on_read(void *opaque, int ret)
{
    struct op *op = opaque;
    if (end_op(op, ret == 0 ? READ_BYTES : ret)) {
        issue_blk(op);
    }
}

static void issue_blk(struct op *op)
{
    next_op(op);
    if (!blk_aio_preadv(op->ops->blk, offset_of(op), &op->qiov, 0, on_read, op)) {
        bench_die("loop_bench: cannot submit a read: %s", strerror(errno));
    }
}

static void *open_blk(const struct loop_side *side)
{
    char spec[64], *why = NULL;
    struct ops *o = open_aioctx(side);
    if (!o) {
        return NULL;
    }
    snprintf(spec, sizeof(spec), "file:/proc/self/fd/%d?read-only=on", loop_file->fd);
    o->blk = blk_open(spec, &why);
    if (!o->blk) {
        bench_die("loop_bench: cannot open %s: %s", spec, why ? why : strerror(errno));
    }
    return o;
}

static uint64_t run_blk(void *state, uint64_t ops)
{
    struct ops *o = state;
    ops = begin_run(o, ops);
    for (unsigned i = 0; i < o->depth; i++) {
        issue_blk(&o->op[i]);
    }
    while (o->ended < ops) {
        aio_poll(o->ctx, true);
    }
    return o->right;
}

/* ---- A plain loop ---------------------------------------------------------------------------- */

static void *open_plain(const struct loop_side *side)
{
    struct ops *o = new_ops(side);
    if ((o->is_read && !loop_file) || bench_ring_init(&o->ring, RING_ENTRIES)) {
        free_ops(o);
        return NULL;
    }
    return o;
}

static void close_plain(void *state)
{
    struct ops *o = state;
    bench_ring_exit(&o->ring);
    free_ops(o);
}

static void *open_fixed(const struct loop_side *side)
{
    struct ops *o = open_plain(side);
    struct iovec iov = { .iov_len = (size_t)DEPTH_MAX * READ_BYTES };
    if (!o) {
        return NULL;
    }
    iov.iov_base = o->op[0].buf;
    o->fixed = true;
    if (io_uring_register_files(&o->ring, &loop_file->fd, 1) ||
        io_uring_register_buffers(&o->ring, &iov, 1)) {
        close_plain(o);
        return NULL;
    }
    return o;
}

static void issue_plain(struct op *op)
{
    struct ops *o = op->ops;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&o->ring);
    next_op(op);
    if (!o->is_read) {
        io_uring_prep_nop(sqe);
    } else if (o->fixed) {
        io_uring_prep_read_fixed(sqe, 0, op->buf, READ_BYTES, (uint64_t)offset_of(op), 0);
        sqe->flags |= IOSQE_FIXED_FILE;
    } else {
        io_uring_prep_read(sqe, loop_file->fd, op->buf, READ_BYTES, offset_of(op));
    }
    io_uring_sqe_set_data(sqe, op);
}

static uint64_t run_plain(void *state, uint64_t ops)
{
    struct ops *o = state;
    ops = begin_run(o, ops);
    for (unsigned i = 0; i < o->depth; i++) {
        issue_plain(&o->op[i]);
    }
    while (o->ended < ops) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        int ret = bench_ring_enter(&o->ring, 1);
        if (ret < 0 && ret != -EINTR) {
            bench_die("loop_bench: the plain loop: %s", strerror(-ret));
        }
        io_uring_for_each_cqe(&o->ring, head, cqe)
        {
            struct op *op = io_uring_cqe_get_data(cqe);
            seen++;
            if (end_op(op, cqe->res)) {
                issue_plain(op);
            }
        }
        io_uring_cq_advance(&o->ring, seen);
    }
    return o->right;
}

#define OURS(case, impl, n, open, run) \
    { \
        case, impl, "io_uring", n, open, close_aioctx, run, NULL                                   \
    }
#define PLAIN(case, impl, n, open) \
    { \
        case, impl, NULL, n, open, close_plain, run_plain, NULL                                    \
    }

const struct loop_side loop_op_sides[] = {
    OURS("nop", "aioctx", 1, open_aioctx, run_aioctx),
    PLAIN("nop", "liburing", 1, open_plain),
    OURS("nop", "aioctx", DEPTH_MAX, open_aioctx, run_aioctx),
    PLAIN("nop", "liburing", DEPTH_MAX, open_plain),
    OURS("read", "aioctx", 1, open_aioctx, run_aioctx),
    OURS("read", "aioctx-blk", 1, open_blk, run_blk),
    PLAIN("read", "liburing", 1, open_plain),
    PLAIN("read", "liburing-fixed", 1, open_fixed),
    OURS("read", "aioctx", DEPTH_MAX, open_aioctx, run_aioctx),
    OURS("read", "aioctx-blk", DEPTH_MAX, open_blk, run_blk),
    PLAIN("read", "liburing", DEPTH_MAX, open_plain),
    PLAIN("read", "liburing-fixed", DEPTH_MAX, open_fixed),
    { 0 },
};
