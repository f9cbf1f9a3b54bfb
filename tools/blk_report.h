/* SPDX-License-Identifier: MIT */
/* What aioctx-blk tells at the end: a table for people, and the same as JSON. */
#ifndef TOOLS_BLK_REPORT_H
#define TOOLS_BLK_REPORT_H

#include <stdio.h>

#include "blk_job.h"
#include "blk_options.h"

#ifdef __cplusplus
extern "C" {
#endif

struct blk_report {
    const struct blk_options *opt;
    const char *spec; /* of the backend */
    const char *driver;
    const char *monitor; /* of the contexts */
    const char *status;  /* "ok", "error", "mismatch", "interrupted" or "stuck" */
    uint64_t size_bytes; /* of all regions together */
    unsigned threads;
    struct blk_job *const *jobs; /* all done */
};

/* Prints the table.  Errors stay with the stream. */
void blk_report_table(const struct blk_report *report, FILE *stream);

/* Writes one JSON object; docs/aioctx-blk.md explains the keys.  Errors stay with the stream. */
void blk_report_json(const struct blk_report *report, FILE *stream);

#ifdef __cplusplus
}
#endif

#endif
