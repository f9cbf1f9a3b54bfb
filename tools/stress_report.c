/* SPDX-License-Identifier: MIT */
/* aioctx-stress: how a violation and the summary are shown. */
#include "stress.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Events shown before and after the one that nothing explains. */
#define SHOWN_BEFORE 24
#define SHOWN_AFTER 4

const char *const op_names[OP_MAX] = {
    [OP_MOD] = "timer_mod",
    [OP_ANTICIPATE] = "timer_mod_anticipate",
    [OP_RANGE] = "timer_mod_range_ns",
    [OP_FORWARD] = "timer_forward",
    [OP_DEL] = "timer_del",
    [OP_DEL_SYNC] = "timer_del_sync",
    [OP_FREE] = "timer_free",
    [OP_EMBED] = "timer_init",
    [OP_READ] = "timer_expire_time_ns",
    [OP_WALK] = "timerlist_walk",
    [OP_DEADLINE] = "deadline reads",
    [OP_DISABLE] = "qemu_clock_enable",
    [OP_STOP] = "cpu_disable_ticks",
    [OP_LISTS] = "lists made and freed",
    [OP_CONTEXTS] = "contexts made and freed",
    [OP_PENDING] = "timer_pending",
    [OP_DEINIT] = "timer_deinit",
    [OP_DEINIT_SYNC] = "timer_deinit_sync",
    [OP_FIRE] = "callback",
};

/* A time of the timer's clock, in us from the start of the run. */
static void format_time(char *buf, size_t size, const struct timer_gen *g, int64_t ns)
{
    if (ns == -1) {
        snprintf(buf, size, "-1");
    } else if (ns > INT64_MAX - 2) {
        snprintf(buf, size, "never");
    } else {
        snprintf(buf, size, "%+.3f us", (double)(ns - S.clock_base_ns[g->clock]) / 1e3);
    }
}

static void print_event(const struct timer_gen *g, const struct event *ev, bool marked)
{
    const struct record *r = ev->rec;
    const char *what[] = { "call", "return", "end" };
    bool has_arg = r->kind <= OP_FORWARD;
    char arg[48] = "", arg2[56] = "", clock[48] = "", result[64] = "";

    if (has_arg) {
        format_time(arg, sizeof(arg), g, r->arg_ns);
    }
    if (r->kind == OP_RANGE) {
        format_time(arg2, sizeof(arg2), g, r->arg2_ns);
        strcat(arg2, " to ");
    } else if (r->kind == OP_FORWARD) {
        snprintf(arg2, sizeof(arg2), "each %" PRId64 " ns after ", r->arg2_ns);
    }
    if (ev->type == EV_RETURN) {
        format_time(clock, sizeof(clock), g, r->clock_ns);
    }
    if (ev->type == EV_RETURN && r->kind == OP_READ) {
        format_time(result, sizeof(result), g, r->arg_ns);
    } else if (ev->type == EV_RETURN && r->kind == OP_FORWARD) {
        snprintf(result, sizeof(result), "%" PRId64, r->result);
    } else if (ev->type == EV_RETURN && r->kind != OP_FIRE) {
        snprintf(result, sizeof(result), "%s",
                 r->result == -EDEADLK                        ? "-EDEADLK"
                 : r->kind == OP_FREE || r->kind == OP_DEINIT ? ""
                 : r->result                                  ? "1"
                                                              : "0");
    }
    fprintf(stderr, "%c %10" PRIu64 "  %18s  %-5s %-7s %s%s%s%s%s%s%s\n", marked ? '>' : ' ',
            ev->stamp, clock, S.actors[r->actor].name,
            r->kind == OP_FIRE && ev->type == EV_RETURN ? "begin" : what[ev->type],
            op_names[r->kind], has_arg ? "(" : "", arg2, arg, has_arg ? ")" : "",
            result[0] ? " = " : "", result);
}

/* Several threads may find something at once: the first one tells, the others wait for the end. */
void report_enter(const struct timer_gen *g)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_lock(&lock);
    fflush(stdout);
    fprintf(stderr, "\naioctx-stress: VIOLATION (seed %" PRIu64 ")\n", S.opt.seed);
    if (g) {
        fprintf(stderr, "%s timer %u, life %u, on context %u (%s)\n",
                g->embedded ? "embedded" : "shared", g->slot, g->number, g->context,
                stress_clock_name(g->clock));
    }
}

/* The system call itself: other threads still run, so no destructors, and no ThreadSanitizer that
 * takes a thread not yet joined for a leak and changes the status. */
_Noreturn void report_end(void)
{
    fflush(stderr);
    for (;;) {
        syscall(SYS_exit_group, 1);
    }
}

_Noreturn void report_violation(const struct violation *why)
{
    size_t from = why->at > SHOWN_BEFORE ? why->at - SHOWN_BEFORE : 0;
    size_t to = why->at + SHOWN_AFTER < why->count ? why->at + SHOWN_AFTER : why->count - 1;
    char armed[48];

    report_enter(why->gen);
    format_time(armed, sizeof(armed), why->gen, why->gen->deadline_ns);
    fprintf(stderr, "%s: %s\n\n", why->kind, why->text);
    fprintf(stderr, "When the round began it was %s%s%s.%s\n", why->gen->dead ? "freed, " : "",
            why->gen->deadline_ns == -1 ? "not armed" : "armed for ",
            why->gen->deadline_ns == -1 ? "" : armed,
            from ? "  Earlier operations of the round are left out." : "");
    fprintf(stderr, "  %10s  %18s  %s\n", "stamp", "its clock", "thread and operation");
    for (size_t i = from; i <= to; i++) {
        print_event(why->gen, &why->events[i], i == why->at);
    }
    report_end();
}

_Noreturn void report_failure(const struct timer_gen *g, const char *fmt, ...)
{
    va_list args;

    report_enter(g);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    report_end();
}

static void print_row(const char *name, uint64_t count, double seconds)
{
    printf("  %-22s %14" PRIu64 " %14.0f\n", name, count, (double)count / seconds);
}

void report_summary(double seconds, uint64_t rounds, bool interrupted)
{
    uint64_t sum = 0;

    printf("%s after %.1f s, %" PRIu64 " rounds\n", interrupted ? "interrupted" : "done", seconds,
           rounds);
    printf("  %-22s %14s %14s\n", "operation", "count", "per second");
    for (unsigned i = 0; i < OP_MAX; i++) {
        if (i != OP_FIRE && i != OP_EMBED) {
            print_row(op_names[i], oracle_stats.ops[i], seconds);
            sum += oracle_stats.ops[i];
        }
    }
    print_row("all operations", sum, seconds);
    print_row("firings", oracle_stats.ops[OP_FIRE], seconds);
    printf("histories checked: %" PRIu64 ", at most %u orders at once, %" PRIu64
           " given up as too wide\n",
           oracle_stats.lives, oracle_stats.widest, oracle_stats.undecided);
    printf("no violation\n");
}
