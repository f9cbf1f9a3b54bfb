/* SPDX-License-Identifier: MIT */
/*
 * File descriptor handlers.
 *
 * The table belongs to the home thread alone.  Other threads push requests onto ctx->fd_requests, a
 * stack that home takes whole, reverses and appends to the FIFO ctx->fd_taken, so that one thread's
 * requests take effect in its order.  A request is taken out before it is applied.  One that asks
 * to be told goes on to the FIFO ctx->fd_told, whose callbacks only the loop calls; while the
 * handler's own callback is on the stack it waits at the handler.
 *
 * A handler that is removed may still be on a callback's stack (busy) or have a completion among
 * those to be dispatched (queued, poll_queued); it is freed by whoever ends the last of these.
 */
#include "aio/aio_int.h"
#include "rcu/rcu_int.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct fd_request {
    struct fd_request *next;
    int fd;
    IOHandler *io_read, *io_write, *io_poll_ready;
    AioPollFn *io_poll;
    void *opaque;
    EventNotifier *notifier;
    QEMUBHFunc *done; /* of aio_remove_fd_handler_async() */
    void *done_opaque;
};

static AioHandler *find(AioContext *ctx, int fd)
{
    return fd < ctx->handlers_size ? ctx->handlers[fd] : NULL;
}

/* Moves all of @from to the end of @to. */
static void append_all(struct fd_queue *to, struct fd_queue *from)
{
    if (!from->first) {
        return;
    }
    if (to->first) {
        to->last->next = from->first;
    } else {
        to->first = from->first;
    }
    to->last = from->last;
    from->first = NULL;
}

static void append(struct fd_queue *to, struct fd_request *req)
{
    struct fd_queue one = { req, req };

    req->next = NULL;
    append_all(to, &one);
}

static struct fd_request *pop(struct fd_queue *from)
{
    struct fd_request *req = from->first;

    if (req) {
        from->first = req->next;
    }
    return req;
}

/* Nothing of @h is on the stack any more: who waited for that may be told. */
static void callback_returned(AioHandler *h)
{
    if (--h->busy > 0) {
        return;
    }
    h->ctx->busy = h->busy_below;
    append_all(&h->ctx->fd_told, &h->told);
}

static void callback_begins(AioHandler *h)
{
    if (h->busy++ == 0) {
        h->busy_below = h->ctx->busy;
        h->ctx->busy = h;
    }
}

/* The handler of @fd, removed or not, whose callback is on the stack.  Of several the outermost: a
 * callback may have replaced its own handler and run the new one's. */
static AioHandler *find_busy(AioContext *ctx, int fd)
{
    AioHandler *found = NULL;

    for (AioHandler *h = ctx->busy; h; h = h->busy_below) {
        if (h->fd == fd) {
            found = h;
        }
    }
    return found;
}

static void free_unless_used(AioHandler *h)
{
    if (h->removed && !h->busy && !h->queued && !h->poll_queued) {
        free(h);
    }
}

static void call_handler(AioHandler *h, IOHandler *func, enum observe_kind kind)
{
    AioContext *ctx = h->ctx;
    struct observe_call call;

    count_own(&ctx->stats->fd_events, 1);
    observe_begin(ctx, is_observed(ctx), &call, kind, func_address(func), h->fd);
    if (h->notifier) {
        ((EventNotifierHandler *)(void *)func)(h->notifier);
    } else {
        func(h->opaque);
    }
    observe_end(ctx, &call);
}

/* The fd is not open, or cannot be polled: watching it again would end at once for ever. */
static bool is_beyond_watching(const CqeHandler *ready)
{
    return ready->res == -EBADF || ready->res == -EINVAL ||
           (ready->res > 0 && (ready->res & POLLNVAL));
}

static void call_handlers(AioContext *ctx, AioHandler *h, uint32_t revents)
{
    probe3(fd_dispatch, ctx, h->fd, revents);
    if (h->io_read && (revents & (POLLIN | POLLHUP | POLLERR | POLLRDHUP | POLLPRI))) {
        call_handler(h, h->io_read, OBSERVE_FD_READ);
    }
    if (!h->removed && h->io_write && (revents & (POLLOUT | POLLHUP | POLLERR))) {
        call_handler(h, h->io_write, OBSERVE_FD_WRITE);
    }
}

/* The events of @h's that its fd shows now. */
static uint32_t look_at_fd(AioContext *ctx, AioHandler *h)
{
    struct pollfd now = { .fd = h->fd, .events = (short)h->events };

    h->recheck = false;
    count_own(&ctx->stats->syscalls, 1);
    return poll(&now, 1, 0) > 0 ? (uint32_t)now.revents : 0;
}

/* A completion of the monitor's: res is the mask of events, or an error, which the handlers see as
 * POLLERR does: by what their system calls return. */
