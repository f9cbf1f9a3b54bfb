/* SPDX-License-Identifier: MIT */
/*
 * deadline_bench: how late does a thread run for a deadline, by who keeps the deadline for it?
 *
 *   exact           the thread's timer slack is 1 ns, as an iothread's is
 *   default-slack   it is 50 us, as any other thread's is; only sources that it puts off
 *
 * One operation is one deadline, 50 us to 2 ms ahead or as --ahead-us says, and the sleep until
 * then; nothing else is armed.  Lateness is from the deadline to the first line of the user's
 * code.  The sources take turns, deadline by deadline, in an order that is drawn anew each time,
 * and each gets the same distance.  The percentiles are of all deadlines of a source together; CPU
 * time is the thread's, per deadline.
 *
 *   spin            reads the clock all the time: the best that can be had, and its price
 *   posix-sigwait   a POSIX timer that sends the thread a signal, and sigwaitinfo()
 *   posix-handler   the same with a signal handler
 *   timerfd-read    a blocking read of a timerfd
 *   timerfd-epoll   a timerfd below epoll, and a read
 *   ppoll, epoll_pwait2
 *   uring-wait-rel  io_uring_enter() with a relative timeout of the wait
 *   uring-wait-abs  the same with an absolute one
 *   uring-timeout   a timeout request, absolute
 *   aioctx          a timer on a context, with the default monitor
 *   aioctx-epoll    the same with the epoll monitor
 *   aioctx-ppoll    the same with the ppoll monitor
 *   aioctx-precise  the same with the default monitor and a lead of --lead-us
 *
 * --threads N: N threads at once, each with sources of its own; their latencies go into one
 * distribution.  --runs and --run-ms say nothing here: --deadlines does.
 */
#include "deadline_impl.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

enum { AHEAD_MIN_NS = 50000, AHEAD_MAX_NS = 2000000, SLACK_NS = 50000 };

static const struct deadline_source *const sources[] = {
    &deadline_spin,          &deadline_sigwait,        &deadline_handler,
    &deadline_timerfd,       &deadline_timerfd_epoll,  &deadline_ppoll,
    &deadline_epoll_pwait2,  &deadline_uring_rel,      &deadline_uring_abs,
    &deadline_uring_timeout, &deadline_aioctx,         &deadline_aioctx_epoll,
    &deadline_aioctx_ppoll,  &deadline_aioctx_precise,
};
enum { SOURCES = sizeof(sources) / sizeof(sources[0]) };

/* What one thread found out about one source. */
struct result {
    uint64_t *late_ns;
    uint64_t cpu_ns;
    unsigned early;
    bool cannot;
};

struct job {
    const char *impl_list;
    unsigned deadlines;
    uint64_t ahead_ns; /* of each; 0: drawn */
    unsigned long slack_ns;
    bool slack_only;
    struct result *results; /* SOURCES for each thread */
};

static bool is_wanted(const struct job *job, unsigned i)
{
    return bench_listed(job->impl_list, sources[i]->name) &&
           (!job->slack_only || sources[i]->slack);
}

static void measure(const struct deadline_source *source, void *state, uint64_t ahead_ns,
                    struct result *r, unsigned i)
{
    uint64_t cpu = bench_cpu_ns(), deadline = bench_now_ns() + ahead_ns;
    uint64_t ran = source->wait(state, deadline);
    r->cpu_ns += bench_cpu_ns() - cpu;
    r->early += ran < deadline;
    r->late_ns[i] = ran < deadline ? 0 : ran - deadline;
}

static void shuffle(unsigned *order, unsigned n, uint64_t *seed)
{
    for (unsigned i = n; i > 1; i--) {
        unsigned j = bench_random_below(seed, i), was = order[j];
        order[j] = order[i - 1];
        order[i - 1] = was;
    }
}

