/* SPDX-License-Identifier: MIT */
/*
 * AioContext: making and closing one, and the iteration of its loop.
 *
 *   announce sleep -> compute timeout -> [monitor: submit and wait] -> wake -> fd requests
 *     -> bottom halves -> completions (fds, operations), at most DISPATCH_BATCH -> timers
 *
 * Everything that waits to be dispatched lies in queues of the context from which it is taken out
 * before its callback is called, so that a nested iteration goes on where the outer one stopped.
 */
#include "aio/aio_int.h"
#include "aio/embed_int.h"
#include "aio/home_int.h"
#include "aio/monitor_int.h"
#include "rcu/rcu_int.h"
#include "timers/timers_ext_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- Making a context ------------------------------------------------------------------------ */

static int make_wake_fd(void)
{
    unsigned long since;
    int fd, tries = 0;

    do {
        since = rcu_reclaimed();
        fd = eventfd(0, EFD_CLOEXEC);
    } while (fd < 0 && monitor_try_again(-errno, &tries, since));
    return fd;
}

/* The main loop's lists outlive its context. */
static int init_timers(AioContext *ctx)
{
    if (!ctx->is_main) {
        return timerlistgroup_init(&ctx->tlg, context_notify_from_timer, ctx);
    }
    init_clocks(NULL);
    ctx->tlg = main_loop_tlg;
    return 0;
}

static void deinit_timers(AioContext *ctx)
{
    if (!ctx->is_main) {
        timerlistgroup_deinit(&ctx->tlg);
    }
}

static int init_context(AioContext *ctx, const AioContextOptions *opts)
{
    int ret;

    if (opts->precise_ns < 0) {
        fprintf(stderr, "aioctx: AioContextOptions.precise_ns is %lld; it is 0 (off) or more\n",
                (long long)opts->precise_ns);
        return -EINVAL;
    }
    ctx->precise_ns = opts->precise_ns;
    ret = poll_init(ctx, opts);
    if (ret < 0) {
        return ret;
    }
    ret = stats_file_check_environment();
    if (ret < 0) {
        return ret;
    }
    ctx->slot = stats_slot_new();
    if (!ctx->slot) {
        return -ENOMEM;
    }
    ctx->stats = &ctx->slot->stats;
    ctx->wake_fd = make_wake_fd();
    if (ctx->wake_fd < 0) {
        return -errno;
    }
    ret = init_timers(ctx);
    if (ret < 0) {
        goto close_fd;
    }
    ret = observe_init(ctx, opts);
    if (ret < 0) {
        goto free_timers;
    }
    ret = monitor_init(ctx, opts);
    if (ret < 0) {
        goto stop_observing;
    }
    return 0;

stop_observing:
    observe_close(ctx);
free_timers:
    deinit_timers(ctx);
close_fd:
    close(ctx->wake_fd);
    ctx->wake_fd = -1;
    return ret;
}

static void free_context(AioRcuHead *head)
{
    AioContext *ctx = container_of(head, AioContext, rcu);

    if (ctx->wake_fd >= 0) {
        close(ctx->wake_fd);
    }
    stats_slot_free(ctx->slot);
    pthread_mutex_destroy(&ctx->lock);
    free(ctx->fell_back);
    free(ctx);
}

AioContext *context_new(const AioContextOptions *opts, bool is_main)
{
    AioContext *ctx;
    int ret;

    ctx = aligned_alloc(64, (sizeof(*ctx) + 63) / 64 * 64);
    if (!ctx) {
        errno = ENOMEM;
        return NULL;
    }
    memset(ctx, 0, sizeof(*ctx));
    ctx->refs = 1;
    ctx->wake_fd = -1;
    ctx->is_main = is_main;
    ctx->done_tail = &ctx->done;
    pthread_mutex_init(&ctx->lock, NULL);
    ret = init_context(ctx, opts ? opts : &(AioContextOptions){ 0 });
    if (ret < 0) {
        /* A walker of a clock's lists may be on one of ours and notify us: after a grace period. */
        aio_call_rcu(&ctx->rcu, free_context);
        errno = -ret;
        return NULL;
    }
    observe_publish(ctx);
    return ctx;
}

