/* SPDX-License-Identifier: MIT */
/* The results of a benchmark program: samples, medians, tables and JSON lines. */
#include "bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RATIOS_MAX 16 /* columns of the table of ratios */

struct samples {
    double *v;
    size_t nr;
};

struct bench_row {
    struct bench_row *next;
    const char *case_name, *impl;
    unsigned threads;
    uint64_t n;
    int thread; /* -1: all of them together */
    struct samples samples[BENCH_METRICS];
    double ratio; /* of b->ours to this one, when it was printed; 0: none */
    enum bench_metric ratio_of;
};

static const struct {
    const char *name, *unit;
} metrics[BENCH_METRICS] = {
    [BENCH_NS_PER_OP] = { "ns_per_op", "ns" },
    [BENCH_CPU_NS_PER_OP] = { "cpu_ns_per_op", "ns" },
    [BENCH_OPS_PER_S] = { "ops_per_s", "1/s" },
    [BENCH_P50_NS] = { "p50_ns", "ns" },
    [BENCH_P99_NS] = { "p99_ns", "ns" },
    [BENCH_P999_NS] = { "p999_ns", "ns" },
    [BENCH_MAX_NS] = { "max_ns", "ns" },
    [BENCH_RAW_MAX_NS] = { "raw_max_ns", "ns" },
    [BENCH_EMPTY_MAX_NS] = { "empty_max_ns", "ns" },
    [BENCH_OVER_EMPTY_NS] = { "over_empty_ns", "ns" },
    [BENCH_TO_CLOCK] = { "to_clock", "clock reads" },
    [BENCH_WAKEUPS_PER_K] = { "wakeups_per_k", "1/1000" },
    [BENCH_WAKEUPS_PER_M] = { "wakeups_per_m", "1/1000000" },
    [BENCH_BYTES] = { "bytes", "B" },
    [BENCH_USER_BYTES] = { "user_bytes", "B" },
    [BENCH_TIMES_RUN] = { "times_run", "1" },
    [BENCH_SYSCALLS] = { "syscalls", "1" },
    [BENCH_IOWAIT] = { "iowait_threads", "threads" },
    [BENCH_TO_BEST] = { "to_best", "of the best peer" },
    [BENCH_CPU_TO_BEST] = { "cpu_to_best", "of the best peer" },
    [BENCH_ADDED_NS] = { "added_ns", "ns" },
};

static struct bench_row *get_row(struct bench *b, const struct bench_row *key)
{
    for (struct bench_row *r = b->rows; r; r = r->next) {
        if (!strcmp(r->case_name, key->case_name) && !strcmp(r->impl, key->impl) &&
            r->threads == key->threads && r->n == key->n && r->thread == key->thread) {
            return r;
        }
    }
    struct bench_row *row = malloc(sizeof(*row));
    if (!row) {
        bench_die("out of memory");
    }
    *row = *key;
    *b->rows_end = row;
    b->rows_end = &row->next;
    return row;
}

struct bench_row *bench_row(struct bench *b, const char *case_name, const char *impl,
                            unsigned threads, uint64_t n)
{
    const struct bench_row key = {
        .case_name = case_name, .impl = impl, .threads = threads, .n = n, .thread = -1
    };
    return get_row(b, &key);
}

void bench_sample_threads(struct bench *b, const char *case_name, const char *impl,
                          unsigned threads, uint64_t n, const struct bench_share *shares)
{
    struct bench_row key = {
        .case_name = case_name, .impl = impl, .threads = threads, .n = n, .thread = -1
    };
    struct bench_row *total = get_row(b, &key);
    double wall = 0, cpu = 0, per_s = 0;
    for (unsigned t = 0; t < threads; t++) {
        const struct bench_share *s = &shares[t];
        wall += s->ns_per_op / threads;
        cpu += s->cpu_ns_per_op / threads;
        per_s += 1e9 / s->ns_per_op;
        if (threads > 1) {
            key.thread = (int)t;
            struct bench_row *row = get_row(b, &key);
            bench_sample(row, BENCH_NS_PER_OP, s->ns_per_op);
            bench_sample(row, BENCH_CPU_NS_PER_OP, s->cpu_ns_per_op);
            bench_sample(row, BENCH_OPS_PER_S, 1e9 / s->ns_per_op);
        }
    }
    bench_sample(total, BENCH_NS_PER_OP, wall);
    bench_sample(total, BENCH_CPU_NS_PER_OP, cpu);
    bench_sample(total, BENCH_OPS_PER_S, per_s);
}

