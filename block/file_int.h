/* SPDX-License-Identifier: MIT */
/* The file driver's state, shared by its two files. */
#ifndef BLOCK_FILE_INT_H
#define BLOCK_FILE_INT_H

#include "block/driver_int.h"

typedef struct FileState {
    int fd;
    int tail_fd;  /* without O_DIRECT, to read a tail of odd size; -1: there is none */
    int64_t tail; /* where that begins */
    int64_t length;
    bool direct;
    bool is_device;                      /* a block device */
    uint32_t offset_align, memory_align; /* of direct I/O; else 1 */
} FileState;

/* file_open.c */
int blk_file_open(const BlkOptions *opts, void **ret_state, char **ret_why);
void blk_file_close(void *state);

#endif
