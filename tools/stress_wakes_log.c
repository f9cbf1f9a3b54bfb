/* SPDX-License-Identifier: MIT */
/* aioctx-stress --mode notify: the log, a violation, and the summary. */
#include "stress_wakes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* How much of the log is shown. */
#define SHOWN 48

const char *const wake_names[WAKE_MAX] = {
    [WAKE_NOTIFY] = "aio_notify",          [WAKE_BH] = "qemu_bh_schedule",
    [WAKE_EVENT] = "event_notifier_set",   [WAKE_ONESHOT] = "aio_bh_schedule_oneshot",
    [WAKE_IDLE] = "qemu_bh_schedule_idle", [WAKE_TIMER] = "timer_mod_ns",
    [WAKE_FD] = "aio_set_fd_handler",      [WAKE_REMOVE] = "aio_remove_fd_handler_async",
    [WAKE_SIGNAL] = "a signal handler",
};

/* An entry's `what`: event, kind and loop one byte each, and the low 32 bits of the number. */
void wakes_log(struct wake_log *log, enum wake_event event, const struct wake_channel *ch,
               uint64_t number)
{
    struct wake_entry *e = &log->entries[log->next++ % WAKE_LOG];
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    atomic_store_explicit(&e->time_ns, ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec,
                          memory_order_relaxed);
    atomic_store_explicit(&e->what,
                          (uint64_t)event << 56 | (ch ? (uint64_t)ch->kind << 48 : 0) |
                              (ch ? (uint64_t)ch->loop << 40 : 0) | (uint32_t)number,
                          memory_order_relaxed);
}

/* ---- A violation ----------------------------------------------------------------------------- */

struct line {
    int64_t time_ns;
    uint64_t what;
    const char *thread;
    bool in_handler, by_loop;
};

static int by_time(const void *a, const void *b)
{
    const struct line *x = a, *y = b;

    return (x->time_ns > y->time_ns) - (x->time_ns < y->time_ns);
}

/* Adds what a log tells of loop @loop; a loop's own log is about nothing else. */
static size_t gather(struct line *lines, size_t n, const struct wake_log *log,
                     const struct actor *a, unsigned loop, bool in_handler)
{
    bool by_loop = a->context >= 0;

    for (unsigned i = 0; i < WAKE_LOG; i++) {
        struct line l = {
            .time_ns = atomic_load_explicit(&log->entries[i].time_ns, memory_order_relaxed),
            .what = atomic_load_explicit(&log->entries[i].what, memory_order_relaxed),
            .thread = a->name,
            .in_handler = in_handler,
            .by_loop = by_loop,
        };

        if (l.time_ns && (by_loop || (l.what >> 40 & 0xff) == loop)) {
            lines[n++] = l;
        }
    }
    return n;
}

static void print_line(const struct line *l, int64_t last_ns)
{
    static const char *const events[] = { "call", "return", "sees", "aio_poll", "aio_poll" };
    unsigned event = (unsigned)(l->what >> 56);

    fprintf(stderr, "  %+14.3f us  %-6s%-9s ", (double)(l->time_ns - last_ns) / 1e3, l->thread,
            l->in_handler ? " handler" : "");
    if (event >= EVENT_POLL) {
        fprintf(stderr, "%-7s aio_poll\n", event == EVENT_POLL ? "call" : "return");
    } else {
        fprintf(stderr, "%-7s %s, number %" PRIu32 "\n", events[event],
                wake_names[l->what >> 48 & 0xff], (uint32_t)l->what);
    }
}

static void print_log(unsigned loop)
{
    struct line *lines = calloc((2 * S.opt.threads + 1) * WAKE_LOG, sizeof(*lines));
    size_t n = 0, from;

    if (!lines) {
        return;
    }
    for (unsigned i = 0; i < S.opt.threads; i++) {
        const struct wake_giver *g = &W.givers[i];

        n = gather(lines, n, &g->log, &g->actor, loop, false);
        n = gather(lines, n, &g->handler_log, &g->actor, loop, true);
    }
    n = gather(lines, n, &W.loops[loop].log, &W.loops[loop].actor, loop, false);
    qsort(lines, n, sizeof(*lines), by_time);
    from = n > SHOWN ? n - SHOWN : 0;
    fprintf(stderr, "What was last done, in us before the last of it:\n");
    for (size_t i = from; i < n; i++) {
        print_line(&lines[i], lines[n - 1].time_ns);
    }
    free(lines);
}

_Noreturn void wakes_report(const struct wake_channel *ch, const char *kind, const char *text)
{
    const struct wake_loop *l = ch->to;
    AioContextStats st;

    report_enter(NULL);
    fprintf(stderr,
            "%s: number %" PRIu64 " that thread w%u gave to loop %u (%s) by %s%s %s; the last that "
            "it saw of these was number %" PRIu64 "\n",
            kind, (uint64_t)atomic_load(&ch->given), ch->thread, ch->loop,
            aio_context_get_monitor(l->ctx), wake_names[ch->kind],
            ch->by_signal ? " in a signal handler" : "", text, (uint64_t)atomic_load(&ch->seen));
    aio_context_get_stats(l->ctx, &st);
    fprintf(stderr,
            "The loop's statistics: %" PRIu64 " iterations, %" PRIu64 " sleeps, %" PRIu64
            " notifies, %" PRIu64 " of them sent\n\n",
            st.iterations, st.sleeps, st.notifies, st.notifies_sent);
    print_log(ch->loop);
    report_end();
}

/* ---- The end --------------------------------------------------------------------------------- */

static void print_counts(double seconds)
{
    uint64_t sum = 0;

    printf("  %-28s %14s %14s %14s\n", "woken by", "count", "per second", "in handlers");
    for (unsigned kind = 0; kind < WAKE_MAX; kind++) {
        uint64_t n = 0, handled = 0;

        for (unsigned i = 0; i < S.opt.threads; i++) {
            n += W.givers[i].counts[kind];
            handled += W.givers[i].handled_counts[kind];
        }
        printf("  %-28s %14" PRIu64 " %14.0f %14" PRIu64 "\n", wake_names[kind], n,
               (double)n / seconds, handled);
        sum += kind == WAKE_SIGNAL ? 0 : n + handled;
    }
    printf("  %-28s %14" PRIu64 " %14.0f\n", "all", sum, (double)sum / seconds);
}

void wakes_summary(double seconds, uint64_t rounds, bool interrupted)
{
    uint64_t sleeps = 0, notifies = 0;

    printf("%s after %.1f s, %" PRIu64 " rounds\n", interrupted ? "interrupted" : "done", seconds,
           rounds);
    print_counts(seconds);
    printf("  %-5s %-10s %14s %14s %14s %14s\n", "loop", "monitor", "iterations", "sleeps",
           "notifies", "sent");
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        AioContextStats st;

        aio_context_get_stats(W.loops[i].ctx, &st);
        printf("  %-5u %-10s %14" PRIu64 " %14" PRIu64 " %14" PRIu64 " %14" PRIu64 "\n", i,
               aio_context_get_monitor(W.loops[i].ctx), st.iterations, st.sleeps, st.notifies,
               st.notifies_sent);
        sleeps += st.sleeps;
        notifies += st.notifies;
    }
    printf("%" PRIu64 " notifies, %" PRIu64 " sleeps, no wake-up lost\nno violation\n", notifies,
           sleeps);
}
