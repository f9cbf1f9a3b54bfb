/* SPDX-License-Identifier: MIT */
/* Reads of timers and lists that take no lock, beside writers; the two traps of
 * a sorted list. */
#include "support.h"

#include <cstring>
#include <random>
#include <thread>

#define _Noreturn [[noreturn]]
extern "C" {
#include "timers/list_int.h"
}

static int64_t RealNow()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

TEST(TimerReader, ReadersAreNotDelayedByAWriterThatHoldsTheLock)
{
    TestGroup g;
    QEMUTimerList *tl = g.list();
    HeapTimer t(&g.tlg, [] {});
    std::atomic<bool> done{ false };

    timer_mod(t, RealNow() + INT64_C(3600000) * SCALE_MS);
    list_lock(&tl->lock);
    std::thread reader([&] {
        EXPECT_TRUE(timerlist_has_timers(tl));
        EXPECT_FALSE(timerlist_expired(tl));
        EXPECT_GT(timerlist_deadline_ns(tl), 0);
        EXPECT_GT(timerlistgroup_deadline_ns(&g.tlg), 0);
        EXPECT_GT(qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL), 0);
        EXPECT_TRUE(timer_pending(t));
        EXPECT_FALSE(timer_expired(t, 0));
        EXPECT_GT(timer_expire_time_ns(t), 0);
        EXPECT_EQ(timerlist_walk(
                      tl, [](const QEMUTimerInfo *, void *) { return true; }, nullptr),
                  1u);
        EXPECT_FALSE(timerlist_run_timers(tl)) << "nothing is due";
        done = true;
    });
    EXPECT_TRUE(WaitUntil([&] { return done.load(); }));
    list_unlock(&tl->lock);
    reader.join();
}

/* A timer that is moved, and never fires, is armed for one of its deadlines at
 * any moment. */
TEST(TimerReader, MoveIsNeverSeenAsNotArmed)
{
    constexpr int kRounds = kSanitized ? 5000 : 200000;
    const int64_t early = INT64_MAX / 4, late = INT64_MAX / 2;
    TestGroup g;
    HeapTimer t(&g.tlg, [] {});
    std::atomic<bool> stop{ false };
    std::atomic<int64_t> wrong{ 0 };

    timer_mod(t, late);
    RunThreads(2, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                timer_mod_anticipate(t, early);
                timer_mod(t, late);
            }
            stop = true;
        }
        while (!stop) {
            int64_t ns = timer_expire_time_ns(t);

            if ((ns != early && ns != late) || !timer_pending(t) ||
                !timerlist_has_timers(g.list())) {
                wrong = ns;
            }
        }
    });
    EXPECT_EQ(wrong, 0);
}

/* A loop that sleeps by timerlist_deadline_ns() and is woken by notify_cb
 * alone. */
class SleepingLoop
{
public:
    SleepingLoop()
    {
        EXPECT_EQ(event_notifier_init(&wake_, 0), 0);
        tl_ = timerlist_new(
            QEMU_CLOCK_REALTIME,
            [](void *opaque, QEMUClockType) {
                event_notifier_set(&static_cast<SleepingLoop *>(opaque)->wake_);
            },
            this);
        group.tl[QEMU_CLOCK_REALTIME] = tl_;
        thread_ = std::thread([this] {
            while (!stop_) {
                struct pollfd pfd = { event_notifier_get_fd(&wake_), POLLIN, 0 };

                qemu_poll_ns(&pfd, 1, timerlist_deadline_ns(tl_));
                event_notifier_test_and_clear(&wake_);
                timerlist_run_timers(tl_);
            }
        });
    }
    ~SleepingLoop()
    {
        stop_ = true;
        event_notifier_set(&wake_);
        thread_.join();
        timerlist_free(tl_);
        aio_synchronize_rcu();
        event_notifier_cleanup(&wake_);
    }

    QEMUTimerListGroup group = {};

private:
    EventNotifier wake_ = {};
    QEMUTimerList *tl_;
    std::atomic<bool> stop_{ false };
    std::thread thread_;
};

/*
 * The moved head: the head is moved far away while the loop looks at it.  What
 * becomes the head was armed behind it and moves the head only later, so that
 * nobody notifies: the loop must not have taken the moved timer's new deadline
 * for the list's.
 */
TEST(TimerReader, MovedHeadHidesNoOtherTimer)
{
    constexpr int kRounds = kSanitized ? 500 : 5000;
    SleepingLoop loop;
    std::atomic<int> fired{ 0 };
    std::mt19937 rng(1);
    HeapTimer head(&loop.group, [] {}), next(&loop.group, [&] { fired++; });

    for (int n = 0; n < kRounds; n++) {
        int64_t now = RealNow();

        timer_mod(head, now + 40000 + rng() % 20000);
        timer_mod(next, now + 90000 + rng() % 20000);
        while (RealNow() < now + static_cast<int64_t>(rng() % 60000)) {
        }
        timer_mod(head, now + INT64_C(3600000) * SCALE_MS);
        ASSERT_TRUE(WaitUntil([&] { return fired > n; }, 20)) << "slept past it in round " << n;
    }
    EXPECT_EQ(fired, kRounds);
}

