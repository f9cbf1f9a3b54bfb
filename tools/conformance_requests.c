/* SPDX-License-Identifier: MIT */
/* Conformance: every request ends once, whatever happens to it, and touches nothing afterwards. */
#include "conformance_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 64, BLOCK = 4096 };
#define SETTLE_NS (INT64_C(3) * 1000000)

/* Requests of BLOCK bytes, or of all there are, one for each slot of the backend. */
struct batch {
    struct conf_req req[BATCH];
    char *mem;
    int64_t bytes;
    int n;
};

static char *buf_of(const struct batch *b, int i)
{
    return b->mem + (ptrdiff_t)i * BLOCK;
}

static struct batch *batch_new(const struct conf *c)
{
    struct batch *b = conf_alloc(sizeof(*b));
    int64_t n = conf_window(c) / BLOCK;

    memset(b, 0, sizeof(*b));
    b->mem = conf_alloc(BATCH * BLOCK);
    memset(b->mem, 0, BATCH * BLOCK);
    b->bytes = c->length < BLOCK ? c->length : BLOCK;
    b->n = n < 1 ? 1 : n < BATCH ? (int)n : BATCH;
    return b;
}

static void batch_free(struct conf *c, struct batch *b)
{
    conf_free(c, b->mem);
    conf_free(c, b);
}

static void submit(struct conf *c, struct batch *b, int i, bool write, const BlkReqOpts *opts)
{
    conf_submit(c, &b->req[i], write ? CONF_WRITE : CONF_READ, (int64_t)i * BLOCK, b->bytes,
                buf_of(b, i), 0, opts);
}

/* Waits for the first @n, which end in 0 or in @other. */
static void wait_all(struct conf *c, struct batch *b, int n, int other)
{
    for (int i = 0; i < n; i++) {
        if (!conf_wait(c, &b->req[i])) {
            return;
        }
        CHECK(c, b->req[i].ret == 0 || b->req[i].ret == other, "a request ended in %s",
              conf_result(b->req[i].ret));
    }
    while (aio_poll(c->ctx, false)) {
    }
}

/* What every slot holds: a block of its own, when the backend may be written; else what is there.
 * The result is as b->mem; NULL after a failure. */
static char *fill_slots(struct conf *c, struct batch *b)
{
    char *want = conf_alloc(BATCH * BLOCK);

    for (int i = 0; i < b->n && !c->faults; i++) {
        char *at = want + (ptrdiff_t)i * BLOCK;

        blk_random_fill(&c->random, at, BLOCK);
        conf_expect(c,
                    c->read_only ? conf_pread(c, (int64_t)i * BLOCK, b->bytes, at)
                                 : conf_pwrite(c, (int64_t)i * BLOCK, b->bytes, at, 0),
                    0, c->read_only ? "a read" : "a write", (int64_t)i * BLOCK, b->bytes);
    }
    return want;
}

/* Reads that ended well brought what is there. */
static void check_reads(struct conf *c, const struct batch *b, const char *want)
{
    for (int i = 0; i < b->n && !c->faults && !c->lost; i++) {
        const struct conf_req *r = &b->req[i];

        CHECK(c,
              r->op != CONF_READ || r->ret != 0 ||
                  !memcmp(buf_of(b, i), want + (ptrdiff_t)i * BLOCK, (size_t)b->bytes),
              "a read of %lld bytes at %lld brought other bytes than are there",
              (long long)r->bytes, (long long)r->offset);
    }
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static void many_at_once(struct conf *c)
{
    struct batch *b = batch_new(c);
    char *want = fill_slots(c, b);

    for (int round = 0; round < 20 && !c->faults; round++) {
        for (int i = 0; i < b->n; i++) {
            bool write = !c->read_only && (i + round) % 4 == 3;

            if (write) {
                blk_random_fill(&c->random, want + (ptrdiff_t)i * BLOCK, BLOCK);
                memcpy(buf_of(b, i), want + (ptrdiff_t)i * BLOCK, BLOCK);
            } else {
                memset(buf_of(b, i), 0xee, BLOCK);
            }
            submit(c, b, i, write, NULL);
        }
        wait_all(c, b, b->n, 0);
        check_reads(c, b, want);
    }
    conf_free(c, want);
    batch_free(c, b);
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
        memset(buf_of(b, i), 1 + i, BLOCK);
        conf_submit(c, &b->req[i], CONF_WRITE, i * 512, BLOCK, buf_of(b, i), 0, NULL);
    }
    wait_all(c, b, n, 0);
    conf_expect(c, conf_pread(c, 0, n * 512 + BLOCK - 512, found), 0, "a read", 0,
                n * 512 + BLOCK - 512);
    for (int i = 0; i < n * 512 + BLOCK - 512 && !c->faults && !c->lost; i++) {
        int first = i < BLOCK ? 0 : (i - BLOCK) / 512 + 1, last = i / 512;

        last = last < n ? last : n - 1;
        CHECK(c, found[i] >= 1 + first && found[i] <= 1 + last,
              "byte %d is %d, which none of the writes put there", i, found[i]);
    }
    conf_free(c, found);
    batch_free(c, b);
}

