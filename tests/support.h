/* SPDX-License-Identifier: MIT */
/*
 * What the tests share.  tests/support.cc also holds the guard around every test: a time limit, and
 * a check that no fd and no thread was leaked.
 */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <aioctx/aio.h>
#include <aioctx/rcu.h>
#include <aioctx/timers.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

/* True in a build with ThreadSanitizer or AddressSanitizer: fewer rounds, same promises. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

/* Every monitor there is: the one list that parameterised suites run on. */
extern const std::vector<const char *> kMonitors;

/* For suites that take seconds, with whole programs or disks: all, but io_uring alone where a
 * sanitizer slows them down.  What differs between monitors is tried there by those of aio/. */
extern const std::vector<const char *> kMonitorsOfSlowSuites;

/* INSTANTIATE_TEST_SUITE_P()'s last argument: cases are named after their monitor. */
std::string MonitorName(const testing::TestParamInfo<const char *> &info);

/* Skips the test when this kernel has no io_uring for us. */
#define SKIP_WITHOUT_MONITOR(monitor) \
    do { \
        if (!MonitorWorks(monitor)) { \
            GTEST_SKIP() << "no " << (monitor) << " for us on this kernel"; \
        } \
    } while (0)
bool MonitorWorks(const char *monitor);

/* Waits until @cond holds.  Returns whether it came to that within @seconds. */
bool WaitUntil(const std::function<bool()> &cond, double seconds = 40);

/* Changes the time limit of the running test, 60 s at first; counted from now. */
void SetTimeLimit(unsigned seconds);

/* Starts @n threads that run @func(index) at the same moment, and joins them. */
void RunThreads(int n, const std::function<void(int)> &func);

/* An iothread that is destroyed with the scope. */
class ScopedIOThread
{
public:
    explicit ScopedIOThread(const char *monitor = nullptr, const char *name = "test-io");
    ~ScopedIOThread();
    ScopedIOThread(const ScopedIOThread &) = delete;
    ScopedIOThread &operator=(const ScopedIOThread &) = delete;

    IOThread *get() const
    {
        return io_;
    }
    AioContext *ctx() const
    {
        return iothread_get_aio_context(io_);
    }
    /* Runs @func on the home thread and waits until it has returned. */
    void Run(const std::function<void()> &func) const;

private:
    IOThread *io_;
};

/* A source of time for one clock that stands still until it is told to move. */
class FakeClock
{
public:
    explicit FakeClock(QEMUClockType type = QEMU_CLOCK_REALTIME, int64_t now_ns = 1000000);
    ~FakeClock();
    FakeClock(const FakeClock &) = delete;
    FakeClock &operator=(const FakeClock &) = delete;

    int64_t Now() const
    {
        return now_ns_;
    }
    /* Without telling the lists. */
    void Set(int64_t ns)
    {
        now_ns_ = ns;
    }
    void Advance(int64_t ns)
    {
        now_ns_ += ns;
    }

private:
    static int64_t Read(void *opaque);

    QEMUClockType type_;
    std::atomic<int64_t> now_ns_;
};

/* A group of lists that counts its notifications. */
class TestGroup
{
public:
    TestGroup();
    ~TestGroup();
    TestGroup(const TestGroup &) = delete;
    TestGroup &operator=(const TestGroup &) = delete;

    QEMUTimerList *list(QEMUClockType type = QEMU_CLOCK_REALTIME) const
    {
        return tlg.tl[type];
    }
    int notified(QEMUClockType type = QEMU_CLOCK_REALTIME) const
    {
        return notified_[type];
    }
    void Close(); /* before its time */

    QEMUTimerListGroup tlg;

private:
    static void Notify(void *opaque, QEMUClockType type);

    std::atomic<int> notified_[QEMU_CLOCK_MAX];
    bool open_ = true;
};

/* A timer from timer_new(), with a C++ function as its callback. */
class HeapTimer
{
public:
    HeapTimer(QEMUTimerListGroup *tlg, std::function<void()> func,
              QEMUClockType type = QEMU_CLOCK_REALTIME, int scale = SCALE_NS, int attributes = 0);
    ~HeapTimer();
    HeapTimer(const HeapTimer &) = delete;
    HeapTimer &operator=(const HeapTimer &) = delete;

    operator QEMUTimer *() const
    {
        return ts_;
    }
    /* timer_free(); the destructor does not do it again. */
    void Free();

private:
    static void Fire(void *opaque);

    std::function<void()> func_;
    QEMUTimer *ts_;
};

#endif
