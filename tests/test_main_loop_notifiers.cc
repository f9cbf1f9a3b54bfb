/* SPDX-License-Identifier: MIT */
/* Poll notifiers: when they are asked and told, in nested waits, failures and all at once. */
#include "main_loop_support.h"

#include <csignal>
#include <memory>
#include <sys/resource.h>

class MainLoopNotifiers : public OnEachMonitor
{
};
ON_EACH_MONITOR(MainLoopNotifiers);

/* ---- The notifiers themselves ---------------------------------------------------------------- */

TEST_P(MainLoopNotifiers, AreAskedAndThenToldInTheirOrder)
{
    ScopedMainLoop loop(GetParam());
    std::string log;
    Call call{ [&] { log += "bh "; } };
    Foreign a([&](MainLoopPoll *) { log += "ask-a "; }, [&](MainLoopPoll *) { log += "tell-a "; });
    Foreign b([&](MainLoopPoll *) { log += "ask-b "; },
              [&](MainLoopPoll *p) {
                  EXPECT_EQ(p->state, MAIN_LOOP_POLL_OK);
                  EXPECT_EQ(qemu_get_current_aio_context(), qemu_get_aio_context());
                  log += "tell-b ";
              });

    aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &call);
    main_loop_wait(false);
    EXPECT_EQ(log, "ask-a ask-b bh tell-a tell-b ");
}

TEST_P(MainLoopNotifiers, OneAddedByAnotherIsAskedBeforeTheSleep)
{
    ScopedMainLoop loop(GetParam());
    std::unique_ptr<Foreign> late;
    Foreign first(
        [&](MainLoopPoll *) {
            if (!late) {
                late.reset(new Foreign([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr));
            }
        },
        nullptr);

    main_loop_wait(false); /* else it would sleep for ever */
    EXPECT_EQ(first.asked, 1);
    EXPECT_EQ(late->asked, 1);
    EXPECT_EQ(late->told, 1);
}

TEST_P(MainLoopNotifiers, OneAddedAfterTheSleepIsNotToldBeforeItIsAsked)
{
    ScopedMainLoop loop(GetParam());
    std::unique_ptr<Foreign> late;
    Foreign first(nullptr, [&](MainLoopPoll *) {
        if (!late) {
            late.reset(new Foreign(nullptr, [&](MainLoopPoll *) { EXPECT_GT(late->asked, 0); }));
        }
    });

    main_loop_wait(true);
    EXPECT_EQ(late->asked, 0);
    EXPECT_EQ(late->told, 0);
    main_loop_wait(true);
    EXPECT_EQ(late->asked, 1);
    EXPECT_EQ(late->told, 1);
}

/* Again and again, were it asked anew. */
TEST_P(MainLoopNotifiers, OneThatAddsItselfAgainWhileTheyAreAskedIsAskedOnce)
{
    ScopedMainLoop loop(GetParam());
    Foreign first(nullptr, nullptr), self(nullptr, nullptr);

    self.ask = [&](MainLoopPoll *) {
        if (self.asked < 10) {
            self.Remove();
            self.Add();
            first.Remove();
            first.Add();
        }
    };
    main_loop_wait(true);
    EXPECT_EQ(self.asked, 1);
    EXPECT_EQ(self.told, 1);
    EXPECT_EQ(first.asked, 1);
    EXPECT_EQ(first.told, 1);
    main_loop_wait(true);
    EXPECT_EQ(self.asked, 2);
    EXPECT_EQ(self.told, 2);
}

TEST_P(MainLoopNotifiers, OneThatAddsItselfAgainWhenToldIsNotToldTwice)
{
    ScopedMainLoop loop(GetParam());
    Foreign self(nullptr, nullptr), next(nullptr, nullptr);

    self.tell = [&](MainLoopPoll *) {
        self.Remove();
        self.Add();
    };
    main_loop_wait(true);
    main_loop_wait(true);
    EXPECT_EQ(self.asked, 2);
    EXPECT_EQ(self.told, 2);
}

TEST_P(MainLoopNotifiers, MayRemoveThemselvesAndEachOther)
{
    ScopedMainLoop loop(GetParam());
    Foreign a(nullptr, nullptr), b(nullptr, nullptr), c(nullptr, nullptr), d(nullptr, nullptr);

    a.ask = [&](MainLoopPoll *) {
        a.Remove();
        b.Remove(); /* the next one */
    };
    c.tell = [&](MainLoopPoll *) {
        d.Remove();
        c.Remove();
    };
    main_loop_wait(true);
    EXPECT_EQ(a.asked, 1);
    EXPECT_EQ(a.told, 0);
    EXPECT_EQ(b.asked, 0);
    EXPECT_EQ(c.told, 1);
    EXPECT_EQ(d.asked, 1);
    EXPECT_EQ(d.told, 0);
    main_loop_wait(true);
    EXPECT_EQ(a.asked + b.asked + c.asked + d.asked, 3);
    b.Add(); /* the list is whole */
    a.Add();
    a.ask = nullptr;
    main_loop_wait(true);
    EXPECT_EQ(a.told, 1);
    EXPECT_EQ(b.told, 1);
}

TEST_P(MainLoopNotifiers, RemovedFdDoesNotEndSleepsAnyMore)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    {
        ForeignFd f(s.a);
        Foreign limit([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);
        main_loop_wait(false);
    }
    PutByte(s.b);
    std::atomic<bool> slept{ false };
    std::thread other([&] {
        while (!slept) {
            loop.WaitUntilItRests();
            qemu_notify_event();
        }
    });
    uint64_t sleeps = loop.Stats().sleeps;
    loop.RunUntil([&] { return loop.Stats().sleeps > sleeps; });
    slept = true;
    EXPECT_EQ(loop.Stats().wakeups_event, 0u);
    other.join();
}

TEST_P(MainLoopNotifiers, NestedWaitTellsAndTheOuterOneDoesNotAgain)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd f(s.a);
    bool ran = false;
    Call nested{ [&] {
        main_loop_wait(true);
        EXPECT_EQ(f.foreign.told, 1);
        EXPECT_EQ(f.revents, POLLIN);
        TakeByte(s.a);
        ran = true;
    } };

    PutByte(s.b);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &nested);
    main_loop_wait(false);
    EXPECT_TRUE(ran);
    EXPECT_EQ(f.foreign.asked, 2);
    EXPECT_EQ(f.foreign.told, 1);
}

