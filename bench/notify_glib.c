/* SPDX-License-Identifier: MIT */
/* notify_bench on GLib: a source whose ready time another thread sets to now, which wakes the
 * source's context. */
#include "notify_impl.h"

#include <glib.h>
#include <stdlib.h>

struct loop {
    GMainContext *ctx;
    GMainLoop *main;
    GSource *source;
    void (*woken)(void *opaque);
    void *opaque;
};

struct wake_source {
    GSource source; /* first */
    struct loop *loop;
};

static gboolean on_dispatch(GSource *source, GSourceFunc callback, gpointer data)
{
    struct loop *loop = ((struct wake_source *)source)->loop;
    g_source_set_ready_time(source, -1);
    loop->woken(loop->opaque);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs funcs = { .dispatch = on_dispatch };

static void *open_loop(void (*woken)(void *opaque), void *opaque)
{
    struct loop *loop = bench_alloc(sizeof(*loop));
    loop->woken = woken;
    loop->opaque = opaque;
    loop->ctx = g_main_context_new();
    loop->main = g_main_loop_new(loop->ctx, FALSE);
    loop->source = g_source_new(&funcs, sizeof(struct wake_source));
    ((struct wake_source *)loop->source)->loop = loop;
    g_source_attach(loop->source, loop->ctx);
    return loop;
}

static void close_loop(void *opaque)
{
    struct loop *loop = opaque;
    g_source_destroy(loop->source);
    g_source_unref(loop->source);
    g_main_loop_unref(loop->main);
    g_main_context_unref(loop->ctx);
    free(loop);
}

static void run_loop(void *opaque)
{
    g_main_loop_run(((struct loop *)opaque)->main);
}

static void stop_loop(void *opaque)
{
    g_main_loop_quit(((struct loop *)opaque)->main);
}

static void wake_loop(void *opaque)
{
    g_source_set_ready_time(((struct loop *)opaque)->source, 0);
}

static const struct wake_loop glib = { open_loop, close_loop, run_loop, stop_loop, wake_loop };
const struct notify_impl notify_glib = { .name = "glib", .loop = &glib };
