/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: whether some valid order explains what happened to a timer.
 *
 * The question.  Operations on a timer overlap: each takes effect at one moment (its point) between
 * the stamp drawn before the call and the one drawn after the return, but nobody saw when.  A log
 * is right when points can be chosen so that, taken in that order, every result and every firing
 * is what the rules below give.  Timers are independent of each other, so each log is checked by
 * itself.
 *
 * The rules.  A timer is armed for a deadline or is not, is dead or not, and its callback runs or
 * does not:
 *     timer_mod              dead: false.  Else true, and armed for the new deadline
 *     timer_mod_anticipate   dead: false.  Not armed, or armed for later: as timer_mod.  Else false
 *     timer_mod_range_ns     as timer_mod, for the later time; may fire from the sooner one on
 *     timer_forward          dead: 0.  Else armed for the first time after `now` that lies a whole
 *                            number of intervals after its last deadline (the one it is armed for,
 *                            fired for or was deleted at; `now` for one never armed); how many it
 *                            skipped
 *     timer_del              true when it was armed; not armed from then on
 *     timer_del_sync         may disarm it any number of times, as it may be armed again while it
 *                            waits; its last point is one at which it is neither armed nor running.
 *                            1 when an arming was taken away, else 0; -EDEADLK: not armed is enough
 *     timer_free, _deinit    not armed and dead from then on; timer_deinit_sync: a second point, at
 *                            which it is not running
 *     reads                  what is armed
 *     firing                 possible when it is armed and its clock has reached the deadline, or
 *                            the sooner time of a range: not armed and running from then on.  Its
 *                            point lies before the callback begins and after the timer's last
 *                            callback ended
 * So the rules say of themselves: never early, never twice for one arming, never after a
 * timer_del_sync() that nothing armed again, never once freed.  Each round ends with a read of
 * every timer while nothing else runs: an arming that was lost leaves that read unexplained.
 *
 * The search.  Going through the log by stamps, a set is kept of all states that the timer can be
 * in, each with the operations that have been called, have not returned, but have had their point.
 * Nothing has to be decided before an operation returns (or a callback begins): then every state
 * in which that operation has had no point yet is taken on by all orders of pending points that end
 * with it.  States for which there is none are dropped; when none is left, nothing explains it.
 * A point that is put off until some operation returns can only see a later clock, so no log that
 * is right is ever refused.  It also means that a firing is called early only when no clock reading
 * up to its callback had reached any deadline it could have had.
 * (Source: Wing and Gong, "Testing and Verifying Concurrent Objects", 1993; Lowe, "Testing for
 * Linearizability", 2016.)
 *
 * Its cost grows with how many operations on one timer overlap at once, not with the length of the
 * log.  Past CONFS_MAX states a timer's round is given up, counted and shown in the summary.
 */
#include "stress.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFS_MAX 4096
#define NOT_ARMED (-1)

/* A state that the timer can be in. */
struct conf {
    uint64_t begun; /* pending operations, by actor, that have changed something */
    uint64_t done;  /* those that have had all their points */
    int64_t deadline_ns;
    int64_t soonest_ns; /* 0 when it is not armed */
    int64_t last_ns;    /* as in struct timer_gen */
    bool dead;
    bool running;
    bool fired; /* the next firing has had its point */
};

struct oracle_stats oracle_stats;

/* The search's memory, used by the coordinator alone. */
static struct search {
    struct conf confs[CONFS_MAX];
    size_t count;
    const struct record *pending[64];
    const struct record *fire; /* the next firing, which may have its point any time */
    struct event *events;
    size_t events_room;
} O;

static bool is_end(const struct record *r)
{
    return r->kind == OP_FREE || r->kind == OP_DEINIT || r->kind == OP_DEINIT_SYNC;
}

/* Whether the operation waited until the timer was quiet. */
static bool waits(const struct record *r)
{
    return (r->kind == OP_DEL_SYNC || r->kind == OP_DEINIT_SYNC) && r->result != -EDEADLK;
}

static bool arms(const struct record *r)
{
    return r->kind == OP_MOD || r->kind == OP_ANTICIPATE || r->kind == OP_RANGE;
}

static void arm(struct conf *c, int64_t soonest_ns, int64_t deadline_ns)
{
    c->soonest_ns = soonest_ns;
    c->deadline_ns = deadline_ns;
}

static void disarm(struct conf *c)
{
    if (c->deadline_ns != NOT_ARMED) {
        c->last_ns = c->deadline_ns;
    }
    arm(c, 0, NOT_ARMED);
}

static bool take_forward(struct conf *c, const struct record *r)
{
    int64_t now_ns = r->arg_ns, step_ns = r->arg2_ns, missed, next_ns;
    int64_t base_ns = c->deadline_ns != NOT_ARMED ? c->deadline_ns
                      : c->last_ns >= 0           ? c->last_ns
                                                  : now_ns;

    if (c->dead) {
        return r->result == 0;
    }
    missed = base_ns > now_ns ? 0 : (now_ns - base_ns) / step_ns;
    if (__builtin_add_overflow(base_ns, (missed + 1) * step_ns, &next_ns) ||
        next_ns > INT64_MAX - 1) {
        next_ns = INT64_MAX - 1;
    }
    arm(c, next_ns, next_ns);
    return r->result == missed;
}

/* The first point of @r in state @c.  Returns false when the rules do not allow it. */
static bool take_effect(struct conf *c, const struct record *r)
{
    bool armed = c->deadline_ns != NOT_ARMED;

    if (r->kind == OP_FORWARD) {
        return take_forward(c, r);
    }
    if (arms(r)) {
        bool moves = !c->dead && (r->kind != OP_ANTICIPATE || !armed || r->arg_ns < c->deadline_ns);

        if (r->result != moves) {
            return false;
        }
        if (moves) {
            arm(c, r->kind == OP_RANGE ? r->arg2_ns : r->arg_ns, r->arg_ns);
        }
        return true;
    }
    if (r->kind == OP_DEL) {
        disarm(c);
        return r->result == armed;
    }
    if (is_end(r)) {
        bool was_dead = c->dead;

        disarm(c);
        c->dead = true;
        return !was_dead;
    }
    if (r->kind == OP_PENDING) {
        return r->result == armed;
    }
    return r->arg_ns == c->deadline_ns; /* OP_READ */
}

/* timer_del_sync(): here `begun` says that it has taken an arming away. */
static bool step_del_sync(struct conf *c, const struct record *r)
{
    uint64_t bit = UINT64_C(1) << r->actor;

    if (c->deadline_ns != NOT_ARMED) {
        disarm(c);
        c->begun |= bit;
        return r->result != 0;
    }
    if (r->result != -EDEADLK && (c->running || r->result != !!(c->begun & bit))) {
        return false;
    }
    c->done |= bit;
    return true;
}

/* Takes @c one point of pending operation @r on.  Returns false when that is not possible now. */
static bool step(struct conf *c, const struct record *r)
{
    uint64_t bit = UINT64_C(1) << r->actor;

    if (c->done & bit) {
        return false;
    }
    if (r->kind == OP_DEL_SYNC) {
        return step_del_sync(c, r);
    }
    if (c->begun & bit) {
        c->done |= c->running ? 0 : bit;
        return !c->running;
    }
    if (!take_effect(c, r)) {
        return false;
    }
    c->begun |= bit;
    c->done |= waits(r) ? 0 : bit;
    return true;
}

static bool step_fire(struct conf *c, int64_t clock_ns)
{
    if (c->fired || c->deadline_ns == NOT_ARMED || c->soonest_ns > clock_ns) {
        return false;
    }
    disarm(c);
    c->running = true;
    c->fired = true;
    return true;
}

static bool same(const struct conf *a, const struct conf *b)
{
    return a->begun == b->begun && a->done == b->done && a->deadline_ns == b->deadline_ns &&
           a->soonest_ns == b->soonest_ns && a->last_ns == b->last_ns && a->dead == b->dead &&
           a->running == b->running && a->fired == b->fired;
}

/* Adds a state that is not known yet.  Returns false when there is no room. */
static bool add_conf(const struct conf *c)
{
    for (size_t i = 0; i < O.count; i++) {
        if (same(&O.confs[i], c)) {
            return true;
        }
    }
    if (O.count == CONFS_MAX) {
        return false;
    }
    O.confs[O.count++] = *c;
    return true;
}

static bool has_had(const struct conf *c, const struct record *r)
{
    return r->kind == OP_FIRE ? c->fired : (c->done >> r->actor) & 1;
}

/* Adds what is one point away from state @c. */
static bool expand_one(struct conf c, int64_t clock_ns)
{
    struct conf next = c;

    if (O.fire && step_fire(&next, clock_ns) && !add_conf(&next)) {
        return false;
    }
    for (unsigned i = 0; i < 64; i++) {
        next = c;
        if (O.pending[i] && step(&next, O.pending[i]) && !add_conf(&next)) {
            return false;
        }
    }
    return true;
}

/*
 * @r is over: keeps the states in which it has had its points, after taking the others on.
 * Returns false when there were too many.
 */
static bool complete(const struct record *r)
{
    size_t kept = 0;

    for (size_t i = 0; i < O.count; i++) {
        if (!has_had(&O.confs[i], r) && !expand_one(O.confs[i], r->clock_ns)) {
            return false;
        }
    }
    if (O.count > oracle_stats.widest) {
        oracle_stats.widest = (unsigned)O.count;
    }
    for (size_t i = 0; i < O.count; i++) {
        if (has_had(&O.confs[i], r)) {
            O.confs[kept++] = O.confs[i];
        }
    }
    O.count = kept;
    return true;
}

/* Forgets @r in every state, which can make some of them the same. */
static void forget(const struct record *r)
{
    size_t count = O.count;

    O.count = 0;
    for (size_t i = 0; i < count; i++) {
        struct conf c = O.confs[i];

        if (r->kind == OP_FIRE) {
            c.fired = c.running = false;
        } else {
            c.begun &= ~(UINT64_C(1) << r->actor);
            c.done &= ~(UINT64_C(1) << r->actor);
        }
        add_conf(&c);
    }
}

/* ---- Saying what is wrong -------------------------------------------------------------------- */

static void explain_fire(const struct record *r, const struct conf *before, size_t count,
                         struct violation *why)
{
    int64_t soonest = INT64_MAX;
    bool alive = false;

    for (size_t i = 0; i < count; i++) {
        alive |= !before[i].dead;
        if (before[i].deadline_ns != NOT_ARMED && before[i].soonest_ns < soonest) {
            soonest = before[i].soonest_ns;
        }
    }
    /* A mod that is under way may be the one that armed. */
    for (unsigned i = 0; i < 64; i++) {
        const struct record *p = O.pending[i];

        if (p && arms(p)) {
            int64_t ns = p->kind == OP_RANGE ? p->arg2_ns : p->arg_ns;

            soonest = ns < soonest ? ns : soonest;
        }
    }
    if (!alive) {
        why->kind = "touch-freed";
        snprintf(why->text, sizeof(why->text), "fired after it had been freed, not armed then");
    } else if (soonest == INT64_MAX) {
        why->kind = "not-armed";
        snprintf(why->text, sizeof(why->text),
                 "fired while not armed: twice for one arming, or after it had been deleted");
    } else {
        why->kind = "early";
        snprintf(why->text, sizeof(why->text),
                 "fired %" PRId64 " ns before the soonest deadline that it could have had",
                 soonest - r->clock_ns);
    }
}

static bool says_not_armed(const struct record *r)
{
    return r->kind == OP_READ ? r->arg_ns == NOT_ARMED
                              : (r->kind == OP_DEL || r->kind == OP_PENDING) && r->result == 0;
}

static void explain(const struct event *ev, const struct conf *before, size_t count,
                    struct violation *why)
{
    const struct record *r = ev->rec;
    bool all_armed = true;

    for (size_t i = 0; i < count; i++) {
        all_armed &= before[i].deadline_ns != NOT_ARMED;
    }
    if (r->kind == OP_FIRE) {
        explain_fire(r, before, count, why);
    } else if (waits(r)) {
        why->kind = "del-sync";
        snprintf(why->text, sizeof(why->text),
                 "no valid order explains that %s() returned %d here: the timer was armed or "
                 "running all the time, or the result is wrong",
                 op_names[r->kind], (int)r->result);
    } else if (all_armed && says_not_armed(r)) {
        why->kind = "lost";
        snprintf(why->text, sizeof(why->text),
                 "was armed, did not fire, was not deleted, and is armed no more");
    } else {
        why->kind = "result";
        snprintf(why->text, sizeof(why->text), "no valid order explains what %s() returned",
                 op_names[r->kind]);
    }
}

/* ---- Going through a log --------------------------------------------------------------------- */

static int by_stamp(const void *a, const void *b)
{
    uint64_t x = ((const struct event *)a)->stamp, y = ((const struct event *)b)->stamp;

    return (x > y) - (x < y);
}

static size_t collect_events(struct record *const *records, size_t count)
{
    size_t n = 0;

    if (O.events_room < 2 * count) {
        O.events_room = 4 * count;
        O.events = realloc(O.events, O.events_room * sizeof(*O.events));
        if (!O.events) {
            report_failure(NULL, "out of memory");
        }
    }
    for (size_t i = 0; i < count; i++) {
        const struct record *r = records[i];

        oracle_stats.ops[r->kind]++;
        if (r->kind == OP_FIRE) {
            O.events[n++] = (struct event){ EV_RETURN, r->ret, r };
            O.events[n++] = (struct event){ EV_EXIT, r->exit, r };
        } else {
            O.events[n++] = (struct event){ EV_CALL, r->call, r };
            O.events[n++] = (struct event){ EV_RETURN, r->ret, r };
        }
    }
    qsort(O.events, n, sizeof(*O.events), by_stamp);
    return n;
}

static const struct record *next_fire(size_t from, size_t count)
{
    for (size_t i = from; i < count; i++) {
        if (O.events[i].type == EV_RETURN && O.events[i].rec->kind == OP_FIRE) {
            return O.events[i].rec;
        }
    }
    return NULL;
}

/* Takes the state from the round's last read, when the search was given up, now or before. */
static void take_on_trust(struct timer_gen *g, size_t count)
{
    oracle_stats.undecided++;
    g->unchecked = true;
    g->deadline_ns = NOT_ARMED;
    for (size_t i = 0; i < count; i++) {
        const struct record *r = O.events[i].rec;

        if (is_end(r)) {
            g->dead = true;
        }
        g->deadline_ns = g->dead ? NOT_ARMED : r->kind == OP_READ ? r->arg_ns : g->deadline_ns;
    }
}

static void recall_states(const struct timer_gen *g)
{
    O.count = g->states_count;
    for (size_t i = 0; i < O.count; i++) {
        O.confs[i] = (struct conf){ .deadline_ns = g->deadline_ns,
                                    .soonest_ns = g->states[i].soonest_ns,
                                    .last_ns = g->states[i].last_ns,
                                    .dead = g->dead };
    }
}

/* Nothing is under way, so the last read or the end has left one deadline. */
static void keep_states(struct timer_gen *g, size_t count)
{
    if (O.count > STATES_MAX) {
        take_on_trust(g, count);
        return;
    }
    g->deadline_ns = O.confs[0].deadline_ns;
    g->dead = O.confs[0].dead;
    g->states_count = (unsigned)O.count;
    for (size_t i = 0; i < O.count; i++) {
        g->states[i] = (struct timer_state){ O.confs[i].soonest_ns, O.confs[i].last_ns };
    }
}

/* One event.  Returns 1: explained, 0: not, -1: given up. */
static int check_event(const struct event *ev, size_t at, size_t count, struct violation *why)
{
    static struct conf before[CONFS_MAX];
    size_t before_count = O.count;

    if (ev->type == EV_CALL) {
        O.pending[ev->rec->actor] = ev->rec;
        return 1;
    }
    if (ev->type == EV_EXIT) {
        forget(ev->rec);
        O.fire = next_fire(at + 1, count);
        return 1;
    }
    memcpy(before, O.confs, before_count * sizeof(before[0]));
    if (!complete(ev->rec)) {
        return -1;
    }
    if (O.count == 0) {
        explain(ev, before, before_count, why);
        return 0;
    }
    if (ev->rec->kind != OP_FIRE) {
        forget(ev->rec);
        O.pending[ev->rec->actor] = NULL;
    }
    return 1;
}

bool oracle_check(struct timer_gen *g, struct record *const *records, size_t count,
                  struct violation *ret_why)
{
    size_t n = collect_events(records, count);

    oracle_stats.lives++;
    memset(O.pending, 0, sizeof(O.pending));
    if (g->unchecked) {
        take_on_trust(g, n);
        return true;
    }
    recall_states(g);
    O.fire = next_fire(0, n);

    for (size_t i = 0; i < n; i++) {
        int ret = check_event(&O.events[i], i, n, ret_why);

        if (ret < 0) {
            take_on_trust(g, n);
            return true;
        }
        if (ret == 0) {
            ret_why->gen = g;
            ret_why->events = O.events;
            ret_why->count = n;
            ret_why->at = i;
            return false;
        }
    }
    keep_states(g, n);
    return true;
}
