/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: the layer between the operations and the library.
 *
 * Without --plant each function here is the call that its name says.  With it, one of them goes
 * wrong now and then, the way a broken library would; the oracle knows nothing of that and has to
 * find it.  The bugs live here so that the library stays clean of them.
 */
#include "stress.h"

#include <aioctx/rcu.h>
#include <string.h>

const struct plant_info plants[PLANT_MAX] = {
    [PLANT_EARLY] = { "early", "an armed timer fires before its deadline" },
    [PLANT_TWICE] = { "twice", "a callback is called twice for one arming" },
    [PLANT_LOST] = { "lost", "an armed timer is silently deleted" },
    [PLANT_DEL_SYNC_NO_WAIT] = { "del-sync-no-wait", "timer_del_sync() does not wait" },
    [PLANT_TOUCH_FREED] = { "touch-freed", "the callback of a freed timer is called" },
    [PLANT_MOVED_LATE] = { "moved-late", "timer_mod_anticipate() moves a timer to later" },
    [PLANT_TOUCH_DEINIT] = { "touch-deinit", "a timer is written to after timer_deinit()" },
};

static bool planted(struct actor *a, int plant, unsigned one_in)
{
    return S.opt.plant == plant && stress_random(a) % one_in == 0;
}

/* On the home thread: what a list that looks at the wrong deadline would do. */
static void fire_early_bh(void *opaque)
{
    struct timer_gen *g = opaque;

    if (timer_del(g->ts)) {
        ops_timer_cb(g);
    }
    gen_put(ops_self(), g);
}

bool sut_mod(struct actor *a, struct timer_gen *g, int64_t units)
{
    bool armed = timer_mod(g->ts, units);

    if (armed && planted(a, PLANT_LOST, 64)) {
        timer_del(g->ts);
    }
    if (armed && !g->embedded && planted(a, PLANT_EARLY, 16) && gen_get(g) &&
        aio_bh_schedule_oneshot(S.ctx[g->context], fire_early_bh, g) < 0) {
        gen_put(a, g);
    }
    return armed;
}

bool sut_anticipate(struct actor *a, struct timer_gen *g, int64_t units)
{
    if (planted(a, PLANT_MOVED_LATE, 8)) {
        int64_t before_ns = timer_expire_time_ns(g->ts);

        return timer_mod(g->ts, units) && before_ns == -1;
    }
    return timer_mod_anticipate(g->ts, units);
}

bool sut_del(struct timer_gen *g)
{
    return timer_del(g->ts);
}

int sut_del_sync(struct timer_gen *g)
{
    return S.opt.plant == PLANT_DEL_SYNC_NO_WAIT ? timer_del(g->ts) : timer_del_sync(g->ts);
}

static void fire_freed_bh(void *opaque)
{
    ops_log_firing(opaque);
}

void sut_free(struct timer_gen *g)
{
    timer_free(g->ts);
    if (S.opt.plant == PLANT_TOUCH_FREED && g->number % 4 == 0) {
        aio_bh_schedule_oneshot(S.ctx[g->context], fire_freed_bh, g);
    }
}

int sut_deinit(struct timer_gen *g, bool sync)
{
    if (sync) {
        return timer_deinit_sync(g->ts);
    }
    timer_deinit(g->ts);
    return 0;
}

void sut_after_deinit(struct actor *a, QEMUTimer *memory)
{
    if (planted(a, PLANT_TOUCH_DEINIT, 64)) {
        memset(&memory->expire_time, 0xff, sizeof(memory->expire_time));
    }
}

void sut_after_callback(struct actor *a, struct timer_gen *g)
{
    if (planted(a, PLANT_TWICE, 64)) {
        ops_log_firing(g);
    }
}
