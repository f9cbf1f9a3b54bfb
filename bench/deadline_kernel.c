/* SPDX-License-Identifier: MIT */
/* deadline_bench's POSIX timers, timerfds, ppoll and epoll_pwait2. */
#include "deadline_impl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

struct kernel_source {
    timer_t timer;
    int signal; /* 0: no timer */
    int timerfd, epoll;
    sigset_t wait_mask; /* for sigsuspend() */
    volatile sig_atomic_t fired __attribute__((aligned(BENCH_ALIGN)));
    uint64_t fired_ns; /* by the handler, on this thread */
};

static struct kernel_source *new_source(void)
{
    struct kernel_source *s = bench_alloc(sizeof(*s));
    s->timerfd = s->epoll = -1;
    return s;
}

static void kernel_close(void *state)
{
    struct kernel_source *s = state;
    if (s->signal) {
        timer_delete(s->timer);
    }
    if (s->timerfd >= 0) {
        close(s->timerfd);
    }
    if (s->epoll >= 0) {
        close(s->epoll);
    }
    free(s);
}

/* ---- Nothing: reads the clock until the deadline, the best that a program can do ------------- */

static void *spin_open(const struct deadline_source *source)
{
    return new_source();
}

static uint64_t spin_wait(void *state, uint64_t deadline_ns)
{
    uint64_t now;
    do {
        now = bench_now_ns();
    } while (now < deadline_ns);
    return now;
}

const struct deadline_source deadline_spin = {
    .name = "spin", .open = spin_open, .wait = spin_wait, .close = kernel_close
};

/* ---- POSIX timers ---------------------------------------------------------------------------- */

static __thread struct kernel_source *handlers_source;

static void on_signal(int signal)
{
    struct kernel_source *s = handlers_source;
    s->fired_ns = bench_now_ns();
    s->fired = 1;
}

/* Variant 0: sigwaitinfo(), 1: a handler.  Each has a signal of its own, blocked but for the
 * handler's while it waits. */
static void *signal_open(const struct deadline_source *source)
{
    struct kernel_source *s = new_source();
    struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID };
    sigset_t set;
    ev.sigev_signo = SIGRTMIN + source->variant;
    ev.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    sigemptyset(&set);
    sigaddset(&set, ev.sigev_signo);
    pthread_sigmask(SIG_BLOCK, &set, &s->wait_mask);
    sigdelset(&s->wait_mask, ev.sigev_signo);
    if (source->variant) {
        struct sigaction sa = { .sa_handler = on_signal };
        handlers_source = s;
        sigaction(ev.sigev_signo, &sa, NULL);
    }
    if (timer_create(CLOCK_MONOTONIC, &ev, &s->timer)) {
        free(s);
        return NULL;
    }
    s->signal = ev.sigev_signo;
    return s;
}

static void set_timer(struct kernel_source *s, uint64_t deadline_ns)
{
    struct itimerspec its = { .it_value = DEADLINE_TIMESPEC(deadline_ns) };
    if (timer_settime(s->timer, TIMER_ABSTIME, &its, NULL)) {
        bench_die("deadline_bench: timer_settime: %s", strerror(errno));
    }
}

static uint64_t sigwait_wait(void *state, uint64_t deadline_ns)
{
    struct kernel_source *s = state;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, s->signal);
    set_timer(s, deadline_ns);
    while (sigwaitinfo(&set, NULL) != s->signal) {
    }
    return bench_now_ns();
}

static uint64_t handler_wait(void *state, uint64_t deadline_ns)
{
    struct kernel_source *s = state;
    s->fired = 0;
    set_timer(s, deadline_ns);
    while (!s->fired) {
        sigsuspend(&s->wait_mask);
    }
    return s->fired_ns;
}

const struct deadline_source deadline_sigwait = {
    .name = "posix-sigwait", .open = signal_open, .wait = sigwait_wait, .close = kernel_close
};
const struct deadline_source deadline_handler = {
    .name = "posix-handler",
    .open = signal_open,
    .wait = handler_wait,
    .close = kernel_close,
    .variant = 1,
};

