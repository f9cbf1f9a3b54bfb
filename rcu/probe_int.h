/* SPDX-License-Identifier: MIT */
/*
 * Probes for tracers (USDT), of the provider "aioctx".  Each is a nop in the code, and a note
 * beside it that says where the arguments are; without the feature it is nothing, and its arguments
 * are not evaluated.  They should be at hand: what has to be computed for a probe is computed
 * always.
 * docs/observability.md lists every probe, and a test compares.
 *
 * Source: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
 */
#ifndef RCU_PROBE_INT_H
#define RCU_PROBE_INT_H

#ifdef AIOCTX_USDT

#include <sys/sdt.h>

#define probe1(name, a) DTRACE_PROBE1(aioctx, name, a)
#define probe2(name, a, b) DTRACE_PROBE2(aioctx, name, a, b)
#define probe3(name, a, b, c) DTRACE_PROBE3(aioctx, name, a, b, c)
#define probe4(name, a, b, c, d) DTRACE_PROBE4(aioctx, name, a, b, c, d)

#else

#define probe1(name, a) ((void)sizeof(a))
#define probe2(name, a, b) (probe1(name, a), probe1(name, b))
#define probe3(name, a, b, c) (probe2(name, a, b), probe1(name, c))
#define probe4(name, a, b, c, d) (probe3(name, a, b, c), probe1(name, d))

#endif

#endif
