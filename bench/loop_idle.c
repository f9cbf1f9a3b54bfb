/* SPDX-License-Identifier: MIT */
/*
 * loop_bench: what a loop costs that has nothing to do.
 *
 *   idle    IDLE_LOOPS iothreads on each monitor, an fd watched on each, do nothing for a time (n,
 *           in milliseconds).  Of the average one: how often its thread got a processor (0: it has
 *           made no system call and was not woken), the system calls that it counted itself, and
 *           whether the kernel takes it to wait for I/O.  The last is the least number of processes
 *           that /proc/stat says are blocked, beside that before; submit-and-wait are as many
 *           threads in liburing's plain wait, which shows that this would be seen
 *   memory  resident bytes of an iothread that sleeps: pages that it has written, its stack and
 *           rings included; rings count with all that is mapped of them.  In a process of its own,
 *           and not what the kernel holds for a thread and its file descriptors
 */
#include "loop_impl.h"
#include "memory.h"
#include "ring.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { IDLE_LOOPS = 8, MEMORY_LOOPS = 32, SETTLE_MS = 20 };

static void wait_sem(sem_t *sem)
{
    while (sem_wait(sem) && errno == EINTR) {
    }
}

static void sleep_ms(unsigned ms)
{
    bench_sleep_ns(ms * UINT64_C(1000000));
}

/* ---- What the kernel says -------------------------------------------------------------------- */

/* How often a thread of this process got a processor. */
static uint64_t times_run(pid_t tid)
{
    char path[64];
    unsigned long long cpu_ns, wait_ns, times = 0;
    snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", (int)tid);
    FILE *f = fopen(path, "re");
    if (!f || fscanf(f, "%llu %llu %llu", &cpu_ns, &wait_ns, &times) != 3) {
        bench_die("loop_bench: cannot read %s", path);
    }
    fclose(f);
    return times;
}

/* The processes of the machine that wait for I/O. */
static unsigned blocked_now(void)
{
    char line[4200];
    unsigned blocked = 0;
    FILE *f = fopen("/proc/stat", "re");
    while (f && fgets(line, sizeof(line), f)) {
        sscanf(line, "procs_blocked %u", &blocked);
    }
    if (f) {
        fclose(f);
    }
    return blocked;
}

/* The least number of them over a time. */
static unsigned least_blocked(unsigned ms)
{
    uint64_t end = bench_now_ns() + ms * UINT64_C(1000000);
    unsigned least = blocked_now();
    while (bench_now_ns() < end) {
        unsigned now = blocked_now();
        least = now < least ? now : least;
        sleep_ms(ms < 100 ? 1 : 5);
    }
    return least;
}

/* ---- Idle iothreads -------------------------------------------------------------------------- */

struct idle {
    IOThread *io;
    AioContext *ctx;
    EventNotifier fd;
    pid_t tid;
    sem_t ready;
};

static void on_fd(EventNotifier *e)
{
    event_notifier_test_and_clear(e);
}

static void set_up(void *opaque)
{
    struct idle *idle = opaque;
    idle->tid = (pid_t)syscall(SYS_gettid);
    aio_set_event_notifier(idle->ctx, &idle->fd, on_fd, NULL, NULL);
    sem_post(&idle->ready);
}

static bool start_idle(struct idle *idle, const char *monitor)
{
    idle->io = iothread_new("bench-idle", &(IOThreadOptions){ .context.monitor = monitor });
    if (!idle->io) {
        return false;
    }
    idle->ctx = iothread_get_aio_context(idle->io);
    sem_init(&idle->ready, 0, 0);
    if (event_notifier_init(&idle->fd, 0) || aio_bh_schedule_oneshot(idle->ctx, set_up, idle)) {
        bench_die("loop_bench: out of memory or file descriptors");
    }
    wait_sem(&idle->ready);
    return true;
}

static void stop_idle(struct idle *idle)
{
    iothread_destroy(idle->io);
    event_notifier_cleanup(&idle->fd);
    sem_destroy(&idle->ready);
}

static uint64_t syscalls_of(AioContext *ctx)
{
    AioContextStats stats;
    aio_context_get_stats(ctx, &stats);
    return stats.syscalls;
}

static void sample_idle(struct bench *b, const char *monitor, unsigned ms)
{
    struct idle loops[IDLE_LOOPS] = { 0 };
    uint64_t run_before = 0, run_after = 0, calls_before = 0, calls_after = 0;
    unsigned nr = 0, before = least_blocked(ms / 2);
    while (nr < IDLE_LOOPS && start_idle(&loops[nr], monitor)) {
        nr++;
    }
    sleep_ms(SETTLE_MS);
    for (unsigned i = 0; i < nr; i++) {
        run_before += times_run(loops[i].tid);
        calls_before += syscalls_of(loops[i].ctx);
    }
    unsigned after = least_blocked(ms);
    for (unsigned i = 0; i < nr; i++) {
        run_after += times_run(loops[i].tid);
        calls_after += syscalls_of(loops[i].ctx);
    }
    for (unsigned i = 0; i < nr; i++) {
        stop_idle(&loops[i]);
    }
    if (nr < IDLE_LOOPS) {
        printf("idle: %s skipped: this machine cannot do it\n", loop_impl_of(monitor));
        return;
    }
    struct bench_row *row = bench_row(b, "idle", loop_impl_of(monitor), IDLE_LOOPS, ms);
    bench_sample(row, BENCH_TIMES_RUN, (double)(run_after - run_before) / IDLE_LOOPS);
    bench_sample(row, BENCH_SYSCALLS, (double)(calls_after - calls_before) / IDLE_LOOPS);
    bench_sample(row, BENCH_IOWAIT, after > before ? (double)(after - before) / IDLE_LOOPS : 0);
    b->checksum += IDLE_LOOPS;
}

