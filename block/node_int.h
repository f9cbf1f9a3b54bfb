/* SPDX-License-Identifier: MIT */
/*
 * Nodes: a driver that is open, and below a filter the next one.
 *
 *   BlockBackend -> BlkNode (throttle) -> BlkNode (blkdebug) -> BlkNode (file)
 *
 * A piece for a node is a BlkPiece, the driver's room, and the piece for the node below, in one
 * block of memory.  A queue has one entry for each node, the topmost first.
 */
#ifndef BLOCK_NODE_INT_H
#define BLOCK_NODE_INT_H

#include "block/options_int.h"

struct BlkNode {
    const BlockDriver *drv;
    void *state;
    BlkNode *child; /* NULL: no filter */
    BlkLimits limits;
    int64_t length;
    size_t room; /* what follows the BlkPiece in memory */
};

/* node.c.  Opens the drivers of @opts, the lowest first.  Returns 0 or -errno with a message. */
int blk_node_open(BlkOptions *opts, BlkNode **ret_node, char **ret_why);
/* Closes the drivers; their queues may go later, and then the nodes' memory. */
void blk_node_close(BlkNode *node);
void blk_node_free(BlkNode *node);
int blk_node_check_context(const BlkNode *node, AioContext *ctx, char **ret_why);
void blk_node_drain(const BlkNode *node, bool begin);
/* Tells every driver, or none.  Returns 0 or -errno. */
int blk_node_register_buf(const BlkNode *node, void *base, size_t bytes);
/* Down to @end, which is not told; NULL: all. */
void blk_node_unregister_buf(const BlkNode *node, const BlkNode *end, void *base, size_t bytes);
/* Returns 0 or -errno. */
int blk_node_create_queues(const BlkNode *node, AioContext *ctx, void **queues);
void blk_node_destroy_queues(const BlkNode *node, void **queues);
/* Their context goes with pieces in flight. */
void blk_node_abandon_queues(const BlkNode *node, void *const *queues);
/* Asks for the pieces back whose cancel was asked for. */
void blk_node_settle_queues(const BlkNode *node, void *const *queues);
/* Whether a driver detaches. */
bool blk_node_detaches(const BlkNode *node);
/* A piece object's begin and end, its children's included; its memory is zero at first. */
void blk_node_init_piece(const BlkNode *node, BlkPiece *piece, void *const *queues,
                         AioContext *ctx);
void blk_node_fini_piece(BlkPiece *piece);

/* A child's piece has ended: its parent's driver goes on. */
void blk_piece_child_done(BlkPiece *child, int64_t ret);

#endif
