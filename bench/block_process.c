/* SPDX-License-Identifier: MIT */
/*
 * block_bench's independent processes: this program again, once for each iothread of the other
 * side, with an iothread and a null backend of its own.  A child says when it has warmed up, starts
 * when it is told to, and prints its result; it ends when its standard input does.
 */
#include "block_load.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN_MAX 256
#define CHILD_LIMIT_MS 60000

struct child {
    pid_t pid;
    int to, from;
};

/* ---- The parent ------------------------------------------------------------------------------ */

/* Between fork and exec only what is safe there is called. */
static void exec_child(unsigned index, uint64_t run_ns, unsigned depth, bool pin, int in, int out)
{
    char index_text[16], ms_text[24], depth_text[16];
    snprintf(index_text, sizeof(index_text), "%u", index);
    snprintf(ms_text, sizeof(ms_text), "%llu", (unsigned long long)(run_ns / 1000000));
    snprintf(depth_text, sizeof(depth_text), "%u", depth);
    char *argv[] = { "block_bench", "--child",  index_text,           "--run-ms", ms_text,
                     "--depth",     depth_text, pin ? "--pin" : NULL, NULL };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0) {
        execv("/proc/self/exe", argv);
    }
    _exit(127);
}

static struct child spawn(unsigned index, const struct load *l, bool pin)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) {
        bench_die("block_bench: cannot make a pipe: %s", strerror(errno));
    }
    pid_t pid = fork();
    if (pid < 0) {
        bench_die("block_bench: cannot start a process: %s", strerror(errno));
    }
    if (!pid) {
        exec_child(index, l->run_ns, l->depth, pin, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    return (struct child){ .pid = pid, .to = to[1], .from = from[0] };
}

/* Reads one line, or ends the program when the child dies or hangs. */
static void read_line(const struct child *c, char *line, size_t size)
{
    size_t len = 0;
    for (;;) {
        struct pollfd pfd = { .fd = c->from, .events = POLLIN };
        int ready = poll(&pfd, 1, CHILD_LIMIT_MS);
        if (ready < 0 && errno == EINTR) {
            continue;
        }
        if (ready <= 0 || read(c->from, line + len, 1) != 1 || len + 1 == size) {
            bench_die("block_bench: a process of the comparison %s",
                      ready ? "ended before its time" : "hangs");
        }
        if (line[len] == '\n') {
            line[len] = 0;
            return;
        }
        len++;
    }
}

static void read_result(struct child *c, struct load *l)
{
    char line[256];
    unsigned long long ops, wall, cpu, failed, checksum;
    read_line(c, line, sizeof(line));
    if (sscanf(line, "%llu %llu %llu %llu %llu", &ops, &wall, &cpu, &failed, &checksum) != 5) {
        bench_die("block_bench: a process of the comparison said '%s'", line);
    }
    l->ops = ops;
    l->span = (struct bench_span){ .wall_ns = wall, .cpu_ns = cpu };
    l->failed = failed;
    l->checksum = checksum;
    close(c->to);
    close(c->from);
    while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

void processes_run(unsigned nr, bool pin, struct load *loads)
{
    struct child children[CHILDREN_MAX];
    char line[256];
    if (nr > CHILDREN_MAX) {
        bench_die("block_bench: at most %d processes can be compared with", CHILDREN_MAX);
    }
    for (unsigned i = 0; i < nr; i++) {
        children[i] = spawn(i, &loads[i], pin);
    }
    for (unsigned i = 0; i < nr; i++) {
        read_line(&children[i], line, sizeof(line));
    }
    for (unsigned i = 0; i < nr; i++) {
        if (write(children[i].to, "\n", 1) != 1) {
            bench_die("block_bench: a process of the comparison ended before its time");
        }
    }
    for (unsigned i = 0; i < nr; i++) {
        read_result(&children[i], &loads[i]);
    }
}

/* ---- The child ------------------------------------------------------------------------------- */

int process_main(const char *index, const struct bench *b, unsigned depth)
{
    unsigned cpu = (unsigned)bench_number("--child", index, 0, CHILDREN_MAX);
    struct load l = {
        .depth = depth, .deadline = true, .blocks = NULL_BLOCKS, .expect_all = SPOILED
    };
    struct aioctx_team *team = aioctx_team_new(1, cpu, b->pin);
    struct BlockBackend *blk = aioctx_open(NULL_SPEC);
    for (int warm = 1; warm >= 0; warm--) {
        char go = 0;
        l.run_ns = b->run_ms * UINT64_C(1000000) / (warm ? 4 : 1);
        l.random = cpu + 1;
        l.ops = 0;
        l.over = false;
        aioctx_team_run(team, blk, &l);
        if (warm) {
            puts("ready");
            fflush(stdout);
            if (read(STDIN_FILENO, &go, 1) != 1) {
                return 1;
            }
        }
    }
    printf("%llu %llu %llu %llu %llu\n", (unsigned long long)l.ops,
           (unsigned long long)l.span.wall_ns, (unsigned long long)l.span.cpu_ns,
           (unsigned long long)l.failed, (unsigned long long)l.checksum);
    fflush(stdout);
    aioctx_close(blk);
    aioctx_team_free(team);
    return 0;
}
