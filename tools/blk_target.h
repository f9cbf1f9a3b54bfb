/* SPDX-License-Identifier: MIT */
/*
 * The backends that the jobs work on, opened and found large enough.
 *
 * Jobs that name the same file or the same spec share one backend.  Each job has a part of it, from
 * its --offset on, and each of its iothreads an equal region of that, one behind the other.
 */
#ifndef TOOLS_BLK_TARGET_H
#define TOOLS_BLK_TARGET_H

#include <aioctx/aioctx.h>
#include <stdint.h>

#include "blk_options.h"
#include "blk_replay.h"
#include "blk_verify.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of one job. */
struct blk_target {
    BlockBackend *blk;
    char *spec;
    uint64_t units; /* of each iothread's region */
    enum verify_initial initial;
    struct blk_replay replay; /* with --replay */
    size_t *first;            /* of each iothread; see blk_replay_deal() */
    unsigned iothreads, iodepth;
    uint32_t buf_bytes; /* of the largest request */
};

/*
 * Opens what the jobs name, and reads the traces that they replay.
 * Returns 0, or -1 after one line on stderr that says what was expected.
 * Lifetime: blk_targets_close().
 */
int blk_targets_open(struct blk_target *targets, const struct blk_options *jobs, unsigned nr);

/* Bytes that the job's requests may touch. */
uint64_t blk_target_bytes(const struct blk_target *target, const struct blk_options *opt);

/* Closes the backends; waits for requests in flight.  Zeroed targets are ignored. */
void blk_targets_close(struct blk_target *targets, unsigned nr);

/* Frees the rest, which the iothreads use until they have ended. */
void blk_targets_free(struct blk_target *targets, unsigned nr);

#ifdef __cplusplus
}
#endif

#endif
