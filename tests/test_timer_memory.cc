/* SPDX-License-Identifier: MIT */
/* Memory: arming takes none, whatever the queue has to do for it, and what needs some says so. */
#include "memory_watch.h"
#include "timer_crowd.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <sys/mman.h>
#include <thread>

namespace
{

/* ---- Arming in every way --------------------------------------------------------------------- */

/* Orders of deadlines that a queue's lanes and heaps take differently. */
enum Pattern { RISING, FALLING, EQUAL, ROWS, CLOSE, WIDE, PATTERNS };

class Storm
{
public:
    Storm(TimerCrowd &timers, FakeClock &clock, uint64_t seed, QEMUTimerList *home)
        : timers_(timers), clock_(clock), home_(home), rng_(seed)
    {
        for (int i = 0; i < timers.count(); i++) {
            order_.push_back(i);
        }
    }

    /* The @k-th timer is armed for that. */
    int64_t Deadline(int pattern, int k)
    {
        int64_t x = static_cast<int64_t>(rng_() >> 9);

        switch (pattern) {
        case RISING:
            return clock_.Now() + 1000 + k;
        case FALLING:
            return clock_.Now() + (timers_.count() - k) * kFar;
        case EQUAL:
            return clock_.Now() + 5000;
        case ROWS: /* timeouts of more lengths than there are lanes */
            return clock_.Now() + (1 + k % 5) * INT64_C(10000000000) + k;
        case CLOSE:
            return clock_.Now() + x % 1000;
        default:
            return clock_.Now() + x;
        }
    }

    /* Arms every timer, wherever it was before. */
    void ArmAll(int pattern)
    {
        for (int k = 0; k < timers_.count(); k++) {
            timer_mod(timers_[order_[k]], Deadline(pattern, k));
        }
    }

    /* None finds a lane: so far ahead nothing was armed before. */
    void ArmAllInHeap()
    {
        for (int i = 0; i < timers_.count(); i++) {
            timer_del(timers_[i]);
        }
        for (int i = timers_.count(); i > 0; i--) {
            timer_mod(timers_[i - 1], (INT64_C(1) << 60) + i * kFar);
        }
    }

    void Operate(QEMUTimer *ts, int64_t ns)
    {
        switch (rng_() % 8) {
        case 0:
            timer_del(ts);
            break;
        case 1:
            timer_mod_anticipate(ts, ns);
            break;
        case 2:
            timer_mod_range_ns(ts, ns - 1000, ns);
            break;
        case 3:
            timer_forward(ts, clock_.Now(), 1 + static_cast<int64_t>(rng_() % 100000));
            break;
        default:
            timer_mod(ts, ns);
            break;
        }
    }

    void OperateAll(int pattern)
    {
        for (int k = 0; k < timers_.count(); k++) {
            Operate(timers_[order_[k]], Deadline(pattern, k));
        }
    }

    void RangeAll()
    {
        for (int k = 0; k < timers_.count(); k++) {
            int64_t ns = Deadline(WIDE, k);

            timer_mod_range_ns(timers_[k], ns - 1 - static_cast<int64_t>(rng_() % 1000000), ns);
        }
    }

    /* Lets the clock go on and runs what is due, where this is the home thread. */
    void Fire(int64_t ns)
    {
        if (home_) {
            clock_.Advance(ns);
            while (timerlist_run_timers(home_)) {
            }
        }
    }

    void Run()
    {
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            std::shuffle(order_.begin(), order_.end(), rng_);
            ArmAll(pattern);
            OperateAll(pattern);
            Fire(pattern == WIDE ? INT64_C(1) << 53 : 5000);
        }
        RangeAll();
        Fire(INT64_C(1) << 53);
        OperateAll(WIDE);
        for (int i = 0; i < timers_.count(); i += 2) {
            timer_del(timers_[i]);
        }
    }

private:
    TimerCrowd &timers_;
    FakeClock &clock_;
    QEMUTimerList *home_; /* NULL: this thread does not run it */
    std::mt19937_64 rng_;
    std::vector<int> order_;
};

