/* SPDX-License-Identifier: MIT */
/* The thread pool: what runs where, cancel, threads that come and go, contexts that close. */
#include "loop_support.h"
#include "seccomp_support.h"

extern "C" {
#include "aio/thread_pool_int.h"
}

#include <aioctx/block.h>
#include <aioctx/thread_pool.h>

#include <condition_variable>
#include <csignal>
#include <cstdarg>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <random>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>

/* One function, and its end. */
struct Job {
    std::function<int()> func = [] { return 0; };
    std::function<void()> then; /* inside the callback */
    std::atomic<int> runs{ 0 }, calls{ 0 }, ret{ 1 };
    ThreadPoolAIOCB *acb = nullptr;

    static int Run(void *arg)
    {
        Job *job = static_cast<Job *>(arg);

        job->runs++;
        return job->func();
    }
    static void Ended(void *opaque, int ret)
    {
        Job *job = static_cast<Job *>(opaque);

        job->ret = ret;
        job->acb = nullptr;
        if (job->then) {
            job->then();
        }
        job->calls++; /* last: the test may end, and the job with it */
    }
    void Submit()
    {
        acb = thread_pool_submit_aio(Run, this, Ended, this);
        ASSERT_NE(acb, nullptr) << strerror(errno);
    }
};

/* What functions wait at. */
class Gate
{
public:
    int Wait()
    {
        std::unique_lock<std::mutex> guard(lock_);

        waiting_++;
        cond_.wait(guard, [&] { return open_; });
        return 0;
    }
    void Open()
    {
        std::lock_guard<std::mutex> guard(lock_);

        open_ = true;
        cond_.notify_all();
    }
    int Waiting()
    {
        std::lock_guard<std::mutex> guard(lock_);

        return waiting_;
    }

private:
    std::mutex lock_;
    std::condition_variable cond_;
    bool open_ = false;
    int waiting_ = 0;
};

/* While it is closed, a thread of the pool stops where it names itself, before it takes the lock.
 */
static Gate *volatile naming_gate;

extern "C" int prctl(int option, ...)
{
    unsigned long arg[4];
    Gate *gate = naming_gate;
    va_list args;

    va_start(args, option);
    for (unsigned long &a : arg) {
        a = va_arg(args, unsigned long);
    }
    va_end(args);
    if (gate && option == PR_SET_NAME &&
        !strcmp(reinterpret_cast<const char *>(arg[0]), "aioctx-pool")) {
        gate->Wait();
    }
    return static_cast<int>(syscall(SYS_prctl, option, arg[0], arg[1], arg[2], arg[3]));
}

static void SetParams(unsigned min_threads, unsigned max_threads, int64_t idle_ns = 20 * SCALE_MS)
{
    ThreadPoolParams p = {};

    p.min_threads = min_threads;
    p.max_threads = max_threads;
    p.idle_ns = idle_ns;
    ASSERT_EQ(thread_pool_set_params(&p), 0);
}

static ThreadPoolStats PoolStats()
{
    ThreadPoolStats s;

    thread_pool_get_stats(&s);
    EXPECT_EQ(s.submitted, s.done + s.cancelled + s.queued + s.running);
    EXPECT_LE(s.idle, s.threads);
    return s;
}

/* Waits until all has been done and sent back, and the threads have ended for want of work. */
static bool NoThreads()
{
    return WaitUntil([] {
        ThreadPoolStats s = PoolStats();
        return s.queued == 0 && s.running == 0 && s.threads == 0;
    });
}

class ThreadPool : public OnEachMonitor
{
protected:
    void TearDown() override
    {
        SetParams(0, 0);
    }
};
ON_EACH_MONITOR(ThreadPool);

/* ---- One function ---------------------------------------------------------------------------- */

