/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: the layer between the operations and the library.
 *
 * Without --plant each function here is the call that its name says.  With it, one of them goes
 * wrong now and then, the way a broken library would; the oracle knows nothing of that and has to
 * find it.  The bugs live here so that the library stays clean of them.
 */
#include "stress_wakes.h"

#include <aioctx/rcu.h>
#include <sched.h>
#include <string.h>

const struct plant_info plants[PLANT_MAX] = {
    [PLANT_EARLY] = { "early", "an armed timer fires before its deadline" },
    [PLANT_TWICE] = { "twice", "a callback is called twice for one arming" },
    [PLANT_LOST] = { "lost", "an armed timer is silently deleted" },
    [PLANT_DEL_SYNC_NO_WAIT] = { "del-sync-no-wait", "timer_del_sync() does not wait" },
    [PLANT_TOUCH_FREED] = { "touch-freed", "the callback of a freed timer is called" },
    [PLANT_MOVED_LATE] = { "moved-late", "timer_mod_anticipate() moves a timer to later" },
    [PLANT_TOUCH_DEINIT] = { "touch-deinit", "a timer is written to after timer_deinit()" },
    [PLANT_MOD_DEAD] = { "mod-dead", "timer_mod() says that it armed a freed timer" },
    [PLANT_RANGE_EARLY] = { "range-early", "a timer fires before the range it was armed for" },
    [PLANT_FORWARD_DRIFT] = { "forward-drift", "timer_forward() counts from now" },
    [PLANT_DISABLE_NO_WAIT] = { "disable-no-wait", "disabling a clock does not wait" },
    [PLANT_STOP_IGNORED] = { "stop-ignored", "VIRTUAL does not stop" },
    [PLANT_WALK_MISSES] = { "walk-misses", "timerlist_walk() leaves a timer out" },
    [PLANT_DEADLINE_LATE] = { "deadline-late", "the deadline of all lists is too late" },
    [PLANT_NOTIFY_SKIPPED] = { "notify-skipped", "qemu_clock_notify() leaves a list out" },
    [PLANT_NOTIFY_FREED] = { "notify-freed", "the callback of a list that is gone is called" },
    [PLANT_CONTEXT_LOST] = { "context-lost", "a new context's timer is silently deleted" },
    [PLANT_WAKE_SKIPPED] = { "wake-skipped", "a notify is left out" },
    [PLANT_WAKE_BEFORE_WORK] = { "wake-before-work", "a notify comes before the work is there" },
    [PLANT_WAKE_AWAKE_LOST] = { "wake-awake-lost",
                                "a notify of a loop that is awake is not counted" },
    [PLANT_WAKE_SENT_STAYS] = { "wake-sent-stays",
                                "a wake-up that is over keeps others from coming" },
    [PLANT_WAKE_BH_LOST] = { "wake-bh-lost", "a bottom half is silently cancelled" },
    [PLANT_WAKE_BH_TWICE] = { "wake-bh-twice", "a bottom half is called twice" },
    [PLANT_WAKE_TIMER_LATE] = { "wake-timer-late",
                                "a loop sleeps past a timer that became the first" },
    [PLANT_WAKE_FD_UNTOLD] = { "wake-fd-untold", "the end of a removal is not told" },
    [PLANT_WAKE_SIGNAL_LOST] = { "wake-signal-lost", "what a signal handler schedules is lost" },
};

static bool planted(struct actor *a, int plant, unsigned one_in)
{
    return S.opt.plant == plant && stress_random(a) % one_in == 0;
}

/* On the home thread: what a list that looks at the wrong deadline would do. */
static void fire_early_bh(void *opaque)
{
    struct timer_gen *g = opaque;

    if (timer_del(g->ts)) {
        ops_timer_cb(g);
    }
    gen_put(ops_self(), g);
}

bool sut_mod(struct actor *a, struct timer_gen *g, int64_t units)
{
    bool armed = timer_mod(g->ts, units);

    if (!armed && S.opt.plant == PLANT_MOD_DEAD) {
        return true;
    }
    if (armed && planted(a, PLANT_LOST, 64)) {
        timer_del(g->ts);
    }
    if (armed && !g->embedded && planted(a, PLANT_EARLY, 16) && gen_get(g) &&
        aio_bh_schedule_oneshot(S.ctx[g->context], fire_early_bh, g) < 0) {
        gen_put(a, g);
    }
    return armed;
}

