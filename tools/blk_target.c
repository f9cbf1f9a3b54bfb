/* SPDX-License-Identifier: MIT */
#include "blk_target.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Writes @path so that a spec means just that path. */
static void put_path(FILE *stream, const char *path)
{
    /* An absolute path is the path of a URI; a relative one follows the driver's name. */
    fputs(path[0] == '/' ? "file://" : "file:", stream);
    for (const char *p = path; *p; p++) {
        if (strchr("%?#", *p)) {
            fprintf(stream, "%%%02X", (unsigned)(unsigned char)*p);
        } else {
            fputc(*p, stream);
        }
    }
}

/* Whether two jobs share a backend. */
static bool same_device(const struct blk_options *a, const struct blk_options *b)
{
    if (a->backend || b->backend) {
        return a->backend && b->backend && strcmp(a->backend, b->backend) == 0;
    }
    return strcmp(a->file, b->file) == 0 && a->direct == b->direct &&
           a->registered == b->registered;
}

/* What all jobs of one device ask of it. */
struct wants {
    bool create, writes;
    uint64_t size_bytes;
};

static struct wants all_want(const struct blk_options *jobs, const struct blk_target *targets,
                             unsigned nr, const struct blk_options *opt)
{
    struct wants wants = { 0 };

    for (unsigned i = 0; i < nr; i++) {
        uint64_t end = jobs[i].offset_bytes + jobs[i].size_bytes;

        if (!same_device(&jobs[i], opt)) {
            continue;
        }
        wants.writes |= blk_options_writes(&jobs[i]) || jobs[i].layout || jobs[i].create ||
                        (jobs[i].replay && blk_mix_writes(&targets[i].replay.mix));
        if (jobs[i].create) {
            wants.create = true;
            wants.size_bytes = end > wants.size_bytes ? end : wants.size_bytes;
        }
    }
    return wants;
}

static char *make_spec(const struct blk_options *opt, const struct wants *wants)
{
    char *spec = NULL;
    size_t len;
    FILE *stream;
    char separator = '?';

    if (opt->backend) {
        return strdup(opt->backend);
    }
    stream = open_memstream(&spec, &len);
    if (!stream) {
        return NULL;
    }
    put_path(stream, opt->file);
    if (wants->create) {
        fprintf(stream, "%ccreate=on&size=%" PRIu64, separator, wants->size_bytes);
        separator = '&';
    }
    if (opt->direct) {
        fprintf(stream, "%cdirect=on", separator);
        separator = '&';
    }
    if (opt->registered) {
        fprintf(stream, "%cregistered=on", separator);
        separator = '&';
    }
    /* What is only read need not be writable. */
    if (!wants->writes) {
        fprintf(stream, "%cread-only=on", separator);
    }
    if (fclose(stream) != 0) {
        free(spec);
        return NULL;
    }
    return spec;
}

/* What the file holds that this run has not written; to be asked before it is opened. */
static enum verify_initial initial_content(const struct blk_options *opt)
{
    struct stat st;

