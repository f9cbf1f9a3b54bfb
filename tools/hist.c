/* SPDX-License-Identifier: MIT */
#include "hist.h"

#include "live.h"

#define OCTAVE (1u << (HIST_LINEAR_BITS - 1)) /* counters an octave has */
#define RANGE_END (UINT64_C(1) << HIST_RANGE_BITS)

unsigned hist_index(uint64_t value_ns)
{
    unsigned top_bit, shift;

    if (value_ns >= RANGE_END) {
        value_ns = RANGE_END - 1;
    }
    /* The octave's number: 0 for the linear part, then one for each bit above it. */
    top_bit = 63 - __builtin_clzll(value_ns | (2 * OCTAVE - 1));
    shift = top_bit - (HIST_LINEAR_BITS - 1);
    return shift * OCTAVE + (unsigned)(value_ns >> shift);
}

uint64_t hist_counter_end(unsigned index)
{
    unsigned shift = index < 2 * OCTAVE ? 0 : index / OCTAVE - 1;
    uint64_t in_octave = index - shift * OCTAVE;

    return ((in_octave + 1) << shift) - 1;
}

void hist_record(struct hist *h, int64_t value_ns)
{
    uint64_t value = value_ns < 0 ? 0 : (uint64_t)value_ns;

    live_add(&h->counts[hist_index(value)], 1);
    if (value > live_get(&h->max_ns)) {
        live_set(&h->max_ns, value);
    }
}

void hist_merge(struct hist *into, const struct hist *from)
{
    uint64_t max_ns = live_get(&from->max_ns);

    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        into->counts[i] += live_get(&from->counts[i]);
    }
    if (max_ns > into->max_ns) {
        into->max_ns = max_ns;
    }
}

void hist_subtract(struct hist *into, const struct hist *earlier)
{
    uint64_t max_ns = 0;

    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        into->counts[i] -= live_get(&earlier->counts[i]);
        if (into->counts[i]) {
            max_ns = hist_counter_end(i);
        }
    }
    if (max_ns < into->max_ns) {
        into->max_ns = max_ns;
    }
}

uint64_t hist_total(const struct hist *h)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        total += live_get(&h->counts[i]);
    }
    return total;
}

uint64_t hist_percentile(const struct hist *h, unsigned per_100k)
{
    uint64_t total = hist_total(h), max_ns = hist_max(h), seen = 0, rank;

    if (!total) {
        return 0;
    }
    /* In integers: 99.9 % of 1000 is 999, which a sum of doubles would round up past. */
    rank = (uint64_t)(((unsigned __int128)total * per_100k + 99999) / 100000);
    if (rank == 0) {
        rank = 1;
    }
    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        seen += live_get(&h->counts[i]);
        if (seen >= rank) {
            uint64_t end = hist_counter_end(i);

            /* The last counter also holds what is beyond the range. */
            return end < max_ns && i < HIST_COUNTERS - 1 ? end : max_ns;
        }
    }
    return max_ns;
}

uint64_t hist_max(const struct hist *h)
{
    return live_get(&h->max_ns);
}