bool sut_anticipate(struct actor *a, struct timer_gen *g, int64_t units)
{
    if (planted(a, PLANT_MOVED_LATE, 8)) {
        int64_t before_ns = timer_expire_time_ns(g->ts);

        return timer_mod(g->ts, units) && before_ns == -1;
    }
    return timer_mod_anticipate(g->ts, units);
}

bool sut_range(struct actor *a, struct timer_gen *g, int64_t soonest_ns, int64_t latest_ns)
{
    if (planted(a, PLANT_RANGE_EARLY, 8)) {
        soonest_ns = latest_ns - 2 * SCALE_MS;
    }
    return timer_mod_range_ns(g->ts, soonest_ns, latest_ns);
}

uint64_t sut_forward(struct actor *a, struct timer_gen *g, int64_t now_ns, int64_t interval_ns)
{
    if (planted(a, PLANT_FORWARD_DRIFT, 8)) {
        timer_mod_ns(g->ts, now_ns + interval_ns);
        return 0;
    }
    return timer_forward(g->ts, now_ns, interval_ns);
}

bool sut_del(struct timer_gen *g)
{
    return timer_del(g->ts);
}

int sut_del_sync(struct timer_gen *g)
{
    return S.opt.plant == PLANT_DEL_SYNC_NO_WAIT ? timer_del(g->ts) : timer_del_sync(g->ts);
}

static void fire_freed_bh(void *opaque)
{
    ops_log_firing(opaque);
}

void sut_free(struct timer_gen *g)
{
    timer_free(g->ts);
    if (S.opt.plant == PLANT_TOUCH_FREED && g->number % 4 == 0) {
        aio_bh_schedule_oneshot(S.ctx[g->context], fire_freed_bh, g);
    }
}

int sut_deinit(struct timer_gen *g, bool sync)
{
    if (sync) {
        return timer_deinit_sync(g->ts);
    }
    timer_deinit(g->ts);
    return 0;
}

void sut_after_deinit(struct actor *a, QEMUTimer *memory)
{
    if (planted(a, PLANT_TOUCH_DEINIT, 64)) {
        memset(&memory->expire_time, 0xff, sizeof(memory->expire_time));
    }
}

void sut_after_callback(struct actor *a, struct timer_gen *g)
{
    if (planted(a, PLANT_TWICE, 64)) {
        ops_log_firing(g);
    }
}

/* ---- Clocks and lists ------------------------------------------------------------------------ */

/* The one who disables and waits for --plant disable-no-wait.  Under the clock's owner lock. */
static struct disabler {
    bool started;
    atomic_bool done;
} disabler[QEMU_CLOCK_MAX];

static void *disable_and_wait(void *opaque)
{
    struct disabler *d = opaque;

    qemu_clock_enable((QEMUClockType)(d - disabler), false);
    atomic_store(&d->done, true);
    return NULL;
}

int sut_clock_disable(struct actor *a, QEMUClockType type)
{
    struct disabler *d = &disabler[type];

    if (a->context < 0 && S.opt.plant == PLANT_DISABLE_NO_WAIT) {
        pthread_attr_t attr;
        pthread_t thread;

        atomic_store(&d->done, false);
        pthread_attr_init(&attr); /* the violation may be the end of the program */
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        d->started = !pthread_create(&thread, &attr, disable_and_wait, d);
        pthread_attr_destroy(&attr);
        while (d->started && sut_deadline_all(a, type) != -1) {
        }
        return 0;
    }
    return qemu_clock_enable(type, false);
}

void sut_clock_enable(QEMUClockType type)
{
    while (disabler[type].started && !atomic_load(&disabler[type].done)) {
        sched_yield();
    }
    disabler[type].started = false;
    if (qemu_clock_enable(type, true) != 0) {
        report_failure(NULL, "enable: qemu_clock_enable(true) failed");
    }
}

void sut_clock_stop(struct actor *a)
{
    if (!planted(a, PLANT_STOP_IGNORED, 4)) {
        cpu_disable_ticks();
    }
}

struct walk_filter {
    QEMUTimerWalkFunc *func;
    void *opaque;
    unsigned left; /* until one is left out */
};

static bool walk_but_one(const QEMUTimerInfo *info, void *opaque)
{
    struct walk_filter *f = opaque;

    return f->left-- == 0 || f->func(info, f->opaque);
}

unsigned sut_walk(struct actor *a, QEMUTimerList *tl, QEMUTimerWalkFunc *func, void *opaque)
{
    struct walk_filter f = { func, opaque, (unsigned)(stress_random(a) % 8) };

    if (S.opt.plant == PLANT_WALK_MISSES) {
        return timerlist_walk(tl, walk_but_one, &f);
    }
    return timerlist_walk(tl, func, opaque);
}

