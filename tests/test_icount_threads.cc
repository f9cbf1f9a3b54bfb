/* SPDX-License-Identifier: MIT */
/* Instruction-count time between threads: virtual CPUs, loops, readers, and who configures. */
#include "icount_support.h"

#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

class IcountThreads : public CountsInstructions
{
protected:
    static int64_t Start(int shift, QEMUTimerListGroup *tlg = nullptr, bool no_sleep = false,
                         bool auto_shift = false)
    {
        IcountOptions opts = Fixed(shift, no_sleep);

        opts.auto_shift = auto_shift;
        opts.warp_group = tlg;
        return StartWith(opts);
    }
};

/* Reads VIRTUAL until @stop, and fails when it goes back. */
static void ReadMonotone(const std::atomic<bool> &stop)
{
    int64_t last = 0, raw = 0;

    while (!stop) {
        int64_t now = Virtual(), n = icount_get_raw();

        ASSERT_GE(now, last);
        ASSERT_GE(n, raw);
        last = now;
        raw = n;
    }
}

TEST_F(IcountThreads, NothingIsLostAndNobodySeesTimeGoBack)
{
    constexpr int kCpus = 3, kRounds = kSanitized ? 3000 : 30000;
    std::atomic<bool> stop{ false };
    std::atomic<int> left{ kCpus };
    int64_t start = Start(3);

    RunThreads(kCpus + 2, [&](int i) {
        if (i >= kCpus) {
            ReadMonotone(stop);
            return;
        }
        for (int n = 0; n < kRounds; n++) {
            int64_t before = Virtual();

            icount_update(i + 1);
            ASSERT_GE(Virtual(), before + icount_to_ns(i + 1)) << "one's own are in at once";
        }
        if (--left == 0) {
            stop = true;
        }
    });
    EXPECT_EQ(icount_get_raw(), INT64_C(6) * kRounds);
    EXPECT_EQ(Virtual(), start + INT64_C(48) * kRounds);
}

TEST_F(IcountThreads, StartAndStopLoseNothingEither)
{
    constexpr int kRounds = kSanitized ? 20000 : 400000;
    std::atomic<bool> stop{ false };
    int64_t start = Start(2);

    RunThreads(4, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                icount_update(5);
            }
            stop = true;
        } else if (i == 1) {
            while (!stop) {
                cpu_disable_ticks();
                int64_t stopped = Virtual();
                std::this_thread::yield();
                EXPECT_EQ(Virtual(), stopped);
                cpu_enable_ticks();
            }
        } else {
            ReadMonotone(stop);
        }
    });
    cpu_enable_ticks();
    EXPECT_EQ(Virtual(), start + INT64_C(20) * kRounds);
}

TEST_F(IcountThreads, ChangesOfTheShiftAreNeverAStepBack)
{
    constexpr int kChanges = kSanitized ? 20 : 50;
    std::atomic<bool> stop{ false };
    std::atomic<int> changes{ 0 };
    FakeClock real(QEMU_CLOCK_REALTIME);

    SetTimeLimit(100);
    Start(5, nullptr, false, true);
    RunThreads(4, [&](int i) {
        if (i > 1) {
            ReadMonotone(stop);
            return;
        }
        /* Both account; real time jumps ahead whenever the shift is low, so that it must rise. */
        for (int last = icount_get_shift(); !stop;) {
            icount_update(100);
            int shift = icount_get_shift();
            if (shift != last && ++changes >= kChanges) {
                stop = true;
            }
            last = shift;
            if (shift < 3) {
                real.Advance(INT64_C(100000000));
            }
        }
    });
    EXPECT_GE(changes, kChanges);
}

/* ---- Readers and a writer that was switched off ---------------------------------------------- */