TEST_P(ThreadPool, RunsOnAThreadOfItsOwnAndCallsBackAtHome)
{
    ScopedContext ctx(GetParam());
    std::thread::id ran_on, called_on;
    std::string name;
    sigset_t blocked;
    bool is_home = true, has_context = true;
    Job job;

    job.func = [&] {
        ran_on = std::this_thread::get_id();
        is_home = in_aio_context_home_thread(ctx);
        has_context = qemu_get_current_aio_context() != nullptr;
        pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
        std::getline(std::ifstream("/proc/thread-self/comm"), name);
        return -ENOSPC;
    };
    job.then = [&] { called_on = std::this_thread::get_id(); };
    job.Submit();
    ASSERT_TRUE(WaitUntil([&] { return PoolStats().running == 0 && job.runs == 1; }));
    EXPECT_EQ(job.calls, 0); /* only the loop calls back */
    thread_pool_drain(ctx);
    EXPECT_EQ(job.calls, 1);
    EXPECT_EQ(job.ret, -ENOSPC);
    EXPECT_NE(ran_on, std::this_thread::get_id());
    EXPECT_EQ(called_on, std::this_thread::get_id());
    EXPECT_FALSE(is_home);
    EXPECT_FALSE(has_context);
    EXPECT_EQ(name, "aioctx-pool");
    for (int sig : { SIGINT, SIGTERM, SIGUSR1, SIGALRM, SIGCHLD }) {
        EXPECT_EQ(sigismember(&blocked, sig), 1) << sig;
    }
}

TEST_P(ThreadPool, ASleepingLoopIsWoken)
{
    ScopedIOThread io(GetParam());
    Job job;

    for (int i = 1; i <= 50; i++) {
        io.Run([&] { job.Submit(); });
        ASSERT_TRUE(WaitUntil([&] { return job.calls == i; }));
    }
}

TEST_P(ThreadPool, FunctionsBeginInTheOrderOfSubmission)
{
    ScopedContext ctx(GetParam());
    const int n = 200;
    std::vector<int> begun, called;
    Job jobs[n];

    SetParams(0, 1);
    for (int i = 0; i < n; i++) {
        jobs[i].func = [&, i] {
            begun.push_back(i);
            return 0;
        };
        jobs[i].then = [&, i] { called.push_back(i); };
        jobs[i].Submit();
    }
    thread_pool_drain(ctx);
    ASSERT_EQ(begun.size(), static_cast<size_t>(n));
    EXPECT_EQ(called, begun);
    for (int i = 0; i < n; i++) {
        ASSERT_EQ(begun[i], i);
    }
}

TEST_P(ThreadPool, WorksThatComeBackBeforeTheLoopRunsCostOneNotify)
{
    ScopedContext ctx(GetParam());
    const int n = 300;
    Job jobs[n];

    aio_poll(ctx, false);
    uint64_t before = ctx.Stats().notifies;
    for (Job &job : jobs) {
        job.Submit();
    }
    ASSERT_TRUE(NoThreads()); /* all that there is to do has been done */
    EXPECT_EQ(ctx.Stats().notifies, before + 1);
    thread_pool_drain(ctx);
    for (Job &job : jobs) {
        ASSERT_EQ(job.calls, 1);
    }
}

/* ---- Cancel ---------------------------------------------------------------------------------- */

TEST_P(ThreadPool, WhatHasNotBegunIsCancelledOnce)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job first, second, third;

    SetParams(0, 1);
    first.func = [&] { return gate.Wait(); };
    first.Submit();
    second.Submit();
    third.Submit();
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 1; }));
    uint64_t cancelled = PoolStats().cancelled;
    EXPECT_TRUE(thread_pool_cancel(second.acb));
    EXPECT_FALSE(thread_pool_cancel(second.acb));
    EXPECT_EQ(second.calls, 0);
    EXPECT_EQ(PoolStats().cancelled, cancelled + 1);
    while (second.calls == 0) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(second.ret, -ECANCELED);
    gate.Open();
    thread_pool_drain(ctx);
    EXPECT_EQ(second.calls, 1);
    EXPECT_EQ(second.runs, 0);
    EXPECT_EQ(first.calls + third.calls, 2);
    EXPECT_EQ(third.ret, 0);
}

TEST_P(ThreadPool, WhatHasBegunEndsInItsOwnResult)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job job;

    job.func = [&] { return gate.Wait() + 7; };
    job.Submit();
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 1; }));
    EXPECT_FALSE(thread_pool_cancel(job.acb));
    gate.Open();
    ASSERT_TRUE(WaitUntil([&] { return PoolStats().running == 0; }));
    EXPECT_FALSE(thread_pool_cancel(job.acb)); /* it has returned */
    thread_pool_drain(ctx);
    EXPECT_EQ(job.calls, 1);
    EXPECT_EQ(job.ret, 7);
}

/* ---- Drain, and nested polls ----------------------------------------------------------------- */

