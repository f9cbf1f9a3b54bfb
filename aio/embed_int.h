/* SPDX-License-Identifier: MIT */
/* A host's fd, for the context's loop and the monitors; the protocol is at the top of embed.c. */
#ifndef AIO_EMBED_INT_H
#define AIO_EMBED_INT_H

#include <aioctx/aio.h>

struct AioHandler;

/* How soon something is tried again that the kernel refuses for a time. */
#define EMBED_RETRY_NS INT64_C(10000000)

/* The end of a host's wait, in the place of wait_for_events(). */
void embed_end_wait(AioContext *ctx);

/* Closes what aio_context_get_fd() has made, if it was called.  Before the monitor is closed. */
void embed_close(AioContext *ctx);

/* Adds @fd to the set that the host waits for.  @events: EPOLL*.  Returns 0 or -errno. */
int embed_add(AioContext *ctx, int fd, uint32_t events);

/*
 * Takes the edges out of the set, if something was done since the last time that may have left
 * some.  Returns whether the wake eventfd is readable.  Look at what the edges are about after
 * this.
 */
bool embed_take_edges(AioContext *ctx);

/* io_uring: an fd is watched, or not any more; see the top of embed.c.  Nothing when the context is
 * not embedded. */
void embed_watch(AioContext *ctx, struct AioHandler *h);
void embed_unwatch(AioContext *ctx, struct AioHandler *h);

/* io_uring: tries again what embed_watch() could not do.  Returns when to look again at the
 * latest: WAIT_FOREVER when all are watched. */
int64_t embed_watch_rest(AioContext *ctx);

#endif