void bench_sample(struct bench_row *row, enum bench_metric metric, double value)
{
    struct samples *s = &row->samples[metric];
    double *v = realloc(s->v, (s->nr + 1) * sizeof(*v));
    if (!v) {
        bench_die("out of memory");
    }
    s->v = v;
    s->v[s->nr++] = value;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void bench_sample_latencies(struct bench_row *row, uint64_t *ns, size_t n)
{
    if (!n) {
        return;
    }
    qsort(ns, n, sizeof(*ns), compare_u64);
    bench_sample(row, BENCH_P50_NS, (double)ns[(n - 1) / 2]);
    bench_sample(row, BENCH_P99_NS, (double)ns[(n - 1) * 99 / 100]);
    bench_sample(row, BENCH_P999_NS, (double)ns[(n - 1) * 999 / 1000]);
    bench_sample(row, BENCH_MAX_NS, (double)ns[n - 1]);
}

/* ---- Medians --------------------------------------------------------------------------------- */

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts @v. */
static double median(double *v, size_t nr)
{
    qsort(v, nr, sizeof(*v), compare_double);
    return nr % 2 ? v[nr / 2] : (v[nr / 2 - 1] + v[nr / 2]) / 2;
}

static double *copy_samples(const struct samples *s)
{
    double *v = malloc((s->nr + 1) * sizeof(*v));
    if (!v) {
        bench_die("out of memory");
    }
    memcpy(v, s->v, s->nr * sizeof(*v));
    return v;
}

static double value_of(const struct bench_row *row, enum bench_metric metric)
{
    double *v = copy_samples(&row->samples[metric]);
    double m = median(v, row->samples[metric].nr);
    free(v);
    return m;
}

/* Of @a to @b, run by run where they ran side by side; returns whether there is one. */
static bool ratio_of(const struct bench_row *a, const struct bench_row *b, enum bench_metric metric,
                     double *ret_ratio)
{
    const struct samples *sa = &a->samples[metric], *sb = &b->samples[metric];
    if (!sa->nr || !sb->nr) {
        return false;
    }
    double *v = copy_samples(sa);
    bool all = sa->nr == sb->nr;
    for (size_t i = 0; i < sa->nr && all; i++) {
        all = sb->v[i] > 0;
        v[i] /= all ? sb->v[i] : 1;
    }
    *ret_ratio = all ? median(v, sa->nr) : 0;
    free(v);
    if (!all) { /* they did not run side by side, or one of @b's is no cost, but noise */
        double of = value_of(b, metric);
        *ret_ratio = of > 0 ? value_of(a, metric) / of : 0;
        return of > 0;
    }
    return true;
}

static bool is_ours(const struct bench *b, const char *impl)
{
    size_t len = strlen(b->ours);
    return !strncmp(impl, b->ours, len) && (!impl[len] || impl[len] == '-');
}

static const struct bench_row *find_best(const struct bench *b, const struct bench_row *like,
                                         enum bench_metric metric, const char *const *peers,
                                         unsigned nr_peers)
{
    const struct bench_row *best = NULL;
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        unsigned p = 0;
        while (p < nr_peers && strcmp(peers[p], r->impl)) {
            p++;
        }
        if (p < nr_peers && r->samples[metric].nr && !strcmp(r->case_name, like->case_name) &&
            r->n == like->n && r->threads == like->threads && r->thread == like->thread &&
            (!best || value_of(r, metric) < value_of(best, metric))) {
            best = r;
        }
    }
    return best;
}

