/* SPDX-License-Identifier: MIT */
/* The scheduler and the search; see interleave.h. */
#include "tests/interleave_int.h"

#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    AGENTS = 2 * IL_THREADS, /* threads, then their store buffers */
    STEPS_MAX = 3000,
    WORDS = 1024,
    NAMES = 64,
};

#define BIT(agent) (1u << (agent))

static struct thread {
    pthread_t id;
    sem_t turn;
    jmp_buf top;
    struct il_op op; /* the next one */
    bool done;
} threads[IL_THREADS];

/* One decision of the run.  The search goes back to the last one that has something left. */
static struct decision {
    unsigned enabled, sleep, tried;
    int chosen;
    int thread;      /* whose turn it was before */
    int preemptions; /* before */
} decisions[STEPS_MAX];
static int decision_count; /* those that the next run repeats; then: of the run */

static int generation; /* how often the search began anew, with more words that threads meet at */
static const struct il_case *the_case;
static struct il_result *result;
static FILE *trace_to;
static bool one_run; /* replay: no search */
static sem_t run_over;
static jmp_buf alone_top; /* where a failure of setup or check goes */

bool il_active;
int il_self;
int il_planted;
unsigned il_flags;
unsigned long il_writes;

static int depth, preemptions;
static unsigned sleeping; /* agents whose next step would repeat an order already seen */
static bool ending;       /* the run ends here: every thread goes to its top */
static bool pruned;

/* ---- Failures and traces --------------------------------------------------------------------- */

static void write_schedule(char *out, size_t size)
{
    size_t len = snprintf(out, size, "%d:", generation);

    for (int i = 0, n; i < depth; i += n) {
        int agent = decisions[i].chosen;

        for (n = 1; i + n < depth && decisions[i + n].chosen == agent; n++) {
        }
        if (len + 8 > size) {
            break;
        }
        len += snprintf(out + len, size - len, "%s%c", i ? "." : "",
                        agent < IL_THREADS ? '0' + agent : 'a' + agent - IL_THREADS);
        if (n > 1) {
            len += snprintf(out + len, size - len, "x%d", n);
        }
    }
}

static void note_failure(const char *fmt, va_list ap)
{
    if (!result->failed) {
        result->failed = true;
        vsnprintf(result->why, sizeof(result->why), fmt, ap);
        write_schedule(result->schedule, sizeof(result->schedule));
    }
    il_trace("\n    fails: %s", result->why);
}

/* AddressSanitizer calls it before it ends the program. */
void __asan_on_error(void);
void __asan_on_error(void)
{
    char schedule[sizeof(result->schedule)];

    if (the_case) {
        write_schedule(schedule, sizeof(schedule));
        fprintf(stderr, "AIOCTX_INTERLEAVE_REPLAY=%s/%d:%s\n", the_case->name, il_planted,
                schedule);
    }
}

void il_fail(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    note_failure(fmt, ap);
    va_end(ap);
    if (!il_active) {
        longjmp(alone_top, 1);
    }
    ending = true;
    longjmp(threads[il_self].top, 1);
}

static void fail_run(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    note_failure(fmt, ap);
    va_end(ap);
    ending = true;
}

void il_trace(const char *fmt, ...)
{
    va_list ap;

    if (trace_to) {
        va_start(ap, fmt);
        vfprintf(trace_to, fmt, ap);
        va_end(ap);
    }
}

static struct {
    const volatile void *p;
    const char *name;
} names[NAMES];
static int name_count;

void il_name(const volatile void *p, const char *name)
{
    if (name_count < NAMES) {
        names[name_count].p = p;
        names[name_count++].name = name;
    }
}

const char *il_name_of(const volatile void *p)
{
    static char text[32];

    for (int i = 0; i < name_count; i++) {
        if (names[i].p == p) {
            return names[i].name;
        }
    }
    snprintf(text, sizeof(text), "%p", (const void *)p);
    return text;
}

/* ---- Words that threads meet at -------------------------------------------------------------- */

