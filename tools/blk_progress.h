/* SPDX-License-Identifier: MIT */
/*
 * The line that shows on a terminal while aioctx-blk runs.
 *
 * It is made on the main thread from what the iothreads count anyway: they do nothing for it.
 */
#ifndef TOOLS_BLK_PROGRESS_H
#define TOOLS_BLK_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "blk_job.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BLK_PROGRESS_INTERVAL_NS (INT64_C(300) * 1000000)
#define BLK_PROGRESS_CLEAR "\r\033[K" /* goes to the line's begin and wipes it */

/* Zero it. */
struct blk_progress {
    struct hist before, now;
    uint64_t ended_before, bytes_before;
    int64_t shown_ns; /* 0: not yet */
};

/* How long it goes on. */
struct blk_progress_goal {
    int64_t end_ns; /* of QEMU_CLOCK_REALTIME; 0: none is known */
    uint64_t ios;   /* 0: none is known */
};

/* Writes the line to stderr, over the one before: rate and latency since then. */
void blk_progress_show(struct blk_progress *progress, struct blk_job *const *jobs, unsigned threads,
                       const struct blk_progress_goal *goal, int64_t start_ns);

/* The same while blocks are laid out; @bytes: how much there is. */
void blk_progress_show_layout(struct blk_job *const *jobs, unsigned threads, uint64_t bytes);

/* Wipes the line. */
void blk_progress_clear(void);

#ifdef __cplusplus
}
#endif

#endif