void bench_sample_best(struct bench *b, const char *case_name, const char *const *peers,
                       unsigned nr_peers)
{
    static const enum bench_metric of[][2] = { { BENCH_NS_PER_OP, BENCH_TO_BEST },
                                               { BENCH_CPU_NS_PER_OP, BENCH_CPU_TO_BEST } };
    for (struct bench_row *r = b->rows; r; r = r->next) {
        for (unsigned i = 0; i < 2 && !strcmp(r->case_name, case_name) && is_ours(b, r->impl);
             i++) {
            const struct bench_row *best = find_best(b, r, of[i][0], peers, nr_peers);
            double ratio;
            if (best && ratio_of(r, best, of[i][0], &ratio)) {
                bench_sample(r, of[i][1], ratio);
            }
        }
    }
}

/* ---- Tables ---------------------------------------------------------------------------------- */

static const struct bench_row *find_ours(const struct bench *b, const struct bench_row *row)
{
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        if (!strcmp(r->case_name, row->case_name) && !strcmp(r->impl, b->ours) && r->n == row->n &&
            r->threads == row->threads && r->thread == row->thread) {
            return r;
        }
    }
    return row;
}

static const struct bench_row *find_smallest(const struct bench *b, const struct bench_row *row)
{
    const struct bench_row *best = row;
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        if (!strcmp(r->case_name, row->case_name) && !strcmp(r->impl, row->impl) &&
            r->threads == row->threads && r->thread == row->thread && r->n < best->n) {
            best = r;
        }
    }
    return best;
}

static void print_ratio(bool any, double ratio)
{
    if (any) {
        printf(" %12.2f", ratio);
    } else {
        printf(" %12s", "-");
    }
}

static void print_row(const struct bench *b, struct bench_row *row, const bool *shown,
                      enum bench_metric metric)
{
    if (row->thread >= 0) {
        printf("  %-10s %7s    thread %-5d", "", "", row->thread);
    } else {
        printf("  %-10llu %7u  %-14s", (unsigned long long)row->n, row->threads, row->impl);
    }
    for (int m = 0; m < BENCH_METRICS; m++) {
        if (shown[m] && row->samples[m].nr) {
            double v = value_of(row, m);
            printf(" %13.*f", v < 10 ? 2 : v < 1000 ? 1 : 0, v);
        } else if (shown[m]) {
            printf(" %13s", "-");
        }
    }
    double ratio = 0;
    const struct bench_row *other = find_smallest(b, row);
    bool any = other != row && ratio_of(row, other, metric, &ratio);
    print_ratio(any, ratio);
    other = find_ours(b, row);
    any = other != row && ratio_of(other, row, metric, &ratio);
    print_ratio(any, ratio);
    putchar('\n');
    row->ratio = any ? ratio : 0;
    row->ratio_of = metric;
}

/* The numbers n of a case, up to @max of them; returns how many. */
static unsigned list_sizes(const struct bench *b, const char *case_name, uint64_t *sizes,
                           unsigned max)
{
    unsigned nr = 0;
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        unsigned i = 0;
        while (i < nr && sizes[i] != r->n) {
            i++;
        }
        if (i == nr && nr < max && !strcmp(r->case_name, case_name)) {
            sizes[nr++] = r->n;
        }
    }
    return nr;
}

/* The first row of @like's case, implementation and threads that has a ratio, and of *@n; NULL: of
 * any n. */
static const struct bench_row *find_ratio(const struct bench *b, const struct bench_row *like,
                                          const uint64_t *n)
{
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        if (r->ratio > 0 && r->thread < 0 && !strcmp(r->case_name, like->case_name) &&
            !strcmp(r->impl, like->impl) && r->threads == like->threads && (!n || r->n == *n)) {
            return r;
        }
    }
    return NULL;
}

