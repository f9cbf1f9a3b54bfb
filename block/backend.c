/* SPDX-License-Identifier: MIT */
/*
 * Backends: opening, references, closing.
 *
 * Closing.  The last reference waits until the queues are idle (on_error.c sees to it that they
 * come to be, unless the kernel has what they wait for), or, below a callback, sets
 * `closing` and leaves it to whoever ends the last request (blk_close_check(), reached through
 * `watch` as in drain.c).  Then the driver is closed, and each queue is taken down by its own home
 * thread, later: that may still be on its way out of the bottom half that ended the request.  The
 * memory goes when the last of them has (`pins`).
 */
#include "block/block_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rcu/rcu_int.h"

/* ---- Opening --------------------------------------------------------------------------------- */

static BlockBackend *alloc_backend(const BlkOptions *opts)
{
    pthread_condattr_t attr;
    BlockBackend *blk;
    void *mem;

    if (posix_memalign(&mem, 64, sizeof(*blk)) != 0) {
        return NULL;
    }
    blk = memset(mem, 0, sizeof(*blk));
    blk->refcnt = 1;
    blk->pins = 1;
    blk->deadline_ns = blk_opt_get(opts, "deadline-ns", 0);
    blk->read_only = blk_opt_get(opts, "read-only", 0);
    blk->detach = blk_opt_get(opts, "detach", 0);
    pthread_mutex_init(&blk->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&blk->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&blk->drain_lock, NULL);
    pthread_mutex_init(&blk->sync_lock, NULL);
    return blk;
}

static void free_backend(BlockBackend *blk)
{
    while (blk->queues) {
        BlkQueue *q = blk->queues;

        blk->queues = q->next;
        free(q);
    }
    must(!blk->ranges && !blk->waiters);
    blk_node_free(blk->root);
    pthread_mutex_destroy(&blk->sync_lock);
    pthread_mutex_destroy(&blk->drain_lock);
    pthread_cond_destroy(&blk->cond);
    pthread_mutex_destroy(&blk->lock);
    free(blk);
}

static void take_limits(BlockBackend *blk)
{
    const BlkLimits *l = &blk->root->limits;

    blk->detach |= blk_node_detaches(blk->root);
    blk->limits = *l;
    blk->length = blk->root->length;
    blk->align_mask = l->request_alignment - 1;
    blk->tail = blk->length & ~(int64_t)blk->align_mask;
    blk->ordered = l->request_alignment > 1 || blk->detach;
}

static int check_detach(const BlkOptions *opts, char **ret_why)
{
    if (blk_opt_get(opts, "detach", 1)) {
        return 0;
    }
    for (const BlkOptions *o = opts; o; o = o->below) {
        if (o->drv->detaches) {
            return blk_fail(ret_why, EINVAL, "option 'detach' is always on with driver '%s'",
                            o->drv->name);
        }
    }
    return 0;
}

static int open_spec(const char *spec, BlockBackend **ret_blk, char **ret_why)
{
    BlockBackend *blk;
    BlkOptions *opts;
    int ret = blk_options_parse(spec, &opts, ret_why);

    if (ret < 0) {
        return ret;
    }
    ret = check_detach(opts, ret_why);
    blk = ret == 0 ? alloc_backend(opts) : NULL;
    if (ret == 0) {
        ret = blk ? blk_on_error_parse(blk, opts, ret_why)
                  : blk_fail(ret_why, ENOMEM, "out of memory");
    }
    if (ret == 0) {
        ret = blk_node_open(opts, &blk->root, ret_why);
    }
    blk_options_free(opts);
    if (ret < 0) {
        if (blk) {
            free_backend(blk);
        }
        return ret;
    }
    take_limits(blk);
    *ret_blk = blk;
    return 0;
}

BlockBackend *blk_open(const char *spec, char **ret_why)
{
    BlockBackend *blk;
    int ret;

    rcu_check_fork("blk_open");
    ret = open_spec(spec, &blk, ret_why);
    if (ret < 0) {
        errno = -ret;
        return NULL;
    }
    return blk;
}

