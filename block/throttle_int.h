/* SPDX-License-Identifier: MIT */
/*
 * Throttle groups (throttle_group.c) and the filter that puts requests under them (throttle.c).
 *
 * A limit is a virtual clock, `tat`: the moment up to which what was let through has used the rate
 * up.  What costs c ns of the rate may begin when tat is no more than the tolerance ahead of now,
 * and moves it on by c from then: so a quiet time is credited up to the tolerance, and being late
 * costs nothing.  A bucket with a burst has two: the average with a long tolerance, and the burst's
 * own rate.
 * Source: ITU-T Recommendation I.371, annex A: the generic cell rate algorithm, as virtual
 * scheduling.
 *
 * Turns.  A member reserves for what waits at its head, one reservation at a time, and gets the
 * moment at which it may begin; it sleeps until then on a timer of its own, issues, and reserves
 * again.  Reservations are granted in the order in which they were asked for, so members that
 * always have something waiting take turns, and none has to wake another one.  A turn is worth the
 * same for all: TURN_NS of the rate, or the longest request of late, so that a thread that wakes
 * late by less loses no turn.  Who has less waiting than that when it reserves may use the rest
 * once its turn has come, without another reservation: so a member with one request in flight gets
 * as much as one with many.  What is passed so is charged as all else is, and the rate kept.
 *
 * Lateness.  Where requests wait, and their thread gets no processor for longer than the tolerance,
 * the rate of that time is not forgone: until `owed_until` the virtual clocks stay where they are,
 * and what waits catches up, for CATCH_UP_NS at most.  A quiet time is not made up for so.
 *
 * Credit.  While a group is far from its limits, a member that asks for one request has more like
 * it counted at once, up to a TURN_NS of the rate, and begins those without asking: neither the
 * group's lock nor the clock is needed for them.  Near the limits nobody gets any, so that rates
 * and turns are what they would be without; a change of the limits ends it.
 */
#ifndef BLOCK_THROTTLE_INT_H
#define BLOCK_THROTTLE_INT_H

#include <aioctx/throttle.h>
#include <pthread.h>
#include <stdbool.h>

/* What a quiet time is credited with, where there is no burst. */
#define THROTTLE_TOLERANCE_NS INT64_C(50000000)
/* How much of the rate a reservation may take, at least, and a credit at most. */
#define THROTTLE_TURN_NS INT64_C(1000000)
/* How much of what was lost to lateness is made up for. */
#define THROTTLE_CATCH_UP_NS INT64_C(1000000000)
/* How long before now a request must have been free to begin for a credit to be given. */
#define THROTTLE_FAR_NS (THROTTLE_TOLERANCE_NS / 2)
/* Requests that one credit is for at most. */
#define THROTTLE_CREDIT_MAX 64

struct throttle_group;

/* Someone to be told when the limits have changed.  Under the group's lock. */
struct throttle_listener {
    /* Neither may call back into the group. */
    void (*changed)(struct throttle_listener *listener);
    /* What was reserved under the limits of @epoch and has not begun. */
    void (*reserved)(struct throttle_listener *listener, bool write, uint64_t epoch,
                     uint64_t *ret_bytes, uint64_t *ret_ops);
    struct throttle_listener *next, **pprev;
};

/* The group @name, made if there is none (@name NULL: a nameless one of its own).  @config: its
 * limits, or NULL to take them as they are.  Returns 0 or -errno: -EEXIST when it exists with other
 * limits. */
int throttle_group_get(const char *name, const ThrottleConfig *config,
                       struct throttle_group **ret_group);
void throttle_group_put(struct throttle_group *group);

/* What is wrong with limits, for people; NULL: nothing. */
const char *throttle_find_fault(const ThrottleConfig *config);

void throttle_group_listen(struct throttle_group *group, struct throttle_listener *listener);
void throttle_group_unlisten(struct throttle_group *group, struct throttle_listener *listener);

/* Locks a group for reservations at @now. */
void throttle_group_lock(struct throttle_group *group);
void throttle_group_unlock(struct throttle_group *group);

/* When a read or a write of @bytes may begin at the earliest. */
int64_t throttle_group_start_locked(struct throttle_group *group, bool write);

/* Counts @n of them as begun at @at, which is not before that.  Returns the time that they take of
 * the slowest limit. */
int64_t throttle_group_charge_locked(struct throttle_group *group, bool write, uint64_t bytes,
                                     unsigned n, int64_t at);

/* How much of the rate a turn is worth now. */
int64_t throttle_group_turn_locked(const struct throttle_group *group);

/* What was to begin before, and waited, begins only now: the time up to @now is owed. */
void throttle_group_late_locked(struct throttle_group *group, int64_t now);

/* Takes that back: they were counted, and do not begin. */
void throttle_group_refund_locked(struct throttle_group *group, bool write, uint64_t bytes,
                                  unsigned n);

/* How many operations a request of @bytes counts as. */
uint64_t throttle_group_ops_locked(const struct throttle_group *group, uint64_t bytes);

/* Changes the limits at @now: takes back what was reserved and has not begun, and tells all. */
void throttle_group_change_locked(struct throttle_group *group, const ThrottleConfig *config,
                                  int64_t now);

/* Goes up when the limits change: what was reserved before then has been taken back.  Without the
 * lock it may change at any time. */
uint64_t throttle_group_epoch(const struct throttle_group *group);

#endif
