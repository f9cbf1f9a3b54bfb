/* SPDX-License-Identifier: MIT */
/*
 * Words in memory, store buffers, and faults; see interleave.h.
 *
 * A store in a buffer has been made in memory already, since the code reads plainly what it wrote;
 * the entry keeps what was there before, which is what the other threads load until the entry
 * leaves.  What others read plainly they read under a mutex, whose release comes behind the entry.
 */
#include "tests/interleave_int.h"

#include "rcu/atomic_int.h"
#include "rcu/barrier_int.h"
#include "rcu/util_int.h"

#include <string.h>

enum {
    BUFFER_MAX = 64,
    PLANTS = 8,
    /* A thread that loads the same again, or loads a lot, and changes nothing, waits for a write:
     * it would go round in a loop. */
    SAME_LOADS_MAX = 2,
    LOADS_MAX = 40,
};

struct entry {
    const volatile void *p; /* a word, or a mutex that is released */
    unsigned size;          /* 0: a mutex */
    uint64_t before;
};

static struct memory_thread {
    struct entry buffer[BUFFER_MAX];
    int buffered;
    const volatile void *last_load;
    uint64_t last_value;
    unsigned same_loads, loads; /* without a write of one's own in between; loads: of anyone's */
    unsigned long writes_seen;
} threads[IL_THREADS];
int il_thread_count;

/* ---- Faults ---------------------------------------------------------------------------------- */

static struct {
    enum il_fault fault;
    const volatile void *p;
} plants[PLANTS];
static int plant_count;

void il_plant(enum il_fault fault, const volatile void *p)
{
    must(plant_count < PLANTS);
    plants[plant_count].fault = fault;
    plants[plant_count++].p = p;
}

bool il_has_fault(enum il_fault fault, const volatile void *p)
{
    for (int i = 0; i < plant_count; i++) {
        if (plants[i].fault == fault && plants[i].p == p) {
            return true;
        }
    }
    return false;
}

/* ---- Words and store buffers ----------------------------------------------------------------- */

static uint64_t get_word(const volatile void *p, unsigned size)
{
    uint64_t v = 0;

    memcpy(&v, (const void *)p, size);
    return v;
}

static void put_word(volatile void *p, unsigned size, uint64_t v)
{
    memcpy((void *)p, &v, size);
}

/* The oldest store to the word in another thread's buffer. */
static struct entry *find_foreign(const volatile void *p)
{
    for (int t = 0; t < il_thread_count; t++) {
        for (int i = 0; t != il_self && i < threads[t].buffered; i++) {
            if (threads[t].buffer[i].p == p) {
                return &threads[t].buffer[i];
            }
        }
    }
    return NULL;
}

/* Memory holds stores of one thread that others do not see yet: one of another thread waits.  The
 * library stores to a word from several threads under a lock only, where that loses no order. */
static bool word_free(const struct il_op *op, int thread)
{
    int self = il_self;
    bool is_free;

    il_self = thread;
    is_free = !find_foreign(op->a);
    il_self = self;
    return is_free;
}

static void buffer_push(struct entry e)
{
    struct memory_thread *t = &threads[il_self];

    must(t->buffered < BUFFER_MAX);
    t->buffer[t->buffered++] = e;
}

bool il_buffer_empty(int thread)
{
    return threads[thread].buffered == 0;
}

struct il_op il_buffer_op(int thread)
{
    const struct entry *e = &threads[thread].buffer[0];

    return (struct il_op){
        .what = e->size ? "stored" : "unlocked",
        .a = e->p,
        .size = e->size ? e->size : 1,
        .write = true,
    };
}

void il_buffer_flush_one(int thread)
{
    struct memory_thread *t = &threads[thread];
    struct entry e = t->buffer[0];

    memmove(&t->buffer[0], &t->buffer[1], (size_t)--t->buffered * sizeof(e));
    if (!e.size) {
        il_release_mutex(e.p);
    }
}

void il_flush_all(void)
{
    for (int t = 0; t < il_thread_count; t++) {
        while (threads[t].buffered) {
            il_buffer_flush_one(t);
        }
    }
}

void il_no_longer_loading(void)
{
    threads[il_self].same_loads = threads[il_self].loads = 0;
}

/* What this thread would load. */
static uint64_t visible(const volatile void *p, unsigned size)
{
    struct entry *e = find_foreign(p);

    return e ? e->before : get_word(p, size);
}

/* A store that all see at once.  It comes before one that another thread's buffer still holds. */
static void put_visible(volatile void *p, unsigned size, uint64_t v)
{
    struct entry *e = find_foreign(p);

    if (e) {
        e->before = v;
    } else {
        put_word(p, size, v);
    }
}

static bool word_changed(const struct il_op *op, int thread)
{
    int self = il_self;
    uint64_t v;

    il_self = thread;
    v = visible(op->a, op->size);
    il_self = self;
    return v != op->value;
}

static bool something_written(const struct il_op *op, int thread)
{
    return il_writes != threads[thread].writes_seen;
}

