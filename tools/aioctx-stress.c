/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: races the timers of the library on this machine and checks every outcome.
 *
 * Worker threads operate at random on timers of several iothreads, whose callbacks operate too.
 * The run goes in rounds: everybody operates and logs; then the workers stop, what is due fires,
 * each home thread is seen outside its timers, every timer is read, and the oracle
 * (stress_oracle.c) checks each timer's log while nothing else happens.  So a log is complete when
 * it is looked at, memory stays bounded, and checking does not disturb what is checked.
 *
 * All this is --mode timers; --mode notify is in stress_wakes.c.
 */
#include "stress_wakes.h"

#include <aioctx/rcu.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A timer that is due sooner than this is waited for at the end of a round; see random_units(). */
#define ROUND_HORIZON_NS (INT64_C(60) * 1000 * SCALE_MS)
/* Ended lives of which the block is kept, so that a late callback is told apart. */
#define RETIRED_MAX 8192

struct stress S;

static atomic_int interrupted;

static void on_signal(int sig)
{
    interrupted = 1;
}

static double now_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014) */
uint64_t stress_random(struct actor *a)
{
    uint64_t z = (a->random += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- Rounds ---------------------------------------------------------------------------------- */

/* The workers' gate.  All under lock. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t opened, finished;
    uint64_t round;   /* counts up to open the gate */
    unsigned running; /* workers that have not finished it */
    bool stop;
} gate = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .opened = PTHREAD_COND_INITIALIZER,
    .finished = PTHREAD_COND_INITIALIZER,
};

static struct actor *worker(unsigned i)
{
    return &S.actors[i];
}

static struct actor *home(unsigned i)
{
    return &S.actors[S.opt.threads + i];
}

static struct actor *coordinator(void)
{
    return &S.actors[S.nactors - 1];
}

/* Says what each thread is in, and ends the program. */
static _Noreturn void report_stuck(const char *what)
{
    char text[1024] = "";
    size_t len = 0;

    for (unsigned i = 0; i < S.nactors; i++) {
        const char *in = atomic_load(&S.actors[i].busy_with);

        if (in && len < sizeof(text) - 64) {
            len += (size_t)snprintf(text + len, sizeof(text) - len, " %s in %s();",
                                    S.actors[i].name, in);
        }
    }
    report_failure(NULL, "stuck: %s did not end within %d s:%s", what, STUCK_SECONDS, text);
}

static void *worker_main(void *opaque)
{
    struct actor *a = opaque;
    uint64_t round = 0;

    ops_set_actor(a);
    pthread_mutex_lock(&gate.lock);
    for (;;) {
        while (gate.round == round && !gate.stop) {
            pthread_cond_wait(&gate.opened, &gate.lock);
        }
        if (gate.stop) {
            break;
        }
        round = gate.round;
        pthread_mutex_unlock(&gate.lock);
        for (unsigned i = 0; i < ROUND_OPS && !interrupted; i++) {
            ops_run_one(a);
        }
        ops_hand_over(a);
        pthread_mutex_lock(&gate.lock);
        if (--gate.running == 0) {
            pthread_cond_signal(&gate.finished);
        }
    }
    pthread_mutex_unlock(&gate.lock);
    ops_release_embedded(a);
    lists_release(a);
    return NULL;
}

static void run_workers(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STUCK_SECONDS;
    pthread_mutex_lock(&gate.lock);
    gate.running = S.opt.threads;
    gate.round++;
    pthread_cond_broadcast(&gate.opened);
    while (gate.running) {
        if (pthread_cond_timedwait(&gate.finished, &gate.lock, &until) == ETIMEDOUT &&
            gate.running) {
            report_stuck("a round");
        }
    }
    pthread_mutex_unlock(&gate.lock);
}

/* A visit to a home thread, outside its timers. */
struct visit {
    struct actor *actor;
    void (*func)(struct actor *a);
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void visit_bh(void *opaque)
{
    struct visit *v = opaque;

    v->func(v->actor);
    pthread_mutex_lock(&v->lock);
    v->done = true;
    pthread_cond_signal(&v->cond);
    pthread_mutex_unlock(&v->lock);
}

void stress_visit_homes(void (*func)(struct actor *a))
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STUCK_SECONDS;
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        struct visit v = { .actor = home(i), .func = func };

