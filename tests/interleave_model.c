/* SPDX-License-Identifier: MIT */
/* What blocks: mutexes, condition variables, grace periods and eventfds; time; and what the
 * library's other files would bring along.  See interleave.h. */
#include "tests/interleave_int.h"
#include "tests/interleave_redirect.h"

#include "rcu/atomic_int.h"
#include "rcu/rcu_int.h"
#include "rcu/util_int.h"
#include "timers/clock_int.h"
#include "timers/icount_int.h"
#include "timers/virtual_int.h"

#include <aioctx/rcu.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

enum { MUTEXES = 32, DEFERRED_MAX = 16 };

static struct model_thread {
    int read_depth;
    const void *waits_for; /* a condition variable */
    bool signalled;
} threads[IL_THREADS];

/* ---- Mutexes and condition variables --------------------------------------------------------- */

static struct mutex {
    const volatile void *p;
    int holder; /* -1: none */
} mutexes[MUTEXES];
static int mutex_count;

static struct mutex *find_mutex(const volatile void *p)
{
    for (int i = 0; i < mutex_count; i++) {
        if (mutexes[i].p == p) {
            return &mutexes[i];
        }
    }
    must(mutex_count < MUTEXES);
    mutexes[mutex_count] = (struct mutex){ .p = p, .holder = -1 };
    return &mutexes[mutex_count++];
}

void il_release_mutex(const volatile void *m)
{
    find_mutex(m)->holder = -1;
}

static bool mutex_free(const struct il_op *op, int thread)
{
    return find_mutex(op->a)->holder < 0;
}

void il_mutex_lock(pthread_mutex_t *m)
{
    bool stop;

    if (!il_active || il_has_fault(IL_NO_MUTEX, m)) {
        return;
    }
    il_no_longer_loading();
    stop = il_shared(m, true);
    il_check_access(m);
    if (stop || find_mutex(m)->holder >= 0 || !il_buffer_empty(il_self)) {
        il_point((struct il_op){ .what = "lock",
                                 .a = m,
                                 .size = 1,
                                 .write = true,
                                 .drained = true,
                                 .ready = mutex_free });
        il_check_access(m);
    }
    find_mutex(m)->holder = il_self;
}

void il_mutex_unlock(pthread_mutex_t *m)
{
    if (!il_active || il_has_fault(IL_NO_MUTEX, m)) {
        return;
    }
    il_no_longer_loading();
    il_check_access(m);
    if (find_mutex(m)->holder != il_self) {
        il_fail("an unlock of a mutex that the thread does not hold");
    }
    if (!il_shared(m, true)) {
        il_release_mutex(m);
        return;
    }
    if ((il_flags & IL_SC) && il_buffer_empty(il_self)) {
        il_point(il_write_op("unlock", m, 1));
        il_release_mutex(m);
        return;
    }
    if (il_flags & IL_BARRIER) {
        il_point((struct il_op){ .what = "begins to unlock" });
    }
    il_buffer_unlock(m);
    il_trace("  (unlock %s)", il_name_of(m));
}

static bool signalled_and_free(const struct il_op *op, int thread)
{
    return threads[thread].signalled && find_mutex(op->b)->holder < 0;
}

void il_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    struct il_op op = {
        .what = "cond_wait", .a = c, .b = m, .size = 1, .write = true, .drained = true
    };

    must(il_active);
    il_no_longer_loading();
    il_shared(c, true);
    il_point(op);
    il_release_mutex(m);
    threads[il_self].waits_for = c;
    threads[il_self].signalled = false;
    op.what = "end of cond_wait";
    op.ready = signalled_and_free;
    il_point(op);
    il_check_access(m);
    threads[il_self].waits_for = NULL;
    find_mutex(m)->holder = il_self;
}

void il_cond_broadcast(pthread_cond_t *c)
{
    if (!il_active) {
        return;
    }
    il_no_longer_loading();
    if (il_shared(c, true) || !il_buffer_empty(il_self)) {
        il_check_access(c);
        il_point(il_write_op("broadcast", c, 1));
    }
    il_check_access(c);
    for (int t = 0; t < il_thread_count && !il_has_fault(IL_NO_SIGNAL, c); t++) {
        threads[t].signalled |= threads[t].waits_for == c;
    }
}

