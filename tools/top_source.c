/* SPDX-License-Identifier: MIT */
#include "top_source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define LINK_NAME "/memfd:" AIO_STATS_FILE_NAME " (deleted)"

/* More than any version of the library has. */
enum { SLOTS_MAX = 1 << 12 };

static int fail(char **ret_why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int fail(char **ret_why, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(ret_why, fmt, ap) < 0) {
        *ret_why = NULL;
    }
    va_end(ap);
    return -1;
}

/* ---- /proc ----------------------------------------------------------------------------------- */

/* Reads the beginning of a small file.  Returns its length, or -errno. */
static int read_text(int dir, const char *path, char *text, size_t size)
{
    int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    ssize_t n;
    int err;

    if (fd < 0) {
        return -errno;
    }
    n = read(fd, text, size - 1);
    err = errno;
    close(fd);
    if (n < 0) {
        return -err;
    }
    text[n] = '\0';
    return (int)n;
}

/* Somebody else has chosen the text: nothing in it may act on a terminal, neither the control
 * characters of ASCII nor U+0080 to U+009F. */
static void make_plain(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) {
            *c++ = '?';
            *c = '?';
        } else if (*c < ' ' || *c == 0x7f) {
            *c = '?';
        }
    }
}

static void read_comm(int dir, const char *path, char comm[17])
{
    char text[32];

    comm[0] = '\0';
    if (read_text(dir, path, text, sizeof(text)) > 0) {
        text[strcspn(text, "\n")] = '\0';
        snprintf(comm, 17, "%.16s", text);
    }
    make_plain(comm);
}

/* The process's or thread's number in its own namespace, and whether that is not ours. */
static int own_number(int dir, const char *path, int number, bool *ret_other)
{
    char text[4096], *line;

    *ret_other = false;
    if (read_text(dir, path, text, sizeof(text)) > 0 && (line = strstr(text, "\nNSpid:"))) {
        char *end = line + strlen("\nNSpid:");

        for (unsigned n = 0; *end && *end != '\n'; n++) {
            *ret_other = n > 0;
            number = (int)strtol(end, &end, 10);
        }
    }
    return number;
}

/* A zombie's /proc entry stays until its parent has waited for it. */
static bool has_ended(const struct top_source *source)
{
    char text[512], *after_name;

    if (read_text(source->proc, "stat", text, sizeof(text)) <= 0) {
        return true;
    }
    after_name = strrchr(text, ')');
    return !after_name || after_name[1] != ' ' || strchr("ZX", after_name[2]);
}

/* What was opened below /proc as the memory of a program stays that program's, and is empty once it
 * has gone: after exec() the file would show for ever what was last. */
static bool has_execed(const struct top_source *source)
{
    char c;

    return source->maps >= 0 && pread(source->maps, &c, 1, 0) == 0;
}

