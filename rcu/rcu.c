/* SPDX-License-Identifier: MIT */
/*
 * The one place that knows liburcu.
 *
 * Flavour: memb.  Its read lock is a store to thread-local memory without a barrier, since
 * membarrier(2) supplies the barrier on the waiting side, and threads need not announce quiescent
 * states, which threads that this library did not make could not be asked to do.
 *
 * Registration: at a thread's first call.  A pthread key undoes it at thread exit; should another
 * destructor use RCU after that, the thread registers again and the key's destructor runs again.
 *
 * ThreadSanitizer cannot see into liburcu, which is not instrumented, so that in such a build this
 * file announces the edges that RCU gives: a read section's end happens before the end of every
 * grace period that waited for it, and queueing a call happens before the call.  Deferred calls run
 * below a frame of liburcu, so a suppression by library name would hide their races: there is none.
 */
#include "rcu/rcu_int.h"

#include <aioctx/rcu.h>

#include <assert.h>

#ifndef __SANITIZE_THREAD__
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#endif

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#else
#define _LGPL_SOURCE /* liburcu's inlines; its licence allows them in MIT code */
#define __tsan_acquire(p) ((void)(p))
#define __tsan_release(p) ((void)(p))
#endif

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <urcu/urcu-memb.h>

enum { BACKLOG_MAX = 65536, RECLAIM_LIMIT_MS = 2000 };

struct deferred {
    struct rcu_head urcu;
    AioRcuFunc *func;
};
static_assert(sizeof(struct deferred) <= sizeof(AioRcuHead), "AioRcuHead is too small");

static __thread struct {
    bool registered;
    bool in_deferred; /* this is liburcu's worker, inside a deferred call */
    bool never_block, may_not_wait;
} self __attribute__((tls_model("initial-exec"))); /* no call, and no memory, at its first use */

static pthread_once_t process_once = PTHREAD_ONCE_INIT;
static pthread_once_t worker_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_key;
bool rcu_forked;              /* written once, in a child's only thread */
static bool used;             /* atomic: there is state that a child must not use */
static unsigned long backlog; /* deferred calls not yet made; atomic */
static unsigned long made;    /* those that were; atomic */
static unsigned long ran;     /* the same, counted before `backlog` goes down; atomic */
static char edge;             /* the address that stands for "a read section ended" */

static void unregister_self(void *unused)
{
    if (rcu_forked) {
        return; /* another thread may have held liburcu's lock when this process was forked off */
    }
    self.registered = false;
    urcu_memb_unregister_thread();
}

void rcu_mark_used(void)
{
    st_relaxed(&used, true);
}

static void after_fork_in_child(void)
{
    if (!ld_relaxed(&used)) {
        return;
    }
    /* The worker and the other readers are gone; the next use must take the slow path and abort. */
    rcu_forked = true;
    this_thread.hint = NULL;
    self.registered = false;
}

static void process_init(void)
{
    if (pthread_key_create(&exit_key, unregister_self) != 0) {
        die_misuse("aio_rcu", "the process has no thread-specific key left (PTHREAD_KEYS_MAX)");
    }
}

