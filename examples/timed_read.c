/* SPDX-License-Identifier: MIT */
/*
 * A periodic tick that does not drift, and a read that must end within 50 ms, on one iothread.
 * usage: timed_read FILE
 */
#include <aioctx/aioctx.h>
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_NS (5 * SCALE_MS)
#define DEADLINE_NS (50 * SCALE_MS)
#define TICKS_MIN 3

struct app {
    BlockBackend *blk;
    QEMUTimer *tick;
    int64_t next_ns; /* when the next tick is due */
    unsigned ticks;
    QEMUIOVector qiov;
    unsigned char buf[4096];
    int result;
    sem_t done; /* posted by the read and by the last tick */
};

/* The next tick is counted from when this one was due, not from when it came: so no drift. */
static void on_tick(void *opaque)
{
    struct app *app = opaque;

    app->next_ns += TICK_NS;
    timer_mod_ns(app->tick, app->next_ns);
    if (++app->ticks == TICKS_MIN) {
        sem_post(&app->done);
    }
}

/* Called once: 0, -errno of the file, or -ETIMEDOUT when the deadline passed. */
static void on_read(void *opaque, int ret)
{
    struct app *app = opaque;

    app->result = ret;
    sem_post(&app->done);
}

/* A bottom half: requests are submitted on the thread on which they shall complete. */
static void start_read(void *opaque)
{
    struct app *app = opaque;
    BlkReqOpts opts = { .deadline_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + DEADLINE_NS };

    if (!blk_aio_preadv_opts(app->blk, 0, &app->qiov, 0, on_read, app, &opts)) {
        on_read(app, -errno);
    }
}

/* Runs the tick and the read; returns the read's result or -errno. */
static int run(struct app *app, IOThread *io)
{
    AioContext *ctx = iothread_get_aio_context(io);
    char *why = NULL;
    int ret = blk_check_context(app->blk, ctx, &why);

    if (ret < 0) {
        fprintf(stderr, "timed_read: %s\n", why ? why : strerror(-ret));
        free(why);
        return ret;
    }
    app->tick = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, on_tick, app);
    if (!app->tick) {
        return -ENOMEM;
    }
    app->next_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + TICK_NS;
    timer_mod_ns(app->tick, app->next_ns);

    ret = aio_bh_schedule_oneshot(ctx, start_read, app);
    if (ret == 0) {
        sem_wait(&app->done);
        sem_wait(&app->done);
        ret = app->result;
    }
    timer_del_sync(app->tick); /* from here on nobody else touches app */
    timer_free(app->tick);
    return ret;
}

int main(int argc, char **argv)
{
    static struct app app;
    char *why = NULL;

    if (argc != 2) {
        fprintf(stderr, "usage: timed_read FILE\n");
        return 2;
    }
    app.blk = blk_open(argv[1], &why);
    if (!app.blk) {
        fprintf(stderr, "timed_read: %s\n", why ? why : strerror(errno));
        free(why);
        return 1;
    }
    int64_t length = blk_getlength(app.blk);
    size_t size = length < (int64_t)sizeof(app.buf) ? (size_t)length : sizeof(app.buf);
    qemu_iovec_init_buf(&app.qiov, app.buf, size);
    sem_init(&app.done, 0, 0);

    IOThread *io = iothread_new("io0", NULL);
    if (!io) {
        perror("timed_read: iothread_new");
        blk_unref(app.blk);
        return 1;
    }
    int ret = run(&app, io);
    blk_unref(app.blk);
    iothread_destroy(io);

    printf("read of %zu bytes: %s\n", size, ret == 0 ? "done" : strerror(-ret));
    printf("ticks meanwhile: %s\n", app.ticks >= TICKS_MIN ? "yes" : "no");
    return ret == 0 ? 0 : 1;
}
