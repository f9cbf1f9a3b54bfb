/* SPDX-License-Identifier: MIT */
/* The backend that aioctx-blk works on, opened and found large enough. */
#ifndef TOOLS_BLK_TARGET_H
#define TOOLS_BLK_TARGET_H

#include <aioctx/aioctx.h>
#include <stdint.h>

#include "blk_options.h"
#include "blk_verify.h"

#ifdef __cplusplus
extern "C" {
#endif

struct blk_target {
    BlockBackend *blk;
    char *spec;
    uint64_t blocks; /* of each iothread's region; they lie one behind the other from offset 0 */
    enum verify_initial initial;
};

/*
 * Opens what the options name.
 * Returns 0, or -1 after one line on stderr that says what was expected.
 * Lifetime: blk_target_close().
 */
int blk_target_open(struct blk_target *ret_target, const struct blk_options *opt);

/* Waits for requests in flight.  A zeroed target is ignored. */
void blk_target_close(struct blk_target *target);

#ifdef __cplusplus
}
#endif

#endif
