/* SPDX-License-Identifier: MIT */
/*
 * timer_bench: what a sorted linked list under a mutex costs, with deadlines read under that mutex.
 *
 * A new timer looks for its place from the end, where equal timeouts belong: arming and cancelling
 * take no more than a few loads and stores under the lock, which favours this side; so does that
 * the head lies beside the lock.  It spins before it sleeps, as ours does.  Nobody runs the list;
 * the home thread is there for call_home().
 */
#include "bench.h"
#include "timer_shared.h"

#include <stdlib.h>

struct node {
    struct node *prev, *next; /* itself: not armed */
    int64_t deadline_ns;
};

struct list_loop {
    struct shared_loop base;
    struct node *timers[SIDES];
    pthread_t home;
    bool has_home;
    void (*fn)(void *arg);
    void *arg;
    pthread_mutex_t lock __attribute__((aligned(BENCH_ALIGN)));
    struct node ends; /* next: the soonest */
    struct node head;
};

static void unlink_node(struct node *t)
{
    t->prev->next = t->next;
    t->next->prev = t->prev;
    t->prev = t->next = t;
}

static void insert_node(struct list_loop *loop, struct node *t, int64_t deadline_ns)
{
    struct node *after = loop->ends.prev;
    t->deadline_ns = deadline_ns;
    while (after != &loop->ends && after->deadline_ns > deadline_ns) {
        after = after->prev;
    }
    t->prev = after;
    t->next = after->next;
    after->next->prev = t;
    after->next = t;
}

static void list_arm(struct shared_loop *base, enum shared_side side, uint32_t i,
                     uint64_t deadline_ns)
{
    struct list_loop *loop = (struct list_loop *)base;
    pthread_mutex_lock(&loop->lock);
    unlink_node(&loop->timers[side][i]);
    insert_node(loop, &loop->timers[side][i], (int64_t)deadline_ns);
    pthread_mutex_unlock(&loop->lock);
}

static void list_cancel(struct shared_loop *base, enum shared_side side, uint32_t i)
{
    struct list_loop *loop = (struct list_loop *)base;
    pthread_mutex_lock(&loop->lock);
    unlink_node(&loop->timers[side][i]);
    pthread_mutex_unlock(&loop->lock);
}

static struct shared_loop *list_open(uint32_t n)
{
    struct list_loop *loop = bench_alloc(sizeof(*loop));
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&loop->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    loop->base.n = n;
    loop->ends.prev = loop->ends.next = &loop->ends;
    for (int side = 0; side < SIDES; side++) {
        loop->timers[side] = bench_alloc((n + 1) * sizeof(struct node));
        for (uint32_t i = 0; i <= n; i++) {
            struct node *t = &loop->timers[side][i];
            t->prev = t->next = t;
        }
    }
    insert_node(loop, &loop->head, (int64_t)(bench_now_ns() + SHARED_HEAD_NS));
    shared_fill(&shared_list, &loop->base);
    return &loop->base;
}

static void *home_run(void *opaque)
{
    struct list_loop *loop = opaque;
    loop->fn(loop->arg);
    return NULL;
}

static void join_home(struct list_loop *loop)
{
    if (loop->has_home) {
        pthread_join(loop->home, NULL);
        loop->has_home = false;
    }
}

static void list_call_home(struct shared_loop *base, void (*fn)(void *arg), void *arg)
{
    struct list_loop *loop = (struct list_loop *)base;
    join_home(loop);
    loop->fn = fn;
    loop->arg = arg;
    if (pthread_create(&loop->home, NULL, home_run, loop)) {
        bench_die("cannot start a thread");
    }
    loop->has_home = true;
}

static void list_close(struct shared_loop *base)
{
    struct list_loop *loop = (struct list_loop *)base;
    join_home(loop);
    for (int side = 0; side < SIDES; side++) {
        free(loop->timers[side]);
    }
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

/* The clock is read after the unlock, so that it does not lengthen the lock's hold. */
static int64_t list_deadline_ns(struct shared_loop *base)
{
    struct list_loop *loop = (struct list_loop *)base;
    pthread_mutex_lock(&loop->lock);
    const struct node *first = loop->ends.next;
    int64_t deadline = first == &loop->ends ? -1 : first->deadline_ns;
    pthread_mutex_unlock(&loop->lock);
    if (deadline < 0) {
        return -1;
    }
    int64_t now = (int64_t)bench_now_ns();
    return deadline > now ? deadline - now : 0;
}

const struct shared_impl shared_list = {
    .name = "list-mutex",
    .open = list_open,
    .close = list_close,
    .arm = list_arm,
    .cancel = list_cancel,
    .call_home = list_call_home,
    .deadline_ns = list_deadline_ns,
};
