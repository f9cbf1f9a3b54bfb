/* SPDX-License-Identifier: MIT */
/*
 * fd_bench: what does an event on a file descriptor cost, as the number of watched ones and of
 * those that have something to say grows?
 *
 *   chain-A     n pairs of connected sockets, all watched, and A bytes on their way through them:
 *               each callback reads one and writes it to the next pair.  One operation is one
 *               event: a callback, one read(2) and one write(2).  A is 1, 10, 100, 1000
 *
 * This is the benchmark that libevent and libev are known by, without its timers.  All loops watch
 * the same sockets, one loop after the other.  Watching and unwatching are not in the time.  The
 * row no-loop is the two system calls alone.
 *
 * --threads N: a loop and a chain of its own for each.
 */
#include "fd_impl.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define SIZES_MAX 16
#define N_MAX 100000
#define FDS_BESIDE 64 /* what the program and the loops have open beside the sockets */

/* ---- No loop --------------------------------------------------------------------------------- */

/* Knows where the bytes are: what is left of an event's cost without a loop. */
static void *no_loop_open(struct fd_chain *c)
{
    return c;
}

static void no_loop_close(void *chain)
{
}

static void no_loop_run(void *chain)
{
    struct fd_chain *c = chain;
    uint32_t active = c->under_way;
    for (uint32_t step = 0;; step++) {
        for (uint32_t i = 0; i < active; i++) {
            uint64_t at = (uint64_t)i * c->n / active + step;
            if (!fd_ready(&c->ends[at % c->n])) {
                return;
            }
        }
    }
}

static const struct fd_impl fd_no_loop = { "no-loop", 0, no_loop_open, no_loop_close, no_loop_run };

/* ---- What is measured ------------------------------------------------------------------------ */

static const struct fd_impl *const impls[] = {
    &fd_aioctx,   &fd_aioctx_epoll, &fd_aioctx_ppoll,
#ifdef HAVE_LIBEV
    &fd_libev,
#endif
#ifdef HAVE_LIBUV
    &fd_libuv,
#endif
#ifdef HAVE_LIBEVENT
    &fd_libevent,
#endif
    &fd_no_loop,
};
#define IMPLS (sizeof(impls) / sizeof(impls[0]))

static const char *const peers[] = { "libev", "libuv", "libevent" };
#define PEERS (sizeof(peers) / sizeof(peers[0]))

static const struct fd_case {
    const char *name;
    uint32_t active;
} cases[] = { { "chain-1", 1 }, { "chain-10", 10 }, { "chain-100", 100 }, { "chain-1000", 1000 } };
#define CASES (sizeof(cases) / sizeof(cases[0]))

/* ---- Sockets --------------------------------------------------------------------------------- */

/* How many of @fds more file descriptors may be open; asks for all of them where they may not. */
static uint64_t may_open(uint64_t fds)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= fds) {
        return fds;
    }
    struct rlimit more = { .rlim_cur = fds,
                           .rlim_max = limit.rlim_max < fds ? fds : limit.rlim_max };
    if (!setrlimit(RLIMIT_NOFILE, &more)) {
        return fds;
    }
    more = (struct rlimit){ .rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max };
    return setrlimit(RLIMIT_NOFILE, &more) ? limit.rlim_cur : limit.rlim_max;
}

/* The number of fds to watch in place of @n, should the limit of open ones not allow those. */
static uint32_t fit(uint32_t n, unsigned threads)
{
    uint64_t fds = (uint64_t)threads * (2 * n + FDS_BESIDE), may = may_open(fds);
    if (may >= fds) {
        return n;
    }
    uint32_t fits = may / threads > FDS_BESIDE ? (uint32_t)(may / threads - FDS_BESIDE) / 2 : 0;
    printf("n = %u in place of %u: that takes %llu file descriptors, and the limit is %llu\n", fits,
           n, (unsigned long long)fds, (unsigned long long)may);
    return fits;
}

