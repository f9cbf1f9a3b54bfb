/* SPDX-License-Identifier: MIT */
/* Exports: backends by name, and what clients are told of them. */
#ifndef NBD_EXPORT_H
#define NBD_EXPORT_H

#include <aioctx/block.h>

typedef struct NbdExport {
    char *name, *description; /* description: "" when there is none */
    size_t name_bytes;
    BlockBackend *blk;
    uint64_t size;
    bool read_only;
    uint32_t preferred_block; /* bytes */
} NbdExport;

/* Fixed once the server runs. */
typedef struct NbdExports {
    NbdExport **all;
    size_t n;
} NbdExports;

/*
 * Opens @spec and adds it as @name.
 * Returns 0, or -errno with a message in *@ret_why, as blk_open() gives them; -EEXIST for a name
 * that is taken, -EINVAL for one that is too long.
 */
int nbd_exports_add(NbdExports *exports, const char *name, const char *spec,
                    const char *description, bool read_only, char **ret_why);

/* The export of exactly that name; NULL: there is none. */
const NbdExport *nbd_exports_find(const NbdExports *exports, const void *name, size_t bytes);

/* Closes all. */
void nbd_exports_clear(NbdExports *exports);

/* The transmission flags, for a client with structured replies or without. */
uint16_t nbd_export_flags(const NbdExport *export, bool structured);

#endif
