/* SPDX-License-Identifier: MIT */
/* The file driver's state, shared by its files. */
#ifndef BLOCK_FILE_INT_H
#define BLOCK_FILE_INT_H

#include "aio/thread_pool_int.h"
#include "block/driver_int.h"

struct io_uring_sqe;
typedef struct FileFixed FileFixed;
typedef struct FileFixedQueue FileFixedQueue;

typedef struct FileState {
    unsigned refs; /* atomic: one while it is open, and one of each call on the pool */
    int fd;
    int tail_fd;  /* without O_DIRECT, to read a tail of odd size; -1: there is none */
    int64_t tail; /* where that begins */
    int64_t length;
    bool direct;
    bool poll;                           /* transfers are polled for (file_pool.c) */
    bool locked;                         /* there is a lock to take back */
    bool is_device;                      /* a block device */
    bool no_nowait;                      /* atomic: reads cannot be limited to the page cache */
    uint32_t offset_align, memory_align; /* of direct I/O; else 1 */
    FileFixed *fixed;                    /* with registered=on; else NULL */
} FileState;

/* A piece's part of the thread pool. */
typedef struct FilePoolPiece {
    PoolWork work;
    BlkPiece *piece;
    int64_t extent_bytes; /* of a status */
} FilePoolPiece;

/* file.c: the fd that a read or a write goes to. */
int blk_file_fd(const BlkPiece *piece);
/* file.c: the mode of fallocate(2) for a discard or a zeroing. */
int blk_file_fallocate_mode(const BlkPiece *piece);
/* file.c: what the core is told of a call's result, which is a count or -errno. */
int blk_file_result(const BlkPiece *piece, int res);

/* file_pool.c */
void blk_file_pool_submit(FilePoolPiece *p, BlkPiece *piece, AioContext *ctx);
void blk_file_pool_cancel(FilePoolPiece *p);

/* file_open.c */
int blk_file_open(const BlkOptions *opts, void **ret_state, char **ret_why);
void blk_file_close(void *state);
/* Gives a reference back; the last one closes the fds.  Thread: any. */
void blk_file_put(FileState *s);

/* file_poll.c.  Whether transfers of the open file at @path can be polled for: 0, or -errno with a
 * message that says why not. */
int blk_file_check_poll(const FileState *s, const char *path, char **ret_why);

/* file_lock.c.  Locks the file as its options ask for.  Returns 0, or -errno with a message: -EBUSY
 * when another has it. */
int blk_file_lock(FileState *s, const BlkOptions *opts, char **ret_why);
void blk_file_unlock(FileState *s);

/* file_fixed.c */
FileFixed *blk_file_fixed_new(void);
void blk_file_fixed_put(FileFixed *fx);
int blk_file_register_buf(void *state, void *base, size_t bytes);
void blk_file_unregister_buf(void *state, void *base, size_t bytes);
int blk_file_queue_create(void *state, AioContext *ctx, void **ret_queue);
void blk_file_queue_destroy(void *queue);
/* Has an operation that names an fd and a buffer use what is registered; the piece has a queue. */
void blk_file_fixed_prep(struct io_uring_sqe *sqe, const BlkPiece *piece);

#endif