AioContext *aio_context_new(const AioContextOptions *opts)
{
    rcu_check_fork("aio_context_new");
    return context_new(opts, false);
}

void aio_context_ref(AioContext *ctx)
{
    fetch_add_seq(&ctx->refs, 1);
}

QEMUTimerListGroup *aio_context_get_timer_list_group(AioContext *ctx)
{
    return ctx->is_main ? &main_loop_tlg : &ctx->tlg;
}

bool aio_context_has_ring(AioContext *ctx)
{
    return ctx->mon->add_sqe != NULL;
}

static CqeHandler *pop_done(AioContext *ctx)
{
    CqeHandler *handler = ctx->done;

    if (handler) {
        ctx->done = handler->next;
        if (!ctx->done) {
            ctx->done_tail = &ctx->done;
        }
    }
    return handler;
}

/* A handler's completion names its own callbacks, in handlers.c. */
static void dispatch_one(AioContext *ctx, CqeHandler *handler)
{
    struct observe_call call;

    call.on = false;
    if (op_is_users(handler)) {
        ctx->inflight_ops--;
        ctx->inflight_by_op[(handler->reserved - 1) & 63]--;
        probe3(op_complete, ctx, handler, handler->res);
        observe_begin(ctx, is_observed(ctx), &call, OBSERVE_COMPLETION, func_address(handler->cb),
                      -1);
    }
    this_thread.callbacks++;
    handler->cb(handler);
    this_thread.callbacks--;
    observe_end(ctx, &call);
}

/* ---- Closing a context ----------------------------------------------------------------------- */

static void call_close_hooks(AioContext *ctx)
{
    AioCloseHook *hook;

    pthread_mutex_lock(&ctx->lock);
    while ((hook = ctx->close_hooks)) {
        ctx->close_hooks = hook->next;
        if (hook->next) {
            hook->next->pprev = &ctx->close_hooks;
        }
        hook->pprev = NULL;
        pthread_mutex_unlock(&ctx->lock);
        hook->func(hook, ctx);
        pthread_mutex_lock(&ctx->lock);
    }
    pthread_mutex_unlock(&ctx->lock);
}

void aio_context_add_close_hook(AioContext *ctx, AioCloseHook *hook)
{
    pthread_mutex_lock(&ctx->lock);
    hook->cancelled = false;
    hook->next = ctx->close_hooks;
    hook->pprev = &ctx->close_hooks;
    if (hook->next) {
        hook->next->pprev = &hook->next;
    }
    ctx->close_hooks = hook;
    pthread_mutex_unlock(&ctx->lock);
}

bool aio_context_del_close_hook(AioContext *ctx, AioCloseHook *hook)
{
    pthread_mutex_lock(&ctx->lock);
    bool found = hook->pprev != NULL;
    if (found) {
        *hook->pprev = hook->next;
        if (hook->next) {
            hook->next->pprev = hook->pprev;
        }
        hook->pprev = NULL;
    }
    pthread_mutex_unlock(&ctx->lock);
    return found;
}

/* A hook may call back users, who may take hooks off: each call is made without the lock. */
static void call_cancel_hooks(AioContext *ctx)
{
    AioCloseHook *hook;

    do {
        pthread_mutex_lock(&ctx->lock);
        hook = ctx->close_hooks;
        while (hook && (hook->cancelled || !hook->cancel)) {
            hook = hook->next;
        }
        if (hook) {
            hook->cancelled = true;
        }
        pthread_mutex_unlock(&ctx->lock);
        if (hook) {
            hook->cancel(hook, ctx);
        }
    } while (hook);
}

