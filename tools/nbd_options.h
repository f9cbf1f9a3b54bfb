/* SPDX-License-Identifier: MIT */
/* The command line of aioctx-nbd. */
#ifndef TOOLS_NBD_OPTIONS_H
#define TOOLS_NBD_OPTIONS_H

#include "nbd/server.h"
#include "nbd/tls.h"

struct nbd_export_option {
    char *name;
    const char *spec, *description; /* of argv */
};

struct nbd_options {
    NbdServerOptions server; /* without exports, and with no more of TLS than its mode */
    NbdTlsOptions tls;
    struct nbd_export_option *exports;
    const char **drivers, **unix_paths, **tcp;
    unsigned n_exports, n_drivers, n_unix, n_tcp;
    bool read_only, use_stdio, tls_mode_given;
};

/* Reads the command line; @activated: sockets were handed over.  Returns an exit status, after a
 * message, --help or --version; or -1: go on. */
int nbd_options_parse(struct nbd_options *opt, int argc, char **argv, bool activated);

void nbd_options_free(struct nbd_options *opt);

#endif
