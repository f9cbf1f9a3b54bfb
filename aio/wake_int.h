/* SPDX-License-Identifier: MIT */
/* The home thread's side of the wake word. */
#ifndef AIO_WAKE_INT_H
#define AIO_WAKE_INT_H

#include <aioctx/aio.h>

/* Announces a sleep; false when a notify has come since the last wake_end_sleep(): do not sleep.
 * After true, look at every source of work before waiting. */
bool wake_begin_sleep(AioContext *ctx);

/* Takes the announcement back, if there is one.  Returns whether a notify has come; what it was
 * about is seen by any look at the sources of work from here on. */
bool wake_end_sleep(AioContext *ctx);

/* Whether a notify has come since the last wake_end_sleep().  Thread: home. */
bool wake_is_notified(AioContext *ctx);

/* How many notifies there were.  Thread: any. */
uint64_t wake_count_notifies(AioContext *ctx);

#endif
