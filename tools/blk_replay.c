/* SPDX-License-Identifier: MIT */
#include "blk_replay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk_trace.h"
#include "parse.h"

#define BYTES_MAX (INT64_C(1) << 30) /* of a read or a write */
#define STREAMS_MAX 1024
#define FIELDS_MAX 10
#define TIME_MAX_NS (INT64_C(366) * 86400 * 1000000000)

enum format { FORMAT_OWN, FORMAT_FIO_2, FORMAT_FIO_3 };

struct reader {
    struct blk_replay *replay;
    const char *path;
    char **ret_why;
    size_t room;
    uint32_t line;
    char *names[STREAMS_MAX]; /* of the streams */
    int64_t now_ns;           /* fio 2: the sum of the waits */
    char *fio_file;
    bool ended; /* its own format: the last line has come */
};

static int fail(const struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int fail(const struct reader *r, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0) {
        text = NULL;
    }
    va_end(ap);
    if (!text || asprintf(r->ret_why, "%s:%" PRIu32 ": %s", r->path, r->line, text) < 0) {
        *r->ret_why = NULL;
    }
    free(text);
    return -EINVAL;
}

/* ---- Fields ---------------------------------------------------------------------------------- */

/* Cuts a line at its blanks; returns how many fields it has, FIELDS_MAX for that many or more. */
static unsigned cut(char *line, char *fields[FIELDS_MAX])
{
    unsigned nr = 0;

    for (char *field; nr < FIELDS_MAX && (field = strsep(&line, " \t"));) {
        if (*field) {
            fields[nr++] = field;
        }
    }
    return nr;
}

static bool take_i64(const char *text, int64_t max, int64_t *ret_number)
{
    uint64_t number;

    if (!parse_number(text, &number) || number > (uint64_t)max) {
        return false;
    }
    *ret_number = (int64_t)number;
    return true;
}

static bool take_flags(const char *text, uint8_t *ret_flags)
{
    unsigned flags = 0;

    while (*text && strcmp(text, "-") != 0) {
        size_t len = strcspn(text, "+");
        unsigned i = 0;

        while (i < TRACE_FLAGS && (strlen(blk_trace_flag_names[i]) != len ||
                                   memcmp(blk_trace_flag_names[i], text, len) != 0)) {
            i++;
        }
        if (i == TRACE_FLAGS) {
            return false;
        }
        flags |= 1u << i;
        text += len + (text[len] == '+');
    }
    *ret_flags = (uint8_t)flags;
    return true;
}

/* The stream of that name; made when there is none.  Returns -1 when there are too many. */
static int find_stream(struct reader *r, const char *name)
{
    unsigned i = 0;

    while (i < r->replay->streams && strcmp(r->names[i], name) != 0) {
        i++;
    }
    if (i == r->replay->streams) {
        if (i == STREAMS_MAX || !(r->names[i] = strdup(name))) {
            return -1;
        }
        r->replay->streams++;
    }
    return (int)i;
}

static int add(struct reader *r, struct blk_replay_request *q)
{
    struct blk_replay *p = r->replay;
    bool moves = q->kind == KIND_READ || q->kind == KIND_WRITE;

    if (moves && q->bytes > BYTES_MAX) {
        return fail(r, "%" PRId64 " bytes: expected 1 GiB at most", q->bytes);
    }
    if (p->nr == r->room) {
        size_t room = r->room ? 2 * r->room : 1024;
        struct blk_replay_request *more = realloc(p->requests, room * sizeof(*more));

        if (!more) {
            *r->ret_why = NULL;
            return -ENOMEM;
        }
        p->requests = more;
        r->room = room;
    }
    q->line = r->line;
    p->requests[p->nr++] = *q;
    p->mix.weight[q->kind]++;
    p->mix.total++;
    p->span_ns = q->time_ns > p->span_ns ? q->time_ns : p->span_ns;
    p->longest = moves && q->bytes > p->longest ? q->bytes : p->longest;
    if (q->kind != KIND_FLUSH && q->offset + q->bytes > p->end) {
        p->end = q->offset + q->bytes;
        p->end_line = r->line;
    }
    return 0;
}

/* ---- Its own format -------------------------------------------------------------------------- */

static int take_end(struct reader *r, char *const fields[], unsigned nr)
{
    int64_t count;

    r->ended = true;
    if (nr == 1) {
        return 0;
    }
    if (nr > 2 || !take_i64(fields[1], INT64_MAX, &count)) {
        return fail(r, "expected 'end' or 'end COUNT'");
    }
    return (size_t)count == r->replay->nr
               ? 0
               : fail(r, "%zu requests were found, not %s: some of the file is missing",
                      r->replay->nr, fields[1]);
}

