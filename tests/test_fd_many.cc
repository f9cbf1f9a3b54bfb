/* SPDX-License-Identifier: MIT */
/*
 * Handlers of many fds at a time, which a monitor may watch by other means than those of a few: all
 * the promises hold, and no handler is called without a reason.
 */
#include "loop_support.h"

#include <cerrno>
#include <memory>
#include <poll.h>
#include <random>
#include <thread>

class ManyFds : public OnEachMonitor
{
};
ON_EACH_MONITOR(ManyFds);

/* One fd with a handler that reads a byte at each call. */
struct Reader {
    SocketPair s;
    unsigned calls = 0, reads = 0;

    explicit Reader(AioContext *ctx) : ctx_(ctx)
    {
        Watch(true);
    }
    ~Reader()
    {
        Watch(false);
    }
    void Watch(bool on)
    {
        EXPECT_EQ(
            aio_set_fd_handler(ctx_, s.a, on ? OnRead : nullptr, nullptr, nullptr, nullptr, this),
            0);
    }
    void Put(const char *text) const
    {
        EXPECT_EQ(write(s.b, text, strlen(text)), static_cast<ssize_t>(strlen(text)));
    }

private:
    static void OnRead(void *opaque)
    {
        auto *r = static_cast<Reader *>(opaque);
        char c;

        r->calls++;
        r->reads += read(r->s.a, &c, 1) == 1;
    }

    AioContext *ctx_;
};

static std::vector<std::unique_ptr<Reader>> Readers(AioContext *ctx, int n)
{
    std::vector<std::unique_ptr<Reader>> all;

    for (int i = 0; i < n; i++) {
        all.emplace_back(new Reader(ctx));
    }
    return all;
}

TEST_P(ManyFds, WhatIsLeftComesAgainAndNothingElse)
{
    ScopedContext ctx(GetParam());
    auto all = Readers(ctx, 100);

    for (unsigned round = 1; round <= 4; round++) {
        unsigned busy = round == 3 ? 3 : 100; /* once only a few of them */
        std::vector<unsigned> before;
        for (auto &r : all) {
            before.push_back(r->reads);
        }
        for (unsigned i = 0; i < busy; i++) {
            all[i]->Put("abc");
        }
        for (unsigned i = 0; i < busy; i++) {
            while (all[i]->reads < before[i] + 3) {
                ASSERT_TRUE(aio_poll(ctx, true));
            }
        }
        while (aio_poll(ctx, false)) {
        }
        for (unsigned i = 0; i < all.size(); i++) {
            EXPECT_EQ(all[i]->reads, before[i] + (i < busy ? 3 : 0)) << i;
            EXPECT_EQ(all[i]->calls, all[i]->reads) << i << ": called without data";
        }
    }
}

TEST_P(ManyFds, HangUpsComeAgainUntilTheHandlerGoes)
{
    ScopedContext ctx(GetParam());
    auto all = Readers(ctx, 40);

    for (int i = 0; i < 3; i++) {
        for (auto &r : all) {
            r->Put("a");
        }
        for (auto &r : all) {
            while (r->reads <= static_cast<unsigned>(i)) {
                aio_poll(ctx, true);
            }
        }
    }
    for (auto &r : all) {
        shutdown(r->s.b, SHUT_RDWR);
    }
    for (auto &r : all) {
        unsigned calls = r->calls;
        while (r->calls < calls + 5) {
            ASSERT_TRUE(aio_poll(ctx, true));
        }
    }
    for (auto &r : all) {
        r->Watch(false);
    }
    EXPECT_FALSE(aio_poll(ctx, false));
}

/* The kernel is woken for all of them, and the loop has not seen it yet. */
TEST_P(ManyFds, RemovalOfWhatHasJustBecomeReadyEndsAndLetsGoOfTheFile)
{
    ScopedContext ctx(GetParam());

    for (int round = 0; round < 20; round++) {
        auto all = Readers(ctx, 40);
        for (auto &r : all) {
            r->Put("ab");
        }
        if (round % 4) {
            aio_poll(ctx, true);
        }
        for (auto &r : all) {
            r->Put("c");
        }
        for (auto &r : all) {
            unsigned calls = r->calls;
            struct pollfd p = {};

            r->Watch(false);
            p.fd = r->s.b;
            p.events = POLLHUP;
            close(r->s.a);
            EXPECT_EQ(poll(&p, 1, 0), 1) << "the kernel still holds the file";
            EXPECT_EQ(r->calls, calls);
            r->s.a = dup(r->s.b); /* for the destructors */
        }
    }
}

