/* SPDX-License-Identifier: MIT */
/*
 * Job files, as users of fio know them:
 *
 *      ; a comment, as is what begins with #
 *      [global]                 holds for the jobs that follow
 *      backend=null:size=1G
 *      runtime=5s
 *
 *      [readers]                a job: all run at once
 *      rw=randread
 *      layout                   a switch
 */
#include "blk_options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (1 << 20)
#define JOBS_MAX 256

struct reader {
    struct blk_command *command;
    const struct blk_setting *over;
    unsigned nr_over;
    struct blk_options global, job;
    enum { NOWHERE, IN_GLOBAL, IN_JOB } where;
    unsigned line;
};

static bool fail(const struct reader *r, const char *what, const char *expected)
{
    blk_complain("%s:%u: %s: expected %s", r->command->jobs_file, r->line, what, expected);
    return false;
}

/* ---- Text ------------------------------------------------------------------------------------ */

static char *read_text(const char *path)
{
    char *text = malloc(FILE_BYTES_MAX + 1);
    FILE *f = fopen(path, "re");
    size_t len = 0;

    if (text && f) {
        len = fread(text, 1, FILE_BYTES_MAX + 1, f);
    }
    if (!text || !f || ferror(f)) {
        blk_complain("--jobs '%s': expected a file that can be read: %s", path, strerror(errno));
    } else if (len > FILE_BYTES_MAX) {
        blk_complain("--jobs '%s': expected a file of at most 1 MiB", path);
    } else if (memchr(text, '\0', len)) {
        blk_complain("--jobs '%s': expected text, and found a zero byte", path);
    } else {
        fclose(f);
        text[len] = '\0';
        return text;
    }
    if (f) {
        fclose(f);
    }
    free(text);
    return NULL;
}

/* Without the white space around it. */
static char *trim(char *text)
{
    size_t len;

    text += strspn(text, " \t\r");
    len = strlen(text);
    while (len > 0 && strchr(" \t\r", text[len - 1])) {
        text[--len] = '\0';
    }
    return text;
}

/* ---- Sections -------------------------------------------------------------------------------- */

static bool end_section(struct reader *r)
{
    struct blk_command *command = r->command;
    struct blk_options *jobs;

    if (r->where != IN_JOB) {
        return true;
    }
    for (unsigned i = 0; i < r->nr_over; i++) {
        if (!blk_options_take(&r->job, &r->over[i])) {
            return false;
        }
    }
    if (!blk_options_finish(&r->job)) {
        return false;
    }
    if (command->nr_jobs == JOBS_MAX) {
        return fail(r, "too many jobs", "256 at most");
    }
    jobs = realloc(command->jobs, (command->nr_jobs + 1) * sizeof(*jobs));
    if (!jobs) {
        blk_complain("out of memory");
        return false;
    }
    command->jobs = jobs;
    jobs[command->nr_jobs++] = r->job;
    return true;
}

static bool begin_section(struct reader *r, char *line)
{
    size_t len = strlen(line);
    char *name;

    if (line[len - 1] != ']') {
        return fail(r, line, "']' at its end");
    }
    line[len - 1] = '\0';
    name = trim(line + 1);
    if (strcmp(name, "global") == 0) {
        r->where = IN_GLOBAL;
        return true;
    }
    if (!*name || strlen(name) > 32 ||
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") !=
            strlen(name)) {
        return fail(r, "a job's name",
                    "1 to 32 letters, digits, '-', '_' and '.' between '[' and ']'");
    }
    for (unsigned i = 0; i < r->command->nr_jobs; i++) {
        if (strcmp(r->command->jobs[i].name, name) == 0) {
            return fail(r, name, "a name that no job before it has");
        }
    }
    r->where = IN_JOB;
    r->job = r->global;
    r->job.name = name;
    r->job.from = r->command->jobs_file;
    r->job.line = r->line;
    return true;
}

/* ---- Lines ----------------------------------------------------------------------------------- */

static const struct option *find_option(const char *name)
{
    for (const struct option *o = blk_long_options; o->name; o++) {
        if (strcmp(o->name, name) == 0) {
            return o;
        }
    }
    return NULL;
}

/* What fio calls otherwise. */
static bool unknown(const struct reader *r, const char *name)
{
    static const char *const names[][2] = {
        { "filename", "file" },    { "readwrite", "rw" },      { "blocksize", "bs" },
        { "bsrange", "bs" },       { "bssplit", "bs" },        { "numjobs", "iothreads" },
        { "rate_iops", "rate" },   { "ramp_time", "ramp" },    { "random_distribution", "pattern" },
        { "number_ios", "ios" },   { "read_iolog", "replay" }, { "randseed", "seed" },
        { "ioengine", "backend" }, { "cpus_allowed", "cpus" },
    };
    char expected[64] = "an option of 'aioctx-blk --help', without the dashes";

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i][0], name) == 0) {
            snprintf(expected, sizeof(expected), "'%s', as it is called here", names[i][1]);
        }
    }
    return fail(r, name, expected);
}

static bool take_setting(struct reader *r, char *line)
{
    char *equals = strchr(line, '=');
    const struct option *o;
    struct blk_setting s = { .file = r->command->jobs_file, .line = r->line };

    if (equals) {
        *equals = '\0';
        s.text = trim(equals + 1);
    }
    s.name = trim(line);
    o = find_option(s.name);
    if (!o) {
        return unknown(r, s.name);
    }
    if (o->val >= OPT_CONFORMANCE) {
        return fail(r, s.name, "it on the command line, as it is not of one job");
    }
    if (o->has_arg == required_argument && !s.text) {
        return fail(r, s.name, "a value behind '='");
    }
    if (r->where == NOWHERE) {
        return fail(r, s.name, "'[global]' or a job's '[NAME]' before it");
    }
    s.code = o->val;
    return blk_options_take(r->where == IN_GLOBAL ? &r->global : &r->job, &s);
}

static bool take_line(struct reader *r, char *line)
{
    line = trim(line);
    if (!*line || *line == '#' || *line == ';') {
        return true;
    }
    return *line == '[' ? end_section(r) && begin_section(r, line) : take_setting(r, line);
}

bool blk_jobfile_read(struct blk_command *command, const struct blk_setting *over, unsigned nr_over)
{
    struct reader r = { .command = command, .over = over, .nr_over = nr_over };
    char *next = read_text(command->jobs_file);

    command->text = next;
    if (!next) {
        return false;
    }
    blk_options_init(&r.global);
    while (next) {
        char *line = strsep(&next, "\n");

        r.line++;
        if (!take_line(&r, line)) {
            return false;
        }
    }
    if (!end_section(&r)) {
        return false;
    }
    if (!command->nr_jobs) {
        return fail(&r, "no job", "a '[NAME]' and its options");
    }
    return true;
}
