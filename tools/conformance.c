/* SPDX-License-Identifier: MIT */
/* The conformance suite's frame: opening, running the checks, and telling. */
#include "conformance_int.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { FAULTS_SHOWN = 5 };
#define DEFAULT_LIMIT_NS (INT64_C(60) * 1000000000)

void conf_fail(struct conf *c, const char *fmt, ...)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    va_list ap;

    pthread_mutex_lock(&lock);
    if (c->faults++ < FAULTS_SHOWN) {
        fputs("# ", c->out);
        va_start(ap, fmt);
        vfprintf(c->out, fmt, ap);
        va_end(ap);
        fputc('\n', c->out);
    }
    pthread_mutex_unlock(&lock);
}

const char *conf_result(int ret)
{
    const char *name = ret < 0 ? strerrorname_np(-ret) : NULL;

    return name ? name : ret == 0 ? "0" : ret < 0 ? "no errno" : "a positive number";
}

bool conf_expect(struct conf *c, int ret, int want, const char *what, int64_t offset, int64_t bytes)
{
    CHECK(c, ret == want || c->lost, "%s of %lld bytes at offset %lld ended in %s, not %s", what,
          (long long)bytes, (long long)offset, conf_result(ret), conf_result(want));
    return ret == want && !c->lost;
}

void *conf_alloc(size_t bytes)
{
    void *mem;

    if (posix_memalign(&mem, 4096, bytes ? bytes : 1) != 0) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return mem;
}

/* What a lost request may still use stays reachable: it was given up on purpose. */
struct given_up {
    struct given_up *next;
    void *mem;
};
static struct given_up *given_up;
static struct conf *given_up_runs;

void conf_free(struct conf *c, void *mem)
{
    struct given_up *g;

    if (!c->lost) {
        free(mem);
        return;
    }
    g = conf_alloc(sizeof(*g));
    *g = (struct given_up){ given_up, mem };
    given_up = g;
}

int64_t conf_limit(const struct conf *c)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + c->opts.limit_ns;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void ended(void *opaque, int ret)
{
    struct conf_req *r = opaque;

    r->calls++;
    r->ret = ret;
    CHECK(r->c, r->calls == 1, "a request had %d callbacks", r->calls);
}

static BlockAIOCB *submit(struct conf_req *r, BdrvRequestFlags flags, const BlkReqOpts *opts)
{
    BlockBackend *blk = r->c->blk;

    switch (r->op) {
    case CONF_READ:
        return blk_aio_preadv_opts(blk, r->offset, &r->qiov, flags, ended, r, opts);
    case CONF_WRITE:
        return blk_aio_pwritev_opts(blk, r->offset, &r->qiov, flags, ended, r, opts);
    case CONF_FLUSH:
        return blk_aio_flush_opts(blk, ended, r, opts);
    case CONF_DISCARD:
        return blk_aio_pdiscard_opts(blk, r->offset, r->bytes, ended, r, opts);
    case CONF_ZEROES:
        return blk_aio_pwrite_zeroes_opts(blk, r->offset, r->bytes, flags, ended, r, opts);
    default:
        return blk_aio_block_status_opts(blk, r->offset, r->bytes, &r->extent, ended, r, opts);
    }
}

void conf_submit(struct conf *c, struct conf_req *r, enum conf_op op, int64_t offset, int64_t bytes,
                 void *buf, BdrvRequestFlags flags, const BlkReqOpts *opts)
{
    r->c = c;
    r->op = op;
    r->offset = offset;
    r->bytes = bytes;
    r->calls = r->ret = 0;
    if (buf) {
        qemu_iovec_init_buf(&r->qiov, buf, (size_t)bytes);
    }
    r->acb = submit(r, flags, opts);
    CHECK(c, r->acb, "a request was not taken: %s", strerrorname_np(errno));
    CHECK(c, !r->acb || !r->calls, "a callback ran inside the submitting call");
    if (!r->acb) {
        r->calls = 1;
        r->ret = -errno;
    }
}

static void too_long(void *opaque)
{
    *(bool *)opaque = true;
}

static bool wait_until(struct conf *c, const struct conf_req *r, int64_t until_ns)
{
    bool over = false;
    QEMUTimer *limit;

    if (r->calls) {
        return true;
    }
    limit = aio_timer_new(c->ctx, QEMU_CLOCK_REALTIME, SCALE_NS, too_long, &over);
    timer_mod(limit, until_ns);
    while (!r->calls && !over) {
        aio_poll(c->ctx, true);
    }
    timer_free(limit);
    return r->calls > 0;
}

bool conf_wait(struct conf *c, struct conf_req *r)
{
    static const char *const names[] = { "a read",    "a write",   "a flush",
                                         "a discard", "a zeroing", "a status request" };

    if (c->lost) {
        return false;
    }
    if (wait_until(c, r, conf_limit(c))) {
        return true;
    }
    conf_fail(c, "%s of %lld bytes at offset %lld has not ended after %lld ms", names[r->op],
              (long long)r->bytes, (long long)r->offset, (long long)c->opts.limit_ns / 1000000);
    blk_aio_cancel_async(r->acb);
    if (!wait_until(c, r, conf_limit(c))) {
        conf_fail(c, "nor has it after it was cancelled");
        c->lost = true;
    }
    return !c->lost;
}

