/* SPDX-License-Identifier: MIT */
/*
 * queue_bench: which structure holds armed timers best?  Bare queues, without locks or clocks.
 *
 *   churn       n timers armed; one operation moves a random one to a random deadline
 *   io-timeout  n timers armed; one operation arms one at now + 30 s and cancels the oldest
 *   fire        n timers armed at random within 4 ms; one operation takes one out, in order, as a
 *               pass of the library does: at most 64 at once, and each timer is looked at
 *   tail        the slowest single operation among n inserts, moves, cancels of the soonest and
 *               removals in order, the whole sequence being repeated: of each operation the
 *               quickest time counts, so that what the machine did in between does not; "empty"
 *               is the same with nothing to do
 *   size        bytes for n timers beside the timers themselves, shown for each timer
 *
 * Before anything is measured the queues are compared with each other: random operations with many
 * equal deadlines must give the same order.
 */
#include "bench.h"
#include "queue_impl.h"

#include <stdlib.h>
#include <string.h>

#define SIZES_MAX 16
#define BATCH 64
#define BATCH_NS 1000 /* how far time moves on in a batch */
#define SPREAD_NS ((INT64_C(1) << 40) - 1)
#define IO_TIMEOUT_NS INT64_C(30000000000)
#define FIRE_SPREAD_NS 4000000
#define FIRE_WAIT_NS UINT64_C(17000000) /* libev's clock: by then all are due */
#define FIRE_TIMERS_MIN 2000
#define FIRE_QUEUES_MAX 32
#define START_NS (INT64_C(3600) * 1000000000)

static const struct queue_impl *const impls[] = {
    &queue_pairing,
    &queue_heap4,
    &queue_heap4_split,
    &queue_heap8_split,
    &queue_heap8_groups,
    &queue_heap8_chunks,
    &queue_heap4_side,
    &queue_heap8_side,
    &queue_heap4_lanes,
    &queue_heap8_lanes,
    &queue_heap8_groups_lanes,
    &queue_heap4_first_fit,
    &queue_leaves,
    &queue_radix2,
    &queue_radix64,
#ifdef HAVE_LIBEV
    &queue_libev,
#endif
};
#define IMPLS (sizeof(impls) / sizeof(impls[0]))

enum queue_case { CHURN, IO_TIMEOUT, FIRE, TAIL, SIZE };
static const char *const case_names[] = { "churn", "io-timeout", "fire", "tail", "size", NULL };

void *queue_alloc(size_t bytes, size_t align)
{
    void *p = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (!p) {
        bench_die("out of memory");
    }
    memset(p, 0, (bytes + align - 1) / align * align);
    return p;
}

/* One queue and its timers. */
struct set {
    struct queue *q;
    struct qtimer *timers;
};

struct side {
    const struct queue_impl *impl;
    struct set sets[FIRE_QUEUES_MAX];
    unsigned nr_sets;
    uint32_t n, timers, next;
    uint64_t random, seq, ops, sum;
    int64_t now;
    struct bench_span span;
};

static void set_open(struct set *s, const struct queue_impl *impl, uint32_t timers)
{
    s->timers = queue_alloc((size_t)timers * sizeof(s->timers[0]), 16);
    for (uint32_t i = 0; i < timers; i++) {
        s->timers[i].id = i;
    }
    s->q = impl->open();
    impl->reserve(s->q, s->timers, timers);
}

static void set_close(struct set *s, const struct queue_impl *impl)
{
    impl->close(s->q);
    free(s->timers);
}

/* ---- The operations -------------------------------------------------------------------------- */

static void new_batch(struct side *s, struct set *set)
{
    s->now += BATCH_NS;
    if (s->impl->refresh) {
        s->impl->refresh(set->q, s->now);
    }
}

static void arm(struct side *s, struct set *set, uint32_t i, int64_t key)
{
    struct qtimer *t = &set->timers[i];
    t->key = key;
    t->seq = ++s->seq;
    s->impl->insert(set->q, t);
}