/* A thread that stops VIRTUAL, and is held up where it reads REALTIME for that. */
class HeldWriter
{
public:
    HeldWriter()
    {
        EXPECT_EQ(qemu_clock_set_source(QEMU_CLOCK_REALTIME, Read, this), 0);
        cpu_enable_ticks();
        thread_ = std::thread([this] {
            hold_me_ = true;
            cpu_disable_ticks();
        });
        EXPECT_TRUE(WaitUntil([this] { return holding_.load(); }));
    }
    ~HeldWriter()
    {
        LetGo();
        qemu_clock_set_source(QEMU_CLOCK_REALTIME, nullptr, nullptr);
        aio_synchronize_rcu();
    }
    void LetGo()
    {
        let_go_ = true;
        if (thread_.joinable()) {
            thread_.join();
        }
    }

private:
    static int64_t Read(void *opaque)
    {
        auto *w = static_cast<HeldWriter *>(opaque);

        if (hold_me_) {
            hold_me_ = false;
            w->holding_ = true;
            while (!w->let_go_) {
                usleep(100);
            }
        }
        return 1000000;
    }

    static thread_local bool hold_me_;
    std::atomic<bool> holding_{ false }, let_go_{ false };
    std::thread thread_;
};
thread_local bool HeldWriter::hold_me_ = false;

/* How often the thread has gone to sleep of its own accord. */
static int64_t Sleeps(pid_t tid)
{
    std::ifstream status("/proc/self/task/" + std::to_string(tid) + "/status");
    std::string word;
    int64_t n = -1;

    while (status >> word) {
        if (word == "voluntary_ctxt_switches:") {
            status >> n;
        }
    }
    return n;
}

/* A reader of a higher priority than the writer's must let it have the processor. */
TEST_F(IcountThreads, ReadersSleepWhileAWriterIsHeldUpInside)
{
    int64_t (*const readings[])() = { Virtual, cpu_get_clock, cpu_get_ticks, icount_get };

    for (auto *reading : readings) {
        HeldWriter writer;
        std::atomic<pid_t> tid{ 0 };
        std::atomic<bool> read{ false };
        std::thread reader([&] {
            tid = gettid();
            reading();
            read = true;
        });

        EXPECT_TRUE(WaitUntil([&] { return tid && Sleeps(tid) >= 20; }));
        EXPECT_FALSE(read) << "it has to wait for the writer";
        writer.LetGo();
        reader.join();
    }
}

TEST_F(IcountThreads, AForkedChildDoesNotWaitForAWriterThatItHasNot)
{
    HeldWriter writer;
    int pipefd[2], status;
    char text[256] = "";

    ASSERT_EQ(pipe2(pipefd, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipefd[1], 2);
        signal(SIGABRT, SIG_DFL);
        signal(SIGALRM, SIG_DFL);
        alarm(20);
        Virtual();
        _exit(0);
    }
    close(pipefd[1]);
    EXPECT_GT(read(pipefd[0], text, sizeof(text) - 1), 0);
    close(pipefd[0]);
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    EXPECT_NE(strstr(text, "a clock: called in a child of fork()"), nullptr) << text;
}

/* ---- Loops ----------------------------------------------------------------------------------- */

class IcountOnMonitor : public IcountThreads, public testing::WithParamInterface<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(Monitors, IcountOnMonitor, testing::ValuesIn(kMonitors), MonitorName);

/* Arming, accounting and the loop's sleep: whichever comes first, the timer fires. */
TEST_P(IcountOnMonitor, LoopsAreToldWhenVirtualReachesTheirDeadline)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    constexpr int kRounds = kSanitized ? 300 : 1000;
    ScopedIOThread io(GetParam());
    std::atomic<int> fired{ 0 };
    std::atomic<int64_t> due{ 0 }, early{ 0 };
    HeapTimer t(
        aio_context_get_timer_list_group(io.ctx()),
        [&] {
            early = early + (Virtual() < due);
            fired++;
        },
        QEMU_CLOCK_VIRTUAL);

    SetTimeLimit(100);
    Start(0);
    for (int n = 0; n < kRounds; n++) {
        int64_t now = Virtual();

        due = now + 10;
        if (n % 2) {
            timer_mod(t, due);
            icount_update(10);
        } else { /* beside each other */
            std::thread cpu([] { icount_update(10); });
            timer_mod(t, due);
            cpu.join();
        }
        ASSERT_TRUE(WaitUntil([&] { return fired == n + 1; })) << "round " << n;
    }
    EXPECT_EQ(early, 0);
}

