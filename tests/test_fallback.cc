/* SPDX-License-Identifier: MIT */
/*
 * What happens where the kernel denies io_uring, or more: a real filter of system calls, or a limit
 * on file descriptors, in a process of its own, since neither can be taken back.
 */
#include "block_support.h"
#include "loop_support.h"
#include "seccomp_support.h"

#include <linux/io_uring.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <thread>

/* ---- In the child ---------------------------------------------------------------------------- */

[[noreturn]] static void Fail(const std::string &what)
{
    std::string said = testing::internal::GetCapturedStderr();

    fprintf(stderr, "%s\nstderr was:\n%s\n", what.c_str(), said.c_str());
    _exit(1);
}

static void Check(bool ok, const std::string &what)
{
    if (!ok) {
        Fail(what);
    }
}

static int LowestFreeFd()
{
    int fd = dup(STDIN_FILENO);

    Check(fd >= 0 && close(fd) == 0, "no free fd");
    return fd;
}

static int CountFiles()
{
    int n = 0;

    for (int fd = 0; fd < 1024; fd++) {
        n += fcntl(fd, F_GETFD) >= 0;
    }
    return n;
}

static void LimitFiles(rlim_t n)
{
    struct rlimit limit;

    Check(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = n < limit.rlim_max ? n : limit.rlim_max;
    Check(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

static void PollUntil(AioContext *ctx, const char *what, const std::function<bool()> &cond)
{
    for (int i = 0; i < 10000 && !cond(); i++) {
        aio_poll(ctx, true);
    }
    Check(cond(), what);
}

static void CheckLoop(AioContext *ctx)
{
    SocketPair s;
    bool fired = false, ran = false;
    std::atomic<bool> told{ false };
    char got = 0;
    Call fire{ [&] { fired = true; } }, run{ [&] { ran = true; } };
    Call receive{ [&] { Check(read(s.a, &got, 1) == 1, "nothing to read"); } };
    int64_t deadline = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 2 * SCALE_MS;
    QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &fire);

    timer_mod(ts, deadline);
    PollUntil(ctx, "the timer did not fire", [&] { return fired; });
    Check(qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= deadline, "the timer fired early");
    timer_free(ts);
    aio_bh_schedule_oneshot(ctx, Call::Run, &run);
    PollUntil(ctx, "the bottom half did not run", [&] { return ran; });
    Check(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &receive) == 0,
          "the fd was refused");
    std::thread other([&] {
        WaitUntil([&] { return write(s.b, "x", 1) == 1; });
        usleep(2000);
        told = true;
        aio_notify(ctx);
    });
    PollUntil(ctx, "the fd was not read", [&] { return got == 'x'; });
    PollUntil(ctx, "the notify was lost", [&] { return told.load(); });
    other.join();
    aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
}

static void CheckBlock(AioContext *ctx)
{
    Blk null = Open("null://?size=1M&latency-ns=100000"),
        file = Open("file:/proc/self/exe?read-only=on");
    Buffer buf(4096, 1);
    Result read, elf;

    Check(blk_check_context(null.get(), ctx, nullptr) == 0, "driver null does not work here");
    blk_aio_preadv(null.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &read);
    PollUntil(ctx, "driver null does not answer", [&] { return read.calls == 1; });
    Check(read.ret == 0, "driver null: " + std::to_string(read.ret));

    Check(blk_check_context(file.get(), ctx, nullptr) == 0, "driver file does not work here");
    blk_aio_preadv(file.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &elf);
    PollUntil(ctx, "driver file does not answer", [&] { return elf.calls == 1; });
    Check(elf.ret == 0 && !memcmp(buf.data,
                                  "\x7f"
                                  "ELF",
                                  4),
          "driver file: " + std::to_string(elf.ret));
}

static unsigned Count(const std::string &text, const std::string &part)
{
    unsigned n = 0;

    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
        n++;
    }
    return n;
}

static std::string Describe(AioContext *ctx)
{
    char text[512];

    aio_context_describe(ctx, text, sizeof(text));
    return text;
}

