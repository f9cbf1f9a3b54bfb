/* SPDX-License-Identifier: MIT */
/*
 * aioctx-top: what the loops of a running program do, live.
 *
 * It reads the file that the library keeps its counters in (top_source.h); the program that is
 * looked at does not notice.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "parse.h"
#include "top_show.h"
#include "top_source.h"

static const char help[] =
    "Usage: aioctx-top [OPTION]... PID\n"
    "Shows what each AioContext of the running process PID does, once a second.\n"
    "\n"
    "  -i, --interval T   how long between two looks: 10ms to 1h, as 500ms, 2s, 1m (1s)\n"
    "  -n, --count N      end after N tables\n"
    "  -1, --once         the same as --count 1: one table, of one interval\n"
    "  -j, --json         JSON instead of tables: an object for each\n"
    "  -h, --help         this\n"
    "  -V, --version      the version\n"
    "\n"
    "THREAD   name of the context's home thread; (new): none has polled it yet; (ended)\n"
    "TID      that thread's number; MONITOR: what the context waits with\n"
    "CPU%     of one processor, by that thread\n"
    "ITER     iterations; SLEEP: waits in the kernel that could block\n"
    "LATE50   how late timers were called: median, and LATE99: 99th percentile, rounded up to\n"
    "         one less than a power of two ns; '-' without timers, or while histograms are off\n"
    "         (AIOCTX_HISTOGRAMS=on, or aio_context_set_histograms(), switches them on)\n"
    "W-NTFY   sleeps that a notify ended, W-EVNT: an fd or a completion, W-TIME: a deadline\n"
    "N-SENT   notifies that made a system call, N-SAVD: that needed none\n"
    "TIMERS   passes over the timers that ran some; BHS: bottom halves; FDS: fd handlers called\n"
    "CQES     completions of the ring; CALLS: system calls of the loop\n"
    "STALLS   callbacks that held the loop for the limit or longer, since it began\n"
    "All but CPU%, the latenesses and STALLS are a second.  JSON has totals, too.\n"
    "\n"
    "PID has to run as the same user, or aioctx-top as root.\n"
    "Exit status: 0, also after Ctrl-C and when PID ends or runs another program; 1 when PID\n"
    "cannot be looked into; 2 a wrong option.\n";

struct options {
    int pid;
    int64_t interval_ns;
    uint64_t count; /* 0: no end */
    bool json;
};

static _Noreturn void bad_option(const char *what, const char *value, const char *expected)
{
    fprintf(stderr, "aioctx-top: %s: '%s' is not %s\n", what, value, expected);
    exit(2);
}

static _Noreturn void bad_usage(const char *option, const char *what)
{
    fprintf(stderr, "aioctx-top: option '%s' %s; try 'aioctx-top --help'\n", option, what);
    exit(2);
}

static _Noreturn void print_and_exit(const char *text)
{
    fputs(text, stdout);
    exit(fflush(stdout) == 0 ? 0 : 1);
}

static void parse_pid(const char *text, struct options *opt)
{
    uint64_t pid;

    if (!parse_number(text, &pid) || pid < 1 || pid > INT32_MAX) {
        bad_option("PID", text, "the number of a process");
    }
    opt->pid = (int)pid;
}

static struct options parse_options(int argc, char **argv)
{
    static const struct option longs[] = {
        { "interval", required_argument, NULL, 'i' },
        { "count", required_argument, NULL, 'n' },
        { "once", no_argument, NULL, '1' },
        { "json", no_argument, NULL, 'j' },
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { 0 },
    };
    struct options opt = { .interval_ns = 1000000000 };
    int c;