TEST_P(IcountOnMonitor, HomesOwnDueTimerIsNotSleptOver)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    ScopedIOThread io(GetParam());
    std::atomic<int> fired{ 0 };
    std::unique_ptr<HeapTimer> t;

    Start(0);
    t = std::make_unique<HeapTimer>(
        aio_context_get_timer_list_group(io.ctx()),
        [&] {
            if (++fired < 10) {
                timer_mod(*t, Virtual()); /* due, on a clock that stands still */
            }
        },
        QEMU_CLOCK_VIRTUAL);
    io.Run([&] { timer_mod(*t, Virtual()); });
    EXPECT_TRUE(WaitUntil([&] { return fired == 10; }));
    EXPECT_EQ(timer_del_sync(*t), 0);
}

TEST_P(IcountOnMonitor, LoopsSleepWhileVirtualStandsBeforeADeadline)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    ScopedIOThread io(GetParam());
    HeapTimer t(
        aio_context_get_timer_list_group(io.ctx()), [] {}, QEMU_CLOCK_VIRTUAL);

    int64_t start = Start(0);
    timer_mod(t, start + 1);
    io.Run([&] { EXPECT_EQ(aio_compute_timeout(io.ctx()), -1); });
}

/* ---- Warps across threads -------------------------------------------------------------------- */

/* A timer on one loop arms the next on another, from one deadline to the next, all in a sleep: each
 * callback must find VIRTUAL at its own deadline. */
TEST_P(IcountOnMonitor, WarpsAcrossLoopsStopAtEveryDeadline)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    constexpr int kLoops = 2, kHops = kSanitized ? 200 : 2000;
    ScopedIOThread warp(GetParam(), "warp"), a(GetParam(), "a"), b(GetParam(), "b");
    ScopedIOThread *loops[kLoops] = { &a, &b };
    std::unique_ptr<HeapTimer> timers[kLoops], far;
    std::atomic<int> hops{ 0 }, wrong{ 0 };
    std::atomic<int64_t> due{ 0 };

    SetTimeLimit(100);
    int64_t start = Start(4, aio_context_get_timer_list_group(warp.ctx()), true);
    for (int i = 0; i < kLoops; i++) {
        timers[i] = std::make_unique<HeapTimer>(
            aio_context_get_timer_list_group(loops[i]->ctx()),
            [&, i] {
                int64_t now = Virtual();

                wrong = wrong + (now != due);
                if (hops < kHops) {
                    due = now + 1000 + hops % 7;
                    timer_mod(*far, now + 5000); /* not to be jumped to */
                    if (hops % 8 == 0) {
                        usleep(50); /* time for a wrong jump */
                    }
                    timer_mod(*timers[hops % 3 ? 1 - i : i], due);
                }
                hops++;
            },
            QEMU_CLOCK_VIRTUAL);
    }
    far = std::make_unique<HeapTimer>(
        aio_context_get_timer_list_group(b.ctx()), [] {}, QEMU_CLOCK_VIRTUAL);
    due = start + 1000;
    timer_mod(*timers[0], due);
    icount_start_warp_timer();
    EXPECT_TRUE(WaitUntil([&] { return hops == kHops + 1; })) << hops;
    EXPECT_EQ(wrong, 0);
    icount_account_warp_timer();
    for (auto &t : timers) {
        EXPECT_EQ(timer_del_sync(*t), 0);
    }
    timer_del_sync(*far);
}

