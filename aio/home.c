/* SPDX-License-Identifier: MIT */
/*
 * A context's home thread: bound at its first poll, for good.
 *
 * Only home touches the ring, so only home closes it.  The last reference may go on another thread:
 * then the context becomes a zombie, which home closes when it next polls any context, or exits.  A
 * home thread that exits ends its contexts as iothread_stop() does, since nobody could poll them
 * any more; then home_gone lets the last reference, wherever it goes, free what is left.  Who does
 * what is decided under the context's lock.
 */
#include "aio/home_int.h"

#include "aio/aio_int.h"
#include "rcu/rcu_int.h"

#include <unistd.h>

static __thread struct home_thread self __attribute__((tls_model("initial-exec")));
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static bool is_mine(const AioContext *ctx)
{
    const AioContext *c = self.contexts;

    while (c && c != ctx) {
        c = c->next_of_home;
    }
    return c != NULL;
}

/* Takes the right to close @ctx, if it is a zombie: one caller gets it, nested ones included. */
static bool take_zombie(AioContext *ctx, bool exiting)
{
    pthread_mutex_lock(&ctx->lock);
    bool zombie = ctx->zombie;
    if (zombie && ctx->depth && !exiting) { /* it is on our stack: later */
        st_relaxed(&self.zombies, true);
        zombie = false;
    } else {
        ctx->zombie = false;
    }
    if (exiting && !zombie) {
        ctx->home_gone = true;
        st_release(&ctx->home, NULL);
    }
    pthread_mutex_unlock(&ctx->lock);
    return zombie;
}

static void thread_exits(void *unused)
{
    AioContext *ctx;

    if (rcu_forked) {
        return; /* they are the parent's */
    }
    while ((ctx = self.contexts)) {
        observe_forget(ctx);
        ctx->depth = 0; /* a cancelled thread has left its callbacks, or its sleep, for good */
        handlers_forget_callbacks(ctx);
        if (!ctx->shut) {
            self.current = ctx;
            context_shutdown(ctx, "exit of a home thread", CONTEXT_STOP_LIMIT_NS);
        }
        home_forget(ctx);
        if (take_zombie(ctx, true)) {
            context_close(ctx);
        }
    }
    self.current = NULL;
}

static void make_exit_key(void)
{
    if (pthread_key_create(&exit_key, thread_exits) != 0) {
        die_misuse("aio_poll", "the process has no thread-specific key left (PTHREAD_KEYS_MAX)");
    }
}

static void bind(AioContext *ctx, const char *call)
{
    pthread_once(&exit_once, make_exit_key);
    pthread_mutex_lock(&ctx->lock);
    if (ctx->home || ctx->home_gone) {
        die_misuse(call, "the context's home is another thread, which alone may poll it");
    }
    st_release(&ctx->home, &self);
    pthread_mutex_unlock(&ctx->lock);
    st_relaxed(&ctx->slot->tid, (int)gettid());
    st_relaxed(&ctx->slot->state, AIO_STATS_HOME);
    ctx->next_of_home = self.contexts;
    self.contexts = ctx;
    if (pthread_setspecific(exit_key, &self) != 0) {
        die_misuse(call, "out of memory");
    }
    rcu_set_never_block();
    ctx->mon->attach(ctx);
}

void context_enter_home(AioContext *ctx, const char *call)
{
    rcu_check_fork(call);
    if (unlikely(ld_acquire(&ctx->home) != &self)) {
        bind(ctx, call);
    }
    if (unlikely(ctx->shut)) {
        die_misuse(call, "the context has ended: its iothread was stopped");
    }
}

void home_close_zombies(void)
{
    AioContext *ctx;

    if (likely(!ld_relaxed(&self.zombies)) || !xchg_seq(&self.zombies, false)) {
        return;
    }
    for (ctx = self.contexts; ctx;) {
        if (take_zombie(ctx, false)) {
            context_close(ctx);
            ctx = self.contexts; /* its callbacks may have changed the list: begin again */
        } else {
            ctx = ctx->next_of_home;
        }
    }
}

void home_unset_current(AioContext *ctx)
{
    self.forgotten++; /* an iteration that has begun does not go back to it */
    if (self.current == ctx) {
        self.current = NULL;
    }
}

void home_forget(AioContext *ctx)
{
    AioContext **p = &self.contexts;

    while (*p && *p != ctx) {
        p = &(*p)->next_of_home;
    }
    if (*p) {
        *p = ctx->next_of_home;
    }
    home_unset_current(ctx);
}

struct home_before home_begin_iteration(AioContext *ctx)
{
    struct home_before before = { self.current, self.forgotten };

    self.current = ctx;
    self.depth++;
    return before;
}

void home_end_iteration(struct home_before before)
{
    self.depth--;
    /* It may have been closed, or have ended, meanwhile. */
    if (before.current && (likely(before.forgotten == self.forgotten) ||
                           (is_mine(before.current) && !before.current->shut))) {
        self.current = before.current;
    }
}

bool in_aio_context_home_thread(AioContext *ctx)
{
    return ld_acquire(&ctx->home) == &self;
}

AioContext *qemu_get_current_aio_context(void)
{
    return self.current;
}

void qemu_set_current_aio_context(AioContext *ctx)
{
    context_enter_home(ctx, "qemu_set_current_aio_context");
    if (!self.depth) { /* below a callback, the context whose callback it is stays current */
        self.current = ctx;
    }
}
