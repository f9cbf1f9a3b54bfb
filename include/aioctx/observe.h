/* SPDX-License-Identifier: MIT */
/*
 * Looking into running loops: histograms, stalls, and the file that aioctx-top reads.
 *
 * All of it is off, or costs nothing, unless it is asked for; docs/observability.md has the figures
 * and the probes for tracers.
 *
 *                                        thread                    may block
 *   aio_context_set_histograms           any                       no (short lock)
 *   aio_context_get_histograms           any                       no, lock-free
 *   aio_context_set_stall_limit          any                       no (short lock)
 *   aio_set_stall_hook                   any                       no (short lock)
 *   aio_histogram_*                      any, on one's own copy    no
 */
#ifndef AIOCTX_OBSERVE_H
#define AIOCTX_OBSERVE_H

#include <aioctx/aio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Histograms ------------------------------------------------------------------------------ */

#define AIO_HISTOGRAM_BUCKETS 48

/*
 * Times in ns, by powers of two.  Bucket 0 counts 0 ns and what was negative; bucket i, from 1 to
 * 46, counts times from 2^(i-1) up to, but not including, 2^i ns; bucket 47 counts all from 2^46 ns
 * (19.5 hours) on.
 */
typedef struct AioHistogram {
    uint64_t sum_ns;
    uint64_t max_ns;
    uint64_t buckets[AIO_HISTOGRAM_BUCKETS];
} AioHistogram;

/* What a context measures while histograms are on. */
typedef struct AioContextHistograms {
    /* How long after its deadline a timer's callback was called, in the time of its own clock; of a
     * timer with a range, after the range's end. */
    AioHistogram timer_lateness;
    /* What an iteration took from the end of its wait to its own end: the time that the loop was
     * not there for anyone else.  Nested iterations count for themselves, and not in the outer
     * one. */
    AioHistogram iteration;
    /* From the end of a sleep, polling after it included, as the thread saw it, to the beginning of
     * the first callback.  A sleep after which no callback was called is not counted. */
    AioHistogram wake_to_run;
    /* Of sleeps that a notify ended: from that notify, before its system call, to the beginning of
     * the first callback.  The kernel's wake-up lies in it. */
    AioHistogram notify_to_run;
} AioContextHistograms;

/*
 * Switches the context's histograms on and off; what they hold stays.  While they are on, an
 * iteration reads the clock three times, and once more for each timer and each sleep.  At first
 * they are what AIOCTX_HISTOGRAMS says, on or off; off without it.
 * Thread: any; takes effect with the context's next iteration.
 */
void aio_context_set_histograms(AioContext *ctx, bool on);

/* Copies the context's histograms.  Each counter is exact, but they are not of one moment.
 * Thread: any. */
void aio_context_get_histograms(AioContext *ctx, AioContextHistograms *ret_histograms);

/* How many times it counts.  Thread: any, on one's own copy. */
uint64_t aio_histogram_count(const AioHistogram *h);

/*
 * The time that @per_100k of every 100000 do not exceed (99900: p99.9), rounded up to the last of
 * its bucket, but never above the largest one.  0 for an empty histogram.
 * @per_100k: 0 to 100000; a larger one counts as that.  Thread: any, on one's own copy.
 */
uint64_t aio_histogram_percentile(const AioHistogram *h, unsigned per_100k);

/* ---- Stalls ---------------------------------------------------------------------------------- */

/* A callback that holds, or held, a loop.  Its pointers are valid during the hook's call alone, but
 * for func and ctx. */
typedef struct AioStall {
    AioContext *ctx;
    int64_t held_ns;  /* how long so far; nested iterations of ctx are not in it */
    int64_t limit_ns; /* of aio_context_set_stall_limit() */
    /* "timer", "bottom half", "fd read", "fd write", "completion", "block request", "fd removal" or
     * "poll notifier" */
    const char *kind;
    const char *name;       /* of a timer that timer_set_name() named, cut to 31 bytes; or NULL */
    const void *func;       /* the callback */
    const char *symbol;     /* its name, if its object exports it; or NULL */
    const char *object;     /* the file that func lies in; or NULL */
    uint64_t object_offset; /* where in it, as addr2line(1) takes it; 0 without object */
    int fd;                 /* of "fd read", "fd write" and "fd removal"; -1 */
    int tid;                /* the home thread's */
    bool running;           /* it has not returned yet */
    uint8_t pad[7];
    uint64_t suppressed; /* stalls of ctx since its last report that were not reported */
    uint64_t reserved[4];
} AioStall;

