/* SPDX-License-Identifier: MIT */
/*
 * A program without iothreads: everything runs on the main loop.  It reads the first bytes of IMAGE
 * (without one, of a disk of zeroes that needs no file), lets a timer tick, and then shows what
 * comes on its standard input, until that ends.
 * usage: main_loop [IMAGE]
 */
#include <aioctx/aioctx.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_NS (5 * SCALE_MS)

struct app {
    BlockBackend *blk;
    QEMUTimer *tick;
    int ticks_left;
    QEMUIOVector qiov;
    unsigned char buf[512];
    bool done;
    int status;
};

static void end(struct app *app, int status)
{
    app->status = status;
    app->done = true;
}

static void on_input(void *opaque)
{
    struct app *app = opaque;
    char buf[256];
    ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

    if (n > 0) {
        fwrite(buf, 1, (size_t)n, stdout);
        return;
    }
    qemu_set_fd_handler(STDIN_FILENO, NULL, NULL, NULL);
    printf("end of input\n");
    end(app, n < 0 ? 1 : 0);
}

static void read_input(struct app *app)
{
    int ret = qemu_set_fd_handler(STDIN_FILENO, on_input, NULL, app);

    if (ret < 0) {
        fprintf(stderr, "main_loop: standard input: %s\n", strerror(-ret));
        end(app, 1);
    }
}

static void on_tick(void *opaque)
{
    struct app *app = opaque;

    printf("tick, %d left\n", --app->ticks_left);
    if (app->ticks_left > 0) {
        timer_forward(app->tick, qemu_clock_get_ns(QEMU_CLOCK_REALTIME), TICK_NS);
    } else {
        read_input(app);
    }
}

static void on_read(void *opaque, int ret)
{
    struct app *app = opaque;

    printf("read of %zu bytes: %s\n", app->qiov.size, ret == 0 ? "done" : strerror(-ret));
    if (ret < 0) {
        end(app, 1);
        return;
    }
    timer_mod_ns(app->tick, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + TICK_NS);
}

/* Begins with a read; the rest follows from callback to callback. */
static void start(struct app *app)
{
    qemu_iovec_init_buf(&app->qiov, app->buf, sizeof(app->buf));
    if (!blk_aio_preadv(app->blk, 0, &app->qiov, 0, on_read, app)) {
        perror("main_loop: blk_aio_preadv");
        end(app, 1);
    }
}

int main(int argc, char **argv)
{
    static struct app app = { .ticks_left = 3 };
    char *why = NULL;
    int ret = qemu_init_main_loop(NULL);

    if (ret < 0) {
        fprintf(stderr, "main_loop: qemu_init_main_loop: %s\n", strerror(-ret));
        return 1;
    }
    app.blk = blk_open(argc > 1 ? argv[1] : "null:?size=1M&latency-ns=1000000", &why);
    if (!app.blk) {
        fprintf(stderr, "main_loop: %s\n", why ? why : strerror(errno));
        free(why);
        qemu_cleanup_main_loop();
        return 1;
    }
    app.tick =
        timer_new_ns(QEMU_CLOCK_REALTIME, on_tick, &app); /* no list named: the main loop's */
    start(&app);
    while (!app.done) {
        main_loop_wait(false);
    }
    timer_free(app.tick);
    blk_unref(app.blk);
    qemu_cleanup_main_loop();
    return app.status;
}
