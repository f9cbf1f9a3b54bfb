/* SPDX-License-Identifier: MIT */
/*
 * A set of foreign fds that can be waited for as one: an epoll fd, which is readable when one of
 * them is ready.  It only says that there is something; poll(2) says what.
 */
#ifndef AIO_POLL_SET_INT_H
#define AIO_POLL_SET_INT_H

#include <poll.h>
#include <stdbool.h>

struct poll_set {
    int epfd;          /* -1: none */
    struct pollfd *in; /* what it holds: sorted by fd, each once */
    unsigned used;
};

#define POLL_SET_INIT \
    { \
        .epfd = -1 \
    }

/*
 * Makes the set hold these fds, which were open and not ready a moment ago.  Numbers may have come
 * to stand for other files since the last time, so each fd is set anew.  An fd that cannot be
 * waited for, such as a regular file, is left out.
 * Returns 0; -EBADF: an fd is not open; else what epoll_create1(2), epoll_ctl(2) or malloc(3) left
 * in errno, negated: some are not in it.
 */
int poll_set_update(struct poll_set *set, const struct pollfd *fds, unsigned n);

/* Whether the set has something to tell. */
bool poll_set_is_ready(const struct poll_set *set);

/* Closes it; it may be used again. */
void poll_set_close(struct poll_set *set);

#endif
