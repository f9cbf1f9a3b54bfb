/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: lists and contexts that come and go, deadlines and walks beside them.
 *
 * A private group of lists belongs to one thread, which also runs it, so that its timers have a
 * model without any choice: what is armed for when.  Other threads meet it only through the list of
 * all lists of a clock.  Once the group is gone and a grace period has passed, its notify callback
 * must never be called again; the block that it would be given is kept for a while to see that.
 *
 * A deadline read must not be later than a timer that the reader itself has armed and that nobody
 * else touches, whatever becomes of the timers before it: those are moved, freed, and their memory
 * is overwritten with what would be a deadline far away.  (A clock that was disabled or stopped
 * meanwhile has no deadline: such reads are not judged.)
 */
#include "stress.h"

#include <aioctx/rcu.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GROUP_LIVE 0x67727570u
#define GROUP_GONE 0xdead6772u
#define PRIVATE_TIMERS 6

static const char sentinel_name[] = "sentinel";

static QEMUTimerList *shared_list(unsigned context, QEMUClockType type)
{
    return aio_context_get_timer_list_group(S.ctx[context])->tl[type];
}

static QEMUClockType random_clock(struct actor *a)
{
    return stress_random(a) % 2 ? QEMU_CLOCK_VIRTUAL : QEMU_CLOCK_REALTIME;
}

static void out_of_memory(void)
{
    report_failure(NULL, "out of memory");
}

/* ---- Walks ----------------------------------------------------------------------------------- */

static void sentinel_cb(void *opaque)
{
    report_failure(NULL, "early: a timer armed for the end of time fired");
}

void lists_make_sentinels(void)
{
    S.sentinels = calloc(2 * S.opt.contexts, sizeof(*S.sentinels));
    for (unsigned i = 0; S.sentinels && i < 2 * S.opt.contexts; i++) {
        S.sentinels[i] =
            aio_timer_new(S.ctx[i / 2], i % 2 ? QEMU_CLOCK_VIRTUAL : QEMU_CLOCK_REALTIME, SCALE_NS,
                          sentinel_cb, NULL);
        if (!S.sentinels[i]) {
            out_of_memory();
        }
        timer_set_name(S.sentinels[i], sentinel_name);
        timer_mod(S.sentinels[i], INT64_MAX);
    }
    if (!S.sentinels) {
        out_of_memory();
    }
}

void lists_free_sentinels(void)
{
    for (unsigned i = 0; i < 2 * S.opt.contexts; i++) {
        timer_free(S.sentinels[i]);
    }
    free(S.sentinels);
}

struct walk {
    unsigned shown, sentinels;
    unsigned limit; /* stops there */
};

static bool check_shown(const QEMUTimerInfo *info, void *opaque)
{
    struct walk *walk = opaque;
    bool sentinel = info->name == sentinel_name;

    if (info->deadline_ns < -1 || info->armed != (info->deadline_ns >= 0) ||
        (info->attributes & ~QEMU_TIMER_ATTR_EXTERNAL) ||
        (sentinel && (info->deadline_ns != INT64_MAX - 1 || info->running || info->dead))) {
        report_failure(
            NULL, "walk: timer '%s' is shown with deadline %" PRId64 "%s%s%s, attributes %d",
            info->name ? info->name : "", info->deadline_ns, info->armed ? ", armed" : "",
            info->running ? ", running" : "", info->dead ? ", dead" : "", (int)info->attributes);
    }
    walk->sentinels += sentinel;
    return ++walk->shown < walk->limit;
}

void lists_walk(struct actor *a)
{
    QEMUTimerList *tl = shared_list((unsigned)(stress_random(a) % S.opt.contexts), random_clock(a));
    struct walk walk = { .limit = stress_random(a) % 4 ? UINT32_MAX : 1 };
    unsigned n = sut_walk(a, tl, check_shown, &walk);

    if (walk.limit > 1 && walk.sentinels != 1) {
        report_failure(NULL, "walk: a timer that is always there was shown %u times",
                       walk.sentinels);
    }
    if (n < walk.shown || (walk.limit == 1 && walk.shown > 1)) {
        report_failure(NULL, "walk: %u timers were shown, timerlist_walk() returned %u", walk.shown,
                       n);
    }
}