    while ((c = getopt_long(argc, argv, ":i:n:1jhV", longs, NULL)) != -1) {
        switch (c) {
        case 'i':
            if (!parse_duration(optarg, &opt.interval_ns) || opt.interval_ns < 10000000 ||
                opt.interval_ns > INT64_C(3600000000000)) {
                bad_option("--interval", optarg, "a time from 10ms to 1h, such as 500ms or 2s");
            }
            break;
        case 'n':
            if (!parse_number(optarg, &opt.count) || opt.count == 0) {
                bad_option("--count", optarg, "a number of tables, 1 or more");
            }
            break;
        case '1':
            opt.count = 1;
            break;
        case 'j':
            opt.json = true;
            break;
        case 'h':
            print_and_exit(help);
        case 'V':
            print_and_exit("aioctx-top " AIOCTX_VERSION "\n");
        case ':':
            bad_usage(argv[optind - 1], "needs a value");
        default:
            bad_usage(argv[optind - 1], "is none, or takes no value");
        }
    }
    if (argc - optind != 1) {
        fprintf(stderr, "aioctx-top: %s\n",
                optind == argc ? "the PID of a process is missing; try 'aioctx-top --help'"
                               : "one PID at a time");
        exit(2);
    }
    parse_pid(argv[optind], &opt);
    return opt;
}

/* ---- Running --------------------------------------------------------------------------------- */

/* Waits until @until_ns, or until we are told to end: then returns false. */
static bool wait_until(int64_t until_ns, const sigset_t *ends)
{
    struct timespec now, left;
    int64_t ns;
    int sig;

    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
        ns = until_ns - (now.tv_sec * INT64_C(1000000000) + now.tv_nsec);
        ns = ns > 0 ? ns : 0;
        left = (struct timespec){ ns / 1000000000, ns % 1000000000 };
        sig = sigtimedwait(ends, NULL, &left);
    } while (sig < 0 && errno == EINTR);
    return sig < 0;
}

static unsigned terminal_columns(void)
{
    struct winsize size = { 0 };

    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

static void show(const struct options *opt, bool terminal, bool first,
                 const struct top_source *source, const struct top_sample *before,
                 const struct top_sample *now)
{
    if (opt->json) {
        top_show_json(stdout, source, before, now);
    } else if (terminal) {
        fputs(first ? "\033[H\033[2J" : "\033[H", stdout);
        top_show_table(stdout, source, before, now, terminal_columns(), "\033[K\n");
        fputs("\033[J", stdout);
    } else {
        fputs(first ? "" : "\n", stdout);
        top_show_table(stdout, source, before, now, 0, "\n");
    }
    fflush(stdout);
}

static int ended(const struct options *opt, int err, uint64_t shown)
{
    if (err == -ESRCH) {
        fprintf(stderr, "aioctx-top: process %d has ended\n", opt->pid);
        return shown ? 0 : 1;
    }
    if (err == -ESTALE) {
        fprintf(stderr, "aioctx-top: process %d runs another program now\n", opt->pid);
        return shown ? 0 : 1;
    }
    fprintf(stderr, "aioctx-top: %s\n", strerror(-err));
    return 1;
}

static int run(const struct options *opt, struct top_source *source, const sigset_t *ends)
{
    struct top_sample samples[2] = { { 0 } };
    bool terminal = isatty(STDOUT_FILENO) && opt->count != 1;
    int ret = 0, err = top_source_read(source, &samples[0]);
    uint64_t shown = 0;

    while (err == 0 && !ferror(stdout)) {
        struct top_sample *before = &samples[shown & 1], *now = &samples[~shown & 1];

        if (!wait_until(before->time_ns + opt->interval_ns, ends)) {
            break;
        }
        err = top_source_read(source, now);
        if (err == 0) {
            show(opt, terminal, shown == 0, source, before, now);
            shown++;
        }
        if (opt->count && shown == opt->count) {
            break;
        }
    }
    if (err < 0) {
        ret = ended(opt, err, shown);
    } else if (ferror(stdout)) {
        fprintf(stderr, "aioctx-top: the output cannot be written\n");
        ret = 1;
    }
    top_sample_clear(&samples[0]);
    top_sample_clear(&samples[1]);
    return ret;
}

int main(int argc, char **argv)
{
    struct options opt = parse_options(argc, argv);
    struct top_source source;
    char *why = NULL;
    sigset_t ends;
    int ret;

    /* Waited for, so that a table is never left half written. */
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    if (top_source_open(&source, opt.pid, &why) < 0) {
        fprintf(stderr, "aioctx-top: %s\n", why ? why : "out of memory");
        free(why);
        return 1;
    }
    ret = run(&opt, &source, &ends);
    top_source_close(&source);
    return ret;
}
