/* SPDX-License-Identifier: MIT */
/*
 * Which of the kernel's features a ring has: each that is missing is dropped by itself, the loop
 * works without, and aio_context_describe() tells.  A supervisor of system calls refuses chosen
 * flags of io_uring_setup(2) with EINVAL, as a kernel does that does not know them, and a filter
 * those of the other calls; in processes of their own, since neither can be taken back.
 */
#include "loop_support.h"
#include "seccomp_support.h"

#include <fcntl.h>
#include <liburing.h>
#include <set>
#include <sstream>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <thread>

using Names = std::set<std::string>;

static void Check(bool ok, const std::string &what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what.c_str());
        _exit(1);
    }
}

static std::string Describe(AioContext *ctx)
{
    char text[512];
    int len = aio_context_describe(ctx, text, sizeof(text));

    Check(len == static_cast<int>(strlen(text)), "the length is not that of the text");
    return text;
}

/* The names in @text between @begin and the next ';'. */
static Names After(const std::string &text, const std::string &begin)
{
    size_t at = text.find(begin);
    Names names;

    if (at != std::string::npos) {
        at += begin.size();
        std::istringstream in(text.substr(at, text.find(';', at) - at));
        for (std::string name; in >> name;) {
            names.insert(name);
        }
    }
    return names;
}

static Names Used(const std::string &text)
{
    return After(text, "io_uring: ");
}

static Names Dropped(const std::string &text)
{
    return After(text, "; without ");
}

static std::string Join(const Names &names)
{
    std::string all;

    for (const std::string &name : names) {
        all += " " + name;
    }
    return all;
}

/* ---- A supervisor ---------------------------------------------------------------------------- */

/* Has io_uring_setup() of the calling thread answer EINVAL when one of @flags is asked for.
 * Returns false where there are no supervisors. */
static bool RefuseSetupFlags(unsigned flags)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { sizeof(code) / sizeof(code[0]), code };

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int fd = static_cast<int>(
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog));
    if (fd < 0) {
        return false;
    }
    std::thread([=] {
        struct seccomp_notif asked;

        for (;;) {
            memset(&asked, 0, sizeof(asked));
            if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &asked)) {
                /* ENOENT: a ring that is torn down has interrupted the call, which asks again. */
                Check(errno == ENOENT || errno == EINTR, "the supervisor hears nothing");
                continue;
            }
            struct io_uring_params p;
            struct iovec to = { &p, sizeof(p) },
                         from = { reinterpret_cast<void *>(asked.data.args[1]), sizeof(p) };
            struct seccomp_notif_resp answer = {};
            answer.id = asked.id;
            /* A sanitizer would take a plain look for a race: the other thread waits for us. */
            if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != sizeof(p)) {
                abort();
            }
            if (p.flags & flags) {
                answer.error = -EINVAL;
            } else {
                answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
            }
            ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &answer);
        }
    }).detach();
    return true;
}

/* ---- A loop that has to work whatever the ring is like --------------------------------------- */

struct ReadOp {
    CqeHandler cqe;
    int fd, ended;
    char byte;
};

static void PrepRead(struct io_uring_sqe *sqe, void *opaque)
{
    auto *op = static_cast<ReadOp *>(opaque);

    io_uring_prep_read(sqe, op->fd, &op->byte, 1, 0);
}

static void PollUntil(AioContext *ctx, const char *what, const std::function<bool()> &cond,
                      bool blocking)
{
    int64_t end = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 30 * INT64_C(1000000000);

    while (!cond() && qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < end) {
        aio_poll(ctx, blocking);
        if (!blocking) {
            std::this_thread::yield(); /* to the kernel's submitting thread, where there is one */
        }
    }
    Check(cond(), what);
}

/* More operations than both queues hold. */
static void CheckManyOperations(AioContext *ctx)
{
    struct Nop : CqeHandler {
        int *left;
    };
    int left = 3000;
    std::vector<Nop> nops(3000);

    for (Nop &nop : nops) {
        nop = Nop();
        nop.left = &left;
        nop.cb = [](CqeHandler *h) { --*static_cast<Nop *>(h)->left; };
        Check(aio_add_sqe([](struct io_uring_sqe *sqe, void *) { io_uring_prep_nop(sqe); }, nullptr,
                          &nop) == 0,
              "aio_add_sqe");
    }
    PollUntil(
        ctx, "an operation was lost", [&] { return left == 0; }, true);
}

