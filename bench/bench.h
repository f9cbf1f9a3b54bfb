/* SPDX-License-Identifier: MIT */
/*
 * What the benchmark programs share: options, clocks, pinning, samples, tables and JSON lines.
 *
 * A program makes one struct bench, adds samples to rows (one row: case, implementation, number
 * of threads, n), one sample of each metric per run, and prints.  The implementations of a case
 * take turns, run by run, so that what disturbs the machine disturbs all of them; a row's value is
 * the median of its samples, and a ratio of two rows is the median of the ratios run by run.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum bench_metric {
    BENCH_NS_PER_OP,     /* wall time */
    BENCH_CPU_NS_PER_OP, /* CPU time of the threads that did it */
    BENCH_OPS_PER_S,     /* all threads together */
    BENCH_P50_NS,
    BENCH_P99_NS,
    BENCH_P999_NS,
    BENCH_MAX_NS,
    BENCH_RAW_MAX_NS,    /* as seen, with what the machine did meanwhile */
    BENCH_EMPTY_MAX_NS,  /* of a loop that only reads the clock, for as long */
    BENCH_OVER_EMPTY_NS, /* by how much the one passes the other */
    BENCH_TO_CLOCK,      /* CPU time, as a multiple of a clock read's beside it */
    BENCH_WAKEUPS_PER_K, /* wake-ups of the loop per 1000 operations */
    BENCH_WAKEUPS_PER_M, /* per million */
    BENCH_BYTES,
    BENCH_USER_BYTES, /* of BENCH_BYTES, what the user holds */
    BENCH_TIMES_RUN,  /* how often a thread got a processor */
    BENCH_SYSCALLS,
    BENCH_IOWAIT,      /* threads that the kernel takes to wait for I/O */
    BENCH_TO_BEST,     /* wall time, as a multiple of the best peer's */
    BENCH_CPU_TO_BEST, /* CPU time likewise */
    BENCH_ADDED_NS,    /* CPU time beyond that of a row that does the same without something */
    BENCH_METRICS
};

struct bench_row;

struct bench {
    const char *name;  /* the program's, and "bench" in the JSON */
    const char *ours;  /* the implementation that the others are compared with: "aioctx", unless the
                          program sets another after bench_init() */
    unsigned threads;  /* --threads; 0: not given */
    unsigned runs;     /* --runs */
    unsigned run_ms;   /* --run-ms: about how long one run of one implementation lasts */
    bool smoke;        /* --smoke */
    bool pin;          /* --pin */
    FILE *json;        /* --json */
    uint64_t checksum; /* of the work done; printed, so that none is optimised away */
    unsigned failed;   /* checks */
    struct bench_row *rows, **rows_end;
};

/* An option of one program: "--name ARG" or, where arg is NULL, "--name", which sets *value to "".
 * Help NULL: not for people, and not shown.  Value NULL: the program does not have this one of the
 * common options. */
struct bench_opt {
    const char *name, *arg, *help;
    const char **value;
};

/*
 * Reads the options common to all programs and those in @opts, which ends with a NULL name; @about
 * is one line for --help.  Ends the program, with status 2 and one line, for what it cannot read.
 */
void bench_init(struct bench *b, const char *name, const char *about, const struct bench_opt *opts,
                int argc, char **argv);

/* A whole number from @min to @max, else ends the program with status 2, naming @option. */
uint64_t bench_number(const char *option, const char *text, uint64_t min, uint64_t max);

/* Whether @name stands in the comma-separated @list; NULL lists everything. */
bool bench_listed(const char *list, const char *name);

/* Ends the program with status 2 when @list names something that is not in @known (NULL-ended). */
void bench_check_list(const char *option, const char *list, const char *const *known);

/* Ends the program with status 1 and a message. */
_Noreturn void bench_die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Counts a failed check, and says so, when @ok is false.  Main thread. */
void bench_check(struct bench *b, bool ok, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- Time and place -------------------------------------------------------------------------- */

uint64_t bench_now_ns(void); /* CLOCK_MONOTONIC */
uint64_t bench_cpu_ns(void); /* of the calling thread */

struct bench_span {
    uint64_t wall_ns, cpu_ns;
};

void bench_begin(struct bench_span *span);
void bench_end(struct bench_span *span); /* span: what passed since bench_begin() */

void bench_sleep_ns(uint64_t ns);

/* The number of processors that this process may run on. */
unsigned bench_cpus(void);

/* Pins the calling thread to one of them, counted from 0 and around. */
void bench_pin(unsigned index);

/* Runs @fn(index, @arg) on @threads threads, each pinned to a processor of its own when @pin, and
 * waits for all. */
void bench_threads(unsigned threads, bool pin, void (*fn)(unsigned index, void *arg), void *arg);

/* For what one thread writes all the time: no other thread's data may share its cache line, nor the
 * pair of lines that processors fetch together. */
#define BENCH_ALIGN 128

/* Zeroed memory so aligned, or ends the program.  @bytes is rounded up. */
void *bench_alloc(size_t bytes);

/* ---- Numbers --------------------------------------------------------------------------------- */

/* xorshift64*; the state must not be 0.  Source: Vigna, "An experimental exploration of
 * Marsaglia's xorshift generators, scrambled", 2016. */
static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dULL;
}

/* A random number below @n. */
static inline uint32_t bench_random_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)(((bench_random(state) >> 32) * n) >> 32);
}

/* Adds p50, p99, p99.9 and the maximum of @n latencies to a row; sorts them. */
void bench_sample_latencies(struct bench_row *row, uint64_t *ns, size_t n);

/* ---- Rows ------------------------------------------------------------------------------------ */

/* The row, made when it is not there.  The strings must live on. */
struct bench_row *bench_row(struct bench *b, const char *case_name, const char *impl,
                            unsigned threads, uint64_t n);

/* One thread's share of a run. */
struct bench_share {
    double ns_per_op, cpu_ns_per_op;
};

/*
 * Adds one run: the row's costs are those of the average thread, its rate is that of all together;
 * with more than one thread each gets a line of its own below it in the table (not in the JSON).
 */
void bench_sample_threads(struct bench *b, const char *case_name, const char *impl,
                          unsigned threads, uint64_t n, const struct bench_share *shares);

void bench_sample(struct bench_row *row, enum bench_metric metric, double value);

/*
 * Adds to each row of a case that is ours (b->ours, and what begins with it and a dash) its ratio
 * to the best of the @nr_peers rows of peers with the same n and threads, for wall and for CPU
 * time; the best is the one with the least median.  After the last sample.
 */
void bench_sample_best(struct bench *b, const char *case_name, const char *const *peers,
                       unsigned nr_peers);

/*
 * Prints the rows of one case, with ratios by @metric: to the smallest n of the same
 * implementation, and of b->ours to this implementation.  Where there are several n the latter
 * follow once more, a line for each implementation; they are also in the JSON, as "ratio".
 */
void bench_print(struct bench *b, const char *case_name, enum bench_metric metric);

/* Writes the JSON lines and the closing line; returns the exit status, 1 after a failed check. */
int bench_finish(struct bench *b);

#endif
