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

/*
 * Opens @spec, runs every check and prints a line for each to @out, in the Test Anything Protocol:
 * "ok 3 - name", "not ok 3 - name" with lines that say why, or "ok 3 - name # SKIP why".
 * @monitor: as AioContextOptions.monitor.  @seed: of the random choices.
 * Returns how many failed; -1 when the backend could not be opened or used, which is said on @out.
 * Thread: one without a current context; blocks.
 */
int conformance_run(const char *spec, const char *monitor, uint64_t seed, FILE *out);

#ifdef __cplusplus
}
#endif

#endif
