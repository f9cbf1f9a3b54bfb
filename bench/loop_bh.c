/* SPDX-License-Identifier: MIT */
/*
 * loop_bench: bottom halves.  n of them are scheduled, and one aio_poll(ctx, true), in which
 * nothing else is to be done, runs them all; one operation is one of them scheduled and run.
 *
 *   bh          qemu_bh_schedule(), n bottom halves of its own thread's context
 *   bh-oneshot  aio_bh_schedule_oneshot() likewise
 *   bh-foreign  qemu_bh_schedule() by a thread that is not home, while home does nothing but poll,
 *               so that both work on the same lines of memory; the time of scheduling alone, the
 *               median of groups of n
 *
 * mutex-list is what one writes without a loop: a list of functions under a mutex, which the
 * running side takes whole.  An entry is the caller's own, so that nothing is allocated.
 */
#include "loop_impl.h"

#include <aioctx/aio.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define BHS_MAX 64
#define GROUPS_MAX 65536

/* ---- The home thread's own ------------------------------------------------------------------- */

struct own {
    AioContext *ctx;
    unsigned n;
    uint64_t called;
    QEMUBH *bhs[BHS_MAX];
};

static void on_bh(void *opaque)
{
    (*(uint64_t *)opaque)++;
}

static QEMUBH *new_bh(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    QEMUBH *bh = aio_bh_new(ctx, cb, opaque);
    if (!bh) {
        bench_die("out of memory");
    }
    return bh;
}

static void *open_own(const struct loop_side *side)
{
    struct own *o = bench_alloc(sizeof(*o));
    o->n = side->n;
    o->ctx = loop_context(side->monitor);
    if (!o->ctx) {
        free(o);
        return NULL;
    }
    for (unsigned i = 0; i < o->n; i++) {
        o->bhs[i] = new_bh(o->ctx, on_bh, &o->called);
    }
    return o;
}

static void close_own(void *state)
{
    struct own *o = state;
    for (unsigned i = 0; i < o->n; i++) {
        qemu_bh_delete(o->bhs[i]);
    }
    aio_context_unref(o->ctx);
    free(o);
}

static uint64_t run_own(void *state, uint64_t ops)
{
    struct own *o = state;
    o->called = 0;
    for (uint64_t done = 0; done < ops; done += o->n) {
        for (unsigned i = 0; i < o->n; i++) {
            qemu_bh_schedule(o->bhs[i]);
        }
        aio_poll(o->ctx, true);
    }
    return o->called;
}

static uint64_t run_oneshot(void *state, uint64_t ops)
{
    struct own *o = state;
    o->called = 0;
    for (uint64_t done = 0; done < ops; done += o->n) {
        for (unsigned i = 0; i < o->n; i++) {
            if (aio_bh_schedule_oneshot(o->ctx, on_bh, &o->called)) {
                bench_die("out of memory");
            }
        }
        aio_poll(o->ctx, true);
    }
    return o->called;
}

/* ---- A list under a mutex -------------------------------------------------------------------- */

struct entry {
    struct entry *next;
    void (*fn)(void *opaque);
    void *opaque;
};

struct mutex_list {
    pthread_mutex_t lock;
    struct entry *first, **tail; /* under the lock */
    unsigned n;
    uint64_t called;
    struct entry entries[BHS_MAX];
};

static void *open_list(const struct loop_side *side)
{
    struct mutex_list *l = bench_alloc(sizeof(*l));
    pthread_mutex_init(&l->lock, NULL);
    l->tail = &l->first;
    l->n = side->n;
    for (unsigned i = 0; i < l->n; i++) {
        l->entries[i] = (struct entry){ .fn = on_bh, .opaque = &l->called };
    }
    return l;
}