TEST_P(ThreadPool, DrainDoesNotWaitForWhatComesLater)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job before, later;

    later.func = [&] { return gate.Wait(); };
    before.then = [&] { later.Submit(); };
    before.Submit();
    thread_pool_drain(ctx);
    EXPECT_EQ(before.calls, 1);
    EXPECT_EQ(later.calls, 0);
    gate.Open();
    thread_pool_drain(ctx);
    EXPECT_EQ(later.calls, 1);
    thread_pool_drain(ctx);
}

TEST_P(ThreadPool, ACallbackMaySubmitAndDrain)
{
    ScopedContext ctx(GetParam());
    Job outer, inner, beside[20];

    outer.then = [&] {
        inner.Submit();
        thread_pool_drain(ctx); /* not for itself */
        EXPECT_EQ(inner.calls, 1);
        for (Job &job : beside) {
            EXPECT_EQ(job.calls, 1);
        }
    };
    outer.Submit();
    for (Job &job : beside) {
        job.Submit();
    }
    ASSERT_TRUE(NoThreads()); /* so that all come back at once, the outer one first or not */
    thread_pool_drain(ctx);
    EXPECT_EQ(outer.calls, 1);
}

TEST_P(ThreadPool, ManyCallbacksLeaveTimersTheirTurn)
{
    ScopedContext ctx(GetParam());
    const int n = 1000;
    std::unique_ptr<Job[]> jobs(new Job[n]);
    std::atomic<int> called{ 0 };
    int at_timer = -1;
    HeapTimer ts(aio_context_get_timer_list_group(ctx), [&] { at_timer = called; });

    for (int i = 0; i < n; i++) {
        jobs[i].then = [&] { called++; };
        jobs[i].Submit();
    }
    ASSERT_TRUE(NoThreads());
    timer_mod(ts, 0);
    thread_pool_drain(ctx);
    EXPECT_GE(at_timer, 0);
    EXPECT_LT(at_timer, n);
}

/* ---- Threads --------------------------------------------------------------------------------- */

TEST_P(ThreadPool, ThreadsStartForWhatWaitsUpToTheMaximum)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job jobs[10];

    ASSERT_TRUE(NoThreads());
    SetParams(0, 3);
    for (Job &job : jobs) {
        job.func = [&] { return gate.Wait(); };
        job.Submit();
    }
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 3; }));
    ThreadPoolStats s = PoolStats();
    EXPECT_EQ(s.threads, 3u);
    EXPECT_EQ(s.running, 3u);
    EXPECT_EQ(s.queued, 7u);
    EXPECT_EQ(s.idle, 0u);
    gate.Open();
    thread_pool_drain(ctx);
    EXPECT_LE(PoolStats().threads, 3u);
}

TEST_P(ThreadPool, IdleThreadsEndDownToTheMinimum)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job jobs[4];

    SetParams(2, 4, SCALE_MS);
    for (Job &job : jobs) {
        job.func = [&] { return gate.Wait(); };
        job.Submit();
    }
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 4; }));
    gate.Open();
    thread_pool_drain(ctx);
    ASSERT_TRUE(WaitUntil([&] { return PoolStats().threads == 2 && PoolStats().idle == 2; }));
    uint64_t begun = PoolStats().threads_begun;
    Job more;
    more.Submit();
    thread_pool_drain(ctx);
    EXPECT_EQ(PoolStats().threads_begun, begun); /* one that was idle has done it */
    SetParams(0, 4, SCALE_MS);
    EXPECT_TRUE(NoThreads());
}

TEST_P(ThreadPool, AHigherMaximumStartsThreadsForWhatWaits)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job jobs[6];

    SetParams(0, 1);
    for (Job &job : jobs) {
        job.func = [&] { return gate.Wait(); };
        job.Submit();
    }
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 1; }));
    SetParams(0, 6);
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 6; }));
    gate.Open();
    thread_pool_drain(ctx);
}

TEST_P(ThreadPool, ALowerMaximumEndsThreadsAndLosesNothing)
{
    ScopedContext ctx(GetParam());
    Gate gate;
    Job held[5], jobs[100];

    SetParams(0, 5, 100 * SCALE_MS);
    for (Job &job : held) {
        job.func = [&] { return gate.Wait(); };
        job.Submit();
    }
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 5; }));
    std::atomic<int> at_once{ 0 }, most{ 0 };
    SetParams(0, 1, 100 * SCALE_MS);
    for (Job &job : jobs) {
        job.func = [&] {
            int now = ++at_once;
            if (now > most) {
                most = now;
            }
            std::this_thread::yield();
            at_once--;
            return 0;
        };
        job.Submit();
    }
    gate.Open();
    thread_pool_drain(ctx);
    EXPECT_EQ(most, 1);
    for (Job &job : jobs) {
        EXPECT_EQ(job.calls, 1);
    }
    EXPECT_TRUE(WaitUntil([&] { return PoolStats().threads <= 1; }));
}

