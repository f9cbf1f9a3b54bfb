/* SPDX-License-Identifier: MIT */
/* What loop_bench asks of the two sides of a comparison. */
#ifndef BENCH_LOOP_IMPL_H
#define BENCH_LOOP_IMPL_H

#include "bench.h"

struct loop_side {
    const char *case_name, *impl;
    const char *monitor; /* of aioctx; NULL: there is none */
    uint32_t n;          /* what the case says it is */

    /* On the thread that is measured.  Returns NULL when this machine cannot do it. */
    void *(*open)(const struct loop_side *side);
    void (*close)(void *state);
    /* Does about @ops operations, a multiple of n or more; returns how many were really done. */
    uint64_t (*run)(void *state, uint64_t ops);
    /* The median time of an operation in the last run, in ns, where only parts of the run count;
     * NULL: all of it counts. */
    double (*part_ns)(void *state);
};

/* Each ends with an element without a name. */
extern const struct loop_side loop_iter_sides[]; /* empty, event */
extern const struct loop_side loop_bh_sides[];   /* bh, bh-oneshot, bh-foreign */
extern const struct loop_side loop_op_sides[];   /* nop, read */

/* What `read` reads; NULL: there is none. */
extern const struct test_file *loop_file;

extern const char *const loop_monitors[]; /* NULL-ended */

/* The name of our row on @monitor, where all monitors are in one case: aioctx, aioctx-epoll ... */
const char *loop_impl_of(const char *monitor);

/* A context on @monitor with the calling thread as home; NULL: cannot. */
struct AioContext *loop_context(const char *monitor);

/* The cases idle and memory: loop_idle.c. */
void loop_idle_run(struct bench *b, unsigned idle_ms);
void loop_memory_run(struct bench *b);
int loop_memory_child(const char *monitor);

#endif