/* Once its callback has been called, a request's buffer is the caller's again. */
static void check_untouched(struct conf *c, struct batch *b)
{
    memset(b->mem, 0x5a, BATCH * BLOCK);
    conf_poll_for(c, SETTLE_NS);
    for (int i = 0; i < BATCH * BLOCK && !c->faults; i++) {
        CHECK(c, b->mem[i] == 0x5a, "a buffer was written to after its request had ended");
    }
}

/* A write that was cancelled may have been done, but is not done later on. */
static void check_settled(struct conf *c, struct batch *b)
{
    char *want = fill_slots(c, b);

    conf_poll_for(c, SETTLE_NS);
    for (int i = 0; i < b->n && !c->faults; i++) {
        conf_expect(c, conf_pread(c, (int64_t)i * BLOCK, b->bytes, buf_of(b, i)), 0, "a read",
                    (int64_t)i * BLOCK, b->bytes);
        CHECK(c, c->lost || !memcmp(buf_of(b, i), want + (ptrdiff_t)i * BLOCK, (size_t)b->bytes),
              "a write at %lld that had been cancelled was done after a later one",
              (long long)i * BLOCK);
    }
    conf_free(c, want);
}

static void cancel_some(struct conf *c, struct batch *b, int round)
{
    for (int i = round % 3; i < b->n; i += 2) {
        if (round % 4 == 3) {
            aio_poll(c->ctx, false);
        }
        if (!b->req[i].calls) {
            blk_aio_cancel_async(b->req[i].acb);
        }
    }
}

static void cancelled_reads(struct conf *c)
{
    struct batch *b = batch_new(c);
    char *want = fill_slots(c, b);

    for (int round = 0; round < 20 && !c->faults; round++) {
        memset(b->mem, 0xee, BATCH * BLOCK);
        for (int i = 0; i < b->n; i++) {
            submit(c, b, i, false, NULL);
        }
        cancel_some(c, b, round);
        wait_all(c, b, b->n, -ECANCELED);
        check_reads(c, b, want);
    }
    if (!c->lost) {
        check_untouched(c, b);
    }
    conf_free(c, want);
    batch_free(c, b);
}

static void cancelled_writes(struct conf *c)
{
    struct batch *b = batch_new(c);

    for (int round = 0; round < 6 && !c->faults; round++) {
        blk_random_fill(&c->random, b->mem, BATCH * BLOCK);
        for (int i = 0; i < b->n; i++) {
            submit(c, b, i, true, NULL);
        }
        cancel_some(c, b, round);
        wait_all(c, b, b->n, -ECANCELED);
        if (!c->lost) {
            check_settled(c, b);
        }
    }
    batch_free(c, b);
}

static void deadlines(struct conf *c)
{
    struct batch *b = batch_new(c);
    char *want = fill_slots(c, b);
    BlkStats before, after;

    blk_get_stats(c->blk, &before);
    submit(c, b, 0, false, &(BlkReqOpts){ .deadline_ns = 0 });
    conf_wait(c, &b->req[0]);
    CHECK(c, b->req[0].ret == -ETIMEDOUT || c->lost, "a deadline in the past ended in %s",
          conf_result(b->req[0].ret));
    blk_get_stats(c->blk, &after);
    CHECK(c, after.timed_out == before.timed_out + 1, "it was not counted as timed out");
    for (int round = 0; round < 20 && !c->faults; round++) {
        for (int i = 0; i < b->n; i++) {
            int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

            submit(c, b, i, false, &(BlkReqOpts){ .deadline_ns = now + 1000 * (1 + i * round) });
        }
        wait_all(c, b, b->n, -ETIMEDOUT);
        check_reads(c, b, want);
    }
    if (!c->lost) {
        check_untouched(c, b);
    }
    conf_free(c, want);
    batch_free(c, b);
}