static void CheckLoop(AioContext *ctx)
{
    SocketPair s, t;
    int got = 0, ran = 0;
    bool fired = false;
    std::atomic<bool> told{ false };
    /* Leaves what comes after the first byte for another time. */
    Call receive{ [&] {
        char c;
        Check(read(s.a, &c, 1) == 1, "a call without data");
        got++;
    } };
    Call run{ [&] { ran++; } }, fire{ [&] { fired = true; } };
    ReadOp op = {};
    auto until = [&](const char *what, const std::function<bool()> &cond, bool blocking) {
        PollUntil(ctx, what, cond, blocking);
    };

    Check(aio_set_fd_handler(ctx, s.a, Call::Run, nullptr, nullptr, nullptr, &receive) == 0, "fd");
    for (bool blocking : { true, false }) { /* a loop that polls has to see them as well */
        got = ran = 0;
        fired = told = false;
        aio_bh_schedule_oneshot(ctx, Call::Run, &run);
        until(
            "the bottom half did not run", [&] { return ran == 1; }, blocking);
        Check(write(s.b, "abc", 3) == 3, "write");
        until(
            "the fd was not read", [&] { return got == 3; }, blocking);
        QEMUTimer *ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &fire);
        int64_t deadline = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + SCALE_MS;
        timer_mod(ts, deadline);
        until(
            "the timer did not fire", [&] { return fired; }, blocking);
        Check(qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= deadline, "the timer fired early");
        timer_free(ts);
        op = ReadOp();
        op.fd = t.a;
        op.cqe.cb = [](CqeHandler *h) { reinterpret_cast<ReadOp *>(h)->ended++; };
        Check(aio_add_sqe(PrepRead, &op, &op.cqe) == 0, "aio_add_sqe");
        aio_poll(ctx, false);
        std::thread other([&] {
            usleep(1000);
            Check(write(t.b, "x", 1) == 1, "write");
            told = true;
            aio_notify(ctx);
        });
        until(
            "the notify was lost", [&] { return told.load(); }, blocking);
        until(
            "the operation did not end", [&] { return op.ended == 1; }, blocking);
        Check(op.cqe.res == 1 && op.byte == 'x', "the operation has read nothing");
        other.join();
    }
    CheckManyOperations(ctx);
    Check(aio_set_fd_handler(ctx, s.a, nullptr, nullptr, nullptr, nullptr, nullptr) == 0, "fd");
}

/* ---- Missing features ------------------------------------------------------------------------ */

struct Missing {
    const char *name;
    unsigned setup_flags;       /* that the kernel does not know */
    std::vector<Denied> denied; /* or these calls */
    Names dropped;
    bool coop;   /* COOP_TASKRUN comes instead */
    bool sqpoll; /* asked for */
};

void PrintTo(const Missing &m, std::ostream *os)
{
    *os << m.name;
}

static const unsigned kAllSetupFlags = IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL |
                                       IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER |
                                       IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
                                       IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQPOLL;
static const Denied kNoAbsTimer = { SYS_io_uring_enter, EINVAL, 3, 1U << 5 };
static const Denied kNoNoIowait = { SYS_io_uring_enter, EINVAL, 3, 1U << 7 };
static const Denied kNoRegisteredRing = { SYS_io_uring_register, EINVAL, 1,
                                          IORING_REGISTER_RING_FDS, true };

static const std::vector<Missing> kMissing = {
    { "Nothing", 0, {}, {}, false, false },
    { "Cqsize", IORING_SETUP_CQSIZE, {}, { "cqsize" }, false, false },
    { "SubmitAll", IORING_SETUP_SUBMIT_ALL, {}, { "submit-all" }, false, false },
    { "RDisabled",
      IORING_SETUP_R_DISABLED,
      {},
      { "r-disabled", "single-issuer", "defer-taskrun" },
      true,
      false },
    { "SingleIssuer",
      IORING_SETUP_SINGLE_ISSUER,
      {},
      { "single-issuer", "defer-taskrun" },
      true,
      false },
    { "DeferTaskrun", IORING_SETUP_DEFER_TASKRUN, {}, { "defer-taskrun" }, true, false },
    { "CoopTaskrun", IORING_SETUP_COOP_TASKRUN, {}, {}, false, false },
    { "TaskrunFlag", IORING_SETUP_TASKRUN_FLAG, {}, { "defer-taskrun" }, false, false },
    { "BothTaskruns",
      IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
      {},
      { "defer-taskrun" },
      false,
      false },
    { "CqsizeAndDeferTaskrun",
      IORING_SETUP_CQSIZE | IORING_SETUP_DEFER_TASKRUN,
      {},
      { "cqsize", "defer-taskrun" },
      true,
      false },
    { "AllSetupFlags",
      kAllSetupFlags,
      {},
      { "cqsize", "submit-all", "r-disabled", "single-issuer", "defer-taskrun" },
      false,
      false },
    { "NothingWithSqpoll", 0, {}, {}, false, true },
    { "Sqpoll", IORING_SETUP_SQPOLL, {}, { "sqpoll" }, false, true },
    { "SubmitAllWithSqpoll", IORING_SETUP_SUBMIT_ALL, {}, { "submit-all" }, false, true },
    { "AbsTimer", 0, { kNoAbsTimer }, { "abs-timer" }, false, false },
    { "NoIowait", 0, { kNoNoIowait }, { "no-iowait" }, false, false },
    { "RegisteredRing", 0, { kNoRegisteredRing }, { "registered-ring" }, false, false },
    { "AllThatHomeTries",
      0,
      { kNoAbsTimer, kNoNoIowait, kNoRegisteredRing },
      { "abs-timer", "no-iowait", "registered-ring" },
      false,
      false },
};

