/* SPDX-License-Identifier: MIT */
#include "top_show.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "format.h"
#include "json.h"

/* The counters that are shown by their rate. */
struct counter {
    const char *name, *head; /* in JSON, in the table; NULL: not in the table */
    uint64_t (*get)(const AioStatsSlot *slot);
};

#define STAT(member) \
    static uint64_t get_##member(const AioStatsSlot *slot) \
    { \
        return slot->stats.member; \
    }

STAT(iterations)
STAT(sleeps)
STAT(syscalls)
STAT(wakeups_notify)
STAT(wakeups_event)
STAT(wakeups_timeout)
STAT(wakeups_signal)
STAT(notifies)
STAT(timers)
STAT(bhs)
STAT(fd_events)
STAT(sqes)
STAT(cqes)
STAT(cq_overflows)
STAT(precise_polls)

static uint64_t get_sent(const AioStatsSlot *slot)
{
    return slot->notifies_sent;
}

/* The two are not of one moment: one that was sent may not be counted yet. */
static uint64_t get_saved(const AioStatsSlot *slot)
{
    return slot->stats.notifies > slot->notifies_sent ? slot->stats.notifies - slot->notifies_sent
                                                      : 0;
}

static uint64_t get_stalls(const AioStatsSlot *slot)
{
    return slot->stalls;
}

static const struct counter counters[] = {
    { "iterations", "ITER", get_iterations },
    { "sleeps", "SLEEP", get_sleeps },
    { "wakeups_notify", "W-NTFY", get_wakeups_notify },
    { "wakeups_event", "W-EVNT", get_wakeups_event },
    { "wakeups_timeout", "W-TIME", get_wakeups_timeout },
    { "wakeups_signal", NULL, get_wakeups_signal },
    { "notifies", NULL, get_notifies },
    { "notifies_sent", "N-SENT", get_sent },
    { "notifies_saved", "N-SAVD", get_saved },
    { "timers", "TIMERS", get_timers },
    { "bhs", "BHS", get_bhs },
    { "fd_events", "FDS", get_fd_events },
    { "sqes", NULL, get_sqes },
    { "cqes", "CQES", get_cqes },
    { "cq_overflows", NULL, get_cq_overflows },
    { "precise_polls", NULL, get_precise_polls },
    { "syscalls", "CALLS", get_syscalls },
    { "stalls", NULL, get_stalls },
};
enum { COUNTERS = sizeof(counters) / sizeof(counters[0]) };

static const AioStatsSlot no_slot; /* what a context that is new began with */

static double seconds_between(const struct top_sample *before, const struct top_sample *now)
{
    return (double)(now->time_ns - before->time_ns) / 1e9;
}

static double rate(const struct counter *c, const AioStatsSlot *before, const AioStatsSlot *now,
                   double seconds)
{
    uint64_t a = c->get(before), b = c->get(now);

    return b > a && seconds > 0 ? (double)(b - a) / seconds : 0;
}

/* -1: unknown. */
static double cpu_percent(const struct top_row *before, const struct top_row *now, double seconds)
{
    if (!before || before->cpu_ns < 0 || now->cpu_ns < before->cpu_ns || seconds <= 0) {
        return -1;
    }
    return (double)(now->cpu_ns - before->cpu_ns) / seconds / 1e7;
}

/* What was counted since @before; of its largest only the bucket is known. */
static AioHistogram since(const AioHistogram *before, const AioHistogram *now)
{
    AioHistogram h = { .sum_ns = now->sum_ns - before->sum_ns, .max_ns = now->max_ns };

    for (unsigned i = 0; i < AIO_HISTOGRAM_BUCKETS; i++) {
        h.buckets[i] =
            now->buckets[i] > before->buckets[i] ? now->buckets[i] - before->buckets[i] : 0;
    }
    return h;
}

/* ---- The table ------------------------------------------------------------------------------- */

/* A line that is cut at the width of the terminal. */
struct line {
    char text[512];
    size_t len;
};

static void add(struct line *line, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct line *line, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line->text + line->len, sizeof(line->text) - line->len, fmt, ap);
    va_end(ap);
    if (n > 0) {
        line->len += (size_t)n;
        line->len = line->len < sizeof(line->text) ? line->len : sizeof(line->text) - 1;
    }
}

static void print(FILE *out, const struct line *line, unsigned columns, const char *line_end)
{
    size_t len = columns && line->len > columns ? columns : line->len;

    fprintf(out, "%.*s%s", (int)len, line->text, line_end);
}

static const char *state_of(const AioStatsSlot *slot)
{
    return slot->state == AIO_STATS_NEW    ? "new"
           : slot->state == AIO_STATS_HOME ? "running"
                                           : "ended";
}

static void add_lateness(struct line *line, const AioStatsSlot *before, const AioStatsSlot *now)
{
    AioHistogram h = since(&before->histogram.timer_lateness, &now->histogram.timer_lateness);

    if (aio_histogram_count(&h) == 0) {
        add(line, " %7s %7s", "-", "-");
    } else {
        add(line, " %7s %7s", format_time(aio_histogram_percentile(&h, 50000)).s,
            format_time(aio_histogram_percentile(&h, 99000)).s);
    }
}

