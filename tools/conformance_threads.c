/* SPDX-License-Identifier: MIT */
/* Conformance: several threads at once, and calls that wait. */
#include "conformance_int.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 4096, THREADS = 3, ROUNDS = 50, DEPTH = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Waits on @cond, under the lock, until *@left is 0; false when the limit passes first. */
static bool wait_for(struct conf *c, pthread_cond_t *cond, const int *left)
{
    struct timespec until;
    int64_t limit_ns = c->opts.limit_ns;

    clock_gettime(CLOCK_REALTIME, &until);
    limit_ns += until.tv_nsec;
    until.tv_sec += limit_ns / 1000000000;
    until.tv_nsec = limit_ns % 1000000000;
    while (*left > 0 && pthread_cond_timedwait(cond, &lock, &until) == 0) {
    }
    return *left == 0;
}

/* ---- Synchronous calls ----------------------------------------------------------------------- */

/* A thread that makes them. */
struct caller {
    struct conf *c;
    bool nested; /* below a callback of a loop of its own */
    const char *doing;
    char *buf;
    int64_t bytes;
    int left; /* lock */
    bool done;
    pthread_cond_t cond;
    pthread_t thread;
};

static void say(struct caller *caller, const char *doing)
{
    pthread_mutex_lock(&lock);
    caller->doing = doing;
    pthread_mutex_unlock(&lock);
}

static void make_calls(void *opaque)
{
    struct caller *caller = opaque;
    struct conf *c = caller->c;
    BlkExtent extent;

    for (int i = 0; i < 4 && !c->faults; i++) {
        say(caller, "a synchronous read");
        conf_expect(c, blk_pread(c->blk, 0, caller->bytes, caller->buf, 0), 0, "a synchronous read",
                    0, caller->bytes);
        if (!c->read_only) {
            say(caller, "a synchronous write");
            conf_expect(c, blk_pwrite(c->blk, 0, caller->bytes, caller->buf, 0), 0,
                        "a synchronous write", 0, caller->bytes);
        }
        say(caller, "a synchronous flush");
        conf_expect(c, blk_flush(c->blk), 0, "a synchronous flush", 0, 0);
        say(caller, "a synchronous status");
        conf_expect(c, blk_block_status(c->blk, 0, caller->bytes, &extent), 0,
                    "a synchronous status", 0, caller->bytes);
    }
    caller->done = true;
}

