/* SPDX-License-Identifier: MIT */
/* What the tests of adaptive busy polling share: polled handlers, and a context that polls. */
#ifndef TESTS_POLLING_SUPPORT_H
#define TESTS_POLLING_SUPPORT_H

#include "loop_support.h"

#include <memory>
#include <thread>

const int64_t kHour = INT64_C(3600000000000);

inline int64_t Now()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* A notifier with a polling handler, made of functions. */
class Polled
{
public:
    explicit Polled(AioContext *ctx) : ctx_(ctx)
    {
        EXPECT_EQ(event_notifier_init(&e, 0), 0);
    }
    ~Polled()
    {
        Remove();
        event_notifier_cleanup(&e);
    }
    void Set()
    {
        EXPECT_EQ(
            aio_set_fd_handler(ctx_, event_notifier_get_fd(&e), Read, nullptr, Poll, Ready, this),
            0);
    }
    void SetWithoutIoPoll()
    {
        EXPECT_EQ(aio_set_fd_handler(ctx_, event_notifier_get_fd(&e), Read, nullptr, nullptr,
                                     nullptr, this),
                  0);
    }
    void Remove()
    {
        aio_set_fd_handler(ctx_, event_notifier_get_fd(&e), nullptr, nullptr, nullptr, nullptr,
                           nullptr);
    }

    EventNotifier e;
    std::function<bool()> poll = [] { return false; };
    std::function<void()> ready = [] {};
    std::function<void()> read = [this] { event_notifier_test_and_clear(&e); };
    std::atomic<int> polls{ 0 }, readies{ 0 }, reads{ 0 };

private:
    static bool Poll(void *opaque)
    {
        Polled *p = static_cast<Polled *>(opaque);

        p->polls++;
        return p->poll();
    }
    static void Ready(void *opaque)
    {
        Polled *p = static_cast<Polled *>(opaque);

        p->readies++;
        p->ready();
    }
    static void Read(void *opaque)
    {
        Polled *p = static_cast<Polled *>(opaque);

        p->reads++;
        p->read();
    }

    AioContext *ctx_;
};

/*
 * A context that polls for an hour once it has slept twice; where the processor is contended it
 * pauses.  The beacon's io_poll shows that it polls, and gives up after a time that only a poll
 * which overlooks something reaches.
 */
class PollingContext : public ScopedContext
{
public:
    explicit PollingContext(const char *monitor) : ScopedContext(monitor), beacon(*this)
    {
        EXPECT_EQ(aio_context_set_poll_params(*this, kHour, INT64_MAX, 1), 0);
        beacon.poll = [this] {
            if (Now() > give_up) {
                fprintf(stderr, "the poll has overlooked something\n");
                abort();
            }
            return false;
        };
        beacon.Set();
    }

    /* Sleeps as often as it takes until a poll lasts. */
    void Warm()
    {
        int calls = beacon.polls;
        Call nothing{ [] {} };
        QEMUTimer *ts = aio_timer_new(*this, QEMU_CLOCK_REALTIME, SCALE_NS, Call::Run, &nothing);

        while (beacon.polls < calls + 2) {
            timer_mod(ts, Now() + 100 * SCALE_US);
            aio_poll(*this, true);
        }
        timer_free(ts);
    }

    /* For other threads: returns when a poll is under way. */
    void AwaitPoll()
    {
        int before = beacon.polls;

        while (beacon.polls < before + 2) {
            aio_notify(*this);
            usleep(200);
        }
    }

    /*
     * @trigger, called on another thread while this one polls, must make *@seen count one more, and
     * must come to do so once out of a poll, without a sleep; then, where @is_quiet, also without
     * any notify.  Where the loop sleeps after all, since it is contended, it gets a kick; where it
     * is contended all the time, the test is skipped.
     */
    void SeesWhilePolling(const std::function<void()> &trigger, const std::atomic<int> *seen,
                          bool is_quiet)
    {
        std::atomic<int> round{ 0 };
        std::atomic<bool> kicked{ false };
        int64_t end = Now() + 15 * INT64_C(1000000000);
        std::thread other([&] {
            for (int i = 1;; i++) {
                WaitUntil([&] { return round != i - 1; });
                if (round < 0) {
                    return;
                }
                AwaitPoll();
                int before = *seen;
                trigger();
                for (int ms = 0; *seen == before && round == i; ms++) {
                    usleep(1000);
                    if (ms >= 100) {
                        kicked = true;
                        aio_notify(*this);
                    }
                }
            }
        });
        bool at_once = false;
        int rounds = 0, overlooked = 0;

        for (int i = 1; !at_once && Now() < end; i++) {
            int before = *seen;

            kicked = false;
            rounds++;
            round = i;
            while (*seen == before) {
                AioContextStats s = Stats();

                aio_poll(*this, true);
                AioContextStats t = Stats();
                at_once = !kicked && *seen > before && t.sleeps == s.sleeps && t.polls > s.polls &&
                          t.polls_found > s.polls_found && t.notifies_sent == s.notifies_sent &&
                          (!is_quiet || t.notifies == s.notifies);
                overlooked += kicked && t.sleeps == s.sleeps; /* it polled on */
            }
        }
        round = -1;
        other.join();
        if (!at_once) {
            ASSERT_LE(overlooked, rounds / 2) << "of " << rounds << " rounds";
            GTEST_SKIP() << "other threads had the processor each time";
        }
    }

    Polled beacon;
    int64_t give_up = Now() + 40 * INT64_C(1000000000);
};

#endif