static struct word {
    const volatile void *p;
    unsigned readers, writers;
    bool shared, has_writers; /* fixed during a run, so that runs have their decisions in common */
} words[WORDS];
static bool found_shared; /* a word that is not marked yet */

static struct word *find_word(const volatile void *p)
{
    size_t i = ((uintptr_t)p * UINT64_C(0x9e3779b97f4a7c15)) >> 32;

    for (size_t n = 0; n < WORDS; n++) {
        struct word *w = &words[(i + n) % WORDS];

        if (!w->p) {
            w->p = p;
        }
        if (w->p == p) {
            return w;
        }
    }
    abort(); /* a case that large is none for this */
}

static bool several(unsigned mask)
{
    return (mask & (mask - 1)) != 0;
}

static bool is_shared(const struct word *w)
{
    return w->writers && several(w->readers | w->writers);
}

bool il_shared(const volatile void *p, bool write)
{
    struct word *w = find_word(p);

    *(write ? &w->writers : &w->readers) |= BIT(il_self);
    found_shared |= is_shared(w) != w->shared || several(w->writers) != w->has_writers;
    return w->shared;
}

bool il_has_writers(const volatile void *p)
{
    return find_word(p)->has_writers;
}

static void mark_shared(void)
{
    for (int i = 0; i < WORDS; i++) {
        words[i].shared = is_shared(&words[i]);
        words[i].has_writers = several(words[i].writers);
    }
    found_shared = false;
    generation++;
}

/* ---- Decisions ------------------------------------------------------------------------------- */

static struct il_op op_of(int agent)
{
    return agent < IL_THREADS ? threads[agent].op : il_buffer_op(agent - IL_THREADS);
}

static bool may_go(int t)
{
    struct il_op *op = &threads[t].op;

    return !threads[t].done && !(op->drained && !il_buffer_empty(t)) &&
           (!op->ready || op->ready(op, t));
}

static unsigned enabled_agents(void)
{
    unsigned mask = 0;

    for (int t = 0; t < the_case->threads; t++) {
        mask |= may_go(t) ? BIT(t) : 0;
        mask |= il_buffer_empty(t) ? 0 : BIT(IL_THREADS + t);
    }
    return mask;
}

static bool all_done(void)
{
    for (int t = 0; t < the_case->threads; t++) {
        if (!threads[t].done) {
            return false;
        }
    }
    return true;
}

static bool meet(const struct il_op *x, const volatile void *p, unsigned size)
{
    const volatile char *a = x->a, *q = p;

    return p && ((a && a < q + size && q < a + x->size) || x->b == p);
}

static bool independent(const struct il_op *x, const struct il_op *y)
{
    if (x->global || y->global) {
        return false;
    }
    return !(x->write || y->write) || !(meet(x, y->a, y->size) || meet(x, y->b, 1));
}

/* Whether to run @agent now is a switch away from a thread that could go on. */
static bool preempts(const struct decision *d, int agent)
{
    return agent < IL_THREADS && agent != d->thread && (d->enabled & BIT(d->thread));
}

static unsigned candidates(const struct decision *d)
{
    unsigned mask = d->enabled & ~d->sleep & ~d->tried;

    if (the_case->preemptions && d->preemptions >= the_case->preemptions) {
        for (int a = 0; a < IL_THREADS; a++) {
            mask &= preempts(d, a) ? ~BIT(a) : ~0u;
        }
    }
    return mask;
}

/* Who goes on, else the first thread, else the first buffer. */
static int first_of(const struct decision *d, unsigned mask)
{
    return mask & BIT(d->thread) ? d->thread : __builtin_ctz(mask);
}

static bool decide_anew(struct decision *d, unsigned enabled)
{
    unsigned mask;

    *d = (struct decision){
        .enabled = enabled, .sleep = sleeping, .thread = il_self, .preemptions = preemptions
    };
    mask = candidates(d);
    if (!mask) {
        pruned = ending = true;
        return false;
    }
    d->chosen = first_of(d, mask);
    d->tried = BIT(d->chosen);
    decision_count = depth + 1;
    return true;
}

