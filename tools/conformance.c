/* SPDX-License-Identifier: MIT */
/* The conformance suite's frame: opening, running the checks, and telling. */
#include "conformance_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { FAULTS_SHOWN = 5 };

void conf_fail(struct conf *c, const char *fmt, ...)
{
    va_list ap;

    if (c->faults++ < FAULTS_SHOWN) {
        fputs("# ", c->out);
        va_start(ap, fmt);
        vfprintf(c->out, fmt, ap);
        va_end(ap);
        fputc('\n', c->out);
    }
}

static const char *result_text(int ret)
{
    return ret == 0 ? "0" : ret < 0 ? strerrorname_np(-ret) : "a positive number";
}

bool conf_expect(struct conf *c, int ret, int want, const char *what, int64_t offset, int64_t bytes)
{
    CHECK(c, ret == want, "%s of %lld bytes at offset %lld ended in %s, not %s", what,
          (long long)bytes, (long long)offset, result_text(ret), result_text(want));
    return ret == want;
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

void conf_ended(void *opaque, int ret)
{
    struct ended *e = opaque;

    e->calls++;
    e->ret = ret;
}

static void too_long(void *opaque)
{
    *(bool *)opaque = true;
}

bool conf_wait(struct conf *c, const struct ended *e)
{
    bool over = false;
    QEMUTimer *limit;

    if (e->calls) {
        return true;
    }
    limit = aio_timer_new(c->ctx, QEMU_CLOCK_REALTIME, SCALE_MS, too_long, &over);
    timer_mod(limit, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 60000);
    while (!e->calls && !over) {
        aio_poll(c->ctx, true);
    }
    timer_free(limit);
    CHECK(c, e->calls == 1, "a request had %d callbacks after a minute", e->calls);
    return e->calls > 0;
}

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
    const check *const lists[] = { conformance_data, conformance_requests };
    int n = 0, failed = 0;

    for (int i = 0; i < 2; i++) {
        for (const check *one = lists[i]; one->name; one++) {
            run_check(c, one, ++n, &failed);
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
    blk_unref(c->blk);
    return ret;
}

int conformance_run(const char *spec, const char *monitor, uint64_t seed, FILE *out)
{
    AioContextOptions opts = { .monitor = monitor };
    struct conf c = { .spec = spec, .monitor = monitor, .out = out };
    int ret;

    blk_random_init(&c.random, seed, 0);
    c.ctx = aio_context_new(&opts);
    if (!c.ctx) {
        return cannot(out, "cannot make a context", strerror(errno));
    }
    qemu_set_current_aio_context(c.ctx);
    ret = run_in(&c);
    aio_context_unref(c.ctx);
    return ret;
}
