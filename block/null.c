/* SPDX-License-Identifier: MIT */
/*
 * The null driver: reads give zeroes, or with read-zeroes=off nothing, the rest is dropped; each
 * request takes latency-ns, measured by a timer in the piece on the list group of its context.  A
 * piece that waits is recalled at once.
 */
#include "block/block_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* In the room of each piece. */
typedef struct NullPiece {
    QEMUTimer timer;
    bool waiting; /* for its latency to pass */
} NullPiece;

typedef struct NullState {
    int64_t size;
    int64_t latency_ns;
    bool read_zeroes;
} NullState;

static const BlkOptDesc null_options[] = {
    { "size", BLK_OPT_SIZE, .help = "bytes; 1G" },
    { "latency-ns", BLK_OPT_NUMBER, .help = "each request takes that long; 0" },
    { "read-zeroes", BLK_OPT_SWITCH,
      .help = "off: reads leave the buffers as they are, for measuring what the rest costs; on" },
    { NULL },
};

static int null_open(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    NullState *s = malloc(sizeof(*s));

    if (!s) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    s->size = blk_opt_get(opts, "size", INT64_C(1) << 30);
    s->latency_ns = blk_opt_get(opts, "latency-ns", 0);
    s->read_zeroes = blk_opt_get(opts, "read-zeroes", true);
    *ret_state = s;
    return 0;
}

static void null_close(void *state)
{
    free(state);
}

static int64_t null_getlength(void *state)
{
    return ((NullState *)state)->size;
}

static void null_finish(BlkPiece *piece)
{
    const NullState *s = piece->state;
    bool has_length =
        piece->op == BLK_OP_READ || piece->op == BLK_OP_WRITE || piece->op == BLK_OP_STATUS;

    if (piece->op == BLK_OP_READ && s->read_zeroes) {
        for (int i = 0; i < piece->niov; i++) {
            if (piece->iov[i].iov_len > 0) {
                memset(piece->iov[i].iov_base, 0, piece->iov[i].iov_len);
            }
        }
    }
    piece->status = s->read_zeroes ? BDRV_BLOCK_ZERO : BDRV_BLOCK_DATA;
    blk_piece_done(piece, has_length ? (int64_t)piece->bytes : 0);
}

static void null_timer_cb(void *opaque)
{
    NullPiece *np = blk_piece_priv(opaque);

    np->waiting = false;
    null_finish(opaque);
}

static void null_piece_init(BlkPiece *piece, AioContext *ctx)
{
    NullPiece *np = blk_piece_priv(piece);

    aio_timer_init(ctx, &np->timer, QEMU_CLOCK_REALTIME, SCALE_NS, null_timer_cb, piece);
}

static void null_piece_fini(BlkPiece *piece)
{
    NullPiece *np = blk_piece_priv(piece);

    timer_deinit(&np->timer);
}

static void null_submit(BlkPiece *piece)
{
    NullState *s = piece->state;
    int64_t at;

    if (s->latency_ns == 0) {
        null_finish(piece);
        return;
    }
    if (__builtin_add_overflow(qemu_clock_get_ns(QEMU_CLOCK_REALTIME), s->latency_ns, &at)) {
        at = INT64_MAX - 1;
    }
    NullPiece *np = blk_piece_priv(piece);
    np->waiting = timer_mod_ns(&np->timer, at);
    if (!np->waiting) {
        blk_piece_done(piece, -ECANCELED); /* the context is being closed */
    }
}

static void null_cancel(BlkPiece *piece)
{
    NullPiece *np = blk_piece_priv(piece);

    if (np->waiting) { /* not what timer_del() says: a closing context disarms all by itself */
        np->waiting = false;
        timer_del(&np->timer);
        blk_piece_done(piece, -ECANCELED);
    }
}

const BlockDriver blk_null_driver = {
    .abi = BLOCK_DRIVER_ABI,
    .name = "null",
    .options = null_options,
    .piece_size = sizeof(NullPiece),
    .open = null_open,
    .close = null_close,
    .getlength = null_getlength,
    .piece_init = null_piece_init,
    .piece_fini = null_piece_fini,
    .submit = null_submit,
    .cancel = null_cancel,
};
