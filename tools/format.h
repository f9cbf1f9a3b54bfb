/* SPDX-License-Identifier: MIT */
/* Numbers for people, in a few columns. */
#ifndef TOOLS_FORMAT_H
#define TOOLS_FORMAT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct text {
    char s[24];
};

/* "850ns", "12.3us", "1.20ms", "34.5s": three digits. */
struct text format_time(uint64_t ns);

/* "123456" in full up to six digits, then "1.23M", "45.6G". */
struct text format_count(double count);

/* "4k", "1G" where it is a whole number of them, else bytes. */
struct text format_size(uint64_t bytes);

#ifdef __cplusplus
}
#endif

#endif