static int take_own(struct reader *r, char *line)
{
    struct blk_replay_request q = { .deadline_ns = -1 };
    char *f[FIELDS_MAX];
    unsigned nr;
    int stream;

    if (*line == '#') {
        return 0;
    }
    nr = cut(line, f);
    if (nr == 0) {
        return 0;
    }
    if (r->ended) {
        return fail(r, "expected nothing behind 'end'");
    }
    if (strcmp(f[0], "end") == 0) {
        return take_end(r, f, nr);
    }
    if (nr != 9) {
        return fail(r,
                    "%u fields: expected the 9 fields time_ns thread op offset bytes flags "
                    "deadline_ns result latency_ns",
                    nr);
    }
    q.kind = (uint8_t)blk_kind_find(f[2], strlen(f[2]));
    if (q.kind == BLK_KINDS) {
        return fail(r, "'%s': expected read, write, flush, discard, zeroes or status", f[2]);
    }
    if (!take_i64(f[0], TIME_MAX_NS, &q.time_ns)) {
        return fail(r, "time '%s': expected nanoseconds, at most a year", f[0]);
    }
    if (!take_i64(f[3], INT64_MAX / 2, &q.offset) || !take_i64(f[4], INT64_MAX / 2, &q.bytes)) {
        return fail(r, "offset '%s' and bytes '%s': expected two numbers", f[3], f[4]);
    }
    if (!take_flags(f[5], &q.flags)) {
        return fail(r, "flags '%s': expected fua, unmap and no-fallback, joined by '+', or '-'",
                    f[5]);
    }
    if (strcmp(f[6], "-") != 0 && !take_i64(f[6], TIME_MAX_NS, &q.deadline_ns)) {
        return fail(r, "deadline '%s': expected nanoseconds, at most a year, or '-'", f[6]);
    }
    stream = find_stream(r, f[1]);
    if (stream < 0) {
        return fail(r, "thread '%s': expected 1024 threads at most", f[1]);
    }
    q.stream = (uint16_t)stream;
    return add(r, &q);
}

/* ---- fio's iologs ---------------------------------------------------------------------------- */

static int take_fio_action(struct reader *r, char *const f[], unsigned nr, int64_t time_ns)
{
    static const struct {
        const char *name;
        enum blk_kind kind;
    } actions[] = { { "read", KIND_READ },
                    { "write", KIND_WRITE },
                    { "sync", KIND_FLUSH },
                    { "datasync", KIND_FLUSH },
                    { "trim", KIND_DISCARD } };
    struct blk_replay_request q = { .time_ns = time_ns, .deadline_ns = -1 };

    for (unsigned i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (strcmp(f[1], actions[i].name) == 0) {
            q.kind = (uint8_t)actions[i].kind;
            if (nr != 4 || !take_i64(f[2], INT64_MAX / 2, &q.offset) ||
                !take_i64(f[3], INT64_MAX / 2, &q.bytes)) {
                return fail(r, "%s: expected an offset and a length behind it", f[1]);
            }
            return add(r, &q);
        }
    }
    return fail(r,
                "'%s': expected read, write, sync, datasync, trim, wait (in version 2), add, "
                "open or close",
                f[1]);
}