int conf_do(struct conf *c, enum conf_op op, int64_t offset, int64_t bytes, void *buf,
            BdrvRequestFlags flags)
{
    struct conf_req *r = conf_alloc(sizeof(*r));
    int ret;

    if (c->lost) {
        free(r);
        return -EIO;
    }
    conf_submit(c, r, op, offset, bytes, buf, flags, NULL);
    conf_wait(c, r);
    ret = r->ret;
    conf_free(c, r);
    return ret;
}

int conf_status(struct conf *c, int64_t offset, int64_t bytes, BlkExtent *ret_extent)
{
    struct conf_req *r = conf_alloc(sizeof(*r));
    int ret = -EIO;

    if (!c->lost) {
        memset(&r->extent, 0xff, sizeof(r->extent));
        conf_submit(c, r, CONF_STATUS, offset, bytes, NULL, (BdrvRequestFlags)0, NULL);
        conf_wait(c, r);
        ret = r->ret;
        *ret_extent = r->extent;
    }
    conf_free(c, r);
    return ret;
}

void conf_poll_for(struct conf *c, int64_t ns)
{
    bool over = false;
    QEMUTimer *limit = aio_timer_new(c->ctx, QEMU_CLOCK_REALTIME, SCALE_NS, too_long, &over);

    timer_mod(limit, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + ns);
    while (!over) {
        aio_poll(c->ctx, true);
    }
    timer_free(limit);
}

void conf_drain(struct conf *c)
{
    int ret = c->lost ? 0 : blk_drain_until(c->blk, conf_limit(c));

    if (ret == -ETIMEDOUT) {
        conf_fail(c, "a drain has not ended after %lld ms", (long long)c->opts.limit_ns / 1000000);
        c->lost = true;
    } else {
        CHECK(c, ret == 0, "a drain ended in %s", conf_result(ret));
    }
}

/* ---- The frame ------------------------------------------------------------------------------- */

static void run_check(struct conf *c, const check *one, int number, int *ret_failed)
{
    c->faults = 0;
    c->skip = NULL;
    if (one->writes && c->read_only) {
        c->skip = "the backend is read-only";
    } else {
        one->run(c);
    }
    fprintf(c->out, "%s %d - %s%s%s\n", c->faults ? "not ok" : "ok", number, one->name,
            c->skip ? " # SKIP " : "", c->skip ? c->skip : "");
    fflush(c->out);
    *ret_failed += c->faults > 0;
}

static int run_all(struct conf *c)
{
    const check *const lists[] = { conformance_data, conformance_requests, conformance_threads };
    int n = 0, failed = 0;

    for (int i = 0; i < 3; i++) {
        for (const check *one = lists[i]; one->name; one++) {
            run_check(c, one, ++n, &failed);
            if (c->lost) {
                fprintf(c->out, "Bail out! what never ended leaves nothing to go on with\n");
                return failed;
            }
        }
    }
    fprintf(c->out, "1..%d\n", n);
    return failed;
}

static int cannot(FILE *out, const char *what, const char *why)
{
    fprintf(out, "Bail out! %s: %s\n", what, why ? why : "out of memory");
    return -1;
}

static int run_in(struct conf *c)
{
    char *why = NULL;
    int ret;

    c->blk = blk_open(c->spec, &why);
    if (!c->blk) {
        ret = cannot(c->out, "cannot open the backend", why);
        free(why);
        return ret;
    }
    c->length = blk_getlength(c->blk);
    c->read_only = blk_is_read_only(c->blk);
    blk_get_limits(c->blk, &c->limits);
    ret = blk_check_context(c->blk, c->ctx, &why);
    ret = ret < 0          ? cannot(c->out, "cannot use the backend", why)
          : c->length == 0 ? cannot(c->out, "cannot use the backend", "it is 0 bytes long")
                           : run_all(c);
    free(why);
    if (!c->lost) {
        blk_unref(c->blk);
    }
    return ret;
}

int conformance_run(const char *spec, const ConformanceOptions *opts, FILE *out)
{
    AioContextOptions ctx_opts = { .monitor = opts->monitor };
    struct conf *c = conf_alloc(sizeof(*c));
    int ret;

    memset(c, 0, sizeof(*c));
    c->spec = spec;
    c->opts = *opts;
    c->opts.limit_ns = opts->limit_ns ? opts->limit_ns : DEFAULT_LIMIT_NS;
    c->out = out;
    blk_random_init(&c->random, opts->seed, 0);
    c->ctx = aio_context_new(&ctx_opts);
    if (!c->ctx) {
        free(c);
        return cannot(out, "cannot make a context", strerror(errno));
    }
    qemu_set_current_aio_context(c->ctx);
    ret = run_in(c);
    if (c->lost) {
        c->next = given_up_runs;
        given_up_runs = c;
        return ret;
    }
    aio_context_unref(c->ctx);
    free(c);
    return ret;
}
