/* SPDX-License-Identifier: MIT */
/*
 * block_bench: what does a request cost on its way through the block layer?  4 KiB reads, 32 in
 * flight on each thread (n is that depth); each callback issues the next one.
 *
 *   null             a driver that does nothing: what is measured is ours alone; in aioctx-zeroes
 *                    it clears the buffers
 *   null-deadline    the same with a deadline on each read, for which the caller looks at the clock
 *   null-scaling     null-deadline on several iothreads and one backend, beside as many independent
 *                    processes with one iothread each
 *   throttle         the null driver below a throttle filter whose limit never binds
 *   file             buffered reads of a cached file, beside a plain liburing loop and fio
 *   file-registered  the same with the file and the buffers registered with the ring
 *   file-direct      direct reads, beside the same two
 *   file-deadline    buffered reads with a deadline on each, beside linked timeouts
 *
 * added_ns is the CPU time that a row takes beyond the one that lacks a deadline or the filter.
 */
#include "block_load.h"
#include "test_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH 32

enum side_kind { AIOCTX, PROCESSES, LIBURING, FIO };
enum { DEADLINE = 1 << 0, FIXED = 1 << 1, DIRECT = 1 << 2, ZEROES = 1 << 3 };

enum { SIDES_MAX = 4 };

struct side {
    const char *impl;
    enum side_kind kind;
    unsigned flags;
    const char *spec; /* of aioctx's backend; %d: the file's fd */
    const char *base; /* the side beyond which added_ns counts */
};

struct block_case {
    const char *name;
    enum bench_metric ratio_of;
    struct side sides[SIDES_MAX];
};

#define FILE_SPEC "file:/proc/self/fd/%d?read-only=on"

/* The first side of each is the one that the others are compared with. */
static const struct block_case cases[] = {
    { "null",
      BENCH_CPU_NS_PER_OP,
      { { "aioctx", AIOCTX, 0, NULL_SPEC, NULL },
        { "aioctx-zeroes", AIOCTX, ZEROES, "null://?size=1G", NULL } } },
    { "null-deadline",
      BENCH_CPU_NS_PER_OP,
      { { "aioctx", AIOCTX, DEADLINE, NULL_SPEC, "aioctx-plain" },
        { "aioctx-plain", AIOCTX, 0, NULL_SPEC, NULL } } },
    { "null-scaling",
      BENCH_OPS_PER_S,
      { { "aioctx", AIOCTX, DEADLINE, NULL_SPEC, NULL },
        { "processes", PROCESSES, DEADLINE, NULL, NULL } } },
    { "throttle",
      BENCH_CPU_NS_PER_OP,
      { { "aioctx", AIOCTX, 0, "throttle:iops=1000000000,null:size=1G,read-zeroes=off",
          "aioctx-plain" },
        { "aioctx-plain", AIOCTX, 0, NULL_SPEC, NULL } } },
    { "file",
      BENCH_CPU_NS_PER_OP,
      { { "aioctx", AIOCTX, 0, FILE_SPEC, NULL },
        { "liburing", LIBURING, 0, NULL, NULL },
        { "fio", FIO, 0, NULL, NULL } } },
    { "file-registered",
      BENCH_CPU_NS_PER_OP,
      { { "aioctx", AIOCTX, FIXED, FILE_SPEC "&registered=on", NULL },
        { "liburing", LIBURING, FIXED, NULL, NULL },
        { "fio", FIO, FIXED, NULL, NULL } } },
    { "file-direct",
      BENCH_CPU_NS_PER_OP,
      { { "aioctx", AIOCTX, DIRECT, FILE_SPEC "&direct=on", NULL },
        { "liburing", LIBURING, DIRECT, NULL, NULL },
        { "fio", FIO, DIRECT, NULL, NULL } } },
    { "file-deadline",
      BENCH_ADDED_NS,
      { { "aioctx", AIOCTX, DEADLINE, FILE_SPEC, "aioctx-plain" },
        { "aioctx-plain", AIOCTX, 0, FILE_SPEC, NULL },
        { "link-timeout", LIBURING, DEADLINE, NULL, "liburing" },
        { "liburing", LIBURING, 0, NULL, NULL } } },
};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };

static const char *const case_names[] = { "null",        "null-deadline", "null-scaling",
                                          "throttle",    "file",          "file-registered",
                                          "file-direct", "file-deadline", NULL };

