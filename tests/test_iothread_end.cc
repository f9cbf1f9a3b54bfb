/* SPDX-License-Identifier: MIT */
/* IOThreads that come and go: nothing is leaked, and nothing in flight is lost. */
#include "block_support.h"
#include "loop_support.h"

#include <fstream>
#include <liburing.h>
#include <malloc.h>
#include <mutex>
#include <sys/resource.h>
#include <thread>

static IOThread *New(const char *monitor)
{
    IOThreadOptions opts = {};

    opts.context.monitor = monitor;
    return iothread_new("ends", &opts);
}

/* ---- Nothing is leaked ----------------------------------------------------------------------- */

class IOThreadChurn : public OnEachMonitor
{
};
ON_EACH_MONITOR(IOThreadChurn);

/* What the process has: memory that was allocated and not freed, memory that is there, and areas of
 * its address space. */
struct Footprint {
    double allocated = 0, resident = 0;
    int areas = 0;

    static Footprint Now()
    {
        Footprint now;
        std::ifstream statm("/proc/self/statm"), maps("/proc/self/maps");
        double size = 0;
        std::string line;

        aio_rcu_barrier();
        now.allocated = static_cast<double>(mallinfo2().uordblks);
        statm >> size >> now.resident;
        now.resident *= static_cast<double>(sysconf(_SC_PAGESIZE));
        while (std::getline(maps, line)) {
            now.areas++;
        }
        return now;
    }
};

/* Does something a number of times, for what is kept once, and then @n times more, which must leave
 * nothing: what were kept for each would be seen. */
static void ExpectNothingKept(int n, const std::function<void()> &once)
{
    auto many = [&](int times) {
        for (int i = 0; i < times; i++) {
            once();
            if (i % 50 == 49) {
                aio_rcu_barrier(); /* so that what waits to be freed is no more the second time */
            }
        }
    };

    many(n / 4);
    Footprint before = Footprint::Now();
    many(n);
    Footprint after = Footprint::Now();
    EXPECT_LT(after.areas - before.areas, n / 2);
    if (!kSanitized) { /* which keep what was freed */
        EXPECT_LT(after.allocated - before.allocated, n * 64);
        EXPECT_LT(after.resident - before.resident, n * 4096);
    }
}

TEST_P(IOThreadChurn, ThousandsLeaveNothing)
{
    ExpectNothingKept(kSanitized ? 60 : 1500, [] {
        IOThread *io = New(GetParam());
        ASSERT_NE(io, nullptr);
        ASSERT_EQ(iothread_destroy(io), 0);
    });
}

