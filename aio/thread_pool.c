/* SPDX-License-Identifier: MIT */
/*
 * The thread pool: its threads, and the queue of works that have not begun.
 *
 * All of it lies under one lock, which is held for some instructions at a time; a thread takes it
 * once for each work, to account for the last one and to take the next.  How works get back to
 * their contexts, without this lock, is in pool_queue.c.
 *
 * A thread is
 *
 *   creating   pthread_create() is under way, or has succeeded and the thread has not run yet
 *   busy       it has a work
 *   idle       it sleeps on its own word, in the list `idle`, the last that came in front: so the
 *              same few threads serve a light load, with warm caches, and the rest run out of time
 *   called     it was taken off that list by who wants it to come
 *
 * Who comes.  `coming` counts the threads that were called or are being created and have not taken
 * the lock since.  While one is coming, nobody calls another: the one that comes looks at the queue
 * and, if it leaves something there, calls the next.  So a burst of works costs its submitter one
 * wake-up; and when works are short, the thread that is there has done them before more have come.
 *
 * Nothing is stranded.  Works wait only while
 *   (a) a thread is coming, which looks when it has come, or
 *   (b) all threads are busy, and look when they have done their work.
 * What could come to nothing leaves one of these behind.  A thread that could not be created makes
 * who tried look again.  The last thread cannot end while one is being created; and where there is
 * none at all, one is created with the lock held: if that fails, the work is refused before anybody
 * else can rely on it.  A thread that ends calls another if something waits: it may have been the
 * one that was coming, created before the maximum was lowered, and now is one too many.  A thread
 * that was got up to look at the parameters looks at the queue as well, and does not end before,
 * even if its time was up in the same moment: it is not in the list any more, so nobody calls it.
 *
 * Who is called.  The caller unlinks the sleeper and sets its word, both under the lock; it wakes
 * it (a system call) after.  A sleeper that runs out of time takes the lock and finds itself
 * unlinked or not: called, or at its end.  It may be gone before the caller makes the system call,
 * which then wakes nobody, or some sleeper that looks at its own word and sleeps on.
 */
#include "aio/thread_pool_int.h"

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"
#include "timers/timers_ext_int.h"

#include <aioctx/thread_pool.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 64, MAX_THREADS_LIMIT = 4096 };
#define IDLE_NS (10 * INT64_C(1000000000))
/* After a failure no more threads are tried for so long, where there are some. */
#define FAILED_PAUSE_NS INT64_C(10000000)

/* A thread's own, on its stack.  Under the lock, but for the word's second reader, its sleep. */
struct pool_thread {
    struct pool_thread *next, *prev; /* in the list of idle ones */
    uint32_t word;                   /* atomic: 0 while it is to sleep */
    bool idle;                       /* it is in that list */
    bool called;                     /* it counts in `coming` */
};

static struct {
    pthread_mutex_t lock;
    PoolWork *first, *last; /* that have not begun, oldest first */
    struct pool_thread *idle;
    unsigned live; /* threads that have begun, and have not decided to end */
    unsigned creating;
    unsigned coming;
    int64_t failed_ns; /* when a thread could last not be created; 0: never */
    ThreadPoolParams params;
    ThreadPoolStats stats; /* but for threads */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .params = { .max_threads = MAX_THREADS, .idle_ns = IDLE_NS },
};

/* What is left to be done for a call once the lock is released. */
struct call {
    uint32_t *word; /* wake who sleeps on it */
    bool create;    /* create a thread */
};

/* ---- Sleeping and waking --------------------------------------------------------------------- */

/* Sleeps until *@word is not 0, or @until_ns, a time of CLOCK_MONOTONIC. */
static void wait_for_word(uint32_t *word, int64_t until_ns)
{
    struct timespec ts = { until_ns / 1000000000, until_ns % 1000000000 };

    while (ld_acquire(word) == 0) {
        if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, 0,
                    until_ns == INT64_MAX ? NULL : &ts, NULL, FUTEX_BITSET_MATCH_ANY) < 0 &&
            errno == ETIMEDOUT) {
            return;
        }
    }
}

