/* SPDX-License-Identifier: MIT */
/* Cases of the loop: the wake word, and bottom halves. */
#include "tests/interleave_cases_int.h"

#include "aio/aio_int.h"
#include "aio/wake_int.h"
#include "rcu/atomic_int.h"

#include <errno.h>
#include <string.h>

static struct {
    AioContext *ctx;
    unsigned work; /* atomic: pieces published */
    unsigned seen; /* the sleeper's */
    QEMUBH *a, *b;
    QEMUTimer *timer;
    int data; /* atomic */
    int seen_data;
    int ran;
    int ret;
} w;

/* Nothing is measured here. */
void observe_call_begin(AioContext *ctx, struct observe_call *call, enum observe_kind kind,
                        const void *func, int fd, const char *name)
{
}

void observe_call_end(AioContext *ctx, struct observe_call *call)
{
}

static void set_up_context(void)
{
    memset(&w, 0, sizeof(w));
    w.ctx = il_calloc(1, sizeof(*w.ctx));
    w.ctx->slot = il_calloc(1, sizeof(*w.ctx->slot));
    w.ctx->stats = &w.ctx->slot->stats;
    w.ctx->wake_fd = il_eventfd();
    il_name(&w.ctx->wake, "wake");
    il_name(&w.ctx->bh_stack, "bh_stack");
    il_name(&w.work, "work");
    il_name(&w.data, "data");
}

/* ---- The wake word --------------------------------------------------------------------------- */

static bool fd_is_set(void *unused)
{
    return il_fd_is_set(w.ctx->wake_fd);
}

/* The monitor's part, with poll and read. */
static void wait_in_kernel(void)
{
    uint64_t count;

    il_wait(il_fd_object(w.ctx->wake_fd), fd_is_set, NULL);
    il_read(w.ctx->wake_fd, &count, sizeof(count));
}

static void sleep_once(void)
{
    if ((wake_begin_sleep(w.ctx) || il_planted == 1) && ld_seq(&w.work) == w.seen) {
        wait_in_kernel();
    }
    wake_end_sleep(w.ctx);
    w.seen = ld_seq(&w.work);
}

static void set_up_wake(void)
{
    set_up_context();
    if (il_planted == 2) {
        il_plant(IL_SPLIT_UPDATE, &w.ctx->wake);
    }
}

static void run_wake(int thread)
{
    if (thread == 0) {
        while (w.seen < 2) {
            sleep_once();
        }
        return;
    }
    for (int i = 0; i < 2; i++) {
        fetch_add_seq(&w.work, 1);
        aio_notify(w.ctx);
    }
}

static void check_wake(void)
{
    il_assert(wake_count_notifies(w.ctx) == 2, "%d notifies", (int)wake_count_notifies(w.ctx));
}

const struct il_case il_wake = {
    .name = "NotifyTwiceBesideSleeps",
    .threads = 2,
    .flags = 0,
    .setup = set_up_wake,
    .run = run_wake,
    .check = check_wake,
    .plants = { "a sleep that could not be announced", "a notify is not one step" },
};

/* Two threads notify, for one piece of work each. */
static void run_wake_two(int thread)
{
    if (thread == 0) {
        while (w.seen < 2) {
            sleep_once();
        }
        return;
    }
    fetch_add_seq(&w.work, 1);
    aio_notify(w.ctx);
}

const struct il_case il_wake_two = {
    .name = "TwoNotifiersBesideSleeps",
    .threads = 3,
    .flags = 0,
    .setup = set_up_wake,
    .run = run_wake_two,
    .check = check_wake,
    .plants = { "a sleep that could not be announced", "a notify is not one step" },
};

/* Who polls until a flag is set looks at it before the sleep, and not again in it. */
static void run_wake_flag(int thread)
{
    if (thread == 1) {
        st_seq(&w.work, 1);
        aio_notify(w.ctx);
        return;
    }
    while (ld_seq(&w.work) == 0) {
        if (wake_begin_sleep(w.ctx) || il_planted == 1) {
            wait_in_kernel();
        }
        wake_end_sleep(w.ctx);
    }
}

const struct il_case il_wake_flag = {
    .name = "NotifyBesideLookBeforeSleep",
    .threads = 2,
    .flags = 0,
    .setup = set_up_wake,
    .run = run_wake_flag,
    .plants = { "a sleep that could not be announced", "a notify is not one step" },
};

/* ---- Both protocols at once: a head word and the wake word --------------------------------- */

