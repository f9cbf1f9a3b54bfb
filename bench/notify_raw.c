/* SPDX-License-Identifier: MIT */
/* notify_bench's peers: two plain threads over a futex, an eventfd, an eventfd below epoll, and a
 * word that both look at without sleeping. */
#include "notify_impl.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- futex ----------------------------------------------------------------------------------- */

/* Each side sleeps on its own word, which the other sets to 1. */
struct futex_state {
    struct {
        _Alignas(64) atomic_uint word;
    } side[2];
};

static bool futex_open(void *state, int me)
{
    return true;
}

static void futex_close(void *state, int me)
{
}

static void futex_wait(void *state, int me)
{
    atomic_uint *word = &((struct futex_state *)state)->side[me].word;
    while (!atomic_exchange(word, 0)) {
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    }
}

static void futex_pass(void *state, int me, bool wait)
{
    atomic_uint *word = &((struct futex_state *)state)->side[!me].word;
    atomic_store(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    if (wait) {
        futex_wait(state, me);
    }
}

static const struct transport futex_transport = { sizeof(struct futex_state), futex_open,
                                                  futex_close, futex_pass, futex_wait };

const struct notify_impl notify_futex = { .name = "futex", .transport = &futex_transport };

void notify_futex_awake(uint64_t ops)
{
    atomic_uint word = 0;
    for (uint64_t i = 0; i < ops; i++) {
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

/* ---- eventfd --------------------------------------------------------------------------------- */

struct eventfd_state {
    int fd[2], epoll[2];
};

static void set_eventfd(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        bench_die("notify_bench: writing an eventfd: %s", strerror(errno));
    }
}

static void read_eventfd(int fd)
{
    uint64_t count;
    if (read(fd, &count, sizeof(count)) != sizeof(count)) {
        bench_die("notify_bench: reading an eventfd: %s", strerror(errno));
    }
}

static bool eventfd_open(void *state, int me)
{
    struct eventfd_state *s = state;
    s->epoll[me] = -1;
    s->fd[me] = eventfd(0, EFD_CLOEXEC);
    return s->fd[me] >= 0;
}

static void eventfd_close(void *state, int me)
{
    struct eventfd_state *s = state;
    if (s->fd[me] >= 0) {
        close(s->fd[me]);
    }
    if (s->epoll[me] >= 0) {
        close(s->epoll[me]);
    }
}

static void eventfd_wait(void *state, int me)
{
    read_eventfd(((struct eventfd_state *)state)->fd[me]);
}

static void eventfd_pass(void *state, int me, bool wait)
{
    set_eventfd(((struct eventfd_state *)state)->fd[!me]);
    if (wait) {
        eventfd_wait(state, me);
    }
}

static const struct transport eventfd_transport = { sizeof(struct eventfd_state), eventfd_open,
                                                    eventfd_close, eventfd_pass, eventfd_wait };

const struct notify_impl notify_eventfd = { .name = "eventfd", .transport = &eventfd_transport };

void notify_eventfd_awake(uint64_t ops)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        bench_die("notify_bench: eventfd: %s", strerror(errno));
    }
    for (uint64_t i = 0; i < ops; i++) {
        set_eventfd(fd);
    }
    close(fd);
}

/* ---- eventfd and epoll ----------------------------------------------------------------------- */

static bool epoll_open(void *state, int me)
{
    struct eventfd_state *s = state;
    if (!eventfd_open(state, me)) {
        return false;
    }
    struct epoll_event ev = { .events = EPOLLIN };
    s->epoll[me] = epoll_create1(EPOLL_CLOEXEC);
    return s->epoll[me] >= 0 && !epoll_ctl(s->epoll[me], EPOLL_CTL_ADD, s->fd[me], &ev);
}

static void epoll_wait_side(void *state, int me)
{
    struct eventfd_state *s = state;
    struct epoll_event ev;
    while (epoll_wait(s->epoll[me], &ev, 1, -1) < 0 && errno == EINTR) {
    }
    read_eventfd(s->fd[me]);
}

static void epoll_pass(void *state, int me, bool wait)
{
    set_eventfd(((struct eventfd_state *)state)->fd[!me]);
    if (wait) {
        epoll_wait_side(state, me);
    }
}

static const struct transport epoll_transport = { sizeof(struct eventfd_state), epoll_open,
                                                  eventfd_close, epoll_pass, epoll_wait_side };

const struct notify_impl notify_eventfd_epoll = { .name = "eventfd-epoll",
                                                  .transport = &epoll_transport };

/* ---- Without sleeping ------------------------------------------------------------------------ */

struct spin_state {
    struct {
        _Alignas(BENCH_ALIGN) atomic_uint word;
    } side[2];
};

static void spin_wait(void *state, int me)
{
    atomic_uint *word = &((struct spin_state *)state)->side[me].word;
    while (!atomic_load_explicit(word, memory_order_acquire)) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
    atomic_store_explicit(word, 0, memory_order_relaxed);
}

static void spin_pass(void *state, int me, bool wait)
{
    atomic_store_explicit(&((struct spin_state *)state)->side[!me].word, 1, memory_order_release);
    if (wait) {
        spin_wait(state, me);
    }
}

static const struct transport spin_transport = { sizeof(struct spin_state), futex_open, futex_close,
                                                 spin_pass, spin_wait };

const struct notify_impl notify_spin = { .name = "spin",
                                         .transport = &spin_transport,
                                         .spins = true };