static void run_thread(unsigned index, void *opaque)
{
    struct job *job = opaque;
    struct result *results = job->results + (size_t)index * SOURCES;
    uint64_t seed = 0x9e3779b97f4a7c15ULL + index;
    void *state[SOURCES];
    unsigned order[SOURCES], n = 0;
    prctl(PR_SET_TIMERSLACK, job->slack_ns);
    for (unsigned i = 0; i < SOURCES; i++) {
        if (!is_wanted(job, i)) {
            continue;
        }
        state[i] = sources[i]->open(sources[i]);
        results[i].cannot = !state[i];
        if (state[i]) {
            order[n++] = i;
            struct result warm = { .late_ns = results[i].late_ns };
            measure(sources[i], state[i], AHEAD_MIN_NS, &warm, 0);
        }
    }
    for (unsigned d = 0; d < job->deadlines; d++) {
        uint64_t drawn = AHEAD_MIN_NS + bench_random_below(&seed, AHEAD_MAX_NS - AHEAD_MIN_NS);
        uint64_t ahead = job->ahead_ns ? job->ahead_ns : drawn;
        shuffle(order, n, &seed);
        for (unsigned i = 0; i < n; i++) {
            measure(sources[order[i]], state[order[i]], ahead, &results[order[i]], d);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        sources[order[i]]->close(state[order[i]]);
    }
}

/* Returns the median, 0 for a source that was not measured. */
static uint64_t collect(struct bench *b, const char *case_name, const struct job *job, unsigned i,
                        unsigned threads, uint64_t *all)
{
    double cpu = 0;
    size_t nr = 0;
    if (!is_wanted(job, i)) {
        return 0;
    }
    for (unsigned t = 0; t < threads; t++) {
        struct result *r = &job->results[(size_t)t * SOURCES + i];
        if (r->cannot) {
            printf("%s: %s skipped: this machine cannot do it\n", case_name, sources[i]->name);
            return 0;
        }
        bench_check(b, !r->early, "%s: %s ran %u times before its deadline", case_name,
                    sources[i]->name, r->early);
        b->checksum += job->deadlines - r->early;
        cpu += (double)r->cpu_ns / job->deadlines / threads;
        memcpy(all + nr, r->late_ns, job->deadlines * sizeof(*all));
        nr += job->deadlines;
    }
    struct bench_row *row = bench_row(b, case_name, sources[i]->name, threads, 1);
    bench_sample(row, BENCH_CPU_NS_PER_OP, cpu);
    bench_sample_latencies(row, all, nr); /* sorts */
    return all[(nr - 1) / 2];
}

static void run_case(struct bench *b, const char *case_name, struct job *job)
{
    unsigned threads = b->threads ? b->threads : 1;
    uint64_t bare = 0, ours = 0;
    uint64_t *late = calloc((size_t)threads * (SOURCES + 1) * job->deadlines, sizeof(*late));
    job->results = calloc((size_t)threads * SOURCES, sizeof(*job->results));
    if (!late || !job->results) {
        bench_die("out of memory");
    }
    for (size_t i = 0; i < (size_t)threads * SOURCES; i++) {
        job->results[i].late_ns = late + i * job->deadlines;
    }
    bench_threads(threads, b->pin, run_thread, job);
    for (unsigned i = 0; i < SOURCES; i++) {
        uint64_t p50 = collect(b, case_name, job, i, threads,
                               late + (size_t)threads * SOURCES * job->deadlines);
        if (sources[i] == &deadline_uring_abs || (sources[i] == &deadline_uring_rel && !bare)) {
            bare = p50 ? p50 : bare;
        } else if (sources[i] == &deadline_aioctx) {
            ours = p50;
        }
    }
    bench_print(b, case_name, BENCH_P50_NS);
    if (bare && ours) {
        printf("  median of aioctx against a bare io_uring wait: %+.2f us\n",
               ((double)ours - (double)bare) / 1000);
    }
    free(job->results);
    free(late);
}

int main(int argc, char **argv)
{
    static const char *const cases[] = { "exact", "default-slack", NULL };
    const char *case_list = NULL, *impl_list = NULL, *deadlines = NULL, *lead = NULL;
    const char *ahead = NULL;
    const struct bench_opt opts[] = {
        { "runs", NULL, NULL, NULL }, /* see --deadlines */
        { "run-ms", NULL, NULL, NULL },
        { "case", "CASE,...", "of exact, default-slack (default both)", &case_list },
        { "impl", "IMPL,...", "sources to measure (default all)", &impl_list },
        { "deadlines", "N", "of each source, 1 ms each on average (default 1400)", &deadlines },
        { "ahead-us", "N", "every deadline so far ahead (default 50 to 2000, drawn)", &ahead },
        { "lead-us", "N", "precise mode's lead (default 100)", &lead },
        { 0 },
    };
    struct bench b;
    bench_init(&b, "deadline_bench", "Measures how late a thread runs for a deadline.", opts, argc,
               argv);
    const char *known[SOURCES + 1] = { 0 };
    for (unsigned i = 0; i < SOURCES; i++) {
        known[i] = sources[i]->name;
    }
    bench_check_list("--impl", impl_list, known);
    bench_check_list("--case", case_list, cases);
    unsigned n = b.smoke ? 40 : 1400;
    n = deadlines ? (unsigned)bench_number("--deadlines", deadlines, 1, 1000000) : n;
    deadline_lead_ns = 1000 * (int64_t)(lead ? bench_number("--lead-us", lead, 1, 1000000) : 100);
    uint64_t ahead_ns = ahead ? 1000 * bench_number("--ahead-us", ahead, 1, 10000000) : 0;

    if (bench_listed(case_list, cases[0])) {
        struct job job = {
            .impl_list = impl_list, .deadlines = n, .ahead_ns = ahead_ns, .slack_ns = 1
        };
        run_case(&b, cases[0], &job);
    }
    if (bench_listed(case_list, cases[1])) {
        struct job job = {
            .impl_list = impl_list,
            .deadlines = (n + 3) / 4,
            .ahead_ns = ahead_ns,
            .slack_ns = SLACK_NS,
            .slack_only = true,
        };
        run_case(&b, cases[1], &job);
    }
    return bench_finish(&b);
}
