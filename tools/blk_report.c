/* SPDX-License-Identifier: MIT */
/* The numbers of each row; the table and the plots.  JSON is in blk_report_json.c. */
#include "blk_report_int.h"

#include <inttypes.h>
#include <string.h>

#include "format.h"
#include "blk_plot.h"
#include "live.h"

uint64_t blk_row_ios(const struct blk_row *row)
{
    uint64_t ios = 0;

    for (int kind = 0; kind < BLK_KINDS; kind++) {
        ios += kind == KIND_FLUSH ? 0 : row->counters.ended[kind];
    }
    return ios;
}

double blk_row_iops(const struct blk_row *row)
{
    return row->seconds > 0 ? (double)blk_row_ios(row) / row->seconds : 0;
}

double blk_row_mib_per_s(const struct blk_row *row)
{
    double bytes = (double)(row->counters.bytes_read + row->counters.bytes_written);

    return row->seconds > 0 ? bytes / 1048576 / row->seconds : 0;
}

double blk_row_syscalls_per_io(const struct blk_row *row)
{
    const struct blk_counters *c = &row->counters;
    uint64_t ended = blk_row_ios(row) + c->ended[KIND_FLUSH] + c->missed + c->cancelled + c->errors;

    return ended ? (double)(row->stats.syscalls + row->stats.notifies_sent) / (double)ended : 0;
}

uint64_t blk_row_saved(const struct blk_row *row)
{
    const AioContextStats *s = &row->stats;

    return s->notifies > s->notifies_sent ? s->notifies - s->notifies_sent : 0;
}

static void add_u64s(void *into, const void *from, size_t len)
{
    uint64_t *a = into;
    const uint64_t *b = from;

    for (size_t i = 0; i < len / sizeof(*a); i++) {
        a[i] += live_get(&b[i]);
    }
}

static void add_results(struct blk_row *row, const struct blk_results *results)
{
    double seconds = (double)(results->end_ns - results->start_ns) / 1e9;

    /* A run that was stopped before its start lasted no time. */
    if (seconds > row->seconds) {
        row->seconds = seconds;
    }
    add_u64s(&row->counters, &results->counters, sizeof(row->counters));
    add_u64s(&row->stats, &results->stats, sizeof(row->stats));
    for (int kind = 0; kind < BLK_KINDS; kind++) {
        hist_merge(&row->kinds[kind], &results->latency[kind]);
        hist_merge(&row->latency, &results->latency[kind]);
    }
    hist_merge(&row->lateness, &results->lateness);
}

void blk_row_make(struct blk_row *row, const struct blk_report *report, const char *name,
                  unsigned first, unsigned count)
{
    memset(row, 0, sizeof(*row));
    row->name = name;
    for (unsigned i = first; i < first + count; i++) {
        add_results(row, blk_job_results(report->rows[i]));
    }
}

/* ---- The table ------------------------------------------------------------------------------- */

static struct text time_of(const struct hist *h, unsigned per_100k)
{
    struct text none = { "-" };

    return hist_total(h) ? format_time(hist_percentile(h, per_100k)) : none;
}

static void print_row(const struct blk_row *row, int width, FILE *stream)
{
    const struct blk_counters *c = &row->counters;

    fprintf(stream, "%-*s %7s %8.1f %7s %7s %7s %7s %7s %7s %7s %7s %7s %8.3f %7s %7s\n", width,
            row->name, format_count(blk_row_iops(row)).s, blk_row_mib_per_s(row),
            time_of(&row->latency, 50000).s, time_of(&row->latency, 99000).s,
            time_of(&row->latency, 99900).s, time_of(&row->latency, 100000).s,
            format_count((double)c->missed).s, format_count((double)c->cancelled).s,
            format_count((double)c->late).s, time_of(&row->lateness, 50000).s,
            time_of(&row->lateness, 99000).s, blk_row_syscalls_per_io(row),
            format_count((double)row->stats.notifies_sent).s,
            format_count((double)blk_row_saved(row)).s);
}

/* One line on what a job does. */
static void print_job(const struct blk_report_job *job, double seconds, FILE *stream)
{
    const struct blk_options *opt = job->opt;

    if (opt->name) {
        fprintf(stream, "%s: ", opt->name);
    }
    fprintf(stream, "%s: %s", job->spec, opt->rw_name);
    if (strcmp(opt->rw_name, "rw") == 0 || strcmp(opt->rw_name, "randrw") == 0) {
        fprintf(stream, " (%u%% reads)", opt->rwmixread);
    }
    if (opt->pattern.order == ORDER_ZIPF || opt->pattern.order == ORDER_HOT ||
        strcmp(opt->rw_name, "mix") == 0) {
        fprintf(stream, ", %s", opt->pattern_text);
    }
    fprintf(stream, ", bs %s, %s in use, iodepth %u, ",
            opt->bs.min == opt->bs.max && !opt->replay ? format_size(opt->bs.max).s : opt->bs_text,
            format_size(job->size_bytes).s, job->iodepth);
    if (opt->replay && opt->replay_speed > 0) {
        fprintf(stream, "%g times the speed of %s", opt->replay_speed, opt->replay);
    } else if (opt->replay) {
        fprintf(stream, "%s as fast as it goes", opt->replay);
    } else if (opt->rate) {
        fprintf(stream, "open loop at %" PRIu64 "/s", opt->rate);
    } else {
        fputs("closed loop", stream);
    }
    if (opt->deadline_ns) {
        fprintf(stream, ", deadline %s", format_time((uint64_t)opt->deadline_ns).s);
    }
    fprintf(stream, ", %s, %.2f s\n", job->monitor, seconds);
}

