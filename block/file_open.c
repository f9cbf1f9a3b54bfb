/* SPDX-License-Identifier: MIT */
/*
 * The file driver: opening, creating, and finding out what direct I/O asks for.
 *
 * A file is created sparse: its blocks are taken from the file system when they are written, and a
 * full disk shows there.  The length is the file's at opening time.
 *
 * With direct=on a file whose size is no multiple of the alignment opens for reading only.  Its
 * last, odd part (the tail) could only be written through the page cache.  A page there holds the
 * sectors beside the tail as well, as they were when it was read, and puts them back when it is
 * written out: over direct writes that have ended since.  Reading the tail that way, on a second fd
 * without O_DIRECT, makes no page dirty.
 */
#include "block/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rcu/atomic_int.h"

/* statx(2) tells the alignment since Linux 6.1; older headers lack the name and the fields. */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U
#endif
enum { STATX_WORD_DIO_MEM_ALIGN = 0x98 / 4, STATX_WORD_DIO_OFFSET_ALIGN = 0x9c / 4 };

enum { DIRECT_ALIGN_MAX = 65536 };

static int fail_errno(char **ret_why, int err, const char *what, const char *path)
{
    return blk_fail(ret_why, err, "cannot %s '%s': %s", what, path, strerror(err));
}

/* ---- Options --------------------------------------------------------------------------------- */

static int check_options(const BlkOptions *opts, char **ret_why)
{
    if (!blk_opt_get(opts, "create", 0)) {
        return 0;
    }
    if (!blk_opt_given(opts, "size")) {
        return blk_fail(ret_why, EINVAL, "option 'create' needs option 'size', such as size=1G");
    }
    if (blk_opt_get(opts, "read-only", 0)) {
        return blk_fail(ret_why, EINVAL, "options 'create' and 'read-only' exclude each other");
    }
    return 0;
}

/* Opens @path, which is never a FIFO that would block: those are refused before. */
static int open_file(const BlkOptions *opts, int flags, bool *ret_created, char **ret_why)
{
    const char *path = blk_opts_path(opts);
    bool create = blk_opt_get(opts, "create", 0);
    struct stat st;
    int fd;

    *ret_created = false;
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) {
            return blk_fail(ret_why, EISDIR,
                            "'%s' is a directory; expected a regular file or a block device", path);
        }
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
            return blk_fail(ret_why, EINVAL, "'%s' is neither a regular file nor a block device",
                            path);
        }
    } else if (errno == ENOENT && !create) {
        return blk_fail(ret_why, ENOENT, "there is no file '%s'; create=on with size=N makes one",
                        path);
    }
    if (create) {
        /* Where there is no direct I/O, open() with O_DIRECT would make the file, then fail. */
        fd = open(path, (flags & ~O_DIRECT) | O_CREAT | O_EXCL, 0666);
        if (fd < 0 && errno != EEXIST) {
            return fail_errno(ret_why, errno, "create", path);
        }
        *ret_created = fd >= 0;
        if (fd >= 0 && !(flags & O_DIRECT)) {
            return fd;
        }
        if (fd >= 0) {
            close(fd);
        }
    }
    fd = open(path, flags);
    if (fd < 0 && errno == EINVAL && (flags & O_DIRECT)) {
        return blk_fail(ret_why, EINVAL,
                        "option 'direct' is on, but the file system of '%s' has no direct I/O; "
                        "expected direct=off there",
                        path);
    }
    if (fd < 0 && (errno == EACCES || errno == EROFS || errno == EPERM) && !(flags & O_ACCMODE)) {
        return fail_errno(ret_why, errno, "read", path);
    }
    if (fd < 0 && (errno == EACCES || errno == EROFS || errno == EPERM)) {
        int err = errno;

        return blk_fail(ret_why, err, "cannot write '%s': %s; read-only=on opens it for reading",
                        path, strerror(err));
    }
    return fd < 0 ? fail_errno(ret_why, errno, "open", path) : fd;
}

/* ---- Size ------------------------------------------------------------------------------------ */

static int find_length(FileState *s, const char *path, char **ret_why)
{
    struct stat st;
    uint64_t bytes;

    if (fstat(s->fd, &st) < 0) {
        return fail_errno(ret_why, errno, "examine", path);
    }
    s->is_device = S_ISBLK(st.st_mode);
    s->length = st.st_size;
    if (s->is_device) {
        if (ioctl(s->fd, BLKGETSIZE64, &bytes) < 0) {
            return fail_errno(ret_why, errno, "find the size of", path);
        }
        s->length = (int64_t)bytes;
    }
    return 0;
}

/* Extends the file where that is asked for, and checks its size. */
static int set_length(FileState *s, const BlkOptions *opts, char **ret_why)
{
    int64_t size = blk_opt_get(opts, "size", 0);
    int ret = find_length(s, blk_opts_path(opts), ret_why);

    if (ret < 0 || s->length >= size) {
        return ret;
    }
    if (!blk_opt_get(opts, "create", 0) || s->is_device) {
        return blk_fail(ret_why, EINVAL,
                        "option 'size' asks for %lld bytes, but '%s' has only %lld%s",
                        (long long)size, blk_opts_path(opts), (long long)s->length,
                        s->is_device ? "" : "; create=on extends it");
    }
    if (ftruncate(s->fd, size) < 0) {
        return fail_errno(ret_why, errno, "extend", blk_opts_path(opts));
    }
    s->length = size;
    return 0;
}

/* ---- Alignment ------------------------------------------------------------------------------- */

