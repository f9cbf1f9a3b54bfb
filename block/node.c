/* SPDX-License-Identifier: MIT */
/* Nodes: opening drivers over one another, their queues, and handing pieces down. */
#include "block/node_int.h"

#include <errno.h>
#include <stdlib.h>

#include "block/block_int.h"
#include "rcu/util_int.h"

/* ---- Opening and closing --------------------------------------------------------------------- */

static size_t own_room(const BlockDriver *drv)
{
    return (drv->piece_size + 15) & ~(size_t)15;
}

static bool is_power_of_2(uint32_t n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* A filter hands its pieces on as they are: so they keep the limits below too, whatever it says. */
static void keep_limits_below(BlkLimits *l, const BlkLimits *below)
{
    l->request_alignment = max_u32(l->request_alignment, below->request_alignment);
    l->memory_alignment = max_u32(l->memory_alignment, below->memory_alignment);
    l->max_transfer = min_u32(l->max_transfer, below->max_transfer) & ~(l->request_alignment - 1);
    l->max_iov = min_u32(l->max_iov, below->max_iov);
}

/* Its last piece has to end where one may below. */
static int check_length(const BlkNode *node, char **ret_why)
{
    const BlkNode *child = node->child;

    if (node->length == child->length ||
        (node->length < child->length && node->length % child->limits.request_alignment == 0)) {
        return 0;
    }
    return blk_fail(ret_why, EINVAL,
                    "driver '%s' says length %lld over a '%s' of %lld bytes; expected is that one, "
                    "or a smaller multiple of %u",
                    node->drv->name, (long long)node->length, child->drv->name,
                    (long long)child->length, child->limits.request_alignment);
}

/* What the driver says of itself, once it is open. */
static int take_limits(BlkNode *node, char **ret_why)
{
    const BlockDriver *drv = node->drv;
    BlkLimits *l = &node->limits;

    *l = node->child ? node->child->limits
                     : (BlkLimits){ .request_alignment = 1,
                                    .memory_alignment = 1,
                                    .max_transfer = 1u << 30,
                                    .max_iov = 1024 };
    if (drv->get_limits) {
        drv->get_limits(node->state, l);
    }
    node->length = drv->getlength ? drv->getlength(node->state)
                   : node->child  ? node->child->length
                                  : 0;
    node->room = own_room(drv) + (node->child ? sizeof(BlkPiece) + node->child->room : 0);
    if (!is_power_of_2(l->request_alignment) || l->request_alignment > BLK_ALIGN_MAX ||
        !is_power_of_2(l->memory_alignment) || l->max_iov == 0 || l->max_transfer == 0 ||
        l->max_transfer % l->request_alignment || node->length < 0) {
        return blk_fail(ret_why, EINVAL,
                        "driver '%s' says length %lld, request_alignment %u, memory_alignment %u, "
                        "max_transfer %u, max_iov %u; expected are a length of 0 or more, powers "
                        "of 2 (the first up to %d), a multiple of request_alignment, and 1 or more",
                        drv->name, (long long)node->length, l->request_alignment,
                        l->memory_alignment, l->max_transfer, l->max_iov, BLK_ALIGN_MAX);
    }
    if (!node->child) {
        return 0;
    }
    keep_limits_below(l, &node->child->limits);
    if (l->max_transfer == 0) {
        return blk_fail(ret_why, EINVAL,
                        "driver '%s' says request_alignment %u, but transfers of '%s' below have "
                        "%u bytes at most",
                        drv->name, l->request_alignment, node->child->drv->name,
                        node->child->limits.max_transfer);
    }
    return check_length(node, ret_why);
}

void blk_node_close(BlkNode *node)
{
    for (; node; node = node->child) {
        node->drv->close(node->state);
    }
}

void blk_node_free(BlkNode *node)
{
    BlkNode *below;

    for (; node; node = below) {
        below = node->child;
        free(node);
    }
}

static void close_and_free(BlkNode *node)
{
    blk_node_close(node);
    blk_node_free(node);
}

int blk_node_open(BlkOptions *opts, BlkNode **ret_node, char **ret_why)
{
    BlkNode *node, *child = NULL;
    int ret = opts->below ? blk_node_open(opts->below, &child, ret_why) : 0;

    if (ret < 0) {
        return ret;
    }
    node = calloc(1, sizeof(*node));
    if (!node) {
        close_and_free(child);
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    node->drv = opts->drv;
    node->child = opts->child = child;
    ret = opts->drv->open(opts, &node->state, ret_why);
    if (ret < 0) {
        free(node);
        close_and_free(child);
        return ret;
    }
    ret = take_limits(node, ret_why);
    if (ret < 0) {
        close_and_free(node);
        return ret;
    }
    *ret_node = node;
    return 0;
}

int64_t blk_node_getlength(const BlkNode *node)
{
    return node->length;
}

void blk_node_get_limits(const BlkNode *node, BlkLimits *ret_limits)
{
    *ret_limits = node->limits;
}

int blk_node_check_context(const BlkNode *node, AioContext *ctx, char **ret_why)
{
    int ret = 0;

    for (; node && ret == 0; node = node->child) {
        if (node->drv->check_context) {
            ret = node->drv->check_context(node->state, ctx, ret_why);
        }
    }
    return ret;
}

bool blk_node_detaches(const BlkNode *node)
{
    bool does = false;

    for (; node; node = node->child) {
        does |= node->drv->detaches;
    }
    return does;
}

void blk_node_drain(const BlkNode *node, bool begin)
{
    for (; node; node = node->child) {
        if (node->drv->drain) {
            node->drv->drain(node->state, begin);
        }
    }
}

void blk_node_unregister_buf(const BlkNode *node, const BlkNode *end, void *base, size_t bytes)
{
    for (; node != end; node = node->child) {
        if (node->drv->unregister_buf) {
            node->drv->unregister_buf(node->state, base, bytes);
        }
    }
}

int blk_node_register_buf(const BlkNode *node, void *base, size_t bytes)
{
    for (const BlkNode *n = node; n; n = n->child) {
        int ret = n->drv->register_buf ? n->drv->register_buf(n->state, base, bytes) : 0;

        if (ret < 0) {
            blk_node_unregister_buf(node, n, base, bytes);
            return ret;
        }
    }
    return 0;
}

/* ---- Queues and pieces ----------------------------------------------------------------------- */

void blk_node_destroy_queues(const BlkNode *node, void **queues)
{
    for (; node; node = node->child, queues++) {
        if (*queues && node->drv->queue_destroy) {
            node->drv->queue_destroy(*queues);
        }
        *queues = NULL;
    }
}

void blk_node_abandon_queues(const BlkNode *node, void *const *queues)
{
    for (; node; node = node->child, queues++) {
        if (*queues && node->drv->queue_abandon) {
            node->drv->queue_abandon(*queues);
        }
    }
}

void blk_node_settle_queues(const BlkNode *node, void *const *queues)
{
    for (; node; node = node->child, queues++) {
        if (*queues && node->drv->queue_settle) {
            node->drv->queue_settle(*queues);
        }
    }
}

int blk_node_create_queues(const BlkNode *node, AioContext *ctx, void **queues)
{
    int ret = 0, i = 0;

    for (const BlkNode *n = node; n && ret == 0; n = n->child, i++) {
        queues[i] = NULL;
        if (n->drv->queue_create) {
            ret = n->drv->queue_create(n->state, ctx, &queues[i]);
        }
    }
    if (ret < 0) {
        queues[i - 1] = NULL;
        blk_node_destroy_queues(node, queues);
    }
    return ret;
}

void blk_node_init_piece(const BlkNode *node, BlkPiece *piece, void *const *queues, AioContext *ctx)
{
    piece->drv = node->drv;
    piece->state = node->state;
    piece->queue = *queues;
    if (node->child) {
        piece->child = (BlkPiece *)((char *)blk_piece_priv(piece) + own_room(node->drv));
        piece->child->parent = piece;
        blk_node_init_piece(node->child, piece->child, queues + 1, ctx);
    }
    if (node->drv->piece_init) {
        node->drv->piece_init(piece, ctx);
    }
}

void blk_node_fini_piece(BlkPiece *piece)
{
    for (; piece; piece = piece->child) {
        if (piece->drv->piece_fini) {
            piece->drv->piece_fini(piece);
        }
    }
}

/* ---- Handing down ---------------------------------------------------------------------------- */

static BlkPiece *copy_to_child(BlkPiece *piece)
{
    BlkPiece *child = piece->child;

    child->offset = piece->offset;
    child->bytes = piece->bytes;
    child->iov = piece->iov;
    child->niov = piece->niov;
    child->flags = piece->flags;
    child->op = piece->op;
    child->goes_on = piece->goes_on;
    return child;
}

void blk_piece_pass(BlkPiece *piece)
{
    BlkPiece *child = copy_to_child(piece);

    child->drv->submit(child);
}

/* As many whole buffers as fit, or the beginning of the first. */
void blk_piece_pass_part(BlkPiece *piece, uint64_t bytes)
{
    BlkPiece *child = copy_to_child(piece);
    uint64_t whole = 0;
    int n = 0;

    if (bytes < piece->bytes) {
        while (n < piece->niov && whole + piece->iov[n].iov_len <= bytes) {
            whole += piece->iov[n++].iov_len;
        }
        if (whole == 0) {
            while (piece->iov[n].iov_len == 0) {
                n++;
            }
            child->local_iov = (struct iovec){ piece->iov[n].iov_base, bytes };
            child->iov = &child->local_iov;
            whole = bytes;
            n = 1;
        }
        child->niov = n;
        child->bytes = whole;
    }
    child->drv->submit(child);
}

void blk_piece_cancel_child(BlkPiece *piece)
{
    BlkPiece *child = piece->child;

    if (child->drv->cancel) {
        child->drv->cancel(child);
    }
}

void blk_piece_child_done(BlkPiece *child, int64_t ret)
{
    BlkPiece *piece = child->parent;

    piece->status = child->status;
    if (piece->drv->child_done) {
        piece->drv->child_done(piece, ret);
    } else {
        blk_piece_done(piece, ret);
    }
}
