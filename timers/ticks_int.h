/* SPDX-License-Identifier: MIT */
/* The processor's cycle counter. */
#ifndef TIMERS_TICKS_INT_H
#define TIMERS_TICKS_INT_H

#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

/* Whether there is one that user space may read. */
#if defined(__x86_64__) || defined(__i386__) || defined(__aarch64__)
#define HOST_HAS_TICKS 1
#else
#define HOST_HAS_TICKS 0
#endif

#if HOST_HAS_TICKS
/* In no order with the loads and stores around it. */
static inline uint64_t host_ticks(void)
{
#if defined(__aarch64__)
    uint64_t v;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(v));
    return v;
#else
    return __rdtsc();
#endif
}
#endif

/* Whether the counter goes on at one speed, whatever the processor does. */
static inline int host_ticks_are_steady(void)
{
#if defined(__x86_64__) || defined(__i386__)
    enum { ADVANCED_POWER = 0x80000007u - 0x80000000u, INVARIANT_TSC = 1 << 8 };
    unsigned a, b, c, d;

    return __get_cpuid(0x80000000u + ADVANCED_POWER, &a, &b, &c, &d) && (d & INVARIANT_TSC);
#else
    return HOST_HAS_TICKS;
#endif
}

#endif
