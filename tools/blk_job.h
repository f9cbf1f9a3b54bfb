/* SPDX-License-Identifier: MIT */
/*
 * One iothread's share of a job: it issues requests, times them and counts what became of them.
 *
 *      new -> IDLE -> layout -> RUNNING -> DONE -> run -> RUNNING -> DONE -> free
 *                        (layout is optional)              \-> STUCK: requests that never end
 *
 * The main thread starts each phase and is told through a notifier when it has ended; all else runs
 * on the iothread, and nothing is allocated there but the chunks of a trace.
 *
 * Open loop: the schedule is start + phase + k * interval, or the times of a trace, whatever
 * becomes of the requests, and a timer fires for each moment of it.  Two cursors walk it: `due`
 * counts the moments that the timer has seen, `issued` those that found a free slot.  In between
 * lies the backlog; its requests' latency counts from their moments all the same, so a stall cannot
 * hide ("coordinated omission").
 */
#ifndef TOOLS_BLK_JOB_H
#define TOOLS_BLK_JOB_H

#include <aioctx/aioctx.h>
#include <stdbool.h>
#include <stdint.h>

#include "blk_mix.h"
#include "blk_options.h"
#include "blk_replay.h"
#include "blk_trace.h"
#include "blk_verify.h"
#include "hist.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of an open loop: a request that begins later than this after its moment began late. */
#define BLK_LATE_NS (INT64_C(1) * 1000000)

enum blk_job_state { JOB_IDLE, JOB_RUNNING, JOB_DONE, JOB_STUCK };

/* Counted by live_add(); sums, so that a total over the iothreads is a sum of the fields. */
struct blk_counters {
    uint64_t ended[BLK_KINDS]; /* well */
    uint64_t bytes_read, bytes_written;
    uint64_t missed;     /* ended with -ETIMEDOUT */
    uint64_t cancelled;  /* ended with -ECANCELED */
    uint64_t late;       /* ended well, but after the deadline */
    uint64_t errors;     /* ended with another error */
    uint64_t checked;    /* reads whose content was checked */
    uint64_t unknown;    /* reads of content that nothing was known about */
    uint64_t mismatches; /* reads whose content was wrong */
    uint64_t begun_late; /* open loop: began more than BLK_LATE_NS after their moment */
    uint64_t unissued;   /* open loop: were scheduled, but never issued */
    uint64_t laid_out;   /* bytes written before the run */
};

/* The first request that failed. */
struct blk_failure {
    const char *what; /* its kind, or "drain"; NULL: none failed */
    int64_t offset_bytes, bytes;
    int error; /* positive errno */
};

struct blk_results {
    struct blk_counters counters;   /* live */
    struct hist latency[BLK_KINDS]; /* live */
    struct hist lateness;           /* live; of the timers that issue; open loop only */
    /* The rest is for when the job is DONE. */
    int64_t start_ns, end_ns; /* the end is that of the last request */
    AioContextStats stats;    /* what the run added */
    struct blk_failure failure;
};

struct blk_job_config {
    const struct blk_options *opt;
    const char *name; /* of the row: "io0", "readers/io0" */
    BlockBackend *blk;
    AioContext *ctx;
    EventNotifier *news;       /* set when a phase has ended */
    const char *message_start; /* goes before messages on stderr: clears a progress line */
    unsigned index;            /* of the iothread in its job, from 0 */
    unsigned iothreads;        /* of its job */
    unsigned iodepth;
    uint32_t buf_bytes;     /* of the largest request */
    uint64_t random_stream; /* one for each */
    enum verify_initial initial;
    int64_t offset_bytes; /* of the region */
    uint64_t units;       /* of the region; enough for iodepth requests (blk_target.h) */
    uint64_t ios;         /* this share; UINT64_MAX: no limit */
    uint64_t run_id;
    const struct blk_replay_request *requests; /* of a trace, or NULL; by time */
    struct blk_trace_stream *trace;            /* or NULL */
};

struct blk_job;

/* Returns NULL with errno ENOMEM.  Lifetime: blk_job_free(). */
struct blk_job *blk_job_new(const struct blk_job_config *config);

/* Thread: any, once the iothread has been joined: a blk_job_stop() may still be on its way. */
void blk_job_free(struct blk_job *job);

/* Writes every block of the region once.  Thread: any, while no phase runs. */
void blk_job_layout(struct blk_job *job);

/* Runs the measurement, from @start_ns on (QEMU_CLOCK_REALTIME), which is best a little ahead, so
 * that all jobs begin together.  Thread: any, while no phase runs. */
void blk_job_run(struct blk_job *job, int64_t start_ns);

/* Ends the phase that runs early, once its requests have ended.  Thread: any. */
void blk_job_stop(struct blk_job *job);

/* Thread: any.  What is DONE shows all that the job wrote. */
enum blk_job_state blk_job_state(const struct blk_job *job);

/* Thread: any; see the fields. */
const struct blk_results *blk_job_results(const struct blk_job *job);
const char *blk_job_name(const struct blk_job *job);

#ifdef __cplusplus
}
#endif

#endif
