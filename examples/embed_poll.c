/* SPDX-License-Identifier: MIT */
/*
 * A context inside a loop of plain poll(2), which waits without a timeout: a periodic timer, an fd
 * and block requests run on the context, and the loop has an fd of its own, standard input.
 * Ends by itself; the exit status says whether everything came.
 * usage: embed_poll [IMAGE]
 */
#include <aioctx/aioctx.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TICKS = 5, WORDS = 3, READS = 32, DEPTH = 4, SIZE = 512 };

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
    int ticks, words, submitted, reads, errors;
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

/* The host: it knows nothing of the context but the fd and two calls. */
static int run(struct app *app)
{
    struct pollfd fds[] = {
        { .fd = aio_context_get_fd(app->ctx), .events = POLLIN },
        { .fd = STDIN_FILENO, .events = POLLIN },
    };
    bool input = true;

    if (fds[0].fd < 0) {
        return fds[0].fd;
    }
    while (input || !is_done(app)) {
        bool now = aio_context_prepare(app->ctx); /* last before the wait */

        if (poll(fds, 2, now ? 0 : -1) < 0 && errno != EINTR) {
            return -errno;
        }
        if (now || fds[0].revents) {
            aio_context_dispatch(app->ctx);
        }
        if (fds[1].revents) {
            char buf[256];
            ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

            fwrite(buf, 1, n > 0 ? (size_t)n : 0, stdout);
            input = n > 0;
            fds[1].fd = input ? STDIN_FILENO : -1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct app app;
    char *why = NULL;
    int ret;

    app.ctx = aio_context_new(NULL);
    if (!app.ctx) {
        perror("embed_poll: aio_context_new");
        return 1;
    }
    app.blk = blk_open(argc > 1 ? argv[1] : "null:?size=1M&latency-ns=200000", &why);
    if (!app.blk) {
        fprintf(stderr, "embed_poll: %s\n", why ? why : "out of memory");
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
        fprintf(stderr, "embed_poll: %s\n", strerror(-ret));
    }
    printf("ticks %d, words %d, reads %d, errors %d\n", app.ticks, app.words, app.reads,
           app.errors);
    timer_free(app.tick);
    blk_unref(app.blk);
    aio_context_unref(app.ctx);
    close(app.pipe[0]);
    close(app.pipe[1]);
    return ret == 0 && app.errors == 0 ? 0 : 1;
}
