/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: disabling clocks, stopping VIRTUAL, and what must not happen meanwhile.
 *
 * Every callback is counted when it begins and when it ends.  Once qemu_clock_enable(type, false)
 * has returned 0, none may be inside and none may begin.  While VIRTUAL is stopped its time stands
 * still and nothing is due; what a pass had taken on before the stop may still fire, so a firing is
 * called wrong only after every home thread was seen outside its timers.
 *
 * A callback on a home thread may disable as well: it is told -EDEADLK, and nothing was promised.
 */
#include "stress.h"

#include <errno.h>
#include <inttypes.h>

const char *stress_clock_name(QEMUClockType type)
{
    static const char *const names[] = { "REALTIME", "VIRTUAL", "HOST", "VIRTUAL_RT" };

    return names[type];
}

void clocks_init(void)
{
    for (unsigned i = 0; i < QEMU_CLOCK_MAX; i++) {
        pthread_mutex_init(&S.watch[i].owner, NULL);
    }
}

void clocks_enter(QEMUClockType type)
{
    atomic_fetch_add(&S.watch[type].inside, 1);
    atomic_fetch_add(&S.watch[type].begun, 1);
}

void clocks_leave(QEMUClockType type)
{
    atomic_fetch_sub(&S.watch[type].inside, 1);
}

/* Becomes the one who sets the clock.  Returns false when another one is. */
static bool own(struct clock_watch *w)
{
    if (pthread_mutex_trylock(&w->owner)) {
        return false;
    }
    atomic_fetch_add(&w->changes, 1);
    return true;
}

static void disown(struct clock_watch *w)
{
    atomic_fetch_add(&w->changes, 1);
    pthread_mutex_unlock(&w->owner);
}

static void check_no_deadline(QEMUClockType type, const char *state)
{
    int64_t ns = qemu_clock_deadline_ns_all(type, QEMU_TIMER_ATTR_ALL);

    if (ns != -1) {
        report_failure(NULL, "%s: clock %s has a deadline in %" PRId64 " ns", state,
                       stress_clock_name(type), ns);
    }
}

/* ---- Disabling ------------------------------------------------------------------------------- */

static void check_disabled(QEMUClockType type, uint64_t begun)
{
    struct clock_watch *w = &S.watch[type];
    unsigned inside = atomic_load(&w->inside);

    if (inside || atomic_load(&w->begun) != begun) {
        report_failure(NULL,
                       "disabled: %u callbacks of clock %s run, and %" PRIu64 " began, after "
                       "qemu_clock_enable(false) had returned",
                       inside, stress_clock_name(type), atomic_load(&w->begun) - begun);
    }
    check_no_deadline(type, "disabled");
}

void clocks_disable(struct actor *a)
{
    QEMUClockType type = stress_random(a) % 2 ? QEMU_CLOCK_VIRTUAL : QEMU_CLOCK_REALTIME;
    struct clock_watch *w = &S.watch[type];
    int ret;

    if (!own(w)) {
        return;
    }
    ret = sut_clock_disable(a, type);
    if (ret != (a->context < 0 ? 0 : -EDEADLK)) {
        report_failure(NULL, "disabled: qemu_clock_enable(false) returned %d on thread %s", ret,
                       a->name);
    }
    if (ret == 0) {
        uint64_t begun = atomic_load(&w->begun);

        check_disabled(type, begun);
        ops_random_delay(a);
        check_disabled(type, begun);
    }
    sut_clock_enable(type);
    disown(w);
}

/* ---- Stopping VIRTUAL ------------------------------------------------------------------------ */

static void check_stopped(int64_t at_ns, int64_t ticks)
{
    int64_t now_ns = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL), clock_ns = cpu_get_clock();

    if (now_ns != at_ns || clock_ns != at_ns || cpu_get_ticks() != ticks) {
        report_failure(NULL,
                       "stopped: VIRTUAL moved by %" PRId64 " ns, cpu_get_clock() by %" PRId64
                       " and cpu_get_ticks() by %" PRId64 " after cpu_disable_ticks()",
                       now_ns - at_ns, clock_ns - at_ns, cpu_get_ticks() - ticks);
    }
    check_no_deadline(QEMU_CLOCK_VIRTUAL, "stopped");
}

static void check_continued(int64_t at_ns, int64_t started_ns)
{
    int64_t now_ns = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
    int64_t most_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - started_ns;

    if (now_ns < at_ns || now_ns - at_ns > most_ns) {
        report_failure(NULL,
                       "stopped: VIRTUAL went on %" PRId64 " ns from where it stopped, within "
                       "%" PRId64 " ns",
                       now_ns - at_ns, most_ns);
    }
}

static void watch_stopped(struct actor *a, int64_t at_ns, int64_t ticks)
{
    struct clock_watch *w = &S.watch[QEMU_CLOCK_VIRTUAL];
    bool quiet = a->context < 0 && stress_random(a) % 4 == 0;
    uint64_t begun;

    if (quiet) {
        stress_visit_homes(stress_do_nothing); /* passes that began before have ended */
    }
    begun = atomic_load(&w->begun);
    check_stopped(at_ns, ticks);
    ops_random_delay(a);
    check_stopped(at_ns, ticks);
    if (quiet && atomic_load(&w->begun) != begun) {
        report_failure(NULL, "stopped: %" PRIu64 " callbacks of VIRTUAL began while it stood still",
                       atomic_load(&w->begun) - begun);
    }
}

void clocks_stop(struct actor *a)
{
    struct clock_watch *w = &S.watch[QEMU_CLOCK_VIRTUAL];
    int64_t at_ns, started_ns;

    if (!own(w)) {
        return;
    }
    sut_clock_stop(a);
    at_ns = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
    watch_stopped(a, at_ns, cpu_get_ticks());
    started_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    cpu_enable_ticks();
    check_continued(at_ns, started_ns);
    disown(w);
}