static void churn_ops(struct side *s)
{
    const struct queue_impl *impl = s->impl;
    struct set *set = &s->sets[0];
    bench_begin(&s->span);
    for (uint64_t done = 0; done < s->ops; done += BATCH) {
        new_batch(s, set);
        for (int i = 0; i < BATCH; i++) {
            uint64_t r = bench_random(&s->random);
            struct qtimer *t = &set->timers[((r >> 32) * s->n) >> 32];
            int64_t key = s->now + START_NS + (int64_t)(r * 0x9e3779b97f4a7c15ULL & SPREAD_NS);
            s->sum += (uint64_t)impl->move(set->q, t, key, ++s->seq);
        }
    }
    bench_end(&s->span);
}

static void io_timeout_ops(struct side *s)
{
    struct set *set = &s->sets[0];
    uint32_t next = s->next;
    bench_begin(&s->span);
    for (uint64_t done = 0; done < s->ops; done += BATCH) {
        new_batch(s, set);
        for (int i = 0; i < BATCH; i++) {
            arm(s, set, next, s->now + IO_TIMEOUT_NS);
            next = next == s->n ? 0 : next + 1;
            s->sum += (uint64_t)s->impl->remove(set->q, &set->timers[next]);
        }
    }
    bench_end(&s->span);
    s->next = next;
}

static void fire_all(struct side *s, struct set *set)
{
    struct qtimer *due[BATCH];
    unsigned n;
    if (s->impl->run) {
        for (uint32_t fired = 0; fired < s->n;) {
            fired += s->impl->run(set->q);
        }
        return;
    }
    while ((n = s->impl->pop(set->q, INT64_MAX - 1, due, BATCH))) {
        for (unsigned i = 0; i < n; i++) {
            s->sum += ++due[i]->user[0];
        }
    }
}

static void fire_ops(struct side *s)
{
    struct bench_span sum = { 0 };
    for (uint64_t done = 0; done < s->ops; done += (uint64_t)s->n * s->nr_sets) {
        for (unsigned k = 0; k < s->nr_sets; k++) {
            new_batch(s, &s->sets[k]);
            for (uint32_t i = 0; i < s->n; i++) {
                arm(s, &s->sets[k], i,
                    s->now + 1000000 + bench_random_below(&s->random, FIRE_SPREAD_NS));
            }
        }
        bench_sleep_ns(FIRE_WAIT_NS);
        bench_begin(&s->span);
        for (unsigned k = 0; k < s->nr_sets; k++) {
            fire_all(s, &s->sets[k]);
        }
        bench_end(&s->span);
        s->now += 2 * FIRE_SPREAD_NS; /* past what has fired */
        sum.wall_ns += s->span.wall_ns;
        sum.cpu_ns += s->span.cpu_ns;
    }
    s->span = sum;
}

static void side_run(struct side *s, enum queue_case which)
{
    if (which == CHURN) {
        churn_ops(s);
    } else if (which == IO_TIMEOUT) {
        io_timeout_ops(s);
    } else {
        fire_ops(s);
    }
}

/* Those that scan take minutes where the soonest is cancelled again and again. */
static bool wanted(const struct queue_impl *impl, enum queue_case which, uint32_t n,
                   const char *impl_list)
{
    if (impl->scans && which == IO_TIMEOUT && n > 10000) {
        return false;
    }
    if (which == TAIL && (impl->inexact || (impl->scans && n > 100000))) {
        return false;
    }
    return bench_listed(impl_list, impl->name);
}

/* ---- Cases ----------------------------------------------------------------------------------- */

static void side_open(struct side *s, const struct queue_impl *impl, enum queue_case which,
                      uint32_t n)
{
    *s = (struct side){ .impl = impl, .n = n, .timers = n + (which == IO_TIMEOUT), .nr_sets = 1 };
    s->random = 0x2545f491u;
    s->next = n;
    if (which == FIRE && n < FIRE_TIMERS_MIN) {
        s->nr_sets = FIRE_TIMERS_MIN / n < FIRE_QUEUES_MAX ? FIRE_TIMERS_MIN / n : FIRE_QUEUES_MAX;
    }
    for (unsigned k = 0; k < s->nr_sets; k++) {
        set_open(&s->sets[k], impl, s->timers);
    }
    new_batch(s, &s->sets[0]);
    for (uint32_t i = 0; i < n && which != FIRE; i++) {
        arm(s, &s->sets[0], i,
            which == CHURN ? s->now + START_NS + (int64_t)(bench_random(&s->random) & SPREAD_NS)
                           : s->now + IO_TIMEOUT_NS);
    }
}