/* What waits has relied on a thread that was being created, and is one too many when it comes. */
TEST_P(ThreadPool, AThreadThatIsTooManyWhenItComesStrandsNothing)
{
    ScopedContext ctx(GetParam());
    Gate gate, naming;
    Job first, second, last;

    ASSERT_TRUE(NoThreads());
    SetParams(0, 2, 100 * SCALE_MS);
    first.func = [&] { return gate.Wait(); };
    first.Submit();
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 1; }));
    naming_gate = &naming;
    second.Submit(); /* starts a thread, which is held up */
    ASSERT_TRUE(WaitUntil([&] { return naming.Waiting() == 1; }));
    naming_gate = nullptr;
    SetParams(0, 1, 100 * SCALE_MS);
    gate.Open();
    ASSERT_TRUE(WaitUntil([&] {
        ThreadPoolStats s = PoolStats();
        return s.done >= 2 && s.running == 0 && s.queued == 0 && s.idle == 1;
    }));
    last.Submit();
    naming.Open();
    EXPECT_TRUE(WaitUntil([&] {
        aio_poll(ctx, false);
        return first.calls + second.calls + last.calls == 3;
    }));
    if (!last.calls) {
        Job saviour;
        saviour.Submit(); /* so that the others end before they go out of scope */
        thread_pool_drain(ctx);
    }
}

/* Without a pause between looks. */
static bool WaitUntilPolling(AioContext *ctx, const std::function<bool()> &cond)
{
    int64_t end = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 10 * INT64_C(1000) * SCALE_MS;

    while (!cond()) {
        if (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) > end) {
            return false;
        }
        aio_poll(ctx, false);
    }
    return true;
}

/* A thread that is got up to look at new parameters when its time is up anyway. */
TEST_P(ThreadPool, AThreadThatLooksAtParametersLooksAtTheQueue)
{
    ScopedContext ctx(GetParam());
    const int n = kSanitized ? 1000 : 10000;
    std::mt19937 rng(1);
    Job job;

    for (int i = 1; i <= n; i++) {
        SetParams(0, 1, 1 + rng() % 8000);
        job.Submit();
        bool called = WaitUntilPolling(ctx, [&] { return job.calls == i; });
        if (!called) {
            Job saviour;
            saviour.Submit();
            thread_pool_drain(ctx);
            FAIL() << "round " << i;
        }
    }
}

TEST(ThreadPoolParams, BadOnesAreRefusedAndChangeNothing)
{
    const struct {
        unsigned min_threads, max_threads;
        int64_t idle_ns;
        const char *said;
    } cases[] = {
        { 0, 4097, 0, "max_threads is 4097; it is 1 to 4096, or 0 for 64" },
        { 5, 4, 0, "min_threads is 5; it is 0 to max_threads, 4" },
        { 65, 0, 0, "min_threads is 65; it is 0 to max_threads, 64" },
        { 0, 0, -1, "idle_ns is -1; it is 1 or more, or 0 for 10 s" },
    };

    SetParams(1, 7, 12345);
    for (const auto &c : cases) {
        ThreadPoolParams p = {};
        p.min_threads = c.min_threads;
        p.max_threads = c.max_threads;
        p.idle_ns = c.idle_ns;
        testing::internal::CaptureStderr();
        EXPECT_EQ(thread_pool_set_params(&p), -EINVAL);
        std::string said = testing::internal::GetCapturedStderr();
        EXPECT_NE(said.find(c.said), std::string::npos) << said;
        thread_pool_get_params(&p);
        EXPECT_EQ(p.min_threads, 1u);
        EXPECT_EQ(p.max_threads, 7u);
        EXPECT_EQ(p.idle_ns, 12345);
    }
    EXPECT_EQ(thread_pool_set_params(nullptr), 0);
    ThreadPoolParams p;
    thread_pool_get_params(&p);
    EXPECT_EQ(p.min_threads, 0u);
    EXPECT_EQ(p.max_threads, 64u);
    EXPECT_EQ(p.idle_ns, INT64_C(10000000000));
    SetParams(0, 0);
}

