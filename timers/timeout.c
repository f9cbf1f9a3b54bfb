/* SPDX-License-Identifier: MIT */
/* Timeouts in nanoseconds for system calls that take others. */
#include "rcu/util_int.h"

#include <aioctx/timers.h>
#include <poll.h>
#include <time.h>

int qemu_timeout_ns_to_ms(int64_t ns)
{
    if (ns < 0) {
        return -1;
    }
    int64_t ms = ns / SCALE_MS + (ns % SCALE_MS > 0);
    return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

int qemu_poll_ns(struct pollfd *fds, unsigned nfds, int64_t timeout_ns)
{
    struct timespec ts = {
        .tv_sec = timeout_ns / INT64_C(1000000000),
        .tv_nsec = timeout_ns % INT64_C(1000000000),
    };

    return ppoll(fds, nfds, timeout_ns < 0 ? NULL : &ts, NULL);
}