static void side_close(struct side *s)
{
    for (unsigned k = 0; k < s->nr_sets; k++) {
        set_close(&s->sets[k], s->impl);
    }
}

/* Finds how many operations fill the time of a run; this warms up, too. */
static void calibrate(struct side *s, enum queue_case which, unsigned run_ms)
{
    uint64_t target_ns = run_ms * UINT64_C(1000000);
    if (which == FIRE) { /* the waiting fills the time */
        uint64_t round = (uint64_t)s->n * s->nr_sets;
        s->ops = round * (round > 10000 ? 1 : 1 + run_ms / 20);
        return;
    }
    for (s->ops = 16 * BATCH;; s->ops *= 2) {
        side_run(s, which);
        if (s->span.wall_ns >= target_ns / 4) {
            break;
        }
    }
    double ops = (double)s->ops * (double)target_ns / (double)s->span.wall_ns;
    s->ops = (uint64_t)ops / BATCH * BATCH + BATCH;
}

static void measure(struct bench *b, enum queue_case which, uint32_t n, const char *impl_list)
{
    static struct side sides[IMPLS];
    unsigned nr = 0;

    for (unsigned i = 0; i < IMPLS; i++) {
        if (wanted(impls[i], which, n, impl_list)) {
            side_open(&sides[nr], impls[i], which, n);
            calibrate(&sides[nr++], which, b->run_ms);
        }
    }
    for (unsigned run = 0; run < b->runs; run++) {
        for (struct side *s = sides; s < sides + nr; s++) {
            side_run(s, which);
            struct bench_share share = {
                .ns_per_op = (double)s->span.wall_ns / (double)s->ops,
                .cpu_ns_per_op = (double)s->span.cpu_ns / (double)s->ops,
            };
            bench_sample_threads(b, case_names[which], s->impl->name, 1, n, &share);
        }
    }
    for (struct side *s = sides; s < sides + nr; s++) {
        b->checksum += s->sum;
        side_close(s);
    }
}

static void size_case(struct bench *b, uint32_t n, const char *impl_list)
{
    for (unsigned i = 0; i < IMPLS; i++) {
        if (bench_listed(impl_list, impls[i]->name)) {
            struct set set;
            set_open(&set, impls[i], n);
            bench_sample(bench_row(b, "size", impls[i]->name, 1, n), BENCH_BYTES,
                         (double)impls[i]->bytes(set.q) / n);
            set_close(&set, impls[i]);
        }
    }
}

/* ---- The slowest operation ------------------------------------------------------------------- */

struct tail {
    const struct queue_impl *impl; /* NULL: nothing is done */
    uint32_t *ns;                  /* of each operation, the quickest time so far */
    uint64_t nr, last;
};

static void tail_step(struct tail *t)
{
    uint64_t now = bench_now_ns();
    uint64_t ns = now - t->last;
    if (ns < t->ns[t->nr]) {
        t->ns[t->nr] = (uint32_t)ns;
    }
    t->nr++;
    t->last = bench_now_ns();
}

