/* SPDX-License-Identifier: MIT */
/*
 * Reading the counters of a running process: its file (<aioctx/observe.h>), and what /proc tells of
 * its threads.  The process does nothing for it, and need not be trusted: the file is read with
 * pread(2), and nothing in it is taken for a size.
 */
#ifndef TOOLS_TOP_SOURCE_H
#define TOOLS_TOP_SOURCE_H

#include <aioctx/observe.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct top_source {
    int pid;
    char comm[17]; /* the process's name */
    int proc;      /* /proc/PID: goes on naming that process, whoever gets its number */
    int file;
    int maps;             /* of the program that has the file; -1: cannot be had */
    bool other_namespace; /* the file's thread ids are not ours */
};

/* One context. */
struct top_row {
    unsigned index; /* of its slot */
    char thread[17];
    int tid;        /* of the home thread as we see it; 0: none, or it has ended */
    int64_t cpu_ns; /* what that has used; -1: unknown */
    AioStatsSlot slot;
};

struct top_sample {
    int64_t time_ns; /* CLOCK_MONOTONIC */
    unsigned rows;
    uint64_t without_slot;
    struct top_row *row;
};

/* Finds the file of @pid.  Returns 0, or -1 with a message for people, to be freed. */
int top_source_open(struct top_source *source, int pid, char **ret_why);
void top_source_close(struct top_source *source);

/* Returns 0, or -ESRCH when the process has ended, -ESTALE when it runs another program, or
 * -ENOMEM.  Frees what the sample held. */
int top_source_read(struct top_source *source, struct top_sample *sample);
void top_sample_clear(struct top_sample *sample);

/* The row of the same context in an earlier sample, or NULL. */
const struct top_row *top_sample_find(const struct top_sample *sample, const struct top_row *row);

#ifdef __cplusplus
}
#endif

#endif
