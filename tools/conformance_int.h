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
    const char *spec, *monitor;
    FILE *out;
    struct blk_random random;
    int64_t length;
    BlkLimits limits;
    bool read_only;
    AioContext *ctx; /* the calling thread's */
    unsigned faults; /* of this check */
    const char *skip;
};

/* A request's end. */
struct ended {
    int calls, ret;
};

typedef struct check {
    const char *name;
    void (*run)(struct conf *c);
    bool writes;
} check;

extern const check conformance_data[], conformance_requests[]; /* end with a NULL name */

/* Says that the check has failed; only the first few are printed. */
void conf_fail(struct conf *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define CHECK(c, cond, ...) \
    do { \
        if (!(cond)) { \
            conf_fail(c, __VA_ARGS__); \
        } \
    } while (0)

/* Whether @ret is @want; says what was done otherwise. */
bool conf_expect(struct conf *c, int ret, int want, const char *what, int64_t offset,
                 int64_t bytes);

/* Memory that ends the program when there is none. */
void *conf_alloc(size_t bytes);

void conf_ended(void *opaque, int ret);
/* Polls until @e has ended, for 60 s at most; returns whether it has. */
bool conf_wait(struct conf *c, const struct ended *e);

/* Bytes at the backend's beginning that checks work in. */
static inline int64_t conf_window(const struct conf *c)
{
    return c->length < WINDOW_MAX ? c->length : WINDOW_MAX;
}

#endif
