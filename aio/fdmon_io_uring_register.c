/* SPDX-License-Identifier: MIT */
/*
 * The io_uring monitor: registered files and buffers.
 *
 * The ring gets a table of each kind when the first one is asked for, all of its entries empty
 * (Linux 5.19), and a bitmap here says which are taken.  Where the kernel does not want to make a
 * table it is not asked again; a single file or buffer may be refused without a word about others.
 *
 * Source: io_uring_register_files_sparse(3), io_uring_register_buffers_update_tag(3).
 */
#include "aio/fdmon_io_uring_int.h"
#include "aio/monitor_int.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>

static int make_files(struct uring_mon *m, struct uring_table *t)
{
    struct rlimit limit;

    /* The table must not be larger than what a process may have open. */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < t->entries) {
        t->entries = (unsigned)limit.rlim_cur;
    }
    return io_uring_register_files_sparse(&m->ring, t->entries);
}

static int make_bufs(struct uring_mon *m, struct uring_table *t)
{
    return io_uring_register_buffers_sparse(&m->ring, t->entries);
}

/* Returns the table, made when it is not there, or NULL. */
static struct uring_table *get_table(AioContext *ctx, struct uring_table **table,
                                     AioFeature feature,
                                     int (*make)(struct uring_mon *, struct uring_table *))
{
    struct uring_mon *m = ctx->mon_state;
    struct uring_table *t = *table;

    if (!t) {
        t = calloc(1, sizeof(*t));
        if (!t) {
            return NULL;
        }
        t->entries = URING_TABLE;
        t->refused = make(m, t) < 0;
        if (t->refused) {
            monitor_set_feature(ctx, feature, false);
        }
        *table = t;
    }
    return t->refused ? NULL : t;
}

/* Returns the index of a free entry, taken; -1: there is none. */
static int take_entry(struct uring_table *t)
{
    for (unsigned word = 0; word * 64 < t->entries; word++) {
        if (~t->used[word]) {
            unsigned i = word * 64 + (unsigned)__builtin_ctzll(~t->used[word]);

            if (i >= t->entries) {
                break;
            }
            t->used[word] |= UINT64_C(1) << (i % 64);
            return (int)i;
        }
    }
    return -1;
}

static void give_entry(struct uring_table *t, int i)
{
    must(t->used[i / 64] >> (i % 64) & 1);
    t->used[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

/* The monitor of a context of the calling thread whose ring is there; else NULL. */
static struct uring_mon *mon_of(AioContext *ctx)
{
    return ctx->mon == &fdmon_io_uring && in_aio_context_home_thread(ctx) ? ctx->mon_state : NULL;
}

/* What the kernel's update of one entry has come to: 0 or -errno. */
static int result_of(int updated)
{
    return updated == 1 ? 0 : updated < 0 ? updated : -EIO;
}

/* @what: an int. */
static int set_file(struct uring_mon *m, int i, const void *what)
{
    return result_of(io_uring_register_files_update(&m->ring, (unsigned)i, what, 1));
}

/* @what: a struct iovec. */
static int set_buf(struct uring_mon *m, int i, const void *what)
{
    return result_of(io_uring_register_buffers_update_tag(&m->ring, (unsigned)i, what, NULL, 1));
}

/* Returns the index of a new entry of @t, or -errno; @t NULL: there is no such table. */
static int register_in(AioContext *ctx, struct uring_table *t, AioFeature feature,
                       int (*set)(struct uring_mon *, int, const void *), const void *what)
{
    int i, ret;

    if (!t) {
        return -ENOTSUP;
    }
    i = take_entry(t);
    if (i < 0) {
        return -ENFILE;
    }
    ret = set(ctx->mon_state, i, what);
    monitor_set_feature(ctx, feature, ret == 0);
    if (ret < 0) {
        give_entry(t, i);
        return ret;
    }
    return i;
}

int aio_context_register_file(AioContext *ctx, int fd)
{
    struct uring_mon *m = mon_of(ctx);
    struct uring_table *t =
        m ? get_table(ctx, &m->files, FEATURE_REGISTERED_FILES, make_files) : NULL;

    return register_in(ctx, t, FEATURE_REGISTERED_FILES, set_file, &fd);
}

void aio_context_unregister_file(AioContext *ctx, int index)
{
    struct uring_mon *m = mon_of(ctx);
    int none = -1;

    if (m) {
        set_file(m, index, &none);
        give_entry(m->files, index);
    }
}

int aio_context_register_buf(AioContext *ctx, void *base, size_t bytes)
{
    struct uring_mon *m = mon_of(ctx);
    struct uring_table *t =
        m ? get_table(ctx, &m->bufs, FEATURE_REGISTERED_BUFFERS, make_bufs) : NULL;
    struct iovec iov = { base, bytes };

    return register_in(ctx, t, FEATURE_REGISTERED_BUFFERS, set_buf, &iov);
}

void aio_context_unregister_buf(AioContext *ctx, int index)
{
    struct uring_mon *m = mon_of(ctx);
    struct iovec none = { NULL, 0 };

    if (m) {
        set_buf(m, index, &none);
        give_entry(m->bufs, index);
    }
}

void uring_free_tables(struct uring_mon *m)
{
    free(m->files);
    free(m->bufs);
}