static void wake_word(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void link_idle_locked(struct pool_thread *t)
{
    t->next = pool.idle;
    t->prev = NULL;
    if (t->next) {
        t->next->prev = t;
    }
    pool.idle = t;
    t->idle = true;
    pool.stats.idle++;
}

static void unlink_idle_locked(struct pool_thread *t)
{
    *(t->prev ? &t->prev->next : &pool.idle) = t->next;
    if (t->next) {
        t->next->prev = t->prev;
    }
    t->idle = false;
    pool.stats.idle--;
}

/* ---- Calling threads ------------------------------------------------------------------------- */

static bool may_create_locked(void)
{
    return pool.live + pool.creating < pool.params.max_threads &&
           (pool.failed_ns == 0 || clock_monotonic_ns() - pool.failed_ns >= FAILED_PAUSE_NS);
}

/* Has a thread come if something waits and none is coming.  make_call() follows. */
static void call_locked(struct call *ret_call)
{
    struct pool_thread *t = pool.idle;

    if (!pool.first || pool.coming > 0) {
        return;
    }
    if (t) {
        unlink_idle_locked(t);
        t->called = true;
        st_release(&t->word, 1);
        ret_call->word = &t->word;
        pool.stats.wakeups++;
        pool.coming++;
    } else if (may_create_locked()) {
        ret_call->create = true;
        pool.creating++;
        pool.coming++;
    }
}

static void *run_thread(void *unused);

/* Returns 0 or -EAGAIN. */
static int create_thread(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int ret;

    rcu_mark_used();
    if (pthread_attr_init(&attr) != 0) {
        return -EAGAIN;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* the thread inherits the mask: no handler runs on it even once */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&thread, &attr, run_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return ret == 0 ? 0 : -EAGAIN;
}

static void create_failed_locked(void)
{
    pool.creating--;
    pool.coming--;
    pool.failed_ns = clock_monotonic_ns();
    pool.stats.threads_failed++;
}

/* Without the lock. */
static void make_call(struct call call)
{
    if (call.word) {
        wake_word(call.word);
    }
    while (call.create && create_thread() < 0) {
        call = (struct call){ 0 };
        pthread_mutex_lock(&pool.lock);
        create_failed_locked();
        call_locked(&call); /* others may have relied on it; one may be idle by now */
        pthread_mutex_unlock(&pool.lock);
        if (call.word) {
            wake_word(call.word);
        }
    }
}

/* The pool has no thread: makes one, or refuses.  Returns 0 or -EAGAIN. */
static int create_first_locked(void)
{
    pool.creating++;
    pool.coming++;
    if (create_thread() < 0) {
        create_failed_locked();
        return -EAGAIN;
    }
    return 0;
}

/* ---- The queue ------------------------------------------------------------------------------- */

static void remove_locked(PoolWork *work)
{
    *(work->prev ? &work->prev->next : &pool.first) = work->next;
    *(work->next ? &work->next->prev : &pool.last) = work->prev;
    work->waiting = false;
    pool.stats.queued--;
}

int pool_enqueue(PoolWork *work)
{
    struct call call = { 0 };

    pthread_mutex_lock(&pool.lock);
    if (unlikely(pool.live + pool.creating == 0) && create_first_locked() < 0) {
        pthread_mutex_unlock(&pool.lock);
        return -EAGAIN;
    }
    work->waiting = true;
    work->next = NULL;
    work->prev = pool.last;
    *(work->prev ? &work->prev->next : &pool.first) = work;
    pool.last = work;
    pool.stats.queued++;
    pool.stats.submitted++;
    call_locked(&call);
    pthread_mutex_unlock(&pool.lock);
    make_call(call);
    return 0;
}

bool pool_dequeue(PoolWork *work)
{
    bool mine;

    pthread_mutex_lock(&pool.lock);
    mine = work->waiting;
    if (mine) {
        remove_locked(work);
        pool.stats.cancelled++;
    }
    pthread_mutex_unlock(&pool.lock);
    return mine;
}

/* ---- Threads --------------------------------------------------------------------------------- */

/* The oldest work that has not begun; NULL also for a thread that is one too many. */
static PoolWork *take_locked(void)
{
    PoolWork *work = pool.live > pool.params.max_threads ? NULL : pool.first;

    if (work) {
        remove_locked(work);
        pool.stats.running++;
    }
    return work;
}

/* There is nothing to do for @me: sleeps.  Returns false when the thread is to end. */
static bool sleep_locked(struct pool_thread *me)
{
    int64_t until = INT64_MAX;

    if (pool.live > pool.params.max_threads) {
        return false;
    }
    if (pool.live > pool.params.min_threads &&
        __builtin_add_overflow(clock_monotonic_ns(), pool.params.idle_ns, &until)) {
        until = INT64_MAX;
    }
    st_relaxed(&me->word, 0);
    link_idle_locked(me);
    pthread_mutex_unlock(&pool.lock);
    wait_for_word(&me->word, until);
    pthread_mutex_lock(&pool.lock);
    if (me->called) {
        me->called = false;
        pool.coming--;
        return true;
    }
    if (!me->idle) {
        return true; /* nudge_all_locked() */
    }
    unlink_idle_locked(me);
    return pool.live <= pool.params.min_threads || (pool.live == 1 && pool.creating > 0);
}

static void *run_thread(void *unused)
{
    struct pool_thread me = { 0 };
    PoolWork *back = NULL; /* has returned, and was not sent back yet */
    struct call last_call = { 0 };

    prctl(PR_SET_NAME, "aioctx-pool");
    pthread_mutex_lock(&pool.lock);
    pool.creating--;
    pool.coming--;
    pool.live++;
    pool.failed_ns = 0;
    pool.stats.threads_begun++;
    for (;;) {
        PoolWork *work = take_locked();
        struct call call = { 0 };

        if (!work && !back) {
            if (!sleep_locked(&me)) {
                break;
            }
            continue;
        }
        if (work) {
            call_locked(&call);
        }
        pthread_mutex_unlock(&pool.lock);
        if (back) {
            pool_send_back(back);
        }
        make_call(call);
        back = work;
        if (work) {
            work->ret = work->func(work);
        }
        pthread_mutex_lock(&pool.lock);
        if (work) {
            pool.stats.running--;
            pool.stats.done++;
        }
    }
    pool.live--;
    call_locked(&last_call);
    pthread_mutex_unlock(&pool.lock);
    make_call(last_call);
    return NULL;
}

/* ---- Parameters and statistics --------------------------------------------------------------- */

/* Has every idle thread look at the parameters. */
static void nudge_all_locked(void)
{
    while (pool.idle) {
        struct pool_thread *t = pool.idle;

        unlink_idle_locked(t);
        st_release(&t->word, 1);
        wake_word(&t->word); /* it cannot go meanwhile: it needs the lock */
    }
}

static int check_params(const ThreadPoolParams *p)
{
    if (p->max_threads > MAX_THREADS_LIMIT) {
        fprintf(stderr, "aioctx: ThreadPoolParams.max_threads is %u; it is 1 to %d, or 0 for %d\n",
                p->max_threads, MAX_THREADS_LIMIT, MAX_THREADS);
        return -EINVAL;
    }
    if (p->min_threads > (p->max_threads ? p->max_threads : MAX_THREADS)) {
        fprintf(stderr, "aioctx: ThreadPoolParams.min_threads is %u; it is 0 to max_threads, %u\n",
                p->min_threads, p->max_threads ? p->max_threads : MAX_THREADS);
        return -EINVAL;
    }
    if (p->idle_ns < 0) {
        fprintf(stderr,
                "aioctx: ThreadPoolParams.idle_ns is %lld; it is 1 or more, or 0 for 10 s\n",
                (long long)p->idle_ns);
        return -EINVAL;
    }
    return 0;
}

int thread_pool_set_params(const ThreadPoolParams *params)
{
    ThreadPoolParams p = params ? *params : (ThreadPoolParams){ 0 };
    struct call call = { 0 };

    rcu_check_fork("thread_pool_set_params");
    if (check_params(&p) < 0) {
        return -EINVAL;
    }
    p.max_threads = p.max_threads ? p.max_threads : MAX_THREADS;
    p.idle_ns = p.idle_ns ? p.idle_ns : IDLE_NS;
    pthread_mutex_lock(&pool.lock);
    pool.params = p;
    nudge_all_locked();
    call_locked(&call);
    pthread_mutex_unlock(&pool.lock);
    make_call(call);
    return 0;
}

void thread_pool_get_params(ThreadPoolParams *ret_params)
{
    rcu_check_fork("thread_pool_get_params"); /* the lock may have been held */
    pthread_mutex_lock(&pool.lock);
    *ret_params = pool.params;
    pthread_mutex_unlock(&pool.lock);
}

void thread_pool_get_stats(ThreadPoolStats *ret_stats)
{
    rcu_check_fork("thread_pool_get_stats");
    pthread_mutex_lock(&pool.lock);
    *ret_stats = pool.stats;
    ret_stats->threads = pool.live;
    pthread_mutex_unlock(&pool.lock);
}
