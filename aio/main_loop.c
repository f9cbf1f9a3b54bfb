/* SPDX-License-Identifier: MIT */
/*
 * The main loop: a context over main_loop_tlg, and poll notifiers.
 *
 *   ask the notifiers (fill) -> one iteration of the context -> poll(2) on the foreign fds
 *     -> tell the notifiers
 *
 * What wakes a sleep for a foreign fd is a poll set (poll_set.c), which the context watches as one
 * fd, on whichever monitor.  It is brought up to date only before a sleep: where the context has
 * work, or a first look finds a foreign fd ready, the iteration does not wait.  What is ready is
 * told by poll(2) alone, after the iteration.
 *
 * While a set is ready, an aio_poll() that tells no notifier, such as one that waits for a block
 * request below a callback, would return at once again and again: in such a one the set's handler
 * stops watching it, and the next sleep of main_loop_wait() begins to again.
 *
 * Waits may be nested.  Each has its own array of fds and a number, its cycle; a notifier remembers
 * the last in which it was asked, and is told only there.
 *
 * `ctx` and timers that other threads arm: their head words and `ctx` are stored and loaded in one
 * order, seq_cst.  Who loads no context armed before there was one, which looks at the heads before
 * its first sleep.  Who loads one is in a read section (timers/list_int.h), and the context's
 * memory goes a grace period after it was unset.
 *
 * `event` and the count of notifies (the wake word, aio_int.h).  Every blocking poll of the context
 * takes the count, an aio_poll() too; only main_loop_wait(false) takes `event`.  All seq_cst:
 *
 *   notifier   event = true   exchange   |  loop   event?              true: do not sleep
 *              count + 1                 |         announce the sleep  fails: the count has changed
 *                                        |         sleep, run callbacks
 *                                        |         event = false       exchange, if it is true
 *
 * Nothing is lost: where the loop's look finds false, the notifier's exchange comes after it, and
 * so does the addition; nothing takes the count between that look and the announcement, so that
 * either fails or is found by the addition.  Both sides exchange, so that the loop, when it takes
 * `event`, sees what everyone wrote who had set it, not only the last; one set after that is for
 * the next wait.  An outer wait need not see what a nested one takes: it is past its sleep.
 */
#include "aio/aio_int.h"
#include "aio/home_int.h"
#include "aio/poll_set_int.h"
#include "rcu/rcu_int.h"
#include "timers/timers_ext_int.h"

#include <aioctx/main_loop.h>
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static_assert(sizeof(MainLoopPoll) == 56 && sizeof(MainLoopPollNotifier) == 48,
              "part of the binary interface");

/* How long to sleep where something could not be watched. */
#define RETRY_NS INT64_C(10000000)

/* A deadline that has passed: does not sleep, as WAIT_NOT, but takes the notifies. */
#define WAIT_PASSED INT64_C(1)

/* A walk over the notifiers, which its calls may add and remove. */
struct walk {
    MainLoopPollNotifier *next;
    struct walk *outer;
};

/* One main_loop_wait() with notifiers. */
struct wait {
    MainLoopPoll poll;
    unsigned size;   /* of poll.pollfds */
    uint64_t cycle;  /* its number */
    bool incomplete; /* there was no memory for an fd */
};

static struct main_loop {
    AioContext *ctx; /* atomic; NULL: no main loop */
    bool event;      /* atomic: qemu_notify_event() is for the next main_loop_wait(false) */

    /* Of ctx's home thread, or with init_lock while there is no ctx. */
    MainLoopPollNotifier *first, **tail;
    struct walk *walks; /* innermost first */
    bool filling;       /* the notifiers are being asked */
    bool added;         /* one was added meanwhile */
    uint64_t cycles;
    struct pollfd *spare; /* the array of the next wait */
    unsigned spare_size;
    struct poll_set set;
    bool watching;      /* the context has a handler for the set */
    bool fired;         /* it was called in this wait */
    unsigned own_depth; /* ctx->depth in an iteration of main_loop_wait(); 0: none */
} ml = { .tail = &ml.first, .set = POLL_SET_INIT };

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- Beginning and end ----------------------------------------------------------------------- */

static void notify_from_timer(void *opaque, QEMUClockType type)
{
    AioContext *ctx = ld_seq(&ml.ctx);

    if (ctx) {
        context_notify_from_timer(ctx, type);
    }
}

