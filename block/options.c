/* SPDX-License-Identifier: MIT */
/*
 * Parsing what blk_open() is given.
 *
 *   disk.img                          a file, taken literally
 *   DRIVER:PATH?k=v&k=v               the path relative or absolute
 *   DRIVER:///PATH?k=v&k=v            the same as a URI; DRIVER://?k=v without a path
 *   DRIVER:k=v,k=v                    for drivers that take no path
 *
 * %XX stands for a byte in paths and values, once the spec has been cut at its separators.
 */
#include "block/block_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Options that every driver takes, since the core serves them. */
static const BlkOptDesc common_options[] = {
    { "read-only", BLK_OPT_SWITCH },
    { "detach", BLK_OPT_SWITCH },
    { "deadline-ns", BLK_OPT_NUMBER },
    { NULL },
};

int blk_fail(char **ret_why, int err, const char *fmt, ...)
{
    if (ret_why) {
        char *why;
        va_list ap;

        va_start(ap, fmt);
        *ret_why = vasprintf(&why, fmt, ap) < 0 ? NULL : why;
        va_end(ap);
    }
    return -err;
}

bool blk_opt_given(const BlkOptions *opts, const char *name)
{
    for (int i = 0; i < opts->n; i++) {
        if (!strcmp(opts->opt[i].name, name)) {
            return true;
        }
    }
    return false;
}

int64_t blk_opt_get(const BlkOptions *opts, const char *name, int64_t dflt)
{
    for (int i = 0; i < opts->n; i++) {
        if (!strcmp(opts->opt[i].name, name)) {
            return opts->opt[i].value;
        }
    }
    return dflt;
}

