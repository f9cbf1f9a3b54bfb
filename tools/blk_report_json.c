/* SPDX-License-Identifier: MIT */
#include "blk_report_int.h"

#include "json.h"
#include "live.h"

static void put_hist(struct json *j, const char *key, const struct hist *h)
{
    json_open_object(j, key);
    json_u64(j, "count", hist_total(h));
    json_u64(j, "p50_ns", hist_percentile(h, 50000));
    json_u64(j, "p90_ns", hist_percentile(h, 90000));
    json_u64(j, "p99_ns", hist_percentile(h, 99000));
    json_u64(j, "p999_ns", hist_percentile(h, 99900));
    json_u64(j, "max_ns", hist_max(h));
    json_close_object(j);
}

/* Each counter that is not 0: the largest value that it stands for, and what it counts. */
static void put_buckets(struct json *j, const char *key, const struct hist *h)
{
    json_open_array(j, key);
    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        if (live_get(&h->counts[i])) {
            json_u64_pair(j, hist_counter_end(i), live_get(&h->counts[i]));
        }
    }
    json_close_array(j);
}

static void put_kinds(struct json *j, const struct blk_row *row)
{
    json_open_object(j, "latency_of");
    for (int kind = 0; kind < BLK_KINDS; kind++) {
        if (hist_total(&row->kinds[kind])) {
            put_hist(j, blk_kind_names[kind], &row->kinds[kind]);
        }
    }
    json_close_object(j);
}

static void put_row(struct json *j, const char *key, const struct blk_row *row)
{
    const struct blk_counters *c = &row->counters;

    json_open_object(j, key);
    json_string(j, "name", row->name);
    json_double(j, "seconds", row->seconds);
    json_double(j, "iops", blk_row_iops(row));
    json_double(j, "mib_per_s", blk_row_mib_per_s(row));
    put_hist(j, "latency", &row->latency);
    put_kinds(j, row);
    put_buckets(j, "latency_buckets", &row->latency);
    json_u64(j, "reads", c->ended[KIND_READ]);
    json_u64(j, "writes", c->ended[KIND_WRITE]);
    json_u64(j, "flushes", c->ended[KIND_FLUSH]);
    json_u64(j, "discards", c->ended[KIND_DISCARD]);
    json_u64(j, "zeroings", c->ended[KIND_ZEROES]);
    json_u64(j, "statuses", c->ended[KIND_STATUS]);
    json_u64(j, "bytes_read", c->bytes_read);
    json_u64(j, "bytes_written", c->bytes_written);
    json_u64(j, "missed", c->missed);
    json_u64(j, "cancelled", c->cancelled);
    json_u64(j, "late", c->late);
    json_u64(j, "errors", c->errors);
    json_u64(j, "begun_late", c->begun_late);
    json_u64(j, "unissued", c->unissued);
    json_u64(j, "laid_out_bytes", c->laid_out);
    json_u64(j, "verify_checked", c->checked);
    json_u64(j, "verify_unknown", c->unknown);
    json_u64(j, "verify_mismatches", c->mismatches);
    put_hist(j, "timer_lateness", &row->lateness);
    json_double(j, "syscalls_per_io", blk_row_syscalls_per_io(row));
    json_u64(j, "syscalls", row->stats.syscalls);
    json_u64(j, "wakeups_sent", row->stats.notifies_sent);
    json_u64(j, "wakeups_saved", blk_row_saved(row));
    json_u64(j, "iterations", row->stats.iterations);
    json_close_object(j);
}

static void put_mix(struct json *j, const struct blk_mix *mix)
{
    json_open_object(j, "mix");
    for (int kind = 0; kind < BLK_KINDS; kind++) {
        if (mix->weight[kind]) {
            json_u64(j, blk_kind_names[kind], mix->weight[kind]);
        }
    }
    json_close_object(j);
}

static void put_config(struct json *j, const struct blk_report_job *job)
{
    const struct blk_options *opt = job->opt;

    json_open_object(j, "config");
    json_string(j, "backend", job->spec);
    json_string(j, "driver", job->driver);
    json_string(j, "monitor", job->monitor);
    json_u64(j, "offset_bytes", opt->offset_bytes);
    json_u64(j, "size_bytes", job->size_bytes);
    json_bool(j, "create", opt->create);
    json_bool(j, "direct", opt->direct);
    json_bool(j, "registered", opt->registered);
    json_u64(j, "iothreads", job->count);
    json_string(j, "rw", opt->rw_name);
    json_u64(j, "rwmixread", opt->rwmixread);
    if (!opt->replay) {
        put_mix(j, &opt->mix);
    }
    json_string(j, "pattern", opt->pattern_text);
    json_string(j, "bs", opt->bs_text);
    json_u64(j, "bs_bytes", opt->bs.max);
    json_u64(j, "iodepth", job->iodepth);
    json_u64(j, "rate", opt->rate);
    json_u64(j, "deadline_ns", (uint64_t)opt->deadline_ns);
    json_string(j, "verify", opt->verify ? "crc32c" : "none");
    json_bool(j, "layout", opt->layout);
    json_bool(j, "expect_pattern", opt->expect_pattern);
    json_u64(j, "ramp_ns", (uint64_t)opt->ramp_ns);
    json_u64(j, "runtime_ns", (uint64_t)opt->runtime_ns);
    json_u64(j, "ios", opt->ios);
    json_u64(j, "seed", opt->seed);
    json_u64(j, "fsync", opt->fsync_every);
    json_string(j, "replay", opt->replay);
    if (opt->replay) {
        json_u64(j, "replay_requests", job->trace_requests);
        json_double(j, "replay_speed", opt->replay_speed);
    }
    json_close_object(j);
}

static void put_job(struct json *j, const struct blk_report *report,
                    const struct blk_report_job *job)
{
    static struct blk_row row; /* histograms are large for a stack */

    json_open_object(j, NULL);
    json_string(j, "name", job->opt->name);
    put_config(j, job);
    json_open_array(j, "iothreads");
    for (unsigned i = job->first; i < job->first + job->count; i++) {
        blk_row_make(&row, report, blk_job_name(report->rows[i]), i, 1);
        put_row(j, NULL, &row);
    }
    json_close_array(j);
    blk_row_make(&row, report, job->opt->name ? job->opt->name : "total", job->first, job->count);
    put_row(j, "total", &row);
    json_close_object(j);
}

void blk_report_json(const struct blk_report *report, FILE *stream)
{
    static struct blk_row row;
    struct json j = { .stream = stream };

    json_open_object(&j, NULL);
    json_string(&j, "program", "aioctx-blk");
    json_string(&j, "version", AIOCTX_VERSION);
    json_string(&j, "status", report->status);
    json_string(&j, "trace", report->command->trace);
    json_open_array(&j, "jobs");
    for (unsigned i = 0; i < report->nr_jobs; i++) {
        put_job(&j, report, &report->jobs[i]);
    }
    json_close_array(&j);
    blk_row_make(&row, report, "total", 0, report->nr_rows);
    put_row(&j, "total", &row);
    json_close_object(&j);
}
