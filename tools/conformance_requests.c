/* SPDX-License-Identifier: MIT */
/* Conformance: every request ends once, whatever happens to it, on the thread that submitted it. */
#include "conformance_int.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 64, BLOCK = 4096 };

/* A request of BLOCK bytes, or of all there are. */
struct req {
    struct ended end;
    BlockAIOCB *acb;
    QEMUIOVector qiov;
    char *buf;
};

struct batch {
    struct req req[BATCH];
    char *mem;
};

static int64_t slots(const struct conf *c)
{
    int64_t n = conf_window(c) / BLOCK;

    return n < 1 ? 1 : n < BATCH ? n : BATCH;
}

static struct batch *batch_new(const struct conf *c)
{
    struct batch *b = conf_alloc(sizeof(*b));
    size_t bytes = c->length < BLOCK ? (size_t)c->length : BLOCK;

    memset(b, 0, sizeof(*b));
    b->mem = conf_alloc(BATCH * BLOCK);
    memset(b->mem, 0, BATCH * BLOCK);
    for (int i = 0; i < BATCH; i++) {
        b->req[i].buf = b->mem + i * BLOCK;
        qemu_iovec_init_buf(&b->req[i].qiov, b->req[i].buf, bytes);
    }
    return b;
}

static void batch_free(struct batch *b)
{
    free(b->mem);
    free(b);
}

static void submit(struct conf *c, struct req *r, int64_t slot, bool write, const BlkReqOpts *opts)
{
    r->end = (struct ended){ 0 };
    r->acb =
        write ? blk_aio_pwritev_opts(c->blk, slot * BLOCK, &r->qiov, 0, conf_ended, &r->end, opts)
              : blk_aio_preadv_opts(c->blk, slot * BLOCK, &r->qiov, 0, conf_ended, &r->end, opts);
    CHECK(c, r->acb, "a request was not taken: %s", strerrorname_np(errno));
    CHECK(c, !r->acb || !r->end.calls, "a callback ran inside the submitting call");
    if (!r->acb) {
        r->end.calls = 1;
    }
}

