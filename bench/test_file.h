/* SPDX-License-Identifier: MIT */
/* The file that benchmarks read from, in the page cache. */
#ifndef BENCH_TEST_FILE_H
#define BENCH_TEST_FILE_H

#include <stdbool.h>
#include <stdint.h>

#define TEST_FILE_DIR "/var/tmp"
#define TEST_FILE_BLOCK 4096

struct test_file {
    int fd;
    uint32_t blocks;
    uint64_t *expect; /* the first word of each block */
};

/*
 * Opens @path, of which up to 64 MiB count; NULL: makes a file without a name in TEST_FILE_DIR, of
 * 64 MiB, or 1 MiB when @smoke.  Reads all of it.  Returns false, and says why, when there is none
 * to measure with; ends the program when it cannot be opened.
 */
bool test_file_open(struct test_file *f, const char *path, bool smoke);
void test_file_close(struct test_file *f);

#endif
