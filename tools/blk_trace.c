/* SPDX-License-Identifier: MIT */
#include "blk_trace.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "live.h"

enum {
    CHUNK_RECORDS = 4096,
    BATCH_CHUNKS = 64, /* handed over before they are written: 12 MiB */
};

const char *const blk_trace_flag_names[TRACE_FLAGS] = { "fua", "unmap", "no-fallback" };

struct chunk {
    struct chunk *next;
    unsigned nr;
    struct blk_trace_record record[CHUNK_RECORDS];
};

struct blk_trace_stream {
    struct blk_trace *trace;
    struct blk_trace_stream *next;
    const char *name;
    unsigned number;
    struct chunk *chunk; /* the owner's; NULL: there was no memory for one */
    uint64_t lost;       /* live */
};

struct blk_trace {
    FILE *file;
    void (*wake)(void *opaque);
    void *opaque;
    struct blk_trace_stream *streams; /* the last one first */
    unsigned nr_streams;
    int error; /* 0 or -errno */
    uint64_t written;

    pthread_mutex_t lock;
    struct chunk *full; /* lock */
    unsigned nr_full;   /* lock */
};

/* ---- Recording ------------------------------------------------------------------------------- */

struct blk_trace *blk_trace_new(const char *path, void (*wake)(void *opaque), void *opaque)
{
    struct blk_trace *trace = calloc(1, sizeof(*trace));

    if (!trace) {
        return NULL;
    }
    trace->file = fopen(path, "we");
    if (!trace->file) {
        free(trace);
        return NULL;
    }
    pthread_mutex_init(&trace->lock, NULL);
    trace->wake = wake;
    trace->opaque = opaque;
    fputs(BLK_TRACE_HEAD "\n"
                         "# time_ns thread op offset bytes flags deadline_ns result latency_ns\n",
          trace->file);
    return trace;
}

struct blk_trace_stream *blk_trace_stream_new(struct blk_trace *trace, const char *name)
{
    struct blk_trace_stream *stream = calloc(1, sizeof(*stream));
    struct chunk *chunk = malloc(sizeof(*chunk));

    if (!stream || !chunk) {
        free(chunk);
        free(stream);
        return NULL;
    }
    chunk->nr = 0;
    *stream = (struct blk_trace_stream){ .trace = trace,
                                         .next = trace->streams,
                                         .name = name,
                                         .number = trace->nr_streams++,
                                         .chunk = chunk };
    trace->streams = stream;
    return stream;
}

static void hand_over(struct blk_trace_stream *stream)
{
    struct blk_trace *trace = stream->trace;
    bool batch;

    pthread_mutex_lock(&trace->lock);
    stream->chunk->next = trace->full;
    trace->full = stream->chunk;
    batch = ++trace->nr_full == BATCH_CHUNKS;
    pthread_mutex_unlock(&trace->lock);
    stream->chunk = NULL;
    if (batch) {
        trace->wake(trace->opaque);
    }
}

void blk_trace_add(struct blk_trace_stream *stream, const struct blk_trace_record *record)
{
    struct chunk *chunk = stream->chunk;

    if (!chunk) {
        chunk = malloc(sizeof(*chunk));
        if (!chunk) {
            live_add(&stream->lost, 1);
            return;
        }
        chunk->nr = 0;
        stream->chunk = chunk;
    }
    chunk->record[chunk->nr] = *record;
    chunk->record[chunk->nr].stream = (uint16_t)stream->number;
    if (++chunk->nr == CHUNK_RECORDS) {
        hand_over(stream);
    }
}

