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

static char *make_spec(const struct blk_options *opt)
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
    if (opt->create) {
        fprintf(stream, "%ccreate=on&size=%" PRIu64, separator, opt->size_bytes);
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
    if (!blk_options_writes(opt) && !opt->layout && !opt->create) {
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

/* Deals @size_bytes out to the iothreads; says what is wrong when a share is too small. */
static int deal_out(const struct blk_options *opt, uint64_t size_bytes, uint64_t *ret_blocks)
{
    uint64_t all = size_bytes / opt->bs_bytes, blocks = all / opt->iothreads;

    if (opt->size_bytes > opt->bs_bytes && opt->size_bytes % opt->bs_bytes) {
        blk_complain("--size %" PRIu64 ": expected a multiple of --bs, %" PRIu32 " bytes",
                     opt->size_bytes, opt->bs_bytes);
        return -1;
    }
    if (blocks < opt->iodepth) {
        blk_complain(
            "%" PRIu64
            " bytes are too small: expected at least %u iothreads x iodepth %u x bs %" PRIu32
            " = %" PRIu64 " bytes, so that requests in flight do not overlap",
            size_bytes, opt->iothreads, opt->iodepth, opt->bs_bytes,
            (uint64_t)opt->iothreads * opt->iodepth * opt->bs_bytes);
        return -1;
    }
    *ret_blocks = blocks;
    return 0;
}

/* Whether an opened backend can do what the options ask for. */
static int check_backend(struct blk_target *target, const struct blk_options *opt)
{
    int64_t length = blk_getlength(target->blk);

    if (length < 0) {
        blk_complain("%s: cannot tell its size: %s", target->spec, strerror((int)-length));
        return -1;
    }
    if ((blk_options_writes(opt) || opt->layout) && blk_is_read_only(target->blk)) {
        blk_complain("%s is read-only: expected --rw read or randread%s", target->spec,
                     opt->layout ? ", without --layout" : "");
        return -1;
    }
    if (opt->verify && strcmp(blk_get_driver_name(target->blk), "null") == 0) {
        blk_complain(
            "--verify crc32c: expected a backend that keeps what is written; null does not");
        return -1;
    }
    if (opt->size_bytes > (uint64_t)length) {
        blk_complain("%s has %" PRId64 " bytes, smaller than --size %" PRIu64
                     ": expected a size up to that%s",
                     target->spec, length, opt->size_bytes,
                     opt->file ? ", or --create to extend it" : "");
        return -1;
    }
    return deal_out(opt, opt->size_bytes ? opt->size_bytes : (uint64_t)length, &target->blocks);
}

int blk_target_open(struct blk_target *ret_target, const struct blk_options *opt)
{
    struct blk_target target = { .spec = make_spec(opt), .initial = initial_content(opt) };
    char *why = NULL;

    if (!target.spec) {
        blk_complain("out of memory");
        return -1;
    }
    /* Before a file is made for nothing. */
    if (opt->size_bytes && deal_out(opt, opt->size_bytes, &target.blocks) < 0) {
        goto fail;
    }
    target.blk = blk_open(target.spec, &why);
    if (!target.blk) {
        blk_complain("%s", why ? why : "out of memory");
        free(why);
        goto fail;
    }
    if (check_backend(&target, opt) < 0) {
        goto fail;
    }
    *ret_target = target;
    return 0;
fail:
    blk_target_close(&target);
    return -1;
}

void blk_target_close(struct blk_target *target)
{
    blk_unref(target->blk);
    free(target->spec);
    target->blk = NULL;
    target->spec = NULL;
}
