/* SPDX-License-Identifier: MIT */
/* Removing fd handlers while events pour in, from home and from elsewhere: what may be done with
 * the fd and its number from then on. */
#include "loop_support.h"

#include <arpa/inet.h>
#include <mutex>
#include <netinet/in.h>
#include <thread>

class FdRemoval : public OnEachMonitor
{
};
ON_EACH_MONITOR(FdRemoval);

static int Remove(AioContext *ctx, int fd)
{
    return aio_set_fd_handler(ctx, fd, nullptr, nullptr, nullptr, nullptr, nullptr);
}

/* Something that is removed: its callback must not come afterwards. */
struct Watched {
    int fd = -1;
    std::atomic<int> calls{ 0 };
    std::atomic<bool> removed{ false };

    static void OnRead(void *opaque)
    {
        Watched *w = static_cast<Watched *>(opaque);
        char buf[16];

        EXPECT_FALSE(w->removed) << "called after its removal was told";
        /* The number is still ours: nobody but its own peer has written to it. */
        ssize_t n = read(w->fd, buf, sizeof(buf));
        for (ssize_t i = 0; i < n; i++) {
            EXPECT_EQ(buf[i], 'w') << "read from another file";
        }
        w->calls++;
    }
    void Watch(AioContext *ctx)
    {
        EXPECT_EQ(aio_set_fd_handler(ctx, fd, OnRead, nullptr, nullptr, nullptr, this), 0);
    }
};

static void OnDone(void *opaque)
{
    static_cast<Watched *>(opaque)->removed = true;
}

/* Writes to whatever is watched, without a pause. */
class Pourer
{
public:
    Pourer() : thread_([this] { Pour(); })
    {
    }
    ~Pourer()
    {
        stop_ = true;
        thread_.join();
    }
    /* From when this returns on, @fd alone is written to; -1: none. */
    void Into(int fd)
    {
        std::lock_guard<std::mutex> guard(lock_);
        fd_ = fd;
    }

private:
    void Pour()
    {
        while (!stop_) {
            {
                std::lock_guard<std::mutex> guard(lock_);
                if (fd_ >= 0) {
                    ssize_t n = write(fd_, "ww", 2);
                    static_cast<void>(n); /* the buffer may be full */
                }
            }
            std::this_thread::yield();
        }
    }

    std::mutex lock_;
    std::atomic<bool> stop_{ false };
    int fd_ = -1;
    std::thread thread_;
};

/* A pair one end of which has a given number. */
static void PairWithNumber(int number, int *ret_peer)
{
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    if (fds[0] != number) {
        ASSERT_EQ(dup3(fds[0], number, O_CLOEXEC), number);
        close(fds[0]);
    }
    *ret_peer = fds[1];
}

/* Each round watches, waits for events, removes from another thread while they go on, and when that
 * was told closes the fd and gives its number to a file of somebody else, which has something to be
 * read at once. */
TEST_P(FdRemoval, AfterAnAsyncOneTheNumberIsFreeAtOnce)
{
    ScopedIOThread io(GetParam());
    Pourer pourer;
    const int number = fcntl(0, F_DUPFD_CLOEXEC, 200);

    ASSERT_GE(number, 200);
    for (int i = 0; i < (kSanitized ? 50 : 400); i++) {
        Watched w;
        int peer, other;

        w.fd = number;
        PairWithNumber(number, &peer);
        w.Watch(io.ctx());
        pourer.Into(peer);
        ASSERT_TRUE(WaitUntil([&] { return w.calls >= 1 + i % 3; }));
        ASSERT_EQ(aio_remove_fd_handler_async(io.ctx(), number, OnDone, &w), 0);
        while (!w.removed) {
            std::this_thread::yield();
        }
        int calls = w.calls;
        pourer.Into(-1);
        close(number);
        close(peer);
        PairWithNumber(number, &other);
        ASSERT_EQ(write(other, "o", 1), 1);
        io.Run([] {});
        io.Run([] {});
        ASSERT_EQ(w.calls, calls);
        char c;
        ASSERT_EQ(read(number, &c, 1), 1) << "somebody else has read it";
        close(other);
    }
    close(number);
}

/* The plain form says nothing; a later one with a callback speaks for it too, as one thread's
 * requests take effect in their order. */
TEST_P(FdRemoval, PlainOneFromElsewhereHoldsOnceALaterOneIsTold)
{
    ScopedIOThread io(GetParam());
    Pourer pourer;

    for (int i = 0; i < (kSanitized ? 50 : 400); i++) {
        SocketPair s;
        Watched w, fence;

        w.fd = s.a;
        w.Watch(io.ctx());
        pourer.Into(s.b);
        ASSERT_TRUE(WaitUntil([&] { return w.calls >= 1; }));
        ASSERT_EQ(Remove(io.ctx(), s.a), 0);
        ASSERT_EQ(aio_remove_fd_handler_async(io.ctx(), 1000000, OnDone, &fence), 0);
        while (!fence.removed) {
            std::this_thread::yield();
        }
        w.removed = true;
        io.Run([] {});
        pourer.Into(-1);
    }
}

