/* SPDX-License-Identifier: MIT */
/* Throttle groups; see throttle_int.h. */
#include "block/throttle_int.h"

#include <aioctx/timers.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

#define SECOND_NS UINT64_C(1000000000)
#define RATE_MAX UINT64_C(1000000000000000)
enum { LENGTH_MS = 1000, LENGTH_MS_MAX = 3600000 };

/* One virtual clock. */
struct pace {
    uint64_t rate;      /* units a second; 0: no limit */
    int64_t tolerance;  /* ns */
    int64_t tat;        /* ns of QEMU_CLOCK_REALTIME */
    uint64_t rest;      /* of the last division: units x ns, less than the rate */
    int64_t owed_until; /* until then tat is not moved up to now: see throttle_int.h */
};

/* Of each bucket: the average's, and the burst's. */
struct bucket {
    struct pace avg, max;
};

struct throttle_group {
    char *name;                  /* NULL: nobody can find it */
    unsigned refs;               /* groups_lock */
    struct throttle_group *next; /* groups_lock */

    pthread_mutex_t lock;
    ThrottleConfig config;
    struct bucket bucket[THROTTLE_BUCKETS];
    uint64_t epoch;  /* atomic; lock to write */
    int64_t longest; /* that a request has taken of late, ns of the slowest limit */
    struct throttle_listener *listeners;
};

/* Taken before a group's lock. */
static pthread_mutex_t groups_lock = PTHREAD_MUTEX_INITIALIZER;
static struct throttle_group *groups;

/* ---- Limits ---------------------------------------------------------------------------------- */

const char *throttle_find_fault(const ThrottleConfig *config)
{
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        const ThrottleBucket *b = &config->bucket[i];

        if (b->avg > RATE_MAX || b->max > RATE_MAX) {
            return "a limit is 10^15 a second at most";
        }
        if (b->max && b->max <= b->avg) {
            return "a burst's limit (max) is above the average";
        }
        if (b->max && !b->avg) {
            return "a burst's limit (max) needs an average";
        }
        if (b->max_length_ms > LENGTH_MS_MAX) {
            return "a burst is 3600000 ms (an hour) long at most";
        }
        if (b->max_length_ms && !b->max) {
            return "a burst's length needs its limit (max)";
        }
    }
    return NULL;
}

/*
 * Gives a clock new limits.  Of the old tolerance the same share stays used, so that setting
 * limits, be it the same ones, earns no burst.  What was let through beyond the tolerance (a long
 * request) is waited for as before, or less under a higher rate.
 */
static void set_pace(struct pace *pace, uint64_t rate, int64_t tolerance, int64_t now)
{
    int64_t ahead = pace->rate && pace->tat > now ? pace->tat - now : 0;
    int64_t used = ahead < pace->tolerance ? ahead : pace->tolerance;
    long double debt = (long double)(ahead - used), tat;

    if (rate > pace->rate) {
        debt *= (long double)pace->rate / (long double)rate;
    }
    tat = (long double)now + debt;
    if (used > 0) {
        tat += (long double)used / (long double)pace->tolerance * (long double)tolerance;
    }
    pace->rate = rate;
    pace->tolerance = tolerance;
    pace->rest = 0;
    pace->tat = tat < 9.2e18L ? (int64_t)tat : INT64_MAX;
    pace->owed_until = 0;
}

/* How far the average's clock may run ahead in a burst. */
static int64_t burst_tolerance(const ThrottleBucket *b)
{
    uint64_t ms = b->max_length_ms ? b->max_length_ms : LENGTH_MS;
    long double ns = (long double)ms * 1e6L * ((long double)b->max / (long double)b->avg - 1);

    return ns < 4e18L ? (int64_t)ns : INT64_C(4000000000000000000);
}

static void apply_config_locked(struct throttle_group *group, const ThrottleConfig *config,
                                int64_t now)
{
    group->config = *config;
    st_release(&group->epoch, group->epoch + 1);
    group->longest = 0;
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        const ThrottleBucket *b = &config->bucket[i];

        set_pace(&group->bucket[i].avg, b->avg, b->max ? burst_tolerance(b) : THROTTLE_TOLERANCE_NS,
                 now);
        set_pace(&group->bucket[i].max, b->max, THROTTLE_TOLERANCE_NS, now);
    }
}

/* ---- Groups ---------------------------------------------------------------------------------- */

static struct throttle_group *find_locked(const char *name)
{
    struct throttle_group *group = groups;

    while (group && (!name || strcmp(group->name, name))) {
        group = group->next;
    }
    return name ? group : NULL;
}

static struct throttle_group *make(const char *name)
{
    struct throttle_group *group = calloc(1, sizeof(*group));

