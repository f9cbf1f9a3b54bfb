/* SPDX-License-Identifier: MIT */
/* Between a job's phases (blk_job.c) and its requests (blk_issue.c). */
#ifndef TOOLS_BLK_JOB_INT_H
#define TOOLS_BLK_JOB_INT_H

#include "blk_job.h"
#include "blk_random.h"
#include "blk_schedule.h"

struct slot {
    struct blk_job *job;
    struct slot *next_free;
    BlockAIOCB *acb; /* NULL: not in flight */
    void *buf;
    QEMUIOVector qiov;
    BlkExtent extent;
    uint64_t unit;  /* where it begins in the region, */
    uint32_t units; /* and how many it covers; 0: they are not kept track of */
    enum blk_kind kind;
    unsigned flags; /* of a trace's record */
    int64_t offset_bytes, bytes;
    int64_t from_ns;     /* latency counts from here */
    int64_t deadline_ns; /* -1: none of ours */
};

struct blk_job {
    struct blk_job_config config;
    const struct blk_options *opt;
    uint32_t unit_bytes;
    bool tracks; /* which units have requests in flight: no two may overlap */
    QEMUBH *begin_bh, *stop_bh;
    QEMUTimer *tick;  /* open loop: the next moment of the schedule; closed loop: the start */
    QEMUTimer *limit; /* the end of the ramp, of the run, then of the patience with what is left */
    struct slot *slots;
    char *buffers;
    uint64_t *busy; /* a bit a unit: has a request in flight; NULL: not tracked */
    struct verify_region region;
    int state; /* enum blk_job_state; atomic: release when a phase ends, for blk_job_state() */

    /* Set by the main thread between phases. */
    bool layout;
    int64_t start_ns;
    int64_t measure_ns; /* what is from before it belongs to the ramp */
    int64_t end_ns;     /* INT64_MAX: no limit */

    /* Home thread, while a phase runs. */
    struct slot *free_slots;
    struct blk_random random;
    struct blk_places places;
    struct blk_schedule due_at, issue_at; /* the two cursors; not of a replay */
    uint64_t quota, due, issued;
    uint64_t layout_unit; /* the next one */
    unsigned in_flight, flushes_in_flight;
    uint64_t ended, ended_before; /* requests; when the limit was last set */
    unsigned writes_since_flush;
    bool ramping;    /* nothing has been measured yet */
    bool ramp_limit; /* `limit` stands at the end of the ramp */
    bool stopping, cancelled;
    bool flush_wanted;
    BlockAIOCB *flush_acb;
    int64_t flush_from_ns;
    AioContextStats stats_before;
    struct blk_results results;
};

/* ---- Phases ---------------------------------------------------------------------------------- */

/* The phase issues no more. */
void blk_job_begin_stop(struct blk_job *job);
/* Ends it when nothing is in flight. */
void blk_job_finish_if_drained(struct blk_job *job);
void blk_job_note_failure(struct blk_job *job, const char *what, int64_t offset_bytes,
                          int64_t bytes, int error);
/* From now on it is measured; the quota counts from @done moments or requests. */
void blk_job_end_ramp(struct blk_job *job, uint64_t done);

/* ---- Requests -------------------------------------------------------------------------------- */

static inline bool blk_job_is_open_loop(const struct blk_job *job)
{
    return !job->layout && (job->config.requests ? job->opt->replay_speed > 0 : job->opt->rate > 0);
}

/* The next moment that the timer has not seen. */
int64_t blk_job_next_due(const struct blk_job *job);
/* Counts the moments of the schedule that have come by @now. */
void blk_job_advance_due(struct blk_job *job, int64_t now, bool record_lateness);
/* Issues what may be issued now. */
void blk_job_pump(struct blk_job *job, int64_t now);

#endif