/* All kinds of work of one iothread; what must have ended by its end is counted. */
class Work
{
public:
    Work(const char *monitor, BlockBackend *blk) : monitor_(monitor), blk_(blk)
    {
        io = New(monitor);
        if (!io) {
            ADD_FAILURE() << "iothread_new: errno " << errno;
            abort();
        }
        ctx = iothread_get_aio_context(io);
        aio_context_ref(ctx);
        for (SocketPair &s : pairs_) {
            EXPECT_EQ(write(s.b, "x", 1), 1); /* ready for ever: nobody reads it */
        }
        timer_ = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &rearm_);
        far_ = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &never_);
        bh_ = aio_bh_new(ctx, Call::Run, &count_);
        timer_mod(far_, INT64_MAX);
        timer_mod(timer_, 0);
        qemu_bh_schedule_idle(bh_);
        EXPECT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &begin_), 0);
    }
    /* After the destruction: the context is still there, and has ended. */
    ~Work()
    {
        int late = callbacks_;

        EXPECT_TRUE(ended_) << "a callback came after the end, or who ends it did not say so";
        EXPECT_EQ(requests_.size(), kRequests);
        for (auto &r : requests_) {
            EXPECT_EQ(r->result.calls, 1);
            EXPECT_TRUE(r->result.ret == 0 || r->result.ret == -ECANCELED) << r->result.ret;
        }
        EXPECT_EQ(ops_ended_, ops_begun_);
        EXPECT_EQ(ops_begun_, monitor_ == "io_uring" ? kOps : 0);
        EXPECT_EQ(accepted_, accepted_ran_);
        EXPECT_FALSE(timer_mod(timer_, 0));
        qemu_bh_schedule(bh_);
        aio_notify(ctx);
        EXPECT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &never_), -ESHUTDOWN);
        timer_free(timer_);
        timer_free(far_);
        qemu_bh_delete(bh_);
        aio_context_unref(ctx);
        EXPECT_EQ(callbacks_, late);
        EXPECT_EQ(told_, asked_) << "removals that were not told of";
    }
    Work(const Work &) = delete;
    Work &operator=(const Work &) = delete;

    /* Everything is in flight. */
    bool Begun() const
    {
        return begun_;
    }
    /* What another thread does to it, at any moment while it holds a reference. */
    void Disturb(unsigned i)
    {
        switch (i % 6) {
        case 0:
            if (aio_bh_schedule_oneshot(ctx, Call::Run, &accepted_call_) == 0) {
                accepted_++;
            }
            break;
        case 1:
            aio_notify(ctx);
            break;
        case 2:
            qemu_bh_schedule(bh_);
            break;
        case 3:
            timer_mod(timer_, 0);
            break;
        case 4:
            aio_set_fd_handler(ctx, pairs_[0].a, Call::Run, nullptr, nullptr, nullptr, &event_);
            break;
        case 5:
            asked_ += aio_remove_fd_handler_async(ctx, pairs_[0].a, Call::Run, &removed_) == 0;
            break;
        }
    }
    void Ended()
    {
        ended_ = true;
    }

    IOThread *io;
    AioContext *ctx;

private:
    static constexpr int kOps = 3;
    static constexpr size_t kRequests = 8;

    struct Request {
        Result result;
        Buffer buf{ 512 };
    };
    struct Op {
        CqeHandler handler = {};
        Work *work;
        struct __kernel_timespec ts = {};
    };

    void Callback()
    {
        callbacks_++;
        EXPECT_FALSE(ended_);
    }
    void BeginOp(Op *op)
    {
        op->work = this;
        op->ts.tv_nsec = 300000;
        op->handler.cb = [](CqeHandler *h) {
            Work *work = reinterpret_cast<Op *>(h)->work;
            work->Callback();
            work->ops_ended_++;
        };
        auto prep = [](struct io_uring_sqe *sqe, void *o) {
            io_uring_prep_timeout(sqe, &static_cast<Op *>(o)->ts, 0, 0);
        };
        ops_begun_ += aio_add_sqe(prep, op, &op->handler) == 0;
    }
    void Begin()
    {
        for (SocketPair &s : pairs_) {
            aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &event_);
        }
        for (size_t i = 0; i < kRequests; i++) {
            requests_.push_back(std::make_unique<Request>());
            Request *r = requests_.back().get();
            blk_aio_preadv(blk_, 0, &r->buf.qiov, BdrvRequestFlags(), ::Ended, &r->result);
        }
        for (Op &op : ops_) {
            BeginOp(&op);
        }
        begun_ = true;
    }

    std::string monitor_;
    BlockBackend *blk_;
    SocketPair pairs_[3];
    std::vector<std::unique_ptr<Request>> requests_; /* home thread, until the end */
    Op ops_[kOps];
    int ops_begun_ = 0, ops_ended_ = 0; /* home thread, until the end */
    QEMUTimer *timer_, *far_;
    QEMUBH *bh_;
    std::atomic<bool> begun_{ false }, ended_{ false };
    std::atomic<int> callbacks_{ 0 }, accepted_{ 0 }, accepted_ran_{ 0 }, asked_{ 0 }, told_{ 0 };
    Call begin_{ [this] { Begin(); } };
    Call event_{ [this] { Callback(); } };
    Call count_{ [this] { Callback(); } };
    Call accepted_call_{ [this] {
        Callback();
        accepted_ran_++;
    } };
    Call removed_{ [this] { told_++; } }; /* may come when the context's memory goes */
    Call rearm_{ [this] {
        Callback();
        timer_mod(timer_, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 10 * SCALE_US);
    } };
    Call never_{ [] { ADD_FAILURE(); } };
};