/* @first was said before the context had a home, which may find more. */
static void CheckDescription(AioContext *ctx, const std::string &monitor, const std::string &first)
{
    std::string text = Describe(ctx), why = first.substr(monitor.size());

    Check(first.rfind(monitor + "; no io_uring here (", 0) == 0, "it is described as: " + first);
    Check(text.rfind(monitor, 0) == 0 && text.size() >= first.size() &&
              text.substr(text.size() - why.size()) == why,
          "it is described as: " + text);
}

/* The end of a child in which contexts without a choice are to be of @monitor. */
[[noreturn]] static void Serve(const std::string &monitor, const std::function<void()> &restrict)
{
    unsetenv("AIOCTX_FDMON");
    testing::internal::CaptureStderr();
    restrict();
    AioContext *ctx = aio_context_new(nullptr);
    Check(ctx, std::string("no context: ") + strerror(errno));
    Check(aio_context_get_monitor(ctx) == monitor,
          std::string("the monitor is ") + aio_context_get_monitor(ctx));
    restrict();
    IOThread *io = iothread_new("io0", nullptr);
    Check(io, std::string("no iothread: ") + strerror(errno));
    Check(aio_context_get_monitor(iothread_get_aio_context(io)) == monitor,
          "the iothread has another monitor");

    std::string why = Describe(ctx);
    LimitFiles(RLIM_INFINITY);
    qemu_set_current_aio_context(ctx);
    CheckDescription(ctx, monitor, why);
    CheckDescription(iothread_get_aio_context(io), monitor, why);
    CheckLoop(ctx);
    CheckBlock(ctx);
    std::atomic<bool> ran{ false };
    Call run{ [&] { ran = true; } };
    aio_bh_schedule_oneshot(iothread_get_aio_context(io), Call::Run, &run);
    Check(WaitUntil([&] { return ran.load(); }), "the iothread does not run");
    iothread_destroy(io);
    aio_context_unref(ctx);

    std::string said = testing::internal::GetCapturedStderr();
    testing::internal::CaptureStderr();
    fputs(said.c_str(), stderr);
    Check(Count(said, "aioctx: " + why.substr(monitor.size() + 2) + "; using ") == 1,
          "stderr and the description give different reasons");
    Check(Count(said, "aioctx:") == 1 && Count(said, "no io_uring here (") == 1 &&
              Count(said, "using " + monitor) == 1 &&
              Count(said, "no epoll (") == (monitor == "ppoll" ? 1 : 0),
          "it is to be said once, with the reason");
    _exit(0);
}

/* ---- In the parent --------------------------------------------------------------------------- */

static bool HasFilters()
{
    bool has;

    std::thread([&] { has = Deny({}); }).join();
    return has;
}

/* Since Linux 6.0 the loop's ring has to be enabled by a call. */
static bool RingsBeginDisabled()
{
    struct io_uring_params p = {};
    int fd;

    p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED;
    fd = static_cast<int>(syscall(SYS_io_uring_setup, 1, &p));
    bool known = fd >= 0 || errno != EINVAL;
    if (fd >= 0) {
        close(fd);
    }
    return known;
}

struct FallbackCase {
    const char *name;
    std::vector<Denied> denied;
    const char *monitor;
};

void PrintTo(const FallbackCase &c, std::ostream *os)
{
    *os << c.name;
}

class Fallback : public testing::TestWithParam<FallbackCase>
{
};

/* What epoll_wait() calls. */
#ifdef SYS_epoll_wait
static const long kEpollWait = SYS_epoll_wait;
#else
static const long kEpollWait = SYS_epoll_pwait;
#endif

