/* SPDX-License-Identifier: MIT */
#include "blk_mix.h"

#include <stdlib.h>
#include <string.h>

#include "parse.h"

#define WEIGHT_MAX 1000000
#define THETA_DEFAULT 0.99 /* that of the Yahoo! Cloud Serving Benchmark */

const char *const blk_kind_names[BLK_KINDS] = { "read",    "write",  "flush",
                                                "discard", "zeroes", "status" };

enum blk_kind blk_kind_find(const char *name, size_t len)
{
    int kind = 0;

    while (kind < BLK_KINDS &&
           (strlen(blk_kind_names[kind]) != len || memcmp(blk_kind_names[kind], name, len) != 0)) {
        kind++;
    }
    return (enum blk_kind)kind;
}

/* Cuts the next part of *@text off, up to @separator, into @buf; false when it does not fit. */
static bool next_part(const char **text, char separator, char *buf, size_t size)
{
    const char *end = strchrnul(*text, separator);
    size_t len = (size_t)(end - *text);

    if (len >= size) {
        return false;
    }
    memcpy(buf, *text, len);
    buf[len] = '\0';
    *text = *end ? end + 1 : NULL;
    return true;
}

static bool parse_weight(const char *text, unsigned *ret_weight)
{
    uint64_t weight;

    if (!parse_number(text, &weight) || weight > WEIGHT_MAX) {
        return false;
    }
    *ret_weight = (unsigned)weight;
    return true;
}

/* ---- Kinds ----------------------------------------------------------------------------------- */

bool blk_mix_parse(const char *text, struct blk_mix *ret_mix)
{
    struct blk_mix mix = { { 0 }, 0 };
    bool given[BLK_KINDS + 1] = { false };
    char part[32];

    while (text) {
        enum blk_kind kind;
        char *equals;

        if (!next_part(&text, ',', part, sizeof(part)) || !(equals = strchr(part, '='))) {
            return false;
        }
        kind = blk_kind_find(part, (size_t)(equals - part));
        if (kind == BLK_KINDS || given[kind] || !parse_weight(equals + 1, &mix.weight[kind])) {
            return false;
        }
        given[kind] = true;
        mix.total += mix.weight[kind];
    }
    if (!mix.total) {
        return false;
    }
    *ret_mix = mix;
    return true;
}

bool blk_mix_writes(const struct blk_mix *mix)
{
    return mix->weight[KIND_WRITE] || mix->weight[KIND_DISCARD] || mix->weight[KIND_ZEROES];
}

enum blk_kind blk_mix_choose(const struct blk_mix *mix, struct blk_random *random)
{
    uint64_t at;
    int kind = 0;

