/* SPDX-License-Identifier: MIT */
#include "blk_set.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

static uint64_t make_run_id(void)
{
    struct timespec ts;
    uint64_t id;

    if (getrandom(&id, sizeof(id), 0) != (ssize_t)sizeof(id)) {
        clock_gettime(CLOCK_MONOTONIC, &ts);
        id = (uint64_t)ts.tv_nsec ^ (uint64_t)getpid() << 48;
    }
    return id;
}

const struct blk_options *blk_set_options(const struct blk_set *set, unsigned i)
{
    unsigned group = 0;

    while (i >= set->groups[group].first + set->groups[group].count) {
        group++;
    }
    return set->groups[group].opt;
}

uint64_t blk_set_layout_bytes(const struct blk_set *set)
{
    uint64_t bytes = 0;

    for (unsigned g = 0; g < set->command->nr_jobs; g++) {
        const struct blk_options *opt = &set->command->jobs[g];

        bytes += opt->layout ? blk_target_bytes(&set->targets[g], opt) : 0;
    }
    return bytes;
}

/* ---- One iothread ---------------------------------------------------------------------------- */

/* Returns 0 or the exit status, after a message. */
static int make_thread(struct blk_set *set, unsigned g, unsigned i)
{
    const struct blk_options *opt = set->groups[g].opt;
    IOThreadOptions io_opts = { .context.monitor = opt->monitor, .cpus = opt->cpus };
    char name[16], *why = NULL;
    int status;

    snprintf(name, sizeof(name), "io%u", i);
    set->threads[i] = iothread_new(name, &io_opts);
    if (!set->threads[i] && errno == EINVAL) {
        return EXIT_USAGE; /* --cpus or AIOCTX_FDMON: the library has said so */
    }
    if (!set->threads[i]) {
        status = opt->monitor ? EXIT_USAGE : EXIT_FAILED;
        blk_complain_of(opt, "cannot start iothread %s%s%s: %s", name,
                        opt->monitor ? " with --monitor " : "", opt->monitor ? opt->monitor : "",
                        strerror(errno));
        return status;
    }
    if (blk_check_context(set->targets[g].blk, iothread_get_aio_context(set->threads[i]), &why) <
        0) {
        blk_complain_of(opt, "%s", why ? why : "the backend cannot be used with this monitor");
        free(why);
        iothread_destroy(set->threads[i]);
        return EXIT_USAGE;
    }
    return 0;
}

static int out_of_memory(const struct blk_set *set, unsigned g, unsigned i)
{
    blk_complain_of(set->groups[g].opt,
                    "out of memory for iothread io%u: expected a smaller --iodepth, --bs or --size",
                    i);
    return EXIT_FAILED;
}

/* Thread number @i, which is number @index of job @g. */
static int make_job(struct blk_set *set, unsigned g, unsigned i, uint64_t run_id)
{
    const struct blk_report_job *group = &set->groups[g];
    const struct blk_target *target = &set->targets[g];
    const struct blk_options *opt = group->opt;
    unsigned index = i - group->first;
    uint64_t share = opt->ios / group->count + (index < opt->ios % group->count);
    struct blk_job_config config = {
        .opt = opt,
        .blk = target->blk,
        .ctx = iothread_get_aio_context(set->threads[i]),
        .news = set->news,
        .message_start = set->message_start,
        .index = index,
        .iothreads = group->count,
        .iodepth = target->iodepth,
        .buf_bytes = target->buf_bytes,
        .random_stream = (uint64_t)g << 32 | index,
        .initial = target->initial,
        .offset_bytes = (int64_t)(opt->offset_bytes + index * target->units * opt->bs.unit),
        .units = target->units,
        .ios = opt->ios ? share : UINT64_MAX,
        .run_id = run_id,
    };

    if (asprintf(&set->names[i], "%s%sio%u", opt->name ? opt->name : "", opt->name ? "/" : "",
                 index) < 0) {
        set->names[i] = NULL;
        return out_of_memory(set, g, i);
    }
    config.name = set->names[i];
    if (set->trace && !(config.trace = blk_trace_stream_new(set->trace, config.name))) {
        return out_of_memory(set, g, i);
    }
    if (opt->replay) {
        config.requests = target->replay.requests + target->first[index];
        config.ios = target->first[index + 1] - target->first[index];
    }
    set->jobs[i] = blk_job_new(&config);
    return set->jobs[i] ? 0 : out_of_memory(set, g, i);
}

