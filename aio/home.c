/* SPDX-License-Identifier: MIT */
/*
 * A context's home thread: bound at its first poll, for good.
 *
 * The last reference may go on another thread; only home touches the ring, so then the context becomes
 * a zombie, which home closes when it next polls any context, or exits.  When the home thread
 * exits before that, home_gone lets the last reference close the context wherever it goes: the kernel
 * has cancelled the requests of the thread by then.  All of it is decided under the context's lock.
 */
#include "aio/home_int.h"

#include "aio/aio_int.h"
#include "rcu/rcu_int.h"

static __thread struct home_thread self;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static void thread_exits(void *unused)
{
    AioContext *ctx;

    home_close_zombies();
    while ((ctx = self.contexts)) {
        self.contexts = ctx->next_of_home;
        pthread_mutex_lock(&ctx->lock);
        bool zombie = ctx->zombie;
        if (!zombie) {
            ctx->home_gone = true;
            st_release(&ctx->home, NULL);
        }
        pthread_mutex_unlock(&ctx->lock);
        if (zombie) { /* it became one just now; still ours */
            ctx->next_of_home = self.contexts;
            self.contexts = ctx;
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
    ctx->next_of_home = self.contexts;
    self.contexts = ctx;
    pthread_setspecific(exit_key, &self);
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
    if (unlikely(ld_relaxed(&self.zombies))) {
        home_close_zombies();
    }
}

void home_close_zombies(void)
{
    AioContext *ctx, *next;

    if (!xchg_seq(&self.zombies, false)) {
        return;
    }
    for (ctx = self.contexts; ctx; ctx = next) {
        next = ctx->next_of_home;
        pthread_mutex_lock(&ctx->lock);
        bool zombie = ctx->zombie;
        pthread_mutex_unlock(&ctx->lock);
        if (zombie) {
            context_close(ctx);
            next = self.contexts; /* closing may have run callbacks: begin again */
        }
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
    if (self.current == ctx) {
        self.current = NULL;
    }
}

AioContext *home_set_current(AioContext *ctx)
{
    AioContext *before = self.current;

    self.current = ctx;
    return before;
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
    self.current = ctx;
}
