/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: what the threads do to the timers, and the log that they keep of it.
 *
 * A shared timer lives in a slot.  Whoever operates on it finds it inside an RCU read section, so
 * that a timer_free() on another thread at that moment is part of the game: the timer is dead but
 * its memory is not gone.  timer_del_sync() must not be called there, so it holds a reference, and
 * the last to give one back frees the timer.  A slot gets a new timer before the old one is freed.
 *
 * An embedded timer is used by the thread that owns it alone, as its header demands, for the length
 * of one operation; its callback and the home thread that runs it are all that it races with.
 * Afterwards its memory is filled with a pattern, which must still be there much later.
 *
 * Every thread appends to a log of its own: what is logged costs two draws from one counter and no
 * lock, so that the threads still collide in the library and not here.
 */
#include "stress.h"

#include <aioctx/rcu.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Read as a deadline this is 85 years: whoever takes it for one sleeps past his own. */
#define PATTERN 0x25

static __thread struct actor *self;

void ops_set_actor(struct actor *a)
{
    self = a;
}

struct actor *ops_self(void)
{
    return self;
}

/* ---- Logging --------------------------------------------------------------------------------- */

static uint64_t draw_stamp(void)
{
    return atomic_fetch_add(&S.stamp, 1);
}

static void append(struct actor *a, const struct record *r)
{
    struct log *log = &a->log;

    if (log->count == log->room) {
        log->room = log->room ? 2 * log->room : 1024;
        log->records = realloc(log->records, log->room * sizeof(*log->records));
        if (!log->records) {
            report_failure(NULL, "out of memory");
        }
    }
    log->records[log->count++] = *r;
}

static struct record begin(struct actor *a, struct timer_gen *g, enum op_kind kind)
{
    atomic_store_explicit(&a->busy_with, op_names[kind], memory_order_relaxed);
    return (
        struct record){ .gen = g, .kind = kind, .actor = (uint8_t)a->number, .call = draw_stamp() };
}

/* The clock is read after the stamp: nothing that came before the stamp saw a later time. */
static void end(struct actor *a, struct record *r)
{
    r->ret = draw_stamp();
    r->clock_ns = qemu_clock_get_ns(r->gen->clock);
    append(a, r);
    atomic_store_explicit(&a->busy_with, NULL, memory_order_relaxed);
}

/* Both logs change places, so that neither side allocates in the next round. */
void ops_hand_over(struct actor *a)
{
    struct log log = a->taken;

    a->taken = a->log;
    a->log = log;
    a->log.count = 0;
}

/* ---- Lives of timers ------------------------------------------------------------------------- */

static struct timer_gen *gen_new(struct actor *a, unsigned slot, bool embedded)
{
    static const int scales[] = { SCALE_NS, SCALE_NS, SCALE_US, 100 };
    struct timer_gen *g = calloc(1, sizeof(*g));

    if (!g) {
        report_failure(NULL, "out of memory");
    }
    atomic_init(&g->magic, GEN_LIVE);
    atomic_init(&g->refs, 1);
    g->slot = slot;
    g->number = atomic_fetch_add(&S.gens, 1);
    g->context = (unsigned)(stress_random(a) % S.opt.contexts);
    g->clock = stress_random(a) % 4 ? QEMU_CLOCK_REALTIME : QEMU_CLOCK_VIRTUAL;
    g->scale = scales[stress_random(a) % 4];
    g->embedded = embedded;
    g->deadline_ns = -1;
    g->states[0].last_ns = -1;
    g->states_count = 1;
    return g;
}

static int random_attributes(struct actor *a)
{
    return stress_random(a) % 2 ? QEMU_TIMER_ATTR_EXTERNAL : 0;
}

static struct timer_gen *new_shared(struct actor *a, unsigned slot)
{
    struct timer_gen *g = gen_new(a, slot, false);

