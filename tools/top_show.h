/* SPDX-License-Identifier: MIT */
/* What aioctx-top prints of two samples: a table for people, or JSON. */
#ifndef TOOLS_TOP_SHOW_H
#define TOOLS_TOP_SHOW_H

#include <stdio.h>

#include "top_source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A line for each context, with what it did a second since @before.  @columns: lines are cut there;
 * 0: nowhere.  @line_end: what ends each line. */
void top_show_table(FILE *out, const struct top_source *source, const struct top_sample *before,
                    const struct top_sample *now, unsigned columns, const char *line_end);

/* One JSON object, with a newline. */
void top_show_json(FILE *out, const struct top_source *source, const struct top_sample *before,
                   const struct top_sample *now);

#ifdef __cplusplus
}
#endif

#endif
