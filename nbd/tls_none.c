/* SPDX-License-Identifier: MIT */
/* tls.h in a build without GnuTLS: there are no credentials, and so no streams. */
#include "nbd/tls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

NbdTls *nbd_tls_new(const NbdTlsOptions *options, char **ret_why)
{
    *ret_why = strdup("tls: this build has no TLS: GnuTLS was not there when it was configured "
                      "(meson option 'tls')");
    errno = ENOTSUP;
    return NULL;
}

NbdTls *nbd_tls_ref(NbdTls *tls)
{
    abort();
}

void nbd_tls_unref(NbdTls *tls)
{
}

NbdStream *nbd_tls_stream_new(NbdTls *tls, NbdStream *below)
{
    abort();
}

char *nbd_tls_stream_describe(NbdStream *s)
{
    abort();
}