TEST(ThreadPoolMisuse, WithoutACurrentContextNothingIsTakenOn)
{
    Job job;

    errno = 0;
    EXPECT_EQ(thread_pool_submit_aio(Job::Run, &job, Job::Ended, &job), nullptr);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(job.runs, 0);
}

/* ---- Contexts that close --------------------------------------------------------------------- */

TEST_P(ThreadPool, AContextThatClosesWaitsForItsFunctions)
{
    for (int round = 0; round < 20; round++) {
        const int n = 30;
        Job jobs[n];
        {
            ScopedIOThread io(GetParam());
            io.Run([&] {
                for (Job &job : jobs) {
                    job.func = [] {
                        usleep(100);
                        return 3;
                    };
                    job.Submit();
                }
            });
        }
        for (Job &job : jobs) {
            ASSERT_EQ(job.calls, 1);
            ASSERT_EQ(job.ret, 3);
        }
    }
}

TEST_P(ThreadPool, AThreadThatStopsCancelsWhatHasNotBegun)
{
    IOThreadOptions opts = {};
    Gate gate;
    Job first, rest[5];
    int refused = 0;

    SetParams(0, 1);
    opts.context.monitor = GetParam();
    opts.stop_timeout_ms = 20;
    IOThread *io = iothread_new("stops", &opts);
    ASSERT_NE(io, nullptr);
    first.func = [&] { return gate.Wait() + 5; };
    for (Job &job : rest) {
        job.then = [&] {
            Job *more = &rest[0];
            refused +=
                !thread_pool_submit_aio(Job::Run, more, Job::Ended, more) && errno == ESHUTDOWN;
            gate.Open(); /* the first one ends after the others */
        };
    }
    Call submit{ [&] {
        first.Submit();
        for (Job &job : rest) {
            job.Submit();
        }
    } };
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &submit), 0);
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 1; }));
    testing::internal::CaptureStderr();
    EXPECT_EQ(iothread_destroy(io), 0);
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("stops: still in flight at the end: 6 of block drivers or the thread pool; "
                        "cancelling"),
              std::string::npos)
        << said;
    EXPECT_EQ(said.find("given up"), std::string::npos) << said;
    EXPECT_EQ(first.calls, 1);
    EXPECT_EQ(first.ret, 5);
    for (Job &job : rest) {
        EXPECT_EQ(job.calls, 1);
        EXPECT_EQ(job.ret, -ECANCELED);
        EXPECT_EQ(job.runs, 0);
    }
    EXPECT_EQ(refused, 5);
}

TEST(ThreadPoolClose, AFunctionThatOutlastsItAllIsGivenUp)
{
    IOThreadOptions opts = {};
    Gate gate;
    Job job;

    opts.stop_timeout_ms = 1;
    IOThread *io = iothread_new("gives-up", &opts);
    ASSERT_NE(io, nullptr);
    job.func = [&] { return gate.Wait(); };
    Call submit{ [&] { job.Submit(); } };
    ASSERT_EQ(aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &submit), 0);
    ASSERT_TRUE(WaitUntil([&] { return gate.Waiting() == 1; }));
    testing::internal::CaptureStderr();
    EXPECT_EQ(iothread_destroy(io), 0);
    std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("given up"), std::string::npos) << said;
    aio_rcu_barrier(); /* the context's memory is gone */
    gate.Open();
    EXPECT_TRUE(NoThreads());
    EXPECT_EQ(job.calls, 0);
}

TEST_P(ThreadPool, AThreadMayEndInACallback)
{
    struct {
        Job job;
        AioContext *ctx;
    } home;
    AioContextOptions opts = {};
    pthread_t thread;

    opts.monitor = GetParam();
    home.ctx = aio_context_new(&opts);
    home.job.then = [] { pthread_exit(nullptr); };
    testing::internal::CaptureStderr();
    ASSERT_EQ(pthread_create(
                  &thread, nullptr,
                  [](void *opaque) -> void * {
                      auto *h = static_cast<decltype(home) *>(opaque);
                      qemu_set_current_aio_context(h->ctx);
                      h->job.Submit();
                      for (;;) {
                          aio_poll(h->ctx, true);
                      }
                  },
                  &home),
              0);
    pthread_join(thread, nullptr);
    EXPECT_EQ(testing::internal::GetCapturedStderr(), ""); /* nothing is in flight */
    aio_context_unref(home.ctx);
}

