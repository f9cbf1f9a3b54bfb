/* SPDX-License-Identifier: MIT */
#include "parse.h"

#include <string.h>

#define MAX_DURATION_NS (INT64_C(3653) * 86400 * 1000000000)

/* Reads digits and moves *@text behind them; false where there are none or they do not fit. */
static bool take_digits(const char **text, uint64_t *ret_number)
{
    const char *p = *text;
    uint64_t number = 0;

    if (*p < '0' || *p > '9') {
        return false;
    }
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*p - '0'), &number)) {
            return false;
        }
    }
    *text = p;
    *ret_number = number;
    return true;
}

bool parse_number(const char *text, uint64_t *ret_number)
{
    uint64_t number;

    if (!take_digits(&text, &number) || *text) {
        return false;
    }
    *ret_number = number;
    return true;
}

/* A number and at most one letter of @suffixes, the n-th of which multiplies by @base^n. */
static bool parse_scaled(const char *text, const char *suffixes, uint64_t base,
                         uint64_t *ret_number)
{
    uint64_t number;

    if (!take_digits(&text, &number)) {
        return false;
    }
    if (*text) {
        const char *found = strchr(suffixes, *text | 0x20);

        if (!found || text[1]) {
            return false;
        }
        for (const char *p = suffixes; p <= found; p++) {
            if (__builtin_mul_overflow(number, base, &number)) {
                return false;
            }
        }
    }
    *ret_number = number;
    return true;
}

bool parse_size(const char *text, uint64_t *ret_bytes)
{
    uint64_t bytes;

    if (!parse_scaled(text, "kmgt", 1024, &bytes) || bytes > INT64_MAX) {
        return false;
    }
    *ret_bytes = bytes;
    return true;
}

bool parse_rate(const char *text, uint64_t *ret_per_second)
{
    return parse_scaled(text, "km", 1000, ret_per_second);
}

static int64_t unit_ns(const char *suffix)
{
    static const struct {
        char name[3];
        int64_t ns;
    } units[] = {
        { "ns", 1 },
        { "us", 1000 },
        { "ms", 1000000 },
        { "s", 1000000000 },
        { "m", INT64_C(60) * 1000000000 },
        { "h", INT64_C(3600) * 1000000000 },
    };

    for (unsigned i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(suffix, units[i].name) == 0) {
            return units[i].ns;
        }
    }
    return 0;
}

bool parse_duration(const char *text, int64_t *ret_ns)
{
    const char *fraction = NULL;
    uint64_t whole, ignored;
    int64_t unit, ns, part = 0;

    if (!take_digits(&text, &whole)) {
        return false;
    }
    if (*text == '.') {
        fraction = ++text;
        if (!take_digits(&text, &ignored)) {
            return false;
        }
    }
    unit = unit_ns(text);
    if (!unit || whole > INT64_MAX || __builtin_mul_overflow((int64_t)whole, unit, &ns)) {
        return false;
    }
    for (int64_t place = unit / 10; fraction && fraction < text && place; fraction++, place /= 10) {
        part += (*fraction - '0') * place;
    }
    if (ns > MAX_DURATION_NS - part) {
        return false;
    }
    *ret_ns = ns + part;
    return true;
}
