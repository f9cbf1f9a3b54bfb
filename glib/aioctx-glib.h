/* SPDX-License-Identifier: MIT */
/*
 * A context as a source of GLib's main loop; pkg-config module aioctx-glib.
 *
 *   GSource *source = aio_get_g_source(ctx);
 *   g_source_attach(source, NULL);
 *   g_source_unref(source);
 *   g_main_loop_run(loop);           runs the context's callbacks too
 */
#ifndef AIOCTX_GLIB_H
#define AIOCTX_GLIB_H

#include <aioctx/aio.h>
#include <glib.h>

G_BEGIN_DECLS

/*
 * Makes a source that runs @ctx in the GMainContext to which it is attached: its timers, fds,
 * bottom halves and completions.  A callback set with g_source_set_callback() is called with
 * @user_data after each iteration, and ends the source when it returns G_SOURCE_REMOVE; none is
 * needed.  As other sources, it is not dispatched below its own callbacks, unless
 * g_source_set_can_recurse() allows it; aio_poll() may be called there in any case.  Other sources
 * should not arm timers of @ctx, set its fd handlers or submit to it in their own prepare and check
 * functions; in dispatch they may.
 * Returns a new source at each call; NULL with errno as aio_context_get_fd() returns.
 * Thread: the context's home, which is also to run the GMainContext.
 * Lifetime: the caller's one reference, given back with g_source_unref().  The source holds a
 * reference on @ctx until it is finalized, which may be the last: see aio_context_unref().
 */
GSource *aio_get_g_source(AioContext *ctx);

G_END_DECLS

#endif