TEST_P(ThreadPool, TheLastReferenceMayGoElsewhereAndTheHomeThreadMayEnd)
{
    for (int round = 0; round < 20; round++) {
        Job jobs[20];
        AioContextOptions opts = {};
        opts.monitor = GetParam();
        AioContext *ctx = aio_context_new(&opts);
        ASSERT_NE(ctx, nullptr);
        std::thread([&] {
            qemu_set_current_aio_context(ctx);
            for (Job &job : jobs) {
                job.Submit();
            }
            if (round % 2) {
                std::thread([&] { aio_context_unref(ctx); }).join();
            }
        }).join(); /* a home thread that exits ends its contexts */
        for (Job &job : jobs) {
            ASSERT_EQ(job.calls, 1);
        }
        if (round % 2 == 0) {
            aio_context_unref(ctx);
        }
    }
}

/* ---- Works that their owner embeds ----------------------------------------------------------- */

struct OwnWork {
    PoolWork work = {};
    Gate gate;
    std::atomic<int> runs{ 0 }, dones{ 0 }, losses{ 0 };

    OwnWork()
    {
        work.func = [](PoolWork *w) {
            OwnWork *own = reinterpret_cast<OwnWork *>(w);
            own->runs++;
            return own->gate.Wait();
        };
        work.done = [](PoolWork *w, int) { reinterpret_cast<OwnWork *>(w)->dones++; };
        work.lost = [](PoolWork *w) { reinterpret_cast<OwnWork *>(w)->losses++; };
    }
};

TEST_P(ThreadPool, AnOwnersWorkThatIsTakenBackIsNotDone)
{
    ScopedContext ctx(GetParam());
    OwnWork a, b;

    SetParams(0, 1);
    ASSERT_EQ(pool_work_submit(ctx, &a.work), 0);
    ASSERT_TRUE(WaitUntil([&] { return a.gate.Waiting() == 1; }));
    for (int i = 0; i < 3; i++) { /* it can be submitted again at once */
        ASSERT_EQ(pool_work_submit(ctx, &b.work), 0);
        EXPECT_TRUE(pool_work_cancel(&b.work));
        EXPECT_FALSE(pool_work_cancel(&b.work));
    }
    EXPECT_FALSE(pool_work_cancel(&a.work));
    a.gate.Open();
    while (!a.dones) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(b.runs + b.dones, 0);
}

TEST_P(ThreadPool, OwnersKeepTheMemoryOfWhatOutlastsTheContext)
{
    OwnWork runs, waits, returned;

    SetParams(0, 1);
    returned.gate.Open();
    {
        ScopedIOThread io(GetParam());
        io.Run([&] {
            ASSERT_EQ(pool_work_submit(io.ctx(), &returned.work), 0);
            ASSERT_TRUE(NoThreads()); /* it has been sent back, and the loop does not look */
            ASSERT_EQ(pool_work_submit(io.ctx(), &runs.work), 0);
            ASSERT_EQ(pool_work_submit(io.ctx(), &waits.work), 0);
            iothread_stop(io.get());
        });
        ASSERT_TRUE(WaitUntil([&] { return runs.gate.Waiting() == 1; }));
    }
    aio_rcu_barrier();
    EXPECT_TRUE(pool_work_cancel(&waits.work));
    runs.gate.Open();
    EXPECT_TRUE(NoThreads());
    EXPECT_EQ(returned.runs, 1);
    EXPECT_EQ(waits.runs, 0);
    EXPECT_EQ(runs.dones + waits.dones, 0);
    EXPECT_EQ(runs.losses, 1);
    EXPECT_EQ(waits.losses, 0);
    EXPECT_EQ(returned.dones + returned.losses, 1);
}

/* Nothing of a context is touched that closes between a work's return and its way back. */
TEST_P(ThreadPool, OwnersWorksMayReturnWhileTheirContextCloses)
{
    const int rounds = kSanitized ? 40 : 150;
    std::vector<std::unique_ptr<OwnWork>> works;

    for (int i = 0; i < rounds; i++) {
        ScopedContext ctx(GetParam());
        for (int k = 0; k < 3; k++) {
            works.emplace_back(new OwnWork);
            works.back()->gate.Open();
            ASSERT_EQ(pool_work_submit(ctx, &works.back()->work), 0);
        }
        for (int spin = i % 8; spin > 0; spin--) {
            aio_poll(ctx, false);
        }
    }
    EXPECT_TRUE(NoThreads());
    for (auto &own : works) {
        EXPECT_EQ(own->runs, 1);
        EXPECT_EQ(own->dones + own->losses, 1);
    }
}