    for (int only = 0; only < BLK_KINDS; only++) {
        if (mix->weight[only] == mix->total) {
            return (enum blk_kind)only; /* no choice, and no random number for it */
        }
    }
    at = blk_random_below(random, mix->total);
    while (at >= mix->weight[kind]) {
        at -= mix->weight[kind++];
    }
    return (enum blk_kind)kind;
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

static bool parse_bytes(const char *text, uint32_t sector, uint32_t max, uint32_t *ret_bytes)
{
    uint64_t bytes;

    if (!parse_size(text, &bytes) || bytes == 0 || bytes % sector || bytes > max) {
        return false;
    }
    *ret_bytes = (uint32_t)bytes;
    return true;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

static bool parse_range(const char *text, uint32_t sector, uint32_t max, struct blk_sizes *sizes)
{
    char part[32];

    if (!next_part(&text, '-', part, sizeof(part)) ||
        !parse_bytes(part, sector, max, &sizes->min)) {
        return false;
    }
    sizes->max = sizes->unit = sizes->min;
    return !text || (parse_bytes(text, sector, max, &sizes->max) && sizes->max >= sizes->min &&
                     sizes->max % sizes->min == 0);
}

static bool parse_list(const char *text, uint32_t sector, uint32_t max, struct blk_sizes *sizes)
{
    char part[64];

    for (; text; sizes->nr++) {
        uint32_t bytes;
        unsigned weight;
        char *slash;

        if (sizes->nr == BLK_SIZES_MAX || !next_part(&text, ':', part, sizeof(part)) ||
            !(slash = strchr(part, '/'))) {
            return false;
        }
        *slash = '\0';
        if (!parse_bytes(part, sector, max, &bytes) || !parse_weight(slash + 1, &weight) ||
            weight == 0) {
            return false;
        }
        sizes->one[sizes->nr].bytes = bytes;
        sizes->one[sizes->nr].weight = weight;
        sizes->total += weight;
        sizes->min = sizes->nr && sizes->min < bytes ? sizes->min : bytes;
        sizes->max = sizes->max > bytes ? sizes->max : bytes;
        sizes->unit = (uint32_t)common_divisor(bytes, sizes->unit);
    }
    return true;
}

bool blk_sizes_parse(const char *text, uint32_t sector, uint32_t max, struct blk_sizes *ret_sizes)
{
    struct blk_sizes sizes = { 0 };

    if (!(strchr(text, '/') ? parse_list : parse_range)(text, sector, max, &sizes)) {
        return false;
    }
    *ret_sizes = sizes;
    return true;
}

uint32_t blk_sizes_choose(const struct blk_sizes *sizes, struct blk_random *random)
{
    uint64_t at;
    unsigned i = 0;

    if (sizes->min == sizes->max) {
        return sizes->min / sizes->unit;
    }
    if (!sizes->nr) {
        return 1 + (uint32_t)blk_random_below(random, sizes->max / sizes->unit);
    }
    at = blk_random_below(random, sizes->total);
    while (at >= sizes->one[i].weight) {
        at -= sizes->one[i++].weight;
    }
    return sizes->one[i].bytes / sizes->unit;
}

/* ---- Places ---------------------------------------------------------------------------------- */

static bool parse_theta(const char *text, double *ret_theta)
{
    char *end;
    double theta;

    if (*text < '0' || *text > '9') { /* no signs, spaces, "inf" and the like */
        return false;
    }
    theta = strtod(text, &end);
    if (*end || strspn(text, "0123456789.") != strlen(text) || !(theta >= 0.01 && theta <= 10)) {
        return false;
    }
    *ret_theta = theta;
    return true;
}

static bool parse_percent(const char *text, unsigned *ret_percent)
{
    uint64_t percent;

    if (!parse_number(text, &percent) || percent < 1 || percent > 99) {
        return false;
    }
    *ret_percent = (unsigned)percent;
    return true;
}

static bool parse_hot(const char *text, struct blk_pattern *pattern)
{
    char part[8];

    return next_part(&text, '/', part, sizeof(part)) && text &&
           parse_percent(part, &pattern->hot_requests) && parse_percent(text, &pattern->hot_space);
}

bool blk_pattern_parse(const char *text, struct blk_pattern *ret_pattern)
{
    struct blk_pattern pattern = { .theta = THETA_DEFAULT };

    if (strcmp(text, "random") == 0) {
        pattern.order = ORDER_RANDOM;
    } else if (strcmp(text, "sequential") == 0) {
        pattern.order = ORDER_SEQUENTIAL;
    } else if (strcmp(text, "zipf") == 0) {
        pattern.order = ORDER_ZIPF;
    } else if (strncmp(text, "zipf:", 5) == 0 && parse_theta(text + 5, &pattern.theta)) {
        pattern.order = ORDER_ZIPF;
    } else if (strncmp(text, "hot:", 4) == 0 && parse_hot(text + 4, &pattern)) {
        pattern.order = ORDER_HOT;
    } else {
        return false;
    }
    *ret_pattern = pattern;
    return true;
}

void blk_places_init(struct blk_places *places, const struct blk_pattern *pattern, uint64_t units)
{
    places->pattern = *pattern;
    places->units = units;
    places->cursor = 0;
    if (pattern->order == ORDER_ZIPF) {
        zipf_init(&places->zipf, units, pattern->theta);
        /* The golden section of the region, and without a common divisor with it: then rank * step
         * modulo units is another place for each rank, and neighbours in rank lie far apart. */
        places->step = (uint64_t)((double)units * 0.6180339887498949) | 1;
        while (common_divisor(places->step, units) != 1) {
            places->step += 2;
        }
    }
}

uint64_t blk_places_spread(const struct blk_places *places, uint64_t rank)
{
    return (uint64_t)((unsigned __int128)rank * places->step % places->units);
}

static uint64_t choose_hot(const struct blk_places *places, struct blk_random *random)
{
    const struct blk_pattern *pattern = &places->pattern;
    uint64_t hot = (uint64_t)((unsigned __int128)places->units * pattern->hot_space / 100);

    if (hot == 0 || hot == places->units) {
        return blk_random_below(random, places->units);
    }
    return blk_random_below(random, 100) < pattern->hot_requests
               ? blk_random_below(random, hot)
               : hot + blk_random_below(random, places->units - hot);
}

uint64_t blk_places_choose(struct blk_places *places, uint32_t len, struct blk_random *random)
{
    uint64_t last = places->units - len, at;

    switch (places->pattern.order) {
    case ORDER_SEQUENTIAL:
        at = places->cursor <= last ? places->cursor : 0;
        places->cursor = at + len;
        return at;
    case ORDER_ZIPF:
        at = blk_places_spread(places, zipf_next(&places->zipf, random));
        break;
    case ORDER_HOT:
        at = choose_hot(places, random);
        break;
    default:
        return blk_random_below(random, last + 1);
    }
    return at <= last ? at : last;
}
