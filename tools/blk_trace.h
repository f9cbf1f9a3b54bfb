/* SPDX-License-Identifier: MIT */
/*
 * Traces: a line for each request, written while the requests run.
 *
 *      aioctx-trace 1
 *      # time_ns thread op offset bytes flags deadline_ns result latency_ns
 *      1200 io0 read 4096 4096 - 50000000 ok 8123
 *      end 1
 *
 * time_ns counts from the start of the run to the moment from which the latency counts; thread is
 * the row of the table; flags are joined by '+', '-' for none; deadline_ns counts from time_ns, '-'
 * for none; result is "ok" or the errno's name.
 *
 * Each iothread fills a chunk of its own and hands full ones over, under a lock that it takes once
 * for some thousand requests.  The main thread sorts what has come by time and writes it, now and
 * then and at the end.  So the lines of a short run are in order; in a long one, each batch is.
 *
 *                      thread
 *   blk_trace_add      the stream's owner
 *   the others         main; blk_trace_finish() when no owner adds any more
 */
#ifndef TOOLS_BLK_TRACE_H
#define TOOLS_BLK_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "blk_mix.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BLK_TRACE_HEAD "aioctx-trace 1"

/* Of a record; in the order of their names. */
enum { TRACE_FUA = 1 << 0, TRACE_MAY_UNMAP = 1 << 1, TRACE_NO_FALLBACK = 1 << 2 };
#define TRACE_FLAGS 3
extern const char *const blk_trace_flag_names[TRACE_FLAGS];

struct blk_trace_record {
    int64_t time_ns;
    int64_t offset, bytes;
    int64_t deadline_ns; /* -1: none */
    int64_t latency_ns;
    int32_t result; /* 0 or -errno */
    uint16_t stream;
    uint8_t kind; /* enum blk_kind */
    uint8_t flags;
};

struct blk_trace;
struct blk_trace_stream;

/*
 * Makes the file.  @wake(@opaque) is called, on any thread, when blk_trace_write() has something to
 * write.  Returns NULL with errno.  Lifetime: blk_trace_finish().
 */
struct blk_trace *blk_trace_new(const char *path, void (*wake)(void *opaque), void *opaque);

/* Adds a stream, before anything is recorded.  @name is not copied.  NULL: out of memory. */
struct blk_trace_stream *blk_trace_stream_new(struct blk_trace *trace, const char *name);

/* Records a request; the stream is filled in. */
void blk_trace_add(struct blk_trace_stream *stream, const struct blk_trace_record *record);

/* Writes what has been handed over.  Returns 0, or -errno of the first write that failed: what
 * comes then is dropped. */
int blk_trace_write(struct blk_trace *trace);

/* Writes the rest, ends the file and frees the trace.  @all: no thread records any more, so what
 * lies in their chunks is written too.  Returns as blk_trace_write(); -ENOMEM also when a record
 * was lost for want of memory. */
int blk_trace_finish(struct blk_trace *trace, bool all);

#ifdef __cplusplus
}
#endif

#endif