/* One case with one number of threads. */
struct job {
    struct bench *b;
    const struct block_case *c;
    unsigned threads, depth;
    const struct test_file *file; /* NULL: the null driver */
    int direct_fd;
    struct aioctx_team *team;
    struct BlockBackend *blk[SIDES_MAX];
    bool cannot[SIDES_MAX];
    double cpu_ns[SIDES_MAX]; /* of this round's run */
};

/* ---- Runs ------------------------------------------------------------------------------------ */

static int fd_of(const struct job *job, const struct side *side)
{
    return side->flags & DIRECT ? job->direct_fd : job->file ? job->file->fd : -1;
}

static bool run_loads(struct job *job, unsigned i, struct load *loads)
{
    const struct side *side = &job->c->sides[i];

    switch (side->kind) {
    case AIOCTX:
        aioctx_team_run(job->team, job->blk[i], loads);
        return true;
    case PROCESSES:
        processes_run(job->threads, job->b->pin, loads);
        return true;
    case LIBURING:
        return liburing_run(fd_of(job, side), side->flags & FIXED, job->threads, job->b->pin,
                            loads);
    default:
        return fio_run(fd_of(job, side), side->flags & FIXED, side->flags & DIRECT, job->threads,
                       loads);
    }
}

static void take_results(struct job *job, unsigned i, const struct load *loads)
{
    struct bench *b = job->b;
    const struct side *side = &job->c->sides[i];
    struct bench_share shares[256];

    job->cpu_ns[i] = 0;
    for (unsigned t = 0; t < job->threads; t++) {
        const struct load *l = &loads[t];
        bench_check(b, !l->failed, "%s: %llu reads of %s failed or held something else",
                    job->c->name, (unsigned long long)l->failed, side->impl);
        b->checksum += l->checksum;
        shares[t].ns_per_op = (double)l->span.wall_ns / (double)l->ops;
        shares[t].cpu_ns_per_op = (double)l->span.cpu_ns / (double)l->ops;
        job->cpu_ns[i] += shares[t].cpu_ns_per_op / job->threads;
    }
    bench_sample_threads(b, job->c->name, side->impl, job->threads, job->depth, shares);
}

static void run_side(struct job *job, unsigned i, bool warm_up)
{
    const struct side *side = &job->c->sides[i];
    struct load loads[256];

    if (warm_up && side->kind != AIOCTX && side->kind != LIBURING) {
        return; /* they warm up themselves */
    }
    if (job->b->smoke && side->kind == FIO && (side->flags || job->threads > 1)) {
        return; /* one run shows that it works, and its start takes longer than all the rest */
    }
    for (unsigned t = 0; t < job->threads; t++) {
        loads[t] = (struct load){
            .run_ns = job->b->run_ms * UINT64_C(1000000) / (warm_up ? 4 : 1),
            .depth = job->depth,
            .deadline = side->flags & DEADLINE,
            .blocks = job->file ? job->file->blocks : NULL_BLOCKS,
            .expect = job->file ? job->file->expect : NULL,
            .expect_all = side->flags & ZEROES ? 0 : SPOILED,
            .random = t + 1, /* every side reads the same blocks in the same order */
        };
    }
    if (!run_loads(job, i, loads)) {
        job->cannot[i] = true;
        printf("%s: %s skipped: %s\n", job->c->name, side->impl,
               side->kind == FIO ? "no fio with an io_uring engine" : "no io_uring");
    } else if (!warm_up) {
        take_results(job, i, loads);
    }
}

static void sample_added(struct job *job)
{
    const struct side *sides = job->c->sides;

    for (unsigned i = 0; i < SIDES_MAX && sides[i].impl; i++) {
        for (unsigned k = 0; k < SIDES_MAX && sides[i].base && sides[k].impl; k++) {
            if (!strcmp(sides[k].impl, sides[i].base) && !job->cannot[i] && !job->cannot[k]) {
                bench_sample(
                    bench_row(job->b, job->c->name, sides[i].impl, job->threads, job->depth),
                    BENCH_ADDED_NS, job->cpu_ns[i] - job->cpu_ns[k]);
            }
        }
    }
}

