/* SPDX-License-Identifier: MIT */
#include "blk_verify.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"

#define FILLER_WORDS 60

static const char sector_magic[8] = "aioctx\0001";

/* As it is on disk; numbers are little-endian. */
struct sector {
    char magic[8];
    uint64_t offset_bytes;
    uint64_t run_id;
    uint64_t generation;
    uint64_t filler[FILLER_WORDS - 1]; /* from the three above: a sector has no cheap bytes */
    uint32_t zero;
    uint32_t checksum; /* crc32c of all before it */
};
_Static_assert(sizeof(struct sector) == VERIFY_SECTOR_BYTES, "a sector fills its sector");

struct verify_block {
    uint64_t known, last;
};

/* What one sector turned out to be. */
enum sector_kind {
    SECTOR_ZEROES,
    SECTOR_FOREIGN,   /* no magic */
    SECTOR_DAMAGED,   /* magic, but the checksum is wrong */
    SECTOR_MISPLACED, /* whole, but of another place */
    SECTOR_WHOLE,
};

int verify_region_init(struct verify_region *region, int64_t offset_bytes, uint32_t block_bytes,
                       uint64_t blocks, uint64_t run_id, enum verify_initial initial)
{
    struct verify_block *table = calloc(blocks, sizeof(*table));
    uint32_t *digests = NULL;

    if (!table) {
        return -ENOMEM;
    }
    if (initial != VERIFY_INITIAL_ZEROES) {
        digests = calloc(blocks, sizeof(*digests));
        if (!digests) {
            free(table);
            return -ENOMEM;
        }
    }
    *region = (struct verify_region){
        .offset_bytes = offset_bytes,
        .block_bytes = block_bytes,
        .initial = initial,
        .blocks = blocks,
        .run_id = run_id,
        .table = table,
        .digests = digests,
    };
    return 0;
}

void verify_region_destroy(struct verify_region *region)
{
    free(region->digests);
    free(region->table);
    region->digests = NULL;
    region->table = NULL;
}

static int64_t block_offset(const struct verify_region *region, uint64_t block)
{
    return region->offset_bytes + (int64_t)(block * region->block_bytes);
}

/* ---- Writing --------------------------------------------------------------------------------- */

static void fill_sector(struct sector *s, int64_t offset_bytes, uint64_t run_id,
                        uint64_t generation)
{
    /* A Weyl sequence with one multiplication a word: different everywhere, and quick. */
    uint64_t x = ((uint64_t)offset_bytes ^ run_id) * UINT64_C(0x9e3779b97f4a7c15) + generation;

    memcpy(s->magic, sector_magic, sizeof(s->magic));
    s->offset_bytes = htole64((uint64_t)offset_bytes);
    s->run_id = htole64(run_id);
    s->generation = htole64(generation);
    for (unsigned i = 0; i < FILLER_WORDS - 1; i++) {
        x += UINT64_C(0xd1342543de82ef95);
        s->filler[i] = htole64((x ^ x >> 32) * UINT64_C(0xff51afd7ed558ccd));
    }
    s->zero = 0;
    s->checksum = htole32(crc32c(0, s, offsetof(struct sector, checksum)));
}

void verify_fill(struct verify_region *region, uint64_t block, void *buf)
{
    uint64_t generation = ++region->table[block].last;
    int64_t offset_bytes = block_offset(region, block);
    struct sector *sectors = buf;

    for (uint32_t i = 0; i < region->block_bytes / VERIFY_SECTOR_BYTES; i++) {
        fill_sector(&sectors[i], offset_bytes + (int64_t)i * VERIFY_SECTOR_BYTES, region->run_id,
                    generation);
    }
}

void verify_written(struct verify_region *region, uint64_t block)
{
    region->table[block].known = region->table[block].last;
}

void verify_wipe(const struct verify_region *region, void *buf)
{
    struct sector *sectors = buf;

    for (uint32_t i = 0; i < region->block_bytes / VERIFY_SECTOR_BYTES; i++) {
        memset(sectors[i].magic, 0xee, sizeof(sectors[i].magic));
    }
}

/* ---- Checking -------------------------------------------------------------------------------- */

static bool all_zeroes(const struct sector *s)
{
    const char *bytes = (const char *)s;

    return bytes[0] == 0 && memcmp(bytes, bytes + 1, sizeof(*s) - 1) == 0;
}

static enum sector_kind classify(const struct sector *s, int64_t offset_bytes)
{
    if (memcmp(s->magic, sector_magic, sizeof(s->magic)) != 0) {
        return all_zeroes(s) ? SECTOR_ZEROES : SECTOR_FOREIGN;
    }
    if (le32toh(s->checksum) != crc32c(0, s, offsetof(struct sector, checksum))) {
        return SECTOR_DAMAGED;
    }
    if (le64toh(s->offset_bytes) != (uint64_t)offset_bytes) {
        return SECTOR_MISPLACED;
    }
    return SECTOR_WHOLE;
}