typedef void AioStallFunc(const AioStall *stall, void *opaque);

/*
 * Has callbacks reported that hold the context's loop for @limit_ns or longer: once while they
 * still do, by a thread of its own, and once when they have returned.  After a report of one
 * callback, others of the same context are only counted for a second.  While a limit is set, each
 * callback costs two looks at the clock, and the thread wakes up a few times in the shortest limit.
 * @limit_ns: 0 to INT64_MAX; 0: off; a negative one aborts.  At first it is what AIOCTX_STALL_MS
 * says, in milliseconds; 0 without it.
 * Thread: any; takes effect with the context's next iteration.
 */
void aio_context_set_stall_limit(AioContext *ctx, int64_t limit_ns);

/*
 * Has stalls of every context told to @func instead of stderr; NULL: stderr again.  It is called on
 * the context's home thread, below its loop, or, when running is set, on the thread that watches;
 * on both it counts as a callback: iothread_join() and its kin return -EDEADLK.  It must not wait
 * for a context in other ways, nor give its last reference back.  A call that has begun may
 * still be running when this returns.
 * Thread: any.
 */
void aio_set_stall_hook(AioStallFunc *func, void *opaque);

/* ---- The file -------------------------------------------------------------------------------- */

/*
 * Counters of all contexts of a process lie in one memfd, made with the first context and kept to
 * the end of the process: close-on-exec, mode 0600, sealed against growing and shrinking.  Others
 * find it below /proc/PID/fd by the name that its link has, "/memfd:aioctx-stats (deleted)", and
 * read it: that needs what ptrace(2) calls PTRACE_MODE_READ, so the same user or root.
 *
 * Where a memfd cannot be made, and with AIOCTX_STATS=off, counters lie in private memory.
 *
 * The file holds a header, and from slot_offset on `slots` slots of slot_size bytes, of which those
 * from `used` on have never been used.  A later version of the library may add to what is reserved;
 * it changes `version` when what is here changes.
 *
 * A slot is one context's while its generation is odd; then it may become another's.  Read the
 * generation, the slot, and the generation again: when the two differ, leave it out this time.
 */
#define AIO_STATS_FILE_NAME "aioctx-stats"
#define AIO_STATS_FILE_MAGIC UINT64_C(0x74737874636f6961) /* "aioctxst", little-endian */
#define AIO_STATS_FILE_VERSION 1

typedef struct AioStatsFileHeader {
    uint64_t magic;
    uint32_t version;
    uint32_t slot_offset;
    uint32_t slot_size;
    uint32_t slots;
    uint32_t used; /* atomic */
    int32_t pid;   /* in the process's own namespace; a child of fork() has its parent's file */
    uint64_t without_slot; /* contexts, ended ones too, that found all slots taken */
    uint64_t reserved[3];
} AioStatsFileHeader;

enum {
    AIO_STATS_NEW,  /* no thread has polled it yet */
    AIO_STATS_HOME, /* it has a home thread, tid */
    AIO_STATS_ENDED /* it is closed, or is being closed */
};

typedef struct AioStatsSlot {
    uint64_t generation; /* atomic */
    uint32_t state;      /* AIO_STATS_* */
    int32_t tid;         /* in the process's own namespace; 0: none yet */
    uint64_t created_ns; /* CLOCK_MONOTONIC */
    uint32_t is_main;    /* the main loop's */
    uint32_t histograms; /* they are on */
    uint64_t stall_limit_ns;
    uint64_t stalls; /* callbacks that held the loop for the limit or longer */
    char monitor[16];
    uint64_t reserved[8];
    uint64_t notifies_sent; /* for stats.notifies_sent, which is 0 here */
    uint64_t pad[7];
    AioContextStats stats; /* notifies: up to the end of the last sleep */
    AioContextHistograms histogram;
} AioStatsSlot;

#ifdef __cplusplus
}
#endif

#endif