static void close_list(void *state)
{
    struct mutex_list *l = state;
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static void list_add(struct mutex_list *l, struct entry *e)
{
    pthread_mutex_lock(&l->lock);
    e->next = NULL;
    *l->tail = e;
    l->tail = &e->next;
    pthread_mutex_unlock(&l->lock);
}

static void list_run(struct mutex_list *l)
{
    pthread_mutex_lock(&l->lock);
    struct entry *e = l->first;
    l->first = NULL;
    l->tail = &l->first;
    pthread_mutex_unlock(&l->lock);
    while (e) {
        struct entry *next = e->next;
        e->fn(e->opaque);
        e = next;
    }
}

static uint64_t run_list(void *state, uint64_t ops)
{
    struct mutex_list *l = state;
    l->called = 0;
    for (uint64_t done = 0; done < ops; done += l->n) {
        for (unsigned i = 0; i < l->n; i++) {
            list_add(l, &l->entries[i]);
        }
        list_run(l);
    }
    return l->called;
}

/* ---- Another thread's ------------------------------------------------------------------------ */

/* The calling thread schedules; home polls all the time. */
struct foreign {
    AioContext *ctx;
    pthread_t home;
    struct mutex_list *list; /* or this, in place of ctx */
    unsigned n;
    QEMUBH *bhs[BHS_MAX];
    uint64_t groups; /* of the last run */
    uint64_t group_ns[GROUPS_MAX];
    _Alignas(BENCH_ALIGN) atomic_bool stop;
    atomic_bool ready;
    const char *monitor;
    _Alignas(BENCH_ALIGN) atomic_ulong called;
};

static void on_foreign_bh(void *opaque)
{
    atomic_ulong *called = opaque;
    atomic_store_explicit(called, atomic_load_explicit(called, memory_order_relaxed) + 1,
                          memory_order_release);
}

static void *home_thread(void *opaque)
{
    struct foreign *f = opaque;
    if (f->list) {
        atomic_store(&f->ready, true);
        while (!atomic_load_explicit(&f->stop, memory_order_relaxed)) {
            list_run(f->list);
        }
        return NULL;
    }
    f->ctx = loop_context(f->monitor);
    for (unsigned i = 0; i < f->n && f->ctx; i++) {
        f->bhs[i] = new_bh(f->ctx, on_foreign_bh, &f->called);
    }
    atomic_store(&f->ready, true);
    while (f->ctx && !atomic_load_explicit(&f->stop, memory_order_relaxed)) {
        aio_poll(f->ctx, false);
    }
    for (unsigned i = 0; i < f->n && f->ctx; i++) {
        qemu_bh_delete(f->bhs[i]);
    }
    if (f->ctx) {
        aio_context_unref(f->ctx);
    }
    return NULL;
}

static void close_foreign(void *state)
{
    struct foreign *f = state;
    atomic_store(&f->stop, true);
    pthread_join(f->home, NULL);
    if (f->list) {
        close_list(f->list);
    }
    free(f);
}

static void *open_foreign(const struct loop_side *side)
{
    struct foreign *f = bench_alloc(sizeof(*f));
    f->n = side->n;
    f->monitor = side->monitor;
    if (!f->monitor) {
        f->list = open_list(side);
        for (unsigned i = 0; i < f->n; i++) {
            f->list->entries[i] = (struct entry){ .fn = on_foreign_bh, .opaque = &f->called };
        }
    }
    int err = pthread_create(&f->home, NULL, home_thread, f);
    if (err) {
        bench_die("loop_bench: cannot start a thread: %s", strerror(err));
    }
    while (!atomic_load(&f->ready)) {
        bench_sleep_ns(10000);
    }
    if (!f->list && !f->ctx) {
        close_foreign(f);
        return NULL;
    }
    return f;
}

static void schedule_group(struct foreign *f)
{
    for (unsigned i = 0; i < f->n; i++) {
        if (f->list) {
            list_add(f->list, &f->list->entries[i]);
        } else {
            qemu_bh_schedule(f->bhs[i]);
        }
    }
}

static uint64_t run_foreign(void *state, uint64_t ops)
{
    struct foreign *f = state;
    unsigned long before = atomic_load(&f->called), end = before;
    f->groups = 0;
    for (uint64_t done = 0; done < ops; done += f->n) {
        uint64_t begin = bench_now_ns();
        schedule_group(f);
        f->group_ns[f->groups++ % GROUPS_MAX] = bench_now_ns() - begin;
        end += f->n;
        for (unsigned spins = 1; atomic_load_explicit(&f->called, memory_order_acquire) != end;
             spins++) {
            if (spins % 4096 == 0) { /* home may be waiting for this processor */
                sched_yield();
            }
        }
    }
    return end - before;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double foreign_ns(void *state)
{
    struct foreign *f = state;
    size_t nr = f->groups < GROUPS_MAX ? f->groups : GROUPS_MAX;
    qsort(f->group_ns, nr, sizeof(f->group_ns[0]), compare);
    return (double)f->group_ns[nr / 2] / f->n;
}

/* ---- All of them ----------------------------------------------------------------------------- */

#define EACH_MONITOR(case, n, open, close, run, part) \
    { case, "aioctx", "io_uring", n, open, close, run, part }, \
        { case, "aioctx-epoll", "epoll", n, open, close, run, part }, \
    { \
        case, "aioctx-ppoll", "ppoll", n, open, close, run, part                                   \
    }

const struct loop_side loop_bh_sides[] = {
    EACH_MONITOR("bh", 1, open_own, close_own, run_own, NULL),
    { "bh", "mutex-list", NULL, 1, open_list, close_list, run_list, NULL },
    EACH_MONITOR("bh", BHS_MAX, open_own, close_own, run_own, NULL),
    { "bh", "mutex-list", NULL, BHS_MAX, open_list, close_list, run_list, NULL },
    EACH_MONITOR("bh-oneshot", 1, open_own, close_own, run_oneshot, NULL),
    EACH_MONITOR("bh-oneshot", BHS_MAX, open_own, close_own, run_oneshot, NULL),
    EACH_MONITOR("bh-foreign", 16, open_foreign, close_foreign, run_foreign, foreign_ns),
    { "bh-foreign", "mutex-list", NULL, 16, open_foreign, close_foreign, run_foreign, foreign_ns },
    { 0 },
};
