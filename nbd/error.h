/* SPDX-License-Identifier: MIT */
/* Errors on the wire. */
#ifndef NBD_ERROR_H
#define NBD_ERROR_H

#include <stdint.h>

/* What goes over the wire for @ret, -errno: NBD_E*.  NBD_ENOTSUP is none of them. */
uint32_t nbd_error_of(int ret);

/* A few words for the client's user. */
const char *nbd_error_text(uint32_t error);

#endif
