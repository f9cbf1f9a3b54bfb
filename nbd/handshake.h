/* SPDX-License-Identifier: MIT */
#ifndef NBD_HANDSHAKE_H
#define NBD_HANDSHAKE_H

#include "nbd/conn.h"

/* Begins; it ends in nbd_server_ready() or nbd_server_gone(), perhaps before this returns. */
void nbd_handshake_start(NbdConn *conn);

/* Ends it from outside; @why NULL: without a word in the log. */
void nbd_handshake_drop(NbdConn *conn, const char *why);

/* When it began, ns of QEMU_CLOCK_REALTIME. */
int64_t nbd_handshake_began_ns(const NbdConn *conn);

#endif
