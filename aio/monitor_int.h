/* SPDX-License-Identifier: MIT */
/* Which monitor a context has, and which of the kernel's offers that uses. */
#ifndef AIO_MONITOR_INT_H
#define AIO_MONITOR_INT_H

#include "aio/aio_int.h"

/* In the order in which aio_context_describe() names them; the names are in monitor.c. */
typedef enum {
    FEATURE_CQSIZE,
    FEATURE_SUBMIT_ALL,
    FEATURE_R_DISABLED,
    FEATURE_SINGLE_ISSUER,
    FEATURE_DEFER_TASKRUN,
    FEATURE_COOP_TASKRUN,
    FEATURE_SQPOLL,
    FEATURE_NO_SQARRAY,
    FEATURE_ABS_TIMER,
    FEATURE_NO_IOWAIT,
    FEATURE_REGISTERED_RING,
    FEATURE_REGISTERED_FILES,
    FEATURE_REGISTERED_BUFFERS,
    FEATURE_EPOLL_PWAIT2,
    FEATURES,
} AioFeature;

#define FEATURE_BIT(feature) (UINT32_C(1) << (feature))

/* Adds to those that are in use, and to those that were wanted and cannot be had.
 * Thread: the one that makes the context, then home. */
void monitor_set_features(AioContext *ctx, uint32_t used, uint32_t dropped);
/* The same for one: @used or dropped.  One that was in use before stays so. */
void monitor_set_feature(AioContext *ctx, AioFeature feature, bool used);

/* Contexts that were closed keep their descriptors for a grace period: waits for that.  Not for
 * ever, since other threads may take what has come free; *@tries begins at 0, and @since is what
 * rcu_reclaimed() said before the try that failed. */
bool monitor_try_again(int err, int *tries, unsigned long since);

/* Makes the context's monitor, as @opts and AIOCTX_FDMON say.  Returns 0 or -errno. */
int monitor_init(AioContext *ctx, const AioContextOptions *opts);

#endif