        pthread_mutex_init(&v.lock, NULL);
        pthread_cond_init(&v.cond, NULL);
        if (aio_bh_schedule_oneshot(S.ctx[i], visit_bh, &v) < 0) {
            report_failure(NULL, "out of memory");
        }
        pthread_mutex_lock(&v.lock);
        while (!v.done) {
            if (pthread_cond_timedwait(&v.cond, &v.lock, &until) == ETIMEDOUT && !v.done) {
                report_stuck("a bottom half");
            }
        }
        pthread_mutex_unlock(&v.lock);
        pthread_cond_destroy(&v.cond);
        pthread_mutex_destroy(&v.lock);
    }
}

void stress_do_nothing(struct actor *a)
{
}

/* Waits until every timer that is due soon has fired. */
static void wait_for_firings(void)
{
    double until = now_seconds() + STUCK_SECONDS;
    struct timer_gen *g = NULL;
    struct timespec nap = { 0, 100 * SCALE_US };
    int64_t left_ns;

    while ((left_ns = ops_soonest_ns(&g)) < ROUND_HORIZON_NS) {
        if (now_seconds() > until) {
            report_failure(g,
                           "lost: it is armed, its deadline passed %.3f s ago, and it has not "
                           "fired",
                           (double)-left_ns / 1e9);
        }
        nanosleep(&nap, NULL);
    }
}

/* Ends a round: no callback runs and nothing is due when this returns, and all logs are here. */
static void settle(bool last)
{
    atomic_store(&S.quiet_now, true);
    /* Callbacks that began before they could see it have ended. */
    stress_visit_homes(stress_do_nothing);
    wait_for_firings();
    stress_visit_homes(stress_do_nothing); /* the last of these callbacks has ended */
    if (last) {
        ops_free_all(coordinator());
    } else {
        ops_read_all(coordinator());
    }
    stress_visit_homes(ops_hand_over);
    ops_hand_over(coordinator());
    atomic_store(&S.quiet_now, false);
}

/* ---- Checking -------------------------------------------------------------------------------- */

/* The block of an ended life is kept for a while. */
static void retire(struct timer_gen *g)
{
    static struct timer_gen *retired[RETIRED_MAX];
    static unsigned next;
    struct timer_gen **place = &retired[next++ % RETIRED_MAX];

    free(*place);
    *place = g;
    if (g) {
        atomic_store(&g->magic, GEN_RETIRED);
    }
}

static int by_life(const void *a, const void *b)
{
    unsigned x = (*(struct record *const *)a)->gen->number;
    unsigned y = (*(struct record *const *)b)->gen->number;

    return (x > y) - (x < y);
}

/* Collects all logs of the round, sorted by timer. */
static struct record **collect(size_t *ret_count)
{
    static struct record **all;
    static size_t room;
    size_t count = 0, n = 0;

    for (unsigned i = 0; i < S.nactors; i++) {
        count += S.actors[i].taken.count;
    }
    if (count > room) {
        room = 2 * count;
        all = realloc(all, room * sizeof(*all)); /* NOLINT: the old one is of no use */
        if (!all) {
            report_failure(NULL, "out of memory");
        }
    }
    for (unsigned i = 0; i < S.nactors; i++) {
        for (size_t j = 0; j < S.actors[i].taken.count; j++) {
            all[n++] = &S.actors[i].taken.records[j];
        }
    }
    qsort(all, n, sizeof(*all), by_life);
    *ret_count = n;
    return all;
}

static void check_round(void)
{
    size_t count;
    struct record **all = collect(&count);

    for (size_t from = 0, to; from < count; from = to) {
        struct timer_gen *g = all[from]->gen;
        struct violation why = { 0 };
        bool was_dead = g->dead;

        for (to = from; to < count && all[to]->gen == g; to++) {
        }
        if (!oracle_check(g, all + from, to - from, &why)) {
            report_violation(&why);
        }
        if (g->dead && !was_dead) {
            retire(g);
        }
    }
    for (unsigned i = 0; i < S.nactors; i++) {
        S.actors[i].taken.count = 0;
    }
}

/* ---- Setting up and tearing down ------------------------------------------------------------- */

const char *stress_monitor_of(unsigned context)
{
    static const char *const all[] = { "io_uring", "epoll", "ppoll" };

    if (!strcmp(S.opt.monitor, "all")) {
        return all[context % 3];
    }
    return strcmp(S.opt.monitor, "auto") ? S.opt.monitor : NULL;
}

_Noreturn void stress_cannot_start(const char *what)
{
    int err = errno;

    if (err != EINVAL) { /* else the library has said what is wrong with --cpus or a variable */
        fprintf(stderr, "aioctx-stress: cannot start %s with monitor %s: %s\n", what, S.opt.monitor,
                strerror(err));
    }
    exit(STRESS_CANNOT_RUN);
}