static void dispatch(CqeHandler *ready)
{
    AioHandler *h = container_of(ready, AioHandler, ready);
    AioContext *ctx = h->ctx;
    bool lost = is_beyond_watching(ready);
    /* ECANCELED: so some kernels change the events; ENOMEM: try again. */
    uint32_t revents = lost ? POLLERR : ready->res < 0 ? 0 : (uint32_t)ready->res;

    h->queued = false;
    if (h->removed) {
        ctx->idle_events++;
        free_unless_used(h);
        return;
    }
    callback_begins(h);
    if (lost) {
        h->events = 0; /* until new handlers are set */
        poll_remove(ctx, h);
        ctx->mon->unwatch(ctx, h);
    } else { /* before the callbacks, so that a nested poll sees what they leave */
        if (!h->io_poll || !poll_parks(ctx, h)) {
            ctx->mon->rewatch(ctx, h);
        }
    }
    if (unlikely(h->recheck) && !lost) {
        revents = look_at_fd(ctx, h);
    }
    ctx->idle_events += revents == 0;
    call_handlers(ctx, h, revents);
    callback_returned(h);
    free_unless_used(h);
}

/* Calls io_poll, which may set @h anew, or remove it.  Returns what it has found, for the handlers
 * that are set now. */
static bool ask(AioHandler *h)
{
    AioPollFn *io_poll = h->io_poll;
    void *opaque = h->opaque;
    bool found = io_poll(opaque);

    h->poll_replaced = h->io_poll != io_poll || h->opaque != opaque;
    return found && h->io_poll && !h->removed;
}

/* What was found was for another io_poll than the present one. */
static bool ask_again(AioHandler *h)
{
    return h->io_poll && ask(h) && !h->poll_replaced;
}

/* The completion of what io_poll has found. */
static void dispatch_polled(CqeHandler *found)
{
    AioHandler *h = container_of(found, AioHandler, poll_ready);
    AioContext *ctx = h->ctx;

    h->poll_queued = false;
    if (h->removed) {
        ctx->idle_events++;
        free_unless_used(h);
        return;
    }
    callback_begins(h);
    if (h->poll_replaced && !ask_again(h)) {
        ctx->idle_events++;
    } else {
        IOHandler *func = h->io_poll_ready ? h->io_poll_ready
                          : h->io_read     ? h->io_read
                                           : h->io_write;

        /* What the kernel has seen, or an fd that it still watches, may be the same thing. */
        h->recheck |= h->queued || (h->armed && ctx->mon->one_shot);
        call_handler(h, func, OBSERVE_FD_READ);
    }
    callback_returned(h);
    free_unless_used(h);
}

void handler_poll(AioHandler *h)
{
    AioContext *ctx = h->ctx;

    if (h->queued || h->poll_queued) {
        return;
    }
    callback_begins(h);
    this_thread.callbacks++;
    if (ask(h) && !h->queued && !h->poll_queued) {
        h->poll_queued = true;
        poll_add(ctx, h);
        context_complete(ctx, &h->poll_ready);
    }
    this_thread.callbacks--;
    callback_returned(h);
    free_unless_used(h);
}

void handlers_forget_callbacks(AioContext *ctx)
{
    AioHandler *h;

    while ((h = ctx->busy)) {
        h->busy = 1;
        callback_returned(h);
        free_unless_used(h);
    }
}

static int grow_table(AioContext *ctx, int fd)
{
    int size = ctx->handlers_size ? ctx->handlers_size : 64;
    AioHandler **table;

    while (size <= fd) {
        size *= 2;
    }
    if (size == ctx->handlers_size) {
        return 0;
    }
    table = realloc(ctx->handlers, size * sizeof(*table));
    if (!table) {
        return -ENOMEM;
    }
    memset(table + ctx->handlers_size, 0, (size - ctx->handlers_size) * sizeof(*table));
    ctx->handlers = table;
    ctx->handlers_size = size;
    return 0;
}

static void remove_handler(AioContext *ctx, AioHandler *h)
{
    ctx->handlers[h->fd] = NULL;
    h->removed = true;
    poll_remove(ctx, h);
    ctx->mon->unwatch(ctx, h);
    free_unless_used(h);
}

static int apply(AioContext *ctx, const struct fd_request *req)
{
    AioHandler *h = find(ctx, req->fd);
    int ret;

    if (!req->io_read && !req->io_write) {
        if (h) {
            remove_handler(ctx, h);
        }
        return 0;
    }
    if (!h) {
        struct pollfd probe = { .fd = req->fd };

        if (poll(&probe, 1, 0) > 0 && (probe.revents & POLLNVAL)) {
            return -EBADF; /* not open, or opened with O_PATH */
        }
        ret = grow_table(ctx, req->fd);
        if (ret < 0) {
            return ret;
        }
        h = calloc(1, sizeof(*h));
        if (!h) {
            return -ENOMEM;
        }
        h->ctx = ctx;
        h->fd = req->fd;
        h->ready.cb = dispatch;
        h->poll_ready.cb = dispatch_polled;
        ctx->handlers[req->fd] = h;
    }
    h->io_read = req->io_read;
    h->io_write = req->io_write;
    h->io_poll = req->io_poll;
    h->io_poll_ready = req->io_poll_ready;
    h->opaque = req->opaque;
    h->notifier = req->notifier;
    h->poll_replaced = true;
    uint32_t events = (req->io_read ? POLLIN : 0) | (req->io_write ? POLLOUT : 0);
    if (events != h->events) {
        h->events = events;
        ctx->mon->watch(ctx, h);
    }
    if (h->io_poll) {
        poll_add(ctx, h);
    } else {
        poll_remove(ctx, h);
    }
    return 0;
}