class Features : public testing::TestWithParam<Missing>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR("io_uring");
    }
};

INSTANTIATE_TEST_SUITE_P(Missing, Features, testing::ValuesIn(kMissing),
                         [](const testing::TestParamInfo<Missing> &info) {
                             return std::string(info.param.name);
                         });

static AioContext *NewContext(bool sqpoll)
{
    AioContextOptions opts = {};

    opts.monitor = "io_uring";
    opts.sqpoll_idle_ms = sqpoll ? 1 : 0;
    AioContext *ctx = aio_context_new(&opts);
    Check(ctx, std::string("no context: ") + strerror(errno));
    aio_poll(ctx, false);
    return ctx;
}

/* Exits with 0 when all is well, with 77 when it cannot be tried here. */
[[noreturn]] static void TryWithout(const Missing &m)
{
    alarm(40); /* whatever hangs ends with it */
    AioContext *before = NewContext(m.sqpoll);
    std::string all = Describe(before);
    Names used = Used(all), dropped = Dropped(all);

    aio_context_unref(before);
    for (const std::string &name : m.dropped) {
        if (!used.erase(name)) {
            _exit(77); /* this kernel lacks it, too */
        }
        dropped.insert(name);
    }
    if (m.coop) {
        used.insert("coop-taskrun");
    }
    if (m.sqpoll && m.dropped.count("sqpoll")) {
        used.insert("defer-taskrun");
    }
    if ((m.setup_flags && !RefuseSetupFlags(m.setup_flags)) ||
        (!m.denied.empty() && !Deny(m.denied))) {
        _exit(77);
    }
    AioContext *ctx = NewContext(m.sqpoll);
    std::string text = Describe(ctx);
    Check(Used(text) == used && Dropped(text) == dropped,
          "it says: " + text + "\nexpected:" + Join(used) + "; without" + Join(dropped));
    qemu_set_current_aio_context(ctx);
    CheckLoop(ctx);
    aio_context_unref(ctx);
    _exit(0);
}

static bool skipped;

static bool EndedWell(int status)
{
    skipped = WIFEXITED(status) && WEXITSTATUS(status) == 77;
    return skipped || (WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST_P(Features, OnlyTheMissingOnesAreDroppedAndTheLoopWorks)
{
    EXPECT_EXIT(TryWithout(GetParam()), EndedWell, "");
    if (skipped) {
        GTEST_SKIP() << "the kernel lacks it, or has no supervisors of system calls";
    }
}

/* ---- What it says ---------------------------------------------------------------------------- */

TEST(Describe, TellsTheLengthWhateverTheBufferHolds)
{
    ScopedContext ctx("ppoll");
    char buf[16];

    EXPECT_EQ(aio_context_describe(ctx, nullptr, 0), 5);
    for (size_t size = 1; size < 6; size++) {
        memset(buf, 'z', sizeof(buf));
        EXPECT_EQ(aio_context_describe(ctx, buf, size), 5);
        EXPECT_EQ(std::string(buf), std::string("ppoll").substr(0, size - 1));
        EXPECT_EQ(buf[size], 'z');
    }
    EXPECT_EQ(aio_context_describe(ctx, buf, sizeof(buf)), 5);
    EXPECT_STREQ(buf, "ppoll");
}

TEST(Describe, CutsALongTextAnywhere)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    ScopedContext ctx("io_uring");
    std::string all = Describe(ctx);

    EXPECT_EQ(all.rfind("io_uring: ", 0), 0u);
    EXPECT_EQ(all.find("no io_uring"), std::string::npos);
    for (size_t size = 1; size <= all.size() + 1; size++) {
        std::vector<char> buf(size + 1, 'z');

        EXPECT_EQ(aio_context_describe(ctx, buf.data(), size), static_cast<int>(all.size()));
        EXPECT_EQ(std::string(buf.data()), all.substr(0, size - 1));
        EXPECT_EQ(buf[size], 'z');
    }
}

class DescribeOn : public OnEachMonitor
{
};
ON_EACH_MONITOR(DescribeOn);

TEST_P(DescribeOn, AnyThreadBesideTheFirstPoll)
{
    for (int i = 0; i < 20; i++) {
        AioContextOptions opts = {};
        opts.monitor = GetParam();
        AioContext *ctx = aio_context_new(&opts);
        ASSERT_TRUE(ctx);
        std::string before = Describe(ctx);
        std::thread other([&] {
            for (int n = 0; n < 100; n++) {
                std::string text = Describe(ctx);
                EXPECT_EQ(text.rfind(GetParam(), 0), 0u) << text;
                EXPECT_GE(Used(text).size(), Used(before).size()) << text;
            }
        });
        aio_poll(ctx, false);
        other.join();
        aio_context_unref(ctx);
    }
}
