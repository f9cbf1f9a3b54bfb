/* SPDX-License-Identifier: MIT */
/*
 * How exactly a throttle group keeps its limit, and how fairly its members share it.
 *
 * Each member is a backend of its own on an iothread of its own, over the null driver, and keeps so
 * many requests waiting.  What has ended within the run is counted: all of it against the limit,
 * and each member's part against an equal share.  `uneven`: the first member keeps one request
 * waiting, the others 32.
 */
#include "bench.h"

#include <aioctx/aioctx.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "rcu/atomic_int.h"

enum { MEMBERS_MAX = 4, DEPTH = 32 };

struct limit {
    const char *name, *options;
    double per_s;   /* units */
    uint32_t bytes; /* of a request */
    bool in_bytes;
    bool uneven;
};

static const struct limit limits[] = {
    { "iops", "iops=5000", 5000, 4096, false, false },
    { "iops-high", "iops=100000", 100000, 4096, false, false },
    { "iops-low", "iops=200", 200, 4096, false, false },
    { "bps", "bps=50M", 50.0 * 1048576, 4096, true, false },
    { "bps-large", "bps=50M", 50.0 * 1048576, 262144, true, false },
    { "uneven", "iops=20000", 20000, 4096, false, true },
};
enum { LIMITS = sizeof(limits) / sizeof(limits[0]) };

struct member;

struct slot {
    struct member *member;
    QEMUIOVector qiov;
};

struct member {
    BlockBackend *blk;
    IOThread *io;
    int64_t end_ns;
    bool started;         /* atomic: what it does has been submitted */
    uint64_t done, ended; /* in time, and at all; home, until it has drained */
    unsigned depth;
    struct slot slots[DEPTH];
    char *buf;
} __attribute__((aligned(BENCH_ALIGN)));

static void on_done(void *opaque, int ret);

static void submit(struct slot *slot)
{
    if (!blk_aio_preadv(slot->member->blk, 0, &slot->qiov, 0, on_done, slot)) {
        bench_die("throttle_bench: a request was not taken");
    }
}

static void on_done(void *opaque, int ret)
{
    struct slot *slot = opaque;
    struct member *m = slot->member;

    m->ended++;
    if (ret < 0 || qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= m->end_ns) {
        return;
    }
    m->done++;
    submit(slot);
}

static void start(void *opaque)
{
    struct member *m = opaque;

    for (unsigned i = 0; i < m->depth; i++) {
        submit(&m->slots[i]);
    }
    st_release(&m->started, true);
}

static void make_member(struct member *m, const struct limit *limit, unsigned index)
{
    char spec[128], *why = NULL;

    snprintf(spec, sizeof(spec), "throttle:group=bench,%s,null:size=1G", limit->options);
    m->blk = blk_open(spec, &why);
    m->io = iothread_new("member", NULL);
    if (!m->blk || !m->io) {
        bench_die("throttle_bench: %s", why ? why : "cannot start an iothread");
    }
    m->depth = limit->uneven && index == 0 ? 1 : DEPTH;
    m->buf = bench_alloc(limit->bytes);
    for (unsigned i = 0; i < m->depth; i++) {
        m->slots[i].member = m;
        qemu_iovec_init_buf(&m->slots[i].qiov, m->buf, limit->bytes);
    }
}

static void free_member(struct member *m)
{
    blk_unref(m->blk);
    iothread_destroy(m->io);
    free(m->buf);
}

/* Returns what was reached, in percent of the limit; *@ret_least: the least share of a member. */
static double run(struct bench *b, const struct limit *limit, unsigned members, double *ret_least)
{
    struct member *m = bench_alloc(MEMBERS_MAX * sizeof(*m));
    uint64_t ms = b->run_ms, done = 0, ended = 0, least = UINT64_MAX;
    int64_t end_ns;
    double units;

    for (unsigned i = 0; i < members; i++) {
        make_member(&m[i], limit, i);
    }
    end_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + (int64_t)ms * 1000000;
    for (unsigned i = 0; i < members; i++) {
        m[i].end_ns = end_ns;
        aio_bh_schedule_oneshot(iothread_get_aio_context(m[i].io), start, &m[i]);
    }
    bench_sleep_ns(ms * 1000000);
    for (unsigned i = 0; i < members; i++) {
        while (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < end_ns || !ld_acquire(&m[i].started)) {
            sched_yield();
        }
        blk_drain(m[i].blk);
        done += m[i].done;
        ended += m[i].ended;
        least = m[i].done < least ? m[i].done : least;
    }
    for (unsigned i = 0; i < members; i++) {
        free_member(&m[i]);
    }
    free(m);
    bench_check(b, ended > 0, "%s: nothing was let through", limit->name);
    units = (double)done * (limit->in_bytes ? limit->bytes : 1);
    *ret_least = done ? 100.0 * (double)least * members / (double)done : 0;
    return 100 * units / (limit->per_s * (double)ms / 1e3);
}

static void put_json(struct bench *b, const struct limit *limit, unsigned members,
                     const char *metric, double value)
{
    if (b->json) {
        fprintf(b->json,
                "{\"bench\": \"%s\", \"case\": \"%s\", \"impl\": \"aioctx\", \"threads\": %u, "
                "\"n\": %u, \"metric\": \"%s\", \"value\": %.3f, \"unit\": \"%%\"}\n",
                b->name, limit->name, members, members, metric, value);
    }
}

int main(int argc, char **argv)
{
    const char *cases = NULL, *known[LIMITS + 1] = { NULL };
    const struct bench_opt opts[] = {
        { "case", "LIST", "of iops, iops-high, iops-low, bps, bps-large, uneven [all]", &cases },
        { "threads", NULL, NULL, NULL },
        { "pin", NULL, NULL, NULL },
        { 0 },
    };
    struct bench b;

    bench_init(&b, "throttle_bench",
               "Measures how exactly throttle groups keep limits; --run-ms 10000 for 10 s each.",
               opts, argc, argv);
    for (unsigned i = 0; i < LIMITS; i++) {
        known[i] = limits[i].name;
    }
    bench_check_list("--case", cases, known);
    printf("%-10s %7s %4s %14s %22s\n", "case", "members", "run", "of the limit",
           "least of a fair share");
    for (unsigned i = 0; i < LIMITS; i++) {
        for (unsigned members = 1; members <= MEMBERS_MAX; members++) {
            for (unsigned r = 0; r < b.runs && bench_listed(cases, limits[i].name); r++) {
                double least, of_limit = run(&b, &limits[i], members, &least);

                printf("%-10s %7u %4u %13.2f%% %21.2f%%\n", limits[i].name, members, r, of_limit,
                       least);
                fflush(stdout);
                put_json(&b, &limits[i], members, "of_limit", of_limit);
                put_json(&b, &limits[i], members, "least_share", least);
            }
        }
    }
    return bench_finish(&b);
}
