/* SPDX-License-Identifier: MIT */
/* Options, clocks and threads of the benchmark programs; the rows are in rows.c. */
#include "bench.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- Options --------------------------------------------------------------------------------- */

_Noreturn static void usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

_Noreturn static void usage_error(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (--help lists the options)\n");
    exit(2);
}

uint64_t bench_number(const char *option, const char *text, uint64_t min, uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < min || value > max) {
        usage_error("%s: '%s' is no number from %llu to %llu", option, text,
                    (unsigned long long)min, (unsigned long long)max);
    }
    return value;
}

bool bench_listed(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = list; p; p = strchr(p, ','), p = p ? p + 1 : NULL) {
        if (!strncmp(p, name, len) && (p[len] == ',' || !p[len])) {
            return true;
        }
    }
    return !list;
}

void bench_check_list(const char *option, const char *list, const char *const *known)
{
    for (const char *p = list; p; p = strchr(p, ','), p = p ? p + 1 : NULL) {
        size_t len = strcspn(p, ",");
        const char *const *k = known;
        while (*k && (strlen(*k) != len || strncmp(*k, p, len))) {
            k++;
        }
        if (*k) {
            continue;
        }
        fprintf(stderr, "%s: '%.*s' is none of:", option, (int)len, p);
        for (k = known; *k; k++) {
            fprintf(stderr, " %s", *k);
        }
        usage_error("%s", "");
    }
}

static const struct bench_opt *find_option(const struct bench_opt *opts, const char *name,
                                           size_t len)
{
    for (; opts->name; opts++) {
        if (strlen(opts->name) == len && !strncmp(opts->name, name, len)) {
            return opts;
        }
    }
    return NULL;
}

/* But for those in @without, which may be NULL. */
static void print_options(const struct bench_opt *opts, const struct bench_opt *without)
{
    for (; opts->name; opts++) {
        if (!opts->help || (without && find_option(without, opts->name, strlen(opts->name)))) {
            continue;
        }
        char left[40];
        snprintf(left, sizeof(left), "%s %s", opts->name, opts->arg ? opts->arg : "");
        printf("  --%-18s %s\n", left, opts->help);
    }
}

static void parse_options(const struct bench_opt *opts, const struct bench_opt *common, int argc,
                          char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i] + 2;
        if (strncmp(argv[i], "--", 2)) {
            usage_error("'%s' is no option", argv[i]);
        }
        size_t len = strcspn(name, "=");
        const struct bench_opt *o = find_option(opts, name, len);
        o = o ? o : find_option(common, name, len);
        if (!o || !o->value) {
            usage_error("there is no option %.*s", (int)(len + 2), argv[i]);
        }
        if (o->arg && !name[len] && i + 1 == argc) {
            usage_error("--%s needs %s", o->name, o->arg);
        }
        if (!o->arg && name[len]) {
            usage_error("--%s takes no value", o->name);
        }
        *o->value = !o->arg ? "" : name[len] ? name + len + 1 : argv[++i];
    }
}

