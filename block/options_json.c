/* SPDX-License-Identifier: MIT */
/*
 * Specs in JSON: an object with "driver", "path" where the driver takes one, its options, and
 * "child" of a filter, which is an object or a spec of the other syntax:
 *
 *   {"driver": "throttle", "iops": 1000, "child": {"driver": "file", "path": "disk.img"}}
 *
 * "module" names a file to load, whose driver is meant when "driver" does not say another.
 *
 * Values are text, whole numbers, or true and false, which are on and off.
 */
#include "block/options_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rcu/util_int.h"

bool blk_spec_is_json(const char *spec)
{
    return *spec == '{' || !strncmp(spec, "json:", 5);
}

#ifdef HAVE_JANSSON
#include <jansson.h>

/* The option's value as text, to be freed; NULL when it is of no suitable kind. */
static char *value_text(const json_t *value)
{
    char *text = NULL;

    if (json_is_string(value)) {
        return strdup(json_string_value(value));
    }
    if (json_is_boolean(value)) {
        return strdup(json_is_true(value) ? "on" : "off");
    }
    if (json_is_integer(value) && asprintf(&text, "%lld", json_integer_value(value)) < 0) {
        return NULL;
    }
    return text;
}

static int parse_child(BlkOptions *opts, json_t *value, char **ret_why)
{
    if (json_is_string(value)) {
        return blk_options_add_below(opts, json_string_value(value), ret_why);
    }
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    int ret = text && json_is_object(value)
                  ? blk_options_add_below(opts, text, ret_why)
                  : blk_fail(ret_why, EINVAL, "\"child\" is an object or a text");

    free(text);
    return ret;
}

static int parse_member(BlkOptions *opts, const char *key, json_t *value, char **ret_why)
{
    char *text;
    int ret;

    if (opts->drv->is_filter && !strcmp(key, "child")) {
        return parse_child(opts, value, ret_why);
    }
    text = value_text(value);
    if (!text) {
        return blk_fail(ret_why, EINVAL,
                        "option '%s' takes a text, a whole number, true or false in JSON", key);
    }
    if (opts->drv->takes_path && !strcmp(key, "path")) {
        ret = blk_options_set_path(opts, text, ret_why);
    } else {
        ret = blk_options_add(opts, key, text, ret_why);
    }
    free(text);
    return ret;
}

/* What "driver" says, or what the driver in the file that "module" names is called. */
static int driver_name(json_t *object, const char **ret_name, char **ret_why)
{
    json_t *module = json_object_get(object, "module");
    const char *name = json_string_value(json_object_get(object, "driver")), *loaded;
    int ret;

    if (module) {
        if (!json_is_string(module)) {
            return blk_fail(ret_why, EINVAL, "\"module\" is the name of a file");
        }
        ret = blk_module_load(json_string_value(module), &loaded, ret_why);
        if (ret < 0) {
            return ret;
        }
        name = name && strcmp(name, "module") ? name : loaded;
    }
    if (name && !strcmp(name, "module")) {
        return blk_fail(ret_why, EINVAL, "driver \"module\" needs \"module\", the name of a file");
    }
    *ret_name = name;
    return name ? 0
                : blk_fail(ret_why, EINVAL,
                           "the JSON spec lacks \"driver\"; expected something like "
                           "{\"driver\": \"file\", \"path\": \"disk.img\"}");
}

static int parse_object(json_t *object, BlkOptions *above, BlkOptions **ret_opts, char **ret_why)
{
    const char *name, *key;
    json_t *value;
    int ret = driver_name(object, &name, ret_why);

    if (ret < 0) {
        return ret;
    }
    ret = blk_options_new(name, strlen(name), name, above, ret_opts, ret_why);
    json_object_foreach(object, key, value)
    {
        if (ret == 0 && strcmp(key, "driver") && strcmp(key, "module")) {
            ret = parse_member(*ret_opts, key, value, ret_why);
        }
    }
    return ret;
}

int blk_options_parse_json(const char *spec, BlkOptions *above, BlkOptions **ret_opts,
                           char **ret_why)
{
    json_error_t err;
    json_t *root = json_loads(*spec == '{' ? spec : spec + 5, JSON_REJECT_DUPLICATES, &err);
    int ret;

    if (!root) {
        return blk_fail(ret_why, EINVAL, "the JSON spec has an error in line %d, column %d: %s",
                        err.line, err.column, err.text);
    }
    ret = json_is_object(root) ? parse_object(root, above, ret_opts, ret_why)
                               : blk_fail(ret_why, EINVAL, "the JSON spec is no object");
    json_decref(root);
    return ret;
}

#else

int blk_options_parse_json(const char *spec, BlkOptions *above, BlkOptions **ret_opts,
                           char **ret_why)
{
    return blk_fail(ret_why, ENOTSUP,
                    "this library was built without jansson, which reads specs in JSON");
}

#endif
