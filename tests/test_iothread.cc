/* SPDX-License-Identifier: MIT */
/* IOThreads: starting, where they run, what one costs, stopping, what destroying one does. */
#include "loop_support.h"
#include "seccomp_support.h"

#include <csignal>
#include <fstream>
#include <liburing.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <thread>

class IOThreads : public OnEachMonitor
{
};
ON_EACH_MONITOR(IOThreads);

TEST_P(IOThreads, RunCallbacksOnTheirOwnThread)
{
    ScopedIOThread io(GetParam(), "my-name");
    std::string comm;
    bool home = false, current = false;

    EXPECT_STREQ(iothread_get_name(io.get()), "my-name");
    EXPECT_FALSE(in_aio_context_home_thread(io.ctx()));
    io.Run([&] {
        home = in_aio_context_home_thread(io.ctx());
        current = qemu_get_current_aio_context() == io.ctx();
        std::getline(std::ifstream("/proc/thread-self/comm"), comm);
    });
    EXPECT_TRUE(home);
    EXPECT_TRUE(current);
    EXPECT_EQ(comm, "my-name");
}

TEST_P(IOThreads, BlockSignalsAndSetTheirSlack)
{
    ScopedIOThread io(GetParam());
    sigset_t set;
    int slack = 0;

    sigemptyset(&set);
    io.Run([&] {
        pthread_sigmask(SIG_BLOCK, nullptr, &set);
        slack = prctl(PR_GET_TIMERSLACK);
    });
    EXPECT_EQ(sigismember(&set, SIGTERM), 1);
    EXPECT_EQ(sigismember(&set, SIGUSR1), 1);
    EXPECT_EQ(slack, 1);
}

/* The processors of the calling thread. */
static std::vector<int> OwnCpus()
{
    cpu_set_t set;
    std::vector<int> cpus;

    CPU_ZERO(&set);
    EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &set)) {
            cpus.push_back(cpu);
        }
    }
    return cpus;
}

static IOThread *NewWithCpus(const char *monitor, const char *cpus)
{
    IOThreadOptions opts = {};

    opts.context.monitor = monitor;
    opts.cpus = cpus;
    return iothread_new("cpus", &opts);
}

TEST_P(IOThreads, RunOnTheProcessorsThatTheyAreGiven)
{
    std::vector<int> mine = OwnCpus();

    for (int cpu : { mine.front(), mine.back() }) {
        std::vector<int> its;
        std::atomic<bool> done{ false };
        Call call{ [&] {
            its = OwnCpus();
            done = true;
        } };
        IOThread *io = NewWithCpus(GetParam(), std::to_string(cpu).c_str());
        ASSERT_NE(io, nullptr);
        aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &call);
        EXPECT_TRUE(WaitUntil([&] { return done.load(); }));
        EXPECT_EQ(iothread_destroy(io), 0);
        EXPECT_EQ(its, std::vector<int>{ cpu });
    }
    EXPECT_EQ(OwnCpus(), mine) << "those of the thread that made them stay";
}

TEST_P(IOThreads, ListsOfProcessorsMayHaveRanges)
{
    std::vector<int> mine = OwnCpus();
    std::string list;

    for (int cpu : mine) { /* each as a range of one, and the first once more */
        list += std::to_string(cpu) + "-" + std::to_string(cpu) + ",";
    }
    list += std::to_string(mine[0]);
    std::vector<int> its;
    std::atomic<bool> done{ false };
    Call call{ [&] {
        its = OwnCpus();
        done = true;
    } };
    IOThread *io = NewWithCpus(GetParam(), list.c_str());
    ASSERT_NE(io, nullptr);
    aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &call);
    EXPECT_TRUE(WaitUntil([&] { return done.load(); }));
    EXPECT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(its, mine);
}

TEST(IOThreadCpus, BadListIsAnErrorThatSaysWhatOneIs)
{
    for (const char *bad : { "", "x", "0,", ",0", "0-", "-0", "0 ", "0,,1", "3-1", "0x1", "0-1-2",
                             "8192", "99999999999999999999" }) {
        testing::internal::CaptureStderr();
        IOThread *io = NewWithCpus(nullptr, bad);
        int err = errno;
        std::string said = testing::internal::GetCapturedStderr();

        EXPECT_EQ(io, nullptr) << bad;
        EXPECT_EQ(err, EINVAL) << bad;
        EXPECT_NE(said.find("IOThreadOptions.cpus is '" + std::string(bad) + "'"),
                  std::string::npos)
            << said;
        EXPECT_NE(said.find("such as 0-3,7, each 0 to 8191"), std::string::npos) << said;
    }
}

