/* SPDX-License-Identifier: MIT */
/*
 * IOThread: a thread that polls a context of its own until it is told to stop.
 *
 * The thread puts itself on its processors first and then makes its context, ring and timer lists,
 * so that the kernel takes their memory from where the thread runs.  Who made the thread waits for
 * that, and gets the error when it fails.
 *
 * What the kernel counts of a thread goes with it: at its end the thread leaves a copy, under the
 * lock that also keeps it from ending while somebody asks the kernel.
 */
#include "aio/aio_int.h"
#include "aio/cpu_list_int.h"
#include "rcu/rcu_int.h"

#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct IOThread {
    AioContext *ctx;
    pthread_t thread;
    pid_t tid;
    char *name;
    int64_t stop_limit_ns;
    bool stopping; /* atomic */
    bool joined;   /* by iothread_join(); its callers take turns */
    unsigned refs; /* atomic: the owner and the thread; the last one frees */

    pthread_mutex_t lock;
    bool ended;               /* under `lock`: the thread is about to exit */
    IOThreadStats at_the_end; /* under `lock`, once it has ended */
};

/* What iothread_new() hands to the thread, and gets back. */
struct start {
    IOThread *io;
    const IOThreadOptions *opts; /* NULL: defaults */
    const struct cpu_list *cpus; /* NULL: as the caller's */
    bool may_not_wait;           /* the caller, for a grace period */
    int err;
    sem_t done;
};

enum { STOP_TIMEOUT_MS = 10000, CPUS_TEXT_MAX = 128 };

static void free_iothread(IOThread *io)
{
    pthread_mutex_destroy(&io->lock);
    free(io->name);
    free(io);
}

static void put_iothread(IOThread *io)
{
    if (sub_fetch_acq_rel(&io->refs, 1) == 0) {
        free_iothread(io);
    }
}

/* ---- The thread ------------------------------------------------------------------------------ */

static int apply_cpus(const struct start *start)
{
    char text[CPUS_TEXT_MAX];
    struct cpu_list available;
    int ret = start->cpus ? cpu_list_apply(start->cpus, &available) : 0;

    if (ret == -EINVAL) {
        cpu_list_format(&available, text, sizeof(text));
        fprintf(stderr, "aioctx: IOThreadOptions.cpus is '%s'; this process may use %s\n",
                start->opts->cpus, *text ? text : "others");
    } else if (ret < 0) {
        fprintf(stderr, "aioctx: IOThreadOptions.cpus is '%s': sched_setaffinity: %s\n",
                start->opts->cpus, strerror(-ret));
    }
    return ret;
}

/* Returns 0 or -errno. */
static int begin(const struct start *start)
{
    IOThread *io = start->io;
    char shown[16];
    int ret;

    strncpy(shown, io->name, sizeof(shown) - 1);
    shown[sizeof(shown) - 1] = '\0';
    prctl(PR_SET_NAME, shown);
    prctl(PR_SET_TIMERSLACK, 1UL);
    ret = apply_cpus(start);
    if (ret < 0) {
        return ret;
    }
    if (start->may_not_wait) {
        rcu_set_may_not_wait();
    }
    io->ctx = aio_context_new(start->opts ? &start->opts->context : NULL);
    if (!io->ctx) {
        return -errno;
    }
    qemu_set_current_aio_context(io->ctx);
    aio_context_ref(io->ctx); /* the thread's */
    io->tid = gettid();
    return 0;
}

static int64_t ns_of(const struct timespec *ts)
{
    return ts->tv_sec * INT64_C(1000000000) + ts->tv_nsec;
}

static void leave_stats(IOThread *io)
{
    struct timespec cpu = { 0 };
    struct rusage usage = { 0 };

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    getrusage(RUSAGE_THREAD, &usage);
    pthread_mutex_lock(&io->lock);
    io->at_the_end = (IOThreadStats){
        .tid = io->tid,
        .cpu_ns = (uint64_t)ns_of(&cpu),
        .voluntary_switches = (uint64_t)usage.ru_nvcsw,
        .involuntary_switches = (uint64_t)usage.ru_nivcsw,
    };
    io->ended = true;
    pthread_mutex_unlock(&io->lock);
}

static void *run(void *arg)
{
    struct start *start = arg;
    IOThread *io = start->io;
    AioContext *ctx;
    int err = begin(start);

    start->err = err;
    sem_post(&start->done); /* and with it, @start has gone */
    if (err) {
        return NULL;
    }
    ctx = io->ctx;
    while (!ld_acquire(&io->stopping)) {
        aio_poll(ctx, true);
    }
    context_shutdown(ctx, io->name, io->stop_limit_ns);
    aio_context_unref(ctx);
    leave_stats(io);
    put_iothread(io);
    return NULL;
}

/* ---- Making one ------------------------------------------------------------------------------ */

/* Returns 0 when the thread runs and has its context, or -errno when there is no thread. */
static int start_thread(struct start *start)
{
    IOThread *io = start->io;
    sigset_t all, old;
    int ret;

    sem_init(&start->done, 0, 0);
    /* The thread begins with every signal blocked, so that no handler runs on it even once. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = -pthread_create(&io->thread, NULL, run, start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret == 0) {
        int cancel = cancel_off(); /* the thread has got pointers to our stack */

        while (sem_wait(&start->done) < 0) {
        }
        ret = start->err;
        if (ret < 0) {
            pthread_join(io->thread, NULL);
        }
        cancel_restore(cancel);
    }
    sem_destroy(&start->done);
    return ret;
}

