/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress --mode notify: whether a loop that sleeps wakes up for everything.
 *
 * Each loop polls a context on a thread of its own and sleeps whenever it may.  Other threads give
 * the loops work: a flag and aio_notify(), bottom halves, timers sooner than all others, changes of
 * fd handlers, events; some of it out of signal handlers.  Work is numbered, for each way that
 * leads from a thread to a loop; the loop notes the number that it has seen.
 *
 * The run goes in short rounds: a thread gives a few pieces of work at random moments, and waits
 * until all of them were seen; then the threads wait for each other.  So where a wake-up is lost,
 * nothing comes after it that would hide it: the loop sleeps on, the round does not end, and a
 * watchdog finds work that nobody has seen for too long.  It counts its own ticks and no time, so
 * that a stopped process is no violation.
 *
 * The threads keep their logs apart and without atomic exchanges, which would order what they do
 * with the library, and so hide a barrier that the library lacks.
 */
#include "stress_wakes.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICK_MS 20
#define RESEND_TURNS (1u << 22)

struct wakes W;

static struct {
    atomic_uint arrived, round, running;
    atomic_bool stop; /* asked for by the coordinator */
    bool last;        /* written by the last who arrives, before the round */
} gate;

static __thread struct wake_giver *self;

static void relax(unsigned turn)
{
    if (turn % 64 == 63) {
        sched_yield();
    }
}

/* From nothing to what a loop takes from its callback to its sleep, and a few times as long. */
static void random_delay(struct actor *a)
{
    uint64_t r = stress_random(a);

    for (uint64_t n = (r >> 8) % (UINT64_C(1) << r % 13); n > 0; n--) {
        atomic_signal_fence(memory_order_seq_cst);
    }
}

static void *must(void *p)
{
    if (!p) {
        report_failure(NULL, "out of memory");
    }
    return p;
}

/* ---- What a loop sees ------------------------------------------------------------------------ */

/* A thread gives such work again only when the last of it was seen. */
static bool comes_alone(const struct wake_channel *ch)
{
    return ch->kind > WAKE_EVENT;
}

static void see(struct wake_channel *ch)
{
    uint64_t given = atomic_load_explicit(&ch->given, memory_order_relaxed);

    if (comes_alone(ch) && given == atomic_load_explicit(&ch->seen, memory_order_relaxed)) {
        wakes_report(ch, "twice", "was done a second time");
    }
    if (comes_alone(ch) && ch->payload != given) {
        wakes_report(ch, "early", "was done before all that came before it could be seen");
    }
    wakes_log(&ch->to->log, EVENT_SEEN, ch, given);
    atomic_store_explicit(&ch->seen, given, memory_order_release);
}

static void on_work(void *opaque)
{
    see(opaque);
}

static void on_event(EventNotifier *e)
{
    struct wake_channel *ch =
        (struct wake_channel *)((char *)e - offsetof(struct wake_channel, event));

    if (event_notifier_test_and_clear(e)) {
        see(ch);
    }
}

static void on_readable(void *opaque)
{
    struct wake_channel *ch = opaque;

    aio_set_fd_handler(ch->to->ctx, event_notifier_get_fd(&ch->event), NULL, NULL, NULL, NULL,
                       NULL);
    see(ch);
}

static void on_nothing(void *opaque)
{
    report_failure(NULL, "early: a handler was called for an fd that is never readable");
}

static void far_cb(void *opaque)
{
    report_failure(NULL, "early: a timer that was armed for in an hour fired");
}

/* The flags that aio_notify() is to tell of. */
static void look_at_flags(const struct wake_loop *l)
{
    static const unsigned with_flag[] = { WAKE_NOTIFY, WAKE_MAX + WAKE_NOTIFY };

    for (unsigned i = 0; i < 2 * S.opt.threads; i++) {
        struct wake_channel *ch = wake_channel(i / 2, (unsigned)l->actor.context, with_flag[i % 2]);

        if (atomic_load_explicit(&ch->given, memory_order_relaxed) !=
            atomic_load_explicit(&ch->seen, memory_order_relaxed)) {
            see(ch);
        }
    }
}

/* Now there is a head word to be sooner than, and now there is none. */
static void move_far_timer(struct wake_loop *l)
{
    uint64_t r = stress_random(&l->actor);

    if (r % 16 == 0) {
        timer_mod_ns(l->far, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + INT64_C(3600000000000) +
                                 (int64_t)(r >> 40));
    } else if (r % 16 == 1) {
        timer_del(l->far);
    }
}

