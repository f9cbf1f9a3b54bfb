/* SPDX-License-Identifier: MIT */
#include "test_file.h"

#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define BLOCKS_MAX (64 * 1024 * 1024 / TEST_FILE_BLOCK)
#define BLOCKS_SMOKE (1024 * 1024 / TEST_FILE_BLOCK)

/* A file without a name: nothing is left behind, however the program ends. */
static int make_file(uint32_t blocks)
{
    uint64_t buf[TEST_FILE_BLOCK / sizeof(uint64_t)], random = 1;
    int fd = open(TEST_FILE_DIR, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        char name[] = TEST_FILE_DIR "/aioctx-bench-XXXXXX";
        fd = mkostemp(name, O_CLOEXEC);
        if (fd < 0 || unlink(name)) {
            bench_die("cannot make a file in %s: %s", TEST_FILE_DIR, strerror(errno));
        }
    }
    for (uint32_t i = 0; i < blocks; i++) {
        for (size_t w = 0; w < sizeof(buf) / sizeof(buf[0]); w++) {
            buf[w] = bench_random(&random);
        }
        if (write(fd, buf, sizeof(buf)) != (ssize_t)sizeof(buf)) {
            bench_die("cannot write %u MiB in %s: %s", blocks / 256, TEST_FILE_DIR,
                      strerror(errno));
        }
    }
    fdatasync(fd); /* so that no write-back runs beside the reads */
    return fd;
}

/* Whether reads of this file go the usual way: those of a file system in memory are handed to
 * kernel threads, which would measure something else. */
static bool on_real_file_system(int fd)
{
    struct statfs fs;
    return !fstatfs(fd, &fs) && (unsigned long)fs.f_type != TMPFS_MAGIC &&
           (unsigned long)fs.f_type != RAMFS_MAGIC;
}

/* Reads the whole file, which brings it into the page cache, too. */
static void read_expected(struct test_file *f)
{
    uint64_t buf[TEST_FILE_BLOCK / sizeof(uint64_t)];
    f->expect = calloc(f->blocks, sizeof(*f->expect));
    if (!f->expect) {
        bench_die("out of memory");
    }
    for (uint32_t i = 0; i < f->blocks; i++) {
        if (pread(f->fd, buf, sizeof(buf), (off_t)i * TEST_FILE_BLOCK) != (ssize_t)sizeof(buf)) {
            bench_die("cannot read the file: %s", strerror(errno));
        }
        f->expect[i] = buf[0];
    }
}

bool test_file_open(struct test_file *f, const char *path, bool smoke)
{
    f->blocks = smoke ? BLOCKS_SMOKE : BLOCKS_MAX;
    if (path) {
        struct stat st;
        f->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (f->fd < 0 || fstat(f->fd, &st)) {
            bench_die("cannot open '%s': %s", path, strerror(errno));
        }
        if (!S_ISREG(st.st_mode) || st.st_size < TEST_FILE_BLOCK) {
            bench_die("'%s' is no regular file of at least %d bytes", path, TEST_FILE_BLOCK);
        }
        if (st.st_size / TEST_FILE_BLOCK < f->blocks) {
            f->blocks = (uint32_t)(st.st_size / TEST_FILE_BLOCK);
        }
    } else {
        f->fd = make_file(f->blocks);
    }
    if (!on_real_file_system(f->fd)) {
        printf("file skipped: %s lies on a file system in memory; name a file elsewhere with "
               "--file\n",
               path ? path : TEST_FILE_DIR);
        close(f->fd);
        return false;
    }
    read_expected(f);
    return true;
}

void test_file_close(struct test_file *f)
{
    free(f->expect);
    close(f->fd);
}