    g->ts = aio_timer_new_with_attrs(S.ctx[g->context], g->clock, g->scale, random_attributes(a),
                                     ops_timer_cb, g);
    if (!g->ts) {
        report_failure(NULL, "out of memory");
    }
    timer_set_name(g->ts, "shared");
    return g;
}

bool gen_get(struct timer_gen *g)
{
    unsigned refs = atomic_load(&g->refs);

    while (refs) {
        if (atomic_compare_exchange_weak(&g->refs, &refs, refs + 1)) {
            return true;
        }
    }
    return false;
}

void gen_put(struct actor *a, struct timer_gen *g)
{
    if (atomic_fetch_sub(&g->refs, 1) == 1) {
        struct record r = begin(a, g, OP_FREE);

        sut_free(g);
        end(a, &r);
    }
}

void ops_fill_slots(struct actor *a)
{
    for (unsigned i = 0; i < S.opt.timers; i++) {
        atomic_init(&S.slots[i].cur, new_shared(a, i));
    }
}

/* ---- Single operations ----------------------------------------------------------------------- */

/* What timer_mod(@units) must arm the timer for. */
static int64_t effective_ns(const struct timer_gen *g, int64_t units)
{
    int64_t ns;

    if (units < 0) {
        return 0;
    }
    if (__builtin_mul_overflow(units, (int64_t)g->scale, &ns) || ns > INT64_MAX - 1) {
        return INT64_MAX - 1;
    }
    return ns;
}

/* A deadline: mostly within 2 ms, at times past, absurd, or an hour away; never in between, so
 * that at the end of a round every timer is due soon or is not due at all. */
static int64_t random_units(struct actor *a, const struct timer_gen *g)
{
    int64_t now_ns = qemu_clock_get_ns(g->clock);
    uint64_t r = stress_random(a), x = r >> 8;

    switch (r % 16) {
    case 0:
        return -(int64_t)(x % 1000);
    case 1:
        return (now_ns - (int64_t)(x % SCALE_MS)) / g->scale;
    case 2:
        return (now_ns + INT64_C(3600000) * SCALE_MS + (int64_t)(x % SCALE_MS)) / g->scale;
    case 3:
        return INT64_MAX - (int64_t)(x % 2);
    case 4:
    case 5:
    case 6:
    case 7:
        return (now_ns + (int64_t)(x % (2 * SCALE_MS))) / g->scale;
    default:
        return (now_ns + (int64_t)(x % (200 * SCALE_US))) / g->scale;
    }
}

static void op_mod(struct actor *a, struct timer_gen *g, enum op_kind kind)
{
    int64_t units = random_units(a, g);
    struct record r = begin(a, g, kind);

    r.arg_ns = effective_ns(g, units);
    r.result = kind == OP_MOD ? sut_mod(a, g, units) : sut_anticipate(a, g, units);
    end(a, &r);
}

static int64_t clamp_ns(int64_t ns)
{
    return ns < 0 ? 0 : ns > INT64_MAX - 1 ? INT64_MAX - 1 : ns;
}

/* Mostly some room before a deadline as op_mod() has it, at times none, or the wrong way round. */
static void op_range(struct actor *a, struct timer_gen *g)
{
    int64_t latest_ns = effective_ns(g, random_units(a, g));
    uint64_t r = stress_random(a), x = r >> 8;
    int64_t soonest_ns = r % 8 == 0   ? latest_ns
                         : r % 8 == 1 ? INT64_MAX - 1
                                      : latest_ns - (int64_t)(x % (300 * SCALE_US));
    struct record rec = begin(a, g, OP_RANGE);

    rec.arg_ns = latest_ns;
    rec.arg2_ns = clamp_ns(soonest_ns < latest_ns ? soonest_ns : latest_ns);
    rec.result = sut_range(a, g, soonest_ns, latest_ns);
    end(a, &rec);
}

