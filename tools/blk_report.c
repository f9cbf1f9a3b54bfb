/* SPDX-License-Identifier: MIT */
#include "blk_report.h"

#include <inttypes.h>
#include <string.h>

#include "format.h"
#include "json.h"
#include "live.h"

/* One row: an iothread, or the total. */
struct row {
    char name[16];
    double seconds;
    struct blk_counters counters;
    struct hist latency, lateness;
    AioContextStats stats;
};

static double row_iops(const struct row *row)
{
    return row->seconds > 0 ? (double)(row->counters.reads + row->counters.writes) / row->seconds
                            : 0;
}

static double row_mib_per_s(const struct row *row)
{
    double bytes = (double)(row->counters.bytes_read + row->counters.bytes_written);

    return row->seconds > 0 ? bytes / 1048576 / row->seconds : 0;
}

/* Requests that were issued and have ended, however. */
static uint64_t row_ended(const struct row *row)
{
    const struct blk_counters *c = &row->counters;

    return c->reads + c->writes + c->flushes + c->missed + c->cancelled + c->errors;
}

/* What the loop called itself, and what others called to wake it. */
static double row_syscalls_per_io(const struct row *row)
{
    uint64_t ended = row_ended(row);

    return ended ? (double)(row->stats.syscalls + row->stats.notifies_sent) / (double)ended : 0;
}

static void add_u64s(void *into, const void *from, size_t len)
{
    uint64_t *a = into;
    const uint64_t *b = from;

    for (size_t i = 0; i < len / sizeof(*a); i++) {
        a[i] += live_get(&b[i]);
    }
}

static void add_results(struct row *row, const struct blk_results *results)
{
    double seconds = (double)(results->end_ns - results->start_ns) / 1e9;

    /* A run that was stopped before its start lasted no time. */
    if (seconds > row->seconds) {
        row->seconds = seconds;
    }
    add_u64s(&row->counters, &results->counters, sizeof(row->counters));
    add_u64s(&row->stats, &results->stats, sizeof(row->stats));
    hist_merge(&row->latency, &results->latency);
    hist_merge(&row->lateness, &results->lateness);
}

static void make_row(struct row *row, const struct blk_report *report, unsigned index)
{
    memset(row, 0, sizeof(*row));
    snprintf(row->name, sizeof(row->name), "io%u", index);
    add_results(row, blk_job_results(report->jobs[index]));
}

static void make_total(struct row *row, const struct blk_report *report)
{
    memset(row, 0, sizeof(*row));
    strcpy(row->name, "total");
    for (unsigned i = 0; i < report->threads; i++) {
        add_results(row, blk_job_results(report->jobs[i]));
    }
}

/* ---- The table ------------------------------------------------------------------------------- */

static struct text time_of(const struct hist *h, unsigned per_100k)
{
    struct text none = { "-" };

    return hist_total(h) ? format_time(hist_percentile(h, per_100k)) : none;
}

/* Wake-ups saved.  One that began before the run and was sent in it counts as sent alone. */
static uint64_t row_saved(const struct row *row)
{
    const AioContextStats *s = &row->stats;

    return s->notifies > s->notifies_sent ? s->notifies - s->notifies_sent : 0;
}

static void print_row(const struct row *row, FILE *stream)
{
    const struct blk_counters *c = &row->counters;

    fprintf(stream, "%-6s %7s %8.1f %7s %7s %7s %7s %7s %7s %7s %7s %7s %8.3f %7s %7s\n", row->name,
            format_count(row_iops(row)).s, row_mib_per_s(row), time_of(&row->latency, 50000).s,
            time_of(&row->latency, 99000).s, time_of(&row->latency, 99900).s,
            time_of(&row->latency, 100000).s, format_count((double)c->missed).s,
            format_count((double)c->cancelled).s, format_count((double)c->late).s,
            time_of(&row->lateness, 50000).s, time_of(&row->lateness, 99000).s,
            row_syscalls_per_io(row), format_count((double)row->stats.notifies_sent).s,
            format_count((double)row_saved(row)).s);
}

static void print_head(const struct blk_report *report, double seconds, FILE *stream)
{
    const struct blk_options *opt = report->opt;

    fprintf(stream, "%s: %s", report->spec, opt->rw_name);
    if (opt->rw == RW_MIXED) {
        fprintf(stream, " (%u%% reads)", opt->rwmixread);
    }
    fprintf(stream, ", bs %s, %s in use, iodepth %u, ", format_size(opt->bs_bytes).s,
            format_size(report->size_bytes).s, opt->iodepth);
    if (opt->rate) {
        fprintf(stream, "open loop at %" PRIu64 "/s", opt->rate);
    } else {
        fputs("closed loop", stream);
    }
    if (opt->deadline_ns) {
        fprintf(stream, ", deadline %s", format_time((uint64_t)opt->deadline_ns).s);
    }
    fprintf(stream, ", %s, %.2f s\n\n", report->monitor, seconds);
    fprintf(stream, "%-6s %7s %8s %31s %23s %15s %8s %15s\n", "", "", "",
            "----------- latency -----------", "------ deadlines ------", "- timers late -",
            "syscalls", "-- wake-ups ---");
    fprintf(stream, "%-6s %7s %8s %7s %7s %7s %7s %7s %7s %7s %7s %7s %8s %7s %7s\n", "thread",
            "IOPS", "MiB/s", "p50", "p99", "p99.9", "max", "missed", "cancel", "late", "p50", "p99",
            "per I/O", "sent", "saved");
}