static void trace_step(int agent, const struct il_op *op)
{
    if (trace_to) {
        fprintf(trace_to, "\n%4d  %c  %s", depth,
                agent < IL_THREADS ? '0' + agent : 'a' + agent - IL_THREADS, op->what);
        if (op->a) {
            fprintf(trace_to, " %s", il_name_of(op->a));
        }
    }
}

static void say_deadlock(void)
{
    char text[200] = "";
    size_t len = 0;

    for (int t = 0; t < the_case->threads; t++) {
        if (!threads[t].done && len < sizeof(text)) {
            const struct il_op *op = &threads[t].op;

            len += snprintf(text + len, sizeof(text) - len, "; thread %d: %s %s", t, op->what,
                            op->a ? il_name_of(op->a) : "");
        }
    }
    fail_run("nobody can go on%s", text);
}

/* Makes the next decision and returns the agent; -1: the run is over. */
static int choose(void)
{
    unsigned enabled = enabled_agents(), others;
    struct decision *d = &decisions[depth];
    struct il_op op;

    if (all_done()) {
        return -1;
    }
    if (!enabled) {
        say_deadlock();
        return -1;
    }
    if (depth == STEPS_MAX - 1) {
        fail_run("the run does not end");
        return -1;
    }
    if (depth >= decision_count) {
        if (!decide_anew(d, enabled)) {
            return -1;
        }
    } else if (one_run ? !(enabled & BIT(d->chosen)) : enabled != d->enabled) {
        fail_run("step %d is not as before: the case is not deterministic", depth);
        return -1;
    }
    op = op_of(d->chosen);
    trace_step(d->chosen, &op);
    others = the_case->preemptions || one_run ? 0 : d->sleep | (d->tried & ~BIT(d->chosen));
    sleeping = 0;
    for (int a = 0; a < AGENTS; a++) {
        if (others & BIT(a)) {
            struct il_op other = op_of(a);

            sleeping |= independent(&op, &other) ? BIT(a) : 0;
        }
    }
    preemptions += preempts(d, d->chosen);
    depth++;
    il_writes += op.write;
    return d->chosen;
}

/* The thread whose turn it is next, stores that leave a buffer before that done; -1: none. */
static int next_thread(void)
{
    int agent;

    while ((agent = choose()) >= IL_THREADS) {
        il_buffer_flush_one(agent - IL_THREADS);
    }
    return agent;
}

void il_point(struct il_op op)
{
    struct thread *t = &threads[il_self];
    int self = il_self, next;

    t->op = op;
    next = next_thread();
    if (next >= 0 && next != self) {
        sem_post(&threads[next].turn);
        sem_wait(&t->turn);
        il_self = self;
    }
    if (ending) {
        longjmp(t->top, 1);
    }
}

/* ---- Runs ------------------------------------------------------------------------------------ */

static void pass_on_from_done(void)
{
    int next = ending ? -1 : next_thread();

    for (int t = 0; ending && t < the_case->threads; t++) {
        if (!threads[t].done) {
            next = t;
        }
    }
    sem_post(next >= 0 ? &threads[next].turn : &run_over);
}

static void *thread_main(void *arg)
{
    int self = (int)(intptr_t)arg;
    struct thread *t = &threads[self];

    il_model_thread_new(self);
    sem_post(&run_over);
    for (;;) {
        sem_wait(&t->turn);
        if (!the_case) {
            return NULL;
        }
        il_self = self;
        if (setjmp(t->top) == 0 && !ending) {
            il_model_thread_begin();
            the_case->run(self);
        }
        il_self = self;
        t->done = true;
        pass_on_from_done();
    }
}

static void call_alone(void (*func)(void))
{
    if (func && setjmp(alone_top) == 0) {
        func();
    }
}

