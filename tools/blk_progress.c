/* SPDX-License-Identifier: MIT */
#include "blk_progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "format.h"
#include "live.h"

struct sums {
    uint64_t ended, bytes, missed;
};

static struct sums sum_counters(struct blk_job *const *jobs, unsigned threads)
{
    struct sums sums = { 0 };

    for (unsigned i = 0; i < threads; i++) {
        const struct blk_counters *c = &blk_job_results(jobs[i])->counters;

        for (int kind = 0; kind < BLK_KINDS; kind++) {
            sums.ended += live_get(&c->ended[kind]);
        }
        sums.bytes += live_get(&c->bytes_read) + live_get(&c->bytes_written);
        sums.missed += live_get(&c->missed);
    }
    return sums;
}

/* What is left: of the time, else of the requests. */
static struct text left(const struct blk_progress_goal *goal, int64_t now, uint64_t ended)
{
    struct text text = { "" };

    if (goal->end_ns) {
        int64_t left_ns = goal->end_ns - now;

        snprintf(text.s, sizeof(text.s), "%.1f s left", left_ns > 0 ? (double)left_ns / 1e9 : 0.0);
    } else if (goal->ios) {
        snprintf(text.s, sizeof(text.s), "%.0f%% done", (double)ended * 100 / (double)goal->ios);
    }
    return text;
}

void blk_progress_show(struct blk_progress *progress, struct blk_job *const *jobs, unsigned threads,
                       const struct blk_progress_goal *goal, int64_t start_ns)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    struct sums sums = sum_counters(jobs, threads);
    int64_t since_ns = progress->shown_ns ? progress->shown_ns : start_ns;
    static struct hist interval;

    memset(&progress->now, 0, sizeof(progress->now));
    for (unsigned i = 0; i < threads; i++) {
        for (int kind = 0; kind < BLK_KINDS; kind++) {
            hist_merge(&progress->now, &blk_job_results(jobs[i])->latency[kind]);
        }
    }
    interval = progress->now;
    hist_subtract(&interval, &progress->before);
    if (now > since_ns) {
        double seconds = (double)(now - since_ns) / 1e9;

        fprintf(stderr,
                BLK_PROGRESS_CLEAR "%s IOPS, %.1f MiB/s, p50 %s, p99 %s, %" PRIu64 " missed, %s",
                format_count((double)(sums.ended - progress->ended_before) / seconds).s,
                (double)(sums.bytes - progress->bytes_before) / 1048576 / seconds,
                format_time(hist_percentile(&interval, 50000)).s,
                format_time(hist_percentile(&interval, 99000)).s, sums.missed,
                left(goal, now, sums.ended).s);
        fflush(stderr);
    }
    progress->before = progress->now;
    progress->ended_before = sums.ended;
    progress->bytes_before = sums.bytes;
    progress->shown_ns = now;
}

void blk_progress_show_layout(struct blk_job *const *jobs, unsigned threads, uint64_t bytes)
{
    uint64_t laid_out = 0;

    for (unsigned i = 0; i < threads; i++) {
        laid_out += live_get(&blk_job_results(jobs[i])->counters.laid_out);
    }
    fprintf(stderr, BLK_PROGRESS_CLEAR "laying out: %.0f%%",
            (double)laid_out * 100 / (double)bytes);
    fflush(stderr);
}

void blk_progress_clear(void)
{
    fputs(BLK_PROGRESS_CLEAR, stderr);
    fflush(stderr);
}