/* Whether a sector may be what was there before this run wrote the block. */
static enum verify_result check_initial(enum verify_initial initial, enum sector_kind kind)
{
    switch (initial) {
    case VERIFY_INITIAL_ZEROES:
        return kind == SECTOR_ZEROES ? VERIFY_OK : VERIFY_BAD;
    case VERIFY_INITIAL_PATTERN:
        return kind == SECTOR_WHOLE ? VERIFY_OK : VERIFY_BAD;
    case VERIFY_INITIAL_ANY:
        break;
    }
    /* Nobody else writes our magic: a sector that has it but is not whole has been harmed. */
    if (kind == SECTOR_DAMAGED || kind == SECTOR_MISPLACED) {
        return VERIFY_BAD;
    }
    return kind == SECTOR_WHOLE ? VERIFY_OK : VERIFY_UNKNOWN;
}

static enum verify_result check_sector(const struct verify_region *region,
                                       const struct verify_block *state, const struct sector *s,
                                       enum sector_kind kind)
{
    if (kind == SECTOR_WHOLE && le64toh(s->run_id) == region->run_id) {
        uint64_t generation = le64toh(s->generation);

        return generation > 0 && generation >= state->known && generation <= state->last
                   ? VERIFY_OK
                   : VERIFY_BAD;
    }
    return state->known ? VERIFY_BAD : check_initial(region->initial, kind);
}

static void describe_expected(const struct verify_region *region, const struct verify_block *state,
                              char *ret_text, size_t len)
{
    const char *initial = region->initial == VERIFY_INITIAL_ZEROES ? "zeroes"
                          : region->initial == VERIFY_INITIAL_PATTERN
                              ? "a pattern of an earlier run"
                              : "any content but a damaged pattern";

    if (!state->last) {
        snprintf(ret_text, len, "%s", initial);
    } else if (state->known == state->last) {
        snprintf(ret_text, len, "generation %" PRIu64, state->known);
    } else if (state->known) {
        snprintf(ret_text, len, "generation %" PRIu64 " to %" PRIu64, state->known, state->last);
    } else {
        snprintf(ret_text, len, "%s or generation 1 to %" PRIu64, initial, state->last);
    }
}

static void describe_found(const struct verify_region *region, const struct sector *s,
                           enum sector_kind kind, char *ret_text, size_t len)
{
    static const char *const names[] = {
        [SECTOR_ZEROES] = "zeroes",
        [SECTOR_FOREIGN] = "foreign data",
        [SECTOR_DAMAGED] = "a damaged pattern",
        [SECTOR_MISPLACED] = "a misplaced pattern",
        [SECTOR_WHOLE] = "a whole pattern",
    };
    const unsigned char *bytes = (const unsigned char *)s;
    char hex[3 * 16 + 1];
    int used;

    for (unsigned i = 0; i < 16; i++) {
        snprintf(hex + 3 * i, 4, " %02x", bytes[i]);
    }
    used = snprintf(ret_text, len, "%s", names[kind]);
    if (kind >= SECTOR_DAMAGED) {
        bool ours = le64toh(s->run_id) == region->run_id;

        used +=
            snprintf(ret_text + used, len - (size_t)used,
                     " (offset %" PRIu64 ", generation %" PRIu64 " of %s run, checksum %08" PRIx32
                     ", computed %08" PRIx32 ")",
                     le64toh(s->offset_bytes), le64toh(s->generation), ours ? "this" : "another",
                     le32toh(s->checksum), crc32c(0, s, offsetof(struct sector, checksum)));
    }
    snprintf(ret_text + used, len - (size_t)used, ", first bytes%s", hex);
}

/* What was found in a block that this run never wrote has to stay; 0 is kept for "not read yet". */
static bool same_as_first_read(struct verify_region *region, uint64_t block, const void *buf,
                               bool *ret_first)
{
    uint32_t digest = crc32c(0, buf, region->block_bytes);
    uint32_t *first = &region->digests[block];

    digest += digest == 0;
    *ret_first = *first == 0;
    if (*ret_first) {
        *first = digest;
    }
    return *first == digest;
}

enum verify_result verify_check(struct verify_region *region, uint64_t block, const void *buf,
                                struct verify_mismatch *ret_mismatch)
{
    const struct verify_block *state = &region->table[block];
    const struct sector *sectors = buf;
    enum verify_result result = VERIFY_OK;
    int64_t offset_bytes = block_offset(region, block);
    bool first;

    for (uint32_t i = 0; i < region->block_bytes / VERIFY_SECTOR_BYTES; i++) {
        int64_t at = offset_bytes + (int64_t)i * VERIFY_SECTOR_BYTES;
        enum sector_kind kind = classify(&sectors[i], at);
        enum verify_result one = check_sector(region, state, &sectors[i], kind);

        if (one == VERIFY_BAD) {
            ret_mismatch->offset_bytes = at;
            describe_expected(region, state, ret_mismatch->expected,
                              sizeof(ret_mismatch->expected));
            describe_found(region, &sectors[i], kind, ret_mismatch->found,
                           sizeof(ret_mismatch->found));
            return VERIFY_BAD;
        }
        if (one == VERIFY_UNKNOWN) {
            result = VERIFY_UNKNOWN;
        }
    }
    if (!region->digests || state->last) {
        return result;
    }
    if (!same_as_first_read(region, block, buf, &first)) {
        ret_mismatch->offset_bytes = offset_bytes;
        snprintf(ret_mismatch->expected, sizeof(ret_mismatch->expected),
                 "what the first read of this block found (it was not written since)");
        describe_found(region, &sectors[0], classify(&sectors[0], offset_bytes),
                       ret_mismatch->found, sizeof(ret_mismatch->found));
        return VERIFY_BAD;
    }
    return first ? result : VERIFY_OK;
}
