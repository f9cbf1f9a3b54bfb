/* SPDX-License-Identifier: MIT */
/* The rarer half of the list's lock; see list_lock_int.h. */
#include "timers/list_lock_int.h"

#include "timers/timers_ext_int.h"

#include <sched.h>
#include <time.h>

void list_lock_init(struct list_lock *l)
{
    pthread_mutexattr_t attr;

    *l = (struct list_lock){ .wait = BIAS_AFTER };
    pthread_mutexattr_init(&attr);
    /* Held for tens of ns: spin before sleeping. */
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&l->mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}

void list_lock_destroy(struct list_lock *l)
{
    pthread_mutex_destroy(&l->mutex);
}

/* The owner is inside for some tens of ns, unless it was switched off there, or closes the list. */
static void wait_until_out(const struct list_lock *l)
{
    const struct timespec nap = { .tv_nsec = 50000 };

    for (unsigned round = 0; ld_acquire(&l->in); round++) {
        if (round >= 200) { /* it may have a lower priority */
            int cancel = cancel_off();

            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
            cancel_restore(cancel);
        } else if (round >= 100) {
            sched_yield();
        }
    }
}

static void note_taken(struct list_lock *l)
{
    if (clock_monotonic_ns() - l->biased_at_ns >= BIAS_KEPT_NS) {
        l->wait = BIAS_AFTER;
    } else if (l->wait < BIAS_AFTER_MAX) {
        l->wait *= 4;
    }
}

/* Holding the mutex: from here on the owner needs it too. */
static void take_bias(struct list_lock *l)
{
    if (!l->biased) {
        return;
    }
    st_relaxed(&l->biased, false);
    if (!list_lock_is_owner(l)) {
        note_taken(l);
        barrier_all_threads(); /* pairs with the compiler barrier in list_lock() */
        wait_until_out(l);
    }
}

void list_lock_slow(struct list_lock *l)
{
    pthread_mutex_lock(&l->mutex);
    if (!list_lock_is_owner(l)) {
        l->streak = 0;
        take_bias(l);
    } else if (++l->streak > l->wait && barrier_available()) {
        l->streak = 0;
        l->biased_at_ns = clock_monotonic_ns();
        st_relaxed(&l->in, true);
        st_relaxed(&l->biased, true); /* seen by others through the mutex alone */
        pthread_mutex_unlock(&l->mutex);
    }
}

void list_lock_to_wait(struct list_lock *l)
{
    list_unlock(l);
    pthread_mutex_lock(&l->mutex);
    l->streak = 0;
    take_bias(l);
}

void list_lock_cond_wait(struct list_lock *l, pthread_cond_t *cond)
{
    int cancel = cancel_off();

    pthread_cond_wait(cond, &l->mutex);
    cancel_restore(cancel);
    l->streak = 0;
    take_bias(l); /* the owner may have had it again */
}
