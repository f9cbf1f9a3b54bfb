/* SPDX-License-Identifier: MIT */
/*
 * Cases of the short way, on which the thread that runs a list arms and cancels behind the list's
 * head, beside other threads that take the bias of its lock away.
 */
#include "tests/interleave_cases_int.h"

#include "rcu/atomic_int.h"
#include "timers/list_int.h"

#include <aioctx/timers.h>
#include <string.h>

enum { IDLE, HEAD, LANE, LANE_LAST, LEAF, TIMERS };

static struct {
    QEMUTimerListGroup tlg;
    QEMUTimerList *tl;
    QEMUTimer *ts[TIMERS];
    int fired;
} w;

static void notify(void *opaque, QEMUClockType type)
{
}

static void on_timer(void *opaque)
{
    w.fired++;
}

/* One timer of every kind of place.  Thread 0 runs the list, has its lock's bias, and handled a
 * timer of it last. */
static void set_up(void)
{
    static const int64_t deadlines[TIMERS] = { -1, 500, 1500, 1600, INT64_C(100) << 20 };

    memset(&w, 0, sizeof(w));
    w.tl = timerlist_new(QEMU_CLOCK_REALTIME, notify, NULL);
    w.tlg.tl[QEMU_CLOCK_REALTIME] = w.tl;
    for (int i = 0; i < TIMERS; i++) {
        w.ts[i] = timer_new_full(&w.tlg, QEMU_CLOCK_REALTIME, 1, 0, on_timer, NULL);
        if (deadlines[i] >= 0) {
            timer_mod_ns(w.ts[i], deadlines[i]);
        }
    }
    il_assert(w.ts[LANE]->place >= PLACE_LIST && w.ts[LANE_LAST]->place >= PLACE_LIST,
              "there is no lane");
    il_assert(w.ts[HEAD]->place < PLACE_LIST && w.ts[LEAF]->place < PLACE_LIST,
              "the heap is empty");
    il_name(&w.tl->lock.mutex, "list's mutex");
    il_name(&w.tl->lock.in, "list's in");
    il_name(&w.tl->lock.biased, "list's biased");
    il_name(&w.tl->cls[CLASS_NORMAL].head, "head");
    w.tl->lock.owner = il_thread_number(0);
    w.tl->lock.biased = true;
    if (il_planted) {
        il_plant(IL_NO_BARRIER, NULL);
    }
}

/* The queue is in order, the head word is the soonest deadline, and all that is armed fires once.
 */
static void check(void)
{
    struct timer_class *cls = &w.tl->cls[CLASS_NORMAL];
    int64_t head = NO_DEADLINE;
    int armed = 0;

    for (int i = 0; i < TIMERS; i++) {
        int64_t at = timer_expire_time_ns(w.ts[i]);

        armed += at >= 0;
        head = at >= 0 && at < head ? at : head;
    }
    il_assert(timer_queue_verify(&cls->queue) == (unsigned long)armed, "the queue has others");
    il_assert(cls->head == head, "the head word says %lld", (long long)cls->head);
    il_now_ns = INT64_C(1) << 40;
    timerlist_run_timers(w.tl);
    il_assert(w.fired == armed, "%d fired of %d", w.fired, armed);
}

static void run_append(int thread)
{
    if (thread == 0) {
        this_thread.hint = w.tl;
        timer_mod_ns(w.ts[IDLE], 3000);
    } else {
        timer_mod_ns(w.ts[IDLE], 4000);
    }
}

static void run_move(int thread)
{
    if (thread == 0) {
        this_thread.hint = w.tl;
        timer_mod_ns(w.ts[LEAF], INT64_C(200) << 20);
    } else {
        timer_del(w.ts[LEAF]);
    }
}

static void run_cancel(int thread)
{
    if (thread == 0) {
        this_thread.hint = w.tl;
        timer_del(w.ts[LANE_LAST]);
    } else {
        timer_del_sync(w.ts[LANE]);
        timer_mod_range_ns(w.ts[LANE_LAST], 50, 5000);
    }
}

#define SHORT_CASE(which, its_name) \
    const struct il_case il_short_##which = { \
        .name = its_name, \
        .threads = 2, \
        .flags = IL_BARRIER, \
        .setup = set_up, \
        .run = run_##which, \
        .check = check, \
        .plants = { "no membarrier" }, \
    }

SHORT_CASE(append, "ShortAppend");
SHORT_CASE(move, "ShortMove");
SHORT_CASE(cancel, "ShortCancel");