static int init_locked(const AioContextOptions *opts)
{
    AioContext *ctx;

    if (ml.ctx) {
        return -EBUSY;
    }
    ctx = context_new(opts, true);
    if (!ctx) {
        return -errno;
    }
    qemu_set_current_aio_context(ctx);
    st_seq(&ml.event, false);
    main_loop_tlg_set_notify(notify_from_timer);
    st_seq(&ml.ctx, ctx);
    return 0;
}

int qemu_init_main_loop(const AioContextOptions *opts)
{
    int ret;

    rcu_check_fork("qemu_init_main_loop");
    pthread_mutex_lock(&init_lock);
    ret = init_locked(opts);
    pthread_mutex_unlock(&init_lock);
    return ret;
}

static AioContext *main_context(const char *call)
{
    AioContext *ctx = ld_seq(&ml.ctx);

    if (!ctx) {
        die_misuse(call, "there is no main loop; call qemu_init_main_loop() first");
    }
    return ctx;
}

/* The same for a caller that must be its home. */
static AioContext *main_context_at_home(const char *call)
{
    AioContext *ctx = main_context(call);

    rcu_check_fork(call);
    if (!in_aio_context_home_thread(ctx)) {
        die_misuse(call, "called on another thread than qemu_init_main_loop()");
    }
    return ctx;
}

static void drop_set(AioContext *ctx)
{
    if (ml.set.epfd < 0) {
        return;
    }
    if (ml.watching && !ctx->shut) {
        aio_set_fd_handler(ctx, ml.set.epfd, NULL, NULL, NULL, NULL, NULL);
    }
    ml.watching = false;
    poll_set_close(&ml.set);
}

/* The context has ended.  If its thread was cancelled or exited below main_loop_wait(), what that
 * had set is still set, and the walks were on a stack that is gone. */
static void forget_locked(AioContext *ctx)
{
    ml.walks = NULL;
    ml.filling = false;
    ml.own_depth = 0;
    while (ml.first) {
        main_loop_poll_remove_notifier(ml.first);
    }
    drop_set(ctx);
    free(ml.spare);
    ml.spare = NULL;
    ml.spare_size = 0;
    home_unset_current(ctx);
    st_seq(&ml.ctx, NULL);
}

void qemu_cleanup_main_loop(void)
{
    AioContext *ctx = ld_seq(&ml.ctx);

    rcu_check_fork("qemu_cleanup_main_loop");
    if (!ctx) {
        return;
    }
    if (ld_acquire(&ctx->home)) { /* else it has exited, and has ended the context before */
        main_context_at_home("qemu_cleanup_main_loop");
        rcu_check_may_wait("qemu_cleanup_main_loop");
        if (ctx->depth) {
            die_misuse("qemu_cleanup_main_loop", "called below a callback of the main loop");
        }
        context_shutdown(ctx, "qemu_cleanup_main_loop", CONTEXT_STOP_LIMIT_NS);
    }
    pthread_mutex_lock(&init_lock);
    forget_locked(ctx);
    pthread_mutex_unlock(&init_lock);
    aio_context_unref(ctx);
}

AioContext *qemu_get_aio_context(void)
{
    return ld_seq(&ml.ctx);
}

void qemu_notify_event(void)
{
    AioContext *ctx = ld_seq(&ml.ctx);

    if (ctx) {
        (void)xchg_seq(&ml.event, true); /* before the notify: see the top of this file */
        aio_notify(ctx);
    }
}

QEMUBH *qemu_bh_new(QEMUBHFunc *cb, void *opaque)
{
    return aio_bh_new(main_context("qemu_bh_new"), cb, opaque);
}

int qemu_set_fd_handler(int fd, IOHandler *fd_read, IOHandler *fd_write, void *opaque)
{
    return aio_set_fd_handler(main_context("qemu_set_fd_handler"), fd, fd_read, fd_write, NULL,
                              NULL, opaque);
}

/* ---- Poll notifiers -------------------------------------------------------------------------- */

