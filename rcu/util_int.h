/* SPDX-License-Identifier: MIT */
/* The few helpers that every folder needs. */
#ifndef RCU_UTIL_INT_H
#define RCU_UTIL_INT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Ends the program over a misuse: prints "aioctx: CALL: MESSAGE" on stderr and aborts. */
void die_misuse(const char *call, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

/* An assertion that stays on in every build. */
#define must(cond) \
    ((void)(likely(cond) ? 0 \
                         : (die_misuse(__func__, "internal check failed: %s (%s:%d)", #cond, \
                                       __FILE__, __LINE__), \
                            0)))

/*
 * What the library keeps of a thread, in one place that is found without a call.
 *
 * The depths say how deep the thread is in callbacks of the library.  Calls that wait look there,
 * since a loop that waits for another loop could wait for itself.
 */
struct this_thread {
    unsigned callbacks;       /* of a home thread: timers, bottom halves, fds, completions */
    unsigned timer_callbacks; /* timers alone */
    void *hint;               /* of timers/timer.c; NULL in a forked child */
    unsigned observed;        /* iterations that measure: aio/observe_int.h */
};
extern __thread struct this_thread this_thread __attribute__((tls_model("initial-exec")));

/*
 * Keeps a thread from being cancelled where it waits with a lock held, or as somebody whom others
 * go on to look at.
 */
static inline int cancel_off(void)
{
    int old;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    return old;
}

static inline void cancel_restore(int old)
{
    pthread_setcancelstate(old, NULL);
}

#endif