static bool in_flight(AioContext *ctx)
{
    return ctx->inflight_ops || ctx->inflight_other;
}

/* What bottom halves get that schedule themselves, or that others schedule, for ever: a number of
 * passes, and a time, since others may schedule more in each pass than in the one before. */
struct patience {
    int passes;
    int64_t until_ns;
};

/*
 * Iterates until nothing is in flight and no bottom half waits, @limit_ns have passed, or bottom
 * halves alone have used up *@p.  Returns whether nothing is in flight.
 */
static bool quiesce(AioContext *ctx, int64_t limit_ns, struct patience *p)
{
    int64_t now = clock_monotonic_ns(), end = now + limit_ns;

    for (; in_flight(ctx) || ((bh_timeout(ctx) == 0 || handlers_have_requests(ctx)) &&
                              p->passes-- > 0 && now < p->until_ns);
         now = clock_monotonic_ns()) {
        if (now >= end) {
            return !in_flight(ctx);
        }
        rcu_check_fork("iothread_stop"); /* of a callback that has forked this is the child */
        context_iterate(ctx, end);
    }
    return true;
}

static const char *op_name(unsigned op)
{
    static const char *const names[] = {
        /* the order of enum io_uring_op */
        "nop",          "readv",    "writev",         "fsync",           "read_fixed",
        "write_fixed",  "poll_add", "poll_remove",    "sync_file_range", "sendmsg",
        "recvmsg",      "timeout",  "timeout_remove", "accept",          "async_cancel",
        "link_timeout", "connect",  "fallocate",      "openat",          "close",
        "files_update", "statx",    "read",           "write",           "fadvise",
        "madvise",      "send",     "recv",
    };

    return op < sizeof(names) / sizeof(names[0]) ? names[op] : "operation";
}

static void say_in_flight(AioContext *ctx, const char *name, const char *then)
{
    char text[256] = "";
    size_t len = 0;

    for (unsigned op = 0; op < 64 && len < sizeof(text) - 40; op++) {
        if (ctx->inflight_by_op[op]) {
            len += snprintf(text + len, sizeof(text) - len, " %u %s", ctx->inflight_by_op[op],
                            op_name(op));
        }
    }
    if (ctx->inflight_other) {
        snprintf(text + len, sizeof(text) - len, " %llu of block drivers or the thread pool",
                 (unsigned long long)ctx->inflight_other);
    }
    fprintf(stderr, "aioctx: %s: still in flight at the end:%s; %s\n", name, text, then);
}

/* Ends what runs.  Bottom halves are refused from the moment on at which nothing is left; should
 * that not come within the limits, those that were accepted run once more. */
static void finish_work(AioContext *ctx, const char *name, int64_t limit_ns)
{
    int64_t begin = clock_monotonic_ns(), end = begin + limit_ns;
    struct patience p = { .passes = 1000, .until_ns = begin + INT64_C(250000000) };

    for (int i = 0; i < 100 && quiesce(ctx, end - clock_monotonic_ns(), &p); i++) {
        if (bh_timeout(ctx) > 0) {
            bh_poll(ctx); /* idle ones: now, not in 10 ms */
        }
        if (!in_flight(ctx) && bh_try_close(ctx)) {
            return;
        }
    }
    if (in_flight(ctx)) {
        say_in_flight(ctx, name, "cancelling");
        call_cancel_hooks(ctx);
        if (ctx->mon->cancel_all && ctx->inflight_ops) {
            ctx->mon->cancel_all(ctx);
        }
        quiesce(ctx, INT64_C(2000000000), &p);
    }
    bh_run_last(ctx);
    if (in_flight(ctx) && !quiesce(ctx, INT64_C(100000000), &p)) {
        say_in_flight(ctx, name, "given up; their memory is left to whom has it");
    }
}