static void op_forward(struct actor *a, struct timer_gen *g)
{
    uint64_t r = stress_random(a), x = r >> 8;
    int64_t now_ns = qemu_clock_get_ns(g->clock);
    struct record rec = begin(a, g, OP_FORWARD);

    rec.arg_ns = r % 4 ? now_ns : now_ns + (int64_t)(x % (100 * SCALE_US));
    rec.arg2_ns = 1 + (int64_t)(x % (200 * SCALE_US));
    rec.result = (int64_t)sut_forward(a, g, rec.arg_ns, rec.arg2_ns);
    end(a, &rec);
}

static void op_del(struct actor *a, struct timer_gen *g)
{
    struct record r = begin(a, g, OP_DEL);

    r.result = sut_del(g);
    end(a, &r);
}

static void op_del_sync(struct actor *a, struct timer_gen *g)
{
    struct record r = begin(a, g, OP_DEL_SYNC);

    r.result = sut_del_sync(g);
    end(a, &r);
    if (r.result == -EDEADLK ? a->context < 0 : r.result != 0 && r.result != 1) {
        report_failure(g, "timer_del_sync() returned %d on thread %s", (int)r.result, a->name);
    }
}

static void op_read(struct actor *a, struct timer_gen *g)
{
    struct record r = begin(a, g, stress_random(a) % 4 ? OP_READ : OP_PENDING);

    if (r.kind == OP_READ) {
        r.arg_ns = timer_expire_time_ns(g->ts);
    } else {
        r.result = timer_pending(g->ts);
    }
    end(a, &r);
}

static void op_simple(struct actor *a, struct timer_gen *g, enum op_kind kind)
{
    if (kind == OP_DEL) {
        op_del(a, g);
    } else if (kind == OP_READ) {
        op_read(a, g);
    } else if (kind == OP_RANGE) {
        op_range(a, g);
    } else if (kind == OP_FORWARD) {
        op_forward(a, g);
    } else {
        op_mod(a, g, kind);
    }
}

/* ---- Delays ---------------------------------------------------------------------------------- */

static void spin_ns(int64_t ns)
{
    int64_t until_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + ns;

    while (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < until_ns) {
    }
}

void ops_random_delay(struct actor *a)
{
    uint64_t r = stress_random(a), x = r >> 8;

    if (r % 64 == 0) {
        struct timespec ts = { 0, (long)(x % (150 * SCALE_US)) };

        nanosleep(&ts, NULL);
    } else if (r % 64 < 4) {
        sched_yield();
    } else if (r % 64 < 28) {
        spin_ns((int64_t)(x % (3 * SCALE_US)));
    }
}

/* ---- Operations on shared timers ------------------------------------------------------------- */

static void shared_free(struct actor *a, unsigned slot)
{
    struct timer_gen *fresh = new_shared(a, slot);

    gen_put(a, atomic_exchange(&S.slots[slot].cur, fresh));
}

static void shared_del_sync(struct actor *a, unsigned slot)
{
    struct timer_gen *g;
    bool held;

    aio_rcu_read_lock();
    g = atomic_load(&S.slots[slot].cur);
    held = gen_get(g);
    aio_rcu_read_unlock();
    if (held) {
        op_del_sync(a, g);
        gen_put(a, g);
    }
}

static void shared_simple(struct actor *a, unsigned slot, enum op_kind kind)
{
    aio_rcu_read_lock();
    op_simple(a, atomic_load(&S.slots[slot].cur), kind);
    aio_rcu_read_unlock();
}

/* ---- Embedded timers ------------------------------------------------------------------------- */

static void check_pattern(struct actor *a, const QEMUTimer *memory)
{
    const unsigned char *p = (const unsigned char *)memory;

    for (size_t i = 0; i < sizeof(*memory); i++) {
        if (p[i] != PATTERN) {
            report_failure(NULL,
                           "touch-deinit: byte %zu of an embedded timer of thread %s was "
                           "written to after timer_deinit() had returned",
                           i, a->name);
        }
    }
}

void ops_overwrite(QEMUTimer *memory)
{
    memset(memory, PATTERN, sizeof(*memory));
}

