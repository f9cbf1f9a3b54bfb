/* SPDX-License-Identifier: MIT */
/* A child of fork(): it must not use the library, is told so at once, and harms nobody. */
#include "block_support.h"
#include "loop_support.h"

#include <csignal>
#include <cstring>
#include <fstream>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>

/* What a parent may have when it forks, all of it made before. */
struct Parent {
    explicit Parent(const char *monitor)
        : monitor(monitor), ctx(monitor), io(monitor), blk(Open("null://"))
    {
        ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);
        aio_timer_init(ctx, &embedded, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &call);
        bh = aio_bh_new(ctx, Call::Run, &call);
        EXPECT_EQ(event_notifier_init(&notifier, 0), 0);
        EXPECT_EQ(timerlistgroup_init(
                      &group, [](void *, QEMUClockType) {}, nullptr),
                  0);
        timer_mod(ts, INT64_MAX);
        timer_mod(&embedded, INT64_MAX);
        timer_del(ts); /* its list's lock is biased to this thread now */
        timer_mod(ts, INT64_MAX);
        aio_poll(ctx, false);
        io.Run([] {});
    }
    ~Parent()
    {
        timerlistgroup_deinit(&group);
        aio_synchronize_rcu();
        event_notifier_cleanup(&notifier);
        qemu_bh_delete(bh);
        timer_deinit(&embedded);
        timer_free(ts);
    }

    const char *monitor;
    ScopedContext ctx;
    ScopedIOThread io;
    Blk blk;
    Buffer buf{ 512 };
    Result result;
    QEMUTimer *ts;
    QEMUTimer embedded = {};
    QEMUBH *bh;
    EventNotifier notifier;
    QEMUTimerListGroup group;
    SocketPair s;
    int runs = 0;
    Call call{ [this] { runs++; } };
    CqeHandler op = {};
    AioRcuHead rcu = {};
};

struct Entry {
    const char *name;
    void (*call)(Parent *p);
};

/* How a child of fork() ended that made one call, and what it said. */
static std::string InChild(Parent *p, void (*call)(Parent *p))
{
    int pipefd[2], status = 0;
    char text[512];
    std::string said;

    EXPECT_EQ(pipe2(pipefd, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipefd[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        alarm(30);
        call(p);
        _exit(0);
    }
    close(pipefd[1]);
    for (ssize_t n; (n = read(pipefd[0], text, sizeof(text))) > 0;) {
        said.append(text, static_cast<size_t>(n));
    }
    close(pipefd[0]);
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status)) {
        return std::string(strsignal(WTERMSIG(status))) + ": " + said;
    }
    return "exit " + std::to_string(WEXITSTATUS(status)) + ": " + said;
}

static void ExitInChild(Parent *)
{
    if (kSanitized) {
        _exit(0); /* a leak checker would report what the parent's other threads alone refer to */
    }
    exit(0);
}

static QEMUIOVector *Qiov(Parent *p)
{
    return &p->buf.qiov;
}

/* Those that would wait for a thread that is not there, be forgotten, or reach the parent through
 * what the two share. */