/* ---- Threads in liburing's wait, for comparison ---------------------------------------------- */

struct waiter {
    pthread_t thread;
    struct io_uring ring;
    bool cannot;
    int fd; /* readable when the wait is to end */
    sem_t ready;
};

static void *waiter_thread(void *opaque)
{
    struct waiter *w = opaque;
    w->cannot = bench_ring_init(&w->ring, 8);
    sem_post(&w->ready);
    if (!w->cannot) {
        io_uring_prep_poll_add(io_uring_get_sqe(&w->ring), w->fd, POLLIN);
        while (io_uring_submit_and_wait(&w->ring, 1) == -EINTR) {
        }
        bench_ring_exit(&w->ring);
    }
    return NULL;
}

static void sample_waiters(struct bench *b, unsigned ms)
{
    struct waiter waiters[IDLE_LOOPS] = { 0 };
    unsigned before = least_blocked(ms / 2);
    EventNotifier end;
    if (event_notifier_init(&end, 0)) {
        bench_die("loop_bench: cannot make an eventfd");
    }
    for (unsigned i = 0; i < IDLE_LOOPS; i++) {
        struct waiter *w = &waiters[i];
        w->fd = event_notifier_get_fd(&end);
        sem_init(&w->ready, 0, 0);
        if (pthread_create(&w->thread, NULL, waiter_thread, w)) {
            bench_die("loop_bench: cannot start a thread");
        }
        wait_sem(&w->ready);
    }
    sleep_ms(SETTLE_MS);
    unsigned after = least_blocked(ms);
    event_notifier_set(&end);
    for (unsigned i = 0; i < IDLE_LOOPS; i++) {
        pthread_join(waiters[i].thread, NULL);
        sem_destroy(&waiters[i].ready);
    }
    event_notifier_cleanup(&end);
    if (!waiters[0].cannot) {
        struct bench_row *row = bench_row(b, "idle", "submit-and-wait", IDLE_LOOPS, ms);
        bench_sample(row, BENCH_IOWAIT, after > before ? (double)(after - before) / IDLE_LOOPS : 0);
    }
}

void loop_idle_run(struct bench *b, unsigned idle_ms)
{
    for (unsigned i = 0; loop_monitors[i]; i++) {
        sample_idle(b, loop_monitors[i], idle_ms);
    }
    sample_waiters(b, idle_ms);
    bench_print(b, "idle", BENCH_TIMES_RUN);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static uint64_t resident_bytes(void)
{
    uint64_t rings;
    uint64_t written = bench_written_bytes(&rings);
    return written + rings;
}

int loop_memory_child(const char *monitor)
{
    static struct idle first, loops[MEMORY_LOOPS];
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    resident_bytes(); /* what reading takes */
    if (!start_idle(&first, monitor)) {
        printf("-1\n");
        return 0;
    }
    sleep_ms(SETTLE_MS);
    uint64_t before = resident_bytes();
    for (unsigned i = 0; i < MEMORY_LOOPS; i++) {
        if (!start_idle(&loops[i], monitor)) {
            bench_die("loop_bench: cannot start an iothread: %s", strerror(errno));
        }
    }
    sleep_ms(SETTLE_MS);
    printf("%lld\n", ((long long)resident_bytes() - (long long)before) / MEMORY_LOOPS);
    for (unsigned i = 0; i < MEMORY_LOOPS; i++) {
        stop_idle(&loops[i]);
    }
    stop_idle(&first);
    return 0;
}

void loop_memory_run(struct bench *b)
{
    for (unsigned run = 0; run < b->runs && run < 5; run++) {
        for (unsigned i = 0; loop_monitors[i]; i++) {
            const char *impl = loop_impl_of(loop_monitors[i]);
            const char *const argv[] = { "--memory-of", loop_monitors[i], NULL };
            long long bytes = bench_ask_self(argv);
            if (bytes >= 0) {
                bench_check(b, bytes > 0, "memory: an iothread of %s takes none", impl);
                bench_sample(bench_row(b, "memory", impl, 1, 1), BENCH_BYTES, (double)bytes);
                b->checksum += bytes > 0;
            }
        }
    }
    bench_print(b, "memory", BENCH_BYTES);
}