/* Home and another thread remove, set, and are told, of the same fds at once. */
TEST_P(FdRemoval, SeveralThreadsMayRemoveAndSetTheSameFd)
{
    ScopedIOThread io(GetParam());
    SocketPair s;
    Pourer pourer;
    Watched w;
    std::atomic<int> asked{ 0 }, told{ 0 };
    Call tell{ [&] { told++; } };
    Call home{ [&] {
        Remove(io.ctx(), s.a);
        w.Watch(io.ctx());
    } };

    w.fd = s.a;
    pourer.Into(s.b);
    RunThreads(3, [&](int t) {
        for (int i = 0; i < (kSanitized ? 100 : 1000); i++) {
            switch ((i + t) % 4) {
            case 0:
                w.Watch(io.ctx());
                break;
            case 1:
                Remove(io.ctx(), s.a);
                break;
            case 2:
                asked++;
                ASSERT_EQ(aio_remove_fd_handler_async(io.ctx(), s.a, Call::Run, &tell), 0);
                break;
            case 3:
                ASSERT_EQ(aio_bh_schedule_oneshot(io.ctx(), Call::Run, &home), 0);
                break;
            }
            if (i % 16 == 0) {
                std::this_thread::yield();
            }
        }
    });
    io.Run([] {});
    ASSERT_EQ(aio_remove_fd_handler_async(io.ctx(), s.a, OnDone, &w), 0);
    ASSERT_TRUE(WaitUntil([&] { return w.removed.load(); }));
    EXPECT_TRUE(WaitUntil([&] { return told == asked; }));
    io.Run([] {});
}

/* What an iteration has to apply costs by its number, and by no more. */
TEST_P(FdRemoval, ManyThatWaitAreToldInTheirOrder)
{
    ScopedContext ctx(GetParam());
    const int n =
        kSanitized ? 20000 : 200000; /* each looking at all before it would take minutes */
    static int next;
    struct Item {
        int number;
        bool in_order;
    };
    std::vector<Item> items(n);

    next = 0;
    aio_poll(ctx, false);
    std::thread([&] {
        for (int i = 0; i < n; i++) {
            items[i].number = i;
            auto done = [](void *o) {
                Item *item = static_cast<Item *>(o);
                item->in_order = item->number == next++;
            };
            ASSERT_EQ(aio_remove_fd_handler_async(ctx, 1000, done, &items[i]), 0);
        }
    }).join();
    while (next < n) {
        aio_poll(ctx, true);
    }
    for (int i = 0; i < n; i++) {
        ASSERT_TRUE(items[i].in_order) << i;
    }
}

/* ---- Ports ----------------------------------------------------------------------------------- */

/* A listening socket whose port is free again only when the kernel has dropped the last reference
 * to it: it sets no option that would let two have the same. */
class Listener
{
public:
    /* @port 0: any that is free. */
    explicit Listener(uint16_t port)
    {
        struct sockaddr_in addr = {};
        socklen_t len = sizeof(addr);

        addr.sin_family = AF_INET;
        addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        addr.sin_port = htons(port);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        EXPECT_EQ(bind(fd, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)), 0)
            << "the port is still taken: " << strerror(errno);
        EXPECT_EQ(listen(fd, 4), 0);
        EXPECT_EQ(getsockname(fd, reinterpret_cast<struct sockaddr *>(&addr), &len), 0);
        this->port = ntohs(addr.sin_port);
    }
    Listener(const Listener &) = delete;
    Listener &operator=(const Listener &) = delete;

    /* A client, which nobody will accept: the listener is ready. */
    int Connect() const
    {
        struct sockaddr_in addr = {};
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        addr.sin_family = AF_INET;
        addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        addr.sin_port = htons(port);
        EXPECT_EQ(connect(client, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)), 0);
        return client;
    }

    int fd;
    uint16_t port;
};

TEST_P(FdRemoval, PortOfOneThatIsReadyCanBeReboundAtOnce)
{
    ScopedContext ctx(GetParam());
    uint16_t port = 0;
    Call ignore{ [] {} }; /* leaves it ready */

    for (int i = 0; i < 100 && !HasFailure(); i++) {
        Listener listener(port);
        int client = listener.Connect();

        port = listener.port;
        aio_set_fd_handler(ctx, listener.fd, Call::Run, nullptr, nullptr, nullptr, &ignore);
        for (int k = 0; k < i % 4; k++) { /* not armed yet, armed, reported, armed again */
            aio_poll(ctx, false);
        }
        ASSERT_EQ(Remove(ctx, listener.fd), 0);
        close(listener.fd);
        close(client);
    }
}