static const Entry kAbort[] = {
    { "aio_poll", [](Parent *p) { aio_poll(p->ctx, false); } },
    { "aio_compute_timeout", [](Parent *p) { aio_compute_timeout(p->ctx); } },
    { "aio_notify", [](Parent *p) { aio_notify(p->ctx); } },
    { "aio_notify", [](Parent *p) { aio_notify(p->io.ctx()); } },
    { "aio_notify", [](Parent *p) { aio_context_set_precise(p->ctx, 0); } },
    { "aio_context_new",
      [](Parent *p) {
          AioContextOptions opts = {};
          opts.monitor = p->monitor;
          aio_context_new(&opts);
      } },
    { "aio_context_unref", [](Parent *p) { aio_context_unref(p->ctx); } },
    { "qemu_set_current_aio_context", [](Parent *p) { qemu_set_current_aio_context(p->ctx); } },
    { "aio_bh", [](Parent *p) { aio_bh_new(p->ctx, Call::Run, &p->call); } },
    { "aio_bh", [](Parent *p) { aio_bh_schedule_oneshot(p->io.ctx(), Call::Run, &p->call); } },
    { "qemu_bh", [](Parent *p) { qemu_bh_schedule(p->bh); } },
    { "qemu_bh", [](Parent *p) { qemu_bh_schedule_idle(p->bh); } },
    { "qemu_bh", [](Parent *p) { qemu_bh_delete(p->bh); } },
    { "aio_set_fd_handler",
      [](Parent *p) {
          aio_set_fd_handler(p->ctx, p->s.a, Call::Run, nullptr, nullptr, nullptr, &p->call);
      } },
    { "aio_set_fd_handler",
      [](Parent *p) {
          aio_set_fd_handler(p->io.ctx(), p->s.a, nullptr, nullptr, nullptr, nullptr, nullptr);
      } },
    { "aio_set_fd_handler",
      [](Parent *p) {
          aio_set_event_notifier(
              p->ctx, &p->notifier, [](EventNotifier *) {}, nullptr, nullptr);
      } },
    { "aio_set_fd_handler",
      [](Parent *p) { aio_remove_fd_handler_async(p->ctx, p->s.a, Call::Run, &p->call); } },
    { "aio_add_sqe",
      [](Parent *p) { aio_add_sqe([](struct io_uring_sqe *, void *) {}, nullptr, &p->op); } },
    { "aio_add_sqe", [](Parent *p) { aio_cancel_sqe(&p->op); } },
    { "iothread_new", [](Parent *) { iothread_new("child", nullptr); } },
    { "iothread_stop", [](Parent *p) { iothread_stop(p->io.get()); } },
    { "iothread_join", [](Parent *p) { iothread_join(p->io.get()); } },
    { "iothread_destroy", [](Parent *p) { iothread_destroy(p->io.get()); } },
    { "iothread_get_stats",
      [](Parent *p) {
          IOThreadStats stats;
          iothread_get_stats(p->io.get(), &stats);
      } },
    { "timer_mod", [](Parent *p) { timer_mod(p->ts, 0); } },
    { "timer_mod", [](Parent *p) { timer_mod_ns(&p->embedded, 0); } },
    { "timer_mod_anticipate", [](Parent *p) { timer_mod_anticipate(p->ts, 0); } },
    { "timer_mod", [](Parent *p) { timer_mod_range_ns(p->ts, 0, 1); } },
    { "timer_forward", [](Parent *p) { timer_forward(p->ts, 0, 1); } },
    { "timer_del", [](Parent *p) { timer_del(p->ts); } },
    { "timer_del_sync", [](Parent *p) { timer_del_sync(p->ts); } },
    { "timer_free", [](Parent *p) { timer_free(p->ts); } },
    { "timer_deinit", [](Parent *p) { timer_deinit(&p->embedded); } },
    { "timer_deinit_sync", [](Parent *p) { timer_deinit_sync(&p->embedded); } },
    { "timer_init",
      [](Parent *p) {
          aio_timer_new(p->ctx, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &p->call);
      } },
    { "timerlist_new",
      [](Parent *) {
          QEMUTimerListGroup group;
          timerlistgroup_init(
              &group, [](void *, QEMUClockType) {}, nullptr);
      } },
    { "timerlist", [](Parent *p) { timerlistgroup_deinit(&p->group); } },
    { "", [](Parent *) { qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false); } },
    { "", [](Parent *) { qemu_clock_notify(QEMU_CLOCK_REALTIME); } },
    { "cpu_enable_ticks", [](Parent *) { cpu_enable_ticks(); } },
    { "cpu_disable_ticks", [](Parent *) { cpu_disable_ticks(); } },
    { "aio_rcu_read_lock", [](Parent *) { aio_rcu_read_lock(); } },
    { "aio_rcu", [](Parent *) { aio_synchronize_rcu(); } },
    { "aio_rcu", [](Parent *) { aio_rcu_barrier(); } },
    { "aio_rcu", [](Parent *p) { aio_call_rcu(&p->rcu, [](AioRcuHead *) {}); } },
    { "blk_open", [](Parent *) { blk_open("null://", nullptr); } },
    { "blk_unref", [](Parent *p) { blk_unref(p->blk.get()); } },
    { "",
      [](Parent *p) {
          blk_aio_preadv(p->blk.get(), 0, Qiov(p), BdrvRequestFlags(), Ended, &p->result);
      } },
    { "",
      [](Parent *p) {
          blk_aio_pwritev(p->blk.get(), 0, Qiov(p), BdrvRequestFlags(), Ended, &p->result);
      } },
    { "", [](Parent *p) { blk_aio_flush(p->blk.get(), Ended, &p->result); } },
    { "", [](Parent *p) { blk_pread(p->blk.get(), 0, 512, p->buf.data, BdrvRequestFlags()); } },
    { "blk_drain", [](Parent *p) { blk_drain(p->blk.get()); } },
    { "blk_drained_begin", [](Parent *p) { blk_drained_begin(p->blk.get()); } },
};

