/* SPDX-License-Identifier: MIT */
/*
 * The file driver: whether a device can be polled for completions.
 *
 * Polling is the device's: its driver keeps queues that raise no interrupt, and says so in sysfs.
 * A ring that polls (IORING_SETUP_IOPOLL) can wait for nothing else, so it cannot be a context's;
 * transfers are calls of preadv2(2) and pwritev2(2) with RWF_HIPRI on the thread pool instead,
 * where a thread polls for its own.
 */
#include "block/file_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum { SYSFS_PATH_MAX = 64 };

/* Reads io_poll of a device, or of the one that a partition is part of.  Returns '0' or '1', 0 when
 * there is none; *ret_path is where. */
static char read_io_poll(dev_t dev, char ret_path[SYSFS_PATH_MAX])
{
    static const char *const places[] = { "", "../" };
    char c = 0;

    for (int i = 0; i < 2 && !c; i++) {
        FILE *f;

        snprintf(ret_path, SYSFS_PATH_MAX, "/sys/dev/block/%u:%u/%squeue/io_poll", major(dev),
                 minor(dev), places[i]);
        f = fopen(ret_path, "re");
        if (f) {
            c = fread(&c, 1, 1, f) == 1 ? c : 0;
            fclose(f);
        }
    }
    return c;
}

int blk_file_check_poll(const FileState *s, const char *path, char **ret_why)
{
    char where[SYSFS_PATH_MAX];
    struct stat st;

    if (!s->direct) {
        return blk_fail(
            ret_why, EINVAL,
            "option 'poll' is on, but only direct I/O is polled for; expected direct=on "
            "with it");
    }
    if (fstat(s->fd, &st) < 0) {
        return blk_fail(ret_why, errno, "cannot examine '%s': %s", path, strerror(errno));
    }
    switch (read_io_poll(s->is_device ? st.st_rdev : st.st_dev, where)) {
    case '1':
        return 0;
    case 0:
        return blk_fail(ret_why, ENOTSUP,
                        "option 'poll' is on, but '%s' lies on no block device that could be asked "
                        "(%s); expected poll=off there",
                        path, where);
    default:
        return blk_fail(ret_why, ENOTSUP,
                        "option 'poll' is on, but the device of '%s' has no queues to poll (%s is "
                        "0; drivers such as nvme have a parameter poll_queues); expected poll=off "
                        "there",
                        path, where);
    }
}
