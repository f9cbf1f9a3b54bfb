/* SPDX-License-Identifier: MIT */
/*
 * Watches for steps of the host clock (settimeofday(2), NTP) and re-evaluates every HOST deadline.
 *
 * A thread reads a timerfd armed far in the future with TFD_TIMER_CANCEL_ON_SET: the read ends with
 * ECANCELED at a step (timerfd_create(2)).  One thread for the process, started with the first HOST
 * timer, costs the loops neither an fd nor a system call.  Where it cannot be started, timers on
 * HOST work as before and a step is seen when the loop wakes next.
 */
#include "timers/clock_int.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef TFD_TIMER_CANCEL_ON_SET
#define TFD_TIMER_CANCEL_ON_SET (1 << 1)
#endif

static int arm_far_in_the_future(int fd)
{
    const time_t ten_years = 10 * 365 * 86400;
    struct itimerspec far = { .it_value.tv_sec = time(NULL) + ten_years };

    return timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, NULL);
}

static void *watch(void *arg)
{
    int fd = (int)(intptr_t)arg;
    uint64_t expirations;

    pthread_setname_np(pthread_self(), "aioctx-clock");
    while (read(fd, &expirations, sizeof(expirations)) >= 0 || errno == ECANCELED ||
           errno == EINTR) {
        /* ECANCELED: a step since the last arming; it is armed all the same. */
        if (arm_far_in_the_future(fd) < 0 && errno != ECANCELED) {
            break;
        }
        qemu_clock_notify(QEMU_CLOCK_HOST); /* after the arming: no step falls in between */
    }
    close(fd);
    return NULL;
}

/* Armed before the first HOST timer is: what steps from then on is seen. */
static void start(void)
{
    int fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;

    if (fd < 0) {
        return;
    }
    arm_far_in_the_future(fd);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attr, watch, (void *)(intptr_t)fd) != 0) {
        close(fd);
    }
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void host_watch_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, start);
}