static void *must_alloc(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (!p) {
        fprintf(stderr, "aioctx-stress: out of memory\n");
        exit(STRESS_CANNOT_RUN);
    }
    return p;
}

static void make_actors(void)
{
    S.nactors = S.opt.threads + S.opt.contexts + 1;
    S.actors = must_alloc(S.nactors, sizeof(*S.actors));
    for (unsigned i = 0; i < S.nactors; i++) {
        struct actor *a = &S.actors[i];
        bool is_home = i >= S.opt.threads && i < S.nactors - 1;

        a->number = i;
        a->context = is_home ? (int)(i - S.opt.threads) : -1;
        a->random = S.opt.seed * UINT64_C(0x2545f4914f6cdd1d) + i;
        snprintf(a->name, sizeof(a->name), "%s%u",
                 is_home             ? "io"
                 : i < S.opt.threads ? "w"
                                     : "main",
                 is_home             ? i - S.opt.threads
                 : i < S.opt.threads ? i
                                     : 0);
    }
}

static void start_contexts(void)
{
    S.iothreads = must_alloc(S.opt.contexts, sizeof(IOThread *));
    S.ctx = must_alloc(S.opt.contexts, sizeof(AioContext *));
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        IOThreadOptions io = { .context.monitor = stress_monitor_of(i), .cpus = S.opt.cpus };

        S.iothreads[i] = iothread_new(home(i)->name, &io);
        if (!S.iothreads[i]) {
            stress_cannot_start("an iothread");
        }
        S.ctx[i] = iothread_get_aio_context(S.iothreads[i]);
    }
    stress_visit_homes(ops_set_actor);
}

static void start(pthread_t *threads)
{
    clocks_init();
    make_actors();
    cpu_enable_ticks();
    start_contexts();
    for (unsigned i = 0; i < QEMU_CLOCK_MAX; i++) {
        S.clock_base_ns[i] = qemu_clock_get_ns((QEMUClockType)i);
    }
    lists_make_sentinels();
    S.slots = must_alloc(S.opt.timers, sizeof(*S.slots));
    ops_set_actor(coordinator());
    ops_fill_slots(coordinator());
    for (unsigned i = 0; i < S.opt.threads; i++) {
        int ret = pthread_create(&threads[i], NULL, worker_main, worker(i));

        if (ret) {
            fprintf(stderr, "aioctx-stress: cannot start a thread: %s\n", strerror(ret));
            exit(STRESS_CANNOT_RUN);
        }
    }
}

static void stop_workers(pthread_t *threads)
{
    pthread_mutex_lock(&gate.lock);
    gate.stop = true;
    pthread_cond_broadcast(&gate.opened);
    pthread_mutex_unlock(&gate.lock);
    for (unsigned i = 0; i < S.opt.threads; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void finish(void)
{
    settle(true);
    check_round();
    lists_free_sentinels();
    stress_visit_homes(ops_release_embedded);
    stress_visit_homes(lists_release);
    for (unsigned i = 0; i < S.opt.contexts; i++) {
        iothread_destroy(S.iothreads[i]);
    }
    aio_rcu_barrier();
    for (unsigned i = 0; i < RETIRED_MAX; i++) {
        retire(NULL);
    }
    for (unsigned i = 0; i < S.nactors; i++) {
        for (unsigned kind = OP_SIDE; kind < OP_MIX_MAX; kind++) {
            oracle_stats.ops[kind] += S.actors[i].side_ops[kind];
        }
        free(S.actors[i].log.records);
        free(S.actors[i].taken.records);
    }
    free(S.actors);
    free(S.iothreads);
    free(S.ctx);
    free(S.slots);
}

static void run(void)
{
    pthread_t threads[STRESS_ACTORS_MAX];
    uint64_t rounds = 0;
    double begun, until;

    start(threads);
    begun = now_seconds();
    until = begun + S.opt.seconds;
    do {
        run_workers();
        settle(false);
        check_round();
        rounds++;
    } while (!interrupted && now_seconds() < until);
    until = now_seconds();
    stop_workers(threads);
    finish();
    if (!S.opt.quiet) {
        report_summary(until - begun, rounds, interrupted);
    }
}

/* ---- The program ----------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

    options_parse(&S.opt, argc, argv);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    printf("seed %" PRIu64 "\n", S.opt.seed);
    fflush(stdout);
    if (S.opt.mode == MODE_NOTIFY) {
        wakes_run(&interrupted);
    } else {
        run();
    }
    return 0;
}
