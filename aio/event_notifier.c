/* SPDX-License-Identifier: MIT */
/* Event notifiers: an eventfd that a loop can watch. */
#include "rcu/util_int.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int event_notifier_init(EventNotifier *e, int active)
{
    int fd = eventfd(active ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (fd < 0) {
        return -errno;
    }
    *e = (EventNotifier){ .rfd = fd, .wfd = fd, .initialized = true };
    return 0;
}

void event_notifier_cleanup(EventNotifier *e)
{
    if (!e->initialized) {
        return;
    }
    close(e->rfd);
    *e = (EventNotifier){ .rfd = -1, .wfd = -1 };
}

int event_notifier_set(EventNotifier *e)
{
    const uint64_t one = 1;
    int saved = errno, ret = 0;

    if (!e->initialized) {
        return -EINVAL;
    }
    while (write(e->wfd, &one, sizeof(one)) < 0) {
        if (errno != EINTR) {
            ret = errno == EAGAIN ? 0 : -errno; /* EAGAIN: the counter is full, so it is set */
            break;
        }
    }
    errno = saved;
    return ret;
}

int event_notifier_test_and_clear(EventNotifier *e)
{
    uint64_t value;
    ssize_t len;

    if (!e->initialized) {
        return 0;
    }
    do {
        len = read(e->rfd, &value, sizeof(value));
    } while (len < 0 && errno == EINTR);
    return len == sizeof(value);
}

int event_notifier_get_fd(const EventNotifier *e)
{
    return e->rfd;
}