/* ---- timerfd --------------------------------------------------------------------------------- */

/* Variant 1: below epoll. */
static void *timerfd_open(const struct deadline_source *source)
{
    struct kernel_source *s = new_source();
    struct epoll_event ev = { .events = EPOLLIN };
    s->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (source->variant && s->timerfd >= 0) {
        s->epoll = epoll_create1(EPOLL_CLOEXEC);
    }
    if (s->timerfd < 0 ||
        (source->variant && epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->timerfd, &ev))) {
        kernel_close(s);
        return NULL;
    }
    return s;
}

static void set_timerfd(struct kernel_source *s, uint64_t deadline_ns)
{
    struct itimerspec its = { .it_value = DEADLINE_TIMESPEC(deadline_ns) };
    if (timerfd_settime(s->timerfd, TFD_TIMER_ABSTIME, &its, NULL)) {
        bench_die("deadline_bench: timerfd_settime: %s", strerror(errno));
    }
}

static void read_timerfd(struct kernel_source *s)
{
    uint64_t count;
    if (read(s->timerfd, &count, sizeof(count)) != sizeof(count) || count != 1) {
        bench_die("deadline_bench: reading a timerfd: %s", strerror(errno));
    }
}

static uint64_t timerfd_wait(void *state, uint64_t deadline_ns)
{
    set_timerfd(state, deadline_ns);
    read_timerfd(state);
    return bench_now_ns();
}

/* The callback of an event loop on epoll would run before it reads the timerfd, or after: after. */
static uint64_t timerfd_epoll_wait(void *state, uint64_t deadline_ns)
{
    struct kernel_source *s = state;
    struct epoll_event ev;
    set_timerfd(s, deadline_ns);
    while (epoll_wait(s->epoll, &ev, 1, -1) != 1) {
    }
    read_timerfd(s);
    return bench_now_ns();
}

const struct deadline_source deadline_timerfd = {
    .name = "timerfd-read", .open = timerfd_open, .wait = timerfd_wait, .close = kernel_close
};
const struct deadline_source deadline_timerfd_epoll = {
    .name = "timerfd-epoll",
    .open = timerfd_open,
    .wait = timerfd_epoll_wait,
    .close = kernel_close,
    .variant = 1,
};

/* ---- ppoll and epoll_pwait2 ------------------------------------------------------------------ */

static uint64_t ppoll_wait(void *state, uint64_t deadline_ns)
{
    uint64_t left = deadline_left(deadline_ns);
    struct timespec ts = DEADLINE_TIMESPEC(left);
    if (ppoll(NULL, 0, &ts, NULL)) {
        bench_die("deadline_bench: ppoll: %s", strerror(errno));
    }
    return bench_now_ns();
}

const struct deadline_source deadline_ppoll = {
    .name = "ppoll", .slack = true, .open = spin_open, .wait = ppoll_wait, .close = kernel_close
};

static long epoll_pwait2_ns(int epoll, uint64_t ns)
{
#ifdef SYS_epoll_pwait2
    struct epoll_event ev;
    struct timespec ts = DEADLINE_TIMESPEC(ns);
    return syscall(SYS_epoll_pwait2, epoll, &ev, 1, &ts, NULL, (size_t)8);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static void *epoll_open(const struct deadline_source *source)
{
    struct kernel_source *s = new_source();
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll < 0 || epoll_pwait2_ns(s->epoll, 0)) {
        kernel_close(s);
        return NULL;
    }
    return s;
}

static uint64_t epoll_pwait2_wait(void *state, uint64_t deadline_ns)
{
    struct kernel_source *s = state;
    if (epoll_pwait2_ns(s->epoll, deadline_left(deadline_ns))) {
        bench_die("deadline_bench: epoll_pwait2: %s", strerror(errno));
    }
    return bench_now_ns();
}

const struct deadline_source deadline_epoll_pwait2 = {
    .name = "epoll_pwait2",
    .slack = true,
    .open = epoll_open,
    .wait = epoll_pwait2_wait,
    .close = kernel_close,
};
