/* SPDX-License-Identifier: MIT */
/*
 * The pattern that aioctx-blk writes, and what it knows of the blocks it has written.
 *
 * Every 512-byte sector describes itself: where it belongs, which write of which run made it, and a
 * checksum over all of it.  So a sector that was lost, torn, misplaced, swapped or damaged is told
 * from a good one without any other knowledge than the region's table: two numbers for each block.
 *
 * A block's writes are numbered from 1 (its generations); 0 stands for what was there before.
 *   known   the last write that ended well: every older one is gone
 *   last    the last write that was submitted
 * While both are equal, each sector must be of that generation.  A write that timed out, was
 * cancelled or failed leaves known < last: each sector may then be of any generation from known to
 * last, until a later write ends well.  Reads do not narrow this, as a write that the driver has
 * detached may still land.
 *
 * A region belongs to one thread; the caller sees to it that requests on one block never overlap.
 */
#ifndef TOOLS_BLK_VERIFY_H
#define TOOLS_BLK_VERIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VERIFY_SECTOR_BYTES 512

/* What blocks hold that this run has not written. */
enum verify_initial {
    VERIFY_INITIAL_ANY,     /* not known: what the first read finds must stay */
    VERIFY_INITIAL_ZEROES,  /* a file that this run made */
    VERIFY_INITIAL_PATTERN, /* the pattern, of any run */
};

enum verify_result {
    VERIFY_OK,
    VERIFY_UNKNOWN, /* a first look at what nothing was known about: nothing to check it by */
    VERIFY_BAD,
};

/* For people. */
struct verify_mismatch {
    int64_t offset_bytes; /* of the first bad sector */
    char expected[128];
    char found[256];
};

struct verify_block; /* known and last */

/* Fields are private. */
struct verify_region {
    int64_t offset_bytes;
    uint32_t block_bytes;
    enum verify_initial initial;
    uint64_t blocks;
    uint64_t run_id;
    struct verify_block *table;
    uint32_t *digests; /* of what the first read of an unwritten block found; 0: not read yet */
};

/*
 * Prepares the table of a region of @blocks blocks of @block_bytes (a multiple of the sector) that
 * begins at @offset_bytes.  @run_id: a number that no other run has.
 * Returns 0 or -ENOMEM.  Lifetime: verify_region_destroy().
 */
int verify_region_init(struct verify_region *region, int64_t offset_bytes, uint32_t block_bytes,
                       uint64_t blocks, uint64_t run_id, enum verify_initial initial);
void verify_region_destroy(struct verify_region *region);

/* Fills @buf with the next generation of @block, which is about to be written. */
void verify_fill(struct verify_region *region, uint64_t block, void *buf);

/* Tells that the write that the last verify_fill() of @block was for has ended well. */
void verify_written(struct verify_region *region, uint64_t block);

/* Makes @buf hold no pattern, before it is read into: a read that ends well but brought nothing
 * must not pass on what an earlier one left. */
void verify_wipe(const struct verify_region *region, void *buf);

/* Checks what was read of @block.  *@ret_mismatch is written when the result is VERIFY_BAD. */
enum verify_result verify_check(struct verify_region *region, uint64_t block, const void *buf,
                                struct verify_mismatch *ret_mismatch);

#ifdef __cplusplus
}
#endif

#endif
