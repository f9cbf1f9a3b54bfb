/* SPDX-License-Identifier: MIT */
/* The command line. */
#include "blk_options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_LIMIT_NS (INT64_C(60) * 1000000000)

const struct option blk_long_options[] = {
    { "file", required_argument, NULL, OPT_FILE },
    { "backend", required_argument, NULL, OPT_BACKEND },
    { "driver", required_argument, NULL, OPT_DRIVER },
    { "size", required_argument, NULL, OPT_SIZE },
    { "offset", required_argument, NULL, OPT_OFFSET },
    { "create", no_argument, NULL, OPT_CREATE },
    { "direct", no_argument, NULL, OPT_DIRECT },
    { "registered", no_argument, NULL, OPT_REGISTERED },
    { "iothreads", required_argument, NULL, OPT_IOTHREADS },
    { "rw", required_argument, NULL, OPT_RW },
    { "rwmixread", required_argument, NULL, OPT_RWMIXREAD },
    { "mix", required_argument, NULL, OPT_MIX },
    { "pattern", required_argument, NULL, OPT_PATTERN },
    { "bs", required_argument, NULL, OPT_BS },
    { "iodepth", required_argument, NULL, OPT_IODEPTH },
    { "rate", required_argument, NULL, OPT_RATE },
    { "deadline", required_argument, NULL, OPT_DEADLINE },
    { "verify", required_argument, NULL, OPT_VERIFY },
    { "verify-errors-max", required_argument, NULL, OPT_VERIFY_ERRORS_MAX },
    { "layout", no_argument, NULL, OPT_LAYOUT },
    { "expect-pattern", no_argument, NULL, OPT_EXPECT_PATTERN },
    { "ramp", required_argument, NULL, OPT_RAMP },
    { "runtime", required_argument, NULL, OPT_RUNTIME },
    { "ios", required_argument, NULL, OPT_IOS },
    { "seed", required_argument, NULL, OPT_SEED },
    { "fsync", required_argument, NULL, OPT_FSYNC },
    { "monitor", required_argument, NULL, OPT_MONITOR },
    { "cpus", required_argument, NULL, OPT_CPUS },
    { "replay", required_argument, NULL, OPT_REPLAY },
    { "replay-speed", required_argument, NULL, OPT_REPLAY_SPEED },
    { "conformance", required_argument, NULL, OPT_CONFORMANCE },
    { "limit", required_argument, NULL, OPT_LIMIT },
    { "jobs", required_argument, NULL, OPT_JOBS },
    { "json", required_argument, NULL, OPT_JSON },
    { "trace", required_argument, NULL, OPT_TRACE },
    { "plot", no_argument, NULL, OPT_PLOT },
    { "no-progress", no_argument, NULL, OPT_NO_PROGRESS },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { NULL, 0, NULL, 0 },
};

static const char short_usage[] =
    "usage: aioctx-blk (--file PATH | --backend SPEC | --jobs FILE | --conformance SPEC) "
    "[options]\n"
    "try:   aioctx-blk --file disk.img --size 1G --create --rw randrw --verify crc32c\n"
    "       aioctx-blk --help\n";

static const char help[] =
    "usage: aioctx-blk (--file PATH | --backend SPEC) [options]\n"
    "       aioctx-blk --jobs FILE [options]\n"
    "       aioctx-blk --conformance SPEC [--driver FILE] [--monitor NAME] [--seed N] [--limit "
    "DURATION]\n"
    "Issues timed block I/O from several iothreads, each with an event loop of its own, and\n"
    "reports rates, latencies and missed deadlines for each.\n"
    "\n"
    "What to work on (one of the first two is needed, for each job):\n"
    "  --file PATH            a file or block device\n"
    "  --backend SPEC         any driver, such as 'null://?size=1G&latency-ns=10000', or filters\n"
    "                         over one, such as 'throttle:iops=1000,file:disk.img'\n"
    "  --conformance SPEC     instead: try whether a driver does all that it must, and overwrite\n"
    "                         what is in the backend; prints a line for each check (TAP)\n"
    "  --driver FILE          load a driver from a shared module first; may be repeated\n"
    "  --limit DURATION       with --conformance: what has not ended by then never will [60s]\n"
    "  --size SIZE            how much of it to use [all]; with --create also the file's size\n"
    "  --offset SIZE          where that begins [0]\n"
    "  --create               make the file when it is not there, or extend it (with --file and\n"
    "                         --size)\n"
    "  --direct               bypass the page cache (with --file)\n"
    "  --registered           register file and buffers with the rings (with --file)\n"
    "\n"
    "What to do:\n"
    "  --rw KIND              read, write, rw: one after the other; randread, randwrite, randrw:\n"
    "                         in random order [randread]\n"
    "  --rwmixread PERCENT    how many of the requests of rw and randrw are reads [50]\n"
    "  --mix KIND=WEIGHT,...  instead of --rw: of read, write, flush, discard, zeroes, status,\n"
    "                         such as read=70,write=28,flush=2\n"
    "  --pattern PATTERN      where requests go: random, sequential, zipf:THETA (few places get\n"
    "                         most of them; 0.99), hot:90/10 (90 % of the requests go to the\n"
    "                         first 10 % of the space) [as --rw says; random with --mix]\n"
    "  --bs SIZE              bytes of one request, a multiple of 512; 4k-64k: from 4k to 64k, in\n"
    "                         multiples of 4k; 4k/60:64k/40: these, with weights [4k]\n"
    "  --iothreads N          threads, each with an equal region of its own [1]\n"
    "  --iodepth N            requests in flight at once, for each iothread [32]\n"
    "  --rate N               open loop: issue N requests a second, all iothreads together, each\n"
    "                         at its scheduled time; latency counts from then.  Without it:\n"
    "                         closed loop, the next request follows when one ends\n"
    "  --deadline DURATION    end a request after that long with a missed deadline, counted from\n"
    "                         its scheduled time (open loop) or submission (closed loop)\n"
    "  --fsync N              flush after every N writes of an iothread, one flush at a time\n"
    "  --ramp DURATION        first run so long without measuring\n"
    "  --runtime DURATION     stop after that long [10s; without limit with --ios and --replay]\n"
    "  --ios N                stop after N requests, all iothreads together\n"
    "  --replay FILE          instead: repeat the requests of a trace, each at its time: one\n"
    "                         that --trace has written, or an iolog of fio, version 2 or 3.\n"
    "                         --iothreads [as in the trace] and --iodepth [256, or less] bound\n"
    "                         what goes at once; what began late is counted\n"
    "  --replay-speed X       so many times as fast [1]; max: as fast as it goes\n"
    "  --jobs FILE            run several jobs at once: [NAME] begins one, and lines such as\n"
    "                         bs=4k or layout are its options; [global] holds for the jobs that\n"
    "                         follow; what stands on the command line wins\n"
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
    "  --trace FILE           write a line for each request\n"
    "  --plot                 draw histograms of the latency\n"
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