static void print_head(int width, FILE *stream)
{
    fprintf(stream, "\n%-*s %7s %8s %31s %23s %15s %8s %15s\n", width, "", "", "",
            "----------- latency -----------", "------ deadlines ------", "- timers late -",
            "syscalls", "-- wake-ups ---");
    fprintf(stream, "%-*s %7s %8s %7s %7s %7s %7s %7s %7s %7s %7s %7s %8s %7s %7s\n", width,
            "thread", "IOPS", "MiB/s", "p50", "p99", "p99.9", "max", "missed", "cancel", "late",
            "p50", "p99", "per I/O", "sent", "saved");
}

/* Whether some job's options have it. */
static bool any(const struct blk_report *report, bool (*has)(const struct blk_options *opt))
{
    bool found = false;

    for (unsigned i = 0; i < report->nr_jobs; i++) {
        found |= has(report->jobs[i].opt);
    }
    return found;
}

static bool is_open_loop(const struct blk_options *opt)
{
    return opt->rate || (opt->replay && opt->replay_speed > 0);
}

static bool verifies(const struct blk_options *opt)
{
    return opt->verify;
}

static void print_foot(const struct blk_row *total, const struct blk_report *report, FILE *stream)
{
    static const char *const others[] = { "discards", "zeroings", "status requests" };
    const struct blk_counters *c = &total->counters;

    fprintf(stream, "\n%" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " flushes",
            c->ended[KIND_READ], c->ended[KIND_WRITE], c->ended[KIND_FLUSH]);
    for (int i = 0; i < 3; i++) {
        if (c->ended[KIND_DISCARD + i]) {
            fprintf(stream, ", %" PRIu64 " %s", c->ended[KIND_DISCARD + i], others[i]);
        }
    }
    fputs(" ended well", stream);
    if (c->errors) {
        fprintf(stream, ", %" PRIu64 " failed", c->errors);
    }
    fputc('\n', stream);
    if (any(report, is_open_loop)) {
        fprintf(stream,
                "schedule: %" PRIu64 " requests began more than 1 ms late\n"
                "backlog: %" PRIu64 " requests were scheduled but not issued before the end\n",
                c->begun_late, c->unissued);
    }
    if (any(report, verifies)) {
        fprintf(stream,
                "verify: %" PRIu64 " reads checked, %" PRIu64
                " of content not known before, %" PRIu64 " mismatches\n",
                c->checked, c->unknown, c->mismatches);
    }
}

static int name_width(const struct blk_report *report)
{
    size_t width = 6;

    for (unsigned i = 0; i < report->nr_rows; i++) {
        size_t len = strlen(blk_job_name(report->rows[i]));

        width = len > width ? len : width;
    }
    return (int)width;
}

/* A job's iothreads, and, where several jobs have several of them, their sum. */
static void print_rows(const struct blk_report *report, const struct blk_report_job *job, int width,
                       FILE *stream)
{
    static struct blk_row row; /* histograms are large for a stack */

    for (unsigned i = job->first; i < job->first + job->count; i++) {
        blk_row_make(&row, report, blk_job_name(report->rows[i]), i, 1);
        print_row(&row, width, stream);
    }
    if (job->opt->name && job->count > 1) {
        blk_row_make(&row, report, job->opt->name, job->first, job->count);
        print_row(&row, width, stream);
    }
}

void blk_report_table(const struct blk_report *report, FILE *stream)
{
    static struct blk_row row;
    int width = name_width(report);

    for (unsigned i = 0; i < report->nr_jobs; i++) {
        const struct blk_report_job *job = &report->jobs[i];

        blk_row_make(&row, report, "", job->first, job->count);
        print_job(job, row.seconds, stream);
    }
    print_head(width, stream);
    for (unsigned i = 0; i < report->nr_jobs; i++) {
        print_rows(report, &report->jobs[i], width, stream);
    }
    blk_row_make(&row, report, "total", 0, report->nr_rows);
    print_row(&row, width, stream);
    print_foot(&row, report, stream);
}

void blk_report_plot(const struct blk_report *report, FILE *stream)
{
    static struct blk_row row;

    for (unsigned i = 0; i < report->nr_jobs; i++) {
        const struct blk_report_job *job = &report->jobs[i];

        blk_row_make(&row, report, "", job->first, job->count);
        blk_plot(&row.latency, job->opt->name ? job->opt->name : "all requests", blk_plot_unicode(),
                 stream);
    }
}