static void print_ratios(const struct bench *b, const char *case_name, enum bench_metric metric)
{
    uint64_t sizes[RATIOS_MAX];
    unsigned nr = list_sizes(b, case_name, sizes, RATIOS_MAX), lines = 0;
    for (const struct bench_row *r = b->rows; r && nr > 1; r = r->next) {
        if (strcmp(r->case_name, case_name) || find_ratio(b, r, NULL) != r) {
            continue;
        }
        if (!lines++) {
            printf("\n  %s/impl of %s\n  %-14s", b->ours, metrics[metric].name, "n");
            for (unsigned i = 0; i < nr; i++) {
                printf(" %10llu", (unsigned long long)sizes[i]);
            }
            putchar('\n');
        }
        printf("  %-14s", r->impl);
        for (unsigned i = 0; i < nr; i++) {
            const struct bench_row *at = find_ratio(b, r, &sizes[i]);
            if (at) {
                printf(" %10.2f", at->ratio);
            } else {
                printf(" %10s", "-");
            }
        }
        putchar('\n');
    }
}

void bench_print(struct bench *b, const char *case_name, enum bench_metric metric)
{
    bool shown[BENCH_METRICS] = { 0 }, rows = false;
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        if (strcmp(r->case_name, case_name)) {
            continue;
        }
        rows = true;
        for (int m = 0; m < BENCH_METRICS; m++) {
            shown[m] |= r->samples[m].nr > 0;
        }
    }
    if (!rows) {
        return;
    }
    printf("\n%s: %s   (ratios: of %s)\n", b->name, case_name, metrics[metric].name);
    printf("  %-10s %7s  %-14s", "n", "threads", "impl");
    for (int m = 0; m < BENCH_METRICS; m++) {
        if (shown[m]) {
            printf(" %13s", metrics[m].name);
        }
    }
    char ours[32];
    snprintf(ours, sizeof(ours), "%s/impl", b->ours);
    printf(" %12s %12s\n", "to least n", ours);
    for (struct bench_row *r = b->rows; r; r = r->next) {
        if (!strcmp(r->case_name, case_name)) {
            print_row(b, r, shown, metric);
        }
    }
    print_ratios(b, case_name, metric);
}

/* ---- The end --------------------------------------------------------------------------------- */

static void write_value(const struct bench *b, const struct bench_row *r, const char *metric,
                        const char *unit, double value)
{
    fprintf(b->json,
            "{\"bench\": \"%s\", \"case\": \"%s\", \"impl\": \"%s\", \"threads\": %u, "
            "\"n\": %llu, \"metric\": \"%s\", \"unit\": \"%s\", \"value\": %.*f}\n",
            b->name, r->case_name, r->impl, r->threads, (unsigned long long)r->n, metric, unit,
            value < 10 ? 6 : 3, value);
}

static void write_json(const struct bench *b)
{
    for (const struct bench_row *r = b->rows; r; r = r->next) {
        for (int m = 0; m < BENCH_METRICS && r->thread < 0; m++) {
            if (r->samples[m].nr) {
                write_value(b, r, metrics[m].name, metrics[m].unit, value_of(r, m));
            }
        }
        if (r->thread < 0 && r->ratio > 0) {
            char unit[64];
            snprintf(unit, sizeof(unit), "%s/impl of %s", b->ours, metrics[r->ratio_of].name);
            write_value(b, r, "ratio", unit, r->ratio);
        }
    }
}

static void free_rows(struct bench *b)
{
    while (b->rows) {
        struct bench_row *row = b->rows;
        b->rows = row->next;
        for (int m = 0; m < BENCH_METRICS; m++) {
            free(row->samples[m].v);
        }
        free(row);
    }
}

int bench_finish(struct bench *b)
{
    if (b->json) {
        write_json(b);
        if (fclose(b->json)) {
            bench_die("%s: cannot write the JSON file: %s", b->name, strerror(errno));
        }
    }
    printf("\n%s: checksum %016llx, %u failed checks\n", b->name, (unsigned long long)b->checksum,
           b->failed);
    free_rows(b);
    return b->failed ? 1 : 0;
}
