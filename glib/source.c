/* SPDX-License-Identifier: MIT */
/* A GSource over aio_context_get_fd(): GLib's own poll(2) waits, without a timeout from us. */
#include "glib/aioctx-glib.h"

#include <errno.h>

struct context_source {
    GSource source; /* first: GLib allocates the whole */
    AioContext *ctx;
    gpointer fd_tag;
};

static struct context_source *of(GSource *source)
{
    return (struct context_source *)source;
}

static gboolean prepare(GSource *source, gint *timeout_ms)
{
    *timeout_ms = -1;
    return aio_context_prepare(of(source)->ctx);
}

static gboolean check(GSource *source)
{
    return (g_source_query_unix_fd(source, of(source)->fd_tag) & G_IO_IN) != 0;
}

static gboolean dispatch(GSource *source, GSourceFunc callback, gpointer user_data)
{
    aio_context_dispatch(of(source)->ctx);
    return callback ? callback(user_data) : G_SOURCE_CONTINUE;
}

static void finalize(GSource *source)
{
    aio_context_unref(of(source)->ctx);
}

GSource *aio_get_g_source(AioContext *ctx)
{
    static GSourceFuncs funcs = {
        .prepare = prepare,
        .check = check,
        .dispatch = dispatch,
        .finalize = finalize,
    };
    int fd = aio_context_get_fd(ctx);
    GSource *source;

    if (fd < 0) {
        errno = -fd;
        return NULL;
    }
    source = g_source_new(&funcs, sizeof(struct context_source));
    aio_context_ref(ctx);
    of(source)->ctx = ctx;
    of(source)->fd_tag = g_source_add_unix_fd(source, fd, G_IO_IN);
    g_source_set_name(source, "aioctx");
    return source;
}