/* The sides in turns; each round begins with another one. */
static void run_rounds(struct job *job)
{
    unsigned nr = 0;

    while (nr < SIDES_MAX && job->c->sides[nr].impl) {
        nr++;
    }
    for (unsigned round = 0; round <= job->b->runs; round++) {
        for (unsigned k = 0; k < nr; k++) {
            unsigned i = (round + nr - 1 + k) % nr;
            if (!job->cannot[i]) {
                run_side(job, i, round == 0);
            }
        }
        if (round > 0) {
            sample_added(job);
        }
    }
}

/* ---- Cases ----------------------------------------------------------------------------------- */

static bool open_side(struct job *job, unsigned i)
{
    const struct side *side = &job->c->sides[i];
    char spec[96];

    if (!side->spec) {
        return true;
    }
    snprintf(spec, sizeof(spec), side->spec, fd_of(job, &(struct side){ 0 }));
    job->blk[i] = aioctx_open(spec);
    if (side->flags & FIXED) {
        aioctx_team_register(job->team, job->blk[i]);
    }
    return aioctx_team_can(job->team, job->blk[i]);
}

static void run_job(struct job *job)
{
    bool can = true;

    job->team = aioctx_team_new(job->threads, 0, job->b->pin);
    for (unsigned i = 0; i < SIDES_MAX && job->c->sides[i].impl && can; i++) {
        can = open_side(job, i);
    }
    if (can) {
        run_rounds(job);
    }
    for (unsigned i = 0; i < SIDES_MAX; i++) {
        if (job->blk[i]) {
            aioctx_close(job->blk[i]);
        }
    }
    aioctx_team_free(job->team);
}

/* The file again, past the page cache; -1: its file system cannot. */
static int open_direct(const struct test_file *f)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
    return open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

static void run_case(struct bench *b, const struct block_case *c, unsigned depth,
                     const struct test_file *file)
{
    bool scaling = !strcmp(c->name, "null-scaling");
    unsigned last = b->threads ? b->threads : 2;
    int direct_fd = c->sides[0].flags & DIRECT ? open_direct(file) : -1;

    if (c->sides[0].flags & DIRECT && direct_fd < 0) {
        printf("%s skipped: the file system has no direct I/O\n", c->name);
        return;
    }
    for (unsigned threads = b->threads ? b->threads : scaling ? 2 : 1; threads <= last; threads++) {
        struct job job = {
            .b = b, .c = c, .threads = threads, .depth = depth, .file = file, .direct_fd = direct_fd
        };
        run_job(&job);
    }
    if (direct_fd >= 0) {
        close(direct_fd);
    }
    bench_print(b, c->name, c->ratio_of);
}

/* ---- The program ----------------------------------------------------------------------------- */

static void run_cases(struct bench *b, const char *case_list, unsigned depth, const char *path)
{
    struct test_file f = { .fd = -1 };
    bool have_file = false, tried = false;

    for (unsigned i = 0; i < CASES; i++) {
        const struct block_case *c = &cases[i];
        bool file = !strncmp(c->name, "file", 4);
        if (!bench_listed(case_list, c->name)) {
            continue;
        }
        if (file && !tried) {
            tried = true;
            have_file = test_file_open(&f, path, b->smoke);
        }
        if (!file || have_file) {
            run_case(b, c, depth, file ? &f : NULL);
        }
    }
    if (have_file) {
        test_file_close(&f);
    }
}

int main(int argc, char **argv)
{
    const char *case_list = NULL, *path = NULL, *depth_text = NULL, *child = NULL;
    const struct bench_opt opts[] = {
        { "case", "CASE,...",
          "of null, null-deadline, null-scaling, throttle, file, file-registered, file-direct, "
          "file-deadline (all)",
          &case_list },
        { "depth", "N", "reads in flight on each thread, 1 to 64 (default 32)", &depth_text },
        { "file", "FILE",
          "a file to read, its first 64 MiB (default: one of its own in " TEST_FILE_DIR ")",
          &path },
        { "child", "INDEX", NULL, &child }, /* see block_process.c */
        { 0 },
    };
    struct bench b;
    bench_init(&b, "block_bench",
               "Measures requests on the null and file drivers and through throttle, with one and\n"
               "two iothreads unless --threads says how many.",
               opts, argc, argv);
    bench_check_list("--case", case_list, case_names);
    unsigned depth =
        depth_text ? (unsigned)bench_number("--depth", depth_text, 1, DEPTH_MAX) : DEPTH;
    if (child) {
        return process_main(child, &b, depth);
    }
    run_cases(&b, case_list, depth, path);
    return bench_finish(&b);
}