/* Callbacks arm too, for later. */
void Rearm(TimerCrowd *timers, int i)
{
    FakeClock *clock = static_cast<FakeClock *>(timers->opaque);
    QEMUTimer *ts = (*timers)[i];

    switch (timers->fired % 8) {
    case 0:
        timer_forward(ts, clock->Now(), 12345);
        break;
    case 1:
        timer_mod_range_ns(ts, clock->Now() + 10000, clock->Now() + 20000);
        break;
    case 2:
        timer_mod((*timers)[timers->fired % timers->count()], clock->Now() + 7 * kFar);
        break;
    case 3:
        timer_del((*timers)[timers->fired % timers->count()]);
        break;
    default:
        break;
    }
}

} // namespace

/* ---- Arming takes no memory ------------------------------------------------------------------ */

/* The counter by itself. */
TEST(TimerMemory, EveryAllocationIsSeen)
{
    void *volatile p = nullptr;

    EXPECT_EQ(MemoryCallsIn([] {}), 0u);
    EXPECT_EQ(MemoryCallsIn([&] { p = malloc(10); }), 1u);
    EXPECT_GE(MemoryCallsIn([&] { p = realloc(p, 100000); }), 1u);
    EXPECT_EQ(MemoryCallsIn([&] { free(p); }), 1u);
    EXPECT_GE(MemoryCallsIn([&] { free(calloc(3, 5)); }), 2u);
    EXPECT_GE(MemoryCallsIn([&] { delete[] new int[1000]; }), 2u);
    EXPECT_GE(MemoryCallsIn([&] { free(strdup("inside libc")); }), 2u);
    EXPECT_GE(MemoryCallsIn([&] { free(aligned_alloc(64, 640)); }), 1u);
    EXPECT_GE(MemoryCallsIn(
                  [&] { p = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }),
              1u);
    EXPECT_GE(MemoryCallsIn([&] { p = mremap(p, 4096, 8192, MREMAP_MAYMOVE); }), 1u);
    munmap(p, 8192);
}

class TimerMemoryCount : public testing::TestWithParam<int>
{
};
/* Room is made for 249 timers of a class, then for 505 and so on. */
INSTANTIATE_TEST_SUITE_P(Timers, TimerMemoryCount,
                         testing::Values(1, 2, 498, 499, 1000, kSanitized ? 10000 : 100000),
                         testing::PrintToStringParamName());

TEST_P(TimerMemoryCount, NoAllocationWhileArming)
{
    FakeClock clock;
    TestGroup g;
    TimerCrowd timers(&g.tlg, GetParam(), Rearm, &clock);
    Storm home(timers, clock, 1, g.list()), other(timers, clock, 2, nullptr);
    unsigned long calls[2];

    EXPECT_EQ(MemoryCallsIn([&] { home.Run(); }), 0u);
    EXPECT_GT(timers.fired, 0u);

    /* Where all of the room is needed it is there. */
    EXPECT_EQ(MemoryCallsIn([&] { home.ArmAllInHeap(); }), 0u);
    EXPECT_EQ(InHeaps(g.list()), static_cast<unsigned>(GetParam()));

    std::thread([&] { calls[0] = MemoryCallsIn([&] { other.Run(); }); }).join();
    EXPECT_EQ(calls[0], 0u) << "on a thread that used the library for the first time";

    std::thread beside([&] { calls[0] = MemoryCallsIn([&] { other.Run(); }); });
    calls[1] = MemoryCallsIn([&] { home.Run(); });
    beside.join();
    EXPECT_EQ(calls[0] + calls[1], 0u) << "on two threads at once";
    EXPECT_EQ(Spilt(g.list()), 0u);
}

/* The same where a loop sleeps on the list and has to be woken. */
class TimerMemoryLoop : public testing::TestWithParam<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(Monitors, TimerMemoryLoop, testing::ValuesIn(kMonitors), MonitorName);

