/* SPDX-License-Identifier: MIT */
/*
 * Two ways to the same sum: the SSE4.2 instruction, eight bytes at a time, and eight tables that
 * do eight bytes in eight look-ups ("slicing-by-8": Kounavis and Berry, 2005).
 */
#include "crc32c.h"

#include <endian.h>
#include <stdbool.h>
#include <string.h>

#define CASTAGNOLI_REFLECTED UINT32_C(0x82f63b78)

static uint32_t tables[8][256];
static bool have_instruction;

__attribute__((constructor)) static void crc32c_init(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (unsigned bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? CASTAGNOLI_REFLECTED : 0);
        }
        tables[0][i] = crc;
    }
    for (unsigned t = 1; t < 8; t++) {
        for (unsigned i = 0; i < 256; i++) {
            tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 0xff];
        }
    }
#ifdef __x86_64__
    __builtin_cpu_init();
    have_instruction = __builtin_cpu_supports("sse4.2");
#endif
}

static uint64_t load_le64(const unsigned char *p)
{
    uint64_t word;

    memcpy(&word, p, sizeof(word));
    return le64toh(word);
}

uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t len)
{
    const unsigned char *p = data;

    crc = ~crc;
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t word = load_le64(p) ^ crc;

        crc = 0;
        for (unsigned i = 0; i < 8; i++) {
            crc ^= tables[7 - i][word >> (8 * i) & 0xff];
        }
    }
    for (; len; p++, len--) {
        crc = crc >> 8 ^ tables[0][(crc ^ *p) & 0xff];
    }
    return ~crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t crc32c_by_sse42(uint32_t crc, const void *data,
                                                                  size_t len)
{
    const unsigned char *p = data;
    uint64_t wide = (uint32_t)~crc;

    for (; len >= 8; p += 8, len -= 8) {
        wide = __builtin_ia32_crc32di(wide, load_le64(p));
    }
    crc = (uint32_t)wide;
    for (; len; p++, len--) {
        crc = __builtin_ia32_crc32qi(crc, *p);
    }
    return ~crc;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
#ifdef __x86_64__
    if (have_instruction) {
        return crc32c_by_sse42(crc, data, len);
    }
#endif
    return crc32c_by_table(crc, data, len);
}
