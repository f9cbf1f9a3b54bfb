/* SPDX-License-Identifier: MIT */
#include "support.h"

#include <aioctx/thread_pool.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <memory>
#include <set>
#include <thread>
#include <unistd.h>

const std::vector<const char *> kMonitors = { "io_uring", "epoll", "ppoll" };
const std::vector<const char *> kMonitorsOfSlowSuites =
    kSanitized ? std::vector<const char *>{ "io_uring" } : kMonitors;

std::string MonitorName(const testing::TestParamInfo<const char *> &info)
{
    return info.param;
}

bool MonitorWorks(const char *monitor)
{
    AioContextOptions opts = {};
    AioContext *ctx;

    opts.monitor = monitor;
    ctx = aio_context_new(&opts);
    if (!ctx) {
        return errno != ENOSYS && errno != EPERM; /* anything else is for the test to fail over */
    }
    aio_context_unref(ctx);
    return true;
}

/* What every ThreadSanitizer build needs, as liburcu is not instrumented (rcu/README.md). */
extern "C" const char *__tsan_default_options()
{
    return "ignore_noninstrumented_modules=1";
}

/* ---- Waiting and threads --------------------------------------------------------------------- */

static double NowSeconds()
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) / 1e9;
}

bool WaitUntil(const std::function<bool()> &cond, double seconds)
{
    double until = NowSeconds() + seconds;

    while (!cond()) {
        if (NowSeconds() > until) {
            return cond();
        }
        usleep(200);
    }
    return true;
}

void RunThreads(int n, const std::function<void(int)> &func)
{
    std::vector<std::thread> threads;
    std::atomic<int> ready{ 0 };

    for (int i = 0; i < n; i++) {
        threads.emplace_back([&, i] {
            ready++;
            while (ready < n) {
                std::this_thread::yield();
            }
            func(i);
        });
    }
    for (std::thread &t : threads) {
        t.join();
    }
}

ScopedIOThread::ScopedIOThread(const char *monitor, const char *name)
{
    IOThreadOptions opts = {};

    opts.context.monitor = monitor;
    io_ = iothread_new(name, &opts);
    if (!io_) {
        ADD_FAILURE() << "iothread_new: " << strerror(errno);
        abort();
    }
}

ScopedIOThread::~ScopedIOThread()
{
    EXPECT_EQ(iothread_destroy(io_), 0);
}

struct RunOnHome {
    const std::function<void()> *func;
    std::atomic<bool> done;
};

void ScopedIOThread::Run(const std::function<void()> &func) const
{
    auto run = std::make_shared<RunOnHome>();
    auto cb = [](void *opaque) {
        std::unique_ptr<std::shared_ptr<RunOnHome>> p(
            static_cast<std::shared_ptr<RunOnHome> *>(opaque));

        (*(*p)->func)();
        (*p)->done = true;
    };

    run->func = &func;
    run->done = false;
    ASSERT_EQ(aio_bh_schedule_oneshot(ctx(), cb, new std::shared_ptr<RunOnHome>(run)), 0);
    ASSERT_TRUE(WaitUntil([&] { return run->done.load(); }));
}

/* ---- Clocks, groups, timers ------------------------------------------------------------------ */

FakeClock::FakeClock(QEMUClockType type, int64_t now_ns) : type_(type), now_ns_(now_ns)
{
    EXPECT_EQ(qemu_clock_set_source(type, Read, this), 0);
}

FakeClock::~FakeClock()
{
    qemu_clock_set_source(type_, nullptr, nullptr);
    aio_synchronize_rcu(); /* other threads may still be inside Read() */
}

int64_t FakeClock::Read(void *opaque)
{
    return static_cast<FakeClock *>(opaque)->now_ns_;
}

TestGroup::TestGroup() : notified_{}
{
    EXPECT_EQ(timerlistgroup_init(&tlg, Notify, this), 0);
}

TestGroup::~TestGroup()
{
    Close();
}

void TestGroup::Close()
{
    if (open_) {
        timerlistgroup_deinit(&tlg);
        aio_synchronize_rcu(); /* a late Notify() may still be running */
        open_ = false;
    }
}

void TestGroup::Notify(void *opaque, QEMUClockType type)
{
    static_cast<TestGroup *>(opaque)->notified_[type]++;
}

HeapTimer::HeapTimer(QEMUTimerListGroup *tlg, std::function<void()> func, QEMUClockType type,
                     int scale, int attributes)
    : func_(std::move(func)), ts_(timer_new_full(tlg, type, scale, attributes, Fire, this))
{
    EXPECT_NE(ts_, nullptr);
}