static const std::vector<FallbackCase> kCases = {
    { "Missing", { { SYS_io_uring_setup, ENOSYS } }, "epoll" },
    { "Forbidden", { { SYS_io_uring_setup, EPERM } }, "epoll" },
    { "ForbiddenAsAccess", { { SYS_io_uring_setup, EACCES } }, "epoll" },
    { "NoMemoryForARing", { { SYS_io_uring_setup, ENOMEM } }, "epoll" },
    { "TooManyFiles", { { SYS_io_uring_setup, EMFILE } }, "epoll" },
    { "TooManyFilesInTheSystem", { { SYS_io_uring_setup, ENFILE } }, "epoll" },
#ifdef SYS_epoll_pwait2
    { "BeforeEpollPwait2",
      { { SYS_io_uring_setup, ENOSYS }, { SYS_epoll_pwait2, ENOSYS } },
      "epoll" },
#endif
    { "EpollMissing", { { SYS_io_uring_setup, ENOSYS }, { SYS_epoll_create1, ENOSYS } }, "ppoll" },
    { "EpollForbidden", { { SYS_io_uring_setup, EPERM }, { SYS_epoll_create1, EPERM } }, "ppoll" },
    { "TimerfdForbidden",
      { { SYS_io_uring_setup, EPERM }, { SYS_timerfd_create, EPERM } },
      "ppoll" },
    { "EnterForbidden", { { SYS_io_uring_enter, EPERM } }, "epoll" },
    { "EnterForbiddenAsAccess", { { SYS_io_uring_enter, EACCES } }, "epoll" },
    { "EnterMissing", { { SYS_io_uring_enter, ENOSYS } }, "epoll" },
    { "RegisterForbidden", { { SYS_io_uring_register, EPERM } }, "epoll" },
    { "RegisterForbiddenAsAccess", { { SYS_io_uring_register, EACCES } }, "epoll" },
    { "RegisterMissing", { { SYS_io_uring_register, ENOSYS } }, "epoll" },
    { "EpollWaitForbidden", { { SYS_io_uring_setup, EPERM }, { kEpollWait, EPERM } }, "ppoll" },
    { "EpollWaitMissing", { { SYS_io_uring_enter, ENOSYS }, { kEpollWait, ENOSYS } }, "ppoll" },
#ifdef SYS_epoll_wait
    { "EpollPwaitForbidden",
      { { SYS_io_uring_setup, EPERM }, { SYS_epoll_pwait, EPERM } },
      "epoll" },
#endif
    { "TimerfdSettimeForbidden",
      { { SYS_io_uring_enter, EPERM }, { SYS_timerfd_settime, EPERM } },
      "ppoll" },
    { "TimerfdSettimeForbiddenAsAccess",
      { { SYS_io_uring_setup, EPERM }, { SYS_timerfd_settime, EACCES } },
      "ppoll" },
    { "AllUseForbidden",
      { { SYS_io_uring_enter, EPERM },
        { SYS_io_uring_register, EPERM },
        { kEpollWait, EPERM },
        { SYS_epoll_pwait, EPERM },
        { SYS_timerfd_settime, EPERM } },
      "ppoll" },
    { "AllMissing",
      { { SYS_io_uring_setup, ENOSYS },
        { SYS_io_uring_enter, ENOSYS },
        { SYS_io_uring_register, ENOSYS },
        { kEpollWait, ENOSYS },
        { SYS_epoll_pwait, ENOSYS },
        { SYS_timerfd_settime, ENOSYS } },
      "ppoll" },
    { "TooManyWatches", { { SYS_io_uring_setup, EPERM }, { SYS_epoll_ctl, ENOSPC } }, "ppoll" },
};

INSTANTIATE_TEST_SUITE_P(Denied, Fallback, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<FallbackCase> &info) {
                             return std::string(info.param.name);
                         });

TEST_P(Fallback, NextMonitorServesAndItIsSaidOnce)
{
    if (!HasFilters()) {
        GTEST_SKIP() << "no seccomp filters here";
    }
    const FallbackCase &c = GetParam();
    bool denied = false;

    if (c.denied[0].call == SYS_io_uring_register && !RingsBeginDisabled()) {
        GTEST_SKIP() << "the ring does without io_uring_register here";
    }

    EXPECT_EXIT(Serve(c.monitor,
                      [&] {
                          Check(denied || Deny(c.denied), "the filter was refused");
                          denied = true;
                      }),
                testing::ExitedWithCode(0), "");
}

TEST(FallbackLimit, WithoutRoomForMoreFilesItIsPpoll)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    EXPECT_EXIT(Serve("ppoll",
                      [] {
                          LimitFiles(RLIM_INFINITY);
                          aio_rcu_barrier(); /* closed contexts hold no file any more */
                          /* One is left, which will be the context's eventfd. */
                          LimitFiles(static_cast<rlim_t>(LowestFreeFd()) + 1);
                      }),
                testing::ExitedWithCode(0), "");
}

