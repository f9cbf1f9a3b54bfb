/* SPDX-License-Identifier: MIT */
/*
 * A context inside libuv: a periodic timer, an fd and block requests run on the context, beside a
 * timer of libuv's.  Ends by itself; the exit status says whether everything came.
 * usage: embed_libuv [IMAGE]
 */
#include <aioctx/aioctx.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

enum { TICKS = 5, WORDS = 3, READS = 32, HOST_TICKS = 3, DEPTH = 4, SIZE = 512 };

struct app;

struct slot { /* one request at a time */
    struct app *app;
    QEMUIOVector qiov;
    unsigned char buf[SIZE];
};

struct app {
    AioContext *ctx;
    BlockBackend *blk;
    QEMUTimer *tick;
    int64_t next_ns;
    int pipe[2];
    struct slot slots[DEPTH];
    int ticks, words, submitted, reads, errors, host_ticks;
};

/* Each tick sends a word through the pipe. */
static void on_tick(void *opaque)
{
    struct app *app = opaque;

    app->ticks++;
    if (app->ticks <= WORDS && write(app->pipe[1], "word", 4) != 4) {
        app->errors++;
    }
    if (app->ticks < TICKS) {
        app->next_ns += 2 * SCALE_MS;
        timer_mod_ns(app->tick, app->next_ns);
    }
}

static void on_word(void *opaque)
{
    struct app *app = opaque;
    char word[4];

    if (read(app->pipe[0], word, sizeof(word)) == sizeof(word)) {
        app->words++;
    }
}

static void on_read(void *opaque, int ret);

static void submit(struct slot *slot)
{
    struct app *app = slot->app;

    app->submitted++;
    if (!blk_aio_preadv(app->blk, 0, &slot->qiov, 0, on_read, slot)) {
        app->errors++;
    }
}

static void on_read(void *opaque, int ret)
{
    struct slot *slot = opaque;
    struct app *app = slot->app;

    app->reads++;
    app->errors += ret < 0;
    if (app->submitted < READS) {
        submit(slot);
    }
}

static int start(struct app *app)
{
    if (pipe2(app->pipe, O_CLOEXEC | O_NONBLOCK) < 0) {
        return -errno;
    }
    app->tick = aio_timer_new(app->ctx, QEMU_CLOCK_REALTIME, SCALE_NS, on_tick, app);
    if (!app->tick) {
        return -ENOMEM;
    }
    app->next_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 2 * SCALE_MS;
    timer_mod_ns(app->tick, app->next_ns);
    for (int i = 0; i < DEPTH; i++) {
        struct slot *slot = &app->slots[i];

        slot->app = app;
        qemu_iovec_init_buf(&slot->qiov, slot->buf, SIZE);
        submit(slot);
    }
    return aio_set_fd_handler(app->ctx, app->pipe[0], on_word, NULL, NULL, NULL, app);
}

static bool is_done(const struct app *app)
{
    return app->ticks == TICKS && app->words == WORDS && app->reads == READS;
}

/*
 * The adapter: the fd as a poll handle, and calls before and after each wait.  libuv calls them in
 * the order prepare, wait and poll handles, check; while an idle handle is active it does not wait.
 */
struct embedded {
    AioContext *ctx;
    uv_poll_t poll;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    bool ready;
};

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct embedded *e = poll->data;

    e->ready = true;
}

static void on_idle(uv_idle_t *idle)
{
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct embedded *e = prepare->data;

    e->ready = aio_context_prepare(e->ctx);
    if (e->ready) {
        uv_idle_start(&e->idle, on_idle);
    } else {
        uv_idle_stop(&e->idle);
    }
}

static void on_check(uv_check_t *check)
{
    struct embedded *e = check->data;

    if (e->ready) {
        e->ready = false;
        aio_context_dispatch(e->ctx);
    }
}

static int embed(struct embedded *e, uv_loop_t *loop, AioContext *ctx)
{
    int fd = aio_context_get_fd(ctx);

    if (fd < 0) {
        return fd;
    }
    e->ctx = ctx;
    uv_poll_init(loop, &e->poll, fd);
    uv_prepare_init(loop, &e->prepare);
    uv_check_init(loop, &e->check);
    uv_idle_init(loop, &e->idle);
    e->poll.data = e->prepare.data = e->check.data = e;
    uv_poll_start(&e->poll, UV_READABLE, on_readable);
    uv_prepare_start(&e->prepare, on_prepare);
    uv_check_start(&e->check, on_check);
    return 0;
}

/* Before the context goes. */
static void unembed(struct embedded *e)
{
    uv_close((uv_handle_t *)&e->poll, NULL);
    uv_close((uv_handle_t *)&e->prepare, NULL);
    uv_close((uv_handle_t *)&e->check, NULL);
    uv_close((uv_handle_t *)&e->idle, NULL);
}

static void on_host_tick(uv_timer_t *timer)
{
    struct app *app = timer->data;

    if (++app->host_ticks == HOST_TICKS) {
        uv_close((uv_handle_t *)timer, NULL);
    }
}

static int run(struct app *app)
{
    uv_loop_t *loop = uv_default_loop();
    struct embedded e = { 0 };
    uv_timer_t timer;
    int ret = embed(&e, loop, app->ctx);

    if (ret < 0) {
        return ret;
    }
    uv_timer_init(loop, &timer);
    timer.data = app;
    uv_timer_start(&timer, on_host_tick, 3, 3);
    while (!is_done(app) || app->host_ticks < HOST_TICKS) {
        uv_run(loop, UV_RUN_ONCE);
    }
    unembed(&e);
    uv_run(loop, UV_RUN_DEFAULT); /* until all handles are closed */
    return uv_loop_close(loop);
}

int main(int argc, char **argv)
{
    static struct app app;
    char *why = NULL;
    int ret;

    app.ctx = aio_context_new(NULL);
    if (!app.ctx) {
        perror("embed_libuv: aio_context_new");
        return 1;
    }
    app.blk = blk_open(argc > 1 ? argv[1] : "null:?size=1M&latency-ns=200000", &why);
    if (!app.blk) {
        fprintf(stderr, "embed_libuv: %s\n", why ? why : "out of memory");
        free(why);
        aio_context_unref(app.ctx);
        return 1;
    }
    qemu_set_current_aio_context(app.ctx); /* where requests are submitted */
    ret = start(&app);
    if (ret == 0) {
        ret = run(&app);
    }
    if (ret < 0) {
        fprintf(stderr, "embed_libuv: %s\n", strerror(-ret));
    }
    printf("ticks %d, words %d, reads %d, errors %d, libuv ticks %d\n", app.ticks, app.words,
           app.reads, app.errors, app.host_ticks);
    timer_free(app.tick);
    blk_unref(app.blk);
    aio_context_unref(app.ctx);
    close(app.pipe[0]);
    close(app.pipe[1]);
    return ret == 0 && app.errors == 0 ? 0 : 1;
}