void main_loop_poll_add_notifier(MainLoopPollNotifier *notifier)
{
    main_context_at_home("main_loop_poll_add_notifier");
    if (notifier->pprev) {
        die_misuse("main_loop_poll_add_notifier", "the notifier was added before");
    }
    if (!ml.filling) { /* else: one that this wait has asked is not asked again */
        notifier->cycle = 0;
    }
    notifier->next = NULL;
    notifier->pprev = ml.tail;
    *ml.tail = notifier;
    ml.tail = &notifier->next;
    ml.added = true;
}

void main_loop_poll_remove_notifier(MainLoopPollNotifier *notifier)
{
    if (!notifier->pprev) {
        return;
    }
    if (ld_acquire(&ml.ctx->home)) { /* else it has exited */
        main_context_at_home("main_loop_poll_remove_notifier");
    }
    for (struct walk *walk = ml.walks; walk; walk = walk->outer) {
        if (walk->next == notifier) {
            walk->next = notifier->next;
        }
    }
    *notifier->pprev = notifier->next;
    *(notifier->next ? &notifier->next->pprev : &ml.tail) = notifier->pprev;
    notifier->next = NULL;
    notifier->pprev = NULL;
}

int main_loop_poll_add_fd(MainLoopPoll *poll, int fd, short events)
{
    struct wait *w = container_of(poll, struct wait, poll);

    if (poll->state != MAIN_LOOP_POLL_FILL) {
        die_misuse("main_loop_poll_add_fd", "called after the wait: MAIN_LOOP_POLL_FILL asks");
    }
    if (poll->nfds == w->size) {
        unsigned size = w->size ? 2 * w->size : 16;
        struct pollfd *fds = realloc(poll->pollfds, size * sizeof(*fds));

        if (!fds) {
            w->incomplete = true;
            return -ENOMEM;
        }
        poll->pollfds = fds;
        w->size = size;
    }
    poll->pollfds[poll->nfds] = (struct pollfd){ .fd = fd, .events = events };
    return (int)poll->nfds++;
}

/* Asks, or tells, each notifier once. */
static void call_notifiers(struct wait *w)
{
    bool ask = w->poll.state == MAIN_LOOP_POLL_FILL;
    struct walk walk = { .next = ml.first, .outer = ml.walks };
    struct observe_call call;
    MainLoopPollNotifier *n;

    ml.walks = &walk;
    while ((n = walk.next)) {
        int64_t before = w->poll.timeout_ns;

        walk.next = n->next;
        if ((n->cycle == w->cycle) == ask) {
            continue;
        }
        n->cycle = w->cycle;
        observe_begin(ml.ctx, is_observed(ml.ctx), &call, OBSERVE_POLL_NOTIFIER,
                      func_address(n->notify), -1);
        this_thread.callbacks++;
        n->notify(n, &w->poll);
        this_thread.callbacks--;
        observe_end(ml.ctx, &call);
        w->poll.timeout_ns = qemu_soonest_timeout(before, w->poll.timeout_ns);
    }
    ml.walks = walk.outer;
}

