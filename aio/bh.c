/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves.
 *
 * Anyone pushes onto ctx->bh_stack, a Treiber stack; the home thread takes the whole stack at once,
 * which rules out ABA, and reverses it, so that what one thread scheduled runs in that order.  A
 * pass moves what was taken to the end of a FIFO and runs the FIFO until it is empty: a nested pass
 * thereby finishes the outer one's rest first, and what is scheduled meanwhile waits on the stack.
 *
 * BH_PENDING says that the bottom half is on the stack or in the FIFO; who sets it pushes.  The
 * home thread clears it, together with BH_SCHEDULED, when it takes the bottom half out to run it,
 * so from then on it can be pushed again.  Memory is freed by the home thread, or, once the stack
 * is closed, by who deletes a bottom half that is not pending.
 * Source: Treiber, "Systems Programming: Coping with Parallelism", IBM RJ 5118, 1986.
 */
#include "aio/aio_int.h"
#include "rcu/rcu_int.h"

#include <errno.h>
#include <stdlib.h>

enum {
    BH_PENDING = 1 << 0,
    BH_SCHEDULED = 1 << 1, /* run it; without this a pending one was cancelled */
    BH_IDLE = 1 << 2,      /* scheduled by qemu_bh_schedule_idle() alone */
    BH_ONESHOT = 1 << 3,
    BH_DELETED = 1 << 4,
};

/* On the stack instead of bottom halves: the context has ended. */
#define BH_STACK_CLOSED ((QEMUBH *)1)

struct QEMUBH {
    AioContext *ctx;
    QEMUBHFunc *cb;
    void *opaque;
    QEMUBH *next;   /* on the stack: written before the push; in the FIFO: home thread */
    unsigned flags; /* atomic */
};

static QEMUBH *bh_alloc(AioContext *ctx, QEMUBHFunc *cb, void *opaque, unsigned flags)
{
    QEMUBH *bh;

    rcu_check_fork("aio_bh");
    bh = malloc(sizeof(*bh));
    if (bh) {
        *bh = (QEMUBH){ .ctx = ctx, .cb = cb, .opaque = opaque, .flags = flags };
    }
    return bh;
}

/* May be in a signal handler.  @bh may be run, and freed, as soon as it is on the stack.  Returns
 * false when the context has ended: nothing is accepted any more. */
static bool push(AioContext *ctx, QEMUBH *bh)
{
    QEMUBH *top = ld_seq(&ctx->bh_stack);

    do {
        if (top == BH_STACK_CLOSED) {
            return false;
        }
        st_relaxed(&bh->next, top);
    } while (!cas_seq(&ctx->bh_stack, &top, bh));
    return true;
}

/* The stack is closed: @bh is on no list. */
static void end_closed(QEMUBH *bh, unsigned flags)
{
    if (flags & BH_DELETED) {
        free(bh);
    } else {
        fetch_and_seq(&bh->flags, ~(unsigned)(BH_PENDING | BH_SCHEDULED | BH_IDLE));
    }
}

static void set_flags(QEMUBH *bh, unsigned set, unsigned clear, bool notify)
{
    AioContext *ctx = bh->ctx;
    unsigned old = ld_relaxed(&bh->flags), new_flags;

    rcu_check_fork("qemu_bh"); /* nobody would run it */
    do {
        if (unlikely(old & BH_DELETED)) {
            die_misuse("qemu_bh", "the bottom half was deleted before");
        }
        new_flags = old | set | BH_PENDING;
        if (!(set & BH_IDLE)) {
            new_flags &= ~clear;
        } else if ((old & (BH_SCHEDULED | BH_IDLE)) == BH_SCHEDULED) {
            new_flags &= ~BH_IDLE; /* it is due sooner already */
        }
    } while (!cas_seq(&bh->flags, &old, new_flags));
    if (!(old & BH_PENDING) && !push(ctx, bh)) {
        end_closed(bh, new_flags);
        return;
    }
    /*
     * Also when it was pending: it may have been idle or cancelled, and nobody was told.  Without
     * urgency only a sleeper is woken, to take this into its timeout; it announces the sleep before
     * it looks at the stack, so one of us sees the other.
     */
    if (notify || (ld_seq(&ctx->wake) & WAKE_ASLEEP)) {
        aio_notify(ctx);
    }
}

QEMUBH *aio_bh_new(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    QEMUBH *bh = bh_alloc(ctx, cb, opaque, 0);

    if (!bh) {
        errno = ENOMEM;
    }
    return bh;
}

int aio_bh_schedule_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque)
{
    QEMUBH *bh = bh_alloc(ctx, cb, opaque, BH_ONESHOT | BH_PENDING | BH_SCHEDULED);

    if (!bh) {
        return -ENOMEM;
    }
    if (!push(ctx, bh)) {
        free(bh);
        return -ESHUTDOWN;
    }
    aio_notify(ctx);
    return 0;
}