static void print_foot(const struct row *total, const struct blk_options *opt, FILE *stream)
{
    const struct blk_counters *c = &total->counters;

    fprintf(stream, "\n%" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " flushes ended well",
            c->reads, c->writes, c->flushes);
    if (c->errors) {
        fprintf(stream, ", %" PRIu64 " failed", c->errors);
    }
    fputc('\n', stream);
    if (opt->rate) {
        fprintf(stream,
                "backlog: %" PRIu64 " requests were scheduled but not issued before the end\n",
                c->unissued);
    }
    if (opt->verify) {
        fprintf(stream,
                "verify: %" PRIu64 " reads checked, %" PRIu64
                " of content not known before, %" PRIu64 " mismatches\n",
                c->checked, c->unknown, c->mismatches);
    }
}

void blk_report_table(const struct blk_report *report, FILE *stream)
{
    static struct row row; /* histograms are large for a stack */

    make_total(&row, report);
    print_head(report, row.seconds, stream);
    for (unsigned i = 0; i < report->threads; i++) {
        make_row(&row, report, i);
        print_row(&row, stream);
    }
    make_total(&row, report);
    print_row(&row, stream);
    print_foot(&row, report->opt, stream);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void put_hist(struct json *j, const char *key, const struct hist *h)
{
    json_open_object(j, key);
    json_u64(j, "count", hist_total(h));
    json_u64(j, "p50_ns", hist_percentile(h, 50000));
    json_u64(j, "p99_ns", hist_percentile(h, 99000));
    json_u64(j, "p999_ns", hist_percentile(h, 99900));
    json_u64(j, "max_ns", hist_max(h));
    json_close_object(j);
}

static void put_row(struct json *j, const char *key, const struct row *row)
{
    const struct blk_counters *c = &row->counters;

    json_open_object(j, key);
    json_string(j, "name", row->name);
    json_double(j, "seconds", row->seconds);
    json_double(j, "iops", row_iops(row));
    json_double(j, "mib_per_s", row_mib_per_s(row));
    put_hist(j, "latency", &row->latency);
    json_u64(j, "reads", c->reads);
    json_u64(j, "writes", c->writes);
    json_u64(j, "flushes", c->flushes);
    json_u64(j, "bytes_read", c->bytes_read);
    json_u64(j, "bytes_written", c->bytes_written);
    json_u64(j, "missed", c->missed);
    json_u64(j, "cancelled", c->cancelled);
    json_u64(j, "late", c->late);
    json_u64(j, "errors", c->errors);
    json_u64(j, "unissued", c->unissued);
    json_u64(j, "laid_out", c->laid_out);
    json_u64(j, "verify_checked", c->checked);
    json_u64(j, "verify_unknown", c->unknown);
    json_u64(j, "verify_mismatches", c->mismatches);
    put_hist(j, "timer_lateness", &row->lateness);
    json_double(j, "syscalls_per_io", row_syscalls_per_io(row));
    json_u64(j, "syscalls", row->stats.syscalls);
    json_u64(j, "wakeups_sent", row->stats.notifies_sent);
    json_u64(j, "wakeups_saved", row_saved(row));
    json_u64(j, "iterations", row->stats.iterations);
    json_close_object(j);
}

static void put_config(struct json *j, const struct blk_report *report)
{
    const struct blk_options *opt = report->opt;

    json_open_object(j, "config");
    json_string(j, "backend", report->spec);
    json_string(j, "driver", report->driver);
    json_string(j, "monitor", report->monitor);
    json_u64(j, "size_bytes", report->size_bytes);
    json_bool(j, "create", opt->create);
    json_bool(j, "direct", opt->direct);
    json_bool(j, "registered", opt->registered);
    json_u64(j, "iothreads", opt->iothreads);
    json_string(j, "rw", opt->rw_name);
    json_u64(j, "rwmixread", opt->rwmixread);
    json_u64(j, "bs_bytes", opt->bs_bytes);
    json_u64(j, "iodepth", opt->iodepth);
    json_u64(j, "rate", opt->rate);
    json_u64(j, "deadline_ns", (uint64_t)opt->deadline_ns);
    json_string(j, "verify", opt->verify ? "crc32c" : "none");
    json_bool(j, "layout", opt->layout);
    json_bool(j, "expect_pattern", opt->expect_pattern);
    json_u64(j, "runtime_ns", (uint64_t)opt->runtime_ns);
    json_u64(j, "ios", opt->ios);
    json_u64(j, "seed", opt->seed);
    json_u64(j, "fsync", opt->fsync_every);
    json_close_object(j);
}

void blk_report_json(const struct blk_report *report, FILE *stream)
{
    static struct row row;
    struct json j = { .stream = stream };

    json_open_object(&j, NULL);
    json_string(&j, "program", "aioctx-blk");
    json_string(&j, "version", AIOCTX_VERSION);
    json_string(&j, "status", report->status);
    put_config(&j, report);
    json_open_array(&j, "iothreads");
    for (unsigned i = 0; i < report->threads; i++) {
        make_row(&row, report, i);
        put_row(&j, NULL, &row);
    }
    json_close_array(&j);
    make_total(&row, report);
    put_row(&j, "total", &row);
    json_close_object(&j);
}