/* Returns whether statx() knew; 0 in the outputs: no direct I/O on this file. */
static bool ask_statx(int fd, uint32_t *ret_offset_align, uint32_t *ret_memory_align)
{
    union {
        struct statx stx;
        uint32_t words[64];
    } u;

    _Static_assert(sizeof(struct statx) == sizeof(u.words), "struct statx has 256 bytes");
    memset(&u, 0, sizeof(u));
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &u.stx) < 0 ||
        !(u.stx.stx_mask & STATX_DIOALIGN)) {
        return false;
    }
    *ret_memory_align = u.words[STATX_WORD_DIO_MEM_ALIGN];
    *ret_offset_align = u.words[STATX_WORD_DIO_OFFSET_ALIGN];
    return true;
}

/* Reads with growing alignment until the kernel agrees. */
static uint32_t probe_alignment(const FileState *s)
{
    uint32_t align = 4096;
    void *buf;
    int sector;

    if (s->is_device && ioctl(s->fd, BLKSSZGET, &sector) == 0 && sector > 0) {
        return (uint32_t)sector;
    }
    if (s->length < 4096 || posix_memalign(&buf, 4096, 4096) != 0) {
        return 4096;
    }
    if (pread(s->fd, buf, 512, 512) == 512) {
        align = 512;
    }
    free(buf);
    return align;
}

static int find_alignment(FileState *s, const char *path, char **ret_why)
{
    s->offset_align = s->memory_align = 1;
    if (!s->direct) {
        return 0;
    }
    if (!ask_statx(s->fd, &s->offset_align, &s->memory_align)) {
        s->offset_align = probe_alignment(s);
        s->memory_align = s->offset_align;
    }
    uint32_t o = s->offset_align, m = s->memory_align;
    if (o == 0 || (o & (o - 1)) || o > DIRECT_ALIGN_MAX || m == 0 || (m & (m - 1)) ||
        m > DIRECT_ALIGN_MAX) {
        return blk_fail(ret_why, EINVAL,
                        "option 'direct' is on, but the kernel offers no direct I/O on '%s'; "
                        "expected direct=off there",
                        path);
    }
    s->tail = s->length & ~(int64_t)(o - 1);
    return 0;
}

static int open_tail(FileState *s, const char *path, int flags, char **ret_why)
{
    struct stat a, b;

    if (!s->direct || s->tail == s->length) {
        return 0;
    }
    if ((flags & O_ACCMODE) != O_RDONLY) {
        long long more = s->tail + s->offset_align;

        return blk_fail(
            ret_why, EINVAL,
            "option 'direct' is on, but the size of '%s', %lld bytes, is no multiple of "
            "%u: it can be read only (read-only=on), unless direct=off, or a size such "
            "as %lld (truncate -s %lld)",
            path, (long long)s->length, s->offset_align, more, more);
    }
    s->tail_fd = open(path, flags & ~O_DIRECT);
    if (s->tail_fd < 0) {
        return fail_errno(ret_why, errno, "open", path);
    }
    if (fstat(s->fd, &a) < 0 || fstat(s->tail_fd, &b) < 0 || a.st_ino != b.st_ino ||
        a.st_dev != b.st_dev) {
        return blk_fail(ret_why, EBUSY, "'%s' was replaced while it was being opened", path);
    }
    return 0;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static int open_all(FileState *s, const BlkOptions *opts, bool *ret_created, char **ret_why)
{
    int flags = O_CLOEXEC | (blk_opt_get(opts, "read-only", 0) ? O_RDONLY : O_RDWR) |
                (s->direct ? O_DIRECT : 0);
    int ret = open_file(opts, flags, ret_created, ret_why);

    if (ret < 0) {
        return ret;
    }
    s->fd = ret;
    ret = blk_file_lock(s, opts, ret_why);
    if (ret == -EBUSY) {
        *ret_created = false; /* whoever was quicker has it now */
    }
    if (ret == 0) {
        ret = set_length(s, opts, ret_why);
    }
    if (ret == 0) {
        ret = find_alignment(s, blk_opts_path(opts), ret_why);
    }
    if (ret == 0 && blk_opt_get(opts, "poll", 0)) {
        ret = blk_file_check_poll(s, blk_opts_path(opts), ret_why);
        s->poll = ret == 0;
    }
    return ret < 0 ? ret : open_tail(s, blk_opts_path(opts), flags, ret_why);
}

int blk_file_open(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    FileState *s;
    bool created = false;
    int ret = check_options(opts, ret_why);

    if (ret < 0) {
        return ret;
    }
    s = calloc(1, sizeof(*s));
    if (!s) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    s->refs = 1;
    s->fd = s->tail_fd = -1;
    s->direct = blk_opt_get(opts, "direct", 0);
    if (blk_opt_get(opts, "registered", 0)) {
        s->fixed = blk_file_fixed_new();
        if (!s->fixed) {
            free(s);
            return blk_fail(ret_why, ENOMEM, "out of memory");
        }
    }
    ret = open_all(s, opts, &created, ret_why);
    if (ret < 0) {
        if (created) {
            unlink(blk_opts_path(opts));
        }
        blk_file_close(s);
        return ret;
    }
    *ret_state = s;
    return 0;
}

void blk_file_close(void *state)
{
    blk_file_unlock(state); /* now, though calls that were given up keep the fds open */
    blk_file_put(state);
}

void blk_file_put(FileState *s)
{
    if (sub_fetch_acq_rel(&s->refs, 1) > 0) {
        return;
    }
    if (s->tail_fd >= 0) {
        close(s->tail_fd);
    }
    if (s->fd >= 0) {
        close(s->fd);
    }
    blk_file_fixed_put(s->fixed);
    free(s);
}
