/* SPDX-License-Identifier: MIT */
/* The load that every side of block_bench carries: 4 KiB reads, a fixed number in flight. */
#ifndef BENCH_BLOCK_LOAD_H
#define BENCH_BLOCK_LOAD_H

#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES 4096
#define DEPTH_MAX 64 /* twice this many entries, for linked timeouts, fit a context's ring */
#define DEADLINE_NS (30 * INT64_C(1000000000))

/* One thread's share of one run. */
struct load {
    _Alignas(BENCH_ALIGN) uint64_t run_ns;
    unsigned depth;         /* reads in flight */
    bool deadline;          /* each read carries one */
    uint32_t blocks;        /* reads go to random ones below this */
    const uint64_t *expect; /* the first word of each block; NULL: */
    uint64_t expect_all;    /* of all blocks; SPOILED: reads leave the buffer alone */
    uint64_t random;

    /* Result.  The span ends, and ops stops counting, when the time is over; the reads that are
     * still in flight then are waited for and checked, too. */
    uint64_t ops;
    struct bench_span span;
    uint64_t failed; /* reads that ended with an error or held something else */
    uint64_t checksum;
    bool over;
};

#define SPOILED UINT64_MAX

/* Chooses the next block, and spoils the buffer so that a read that never was would show. */
static inline uint32_t load_next(struct load *l, uint64_t *buf)
{
    *buf = SPOILED;
    return bench_random_below(&l->random, l->blocks);
}

/* Accounts for a read that has ended; returns whether another may be issued. */
static inline bool load_done(struct load *l, uint32_t block, const uint64_t *buf, bool ok)
{
    l->failed += !ok || *buf != (l->expect ? l->expect[block] : l->expect_all);
    l->checksum += *buf ^ block;
    if (l->over) {
        return false;
    }
    if (++l->ops % 64 == 0 && bench_now_ns() - l->span.wall_ns >= l->run_ns) {
        bench_end(&l->span);
        l->over = true;
        return false;
    }
    return true;
}

#define LOAD_BUFFERS_BYTES ((size_t)DEPTH_MAX * BLOCK_BYTES)

/* A thread's buffers, as direct I/O wants them; to be freed. */
static inline char *load_buffers(void)
{
    void *mem;
    if (posix_memalign(&mem, 4096, LOAD_BUFFERS_BYTES)) {
        bench_die("out of memory");
    }
    return memset(mem, 0, LOAD_BUFFERS_BYTES);
}

/* ---- aioctx ---------------------------------------------------------------------------------- */

/* Iothreads with their buffers, kept over the runs; one load for each. */
struct aioctx_team;

struct aioctx_team *aioctx_team_new(unsigned threads, unsigned first_cpu, bool pin);
void aioctx_team_free(struct aioctx_team *team);

/* Opens a backend, or ends the program. */
struct BlockBackend *aioctx_open(const char *spec);
void aioctx_close(struct BlockBackend *blk);

/* Registers the team's buffers with the backend. */
void aioctx_team_register(struct aioctx_team *team, struct BlockBackend *blk);

/* Says on stdout why not, when the backend cannot be used on the team's contexts. */
bool aioctx_team_can(struct aioctx_team *team, struct BlockBackend *blk);

/* One run: all loads at once, each on an iothread of its own, on one backend. */
void aioctx_team_run(struct aioctx_team *team, struct BlockBackend *blk, struct load *loads);

/* ---- Plain liburing loops -------------------------------------------------------------------- */

/* One run on @threads threads; @fixed: the file and the buffers are registered.  Returns false when
 * there is no io_uring. */
bool liburing_run(int fd, bool fixed, unsigned threads, bool pin, struct load *loads);

/* ---- fio ------------------------------------------------------------------------------------- */

/* One run of fio's io_uring engine.  Returns false when there is none. */
bool fio_run(int fd, bool fixed, bool direct, unsigned threads, struct load *loads);

/* ---- Independent processes ------------------------------------------------------------------- */

/* One run of the null driver in @nr processes of one iothread each, which start together. */
void processes_run(unsigned nr, bool pin, struct load *loads);

/* The whole of such a process; @index as text. */
int process_main(const char *index, const struct bench *b, unsigned depth);

#define NULL_SPEC "null://?size=1G&read-zeroes=off"
#define NULL_BLOCKS (1024 * 1024 * 1024 / BLOCK_BYTES)

#endif
