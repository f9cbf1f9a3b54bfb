/* SPDX-License-Identifier: MIT */
/* What a backend was opened with, and the drivers by name. */
#ifndef BLOCK_OPTIONS_INT_H
#define BLOCK_OPTIONS_INT_H

#include "block/driver_int.h"

/* How many drivers may lie over one another. */
enum { BLK_NODES_MAX = 8 };

/* How many options one driver can be given: those of its table, and the core's. */
enum { BLK_OPTS_OWN_MAX = 29, BLK_OPTS_MAX = BLK_OPTS_OWN_MAX + 9 };

/* A parsed spec of one driver.  Values are checked against the driver's table already. */
struct BlkOptions {
    const BlockDriver *drv;
    char *name; /* as in the spec: the driver's, or one of its aliases */
    char *path; /* decoded; "" when there was none */
    struct {
        const BlkOptDesc *desc;
        int64_t value; /* a switch: 0 or 1 */
        char *text;    /* decoded */
    } opt[BLK_OPTS_MAX];
    int n;
    BlkOptions *above, *below; /* of a filter, below; NULL: none */
    BlkNode *child;            /* what is below, open */
};

/* options.c.  Returns 0 with *@ret_opts, or -errno with a message. */
int blk_options_parse(const char *spec, BlkOptions **ret_opts, char **ret_why);
void blk_options_free(BlkOptions *opts);

/* Parses digits and, if @suffix, one of k, M, G and T.  Returns false when @s is no such number. */
bool blk_parse_number(const char *s, bool suffix, int64_t *ret);

/* Its parts, for the other syntax.  All return 0 or -errno with a message. */
int blk_options_new(const char *name, size_t len, const char *spec, BlkOptions *above,
                    BlkOptions **ret_opts, char **ret_why);
int blk_options_add(BlkOptions *opts, const char *name, const char *value, char **ret_why);
int blk_options_set_path(BlkOptions *opts, const char *path, char **ret_why);
int blk_options_add_below(BlkOptions *opts, const char *spec, char **ret_why);
bool blk_percent_decode(char *s);

/* options_uri.c.  Takes "USER@HOST:PORT/EXPORT", which it changes, apart. */
int blk_options_parse_host(BlkOptions *opts, char *text, char **ret_why);
/* Loads the module that @text, what follows "module:", begins with, and gives the spec that is
 * meant, with the driver's own name in front; to be freed. */
int blk_options_parse_module(const char *text, char **ret_spec, char **ret_why);

/* Whether a name has a meaning in every spec, so that no driver's own option can have it. */
bool blk_option_is_cores(const char *name);

/* options_json.c */
bool blk_spec_is_json(const char *spec);
int blk_options_parse_json(const char *spec, BlkOptions *above, BlkOptions **ret_opts,
                           char **ret_why);

/* registry.c.  A driver called @name, or NULL. */
const BlockDriver *blk_driver_find(const char *name, size_t len);
/* The names of all drivers, for messages, to be freed; NULL when out of memory. */
char *blk_driver_names(void);

/* module.c.  Looks for a module that has a driver @name in the module directories, and loads it.
 * Returns 0 with *@ret_drv, which is NULL when there is none, or -errno with a message. */
int blk_module_find(const char *name, size_t len, const BlockDriver **ret_drv, char **ret_why);
/* Loads the module @file; one without a '/' is looked for in the module directories first.  Returns
 * as blk_driver_load(). */
int blk_module_load(const char *file, const char **ret_name, char **ret_why);
/* The module directories, for messages, to be freed; NULL when out of memory. */
char *blk_module_dirs(void);

#endif