static void watch_events(const struct wake_loop *l, EventNotifierHandler *func)
{
    for (unsigned t = 0; t < S.opt.threads; t++) {
        for (unsigned i = 0; i < WAKE_CHANNELS; i++) {
            struct wake_channel *ch = wake_channel(t, (unsigned)l->actor.context, i);

            if (ch->kind == WAKE_EVENT &&
                aio_set_event_notifier(l->ctx, &ch->event, func, NULL, NULL) < 0) {
                report_failure(NULL, "out of memory");
            }
        }
    }
}

static void *loop_main(void *opaque)
{
    struct wake_loop *l = opaque;

    qemu_set_current_aio_context(l->ctx);
    watch_events(l, on_event);
    while (!atomic_load(&l->stop)) {
        look_at_flags(l);
        if (stress_random(&l->actor) % 4 == 0) {
            random_delay(&l->actor); /* a notify that comes here must end the poll */
        }
        move_far_timer(l);
        wakes_log(&l->log, EVENT_POLL, NULL, 0);
        sut_wake_before_poll(l);
        aio_poll(l->ctx, true);
        sut_wake_after_poll(l);
        wakes_log(&l->log, EVENT_POLLED, NULL, 0);
        atomic_fetch_add_explicit(&l->polls, 1, memory_order_relaxed);
    }
    watch_events(l, NULL);
    return NULL;
}

/* ---- What a thread gives --------------------------------------------------------------------- */

static bool is_seen(struct wake_channel *ch)
{
    return atomic_load_explicit(&ch->seen, memory_order_acquire) ==
           atomic_load_explicit(&ch->given, memory_order_relaxed);
}

static void wait_until_seen(struct wake_channel *ch)
{
    for (unsigned turn = 0; !is_seen(ch); turn++) {
        relax(turn);
    }
}

static int give_fd(struct wake_channel *ch, IOHandler *func)
{
    return aio_set_fd_handler(ch->to->ctx, event_notifier_get_fd(&ch->event), func, NULL, NULL,
                              NULL, ch);
}

static int call_library(struct actor *a, struct wake_channel *ch, uint64_t r)
{
    int ret = 0;

    switch (ch->kind) {
    case WAKE_BH:
        sut_wake_bh(a, ch);
        break;
    case WAKE_EVENT:
        ret = event_notifier_set(&ch->event);
        break;
    case WAKE_ONESHOT:
        ret = sut_wake_oneshot(a, ch, on_work);
        break;
    case WAKE_IDLE:
        qemu_bh_schedule_idle(ch->bh);
        break;
    case WAKE_TIMER:
        sut_wake_timer(a, ch,
                       qemu_clock_get_ns(QEMU_CLOCK_REALTIME) +
                           (r % 2 ? (int64_t)(r >> 8) % (20 * SCALE_US) : 0));
        break;
    case WAKE_FD:
        ret = give_fd(ch, on_readable);
        break;
    default:
        ret = give_fd(ch, on_nothing);
        ret = ret < 0 ? ret : sut_wake_remove(a, ch, on_work);
        break;
    }
    return ret;
}

/* One piece of work; may be in a signal handler, which has an actor and a log of its own. */
static void give(struct actor *a, struct wake_log *log, struct wake_channel *ch)
{
    uint64_t n = atomic_load_explicit(&ch->given, memory_order_relaxed) + 1;
    uint64_t r = stress_random(a);
    int ret = 0;

    if (comes_alone(ch)) {
        wait_until_seen(ch);
        ch->payload = n;
    }
    wakes_log(log, EVENT_CALL, ch, n);
    if (ch->kind == WAKE_NOTIFY) {
        sut_wake_notify(a, ch, n);
    } else {
        atomic_store_explicit(&ch->given, n, memory_order_relaxed);
        ret = call_library(a, ch, r);
    }
    wakes_log(log, EVENT_RETURN, ch, n);
    if (ret < 0) {
        report_failure(NULL, "%s failed: %s", wake_names[ch->kind], strerror(-ret));
    }
}

static unsigned random_loop(struct actor *a)
{
    return (unsigned)(stress_random(a) % S.opt.contexts);
}

static void on_signal(int sig)
{
    struct wake_giver *g = self;
    int saved = errno;
    unsigned kind;

    if (!g) {
        return;
    }
    kind = (unsigned)(stress_random(&g->handler) % WAKE_SAFE_KINDS);
    give(&g->handler, &g->handler_log,
         wake_channel(g->actor.number, random_loop(&g->handler), WAKE_MAX + kind));
    g->handled_counts[kind]++;
    atomic_fetch_add(&g->handled, 1);
    errno = saved;
}

/* Has the handler run on a thread, at whatever that is doing.  ThreadSanitizer holds signals back,
 * and now and then until the next comes: so another is sent, which does no harm. */