void context_shutdown(AioContext *ctx, const char *name, int64_t limit_ns)
{
    struct home_before before;

    rcu_check_fork("iothread_stop"); /* what is in flight is the parent's */
    before = home_begin_iteration(ctx);
    ctx->depth++; /* nobody else closes it meanwhile */
    finish_work(ctx, name, limit_ns);
    if (!ctx->is_main) {
        timerlistgroup_close(&ctx->tlg);
    }
    call_close_hooks(ctx);
    handlers_drop_requests(ctx);
    handlers_drop_all(ctx);
    for (CqeHandler *left; (left = pop_done(ctx));) { /* of handlers just removed: frees them */
        dispatch_one(ctx, left);
    }
    observe_close(ctx);
    st_relaxed(&ctx->slot->state, AIO_STATS_ENDED);
    ctx->shut = true;
    embed_close(ctx);
    ctx->mon->close(ctx);
    ctx->depth--;
    home_end_iteration(before);
}

void context_close(AioContext *ctx)
{
    int cancel = cancel_off(); /* nobody else would do the rest */

    if (!ctx->shut) {
        context_enter_home(ctx, "aio_context_unref"); /* who closes one that was never polled */
        context_shutdown(ctx, "aio_context_unref", CONTEXT_STOP_LIMIT_NS);
    }
    bh_drop_all(ctx);
    handlers_drop_requests(ctx);
    deinit_timers(ctx);
    home_forget(ctx);
    /* A timer's late notify_cb may still be on its way to us, and to wake_fd: timers/list_int.h. */
    aio_call_rcu(&ctx->rcu, free_context);
    cancel_restore(cancel);
}

void aio_context_unref(AioContext *ctx)
{
    bool here;

    rcu_check_fork("aio_context_unref");
    if (sub_fetch_acq_rel(&ctx->refs, 1) > 0) {
        return;
    }
    pthread_mutex_lock(&ctx->lock);
    here = !ctx->home || in_aio_context_home_thread(ctx);
    if (!here) {
        ctx->zombie = true;
        st_seq(&ctx->home->zombies, true); /* home cannot exit while we hold the lock */
    }
    pthread_mutex_unlock(&ctx->lock);
    if (here) {
        if (ctx->depth) {
            die_misuse("aio_context_unref",
                       "the last reference went below a callback of the context");
        }
        context_close(ctx);
    }
}

/* ---- The loop -------------------------------------------------------------------------------- */

int64_t aio_compute_timeout(AioContext *ctx)
{
    context_enter_home(ctx, "aio_compute_timeout");
    return wait_compute_timeout(ctx);
}

static bool dispatch_done(AioContext *ctx)
{
    unsigned outer = ctx->idle_events, n = 0;
    CqeHandler *handler;
    bool progress;

    ctx->idle_events = 0;
    while (n < DISPATCH_BATCH && (handler = pop_done(ctx))) {
        n++;
        dispatch_one(ctx, handler);
    }
    progress = n > ctx->idle_events;
    ctx->idle_events = outer; /* a nested iteration's do not count in the outer one */
    return progress;
}

bool context_iterate(AioContext *ctx, int64_t limit_ns)
{
    struct home_before before = home_begin_iteration(ctx);
    struct observe_turn turn;
    bool progress;

    ctx->depth++;
    turn.on = false;
    probe2(loop_begin, ctx, ctx->depth);
    if (is_observed(ctx)) {
        observe_turn_begin(ctx, &turn);
    }
    count_own(&ctx->stats->iterations, 1);
    ctx->poll.stale = true; /* for a poll further down the stack: we take its notifies */
    if (likely(limit_ns != WAIT_WAS_HOSTS)) {
        wait_for_events(ctx, limit_ns);
    } else {
        embed_end_wait(ctx);
    }
    if (unlikely(turn.on)) {
        observe_turn_awake(ctx, &turn);
    }
    progress = handlers_have_requests(ctx) && handlers_apply_requests(ctx);
    progress |= bh_is_any(ctx) && bh_poll(ctx);
    progress |= dispatch_done(ctx);
    if (timerlistgroup_run_timers(&ctx->tlg)) {
        count_own(&ctx->stats->timers, 1);
        progress = true;
    }
    if (unlikely(turn.on)) {
        observe_turn_end(ctx, &turn);
    }
    probe2(loop_end, ctx, progress);
    ctx->depth--;
    home_end_iteration(before);
    return progress;
}