int64_t sut_deadline_all(struct actor *a, QEMUClockType type)
{
    int64_t ns = qemu_clock_deadline_ns_all(type, QEMU_TIMER_ATTR_ALL);

    return ns >= 0 && planted(a, PLANT_DEADLINE_LATE, 16) ? ns + 4 * SCALE_MS : ns;
}

void sut_clock_notify(struct actor *a, QEMUClockType type)
{
    if (!planted(a, PLANT_NOTIFY_SKIPPED, 8)) {
        qemu_clock_notify(type);
    }
}

void sut_after_group(struct actor *a, struct private_group *p)
{
    if (planted(a, PLANT_NOTIFY_FREED, 8)) {
        lists_notify_cb(p, QEMU_CLOCK_REALTIME);
    }
}

void sut_arm_private(struct actor *a, QEMUTimer *ts, int64_t ns)
{
    timer_mod_ns(ts, ns);
    if (planted(a, PLANT_CONTEXT_LOST, 4)) {
        timer_del(ts);
    }
}

/* ---- Wake-ups -------------------------------------------------------------------------------- */

static void yield_some(struct actor *a)
{
    for (unsigned i = (unsigned)(stress_random(a) % 8); i > 0; i--) {
        sched_yield();
    }
}

static void publish(struct wake_channel *ch, uint64_t n)
{
    atomic_store_explicit(&ch->given, n, memory_order_relaxed);
}

/* Whether the notify, whose work is there, would be made by a library with the planted bug. */
static bool would_notify(struct actor *a, struct wake_channel *ch)
{
    switch (S.opt.plant) {
    case PLANT_WAKE_SKIPPED:
        return !planted(a, PLANT_WAKE_SKIPPED, 16);
    case PLANT_WAKE_AWAKE_LOST:
        return atomic_load(&ch->to->asleep);
    case PLANT_WAKE_SENT_STAYS:
        return !atomic_exchange(&ch->to->sent, true);
    default:
        return true;
    }
}

void sut_wake_notify(struct actor *a, struct wake_channel *ch, uint64_t n)
{
    if (S.opt.plant == PLANT_WAKE_BEFORE_WORK) {
        aio_notify(ch->to->ctx);
        yield_some(a);
        publish(ch, n);
        return;
    }
    publish(ch, n);
    if (would_notify(a, ch)) {
        aio_notify(ch->to->ctx);
    }
}

void sut_wake_before_poll(struct wake_loop *l)
{
    if (S.opt.plant == PLANT_WAKE_AWAKE_LOST) {
        yield_some(&l->actor); /* the wider the gap, the sooner it is found */
        atomic_store(&l->asleep, true);
    }
}

void sut_wake_after_poll(struct wake_loop *l)
{
    if (S.opt.plant == PLANT_WAKE_AWAKE_LOST) {
        atomic_store(&l->asleep, false);
    } else if (S.opt.plant == PLANT_WAKE_SENT_STAYS && stress_random(&l->actor) % 64) {
        atomic_store(&l->sent, false);
    }
}

void sut_wake_bh(struct actor *a, struct wake_channel *ch)
{
    if (ch->by_signal && planted(a, PLANT_WAKE_SIGNAL_LOST, 16)) {
        return;
    }
    qemu_bh_schedule(ch->bh);
    if (planted(a, PLANT_WAKE_BH_LOST, 16)) {
        qemu_bh_cancel(ch->bh);
    }
}

int sut_wake_oneshot(struct actor *a, struct wake_channel *ch, QEMUBHFunc *cb)
{
    int ret = aio_bh_schedule_oneshot(ch->to->ctx, cb, ch);

    return ret == 0 && planted(a, PLANT_WAKE_BH_TWICE, 16)
               ? aio_bh_schedule_oneshot(ch->to->ctx, cb, ch)
               : ret;
}

void sut_wake_timer(struct actor *a, struct wake_channel *ch, int64_t ns)
{
    timer_mod_ns(ch->timer,
                 planted(a, PLANT_WAKE_TIMER_LATE, 16) ? ns + 3600 * INT64_C(1000000000) : ns);
}

int sut_wake_remove(struct actor *a, struct wake_channel *ch, QEMUBHFunc *done)
{
    int fd = event_notifier_get_fd(&ch->event);

    if (planted(a, PLANT_WAKE_FD_UNTOLD, 16)) {
        return aio_set_fd_handler(ch->to->ctx, fd, NULL, NULL, NULL, NULL, NULL);
    }
    return aio_remove_fd_handler_async(ch->to->ctx, fd, done, ch);
}