void qemu_bh_schedule(QEMUBH *bh)
{
    set_flags(bh, BH_SCHEDULED, BH_IDLE, true);
}

void qemu_bh_schedule_idle(QEMUBH *bh)
{
    set_flags(bh, BH_SCHEDULED | BH_IDLE, 0, false);
}

void qemu_bh_cancel(QEMUBH *bh)
{
    fetch_and_seq(&bh->flags, ~(unsigned)(BH_SCHEDULED | BH_IDLE));
}

void qemu_bh_delete(QEMUBH *bh)
{
    if (bh) {
        set_flags(bh, BH_DELETED, BH_SCHEDULED | BH_IDLE, false);
    }
}

/* Moves what was pushed to the end of the FIFO, oldest first, and leaves @instead on the stack. */
static void take_pushed(AioContext *ctx, QEMUBH *instead)
{
    QEMUBH *bh, *first = NULL, *last = NULL;

    last = ld_seq(&ctx->bh_stack);
    if (last == instead || last == BH_STACK_CLOSED) { /* closed for good */
        return;
    }
    last = xchg_seq(&ctx->bh_stack, instead);
    if (!last) {
        return;
    }
    for (bh = last; bh;) {
        QEMUBH *next = ld_relaxed(&bh->next);

        st_relaxed(&bh->next, first);
        first = bh;
        bh = next;
    }
    if (ctx->bh_first) {
        st_relaxed(&ctx->bh_last->next, first);
    } else {
        ctx->bh_first = first;
    }
    ctx->bh_last = last;
}

static QEMUBH *pop_first(AioContext *ctx)
{
    QEMUBH *bh = ctx->bh_first;

    if (bh) {
        ctx->bh_first = ld_relaxed(&bh->next);
    }
    return bh;
}

static bool run_fifo(AioContext *ctx)
{
    bool progress = false, observed = is_observed(ctx);
    struct observe_call call;
    QEMUBH *bh;

    while ((bh = pop_first(ctx))) {
        /* Once it is not pending it can be pushed again, or freed if the stack is closed. */
        QEMUBHFunc *cb = bh->cb;
        void *opaque = bh->opaque;
        unsigned old = fetch_and_seq(&bh->flags, ~(unsigned)(BH_PENDING | BH_SCHEDULED | BH_IDLE));

        if (old & (BH_DELETED | BH_ONESHOT)) {
            free(bh);
        }
        if ((old & (BH_DELETED | BH_SCHEDULED)) == BH_SCHEDULED) {
            count_own(&ctx->stats->bhs, 1);
            progress |= !(old & BH_IDLE);
            probe3(bh_run, ctx, cb, opaque);
            observe_begin(ctx, observed, &call, OBSERVE_BH, func_address(cb), -1);
            this_thread.callbacks++;
            cb(opaque);
            this_thread.callbacks--;
            observe_end(ctx, &call);
        }
    }
    return progress;
}

bool bh_poll(AioContext *ctx)
{
    take_pushed(ctx, NULL);
    return run_fifo(ctx);
}

bool bh_try_close(AioContext *ctx)
{
    QEMUBH *empty = NULL;

    return !ctx->bh_first && cas_seq(&ctx->bh_stack, &empty, BH_STACK_CLOSED);
}

void bh_run_last(AioContext *ctx)
{
    take_pushed(ctx, BH_STACK_CLOSED);
    run_fifo(ctx);
}

int64_t bh_timeout(AioContext *ctx)
{
    QEMUBH *top = ld_seq(&ctx->bh_stack);
    int64_t timeout = -1;

    if (ctx->bh_first) {
        return 0;
    }
    if (top == BH_STACK_CLOSED) {
        return -1;
    }
    /* Only the home thread, which this is, takes anything off the stack. */
    for (QEMUBH *bh = top; bh; bh = ld_relaxed(&bh->next)) {
        unsigned flags = ld_seq(&bh->flags);

        if ((flags & BH_DELETED) || (flags & (BH_SCHEDULED | BH_IDLE)) == BH_SCHEDULED) {
            return 0;
        }
        if (flags & BH_SCHEDULED) {
            timeout = IDLE_BH_NS;
        }
    }
    return timeout;
}

void bh_drop_all(AioContext *ctx)
{
    QEMUBH *bh;

    take_pushed(ctx, BH_STACK_CLOSED);
    while ((bh = pop_first(ctx))) {
        unsigned old = fetch_and_seq(&bh->flags, ~(unsigned)(BH_PENDING | BH_SCHEDULED | BH_IDLE));

        if (old & (BH_DELETED | BH_ONESHOT)) {
            free(bh);
        }
    }
}

void bh_free_ended(QEMUBH *bh)
{
    must(!(ld_relaxed(&bh->flags) & BH_PENDING));
    free(bh);
}