static void open_chain(struct fd_chain *c, uint32_t n)
{
    *c = (struct fd_chain){
        .n = n,
        .ends = bench_alloc(n * sizeof(*c->ends)),
        .write_fds = bench_alloc(n * sizeof(*c->write_fds)),
    };
    for (uint32_t i = 0; i < n; i++) {
        int fds[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds)) {
            bench_die("fd_bench: cannot make socket pair %u of %u: %s", i, n, strerror(errno));
        }
        c->ends[i] = (struct fd_end){ .chain = c, .fd = fds[0] };
        c->write_fds[i] = fds[1];
    }
    for (uint32_t i = 0; i < n; i++) {
        c->ends[i].next_fd = c->write_fds[(i + 1) % n];
    }
}

static void close_chain(struct fd_chain *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        close(c->ends[i].fd);
        close(c->write_fds[i]);
    }
    free(c->ends);
    free(c->write_fds);
}

/* ---- Runs ------------------------------------------------------------------------------------ */

struct job {
    struct bench *b;
    const struct fd_case *c;
    const struct fd_impl *impl;
    struct fd_chain *chains; /* one a thread */
    unsigned threads;
    uint32_t n;
    atomic_bool cannot;
};

/* Puts @active bytes in, spread over the chain, and has the loop pass them on for @run_ns. */
static void run_chain(const struct fd_impl *impl, void *loop, struct fd_chain *c, uint32_t active,
                      uint64_t run_ns)
{
    c->run_ns = run_ns;
    c->over = false;
    c->events = 0;
    c->under_way = active;
    bench_begin(&c->span);
    for (uint32_t i = 0; i < active; i++) {
        c->failed += write(c->write_fds[(uint64_t)i * c->n / active], "x", 1) != 1;
    }
    impl->run(loop);
    bench_end(&c->span);
}

static void chain_thread(unsigned index, void *opaque)
{
    struct job *job = opaque;
    struct fd_chain *c = &job->chains[index];
    uint64_t run_ns = job->b->run_ms * UINT64_C(1000000);
    void *loop = job->impl->open(c);
    if (!loop) {
        atomic_store(&job->cannot, true);
        return;
    }
    run_chain(job->impl, loop, c, job->c->active, run_ns / 8); /* warms up */
    run_chain(job->impl, loop, c, job->c->active, run_ns);
    job->impl->close(loop);
}

static void run_impl(struct job *job)
{
    struct bench *b = job->b;
    struct bench_share shares[256];
    bench_threads(job->threads, b->pin, chain_thread, job);
    if (atomic_load(&job->cannot)) {
        return;
    }
    for (unsigned t = 0; t < job->threads; t++) {
        struct fd_chain *c = &job->chains[t];
        bench_check(b, !c->failed, "%s: %s called back %llu times for nothing to read",
                    job->c->name, job->impl->name, (unsigned long long)c->failed);
        bench_check(b, c->events >= job->c->active && !c->under_way, "%s: %s lost a byte",
                    job->c->name, job->impl->name);
        b->checksum += !c->failed + job->c->active;
        shares[t].ns_per_op = (double)c->span.wall_ns / (double)c->events;
        shares[t].cpu_ns_per_op = (double)c->span.cpu_ns / (double)c->events;
        c->failed = 0;
    }
    bench_sample_threads(b, job->c->name, job->impl->name, job->threads, job->n, shares);
}

/* One number of fds, all loops in turn; each round begins with another one. */
static void run_size(struct bench *b, const struct fd_case *c, struct fd_chain *chains,
                     unsigned threads, const char *impl_list)
{
    bool cannot[IMPLS] = { 0 };
    for (unsigned round = 0; round < b->runs; round++) {
        for (unsigned k = 0; k < IMPLS; k++) {
            unsigned i = (k + round) % IMPLS;
            struct job job = { b, c, impls[i], chains, threads, chains[0].n, false };
            if (cannot[i] || !bench_listed(impl_list, impls[i]->name) ||
                (impls[i]->n_max && job.n > impls[i]->n_max)) {
                continue;
            }
            run_impl(&job);
            if (atomic_load(&job.cannot)) {
                cannot[i] = true;
                printf("%s: %s skipped: this machine cannot do it\n", c->name, impls[i]->name);
            }
        }
    }
}