static void run_once(void)
{
    int first;

    depth = preemptions = name_count = 0;
    sleeping = 0;
    il_self = 0;
    il_writes = 0;
    ending = pruned = false;
    il_flags = the_case->flags;
    il_clock_restore();
    il_model_reset(the_case->threads);
    call_alone(the_case->setup);
    for (int t = 0; t < the_case->threads; t++) {
        threads[t].op = (struct il_op){ .what = "begins" };
        threads[t].done = false;
    }
    if (result->failed) {
        return;
    }
    il_active = true;
    first = next_thread();
    sem_post(&threads[first].turn);
    sem_wait(&run_over);
    il_active = false;
    if (!result->failed && !pruned) {
        call_alone(il_model_check);
        call_alone(result->failed ? NULL : the_case->check);
    }
}

static bool go_back(void)
{
    while (decision_count > 0) {
        struct decision *d = &decisions[decision_count - 1];
        unsigned mask = candidates(d);

        if (mask) {
            d->chosen = first_of(d, mask);
            d->tried |= BIT(d->chosen);
            return true;
        }
        decision_count--;
    }
    return false;
}

static void begin(const struct il_case *c, int planted, struct il_result *ret)
{
    the_case = c;
    result = ret;
    memset(ret, 0, sizeof(*ret));
    memset(words, 0, sizeof(words));
    il_planted = planted;
    decision_count = generation = 0;
    found_shared = one_run = false;
    sem_init(&run_over, 0, 0);
    il_clock_save();
    for (int t = 0; t < c->threads; t++) {
        sem_init(&threads[t].turn, 0, 0);
        if (pthread_create(&threads[t].id, NULL, thread_main, (void *)(intptr_t)t) != 0) {
            abort();
        }
        sem_wait(&run_over);
    }
}

static void finish(void)
{
    int n = the_case->threads;

    the_case = NULL;
    for (int t = 0; t < n; t++) {
        sem_post(&threads[t].turn);
        pthread_join(threads[t].id, NULL);
        sem_destroy(&threads[t].turn);
    }
    sem_destroy(&run_over);
    il_clock_restore();
}

/* Searches; also ends when it has begun anew @generations times. */
static void search(int generations)
{
    do {
        run_once();
        result->depth = (unsigned)depth > result->depth ? (unsigned)depth : result->depth;
        result->runs += !pruned;
        result->pruned += pruned;
        if (found_shared && !result->failed) {
            mark_shared();
            decision_count = 0;
            result->runs = result->pruned = 0;
        }
    } while (!result->failed && generation < generations && (decision_count == 0 || go_back()));
}

void il_explore(const struct il_case *c, int planted, struct il_result *ret)
{
    begin(c, planted, ret);
    search(INT_MAX);
    finish();
}

static bool parse_agent(char c, int *ret_agent)
{
    int agent = c >= 'a' ? c - 'a' + IL_THREADS : c - '0';

    *ret_agent = agent;
    return agent >= 0 && agent < AGENTS && agent % IL_THREADS < the_case->threads;
}

/* Fills in decisions.  Returns whether it could be read. */
static bool parse_schedule(const char *s)
{
    for (decision_count = 0; *s; s += *s == '.') {
        int agent, n = 1, len = 0;

        if (!parse_agent(*s++, &agent) || (*s == 'x' && sscanf(s, "x%d%n", &n, &len) != 1)) {
            return false;
        }
        s += len;
        while (n-- > 0 && decision_count < STEPS_MAX - 1) {
            decisions[decision_count++] = (struct decision){ .chosen = agent };
        }
    }
    return true;
}

void il_replay(const struct il_case *c, int planted, const char *schedule, FILE *trace,
               struct il_result *ret)
{
    const char *steps = strchr(schedule, ':');

    begin(c, planted, ret);
    if (atoi(schedule) > 0) {
        search(atoi(schedule)); /* which words threads meet at decides what a step is */
        memset(ret, 0, sizeof(*ret));
    }
    one_run = true;
    if (!steps || !parse_schedule(steps + 1)) {
        ret->failed = true;
        snprintf(ret->why, sizeof(ret->why), "not a schedule of this case: %s", schedule);
    } else {
        trace_to = trace;
        run_once();
        il_trace("\n");
        trace_to = NULL;
        ret->runs = 1;
    }
    one_run = false;
    finish();
}
