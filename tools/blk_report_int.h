/* SPDX-License-Identifier: MIT */
/* Between the table (blk_report.c) and JSON (blk_report_json.c): rows. */
#ifndef TOOLS_BLK_REPORT_INT_H
#define TOOLS_BLK_REPORT_INT_H

#include "blk_report.h"

/* One row: an iothread, a job, or the total. */
struct blk_row {
    const char *name;
    double seconds;
    struct blk_counters counters;
    struct hist kinds[BLK_KINDS]; /* latency, of each kind and of all */
    struct hist latency, lateness;
    AioContextStats stats;
};

/* Adds up @count of the report's rows from @first on. */
void blk_row_make(struct blk_row *row, const struct blk_report *report, const char *name,
                  unsigned first, unsigned count);

/* Requests that ended well, flushes apart; the same a second. */
uint64_t blk_row_ios(const struct blk_row *row);
double blk_row_iops(const struct blk_row *row);
double blk_row_mib_per_s(const struct blk_row *row);

/* What the loop called itself, and what others called to wake it, for each request that ended. */
double blk_row_syscalls_per_io(const struct blk_row *row);

/* Wake-ups saved.  One that began before the run and was sent in it counts as sent alone. */
uint64_t blk_row_saved(const struct blk_row *row);

#endif