/* The cases that fit one number of fds, on the same sockets. */
static void run_sizes(struct bench *b, uint32_t n, const char *case_list, const char *impl_list)
{
    unsigned threads = b->threads ? b->threads : 1;
    n = fit(n, threads);
    struct fd_chain *chains = bench_alloc(threads * sizeof(*chains));
    for (unsigned t = 0; t < threads; t++) {
        open_chain(&chains[t], n);
    }
    for (unsigned c = 0; c < CASES; c++) {
        if (cases[c].active <= n && bench_listed(case_list, cases[c].name)) {
            run_size(b, &cases[c], chains, threads, impl_list);
        }
    }
    for (unsigned t = 0; t < threads; t++) {
        close_chain(&chains[t]);
    }
    free(chains);
}

/* ---- The program ----------------------------------------------------------------------------- */

static unsigned parse_sizes(const char *list, uint32_t *sizes)
{
    unsigned nr = 0;
    char *copy = strdup(list), *save = NULL;
    for (char *p = strtok_r(copy, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        if (nr < SIZES_MAX) {
            sizes[nr++] = (uint32_t)bench_number("--n", p, 1, N_MAX);
        }
    }
    free(copy);
    if (!nr) {
        bench_number("--n", list, 1, N_MAX); /* says what was expected */
    }
    return nr;
}

static bool is_built_in(const char *name)
{
    for (unsigned i = 0; i < IMPLS; i++) {
        if (!strcmp(impls[i]->name, name)) {
            return true;
        }
    }
    return false;
}

static void print_left_out(void)
{
    for (unsigned p = 0; p < PEERS; p++) {
        if (!is_built_in(peers[p])) {
            printf("%s is not in this build: the library was not found\n", peers[p]);
        }
    }
}

static void print_cases(struct bench *b, const char *case_list)
{
    for (unsigned c = 0; c < CASES; c++) {
        if (bench_listed(case_list, cases[c].name)) {
            bench_sample_best(b, cases[c].name, peers, PEERS);
            bench_print(b, cases[c].name, BENCH_CPU_NS_PER_OP);
        }
    }
}

int main(int argc, char **argv)
{
    const char *n_list = NULL, *case_list = NULL, *impl_list = NULL;
    const struct bench_opt opts[] = {
        { "n", "N,...", "watched fds, 1 to 100000 (default 10, 100, 1000, 10000)", &n_list },
        { "case", "CASE,...", "of chain-1, chain-10, chain-100, chain-1000 (default all)",
          &case_list },
        { "impl", "IMPL,...",
          "of aioctx, aioctx-epoll, aioctx-ppoll, libev, libuv, libevent, no-loop (all)",
          &impl_list },
        { 0 },
    };
    struct bench b;
    bench_init(&b, "fd_bench", "Measures events on file descriptors as their number grows.", opts,
               argc, argv);
    const char *known_impls[IMPLS + 1] = { 0 }, *known_cases[CASES + 1] = { 0 };
    for (unsigned i = 0; i < IMPLS; i++) {
        known_impls[i] = impls[i]->name;
    }
    for (unsigned c = 0; c < CASES; c++) {
        known_cases[c] = cases[c].name;
    }
    bench_check_list("--impl", impl_list, known_impls);
    bench_check_list("--case", case_list, known_cases);
    uint32_t sizes[SIZES_MAX];
    unsigned nr = parse_sizes(n_list ? n_list : b.smoke ? "10,200" : "10,100,1000,10000", sizes);

    print_left_out();
    for (unsigned s = 0; s < nr; s++) {
        run_sizes(&b, sizes[s], case_list, impl_list);
    }
    print_cases(&b, case_list);
    return bench_finish(&b);
}
