/* SPDX-License-Identifier: MIT */
/*
 * Two forms of a spec that are put back to the others.
 *
 *   DRIVER://USER@HOST:PORT/EXPORT    options user, host, port and export, those that are there
 *   module:FILE,REST                  NAME:REST, where NAME is the driver in FILE
 *   module:FILE?k=v&k=v               NAME://?k=v&k=v
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/options_int.h"

/* One part of a URI, which it changes. */
static int add_part(BlkOptions *opts, const char *name, char *value, char **ret_why)
{
    if (!value || !*value) {
        return 0;
    }
    if (!blk_percent_decode(value)) {
        return blk_fail(ret_why, EINVAL,
                        "the %s has a '%%' that two hex digits (not 00) do not follow", name);
    }
    return blk_options_add(opts, name, value, ret_why);
}

/* Cuts the port off "HOST:PORT", "[ADDRESS]:PORT" or either without a port.  Returns the host. */
static char *cut_port(char *text, char **ret_port)
{
    char *end = *text == '[' ? strchr(text, ']') : NULL;
    char *colon = strchr(end ? end : text, ':');

    *ret_port = NULL;
    if (colon) {
        *colon = 0;
        *ret_port = colon + 1;
    }
    if (end) {
        *end = 0;
        text++;
    }
    return text;
}

int blk_options_parse_host(BlkOptions *opts, char *text, char **ret_why)
{
    char *slash = strchr(text, '/'), *at, *user = NULL, *host, *port;
    int ret;

    if (slash) {
        *slash = 0;
    }
    at = strchr(text, '@');
    if (at) {
        *at = 0;
        user = text;
        text = at + 1;
    }
    host = cut_port(text, &port);
    ret = add_part(opts, "user", user, ret_why);
    ret = ret < 0 ? ret : add_part(opts, "host", host, ret_why);
    ret = ret < 0 ? ret : add_part(opts, "port", port, ret_why);
    return ret < 0 || !slash ? ret : add_part(opts, "export", slash + 1, ret_why);
}

int blk_options_parse_module(const char *text, char **ret_spec, char **ret_why)
{
    char *file = NULL;
    const char *name, *rest;
    int ret;

    if (!strncmp(text, "//", 2)) {
        text += 2; /* module:///srv/my.so?size=1G */
    }
    rest = text + strcspn(text, ",?");
    file = strndup(text, (size_t)(rest - text));
    if (!file) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    ret = blk_percent_decode(file)
              ? blk_module_load(file, &name, ret_why)
              : blk_fail(ret_why, EINVAL,
                         "the path has a '%%' that two hex digits (not 00) do not follow");
    free(file);
    if (ret == 0 && asprintf(ret_spec, "%s:%s%s", name, *rest == '?' ? "//" : "",
                             *rest == ',' ? rest + 1 : rest) < 0) {
        ret = blk_fail(ret_why, ENOMEM, "out of memory");
    }
    return ret;
}