/* Those that only look, or act on what is the caller's own. */
static const Entry kHarmless[] = {
    { "_exit", [](Parent *) {} },
    { "exit", ExitInChild },
    { "exec", [](Parent *) { execl("/bin/true", "true", nullptr); } },
    { "aio_context_get_monitor", [](Parent *p) { aio_context_get_monitor(p->ctx); } },
    { "aio_context_get_stats", [](Parent *p) { p->ctx.Stats(); } },
    { "in_aio_context_home_thread", [](Parent *p) { in_aio_context_home_thread(p->ctx); } },
    { "qemu_bh_cancel", [](Parent *p) { qemu_bh_cancel(p->bh); } },
    { "iothread_get_name", [](Parent *p) { iothread_get_name(p->io.get()); } },
    { "iothread_get_aio_context", [](Parent *p) { iothread_get_aio_context(p->io.get()); } },
    { "timer_pending", [](Parent *p) { timer_pending(p->ts); } },
    { "timer_expire_time_ns", [](Parent *p) { timer_expire_time_ns(p->ts); } },
    { "qemu_clock_get_ns", [](Parent *) { qemu_clock_get_ns(QEMU_CLOCK_REALTIME); } },
    { "event_notifier",
      [](Parent *) {
          EventNotifier own;
          event_notifier_init(&own, 1);
          event_notifier_set(&own);
          event_notifier_test_and_clear(&own);
          event_notifier_cleanup(&own);
      } },
    { "event_notifier_set", [](Parent *p) { event_notifier_set(&p->notifier); } },
    { "a pass over lists with nothing due",
      [](Parent *p) {
          timerlistgroup_run_timers(&p->group);
          qemu_clock_run_all_timers();
      } },
    { "blk_getlength", [](Parent *p) { blk_getlength(p->blk.get()); } },
};

class Fork : public OnEachMonitor
{
};
ON_EACH_MONITOR(Fork);

/* Everything that the parent had works on. */
static void ExpectUnaffected(Parent *p)
{
    int before = p->runs, ran = 0;

    qemu_bh_schedule(p->bh);
    timer_mod(p->ts, 0);
    timer_mod(&p->embedded, 0);
    while (p->runs < before + 3) {
        aio_poll(p->ctx, true);
    }
    timer_mod(p->ts, INT64_MAX);
    timer_mod(&p->embedded, INT64_MAX);
    EXPECT_EQ(aio_set_fd_handler(p->ctx, p->s.a, Call::Run, nullptr, nullptr, nullptr, &p->call),
              0);
    EXPECT_EQ(write(p->s.b, "x", 1), 1);
    while (p->runs < before + 4) {
        aio_poll(p->ctx, true);
    }
    EXPECT_EQ(aio_set_fd_handler(p->ctx, p->s.a, nullptr, nullptr, nullptr, nullptr, nullptr), 0);
    char c;
    EXPECT_EQ(read(p->s.a, &c, 1), 1);
    EXPECT_EQ(blk_pread(p->blk.get(), 0, 512, p->buf.data, BdrvRequestFlags()), 0);
    p->io.Run([&] { ran++; });
    EXPECT_EQ(ran, 1);
    aio_rcu_barrier();
}

TEST_P(Fork, ChildThatUsesTheLibraryIsToldSo)
{
    Parent p(GetParam());

    for (const Entry &e : kAbort) {
        std::string how = InChild(&p, e.call);

        EXPECT_EQ(how.find("Aborted: aioctx: " + std::string(e.name)), 0u)
            << "entry " << &e - kAbort << " " << e.name << ": " << how;
        EXPECT_NE(how.find("called in a child of fork()"), std::string::npos)
            << "entry " << &e - kAbort << " " << e.name << ": " << how;
    }
    ExpectUnaffected(&p);
}

