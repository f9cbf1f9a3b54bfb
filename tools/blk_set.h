/* SPDX-License-Identifier: MIT */
/* All jobs of a run: their backends, iothreads and trace. */
#ifndef TOOLS_BLK_SET_H
#define TOOLS_BLK_SET_H

#include "blk_job.h"
#include "blk_options.h"
#include "blk_report.h"
#include "blk_target.h"
#include "blk_trace.h"

#ifdef __cplusplus
extern "C" {
#endif

struct blk_set {
    const struct blk_command *command;
    EventNotifier *news;           /* set when a job has ended its phase, or the trace grows long */
    const char *message_start;     /* as in struct blk_job_config */
    struct blk_target *targets;    /* of each job of the command */
    struct blk_report_job *groups; /* likewise: which threads are its */
    IOThread **threads;
    struct blk_job **jobs; /* of each thread */
    char **names;          /* of each thread's row */
    unsigned made;         /* how many threads, and jobs, there are */
    struct blk_trace *trace;
};

/*
 * Opens the backends and makes threads and jobs.  Returns 0 or the exit status (1 or 2), after a
 * message.  Lifetime: blk_set_free(), also after a failure.
 */
int blk_set_make(struct blk_set *set);

/* Which of the jobs of the command thread @i is of. */
const struct blk_options *blk_set_options(const struct blk_set *set, unsigned i);

/* Bytes that --layout writes, all jobs together. */
uint64_t blk_set_layout_bytes(const struct blk_set *set);

/* Writes the rest of the trace.  @all: no request is in flight any more.  Returns whether all of
 * it could be written, after a message. */
bool blk_set_finish_trace(struct blk_set *set, bool all);

void blk_set_free(struct blk_set *set);

#ifdef __cplusplus
}
#endif

#endif
