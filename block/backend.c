/* SPDX-License-Identifier: MIT */
/*
 * Backends: opening, references, closing, and the list of drivers.
 *
 * Closing.  The last reference waits until the queues are idle, or, below a callback, sets
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

/* ---- Drivers --------------------------------------------------------------------------------- */

static pthread_mutex_t drivers_lock = PTHREAD_MUTEX_INITIALIZER;
static BlockDriver *drivers; /* drivers_lock: those registered beside the built-in ones */

static BlockDriver *const builtin[] = { &blk_file_driver, &blk_null_driver };

void blk_driver_register(BlockDriver *drv)
{
    pthread_mutex_lock(&drivers_lock);
    drv->next = drivers;
    drivers = drv;
    pthread_mutex_unlock(&drivers_lock);
}

static bool is_named(const BlockDriver *drv, const char *name, size_t len)
{
    return strlen(drv->name) == len && !memcmp(drv->name, name, len);
}

const BlockDriver *blk_driver_find(const char *name, size_t len)
{
    const BlockDriver *drv;

    for (size_t i = 0; i < sizeof(builtin) / sizeof(*builtin); i++) {
        if (is_named(builtin[i], name, len)) {
            return builtin[i];
        }
    }
    pthread_mutex_lock(&drivers_lock);
    for (drv = drivers; drv && !is_named(drv, name, len); drv = drv->next) {
    }
    pthread_mutex_unlock(&drivers_lock);
    return drv;
}

/* The names of the built-in drivers, for messages.  Returns NULL when out of memory. */
char *blk_driver_names(void)
{
    size_t size = 1, n = sizeof(builtin) / sizeof(*builtin);
    char *names;

    for (size_t i = 0; i < n; i++) {
        size += strlen(builtin[i]->name) + 2;
    }
    names = calloc(1, size);
    for (size_t i = 0; names && i < n; i++) {
        strcat(strcat(names, i > 0 ? ", " : ""), builtin[i]->name);
    }
    return names;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static bool is_power_of_2(uint32_t n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

static BlockBackend *alloc_backend(const BlockDriver *drv, const BlkOptions *opts)
{
    BlockBackend *blk;
    void *mem;

    if (posix_memalign(&mem, 64, sizeof(*blk)) != 0) {
        return NULL;
    }
    blk = memset(mem, 0, sizeof(*blk));
    blk->drv = drv;
    blk->refcnt = 1;
    blk->pins = 1;
    blk->deadline_ns = blk_opt_get(opts, "deadline-ns", 0);
    blk->read_only = blk_opt_get(opts, "read-only", 0);
    blk->detach = blk_opt_get(opts, "detach", 0);
    pthread_mutex_init(&blk->lock, NULL);
    pthread_cond_init(&blk->cond, NULL);
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
    pthread_mutex_destroy(&blk->sync_lock);
    pthread_cond_destroy(&blk->cond);
    pthread_mutex_destroy(&blk->lock);
    free(blk);
}

/* What the driver says of itself, once it is open. */
static void take_limits(BlockBackend *blk)
{
    const BlockDriver *drv = blk->drv;
    BlkLimits *l = &blk->limits;

    drv->get_limits(blk->drv_state, l);
    must(is_power_of_2(l->request_alignment) && is_power_of_2(l->memory_alignment));
    must(l->max_transfer % l->request_alignment == 0 && l->max_transfer > 0 && l->max_iov > 0);
    must(l->request_alignment <= BLK_ALIGN_MAX);
    blk->length = drv->getlength(blk->drv_state);
    must(blk->length >= 0);
    blk->align_mask = l->request_alignment - 1;
    blk->tail = blk->length & ~(int64_t)blk->align_mask;
    blk->ordered = l->request_alignment > 1 || blk->detach;
}

BlockBackend *blk_open(const char *spec, char **ret_why)
{
    const BlockDriver *drv;
    BlockBackend *blk = NULL;
    BlkOptions opts;
    int ret;

    rcu_check_fork("blk_open");
    ret = blk_options_parse(spec, &drv, &opts, ret_why);
    if (ret < 0) {
        errno = -ret;
        return NULL;
    }
    blk = alloc_backend(drv, &opts);
    ret = blk ? drv->open(&opts, &blk->drv_state, ret_why)
              : blk_fail(ret_why, ENOMEM, "out of memory");
    blk_options_free(&opts);
    if (ret < 0) {
        if (blk) {
            free_backend(blk);
        }
        errno = -ret;
        return NULL;
    }
    take_limits(blk);
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
    blk->drv->close(blk->drv_state);
    pthread_mutex_lock(&blk->lock);
    for (BlkQueue *q = blk->queues; q; q = q->next) {
        if (q->ctx) {
            qemu_bh_schedule(q->close_bh);
        }
    }
    pthread_mutex_unlock(&blk->lock);
    blk_unpin(blk);
}

void blk_unref(BlockBackend *blk)
{
    rcu_check_fork("blk_unref");
    if (!blk || sub_fetch_acq_rel(&blk->refcnt, 1) > 0) {
        return;
    }
    if (ld_seq(&blk->held)) {
        die_misuse("blk_unref", "the last reference goes inside a drained section");
    }
    /* Nobody can be in a synchronous call any more.  Below a callback it ends by itself. */
    if (blk->sync_thread) {
        iothread_destroy(blk->sync_thread);
    }
    if (this_thread.callbacks == 0) {
        rcu_check_may_wait("blk_unref");
        blk_wait_idle(blk);
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
    return blk->drv->register_buf ? blk->drv->register_buf(blk->drv_state, host, size) : 0;
}

void blk_unregister_buf(BlockBackend *blk, void *host, size_t size)
{
    rcu_check_fork("blk_unregister_buf");
    if (blk->drv->unregister_buf) {
        blk->drv->unregister_buf(blk->drv_state, host, size);
    }
}

/* ---- Getters --------------------------------------------------------------------------------- */

int64_t blk_getlength(BlockBackend *blk)
{
    return blk->length;
}

const char *blk_get_driver_name(BlockBackend *blk)
{
    return blk->drv->name;
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
    return blk->drv->check_context ? blk->drv->check_context(blk->drv_state, ctx, ret_why) : 0;
}
