/* SPDX-License-Identifier: MIT */
/*
 * What aioctx-blk is told to do: the options of the command line and of a job file.
 *
 * Both are read by one parser: a line "bs=4k" of a job file is the option --bs 4k.  What stands on
 * the command line holds for every job, and wins over the file.
 */
#ifndef TOOLS_BLK_OPTIONS_H
#define TOOLS_BLK_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

#include "blk_mix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of one job. */
struct blk_options {
    const char *name;    /* NULL: the only one, of the command line */
    const char *from;    /* the job file, or NULL */
    unsigned line;       /* of its section */
    const char *file;    /* or */
    const char *backend; /* a spec for blk_open() */
    const char *monitor; /* NULL: the library's choice */
    const char *cpus;    /* of the iothreads; NULL: any */
    const char *replay;  /* a trace */
    const char *rw_name; /* "randread" and so on; "mix" with --mix, "replay" with --replay */
    const char *bs_text, *pattern_text;
    struct blk_mix mix;
    struct blk_sizes bs;
    struct blk_pattern pattern;
    uint64_t offset_bytes; /* where the regions begin */
    uint64_t size_bytes;   /* 0: the whole device behind the offset */
    uint64_t ios;          /* 0: no limit */
    uint64_t rate;         /* requests per second, all iothreads together; 0: closed loop */
    uint64_t seed;
    int64_t deadline_ns; /* 0: none */
    int64_t runtime_ns;  /* 0: no limit */
    int64_t ramp_ns;
    double replay_speed; /* 0: as fast as it goes */
    uint32_t verify_errors_max;
    unsigned iothreads; /* 0, after reading: as many as the trace has */
    unsigned iodepth;   /* of each iothread; 0, after reading: what suits the trace */
    unsigned rwmixread;
    unsigned fsync_every; /* writes of one iothread; 0: never */
    uint64_t given;       /* a bit for each option that was given */
    bool create;
    bool direct;
    bool registered;
    bool verify;
    bool layout;
    bool expect_pattern;
};

/* What holds for the run as a whole, and its jobs. */
struct blk_command {
    const char *conformance; /* a spec to try, and nothing else */
    const char *json;        /* path, "-" for stdout, or NULL */
    const char *trace;       /* path, or NULL */
    const char *jobs_file;
    int64_t limit_ns; /* of each wait of the conformance suite */
    bool plot;
    bool no_progress;
    struct blk_options *jobs;
    unsigned nr_jobs;
    void *text; /* of the job file; the jobs point into it */
};

#define BLK_IOTHREADS_MAX 1024
#define BLK_IODEPTH_MAX 65536
#define BLK_BS_MAX (UINT32_C(1) << 30)

/*
 * Reads the command line, and the job file that it names, into *@ret_command.
 * Returns -1 when there is work to do, else the status to exit with: 0 after --help and --version,
 * 2 after a message on stderr that says what was expected.
 * Lifetime: *@ret_command points into @argv; blk_command_free().
 */
int blk_command_parse(struct blk_command *ret_command, int argc, char *const argv[]);
void blk_command_free(struct blk_command *command);

/* Whether some requests change what is on the backend; those of a trace are not known here. */
static inline bool blk_options_writes(const struct blk_options *opt)
{
    return !opt->replay && blk_mix_writes(&opt->mix);
}

/* Prints "aioctx-blk: MESSAGE" and a newline on stderr. */
void blk_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same, with the job's name when it has one. */
void blk_complain_of(const struct blk_options *opt, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- Between the sources of the options ------------------------------------------------------ */

/* One option as it was given. */
struct blk_setting {
    int code;         /* of enum blk_option_code */
    const char *name; /* without dashes */
    const char *text; /* NULL: none was given */
    const char *file; /* NULL: the command line */
    unsigned line;
};

/* clang-format off */
enum blk_option_code {
    OPT_FILE = 256, OPT_BACKEND, OPT_DRIVER, OPT_SIZE, OPT_OFFSET, OPT_CREATE, OPT_DIRECT,
    OPT_REGISTERED, OPT_IOTHREADS, OPT_RW, OPT_RWMIXREAD, OPT_MIX, OPT_PATTERN, OPT_BS,
    OPT_IODEPTH, OPT_RATE, OPT_DEADLINE, OPT_VERIFY, OPT_VERIFY_ERRORS_MAX, OPT_LAYOUT,
    OPT_EXPECT_PATTERN, OPT_RAMP, OPT_RUNTIME, OPT_IOS, OPT_SEED, OPT_FSYNC, OPT_MONITOR,
    OPT_CPUS, OPT_REPLAY, OPT_REPLAY_SPEED,
    /* From here on not for a job. */
    OPT_CONFORMANCE, OPT_LIMIT, OPT_JOBS, OPT_JSON, OPT_TRACE, OPT_PLOT, OPT_NO_PROGRESS, OPT_HELP,
    OPT_VERSION,
};
/* clang-format on */

static inline bool blk_option_given(const struct blk_options *opt, int code)
{
    return opt->given >> (code - OPT_FILE) & 1;
}

/* getopt_long()'s table. */
extern const struct option blk_long_options[];

/* Complains of a setting, naming file and line when it has them.  Returns false. */
bool blk_refuse(const struct blk_setting *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

void blk_options_init(struct blk_options *opt);

/* Takes one setting of a job.  Returns false after a message. */
bool blk_options_take(struct blk_options *opt, const struct blk_setting *s);

/* Takes one setting that is not for a job.  Returns false after a message. */
bool blk_command_take(struct blk_command *command, const struct blk_setting *s);

/* When all of a job has been taken: looks whether it goes together, and fills in what follows from
 * the rest.  Returns false after a message. */
bool blk_options_finish(struct blk_options *opt);

/* Reads the job file into @command; the @nr_over settings @over go over each job.  Returns false
 * after a message. */
bool blk_jobfile_read(struct blk_command *command, const struct blk_setting *over,
                      unsigned nr_over);

#ifdef __cplusplus
}
#endif

#endif