static unsigned send_signal(struct wake_giver *g)
{
    unsigned target = (unsigned)(stress_random(&g->actor) % S.opt.threads);
    struct wake_giver *to = &W.givers[target];
    unsigned before = atomic_load(&to->handled);

    for (unsigned turn = 0; atomic_load(&to->handled) == before; turn++) {
        if (turn % RESEND_TURNS == 0) {
            pthread_kill(to->id, SIGUSR1);
        }
        relax(turn);
    }
    return target;
}

static unsigned random_kind(struct actor *a)
{
    unsigned x = (unsigned)(stress_random(a) % S.opt.wake_mix_sum), kind = 0;

    while (x >= S.opt.wake_mix[kind]) {
        x -= S.opt.wake_mix[kind++];
    }
    return kind;
}

static void wait_for_channels(unsigned thread, unsigned from)
{
    for (unsigned loop = 0; loop < S.opt.contexts; loop++) {
        for (unsigned i = from; i < WAKE_CHANNELS; i++) {
            wait_until_seen(wake_channel(thread, loop, i));
        }
    }
}

static void give_some(struct wake_giver *g)
{
    struct actor *a = &g->actor;
    uint64_t r = stress_random(a);
    unsigned loop = random_loop(a);
    uint32_t signalled = 0;

    for (uint64_t n = 1 + (r >> 8) % (r % 16 ? 4 : 64); n > 0; n--) {
        unsigned kind = random_kind(a);

        if (kind == WAKE_SIGNAL) {
            signalled |= UINT32_C(1) << send_signal(g);
        } else {
            give(a, &g->log, wake_channel(a->number, loop, kind));
            if (stress_random(a) % 2) { /* the next comes while it goes to sleep again */
                wait_until_seen(wake_channel(a->number, loop, kind));
            } else {
                loop = random_loop(a);
            }
        }
        g->counts[kind]++;
        random_delay(a);
    }
    wait_for_channels(a->number, 0);
    for (unsigned t = 0; t < S.opt.threads; t++) {
        if (signalled & UINT32_C(1) << t) {
            wait_for_channels(t, WAKE_MAX);
        }
    }
}

/* All wait for all.  Returns false when there is no further round. */
static bool next_round(void)
{
    unsigned round = atomic_load(&gate.round);

    if (atomic_fetch_add(&gate.arrived, 1) + 1 == S.opt.threads) {
        gate.last = atomic_load(&gate.stop);
        atomic_store(&gate.arrived, 0);
        atomic_fetch_add(&gate.round, 1);
    }
    for (unsigned turn = 0; atomic_load(&gate.round) == round; turn++) {
        relax(turn);
    }
    return !gate.last;
}

static void *giver_main(void *opaque)
{
    struct wake_giver *g = opaque;

    self = g;
    g->id = pthread_self();
    while (next_round()) {
        give_some(g);
    }
    atomic_fetch_sub(&gate.running, 1);
    return NULL;
}

/* ---- The watchdog ---------------------------------------------------------------------------- */

static void watch(struct wake_channel *ch)
{
    uint64_t given = atomic_load(&ch->given), polls = atomic_load(&ch->to->polls);

    if (atomic_load(&ch->seen) == given || ch->stuck_given != given) {
        ch->stuck_given = given;
        ch->stuck_polls = polls;
        ch->stuck_ticks = 0;
    } else if (++ch->stuck_ticks * (TICK_MS / 1e3) >= S.opt.limit) {
        wakes_report(ch, "lost",
                     polls == ch->stuck_polls ? "did not wake it, and it sleeps"
                                              : "is not done, though it has been awake since");
    }
}

/* One tick.  Returns whether all that was given was seen. */
static bool tick(void)
{
    struct timespec nap = { 0, TICK_MS * INT64_C(1000000) };
    bool all = true;

    nanosleep(&nap, NULL);
    for (unsigned i = 0; i < S.opt.threads * S.opt.contexts * WAKE_CHANNELS; i++) {
        watch(&W.channels[i]);
        all = all && is_seen(&W.channels[i]);
    }
    return all;
}

/* ---- Setting up and tearing down ------------------------------------------------------------- */

static void make_channel(unsigned thread, unsigned loop, unsigned i)
{
    struct wake_channel *ch = wake_channel(thread, loop, i);
    AioContext *ctx = W.loops[loop].ctx;
    int ret = 0;

    ch->thread = (uint8_t)thread;
    ch->loop = (uint8_t)loop;
    ch->by_signal = i >= WAKE_MAX;
    ch->kind = (uint8_t)(ch->by_signal ? i - WAKE_MAX : i);
    ch->to = &W.loops[loop];
    if (ch->kind == WAKE_BH || ch->kind == WAKE_IDLE) {
        ch->bh = must(aio_bh_new(ctx, on_work, ch));
    } else if (ch->kind == WAKE_TIMER) {
        ch->timer = must(aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, on_work, ch));
    } else if (ch->kind == WAKE_EVENT || ch->kind == WAKE_FD || ch->kind == WAKE_REMOVE) {
        ret = event_notifier_init(&ch->event, ch->kind == WAKE_FD);
    }
    if (ret < 0) {
        fprintf(stderr, "aioctx-stress: cannot make an eventfd: %s\n", strerror(-ret));
        exit(STRESS_CANNOT_RUN);
    }
}