TEST_P(FdRemoval, PortCanBeReboundInTheHandlersOwnCallback)
{
    ScopedContext ctx(GetParam());
    auto listener = std::make_unique<Listener>(0);
    std::vector<int> clients;
    int calls = 0;
    Call call{ [&] {
        uint16_t port = listener->port;

        calls++;
        ASSERT_EQ(Remove(ctx, listener->fd), 0);
        close(listener->fd);
        listener = std::make_unique<Listener>(port);
        aio_set_fd_handler(ctx, listener->fd, Call::Run, nullptr, nullptr, nullptr, &call);
    } };

    aio_set_fd_handler(ctx, listener->fd, Call::Run, nullptr, nullptr, nullptr, &call);
    for (int i = 1; i <= 50 && !HasFailure(); i++) {
        clients.push_back(listener->Connect());
        while (calls < i) {
            aio_poll(ctx, true);
        }
    }
    Remove(ctx, listener->fd);
    close(listener->fd);
    for (int client : clients) {
        close(client);
    }
}

TEST_P(FdRemoval, PortCanBeReboundOnceAnAsyncOneIsTold)
{
    ScopedIOThread io(GetParam());
    uint16_t port = 0;
    Call ignore{ [] {} };

    for (int i = 0; i < 100 && !HasFailure(); i++) {
        Listener listener(port);
        Watched w;
        int client = i % 2 ? listener.Connect() : -1;

        port = listener.port;
        aio_set_fd_handler(io.ctx(), listener.fd, Call::Run, nullptr, nullptr, nullptr, &ignore);
        if (i % 3) {
            io.Run([] {});
        }
        ASSERT_EQ(aio_remove_fd_handler_async(io.ctx(), listener.fd, OnDone, &w), 0);
        ASSERT_TRUE(WaitUntil([&] { return w.removed.load(); }));
        close(listener.fd);
        if (client >= 0) {
            close(client);
        }
    }
}

/* The end of a context lets go of its fds too. */
TEST_P(FdRemoval, PortCanBeReboundOnceTheContextHasEnded)
{
    uint16_t port = 0;
    Call ignore{ [] {} };

    for (int i = 0; i < 20 && !HasFailure(); i++) {
        Listener listener(port);

        port = listener.port;
        {
            ScopedIOThread io(GetParam());
            aio_set_fd_handler(io.ctx(), listener.fd, Call::Run, nullptr, nullptr, nullptr,
                               &ignore);
            io.Run([] {});
        }
        close(listener.fd);
    }
}

/* A callback replaces its own handler and runs the new one's below itself: who removes the fd then
 * is told when the outer one has returned, too. */
TEST_P(FdRemoval, AnAsyncOneIsToldWhenNoCallbackOfTheFdRunsBelow)
{
    struct Nest {
        AioContext *ctx;
        SocketPair pair;
        int depth = 0, inner = 0, told = 0;

        static void OnInner(void *opaque)
        {
            auto n = static_cast<Nest *>(opaque);

            n->depth++;
            n->inner++;
            EXPECT_EQ(aio_remove_fd_handler_async(n->ctx, n->pair.a, OnTold, n), 0);
            aio_poll(n->ctx, false);
            n->depth--;
        }
        static void OnOuter(void *opaque)
        {
            auto n = static_cast<Nest *>(opaque);

            n->depth++;
            EXPECT_EQ(Remove(n->ctx, n->pair.a), 0);
            EXPECT_EQ(aio_set_fd_handler(n->ctx, n->pair.a, OnInner, nullptr, nullptr, nullptr, n),
                      0);
            for (int i = 0; i < 100; i++) {
                aio_poll(n->ctx, false);
            }
            EXPECT_EQ(n->inner, 1);
            n->depth--;
        }
        static void OnTold(void *opaque)
        {
            auto n = static_cast<Nest *>(opaque);

            EXPECT_EQ(n->depth, 0) << "told while a callback runs";
            n->told++;
        }
    };
    ScopedContext ctx(GetParam());
    Nest n;

    n.ctx = ctx;
    ASSERT_EQ(write(n.pair.b, "x", 1), 1);
    ASSERT_EQ(aio_set_fd_handler(ctx, n.pair.a, Nest::OnOuter, nullptr, nullptr, nullptr, &n), 0);
    for (int i = 0; i < 1000 && !n.told; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_EQ(n.told, 1);
}