static int make_threads(struct blk_set *set)
{
    uint64_t run_id = make_run_id();

    for (unsigned g = 0; g < set->command->nr_jobs; g++) {
        const struct blk_report_job *group = &set->groups[g];

        for (; set->made < group->first + group->count; set->made++) {
            int status = make_thread(set, g, set->made);

            if (status != 0) {
                return status;
            }
            status = make_job(set, g, set->made, run_id);
            if (status != 0) {
                iothread_destroy(set->threads[set->made]);
                free(set->names[set->made]);
                return status;
            }
        }
    }
    return 0;
}

/* ---- All of them ----------------------------------------------------------------------------- */

/* Deals the threads out to the jobs. */
static unsigned make_groups(struct blk_set *set)
{
    unsigned threads = 0;

    for (unsigned g = 0; g < set->command->nr_jobs; g++) {
        const struct blk_options *opt = &set->command->jobs[g];
        const struct blk_target *target = &set->targets[g];

        set->groups[g] = (struct blk_report_job){
            .opt = opt,
            .spec = target->spec,
            .driver = blk_get_driver_name(target->blk),
            .size_bytes = blk_target_bytes(target, opt),
            .first = threads,
            .count = target->iothreads,
            .iodepth = target->iodepth,
            .trace_requests = target->replay.nr,
        };
        threads += target->iothreads;
    }
    return threads;
}

static void wake(void *opaque)
{
    event_notifier_set(opaque);
}

static int open_trace(struct blk_set *set)
{
    if (!set->command->trace) {
        return 0;
    }
    set->trace = blk_trace_new(set->command->trace, wake, set->news);
    if (!set->trace) {
        blk_complain("--trace %s: expected a file that can be written: %s", set->command->trace,
                     strerror(errno));
        return EXIT_USAGE;
    }
    return 0;
}

int blk_set_make(struct blk_set *set)
{
    unsigned nr = set->command->nr_jobs, threads;
    int status;

    set->targets = calloc(nr, sizeof(*set->targets));
    set->groups = calloc(nr, sizeof(*set->groups));
    if (!set->targets || !set->groups) {
        blk_complain("out of memory");
        return EXIT_FAILED;
    }
    if (blk_targets_open(set->targets, set->command->jobs, nr) < 0) {
        return EXIT_USAGE;
    }
    status = open_trace(set);
    if (status != 0) {
        return status;
    }
    threads = make_groups(set);
    set->threads = calloc(threads, sizeof(*set->threads));
    set->jobs = calloc(threads, sizeof(*set->jobs));
    set->names = calloc(threads, sizeof(*set->names));
    if (!set->threads || !set->jobs || !set->names) {
        blk_complain("out of memory");
        return EXIT_FAILED;
    }
    status = make_threads(set);
    for (unsigned g = 0; status == 0 && g < nr; g++) {
        set->groups[g].monitor =
            aio_context_get_monitor(iothread_get_aio_context(set->threads[set->groups[g].first]));
    }
    return status;
}

bool blk_set_finish_trace(struct blk_set *set, bool all)
{
    int ret;

    if (!set->trace) {
        return true;
    }
    ret = blk_trace_finish(set->trace, all);
    set->trace = NULL;
    if (ret < 0) {
        blk_complain("cannot write %s: %s", set->command->trace, strerror(-ret));
    }
    return ret == 0;
}

/* The reverse of making; a job may only go when its thread is gone. */
void blk_set_free(struct blk_set *set)
{
    unsigned nr = set->command->nr_jobs;

    if (set->targets) {
        blk_targets_close(set->targets, nr);
    }
    for (unsigned i = 0; i < set->made; i++) {
        iothread_destroy(set->threads[i]);
    }
    for (unsigned i = 0; i < set->made; i++) {
        blk_job_free(set->jobs[i]);
        free(set->names[i]);
    }
    if (set->trace) {
        blk_trace_finish(set->trace, true); /* nothing has run: who cares what it says */
    }
    if (set->targets) {
        blk_targets_free(set->targets, nr);
    }
    free(set->names);
    free(set->jobs);
    free(set->threads);
    free(set->groups);
    free(set->targets);
    aio_rcu_barrier();
}