static int take_fio(struct reader *r, char *line, enum format format)
{
    char *fields[FIELDS_MAX], **f = fields;
    unsigned nr = cut(line, fields);
    int64_t time_ns = r->now_ns, wait_us;

    if (nr == 0) {
        return 0;
    }
    if (format == FORMAT_FIO_3) {
        if (!take_i64(fields[0], TIME_MAX_NS / 1000, &time_ns)) {
            return fail(r, "'%s': expected a time in microseconds", fields[0]);
        }
        time_ns *= 1000;
        f++;
        nr--;
    }
    if (nr < 2) {
        return fail(r, "expected a file name and an action");
    }
    if (r->fio_file ? strcmp(r->fio_file, f[0]) != 0 : !(r->fio_file = strdup(f[0]))) {
        return fail(r, "'%s': expected a log of one file, and there was '%s' before", f[0],
                    r->fio_file ? r->fio_file : "");
    }
    if (strcmp(f[1], "add") == 0 || strcmp(f[1], "open") == 0 || strcmp(f[1], "close") == 0) {
        return 0;
    }
    if (strcmp(f[1], "wait") == 0 && format == FORMAT_FIO_2) {
        if (nr < 3 || !take_i64(f[2], TIME_MAX_NS / 1000, &wait_us) ||
            r->now_ns > TIME_MAX_NS - wait_us * 1000) {
            return fail(r, "wait: expected microseconds, at most a year");
        }
        r->now_ns += wait_us * 1000;
        return 0;
    }
    return take_fio_action(r, f, nr, time_ns);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static int take_head(const struct reader *r, const char *line, enum format *ret_format)
{
    static const char *const heads[] = { BLK_TRACE_HEAD, "fio version 2 iolog",
                                         "fio version 3 iolog" };

    for (int i = 0; i < 3; i++) {
        if (strcmp(line, heads[i]) == 0) {
            *ret_format = (enum format)i;
            return 0;
        }
    }
    return fail(r, "expected '%s', '%s' or '%s'", heads[0], heads[1], heads[2]);
}

static int take_lines(struct reader *r, FILE *f, char **line, size_t *room)
{
    enum format format = FORMAT_OWN;
    ssize_t len;
    int ret = 0;

    while (ret == 0 && (len = getline(line, room, f)) >= 0) {
        if (r->line++ == UINT32_MAX) {
            return fail(r, "expected fewer lines");
        }
        if ((*line)[len - 1] != '\n') {
            return fail(r, "the line has no end: the file is truncated");
        }
        (*line)[len - 1] = '\0';
        if (strlen(*line) != (size_t)len - 1) {
            return fail(r, "expected text, and found a zero byte");
        }
        ret = r->line == 1           ? take_head(r, *line, &format)
              : format == FORMAT_OWN ? take_own(r, *line)
                                     : take_fio(r, *line, format);
    }
    if (ret < 0) {
        return ret;
    }
    if (ferror(f)) {
        return fail(r, "cannot be read further: %s", strerror(errno));
    }
    if (!r->line) {
        r->line = 1;
        return fail(r, "the file is empty");
    }
    if (format == FORMAT_OWN && !r->ended) {
        return fail(r, "expected 'end' behind the last request: the file is truncated");
    }
    return r->replay->nr ? 0 : fail(r, "there is no request in it");
}

static int by_time(const void *a, const void *b)
{
    const struct blk_replay_request *x = a, *y = b;

    if (x->time_ns != y->time_ns) {
        return x->time_ns < y->time_ns ? -1 : 1;
    }
    return x->line < y->line ? -1 : x->line > y->line;
}

int blk_replay_load(const char *path, struct blk_replay *ret_replay, char **ret_why)
{
    struct blk_replay replay = { 0 };
    struct reader *r = calloc(1, sizeof(*r));
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t room = 0;
    int ret = 0;

    *ret_why = NULL;
    if (!r || !f) {
        ret = r ? -errno : -ENOMEM;
        if (r && asprintf(ret_why, "%s: expected a trace that can be read: %s", path,
                          strerror(-ret)) < 0) {
            *ret_why = NULL;
        }
    } else {
        r->replay = &replay;
        r->path = path;
        r->ret_why = ret_why;
        ret = take_lines(r, f, &line, &room);
    }
    free(line);
    if (f) {
        fclose(f);
    }
    for (unsigned i = 0; r && r->replay && i < replay.streams; i++) {
        free(r->names[i]);
    }
    if (r) {
        free(r->fio_file);
    }
    free(r);
    if (ret < 0) {
        blk_replay_free(&replay);
        return ret;
    }
    replay.streams += replay.streams == 0;
    qsort(replay.requests, replay.nr, sizeof(replay.requests[0]), by_time);
    *ret_replay = replay;
    return 0;
}

void blk_replay_free(struct blk_replay *replay)
{
    free(replay->requests);
    replay->requests = NULL;
}

int blk_replay_deal(struct blk_replay *replay, unsigned threads, size_t *ret_first)
{
    struct blk_replay_request *dealt = malloc(replay->nr * sizeof(*dealt));
    size_t at = 0;

    if (!dealt) {
        return -ENOMEM;
    }
    /* A counting sort, which keeps the order in each thread. */
    memset(ret_first, 0, (threads + 1) * sizeof(*ret_first));
    for (size_t i = 0; i < replay->nr; i++) {
        ret_first[replay->requests[i].stream % threads]++;
    }
    for (unsigned t = 0; t <= threads; t++) {
        size_t nr = ret_first[t];

        ret_first[t] = at;
        at += nr;
    }
    for (size_t i = 0; i < replay->nr; i++) {
        dealt[ret_first[replay->requests[i].stream % threads]++] = replay->requests[i];
    }
    memmove(ret_first + 1, ret_first, threads * sizeof(*ret_first));
    ret_first[0] = 0;
    free(replay->requests);
    replay->requests = dealt;
    return 0;
}