/* The memory is checked once more when it leaves the ring of released ones. */
static void retire_embedded(struct actor *a, QEMUTimer *memory)
{
    QEMUTimer **old = &a->embedded_old[a->embedded_next++ % EMBEDDED_OLD];

    ops_overwrite(memory);
    sut_after_deinit(a, memory);
    if (*old) {
        check_pattern(a, *old);
        free(*old);
    }
    *old = memory;
}

void ops_release_embedded(struct actor *a)
{
    for (unsigned i = 0; i < EMBEDDED_OLD; i++) {
        if (a->embedded_old[i]) {
            check_pattern(a, a->embedded_old[i]);
            free(a->embedded_old[i]);
            a->embedded_old[i] = NULL;
        }
    }
}

static void op_deinit(struct actor *a, struct timer_gen *g, bool sync)
{
    struct record r = begin(a, g, sync ? OP_DEINIT_SYNC : OP_DEINIT);

    r.result = sut_deinit(g, sync);
    end(a, &r);
    if (r.result != 0 && (r.result != -EDEADLK || a->context < 0)) {
        report_failure(g, "timer_deinit_sync() returned %d on thread %s", (int)r.result, a->name);
    }
}

static void embedded_life(struct actor *a)
{
    static const enum op_kind kinds[] = { OP_MOD,     OP_ANTICIPATE, OP_RANGE,
                                          OP_FORWARD, OP_DEL,        OP_READ };
    struct timer_gen *g = gen_new(a, a->number, true);
    unsigned ops = 1 + (unsigned)(stress_random(a) % 4);

    g->ts = malloc(sizeof(*g->ts));
    if (!g->ts) {
        report_failure(NULL, "out of memory");
    }
    ops_overwrite(g->ts);
    aio_timer_init_with_attrs(S.ctx[g->context], g->ts, g->clock, g->scale, random_attributes(a),
                              ops_timer_cb, g);
    op_mod(a, g, OP_MOD);
    for (unsigned i = 0; i < ops; i++) {
        ops_random_delay(a);
        op_simple(a, g, kinds[stress_random(a) % 6]);
    }
    ops_random_delay(a);
    op_deinit(a, g, stress_random(a) % 2);
    retire_embedded(a, g->ts);
}

/* ---- What threads call ----------------------------------------------------------------------- */

static enum op_kind random_kind(struct actor *a)
{
    unsigned x = (unsigned)(stress_random(a) % S.opt.mix_sum);
    unsigned kind = 0;

    while (x >= S.opt.mix[kind]) {
        x -= S.opt.mix[kind++];
    }
    return (enum op_kind)kind;
}

/* Half of all operations go to two slots, where they meet. */
static unsigned random_slot(struct actor *a)
{
    uint64_t r = stress_random(a);
    unsigned hot = S.opt.timers < 2 ? S.opt.timers : 2;

    return (unsigned)((r >> 8) % (r % 2 ? hot : S.opt.timers));
}

static void run_side(struct actor *a, enum op_kind kind)
{
    static void (*const funcs[])(struct actor * a) = {
        [OP_WALK - OP_SIDE] = lists_walk,        [OP_DEADLINE - OP_SIDE] = lists_deadline,
        [OP_DISABLE - OP_SIDE] = clocks_disable, [OP_STOP - OP_SIDE] = clocks_stop,
        [OP_LISTS - OP_SIDE] = lists_life,       [OP_CONTEXTS - OP_SIDE] = lists_context,
    };

    atomic_store_explicit(&a->busy_with, op_names[kind], memory_order_relaxed);
    funcs[kind - OP_SIDE](a);
    atomic_store_explicit(&a->busy_with, NULL, memory_order_relaxed);
    a->side_ops[kind]++;
}

static void run_kind(struct actor *a, enum op_kind kind, unsigned slot)
{
    if (kind >= OP_SIDE) {
        run_side(a, kind);
        return;
    }
    switch (kind) {
    case OP_FREE:
        shared_free(a, slot);
        break;
    case OP_DEL_SYNC:
        shared_del_sync(a, slot);
        break;
    case OP_EMBED:
        embedded_life(a);
        break;
    default:
        shared_simple(a, slot, kind);
        break;
    }
}