uint64_t interleave_load(const volatile void *p, unsigned size, int order)
{
    struct memory_thread *t = &threads[il_self];
    struct il_op op = { .what = "load", .a = p, .size = size };
    bool stop;
    uint64_t v;

    il_check_access(p);
    if (!il_active) {
        return get_word(p, size);
    }
    stop = il_shared(p, false);
    if (il_writes != t->writes_seen) {
        t->writes_seen = il_writes;
        t->loads = 0;
    }
    if (t->last_load == p && t->same_loads >= SAME_LOADS_MAX) {
        op.ready = word_changed;
        op.value = t->last_value;
    } else if (++t->loads > LOADS_MAX) {
        op.ready = something_written;
        op.global = true; /* any write lets it go on */
    }
    if (stop || op.ready) {
        il_point(op);
        il_check_access(p);
    }
    v = visible(p, size);
    if (stop) {
        il_trace(": %lld", (long long)v);
    }
    t->same_loads = t->last_load == p && t->last_value == v ? t->same_loads + 1 : 1;
    t->last_load = p;
    t->last_value = v;
    return v;
}

void interleave_store(volatile void *p, unsigned size, uint64_t value, int order)
{
    bool buffered =
             (order != __ATOMIC_SEQ_CST && !(il_flags & IL_SC)) || il_has_fault(IL_WEAK_STORE, p),
         stop;

    il_check_access(p);
    if (!il_active) {
        put_word(p, size, value);
        return;
    }
    il_no_longer_loading();
    stop = il_shared(p, true);
    if (buffered && stop) {
        if (il_has_writers(p)) {
            il_point((struct il_op){ .what = "begins to store",
                                     .a = p,
                                     .size = size,
                                     .write = true,
                                     .ready = word_free });
        } else if (il_flags & IL_BARRIER) {
            il_point((struct il_op){ .what = "begins to store" });
        }
        il_check_access(p);
        buffer_push((struct entry){ .p = p, .size = size, .before = get_word(p, size) });
        il_trace("  (%s := %lld)", il_name_of(p), (long long)value);
        put_word(p, size, value);
        return;
    }
    if (stop || (!buffered && !il_buffer_empty(il_self))) {
        il_point(il_write_op("store", p, size));
        il_check_access(p);
        il_trace(": %lld", (long long)value);
    }
    put_visible(p, size, value);
}

/* Stops for a read-modify-write. */
static void point_for_update(const volatile void *p, unsigned size, const char *what)
{
    bool stop = il_shared(p, true);

    il_no_longer_loading();
    il_check_access(p);
    if (stop || !il_buffer_empty(il_self)) {
        il_point(il_write_op(what, p, size));
        il_check_access(p);
    }
}

/* A fault may make two steps of a read-modify-write.  Returns the order of the second. */
static int split_update(const volatile void *p)
{
    return il_has_fault(IL_SPLIT_UPDATE, p)  ? __ATOMIC_SEQ_CST
           : il_has_fault(IL_WEAK_UPDATE, p) ? __ATOMIC_RELAXED
                                             : -1;
}

uint64_t interleave_update(volatile void *p, unsigned size, int op, uint64_t value)
{
    int split = il_active ? split_update(p) : -1;
    uint64_t old, new_value;

    if (split >= 0) {
        old = interleave_load(p, size, __ATOMIC_ACQUIRE);
    } else {
        if (il_active) {
            point_for_update(p, size, "update");
        }
        old = visible(p, size);
    }
    new_value = op == INTERLEAVE_XCHG  ? value
                : op == INTERLEAVE_ADD ? old + value
                : op == INTERLEAVE_OR  ? old | value
                                       : old & value;
    if (split >= 0) {
        interleave_store(p, size, new_value, split);
    } else {
        put_visible(p, size, new_value);
        if (il_active) {
            il_trace(": %llx -> %llx", (unsigned long long)old, (unsigned long long)new_value);
        }
    }
    return old;
}

bool interleave_cas(volatile void *p, unsigned size, void *expected, uint64_t desired)
{
    uint64_t old, wanted = get_word(expected, size);
    int split = il_active ? split_update(p) : -1;

    if (split >= 0) {
        old = interleave_load(p, size, __ATOMIC_ACQUIRE);
    } else {
        if (il_active) {
            point_for_update(p, size, "compare and swap");
        }
        old = visible(p, size);
    }
    if (old != wanted) {
        put_word(expected, size, old);
        il_trace(": fails");
        return false;
    }
    if (split >= 0) {
        interleave_store(p, size, desired, split);
    } else {
        put_visible(p, size, desired);
    }
    return true;
}

bool barrier_available(void)
{
    return true;
}

void barrier_all_threads(void)
{
    if (!il_active || il_has_fault(IL_NO_BARRIER, NULL)) {
        return;
    }
    must(il_flags & IL_BARRIER);
    il_no_longer_loading();
    il_point((struct il_op){
        .what = "barrier on all threads", .write = true, .global = true, .drained = true });
    il_flush_all();
}

void il_buffer_unlock(const volatile void *m)
{
    buffer_push((struct entry){ .p = m });
}

void il_memory_reset(int n)
{
    memset(threads, 0, sizeof(threads));
    il_thread_count = n;
    plant_count = 0;
}
