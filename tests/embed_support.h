/* SPDX-License-Identifier: MIT */
/* Hosts: foreign loops that wait for a context's fd, each without a timeout. */
#ifndef TESTS_EMBED_SUPPORT_H
#define TESTS_EMBED_SUPPORT_H

#include "loop_support.h"

#include <memory>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#ifdef HAVE_GLIB
#include <aioctx-glib.h>
#endif
#ifdef HAVE_LIBUV
#include <uv.h>
#endif

class Host
{
public:
    virtual ~Host() = default;
    /* Prepares, waits (not when @wait is false), and dispatches when there is reason to. */
    virtual void Turn(bool wait) = 0;

    void RunUntil(const std::function<bool()> &cond)
    {
        while (!cond()) {
            Turn(true);
            turns++;
        }
    }

    unsigned turns = 0;
};

static inline int GetFd(AioContext *ctx)
{
    int fd = aio_context_get_fd(ctx);

    if (fd < 0) {
        ADD_FAILURE() << "aio_context_get_fd: " << fd;
        abort();
    }
    return fd;
}

/* Whether a wait would end at once. */
static inline bool IsReadable(int fd)
{
    struct pollfd p = { fd, POLLIN, 0 };

    return poll(&p, 1, 0) == 1;
}

/* Prepares and dispatches until there is nothing to do. */
static inline void SettleEmbedded(AioContext *ctx)
{
    while (aio_context_prepare(ctx) || IsReadable(aio_context_get_fd(ctx))) {
        aio_context_dispatch(ctx);
    }
}

class PollHost : public Host
{
public:
    explicit PollHost(AioContext *ctx) : ctx_(ctx), fd_(GetFd(ctx))
    {
    }
    void Turn(bool wait) override
    {
        bool now = aio_context_prepare(ctx_);
        struct pollfd p = { fd_, POLLIN, 0 };
        int n = poll(&p, 1, now || !wait ? 0 : -1);

        if (now || n > 0) {
            aio_context_dispatch(ctx_);
        }
    }
    int fd() const
    {
        return fd_;
    }

private:
    AioContext *ctx_;
    int fd_;
};

class EpollHost : public Host
{
public:
    explicit EpollHost(AioContext *ctx) : ctx_(ctx), epoll_(epoll_create1(EPOLL_CLOEXEC))
    {
        struct epoll_event ev = {};

        ev.events = EPOLLIN;
        EXPECT_EQ(epoll_ctl(epoll_, EPOLL_CTL_ADD, GetFd(ctx), &ev), 0);
    }
    ~EpollHost() override
    {
        close(epoll_);
    }
    void Turn(bool wait) override
    {
        bool now = aio_context_prepare(ctx_);
        struct epoll_event ev;
        int n = epoll_wait(epoll_, &ev, 1, now || !wait ? 0 : -1);

        if (now || n > 0) {
            aio_context_dispatch(ctx_);
        }
    }

private:
    AioContext *ctx_;
    int epoll_;
};

#ifdef HAVE_GLIB
class GlibHost : public Host
{
public:
    explicit GlibHost(AioContext *ctx) : main_(g_main_context_new()), source_(aio_get_g_source(ctx))
    {
        g_source_attach(source_, main_);
    }
    ~GlibHost() override
    {
        g_source_destroy(source_);
        g_source_unref(source_);
        g_main_context_unref(main_);
    }
    void Turn(bool wait) override
    {
        g_main_context_iteration(main_, wait);
    }
    GSource *source() const
    {
        return source_;
    }

private:
    GMainContext *main_;
    GSource *source_;
};
#endif

#ifdef HAVE_LIBUV
class UvHost : public Host
{
public:
    explicit UvHost(AioContext *ctx) : ctx_(ctx)
    {
        uv_loop_init(&loop_);
        uv_poll_init(&loop_, &poll_, GetFd(ctx));
        uv_prepare_init(&loop_, &prepare_);
        uv_check_init(&loop_, &check_);
        uv_idle_init(&loop_, &idle_);
        poll_.data = prepare_.data = check_.data = this;
        uv_poll_start(&poll_, UV_READABLE, OnReadable);
        uv_prepare_start(&prepare_, OnPrepare);
        uv_check_start(&check_, OnCheck);
    }
    ~UvHost() override
    {
        uv_handle_t *handles[] = { Handle(&poll_), Handle(&prepare_), Handle(&check_),
                                   Handle(&idle_) };

        for (uv_handle_t *h : handles) {
            uv_close(h, nullptr);
        }
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(uv_loop_close(&loop_), 0);
    }
    void Turn(bool wait) override
    {
        uv_run(&loop_, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
    }

private:
    template <typename T> static uv_handle_t *Handle(T *h)
    {
        return reinterpret_cast<uv_handle_t *>(h);
    }
    static void OnReadable(uv_poll_t *h, int, int)
    {
        static_cast<UvHost *>(h->data)->ready_ = true;
    }
    /* An idle handle that is active makes libuv not wait. */
    static void OnPrepare(uv_prepare_t *h)
    {
        UvHost *host = static_cast<UvHost *>(h->data);

        host->ready_ = aio_context_prepare(host->ctx_);
        if (host->ready_) {
            uv_idle_start(&host->idle_, [](uv_idle_t *) {});
        } else {
            uv_idle_stop(&host->idle_);
        }
    }
    static void OnCheck(uv_check_t *h)
    {
        UvHost *host = static_cast<UvHost *>(h->data);

        if (host->ready_) {
            host->ready_ = false;
            aio_context_dispatch(host->ctx_);
        }
    }

    AioContext *ctx_;
    uv_loop_t loop_;
    uv_poll_t poll_;
    uv_prepare_t prepare_;
    uv_check_t check_;
    uv_idle_t idle_;
    bool ready_ = false;
};
#endif

/* Opens what libuv keeps until the end, so that it counts for no test. */
static inline void WarmUpHosts()
{
#ifdef HAVE_LIBUV
    uv_loop_t loop;

    uv_loop_init(&loop);
    uv_loop_close(&loop);
#endif
}

/* Every host that there is here: the one list. */
struct HostKind {
    const char *name;
    std::unique_ptr<Host> (*make)(AioContext *ctx);
};

template <typename T> std::unique_ptr<Host> MakeHost(AioContext *ctx)
{
    return std::make_unique<T>(ctx);
}

static const std::vector<HostKind> kHosts = {
    { "poll", MakeHost<PollHost> },
    { "epoll", MakeHost<EpollHost> },
#ifdef HAVE_GLIB
    { "glib", MakeHost<GlibHost> },
#endif
#ifdef HAVE_LIBUV
    { "libuv", MakeHost<UvHost> },
#endif
};

/* A handler for an eventfd or a pipe, removed with the scope. */
class ScopedHandler
{
public:
    ScopedHandler(AioContext *ctx, int fd, std::function<void()> func)
        : ctx_(ctx), fd_(fd), call_{ std::move(func) }
    {
        EXPECT_EQ(aio_set_fd_handler(ctx, fd, Call::Run, nullptr, nullptr, nullptr, &call_), 0);
    }
    ~ScopedHandler()
    {
        aio_set_fd_handler(ctx_, fd_, nullptr, nullptr, nullptr, nullptr, nullptr);
    }
    ScopedHandler(const ScopedHandler &) = delete;
    ScopedHandler &operator=(const ScopedHandler &) = delete;

private:
    AioContext *ctx_;
    int fd_;
    Call call_;
};

#endif
