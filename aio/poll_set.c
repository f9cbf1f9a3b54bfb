/* SPDX-License-Identifier: MIT */
/*
 * A set of foreign fds; see poll_set_int.h.
 *
 * The kernel keeps an epoll set by file and number.  It drops a file when the last descriptor of it
 * goes, so a number that was closed and used again is not in the set any more: EPOLL_CTL_MOD, which
 * is tried first on every fd, fails then with ENOENT.  A file whose number was closed while another
 * descriptor of it lives on stays in the set, and nothing can name it any more to take it out: who
 * finds the set ready, and none of the fds, closes the set.
 */
#include "aio/poll_set_int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLPRI == POLLPRI &&
                  EPOLLRDHUP == POLLRDHUP && EPOLLRDNORM == POLLRDNORM &&
                  EPOLLRDBAND == POLLRDBAND && EPOLLWRNORM == POLLWRNORM &&
                  EPOLLWRBAND == POLLWRBAND,
              "events of poll(2) are handed on as they are");

static int by_fd(const void *a, const void *b)
{
    const struct pollfd *pa = a, *pb = b;

    return (pa->fd > pb->fd) - (pa->fd < pb->fd);
}

/* Sorts, drops negative fds, and makes one of those that name the same fd.  Returns how many are
 * left. */
static unsigned tidy(struct pollfd *fds, unsigned n)
{
    unsigned used = 0;

    qsort(fds, n, sizeof(*fds), by_fd);
    for (unsigned i = 0; i < n; i++) {
        if (used > 0 && fds[used - 1].fd == fds[i].fd) {
            fds[used - 1].events |= fds[i].events;
        } else if (fds[i].fd >= 0) {
            fds[used++] = fds[i];
        }
    }
    return used;
}

static int watch(int epfd, const struct pollfd *p)
{
    struct epoll_event ev = { .events = (unsigned short)p->events };

    if (epoll_ctl(epfd, EPOLL_CTL_MOD, p->fd, &ev) == 0 ||
        (errno == ENOENT && epoll_ctl(epfd, EPOLL_CTL_ADD, p->fd, &ev) == 0) || errno == EPERM) {
        return 0; /* EPERM: it never changes between ready and not */
    }
    return -errno;
}

/* Takes out what is in @old and not in @wanted, both sorted.  What was closed has gone by itself.
 */
static void unwatch_others(int epfd, const struct pollfd *old, unsigned n_old,
                           const struct pollfd *wanted, unsigned n)
{
    for (unsigned i = 0, k = 0; i < n_old; i++) {
        while (k < n && wanted[k].fd < old[i].fd) {
            k++;
        }
        if (k == n || wanted[k].fd != old[i].fd) {
            epoll_ctl(epfd, EPOLL_CTL_DEL, old[i].fd, &(struct epoll_event){ 0 });
        }
    }
}

int poll_set_update(struct poll_set *set, const struct pollfd *fds, unsigned n)
{
    struct pollfd *wanted;
    int ret = 0;

    if (set->epfd < 0) {
        set->epfd = epoll_create1(EPOLL_CLOEXEC);
        if (set->epfd < 0) {
            return -errno;
        }
    }
    wanted = malloc((n ? n : 1) * sizeof(*wanted));
    if (!wanted) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < n; i++) {
        wanted[i] = fds[i];
    }
    n = tidy(wanted, n);
    unwatch_others(set->epfd, set->in, set->used, wanted, n);
    for (unsigned i = 0; i < n; i++) {
        int err = watch(set->epfd, &wanted[i]);

        if (err < 0 && ret != -EBADF) {
            ret = err;
        }
    }
    free(set->in);
    set->in = wanted;
    set->used = n;
    return ret;
}

bool poll_set_is_ready(const struct poll_set *set)
{
    struct epoll_event ev;

    return set->epfd >= 0 && epoll_wait(set->epfd, &ev, 1, 0) > 0;
}

void poll_set_close(struct poll_set *set)
{
    if (set->epfd >= 0) {
        close(set->epfd);
    }
    free(set->in);
    *set = (struct poll_set)POLL_SET_INIT;
}