static const char *type_text(BlkOptType type)
{
    switch (type) {
    case BLK_OPT_SWITCH:
        return "on|off";
    case BLK_OPT_SIZE:
        return "SIZE";
    default:
        return "N";
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in place.  Returns false when one is malformed or stands for the byte 0. */
static bool percent_decode(char *s)
{
    char *to = s;

    for (; *s; s++, to++) {
        if (*s != '%') {
            *to = *s;
            continue;
        }
        int hi = hex_digit(s[1]), lo = hi < 0 ? -1 : hex_digit(s[2]);
        if (lo < 0 || (hi | lo) == 0) {
            return false;
        }
        *to = (char)(hi << 4 | lo);
        s += 2;
    }
    *to = 0;
    return true;
}

static const BlkOptDesc *find_desc(const BlkOptDesc *table, const char *name)
{
    for (; table && table->name; table++) {
        if (!strcmp(table->name, name)) {
            return table;
        }
    }
    return NULL;
}

static void list_options(FILE *f, const BlkOptDesc *table, const char **sep)
{
    for (; table && table->name; table++) {
        fprintf(f, "%s%s=%s", *sep, table->name, type_text(table->type));
        *sep = ", ";
    }
}

static int fail_unknown(const BlockDriver *drv, const char *name, char **ret_why)
{
    char *list = NULL;
    size_t len;
    const char *sep = "";
    FILE *f = open_memstream(&list, &len);

    if (f) {
        list_options(f, drv->options, &sep);
        list_options(f, common_options, &sep);
        fclose(f);
    }
    blk_fail(ret_why, EINVAL, "driver '%s' has no option '%s'; it takes %s", drv->name, name,
             list ? list : "others");
    free(list);
    return -EINVAL;
}

/* Parses digits and, for a size, a suffix.  Returns false when @s is no such number. */
static bool parse_number(const char *s, bool suffix, int64_t *ret)
{
    int64_t v = 0;
    int shift = 0;

    if (*s < '0' || *s > '9') {
        return false;
    }
    for (; *s >= '0' && *s <= '9'; s++) {
        if (__builtin_mul_overflow(v, (int64_t)10, &v) ||
            __builtin_add_overflow(v, (int64_t)(*s - '0'), &v)) {
            return false;
        }
    }
    if (suffix && *s) {
        static const char letters[] = "kmgt";
        const char *at = strchr(letters, *s | 0x20);

        if (!at) {
            return false;
        }
        shift = 10 * (int)(at - letters + 1);
        s++;
    }
    if (*s || v > INT64_MAX >> shift) {
        return false;
    }
    *ret = v << shift;
    return true;
}

static int parse_value(const BlkOptDesc *desc, const char *value, int64_t *ret, char **ret_why)
{
    switch (desc->type) {
    case BLK_OPT_SWITCH:
        if (strcmp(value, "on") && strcmp(value, "off")) {
            return blk_fail(ret_why, EINVAL, "option '%s' takes on or off, not '%s'", desc->name,
                            value);
        }
        *ret = value[1] == 'n';
        return 0;
    case BLK_OPT_SIZE:
        if (!parse_number(value, true, ret) || *ret == 0) {
            return blk_fail(ret_why, EINVAL,
                            "option '%s' takes a size of at least 1 byte, such as 4096, 512k, 10M, "
                            "1G or 2T, not '%s'",
                            desc->name, value);
        }
        return 0;
    default:
        if (!parse_number(value, false, ret)) {
            return blk_fail(ret_why, EINVAL,
                            "option '%s' takes a whole number of 0 or more, not '%s'", desc->name,
                            value);
        }
        return 0;
    }
}

/* Parses one "k=v", which it changes, into @opts. */
static int parse_option(const BlockDriver *drv, char *text, BlkOptions *opts, char **ret_why)
{
    char *value = strchr(text, '=');
    const BlkOptDesc *desc;

    if (!value || value == text) {
        return blk_fail(ret_why, EINVAL, "'%s' is no option; options are written name=value", text);
    }
    *value++ = 0;
    if (!percent_decode(value)) {
        return blk_fail(ret_why, EINVAL,
                        "option '%s' has a '%%' that two hex digits (not 00) do not follow", text);
    }
    desc = find_desc(drv->options, text);
    if (!desc) {
        desc = find_desc(common_options, text);
    }
    if (!desc) {
        return fail_unknown(drv, text, ret_why);
    }
    if (blk_opt_given(opts, desc->name)) {
        return blk_fail(ret_why, EINVAL, "option '%s' is given twice", desc->name);
    }
    must(opts->n < BLK_OPTS_MAX);
    int ret = parse_value(desc, value, &opts->opt[opts->n].value, ret_why);
    if (ret == 0) {
        opts->opt[opts->n++].name = desc->name;
    }
    return ret;
}

static int parse_list(const BlockDriver *drv, char *list, const char *seps, BlkOptions *opts,
                      char **ret_why)
{
    char *save, *item;

    for (item = strtok_r(list, seps, &save); item; item = strtok_r(NULL, seps, &save)) {
        int ret = parse_option(drv, item, opts, ret_why);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/* The length of the driver's name in front of @spec; 0: there is none, the spec is a file. */
static size_t driver_name_len(const char *spec)
{
    size_t n = strspn(spec, "abcdefghijklmnopqrstuvwxyz0123456789-+");

    return spec[n] == ':' && n > 0 ? n : 0;
}

/* Cuts and decodes what follows "DRIVER:" in @text, which it changes. */
static int parse_rest(const BlockDriver *drv, char *text, BlkOptions *opts, char **ret_why)
{
    char *query = strchr(text, '?');
    int ret;

    if (query) {
        *query++ = 0;
    }
    if (!strncmp(text, "//", 2)) {
        text += 2;
        if (*text && *text != '/') {
            return blk_fail(ret_why, EINVAL,
                            "'%s:' takes no host: write %s:/// before an absolute path, or %s: "
                            "before a relative one",
                            drv->name, drv->name, drv->name);
        }
    }
    if (!drv->takes_path && *text && strcmp(text, "/")) {
        if (!strchr(text, '=')) {
            return blk_fail(ret_why, EINVAL, "driver '%s' takes no path, only options", drv->name);
        }
        ret = parse_list(drv, text, ",&", opts, ret_why);
        if (ret < 0) {
            return ret;
        }
        text = text + strlen(text);
    }
    if (!percent_decode(text)) {
        return blk_fail(ret_why, EINVAL,
                        "the path has a '%%' that two hex digits (not 00) do not follow");
    }
    opts->path = strdup(drv->takes_path ? text : "");
    if (!opts->path) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    return query ? parse_list(drv, query, "&", opts, ret_why) : 0;
}

static int parse_with_driver(const char *spec, size_t name_len, const BlockDriver **ret_drv,
                             BlkOptions *opts, char **ret_why)
{
    const BlockDriver *drv = blk_driver_find(spec, name_len);
    int ret;

    if (!drv) {
        char *names = blk_driver_names();

        blk_fail(ret_why, EINVAL,
                 "unknown driver '%.*s'; there are %s (a file of that name is written file:%s)",
                 (int)name_len, spec, names ? names : "others", spec);
        free(names);
        return -EINVAL;
    }
    char *rest = strdup(spec + name_len + 1);
    if (!rest) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    ret = parse_rest(drv, rest, opts, ret_why);
    free(rest);
    *ret_drv = drv;
    return ret;
}

/* Returns 0 with *@ret_drv and *@ret_opts, or -errno with a message. */
int blk_options_parse(const char *spec, const BlockDriver **ret_drv, BlkOptions *ret_opts,
                      char **ret_why)
{
    BlkOptions opts = { 0 };
    const BlockDriver *drv = NULL;
    size_t name_len = driver_name_len(spec);
    int ret = 0;

    if (name_len) {
        ret = parse_with_driver(spec, name_len, &drv, &opts, ret_why);
    } else {
        drv = &blk_file_driver;
        opts.path = strdup(spec);
        if (!opts.path) {
            ret = blk_fail(ret_why, ENOMEM, "out of memory");
        }
    }
    if (ret == 0 && drv->takes_path && !*opts.path) {
        ret = blk_fail(ret_why, EINVAL, "'%s' names no file; expected %s:PATH or %s:///PATH", spec,
                       drv->name, drv->name);
    }
    if (ret < 0) {
        blk_options_free(&opts);
        return ret;
    }
    *ret_drv = drv;
    *ret_opts = opts;
    return 0;
}

void blk_options_free(BlkOptions *opts)
{
    free(opts->path);
    opts->path = NULL;
}