/* Moves what other threads have asked for to the end of the FIFO, oldest first. */
static void take_requests(AioContext *ctx)
{
    struct fd_queue taken = { 0 };
    struct fd_request *req, *next;

    if (!ld_seq(&ctx->fd_requests)) {
        return;
    }
    req = xchg_seq(&ctx->fd_requests, NULL);
    taken.last = req;
    for (; req; req = next) {
        next = req->next;
        req->next = taken.first;
        taken.first = req;
    }
    append_all(&ctx->fd_taken, &taken);
}

/* Passes on a request that was applied, or is dropped. */
static void end_request(AioContext *ctx, AioHandler *busy, struct fd_request *req)
{
    if (!req->done) {
        free(req);
    } else if (busy) {
        append(&busy->told, req);
    } else {
        append(&ctx->fd_told, req);
    }
}

static void apply_requests(AioContext *ctx)
{
    struct fd_request *req;

    take_requests(ctx);
    while ((req = pop(&ctx->fd_taken))) {
        apply(ctx, req); /* the caller has gone: an fd that was closed meanwhile is left out */
        end_request(ctx, find_busy(ctx, req->fd), req);
    }
}

static bool tell(AioContext *ctx)
{
    struct observe_call call;
    struct fd_request *req;
    bool told = false;

    while ((req = pop(&ctx->fd_told))) {
        told = true;
        observe_begin(ctx, is_observed(ctx), &call, OBSERVE_FD_REMOVAL, func_address(req->done),
                      req->fd);
        this_thread.callbacks++;
        req->done(req->done_opaque);
        this_thread.callbacks--;
        observe_end(ctx, &call);
        free(req);
    }
    return told;
}

bool handlers_apply_requests(AioContext *ctx)
{
    apply_requests(ctx);
    return tell(ctx);
}

void handlers_drop_all(AioContext *ctx)
{
    for (int fd = 0; fd < ctx->handlers_size; fd++) {
        if (ctx->handlers[fd]) {
            remove_handler(ctx, ctx->handlers[fd]);
        }
    }
    free(ctx->handlers);
    ctx->handlers = NULL;
    ctx->handlers_size = 0;
}

void handlers_drop_requests(AioContext *ctx)
{
    struct fd_request *req;

    take_requests(ctx);
    while ((req = pop(&ctx->fd_taken))) {
        end_request(ctx, NULL, req);
    }
    tell(ctx);
}

static int push_request(AioContext *ctx, const struct fd_request *from)
{
    struct fd_request *req, *top;

    rcu_check_fork("aio_set_fd_handler");
    req = malloc(sizeof(*req));
    if (!req) {
        return -ENOMEM;
    }
    *req = *from;
    top = ld_relaxed(&ctx->fd_requests);
    do {
        req->next = top;
    } while (!cas_seq(&ctx->fd_requests, &top, req));
    aio_notify(ctx);
    return 0;
}

static int set_handler(AioContext *ctx, const struct fd_request *req)
{
    if (req->fd < 0) {
        return -EBADF;
    }
    if (!in_aio_context_home_thread(ctx)) {
        return push_request(ctx, req);
    }
    rcu_check_fork("aio_set_fd_handler");
    if (ctx->shut) {
        return -ESHUTDOWN;
    }
    apply_requests(ctx); /* what was asked for before comes before */
    return apply(ctx, req);
}

int aio_set_fd_handler(AioContext *ctx, int fd, IOHandler *io_read, IOHandler *io_write,
                       AioPollFn *io_poll, IOHandler *io_poll_ready, void *opaque)
{
    return set_handler(ctx, &(struct fd_request){
                                .fd = fd,
                                .io_read = io_read,
                                .io_write = io_write,
                                .io_poll = io_poll,
                                .io_poll_ready = io_poll_ready,
                                .opaque = opaque,
                            });
}

int aio_remove_fd_handler_async(AioContext *ctx, int fd, QEMUBHFunc *done, void *opaque)
{
    if (fd < 0) {
        return -EBADF;
    }
    return push_request(ctx, &(struct fd_request){ .fd = fd, .done = done, .done_opaque = opaque });
}

int aio_set_event_notifier(AioContext *ctx, EventNotifier *e, EventNotifierHandler *io_read,
                           AioPollFn *io_poll, EventNotifierHandler *io_poll_ready)
{
    return set_handler(ctx, &(struct fd_request){
                                .fd = event_notifier_get_fd(e),
                                .io_read = (IOHandler *)(void *)io_read,
                                .io_poll = io_poll,
                                .io_poll_ready = (IOHandler *)(void *)io_poll_ready,
                                .opaque = e,
                                .notifier = e,
                            });
}