/* A timer that is armed for an hour from now, and reads of its list beside
 * whatever else is there. */
class DeadlineReader
{
public:
    DeadlineReader() : stays_(&g.tlg, [] {})
    {
        timer_mod(stays_, at);
    }
    /* Until @stop: no read is later than the timer, nor earlier than @head_ns
   * before it. */
    void Run(const std::atomic<bool> &stop, int64_t head_ns)
    {
        while (!stop) {
            int64_t most = at - RealNow();
            int64_t told[] = {
                timerlist_deadline_ns(g.list()),
                timerlistgroup_deadline_ns(&g.tlg),
                qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL),
            };
            int64_t least = at - head_ns - RealNow();

            for (int64_t ns : told) {
                late += ns > most;
                early += ns < least;
            }
            reads++;
        }
    }

    const int64_t at = RealNow() + INT64_C(3600000) * SCALE_MS;
    TestGroup g;
    std::atomic<int64_t> late{ 0 }, early{ 0 }, reads{ 0 };

private:
    HeapTimer stays_;
};

/* Enough for the two threads to have met, however they are scheduled. */
constexpr int kReads = kSanitized ? 20000 : 400000;

/* The moved head, seen closer: what is read is a deadline that stood for the
 * head. */
TEST(TimerReader, MovedHeadIsNotReadForTheNext)
{
    constexpr int kMoves = kSanitized ? 20000 : 300000;
    DeadlineReader reader;
    HeapTimer head(&reader.g.tlg, [] {});
    std::atomic<bool> stop{ false };

    RunThreads(2, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kMoves || reader.reads < kReads; n++) {
                timer_mod(head, reader.at - 1000);
                if (n % 4 == 0) {
                    timer_del(head);
                } else {
                    timer_mod(head, reader.at + INT64_C(3600000) * SCALE_MS);
                }
            }
            stop = true;
        } else {
            reader.Run(stop, 1000);
        }
    });
    EXPECT_EQ(reader.late, 0) << "the moved timer's new deadline was taken for the list's";
    EXPECT_EQ(reader.early, 0);
}

/*
 * The embedded head: its owner deinits it and uses the memory for something
 * else, either on the spot, where it goes on being read as a deadline far away
 * or long past, or after giving it back, where AddressSanitizer sees it.
 */
TEST(TimerReader, ReadersNeverLookIntoReusedMemory)
{
    constexpr int kRounds = kSanitized ? 5000 : 300000;
    DeadlineReader reader;
    std::atomic<bool> stop{ false };
    QEMUTimer kept;

    RunThreads(2, [&](int i) {
        if (i > 0) {
            reader.Run(stop, 1000);
            return;
        }
        for (int n = 0; n < kRounds || reader.reads < kReads; n++) {
            QEMUTimer *ts = n % 2 ? &kept : new QEMUTimer;

            timer_init_full(
                ts, &reader.g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, [](void *) {}, nullptr);
            timer_mod(ts, reader.at - 1000);
            timer_deinit(ts);
            memset(static_cast<void *>(ts), n / 2 % 4 ? 0x25 : 0xa5, sizeof(*ts));
            if (ts != &kept) {
                delete ts;
            }
        }
        stop = true;
    });
    EXPECT_EQ(reader.late, 0) << "what lies in the memory now was taken for a deadline";
    EXPECT_EQ(reader.early, 0) << "what lies in the memory now was taken for a deadline";
}

TEST(TimerReader, WalkSeesOnlyTimersThatAreThere)
{
    constexpr int kRounds = kSanitized ? 2000 : 20000;
    TestGroup g;
    std::atomic<bool> stop{ false };
    HeapTimer stays(&g.tlg, [] {});

    timer_set_name(stays, "stays");
    RunThreads(3, [&](int i) {
        if (i < 2) {
            for (int n = 0; n < kRounds; n++) {
                HeapTimer t(&g.tlg, [] {});

                timer_set_name(t, "goes");
                timer_mod(t, INT64_MAX);
            }
            stop = true;
        }
        while (!stop) {
            int seen = 0;
            unsigned n = timerlist_walk(
                g.list(),
                [](const QEMUTimerInfo *info, void *opaque) {
                    std::string name = info->name ? info->name : "goes";

                    EXPECT_TRUE(name == "goes" || name == "stays") << name;
                    *static_cast<int *>(opaque) += name == "stays";
                    return true;
                },
                &seen);

            EXPECT_GE(n, 1u);
            EXPECT_EQ(seen, 1);
        }
    });
    aio_rcu_barrier();
}
