/* SPDX-License-Identifier: MIT */
/* Between the conformance suite's frame (conformance.c) and its checks. */
#ifndef TOOLS_CONFORMANCE_INT_H
#define TOOLS_CONFORMANCE_INT_H

#include "blk_random.h"
#include "conformance.h"

/* The part of the backend that is used, at its beginning and its end. */
#define WINDOW_MAX (INT64_C(4) << 20)

struct conf {
    BlockBackend *blk;
    const char *spec;
    ConformanceOptions opts;
    FILE *out;
    struct blk_random random;
    int64_t length;
    BlkLimits limits;
    bool read_only;
    AioContext *ctx; /* the calling thread's */
    unsigned faults; /* of this check */
    const char *skip;
    bool lost;         /* something never ended: nothing that it may use is freed any more */
    struct conf *next; /* of those that have lost something */
};

enum conf_op { CONF_READ, CONF_WRITE, CONF_FLUSH, CONF_DISCARD, CONF_ZEROES, CONF_STATUS };

/* A request.  What it points to must live until it has ended, so it is on the heap. */
struct conf_req {
    struct conf *c;
    enum conf_op op;
    int64_t offset, bytes;
    BlockAIOCB *acb;
    QEMUIOVector qiov;
    BlkExtent extent;
    int calls, ret;
};

typedef struct check {
    const char *name;
    void (*run)(struct conf *c);
    bool writes;
} check;

/* These end with a NULL name. */
extern const check conformance_data[], conformance_requests[], conformance_threads[];

/* Says that the check has failed; only the first few are printed.  Thread: any. */
void conf_fail(struct conf *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define CHECK(c, cond, ...) \
    do { \
        if (!(cond)) { \
            conf_fail(c, __VA_ARGS__); \
        } \
    } while (0)

/* "EIO", "0". */
const char *conf_result(int ret);

/* Memory that ends the program when there is none; conf_free() keeps it where it may be in use. */
void *conf_alloc(size_t bytes);
void conf_free(struct conf *c, void *mem);

/* ---- Requests -------------------------------------------------------------------------------- */

/* Submits a request on the current context.  @buf: of a read or a write; NULL: r->qiov is set. */
void conf_submit(struct conf *c, struct conf_req *r, enum conf_op op, int64_t offset, int64_t bytes,
                 void *buf, BdrvRequestFlags flags, const BlkReqOpts *opts);

/* Polls until it has ended; past the limit it is named and cancelled.  False: it never does. */
bool conf_wait(struct conf *c, struct conf_req *r);

/* One request from begin to end; its result. */
int conf_do(struct conf *c, enum conf_op op, int64_t offset, int64_t bytes, void *buf,
            BdrvRequestFlags flags);
int conf_status(struct conf *c, int64_t offset, int64_t bytes, BlkExtent *ret_extent);

static inline int conf_pread(struct conf *c, int64_t offset, int64_t bytes, void *buf)
{
    return conf_do(c, CONF_READ, offset, bytes, buf, (BdrvRequestFlags)0);
}

static inline int conf_pwrite(struct conf *c, int64_t offset, int64_t bytes, const void *buf,
                              BdrvRequestFlags flags)
{
    return conf_do(c, CONF_WRITE, offset, bytes, (void *)buf, flags);
}

/* Whether @ret is @want; says what was done otherwise. */
bool conf_expect(struct conf *c, int ret, int want, const char *what, int64_t offset,
                 int64_t bytes);

/* Polls the context for so long. */
void conf_poll_for(struct conf *c, int64_t ns);

/* Drains; past the limit it is named, and something is lost. */
void conf_drain(struct conf *c);

/* When what begins now must have ended, in QEMU_CLOCK_REALTIME. */
int64_t conf_limit(const struct conf *c);

/* Bytes at the backend's beginning that checks work in. */
static inline int64_t conf_window(const struct conf *c)
{
    return c->length < WINDOW_MAX ? c->length : WINDOW_MAX;
}

#endif