    if (group && name && !(group->name = strdup(name))) {
        free(group);
        group = NULL;
    }
    if (group) {
        pthread_mutex_init(&group->lock, NULL);
    }
    return group;
}

static int join_locked(struct throttle_group *group, const ThrottleConfig *config)
{
    int ret = 0;

    pthread_mutex_lock(&group->lock);
    if (config && memcmp(config, &group->config, sizeof(*config))) {
        ret = -EEXIST;
    }
    pthread_mutex_unlock(&group->lock);
    return ret;
}

int throttle_group_get(const char *name, const ThrottleConfig *config,
                       struct throttle_group **ret_group)
{
    struct throttle_group *group;
    int ret = 0;

    pthread_mutex_lock(&groups_lock);
    group = find_locked(name);
    if (group) {
        ret = join_locked(group, config);
    } else {
        group = make(name);
        ret = group ? 0 : -ENOMEM;
        if (group) {
            apply_config_locked(group, config ? config : &(ThrottleConfig){ 0 }, 0);
        }
        if (group && name) {
            group->next = groups;
            groups = group;
        }
    }
    if (ret == 0) {
        group->refs++;
        *ret_group = group;
    }
    pthread_mutex_unlock(&groups_lock);
    return ret;
}

void throttle_group_put(struct throttle_group *group)
{
    struct throttle_group **link;

    pthread_mutex_lock(&groups_lock);
    if (--group->refs > 0) {
        group = NULL;
    } else if (group->name) {
        for (link = &groups; *link != group; link = &(*link)->next) {
        }
        *link = group->next;
    }
    pthread_mutex_unlock(&groups_lock);
    if (group) {
        must(!group->listeners);
        pthread_mutex_destroy(&group->lock);
        free(group->name);
        free(group);
    }
}

static void refund_units_locked(struct throttle_group *group, bool write, uint64_t bytes,
                                uint64_t ops);

void throttle_group_change_locked(struct throttle_group *group, const ThrottleConfig *config,
                                  int64_t now)
{
    uint64_t bytes, ops;

    for (struct throttle_listener *l = group->listeners; l; l = l->next) {
        for (int write = 0; write < 2; write++) {
            l->reserved(l, write, group->epoch, &bytes, &ops);
            refund_units_locked(group, write, bytes, ops);
        }
    }
    apply_config_locked(group, config, now);
    for (struct throttle_listener *l = group->listeners; l; l = l->next) {
        l->changed(l);
    }
}