TEST(IOThreadCpus, OneThatCannotBeHadIsAnErrorThatSaysWhichCan)
{
    std::string some = std::to_string(OwnCpus()[0]) + ",8191";

    for (std::string list : { std::string("8191"), some }) {
        testing::internal::CaptureStderr();
        IOThread *io = NewWithCpus(nullptr, list.c_str());
        int err = errno;
        std::string said = testing::internal::GetCapturedStderr();

        EXPECT_EQ(io, nullptr);
        EXPECT_EQ(err, EINVAL);
        EXPECT_NE(said.find("IOThreadOptions.cpus is '" + list + "'; this process may use "),
                  std::string::npos)
            << said;
        EXPECT_NE(said.find(" use " + std::to_string(OwnCpus()[0])), std::string::npos) << said;
    }
}

TEST(IOThreadCpus, DenialIsAnError)
{
    bool denied = false;

    std::thread([&] {
        std::string cpu = std::to_string(OwnCpus()[0]);

        denied = Deny({ { SYS_sched_setaffinity, EPERM } });
        if (!denied) {
            return;
        }
        testing::internal::CaptureStderr();
        IOThread *io = NewWithCpus(nullptr, cpu.c_str());
        int err = errno;
        std::string said = testing::internal::GetCapturedStderr();
        EXPECT_EQ(io, nullptr);
        EXPECT_EQ(err, EPERM);
        EXPECT_NE(said.find("IOThreadOptions.cpus"), std::string::npos) << said;
    }).join();
    if (!denied) {
        GTEST_SKIP() << "no seccomp filters here";
    }
}

TEST_P(IOThreads, StatisticsAreTheThreadsAndItsContexts)
{
    ScopedIOThread io(GetParam(), "stats");
    IOThreadStats first, then;
    pid_t tid = 0;

    ASSERT_EQ(iothread_get_stats(io.get(), &first), 0);
    io.Run([&] {
        struct timespec begin, now;

        tid = gettid();
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        do {
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        } while (now.tv_sec == begin.tv_sec && now.tv_nsec - begin.tv_nsec < 2000000);
    });
    ASSERT_EQ(iothread_get_stats(io.get(), &then), 0);
    EXPECT_EQ(first.tid, tid);
    EXPECT_EQ(then.tid, tid);
    EXPECT_EQ(then.running, 1u);
    EXPECT_GT(then.cpu_ns, first.cpu_ns);
    EXPECT_GE(then.context.bhs, 1u);
    EXPECT_GE(then.context.bhs, first.context.bhs + 1);
    /* Each of its sleeps from now on is a switch. */
    for (int i = 0; i < 20; i++) {
        ASSERT_EQ(iothread_get_stats(io.get(), &then), 0);
        io.Run([] {});
        EXPECT_TRUE(WaitUntil([&] {
            IOThreadStats s;
            EXPECT_EQ(iothread_get_stats(io.get(), &s), 0);
            return s.voluntary_switches > then.voluntary_switches;
        }));
    }
}

TEST_P(IOThreads, StatisticsStayAfterTheEnd)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("stats", &opts);
    IOThreadStats before, after, again;
    std::atomic<int> runs{ 0 };
    Call call{ [&] { runs++; } };

    aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &call);
    ASSERT_EQ(iothread_get_stats(io, &before), 0);
    iothread_stop(io);
    ASSERT_EQ(iothread_join(io), 0);
    ASSERT_EQ(iothread_get_stats(io, &after), 0);
    EXPECT_EQ(after.running, 0u);
    EXPECT_EQ(after.tid, before.tid);
    EXPECT_GT(after.cpu_ns, 0u);
    EXPECT_GE(after.cpu_ns, before.cpu_ns);
    EXPECT_GE(after.voluntary_switches, before.voluntary_switches);
    EXPECT_GE(after.involuntary_switches, before.involuntary_switches);
    EXPECT_EQ(after.context.bhs, 1u);
    ASSERT_EQ(iothread_get_stats(io, &again), 0);
    EXPECT_EQ(again.cpu_ns, after.cpu_ns);
    EXPECT_EQ(iothread_destroy(io), 0);
}

