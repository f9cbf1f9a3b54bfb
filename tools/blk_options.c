/* SPDX-License-Identifier: MIT */
/* One option, and all options of one job together. */
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

#define MAX_RATE UINT64_C(1000000000)
#define DEFAULT_RUNTIME_NS (INT64_C(10) * 1000000000)

_Static_assert(OPT_VERSION - OPT_FILE < 64, "a bit of blk_options.given for each");

void blk_complain(const char *fmt, ...)
{
    va_list ap;

    fputs("aioctx-blk: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void blk_complain_of(const struct blk_options *opt, const char *fmt, ...)
{
    va_list ap;

    fputs("aioctx-blk: ", stderr);
    if (opt->name) {
        fprintf(stderr, "%s:%u: [%s]: ", opt->from, opt->line, opt->name);
    }
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

bool blk_refuse(const struct blk_setting *s, const char *fmt, ...)
{
    va_list ap;

    fputs("aioctx-blk: ", stderr);
    if (s->file) {
        fprintf(stderr, "%s:%u: ", s->file, s->line);
    }
    fprintf(stderr, "%s%s", s->file ? "" : "--", s->name);
    if (s->text) {
        fprintf(stderr, " '%s'", s->text);
    }
    fputs(": ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return false;
}

/* ---- One option ------------------------------------------------------------------------------ */

static bool take_number(const struct blk_setting *s, uint64_t min, uint64_t max,
                        uint64_t *ret_number)
{
    uint64_t number = 0;

    if (!parse_number(s->text, &number) || number < min || number > max) {
        return max == UINT64_MAX
                   ? blk_refuse(s, "expected a number, %" PRIu64 " or more", min)
                   : blk_refuse(s, "expected a number from %" PRIu64 " to %" PRIu64, min, max);
    }
    *ret_number = number;
    return true;
}

static bool take_unsigned(const struct blk_setting *s, unsigned min, unsigned max,
                          unsigned *ret_number)
{
    uint64_t number = 0;

    if (!take_number(s, min, max, &number)) {
        return false;
    }
    *ret_number = (unsigned)number;
    return true;
}

static bool take_size(const struct blk_setting *s, uint64_t min, uint64_t *ret_bytes)
{
    uint64_t bytes;

    if (!parse_size(s->text, &bytes) || bytes < min || bytes % VERIFY_SECTOR_BYTES) {
        return blk_refuse(s, "expected a size such as 4k or 1G, a multiple of %d bytes",
                          VERIFY_SECTOR_BYTES);
    }
    *ret_bytes = bytes;
    return true;
}

static bool take_bs(struct blk_options *opt, const struct blk_setting *s)
{
    if (!blk_sizes_parse(s->text, VERIFY_SECTOR_BYTES, BLK_BS_MAX, &opt->bs)) {
        return blk_refuse(s,
                          "expected a size such as 4k, a range such as 4k-64k of multiples of its "
                          "first, or sizes with weights such as 4k/60:64k/40; each a multiple of "
                          "%d bytes, at most 1G",
                          VERIFY_SECTOR_BYTES);
    }
    opt->bs_text = s->text;
    return true;
}

static bool take_duration(const struct blk_setting *s, int64_t *ret_ns)
{
    int64_t ns;

    if (!parse_duration(s->text, &ns) || ns == 0) {
        return blk_refuse(s, "expected a duration above 0 with a unit, such as 50ms or 5s "
                             "(ns, us, ms, s, m, h)");
    }
    *ret_ns = ns;
    return true;
}

static bool take_rate(const struct blk_setting *s, uint64_t *ret_rate)
{
    uint64_t rate;

    if (!parse_rate(s->text, &rate) || rate == 0 || rate > MAX_RATE) {
        return blk_refuse(s, "expected requests per second, such as 20000 or 20k, at most 1000M");
    }
    *ret_rate = rate;
    return true;
}

static bool take_rw(struct blk_options *opt, const struct blk_setting *s)
{
    static const char *const kinds[] = { "read", "write", "rw", "randread", "randwrite", "randrw" };

    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(s->text, kinds[i]) == 0) {
            opt->rw_name = kinds[i];
            return true;
        }
    }
    return blk_refuse(s, "expected read, write, rw, randread, randwrite or randrw");
}

static bool take_mix(struct blk_options *opt, const struct blk_setting *s)
{
    return blk_mix_parse(s->text, &opt->mix) ||
           blk_refuse(s, "expected weights, such as read=70,write=28,flush=2; of read, write, "
                         "flush, discard, zeroes and status, each once, not all of them 0");
}

static bool take_pattern(struct blk_options *opt, const struct blk_setting *s)
{
    if (!blk_pattern_parse(s->text, &opt->pattern)) {
        return blk_refuse(s, "expected random, sequential, zipf, zipf:THETA (0.01 to 10) or "
                             "hot:PERCENT/PERCENT (of requests, of space; 1 to 99)");
    }
    opt->pattern_text = s->text;
    return true;
}

static bool take_replay_speed(struct blk_options *opt, const struct blk_setting *s)
{
    char *end;
    double speed = strtod(s->text, &end);

    if (strcmp(s->text, "max") == 0) {
        opt->replay_speed = 0;
        return true;
    }
    if (*end || strspn(s->text, "0123456789.") != strlen(s->text) ||
        !(speed >= 0.001 && speed <= 1000)) {
        return blk_refuse(s, "expected a factor from 0.001 to 1000, or max: as fast as it goes");
    }
    opt->replay_speed = speed;
    return true;
}

static bool take_verify(struct blk_options *opt, const struct blk_setting *s)
{
    if (strcmp(s->text, "crc32c") != 0 && strcmp(s->text, "none") != 0) {
        return blk_refuse(s, "expected crc32c or none");
    }
    opt->verify = strcmp(s->text, "crc32c") == 0;
    return true;
}

static bool take_monitor(struct blk_options *opt, const struct blk_setting *s)
{
    if (strcmp(s->text, "io_uring") != 0 && strcmp(s->text, "epoll") != 0 &&
        strcmp(s->text, "ppoll") != 0) {
        return blk_refuse(s, "expected io_uring, epoll or ppoll");
    }
    opt->monitor = s->text;
    return true;
}

static bool take_text(const struct blk_setting *s, const char **ret_text)
{
    if (!*s->text) {
        return blk_refuse(s, "expected a name that is not empty");
    }
    *ret_text = s->text;
    return true;
}

static bool take_driver(const struct blk_setting *s)
{
    char *why = NULL;

    if (blk_driver_load(s->text, NULL, &why) < 0) {
        blk_refuse(s, "%s", why ? why : "out of memory");
        free(why);
        return false;
    }
    return true;
}

/* In a job file a switch may say on or off. */
static bool take_flag(const struct blk_setting *s, bool *ret_flag)
{
    bool on = !s->text || strcmp(s->text, "on") == 0 || strcmp(s->text, "1") == 0;

    if (!on && strcmp(s->text, "off") != 0 && strcmp(s->text, "0") != 0) {
        return blk_refuse(s, "expected on or off, or the name alone for on");
    }
    *ret_flag = on;
    return true;
}

/* clang-format off: tables in all but name */
static bool take_option(struct blk_options *opt, const struct blk_setting *s)
{
    switch (s->code) {
    case OPT_FILE:
        return take_text(s, &opt->file);
    case OPT_BACKEND:
        return take_text(s, &opt->backend);
    case OPT_DRIVER:
        return take_driver(s);
    case OPT_SIZE:
        return take_size(s, 1, &opt->size_bytes);
    case OPT_OFFSET:
        return take_size(s, 0, &opt->offset_bytes);
    case OPT_CREATE:
        return take_flag(s, &opt->create);
    case OPT_DIRECT:
        return take_flag(s, &opt->direct);
    case OPT_REGISTERED:
        return take_flag(s, &opt->registered);
    case OPT_IOTHREADS:
        return take_unsigned(s, 1, BLK_IOTHREADS_MAX, &opt->iothreads);
    case OPT_RW:
        return take_rw(opt, s);
    case OPT_RWMIXREAD:
        return take_unsigned(s, 0, 100, &opt->rwmixread);
    case OPT_MIX:
        return take_mix(opt, s);
    case OPT_PATTERN:
        return take_pattern(opt, s);
    case OPT_BS:
        return take_bs(opt, s);
    case OPT_IODEPTH:
        return take_unsigned(s, 1, BLK_IODEPTH_MAX, &opt->iodepth);
    case OPT_RATE:
        return take_rate(s, &opt->rate);
    case OPT_DEADLINE:
        return take_duration(s, &opt->deadline_ns);
    case OPT_VERIFY:
        return take_verify(opt, s);
    case OPT_VERIFY_ERRORS_MAX:
        return take_unsigned(s, 1, UINT32_MAX, &opt->verify_errors_max);
    case OPT_LAYOUT:
        return take_flag(s, &opt->layout);
    case OPT_EXPECT_PATTERN:
        return take_flag(s, &opt->expect_pattern);
    case OPT_RAMP:
        return take_duration(s, &opt->ramp_ns);
    case OPT_RUNTIME:
        return take_duration(s, &opt->runtime_ns);
    case OPT_IOS:
        return take_number(s, 1, INT64_MAX, &opt->ios);
    case OPT_SEED:
        return take_number(s, 0, UINT64_MAX, &opt->seed);
    case OPT_FSYNC:
        return take_unsigned(s, 1, UINT32_MAX, &opt->fsync_every);
    case OPT_MONITOR:
        return take_monitor(opt, s);
    case OPT_REPLAY:
        return take_text(s, &opt->replay);
    case OPT_REPLAY_SPEED:
        return take_replay_speed(opt, s);
    default:
        opt->cpus = s->text; /* the library says what is wrong with it */
        return true;
    }
}

bool blk_command_take(struct blk_command *command, const struct blk_setting *s)
{
    switch (s->code) {
    case OPT_CONFORMANCE:
        return take_text(s, &command->conformance);
    case OPT_LIMIT:
        return take_duration(s, &command->limit_ns);
    case OPT_JOBS:
        return take_text(s, &command->jobs_file);
    case OPT_JSON:
        return take_text(s, &command->json);
    case OPT_TRACE:
        return take_text(s, &command->trace);
    case OPT_PLOT:
        return take_flag(s, &command->plot);
    default:
        return take_flag(s, &command->no_progress);
    }
}
/* clang-format on */

bool blk_options_take(struct blk_options *opt, const struct blk_setting *s)
{
    opt->given |= UINT64_C(1) << (s->code - OPT_FILE);
    return take_option(opt, s);
}

/* ---- All of them together -------------------------------------------------------------------- */

void blk_options_init(struct blk_options *opt)
{
    *opt = (struct blk_options){
        .rw_name = "randread",
        .bs_text = "4k",
        .bs = { .min = 4096, .max = 4096, .unit = 4096 },
        .rwmixread = 50,
        .iothreads = 1,
        .iodepth = 32,
        .seed = 1,
        .verify_errors_max = 1,
        .replay_speed = 1,
    };
}

/* What --replay does not go with: the trace says these things. */
static const char *replay_conflict(const struct blk_options *opt)
{
    static const struct {
        int code;
        const char *why;
    } codes[] = {
        { OPT_RW, "--replay: expected no --rw, as the trace says what to do" },
        { OPT_MIX, "--replay: expected no --mix, as the trace says what to do" },
        { OPT_PATTERN, "--replay: expected no --pattern, as the trace says where" },
        { OPT_BS, "--replay: expected no --bs, as the trace says how much" },
        { OPT_RATE, "--replay: expected no --rate, but --replay-speed" },
        { OPT_IOS, "--replay: expected no --ios; the trace is replayed once" },
        { OPT_RAMP, "--replay: expected no --ramp" },
        { OPT_VERIFY, "--replay: expected no --verify, as a trace has no content" },
        { OPT_LAYOUT, "--replay: expected no --layout" },
        { OPT_FSYNC, "--replay: expected no --fsync, as the trace has its flushes" },
        { OPT_OFFSET, "--replay: expected no --offset; offsets are those of the trace" },
    };

    for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        if (blk_option_given(opt, codes[i].code)) {
            return codes[i].why;
        }
    }
    return NULL;
}

/* What does not go together, in the order in which a reader of the command line would see it. */
static const char *conflict(const struct blk_options *opt)
{
    bool mixed = strcmp(opt->rw_name, "rw") == 0 || strcmp(opt->rw_name, "randrw") == 0;

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
    if (opt->replay) {
        return replay_conflict(opt);
    }
    if (blk_option_given(opt, OPT_REPLAY_SPEED)) {
        return "--replay-speed: expected --replay FILE with it";
    }
    if (blk_option_given(opt, OPT_MIX) && blk_option_given(opt, OPT_RW)) {
        return "--mix and --rw: expected only one of them";
    }
    if (blk_option_given(opt, OPT_RWMIXREAD) && (!mixed || blk_option_given(opt, OPT_MIX))) {
        return "--rwmixread: expected --rw rw or --rw randrw with it";
    }
    return NULL;
}

/* What does not go together once the mix is known. */
static const char *later_conflict(const struct blk_options *opt)
{
    if (opt->fsync_every && !opt->replay && !blk_mix_has(&opt->mix, KIND_WRITE)) {
        return "--fsync: expected a --rw that writes";
    }
    if (opt->verify &&
        (blk_mix_has(&opt->mix, KIND_DISCARD) || blk_mix_has(&opt->mix, KIND_ZEROES))) {
        return "--verify: expected a --mix without discard and zeroes, after which the pattern is "
               "gone";
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

/* What --rw stands for. */
static void resolve_rw(struct blk_options *opt)
{
    bool random = strncmp(opt->rw_name, "rand", 4) == 0;
    const char *kind = opt->rw_name + (random ? 4 : 0);
    unsigned reads = strcmp(kind, "read") == 0 ? 100 : strcmp(kind, "rw") == 0 ? opt->rwmixread : 0;

    if (!blk_option_given(opt, OPT_PATTERN)) {
        opt->pattern.order = random ? ORDER_RANDOM : ORDER_SEQUENTIAL;
        opt->pattern_text = random ? "random" : "sequential";
    }
    if (blk_option_given(opt, OPT_MIX)) {
        opt->rw_name = "mix";
        return;
    }
    opt->mix = (struct blk_mix){ .total = 100 };
    opt->mix.weight[KIND_READ] = reads;
    opt->mix.weight[KIND_WRITE] = 100 - reads;
}

bool blk_options_finish(struct blk_options *opt)
{
    const char *why = conflict(opt);

    if (!why) {
        resolve_rw(opt);
        why = later_conflict(opt);
    }
    if (why) {
        blk_complain_of(opt, "%s", why);
        return false;
    }
    if (opt->replay) {
        opt->rw_name = "replay";
        opt->pattern_text = opt->bs_text = "trace";
        opt->iothreads = blk_option_given(opt, OPT_IOTHREADS) ? opt->iothreads : 0;
        opt->iodepth = blk_option_given(opt, OPT_IODEPTH) ? opt->iodepth : 0;
    } else if (!opt->runtime_ns && !opt->ios) {
        opt->runtime_ns = DEFAULT_RUNTIME_NS;
    }
    return true;
}