void bench_init(struct bench *b, const char *name, const char *about, const struct bench_opt *opts,
                int argc, char **argv)
{
    const char *threads = NULL, *runs = NULL, *run_ms = NULL, *json = NULL;
    const char *smoke = NULL, *pin = NULL, *help = NULL;
    const struct bench_opt common[] = {
        { "threads", "N", "threads that do the same side by side, each on objects of its own",
          &threads },
        { "runs", "N", "timed runs, of which the median counts (default 7)", &runs },
        { "run-ms", "N", "about how long a run lasts, in milliseconds (default 100)", &run_ms },
        { "pin", NULL, "pin each thread to a processor of its own", &pin },
        { "json", "FILE", "write the results there, one JSON object a line", &json },
        { "smoke", NULL, "a second of everything, to check results and not speed", &smoke },
        { "help", NULL, "this text", &help },
        { 0 },
    };

    *b = (struct bench){ .name = name, .ours = "aioctx" };
    b->rows_end = &b->rows;
    parse_options(opts, common, argc, argv);
    if (help) {
        printf("Usage: %s [OPTION]...\n%s\n\n", name, about);
        print_options(opts, NULL);
        print_options(common, opts);
        exit(0);
    }
    b->smoke = smoke;
    b->pin = pin;
    if (json) {
        b->json = fopen(json, "we"); /* now, not after a minute's work */
        if (!b->json) {
            usage_error("--json: cannot write '%s': %s", json, strerror(errno));
        }
    }
    b->threads = threads ? (unsigned)bench_number("--threads", threads, 1, 256) : 0;
    b->runs = runs ? (unsigned)bench_number("--runs", runs, 1, 1000) : smoke ? 1 : 7;
    b->run_ms = run_ms ? (unsigned)bench_number("--run-ms", run_ms, 1, 60000) : smoke ? 2 : 100;
    setvbuf(stdout, NULL, _IOLBF, 0);
}

/* ---- Failures -------------------------------------------------------------------------------- */

void bench_die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

void bench_check(struct bench *b, bool ok, const char *fmt, ...)
{
    if (ok) {
        return;
    }
    b->failed++;
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s: check failed: ", b->name);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

void *bench_alloc(size_t bytes)
{
    bytes = (bytes + BENCH_ALIGN - 1) / BENCH_ALIGN * BENCH_ALIGN;
    void *p = aligned_alloc(BENCH_ALIGN, bytes);
    if (!p) {
        bench_die("out of memory");
    }
    return memset(p, 0, bytes);
}

/* ---- Time and place -------------------------------------------------------------------------- */

static uint64_t read_clock(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t bench_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t bench_cpu_ns(void)
{
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

/* The wall clock is the outer of the two at neither end, so that both spans hold one read of the
 * other clock: about the same error, a fraction of a microsecond, in each. */
void bench_begin(struct bench_span *span)
{
    span->wall_ns = bench_now_ns();
    span->cpu_ns = bench_cpu_ns();
}

void bench_end(struct bench_span *span)
{
    span->wall_ns = bench_now_ns() - span->wall_ns;
    span->cpu_ns = bench_cpu_ns() - span->cpu_ns;
}

void bench_sleep_ns(uint64_t ns)
{
    struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000),
                           .tv_nsec = (long)(ns % 1000000000) };
    while (nanosleep(&ts, &ts) && errno == EINTR) {
    }
}

unsigned bench_cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(getpid(), sizeof(set), &set) ? 1 : (unsigned)CPU_COUNT(&set);
}

/* The processors of the process are those of its first thread, which is never pinned. */
void bench_pin(unsigned index)
{
    cpu_set_t all, one;
    if (sched_getaffinity(getpid(), sizeof(all), &all)) {
        return;
    }
    index %= (unsigned)CPU_COUNT(&all);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &all) && index-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
            return;
        }
    }
}

struct team_member {
    pthread_t thread;
    unsigned index;
    bool pin;
    void (*fn)(unsigned index, void *arg);
    void *arg;
};

static void *team_member_run(void *opaque)
{
    struct team_member *m = opaque;
    if (m->pin) {
        bench_pin(m->index);
    }
    m->fn(m->index, m->arg);
    return NULL;
}

void bench_threads(unsigned threads, bool pin, void (*fn)(unsigned index, void *arg), void *arg)
{
    struct team_member *team = calloc(threads, sizeof(*team));
    if (!team) {
        bench_die("out of memory");
    }
    for (unsigned i = 0; i < threads; i++) {
        team[i] = (struct team_member){ .index = i, .pin = pin, .fn = fn, .arg = arg };
        int err = pthread_create(&team[i].thread, NULL, team_member_run, &team[i]);
        if (err) {
            bench_die("cannot start a thread: %s", strerror(err));
        }
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(team[i].thread, NULL);
    }
    free(team);
}
