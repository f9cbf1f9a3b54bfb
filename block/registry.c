/* SPDX-License-Identifier: MIT */
/* The drivers by name: those that come with the library, registered ones and loaded modules. */
#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/options_int.h"
#include "rcu/util_int.h"

static const BlockDriver *const builtin[] = { &blk_file_driver, &blk_null_driver, &blk_debug_driver,
                                              &blk_throttle_driver };
enum { BUILTIN = sizeof(builtin) / sizeof(builtin[0]) };

struct entry {
    const BlockDriver *drv;
    struct entry *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *registered; /* lock; entries stay for good */

static bool is_same(const char *a, const char *name, size_t len)
{
    return strlen(a) == len && !memcmp(a, name, len);
}

static bool is_named(const BlockDriver *drv, const char *name, size_t len)
{
    bool is = is_same(drv->name, name, len);

    for (const char *const *alias = drv->aliases; alias && *alias && !is; alias++) {
        is = is_same(*alias, name, len);
    }
    return is;
}

static const BlockDriver *find_locked(const char *name, size_t len)
{
    for (int i = 0; i < BUILTIN; i++) {
        if (is_named(builtin[i], name, len)) {
            return builtin[i];
        }
    }
    for (struct entry *e = registered; e; e = e->next) {
        if (is_named(e->drv, name, len)) {
            return e->drv;
        }
    }
    return NULL;
}

const BlockDriver *blk_driver_find(const char *name, size_t len)
{
    const BlockDriver *drv;

    pthread_mutex_lock(&lock);
    drv = find_locked(name, len);
    pthread_mutex_unlock(&lock);
    return drv;
}

char *blk_driver_names(void)
{
    char *names = NULL;
    size_t len;
    FILE *f = open_memstream(&names, &len);

    if (!f) {
        return NULL;
    }
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BUILTIN; i++) {
        fprintf(f, "%s%s", i > 0 ? ", " : "", builtin[i]->name);
    }
    for (struct entry *e = registered; e; e = e->next) {
        fprintf(f, ", %s", e->drv->name);
    }
    pthread_mutex_unlock(&lock);
    if (fclose(f) != 0) {
        free(names);
        return NULL;
    }
    return names;
}

/* ---- Registering ----------------------------------------------------------------------------- */

/* What is wrong with a driver's options; NULL: nothing. */
static const char *find_option_fault(const BlkOptDesc *options)
{
    int n = 0;

    for (; options && options[n].name; n++) {
        const char *name = options[n].name;

        if (!*name || name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-")]) {
            return "an option's name is not of a-z, 0-9 and '-'";
        }
        if (blk_option_is_cores(name)) {
            return "it has an option that is the core's, such as read-only, on-error or path";
        }
        if (options[n].type > BLK_OPT_STRING) {
            return "an option is of no known type";
        }
        for (int i = 0; i < n; i++) {
            if (!strcmp(options[i].name, name)) {
                return "it has two options of one name";
            }
        }
    }
    return n > BLK_OPTS_OWN_MAX ? "it has more than 29 options" : NULL;
}

static bool is_bad_name(const char *name)
{
    return !name || !*name || name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-+")] ||
           !strcmp(name, "module");
}

/* What is wrong with a driver; NULL: nothing. */
static const char *find_fault(const BlockDriver *drv)
{
    if (drv->abi != BLOCK_DRIVER_ABI) {
        return "it was built for another version of <aioctx/block_driver.h>";
    }
    if (is_bad_name(drv->name)) {
        return "its name is not of a-z, 0-9, '-' and '+', or is module";
    }
    for (const char *const *alias = drv->aliases; alias && *alias; alias++) {
        if (is_bad_name(*alias)) {
            return "an alias is not of a-z, 0-9, '-' and '+', or is module";
        }
    }
    if (!drv->open || !drv->close || !drv->submit) {
        return "it lacks open, close or submit";
    }
    if (!drv->getlength && !drv->is_filter) {
        return "it lacks getlength, and is no filter";
    }
    if (drv->is_filter + drv->takes_path + drv->takes_host > 1) {
        return "it is more than one of a filter, one that takes a path, and one that takes a host";
    }
    return find_option_fault(drv->options);
}

static_assert(BLK_OPTS_OWN_MAX == 29, "a message says so");

static bool is_taken_locked(const BlockDriver *drv)
{
    bool is = find_locked(drv->name, strlen(drv->name)) != NULL;

    for (const char *const *alias = drv->aliases; alias && *alias && !is; alias++) {
        is = find_locked(*alias, strlen(*alias)) != NULL;
    }
    return is;
}

static int add(const BlockDriver *drv)
{
    struct entry *e = malloc(sizeof(*e));
    int ret = -ENOMEM;

    pthread_mutex_lock(&lock);
    if (e && is_taken_locked(drv)) {
        ret = -EEXIST;
    } else if (e) {
        *e = (struct entry){ drv, registered };
        registered = e;
        ret = 0;
        e = NULL;
    }
    pthread_mutex_unlock(&lock);
    free(e);
    return ret;
}

int blk_driver_register(const BlockDriver *drv)
{
    const char *fault = find_fault(drv);

    if (fault) {
        fprintf(stderr, "aioctx: blk_driver_register: driver '%s': %s\n",
                drv->abi == BLOCK_DRIVER_ABI && drv->name ? drv->name : "?", fault);
        return -EINVAL;
    }
    return add(drv);
}

/* ---- Modules --------------------------------------------------------------------------------- */

static int register_module(const char *path, const BlockDriver *drv, char **ret_why)
{
    const char *fault = find_fault(drv);
    int ret;

    if (fault) {
        return blk_fail(ret_why, EINVAL, "cannot use the driver in '%s': %s", path, fault);
    }
    ret = add(drv);
    if (ret == -EEXIST && blk_driver_find(drv->name, strlen(drv->name)) == drv) {
        return 0; /* loaded before */
    }
    if (ret == -EEXIST) {
        return blk_fail(ret_why, EEXIST,
                        "cannot use the driver in '%s': there is another driver '%s'", path,
                        drv->name);
    }
    return ret < 0 ? blk_fail(ret_why, -ret, "out of memory") : 0;
}

int blk_driver_load(const char *path, const char **ret_name, char **ret_why)
{
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const BlockDriver *const *symbol;
    int ret;

    if (!module) {
        return blk_fail(ret_why, ENOENT, "cannot load '%s': %s", path, dlerror());
    }
    symbol = dlsym(module, "aioctx_block_driver");
    ret = symbol && *symbol
              ? register_module(path, *symbol, ret_why)
              : blk_fail(ret_why, EINVAL,
                         "'%s' is no block driver: it has no BLOCK_DRIVER_MODULE()", path);
    if (ret == 0 && ret_name) {
        *ret_name = (*symbol)->name;
    }
    dlclose(module);
    return ret;
}
