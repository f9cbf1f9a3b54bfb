/* SPDX-License-Identifier: MIT */
/*
 * Throttle groups: limits of I/O that backends share, on any number of threads.
 *
 * A backend joins a group with the filter "throttle": "throttle:group=disks,iops=1000,file:a.img".
 * Each of its contexts is a member; members that have requests waiting take turns.
 */
#ifndef AIOCTX_THROTTLE_H
#define AIOCTX_THROTTLE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What is counted. */
typedef enum {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_OPS_TOTAL,
    THROTTLE_OPS_READ,
    THROTTLE_OPS_WRITE,
    THROTTLE_BUCKETS,
} ThrottleBucketType;

/*
 * One limit.  In the long run there are @avg units a second.  With @max, after a quiet time, there
 * may be that many a second for @max_length_ms; without, a quiet time is made up for by what comes
 * in 50 ms.
 */
typedef struct ThrottleBucket {
    uint64_t avg;           /* bytes or operations a second, up to 10^15; 0: no limit */
    uint64_t max;           /* 0, or more than avg, up to 10^15 */
    uint32_t max_length_ms; /* 1 to 3600000 with a max; 0: 1000 */
    uint32_t pad;
} ThrottleBucket;

typedef struct ThrottleConfig {
    ThrottleBucket bucket[THROTTLE_BUCKETS];
    uint64_t op_size; /* a request counts as one operation for each so many bytes, or part of them;
                       * 0: as one */
    uint64_t reserved[5];
} ThrottleConfig;

/*
 * Changes a group's limits; what waits is held to the new ones from now on.  What was let through
 * before counts: to set limits, be it the same ones, earns no burst.
 * Returns 0; -ENOENT when there is no group @name; -EINVAL for a limit out of range, and says on
 * stderr which.  Thread: any.
 */
int throttle_group_set_config(const char *name, const ThrottleConfig *config);

/* Returns 0 with the group's limits in *@ret_config, or -ENOENT.  Thread: any. */
int throttle_group_get_config(const char *name, ThrottleConfig *ret_config);

#ifdef __cplusplus
}
#endif

#endif
