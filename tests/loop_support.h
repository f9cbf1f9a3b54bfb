/* SPDX-License-Identifier: MIT */
/* What the tests of the event loop share: a context of the test's own thread, on each monitor. */
#ifndef TESTS_LOOP_SUPPORT_H
#define TESTS_LOOP_SUPPORT_H

#include "support.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The running thread's context; closed with the scope. */
class ScopedContext
{
public:
    explicit ScopedContext(const char *monitor = nullptr)
    {
        AioContextOptions opts = {};

        opts.monitor = monitor;
        ctx_ = aio_context_new(&opts);
        if (!ctx_) {
            ADD_FAILURE() << "aio_context_new: errno " << errno;
            abort();
        }
        qemu_set_current_aio_context(ctx_);
    }
    ~ScopedContext()
    {
        aio_context_unref(ctx_);
    }
    ScopedContext(const ScopedContext &) = delete;
    ScopedContext &operator=(const ScopedContext &) = delete;
    operator AioContext *() const
    {
        return ctx_;
    }
    AioContextStats Stats() const
    {
        AioContextStats s;

        aio_context_get_stats(ctx_, &s);
        return s;
    }

private:
    AioContext *ctx_;
};

/* A function as a callback of the C API. */
struct Call {
    std::function<void()> func;

    static void Run(void *opaque)
    {
        static_cast<Call *>(opaque)->func();
    }
};

/* A connected pair of unix sockets, non-blocking. */
struct SocketPair {
    int a, b;

    SocketPair()
    {
        int fds[2];

        EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        a = fds[0];
        b = fds[1];
    }
    ~SocketPair()
    {
        close(a);
        close(b);
    }
};

class OnEachMonitor : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
};

#define ON_EACH_MONITOR(suite) \
    INSTANTIATE_TEST_SUITE_P(Monitors, suite, testing::ValuesIn(kMonitors), MonitorName)

#define ON_EACH_MONITOR_OF_A_SLOW_SUITE(suite) \
    INSTANTIATE_TEST_SUITE_P(Monitors, suite, testing::ValuesIn(kMonitorsOfSlowSuites), MonitorName)

#endif