TEST_P(IOThreadChurn, ThoseWithWorkInFlightLeaveNothing)
{
    Blk blk = Open("null://?latency-ns=200000");

    ExpectNothingKept(kSanitized ? 40 : 200, [&] {
        Work work(GetParam(), blk.get());

        ASSERT_EQ(iothread_destroy(work.io), 0);
        work.Ended();
    });
}

TEST_P(IOThreadChurn, SeveralThreadsMakeAndDestroyThemAtOnce)
{
    Blk blk = Open("null://?latency-ns=100000");
    std::atomic<int> made{ 0 };

    for (int round = 0; round < 2; round++) {
        RunThreads(4, [&](int t) {
            for (int i = 0; i < (kSanitized ? 10 : 60); i++) {
                if ((t + i) % 2) {
                    IOThread *io = New(GetParam());
                    ASSERT_NE(io, nullptr);
                    ASSERT_EQ(iothread_destroy(io), 0);
                } else {
                    Work work(GetParam(), blk.get());
                    ASSERT_EQ(iothread_destroy(work.io), 0);
                    work.Ended();
                }
                made++;
            }
        });
    }
    EXPECT_EQ(made, 2 * 4 * (kSanitized ? 10 : 60));
}

/* Contexts that were closed hold an fd for a grace period: it is waited for. */
TEST_P(IOThreadChurn, FewDescriptorsAreEnoughForManyInTurn)
{
    struct rlimit was, few;
    std::atomic<int> failed{ 0 }, others{ 0 };
    int fd = dup(0);

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    few = was;
    few.rlim_cur = static_cast<rlim_t>(fd) + 12; /* for two at a time, at most 4 each */
    close(fd);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    RunThreads(2, [&](int) {
        for (int i = 0; i < (kSanitized ? 20 : 60); i++) {
            IOThread *io = New(GetParam());
            if (!io) {
                failed++;
                continue;
            }
            others +=
                aio_context_get_monitor(iothread_get_aio_context(io)) != std::string(GetParam());
            ASSERT_EQ(iothread_destroy(io), 0);
        }
    });
    setrlimit(RLIMIT_NOFILE, &was);
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(others, 0);
}

TEST(IOThreadDescriptors, NoFallbackForThoseThatAreAboutToComeFree)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    struct rlimit was, few;
    int fd = dup(0), others = 0;

    if (getenv("AIOCTX_FDMON")) {
        GTEST_SKIP() << "AIOCTX_FDMON chooses";
    }
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    few = was;
    few.rlim_cur = static_cast<rlim_t>(fd) + 6;
    close(fd);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int i = 0; i < 60; i++) {
        IOThread *io = New(nullptr);
        if (!io) {
            others++;
            continue;
        }
        others += aio_context_get_monitor(iothread_get_aio_context(io)) != std::string("io_uring");
        EXPECT_EQ(iothread_destroy(io), 0);
    }
    setrlimit(RLIMIT_NOFILE, &was);
    EXPECT_EQ(others, 0);
}

/* Where waiting is not allowed, it is an error, and no hang. */
TEST_P(IOThreadChurn, WithoutDescriptorsItIsAnErrorEverywhere)
{
    ScopedIOThread home(GetParam());
    struct rlimit was, none;
    int err[3] = {};
    auto make = [](int *ret) {
        IOThread *io = New(GetParam());
        *ret = io ? 0 : errno;
        iothread_destroy(io);
    };

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    none = was;
    none.rlim_cur = 0;
    iothread_destroy(New(GetParam())); /* its fd may still be on its way to be closed */
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    make(&err[0]);
    aio_rcu_read_lock();
    make(&err[1]);
    aio_rcu_read_unlock();
    home.Run([&] { make(&err[2]); });
    setrlimit(RLIMIT_NOFILE, &was);
    for (int e : err) {
        EXPECT_EQ(e, EMFILE);
    }
}