/* Returns NULL with errno. */
static IOThread *alloc_iothread(const char *name, const IOThreadOptions *opts)
{
    unsigned stop_ms = opts && opts->stop_timeout_ms ? opts->stop_timeout_ms : STOP_TIMEOUT_MS;
    IOThread *io = calloc(1, sizeof(*io));

    if (!io) {
        return NULL;
    }
    io->name = strdup(name ? name : "iothread");
    if (!io->name) {
        free(io);
        return NULL;
    }
    io->stop_limit_ns = stop_ms * (int64_t)SCALE_MS;
    io->refs = 2;
    pthread_mutex_init(&io->lock, NULL);
    return io;
}

IOThread *iothread_new(const char *name, const IOThreadOptions *opts)
{
    struct start start = { .opts = opts, .may_not_wait = !rcu_may_wait() };
    struct cpu_list cpus;
    int ret;

    rcu_check_fork("iothread_new");
    if (opts && opts->cpus) {
        if (!cpu_list_parse(opts->cpus, &cpus)) {
            fprintf(stderr,
                    "aioctx: IOThreadOptions.cpus is '%s'; it is a list of processors such as "
                    "0-3,7, each 0 to %d\n",
                    opts->cpus, CPU_LIST_MAX - 1);
            errno = EINVAL;
            return NULL;
        }
        start.cpus = &cpus;
    }
    start.io = alloc_iothread(name, opts);
    if (!start.io) {
        errno = ENOMEM;
        return NULL;
    }
    ret = start_thread(&start);
    if (ret < 0) {
        free_iothread(start.io);
        errno = -ret;
        return NULL;
    }
    return start.io;
}

/* ---- Asking it ------------------------------------------------------------------------------- */

AioContext *iothread_get_aio_context(IOThread *iothread)
{
    return iothread->ctx;
}

const char *iothread_get_name(const IOThread *iothread)
{
    return iothread->name;
}

/* The thread lives.  Returns 0 or -errno. */
static int ask_kernel(const IOThread *io, IOThreadStats *ret)
{
    char path[64], line[128];
    struct timespec cpu;
    clockid_t clock;
    FILE *status;
    int err = pthread_getcpuclockid(io->thread, &clock);

    if (err) {
        return -err;
    }
    if (clock_gettime(clock, &cpu) < 0) {
        return -errno;
    }
    ret->cpu_ns = (uint64_t)ns_of(&cpu);
    snprintf(path, sizeof(path), "/proc/self/task/%d/status", (int)io->tid);
    status = fopen(path, "re");
    if (!status) {
        return -errno;
    }
    while (fgets(line, sizeof(line), status)) {
        sscanf(line, "voluntary_ctxt_switches: %" SCNu64, &ret->voluntary_switches);
        sscanf(line, "nonvoluntary_ctxt_switches: %" SCNu64, &ret->involuntary_switches);
    }
    fclose(status);
    return 0;
}

int iothread_get_stats(IOThread *iothread, IOThreadStats *ret_stats)
{
    IOThreadStats stats = { .tid = iothread->tid };
    int ret = 0, cancel;

    rcu_check_fork("iothread_get_stats");
    cancel = cancel_off(); /* the thread could not end without the lock */
    pthread_mutex_lock(&iothread->lock);
    if (iothread->ended) {
        stats = iothread->at_the_end;
    } else {
        ret = ask_kernel(iothread, &stats);
        stats.running = true;
    }
    pthread_mutex_unlock(&iothread->lock);
    cancel_restore(cancel);
    if (ret < 0) {
        return ret;
    }
    aio_context_get_stats(iothread->ctx, &stats.context);
    *ret_stats = stats;
    return 0;
}

/* ---- Ending it ------------------------------------------------------------------------------- */

void iothread_stop(IOThread *iothread)
{
    rcu_check_fork("iothread_stop");
    st_seq(&iothread->stopping, true);
    aio_notify(iothread->ctx);
}

static void check_not_self(IOThread *io, const char *call)
{
    /* Once it is joined, its pthread_t may be another thread's. */
    if (!io->joined && pthread_equal(pthread_self(), io->thread)) {
        die_misuse(call, "iothread '%s' cannot wait for itself; call iothread_stop()", io->name);
    }
}

int iothread_join(IOThread *iothread)
{
    rcu_check_fork("iothread_join");
    check_not_self(iothread, "iothread_join");
    rcu_check_may_wait("iothread_join");
    if (iothread->joined) {
        return 0;
    }
    if (this_thread.callbacks) {
        return -EDEADLK;
    }
    pthread_join(iothread->thread, NULL);
    iothread->joined = true;
    return 0;
}

int iothread_destroy(IOThread *iothread)
{
    int ret;

    if (!iothread) {
        return 0;
    }
    rcu_check_fork("iothread_destroy");
    check_not_self(iothread, "iothread_destroy");
    iothread_stop(iothread);
    ret = iothread_join(iothread);
    if (ret == -EDEADLK) {
        pthread_detach(iothread->thread);
    }
    aio_context_unref(iothread->ctx);
    put_iothread(iothread);
    return ret;
}
