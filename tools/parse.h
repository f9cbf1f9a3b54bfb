/* SPDX-License-Identifier: MIT */
/*
 * Numbers as people write them on a command line.
 *
 * Each returns false, and leaves its output alone, for what is not such a number from end to end
 * or does not fit.
 */
#ifndef TOOLS_PARSE_H
#define TOOLS_PARSE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Decimal digits alone. */
bool parse_number(const char *text, uint64_t *ret_number);

/* A number with an optional suffix k, M, G or T of either case, powers of 1024, up to INT64_MAX. */
bool parse_size(const char *text, uint64_t *ret_bytes);

/* A number with an optional suffix k or M, powers of 1000. */
bool parse_rate(const char *text, uint64_t *ret_per_second);

/* A number, which may have a decimal point, with one of the suffixes ns, us, ms, s, m (minutes)
 * and h; at most ten years. */
bool parse_duration(const char *text, int64_t *ret_ns);

#ifdef __cplusplus
}
#endif

#endif