/* Before any use of the library, which may begin in ways that never enter a read section. */
static __attribute__((constructor)) void watch_for_fork(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

static void worker_init(void)
{
    sigset_t all, old;

    /* The worker inherits the mask: no signal handler of the program may run on it. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    urcu_memb_get_default_call_rcu_data();
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void rcu_die_forked(const char *call)
{
    die_misuse(call, "called in a child of fork(): the library's threads exist only in the parent; "
                     "call exec, or use the library in one of the two");
}

static __attribute__((noinline)) void register_self(void)
{
    rcu_check_fork("aio_rcu_read_lock");
    rcu_mark_used();
    pthread_once(&process_once, process_init);
    urcu_memb_register_thread();
    self.registered = true;
    pthread_setspecific(exit_key, &edge); /* any non-NULL value */
}

static inline void ensure_registered(void)
{
    if (unlikely(!self.registered)) {
        register_self();
    }
}

void aio_rcu_read_lock(void)
{
    ensure_registered();
    urcu_memb_read_lock();
}

void aio_rcu_read_unlock(void)
{
    __tsan_release(&edge);
    urcu_memb_read_unlock();
}

bool aio_rcu_read_ongoing(void)
{
    return self.registered && urcu_memb_read_ongoing();
}

void rcu_check_may_wait(const char *call)
{
    if (unlikely(aio_rcu_read_ongoing())) {
        die_misuse(call, "called inside an RCU read section, where waiting could never end; "
                         "call aio_rcu_read_unlock() first");
    }
}

void rcu_set_never_block(void)
{
    self.never_block = true;
}

void aio_synchronize_rcu(void)
{
    rcu_check_may_wait("aio_synchronize_rcu");
    ensure_registered();
    urcu_memb_synchronize_rcu();
    __tsan_acquire(&edge);
}

static void run_deferred(struct rcu_head *urcu)
{
    struct deferred *d = container_of(urcu, struct deferred, urcu);

    /* liburcu registered its worker itself. */
    self.registered = true;
    __tsan_acquire(&edge);
    __tsan_acquire(d);
    self.in_deferred = true;
    d->func((AioRcuHead *)d);
    self.in_deferred = false;
    fetch_add_seq(&ran, 1);
    fetch_sub_seq(&backlog, 1);
    fetch_add_seq(&made, 1); /* in this order, see rcu_reclaim() */
}

bool rcu_may_wait(void)
{
    return !self.may_not_wait && !self.in_deferred && !this_thread.callbacks &&
           !aio_rcu_read_ongoing();
}

void rcu_set_may_not_wait(void)
{
    self.may_not_wait = true;
}

unsigned long rcu_reclaimed(void)
{
    return ld_seq(&ran);
}

/*
 * No barrier: a deferred call, or a read section, may itself wait for the caller, who holds a lock
 * of the program's that it wants; and liburcu's barrier allocates, and ends the program when it
 * cannot.  Calls are made in the order in which they were queued, so their number tells.
 */
bool rcu_reclaim(unsigned long since)
{
    /* In this order, the opposite of run_deferred()'s: never more than there are. */
    unsigned long before = ld_seq(&made), waiting = ld_seq(&backlog);
    int cancel;

    if (!rcu_may_wait() || waiting == 0) {
        return ld_seq(&ran) != since; /* what is not in `backlog` any more is in this */
    }
    cancel = cancel_off();
    for (int i = 0; i < RECLAIM_LIMIT_MS && ld_seq(&made) - before < waiting; i++) {
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    cancel_restore(cancel);
    return ld_seq(&made) - before >= waiting;
}

/* Bounds the memory that waits to be freed where the caller may be held up. */
static void wait_for_backlog(void)
{
    if (self.never_block || !rcu_may_wait()) {
        return;
    }
    int cancel = cancel_off(); /* the call is counted already */

    while (ld_relaxed(&backlog) > BACKLOG_MAX) {
        urcu_memb_synchronize_rcu();
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    cancel_restore(cancel);
}

void aio_call_rcu(AioRcuHead *head, AioRcuFunc *func)
{
    struct deferred *d = (struct deferred *)head;

    ensure_registered();
    pthread_once(&worker_once, worker_init);
    if (unlikely(add_fetch_relaxed(&backlog, 1) > BACKLOG_MAX)) {
        wait_for_backlog();
    }
    d->func = func;
    __tsan_release(d);
    urcu_memb_call_rcu(&d->urcu, run_deferred);
}

void aio_rcu_barrier(void)
{
    rcu_check_may_wait("aio_rcu_barrier");
    if (self.in_deferred) {
        die_misuse("aio_rcu_barrier", "called in a deferred call, which it would wait for");
    }
    ensure_registered();
    urcu_memb_barrier();
    __tsan_acquire(&edge);
}

/*
 * At exit, lets deferred calls that are already queued finish.  A program may exit while another
 * of its threads stays in a read section for ever: so for half a second at most.
 */
static __attribute__((destructor)) void process_exit(void)
{
    if (rcu_forked || aio_rcu_read_ongoing()) {
        return;
    }
    for (int i = 0; i < 500 && ld_relaxed(&backlog) > 0; i++) {
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
}