/* The thread may end between any two steps of who asks. */
TEST_P(IOThreads, StatisticsMayBeAskedForBesideTheEnd)
{
    for (int i = 0; i < (kSanitized ? 20 : 100); i++) {
        IOThreadOptions opts = {};
        opts.context.monitor = GetParam();
        IOThread *io = iothread_new("stats", &opts);
        std::atomic<bool> ended{ false };
        std::thread asks([&] {
            while (!ended) {
                IOThreadStats s;
                ASSERT_EQ(iothread_get_stats(io, &s), 0);
                ASSERT_GT(s.tid, 0);
            }
        });

        iothread_stop(io);
        WaitUntil([&] {
            IOThreadStats s;
            EXPECT_EQ(iothread_get_stats(io, &s), 0);
            return !s.running;
        });
        ended = true;
        asks.join();
        ASSERT_EQ(iothread_destroy(io), 0);
    }
}

/* ---- What one costs -------------------------------------------------------------------------- */

/* Bytes of the process that are in memory. */
static double ResidentBytes()
{
    std::ifstream statm("/proc/self/statm");
    double size = 0, resident = 0;

    statm >> size >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

/* One that has done a little of everything. */
static void UseOnce(IOThread *io, SocketPair *s)
{
    std::atomic<int> done{ 0 };
    Call count{ [&] { done++; } };
    Call receive{ [&] {
        char c;
        done += read(s->a, &c, 1) == 1;
    } };
    AioContext *ctx = iothread_get_aio_context(io);
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &count);

    timer_mod(ts, 0);
    aio_bh_schedule_oneshot(ctx, Call::Run, &count);
    aio_set_fd_handler(ctx, s->a, Call::Run, nullptr, nullptr, nullptr, &receive);
    ASSERT_EQ(write(s->b, "x", 1), 1);
    ASSERT_TRUE(WaitUntil([&] { return done == 3; }));
    aio_remove_fd_handler_async(ctx, s->a, Call::Run, &count);
    ASSERT_TRUE(WaitUntil([&] { return done == 4; }));
    timer_free(ts);
}

static double ResidentBytesOfEach(const char *monitor, int n)
{
    IOThreadOptions opts = {};
    std::vector<IOThread *> ios;
    SocketPair s;
    double before = 0, after;

    opts.context.monitor = monitor;
    for (int i = 0; i <= n; i++) {
        ios.push_back(iothread_new("memory", &opts));
        if (!ios.back()) {
            ADD_FAILURE() << "iothread_new: errno " << errno;
            break;
        }
        UseOnce(ios.back(), &s);
        if (i == 0) { /* what is there once is not counted */
            before = ResidentBytes();
        }
    }
    after = ResidentBytes();
    for (IOThread *io : ios) {
        EXPECT_EQ(iothread_destroy(io), 0);
    }
    return (after - before) / n;
}

TEST_P(IOThreads, EachTakesAtMost300KiBOfMemory)
{
    if (kSanitized) {
        GTEST_SKIP() << "a sanitizer keeps memory of its own for each thread";
    }
    double each = ResidentBytesOfEach(GetParam(), 64);

    EXPECT_LE(each, 300 * 1024);
    EXPECT_GT(each, 4 * 1024) << "the measurement";
}

/* A thread's switches and system calls so far. */
struct Activity {
    uint64_t switches, syscalls, iterations;
    bool operator==(const Activity &other) const
    {
        return switches == other.switches && syscalls == other.syscalls &&
               iterations == other.iterations;
    }
};

static Activity ActivityOf(IOThread *io)
{
    IOThreadStats s = {};

    EXPECT_EQ(iothread_get_stats(io, &s), 0);
    return { s.voluntary_switches, s.context.syscalls, s.context.iterations };
}

TEST_P(IOThreads, IdleOneMakesNoSystemCallAndDoesNotWakeUp)
{
    ScopedIOThread io(GetParam(), "idle");
    SocketPair s;
    Call never{ [] { ADD_FAILURE(); } };
    QEMUTimer *ts = aio_timer_new(io.ctx(), QEMU_CLOCK_REALTIME, SCALE_MS, Call::Run, &never);

    timer_mod(ts, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 3600000);
    io.Run(
        [&] { aio_set_fd_handler(io.ctx(), s.a, Call::Run, nullptr, nullptr, nullptr, &never); });
    Activity now = ActivityOf(io.get()), then;
    do { /* until it sleeps */
        then = now;
        usleep(50000);
        now = ActivityOf(io.get());
    } while (!(now == then));
    usleep(300000);
    now = ActivityOf(io.get());
    EXPECT_EQ(now.syscalls, then.syscalls);
    EXPECT_EQ(now.iterations, then.iterations);
    EXPECT_EQ(now.switches, then.switches);
    io.Run([&] { aio_set_fd_handler(io.ctx(), s.a, nullptr, nullptr, nullptr, nullptr, nullptr); });
    timer_free(ts);
}

