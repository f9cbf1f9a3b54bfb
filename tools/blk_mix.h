/* SPDX-License-Identifier: MIT */
/*
 * What a workload is made of: kinds of requests by weight, their sizes, and where they go.
 *
 * A region is divided into units: the greatest size that all sizes are multiples of.  A request
 * covers some units that follow one another.
 */
#ifndef TOOLS_BLK_MIX_H
#define TOOLS_BLK_MIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk_random.h"
#include "zipf.h"

#ifdef __cplusplus
extern "C" {
#endif

enum blk_kind {
    KIND_READ,
    KIND_WRITE,
    KIND_FLUSH,
    KIND_DISCARD,
    KIND_ZEROES,
    KIND_STATUS,
    BLK_KINDS
};

/* "read", "write" and so on. */
extern const char *const blk_kind_names[BLK_KINDS];

/* The kind of that name of @len bytes; BLK_KINDS for none. */
enum blk_kind blk_kind_find(const char *name, size_t len);

struct blk_mix {
    unsigned weight[BLK_KINDS], total;
};

/* "read=70,write=20,flush=1".  Returns false, and leaves @ret_mix alone, for anything else. */
bool blk_mix_parse(const char *text, struct blk_mix *ret_mix);

static inline bool blk_mix_has(const struct blk_mix *mix, enum blk_kind kind)
{
    return mix->weight[kind] > 0;
}

/* Whether some requests change what is on the backend. */
bool blk_mix_writes(const struct blk_mix *mix);

enum blk_kind blk_mix_choose(const struct blk_mix *mix, struct blk_random *random);

/* ---- Sizes ----------------------------------------------------------------------------------- */

#define BLK_SIZES_MAX 16

struct blk_sizes {
    uint32_t min, max, unit; /* bytes */
    unsigned nr;             /* of a list with weights; 0: every multiple of min up to max */
    unsigned total;
    struct {
        uint32_t bytes;
        unsigned weight;
    } one[BLK_SIZES_MAX];
};

/* "4k", "4k-64k" or "4k/60:64k/40", all multiples of @sector bytes, up to @max bytes.  Returns
 * false, and leaves @ret_sizes alone, for anything else. */
bool blk_sizes_parse(const char *text, uint32_t sector, uint32_t max, struct blk_sizes *ret_sizes);

/* In units. */
uint32_t blk_sizes_choose(const struct blk_sizes *sizes, struct blk_random *random);

/* ---- Places ---------------------------------------------------------------------------------- */

enum blk_order { ORDER_RANDOM, ORDER_SEQUENTIAL, ORDER_ZIPF, ORDER_HOT };

struct blk_pattern {
    enum blk_order order;
    double theta;                     /* zipf */
    unsigned hot_requests, hot_space; /* hot: so many percent of the requests go to so many
                                          * percent of the space */
};

/* "random", "sequential", "zipf", "zipf:1.2" or "hot:90/10".  Returns false, and leaves
 * @ret_pattern alone, for anything else. */
bool blk_pattern_parse(const char *text, struct blk_pattern *ret_pattern);

/* Chooses where requests go in a region of so many units. */
struct blk_places {
    struct blk_pattern pattern;
    uint64_t units, cursor, step;
    struct zipf zipf;
};

void blk_places_init(struct blk_places *places, const struct blk_pattern *pattern, uint64_t units);

/* The first unit of a request of @len units; those in order follow one another, and what would
 * pass the end begins again at 0. */
uint64_t blk_places_choose(struct blk_places *places, uint32_t len, struct blk_random *random);

/* Where the unit of a rank of zipf's lies: the ranks are spread over the region, each to a place of
 * its own, so that the busiest units do not lie side by side. */
uint64_t blk_places_spread(const struct blk_places *places, uint64_t rank);

#ifdef __cplusplus
}
#endif

#endif