static void fill(struct wait *w)
{
    ml.filling = true;
    do {
        ml.added = false;
        call_notifiers(w);
    } while (ml.added);
    ml.filling = false;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

static void on_set_ready(void *opaque)
{
    AioContext *ctx = opaque;

    ml.fired = true;
    ctx->idle_events++; /* a wake-up; what is ready, poll(2) tells */
    if (ctx->depth != ml.own_depth) {
        aio_set_fd_handler(ctx, ml.set.epfd, NULL, NULL, NULL, NULL, NULL);
        ml.watching = false;
    }
}

/* Brings the set up to date.  Returns 0 or -errno as poll_set_update(). */
static int watch_fds(AioContext *ctx, const struct wait *w)
{
    int ret = poll_set_update(&ml.set, w->poll.pollfds, w->poll.nfds), err;

    if (ml.set.epfd >= 0 && !ml.watching) {
        err = aio_set_fd_handler(ctx, ml.set.epfd, on_set_ready, NULL, NULL, NULL, ctx);
        ml.watching = err == 0;
        ret = err < 0 ? err : ret;
    }
    return ret;
}

/* Fills in the revents.  Returns as poll(2). */
static int poll_now(struct wait *w)
{
    int ret;

    do {
        ret = w->poll.nfds > 0 ? poll(w->poll.pollfds, w->poll.nfds, 0) : 0;
    } while (ret < 0 && errno == EINTR); /* a signal ends even a poll that does not wait */
    return ret;
}

static int64_t time_in(int64_t ns)
{
    int64_t now = clock_monotonic_ns();

    return ns < WAIT_FOREVER - now ? now + ns : WAIT_FOREVER;
}

/* Takes what qemu_notify_event() has left for a blocking wait, which is over. */
static void take_event(void)
{
    if (ld_seq(&ml.event)) {
        (void)xchg_seq(&ml.event, false);
    }
}

/* Until when the iteration may sleep; before a sleep, the set is brought up to date. */
static int64_t prepare_wait(AioContext *ctx, struct wait *w)
{
    int64_t timeout = w->poll.timeout_ns;
    bool lacks = w->incomplete;
    int ret;

    if (timeout == 0 || ld_seq(&ml.event) || wait_compute_timeout(ctx) == 0) {
        return WAIT_PASSED;
    }
    ret = poll_now(w);
    if (ret > 0) {
        return WAIT_PASSED;
    }
    if (ret < 0) {
        drop_set(ctx); /* nobody could be told what makes it ready */
        lacks = true;
    } else if (w->poll.nfds > 0 || ml.set.used > 0) {
        ret = watch_fds(ctx, w);
        if (ret == -EBADF) {
            return WAIT_PASSED;
        }
        lacks |= ret < 0;
    }
    if (lacks) {
        timeout = qemu_soonest_timeout(timeout, RETRY_NS);
    }
    return timeout < 0 ? WAIT_FOREVER : time_in(timeout);
}

static void take_array(struct wait *w)
{
    w->poll.pollfds = ml.spare;
    w->size = ml.spare_size;
    ml.spare = NULL;
    ml.spare_size = 0;
}

static void give_array(struct wait *w)
{
    free(ml.spare); /* a nested wait's */
    ml.spare = w->poll.pollfds;
    ml.spare_size = w->size;
}

/* Looks what is ready.  Returns whether something is. */
static bool look_at_fds(AioContext *ctx, struct wait *w)
{
    int ready = poll_now(w);

    w->poll.state = ready < 0 ? MAIN_LOOP_POLL_ERR : MAIN_LOOP_POLL_OK;
    for (unsigned i = 0; ready < 0 && i < w->poll.nfds; i++) {
        w->poll.pollfds[i].revents = 0;
    }
    if (ml.fired && ready == 0 && poll_set_is_ready(&ml.set)) {
        drop_set(ctx); /* a file in it has lost its number, see poll_set.c */
    }
    return ready > 0;
}

static bool wait_without_notifiers(AioContext *ctx, bool nonblocking)
{
    int64_t limit = nonblocking ? WAIT_NOT : ld_seq(&ml.event) ? WAIT_PASSED : WAIT_FOREVER;

    return context_iterate(ctx, limit);
}

static bool wait_with_notifiers(AioContext *ctx, bool nonblocking)
{
    struct wait w = { .cycle = ++ml.cycles };
    unsigned outer_depth = ml.own_depth;
    bool progress;
    int64_t limit;

    take_array(&w);
    w.poll.timeout_ns = nonblocking ? 0 : -1;
    fill(&w);
    limit = nonblocking ? WAIT_NOT : prepare_wait(ctx, &w);
    ml.fired = false;
    ml.own_depth = ctx->depth + 1;
    progress = context_iterate(ctx, limit);
    ml.own_depth = outer_depth;
    progress |= look_at_fds(ctx, &w);
    call_notifiers(&w);
    give_array(&w);
    return progress;
}

bool main_loop_wait(bool nonblocking)
{
    AioContext *ctx = main_context("main_loop_wait");
    struct home_before before;
    bool progress;

    context_enter_home(ctx, "main_loop_wait");
    rcu_check_may_wait("main_loop_wait");
    if (ml.filling) {
        die_misuse("main_loop_wait", "called below a poll notifier that is asked for its fds");
    }
    home_close_zombies();
    before = home_begin_iteration(ctx);
    ctx->depth++; /* nobody ends it below our notifiers */
    if (ml.first) {
        progress = wait_with_notifiers(ctx, nonblocking);
    } else {
        drop_set(ctx);
        progress = wait_without_notifiers(ctx, nonblocking);
    }
    if (!nonblocking) {
        take_event();
    }
    ctx->depth--;
    home_end_iteration(before);
    return progress;
}
