/* SPDX-License-Identifier: MIT */
/* A histogram of latencies, drawn with characters. */
#ifndef TOOLS_BLK_PLOT_H
#define TOOLS_BLK_PLOT_H

#include <stdbool.h>
#include <stdio.h>

#include "hist.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Draws @h: a row for each of at most 20 ranges of equal ratio, with a bar for its share, the share
 * and the sum of the shares up to there.  @unicode: bars of blocks, in eighths of a column, else of
 * '#'.  Nothing for an empty one.  Errors stay with the stream.
 */
void blk_plot(const struct hist *h, const char *title, bool unicode, FILE *stream);

/* Whether the locale that the environment names has UTF-8. */
bool blk_plot_unicode(void);

#ifdef __cplusplus
}
#endif

#endif
