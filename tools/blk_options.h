/* SPDX-License-Identifier: MIT */
/* What aioctx-blk is told to do: the command line, read and checked. */
#ifndef TOOLS_BLK_OPTIONS_H
#define TOOLS_BLK_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum blk_rw { RW_READ, RW_WRITE, RW_MIXED };

struct blk_options {
    const char *file;        /* or */
    const char *backend;     /* a spec for blk_open() */
    const char *conformance; /* a spec to try, and nothing else */
    const char *monitor;     /* NULL: the library's choice */
    const char *cpus;        /* of the iothreads; NULL: any */
    const char *json;        /* path, "-" for stdout, or NULL */
    const char *rw_name;
    uint64_t size_bytes; /* 0: the whole device */
    uint64_t ios;        /* 0: no limit */
    uint64_t rate;       /* requests per second, all iothreads together; 0: closed loop */
    uint64_t seed;
    int64_t deadline_ns; /* 0: none */
    int64_t runtime_ns;  /* 0: no limit */
    uint32_t bs_bytes;
    uint32_t verify_errors_max;
    unsigned iothreads;
    unsigned iodepth; /* of each iothread */
    unsigned rwmixread;
    unsigned fsync_every; /* writes of one iothread; 0: never */
    enum blk_rw rw;
    bool random;
    bool create;
    bool direct;
    bool registered;
    bool verify;
    bool layout;
    bool expect_pattern;
    bool no_progress;
};

/*
 * Reads the command line into *@ret_opt.
 * Returns -1 when there is work to do, else the status to exit with: 0 after --help and --version,
 * 2 after a message on stderr that says what was expected.
 * Lifetime: *@ret_opt points into @argv.
 */
int blk_options_parse(struct blk_options *ret_opt, int argc, char *const argv[]);

/* Whether some requests are writes; whether some are reads. */
static inline bool blk_options_writes(const struct blk_options *opt)
{
    return opt->rw == RW_WRITE || (opt->rw == RW_MIXED && opt->rwmixread < 100);
}

static inline bool blk_options_reads(const struct blk_options *opt)
{
    return opt->rw == RW_READ || (opt->rw == RW_MIXED && opt->rwmixread > 0);
}

/* Prints "aioctx-blk: MESSAGE" and a newline on stderr. */
void blk_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif

#endif