static void bad_requests(struct conf *c)
{
    char *buf = conf_alloc(1);

    buf[0] = 0;
    conf_expect(c, conf_pread(c, -1, 1, buf), -EINVAL, "a read", -1, 1);
    conf_expect(c, conf_pread(c, INT64_MAX, 1, buf), -EINVAL, "a read", INT64_MAX, 1);
    conf_expect(c, conf_do(c, CONF_READ, 0, 1, buf, BDRV_REQ_FUA), -EINVAL, "a read with FUA", 0,
                1);
    conf_expect(c, conf_do(c, CONF_DISCARD, 0, -1, NULL, 0), -EINVAL, "a discard", 0, -1);
    if (c->read_only) {
        conf_expect(c, conf_pwrite(c, 0, 1, buf, 0), -EPERM, "a write", 0, 1);
        conf_expect(c, conf_do(c, CONF_DISCARD, 0, 1, NULL, 0), -EPERM, "a discard", 0, 1);
        conf_expect(c, conf_do(c, CONF_ZEROES, 0, 1, NULL, 0), -EPERM, "a zeroing", 0, 1);
    }
    conf_free(c, buf);
}

/* Whatever has ended before a drain returns was submitted before it, and all of that has. */
static void drains(struct conf *c)
{
    struct batch *b = batch_new(c);

    for (int round = 0; round < 10 && !c->faults; round++) {
        for (int i = 0; i < b->n; i++) {
            submit(c, b, i, false, NULL);
        }
        conf_drain(c);
        for (int i = 0; i < b->n && !c->lost; i++) {
            CHECK(c, b->req[i].calls == 1, "a request was left after blk_drain()");
        }
        if (c->lost) {
            break;
        }
        CHECK(c, blk_drained_begin(c->blk) == 0, "blk_drained_begin() failed");
        submit(c, b, 0, false, NULL);
        for (int i = 0; i < 10; i++) {
            aio_poll(c->ctx, false);
        }
        CHECK(c, !b->req[0].calls, "a request was issued in a drained section");
        blk_drained_end(c->blk);
        wait_all(c, b, 1, 0);
    }
    batch_free(c, b);
}

static void flushes(struct conf *c)
{
    enum { FLUSHES = 4 };
    struct batch *b = batch_new(c);
    struct conf_req *flush = conf_alloc(FLUSHES * sizeof(*flush));
    int started = 0;

    for (int i = 0; i < b->n; i++) {
        submit(c, b, i, true, NULL);
        if (i % 16 == 0 && started < FLUSHES) {
            conf_submit(c, &flush[started++], CONF_FLUSH, 0, 0, NULL, 0, NULL);
        }
    }
    wait_all(c, b, b->n, 0);
    for (int i = 0; i < started && conf_wait(c, &flush[i]); i++) {
        CHECK(c, flush[i].ret == 0, "a flush ended in %s", conf_result(flush[i].ret));
    }
    conf_free(c, flush);
    batch_free(c, b);
}

/* ---- What a flush is for --------------------------------------------------------------------- */

/* After a loss of power, the slots that @durable says still hold their blocks. */
static void check_after_loss(struct conf *c, struct batch *b, const char *want, int step,
                             const char *what)
{
    c->opts.lose_power(c->opts.opaque);
    for (int i = 0; i < b->n && !c->faults && !c->lost; i += step) {
        if (conf_expect(c, conf_pread(c, (int64_t)i * BLOCK, b->bytes, buf_of(b, i)), 0, "a read",
                        (int64_t)i * BLOCK, b->bytes)) {
            CHECK(c, !memcmp(buf_of(b, i), want + (ptrdiff_t)i * BLOCK, (size_t)b->bytes),
                  "a write at %lld that had ended before %s was lost with the power",
                  (long long)i * BLOCK, what);
        }
    }
}

/* Writes that have ended, then a flush, with other writes still on their way; then FUA. */
static void durable(struct conf *c)
{
    struct conf_req *flush;
    struct batch *b;
    char *want;

    if (!c->opts.lose_power) {
        c->skip = "nothing here can make the device lose its power";
        return;
    }
    b = batch_new(c);
    want = fill_slots(c, b);
    flush = conf_alloc(sizeof(*flush));
    for (int i = 1; i < b->n; i += 2) {
        submit(c, b, i, true, NULL);
    }
    conf_submit(c, flush, CONF_FLUSH, 0, 0, NULL, 0, NULL);
    conf_wait(c, flush);
    CHECK(c, c->lost || flush->ret == 0, "a flush ended in %s", conf_result(flush->ret));
    for (int i = 1; i < b->n; i += 2) {
        conf_wait(c, &b->req[i]);
    }
    check_after_loss(c, b, want, 2, "a flush");
    for (int i = 0; i < b->n && !c->lost; i += 3) {
        blk_random_fill(&c->random, want + (ptrdiff_t)i * BLOCK, BLOCK);
        conf_pwrite(c, (int64_t)i * BLOCK, b->bytes, want + (ptrdiff_t)i * BLOCK, BDRV_REQ_FUA);
    }
    if (!c->lost) {
        check_after_loss(c, b, want, 3, "FUA made it durable");
    }
    conf_free(c, flush);
    conf_free(c, want);
    batch_free(c, b);
}