static void *call_thread(void *opaque)
{
    struct caller *caller = opaque;

    if (caller->nested) {
        AioContextOptions opts = { .monitor = caller->c->opts.monitor };
        AioContext *ctx = aio_context_new(&opts);

        qemu_set_current_aio_context(ctx);
        aio_bh_schedule_oneshot(ctx, make_calls, caller);
        while (!caller->done) {
            aio_poll(ctx, true);
        }
        aio_context_unref(ctx);
    } else {
        make_calls(caller);
    }
    pthread_mutex_lock(&lock);
    caller->left = 0;
    pthread_cond_signal(&caller->cond);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void call_on_thread(struct conf *c, bool nested)
{
    struct caller *caller = conf_alloc(sizeof(*caller));

    memset(caller, 0, sizeof(*caller));
    caller->c = c;
    caller->nested = nested;
    caller->buf = conf_alloc(BLOCK);
    caller->bytes = c->length < BLOCK ? c->length : BLOCK;
    caller->left = 1;
    pthread_cond_init(&caller->cond, NULL);
    if (pthread_create(&caller->thread, NULL, call_thread, caller) != 0) {
        conf_fail(c, "cannot start a thread");
        conf_free(c, caller->buf);
        conf_free(c, caller);
        return;
    }
    pthread_mutex_lock(&lock);
    if (!wait_for(c, &caller->cond, &caller->left)) {
        conf_fail(c, "%s%s has not ended after %lld ms", caller->doing ? caller->doing : "nothing",
                  nested ? " below a callback" : "", (long long)c->opts.limit_ns / 1000000);
        c->lost = true;
    }
    pthread_mutex_unlock(&lock);
    if (c->lost) {
        pthread_detach(caller->thread);
    } else {
        pthread_join(caller->thread, NULL);
        pthread_cond_destroy(&caller->cond);
    }
    conf_free(c, caller->buf);
    conf_free(c, caller);
}

static void nested(struct conf *c)
{
    call_on_thread(c, true);
}

static void plain_thread(struct conf *c)
{
    call_on_thread(c, false);
}

/* ---- Several contexts ------------------------------------------------------------------------ */

struct crew;

/* One iothread's stream of requests, which writes and reads a block of its own. */
struct stream {
    struct conf *c;
    struct crew *crew;
    IOThread *io;
    int64_t slot;
    int rounds;
    bool reading;
    struct blk_random random;
    char *want, *buf;
    QEMUIOVector qiov;
};

struct crew {
    IOThread *io[THREADS];
    struct stream stream[THREADS * DEPTH];
    char *mem;
    int left; /* lock */
    pthread_cond_t cond;
};

static void stream_done(void *opaque, int ret);

static void stream_next(struct stream *s)
{
    BlockBackend *blk = s->c->blk;
    BlockAIOCB *acb;

    if (s->reading) {
        memset(s->buf, 0xee, BLOCK);
        acb = blk_aio_preadv(blk, s->slot * BLOCK, &s->qiov, 0, stream_done, s);
    } else {
        blk_random_fill(&s->random, s->want, BLOCK);
        memcpy(s->buf, s->want, BLOCK);
        acb = blk_aio_pwritev(blk, s->slot * BLOCK, &s->qiov, 0, stream_done, s);
    }
    if (!acb) {
        stream_done(s, -errno);
    }
}

static void stream_ends(struct stream *s)
{
    pthread_mutex_lock(&lock);
    s->crew->left--;
    pthread_cond_signal(&s->crew->cond);
    pthread_mutex_unlock(&lock);
}

static void stream_done(void *opaque, int ret)
{
    struct stream *s = opaque;
    bool wrong = ret == 0 && s->reading && memcmp(s->buf, s->want, BLOCK) != 0;
    bool elsewhere = !in_aio_context_home_thread(iothread_get_aio_context(s->io));

    if (ret < 0 || wrong || elsewhere) {
        conf_fail(s->c, "%s at %lld: %s", s->reading ? "a read" : "a write",
                  (long long)s->slot * BLOCK,
                  ret < 0 ? conf_result(ret)
                  : wrong ? "not the bytes that this thread wrote there"
                          : "called back on another thread");
        s->rounds = 0;
    }
    s->rounds -= s->reading;
    if (s->rounds <= 0) {
        stream_ends(s);
        return;
    }
    s->reading = !s->reading;
    stream_next(s);
}

static void thread_bh(void *opaque)
{
    struct stream *first = opaque;

    for (int i = 0; i < DEPTH; i++) {
        stream_next(&first[i]);
    }
}

/* Starts an iothread with its streams; returns whether it runs. */
static bool start_thread(struct conf *c, struct crew *crew, int number)
{
    IOThreadOptions opts = { .context.monitor = c->opts.monitor };
    IOThread *io = iothread_new("conformance", &opts);

    crew->io[number] = io;
    if (!io) {
        conf_fail(c, "cannot start an iothread: %s", strerror(errno));
        return false;
    }
    for (int i = 0; i < DEPTH; i++) {
        int slot = number * DEPTH + i;
        struct stream *s = &crew->stream[slot];

        *s = (struct stream){ .c = c, .crew = crew, .io = io, .slot = slot, .rounds = ROUNDS };
        s->buf = crew->mem + (ptrdiff_t)slot * 2 * BLOCK;
        s->want = s->buf + BLOCK;
        blk_random_init(&s->random, blk_random_next(&c->random), (uint64_t)slot);
        qemu_iovec_init_buf(&s->qiov, s->buf, BLOCK);
    }
    pthread_mutex_lock(&lock);
    crew->left += DEPTH;
    pthread_mutex_unlock(&lock);
    if (aio_bh_schedule_oneshot(iothread_get_aio_context(io), thread_bh,
                                &crew->stream[number * DEPTH]) < 0) {
        conf_fail(c, "out of memory");
        pthread_mutex_lock(&lock);
        crew->left -= DEPTH;
        pthread_mutex_unlock(&lock);
        return false;
    }
    return true;
}

/* What each wrote last is there for all. */
static void check_last(struct conf *c, const struct crew *crew)
{
    char *found = conf_alloc(BLOCK);

    for (int i = 0; i < THREADS * DEPTH && !c->faults; i++) {
        if (conf_expect(c, conf_pread(c, (int64_t)i * BLOCK, BLOCK, found), 0, "a read",
                        (int64_t)i * BLOCK, BLOCK)) {
            CHECK(c, !memcmp(found, crew->stream[i].want, BLOCK),
                  "what one thread wrote at %lld another one does not find", (long long)i * BLOCK);
        }
    }
    conf_free(c, found);
}

static void several_contexts(struct conf *c)
{
    struct crew *crew;

    if (c->length < THREADS * DEPTH * BLOCK) {
        c->skip = "the backend is too small";
        return;
    }
    crew = conf_alloc(sizeof(*crew));
    memset(crew, 0, sizeof(*crew));
    crew->mem = conf_alloc(THREADS * DEPTH * 2 * BLOCK);
    pthread_cond_init(&crew->cond, NULL);
    for (int i = 0; i < THREADS && start_thread(c, crew, i); i++) {
    }
    pthread_mutex_lock(&lock);
    if (!wait_for(c, &crew->cond, &crew->left)) {
        conf_fail(c, "requests of %d streams on %d threads have not ended after %lld ms",
                  crew->left, THREADS, (long long)c->opts.limit_ns / 1000000);
        c->lost = true;
    }
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < THREADS && !c->lost; i++) {
        iothread_destroy(crew->io[i]);
    }
    if (!c->lost) {
        check_last(c, crew);
        pthread_cond_destroy(&crew->cond);
    }
    conf_free(c, crew->mem);
    conf_free(c, crew);
}

const check conformance_threads[] = {
    { "several threads", several_contexts, true },
    { "synchronous calls below a callback", nested, false },
    { "synchronous calls from a plain thread", plain_thread, false },
    { 0 },
};