/* ---- Deadlines ------------------------------------------------------------------------------- */

static void probe_cb(void *opaque)
{
    QEMUClockType type = (QEMUClockType)((struct clock_watch *)opaque - S.watch);

    clocks_enter(type);
    clocks_leave(type);
}

/* The reads that were latest, against what was left when they began. */
struct reads {
    int64_t at_ns;
    int64_t worst_ns; /* how late the latest was; INT64_MAX: there was no deadline */
    const char *worst;
};

static void judge(struct reads *r, const char *call, int64_t left_ns, int64_t got_ns)
{
    int64_t late_ns = got_ns < 0 ? INT64_MAX : got_ns - (left_ns > 0 ? left_ns : 0);

    if (late_ns > r->worst_ns) {
        r->worst_ns = late_ns;
        r->worst = call;
    }
}

static void read_deadlines(struct actor *a, QEMUTimerListGroup *tlg, QEMUClockType type,
                           struct reads *r)
{
    int64_t left_ns = r->at_ns - qemu_clock_get_ns(type);

    judge(r, "timerlist_deadline_ns", left_ns, timerlist_deadline_ns(tlg->tl[type]));
    left_ns = r->at_ns - qemu_clock_get_ns(type);
    judge(r, "timerlistgroup_deadline_ns", left_ns, timerlistgroup_deadline_ns(tlg));
    left_ns = r->at_ns - qemu_clock_get_ns(type);
    judge(r, "qemu_clock_deadline_ns_all", left_ns, sut_deadline_all(a, type));
}

void lists_deadline(struct actor *a)
{
    unsigned context = (unsigned)(stress_random(a) % S.opt.contexts);
    QEMUClockType type = random_clock(a);
    struct clock_watch *w = &S.watch[type];
    QEMUTimer *ts = aio_timer_new(S.ctx[context], type, SCALE_NS, probe_cb, w);
    unsigned changes = atomic_load(&w->changes);
    struct reads r = { .at_ns = qemu_clock_get_ns(type) + 300 * SCALE_US };

    if (!ts) {
        out_of_memory();
    }
    timer_mod_ns(ts, r.at_ns);
    for (int i = 0; i < 16; i++) {
        read_deadlines(a, aio_context_get_timer_list_group(S.ctx[context]), type, &r);
    }
    /* It counts when the timer was armed, and its clock ran, all the time. */
    if (timer_del(ts) && r.worst_ns > 0 && changes % 2 == 0 &&
        atomic_load(&w->changes) == changes) {
        report_failure(NULL, "deadline: %s() of %s %s%.3f us later than a timer that is armed",
                       r.worst, stress_clock_name(type),
                       r.worst_ns == INT64_MAX ? "knew of no timer, not even " : "was ",
                       r.worst_ns == INT64_MAX ? 0 : (double)r.worst_ns / 1e3);
    }
    timer_free(ts);
}

/* ---- Private groups -------------------------------------------------------------------------- */

struct private_timer {
    struct private_group *group;
    QEMUTimer *ts;
    QEMUClockType clock;
    bool embedded;
    int64_t at_ns; /* -1: not armed */
    uint64_t seq;  /* order of arming */
};

struct private_group {
    atomic_uint magic;
    atomic_uint notified[QEMU_CLOCK_MAX];
    QEMUTimerListGroup tlg;
    struct private_timer timers[PRIVATE_TIMERS];
    uint64_t seq;
    bool running;
    int64_t last_ns; /* of the pass that runs: what fired last */
    uint64_t last_seq;
};

void lists_notify_cb(void *opaque, QEMUClockType type)
{
    struct private_group *p = opaque;

    if (atomic_load(&p->magic) != GROUP_LIVE) {
        report_failure(NULL, "notify-freed: the notify callback of a list was called after the "
                             "list was freed and a grace period had passed");
    }
    atomic_fetch_add(&p->notified[type], 1);
}

