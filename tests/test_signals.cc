/* SPDX-License-Identifier: MIT */
/* What a signal handler may call, at whatever point it interrupts a thread: nothing is lost. */
#include "loop_support.h"

#include <csignal>
#include <ctime>
#include <thread>

/* ThreadSanitizer holds a signal back until the thread's next call of libc that it knows, and a
 * wait for a ring is none: a timer lets the loop come by one. */
#if defined(__SANITIZE_THREAD__)
constexpr bool kSignalsAreHeldBack = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kSignalsAreHeldBack = true;
#else
constexpr bool kSignalsAreHeldBack = false;
#endif
#else
constexpr bool kSignalsAreHeldBack = false;
#endif

/* Of one test; signal handlers find it here. */
struct Shared {
    AioContext *ctx = nullptr;
    QEMUBH *bh = nullptr, *idle = nullptr, *cancelled = nullptr;
    EventNotifier notifier = {};
    std::atomic<int64_t> tickets{ 0 }; /* handlers that ran; each stands for all kinds */
    std::atomic<int64_t> bh_saw{ 0 }, idle_saw{ 0 }, fd_saw{ 0 }, poll_saw{ 0 };
    std::atomic<int> lost_errno{ 0 };
};
static Shared *shared;

/* Everything that the headers allow in a handler. */
static void OnSignal(int)
{
    int saved = errno;
    int64_t ticket;

    errno = ERANGE;
    ticket = ++shared->tickets;
    qemu_bh_schedule(shared->bh);
    qemu_bh_schedule_idle(shared->idle);
    qemu_bh_schedule(shared->cancelled);
    qemu_bh_cancel(shared->cancelled);
    event_notifier_set(&shared->notifier);
    aio_context_set_precise(shared->ctx, ticket % 2 ? 1000 : 0);
    aio_notify(shared->ctx);
    shared->lost_errno += errno != ERANGE;
    errno = saved;
}

class Signals : public OnEachMonitor
{
protected:
    void SetUp() override
    {
        struct sigaction sa = {};

        OnEachMonitor::SetUp();
        if (IsSkipped()) {
            return;
        }
        ctx_ = std::make_unique<ScopedContext>(GetParam());
        shared = &shared_;
        shared_.ctx = *ctx_;
        shared_.bh = aio_bh_new(*ctx_, Call::Run, &bh_);
        shared_.idle = aio_bh_new(*ctx_, Call::Run, &idle_);
        shared_.cancelled = aio_bh_new(*ctx_, Call::Run, &nothing_);
        ASSERT_EQ(event_notifier_init(&shared_.notifier, 0), 0);
        ASSERT_EQ(aio_set_event_notifier(*ctx_, &shared_.notifier, OnNotifier, nullptr, nullptr),
                  0);
        sa.sa_handler = OnSignal;
        sigaction(SIGUSR1, &sa, &old_);
        if (kSignalsAreHeldBack) {
            tick_ = aio_timer_new(*ctx_, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &again_);
            again_.func();
        }
    }
    void TearDown() override
    {
        if (!ctx_) {
            return;
        }
        sigaction(SIGUSR1, &old_, nullptr);
        timer_free(tick_);
        aio_set_event_notifier(*ctx_, &shared_.notifier, nullptr, nullptr, nullptr);
        event_notifier_cleanup(&shared_.notifier);
        qemu_bh_delete(shared_.bh);
        qemu_bh_delete(shared_.idle);
        qemu_bh_delete(shared_.cancelled);
    }
    /* Polls, blocking, until everything that @tickets handlers have scheduled or set has been seen.
     * A lost wake-up lets it hang. */
    void PollUntilSeen(int64_t tickets)
    {
        Shared *s = &shared_;

        while (s->bh_saw < tickets || s->idle_saw < tickets || s->fd_saw < tickets) {
            aio_poll(*ctx_, true);
        }
    }
    void ExpectNothingLeft()
    {
        Shared *s = &shared_;

        EXPECT_EQ(s->lost_errno, 0);
        EXPECT_EQ(event_notifier_test_and_clear(&s->notifier), 0);
        aio_poll(*ctx_, false);
        EXPECT_EQ(s->bh_saw, s->tickets);
    }

    std::unique_ptr<ScopedContext> ctx_;
    Shared shared_;

private:
    static void OnNotifier(EventNotifier *e)
    {
        event_notifier_test_and_clear(e);
        shared->fd_saw = shared->tickets.load();
    }

    struct sigaction old_ = {};
    QEMUTimer *tick_ = nullptr;
    Call bh_{ [this] { shared_.bh_saw = shared_.tickets.load(); } };
    Call idle_{ [this] { shared_.idle_saw = shared_.tickets.load(); } };
    Call nothing_{ [] {
    } }; /* it may run: a later handler's scheduling may come before the cancel */
    Call again_{ [this] { timer_mod(tick_, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + SCALE_MS); } };
};
ON_EACH_MONITOR(Signals);

/* Signals come while the loop sleeps, wakes, dispatches and goes to sleep.  After each one, or a
 * few, the sender waits: nobody but its handler is to end the sleep. */