HeapTimer::~HeapTimer()
{
    Free();
}

void HeapTimer::Free()
{
    if (ts_) {
        timer_free(ts_);
        ts_ = nullptr;
    }
}

void HeapTimer::Fire(void *opaque)
{
    static_cast<HeapTimer *>(opaque)->func_();
}

/* ---- The guard around every test ------------------------------------------------------------- */

static char alarm_message[512];

static void OnAlarm(int)
{
    ssize_t n = write(STDERR_FILENO, alarm_message, strlen(alarm_message));

    static_cast<void>(n);
    abort();
}

void SetTimeLimit(unsigned seconds)
{
    alarm(seconds);
}

/* The entries of a directory below /proc/self, but for the fd that reads it. */
static std::set<std::string> ListProc(const char *path)
{
    std::set<std::string> names;
    DIR *dir = opendir(path);

    if (!dir) {
        return names;
    }
    while (struct dirent *e = readdir(dir)) {
        if (e->d_name[0] != '.' && e->d_name != std::to_string(dirfd(dir))) {
            names.insert(e->d_name);
        }
    }
    closedir(dir);
    return names;
}

/* What is in @after and not in @before, described for people. */
static std::string Describe(const std::set<std::string> &before, const std::set<std::string> &after,
                            bool threads)
{
    std::string text;

    for (const std::string &name : after) {
        if (before.count(name)) {
            continue;
        }
        if (threads) {
            std::string comm;

            std::getline(std::ifstream("/proc/self/task/" + name + "/comm"), comm);
            text += " thread " + name + " (" + comm + ")";
        } else {
            char target[256] = "";
            ssize_t n = readlink(("/proc/self/fd/" + name).c_str(), target, sizeof(target) - 1);

            text += " fd " + name + " (" + std::string(target, n > 0 ? n : 0) + ")";
        }
    }
    return text;
}

/* Starts the threads that the library keeps until the end, so that they count for no test. */
static void WarmUp()
{
    static AioRcuHead head;
    QEMUTimer ts = {};

    aio_call_rcu(&head, [](AioRcuHead *) {});
    /* The counters' file stays open.  Who ends a context is a home thread: not the tests'. */
    std::thread([] { aio_context_unref(aio_context_new(nullptr)); }).join();
    timer_init_ns(
        &ts, QEMU_CLOCK_HOST, [](void *) {}, nullptr);
    timer_mod(&ts, INT64_MAX);
    timer_deinit(&ts);
    aio_rcu_barrier();
    /* The thread that watches the host clock opens its timerfd when it gets to run. */
    WaitUntil(
        [] {
            for (const std::string &fd : ListProc("/proc/self/fd")) {
                char target[64] = "";

                if (readlink(("/proc/self/fd/" + fd).c_str(), target, sizeof(target) - 1) > 0 &&
                    strstr(target, "timerfd")) {
                    return true;
                }
            }
            return false;
        },
        5);
}

class Guard : public testing::EmptyTestEventListener
{
    void OnTestStart(const testing::TestInfo &info) override
    {
        fds_ = ListProc("/proc/self/fd");
        threads_ = ListProc("/proc/self/task");
        snprintf(alarm_message, sizeof(alarm_message), "\n%s.%s did not end in time\n",
                 info.test_suite_name(), info.name());
        alarm(60);
    }

    void OnTestEnd(const testing::TestInfo &) override
    {
        std::string left;

        alarm(0);
        /* A thread that was joined may be seen for a moment, and a context's fds go with it. */
        WaitUntil(
            [&] {
                left = Describe(fds_, ListProc("/proc/self/fd"), false) +
                       Describe(threads_, ListProc("/proc/self/task"), true);
                return left.empty();
            },
            5);
        EXPECT_EQ(left, "") << "the test leaked";
    }

    std::set<std::string> fds_, threads_;
};

int main(int argc, char **argv)
{
    testing::InitGoogleTest(&argc, argv);
    /* A forked child has the library's state but not its threads, so death tests start afresh. */
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    signal(SIGALRM, OnAlarm);
    testing::UnitTest::GetInstance()->listeners().Append(new Guard);
    WarmUp();
    /* Threads of the pool end soon, so that those which stay are seen. */
    ThreadPoolParams pool = {};
    pool.idle_ns = 20 * SCALE_MS;
    thread_pool_set_params(&pool);
    return RUN_ALL_TESTS();
}