/* The same along real time, a little of it. */
TEST_P(IcountOnMonitor, WarpsAlongRealTimeFireThroughTheLoop)
{
    SKIP_WITHOUT_MONITOR(GetParam());
    ScopedIOThread io(GetParam());
    QEMUTimerListGroup *tlg = aio_context_get_timer_list_group(io.ctx());
    std::unique_ptr<HeapTimer> t;
    std::atomic<int> fired{ 0 }, wrong{ 0 };
    std::atomic<int64_t> due{ 0 };

    int64_t start = Start(0, tlg);
    t = std::make_unique<HeapTimer>(
        tlg,
        [&] {
            wrong = wrong + (Virtual() != due);
            if (fired < 20) {
                due = due + 100000;
                timer_mod(*t, due);
            }
            fired++;
        },
        QEMU_CLOCK_VIRTUAL);
    due = start + 100000;
    int64_t rt = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT);
    timer_mod(*t, due);
    icount_start_warp_timer();
    EXPECT_TRUE(WaitUntil([&] { return fired == 21; }));
    EXPECT_EQ(wrong, 0) << "VIRTUAL waits at a deadline until its timer has run";
    EXPECT_GE(qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT) - rt, 21 * 100000) << "along real time";
    icount_account_warp_timer();
    EXPECT_EQ(timer_del_sync(*t), 0);
}

/* Virtual CPUs that sleep and wake, each under the lock that counts them. */
TEST_F(IcountThreads, CpusMaySleepAndWakeInAnyOrder)
{
    constexpr int kCpus = 3, kRounds = kSanitized ? 500 : 5000;
    ScopedIOThread io;
    QEMUTimerListGroup *tlg = aio_context_get_timer_list_group(io.ctx());
    std::mutex lock;
    int asleep = 0;
    std::atomic<bool> stop{ false };
    std::atomic<int> left{ kCpus };
    std::unique_ptr<HeapTimer> t;

    Start(3, tlg, true);
    t = std::make_unique<HeapTimer>(
        tlg, [&] { timer_mod(*t, Virtual() + 1000); }, QEMU_CLOCK_VIRTUAL);
    timer_mod(*t, Virtual());
    RunThreads(kCpus + 1, [&](int i) {
        if (i == kCpus) {
            ReadMonotone(stop);
            return;
        }
        for (int n = 0; n < kRounds; n++) {
            icount_update(n % 50);
            std::lock_guard<std::mutex> hold(lock);
            if (++asleep == kCpus) {
                icount_start_warp_timer();
            }
            if (asleep == kCpus || n % 3) {
                icount_account_warp_timer();
            }
            asleep--;
        }
        if (--left == 0) {
            stop = true;
        }
    });
    icount_account_warp_timer();
    cpu_disable_ticks();
    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false), 0);
    t.reset();
    EXPECT_EQ(qemu_clock_enable(QEMU_CLOCK_VIRTUAL, true), 0);
}

/* ---- Configuring beside everything else ------------------------------------------------------ */

static void CountExit(void *opaque)
{
    (*static_cast<std::atomic<int> *>(opaque))++;
}

TEST_F(IcountThreads, TheModeMayChangeBesideReadersAndTimers)
{
    constexpr int kRounds = 2000;
    std::atomic<bool> stop{ false };
    TestGroup g;
    HeapTimer t(
        &g.tlg, [] {}, QEMU_CLOCK_VIRTUAL);

    RunThreads(4, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                auto exits = std::make_unique<std::atomic<int>>(0);
                IcountOptions opts = {};

                opts.shift = n % 11;
                opts.auto_shift = n % 3 == 0;
                opts.warp_group = &g.tlg;
                opts.exit_cb = CountExit;
                opts.opaque = exits.get();
                EXPECT_EQ(icount_configure(&opts), 0);
                cpu_enable_ticks();
                icount_start_warp_timer();
                icount_update(1000);
                cpu_disable_ticks();
                EXPECT_EQ(icount_configure(n % 2 ? nullptr : &opts), 0);
                EXPECT_EQ(icount_configure(nullptr), 0);
                aio_synchronize_rcu(); /* *exits goes */
            }
            stop = true;
        } else if (i == 1) {
            for (int64_t n = 0; !stop; n++) { /* moves forward: exit_cb, and plans */
                timer_mod(t, 1000000 - n % 1000000);
                icount_notify_exit();
                EXPECT_GE(icount_budget(QEMU_TIMER_ATTR_ALL), 0);
            }
        } else if (i == 2) {
            for (int64_t last = 0; !stop;) {
                int64_t now = Virtual();

                ASSERT_GE(now, last);
                last = now;
            }
        } else {
            while (!stop) {
                icount_update(3);
                icount_start_warp_timer();
            }
        }
    });
}
