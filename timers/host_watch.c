/* SPDX-License-Identifier: MIT */
/*
 * Watches for steps of the host clock (settimeofday(2), NTP) and re-evaluates every HOST deadline.
 *
 * A thread reads a timerfd armed far in the future with TFD_TIMER_CANCEL_ON_SET: the read ends with
 * ECANCELED at a step (timerfd_create(2)).  One thread for the process, started with the first HOST
 * timer, costs the loops neither an fd nor a system call.  Where it cannot be started, timers on HOST
 * work as before and a step is seen when the loop wakes next.
 */
#include "timers/clock_int.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef TFD_TIMER_CANCEL_ON_SET
#define TFD_TIMER_CANCEL_ON_SET (1 << 1)
#endif

static void *watch(void *unused)
{
    const time_t ten_years = 10 * 365 * 86400;
    int fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
    uint64_t expirations;

    if (fd < 0) {
        return NULL;
    }
    for (;;) {
        struct itimerspec far = { .it_value.tv_sec = time(NULL) + ten_years };

        if (timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, NULL) < 0) {
            if (errno != ECANCELED) {
                break;
            }
            qemu_clock_notify(QEMU_CLOCK_HOST); /* a step since the last arming; it is armed now */
        }
        if (read(fd, &expirations, sizeof(expirations)) < 0 && errno != ECANCELED && errno != EINTR) {
            break;
        }
        qemu_clock_notify(QEMU_CLOCK_HOST);
    }
    close(fd);
    return NULL;
}

static void start(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attr, watch, NULL) == 0) {
        pthread_setname_np(thread, "aioctx-clock");
    }
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void host_watch_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, start);
}