/* Whether the kernel can be told that a wait for completions is no wait for I/O. */
static bool KernelHasNoIowait()
{
    struct io_uring ring;
    struct io_uring_params p = {};

    if (io_uring_queue_init_params(1, &ring, &p) < 0) {
        return false;
    }
    io_uring_queue_exit(&ring);
    return (p.features & (1U << 17)) != 0; /* IORING_FEAT_NO_IOWAIT */
}

static int ThreadsInIowait()
{
    std::ifstream stat("/proc/stat");
    std::string word;
    int n = -1;

    while (stat >> word) {
        if (word == "procs_blocked") {
            stat >> n;
        }
    }
    return n;
}

TEST_P(IOThreads, IdleOnesAreNotCountedAsWaitingForIo)
{
    if (GetParam() == std::string("io_uring") && !KernelHasNoIowait()) {
        GTEST_SKIP() << "no IORING_FEAT_NO_IOWAIT in this kernel";
    }
    const int n = 100;
    std::vector<std::unique_ptr<ScopedIOThread>> ios;

    for (int i = 0; i < n; i++) {
        ios.push_back(std::make_unique<ScopedIOThread>(GetParam()));
        ios.back()->Run([] {});
    }
    /* The rest of the machine may have some. */
    EXPECT_TRUE(WaitUntil([] { return ThreadsInIowait() < n / 2; }, 10));
}

/* ---- Ending ---------------------------------------------------------------------------------- */

TEST_P(IOThreads, DestroyRunsTheBottomHalvesThatWereAccepted)
{
    for (int i = 0; i < 50; i++) {
        IOThreadOptions opts = {};
        opts.context.monitor = GetParam();
        IOThread *io = iothread_new("bh", &opts);
        std::atomic<int> runs{ 0 };
        Call last{ [&] { runs++; } };
        Call first{ [&] {
            runs++;
            aio_bh_schedule_oneshot(qemu_get_current_aio_context(), Call::Run, &last);
        } };

        for (int k = 0; k < 10; k++) {
            aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &first);
        }
        ASSERT_EQ(iothread_destroy(io), 0);
        ASSERT_EQ(runs, 20);
    }
}

TEST_P(IOThreads, DestroyRunsAnIdleBottomHalfToo)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("idle", &opts);
    std::atomic<int> runs{ 0 };
    Call call{ [&] { runs++; } };
    QEMUBH *bh = aio_bh_new(iothread_get_aio_context(io), Call::Run, &call);
    AioContext *ctx = iothread_get_aio_context(io);

    aio_context_ref(ctx);
    qemu_bh_schedule_idle(bh);
    ASSERT_EQ(iothread_destroy(io), 0);
    EXPECT_EQ(runs, 1);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(IOThreads, StopLimitDoesNotDependOnTheClocksSource)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    FakeClock frozen(QEMU_CLOCK_REALTIME);
    IOThreadOptions opts = {};
    opts.stop_timeout_ms = 50;
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("frozen", &opts);
    QEMUBH *bh;
    Call again{ [&] { qemu_bh_schedule(bh); } };

    bh = aio_bh_new(iothread_get_aio_context(io), Call::Run, &again);
    AioContext *ctx = iothread_get_aio_context(io);
    aio_context_ref(ctx);
    qemu_bh_schedule(bh); /* for ever */
    EXPECT_EQ(iothread_destroy(io), 0);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(IOThreads, DestroyDisarmsTimersWhichMayBeFreedAfterwards)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("timers", &opts);
    Call never{ [] { ADD_FAILURE(); } };
    QEMUTimer *ts = aio_timer_new(iothread_get_aio_context(io), QEMU_CLOCK_REALTIME, SCALE_MS,
                                  Call::Run, &never);
    QEMUTimer embedded;

    aio_timer_init(iothread_get_aio_context(io), &embedded, QEMU_CLOCK_REALTIME, SCALE_MS,
                   Call::Run, &never);
    timer_mod(ts, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 100000);
    timer_mod(&embedded, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 100000);
    ASSERT_EQ(iothread_destroy(io), 0);
    EXPECT_FALSE(timer_pending(ts));
    EXPECT_FALSE(timer_mod(ts, 0));
    EXPECT_FALSE(timer_mod(&embedded, 0));
    timer_free(ts);
    timer_deinit(&embedded);
}