/* What getopt_long() did not understand. */
static void complain_of_option(int code, char *const argv[])
{
    const char *word = argv[optind - 1];

    if (code == ':') {
        blk_complain("option '%s': expected a value", word);
    } else if (optopt >= (int)OPT_FILE) {
        blk_complain("option '%s': expected no value", word);
    } else if (optopt) {
        blk_complain("unknown option '-%c'; --help lists the options", optopt);
    } else {
        blk_complain("unknown option '%s'; --help lists the options", word);
    }
}

static const char *name_of(int code)
{
    const struct option *o = blk_long_options;

    while (o->val != code) {
        o++;
    }
    return o->name;
}

/* Looks at every word: what is for a job goes to @settings.  Returns as blk_command_parse(). */
static int read_words(struct blk_command *command, struct blk_setting *settings, unsigned *ret_nr,
                      int argc, char *const argv[])
{
    int code;

    opterr = 0;
    while ((code = getopt_long(argc, argv, ":", blk_long_options, NULL)) != -1) {
        struct blk_setting s = { .code = code, .text = optarg };

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
        s.name = name_of(code);
        if (code < OPT_CONFORMANCE) {
            settings[(*ret_nr)++] = s;
        } else if (!blk_command_take(command, &s)) {
            return 2;
        }
    }
    if (optind < argc) {
        blk_complain("'%s': expected an option; a file is named with --file", argv[optind]);
        return 2;
    }
    return -1;
}

/* The one job that the command line is. */
static bool make_only_job(struct blk_command *command, const struct blk_setting *settings,
                          unsigned nr)
{
    struct blk_options *opt = calloc(1, sizeof(*opt));

    if (!opt) {
        blk_complain("out of memory");
        return false;
    }
    command->jobs = opt;
    command->nr_jobs = 1;
    blk_options_init(opt);
    for (unsigned i = 0; i < nr; i++) {
        if (!blk_options_take(opt, &settings[i])) {
            return false;
        }
    }
    if (command->conformance) {
        if (opt->file || opt->backend) {
            blk_complain("--conformance goes without --file and --backend");
            return false;
        }
        return true;
    }
    return blk_options_finish(opt);
}

static bool make_jobs(struct blk_command *command, const struct blk_setting *settings, unsigned nr)
{
    if (command->conformance && command->jobs_file) {
        blk_complain("--conformance goes without --jobs");
        return false;
    }
    return command->jobs_file ? blk_jobfile_read(command, settings, nr)
                              : make_only_job(command, settings, nr);
}

int blk_command_parse(struct blk_command *ret_command, int argc, char *const argv[])
{
    struct blk_command command = { .limit_ns = DEFAULT_LIMIT_NS };
    struct blk_setting *settings;
    unsigned nr = 0;
    int status;

    if (argc < 2) {
        fputs(short_usage, stderr);
        return 2;
    }
    settings = calloc((size_t)argc, sizeof(*settings)); /* no more options than words */
    if (!settings) {
        blk_complain("out of memory");
        return 2;
    }
    status = read_words(&command, settings, &nr, argc, argv);
    if (status < 0 && !make_jobs(&command, settings, nr)) {
        status = 2;
    }
    free(settings);
    if (status < 0) {
        *ret_command = command;
    } else {
        blk_command_free(&command);
    }
    return status;
}

void blk_command_free(struct blk_command *command)
{
    free(command->jobs);
    free(command->text);
    command->jobs = NULL;
    command->text = NULL;
}
