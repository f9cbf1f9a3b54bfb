/* SPDX-License-Identifier: MIT */
/*
 * Parsing what blk_open() is given.
 *
 *   disk.img                          a file, taken literally
 *   DRIVER:PATH?k=v&k=v               the path relative or absolute
 *   DRIVER:///PATH?k=v&k=v            the same as a URI; DRIVER://?k=v without a path
 *   DRIVER:k=v,k=v                    for drivers that take no path
 *   FILTER:k=v,k=v,SPEC               the rest is the spec of the driver below
 *   FILTER://?k=v&child=SPEC          the same as a URI
 *   DRIVER://HOST:PORT/EXPORT?k=v     for drivers that take a host (options_uri.c)
 *   module:FILE,REST                  loads a module; REST is as after its driver's name
 *   {"driver": ..., "k": v}           JSON (options_json.c)
 *
 * %XX stands for a byte in paths and values, once the spec has been cut at its separators.
 */
#include "block/options_int.h"
#include "rcu/util_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Options that every driver takes, since the core serves them. */
static const BlkOptDesc common_options[] = {
    { "read-only", BLK_OPT_SWITCH },        { "detach", BLK_OPT_SWITCH },
    { "deadline-ns", BLK_OPT_NUMBER },      { "on-error", BLK_OPT_STRING },
    { "on-read-error", BLK_OPT_STRING },    { "on-write-error", BLK_OPT_STRING },
    { "retry-delay-ms", BLK_OPT_NUMBER },   { "retry-limit", BLK_OPT_NUMBER },
    { "close-timeout-ms", BLK_OPT_NUMBER }, { NULL },
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

static bool is_common(const char *name)
{
    for (const BlkOptDesc *d = common_options; d->name; d++) {
        if (!strcmp(d->name, name)) {
            return true;
        }
    }
    return false;
}

bool blk_option_is_cores(const char *name)
{
    return is_common(name) || !strcmp(name, "driver") || !strcmp(name, "path") ||
           !strcmp(name, "child") || !strcmp(name, "module");
}

/* The place of option @name in one driver's options; -1: it was not given. */
static int find_opt(const BlkOptions *opts, const char *name)
{
    for (int i = 0; i < opts->n; i++) {
        if (!strcmp(opts->opt[i].desc->name, name)) {
            return i;
        }
    }
    return -1;
}

/* The same for what @opts may ask for; @ret_opts is whose it is: the core's may stand anywhere. */
static int look_up(const BlkOptions **ret_opts, const char *name)
{
    const BlkOptions *opts = *ret_opts;
    int i = find_opt(opts, name);

    if (i >= 0 || !is_common(name)) {
        return i;
    }
    while (opts->above) {
        opts = opts->above;
    }
    for (; opts && i < 0; opts = opts->below) {
        i = find_opt(opts, name);
        *ret_opts = opts;
    }
    return i;
}

bool blk_opt_given(const BlkOptions *opts, const char *name)
{
    return look_up(&opts, name) >= 0;
}

int64_t blk_opt_get(const BlkOptions *opts, const char *name, int64_t dflt)
{
    int i = look_up(&opts, name);

    return i < 0 ? dflt : opts->opt[i].value;
}

const char *blk_opt_get_str(const BlkOptions *opts, const char *name, const char *dflt)
{
    int i = look_up(&opts, name);

    return i < 0 ? dflt : opts->opt[i].text;
}

const char *blk_opts_name(const BlkOptions *opts)
{
    return opts->name;
}

const char *blk_opts_path(const BlkOptions *opts)
{
    return opts->path;
}

BlkNode *blk_opts_child(const BlkOptions *opts)
{
    return opts->child;
}

static const char *type_text(BlkOptType type)
{
    switch (type) {
    case BLK_OPT_SWITCH:
        return "on|off";
    case BLK_OPT_SIZE:
        return "SIZE";
    case BLK_OPT_STRING:
        return "TEXT";
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
bool blk_percent_decode(char *s)
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

bool blk_parse_number(const char *s, bool suffix, int64_t *ret)
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
    case BLK_OPT_STRING:
        *ret = 0;
        return 0;
    case BLK_OPT_SIZE:
        if (!blk_parse_number(value, true, ret) || *ret == 0) {
            return blk_fail(ret_why, EINVAL,
                            "option '%s' takes a size of at least 1 byte, such as 4096, 512k, 10M, "
                            "1G or 2T, not '%s'",
                            desc->name, value);
        }
        return 0;
    default:
        if (!blk_parse_number(value, false, ret)) {
            return blk_fail(ret_why, EINVAL,
                            "option '%s' takes a whole number of 0 or more, not '%s'", desc->name,
                            value);
        }
        return 0;
    }
}

int blk_options_add(BlkOptions *opts, const char *name, const char *value, char **ret_why)
{
    const BlkOptDesc *desc = find_desc(opts->drv->options, name);
    int ret;

    if (!desc) {
        desc = find_desc(common_options, name);
    }
    if (!desc) {
        return fail_unknown(opts->drv, name, ret_why);
    }
    if (blk_opt_given(opts, name)) {
        return blk_fail(ret_why, EINVAL, "option '%s' is given twice", name);
    }
    must(opts->n < BLK_OPTS_MAX);
    ret = parse_value(desc, value, &opts->opt[opts->n].value, ret_why);
    if (ret < 0) {
        return ret;
    }
    opts->opt[opts->n].desc = desc;
    opts->opt[opts->n].text = strdup(value);
    return opts->opt[opts->n++].text ? 0 : blk_fail(ret_why, ENOMEM, "out of memory");
}

/* Parses one "k=v", which it changes, into @opts. */
static int parse_option(BlkOptions *opts, char *text, char **ret_why)
{
    char *value = strchr(text, '=');

    if (!value || value == text) {
        return blk_fail(ret_why, EINVAL, "'%s' is no option; options are written name=value", text);
    }
    *value++ = 0;
    if (!blk_percent_decode(value)) {
        return blk_fail(ret_why, EINVAL,
                        "option '%s' has a '%%' that two hex digits (not 00) do not follow", text);
    }
    if (opts->drv->is_filter && !strcmp(text, "child")) {
        return blk_options_add_below(opts, value, ret_why);
    }
    return blk_options_add(opts, text, value, ret_why);
}

static int parse_list(BlkOptions *opts, char *list, const char *seps, char **ret_why)
{
    char *save, *item;

    for (item = strtok_r(list, seps, &save); item; item = strtok_r(NULL, seps, &save)) {
        int ret = parse_option(opts, item, ret_why);
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

/* Of "k=v,k=v,SPEC", which it changes. */
static int parse_filter(BlkOptions *opts, char *text, char **ret_why)
{
    for (;;) {
        size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-");
        char *item = text, *comma;
        int ret;

        if (n == 0 || text[n] != '=') {
            return *text ? blk_options_add_below(opts, text, ret_why) : 0;
        }
        comma = strchr(text, ',');
        text = comma ? comma + 1 : strchr(text, 0);
        if (comma) {
            *comma = 0;
        }
        ret = parse_option(opts, item, ret_why);
        if (ret < 0) {
            return ret;
        }
    }
}

/* Cuts and decodes what follows "DRIVER:" in @text, which it changes. */
static int parse_rest(BlkOptions *opts, char *text, char **ret_why)
{
    const BlockDriver *drv = opts->drv;
    char *query;
    int ret;

    if (drv->is_filter && strncmp(text, "//", 2)) {
        return parse_filter(opts, text, ret_why);
    }
    query = strchr(text, '?');
    if (query) {
        *query++ = 0;
    }
    if (drv->takes_host && !strncmp(text, "//", 2)) {
        ret = blk_options_parse_host(opts, text + 2, ret_why);
        return ret == 0 && query ? parse_list(opts, query, "&", ret_why) : ret;
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
            return blk_fail(ret_why, EINVAL,
                            drv->takes_host ? "'%s:' is followed by //HOST or by options"
                                            : "driver '%s' takes no path, only options",
                            drv->name);
        }
        ret = parse_list(opts, text, ",&", ret_why);
        if (ret < 0) {
            return ret;
        }
    } else if (drv->takes_path) {
        if (!blk_percent_decode(text)) {
            return blk_fail(ret_why, EINVAL,
                            "the path has a '%%' that two hex digits (not 00) do not follow");
        }
        ret = blk_options_set_path(opts, text, ret_why);
        if (ret < 0) {
            return ret;
        }
    }
    return query ? parse_list(opts, query, "&", ret_why) : 0;
}

/* ---- Drivers --------------------------------------------------------------------------------- */

int blk_options_set_path(BlkOptions *opts, const char *path, char **ret_why)
{
    free(opts->path);
    opts->path = strdup(path);
    return opts->path ? 0 : blk_fail(ret_why, ENOMEM, "out of memory");
}

/* There is no driver of that name, neither here nor in a module. */
static int fail_driver(const char *name, size_t len, const char *spec, char **ret_why)
{
    char *names = blk_driver_names(), *dirs = blk_module_dirs();

    blk_fail(ret_why, EINVAL,
             "unknown driver '%.*s'; there are %s, and no module block-%.*s.so in %s (a file of "
             "that name is written file:%s)",
             (int)len, name, names ? names : "others", (int)len, name,
             dirs ? dirs : "the module directories", spec);
    free(dirs);
    free(names);
    return -EINVAL;
}

int blk_options_new(const char *name, size_t len, const char *spec, BlkOptions *above,
                    BlkOptions **ret_opts, char **ret_why)
{
    const BlockDriver *drv = blk_driver_find(name, len);
    BlkOptions *opts;

    if (!drv) {
        int ret = blk_module_find(name, len, &drv, ret_why);

        if (ret < 0 || !drv) {
            return ret < 0 ? ret : fail_driver(name, len, spec, ret_why);
        }
    }
    opts = calloc(1, sizeof(*opts));
    if (!opts) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    opts->drv = drv;
    opts->above = above;
    opts->name = strndup(name, len);
    *ret_opts = opts;
    return opts->name ? blk_options_set_path(opts, "", ret_why)
                      : blk_fail(ret_why, ENOMEM, "out of memory");
}

/* Parses @spec with the driver that it names. */
static int parse_with_driver(const char *spec, size_t name_len, BlkOptions *above,
                             BlkOptions **ret_opts, char **ret_why)
{
    char *rest;
    int ret = blk_options_new(spec, name_len, spec, above, ret_opts, ret_why);

    if (ret < 0) {
        return ret;
    }
    rest = strdup(spec + name_len + 1);
    if (!rest) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    ret = parse_rest(*ret_opts, rest, ret_why);
    free(rest);
    return ret;
}

/* Whether there is all that the driver needs. */
static int check_complete(const BlkOptions *opts, const char *spec, char **ret_why)
{
    const char *name = opts->drv->name;

    if (opts->drv->takes_path && !*opts->path) {
        return blk_fail(ret_why, EINVAL, "'%s' names no file; expected %s:PATH or %s:///PATH", spec,
                        name, name);
    }
    if (opts->drv->is_filter && !opts->below) {
        return blk_fail(ret_why, EINVAL,
                        "'%s' is a filter and lacks the driver below it; expected something like "
                        "%s:OPTION=VALUE,file:PATH",
                        spec, name);
    }
    return 0;
}

static int parse_spec(const char *spec, BlkOptions *above, BlkOptions **ret_opts, char **ret_why);

/* Of "module:...". */
static int parse_module(const char *spec, BlkOptions *above, BlkOptions **ret_opts, char **ret_why)
{
    char *meant;
    int ret = blk_options_parse_module(spec + strlen("module:"), &meant, ret_why);

    if (ret == 0) {
        ret = parse_spec(meant, above, ret_opts, ret_why);
        free(meant);
    }
    return ret;
}

/* Parses @spec, below @above.  Whatever it returns, what is in *@ret_opts is to be freed. */
static int parse_spec(const char *spec, BlkOptions *above, BlkOptions **ret_opts, char **ret_why)
{
    size_t name_len = driver_name_len(spec);
    int ret;

    if (!strncmp(spec, "module:", 7)) {
        return parse_module(spec, above, ret_opts, ret_why);
    }
    if (blk_spec_is_json(spec)) {
        ret = blk_options_parse_json(spec, above, ret_opts, ret_why);
    } else if (name_len) {
        ret = parse_with_driver(spec, name_len, above, ret_opts, ret_why);
    } else {
        ret = blk_options_new("file", 4, spec, above, ret_opts, ret_why);
        if (ret == 0) {
            ret = blk_options_set_path(*ret_opts, spec, ret_why);
        }
    }
    return ret < 0 ? ret : check_complete(*ret_opts, spec, ret_why);
}

int blk_options_add_below(BlkOptions *opts, const char *spec, char **ret_why)
{
    int depth = 2;

    if (opts->below) {
        return blk_fail(ret_why, EINVAL, "option 'child' is given twice");
    }
    for (const BlkOptions *o = opts; o->above; o = o->above) {
        depth++;
    }
    if (depth > BLK_NODES_MAX) {
        return blk_fail(ret_why, EINVAL, "more than %d drivers lie over one another",
                        BLK_NODES_MAX);
    }
    return parse_spec(spec, opts, &opts->below, ret_why);
}

int blk_options_parse(const char *spec, BlkOptions **ret_opts, char **ret_why)
{
    BlkOptions *opts = NULL;
    int ret = parse_spec(spec, NULL, &opts, ret_why);

    if (ret < 0) {
        blk_options_free(opts);
        return ret;
    }
    *ret_opts = opts;
    return 0;
}

void blk_options_free(BlkOptions *opts)
{
    BlkOptions *below;

    for (; opts; opts = below) {
        below = opts->below;
        for (int i = 0; i < opts->n; i++) {
            free(opts->opt[i].text);
        }
        free(opts->name);
        free(opts->path);
        free(opts);
    }
}