/* The poll takes the count of notifies; the wait must return all the same. */
TEST_P(MainLoopNotifiers, NotifyEventIsNotLostToAPollOfANotifierThatIsAsked)
{
    ScopedMainLoop loop(GetParam());
    Call nothing{ [] {} };
    Foreign f(
        [&](MainLoopPoll *p) {
            if (f.asked == 1) {
                qemu_notify_event();
                aio_bh_schedule_oneshot(qemu_get_aio_context(), Call::Run, &nothing);
                aio_poll(qemu_get_aio_context(), true);
            }
            p->timeout_ns = 50 * SCALE_MS; /* for a wait that has lost it */
        },
        nullptr);

    main_loop_wait(false);
    EXPECT_EQ(loop.Stats().sleeps, 0u);
    while (loop.Stats().sleeps == 0) { /* it was for one wait */
        main_loop_wait(false);
    }
}

TEST_P(MainLoopNotifiers, WaitBelowATellKeepsTheOuterArray)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    int nested = 0, index = -1;
    Foreign f(
        [&](MainLoopPoll *p) {
            for (int i = 0; i < 100 * nested; i++) {
                main_loop_poll_add_fd(p, s.b, POLLOUT);
            }
            index = main_loop_poll_add_fd(p, s.a, POLLOUT);
        },
        [&](MainLoopPoll *p) {
            int mine = index;

            if (nested++ == 0) {
                main_loop_wait(true);
                main_loop_wait(true);
                EXPECT_EQ(p->pollfds[mine].fd, s.a);
                EXPECT_EQ(p->pollfds[mine].revents, POLLOUT);
            }
        });

    main_loop_wait(true);
    EXPECT_EQ(nested, 3);
}

TEST_P(MainLoopNotifiers, FailureOfPollIsToldAndTriedAgain)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    struct rlimit old, few;
    int state = -1, revents = 0;
    Foreign f(
        [&](MainLoopPoll *p) {
            for (int i = 0; i < 200; i++) {
                main_loop_poll_add_fd(p, s.a, POLLIN);
            }
        },
        [&](MainLoopPoll *p) {
            state = p->state;
            for (unsigned i = 0; i < p->nfds; i++) {
                revents |= p->pollfds[i].revents;
            }
        });

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
    few = old;
    few.rlim_cur = 100;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0); /* poll(2): EINVAL for more than that */
    main_loop_wait(false);                        /* ends by itself */
    setrlimit(RLIMIT_NOFILE, &old);
    EXPECT_EQ(state, MAIN_LOOP_POLL_ERR);
    EXPECT_EQ(revents, 0);
    PutByte(s.b);
    main_loop_wait(false);
    EXPECT_EQ(state, MAIN_LOOP_POLL_OK);
    EXPECT_EQ(revents, POLLIN);
}

