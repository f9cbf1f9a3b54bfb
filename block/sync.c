/* SPDX-License-Identifier: MIT */
/*
 * Synchronous calls.  A home thread submits to its current context and polls that; a plain thread
 * has an iothread of the backend do it, which is made at the first such call.
 */
#include "block/block_int.h"

#include <errno.h>

#include "rcu/rcu_int.h"

typedef struct SyncCall {
    BlockBackend *blk;
    BlkOp op;
    uint32_t flags;
    int64_t offset, bytes;
    QEMUIOVector qiov;
    BlkExtent *extent;
    int ret;
    bool done; /* home: of the thread that polls; plain: lock */
    bool plain;
    pthread_mutex_t lock;
    pthread_cond_t cond;
} SyncCall;

static void call_done(void *opaque, int ret)
{
    SyncCall *c = opaque;

    if (!c->plain) {
        c->ret = ret;
        c->done = true;
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->ret = ret;
    c->done = true;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

/* Submits on the current context; call_done() follows, at once when it cannot be submitted. */
static BlockAIOCB *call_submit(SyncCall *c)
{
    BlockBackend *blk = c->blk;
    BlockAIOCB *acb;

    switch (c->op) {
    case BLK_OP_READ:
        acb = blk_aio_preadv(blk, c->offset, &c->qiov, c->flags, call_done, c);
        break;
    case BLK_OP_WRITE:
        acb = blk_aio_pwritev(blk, c->offset, &c->qiov, c->flags, call_done, c);
        break;
    case BLK_OP_FLUSH:
        acb = blk_aio_flush(blk, call_done, c);
        break;
    case BLK_OP_DISCARD:
        acb = blk_aio_pdiscard(blk, c->offset, c->bytes, call_done, c);
        break;
    case BLK_OP_STATUS:
        acb = blk_aio_block_status(blk, c->offset, c->bytes, c->extent, call_done, c);
        break;
    default:
        acb = blk_aio_pwrite_zeroes(blk, c->offset, c->bytes, c->flags, call_done, c);
        break;
    }
    if (!acb) {
        call_done(c, -errno);
    }
    return acb;
}

static void plain_submit(void *opaque)
{
    call_submit(opaque);
}

/* The context of the backend's own iothread.  Returns 0 or -errno. */
static int sync_context(BlockBackend *blk, AioContext **ret_ctx)
{
    int ret = 0;

    pthread_mutex_lock(&blk->sync_lock);
    if (!blk->sync_thread) {
        blk->sync_thread = iothread_new("blk-sync", NULL);
        ret = blk->sync_thread ? 0 : -errno;
    }
    if (ret == 0) {
        *ret_ctx = iothread_get_aio_context(blk->sync_thread);
    }
    pthread_mutex_unlock(&blk->sync_lock);
    return ret;
}

static int run_plain(SyncCall *c)
{
    AioContext *ctx = NULL;
    int ret = sync_context(c->blk, &ctx);

    if (ret < 0) {
        return ret;
    }
    c->plain = true;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->cond, NULL);
    ret = aio_bh_schedule_oneshot(ctx, plain_submit, c);
    if (ret == 0) {
        pthread_mutex_lock(&c->lock);
        while (!c->done) {
            pthread_cond_wait(&c->cond, &c->lock);
        }
        pthread_mutex_unlock(&c->lock);
        ret = c->ret;
    }
    pthread_cond_destroy(&c->cond);
    pthread_mutex_destroy(&c->lock);
    return ret;
}

static int run(SyncCall *c, const char *name)
{
    AioContext *ctx = qemu_get_current_aio_context();
    BlockAIOCB *acb;

    rcu_check_may_wait(name);
    if (!ctx) {
        return run_plain(c);
    }
    acb = call_submit(c);
    while (!c->done) {
        if (acb->state == BLK_REQ_WAITING) {
            blk_poll_own(c->blk); /* for a range that may be with another context of this thread */
        } else {
            aio_poll(ctx, true);
        }
    }
    return c->ret;
}

/* A length below zero is one that no vector can have: the request would end so. */
static int run_buffer(SyncCall *c, void *buf, const char *name)
{
    if (c->bytes < 0) {
        return -EINVAL;
    }
    qemu_iovec_init_buf(&c->qiov, buf, (size_t)c->bytes);
    return run(c, name);
}

int blk_pread(BlockBackend *blk, int64_t offset, int64_t bytes, void *buf, BdrvRequestFlags flags)
{
    SyncCall c = {
        .blk = blk, .op = BLK_OP_READ, .flags = flags, .offset = offset, .bytes = bytes
    };

    return run_buffer(&c, buf, "blk_pread");
}

int blk_pwrite(BlockBackend *blk, int64_t offset, int64_t bytes, const void *buf,
               BdrvRequestFlags flags)
{
    SyncCall c = {
        .blk = blk, .op = BLK_OP_WRITE, .flags = flags, .offset = offset, .bytes = bytes
    };

    return run_buffer(&c, (void *)buf, "blk_pwrite");
}

int blk_flush(BlockBackend *blk)
{
    SyncCall c = { .blk = blk, .op = BLK_OP_FLUSH };

    return run(&c, "blk_flush");
}

int blk_pdiscard(BlockBackend *blk, int64_t offset, int64_t bytes)
{
    SyncCall c = { .blk = blk, .op = BLK_OP_DISCARD, .offset = offset, .bytes = bytes };

    return run(&c, "blk_pdiscard");
}

int blk_pwrite_zeroes(BlockBackend *blk, int64_t offset, int64_t bytes, BdrvRequestFlags flags)
{
    SyncCall c = {
        .blk = blk, .op = BLK_OP_ZEROES, .flags = flags, .offset = offset, .bytes = bytes
    };

    return run(&c, "blk_pwrite_zeroes");
}

int blk_block_status(BlockBackend *blk, int64_t offset, int64_t bytes, BlkExtent *ret_extent)
{
    SyncCall c = {
        .blk = blk, .op = BLK_OP_STATUS, .offset = offset, .bytes = bytes, .extent = ret_extent
    };

    return run(&c, "blk_block_status");
}
