/* SPDX-License-Identifier: MIT */
/* What the tests of the main loop share. */
#ifndef TESTS_MAIN_LOOP_SUPPORT_H
#define TESTS_MAIN_LOOP_SUPPORT_H

#include "loop_support.h"

#include <aioctx/main_loop.h>
#include <thread>

static inline void PutByte(int fd)
{
    EXPECT_EQ(write(fd, "x", 1), 1);
}

static inline void TakeByte(int fd)
{
    char c;

    EXPECT_EQ(read(fd, &c, 1), 1);
}

/* The running thread's main loop; ended with the scope. */
class ScopedMainLoop
{
public:
    explicit ScopedMainLoop(const char *monitor = nullptr)
    {
        AioContextOptions opts = {};

        opts.monitor = monitor;
        int ret = qemu_init_main_loop(&opts);
        if (ret != 0) {
            ADD_FAILURE() << "qemu_init_main_loop: " << ret;
            abort();
        }
    }
    ~ScopedMainLoop()
    {
        qemu_cleanup_main_loop();
    }
    ScopedMainLoop(const ScopedMainLoop &) = delete;
    ScopedMainLoop &operator=(const ScopedMainLoop &) = delete;

    static AioContextStats Stats()
    {
        AioContextStats s;

        aio_context_get_stats(qemu_get_aio_context(), &s);
        return s;
    }
    /* Runs the loop until @cond holds; a hang ends with the test's time limit. */
    static void RunUntil(const std::function<bool()> &cond)
    {
        while (!cond()) {
            main_loop_wait(false);
        }
    }
    /* On another thread: returns when the loop has begun no iteration for a while, as when it
     * sleeps; never, while it spins.  A test must hold also where it has not come to sleep yet. */
    static void WaitUntilItRests()
    {
        AioContextStats before = Stats(), after;

        for (int same = 0; same < 20;) {
            usleep(500);
            after = Stats();
            same = after.iterations == before.iterations ? same + 1 : 0;
            before = after;
        }
    }
};

/* A poll notifier made of two functions; on the list while it lives. */
class Foreign
{
public:
    std::function<void(MainLoopPoll *)> ask, tell;
    int asked = 0, told = 0;

    Foreign(std::function<void(MainLoopPoll *)> on_ask, std::function<void(MainLoopPoll *)> on_tell)
        : ask(std::move(on_ask)), tell(std::move(on_tell))
    {
        node_.notifier.notify = Notify;
        node_.self = this;
        Add();
    }
    ~Foreign()
    {
        Remove();
    }
    Foreign(const Foreign &) = delete;
    Foreign &operator=(const Foreign &) = delete;

    void Add()
    {
        main_loop_poll_add_notifier(&node_.notifier);
    }
    void Remove()
    {
        main_loop_poll_remove_notifier(&node_.notifier);
    }

private:
    struct Node {
        MainLoopPollNotifier notifier; /* first */
        Foreign *self;
    };

    static void Notify(MainLoopPollNotifier *notifier, MainLoopPoll *poll)
    {
        Foreign *f = reinterpret_cast<Node *>(notifier)->self;
        bool asks = poll->state == MAIN_LOOP_POLL_FILL;
        const auto &func = asks ? f->ask : f->tell;

        (asks ? f->asked : f->told)++;
        if (func) {
            func(poll);
        }
    }

    Node node_ = {};
};

/* A notifier for one fd, which may be changed; `revents` are those of the last wait. */
struct ForeignFd {
    int fd;
    short events, revents = 0;
    int index = -1;
    Foreign foreign;

    explicit ForeignFd(int an_fd, short some_events = POLLIN)
        : fd(an_fd), events(some_events),
          foreign([this](MainLoopPoll *p) { index = main_loop_poll_add_fd(p, fd, events); },
                  [this](MainLoopPoll *p) { revents = p->pollfds[index].revents; })
    {
    }
};

#endif