bool il_in_cond_wait(int thread)
{
    return threads[thread].waits_for && !threads[thread].signalled;
}

static bool case_ready(const struct il_op *op, int thread)
{
    bool (*ready)(void *) = (bool (*)(void *))(uintptr_t)op->value;

    return ready(op->arg);
}

void il_wait(const volatile void *object, bool (*ready)(void *), void *arg)
{
    il_no_longer_loading();
    il_shared(object, false);
    il_point((struct il_op){ .what = "waits for",
                             .a = object,
                             .size = 1,
                             .ready = case_ready,
                             .arg = arg,
                             .value = (uintptr_t)ready });
}

void il_step(const volatile void *object)
{
    il_no_longer_loading();
    il_shared(object, true);
    il_point((struct il_op){ .what = "is at", .a = object, .size = 1, .write = true });
}

/* ---- Read sections and grace periods --------------------------------------------------------- */

static char read_sections; /* the object */
static struct deferred {
    AioRcuHead *head;
    AioRcuFunc *func;
    unsigned readers; /* threads whose section it waits for */
} deferred[DEFERRED_MAX];
static int deferred_count;

bool rcu_forked;

void rcu_mark_used(void)
{
}

_Noreturn void rcu_die_forked(const char *call)
{
    il_fail("%s: forked", call);
}

void rcu_set_never_block(void)
{
}

bool aio_rcu_read_ongoing(void)
{
    return il_active && threads[il_self].read_depth > 0;
}

void rcu_check_may_wait(const char *call)
{
    if (aio_rcu_read_ongoing()) {
        il_fail("%s: called inside a read section", call);
    }
}

static unsigned readers(void)
{
    unsigned mask = 0;

    for (int t = 0; t < il_thread_count && !il_has_fault(IL_NO_GRACE, NULL); t++) {
        mask |= threads[t].read_depth > 0 ? 1u << t : 0;
    }
    return mask;
}

void aio_rcu_read_lock(void)
{
    if (!il_active || threads[il_self].read_depth++ > 0 || !(il_flags & IL_RCU)) {
        return;
    }
    threads[il_self].read_depth--;
    il_point((struct il_op){ .what = "read section begins", .a = &read_sections, .size = 1 });
    threads[il_self].read_depth++;
}

/* Makes the calls that wait for no reader any more. */
static void run_deferred(void)
{
    for (int i = 0; i < deferred_count;) {
        struct deferred d = deferred[i];

        if (d.readers) {
            i++;
            continue;
        }
        deferred[i] = deferred[--deferred_count];
        d.func(d.head);
        i = 0;
    }
}

void aio_rcu_read_unlock(void)
{
    struct model_thread *t = &threads[il_self];
    bool awaited = false;

    if (!il_active) {
        return;
    }
    must(t->read_depth > 0);
    if (t->read_depth > 1 || !(il_flags & IL_RCU)) {
        t->read_depth--;
        return;
    }
    for (int i = 0; i < deferred_count; i++) {
        awaited |= deferred[i].readers & (1u << il_self);
    }
    /* The grace period's end has a barrier on all threads in it. */
    il_point((struct il_op){ .what = "read section ends",
                             .a = &read_sections,
                             .size = 1,
                             .write = true,
                             .global = awaited });
    t->read_depth--;
    awaited = false;
    for (int i = 0; i < deferred_count; i++) {
        awaited |= deferred[i].readers & (1u << il_self);
        deferred[i].readers &= ~(1u << il_self);
    }
    if (awaited) {
        il_flush_all();
    }
    run_deferred();
}

/* The call is made as soon as it may, on the thread that is there. */
void aio_call_rcu(AioRcuHead *head, AioRcuFunc *func)
{
    if (il_active && (il_flags & IL_RCU)) {
        il_point((struct il_op){
            .what = "call_rcu", .a = &read_sections, .write = true, .global = true });
    }
    must(deferred_count < DEFERRED_MAX);
    deferred[deferred_count++] = (struct deferred){ head, func, il_active ? readers() : 0 };
    if (il_active && !readers()) {
        il_flush_all();
    }
    run_deferred();
}

