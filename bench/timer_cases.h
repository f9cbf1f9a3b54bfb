/* SPDX-License-Identifier: MIT */
/* The cases of timer_bench, each in a file of its own. */
#ifndef BENCH_TIMER_CASES_H
#define BENCH_TIMER_CASES_H

#include "bench.h"
#include "timer_impl.h"

#define MS_NS UINT64_C(1000000)

/* Random deadlines lie this far ahead, and up to 18 minutes further: none passes during a run. */
#define CHURN_LEAST_NS (3600 * 1000 * MS_NS)
#define CHURN_SPREAD_NS ((UINT64_C(1) << 40) - 1)

/* Deadlines for firing lie 1 to 5 ms ahead.  Some libraries read a coarse clock, which is up to 10
 * ms behind: after this long all are due. */
#define FIRE_LEAST_NS MS_NS
#define FIRE_SPREAD_NS (4 * MS_NS)
#define FIRE_WAIT_NS (17 * MS_NS)

/* The timer libraries that were built in; ends with NULL. */
extern const struct timer_impl *const timer_impls[];

/* Which of a library's limits hold: n_max, n_max_fire or both. */
enum timer_limit { LIMIT_OPS, LIMIT_FIRE, LIMIT_BOTH };

/* Those of @impl_list that are measured with @n timers; returns how many. */
#define TIMER_IMPLS_MAX 8 /* no more */
unsigned timer_select(const struct timer_impl **selected, const char *impl_list, uint32_t n,
                      enum timer_limit limit);

enum timer_op { CHURN, IO_TIMEOUT, FIRE };

/* Adds the rows of one case with @n timers, of the implementations in @impl_list. */
void timer_ops_run(struct bench *b, enum timer_op which, uint32_t n, const char *impl_list);
void timer_tail_run(struct bench *b, uint32_t n, const char *impl_list);
void timer_remote_run(struct bench *b, uint32_t n, const char *impl_list);

/* These choose n themselves. */
void timer_read_run(struct bench *b, const char *impl_list);
void timer_slack_run(struct bench *b, const char *impl_list);
void timer_memory_run(struct bench *b, const char *impl_list);

/* The process that timer_memory_run() starts, instead of everything else: it writes a number of
 * bytes; returns the exit status.  @n_text: of how many timers; 0: of a loop without any. */
int timer_memory_child(const char *impl_name, const char *n_text);

/* Prints the tables. */
void timer_tail_print(struct bench *b);
void timer_remote_print(struct bench *b);
void timer_memory_print(struct bench *b);

#endif
