/* SPDX-License-Identifier: MIT */
#include "blk_options.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <aioctx/block_driver.h>

#include "blk_verify.h"
#include "parse.h"

#define MAX_IOTHREADS 1024
#define MAX_IODEPTH 65536
#define MAX_BS (UINT64_C(1) << 30)
#define MAX_RATE UINT64_C(1000000000)
#define DEFAULT_RUNTIME_NS (INT64_C(10) * 1000000000)

/* clang-format off */
enum {
    OPT_FILE = 256, OPT_BACKEND, OPT_CONFORMANCE, OPT_DRIVER, OPT_SIZE, OPT_CREATE, OPT_DIRECT,
    OPT_REGISTERED, OPT_IOTHREADS, OPT_RW,
    OPT_RWMIXREAD, OPT_BS, OPT_IODEPTH, OPT_RATE, OPT_DEADLINE, OPT_VERIFY, OPT_VERIFY_ERRORS_MAX,
    OPT_LAYOUT, OPT_EXPECT_PATTERN, OPT_RUNTIME, OPT_IOS, OPT_SEED, OPT_FSYNC, OPT_MONITOR,
    OPT_CPUS, OPT_JSON, OPT_NO_PROGRESS, OPT_HELP, OPT_VERSION,
};

static const struct option long_options[] = {
    {"file", required_argument, NULL, OPT_FILE},
    {"backend", required_argument, NULL, OPT_BACKEND},
    {"conformance", required_argument, NULL, OPT_CONFORMANCE},
    {"driver", required_argument, NULL, OPT_DRIVER},
    {"size", required_argument, NULL, OPT_SIZE},
    {"create", no_argument, NULL, OPT_CREATE},
    {"direct", no_argument, NULL, OPT_DIRECT},
    {"registered", no_argument, NULL, OPT_REGISTERED},
    {"iothreads", required_argument, NULL, OPT_IOTHREADS},
    {"rw", required_argument, NULL, OPT_RW},
    {"rwmixread", required_argument, NULL, OPT_RWMIXREAD},
    {"bs", required_argument, NULL, OPT_BS},
    {"iodepth", required_argument, NULL, OPT_IODEPTH},
    {"rate", required_argument, NULL, OPT_RATE},
    {"deadline", required_argument, NULL, OPT_DEADLINE},
    {"verify", required_argument, NULL, OPT_VERIFY},
    {"verify-errors-max", required_argument, NULL, OPT_VERIFY_ERRORS_MAX},
    {"layout", no_argument, NULL, OPT_LAYOUT},
    {"expect-pattern", no_argument, NULL, OPT_EXPECT_PATTERN},
    {"runtime", required_argument, NULL, OPT_RUNTIME},
    {"ios", required_argument, NULL, OPT_IOS},
    {"seed", required_argument, NULL, OPT_SEED},
    {"fsync", required_argument, NULL, OPT_FSYNC},
    {"monitor", required_argument, NULL, OPT_MONITOR},
    {"cpus", required_argument, NULL, OPT_CPUS},
    {"json", required_argument, NULL, OPT_JSON},
    {"no-progress", no_argument, NULL, OPT_NO_PROGRESS},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

/* clang-format on */

static const char short_usage[] =
    "usage: aioctx-blk (--file PATH | --backend SPEC | --conformance SPEC) [options]\n"
    "try:   aioctx-blk --file disk.img --size 1G --create --rw randrw --verify crc32c\n"
    "       aioctx-blk --help\n";

static const char help[] =
    "usage: aioctx-blk (--file PATH | --backend SPEC) [options]\n"
    "       aioctx-blk --conformance SPEC [--driver FILE] [--monitor NAME] [--seed N]\n"
    "Issues timed block I/O from several iothreads, each with an event loop of its own, and\n"
    "reports rates, latencies and missed deadlines for each.\n"
    "\n"
    "What to work on (one of the first two is needed):\n"
    "  --file PATH            a file or block device\n"
    "  --backend SPEC         any driver, such as 'null://?size=1G&latency-ns=10000', or filters\n"
    "                         over one, such as 'throttle:iops=1000,file:disk.img'\n"
    "  --conformance SPEC     instead: try whether a driver does all that it must, and overwrite\n"
    "                         what is in the backend; prints a line for each check (TAP)\n"
    "  --driver FILE          load a driver from a shared module first; may be repeated\n"
    "  --size SIZE            how much of it to use [all]; with --create also the file's size\n"
    "  --create               make the file when it is not there, or extend it (with --file and\n"
    "                         --size)\n"
    "  --direct               bypass the page cache (with --file)\n"
    "  --registered           register file and buffers with the rings (with --file)\n"
    "\n"
    "What to do:\n"
    "  --rw KIND              read, write, rw: one after the other; randread, randwrite, randrw:\n"
    "                         in random order [randread]\n"
    "  --rwmixread PERCENT    how many of the requests of rw and randrw are reads [50]\n"
    "  --bs SIZE              bytes of one request, a multiple of 512 [4k]\n"
    "  --iothreads N          threads, each with an equal region of its own [1]\n"
    "  --iodepth N            requests in flight at once, for each iothread [32]\n"
    "  --rate N               open loop: issue N requests a second, all iothreads together, each\n"
    "                         at its scheduled time; latency counts from then.  Without it:\n"
    "                         closed loop, the next request follows when one ends\n"
    "  --deadline DURATION    end a request after that long with a missed deadline, counted from\n"
    "                         its scheduled time (open loop) or submission (closed loop)\n"
    "  --fsync N              flush after every N writes of an iothread, one flush at a time\n"
    "  --runtime DURATION     stop after that long [10s; without limit when --ios is given]\n"
    "  --ios N                stop after N reads and writes, all iothreads together\n"
    "  --seed N               of the random choices [1]; it repeats them, not the timing\n"
    "\n"
    "Checking what is read:\n"
    "  --verify KIND          crc32c: write a pattern that describes itself and check every read;\n"
    "                         none [none]\n"
    "  --layout               first write every block once; not part of the measurement\n"
    "  --expect-pattern       every block holds the pattern already, from an earlier run with\n"
    "                         --layout: all else is a mismatch (with --verify crc32c)\n"
    "  --verify-errors-max N  stop when an iothread has found N mismatches [1]\n"
    "\n"
    "How:\n"
    "  --monitor NAME         io_uring, epoll or ppoll; the last two read and write files on the\n"
    "                         thread pool [the first that can be had]\n"
    "  --cpus LIST            processors that the iothreads run on, such as 0-3,7 [any]\n"
    "  --json FILE            write configuration and results as JSON too; '-': to standard\n"
    "                         output, and the table to standard error\n"
    "  --no-progress          no progress line (there is none anyway when stderr is no terminal)\n"
    "  --help, --version\n"
    "\n"
    "SIZE takes k, M, G and T (powers of 1024), --rate takes k and M (powers of 1000), DURATION\n"
    "is a number with ns, us, ms, s, m or h.\n"
    "\n"
    "The first Ctrl-C or SIGTERM ends the run and prints the table, a second one quits at once.\n"
    "Exit status: 0 done; 1 I/O error, mismatch or a report that could not be written; 2 wrong\n"
    "option, size or file; 130 after Ctrl-C, 143 after SIGTERM (128 + the signal).\n";

void blk_complain(const char *fmt, ...)
{
    va_list ap;

    fputs("aioctx-blk: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

/* ---- One option ------------------------------------------------------------------------------ */

static bool take_number(const char *name, const char *text, uint64_t min, uint64_t max,
                        uint64_t *ret_number)
{
    uint64_t number;

    if (!parse_number(text, &number) || number < min || number > max) {
        if (max == UINT64_MAX) {
            blk_complain("--%s '%s': expected a number, %" PRIu64 " or more", name, text, min);
        } else {
            blk_complain("--%s '%s': expected a number from %" PRIu64 " to %" PRIu64, name, text,
                         min, max);
        }
        return false;
    }
    *ret_number = number;
    return true;
}

static bool take_unsigned(const char *name, const char *text, unsigned min, unsigned max,
                          unsigned *ret_number)
{
    uint64_t number;

    if (!take_number(name, text, min, max, &number)) {
        return false;
    }
    *ret_number = (unsigned)number;
    return true;
}

static bool take_size(const char *name, const char *text, uint64_t max, uint64_t *ret_bytes)
{
    uint64_t bytes;

    if (!parse_size(text, &bytes) || bytes == 0 || bytes % VERIFY_SECTOR_BYTES || bytes > max) {
        blk_complain("--%s '%s': expected a size such as 4k or 1G, a multiple of %d bytes%s", name,
                     text, VERIFY_SECTOR_BYTES, max < INT64_MAX ? ", at most 1G" : "");
        return false;
    }
    *ret_bytes = bytes;
    return true;
}

static bool take_bs(struct blk_options *opt, const char *text)
{
    uint64_t bytes;

    if (!take_size("bs", text, MAX_BS, &bytes)) {
        return false;
    }
    opt->bs_bytes = (uint32_t)bytes;
    return true;
}

static bool take_duration(const char *name, const char *text, int64_t *ret_ns)
{
    int64_t ns;

    if (!parse_duration(text, &ns) || ns == 0) {
        blk_complain("--%s '%s': expected a duration above 0 with a unit, such as 50ms or 5s "
                     "(ns, us, ms, s, m, h)",
                     name, text);
        return false;
    }
    *ret_ns = ns;
    return true;
}

static bool take_rate(const char *text, uint64_t *ret_rate)
{
    uint64_t rate;

    if (!parse_rate(text, &rate) || rate == 0 || rate > MAX_RATE) {
        blk_complain(
            "--rate '%s': expected requests per second, such as 20000 or 20k, at most 1000M", text);
        return false;
    }
    *ret_rate = rate;
    return true;
}

static bool take_rw(struct blk_options *opt, const char *text)
{
    static const struct {
        const char *name;
        enum blk_rw rw;
        bool random;
    } kinds[] = {
        { "read", RW_READ, false },      { "write", RW_WRITE, false },
        { "rw", RW_MIXED, false },       { "randread", RW_READ, true },
        { "randwrite", RW_WRITE, true }, { "randrw", RW_MIXED, true },
    };

    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(text, kinds[i].name) == 0) {
            opt->rw_name = kinds[i].name;
            opt->rw = kinds[i].rw;
            opt->random = kinds[i].random;
            return true;
        }
    }
    blk_complain("--rw '%s': expected read, write, rw, randread, randwrite or randrw", text);
    return false;
}

static bool take_verify(struct blk_options *opt, const char *text)
{
    if (strcmp(text, "crc32c") != 0 && strcmp(text, "none") != 0) {
        blk_complain("--verify '%s': expected crc32c or none", text);
        return false;
    }
    opt->verify = strcmp(text, "crc32c") == 0;
    return true;
}

static bool take_monitor(struct blk_options *opt, const char *text)
{
    if (strcmp(text, "io_uring") != 0 && strcmp(text, "epoll") != 0 && strcmp(text, "ppoll") != 0) {
        blk_complain("--monitor '%s': expected io_uring, epoll or ppoll", text);
        return false;
    }
    opt->monitor = text;
    return true;
}

static bool take_text(const char *name, const char *text, const char **ret_text)
{
    if (!*text) {
        blk_complain("--%s '': expected a name that is not empty", name);
        return false;
    }
    *ret_text = text;
    return true;
}

static bool take_driver(const char *path)
{
    char *why = NULL;

    if (blk_driver_load(path, NULL, &why) < 0) {
        blk_complain("--driver: %s", why ? why : "out of memory");
        free(why);
        return false;
    }
    return true;
}

static bool take_flag(bool *ret_flag)
{
    *ret_flag = true;
    return true;
}

/* clang-format off: a table in all but name */
static bool take_option(struct blk_options *opt, int code, const char *text)
{
    switch (code) {
    case OPT_FILE:
        return take_text("file", text, &opt->file);
    case OPT_BACKEND:
        return take_text("backend", text, &opt->backend);
    case OPT_CONFORMANCE:
        return take_text("conformance", text, &opt->conformance);
    case OPT_SIZE:
        return take_size("size", text, INT64_MAX, &opt->size_bytes);
    case OPT_CREATE:
        return take_flag(&opt->create);
    case OPT_DIRECT:
        return take_flag(&opt->direct);
    case OPT_REGISTERED:
        return take_flag(&opt->registered);
    case OPT_IOTHREADS:
        return take_unsigned("iothreads", text, 1, MAX_IOTHREADS, &opt->iothreads);
    case OPT_RW:
        return take_rw(opt, text);
    case OPT_RWMIXREAD:
        return take_unsigned("rwmixread", text, 0, 100, &opt->rwmixread);
    case OPT_BS:
        return take_bs(opt, text);
    case OPT_IODEPTH:
        return take_unsigned("iodepth", text, 1, MAX_IODEPTH, &opt->iodepth);
    case OPT_RATE:
        return take_rate(text, &opt->rate);
    case OPT_DEADLINE:
        return take_duration("deadline", text, &opt->deadline_ns);
    case OPT_VERIFY:
        return take_verify(opt, text);
    case OPT_VERIFY_ERRORS_MAX:
        return take_unsigned("verify-errors-max", text, 1, UINT32_MAX, &opt->verify_errors_max);
    case OPT_LAYOUT:
        return take_flag(&opt->layout);
    case OPT_EXPECT_PATTERN:
        return take_flag(&opt->expect_pattern);
    case OPT_RUNTIME:
        return take_duration("runtime", text, &opt->runtime_ns);
    case OPT_IOS:
        return take_number("ios", text, 1, UINT64_MAX, &opt->ios);
    case OPT_SEED:
        return take_number("seed", text, 0, UINT64_MAX, &opt->seed);
    case OPT_FSYNC:
        return take_unsigned("fsync", text, 1, UINT32_MAX, &opt->fsync_every);
    case OPT_DRIVER:
        return take_driver(text);
    case OPT_MONITOR:
        return take_monitor(opt, text);
    case OPT_CPUS:
        opt->cpus = text; /* the library says what is wrong with it */
        return true;
    case OPT_JSON:
        return take_text("json", text, &opt->json);
    default:
        return take_flag(&opt->no_progress);
    }
}

/* clang-format on */

/* ---- All of them together -------------------------------------------------------------------- */

/* What does not go together, in the order in which a reader of the command line would see it. */
static const char *conflict(const struct blk_options *opt, bool mix_given)
{
    if (opt->conformance) {
        return opt->file || opt->backend ? "--conformance goes without --file and --backend" : NULL;
    }
    if (!opt->file && !opt->backend) {
        return "nothing to work on: expected --file PATH or --backend SPEC";
    }
    if (opt->file && opt->backend) {
        return "--file and --backend: expected only one of them";
    }
    if (opt->backend && (opt->create || opt->direct || opt->registered)) {
        return "--create, --direct and --registered go with --file; a --backend spec has its own: "
               "'file:PATH?create=on&size=1G&direct=on&registered=on'";
    }
    if (opt->create && !opt->size_bytes) {
        return "--create: expected --size too, the size of the file to make";
    }
    if (mix_given && opt->rw != RW_MIXED) {
        return "--rwmixread: expected --rw rw or --rw randrw with it";
    }
    if (opt->fsync_every && !blk_options_writes(opt)) {
        return "--fsync: expected a --rw that writes";
    }
    if (opt->expect_pattern && !opt->verify) {
        return "--expect-pattern: expected --verify crc32c with it";
    }
    if (opt->expect_pattern && (opt->layout || opt->create)) {
        return "--expect-pattern is for a file laid out by an earlier run: expected neither "
               "--layout nor --create with it";
    }
    return NULL;
}

/* What getopt_long() did not understand. */
static void complain_of_option(int code, char *const argv[])
{
    const char *word = argv[optind - 1];

    if (code == ':') {
        blk_complain("option '%s': expected a value", word);
    } else if (optopt >= OPT_FILE) {
        blk_complain("option '%s': expected no value", word);
    } else if (optopt) {
        blk_complain("unknown option '-%c'; --help lists the options", optopt);
    } else {
        blk_complain("unknown option '%s'; --help lists the options", word);
    }
}

int blk_options_parse(struct blk_options *ret_opt, int argc, char *const argv[])
{
    struct blk_options opt = {
        .rw_name = "randread",
        .rw = RW_READ,
        .random = true,
        .rwmixread = 50,
        .bs_bytes = 4096,
        .iothreads = 1,
        .iodepth = 32,
        .seed = 1,
        .verify_errors_max = 1,
    };
    bool mix_given = false;
    const char *why;
    int code;

    if (argc < 2) {
        fputs(short_usage, stderr);
        return 2;
    }
    opterr = 0;
    while ((code = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (code == OPT_HELP) {
            fputs(help, stdout);
            return fflush(stdout) ? 1 : 0;
        }
        if (code == OPT_VERSION) {
            puts("aioctx-blk " AIOCTX_VERSION);
            return fflush(stdout) ? 1 : 0;
        }
        if (code == '?' || code == ':') {
            complain_of_option(code, argv);
            return 2;
        }
        if (!take_option(&opt, code, optarg)) {
            return 2;
        }
        mix_given = mix_given || code == OPT_RWMIXREAD;
    }
    if (optind < argc) {
        blk_complain("'%s': expected an option; a file is named with --file", argv[optind]);
        return 2;
    }
    why = conflict(&opt, mix_given);
    if (why) {
        blk_complain("%s", why);
        return 2;
    }
    if (!opt.runtime_ns && !opt.ios) {
        opt.runtime_ns = DEFAULT_RUNTIME_NS;
    }
    *ret_opt = opt;
    return -1;
}