static void end_channel(struct wake_channel *ch)
{
    if (ch->bh) {
        qemu_bh_delete(ch->bh);
    }
    if (ch->timer) {
        timer_free(ch->timer);
    }
    event_notifier_cleanup(&ch->event);
}

static void init_actor(struct actor *a, const char *prefix, unsigned i, int context, uint64_t seed)
{
    a->number = i;
    a->context = context;
    a->random = S.opt.seed * UINT64_C(0x2545f4914f6cdd1d) + seed;
    snprintf(a->name, sizeof(a->name), "%s%u", prefix, i % STRESS_ACTORS_MAX);
}

static void make_loops(void)
{
    W.loops = must(calloc(S.opt.contexts, sizeof(*W.loops)));
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        struct wake_loop *l = &W.loops[i];
        AioContextOptions opts = { .monitor = stress_monitor_of(i) };

        init_actor(&l->actor, "loop", i, (int)i, 2 * STRESS_ACTORS_MAX + i);
        l->ctx = aio_context_new(&opts);
        if (!l->ctx) {
            stress_cannot_start("a context");
        }
        l->far = must(aio_timer_new(l->ctx, QEMU_CLOCK_REALTIME, SCALE_NS, far_cb, NULL));
    }
}

static void start_thread(pthread_t *thread, void *(*func)(void *), void *opaque)
{
    int ret = pthread_create(thread, NULL, func, opaque);

    if (ret) {
        fprintf(stderr, "aioctx-stress: cannot start a thread: %s\n", strerror(ret));
        exit(STRESS_CANNOT_RUN);
    }
}

static void start(void)
{
    size_t channels = (size_t)S.opt.threads * S.opt.contexts * WAKE_CHANNELS;
    struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

    sigaction(SIGUSR1, &sa, NULL);
    make_loops();
    W.givers = must(calloc(S.opt.threads, sizeof(*W.givers)));
    W.channels = must(aligned_alloc(_Alignof(struct wake_channel), channels * sizeof(*W.channels)));
    memset(W.channels, 0, channels * sizeof(*W.channels));
    for (unsigned i = 0; i < channels; i++) {
        make_channel(i / WAKE_CHANNELS / S.opt.contexts, i / WAKE_CHANNELS % S.opt.contexts,
                     i % WAKE_CHANNELS);
    }
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        start_thread(&W.loops[i].thread, loop_main, &W.loops[i]);
    }
    atomic_store(&gate.running, S.opt.threads);
    for (unsigned i = 0; i < S.opt.threads; i++) {
        init_actor(&W.givers[i].actor, "w", i, -1, i);
        init_actor(&W.givers[i].handler, "w", i, -1, STRESS_ACTORS_MAX + i);
    }
    for (unsigned i = 0; i < S.opt.threads; i++) {
        start_thread(&W.givers[i].thread, giver_main, &W.givers[i]);
    }
}

static void end_givers(void)
{
    bool all = false;

    atomic_store(&gate.stop, true);
    while (atomic_load(&gate.running)) {
        tick();
    }
    for (unsigned i = 0; i < S.opt.threads; i++) {
        pthread_join(W.givers[i].thread, NULL);
    }
    while (!all) { /* what a signal that came late has given */
        all = tick();
    }
}

static void end_loops(void)
{
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        atomic_store(&W.loops[i].stop, true);
        aio_notify(W.loops[i].ctx);
        pthread_join(W.loops[i].thread, NULL);
    }
}

static void drop_all(void)
{
    for (unsigned i = 0; i < S.opt.threads * S.opt.contexts * WAKE_CHANNELS; i++) {
        end_channel(&W.channels[i]);
    }
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        timer_free(W.loops[i].far);
        aio_context_unref(W.loops[i].ctx);
    }
    free(W.channels);
    free(W.givers);
    free(W.loops);
}

static double now_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

void wakes_run(const atomic_int *interrupted)
{
    double begun = now_seconds(), seconds;

    start();
    while (!atomic_load(interrupted) && now_seconds() < begun + S.opt.seconds) {
        tick();
    }
    end_givers();
    end_loops();
    seconds = now_seconds() - begun;
    if (!S.opt.quiet) {
        wakes_summary(seconds, atomic_load(&gate.round), atomic_load(interrupted));
    }
    drop_all();
}