/* ---- Threads that cannot be had, fork, exit -------------------------------------------------- */

static bool DenyThreads()
{
    std::vector<Denied> denied = { { SYS_clone3, EAGAIN } };
#ifdef SYS_clone
    denied.push_back({ SYS_clone, EAGAIN });
#endif
    return Deny(denied);
}

static void Require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        _exit(1);
    }
}

[[noreturn]] static void SubmitWithoutThreads(const char *monitor)
{
    ScopedContext ctx(monitor);
    Job job;

    Require(DenyThreads(), "no filter");
    errno = 0;
    Require(!thread_pool_submit_aio(Job::Run, &job, Job::Ended, &job), "taken on");
    Require(errno == EAGAIN, strerror(errno));
    ThreadPoolStats s = PoolStats();
    Require(s.submitted == 0 && s.threads_failed == 1 && s.threads == 0, "statistics");
    aio_poll(ctx, false);
    Require(job.runs == 0 && job.calls == 0, "called");
    if (strcmp(monitor, "io_uring") != 0) {
        BlockBackend *blk = blk_open("file:/proc/self/exe?read-only=on", nullptr);
        Require(blk, "blk_open");
        Require(blk_flush(blk) == -EAGAIN, "blk_flush");
        blk_unref(blk);
    }
    _exit(0);
}

TEST_P(ThreadPool, WithoutAnyThreadAFunctionIsRefused)
{
    EXPECT_EXIT(SubmitWithoutThreads(GetParam()), testing::ExitedWithCode(0), "");
}

[[noreturn]] static void SubmitWithOneThread(const char *monitor)
{
    ScopedContext ctx(monitor);
    const int n = 50;
    Job first, jobs[n];
    Gate gate;

    SetParams(1, 8);
    first.func = [] { return DenyThreads() ? 0 : -1; }; /* who has a work may start threads too */
    first.Submit();
    thread_pool_drain(ctx);
    Require(PoolStats().threads == 1, "no thread");
    Require(first.ret == 0 && DenyThreads(), "no filter");
    jobs[0].func = [&] { return gate.Wait(); };
    for (Job &job : jobs) {
        job.Submit();
    }
    Require(WaitUntil([&] { return gate.Waiting() == 1; }), "the first one does not run");
    Require(PoolStats().threads_failed >= 1, "a thread could be had");
    gate.Open();
    thread_pool_drain(ctx);
    for (Job &job : jobs) {
        Require(job.calls == 1 && job.ret == 0, "lost");
    }
    Require(PoolStats().threads == 1, "more threads");
    _exit(0);
}

TEST_P(ThreadPool, WithFewerThreadsThanWantedNothingIsLost)
{
    EXPECT_EXIT(SubmitWithOneThread(GetParam()), testing::ExitedWithCode(0), "");
}

[[noreturn]] static void ExitWithWork(const char *monitor)
{
    ScopedContext ctx(monitor);
    static Gate gate;
    static Job jobs[20];

    for (Job &job : jobs) {
        job.func = [] { return gate.Wait(); };
        job.Submit();
    }
    Require(WaitUntil([&] { return gate.Waiting() > 2; }), "they do not run");
    quick_exit(0);
}

TEST_P(ThreadPool, AProcessMayEndWithFunctionsInFlight)
{
    EXPECT_EXIT(ExitWithWork(GetParam()), testing::ExitedWithCode(0), "");
}

TEST(ThreadPoolFork, AChildThatSubmitsAborts)
{
    EXPECT_DEATH(
        {
            ScopedContext ctx;
            Job job;
            job.Submit();
            thread_pool_drain(ctx);
            pid_t child = fork();
            if (child == 0) {
                thread_pool_submit_aio(Job::Run, &job, Job::Ended, &job);
                _exit(0);
            }
            int status = 0;
            waitpid(child, &status, 0);
            if (WIFSIGNALED(status)) {
                abort();
            }
        },
        "thread_pool_submit_aio: called in a child of fork");
}