/* No notifier could be told that it is ready: the loop must not run round it. */
TEST_P(MainLoopNotifiers, ReadyFdEndsNoSleepWhilePollFails)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    struct rlimit old, few;
    int failures = 0;
    Foreign f(
        [&](MainLoopPoll *p) {
            for (int i = 0; i < 200; i++) {
                main_loop_poll_add_fd(p, s.a, POLLIN);
            }
        },
        [&](MainLoopPoll *p) { failures += p->state == MAIN_LOOP_POLL_ERR; });

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
    few = old;
    few.rlim_cur = 100;
    {
        Foreign limit([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);
        main_loop_wait(false); /* the set has watched it */
    }
    PutByte(s.b);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int i = 0; i < 5; i++) {
        EXPECT_FALSE(main_loop_wait(false));
    }
    setrlimit(RLIMIT_NOFILE, &old);
    EXPECT_EQ(failures, 5);
    EXPECT_EQ(loop.Stats().wakeups_event, 0u);
    EXPECT_TRUE(main_loop_wait(false));
}

/* The look before the wait filled them in. */
TEST_P(MainLoopNotifiers, FailureOfTheLastLookLeavesNoRevents)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s, own;
    struct rlimit old, few;
    int state = -1, revents = 0;
    Foreign f(
        [&](MainLoopPoll *p) {
            for (int i = 0; i < 200; i++) {
                main_loop_poll_add_fd(p, s.a, POLLOUT);
            }
        },
        [&](MainLoopPoll *p) {
            state = p->state;
            revents = p->pollfds[0].revents;
        });
    Call lower{ [&] { setrlimit(RLIMIT_NOFILE, &few); } };

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
    few = old;
    few.rlim_cur = 100;
    qemu_set_fd_handler(own.a, Call::Run, nullptr, &lower);
    PutByte(own.b);
    loop.RunUntil([&] { return state == MAIN_LOOP_POLL_ERR; });
    setrlimit(RLIMIT_NOFILE, &old);
    EXPECT_EQ(revents, 0);
    qemu_set_fd_handler(own.a, nullptr, nullptr, nullptr);
}

TEST_P(MainLoopNotifiers, SignalsAreNoFailure)
{
    ScopedMainLoop loop(GetParam());
    SocketPair s;
    ForeignFd f(s.a);
    int signals = kSanitized ? 200 : 1000;
    std::atomic<bool> over{ false };
    pthread_t self = pthread_self();
    struct sigaction sa = {}, old;

    sa.sa_handler = [](int) {};
    sigaction(SIGUSR1, &sa, &old);
    f.foreign.tell = [&](MainLoopPoll *p) { EXPECT_EQ(p->state, MAIN_LOOP_POLL_OK); };
    std::thread other([&] {
        for (int i = 0; i < signals; i++) {
            pthread_kill(self, SIGUSR1);
            std::this_thread::yield();
        }
        over = true;
        qemu_notify_event();
    });
    loop.RunUntil([&] { return over.load(); });
    other.join();
    sigaction(SIGUSR1, &old, nullptr);
}

/* ---- A thread that ends below it ------------------------------------------------------------- */

static MainLoopPollNotifier ends_its_thread, next_of_it;

static void *WaitsWithThem(void *)
{
    qemu_init_main_loop(nullptr);
    main_loop_poll_add_notifier(&ends_its_thread);
    main_loop_poll_add_notifier(&next_of_it);
    main_loop_wait(false);
    ADD_FAILURE();
    return nullptr;
}

TEST(MainLoopThreadEnd, LoopWhoseNotifierEndedItsThreadIsCleanedUp)
{
    pthread_t thread;

    ends_its_thread.notify = [](MainLoopPollNotifier *, MainLoopPoll *) { pthread_exit(nullptr); };
    next_of_it.notify = [](MainLoopPollNotifier *, MainLoopPoll *) { ADD_FAILURE(); };
    ASSERT_EQ(pthread_create(&thread, nullptr, WaitsWithThem, nullptr), 0);
    pthread_join(thread, nullptr);
    qemu_cleanup_main_loop(); /* the walk that it was in lay on its stack */
    ScopedMainLoop again;
    Foreign f(nullptr, nullptr);
    EXPECT_FALSE(main_loop_wait(true));
    EXPECT_EQ(f.told, 1);
}

static void *WaitsForEver(void *)
{
    AioContextOptions opts = {};

    opts.monitor = "ppoll"; /* whose wait is a cancellation point */
    qemu_init_main_loop(&opts);
    main_loop_poll_add_notifier(&next_of_it);
    while (true) {
        main_loop_wait(false);
    }
}

