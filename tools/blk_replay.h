/* SPDX-License-Identifier: MIT */
/*
 * Traces read back, to be replayed: those that blk_trace.h describes, and fio's iologs of version 2
 * and 3 (of one file; their syncs become flushes, their trims discards).
 */
#ifndef TOOLS_BLK_REPLAY_H
#define TOOLS_BLK_REPLAY_H

#include <stddef.h>
#include <stdint.h>

#include "blk_mix.h"

#ifdef __cplusplus
extern "C" {
#endif

struct blk_replay_request {
    int64_t time_ns;
    int64_t offset, bytes;
    int64_t deadline_ns; /* counted from time_ns; -1: none */
    uint32_t line;       /* of the file */
    uint16_t stream;
    uint8_t kind;
    uint8_t flags; /* as of a record of blk_trace.h */
};

struct blk_replay {
    struct blk_replay_request *requests; /* by time */
    size_t nr;
    unsigned streams;  /* threads that the trace is of */
    int64_t span_ns;   /* the time of the last one */
    int64_t end;       /* behind the last byte that is touched */
    uint32_t end_line; /* where that is */
    int64_t longest;   /* read or write, bytes */
    struct blk_mix mix;
};

/* Reads @path.  Returns 0, or -errno with a message in *@ret_why (to be freed; NULL when out of
 * memory) that names the file and the line.  Lifetime: blk_replay_free(). */
int blk_replay_load(const char *path, struct blk_replay *ret_replay, char **ret_why);
void blk_replay_free(struct blk_replay *replay);

/* Deals the requests out to @threads: those of one stream go to one thread, in order.  @ret_first
 * has room for @threads + 1: thread i then has requests[ret_first[i]] up to ret_first[i + 1]. 
 * Returns 0 or -ENOMEM. */
int blk_replay_deal(struct blk_replay *replay, unsigned threads, size_t *ret_first);

#ifdef __cplusplus
}
#endif

#endif