/* Our number of the thread that is @tid in its own namespace; 0: there is none. */
static int find_thread(const struct top_source *source, int tid)
{
    int fd = openat(source->proc, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = 0;
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;

    if (!dir) {
        if (fd >= 0) {
            close(fd);
        }
        return 0;
    }
    while (!found && (e = readdir(dir))) {
        char path[300];
        bool other;

        snprintf(path, sizeof(path), "%s/status", e->d_name);
        if (e->d_name[0] != '.' && own_number(dirfd(dir), path, -1, &other) == tid) {
            found = atoi(e->d_name);
        }
    }
    closedir(dir);
    return found;
}

/* utime and stime, the 14th and 15th field, in ticks; where there is no schedstat. */
static int64_t cpu_from_stat(const char *text)
{
    const char *p = strrchr(text, ')');
    unsigned long long user, sys;

    if (!p ||
        sscanf(p + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu %llu", &user, &sys) != 2) {
        return -1;
    }
    return (int64_t)((user + sys) * (1000000000 / (uint64_t)sysconf(_SC_CLK_TCK)));
}

static void look_at_thread(const struct top_source *source, struct top_row *row)
{
    char path[64], text[1024];
    unsigned long long ns;
    int tid = row->slot.tid;

    row->tid = 0;
    row->cpu_ns = -1;
    if (row->slot.state != AIO_STATS_HOME || tid <= 0) {
        return;
    }
    tid = source->other_namespace ? find_thread(source, tid) : tid;
    snprintf(path, sizeof(path), "task/%d/comm", tid);
    read_comm(source->proc, path, row->thread);
    if (!*row->thread && faccessat(source->proc, path, F_OK, 0) < 0) {
        return;
    }
    row->tid = tid;
    snprintf(path, sizeof(path), "task/%d/schedstat", tid);
    if (read_text(source->proc, path, text, sizeof(text)) > 0 && sscanf(text, "%llu", &ns) == 1) {
        row->cpu_ns = (int64_t)ns;
        return;
    }
    snprintf(path, sizeof(path), "task/%d/stat", tid);
    if (read_text(source->proc, path, text, sizeof(text)) > 0) {
        row->cpu_ns = cpu_from_stat(text);
    }
}

/* ---- Finding the file ------------------------------------------------------------------------ */

enum found { FOUND, NOT_FOUND, FOUND_OTHER_VERSION, FOUND_PARENTS };

/*
 * Opens what has the file's name.  In a mount namespace of its own a process can give that name to
 * anything, so look first: opening is an act to a device, and a file system in user space need not
 * answer.  Returns -1 when it is no memfd.
 */
static int open_memfd(int dir, const char *name)
{
    int look = openat(dir, name, O_PATH | O_CLOEXEC), fd = -1;
    char path[64];
    struct statfs fs;
    struct stat st;

    if (look < 0) {
        return -1;
    }
    if (fstat(look, &st) == 0 && S_ISREG(st.st_mode) && fstatfs(look, &fs) == 0 &&
        (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", look);
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    close(look);
    return fd;
}

/* Takes the file, if it is one and the process's own. */
static enum found take_file(struct top_source *source, int dir, const char *name, int own_pid)
{
    AioStatsFileHeader h;
    enum found found;
    int fd = open_memfd(dir, name);

    if (fd < 0) {
        return NOT_FOUND;
    }
    if (pread(fd, &h, sizeof(h), 0) != sizeof(h) || h.magic != AIO_STATS_FILE_MAGIC) {
        found = NOT_FOUND;
    } else if (h.version != AIO_STATS_FILE_VERSION || h.slot_size != sizeof(AioStatsSlot)) {
        found = FOUND_OTHER_VERSION;
    } else if (h.pid != own_pid) {
        found = FOUND_PARENTS;
    } else {
        source->file = fd;
        return FOUND;
    }
    close(fd);
    return found;
}

static enum found find_file(struct top_source *source, DIR *dir, int own_pid)
{
    enum found best = NOT_FOUND;
    struct dirent *e;

    while (best != FOUND && (e = readdir(dir))) {
        char target[sizeof(LINK_NAME) + 1];
        ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof(target));

        if (n == (ssize_t)strlen(LINK_NAME) && memcmp(target, LINK_NAME, (size_t)n) == 0) {
            enum found found = take_file(source, dirfd(dir), e->d_name, own_pid);

            best = found == FOUND || found > best ? found : best;
        }
    }
    return best;
}

/* Whether the process has the shared library, for a better message. */
static bool maps_library(const struct top_source *source)
{
    int fd = openat(source->proc, "maps", O_RDONLY | O_CLOEXEC);
    FILE *maps = fd >= 0 ? fdopen(fd, "r") : NULL;
    char line[4352];
    bool found = false;

    if (!maps) {
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    while (!found && fgets(line, sizeof(line), maps)) {
        found = strstr(line, "/libaioctx.so") != NULL;
    }
    fclose(maps);
    return found;
}

static int say_not_found(const struct top_source *source, enum found found, char **ret_why)
{
    switch (found) {
    case FOUND_OTHER_VERSION:
        return fail(ret_why,
                    "the aioctx in process %d writes its counters in another format than this "
                    "program reads (version %d): use the aioctx-top of the same release",
                    source->pid, AIO_STATS_FILE_VERSION);
    case FOUND_PARENTS:
        return fail(ret_why,
                    "process %d is a child of fork() of a process that uses aioctx, and has no "
                    "contexts of its own: try its parent",
                    source->pid);
    default:
        return maps_library(source)
                   ? fail(
                         ret_why,
                         "process %d has aioctx, but no counters: it has made no context yet, or "
                         "runs with AIOCTX_STATS=off, or its memfd could not be made or was closed",
                         source->pid)
                   : fail(ret_why,
                          "process %d has no counters of aioctx: it does not use it, or has made "
                          "no context yet, or runs with AIOCTX_STATS=off",
                          source->pid);
    }
}

int top_source_open(struct top_source *source, int pid, char **ret_why)
{
    char path[32];
    enum found found;
    int fd, own_pid;
    DIR *dir;

    *source = (struct top_source){ .pid = pid, .proc = -1, .file = -1, .maps = -1 };
    snprintf(path, sizeof(path), "/proc/%d", pid);
    source->proc = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (source->proc < 0) {
        return errno == ENOENT ? fail(ret_why, "there is no process %d", pid)
                               : fail(ret_why, "%s: %s", path, strerror(errno));
    }
    own_pid = own_number(source->proc, "status", pid, &source->other_namespace);
    read_comm(source->proc, "comm", source->comm);
    fd = openat(source->proc, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir) {
        int err = errno;

        top_source_close(source);
        return err == ENOENT || err == ESRCH
                   ? fail(ret_why, "process %d has just ended", pid)
                   : fail(ret_why,
                          "process %d may not be looked into (%s): run aioctx-top as the user "
                          "that the process runs as, or as root",
                          pid, strerror(err));
    }
    found = find_file(source, dir, own_pid);
    closedir(dir);
    if (found != FOUND) {
        int ret = has_ended(source) ? fail(ret_why, "process %d has ended", pid)
                                    : say_not_found(source, found, ret_why);

        top_source_close(source);
        return ret;
    }
    source->maps = openat(source->proc, "maps", O_RDONLY | O_CLOEXEC);
    return 0;
}

void top_source_close(struct top_source *source)
{
    if (source->file >= 0) {
        close(source->file);
    }
    if (source->maps >= 0) {
        close(source->maps);
    }
    if (source->proc >= 0) {
        close(source->proc);
    }
    source->file = source->proc = source->maps = -1;
}

/* ---- Samples --------------------------------------------------------------------------------- */

/* Reads a slot.  Returns false when it is nobody's, or became another's meanwhile. */
static bool read_slot(int file, off_t at, AioStatsSlot *slot)
{
    uint64_t before, after;

    return pread(file, &before, sizeof(before), at) == sizeof(before) && (before & 1) &&
           pread(file, slot, sizeof(*slot), at) == sizeof(*slot) &&
           pread(file, &after, sizeof(after), at) == sizeof(after) && before == after &&
           slot->generation == before;
}

void top_sample_clear(struct top_sample *sample)
{
    free(sample->row);
    *sample = (struct top_sample){ 0 };
}

int top_source_read(struct top_source *source, struct top_sample *sample)
{
    AioStatsFileHeader h;
    struct timespec ts;

    top_sample_clear(sample);
    if (has_ended(source) || pread(source->file, &h, sizeof(h), 0) != sizeof(h)) {
        return -ESRCH;
    }
    if (has_execed(source)) {
        return has_ended(source) ? -ESRCH : -ESTALE;
    }
    h.used = h.used < SLOTS_MAX ? h.used : SLOTS_MAX;
    sample->row = calloc(h.used ? h.used : 1, sizeof(*sample->row));
    if (!sample->row) {
        return -ENOMEM;
    }
    sample->without_slot = h.without_slot;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    sample->time_ns = ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
    for (unsigned i = 0; i < h.used; i++) {
        struct top_row *row = &sample->row[sample->rows];
        off_t at = (off_t)h.slot_offset + (off_t)i * (off_t)sizeof(AioStatsSlot);

        if (read_slot(source->file, at, &row->slot)) {
            row->index = i;
            row->slot.monitor[sizeof(row->slot.monitor) - 1] = '\0';
            make_plain(row->slot.monitor);
            look_at_thread(source, row);
            sample->rows++;
        }
    }
    return 0;
}

const struct top_row *top_sample_find(const struct top_sample *sample, const struct top_row *row)
{
    for (unsigned i = 0; i < sample->rows; i++) {
        const struct top_row *r = &sample->row[i];

        if (r->index == row->index && r->slot.generation == row->slot.generation) {
            return r;
        }
    }
    return NULL;
}