/* Waits for all, which end in 0 or in @other. */
static void wait_all(struct conf *c, struct batch *b, int n, int other)
{
    for (int i = 0; i < n; i++) {
        if (!conf_wait(c, &b->req[i].end)) {
            return;
        }
        CHECK(c, b->req[i].end.ret == 0 || b->req[i].end.ret == other, "a request ended in %s",
              strerrorname_np(-b->req[i].end.ret));
    }
    while (aio_poll(c->ctx, false)) {
    }
    for (int i = 0; i < n; i++) {
        CHECK(c, b->req[i].end.calls == 1, "a request had %d callbacks", b->req[i].end.calls);
    }
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static void many_at_once(struct conf *c)
{
    struct batch *b = batch_new(c);
    int n = (int)slots(c);

    for (int round = 0; round < 20 && !c->faults; round++) {
        for (int i = 0; i < n; i++) {
            submit(c, &b->req[i], i, false, NULL);
        }
        wait_all(c, b, n, 0);
    }
    batch_free(b);
}

/* Writes that overlap in all ways: every byte ends as one of those that were written there. */
static void overlapping_writes(struct conf *c)
{
    int64_t room = c->length / 512 - 8;
    int n = BATCH < room ? BATCH : (int)room;
    struct batch *b;
    char *found;

    if (room < 1) {
        c->skip = "the backend is too small";
        return;
    }
    b = batch_new(c);
    found = conf_alloc((size_t)n * 512 + BLOCK);
    for (int i = 0; i < n; i++) {
        memset(b->req[i].buf, 1 + i, BLOCK);
        b->req[i].acb =
            blk_aio_pwritev(c->blk, i * 512, &b->req[i].qiov, 0, conf_ended, &b->req[i].end);
        CHECK(c, b->req[i].acb, "a write was not taken");
    }
    wait_all(c, b, n, 0);
    conf_expect(c, blk_pread(c->blk, 0, n * 512 + BLOCK - 512, found, 0), 0, "a read", 0,
                n * 512 + BLOCK - 512);
    for (int i = 0; i < n * 512 + BLOCK - 512 && !c->faults; i++) {
        int first = i < BLOCK ? 0 : (i - BLOCK) / 512 + 1, last = i / 512;

        last = last < n ? last : n - 1;
        CHECK(c, found[i] >= 1 + first && found[i] <= 1 + last,
              "byte %d is %d, which none of the writes put there", i, found[i]);
    }
    free(found);
    batch_free(b);
}

static void cancelled(struct conf *c)
{
    struct batch *b = batch_new(c);
    int n = (int)slots(c);

    for (int round = 0; round < 20 && !c->faults; round++) {
        for (int i = 0; i < n; i++) {
            submit(c, &b->req[i], i, !c->read_only && round % 2, NULL);
        }
        for (int i = round % 3; i < n; i += 2) {
            if (round % 4 == 3) {
                aio_poll(c->ctx, false);
            }
            if (!b->req[i].end.calls) {
                blk_aio_cancel_async(b->req[i].acb);
            }
        }
        wait_all(c, b, n, -ECANCELED);
    }
    batch_free(b);
}

static void deadlines(struct conf *c)
{
    struct batch *b = batch_new(c);
    int n = (int)slots(c);
    BlkStats before, after;

    blk_get_stats(c->blk, &before);
    submit(c, &b->req[0], 0, false, &(BlkReqOpts){ .deadline_ns = 0 });
    conf_wait(c, &b->req[0].end);
    CHECK(c, b->req[0].end.ret == -ETIMEDOUT, "a deadline in the past ended in %s",
          strerrorname_np(-b->req[0].end.ret));
    blk_get_stats(c->blk, &after);
    CHECK(c, after.timed_out == before.timed_out + 1, "it was not counted as timed out");
    for (int round = 0; round < 20 && !c->faults; round++) {
        for (int i = 0; i < n; i++) {
            int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

            submit(c, &b->req[i], i, false,
                   &(BlkReqOpts){ .deadline_ns = now + 1000 * (1 + i * round) });
        }
        wait_all(c, b, n, -ETIMEDOUT);
    }
    batch_free(b);
}

static void bad_requests(struct conf *c)
{
    char buf[1] = { 0 };

    conf_expect(c, blk_pread(c->blk, -1, 1, buf, 0), -EINVAL, "a read", -1, 1);
    conf_expect(c, blk_pread(c->blk, INT64_MAX, 1, buf, 0), -EINVAL, "a read", INT64_MAX, 1);
    conf_expect(c, blk_pread(c->blk, 0, 1, buf, BDRV_REQ_FUA), -EINVAL, "a read with FUA", 0, 1);
    conf_expect(c, blk_pdiscard(c->blk, 0, -1), -EINVAL, "a discard", 0, -1);
    if (c->read_only) {
        conf_expect(c, blk_pwrite(c->blk, 0, 1, buf, 0), -EPERM, "a write", 0, 1);
        conf_expect(c, blk_pdiscard(c->blk, 0, 1), -EPERM, "a discard", 0, 1);
        conf_expect(c, blk_pwrite_zeroes(c->blk, 0, 1, 0), -EPERM, "a zeroing", 0, 1);
    }
}

/* Whatever has ended before a drain returns was submitted before it, and all of that has. */
static void drains(struct conf *c)
{
    struct batch *b = batch_new(c);
    int n = (int)slots(c);

    for (int round = 0; round < 10 && !c->faults; round++) {
        for (int i = 0; i < n; i++) {
            submit(c, &b->req[i], i, false, NULL);
        }
        CHECK(c, blk_drain(c->blk) == 0, "blk_drain() failed");
        for (int i = 0; i < n; i++) {
            CHECK(c, b->req[i].end.calls == 1, "a request was left after blk_drain()");
        }
        CHECK(c, blk_drained_begin(c->blk) == 0, "blk_drained_begin() failed");
        submit(c, &b->req[0], 0, false, NULL);
        for (int i = 0; i < 10; i++) {
            aio_poll(c->ctx, false);
        }
        CHECK(c, !b->req[0].end.calls, "a request was issued in a drained section");
        blk_drained_end(c->blk);
        wait_all(c, b, 1, 0);
    }
    batch_free(b);
}

static void flushes(struct conf *c)
{
    struct batch *b = batch_new(c);
    struct ended flush[4] = { { 0 } };
    int n = (int)slots(c);

    for (int i = 0; i < n; i++) {
        submit(c, &b->req[i], i, true, NULL);
        if (i % 16 == 0 && i / 16 < 4) {
            blk_aio_flush(c->blk, conf_ended, &flush[i / 16]);
        }
    }
    wait_all(c, b, n, 0);
    for (int i = 0; i * 16 < n && i < 4; i++) {
        if (conf_wait(c, &flush[i])) {
            CHECK(c, flush[i].ret == 0, "a flush ended in %s", strerrorname_np(-flush[i].ret));
        }
    }
    batch_free(b);
}

/* Synchronous calls below a callback. */
static void nested_bh(void *opaque)
{
    struct conf *c = opaque;
    char *buf = conf_alloc(BLOCK);

    conf_expect(c, blk_pread(c->blk, 0, c->length < BLOCK ? c->length : BLOCK, buf, 0), 0,
                "a read below a callback", 0, BLOCK);
    conf_expect(c, blk_flush(c->blk), 0, "a flush below a callback", 0, 0);
    free(buf);
    c->skip = "done"; /* for nested() */
}

static void nested(struct conf *c)
{
    aio_bh_schedule_oneshot(c->ctx, nested_bh, c);
    while (!c->skip) {
        aio_poll(c->ctx, true);
    }
    c->skip = NULL;
}

/* ---- Several contexts ------------------------------------------------------------------------ */

enum { THREADS = 3, ROUNDS = 50, DEPTH = 8 };

/* One iothread, which writes and reads blocks of its own. */
struct stream {
    struct conf *c;
    struct worker *w;
    int64_t slot;
    int rounds;
    bool reading;
    char *buf;
    QEMUIOVector qiov;
};

struct worker {
    IOThread *io;
    struct stream stream[DEPTH];
    int left; /* under lock */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static void stream_done(void *opaque, int ret);

static void stream_next(struct stream *s)
{
    BlockBackend *blk = s->c->blk;
    BlockAIOCB *acb;

    if (!s->reading) {
        memset(s->buf, (int)(s->slot * 31 + s->rounds), BLOCK);
    }
    acb = s->reading ? blk_aio_preadv(blk, s->slot * BLOCK, &s->qiov, 0, stream_done, s)
                     : blk_aio_pwritev(blk, s->slot * BLOCK, &s->qiov, 0, stream_done, s);
    if (!acb) {
        stream_done(s, -errno);
    }
}

static void stream_ends(struct stream *s)
{
    pthread_mutex_lock(&lock);
    s->w->left--;
    pthread_cond_signal(&cond);
    pthread_mutex_unlock(&lock);
}

static void stream_done(void *opaque, int ret)
{
    struct stream *s = opaque;
    bool wrong = false;

    for (int i = 0; s->reading && i < BLOCK; i++) {
        wrong |= s->buf[i] != (char)(s->slot * 31 + s->rounds);
    }
    if (ret < 0 || wrong || !in_aio_context_home_thread(iothread_get_aio_context(s->w->io))) {
        pthread_mutex_lock(&lock);
        conf_fail(s->c, "%s at %lld: %s", s->reading ? "a read" : "a write",
                  (long long)s->slot * BLOCK,
                  ret < 0 ? strerrorname_np(-ret)
                  : wrong ? "another thread's bytes"
                          : "called back on another thread");
        pthread_mutex_unlock(&lock);
        s->rounds = 0;
    }
    s->rounds -= s->reading;
    if (s->rounds <= 0) {
        stream_ends(s);
        return;
    }
    s->reading = !s->reading;
    memset(s->buf, 0, BLOCK);
    stream_next(s);
}

static void worker_bh(void *opaque)
{
    struct worker *w = opaque;

    for (int i = 0; i < DEPTH; i++) {
        stream_next(&w->stream[i]);
    }
}

static void start_worker(struct conf *c, struct worker *w, int number)
{
    IOThreadOptions opts = { .context.monitor = c->monitor };

    w->left = DEPTH;
    for (int i = 0; i < DEPTH; i++) {
        struct stream *s = &w->stream[i];

        *s = (struct stream){ .c = c, .w = w, .slot = number * DEPTH + i, .rounds = ROUNDS };
        s->buf = conf_alloc(BLOCK);
        qemu_iovec_init_buf(&s->qiov, s->buf, BLOCK);
    }
    w->io = iothread_new("conformance", &opts);
    if (!w->io || aio_bh_schedule_oneshot(iothread_get_aio_context(w->io), worker_bh, w) < 0) {
        conf_fail(c, "cannot start an iothread");
        w->left = 0;
    }
}

static void several_contexts(struct conf *c)
{
    struct worker w[THREADS];

    if (c->length < THREADS * DEPTH * BLOCK) {
        c->skip = "the backend is too small";
        return;
    }
    for (int i = 0; i < THREADS; i++) {
        start_worker(c, &w[i], i);
    }
    pthread_mutex_lock(&lock);
    for (int i = 0; i < THREADS; i++) {
        while (w[i].left > 0) {
            pthread_cond_wait(&cond, &lock);
        }
    }
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < THREADS; i++) {
        iothread_destroy(w[i].io);
        for (int k = 0; k < DEPTH; k++) {
            free(w[i].stream[k].buf);
        }
    }
}

const check conformance_requests[] = {
    { "many requests at once", many_at_once, false },
    { "overlapping writes", overlapping_writes, true },
    { "cancelling", cancelled, false },
    { "deadlines", deadlines, false },
    { "bad requests are refused", bad_requests, false },
    { "draining", drains, false },
    { "flushes among writes", flushes, true },
    { "synchronous calls below a callback", nested, false },
    { "several threads", several_contexts, true },
    { 0 },
};
