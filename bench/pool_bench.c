/* SPDX-License-Identifier: MIT */
/*
 * pool_bench: what does a function on the thread pool cost, from its submission to its callback?
 * n are in flight at a time; each callback submits the next one.  At most 4 threads, as libuv's
 * pool has by default.
 *
 *   empty     a function that does nothing: what is measured is the pool alone
 *   blocking  a function that sleeps for 50 us
 *
 * CPU time is that of all threads; wake-ups are those of idle pool threads, which libuv does not
 * count.  The implementations take turns within each run.
 */
#include "bench.h"

#include <aioctx/aioctx.h>
#include <stdlib.h>
#include <time.h>
#ifdef HAVE_LIBUV
#include <uv.h>
#endif

enum { THREADS_MAX = 4, DEPTH_MAX = 256, BLOCK_NS = 50000 };

/* One run. */
struct load {
    bool blocking;
    uint64_t end_ns;
    uint64_t submitted, ran, called; /* ran: atomic */
#ifdef HAVE_LIBUV
    uv_loop_t *loop;
    uv_work_t works[DEPTH_MAX];
#endif
};

static void work(struct load *l)
{
    __atomic_fetch_add(&l->ran, 1, __ATOMIC_RELAXED);
    if (l->blocking) {
        bench_sleep_ns(BLOCK_NS);
    }
}

/* Whether another one is to be submitted; looks at the clock now and then. */
static bool goes_on(struct load *l)
{
    l->called++;
    if (l->end_ns && l->called % 16 == 0 && bench_now_ns() >= l->end_ns) {
        l->end_ns = 0;
    }
    return l->end_ns != 0;
}

/* ---- Ours ------------------------------------------------------------------------------------ */

static int aioctx_work(void *arg)
{
    work(arg);
    return 0;
}

static void aioctx_submit(struct load *l);

static void aioctx_called(void *opaque, int ret)
{
    if (goes_on(opaque)) {
        aioctx_submit(opaque);
    }
}

static void aioctx_submit(struct load *l)
{
    if (!thread_pool_submit_aio(aioctx_work, l, aioctx_called, l)) {
        bench_die("pool_bench: cannot submit");
    }
    l->submitted++;
}

static void aioctx_run(struct load *l, unsigned depth)
{
    AioContext *ctx = aio_context_new(NULL);

    if (!ctx) {
        bench_die("pool_bench: cannot make a context");
    }
    qemu_set_current_aio_context(ctx);
    for (unsigned i = 0; i < depth; i++) {
        aioctx_submit(l);
    }
    while (l->called < l->submitted) {
        aio_poll(ctx, true);
    }
    aio_context_unref(ctx);
}

/* ---- libuv ----------------------------------------------------------------------------------- */

#ifdef HAVE_LIBUV
static void uv_called(uv_work_t *req, int status);

static void uv_run_work(uv_work_t *req)
{
    work(req->data);
}

static void uv_submit(struct load *l, uv_work_t *req)
{
    req->data = l;
    uv_queue_work(l->loop, req, uv_run_work, uv_called);
    l->submitted++;
}

static void uv_called(uv_work_t *req, int status)
{
    if (goes_on(req->data)) {
        uv_submit(req->data, req);
    }
}

static void libuv_run(struct load *l, unsigned depth)
{
    uv_loop_t loop;

    uv_loop_init(&loop);
    l->loop = &loop;
    for (unsigned i = 0; i < depth; i++) {
        uv_submit(l, &l->works[i]);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
}
#endif

/* ---- Runs ------------------------------------------------------------------------------------ */

static const struct impl {
    const char *name;
    void (*run)(struct load *l, unsigned depth);
} impls[] = {
    { "aioctx", aioctx_run },
#ifdef HAVE_LIBUV
    { "libuv", libuv_run },
#endif
};
enum { IMPLS = sizeof(impls) / sizeof(impls[0]) };

static uint64_t process_cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void run(struct bench *b, const char *case_name, bool blocking, const struct impl *impl,
                unsigned depth)
{
    struct bench_row *row = bench_row(b, case_name, impl->name, 1, depth);
    struct load *l = bench_alloc(sizeof(*l));
    uint64_t begin = bench_now_ns(), cpu = process_cpu_ns();
    ThreadPoolStats before, after;

    l->blocking = blocking;
    l->end_ns = begin + b->run_ms * UINT64_C(1000000);
    thread_pool_get_stats(&before);
    impl->run(l, depth);
    thread_pool_get_stats(&after);
    double n = (double)l->called, ns = (double)(bench_now_ns() - begin);
    bench_sample(row, BENCH_NS_PER_OP, ns / n);
    bench_sample(row, BENCH_CPU_NS_PER_OP, (double)(process_cpu_ns() - cpu) / n);
    bench_sample(row, BENCH_OPS_PER_S, 1e9 * n / ns);
    if (impl->run == aioctx_run) {
        bench_sample(row, BENCH_WAKEUPS_PER_K, 1e3 * (double)(after.wakeups - before.wakeups) / n);
    }
    bench_check(b, l->called == l->submitted && l->ran == l->called, "%s lost functions",
                impl->name);
    b->checksum = b->checksum * 31 + (l->ran == l->called);
    free(l);
}

int main(int argc, char **argv)
{
    static const unsigned depths[] = { 1, 32, 256 };
    const char *cases = NULL;
    const struct bench_opt opts[] = {
        { "case", "LIST", "of empty, blocking [all]", &cases },
        { "threads", NULL, NULL, NULL },
        { "pin", NULL, NULL, NULL },
        { 0 },
    };
    struct bench b;

    bench_init(&b, "pool_bench", "Measures functions on the thread pool.", opts, argc, argv);
    bench_check_list("--case", cases, (const char *const[]){ "empty", "blocking", NULL });
    thread_pool_set_params(&(ThreadPoolParams){ .max_threads = THREADS_MAX });
    for (unsigned blocking = 0; blocking < 2; blocking++) {
        const char *name = blocking ? "blocking" : "empty";

        if (!bench_listed(cases, name)) {
            continue;
        }
        for (unsigned d = 0; d < sizeof(depths) / sizeof(depths[0]); d++) {
            for (unsigned i = 0; i < b.runs * IMPLS; i++) {
                run(&b, name, blocking, &impls[(i + i / IMPLS) % IMPLS], depths[d]);
            }
        }
        bench_print(&b, name, BENCH_NS_PER_OP);
    }
    return bench_finish(&b);
}
