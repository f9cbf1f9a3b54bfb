/* SPDX-License-Identifier: MIT */
/* The few helpers that every folder needs. */
#ifndef RCU_UTIL_INT_H
#define RCU_UTIL_INT_H

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
 * How deep the calling thread is in callbacks of the library.  Calls that wait look here, since a
 * loop that waits for another loop could wait for itself.
 */
struct callback_depth {
    unsigned any;   /* of a home thread: timers, bottom halves, fds, completions */
    unsigned timer; /* timers alone */
};
extern __thread struct callback_depth callback_depth
    __attribute__((tls_model("initial-exec"))); /* no call to find it */

#endif