TEST_P(Signals, HandlersOnTheHomeThreadLoseNothing)
{
    const int rounds = kSanitized ? 200 : 1000;
    pthread_t home = pthread_self();
    std::atomic<bool> stop{ false };
    std::thread sender([&] {
        for (int i = 0; i < rounds; i++) {
            int64_t before = shared->tickets;

            for (volatile int spin = 0; spin < i % 700; spin = spin + 1) {
            }
            for (int k = 0; k <= i % 3; k++) {
                pthread_kill(home, SIGUSR1);
            }
            for (int turn = 1;
                 shared->tickets == before || shared->bh_saw < shared->tickets ||
                 shared->fd_saw < shared->tickets || shared->poll_saw < shared->tickets;
                 turn++) {
                if (kSignalsAreHeldBack && turn % 20000 == 0) {
                    pthread_kill(home, SIGUSR1);
                }
                std::this_thread::yield();
            }
        }
        stop = true;
        aio_notify(*ctx_);
    });

    while (!stop) {
        aio_poll(*ctx_, true);
        shared->poll_saw = shared->tickets.load(); /* a handler that comes now ends the next one */
    }
    sender.join();
    EXPECT_GE(shared->tickets, rounds);
    PollUntilSeen(shared->tickets);
    ExpectNothingLeft();
}

/* By the clock: they interrupt the loop in the midst of everything, also of its own calls of the
 * same functions. */
TEST_P(Signals, HandlersAtAnyPointLoseNothing)
{
    const int64_t wanted = kSanitized ? 200 : 2000;
    struct sigevent event = {};
    struct itimerspec every = {};
    timer_t clock;

    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGUSR1;
    event._sigev_un._tid = gettid();
    every.it_interval.tv_nsec = every.it_value.tv_nsec = 17000;
    ASSERT_EQ(timer_create(CLOCK_MONOTONIC, &event, &clock), 0);
    ASSERT_EQ(timer_settime(clock, 0, &every, nullptr), 0);
    for (int i = 0; shared->tickets < wanted; i++) {
        if (i % 4) {
            qemu_bh_schedule(shared->bh);
            qemu_bh_schedule(shared->cancelled);
            qemu_bh_cancel(shared->cancelled);
            event_notifier_set(&shared->notifier);
        }
        aio_poll(*ctx_, i % 3 != 0);
    }
    ASSERT_EQ(timer_delete(clock), 0);
    PollUntilSeen(shared->tickets);
    ExpectNothingLeft();
}

/* The threads that are interrupted are in the midst of the same calls, for the same objects. */
TEST_P(Signals, HandlersOnOtherThreadsLoseNothing)
{
    const int64_t wanted = kSanitized ? 300 : 3000;
    const int n = 2;
    std::atomic<bool> stop{ false };
    std::atomic<int> ready{ 0 };
    std::vector<std::thread> threads;
    pthread_t ids[n];

    for (int t = 0; t < n; t++) {
        threads.emplace_back([&, t] {
            ids[t] = pthread_self();
            ready++;
            for (unsigned i = 0; !stop; i++) {
                shared->tickets++;
                qemu_bh_schedule(shared->bh);
                qemu_bh_schedule_idle(shared->idle);
                event_notifier_set(&shared->notifier);
                aio_notify(*ctx_);
                if (i % 8 == 0) {
                    std::this_thread::yield();
                }
            }
        });
    }
    std::thread sender([&] {
        while (ready < n) {
            std::this_thread::yield();
        }
        for (int64_t i = 0; i < wanted; i++) {
            pthread_kill(ids[i % n], SIGUSR1);
            if (i % 64 == 0) {
                std::this_thread::yield();
            }
        }
        stop = true;
        aio_notify(*ctx_);
    });
    while (!stop) {
        aio_poll(*ctx_, true);
    }
    sender.join();
    for (std::thread &t : threads) {
        t.join();
    }
    PollUntilSeen(shared->tickets);
    ExpectNothingLeft();
}

/* A thread that no context belongs to, which the signal finds in its very first moments, or in
 * none of the library's calls at all. */
TEST_P(Signals, HandlersOnThreadsThatAreNewToTheLibraryLoseNothing)
{
    for (int i = 0; i < (kSanitized ? 20 : 100); i++) {
        int64_t before = shared->tickets;
        std::atomic<bool> stop{ false };
        std::thread other([&] {
            while (!stop) {
                usleep(50);
            }
        });

        pthread_kill(other.native_handle(), SIGUSR1);
        while (shared->tickets == before) {
            if (kSignalsAreHeldBack) { /* and dropped, in a thread's first moments */
                pthread_kill(other.native_handle(), SIGUSR1);
            }
            std::this_thread::yield();
        }
        PollUntilSeen(shared->tickets);
        stop = true;
        other.join();
        PollUntilSeen(shared->tickets); /* of those that were sent again */
    }
    ExpectNothingLeft();
}

/* Signals alone, whose handlers do nothing, are no progress and no error, and let nothing stop. */
TEST_P(Signals, ThoseThatAskForNothingOnlyEndSleeps)
{
    struct sigaction sa = {}, was;
    static std::atomic<int> caught;
    pthread_t home = pthread_self();
    std::atomic<bool> stop{ false };

    caught = 0;
    sa.sa_handler = [](int) { caught++; };
    sigaction(SIGUSR2, &sa, &was);
    aio_context_set_precise(*ctx_, 0);
    aio_poll(*ctx_, false);
    std::thread sender([&] {
        while (caught < (kSanitized ? 50 : 500)) {
            pthread_kill(home, SIGUSR2);
            usleep(20);
        }
        stop = true;
        aio_notify(*ctx_);
    });
    while (!stop) {
        bool progress = aio_poll(*ctx_, true);
        EXPECT_TRUE(!progress || kSignalsAreHeldBack);
    }
    sender.join();
    sigaction(SIGUSR2, &was, nullptr);
    AioContextStats stats = ctx_->Stats();
    EXPECT_EQ(stats.sleeps, stats.wakeups_notify + stats.wakeups_timeout + stats.wakeups_event +
                                stats.wakeups_signal);
}