/* ---- Closing --------------------------------------------------------------------------------- */

void blk_ref(BlockBackend *blk)
{
    add_fetch_relaxed(&blk->refcnt, 1);
}

void blk_unpin(BlockBackend *blk)
{
    if (sub_fetch_acq_rel(&blk->pins, 1) == 0) {
        free_backend(blk);
    }
}

void blk_close_check(BlockBackend *blk)
{
    bool mine;

    pthread_mutex_lock(&blk->lock);
    mine = blk->closing && !blk->close_begun && blk_queues_idle(blk);
    blk->close_begun |= mine;
    pthread_mutex_unlock(&blk->lock);
    if (!mine) {
        return;
    }
    blk_node_close(blk->root);
    pthread_mutex_lock(&blk->lock);
    for (BlkQueue *q = blk->queues; q; q = q->next) {
        if (q->ctx) {
            qemu_bh_schedule(q->close_bh);
        }
    }
    pthread_mutex_unlock(&blk->lock);
    blk_unpin(blk);
}

/* Has the drivers let go of what detached requests have left with them, from now on. */
static void settle(BlockBackend *blk)
{
    pthread_mutex_lock(&blk->lock);
    st_seq(&blk->settling, true);
    for (BlkQueue *q = blk->queues; blk->detach && q; q = q->next) {
        if (q->ctx && ld_seq(&q->n_detached)) {
            qemu_bh_schedule(q->detach_bh);
        }
    }
    pthread_mutex_unlock(&blk->lock);
}

void blk_unref(BlockBackend *blk)
{
    rcu_check_fork("blk_unref");
    if (!blk || sub_fetch_acq_rel(&blk->refcnt, 1) > 0) {
        return;
    }
    if (ld_seq(&blk->held) & ~BLK_HELD_STOP) {
        die_misuse("blk_unref", "the last reference goes inside a drained section");
    }
    settle(blk);
    /* Nobody can be in a synchronous call any more.  Below a callback it ends by itself. */
    if (blk->sync_thread) {
        iothread_destroy(blk->sync_thread);
    }
    blk_errors_final(blk);
    if (this_thread.callbacks == 0) {
        rcu_check_may_wait("blk_unref");
        blk_wait_idle(blk);
    } else {
        blk_drain_for_good(blk); /* else it would stay open for as long as a limit says */
    }
    pthread_mutex_lock(&blk->lock);
    blk->closing = true;
    fetch_add_seq(&blk->watch, 1);
    pthread_mutex_unlock(&blk->lock);
    blk_close_check(blk);
}

/* ---- Registered buffers ---------------------------------------------------------------------- */

int blk_register_buf(BlockBackend *blk, void *host, size_t size)
{
    if (!host || size == 0 || (uintptr_t)host + size < (uintptr_t)host) {
        return -EINVAL;
    }
    rcu_check_fork("blk_register_buf");
    return blk_node_register_buf(blk->root, host, size);
}

void blk_unregister_buf(BlockBackend *blk, void *host, size_t size)
{
    rcu_check_fork("blk_unregister_buf");
    blk_node_unregister_buf(blk->root, NULL, host, size);
}

/* ---- Getters --------------------------------------------------------------------------------- */

int64_t blk_getlength(BlockBackend *blk)
{
    return blk->length;
}

const char *blk_get_driver_name(BlockBackend *blk)
{
    return blk->root->drv->name;
}

bool blk_is_read_only(BlockBackend *blk)
{
    return blk->read_only;
}

void blk_get_limits(BlockBackend *blk, BlkLimits *ret_limits)
{
    *ret_limits = blk->limits;
}

int blk_check_context(BlockBackend *blk, AioContext *ctx, char **ret_why)
{
    return blk_node_check_context(blk->root, ctx, ret_why);
}