TEST(MainLoopThreadEnd, LoopThatWasCancelledInItsSleepLeavesNothingToTheNext)
{
    if (kSanitized) {
        GTEST_SKIP() << "the sanitizers' runtimes take a cancelled wait for a fault";
    }
    pthread_t thread;

    next_of_it.notify = [](MainLoopPollNotifier *, MainLoopPoll *) {};
    ASSERT_EQ(pthread_create(&thread, nullptr, WaitsForEver, nullptr), 0);
    while (!qemu_get_aio_context()) {
        std::this_thread::yield();
    }
    ScopedMainLoop::WaitUntilItRests();
    pthread_cancel(thread);
    pthread_join(thread, nullptr);
    qemu_cleanup_main_loop();

    ScopedMainLoop again("ppoll");
    SocketPair s;
    ForeignFd f(s.a);
    int polls = 0;
    bool over = false;
    HeapTimer t(nullptr, [&] { over = true; });
    f.foreign.tell = [&](MainLoopPoll *) {
        PutByte(s.b);
        timer_mod(t, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 20 * SCALE_MS);
        while (!over) {
            aio_poll(qemu_get_aio_context(), true);
            polls++;
        }
    };
    {
        Foreign limit([](MainLoopPoll *p) { p->timeout_ns = SCALE_MS; }, nullptr);
        main_loop_wait(false); /* so that the set watches it */
    }
    EXPECT_TRUE(over);
    EXPECT_LE(polls, 10); /* thousands, were its readiness to end each of them */
}

/* ---- All at once ----------------------------------------------------------------------------- */

TEST_P(MainLoopNotifiers, NothingIsLostWhenEverySourceIsBusyAtOnce)
{
    ScopedMainLoop loop(GetParam());
    const int rounds = kSanitized ? 300 : 2000;
    SocketPair foreign, own;
    std::atomic<int> bytes{ 0 }, own_bytes{ 0 }, fired{ 0 }, runs{ 0 };
    ForeignFd f(foreign.a);
    Call reader{ [&] {
        char c; /* io_uring may tell of it twice: by its wake-up, which comes after its arrival */
        own_bytes += read(own.a, &c, 1) == 1;
    } };
    Call bh_call{ [&] { runs++; } };
    HeapTimer t(nullptr, [&] { fired++; });
    QEMUBH *bh = qemu_bh_new(Call::Run, &bh_call);
    auto wait_for = [](std::atomic<int> &count, int i) {
        while (count == i) {
            std::this_thread::yield();
        }
    };

    f.foreign.tell = [&](MainLoopPoll *p) {
        if (p->pollfds[f.index].revents) {
            TakeByte(foreign.a);
            bytes++;
        }
    };
    qemu_set_fd_handler(own.a, Call::Run, nullptr, &reader);
    std::thread others([&] {
        RunThreads(4, [&](int who) {
            for (int i = 0; i < rounds; i++) {
                switch (who) {
                case 0:
                    PutByte(foreign.b);
                    wait_for(bytes, i);
                    break;
                case 1:
                    PutByte(own.b);
                    wait_for(own_bytes, i);
                    break;
                case 2:
                    timer_mod(t, i % 2 ? 0 : qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + 20000);
                    wait_for(fired, i);
                    break;
                default:
                    qemu_bh_schedule(bh);
                    wait_for(runs, i);
                    break;
                }
            }
        });
    });
    loop.RunUntil([&] {
        return bytes == rounds && own_bytes == rounds && fired == rounds && runs == rounds;
    });
    others.join();
    qemu_set_fd_handler(own.a, nullptr, nullptr, nullptr);
    qemu_bh_delete(bh);
}

/* ---- Misuse ---------------------------------------------------------------------------------- */

static void WaitWithNotifier(void (*notify)(MainLoopPollNotifier *, MainLoopPoll *))
{
    static MainLoopPollNotifier n;

    qemu_init_main_loop(nullptr);
    n.notify = notify;
    main_loop_poll_add_notifier(&n);
    main_loop_wait(true);
}

TEST(MainLoopPollMisuse, Aborts)
{
    EXPECT_DEATH(WaitWithNotifier([](MainLoopPollNotifier *, MainLoopPoll *p) {
                     if (p->state == MAIN_LOOP_POLL_FILL) {
                         main_loop_wait(true);
                     }
                 }),
                 "below a poll notifier that is asked");
    EXPECT_DEATH(WaitWithNotifier([](MainLoopPollNotifier *, MainLoopPoll *p) {
                     if (p->state != MAIN_LOOP_POLL_FILL) {
                         main_loop_poll_add_fd(p, 0, POLLIN);
                     }
                 }),
                 "main_loop_poll_add_fd: called after the wait");
    EXPECT_DEATH(WaitWithNotifier([](MainLoopPollNotifier *n, MainLoopPoll *) {
                     main_loop_poll_add_notifier(n);
                 }),
                 "was added before");
    EXPECT_DEATH(
        WaitWithNotifier([](MainLoopPollNotifier *, MainLoopPoll *) { qemu_cleanup_main_loop(); }),
        "below a callback of the main loop");
}
