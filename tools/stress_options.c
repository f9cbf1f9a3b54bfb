/* SPDX-License-Identifier: MIT */
/* aioctx-stress: its options.  A wrong one gets one line that says what was expected. */
#include "stress_wakes.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *name;
    unsigned weight; /* without --mix */
} mix_ops[OP_MIX_MAX] = {
    [OP_MOD] = { "mod", 40 },          [OP_ANTICIPATE] = { "anticipate", 15 },
    [OP_RANGE] = { "range", 10 },      [OP_FORWARD] = { "forward", 10 },
    [OP_DEL] = { "del", 12 },          [OP_DEL_SYNC] = { "del-sync", 8 },
    [OP_FREE] = { "free", 5 },         [OP_EMBED] = { "embed", 10 },
    [OP_READ] = { "read", 10 },        [OP_WALK] = { "walk", 3 },
    [OP_DEADLINE] = { "deadline", 4 }, [OP_DISABLE] = { "disable", 2 },
    [OP_STOP] = { "stop", 2 },         [OP_LISTS] = { "lists", 2 },
    [OP_CONTEXTS] = { "contexts", 1 },
};

static const struct {
    const char *name;
    unsigned weight;
} mix_wakes[STRESS_WAKES] = {
    [WAKE_NOTIFY] = { "notify", 30 }, [WAKE_BH] = { "bh", 20 },
    [WAKE_EVENT] = { "event", 8 },    [WAKE_ONESHOT] = { "oneshot", 15 },
    [WAKE_IDLE] = { "idle", 1 },      [WAKE_TIMER] = { "timer", 15 },
    [WAKE_FD] = { "fd", 4 },          [WAKE_REMOVE] = { "remove", 4 },
    [WAKE_SIGNAL] = { "signal", 8 },
};
static_assert(WAKE_MAX == STRESS_WAKES, "one weight for each way to wake a loop");

/* ---- Options --------------------------------------------------------------------------------- */

static const char help[] =
    "Usage: aioctx-stress [OPTION]...\n"
    "Races timer operations of many threads on the timers of several iothreads and checks that a\n"
    "valid order of them explains every result and every firing: never early, never twice for one\n"
    "arming, never after timer_del_sync() returned, none lost, no freed timer touched.\n"
    "Meanwhile clocks are disabled and stopped, and lists and contexts come and go.\n"
    "With --mode notify: wakes sleeping loops in every way there is, and checks that no wake-up\n"
    "is lost.\n"
    "\n"
    "      --mode M         timers or notify (timers)\n"
    "  -s, --seconds S    how long to run (10); a fraction is allowed\n"
    "      --seed N       repeats the operations and the delays of each thread.  It does not\n"
    "                     repeat how the threads interleave, which the machine decides (random)\n"
    "  -t, --threads N    threads that operate, 1 to 30 (4)\n"
    "  -c, --contexts N   iothreads that the timers belong to, or loops that are woken, 1 to 30\n"
    "                     (2; notify: 3)\n"
    "  -n, --timers N     timers that all threads share, 1 to 100000 (16)\n"
    "      --monitor M    io_uring, epoll, ppoll, all (in turn), or auto: the library's choice\n"
    "                     (auto)\n"
    "      --cpus LIST    timers: processors that the iothreads run on, such as 0-3,7 (any)\n"
    "      --mix OP=W,... how often each operation is chosen, relative to the others; those not\n"
    "                     named are not used.  (mod=40,anticipate=15,range=10,forward=10,del=12,\n"
    "                     del-sync=8,free=5,embed=10,read=10,walk=3,deadline=4,disable=2,stop=2,\n"
    "                     lists=2,contexts=1; notify: notify=30,bh=20,event=8,oneshot=15,idle=1,\n"
    "                     timer=15,fd=4,remove=4,signal=8)\n"
    "      --limit S      notify: after this many seconds, 0.1 to 1000, what no loop has seen is\n"
    "                     lost (5)\n"
    "      --plant NAME   put a bug between the operations and the library; it must be found.\n"
    "                     The bug says which mode\n"
    "      --list-plants  the bugs there are\n"
    "  -q, --quiet        print nothing but the seed and violations\n"
    "  -h, --help         this\n"
    "\n"
    "Exit status: 0 nothing wrong, also after Ctrl-C; 1 a violation, printed with the operations\n"
    "around it; 2 a wrong option, or it cannot run here.\n";

