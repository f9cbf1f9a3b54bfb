/* SPDX-License-Identifier: MIT */
/* Between the scheduler (interleave.c) and the model of what it schedules (interleave_model.c). */
#ifndef TESTS_INTERLEAVE_INT_H
#define TESTS_INTERLEAVE_INT_H

#include "tests/interleave.h"

enum { IL_THREADS = 3 };

/*
 * A step that a thread is about to take, or its store buffer.  Two steps of different agents
 * concern each other when they touch the same word and one writes it, or when one is `global`.
 */
struct il_op {
    const char *what;
    const volatile void *a, *b; /* the objects; b may be NULL */
    unsigned size;              /* of a */
    bool write;
    bool global;
    bool drained; /* waits until the thread's own store buffer is empty */
    bool (*ready)(const struct il_op *op, int thread); /* NULL: always */
    void *arg;
    uint64_t value; /* for traces, and for ready */
};

/* A step that stores, or updates, for all to see at once. */
static inline struct il_op il_write_op(const char *what, const volatile void *p, unsigned size)
{
    return (struct il_op){ .what = what, .a = p, .size = size, .write = true, .drained = true };
}

/* ---- interleave.c ---------------------------------------------------------------------------- */

extern bool il_active;    /* the threads of a run are running */
extern int il_self;       /* whose turn it is */
extern unsigned il_flags; /* the case's */

/* Stops before the step until it is its turn. */
void il_point(struct il_op op);

/* Whether the word is one that threads meet at.  Notes the access. */
bool il_shared(const volatile void *p, bool write);

/* Whether it is one that several threads write. */
bool il_has_writers(const volatile void *p);

/* A step happened that wrote something: spinning threads may look again. */
extern unsigned long il_writes;

/* Adds to the trace of a step, where there is one. */
void il_trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
const char *il_name_of(const volatile void *p);

/* ---- interleave_arena.c ---------------------------------------------------------------------- */

/* Fails when the memory was freed, or the run has done far too much. */
void il_check_access(const volatile void *p);
void il_arena_reset(void);
/* After a run: nobody wrote to freed memory. */
void il_arena_check(void);

/* ---- interleave_memory.c --------------------------------------------------------------------- */

extern int il_thread_count;
void il_memory_reset(int threads);
bool il_has_fault(enum il_fault fault, const volatile void *p);

bool il_buffer_empty(int thread);
/* The step that the buffer's oldest store is. */
struct il_op il_buffer_op(int thread);
void il_buffer_flush_one(int thread);
void il_flush_all(void);
/* Puts the release of a mutex into the buffer. */
void il_buffer_unlock(const volatile void *m);

/* The thread does something else than to load. */
void il_no_longer_loading(void);

/* ---- interleave_model.c ---------------------------------------------------------------------- */

void il_model_reset(int threads);
/* After a run: nothing is left over. */
void il_model_check(void);
void il_model_thread_new(int thread); /* on it */
void il_model_thread_begin(void);

void il_release_mutex(const volatile void *m);

/* The clocks' state, which outlasts a run otherwise. */
void il_clock_save(void);
void il_clock_restore(void);

#endif
