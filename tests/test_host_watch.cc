/* SPDX-License-Identifier: MIT */
/*
 * A step of the host clock re-evaluates every HOST deadline.  No test sets the machine's clock:
 * this program gives the library a timerfd of another clock, makes it expire itself, and looks at
 * how the library arms it.
 */
#include "support.h"

#include <cerrno>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

static std::atomic<int> watched_fd{ -1 }, armings{ 0 }, bad_armings{ 0 };
static std::atomic<bool> step_while_arming{ false };

extern "C" int timerfd_create(int clockid, int flags) noexcept
{
    if (clockid != CLOCK_REALTIME) {
        return static_cast<int>(syscall(SYS_timerfd_create, clockid, flags));
    }
    watched_fd = static_cast<int>(syscall(SYS_timerfd_create, CLOCK_MONOTONIC, flags));
    return watched_fd;
}

extern "C" int timerfd_settime(int fd, int flags, const struct itimerspec *its,
                               struct itimerspec *old) noexcept
{
    if (fd != watched_fd) {
        return static_cast<int>(syscall(SYS_timerfd_settime, fd, flags, its, old));
    }
    const int want = TFD_TIMER_ABSTIME | 2 /* TFD_TIMER_CANCEL_ON_SET */;
    bad_armings = bad_armings + (flags != want || its->it_value.tv_sec < time(nullptr) + 86400);
    armings++;
    if (step_while_arming.exchange(false)) {
        errno = ECANCELED; /* armed all the same */
        return -1;
    }
    return 0;
}

static void Step()
{
    struct itimerspec at_once = {};

    at_once.it_value.tv_nsec = 1;
    ASSERT_EQ(syscall(SYS_timerfd_settime, watched_fd.load(), 0, &at_once, nullptr), 0);
}

TEST(HostWatch, AStepReevaluatesEveryHostDeadline)
{
    FakeClock host(QEMU_CLOCK_HOST, 1000);
    ScopedIOThread io;
    TestGroup g;
    std::atomic<int> fired{ 0 };
    HeapTimer t(
        aio_context_get_timer_list_group(io.ctx()), [&] { fired++; }, QEMU_CLOCK_HOST);

    EXPECT_GE(watched_fd, 0) << "the first HOST timer starts the watch";
    timer_mod(t, INT64_C(3600000) * SCALE_MS);
    io.Run([] {});
    EXPECT_EQ(fired, 0);
    for (int n = 1; n <= 3; n++) {
        int before = g.notified(QEMU_CLOCK_HOST), armed = armings;

        step_while_arming = n == 2; /* another step at the worst moment */
        host.Set(n * INT64_C(3600000) * SCALE_MS);
        Step();
        EXPECT_TRUE(WaitUntil([&] { return fired == n; }));
        EXPECT_TRUE(WaitUntil([&] { return g.notified(QEMU_CLOCK_HOST) == before + 1; }));
        EXPECT_EQ(armings, armed + 1) << "armed again for the next step";
        timer_mod(t, (n + 1) * INT64_C(3600000) * SCALE_MS);
    }
    EXPECT_EQ(bad_armings, 0);
    EXPECT_EQ(g.notified(QEMU_CLOCK_REALTIME), 0);
}