TEST_P(IOThreads, ContextOutlivesItsThreadWithAReference)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("ref", &opts);
    AioContext *ctx = iothread_get_aio_context(io);
    Call never{ [] { ADD_FAILURE(); } };
    AioContextStats stats;
    std::atomic<bool> ran{ false };
    Call call{ [&] { ran = true; } };

    aio_context_ref(ctx);
    aio_bh_schedule_oneshot(ctx, Call::Run, &call);
    ASSERT_TRUE(WaitUntil([&] { return ran.load(); }));
    ASSERT_EQ(iothread_destroy(io), 0);
    aio_notify(ctx);
    aio_context_get_stats(ctx, &stats);
    EXPECT_GT(stats.iterations, 0u);
    EXPECT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &never), -ESHUTDOWN);
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, Call::Run, &never);
    EXPECT_FALSE(timer_mod(ts, 0));
    timer_free(ts);
    QEMUBH *bh = aio_bh_new(ctx, Call::Run, &never);
    qemu_bh_schedule(bh);
    qemu_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST_P(IOThreads, DestroyBelowACallbackDoesNotWait)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    ScopedIOThread io(GetParam());
    IOThread *other = iothread_new("other", &opts);
    int ret = 0;

    io.Run([&] { ret = iothread_destroy(other); });
    EXPECT_EQ(ret, -EDEADLK); /* its thread frees what is left; the guard counts threads and fds */
}

TEST_P(IOThreads, DestroyOfItselfAborts)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            IOThreadOptions opts = {};
            opts.context.monitor = GetParam();
            static IOThread *io = iothread_new("self", &opts);
            aio_bh_schedule_oneshot(
                iothread_get_aio_context(io), [](void *) { iothread_destroy(io); }, nullptr);
            sleep(5);
        },
        "cannot wait for itself");
}

TEST_P(IOThreads, StopThenJoinThenDestroy)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("stop", &opts);

    iothread_stop(io);
    EXPECT_EQ(iothread_join(io), 0);
    EXPECT_EQ(iothread_join(io), 0);
    EXPECT_EQ(iothread_destroy(io), 0);
}

TEST_P(IOThreads, DestroyBelowACallbackAfterAJoinEndsIt)
{
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    ScopedIOThread io(GetParam());
    IOThread *other = iothread_new("other", &opts);
    int ret = -1;

    iothread_stop(other);
    ASSERT_EQ(iothread_join(other), 0);
    io.Run([&] { ret = iothread_destroy(other); });
    EXPECT_EQ(ret, 0);
}

TEST_P(IOThreads, PingPongLosesNoWakeup)
{
    ScopedIOThread a(GetParam()), b(GetParam());
    static std::atomic<int> left;
    struct Side {
        AioContext *other;
        Side *peer;
        static void Hit(void *opaque)
        {
            Side *s = static_cast<Side *>(opaque);
            if (--left > 0) {
                aio_bh_schedule_oneshot(s->other, Hit, s->peer);
            }
        }
    } sa{ b.ctx(), nullptr }, sb{ a.ctx(), &sa };

    sa.peer = &sb;
    left = kSanitized ? 5000 : 50000;
    aio_bh_schedule_oneshot(a.ctx(), Side::Hit, &sa);
    EXPECT_TRUE(WaitUntil([] { return left <= 0; }));
}

TEST(IOThreadOps, DestroyWaitsForOperationsThenCancelsAndNamesThem)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    IOThreadOptions opts = {};
    opts.context.monitor = "io_uring";
    opts.stop_timeout_ms = 100;
    IOThread *io = iothread_new("hangs", &opts);
    SocketPair s;
    struct Recv {
        CqeHandler handler = {};
        char c;
        int fd;
        std::atomic<int> submitted{ 0 }, calls{ 0 };
    } recv;

    recv.fd = s.a;
    recv.handler.cb = [](CqeHandler *h) { reinterpret_cast<Recv *>(h)->calls++; };
    aio_bh_schedule_oneshot(
        iothread_get_aio_context(io),
        [](void *o) {
            Recv *r = static_cast<Recv *>(o);
            EXPECT_EQ(aio_add_sqe(
                          [](struct io_uring_sqe *sqe, void *p) {
                              Recv *rr = static_cast<Recv *>(p);
                              io_uring_prep_recv(sqe, rr->fd, &rr->c, 1, 0);
                          },
                          r, &r->handler),
                      0);
            r->submitted = 1;
        },
        &recv);
    ASSERT_TRUE(WaitUntil([&] { return recv.submitted == 1; }));
    testing::internal::CaptureStderr();
    EXPECT_EQ(iothread_destroy(io), 0);
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(recv.calls, 1);
    EXPECT_EQ(recv.handler.res, -ECANCELED);
    EXPECT_NE(said.find("hangs"), std::string::npos) << said;
    EXPECT_NE(said.find("1 recv"), std::string::npos) << said;
}
