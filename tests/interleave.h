/* SPDX-License-Identifier: MIT */
/*
 * A controlled scheduler: runs a case of two or three threads through every order in which their
 * accesses to shared memory can take effect, one run for each.
 *
 * The library is built a second time with AIOCTX_INTERLEAVE, so that each access of
 * rcu/atomic_int.h is a call, and with interleave_redirect.h, so that locks, read sections,
 * eventfds, time and memory are those of interleave_model.c.  The threads are real ones, but only
 * the one whose turn it is runs.  Before an access that another thread may touch too it stops, and
 * the scheduler decides whose access is next.
 *
 * What is modelled is x86's total store order: a store that is not sequentially consistent, and the
 * release of a mutex, goes into its thread's store buffer, in order; that a store leaves the buffer
 * is a step of its own, which the scheduler places like any other.  Sequentially consistent stores,
 * read-modify-writes and system calls wait until their thread's buffer is empty.  Loads are not
 * reordered.  What lies between two accesses belongs to the first; that is sound as far as the code
 * has no data races, for which there is ThreadSanitizer.
 *
 * The search is depth first, with sleep sets: of runs that differ only in the order of accesses
 * which do not concern each other, one is completed.  An access is a place to switch at only when
 * some run has shown that another thread touches the same word and one of them writes it; when a
 * run shows a new such word, the search begins anew.
 * Source: Godefroid, "Partial-Order Methods for the Verification of Concurrent Systems", 1996; the
 * buffers as threads of their own: Zhang, Kusano and Wang, "Dynamic Partial Order Reduction for
 * Relaxed Memory Models", 2015.
 */
#ifndef TESTS_INTERLEAVE_H
#define TESTS_INTERLEAVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Cases ----------------------------------------------------------------------------------- */

enum {
    IL_RCU = 1 << 0,     /* read sections matter: their ends are places to switch at */
    IL_BARRIER = 1 << 1, /* barrier_all_threads() matters: so are stores into a buffer */
    IL_SC = 1 << 2,      /* stores take effect at once, but for those of a fault: for long cases */
};

/* What a case does.  setup and check run alone, before and after the threads of each run. */
struct il_case {
    const char *name;
    int threads; /* 2 or 3 */
    unsigned flags;
    void (*setup)(void);
    void (*run)(int thread);
    void (*check)(void);   /* may be NULL */
    int preemptions;       /* at most so many switches away from one that could go on; 0: any */
    const char *plants[4]; /* names of the faults that setup puts in for il_planted 1, 2 ... */
};

/* The number of the fault to put in; 0: none. */
extern int il_planted;

struct il_result {
    bool failed;
    unsigned long runs;   /* completed, each another order */
    unsigned long pruned; /* given up, since a completed one is like them */
    unsigned depth;       /* steps of the longest run */
    char why[300];
    char schedule[1200]; /* of the run that failed, for il_replay() */
};

/* Searches until a run fails or there are no more. */
void il_explore(const struct il_case *c, int planted, struct il_result *ret);

/*
 * Runs one schedule: steps joined by dots, each the agent, a digit for a thread and a letter for
 * its buffer, and how often, as in "0x3.1.a".  After its end the first that can go on does.
 * Writes each step to @trace, if that is not NULL.
 */
void il_replay(const struct il_case *c, int planted, const char *schedule, FILE *trace,
               struct il_result *ret);

/* ---- For cases ------------------------------------------------------------------------------- */

/* Ends the run as a failure.  Does not return. */
void il_fail(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

#define il_assert(cond, ...) ((void)((cond) ? 0 : (il_fail(__VA_ARGS__), 0)))

/* Names an object in traces. */
void il_name(const volatile void *p, const char *name);

/* Waits until @ready(@arg); what it looks at changes only by accesses to @object. */
void il_wait(const volatile void *object, bool (*ready)(void *), void *arg);

/* A step that does nothing but to be one, which no other step at @object can be swapped with. */
void il_step(const volatile void *object);

/* What a list lock knows the thread by. */
uintptr_t il_thread_number(int thread);

/* Whether the thread is in pthread_cond_wait() and was not signalled. */
bool il_in_cond_wait(int thread);

/* Memory that is checked: who accesses it after il_free() has failed. */
void *il_malloc(size_t size);
void *il_calloc(size_t n, size_t size);
void *il_aligned_alloc(size_t align, size_t size);
void il_free(void *p);
bool il_is_freed(const void *p);

/* What the library's clocks read, in ns.  Atomic. */
extern int64_t il_now_ns;

/* An eventfd. */
enum { IL_FD_MIN = 1000, IL_FDS = 4 };
int il_eventfd(void);
bool il_fd_is_set(int fd);
const void *il_fd_object(int fd); /* for il_wait() */
ssize_t il_read(int fd, void *buf, size_t len);

/* Faults; they last for one run. */
enum il_fault {
    IL_WEAK_STORE,   /* sequentially consistent stores to @p are relaxed */
    IL_SPLIT_UPDATE, /* a read-modify-write of @p is a load and a store */
    IL_WEAK_UPDATE,  /* the same, and the store is relaxed */
    IL_NO_MUTEX,     /* the mutex @p lets everyone in */
    IL_NO_SIGNAL,    /* signals and broadcasts of the condition variable @p are lost */
    IL_NO_BARRIER,   /* barrier_all_threads() does nothing */
    IL_NO_GRACE,     /* grace periods wait for nobody */
};
void il_plant(enum il_fault fault, const volatile void *p);

#ifdef __cplusplus
}
#endif

#endif
