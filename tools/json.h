/* SPDX-License-Identifier: MIT */
/*
 * Writes JSON (RFC 8259), indented, to a stream.  Errors stay with the stream: check fclose().
 *
 * @key is NULL in arrays and for the outermost value.
 */
#ifndef TOOLS_JSON_H
#define TOOLS_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define JSON_MAX_DEPTH 8

/* Zero it and set the stream. */
struct json {
    FILE *stream;
    unsigned depth;
    bool has_items[JSON_MAX_DEPTH + 1]; /* at each depth */
};

void json_open_object(struct json *j, const char *key);
void json_close_object(struct json *j);
void json_open_array(struct json *j, const char *key);
void json_close_array(struct json *j);

/* NULL is written as null.  Bytes that are no UTF-8 become U+FFFD. */
void json_string(struct json *j, const char *key, const char *value);
void json_u64(struct json *j, const char *key, uint64_t value);
/* An array of two numbers, on one line. */
void json_u64_pair(struct json *j, uint64_t first, uint64_t second);
/* With 15 significant digits; null for what is no number. */
void json_double(struct json *j, const char *key, double value);
void json_bool(struct json *j, const char *key, bool value);
void json_null(struct json *j, const char *key);

#ifdef __cplusplus
}
#endif

#endif
