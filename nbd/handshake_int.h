/* SPDX-License-Identifier: MIT */
/* What the handshake's two parts share: handshake.c moves bytes, option.c answers options. */
#ifndef NBD_HANDSHAKE_INT_H
#define NBD_HANDSHAKE_INT_H

#include "nbd/handshake.h"

/* The longest data of an option that is looked at. */
enum { NBD_OPTION_MAX = 32 << 10 };

typedef enum {
    STATE_FLAGS,  /* the client's flags are to come */
    STATE_OPTION, /* an option is */
    STATE_TLS,    /* the stream's own handshake goes on */
} NbdHandshakeState;

typedef enum { AFTER_NOTHING, AFTER_CLOSE, AFTER_TLS, AFTER_SERVE } NbdHandshakeAfter;

struct NbdHandshake {
    QEMUTimer timer;
    int64_t began_ns;
    NbdHandshakeState state;
    NbdHandshakeAfter after; /* once `out` has been sent */
    bool fixed;              /* the client speaks fixed newstyle */
    bool no_zeroes;          /* it wants none behind the reply to EXPORT_NAME */
    bool tls;                /* TLS is running */
    bool received;           /* in this run */
    uint64_t skip;           /* bytes of an option too long to be looked at, to be thrown away */
    uint32_t option;         /* that is being answered */
    const NbdExport *status_export; /* base:allocation was selected for it */
    uint8_t *out;
    size_t out_pos, out_len, out_room;
    bool out_failed; /* there was no memory for it */
};

/* ---- handshake.c ----------------------------------------------------------------------------- */

/* Adds to what is to be sent. */
void nbd_handshake_put(NbdHandshake *hs, const void *data, size_t bytes);

/* Drops the client, which frees @conn.  Returns false, so that it can end a function. */
bool nbd_handshake_refuse(NbdConn *conn, const char *why);

/* ---- option.c -------------------------------------------------------------------------------- */

/* Answers hs->option, whose data is at @data.  Returns false when the client was dropped. */
bool nbd_option(NbdConn *conn, const uint8_t *data, size_t bytes);

/* The same for one with too much data to be looked at: hs->skip is set, so that it is thrown
 * away. */
bool nbd_option_too_long(NbdConn *conn, uint32_t bytes);

#endif
