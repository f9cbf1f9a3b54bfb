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

/* A job, and the rows that are its iothreads'. */
struct blk_report_job {
    const struct blk_options *opt;
    const char *spec; /* of the backend */
    const char *driver;
    const char *monitor;   /* of the contexts */
    uint64_t size_bytes;   /* of all regions together */
    unsigned first, count; /* of blk_report.rows */
    unsigned iodepth;
    uint64_t trace_requests; /* of a replay; else 0 */
};

struct blk_report {
    const struct blk_command *command;
    const char *status; /* "ok", "error", "mismatch", "interrupted" or "stuck" */
    const struct blk_report_job *jobs;
    unsigned nr_jobs;
    struct blk_job *const *rows; /* all done */
    unsigned nr_rows;
};

/* Prints the table.  Errors stay with the stream. */
void blk_report_table(const struct blk_report *report, FILE *stream);

/* Draws the latencies of each job. */
void blk_report_plot(const struct blk_report *report, FILE *stream);

/* Writes one JSON object; docs/aioctx-blk.md explains the keys.  Errors stay with the stream. */
void blk_report_json(const struct blk_report *report, FILE *stream);

#ifdef __cplusplus
}
#endif

#endif