static void private_cb(void *opaque)
{
    struct private_timer *t = opaque;
    struct private_group *p = t->group;

    clocks_enter(t->clock);
    if (!p->running || t->at_ns == -1 || t->at_ns > qemu_clock_get_ns(t->clock) ||
        t->at_ns < p->last_ns || (t->at_ns == p->last_ns && t->seq < p->last_seq)) {
        report_failure(NULL,
                       "lists: a timer of a private list fired %s (deadline %" PRId64
                       ", clock %" PRId64 ", before it %" PRId64 ")",
                       !p->running      ? "without a pass"
                       : t->at_ns == -1 ? "not armed"
                                        : "out of turn",
                       t->at_ns, qemu_clock_get_ns(t->clock), p->last_ns);
    }
    p->last_ns = t->at_ns;
    p->last_seq = t->seq;
    t->at_ns = -1;
    clocks_leave(t->clock);
}

static struct private_group *group_new(struct actor *a)
{
    struct private_group *p = calloc(1, sizeof(*p));

    if (!p) {
        out_of_memory();
    }
    atomic_init(&p->magic, GROUP_LIVE);
    if (timerlistgroup_init(&p->tlg, lists_notify_cb, p) < 0) {
        out_of_memory();
    }
    for (int i = 0; i < PRIVATE_TIMERS; i++) {
        struct private_timer *t = &p->timers[i];

        *t = (struct private_timer){
            .group = p, .clock = random_clock(a), .embedded = stress_random(a) % 2, .at_ns = -1
        };
        if (!t->embedded) {
            t->ts = timer_new_full(&p->tlg, t->clock, SCALE_NS, 0, private_cb, t);
        } else if ((t->ts = malloc(sizeof(*t->ts)))) {
            timer_init_full(t->ts, &p->tlg, t->clock, SCALE_NS, 0, private_cb, t);
        }
        if (!t->ts) {
            out_of_memory();
        }
    }
    return p;
}

static void private_mod(struct actor *a, struct private_timer *t)
{
    int64_t now_ns = qemu_clock_get_ns(t->clock);
    uint64_t r = stress_random(a), x = r >> 8;

    t->at_ns = r % 4 ? now_ns + (int64_t)(x % (50 * SCALE_US)) : now_ns - (int64_t)(x % SCALE_US);
    t->at_ns = t->at_ns < 0 ? 0 : t->at_ns;
    t->seq = ++t->group->seq;
    if (!timer_mod_ns(t->ts, t->at_ns)) {
        report_failure(NULL, "lists: timer_mod_ns() on a list that is there returned false");
    }
}

static void private_del(struct private_timer *t)
{
    bool was_armed = timer_del(t->ts);

    if (was_armed != (t->at_ns != -1)) {
        report_failure(NULL, "lists: timer_del() of a private timer returned %d", was_armed);
    }
    t->at_ns = -1;
}

static void private_run(struct private_group *p, QEMUClockType type)
{
    p->running = true;
    p->last_ns = -1;
    timerlist_run_timers(p->tlg.tl[type]);
    p->running = false;
}

static void private_notify(struct actor *a, struct private_group *p, QEMUClockType type)
{
    unsigned before = atomic_load(&p->notified[type]);

    sut_clock_notify(a, type);
    if (atomic_load(&p->notified[type]) == before) {
        report_failure(NULL, "notify: qemu_clock_notify(%s) left a list out",
                       stress_clock_name(type));
    }
}

static void group_use(struct actor *a, struct private_group *p)
{
    for (unsigned n = 4 + (unsigned)(stress_random(a) % 16); n > 0; n--) {
        struct private_timer *t = &p->timers[stress_random(a) % PRIVATE_TIMERS];

        switch (stress_random(a) % 8) {
        case 0:
            private_del(t);
            break;
        case 1:
            private_notify(a, p, t->clock);
            break;
        case 2:
        case 3:
            private_run(p, t->clock);
            break;
        default:
            private_mod(a, t);
            break;
        }
    }
}

static void private_end(struct private_timer *t)
{
    if (timer_pending(t->ts) || timer_mod_ns(t->ts, 0) || timer_del(t->ts)) {
        report_failure(NULL, "lists: a timer of a list that is gone was armed");
    }
    if (!t->embedded) {
        timer_free(t->ts);
        return;
    }
    timer_deinit(t->ts);
    ops_overwrite(t->ts);
    free(t->ts);
}