int throttle_group_set_config(const char *name, const ThrottleConfig *config)
{
    const char *fault = throttle_find_fault(config);
    struct throttle_group *group;

    if (fault) {
        fprintf(stderr, "aioctx: throttle_group_set_config: group '%s': %s\n", name, fault);
        return -EINVAL;
    }
    pthread_mutex_lock(&groups_lock);
    group = find_locked(name);
    if (group) {
        pthread_mutex_lock(&group->lock);
        throttle_group_change_locked(group, config, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
        pthread_mutex_unlock(&group->lock);
    }
    pthread_mutex_unlock(&groups_lock);
    return group ? 0 : -ENOENT;
}

int throttle_group_get_config(const char *name, ThrottleConfig *ret_config)
{
    struct throttle_group *group;

    pthread_mutex_lock(&groups_lock);
    group = find_locked(name);
    if (group) {
        pthread_mutex_lock(&group->lock);
        *ret_config = group->config;
        pthread_mutex_unlock(&group->lock);
    }
    pthread_mutex_unlock(&groups_lock);
    return group ? 0 : -ENOENT;
}

void throttle_group_listen(struct throttle_group *group, struct throttle_listener *listener)
{
    pthread_mutex_lock(&group->lock);
    listener->next = group->listeners;
    listener->pprev = &group->listeners;
    if (listener->next) {
        listener->next->pprev = &listener->next;
    }
    group->listeners = listener;
    pthread_mutex_unlock(&group->lock);
}

void throttle_group_unlisten(struct throttle_group *group, struct throttle_listener *listener)
{
    pthread_mutex_lock(&group->lock);
    *listener->pprev = listener->next;
    if (listener->next) {
        listener->next->pprev = listener->pprev;
    }
    pthread_mutex_unlock(&group->lock);
}

/* ---- Reservations ---------------------------------------------------------------------------- */

void throttle_group_lock(struct throttle_group *group)
{
    pthread_mutex_lock(&group->lock);
}

void throttle_group_unlock(struct throttle_group *group)
{
    pthread_mutex_unlock(&group->lock);
}

/* The buckets that a request falls into. */
static const uint8_t buckets_of[2][4] = {
    { THROTTLE_BPS_TOTAL, THROTTLE_OPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_OPS_READ },
    { THROTTLE_BPS_TOTAL, THROTTLE_OPS_TOTAL, THROTTLE_BPS_WRITE, THROTTLE_OPS_WRITE },
};

static int64_t start_of(const struct pace *pace)
{
    return pace->rate ? pace->tat - pace->tolerance : INT64_MIN;
}

int64_t throttle_group_start_locked(struct throttle_group *group, bool write)
{
    int64_t start = INT64_MIN;

    for (int i = 0; i < 4; i++) {
        const struct bucket *b = &group->bucket[buckets_of[write][i]];
        int64_t avg = start_of(&b->avg), max = start_of(&b->max);

        start = avg > start ? avg : start;
        start = max > start ? max : start;
    }
    return start;
}

/* The time that @work takes, which is in units x ns. */
static int64_t time_of(const struct pace *pace, unsigned __int128 work)
{
    work /= pace->rate;
    return work < INT64_MAX / 4 ? (int64_t)work : INT64_MAX / 4;
}

/* Moves the clock up to @at, or, while time is owed, to what can still be made up for. */
static void move_up(struct pace *pace, int64_t at)
{
    int64_t to = at < pace->owed_until ? at - THROTTLE_CATCH_UP_NS : at;

    pace->tat = pace->tat < to ? to : pace->tat;
}

/* Returns the time that @units take. */
static int64_t charge(struct pace *pace, uint64_t units, int64_t at)
{
    unsigned __int128 work;
    int64_t ns;

    if (!pace->rate) {
        return 0;
    }
    if (pace->tat < at) {
        move_up(pace, at);
    } else {
        pace->owed_until = 0; /* it has caught up */
    }
    work = (unsigned __int128)units * SECOND_NS + pace->rest;
    if (likely(work <= INT64_MAX)) {
        ns = (int64_t)((uint64_t)work / pace->rate);
        pace->rest = (uint64_t)work % pace->rate;
    } else {
        ns = time_of(pace, work);
        pace->rest = 0;
    }
    if (__builtin_add_overflow(pace->tat, ns, &pace->tat)) {
        pace->tat = INT64_MAX;
    }
    return ns;
}

uint64_t throttle_group_ops_locked(const struct throttle_group *group, uint64_t bytes)
{
    uint64_t op_size = group->config.op_size;

    return op_size && bytes > op_size ? (bytes + op_size - 1) / op_size : 1;
}

int64_t throttle_group_charge_locked(struct throttle_group *group, bool write, uint64_t bytes,
                                     unsigned n, int64_t at)
{
    uint64_t ops = throttle_group_ops_locked(group, bytes);
    int64_t longest = 0;

    for (int i = 0; i < 4; i++) {
        unsigned type = buckets_of[write][i];
        struct bucket *b = &group->bucket[type];
        uint64_t units = type < THROTTLE_OPS_TOTAL ? bytes * n : ops * n;
        int64_t avg = charge(&b->avg, units, at);

        longest = avg > longest ? avg : longest;
        charge(&b->max, units, at);
    }
    /* Falls by half in some 45 requests that are shorter. */
    group->longest -= group->longest / 64;
    group->longest = longest / n > group->longest ? longest / n : group->longest;
    return longest;
}

int64_t throttle_group_turn_locked(const struct throttle_group *group)
{
    int64_t turn = group->longest > THROTTLE_TURN_NS ? group->longest : THROTTLE_TURN_NS;

    return turn < THROTTLE_TOLERANCE_NS ? turn : THROTTLE_TOLERANCE_NS;
}

void throttle_group_late_locked(struct throttle_group *group, int64_t now)
{
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        struct bucket *b = &group->bucket[i];

        b->avg.owed_until = b->max.owed_until = now + THROTTLE_CATCH_UP_NS;
    }
}

static void refund(struct pace *pace, uint64_t units)
{
    if (pace->rate && pace->tat < INT64_MAX) { /* which stands for any later time too */
        pace->tat -= time_of(pace, (unsigned __int128)units * SECOND_NS);
    }
}

static void refund_units_locked(struct throttle_group *group, bool write, uint64_t bytes,
                                uint64_t ops)
{
    for (int i = 0; i < 4; i++) {
        unsigned type = buckets_of[write][i];
        uint64_t units = type < THROTTLE_OPS_TOTAL ? bytes : ops;

        refund(&group->bucket[type].avg, units);
        refund(&group->bucket[type].max, units);
    }
}

void throttle_group_refund_locked(struct throttle_group *group, bool write, uint64_t bytes,
                                  unsigned n)
{
    refund_units_locked(group, write, bytes * n, throttle_group_ops_locked(group, bytes) * n);
}

uint64_t throttle_group_epoch(const struct throttle_group *group)
{
    return ld_acquire(&group->epoch);
}