static void tail_round(struct tail *t, uint32_t n)
{
    const struct queue_impl *impl = t->impl;
    struct set set = { 0 };
    struct qtimer *due;
    uint64_t random = 0x9e3779b9u, seq = 0;
    uint32_t left = n;

    set_open(&set, impl ? impl : &queue_heap4, n);
    t->nr = 0;
    t->last = bench_now_ns();
    for (uint32_t i = 0; i < n; i++) {
        set.timers[i].key = (int64_t)(bench_random(&random) & SPREAD_NS);
        set.timers[i].seq = ++seq;
        if (impl) {
            impl->insert(set.q, &set.timers[i]);
        }
        tail_step(t);
    }
    for (uint32_t i = 0; i < n / 10; i++, left--) { /* in order, by remove and by pop in turn */
        if (impl && i % 2) {
            impl->pop(set.q, INT64_MAX - 1, &due, 1);
        } else if (impl) {
            impl->remove(set.q, impl->peek(set.q));
        }
        tail_step(t);
    }
    for (uint32_t i = 0; i < n / 10; i++) { /* the soonest becomes one of the latest */
        if (impl) {
            impl->move(set.q, impl->peek(set.q), SPREAD_NS + i, ++seq);
        }
        tail_step(t);
    }
    for (; left; left--) {
        if (impl) {
            impl->pop(set.q, INT64_MAX - 1, &due, 1);
        }
        tail_step(t);
    }
    set_close(&set, impl ? impl : &queue_heap4);
}

static void tail_measure(struct bench *b, const struct queue_impl *impl, uint32_t n)
{
    size_t ops = 2 * (size_t)n + n / 10 + 1;
    struct tail t = { .impl = impl, .ns = malloc(ops * sizeof(t.ns[0])) };
    if (!t.ns) {
        bench_die("out of memory");
    }
    memset(t.ns, 0xff, ops * sizeof(t.ns[0]));
    for (unsigned run = 0; run < b->runs; run++) {
        tail_round(&t, n);
    }
    uint64_t *ns = malloc(t.nr * sizeof(ns[0]));
    for (uint64_t i = 0; i < t.nr; i++) {
        ns[i] = t.ns[i];
    }
    bench_sample_latencies(bench_row(b, "tail", impl ? impl->name : "empty", 1, n), ns, t.nr);
    free(ns);
    free(t.ns);
}

static void tail_case(struct bench *b, uint32_t n, const char *impl_list)
{
    tail_measure(b, NULL, n);
    for (unsigned i = 0; i < IMPLS; i++) {
        if (wanted(impls[i], TAIL, n, impl_list)) {
            tail_measure(b, impls[i], n);
        }
    }
}

/* ---- Checking -------------------------------------------------------------------------------- */

/* Random operations on one queue; what it gave out, in order, as one number. */
static uint64_t order_sum(const struct queue_impl *impl, uint32_t n, uint32_t spread,
                          uint64_t random)
{
    struct set set;
    struct qtimer *due[BATCH];
    bool *armed = queue_alloc(n, 16);
    uint64_t seq = 0, sum = 0;
    int64_t now = 0;

    set_open(&set, impl, n);
    for (uint32_t step = 0; step < 40 * n + 2000; step++) {
        uint64_t r = bench_random(&random);
        struct qtimer *t = &set.timers[(r >> 32) % n];
        int64_t key = now + (int64_t)(r >> 8 & 0xffffff) % spread;
        if (r % 64 == 0) {
            now += (int64_t)(r >> 8 & 0xffffff) % spread / 16;
            unsigned got = impl->pop(set.q, now, due, (unsigned)(r >> 40) % BATCH + 1);
            for (unsigned i = 0; i < got; i++) {
                sum = (sum ^ due[i]->id) * 0x9e3779b97f4a7c15ULL + (uint64_t)due[i]->key;
                armed[due[i]->id] = false;
            }
        } else if (!armed[t->id]) {
            t->key = key;
            t->seq = ++seq;
            impl->insert(set.q, t);
            armed[t->id] = true;
        } else if (r % 4 == 0) {
            impl->remove(set.q, t);
            armed[t->id] = false;
        } else if (r % 4 == 1) { /* the soonest is cancelled */
            t = impl->peek(set.q);
            impl->remove(set.q, t);
            armed[t->id] = false;
        } else {
            impl->move(set.q, t, key, ++seq);
        }
        struct qtimer *min = impl->peek(set.q);
        sum = sum * 31 + (min ? min->id : n);
    }
    unsigned got;
    while ((got = impl->pop(set.q, INT64_MAX - 1, due, BATCH))) {
        for (unsigned i = 0; i < got; i++) {
            sum = (sum ^ due[i]->id) * 0x9e3779b97f4a7c15ULL + (uint64_t)due[i]->key;
        }
    }
    set_close(&set, impl);
    free(armed);
    return sum;
}