void ops_run_one(struct actor *a)
{
    run_kind(a, random_kind(a), random_slot(a));
    ops_random_delay(a);
}

void ops_read_all(struct actor *a)
{
    for (unsigned i = 0; i < S.opt.timers; i++) {
        struct timer_gen *g = atomic_load(&S.slots[i].cur);
        struct record r = begin(a, g, OP_READ);

        r.arg_ns = timer_expire_time_ns(g->ts);
        end(a, &r);
    }
}

void ops_free_all(struct actor *a)
{
    for (unsigned i = 0; i < S.opt.timers; i++) {
        gen_put(a, atomic_exchange(&S.slots[i].cur, NULL));
    }
}

int64_t ops_soonest_ns(struct timer_gen **ret_gen)
{
    int64_t soonest_ns = INT64_MAX;

    for (unsigned i = 0; i < S.opt.timers; i++) {
        int64_t deadline_ns, left_ns;
        struct timer_gen *g;

        aio_rcu_read_lock(); /* a callback may still be exchanging it */
        g = atomic_load(&S.slots[i].cur);
        deadline_ns = timer_expire_time_ns(g->ts);
        aio_rcu_read_unlock();
        left_ns = deadline_ns - qemu_clock_get_ns(g->clock);
        if (deadline_ns != -1 && left_ns < soonest_ns) {
            soonest_ns = left_ns;
            *ret_gen = g;
        }
    }
    return soonest_ns;
}

/* ---- Firings --------------------------------------------------------------------------------- */

/* What a callback does to its own timer, which may be dead by now. */
static void operate_on_self(struct actor *a, struct timer_gen *g)
{
    static const enum op_kind kinds[] = { OP_MOD,     OP_ANTICIPATE, OP_RANGE,
                                          OP_FORWARD, OP_DEL,        OP_READ };
    unsigned x = (unsigned)(stress_random(a) % 16);

    if (x < 6) {
        op_simple(a, g, kinds[x]);
    } else if (x == 6) {
        op_del_sync(a, g);
    } else if (x == 7) {
        struct timer_gen *fresh = new_shared(a, g->slot), *expected = g;

        if (atomic_compare_exchange_strong(&S.slots[g->slot].cur, &expected, fresh)) {
            gen_put(a, g);
        } else {
            timer_free(fresh->ts); /* never seen by anyone, so not logged */
            free(fresh);
        }
    }
}

static void operate_in_callback(struct actor *a, struct timer_gen *g)
{
    ops_random_delay(a);
    if (!g->embedded) {
        operate_on_self(a, g);
    }
    if (stress_random(a) % 8 == 0) {
        run_kind(a, random_kind(a), random_slot(a));
    }
}

static void fire(struct actor *a, struct timer_gen *g, bool operate)
{
    struct record r = { .gen = g, .kind = OP_FIRE, .actor = (uint8_t)a->number };

    r.ret = draw_stamp();
    r.clock_ns = qemu_clock_get_ns(g->clock);
    if (operate && !atomic_load(&S.quiet_now)) {
        operate_in_callback(a, g);
    }
    r.exit = draw_stamp();
    append(a, &r);
}

void ops_log_firing(struct timer_gen *g)
{
    fire(self, g, false);
}

void ops_timer_cb(void *opaque)
{
    struct timer_gen *g = opaque;
    struct actor *a = self;

    if (atomic_load(&g->magic) != GEN_LIVE) {
        report_failure(NULL, "touch-freed: the callback of a timer ran that was freed in a round "
                             "long past");
    }
    if (!a || a->context != (int)g->context) {
        report_failure(g, "a callback of context %u ran on thread %s", g->context,
                       a ? a->name : "of somebody else's");
    }
    clocks_enter(g->clock);
    fire(a, g, true);
    sut_after_callback(a, g);
    clocks_leave(g->clock);
}