    if (opt->expect_pattern) {
        return VERIFY_INITIAL_PATTERN;
    }
    if (opt->create && ((stat(opt->file, &st) < 0 && errno == ENOENT) ||
                        (S_ISREG(st.st_mode) && st.st_size == 0))) {
        return VERIFY_INITIAL_ZEROES;
    }
    return VERIFY_INITIAL_ANY;
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

/*
 * The least units that a region must have, so that a request always finds a place that no other one
 * in flight touches: @depth - 1 others of @most units each leave that many gaps and one more, all
 * of which may be one unit too short.
 */
static uint64_t least_units(uint64_t depth, uint64_t most)
{
    return (depth - 1) * most + depth * (most - 1) + 1;
}

/* Deals @size_bytes out to the iothreads; says what is wrong when a share is too small. */
static int deal_out(const struct blk_options *opt, uint64_t size_bytes, uint64_t *ret_units)
{
    uint64_t all = size_bytes / opt->bs.unit, units = all / opt->iothreads;
    uint64_t least = least_units(opt->iodepth, opt->bs.max / opt->bs.unit);

    if (opt->size_bytes > opt->bs.max && opt->size_bytes % opt->bs.unit) {
        blk_complain_of(opt, "--size %" PRIu64 ": expected a multiple of --bs, %" PRIu32 " bytes",
                        opt->size_bytes, opt->bs.unit);
        return -1;
    }
    if (units < least && opt->bs.min == opt->bs.max) {
        blk_complain_of(opt,
                        "%" PRIu64 " bytes are too small: expected at least %u iothreads x iodepth "
                        "%u x bs %" PRIu32 " = %" PRIu64
                        " bytes, so that requests in flight do not overlap",
                        size_bytes, opt->iothreads, opt->iodepth, opt->bs.max,
                        (uint64_t)opt->iothreads * opt->iodepth * opt->bs.max);
        return -1;
    }
    if (units < least) {
        blk_complain_of(opt,
                        "%" PRIu64 " bytes are too small: expected at least %" PRIu64
                        " bytes, so that requests in flight do not overlap",
                        size_bytes, least * opt->bs.unit * opt->iothreads);
        return -1;
    }
    *ret_units = units;
    return 0;
}

/* Buffers of a replay, all iothreads together, where no --iodepth says how many. */
#define REPLAY_BUF_BYTES (UINT64_C(256) << 20)
#define REPLAY_IODEPTH 256

static int load_trace(struct blk_target *target, const struct blk_options *opt)
{
    struct blk_replay *replay = &target->replay;
    char *why;
    uint64_t depth;

    if (blk_replay_load(opt->replay, replay, &why) < 0) {
        blk_complain_of(opt, "--replay: %s", why ? why : "out of memory");
        free(why);
        return -1;
    }
    target->iothreads = opt->iothreads ? opt->iothreads : replay->streams;
    target->buf_bytes = replay->longest ? (uint32_t)replay->longest : 1;
    depth = REPLAY_BUF_BYTES / target->iothreads / target->buf_bytes;
    depth = depth > REPLAY_IODEPTH ? REPLAY_IODEPTH : depth ? depth : 1;
    target->iodepth = opt->iodepth ? opt->iodepth : (unsigned)depth;
    target->first = calloc(target->iothreads + 1, sizeof(*target->first));
    if (!target->first || blk_replay_deal(replay, target->iothreads, target->first) < 0) {
        blk_complain_of(opt, "out of memory");
        return -1;
    }
    return 0;
}

static int size_up(struct blk_target *target, const struct blk_options *opt)
{
    target->initial = initial_content(opt);
    if (opt->replay) {
        return load_trace(target, opt);
    }
    target->iothreads = opt->iothreads;
    target->iodepth = opt->iodepth;
    target->buf_bytes = opt->bs.max;
    /* Before a file is made for nothing. */
    return opt->size_bytes ? deal_out(opt, opt->size_bytes, &target->units) : 0;
}

/* ---- Checks of what has been opened ---------------------------------------------------------- */

static int check_replay(const struct blk_target *target, const struct blk_options *opt,
                        int64_t length)
{
    int64_t size = opt->size_bytes ? (int64_t)opt->size_bytes : length;

    if (target->replay.end > size) {
        blk_complain_of(opt,
                        "--replay: %s:%" PRIu32 ": the request ends at %" PRId64
                        ": expected one within the %" PRId64 " bytes of %s",
                        opt->replay, target->replay.end_line, target->replay.end, size,
                        target->spec);
        return -1;
    }
    return 0;
}

/* Whether an opened backend can do what the options ask for. */
static int check_backend(struct blk_target *target, const struct blk_options *opt)
{
    int64_t length = blk_getlength(target->blk);
    bool writes = blk_options_writes(opt) || blk_mix_writes(&target->replay.mix);

    if (length < 0) {
        blk_complain_of(opt, "%s: cannot tell its size: %s", target->spec, strerror((int)-length));
        return -1;
    }
    if ((writes || opt->layout) && blk_is_read_only(target->blk)) {
        blk_complain_of(opt, "%s is read-only: expected %s%s", target->spec,
                        opt->replay ? "a trace that does not write" : "--rw read or randread",
                        opt->layout ? ", without --layout" : "");
        return -1;
    }
    if (opt->verify && strcmp(blk_get_driver_name(target->blk), "null") == 0) {
        blk_complain_of(
            opt, "--verify crc32c: expected a backend that keeps what is written; null does not");
        return -1;
    }
    if (opt->offset_bytes + opt->size_bytes > (uint64_t)length ||
        opt->offset_bytes >= (uint64_t)length) {
        char offset[48] = "";

        if (opt->offset_bytes) {
            snprintf(offset, sizeof(offset), " behind --offset %" PRIu64, opt->offset_bytes);
        }
        blk_complain_of(opt,
                        "%s has %" PRId64 " bytes, smaller than --size %" PRIu64
                        "%s: expected a size up to that%s",
                        target->spec, length, opt->size_bytes, offset,
                        opt->file ? ", or --create to extend it" : "");
        return -1;
    }
    return opt->replay
               ? check_replay(target, opt, length)
               : deal_out(opt,
                          opt->size_bytes ? opt->size_bytes : (uint64_t)length - opt->offset_bytes,
                          &target->units);
}

uint64_t blk_target_bytes(const struct blk_target *target, const struct blk_options *opt)
{
    return opt->replay ? (uint64_t)target->replay.end
                       : target->units * target->iothreads * opt->bs.unit;
}

/* A job that verifies must be the only one that writes where it works. */
static int check_overlap(const struct blk_target *targets, const struct blk_options *jobs,
                         unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        uint64_t begin = jobs[i].offset_bytes;
        uint64_t end = begin + blk_target_bytes(&targets[i], &jobs[i]);

        for (unsigned k = 0; k < nr && jobs[i].verify; k++) {
            uint64_t other = jobs[k].offset_bytes;
            bool writes = blk_options_writes(&jobs[k]) || jobs[k].layout ||
                          blk_mix_writes(&targets[k].replay.mix);

            if (k != i && writes && targets[k].blk == targets[i].blk && other < end &&
                begin < other + blk_target_bytes(&targets[k], &jobs[k])) {
                blk_complain_of(&jobs[i],
                                "--verify: job %s writes there too: expected another --offset "
                                "and --size for one of them",
                                jobs[k].name);
                return -1;
            }
        }
    }
    return 0;
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* Opens the backend of job @i, or takes that of a job before it. */
static int open_one(struct blk_target *targets, const struct blk_options *jobs, unsigned nr,
                    unsigned i)
{
    struct wants wants = all_want(jobs, targets, nr, &jobs[i]);
    char *why = NULL;

    targets[i].spec = make_spec(&jobs[i], &wants);
    if (!targets[i].spec) {
        blk_complain("out of memory");
        return -1;
    }
    for (unsigned k = 0; k < i; k++) {
        if (same_device(&jobs[k], &jobs[i])) {
            targets[i].blk = targets[k].blk;
            blk_ref(targets[i].blk);
            return 0;
        }
    }
    targets[i].blk = blk_open(targets[i].spec, &why);
    if (!targets[i].blk) {
        blk_complain_of(&jobs[i], "%s", why ? why : "out of memory");
        free(why);
        return -1;
    }
    return 0;
}

int blk_targets_open(struct blk_target *targets, const struct blk_options *jobs, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        if (size_up(&targets[i], &jobs[i]) < 0) {
            return -1;
        }
    }
    for (unsigned i = 0; i < nr; i++) {
        if (open_one(targets, jobs, nr, i) < 0 || check_backend(&targets[i], &jobs[i]) < 0) {
            return -1;
        }
    }
    return check_overlap(targets, jobs, nr);
}

void blk_targets_close(struct blk_target *targets, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        blk_unref(targets[i].blk);
        free(targets[i].spec);
        targets[i].blk = NULL;
        targets[i].spec = NULL;
    }
}

void blk_targets_free(struct blk_target *targets, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        blk_replay_free(&targets[i].replay);
        free(targets[i].first);
    }
}