TEST_P(Fork, ChildThatExitsExecsOrOnlyLooksIsFine)
{
    Parent p(GetParam());

    for (const Entry &e : kHarmless) {
        EXPECT_EQ(InChild(&p, e.call), "exit 0: ") << e.name;
    }
    EXPECT_EQ(event_notifier_test_and_clear(&p.notifier), 1) << "the two share it";
    ExpectUnaffected(&p);
}

/* While other threads hold the library's locks, and its own thread is busy. */
TEST_P(Fork, ChildrenBesideBusyThreadsAreFineAndHarmNobody)
{
    Parent p(GetParam());
    std::atomic<bool> stop{ false };
    std::atomic<int> rounds{ 0 };
    std::thread busy([&] {
        while (!stop) {
            IOThreadOptions opts = {};
            opts.context.monitor = GetParam();
            IOThread *io = iothread_new("busy", &opts);
            ASSERT_NE(io, nullptr);
            timer_mod(p.ts, INT64_MAX);
            ASSERT_EQ(iothread_destroy(io), 0);
            rounds++;
        }
    });

    for (int i = 0; i < 40 || rounds < 10; i++) {
        std::string how = InChild(&p, kAbort[i % 10].call);
        EXPECT_EQ(how.find("Aborted: aioctx: "), 0u) << how;
        EXPECT_EQ(InChild(&p, [](Parent *) {}), "exit 0: ");
        EXPECT_EQ(InChild(&p, ExitInChild), "exit 0: ");
    }
    stop = true;
    busy.join();
    ExpectUnaffected(&p);
}

/* The child of another thread than main's may end that thread alone. */
TEST_P(Fork, ThreadOfAChildMayExit)
{
    if (kSanitized) {
        GTEST_SKIP() << "a leak checker would report what the parent's other threads refer to";
    }
    Parent p(GetParam());
    std::string how;

    std::thread([&] {
        AioContextOptions opts = {};
        opts.monitor = GetParam();
        AioContext *ctx = aio_context_new(&opts);

        qemu_set_current_aio_context(ctx);
        aio_rcu_read_lock();
        aio_rcu_read_unlock();
        how = InChild(&p, [](Parent *) { pthread_exit(nullptr); });
        aio_context_unref(ctx);
    }).join();
    EXPECT_EQ(how, "exit 0: ");
    ExpectUnaffected(&p);
}

/* A child that goes on holds what it has inherited, and the parent ends what it has all the
 * same. */
TEST_P(Fork, ParentEndsEverythingWhileAChildLivesOn)
{
    int go[2], status;
    pid_t pid;

    ASSERT_EQ(pipe2(go, O_CLOEXEC), 0);
    {
        Parent p(GetParam());

        pid = fork();
        if (pid == 0) {
            char c;
            close(go[1]);
            alarm(30);
            _exit(read(go[0], &c, 1) != 0);
        }
        close(go[0]);
        ExpectUnaffected(&p);
    }
    close(go[1]);
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A callback that forks and returns in both: what was accepted is the parent's alone, also where
 * the loop is at its end. */
TEST_P(Fork, ChildOfACallbackDoesNotEndItsParentsLoop)
{
    struct Shared {
        std::atomic<int> ran, child;
    };
    void *mem =
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(mem, MAP_FAILED);
    auto shared = new (mem) Shared();
    IOThreadOptions opts = {};
    opts.context.monitor = GetParam();
    IOThread *io = iothread_new("forks", &opts);
    ASSERT_NE(io, nullptr);
    AioContext *ctx = iothread_get_aio_context(io);
    Call count{ [&] { shared->ran++; } };
    Call split{ [&] {
        aio_bh_schedule_oneshot(ctx, Call::Run, &count);
        iothread_stop(io);
        pid_t pid = fork();
        if (pid > 0) {
            shared->child = pid;
        } else {
            int null = open("/dev/null", O_WRONLY); /* what it says at its end */
            dup2(null, STDERR_FILENO);
        }
    } };
    int status = 0;

    ASSERT_EQ(aio_bh_schedule_oneshot(ctx, Call::Run, &split), 0);
    EXPECT_TRUE(WaitUntil([&] { return shared->child != 0; }));
    EXPECT_EQ(iothread_destroy(io), 0);
    ASSERT_EQ(waitpid(shared->child, &status, 0), shared->child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) << status;
    EXPECT_EQ(shared->ran, 1);
    munmap(mem, sizeof(Shared));
}