/* ---- Event descriptors and time -------------------------------------------------------------- */

static uint64_t fd_counts[IL_FDS];
static int fd_count;
int64_t il_now_ns;

int il_eventfd(void)
{
    must(fd_count < IL_FDS);
    fd_counts[fd_count] = 0;
    il_name(&fd_counts[fd_count], "eventfd");
    return IL_FD_MIN + fd_count++;
}

bool il_fd_is_set(int fd)
{
    return fd_counts[fd - IL_FD_MIN] > 0;
}

const void *il_fd_object(int fd)
{
    return &fd_counts[fd - IL_FD_MIN];
}

static bool fd_ready(const struct il_op *op, int thread)
{
    return *(const volatile uint64_t *)op->a > 0;
}

ssize_t il_write(int fd, const void *buf, size_t len)
{
    uint64_t *count = &fd_counts[fd - IL_FD_MIN];

    if (il_active) {
        il_no_longer_loading();
        il_shared(count, true);
        il_point(il_write_op("write", count, 8));
    }
    *count += *(const uint64_t *)buf;
    return (ssize_t)len;
}

ssize_t il_read(int fd, void *buf, size_t len)
{
    uint64_t *count = &fd_counts[fd - IL_FD_MIN];

    must(il_active);
    il_no_longer_loading();
    il_shared(count, true);
    il_point((struct il_op){
        .what = "read", .a = count, .size = 8, .write = true, .drained = true, .ready = fd_ready });
    *(uint64_t *)buf = *count;
    *count = 0;
    return (ssize_t)len;
}

int il_clock_gettime(struct timespec *ret)
{
    int64_t ns = (int64_t)interleave_load(&il_now_ns, sizeof(il_now_ns), __ATOMIC_SEQ_CST);

    *ret = (struct timespec){ ns / 1000000000, ns % 1000000000 };
    return 0;
}

/* ---- The rest -------------------------------------------------------------------------------- */

__thread struct this_thread this_thread __attribute__((tls_model("initial-exec")));

_Noreturn void die_misuse(const char *call, const char *fmt, ...)
{
    char text[200];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    il_fail("%s: %s", call, text);
}

static struct clock saved_clocks[QEMU_CLOCK_MAX];
static struct virtual_clock saved_virtual;
static struct icount_state saved_icount;

void il_clock_save(void)
{
    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        saved_clocks[type] = *clock_of(type);
    }
    saved_virtual = virtual_clock;
    saved_icount = icount_state;
}

void il_clock_restore(void)
{
    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        *clock_of(type) = saved_clocks[type];
    }
    virtual_clock = saved_virtual;
    icount_state = saved_icount;
}

void host_watch_start(void)
{
}

static uintptr_t thread_numbers[IL_THREADS];

uintptr_t il_thread_number(int thread)
{
    return thread_numbers[thread];
}

void il_model_thread_new(int thread)
{
    thread_numbers[thread] = (uintptr_t)&this_thread;
}

void il_model_thread_begin(void)
{
    this_thread = (struct this_thread){ 0 };
}

void il_model_reset(int n)
{
    il_arena_reset();
    il_memory_reset(n);
    memset(threads, 0, sizeof(threads));
    mutex_count = deferred_count = fd_count = 0;
    il_now_ns = 1000;
    il_model_thread_begin();
}

void il_model_check(void)
{
    for (int t = 0; t < il_thread_count; t++) {
        if (threads[t].read_depth) {
            il_fail("thread %d ended inside a read section", t);
        }
    }
    il_flush_all();
    for (int i = 0; i < mutex_count; i++) {
        if (mutexes[i].holder >= 0) {
            il_fail("thread %d ended with a mutex", mutexes[i].holder);
        }
    }
    if (deferred_count) {
        il_fail("a deferred call was not made");
    }
    il_arena_check();
}
