/* SPDX-License-Identifier: MIT */
/*
 * The file driver: locking a file against others that have it open.
 *
 * One byte far beyond any data is locked, so that no lock of a part of the file is in the way:
 *
 *   a reader (read-only=on)    shared       any number of readers at once
 *   a writer                   exclusive    excludes readers and other writers
 *   a reader with share=on     none         reads beside a writer
 *
 * The lock belongs to the open file description, so that two backends of one process exclude each
 * other too, and closing another fd of the file does not drop it.  A child after fork() shares the
 * description: it is unlocked on closing, rather than by the last fd going, which may be the
 * child's, a ring's, or that of a call that was given up.
 * Source: fcntl(2), "Open file description locks (non-POSIX)".
 */
#include "block/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const int64_t LOCK_BYTE = INT64_C(1) << 62;

static struct flock lock_of(short type)
{
    return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_BYTE, .l_len = 1 };
}

static const char *kind_of(short type)
{
    return type == F_WRLCK ? "a writer's (exclusive) lock" : "a reader's (shared) lock";
}

/* Says who is in the way. */
static int fail_conflict(const FileState *s, short type, const char *path, char **ret_why)
{
    const char *hint = type == F_RDLCK ? " (share=on reads beside a writer)" : "";
    struct flock other = lock_of(type);

    if (fcntl(s->fd, F_OFD_GETLK, &other) < 0 || other.l_type == F_UNLCK) {
        return blk_fail(ret_why, EBUSY, "cannot take %s on '%s': it was locked until just now",
                        kind_of(type), path);
    }
    if (other.l_pid > 0) {
        return blk_fail(ret_why, EBUSY, "cannot take %s on '%s': process %ld holds %s%s",
                        kind_of(type), path, (long)other.l_pid, kind_of(other.l_type), hint);
    }
    return blk_fail(ret_why, EBUSY,
                    "cannot take %s on '%s': another open file, of this process or another one, "
                    "holds %s%s",
                    kind_of(type), path, kind_of(other.l_type), hint);
}

static int check_options(const char *locking, bool share, bool read_only, char **ret_why)
{
    if (strcmp(locking, "auto") && strcmp(locking, "on") && strcmp(locking, "off")) {
        return blk_fail(ret_why, EINVAL, "option 'locking' takes auto, on or off, not '%s'",
                        locking);
    }
    if (share && !read_only) {
        return blk_fail(ret_why, EINVAL,
                        "option 'share' is for readers: it needs read-only=on; writers side by "
                        "side need locking=off");
    }
    return 0;
}

int blk_file_lock(FileState *s, const BlkOptions *opts, char **ret_why)
{
    const char *locking = blk_opt_get_str(opts, "locking", "auto");
    bool share = blk_opt_get(opts, "share", 0), read_only = blk_opt_get(opts, "read-only", 0);
    struct flock lock = lock_of(read_only ? F_RDLCK : F_WRLCK);
    int ret = check_options(locking, share, read_only, ret_why);

    if (ret < 0 || share || !strcmp(locking, "off")) {
        return ret;
    }
    if (fcntl(s->fd, F_OFD_SETLK, &lock) == 0) {
        s->locked = true;
        return 0;
    }
    if (errno == EAGAIN || errno == EACCES) {
        return fail_conflict(s, lock.l_type, blk_opts_path(opts), ret_why);
    }
    return strcmp(locking, "on")
               ? 0
               : blk_fail(ret_why, errno,
                          "option 'locking' is on, but '%s' cannot be locked: %s; expected "
                          "locking=auto or off there",
                          blk_opts_path(opts), strerror(errno));
}

void blk_file_unlock(FileState *s)
{
    struct flock lock = lock_of(F_UNLCK);

    if (s->locked) {
        (void)fcntl(s->fd, F_OFD_SETLK, &lock);
        s->locked = false;
    }
}