/* Asks for @monitor by option or by environment where it is denied, and expects an error. */
[[noreturn]] static void Force(const char *monitor, Denied denied, bool by_option)
{
    AioContextOptions opts = {};

    testing::internal::CaptureStderr();
    if (by_option) {
        unsetenv("AIOCTX_FDMON");
        opts.monitor = monitor;
    } else {
        setenv("AIOCTX_FDMON", monitor, 1);
    }
    Check(Deny({ denied }), "no filter");
    int files = CountFiles();
    AioContext *ctx = aio_context_new(&opts);
    Check(!ctx && errno == denied.err, ctx ? "there is a context" : strerror(errno));
    aio_rcu_barrier();
    Check(CountFiles() == files, "a file was left open");
    std::string said = testing::internal::GetCapturedStderr();
    testing::internal::CaptureStderr();
    Check(said.empty(), "it says: " + said);
    _exit(0);
}

TEST(FallbackForced, MonitorThatWasAskedForIsAnErrorInstead)
{
    if (!HasFilters()) {
        GTEST_SKIP() << "no seccomp filters here";
    }
    const struct {
        const char *monitor;
        Denied denied;
    } cases[] = {
        { "io_uring", { SYS_io_uring_setup, EPERM } },
        { "io_uring", { SYS_io_uring_enter, EACCES } },
        { "epoll", { SYS_epoll_create1, ENOSYS } },
        { "epoll", { SYS_timerfd_create, EMFILE } },
        { "epoll", { SYS_epoll_ctl, ENOSPC } },
        { "epoll", { SYS_timerfd_settime, EPERM } },
        { "epoll", { kEpollWait, ENOSYS } },
    };
    for (const auto &c : cases) {
        for (bool by_option : { true, false }) {
            EXPECT_EXIT(Force(c.monitor, c.denied, by_option), testing::ExitedWithCode(0), "");
        }
    }
}

/* Denies a call to a context that is there, before its first iteration or after some. */
[[noreturn]] static void DenyLater(const char *monitor, Denied denied, bool used)
{
    AioContextOptions opts = {};

    opts.monitor = monitor;
    AioContext *ctx = aio_context_new(&opts);
    if (!ctx) {
        _exit(1);
    }
    qemu_set_current_aio_context(ctx);
    QEMUTimer *ts = aio_timer_new(
        ctx, QEMU_CLOCK_REALTIME, SCALE_NS, [](void *) {}, nullptr);
    for (int i = 0; used && i < 3; i++) {
        aio_notify(ctx);
        aio_poll(ctx, true);
    }
    if (!Deny({ denied })) {
        _exit(1);
    }
    timer_mod(ts, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 50 * SCALE_MS);
    for (int i = 0; i < 100000; i++) { /* as it would spin */
        aio_poll(ctx, true);
    }
    _exit(0);
}

TEST(FallbackLate, DenialAfterwardsAbortsAndNamesTheCall)
{
    if (!HasFilters()) {
        GTEST_SKIP() << "no seccomp filters here";
    }
    const struct {
        const char *monitor;
        Denied denied;
        const char *said;
    } cases[] = {
        { "io_uring", { SYS_io_uring_enter, EPERM }, "io_uring_enter: error 1" },
        { "io_uring", { SYS_io_uring_enter, EACCES }, "io_uring_enter: error 13" },
        { "io_uring", { SYS_io_uring_enter, ENOSYS }, "io_uring_enter: error 38" },
        { "epoll", { kEpollWait, EPERM }, "epoll_wait: error 1" },
        { "epoll", { SYS_timerfd_settime, ENOSYS }, "timerfd_settime: error 38" },
    };
    for (const auto &c : cases) {
        SKIP_WITHOUT_MONITOR(c.monitor);
        for (bool used : { false, true }) {
            EXPECT_DEATH(DenyLater(c.monitor, c.denied, used), c.said);
        }
    }
}