/* A deferred call wants a lock that is held by who makes a context: an error in the end. */
TEST(IOThreadDescriptors, ADeferredCallThatWaitsForTheCallerIsNoHang)
{
    struct Deferred {
        AioRcuHead head;
        std::mutex lock;
        std::atomic<bool> began{ false };
    } d;
    struct rlimit was, none;
    AioContext *ctx;
    int err;

    { /* the library's own fd */
        ScopedContext first;
    }
    aio_rcu_barrier();
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    none = was;
    none.rlim_cur = 0;
    d.lock.lock();
    aio_call_rcu(&d.head, [](AioRcuHead *head) {
        auto mine = reinterpret_cast<Deferred *>(head);

        mine->began = true;
        mine->lock.lock();
        mine->lock.unlock();
    });
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    ctx = aio_context_new(nullptr);
    err = errno;
    setrlimit(RLIMIT_NOFILE, &was);
    d.lock.unlock();
    EXPECT_EQ(ctx, nullptr);
    EXPECT_EQ(err, EMFILE);
    EXPECT_TRUE(d.began);
    aio_rcu_barrier();
}

/* ---- Stopped in the midst of it -------------------------------------------------------------- */

class IOThreadStop : public OnEachMonitor
{
};
ON_EACH_MONITOR(IOThreadStop);

TEST_P(IOThreadStop, EverythingInFlightEndsOnce)
{
    Blk blk = Open("null://?latency-ns=1000000");

    for (int i = 0; i < (kSanitized ? 20 : 100); i++) {
        Work work(GetParam(), blk.get());

        ASSERT_TRUE(WaitUntil([&] { return work.Begun(); }));
        ASSERT_EQ(iothread_destroy(work.io), 0);
        work.Ended();
    }
}

TEST_P(IOThreadStop, OtherThreadsMayGoOnUsingTheContextMeanwhile)
{
    Blk blk = Open("null://?latency-ns=200000");

    for (int i = 0; i < (kSanitized ? 4 : 8); i++) {
        Work work(GetParam(), blk.get());
        std::atomic<bool> stop{ false };
        std::vector<std::thread> others;

        for (unsigned t = 0; t < 2; t++) {
            others.emplace_back([&, t] {
                for (unsigned k = t; !stop; k += 5) {
                    work.Disturb(k);
                    if (k % 16 == 0) {
                        std::this_thread::yield();
                    }
                }
            });
        }
        if (i % 2) {
            ASSERT_TRUE(WaitUntil([&] { return work.Begun(); }));
        }
        ASSERT_EQ(iothread_destroy(work.io), 0);
        stop = true;
        for (std::thread &t : others) {
            t.join();
        }
        work.Ended();
    }
}

/* The last reference may go at any moment of the end, on any thread. */
TEST_P(IOThreadStop, LastReferenceMayGoElsewhereMeanwhile)
{
    for (int i = 0; i < (kSanitized ? 30 : 200); i++) {
        IOThread *io = New(GetParam());
        AioContext *ctx = iothread_get_aio_context(io);
        std::atomic<int> ran{ 0 };
        Call call{ [&] { ran++; } };
        int accepted = 0;

        aio_context_ref(ctx);
        std::thread other([&] {
            accepted = aio_bh_schedule_oneshot(ctx, Call::Run, &call) == 0;
            aio_context_unref(ctx);
        });
        ASSERT_EQ(iothread_destroy(io), 0);
        other.join();
        ASSERT_EQ(ran, accepted);
    }
}