/* ---- Below filters that are slow, or never answer -------------------------------------------- */

/* Opens the backend once more, below blkdebug with @rules; the first one is closed meanwhile.
 * Returns what its slots then hold, which a disk in memory has forgotten; NULL after a failure. */
static char *open_below(struct conf *c, struct batch *b, const char *rules)
{
    char *spec = NULL, *why = NULL, *want = NULL;

    if (c->spec[0] == '{') {
        c->skip = "a spec in JSON cannot be put below a filter";
        return NULL;
    }
    if (c->read_only) { /* reads below the filter may never end */
        want = fill_slots(c, b);
    }
    if (asprintf(&spec, "blkdebug:rules=%s,%s", rules, c->spec) < 0) {
        spec = NULL;
    }
    blk_unref(c->blk);
    c->blk = spec ? blk_open(spec, &why) : NULL;
    CHECK(c, c->blk, "cannot be opened below a filter: %s", why ? why : "out of memory");
    free(why);
    free(spec);
    if (c->blk && !c->read_only) {
        want = fill_slots(c, b);
    }
    return want;
}

static void open_again(struct conf *c)
{
    if (c->lost) {
        return;
    }
    blk_unref(c->blk);
    c->blk = blk_open(c->spec, NULL);
    if (!c->blk) {
        conf_fail(c, "cannot be opened once more: %s", strerror(errno));
        c->lost = true; /* nothing can go on without */
    }
}

/* Half of the reads never end but by their deadline, or by being cancelled. */
static void never_answered(struct conf *c)
{
    struct batch *b = batch_new(c);
    char *want = open_below(c, b, "read+every=2+never");

    if (c->blk && want) {
        for (int round = 0; round < 4 && !c->faults; round++) {
            int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

            for (int i = 0; i < b->n; i++) {
                submit(c, b, i, false,
                       &(BlkReqOpts){ .deadline_ns = round % 2 ? -1 : now + 2000000 + i * 1000 });
            }
            for (int i = 0; i < b->n && round % 2; i++) {
                blk_aio_cancel_async(b->req[i].acb);
            }
            wait_all(c, b, b->n, round % 2 ? -ECANCELED : -ETIMEDOUT);
            check_reads(c, b, want);
        }
    }
    if (!c->skip) {
        open_again(c);
    }
    conf_free(c, want);
    batch_free(c, b);
}

/* Reads and writes come late, some of them past their deadline. */
static void answered_late(struct conf *c)
{
    struct batch *b = batch_new(c);
    char *want = open_below(c, b, "read+every=3+delay=2ms;write+every=2+delay=2ms");

    if (c->blk && want) {
        for (int round = 0; round < 4 && !c->faults; round++) {
            int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

            for (int i = 0; i < b->n; i++) {
                bool write = !c->read_only && round % 2;

                memcpy(buf_of(b, i), want + (ptrdiff_t)i * BLOCK, BLOCK);
                submit(c, b, i, write,
                       &(BlkReqOpts){ .deadline_ns = now + 1000000 + i * INT64_C(40000) });
            }
            wait_all(c, b, b->n, -ETIMEDOUT);
            check_reads(c, b, want);
        }
        conf_drain(c);
    }
    if (!c->skip) {
        open_again(c);
    }
    conf_free(c, want);
    batch_free(c, b);
}

const check conformance_requests[] = {
    { "many requests at once", many_at_once, false },
    { "overlapping writes", overlapping_writes, true },
    { "cancelled reads", cancelled_reads, false },
    { "cancelled writes", cancelled_writes, true },
    { "deadlines", deadlines, false },
    { "bad requests are refused", bad_requests, false },
    { "draining", drains, false },
    { "flushes among writes", flushes, true },
    { "what was flushed outlives a loss of power", durable, true },
    { "deadlines and cancels of what is never answered", never_answered, false },
    { "deadlines of what is answered late", answered_late, false },
    { 0 },
};