bool aio_poll(AioContext *ctx, bool blocking)
{
    context_enter_home(ctx, "aio_poll");
    rcu_check_may_wait("aio_poll");
    home_close_zombies();
    return context_iterate(ctx, blocking ? WAIT_FOREVER : WAIT_NOT);
}

void aio_context_set_precise(AioContext *ctx, int64_t lead_ns)
{
    if (lead_ns < 0) {
        die_misuse("aio_context_set_precise", "lead_ns is %lld; it is 0 (off) or more",
                   (long long)lead_ns);
    }
    st_seq(&ctx->precise_ns, lead_ns);
    aio_notify(ctx); /* a sleep that has begun ends where the old lead said */
}

void context_notify_from_timer(void *opaque, QEMUClockType type)
{
    AioContext *ctx = opaque;

    /* Home is awake, and looks at its timers before it sleeps. */
    if (!in_aio_context_home_thread(ctx)) {
        aio_notify(ctx);
    } else {
        ctx->poll.stale = true; /* if it is an io_poll that has armed it */
    }
}

/* ---- Operations and timers ------------------------------------------------------------------- */

static AioContext *current_for_ops(int *ret_err)
{
    AioContext *ctx = qemu_get_current_aio_context();

    rcu_check_fork("aio_add_sqe");
    *ret_err = !ctx ? -EINVAL : ctx->shut ? -ESHUTDOWN : !ctx->mon->add_sqe ? -ENOTSUP : 0;
    return ctx;
}

int aio_add_sqe(void (*prep)(struct io_uring_sqe *sqe, void *opaque), void *opaque,
                CqeHandler *handler)
{
    int err;
    AioContext *ctx = current_for_ops(&err);

    return err ? err : ctx->mon->add_sqe(ctx, prep, opaque, handler);
}

int aio_cancel_sqe(CqeHandler *handler)
{
    int err;
    AioContext *ctx = current_for_ops(&err);

    return err ? err : ctx->mon->cancel_sqe(ctx, handler);
}

int aio_context_cancel_sqe(AioContext *ctx, CqeHandler *handler)
{
    return ctx->mon->cancel_sqe ? ctx->mon->cancel_sqe(ctx, handler) : -ENOTSUP;
}

void aio_context_count_inflight(AioContext *ctx, int n)
{
    ctx->inflight_other += n;
}

QEMUTimer *aio_timer_new(AioContext *ctx, QEMUClockType type, int scale, QEMUTimerCB *cb,
                         void *opaque)
{
    return timer_new_full(&ctx->tlg, type, scale, 0, cb, opaque);
}

QEMUTimer *aio_timer_new_with_attrs(AioContext *ctx, QEMUClockType type, int scale, int attributes,
                                    QEMUTimerCB *cb, void *opaque)
{
    return timer_new_full(&ctx->tlg, type, scale, attributes, cb, opaque);
}

void aio_timer_init(AioContext *ctx, QEMUTimer *ts, QEMUClockType type, int scale, QEMUTimerCB *cb,
                    void *opaque)
{
    timer_init_full(ts, &ctx->tlg, type, scale, 0, cb, opaque);
}

void aio_timer_init_with_attrs(AioContext *ctx, QEMUTimer *ts, QEMUClockType type, int scale,
                               int attributes, QEMUTimerCB *cb, void *opaque)
{
    timer_init_full(ts, &ctx->tlg, type, scale, attributes, cb, opaque);
}
