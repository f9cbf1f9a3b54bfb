/* SPDX-License-Identifier: MIT */
/*
 * timer_bench on GLib: one source a timer, moved by g_source_set_ready_time() in place of a new
 * timeout source each time.  Arming is cheap, as nothing is sorted; instead each iteration walks
 * all sources, and so n is limited here.
 */
#include "timer_impl.h"

#include <glib.h>
#include <stdlib.h>

/* What the user holds; the source is GLib's. */
struct glib_timer {
    GSource *source; /* first */
    struct timer_tag tag;
};

struct glib_source {
    GSource source; /* GLib allocates it in this size */
    struct timer_tag *tag;
};

struct glib_loop {
    struct timer_loop base;
    GMainContext *context;
    gint64 now_us;
};

static GSource *source_at(struct timer_loop *base, uint32_t i)
{
    return ((struct glib_timer *)timer_at(base, i))->source;
}

static gboolean on_ready(GSource *source, GSourceFunc cb, gpointer data)
{
    g_source_set_ready_time(source, -1);
    timer_fired(((struct glib_source *)source)->tag);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs source_funcs = { .dispatch = on_ready };

static struct timer_loop *glib_open(uint32_t n)
{
    struct glib_loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return NULL;
    }
    loop->context = g_main_context_new();
    timer_loop_init(&loop->base, n, sizeof(struct glib_timer), offsetof(struct glib_timer, tag));
    for (uint32_t i = 0; i < n; i++) {
        struct glib_timer *t = timer_at(&loop->base, i);
        t->source = g_source_new(&source_funcs, sizeof(struct glib_source));
        ((struct glib_source *)t->source)->tag = &t->tag;
        g_source_attach(t->source, loop->context);
    }
    return &loop->base;
}

static void glib_close(struct timer_loop *base)
{
    struct glib_loop *loop = (struct glib_loop *)base;
    for (uint32_t i = 0; i < base->n; i++) {
        g_source_destroy(source_at(base, i));
        g_source_unref(source_at(base, i));
    }
    g_main_context_unref(loop->context);
    timer_loop_cleanup(base);
    free(loop);
}

/* The user holds a pointer. */
static size_t glib_timer_bytes(void)
{
    return sizeof(GSource *);
}

static void glib_refresh(struct timer_loop *base)
{
    ((struct glib_loop *)base)->now_us = g_get_monotonic_time();
}

static void glib_arm(struct timer_loop *base, uint32_t i, uint64_t delay_ns)
{
    struct glib_loop *loop = (struct glib_loop *)base;
    g_source_set_ready_time(source_at(base, i), loop->now_us + (gint64)(delay_ns / 1000));
}

static void glib_cancel(struct timer_loop *base, uint32_t i)
{
    g_source_set_ready_time(source_at(base, i), -1);
}

static void glib_run(struct timer_loop *base)
{
    g_main_context_iteration(((struct glib_loop *)base)->context, FALSE);
}

const struct timer_impl timer_glib = {
    .name = "glib",
    .n_max = 10000,
    .n_max_fire = 10000,
    .open = glib_open,
    .close = glib_close,
    .timer_bytes = glib_timer_bytes,
    .refresh = glib_refresh,
    .arm = glib_arm,
    .cancel = glib_cancel,
    .run = glib_run,
};