static void notify_context(void *opaque, QEMUClockType type)
{
    if (!il_planted) {
        aio_notify(w.ctx);
    }
}

static void on_timer(void *opaque)
{
}

static void set_up_arm(void)
{
    QEMUTimerListGroup *tlg;

    set_up_context();
    tlg = &w.ctx->tlg;
    tlg->tl[QEMU_CLOCK_REALTIME] = timerlist_new(QEMU_CLOCK_REALTIME, notify_context, NULL);
    w.timer = timer_new_full(tlg, QEMU_CLOCK_REALTIME, 1, 0, on_timer, NULL);
}

static int64_t deadline(void)
{
    return timerlist_deadline_ns(w.ctx->tlg.tl[QEMU_CLOCK_REALTIME]);
}

/* Home waits without a limit until a timer is armed. */
static void run_arm(int thread)
{
    if (thread == 1) {
        timer_mod_ns(w.timer, 2000);
        return;
    }
    while (deadline() < 0) {
        if (wake_begin_sleep(w.ctx) && deadline() < 0) {
            wait_in_kernel();
        }
        wake_end_sleep(w.ctx);
    }
}

const struct il_case il_arm_sleep = {
    .name = "ArmBesideSleep",
    .threads = 2,
    .flags = 0,
    .setup = set_up_arm,
    .run = run_arm,
    .plants = { "no notify" },
};

/* ---- Bottom halves --------------------------------------------------------------------------- */

static void on_bh(void *opaque)
{
    w.ran++;
    w.seen_data = ld_relaxed(&w.data);
}

static void set_up_bh(void)
{
    set_up_context();
    w.a = aio_bh_new(w.ctx, on_bh, NULL);
    w.b = aio_bh_new(w.ctx, on_bh, NULL);
    if (il_planted) {
        il_plant(IL_SPLIT_UPDATE, &w.ctx->bh_stack);
    }
}

/* One that is scheduled again, and another beside it. */
static void run_bh(int thread)
{
    if (thread == 0) {
        bh_poll(w.ctx);
        bh_poll(w.ctx);
        return;
    }
    qemu_bh_schedule(w.a);
    qemu_bh_schedule(w.b);
    st_relaxed(&w.data, 1);
    qemu_bh_schedule(w.a);
}

static void check_bh(void)
{
    bh_poll(w.ctx);
    il_assert(w.seen_data == 1, "nothing ran after the last scheduling");
    il_assert(w.ran == 2 || w.ran == 3, "%d runs", w.ran);
}

const struct il_case il_bh = {
    .name = "BhScheduleBesidePoll",
    .threads = 2,
    .flags = 0,
    .setup = set_up_bh,
    .run = run_bh,
    .check = check_bh,
    .plants = { "a push is not one step" },
};

static void run_bh_delete(int thread)
{
    if (thread == 0) {
        bh_poll(w.ctx);
        if (il_planted) {
            bh_timeout(w.ctx);
        }
        return;
    }
    qemu_bh_schedule(w.a);
    qemu_bh_cancel(w.a);
    qemu_bh_schedule(w.b);
    qemu_bh_delete(w.b);
}

static void check_bh_delete(void)
{
    int before = w.ran;

    bh_poll(w.ctx);
    il_assert(before <= 2 && w.ran == before, "a cancelled or deleted bottom half ran");
    il_assert(il_is_freed(w.b) && !il_is_freed(w.a), "a deleted bottom half is still there");
}

const struct il_case il_bh_delete = {
    .name = "BhCancelAndDeleteBesidePoll",
    .threads = 2,
    .flags = 0,
    .setup = set_up_bh,
    .run = run_bh_delete,
    .check = check_bh_delete,
    .plants = { "a push is not one step" },
};

static void run_bh_close(int thread)
{
    if (thread == 1) {
        w.ret = aio_bh_schedule_oneshot(w.ctx, on_bh, NULL);
        return;
    }
    bh_poll(w.ctx);
    if (!bh_try_close(w.ctx)) {
        bh_run_last(w.ctx);
    }
}

static void check_bh_close(void)
{
    il_assert(w.ret == 0 || w.ret == -ESHUTDOWN, "it returned %d", w.ret);
    il_assert(w.ran == (w.ret == 0), "it returned %d, and ran %d times", w.ret, w.ran);
}

const struct il_case il_bh_close = {
    .name = "BhScheduleBesideClose",
    .threads = 2,
    .flags = 0,
    .setup = set_up_bh,
    .run = run_bh_close,
    .check = check_bh_close,
    .plants = { "a push is not one step" },
};