void lists_life(struct actor *a)
{
    struct private_group *p = group_new(a), **old = &a->groups_old[a->groups_next++ % GROUPS_OLD];

    group_use(a, p);
    timerlistgroup_deinit(&p->tlg);
    for (int i = 0; i < PRIVATE_TIMERS; i++) {
        private_end(&p->timers[i]);
    }
    aio_synchronize_rcu();
    atomic_store(&p->magic, GROUP_GONE);
    sut_after_group(a, p);
    free(*old);
    *old = p;
}

void lists_release(struct actor *a)
{
    for (unsigned i = 0; i < GROUPS_OLD; i++) {
        free(a->groups_old[i]);
        a->groups_old[i] = NULL;
    }
}

/* ---- Contexts -------------------------------------------------------------------------------- */

struct private_context {
    QEMUClockType clock;
    atomic_uint fired, bottom_halves;
};

static void context_timer_cb(void *opaque)
{
    struct private_context *p = opaque;

    clocks_enter(p->clock);
    atomic_fetch_add(&p->fired, 1);
    clocks_leave(p->clock);
}

static void context_bh(void *opaque)
{
    atomic_fetch_add(&((struct private_context *)opaque)->bottom_halves, 1);
}

/* The timer of a context fired once, or is still armed. */
static void check_context(struct private_context *p, QEMUTimer *ts)
{
    unsigned armed = timer_del_sync(ts) == 1, fired = atomic_load(&p->fired);

    if (fired + armed != 1) {
        report_failure(NULL, "contexts: %s: a timer of a new context fired %u times and is%s armed",
                       fired ? "twice" : "lost", fired, armed ? "" : " not");
    }
}

/* A context of the thread's own, which polls it. */
static void context_life(struct actor *a, struct private_context *p)
{
    AioContextOptions opts = { .monitor = stress_monitor_of((unsigned)(stress_random(a) % 3)) };
    AioContext *ctx = aio_context_new(&opts);
    QEMUTimer *ts;

    if (!ctx) {
        report_failure(NULL, "contexts: aio_context_new() failed: %s", strerror(errno));
    }
    ts = aio_timer_new(ctx, p->clock, SCALE_NS, context_timer_cb, p);
    if (!ts || aio_bh_schedule_oneshot(ctx, context_bh, p) < 0) {
        out_of_memory();
    }
    sut_arm_private(a, ts, qemu_clock_get_ns(p->clock) + (int64_t)(stress_random(a) % SCALE_US));
    for (int i = 0; i < 16 && !atomic_load(&p->fired); i++) {
        aio_poll(ctx, false); /* not longer: the clock may be disabled for as long as it likes */
    }
    check_context(p, ts);
    if (atomic_load(&p->bottom_halves) != 1) {
        report_failure(NULL, "contexts: a bottom half of a new context ran %u times",
                       atomic_load(&p->bottom_halves));
    }
    timer_free(ts);
    aio_context_unref(ctx);
}

/* An iothread whose timer fires, or which is destroyed before it could. */
static void iothread_life(struct actor *a, struct private_context *p)
{
    IOThreadOptions opts = {
        .context.monitor = stress_monitor_of((unsigned)(stress_random(a) % 3)),
    };
    IOThread *io = iothread_new("stress", &opts);
    QEMUTimer *ts;

    if (!io) {
        report_failure(NULL, "contexts: iothread_new() failed: %s", strerror(errno));
    }
    ts = aio_timer_new(iothread_get_aio_context(io), p->clock, SCALE_NS, context_timer_cb, p);
    if (!ts) {
        out_of_memory();
    }
    sut_arm_private(a, ts,
                    qemu_clock_get_ns(p->clock) + (int64_t)(stress_random(a) % (100 * SCALE_US)));
    ops_random_delay(a);
    check_context(p, ts);
    timer_mod_ns(ts, 0); /* fires or not: the end may come first */
    iothread_destroy(io);
    if (timer_mod_ns(ts, 0) || timer_pending(ts)) {
        report_failure(NULL, "contexts: a timer of a context that is gone was armed");
    }
    timer_free(ts);
}

void lists_context(struct actor *a)
{
    struct private_context p = { .clock = random_clock(a) };

    if (a->context >= 0) {
        lists_life(a); /* a home thread polls its own */
    } else if (stress_random(a) % 4) {
        context_life(a, &p);
    } else {
        iothread_life(a, &p);
    }
}
