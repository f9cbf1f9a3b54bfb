/* SPDX-License-Identifier: MIT */
/* IOThread: a thread that polls a context of its own until it is told to stop. */
#include "aio/aio_int.h"
#include "rcu/rcu_int.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

struct IOThread {
    AioContext *ctx;
    pthread_t thread;
    char *name;
    int64_t stop_limit_ns;
    bool stopping; /* atomic */
    bool joined;   /* by iothread_join(); its callers take turns */
    unsigned refs; /* atomic: the owner and the thread; the last one frees */
};

enum { STOP_TIMEOUT_MS = 10000 };

static void put_iothread(IOThread *io)
{
    if (sub_fetch_acq_rel(&io->refs, 1) == 0) {
        free(io->name);
        free(io);
    }
}

static void *run(void *arg)
{
    IOThread *io = arg;
    AioContext *ctx = io->ctx;

    prctl(PR_SET_TIMERSLACK, 1UL);
    qemu_set_current_aio_context(ctx);
    while (!ld_acquire(&io->stopping)) {
        aio_poll(ctx, true);
    }
    context_shutdown(ctx, io->name, io->stop_limit_ns);
    aio_context_unref(ctx); /* the thread's */
    put_iothread(io);
    return NULL;
}

static int start_thread(IOThread *io)
{
    sigset_t all, old;
    char shown[16];
    int ret;

    /* The thread begins with every signal blocked, so that no handler runs on it even once. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&io->thread, NULL, run, io);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret == 0) {
        strncpy(shown, io->name, sizeof(shown) - 1);
        shown[sizeof(shown) - 1] = '\0';
        pthread_setname_np(io->thread, shown);
    }
    return -ret;
}

IOThread *iothread_new(const char *name, const IOThreadOptions *opts)
{
    IOThread *io = calloc(1, sizeof(*io));
    int err = ENOMEM;

    if (!io) {
        goto fail;
    }
    io->name = strdup(name ? name : "iothread");
    if (!io->name) {
        goto free_io;
    }
    io->stop_limit_ns = (opts && opts->stop_timeout_ms ? opts->stop_timeout_ms : STOP_TIMEOUT_MS) *
                        (int64_t)SCALE_MS;
    io->ctx = aio_context_new(opts ? &opts->context : NULL);
    if (!io->ctx) {
        err = errno;
        goto free_name;
    }
    io->refs = 2;
    aio_context_ref(io->ctx);
    err = -start_thread(io);
    if (err) {
        goto free_ctx;
    }
    return io;

free_ctx:
    aio_context_unref(io->ctx);
    aio_context_unref(io->ctx);
free_name:
    free(io->name);
free_io:
    free(io);
fail:
    errno = err;
    return NULL;
}

AioContext *iothread_get_aio_context(IOThread *iothread)
{
    return iothread->ctx;
}

const char *iothread_get_name(const IOThread *iothread)
{
    return iothread->name;
}

void iothread_stop(IOThread *iothread)
{
    st_seq(&iothread->stopping, true);
    aio_notify(iothread->ctx);
}

static void check_not_self(IOThread *io, const char *call)
{
    /* Once it is joined, its pthread_t may be another thread's. */
    if (!io->joined && pthread_equal(pthread_self(), io->thread)) {
        die_misuse(call, "iothread '%s' cannot wait for itself; call iothread_stop()", io->name);
    }
}

int iothread_join(IOThread *iothread)
{
    check_not_self(iothread, "iothread_join");
    rcu_check_may_wait("iothread_join");
    if (iothread->joined) {
        return 0;
    }
    if (this_thread.callbacks) {
        return -EDEADLK;
    }
    pthread_join(iothread->thread, NULL);
    iothread->joined = true;
    return 0;
}

int iothread_destroy(IOThread *iothread)
{
    int ret;

    if (!iothread) {
        return 0;
    }
    check_not_self(iothread, "iothread_destroy");
    iothread_stop(iothread);
    ret = iothread_join(iothread);
    if (ret == -EDEADLK) {
        pthread_detach(iothread->thread);
    }
    aio_context_unref(iothread->ctx);
    put_iothread(iothread);
    return ret;
}