TEST(ThreadPoolFork, AChildThatCancelsAborts)
{
    EXPECT_DEATH(
        {
            ScopedContext ctx;
            Gate gate;
            Job job;
            job.func = [&] { return gate.Wait(); };
            job.Submit();
            WaitUntil([&] { return gate.Waiting() == 1; });
            pid_t child = fork();
            if (child == 0) {
                thread_pool_cancel(job.acb);
                _exit(0);
            }
            int status = 0;
            waitpid(child, &status, 0);
            if (WIFSIGNALED(status)) {
                abort();
            }
        },
        "thread_pool_cancel: called in a child of fork");
}

/* ---- Races ----------------------------------------------------------------------------------- */

/* A thread that ends the moment it is idle, against the next submission. */
TEST_P(ThreadPool, NothingIsLostToThreadsThatEnd)
{
    ScopedContext ctx(GetParam());
    const int n = kSanitized ? 500 : 3000;
    Job job;

    SetParams(0, 2, 1);
    for (int i = 1; i <= n; i++) {
        job.Submit();
        if (i % 3) {
            thread_pool_drain(ctx);
            ASSERT_EQ(job.calls, i);
        } else {
            ASSERT_TRUE(WaitUntil([&] {
                aio_poll(ctx, false);
                return job.calls == i;
            }));
        }
    }
}

/* Keeps the parameters changing while it lives. */
class Changer
{
public:
    explicit Changer(unsigned seed)
        : thread_([this, seed] {
              std::mt19937 rng(seed);
              while (!stop_) {
                  unsigned max = 1 + rng() % 6;
                  SetParams(rng() % (max + 1), max, 1 + rng() % 200000);
                  PoolStats();
                  usleep(rng() % 500);
              }
          })
    {
    }
    ~Changer()
    {
        stop_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> stop_{ false };
    std::thread thread_;
};

/* Submits and cancels at random on the calling thread's context; all of it comes back, once. */
static void Churn(AioContext *ctx, unsigned seed, int n)
{
    std::mt19937 rng(seed);
    std::vector<std::unique_ptr<Job>> jobs;

    for (int i = 0; i < n; i++) {
        Job *job = new Job;
        unsigned spin = rng() % 4 ? 0 : rng() % 2000;

        jobs.emplace_back(job);
        job->func = [spin] {
            for (volatile unsigned k = 0; k < spin; k = k + 1) {
            }
            return 11;
        };
        if (rng() % 8 == 0) {
            job->then = [ctx] { aio_poll(ctx, false); };
        }
        job->Submit();
        Job *other = jobs[rng() % jobs.size()].get();
        if (rng() % 3 == 0 && other->acb) {
            thread_pool_cancel(other->acb);
        }
        if (rng() % 16 == 0) {
            aio_poll(ctx, false);
        }
    }
    if (rng() % 2) {
        thread_pool_drain(ctx);
    }
    while (!jobs.empty()) {
        Job *job = jobs.back().get();

        if (!job->calls) {
            aio_poll(ctx, true);
            continue;
        }
        ASSERT_EQ(job->calls, 1);
        ASSERT_EQ(job->runs, job->ret == -ECANCELED ? 0 : 1);
        ASSERT_TRUE(job->ret == 11 || job->ret == -ECANCELED);
        jobs.pop_back();
    }
}

TEST_P(ThreadPool, SubmitsCancelsAndChangesFromManyContextsLoseNothing)
{
    Changer changer(1);

    RunThreads(3, [&](int t) {
        for (unsigned round = 0; round < (kSanitized ? 3u : 10u); round++) {
            ScopedContext ctx(GetParam());
            Churn(ctx, round * 10 + static_cast<unsigned>(t), kSanitized ? 100 : 300);
        }
    });
}

/* Contexts end while their last works are on the way back. */
TEST_P(ThreadPool, ContextsThatEndUnderLoadLeaveNothingBehind)
{
    Changer changer(2);

    RunThreads(3, [&](int t) {
        std::mt19937 rng(static_cast<unsigned>(t));
        for (int round = 0; round < (kSanitized ? 30 : 100); round++) {
            Job jobs[8];
            {
                ScopedContext ctx(GetParam());
                for (Job &job : jobs) {
                    job.Submit();
                    if (rng() % 4 == 0 && job.acb) {
                        thread_pool_cancel(job.acb);
                    }
                }
            }
            for (Job &job : jobs) {
                ASSERT_EQ(job.calls, 1);
            }
        }
    });
}