TEST_P(TimerMemoryLoop, NoAllocationWhileArmingForARunningLoop)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    constexpr int kTimers = 1000;
    ScopedIOThread io(GetParam());
    unsigned long calls = 1;

    cpu_enable_ticks();
    for (int type = 0; type < QEMU_CLOCK_MAX; type++) {
        TimerCrowd timers(
            aio_context_get_timer_list_group(io.ctx()), kTimers, [](TimerCrowd *, int) {}, nullptr,
            static_cast<QEMUClockType>(type));
        auto arm_all = [&] {
            int64_t now = qemu_clock_get_ns(static_cast<QEMUClockType>(type));

            for (int i = 0; i < kTimers; i++) { /* each sooner than all before */
                timer_mod(timers[i], now + INT64_C(3600000000000) - i * kFar);
            }
            timer_mod(timers[0], now);
        };

        EXPECT_EQ(MemoryCallsIn(arm_all), 0u);
        std::thread([&] { calls = MemoryCallsIn(arm_all); }).join();
        EXPECT_EQ(calls, 0u);
        io.Run([&] { calls = MemoryCallsIn(arm_all); });
        EXPECT_EQ(calls, 0u);
        EXPECT_TRUE(WaitUntil([&] { return !timer_pending(timers[0]); }));
    }
    cpu_disable_ticks();
}

TEST(TimerMemory, NoAllocationWhileArmingForInstructionCounting)
{
    TestGroup g;
    FakeClock clock;
    TimerCrowd timers(
        &g.tlg, 1000, [](TimerCrowd *, int) {}, nullptr, QEMU_CLOCK_VIRTUAL);
    IcountOptions opts = {};

    opts.warp_group = &g.tlg;
    opts.exit_cb = [](void *) {};
    ASSERT_EQ(icount_configure(&opts), 0);
    cpu_enable_ticks();
    icount_start_warp_timer(); /* every head that moves forward has the warp planned again */
    EXPECT_EQ(MemoryCallsIn([&] {
                  for (int i = 0; i < timers.count(); i++) {
                      timer_mod(timers[i], INT64_C(3600000000000) - i * kFar);
                      timerlist_run_timers(g.list(QEMU_CLOCK_VIRTUAL_RT));
                  }
              }),
              0u);
    icount_account_warp_timer();
    cpu_disable_ticks();
    EXPECT_EQ(icount_configure(nullptr), 0);
}

/* ---- Where there is none --------------------------------------------------------------------- */

TEST(TimerMemory, WhatNeedsMemorySaysThatThereIsNone)
{
    if (!kMallocRefuses) {
        GTEST_SKIP() << "a sanitizer's malloc() cannot be made to fail";
    }
    TestGroup g;
    QEMUTimerListGroup untouched = g.tlg, made = untouched;
    IcountOptions opts = {};
    MemoryRefused refused(Refuse::kEverything, 0);
    QEMUTimer *ts = timer_new_full(
        &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, [](void *) {}, nullptr);

    EXPECT_EQ(ts, nullptr);
    EXPECT_EQ(errno, ENOMEM);
    errno = 0;
    EXPECT_EQ(timerlist_new(QEMU_CLOCK_REALTIME, nullptr, nullptr), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    for (unsigned granted = 0; granted < QEMU_CLOCK_MAX; granted++) {
        memory_watch.granted = granted;
        EXPECT_EQ(timerlistgroup_init(&made, nullptr, nullptr), -ENOMEM);
        EXPECT_EQ(memcmp(&made, &untouched, sizeof(made)), 0);
    }
    EXPECT_EQ(qemu_clock_set_source(
                  QEMU_CLOCK_HOST, [](void *) { return INT64_C(5); }, nullptr),
              -ENOMEM);
    EXPECT_NE(qemu_clock_get_ns(QEMU_CLOCK_HOST), 5);
    for (unsigned granted = 0; icount_configure(&opts) != 0; granted++) {
        EXPECT_LT(granted, 3u);
        EXPECT_EQ(icount_enabled(), ICOUNT_DISABLED);
        memory_watch.granted = granted + 1;
    }
    EXPECT_EQ(icount_enabled(), ICOUNT_FIXED);
    EXPECT_EQ(icount_configure(nullptr), 0);
}