static void check_orders(struct bench *b, const char *impl_list)
{
    static const uint32_t shapes[][2] = { { 5, 4 },     { 40, 10 },       { 700, 40 },
                                          { 1500, 1 },  { 3000, 100000 }, { 20000, 16000000 },
                                          { 20000, 50 } };
    unsigned nr = sizeof(shapes) / sizeof(shapes[0]);
    for (unsigned s = 0; s < (b->smoke ? nr - 2 : nr); s++) {
        uint64_t expect = order_sum(impls[0], shapes[s][0], shapes[s][1], 77 + s);
        b->checksum = b->checksum * 31 + expect;
        for (unsigned i = 1; i < IMPLS; i++) {
            if (!impls[i]->inexact && bench_listed(impl_list, impls[i]->name)) {
                bench_check(b, order_sum(impls[i], shapes[s][0], shapes[s][1], 77 + s) == expect,
                            "%s orders %u timers in another way than %s", impls[i]->name,
                            shapes[s][0], impls[0]->name);
            }
        }
    }
}

static unsigned parse_sizes(const char *list, uint32_t *sizes)
{
    unsigned nr = 0;
    char *copy = strdup(list), *save = NULL;
    for (char *p = strtok_r(copy, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        if (nr < SIZES_MAX) {
            sizes[nr++] = (uint32_t)bench_number("--n", p, 10, 1000000);
        }
    }
    free(copy);
    if (!nr) {
        bench_number("--n", list, 10, 1000000); /* says what was expected */
    }
    return nr;
}

struct job {
    struct bench *b;
    const char *case_list, *impl_list;
    uint32_t sizes[SIZES_MAX];
    unsigned nr_sizes;
};

static void run_cases(unsigned thread, void *opaque)
{
    struct job *job = opaque;
    struct bench *b = job->b;

    check_orders(b, job->impl_list);
    for (int c = CHURN; c <= SIZE; c++) {
        if (!bench_listed(job->case_list, case_names[c])) {
            continue;
        }
        for (unsigned i = 0; i < job->nr_sizes; i++) {
            if (c == TAIL) {
                tail_case(b, job->sizes[i], job->impl_list);
            } else if (c == SIZE) {
                size_case(b, job->sizes[i], job->impl_list);
            } else {
                measure(b, c, job->sizes[i], job->impl_list);
            }
        }
        bench_print(b, case_names[c],
                    c == TAIL   ? BENCH_MAX_NS
                    : c == SIZE ? BENCH_BYTES
                                : BENCH_CPU_NS_PER_OP);
    }
}

int main(int argc, char **argv)
{
    const char *n_list = NULL, *case_list = NULL, *impl_list = NULL;
    const struct bench_opt opts[] = {
        { "threads", NULL, NULL, NULL }, /* there is one */
        { "n", "N,...", "armed timers, 10 to 1000000 (default 10 to 1000000 in decades)", &n_list },
        { "case", "CASE,...", "of churn, io-timeout, fire, tail, size (default all)", &case_list },
        { "impl", "IMPL,...", "of the queues that were built in (default all)", &impl_list },
        { 0 },
    };
    struct bench b;
    bench_init(&b, "queue_bench", "Compares queues for timers, as bare data structures.", opts,
               argc, argv);
    b.ours = queue_heap8_groups_lanes.name;
    const char *known[IMPLS + 1] = { 0 };
    for (unsigned i = 0; i < IMPLS; i++) {
        known[i] = impls[i]->name;
    }
    bench_check_list("--impl", impl_list, known);
    bench_check_list("--case", case_list, case_names);
    const char *usual = b.smoke ? "100,1000" : "10,100,1000,10000,100000,1000000";
    struct job job = { .b = &b, .case_list = case_list, .impl_list = impl_list };
    job.nr_sizes = parse_sizes(n_list ? n_list : usual, job.sizes);
    bench_threads(1, b.pin, run_cases, &job);
    return bench_finish(&b);
}
