/* SPDX-License-Identifier: MIT */
/* The two sides of the wake word; the protocol is at the top of aio_int.h. */
#include "aio/wake_int.h"

#include "aio/aio_int.h"
#include "rcu/rcu_int.h"

#include <errno.h>
#include <unistd.h>

static void write_wake_fd(AioContext *ctx)
{
    const uint64_t one = 1;
    int saved = errno;         /* we may be in a signal handler */
    int cancel = cancel_off(); /* who armed a timer must not end between that and this */

    while (write(ctx->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    cancel_restore(cancel);
    errno = saved;
    fetch_add_seq(&ctx->slot->notifies_sent, 1);
}

static __attribute__((noinline)) void wake_up(AioContext *ctx, uint64_t slept)
{
    const uint64_t same = WAKE_ASLEEP | WAKE_SLEEP_MASK;
    uint64_t now;

    if (ld_relaxed(&ctx->observing) & OBSERVE_HISTOGRAMS) {
        int64_t none = 0;

        (void)cas_seq(&ctx->notified_ns, &none, clock_monotonic_ns());
    }
    write_wake_fd(ctx);
    now = ld_seq(&ctx->wake);
    while ((now & same) == (slept & same) && !(now & WAKE_SENT)) {
        if (cas_seq(&ctx->wake, &now, now | WAKE_SENT)) {
            break;
        }
    }
}

void aio_notify(AioContext *ctx)
{
    rcu_check_fork("aio_notify");                             /* the eventfd is the parent's */
    uint64_t old = fetch_add_seq(&ctx->wake, WAKE_COUNT_ONE); /* pairs with wake_begin_sleep() */

    if ((old & (WAKE_ASLEEP | WAKE_SENT)) == WAKE_ASLEEP) {
        probe1(notify_sent, ctx);
        wake_up(ctx, old);
    } else {
        probe1(notify_saved, ctx);
    }
}

#define COUNT_MASK ((UINT64_C(1) << (64 - WAKE_COUNT_SHIFT)) - 1)

static uint64_t count_of(uint64_t wake)
{
    return wake >> WAKE_COUNT_SHIFT;
}

bool wake_begin_sleep(AioContext *ctx)
{
    uint64_t old = ld_seq(&ctx->wake);
    uint64_t next = (old & ~WAKE_SLEEP_MASK) | ((old + WAKE_SLEEP_ONE) & WAKE_SLEEP_MASK);

    return count_of(old) == (ctx->stats->notifies & COUNT_MASK) &&
           cas_seq(&ctx->wake, &old, next | WAKE_ASLEEP);
}

bool wake_is_notified(AioContext *ctx)
{
    return count_of(ld_seq(&ctx->wake)) != (ctx->stats->notifies & COUNT_MASK);
}

/* The 64-bit count of which @wake holds the low bits, @before being an earlier one. */
static uint64_t extend_count(uint64_t before, uint64_t wake)
{
    return before + ((count_of(wake) - before) & COUNT_MASK);
}

bool wake_end_sleep(AioContext *ctx)
{
    uint64_t wake = ld_seq(&ctx->wake), before = ctx->stats->notifies, now;

    if (wake & WAKE_ASLEEP) {
        wake = fetch_and_seq(&ctx->wake, ~(WAKE_ASLEEP | WAKE_SENT));
    }
    now = extend_count(before, wake);
    st_relaxed(&ctx->stats->notifies, now);
    return now != before;
}

uint64_t wake_count_notifies(AioContext *ctx)
{
    uint64_t before = ld_acquire(&ctx->stats->notifies);

    return extend_count(before, ld_seq(&ctx->wake));
}
