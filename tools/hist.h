/* SPDX-License-Identifier: MIT */
/*
 * A histogram of times in nanoseconds, with a fixed relative error and no allocation.
 *
 * The layout is that of HdrHistogram (Gil Tene, https://hdrhistogram.org): the range is cut at the
 * powers of two, and each octave into the same number of equal counters, so that an index is a
 * shift and an add.  Here the first 256 values have a counter each and every octave above has 128:
 * a value is known to within 1/128 of itself.  Values from 2^42 ns (73 minutes) on share the last
 * counter; the largest value is kept exactly.
 *
 *                        thread
 *   hist_record          the owner, one for each histogram
 *   the others           any, also while the owner records: `into` belongs to the caller
 */
#ifndef TOOLS_HIST_H
#define TOOLS_HIST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HIST_LINEAR_BITS 8
#define HIST_RANGE_BITS 42
#define HIST_COUNTERS ((HIST_RANGE_BITS - HIST_LINEAR_BITS + 2) << (HIST_LINEAR_BITS - 1))

/* Zeroed, it is an empty histogram. */
struct hist {
    uint64_t max_ns;
    uint64_t counts[HIST_COUNTERS];
};

/* Counts @value_ns; a negative one counts as 0. */
void hist_record(struct hist *h, int64_t value_ns);

/* Adds what @from counts to @into. */
void hist_merge(struct hist *into, const struct hist *from);

/*
 * Takes away from @into what an earlier copy of it, @earlier, counted: the rest is what came in
 * between.  Its largest value is then only known to within its counter.
 */
void hist_subtract(struct hist *into, const struct hist *earlier);

/* How many values it counts. */
uint64_t hist_total(const struct hist *h);

/*
 * The value that @per_100k of every 100000 values do not exceed (99900: p99.9), rounded up to the
 * end of its counter, but never above the largest one.  0 for an empty histogram.
 */
uint64_t hist_percentile(const struct hist *h, unsigned per_100k);

/* The largest value; 0 for an empty histogram. */
uint64_t hist_max(const struct hist *h);

/* For tests: the counter of @value_ns, and the largest value that counter @index stands for. */
unsigned hist_index(uint64_t value_ns);
uint64_t hist_counter_end(unsigned index);

#ifdef __cplusplus
}
#endif

#endif
