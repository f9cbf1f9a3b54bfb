/* SPDX-License-Identifier: MIT */
/* The parts of an iteration's wait that busy polling puts itself before. */
#ifndef AIO_WAIT_INT_H
#define AIO_WAIT_INT_H

#include <aioctx/aio.h>

/* When to wait no longer: times of CLOCK_MONOTONIC, WAIT_NOT or WAIT_FOREVER. */
struct wait_plan {
    int64_t sleep_until;
    int64_t poll_until; /* precise mode: after the sleep; WAIT_NOT: no polling */
};

/* Looks at every source of work but ctx->done.  Both are WAIT_NOT when there is work. */
struct wait_plan wait_look(AioContext *ctx, int64_t limit_ns);

/* wait_for_events() without adaptive polling: the sleep, and precise mode's polling. */
void wait_in_kernel(AioContext *ctx, int64_t limit_ns);

/* A processor's hint that it is in a loop which waits for another. */
static inline void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