static void show_row(FILE *out, const struct top_row *before, const struct top_row *now,
                     double seconds, unsigned columns, const char *line_end)
{
    const AioStatsSlot *old = before ? &before->slot : &no_slot;
    double cpu = cpu_percent(before, now, seconds);
    struct line line = { .len = 0 };

    if (now->tid) {
        add(&line, "%-15s %7d", *now->thread ? now->thread : "?", now->tid);
    } else {
        add(&line, "(%s)%*s %7s", state_of(&now->slot), 13 - (int)strlen(state_of(&now->slot)), "",
            "-");
    }
    add(&line, " %-8.8s", now->slot.monitor);
    if (cpu < 0) {
        add(&line, " %5s", "-");
    } else {
        add(&line, " %5.1f", cpu);
    }
    for (unsigned i = 0; i < COUNTERS; i++) {
        if (counters[i].head) {
            add(&line, " %6s", format_count(rate(&counters[i], old, &now->slot, seconds)).s);
        }
        if (i == 0) {
            add_lateness(&line, old, &now->slot);
        }
    }
    add(&line, " %6" PRIu64, now->slot.stalls);
    print(out, &line, columns, line_end);
}

void top_show_table(FILE *out, const struct top_source *source, const struct top_sample *before,
                    const struct top_sample *now, unsigned columns, const char *line_end)
{
    double seconds = seconds_between(before, now);
    struct line line = { .len = 0 };

    add(&line, "%s (%d): %u context%s, %.2f s, figures a second", source->comm, source->pid,
        now->rows, now->rows == 1 ? "" : "s", seconds);
    if (now->without_slot) {
        add(&line, "; %" PRIu64 " more were made than can be shown", now->without_slot);
    }
    print(out, &line, columns, line_end);
    line.len = 0;
    add(&line, "%-15s %7s %-8s %5s", "THREAD", "TID", "MONITOR", "CPU%");
    for (unsigned i = 0; i < COUNTERS; i++) {
        if (counters[i].head) {
            add(&line, " %6s", counters[i].head);
        }
        if (i == 0) {
            add(&line, " %7s %7s", "LATE50", "LATE99");
        }
    }
    add(&line, " %6s", "STALLS");
    print(out, &line, columns, line_end);
    for (unsigned i = 0; i < now->rows; i++) {
        show_row(out, top_sample_find(before, &now->row[i]), &now->row[i], seconds, columns,
                 line_end);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void show_histogram(struct json *j, const char *key, const AioHistogram *h)
{
    json_open_object(j, key);
    json_u64(j, "count", aio_histogram_count(h));
    json_u64(j, "sum_ns", h->sum_ns);
    json_u64(j, "p50_ns", aio_histogram_percentile(h, 50000));
    json_u64(j, "p99_ns", aio_histogram_percentile(h, 99000));
    json_u64(j, "p999_ns", aio_histogram_percentile(h, 99900));
    json_u64(j, "max_ns", h->max_ns);
    json_close_object(j);
}

static void show_histograms(struct json *j, const AioStatsSlot *now)
{
    json_open_object(j, "histograms");
    json_bool(j, "on", now->histograms);
    show_histogram(j, "timer_lateness", &now->histogram.timer_lateness);
    show_histogram(j, "iteration", &now->histogram.iteration);
    show_histogram(j, "wake_to_run", &now->histogram.wake_to_run);
    show_histogram(j, "notify_to_run", &now->histogram.notify_to_run);
    json_close_object(j);
}

static void show_context(struct json *j, const struct top_row *before, const struct top_row *now,
                         double seconds)
{
    const AioStatsSlot *old = before ? &before->slot : &no_slot;
    double cpu = cpu_percent(before, now, seconds);

    json_open_object(j, NULL);
    json_u64(j, "slot", now->index);
    json_u64(j, "generation", now->slot.generation);
    json_string(j, "state", state_of(&now->slot));
    json_string(j, "monitor", now->slot.monitor);
    json_bool(j, "main_loop", now->slot.is_main);
    json_string(j, "thread", now->tid ? now->thread : NULL);
    json_u64(j, "tid", (uint64_t)now->tid);
    if (now->cpu_ns >= 0) {
        json_u64(j, "cpu_ns", (uint64_t)now->cpu_ns);
    } else {
        json_null(j, "cpu_ns");
    }
    if (cpu >= 0) {
        json_double(j, "cpu_percent", cpu);
    } else {
        json_null(j, "cpu_percent");
    }
    json_open_object(j, "total");
    for (unsigned i = 0; i < COUNTERS; i++) {
        json_u64(j, counters[i].name, counters[i].get(&now->slot));
    }
    json_close_object(j);
    json_open_object(j, "per_second");
    for (unsigned i = 0; i < COUNTERS; i++) {
        json_double(j, counters[i].name, rate(&counters[i], old, &now->slot, seconds));
    }
    json_close_object(j);
    json_u64(j, "stall_limit_ns", now->slot.stall_limit_ns);
    show_histograms(j, &now->slot);
    json_close_object(j);
}

void top_show_json(FILE *out, const struct top_source *source, const struct top_sample *before,
                   const struct top_sample *now)
{
    struct json j = { .stream = out };

    json_open_object(&j, NULL);
    json_u64(&j, "pid", (uint64_t)source->pid);
    json_string(&j, "comm", source->comm);
    json_u64(&j, "time_ns", (uint64_t)now->time_ns);
    json_double(&j, "seconds", seconds_between(before, now));
    json_u64(&j, "without_slot", now->without_slot);
    json_open_array(&j, "contexts");
    for (unsigned i = 0; i < now->rows; i++) {
        show_context(&j, top_sample_find(before, &now->row[i]), &now->row[i],
                     seconds_between(before, now));
    }
    json_close_array(&j);
    json_close_object(&j);
    fputc('\n', out);
}
