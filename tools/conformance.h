/* SPDX-License-Identifier: MIT */
/*
 * The conformance suite: what any block driver, through the core, must do.
 *
 * It uses the public interface only.  What is in the first 32 MiB of the backend is overwritten.
 */
#ifndef TOOLS_CONFORMANCE_H
#define TOOLS_CONFORMANCE_H

#include <aioctx/aioctx.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Zero it; what is not set has a default. */
typedef struct ConformanceOptions {
    const char *monitor; /* as AioContextOptions.monitor */
    uint64_t seed;       /* of the random choices */
    int64_t limit_ns;    /* what has not ended by then never will; 0: a minute */
    /* Has the device under the driver lose all that is not on stable storage, as when the power
     * fails, while nothing is in flight.  NULL: that cannot be done, and is not tried. */
    void (*lose_power)(void *opaque);
    void *opaque;
} ConformanceOptions;

/*
 * Opens @spec, runs every check and prints a line for each to @out, in the Test Anything Protocol:
 * "ok 3 - name", "not ok 3 - name" with lines that say why, or "ok 3 - name # SKIP why".  A request
 * that never ends is named; the suite then ends with "Bail out!", and what that request may still
 * use is neither closed nor freed.
 * Returns how many failed; -1 when the backend could not be opened or used, which is said on @out.
 * Thread: one without a current context; blocks.
 */
int conformance_run(const char *spec, const ConformanceOptions *opts, FILE *out);

#ifdef __cplusplus
}
#endif

#endif
