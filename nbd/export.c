/* SPDX-License-Identifier: MIT */
#include "nbd/export.h"

#include <aioctx/block_driver.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbd/wire.h"

static void export_free(NbdExport *export)
{
    blk_unref(export->blk);
    free(export->name);
    free(export->description);
    free(export);
}

static int check_text(const char *what, const char *text, char **ret_why)
{
    if (strlen(text) > NBD_STRING_MAX) {
        return blk_fail(ret_why, EINVAL, "%s is too long: expected up to %d bytes", what,
                        NBD_STRING_MAX);
    }
    return 0;
}

int nbd_exports_add(NbdExports *exports, const char *name, const char *spec,
                    const char *description, bool read_only, char **ret_why)
{
    NbdExport *export, **grown;
    BlkLimits limits;
    int ret;

    ret = check_text("the name", name, ret_why);
    ret = ret < 0 ? ret : check_text("the description", description, ret_why);
    if (ret < 0) {
        return ret;
    }
    if (nbd_exports_find(exports, name, strlen(name))) {
        return blk_fail(ret_why, EEXIST, "there is an export '%s' already", name);
    }
    grown = realloc(exports->all, (exports->n + 1) * sizeof(*grown));
    if (!grown) {
        return -ENOMEM;
    }
    exports->all = grown;
    export = calloc(1, sizeof(*export));
    if (!export) {
        return -ENOMEM;
    }
    export->name = strdup(name);
    export->description = strdup(description);
    if (!export->name || !export->description) {
        export_free(export);
        return -ENOMEM;
    }
    export->blk = blk_open(spec, ret_why);
    if (!export->blk) {
        ret = -errno;
        export_free(export);
        return ret;
    }
    blk_get_limits(export->blk, &limits);
    export->name_bytes = strlen(name);
    export->size = (uint64_t)blk_getlength(export->blk);
    export->read_only = read_only || blk_is_read_only(export->blk);
    export->preferred_block = limits.request_alignment > 4096 ? limits.request_alignment : 4096;
    exports->all[exports->n++] = export;
    return 0;
}

const NbdExport *nbd_exports_find(const NbdExports *exports, const void *name, size_t bytes)
{
    for (size_t i = 0; i < exports->n; i++) {
        const NbdExport *export = exports->all[i];

        if (export->name_bytes == bytes && memcmp(export->name, name, bytes) == 0) {
            return export;
        }
    }
    return NULL;
}

void nbd_exports_clear(NbdExports *exports)
{
    while (exports->n > 0) {
        export_free(exports->all[--exports->n]);
    }
    free(exports->all);
    exports->all = NULL;
}

uint16_t nbd_export_flags(const NbdExport *export, bool structured)
{
    /* A flush is one of the file, whichever connection asks for it: several may share the work. */
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                     NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;

    if (structured) {
        flags |= NBD_FLAG_SEND_DF;
    }
    if (export->read_only) {
        flags |= NBD_FLAG_READ_ONLY;
    } else {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    }
    return (uint16_t)flags;
}
