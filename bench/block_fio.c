/* SPDX-License-Identifier: MIT */
/*
 * block_bench's peer fio: its io_uring engine with random reads of the same file, at the same depth
 * and with the same registrations, in a process of its own.  Its options are those that cost it
 * least: no map of blocks, few looks at the clock.  It reports the CPU time of its threads.
 */
#include "block_load.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIO_MS_MIN 250 /* fio counts CPU time in milliseconds */

extern char **environ;

/* Runs @argv; returns its output, to be freed, or NULL when it failed. */
static char *output_of(char **argv)
{
    posix_spawn_file_actions_t actions;
    size_t size = 0, room = 1 << 16;
    char *text = malloc(room);
    int to[2], status = 0;
    pid_t pid;

    if (!text || pipe2(to, O_CLOEXEC)) {
        bench_die("block_bench: cannot make a pipe: %s", strerror(errno));
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int err = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to[1]);
    for (ssize_t n;
         !err && size + 1 < room && (n = read(to[0], text + size, room - size - 1)) > 0;) {
        size += (size_t)n;
    }
    close(to[0]);
    text[size] = 0;
    while (!err && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (err || status) {
        free(text);
        return NULL;
    }
    return text;
}

/* The number behind the first "@name" at or after *@text, which moves on to it; below 0: none. */
static double number_after(const char **text, const char *name)
{
    char key[32];
    snprintf(key, sizeof(key), "\"%s\" :", name);
    const char *at = *text ? strstr(*text, key) : NULL;
    *text = at;
    return at ? strtod(at + strlen(key), NULL) : -1;
}

/* What one thread of the average did. */
static bool parse(const char *text, unsigned threads, struct load *l)
{
    double ios = number_after(&text, "total_ios");
    double ms = number_after(&text, "job_runtime"); /* the sum of the threads' */
    double user = number_after(&text, "usr_cpu"), sys = number_after(&text, "sys_cpu");

    if (ios < 1 || ms <= 0 || user < 0 || sys < 0) {
        return false;
    }
    l->ops = (uint64_t)(ios / threads);
    l->span.wall_ns = (uint64_t)(ms * 1e6 / threads);
    l->span.cpu_ns = (uint64_t)(ms * 1e6 * (user + sys) / 100 / threads);
    return l->ops > 0;
}

bool fio_run(int fd, bool fixed, bool direct, unsigned threads, struct load *loads)
{
    char file[64], depth[32], size[32], jobs[32], runtime[32];
    uint64_t ms = loads->run_ns / 1000000;

    snprintf(file, sizeof(file), "--filename=/proc/%d/fd/%d", (int)getpid(), fd);
    snprintf(depth, sizeof(depth), "--iodepth=%u", loads->depth);
    snprintf(size, sizeof(size), "--size=%llu", (unsigned long long)loads->blocks * BLOCK_BYTES);
    snprintf(jobs, sizeof(jobs), "--numjobs=%u", threads);
    snprintf(runtime, sizeof(runtime), "--runtime=%llums",
             (unsigned long long)(ms > FIO_MS_MIN ? ms : FIO_MS_MIN));
    char *argv[] = { "fio",
                     "--name=reads",
                     "--ioengine=io_uring",
                     "--rw=randread",
                     "--bs=4k",
                     "--readonly",
                     "--norandommap",
                     "--gtod_reduce=1",
                     "--thread",
                     "--time_based",
                     "--group_reporting",
                     "--output-format=json",
                     "--invalidate=0",
                     file,
                     depth,
                     size,
                     jobs,
                     runtime,
                     direct ? "--direct=1" : "--direct=0",
                     fixed ? "--registerfiles=1" : "--registerfiles=0",
                     fixed ? "--fixedbufs=1" : "--fixedbufs=0",
                     NULL };
    char *text = output_of(argv);
    bool ok = text && parse(text, threads, &loads[0]);

    free(text);
    for (unsigned t = 1; t < threads && ok; t++) {
        loads[t] = loads[0];
    }
    return ok;
}