/* ---- Writing --------------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
    const struct blk_trace_record *x = *(const struct blk_trace_record *const *)a;
    const struct blk_trace_record *y = *(const struct blk_trace_record *const *)b;

    if (x->time_ns != y->time_ns) {
        return x->time_ns < y->time_ns ? -1 : 1;
    }
    if (x->stream != y->stream) {
        return x->stream < y->stream ? -1 : 1;
    }
    return x < y ? -1 : x > y;
}

static void put_flags(FILE *file, unsigned flags)
{
    const char *separator = "";

    if (!flags) {
        fputc('-', file);
    }
    for (unsigned i = 0; i < TRACE_FLAGS; i++) {
        if (flags >> i & 1) {
            fprintf(file, "%s%s", separator, blk_trace_flag_names[i]);
            separator = "+";
        }
    }
}

static void put_record(FILE *file, const char *stream, const struct blk_trace_record *r)
{
    const char *result = r->result ? strerrorname_np(-r->result) : "ok";

    fprintf(file, "%" PRId64 " %s %s %" PRId64 " %" PRId64 " ", r->time_ns, stream,
            blk_kind_names[r->kind], r->offset, r->bytes);
    put_flags(file, r->flags);
    if (r->deadline_ns < 0) {
        fputs(" -", file);
    } else {
        fprintf(file, " %" PRId64, r->deadline_ns);
    }
    fprintf(file, " %s %" PRId64 "\n", result ? result : "error", r->latency_ns);
}

static void free_chunks(struct chunk *chunk)
{
    while (chunk) {
        struct chunk *next = chunk->next;

        free(chunk);
        chunk = next;
    }
}

/* Sorts what is in @chunks and writes it. */
static int write_chunks(struct blk_trace *trace, const struct chunk *chunks)
{
    const struct blk_trace_record **sorted;
    const char **names;
    size_t nr = 0, at = 0;

    for (const struct chunk *c = chunks; c; c = c->next) {
        nr += c->nr;
    }
    sorted = calloc(nr + 1, sizeof(const struct blk_trace_record *));
    names = calloc(trace->nr_streams + 1, sizeof(const char *));
    if (!sorted || !names) {
        free(sorted);
        free(names);
        return -ENOMEM;
    }
    for (const struct blk_trace_stream *s = trace->streams; s; s = s->next) {
        names[s->number] = s->name;
    }
    for (const struct chunk *c = chunks; c; c = c->next) {
        for (unsigned i = 0; i < c->nr; i++) {
            sorted[at++] = &c->record[i];
        }
    }
    qsort(sorted, nr, sizeof(sorted[0]), by_time);
    errno = 0;
    for (size_t i = 0; i < nr && !ferror(trace->file); i++) {
        put_record(trace->file, names[sorted[i]->stream], sorted[i]);
    }
    trace->written += nr;
    free(names);
    free(sorted);
    return ferror(trace->file) ? -(errno ? errno : EIO) : 0;
}

int blk_trace_write(struct blk_trace *trace)
{
    struct chunk *chunks;

    pthread_mutex_lock(&trace->lock);
    chunks = trace->full;
    trace->full = NULL;
    trace->nr_full = 0;
    pthread_mutex_unlock(&trace->lock);
    if (!trace->error && chunks) {
        trace->error = write_chunks(trace, chunks);
    }
    free_chunks(chunks);
    return trace->error;
}

int blk_trace_finish(struct blk_trace *trace, bool all)
{
    struct blk_trace_stream *stream;
    uint64_t lost = 0;
    int ret;

    for (stream = trace->streams; stream && all; stream = stream->next) {
        if (stream->chunk) {
            hand_over(stream);
        }
        lost += live_get(&stream->lost);
    }
    ret = blk_trace_write(trace);
    if (ret == 0) {
        fprintf(trace->file, "end %" PRIu64 "\n", trace->written);
    }
    errno = 0;
    if ((fclose(trace->file) != 0 && ret == 0)) {
        ret = -(errno ? errno : EIO);
    }
    ret = ret == 0 && lost ? -ENOMEM : ret;
    if (!all) {
        return ret; /* their owners may still add to the streams */
    }
    while ((stream = trace->streams)) {
        trace->streams = stream->next;
        free(stream);
    }
    pthread_mutex_destroy(&trace->lock);
    free(trace);
    return ret;
}
