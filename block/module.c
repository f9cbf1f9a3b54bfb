/* SPDX-License-Identifier: MIT */
/*
 * Where modules are looked for: the directories of the environment's AIOCTX_MODULE_DIR, a list
 * separated by colons, then the one that the library was installed with.  A program that runs with
 * more rights than who started it has only the latter.
 *
 * The driver NAME is in block-NAME.so.  A driver that goes by several names is in one file, so
 * those that come with the library stand in a table.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/options_int.h"

static const struct {
    const char *name, *file;
} known[] = {
    { "nbd+unix", "nbd" },
    { "nbds", "nbd" },
    { "nbds+unix", "nbd" },
};

/* All directories, as a list separated by colons, to be freed. */
char *blk_module_dirs(void)
{
    const char *env = secure_getenv("AIOCTX_MODULE_DIR");
    char *dirs;

    if (!env || !*env) {
        return strdup(MODULE_DIR);
    }
    return asprintf(&dirs, "%s:%s", env, MODULE_DIR) < 0 ? NULL : dirs;
}

/* The first @prefix@name@suffix that is in one of the directories, to be freed.  Returns 0 with
 * *@ret_path, which is NULL when there is none, or -ENOMEM. */
static int find_file(const char *prefix, const char *name, size_t len, const char *suffix,
                     char **ret_path)
{
    char *dirs = blk_module_dirs(), *path = NULL, *save, *dir;
    int ret = dirs ? 0 : -ENOMEM;

    dir = dirs ? strtok_r(dirs, ":", &save) : NULL;
    for (; dir; dir = strtok_r(NULL, ":", &save)) {
        if (asprintf(&path, "%s/%s%.*s%s", dir, prefix, (int)len, name, suffix) < 0) {
            path = NULL;
            ret = -ENOMEM;
            break;
        }
        if (access(path, F_OK) == 0) {
            break;
        }
        free(path);
        path = NULL;
    }
    free(dirs);
    *ret_path = path;
    return ret;
}

int blk_module_find(const char *name, size_t len, const BlockDriver **ret_drv, char **ret_why)
{
    const char *file = name;
    size_t file_len = len;
    char *path;
    int ret;

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strlen(known[i].name) == len && !memcmp(known[i].name, name, len)) {
            file = known[i].file;
            file_len = strlen(file);
        }
    }
    *ret_drv = NULL;
    if (memchr(file, '/', file_len)) {
        return 0;
    }
    ret = find_file("block-", file, file_len, ".so", &path);
    if (ret < 0) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    if (path) {
        const char *loaded;

        ret = blk_driver_load(path, &loaded, ret_why);
        *ret_drv = ret == 0 ? blk_driver_find(name, len) : NULL;
        if (ret == 0 && !*ret_drv) {
            ret = blk_fail(ret_why, EINVAL, "the module '%s' has the driver '%s', not '%.*s'", path,
                           loaded, (int)len, name);
        }
        free(path);
    }
    return ret;
}

int blk_module_load(const char *file, const char **ret_name, char **ret_why)
{
    char *path = NULL;
    int ret;

    if (!*file) {
        return blk_fail(ret_why, EINVAL,
                        "no module is named; expected something like module:./my.so,OPTION=VALUE");
    }
    if (!strchr(file, '/') && find_file("", file, strlen(file), "", &path) < 0) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    ret = blk_driver_load(path ? path : file, ret_name, ret_why);
    free(path);
    return ret;
}