static _Noreturn void bad_option(const char *name, const char *value, const char *expected)
{
    fprintf(stderr, "aioctx-stress: --%s: '%s' is not %s\n", name, value, expected);
    exit(2);
}

static uint64_t parse_number(const char *name, const char *s, uint64_t min, uint64_t max,
                             const char *expected)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(s, &end, 0);
    if (*s < '0' || *s > '9' || *end || errno || v < min || v > max) {
        bad_option(name, s, expected);
    }
    return v;
}

static double parse_seconds(const char *name, const char *s, double min, double max,
                            const char *expected)
{
    char *end;
    double v = strtod(s, &end);

    if (end == s || *end || !(v >= min && v <= max)) {
        bad_option(name, s, expected);
    }
    return v;
}

static void parse_mode(struct options *opt, const char *s)
{
    if (strcmp(s, "timers") && strcmp(s, "notify")) {
        bad_option("mode", s, "timers or notify");
    }
    opt->mode = strcmp(s, "notify") ? MODE_TIMERS : MODE_NOTIFY;
}

/* The number of an operation of the mode's mix; -1: there is none of that name. */
static int find_op(enum mode mode, const char *name)
{
    int n = mode == MODE_NOTIFY ? STRESS_WAKES : OP_MIX_MAX;

    for (int i = 0; i < n; i++) {
        if (!strcmp(name, mode == MODE_NOTIFY ? mix_wakes[i].name : mix_ops[i].name)) {
            return i;
        }
    }
    return -1;
}

static void parse_mix(struct options *opt, const char *value)
{
    static const char expected[] =
        "a list like mod=40,del=12; --help shows each mode's operations, weights are 0 to 1000";
    unsigned *mix = opt->mode == MODE_NOTIFY ? opt->wake_mix : opt->mix;
    char *copy = strdup(value), *save = NULL;

    if (!copy) {
        exit(STRESS_CANNOT_RUN);
    }
    memset(opt->mix, 0, sizeof(opt->mix));
    memset(opt->wake_mix, 0, sizeof(opt->wake_mix));
    for (char *item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
        char *eq = strchr(item, '=');
        int op;

        if (!eq) {
            bad_option("mix", value, expected);
        }
        *eq = '\0';
        op = find_op(opt->mode, item);
        if (op < 0) {
            bad_option("mix", value, expected);
        }
        mix[op] = (unsigned)parse_number("mix", eq + 1, 0, 1000, "a weight from 0 to 1000");
    }
    free(copy);
}

static void parse_monitor(struct options *opt, const char *s)
{
    static const char *const known[] = { "io_uring", "epoll", "ppoll", "all", "auto" };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (!strcmp(s, known[i])) {
            opt->monitor = s;
            return;
        }
    }
    bad_option("monitor", s, "io_uring, epoll, ppoll, all or auto");
}

static void parse_plant(struct options *opt, const char *s)
{
    for (int i = 1; i < PLANT_MAX; i++) {
        if (!strcmp(s, plants[i].name)) {
            opt->plant = i;
            return;
        }
    }
    bad_option("plant", s, "a planted bug; --list-plants shows them");
}

static _Noreturn void list_plants(void)
{
    for (int i = 1; i < PLANT_MAX; i++) {
        printf("%-18s %s\n", plants[i].name, plants[i].what);
    }
    exit(0);
}

