/* SPDX-License-Identifier: MIT */
#include "nbd/error.h"

#include <errno.h>

#include "nbd/wire.h"

uint32_t nbd_error_of(int ret)
{
    switch (-ret) {
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO; /* ETIMEDOUT and ECANCELED too */
    }
}

const char *nbd_error_text(uint32_t error)
{
    switch (error) {
    case NBD_EPERM:
        return "the export is read-only";
    case NBD_ENOMEM:
        return "the server is out of memory";
    case NBD_EINVAL:
        return "the request is not valid";
    case NBD_ENOSPC:
        return "the export has no room for this";
    case NBD_EOVERFLOW:
        return "the request is too large";
    case NBD_ENOTSUP:
        return "this would not be faster than writing";
    case NBD_ESHUTDOWN:
        return "the server is ending";
    default:
        return "the backend failed or missed its deadline";
    }
}
