/* SPDX-License-Identifier: MIT */
/* Cases of the list's lock by itself. */
#include "tests/interleave_cases_int.h"

#include "timers/list_lock_int.h"

#include <string.h>

static struct {
    struct list_lock lock;
    bool inside[2];
    char section;
    int turns;
} l;

static void set_up_lock(void)
{
    memset(&l, 0, sizeof(l));
    list_lock_init(&l.lock);
    l.lock.owner = il_thread_number(0);
    l.lock.streak = BIAS_AFTER;
    l.lock.biased = true;
    il_name(&l.lock.mutex, "mutex");
    il_name(&l.lock.in, "in");
    il_name(&l.lock.biased, "biased");
    il_name(&l.section, "the section");
    if (il_planted) {
        il_plant(IL_NO_BARRIER, NULL);
    }
}

static void run_lock(int thread)
{
    for (int i = 0; i < 2; i++) {
        list_lock(&l.lock);
        l.inside[thread] = true;
        il_step(&l.section);
        il_assert(!l.inside[!thread], "both are inside");
        l.turns++;
        l.inside[thread] = false;
        list_unlock(&l.lock);
    }
}

static void check_lock(void)
{
    il_assert(l.turns == 4, "%d turns", l.turns);
}

const struct il_case il_lock = {
    .name = "OwnerBesideForeigner",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_lock,
    .run = run_lock,
    .check = check_lock,
    .plants = { "no barrier on all threads" },
};

/* The bias comes back in the owner's turn. */
static void set_up_lock_unbiased(void)
{
    set_up_lock();
    l.lock.biased = false;
}

const struct il_case il_lock_return = {
    .name = "BiasComesBackBesideForeigner",
    .threads = 2,
    .flags = IL_BARRIER,
    .setup = set_up_lock_unbiased,
    .run = run_lock,
    .check = check_lock,
    .plants = { "no barrier on all threads" },
};
