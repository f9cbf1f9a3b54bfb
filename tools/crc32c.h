/* SPDX-License-Identifier: MIT */
/* CRC-32C (Castagnoli), as in iSCSI (RFC 3720, appendix B.4) and btrfs. */
#ifndef TOOLS_CRC32C_H
#define TOOLS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The checksum of @len bytes at @data, continuing from @crc, which is 0 at first: the checksum of
 * two pieces is crc32c(crc32c(0, a), b).  Uses the processor's instruction where there is one.
 * Thread: any.
 */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

/* The same by tables alone, for tests.  Thread: any. */
uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t len);

#ifdef __cplusplus
}
#endif

#endif