/* @arg: as it was written, for messages. */
static void parse_option(struct options *opt, int c, const char *arg)
{
    switch (c) {
    case 's':
        opt->seconds = parse_seconds("seconds", optarg, 1e-9, 1e7,
                                     "a number of seconds above 0 and up to 10000000");
        break;
    case 'm':
        parse_mode(opt, optarg);
        break;
    case 'l':
        opt->limit =
            parse_seconds("limit", optarg, 0.1, 1000, "a number of seconds from 0.1 to 1000");
        break;
    case 'S':
        opt->seed = parse_number("seed", optarg, 0, UINT64_MAX, "a whole number");
        break;
    case 't':
        opt->threads = (unsigned)parse_number("threads", optarg, 1, STRESS_ACTORS_MAX,
                                              "a number from 1 to 30");
        break;
    case 'c':
        opt->contexts = (unsigned)parse_number("contexts", optarg, 1, STRESS_ACTORS_MAX,
                                               "a number from 1 to 30");
        break;
    case 'n':
        opt->timers =
            (unsigned)parse_number("timers", optarg, 1, 100000, "a number from 1 to 100000");
        break;
    case 'M':
        parse_monitor(opt, optarg);
        break;
    case 'C':
        opt->cpus = optarg; /* the library says what is wrong with it */
        break;
    case 'x':
        opt->mix_text = optarg;
        break;
    case 'p':
        parse_plant(opt, optarg);
        break;
    case 'L':
        list_plants();
    case 'q':
        opt->quiet = true;
        break;
    case 'h':
        fputs(help, stdout);
        exit(0);
    case ':':
        fprintf(stderr, "aioctx-stress: option '%s' needs a value; --help shows them\n", arg);
        exit(2);
    default:
        fprintf(stderr, "aioctx-stress: there is no option '%s'; --help shows them\n", arg);
        exit(2);
    }
}

/* The weights that were asked for, once the mode is known. */
static void take_mix(struct options *opt)
{
    if (opt->mix_text) {
        parse_mix(opt, opt->mix_text);
    }
    for (unsigned i = 0; i < OP_MIX_MAX; i++) {
        opt->mix_sum += opt->mix[i];
    }
    for (unsigned i = 0; i < STRESS_WAKES; i++) {
        opt->wake_mix_sum += opt->wake_mix[i];
    }
    if ((opt->mode == MODE_NOTIFY ? opt->wake_mix_sum : opt->mix_sum) == 0) {
        fprintf(stderr, "aioctx-stress: --mix: all weights are 0; one at least must not be\n");
        exit(2);
    }
}

static void take_mode(struct options *opt, int mode)
{
    if (opt->plant) {
        opt->mode = opt->plant >= PLANT_NOTIFY_MODE ? MODE_NOTIFY : MODE_TIMERS;
    }
    if (opt->plant && mode >= 0 && mode != (int)opt->mode) {
        bad_option("plant", plants[opt->plant].name, "a bug of this --mode");
    }
    if (opt->cpus && opt->mode == MODE_NOTIFY) {
        bad_option("cpus", opt->cpus, "for this mode, whose loops are on no iothreads");
    }
    if (!opt->contexts) {
        opt->contexts = opt->mode == MODE_NOTIFY ? 3 : 2;
    }
}

void options_parse(struct options *opt, int argc, char **argv)
{
    static const struct option options[] = {
        { "seconds", required_argument, NULL, 's' },
        { "seed", required_argument, NULL, 'S' },
        { "mode", required_argument, NULL, 'm' },
        { "limit", required_argument, NULL, 'l' },
        { "threads", required_argument, NULL, 't' },
        { "contexts", required_argument, NULL, 'c' },
        { "timers", required_argument, NULL, 'n' },
        { "monitor", required_argument, NULL, 'M' },
        { "cpus", required_argument, NULL, 'C' },
        { "mix", required_argument, NULL, 'x' },
        { "plant", required_argument, NULL, 'p' },
        { "list-plants", no_argument, NULL, 'L' },
        { "quiet", no_argument, NULL, 'q' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    int c, mode = -1;

    *opt = (struct options){
        .seconds = 10,
        .limit = 5,
        .threads = 4,
        .timers = 16,
        .monitor = "auto",
        .seed = ((uint64_t)time(NULL) << 20) ^ (uint64_t)getpid(),
    };
    for (unsigned i = 0; i < OP_MIX_MAX; i++) {
        opt->mix[i] = mix_ops[i].weight;
    }
    for (unsigned i = 0; i < STRESS_WAKES; i++) {
        opt->wake_mix[i] = mix_wakes[i].weight;
    }
    while ((c = getopt_long(argc, argv, ":s:t:c:n:qh", options, NULL)) != -1) {
        parse_option(opt, c, argv[optind - 1]);
        mode = c == 'm' ? (int)opt->mode : mode;
    }
    if (optind < argc) {
        fprintf(stderr, "aioctx-stress: unexpected argument '%s'; --help shows the options\n",
                argv[optind]);
        exit(2);
    }
    take_mode(opt, mode);
    take_mix(opt);
}
