/* SPDX-License-Identifier: MIT */
/*
 * The log: lines on stderr, whole ones, from any thread.
 *
 * nbd_log_drop() is for what clients can bring about as often as they like: of those lines only so
 * many a second are written, and the next one says how many were left out.
 */
#ifndef NBD_LOG_H
#define NBD_LOG_H

void nbd_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void nbd_log_drop(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Says how many lines were left out since the last one, if any. */
void nbd_log_end(void);

#endif
