/* SPDX-License-Identifier: MIT */
/* Groups of timer lists, one for each clock; and the main loop's, which is always there. */
#include "rcu/atomic_int.h"
#include "rcu/util_int.h"
#include "timers/clock_int.h"
#include "timers/list_int.h"
#include "timers/timers_ext_int.h"

#include <aioctx/timers.h>
#include <errno.h>

QEMUTimerListGroup main_loop_tlg;

/* ---- Groups ---------------------------------------------------------------------------------- */

int timerlistgroup_init(QEMUTimerListGroup *tlg, QEMUTimerListNotifyCB *cb, void *opaque)
{
    QEMUTimerListGroup made = { 0 };

    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        made.tl[type] = timerlist_new(type, cb, opaque);
        if (!made.tl[type]) {
            timerlistgroup_deinit(&made);
            return -ENOMEM;
        }
    }
    *tlg = made;
    return 0;
}

void timerlistgroup_deinit(QEMUTimerListGroup *tlg)
{
    for (int type = QEMU_CLOCK_MAX - 1; type >= 0; type--) {
        timerlist_free(tlg->tl[type]);
        tlg->tl[type] = NULL;
    }
}

void timerlistgroup_set_observer(QEMUTimerListGroup *tlg, struct timer_observer *observer)
{
    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        st_release(&tlg->tl[type]->observer, observer);
    }
}

bool timerlistgroup_run_timers(QEMUTimerListGroup *tlg)
{
    bool ran = false;

    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        QEMUTimerList *tl = tlg->tl[type];

        /* Most lists are empty: their pass would end there. */
        if (timerlist_head_ns(tl) != NO_DEADLINE || unlikely(!list_lock_is_owner(&tl->lock))) {
            ran |= timerlist_run_timers(tl);
        }
    }
    return ran;
}

int64_t timerlistgroup_deadline_ns(QEMUTimerListGroup *tlg)
{
    int64_t soonest = -1;

    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        int64_t ns = timerlist_deadline_ns(tlg->tl[type]);

        if (ns == 0 || qemu_clock_use_for_deadline(type)) { /* due: icount.c */
            soonest = qemu_soonest_timeout(soonest, ns);
        }
    }
    return soonest;
}

/* ---- The main loop's group ------------------------------------------------------------------- */

static QEMUTimerListNotifyCB *main_notify_cb; /* atomic: of init_clocks() */
static QEMUTimerListNotifyCB *main_loop_cb;   /* atomic: of aio's main loop */
static pthread_once_t main_once = PTHREAD_ONCE_INIT;

static void notify_main_loop(void *opaque, QEMUClockType type)
{
    QEMUTimerListNotifyCB *cb = ld_seq(&main_loop_cb); /* after the head's store: list_int.h */

    if (cb) {
        cb(opaque, type);
    }
    cb = ld_acquire(&main_notify_cb);
    if (cb) {
        cb(opaque, type);
    }
}

static void init_main_loop_tlg(void)
{
    if (timerlistgroup_init(&main_loop_tlg, notify_main_loop, NULL) < 0) {
        die_misuse("init_clocks", "out of memory");
    }
}

void init_clocks(QEMUTimerListNotifyCB *notify_cb)
{
    pthread_once(&main_once, init_main_loop_tlg);
    if (notify_cb) {
        st_release(&main_notify_cb, notify_cb);
    }
}

void main_loop_tlg_set_notify(QEMUTimerListNotifyCB *cb)
{
    init_clocks(NULL);
    st_seq(&main_loop_cb, cb);
}

QEMUTimerList *qemu_clock_get_main_loop_timerlist(QEMUClockType type)
{
    init_clocks(NULL);
    clock_of(type);
    return main_loop_tlg.tl[type];
}

bool qemu_clock_has_timers(QEMUClockType type)
{
    return timerlist_has_timers(qemu_clock_get_main_loop_timerlist(type));
}

bool qemu_clock_expired(QEMUClockType type)
{
    return timerlist_expired(qemu_clock_get_main_loop_timerlist(type));
}

bool qemu_clock_run_timers(QEMUClockType type)
{
    return timerlist_run_timers(qemu_clock_get_main_loop_timerlist(type));
}

bool qemu_clock_run_all_timers(void)
{
    init_clocks(NULL);
    return timerlistgroup_run_timers(&main_loop_tlg);
}