/* ---- Everything at once ---------------------------------------------------------------------- */

struct Storm;

/* An fd whose handlers do as chance has it. */
struct Stormy {
    Storm *storm;
    SocketPair s;
    std::atomic<long> sent{ 0 };
    long got = 0;
    bool watched = false, for_writing = false;

    void Set(bool on, bool writing);
    static void OnRead(void *opaque);
    static void OnWrite(void *opaque);
};

struct Storm {
    AioContext *ctx;
    std::mt19937 random;
    std::vector<std::unique_ptr<Stormy>> fds;
    int depth = 0;
    long useless = 0;

    Storm(AioContext *c, unsigned seed, int n) : ctx(c), random(seed)
    {
        for (int i = 0; i < n; i++) {
            fds.emplace_back(new Stormy);
            fds.back()->storm = this;
            fds.back()->Set(true, false);
        }
    }
    ~Storm()
    {
        for (auto &f : fds) {
            f->Set(false, false);
        }
    }
    bool Once(unsigned in)
    {
        return random() % in == 0;
    }
};

void Stormy::Set(bool on, bool writing)
{
    watched = on;
    for_writing = on && writing;
    EXPECT_EQ(aio_set_fd_handler(storm->ctx, s.a, on ? OnRead : nullptr,
                                 for_writing ? OnWrite : nullptr, nullptr, nullptr, this),
              0);
}

void Stormy::OnRead(void *opaque)
{
    auto *f = static_cast<Stormy *>(opaque);
    Storm *st = f->storm;
    char buf[8];
    ssize_t n = read(f->s.a, buf, 1 + st->random() % sizeof(buf));

    if (n > 0) {
        f->got += n;
    } else {
        st->useless++;
    }
    if (st->Once(7)) {
        f->Set(true, !f->for_writing);
    }
    if (st->Once(11)) { /* another one, or the same */
        Stormy *o = st->fds[st->random() % st->fds.size()].get();
        o->Set(!o->watched, false);
    }
    if (st->depth < 3 && st->Once(13)) {
        st->depth++;
        aio_poll(st->ctx, false);
        st->depth--;
    }
}

void Stormy::OnWrite(void *opaque)
{
    auto *f = static_cast<Stormy *>(opaque);

    f->Set(f->watched, false);
}

TEST_P(ManyFds, NothingIsLostWhileHandlersChangeAndAnotherThreadWrites)
{
    const long kBytes = kSanitized ? 3000 : 15000;
    static unsigned seed = std::random_device()();
    ScopedContext ctx(GetParam());

    RecordProperty("seed", static_cast<int>(++seed));
    Storm st(ctx, seed, 60);
    std::thread writer([&] {
        std::mt19937 random(seed + 1);
        for (long left = kBytes; left > 0; left--) {
            Stormy *f = st.fds[random() % (left / 200 % 2 ? 60 : 5)].get();
            f->sent++;
            while (write(f->s.b, "x", 1) != 1) {
                std::this_thread::yield();
            }
            if (random() % 64 == 0) {
                usleep(random() % 200);
            }
        }
    });
    std::atomic<bool> written{ false };
    std::thread watcher([&] {
        writer.join();
        written = true;
        aio_notify(ctx);
    });
    auto all_read = [&] {
        for (auto &f : st.fds) {
            if (f->got < f->sent) {
                return false;
            }
        }
        return written.load();
    };
    while (!all_read()) {
        bool block = written || st.Once(3);
        for (auto &f : st.fds) {
            /* Whoever writes to one that nobody watches may wait for it, and we for ever. */
            if (block && !f->watched) {
                f->Set(true, false);
            }
        }
        aio_poll(ctx, block);
    }
    watcher.join();
    /* The kernel tells a poll request of a write when it wakes up who waits; the byte may have been
     * read just before. */
    const long late = GetParam() == std::string("io_uring") ? kBytes / 300 : 0;
    EXPECT_LE(st.useless, late) << "handlers that were called without data, seed " << seed;
}
