/* SPDX-License-Identifier: MIT */
#include "json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

/* The length of the UTF-8 character at @p: 1 to 4, or 0 for bytes that are none. */
static unsigned utf8_length(const unsigned char *p)
{
    uint32_t code = p[0];
    unsigned len = code < 0x80       ? 1
                   : code >> 5 == 6  ? 2
                   : code >> 4 == 14 ? 3
                   : code >> 3 == 30 ? 4
                                     : 0;
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };

    if (len < 2) {
        return len;
    }
    code &= 0x7fu >> len;
    for (unsigned i = 1; i < len; i++) {
        if (p[i] >> 6 != 2) { /* the terminating zero is caught here too */
            return 0;
        }
        code = code << 6 | (p[i] & 0x3f);
    }
    /* Overlong forms, surrogates and what is beyond Unicode are no characters. */
    return code < least[len] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : len;
}

static void put_quoted(FILE *stream, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    fputc('"', stream);
    while (*p) {
        unsigned len = utf8_length(p);

        if (len == 0) {
            fputs("\\ufffd", stream);
            p++;
        } else if (*p < 0x20 || *p == 0x7f) {
            fprintf(stream, "\\u%04x", *p++);
        } else {
            if (*p == '"' || *p == '\\') {
                fputc('\\', stream);
            }
            fwrite(p, 1, len, stream);
            p += len;
        }
    }
    fputc('"', stream);
}

static void new_line(struct json *j)
{
    fprintf(j->stream, "\n%*s", 2 * (int)j->depth, "");
}

static void begin_item(struct json *j, const char *key)
{
    if (j->has_items[j->depth]) {
        fputc(',', j->stream);
    }
    j->has_items[j->depth] = true;
    if (j->depth) {
        new_line(j);
    }
    if (key) {
        put_quoted(j->stream, key);
        fputs(": ", j->stream);
    }
}

static void open_level(struct json *j, const char *key, char bracket)
{
    begin_item(j, key);
    fputc(bracket, j->stream);
    assert(j->depth < JSON_MAX_DEPTH);
    j->has_items[++j->depth] = false;
}

static void close_level(struct json *j, char bracket)
{
    bool had_items = j->has_items[j->depth];

    assert(j->depth > 0);
    j->depth--;
    if (had_items) {
        new_line(j);
    }
    fputc(bracket, j->stream);
    if (!j->depth) {
        fputc('\n', j->stream);
    }
}

void json_open_object(struct json *j, const char *key)
{
    open_level(j, key, '{');
}

void json_close_object(struct json *j)
{
    close_level(j, '}');
}

void json_open_array(struct json *j, const char *key)
{
    open_level(j, key, '[');
}

void json_close_array(struct json *j)
{
    close_level(j, ']');
}

void json_string(struct json *j, const char *key, const char *value)
{
    if (!value) {
        json_null(j, key);
        return;
    }
    begin_item(j, key);
    put_quoted(j->stream, value);
}

void json_u64(struct json *j, const char *key, uint64_t value)
{
    begin_item(j, key);
    fprintf(j->stream, "%" PRIu64, value);
}

void json_double(struct json *j, const char *key, double value)
{
    if (!isfinite(value)) {
        json_null(j, key);
        return;
    }
    begin_item(j, key);
    fprintf(j->stream, "%.15g", value);
}

void json_bool(struct json *j, const char *key, bool value)
{
    begin_item(j, key);
    fputs(value ? "true" : "false", j->stream);
}

void json_null(struct json *j, const char *key)
{
    begin_item(j, key);
    fputs("null", j->stream);
}

void json_u64_pair(struct json *j, uint64_t first, uint64_t second)
{
    begin_item(j, NULL);
    fprintf(j->stream, "[%" PRIu64 ", %" PRIu64 "]", first, second);
}
