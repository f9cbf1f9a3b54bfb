/* SPDX-License-Identifier: MIT */
#include "format.h"

#include <inttypes.h>
#include <stdio.h>

/* Three significant digits of a number from 1 to 999; larger ones in full. */
static struct text three_digits(double value, const char *unit)
{
    struct text text;
    int places = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;

    snprintf(text.s, sizeof(text.s), "%.*f%s", places, value, unit);
    return text;
}

struct text format_time(uint64_t ns)
{
    struct text text;

    if (ns < 1000) {
        snprintf(text.s, sizeof(text.s), "%" PRIu64 "ns", ns);
        return text;
    }
    /* The borders are where rounding would show 1000 of the smaller unit. */
    if (ns < 999500) {
        return three_digits((double)ns / 1e3, "us");
    }
    if (ns < 999500000) {
        return three_digits((double)ns / 1e6, "ms");
    }
    return three_digits((double)ns / 1e9, "s");
}

struct text format_count(double count)
{
    struct text text;

    if (count < 999999.5) {
        snprintf(text.s, sizeof(text.s), "%.0f", count);
        return text;
    }
    return count < 999.5e6 ? three_digits(count / 1e6, "M") : three_digits(count / 1e9, "G");
}

struct text format_size(uint64_t bytes)
{
    static const char suffixes[] = "kMGT";
    struct text text;
    unsigned n = 0;

    while (n < 4 && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        n++;
    }
    snprintf(text.s, sizeof(text.s), "%" PRIu64 "%.*s", bytes, n > 0, suffixes + (n ? n - 1 : 0));
    return text;
}
