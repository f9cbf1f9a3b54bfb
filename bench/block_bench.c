/* SPDX-License-Identifier: MIT */
/*
 * block_bench: what does a request cost on its way through the block layer?  4 KiB reads, 32 in
 * flight on each thread (n is that depth); each callback issues the next one.
 *
 *   null           a driver that does nothing: what is measured is ours alone
 *   null-deadline  the same with a deadline on each read
 *   null-scaling   null-deadline on several iothreads and one backend, beside as many independent
 *                  processes with one iothread each
 *   file           buffered reads of a cached file, beside a plain liburing loop
 *   file-deadline  the same with a deadline on each read, beside linked timeouts
 */
#include "block_load.h"
#include "test_file.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH 32

static const char *const case_names[] = { "null", "null-deadline", "null-scaling",
                                          "file", "file-deadline", NULL };

enum side { AIOCTX, PROCESSES, LIBURING };

/* One case with one number of threads. */
struct job {
    struct bench *b;
    const char *case_name;
    unsigned threads, depth;
    bool deadline;
    uint32_t blocks;
    const uint64_t *expect;
    struct aioctx_team *team;
    struct BlockBackend *blk;
    int fd;
};

/* ---- Runs ------------------------------------------------------------------------------------ */

static void run_side(struct job *job, enum side side, const char *impl, bool warm_up)
{
    struct bench *b = job->b;
    struct load loads[256];
    struct bench_share shares[256];
    for (unsigned t = 0; t < job->threads; t++) {
        loads[t] = (struct load){
            .run_ns = b->run_ms * UINT64_C(1000000) / (warm_up ? 4 : 1),
            .depth = job->depth,
            .deadline = job->deadline,
            .blocks = job->blocks,
            .expect = job->expect,
            .random = t + 1, /* every side reads the same blocks in the same order */
        };
    }
    if (side == AIOCTX) {
        aioctx_team_run(job->team, job->blk, loads);
    } else if (side == PROCESSES) {
        processes_run(job->threads, b->pin, loads);
    } else if (!liburing_run(job->fd, job->threads, b->pin, loads)) {
        bench_die("block_bench: cannot make a ring for the plain loop");
    }
    for (unsigned t = 0; t < job->threads; t++) {
        struct load *l = &loads[t];
        bench_check(b, !l->failed, "%s: %llu reads of %s failed or held something else",
                    job->case_name, (unsigned long long)l->failed, impl);
        b->checksum += l->checksum;
        shares[t].ns_per_op = (double)l->span.wall_ns / (double)l->ops;
        shares[t].cpu_ns_per_op = (double)l->span.cpu_ns / (double)l->ops;
    }
    if (!warm_up) {
        bench_sample_threads(b, job->case_name, impl, job->threads, job->depth, shares);
    }
}

/* Both sides in turn; @peer NULL: ours alone. */
static void run_job(struct job *job, enum side peer_side, const char *peer)
{
    for (unsigned run = 0; run <= job->b->runs; run++) {
        bool warm_up = run == 0;
        run_side(job, AIOCTX, "aioctx", warm_up);
        if (peer && !(warm_up && peer_side == PROCESSES)) { /* which warm up themselves */
            run_side(job, peer_side, peer, warm_up);
        }
    }
}

/* ---- The null driver ------------------------------------------------------------------------- */

static void run_null(struct bench *b, const char *case_name, unsigned threads, unsigned depth)
{
    bool scaling = !strcmp(case_name, "null-scaling");
    struct job job = {
        .b = b,
        .case_name = case_name,
        .threads = threads,
        .depth = depth,
        .deadline = strcmp(case_name, "null"),
        .blocks = NULL_BLOCKS,
        .team = aioctx_team_new(threads, 0, b->pin),
        .blk = aioctx_open(NULL_SPEC),
    };
    run_job(&job, PROCESSES, scaling ? "processes" : NULL);
    aioctx_close(job.blk);
    aioctx_team_free(job.team);
}

/* ---- The file driver ------------------------------------------------------------------------- */

static void run_file(struct bench *b, const char *case_name, unsigned threads, unsigned depth,
                     const struct test_file *f)
{
    char spec[64];
    bool deadline = !strcmp(case_name, "file-deadline");
    snprintf(spec, sizeof(spec), "file:/proc/self/fd/%d?read-only=on", f->fd);
    struct job job = {
        .b = b,
        .case_name = case_name,
        .threads = threads,
        .depth = depth,
        .deadline = deadline,
        .blocks = f->blocks,
        .expect = f->expect,
        .team = aioctx_team_new(threads, 0, b->pin),
        .blk = aioctx_open(spec),
        .fd = f->fd,
    };
    if (aioctx_team_can(job.team, job.blk)) {
        run_job(&job, LIBURING, deadline ? "link-timeout" : "liburing");
    }
    aioctx_close(job.blk);
    aioctx_team_free(job.team);
}

/* ---- The program ----------------------------------------------------------------------------- */

static void run_cases(struct bench *b, const char *case_list, unsigned depth, const char *path)
{
    unsigned first = b->threads ? b->threads : 1, last = b->threads ? b->threads : 2;
    struct test_file f = { .fd = -1 };
    bool have_file = false, tried = false;
    for (unsigned c = 0; case_names[c]; c++) {
        const char *name = case_names[c];
        bool scaling = !strcmp(name, "null-scaling"), file = !strncmp(name, "file", 4);
        if (!bench_listed(case_list, name)) {
            continue;
        }
        if (file && !tried) {
            tried = true;
            have_file = test_file_open(&f, path, b->smoke);
        }
        for (unsigned threads = scaling ? last : first; threads <= last; threads++) {
            if (!file) {
                run_null(b, name, threads, depth);
            } else if (have_file) {
                run_file(b, name, threads, depth, &f);
            }
        }
        bench_print(b, name, scaling ? BENCH_OPS_PER_S : BENCH_CPU_NS_PER_OP);
    }
    if (have_file) {
        test_file_close(&f);
    }
}

int main(int argc, char **argv)
{
    const char *case_list = NULL, *path = NULL, *depth_text = NULL, *child = NULL;
    const struct bench_opt opts[] = {
        { "case", "CASE,...", "of null, null-deadline, null-scaling, file, file-deadline (all)",
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
               "Measures requests on the null and file drivers, with one and two iothreads unless\n"
               "--threads says how many.",
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
