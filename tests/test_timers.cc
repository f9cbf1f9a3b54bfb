/* SPDX-License-Identifier: MIT */
/* Timers on one thread: arming, moving, cancelling, freeing. */
#include "support.h"

#include <cstddef>
#include <cstring>
#include <memory>

class Timer : public testing::Test
{
protected:
    bool Run()
    {
        return timerlist_run_timers(g.list());
    }
    std::function<void()> Note(int id)
    {
        return [this, id] { order.push_back(id); };
    }

    FakeClock clock;
    TestGroup g;
    std::vector<int> order;
    int fired = 0;
};

/* ---- Layout ---------------------------------------------------------------------------------- */

static_assert(sizeof(QEMUTimer) == 80, "part of the binary interface");
static_assert(offsetof(QEMUTimer, expire_time) == 0, "");
static_assert(offsetof(QEMUTimer, place) == 8, "");
static_assert(offsetof(QEMUTimer, state) == 12, "");
static_assert(offsetof(QEMUTimer, attributes) == 14, "");
static_assert(offsetof(QEMUTimer, timer_list) == 16, "");
static_assert(offsetof(QEMUTimer, seq) == 24, "");
static_assert(offsetof(QEMUTimer, soonest) == 32, "");
static_assert(offsetof(QEMUTimer, next) == 40, "");
static_assert(offsetof(QEMUTimer, prev) == 48, "");
static_assert(offsetof(QEMUTimer, soft_place) == 56, "");
static_assert(offsetof(QEMUTimer, scale) == 60, "");
static_assert(offsetof(QEMUTimer, cb) == 64, "");
static_assert(offsetof(QEMUTimer, opaque) == 72, "");

TEST(TimerLayout, IsAtMost80Bytes)
{
    EXPECT_LE(sizeof(QEMUTimer), 80u);
    EXPECT_EQ(sizeof(QEMUTimerListGroup), QEMU_CLOCK_MAX * sizeof(void *));
}

/* ---- Firing ---------------------------------------------------------------------------------- */

TEST_F(Timer, FiresOncePerArming)
{
    HeapTimer t(&g.tlg, [&] { fired++; });

    EXPECT_TRUE(timer_mod(t, clock.Now() + 10));
    clock.Advance(10);
    EXPECT_TRUE(Run());
    EXPECT_EQ(fired, 1);
    EXPECT_FALSE(Run());
    EXPECT_TRUE(timer_mod(t, clock.Now()));
    EXPECT_TRUE(Run());
    EXPECT_FALSE(Run());
    EXPECT_EQ(fired, 2);
}

TEST_F(Timer, NeverFiresBeforeItsDeadline)
{
    HeapTimer t(&g.tlg, [&] { fired++; });

    timer_mod(t, clock.Now() + 10);
    clock.Advance(9);
    EXPECT_FALSE(Run());
    EXPECT_FALSE(timerlist_expired(g.list()));
    EXPECT_EQ(timerlist_deadline_ns(g.list()), 1);
    EXPECT_EQ(fired, 0);
    clock.Advance(1);
    EXPECT_TRUE(timerlist_expired(g.list()));
    EXPECT_TRUE(Run());
    EXPECT_EQ(fired, 1);
}

TEST_F(Timer, OrderIsExactToTheNanosecond)
{
    HeapTimer a(&g.tlg, Note(1)), b(&g.tlg, Note(2)), c(&g.tlg, Note(3));

    timer_mod(c, clock.Now() + 3);
    timer_mod(a, clock.Now() + 1);
    timer_mod(b, clock.Now() + 2);
    clock.Advance(100);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2, 3 }));
}

TEST_F(Timer, EqualDeadlinesFireInOrderOfArming)
{
    std::vector<std::unique_ptr<HeapTimer>> t;

    for (int i = 0; i < 20; i++) {
        t.push_back(std::make_unique<HeapTimer>(&g.tlg, Note(i), QEMU_CLOCK_REALTIME, SCALE_NS,
                                                i % 3 ? 0 : QEMU_TIMER_ATTR_EXTERNAL));
    }
    for (int i = 19; i >= 0; i--) {
        timer_mod(*t[i], clock.Now());
    }
    timer_mod(*t[19], clock.Now()); /* arming again makes it the last */
    Run();
    ASSERT_EQ(order.size(), 20u);
    for (int i = 0; i < 19; i++) {
        EXPECT_EQ(order[i], 18 - i);
    }
    EXPECT_EQ(order[19], 19);
}

TEST_F(Timer, DeadlineBelowZeroCountsAsZero)
{
    HeapTimer t(&g.tlg, Note(1)), u(&g.tlg, Note(2));

    EXPECT_TRUE(timer_mod(t, INT64_MIN));
    EXPECT_EQ(timer_expire_time_ns(t), 0);
    EXPECT_TRUE(timer_mod_ns(u, -1));
    EXPECT_EQ(timer_expire_time_ns(u), 0);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 2 }));
}

TEST_F(Timer, DeadlinesSaturate)
{
    HeapTimer ns(&g.tlg, [] {}), ms(
                                     &g.tlg, [] {}, QEMU_CLOCK_REALTIME, SCALE_MS);

    timer_mod(ns, INT64_MAX);
    EXPECT_EQ(timer_expire_time_ns(ns), INT64_MAX - 1);
    timer_mod_ns(ns, INT64_MAX);
    EXPECT_EQ(timer_expire_time_ns(ns), INT64_MAX - 1);
    timer_mod(ms, INT64_MAX);
    EXPECT_EQ(timer_expire_time_ns(ms), INT64_MAX - 1);
    timer_mod(ms, INT64_MAX / SCALE_MS + 1);
    EXPECT_EQ(timer_expire_time_ns(ms), INT64_MAX - 1);
    timer_mod(ms, INT64_MAX / SCALE_MS);
    EXPECT_EQ(timer_expire_time_ns(ms), INT64_MAX / SCALE_MS * SCALE_MS);
    EXPECT_EQ(timerlist_deadline_ns(g.list()), INT64_MAX / SCALE_MS * SCALE_MS - clock.Now());
    EXPECT_TRUE(timer_mod_anticipate(ms, INT64_MIN));
    EXPECT_EQ(timer_expire_time_ns(ms), 0);
}

TEST_F(Timer, ScalesMultiply)
{
    HeapTimer ms(
        &g.tlg, [] {}, QEMU_CLOCK_REALTIME, SCALE_MS);
    HeapTimer us(
        &g.tlg, [] {}, QEMU_CLOCK_REALTIME, SCALE_US);
    HeapTimer odd(
        &g.tlg, [] {}, QEMU_CLOCK_REALTIME, 7);

    timer_mod(ms, 3);
    EXPECT_EQ(timer_expire_time_ns(ms), 3000000);
    timer_mod_ns(ms, 3);
    EXPECT_EQ(timer_expire_time_ns(ms), 3);
    timer_mod(us, 3);
    EXPECT_EQ(timer_expire_time_ns(us), 3000);
    timer_mod(odd, 3);
    EXPECT_EQ(timer_expire_time_ns(odd), 21);
    EXPECT_TRUE(timer_expired(odd, 3));
    EXPECT_FALSE(timer_expired(odd, 2));
    EXPECT_TRUE(timer_mod_anticipate(odd, 2));
    EXPECT_EQ(timer_expire_time_ns(odd), 14);
}

TEST_F(Timer, PendingAndExpired)
{
    HeapTimer t(&g.tlg, [] {});

    EXPECT_FALSE(timer_pending(t));
    EXPECT_FALSE(timer_expired(t, INT64_MAX));
    EXPECT_EQ(timer_expire_time_ns(t), -1);
    timer_mod(t, 500);
    EXPECT_TRUE(timer_pending(t));
    EXPECT_FALSE(timer_expired(t, 499));
    EXPECT_TRUE(timer_expired(t, 500));
    EXPECT_EQ(timer_expire_time_ns(t), 500);
    timer_del(t);
    EXPECT_FALSE(timer_pending(t));
    EXPECT_FALSE(timer_expired(t, INT64_MAX));
}

/* ---- Moving and cancelling ------------------------------------------------------------------- */

TEST_F(Timer, ModMovesAnArmedTimer)
{
    HeapTimer t(&g.tlg, [&] { fired++; });

    timer_mod(t, clock.Now() + 10);
    EXPECT_TRUE(timer_mod(t, clock.Now() + 20));
    clock.Advance(10);
    EXPECT_FALSE(Run());
    EXPECT_TRUE(timer_mod(t, clock.Now() + 5));
    clock.Advance(5);
    EXPECT_TRUE(Run());
    clock.Advance(100);
    EXPECT_FALSE(Run());
    EXPECT_EQ(fired, 1);
}

TEST_F(Timer, AnticipateOnlyMovesEarlier)
{
    HeapTimer t(&g.tlg, [&] { fired++; });

    EXPECT_TRUE(timer_mod_anticipate(t, 1000)) << "it was not armed";
    EXPECT_FALSE(timer_mod_anticipate(t, 1001));
    EXPECT_FALSE(timer_mod_anticipate(t, 1000));
    EXPECT_EQ(timer_expire_time_ns(t), 1000);
    EXPECT_TRUE(timer_mod_anticipate(t, 999));
    EXPECT_EQ(timer_expire_time_ns(t), 999);
    EXPECT_FALSE(timer_mod_anticipate_ns(t, 5000));
    EXPECT_TRUE(timer_mod_anticipate_ns(t, 998));
    EXPECT_EQ(timer_expire_time_ns(t), 998);
}

TEST_F(Timer, DelReturnsWhetherItWasArmed)
{
    HeapTimer t(&g.tlg, [&] { fired++; });

    EXPECT_FALSE(timer_del(t));
    timer_mod(t, clock.Now());
    EXPECT_TRUE(timer_del(t));
    EXPECT_FALSE(timer_del(t));
    EXPECT_FALSE(Run());
    EXPECT_EQ(timer_del_sync(t), 0);
    timer_mod(t, clock.Now());
    EXPECT_EQ(timer_del_sync(t), 1);
    EXPECT_FALSE(Run());
    EXPECT_EQ(fired, 0);
}

/* ---- In the callback ------------------------------------------------------------------------- */

TEST_F(Timer, PendingIsFalseInItsCallback)
{
    bool pending = true, del = true;
    int64_t deadline = 0;
    HeapTimer *p = nullptr;
    HeapTimer t(&g.tlg, [&] {
        pending = timer_pending(*p);
        deadline = timer_expire_time_ns(*p);
        del = timer_del(*p);
    });

    p = &t;
    timer_mod(t, clock.Now());
    EXPECT_TRUE(Run());
    EXPECT_FALSE(pending);
    EXPECT_EQ(deadline, -1);
    EXPECT_FALSE(del);
}

TEST_F(Timer, CallbackMayArmItsTimer)
{
    HeapTimer *p = nullptr;
    HeapTimer t(&g.tlg, [&] {
        if (++fired < 3) {
            EXPECT_TRUE(timer_mod(*p, clock.Now() + 10));
        }
    });

    p = &t;
    timer_mod(t, clock.Now());
    for (int i = 1; i <= 3; i++) {
        EXPECT_TRUE(Run());
        EXPECT_FALSE(Run());
        EXPECT_EQ(fired, i);
        clock.Advance(10);
    }
    EXPECT_FALSE(Run());
}

TEST_F(Timer, CallbackMayDeleteOthersThatAreDue)
{
    HeapTimer b(&g.tlg, Note(2)), c(&g.tlg, Note(3));
    HeapTimer a(&g.tlg, [&] {
        order.push_back(1);
        EXPECT_TRUE(timer_del(b));
    });

    timer_mod(a, 1);
    timer_mod(b, 2);
    timer_mod(c, 3);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 3 }));
}

TEST_F(Timer, CallbackMayMoveOthersThatAreDue)
{
    HeapTimer b(&g.tlg, Note(2)), c(&g.tlg, Note(3));
    HeapTimer a(&g.tlg, [&] {
        order.push_back(1);
        EXPECT_TRUE(timer_mod(b, clock.Now() + 100));
    });

    timer_mod(a, 1);
    timer_mod(b, 2);
    timer_mod(c, 3);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 3 }));
    EXPECT_EQ(timer_expire_time_ns(b), clock.Now() + 100);
}

TEST_F(Timer, AnticipateOfADueTimerKeepsItInThePass)
{
    HeapTimer b(&g.tlg, Note(2)), c(&g.tlg, Note(3));
    HeapTimer a(&g.tlg, [&] {
        order.push_back(1);
        EXPECT_FALSE(timer_mod_anticipate(c, 200));
        EXPECT_TRUE(timer_mod_anticipate(c, 1));
    });

    timer_mod(a, 1);
    timer_mod(b, 2);
    timer_mod(c, 3);
    EXPECT_TRUE(Run());
    EXPECT_EQ(order, (std::vector<int>{ 1, 3, 2 }));
}

TEST_F(Timer, CallbackMayFreeItsTimer)
{
    bool armed_after = true;
    HeapTimer *p = nullptr;
    HeapTimer t(&g.tlg, [&] {
        QEMUTimer *ts = *p;

        fired++;
        p->Free();
        armed_after = timer_mod(ts, 0) || timer_mod_anticipate(ts, 0) || timer_pending(ts);
    });

    p = &t;
    timer_mod(t, clock.Now());
    EXPECT_TRUE(Run());
    EXPECT_FALSE(Run());
    EXPECT_EQ(fired, 1);
    EXPECT_FALSE(armed_after);
}

/* ---- Freeing --------------------------------------------------------------------------------- */

TEST_F(Timer, FreeDisarms)
{
    HeapTimer t(&g.tlg, [&] { fired++; });

    timer_mod(t, clock.Now());
    t.Free();
    EXPECT_FALSE(timerlist_has_timers(g.list()));
    EXPECT_FALSE(Run());
    timer_free(nullptr);
    EXPECT_EQ(fired, 0);
}

TEST_F(Timer, DeadTimerIsNeverArmedAgain)
{
    HeapTimer t(&g.tlg, [&] { fired++; });
    QEMUTimer *ts = t;

    timer_mod(t, clock.Now());
    aio_rcu_read_lock();
    t.Free();
    EXPECT_FALSE(timer_mod(ts, 0));
    EXPECT_FALSE(timer_mod_ns(ts, 0));
    EXPECT_FALSE(timer_mod_anticipate(ts, 0));
    EXPECT_FALSE(timer_mod_anticipate_ns(ts, 0));
    EXPECT_FALSE(timer_del(ts));
    EXPECT_FALSE(timer_pending(ts));
    EXPECT_EQ(timer_expire_time_ns(ts), -1);
    EXPECT_FALSE(timerlist_has_timers(g.list()));
    aio_rcu_read_unlock();
    EXPECT_FALSE(Run());
    EXPECT_EQ(fired, 0);
}

TEST_F(Timer, ModOnAClosedListReturnsFalse)
{
    HeapTimer t(&g.tlg, [&] { fired++; });
    HeapTimer u(&g.tlg, [&] { fired++; });

    timer_mod(t, clock.Now());
    g.Close();
    EXPECT_FALSE(timer_pending(t)) << "closing disarms";
    EXPECT_FALSE(timer_mod(t, 0));
    EXPECT_FALSE(timer_mod_anticipate(t, 0));
    EXPECT_FALSE(timer_del(t));
    EXPECT_EQ(timer_del_sync(u), 0);
    EXPECT_EQ(fired, 0);
}

/* ---- Embedded timers ------------------------------------------------------------------------- */

static void CountUp(void *opaque)
{
    ++*static_cast<int *>(opaque);
}

TEST_F(Timer, EmbeddedTimerFires)
{
    QEMUTimer ts;

    memset(&ts, 0xff, sizeof(ts)); /* init does not need zeroes */
    timer_init_full(&ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, CountUp, &fired);
    EXPECT_FALSE(timer_pending(&ts));
    timer_mod(&ts, clock.Now());
    EXPECT_TRUE(Run());
    EXPECT_EQ(fired, 1);
    timer_deinit(&ts);
}

TEST_F(Timer, DeinitDisarmsAndNeverTouchesItAgain)
{
    auto mem = std::make_unique<std::array<unsigned char, sizeof(QEMUTimer)>>();
    QEMUTimer *ts = reinterpret_cast<QEMUTimer *>(mem->data());
    HeapTimer before(&g.tlg, [] {}), after(&g.tlg, [] {});

    for (int round = 0; round < 2; round++) {
        timer_init_full(ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, CountUp, &fired);
        timer_mod(ts, clock.Now() + 50);
        timer_mod(before, clock.Now() + 40);
        timer_mod(after, clock.Now() + 60);
        if (round) {
            EXPECT_EQ(timer_deinit_sync(ts), 0);
        } else {
            timer_deinit(ts);
        }
        mem->fill(0xa5);
        timer_mod(before, clock.Now() + 70);
        timer_del(after);
        clock.Advance(1000);
        EXPECT_TRUE(Run());
        for (unsigned char c : *mem) {
            EXPECT_EQ(c, 0xa5);
        }
    }
    EXPECT_EQ(fired, 0);
}

TEST_F(Timer, DeinitOfAZeroedOrReleasedTimerDoesNothing)
{
    QEMUTimer ts = {};

    timer_deinit(&ts);
    EXPECT_EQ(timer_deinit_sync(&ts), 0);
    EXPECT_FALSE(timer_pending(&ts));
    timer_init_full(&ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0, CountUp, &fired);
    timer_deinit(&ts);
    timer_deinit(&ts);
    EXPECT_FALSE(timer_pending(&ts));
}

struct Owner {
    QEMUTimer ts;
    bool *ran;
};

TEST_F(Timer, CallbackMayDeinitAndFreeItsOwner)
{
    bool ran = false;
    Owner *o = new Owner{ {}, &ran };

    timer_init_full(
        &o->ts, &g.tlg, QEMU_CLOCK_REALTIME, SCALE_NS, 0,
        [](void *opaque) {
            Owner *me = static_cast<Owner *>(opaque);

            *me->ran = true;
            timer_deinit(&me->ts);
            memset(&me->ts, 0xa5, sizeof(me->ts));
            delete me;
        },
        o);
    timer_mod(&o->ts, clock.Now());
    EXPECT_TRUE(Run());
    EXPECT_TRUE(ran);
    EXPECT_FALSE(Run());
}

TEST_F(Timer, ShortInitFormsUseTheMainLoopsLists)
{
    QEMUTimer ns = {}, us = {}, ms = {}, any = {};

    timer_init_ns(&ns, QEMU_CLOCK_REALTIME, CountUp, &fired);
    timer_init_us(&us, QEMU_CLOCK_REALTIME, CountUp, &fired);
    timer_init_ms(&ms, QEMU_CLOCK_REALTIME, CountUp, &fired);
    timer_init(&any, QEMU_CLOCK_REALTIME, 5, CountUp, &fired);
    timer_mod(&ns, 2);
    timer_mod(&us, 2);
    timer_mod(&ms, 2);
    timer_mod(&any, 2);
    EXPECT_EQ(timer_expire_time_ns(&ns), 2);
    EXPECT_EQ(timer_expire_time_ns(&us), 2 * SCALE_US);
    EXPECT_EQ(timer_expire_time_ns(&ms), 2 * SCALE_MS);
    EXPECT_EQ(timer_expire_time_ns(&any), 10);
    clock.Set(10 * SCALE_MS);
    EXPECT_TRUE(qemu_clock_run_timers(QEMU_CLOCK_REALTIME));
    EXPECT_EQ(fired, 4);
    for (QEMUTimer *t : { &ns, &us, &ms, &any }) {
        timer_deinit(t);
    }
}

TEST_F(Timer, ShortNewFormsUseTheMainLoopsLists)
{
    QEMUTimer *t[] = { timer_new_ns(QEMU_CLOCK_REALTIME, CountUp, &fired),
                       timer_new_us(QEMU_CLOCK_REALTIME, CountUp, &fired),
                       timer_new_ms(QEMU_CLOCK_REALTIME, CountUp, &fired),
                       timer_new(QEMU_CLOCK_REALTIME, 5, CountUp, &fired) };
    int64_t ns[] = { 2, 2 * SCALE_US, 2 * SCALE_MS, 10 };

    for (int i = 0; i < 4; i++) {
        timer_mod(t[i], 2);
        EXPECT_EQ(timer_expire_time_ns(t[i]), ns[i]);
    }
    clock.Set(10 * SCALE_MS);
    EXPECT_TRUE(qemu_clock_run_timers(QEMU_CLOCK_REALTIME));
    EXPECT_EQ(fired, 4);
    for (QEMUTimer *ts : t) {
        timer_free(ts);
    }
}

/* ---- Misuse ---------------------------------------------------------------------------------- */

TEST(TimerDeathTest, SecondFreeAborts)
{
    TestGroup g;

    EXPECT_DEATH(
        {
            QEMUTimer *ts = timer_new_full(&g.tlg, QEMU_CLOCK_REALTIME, 1, 0, CountUp, nullptr);
            aio_rcu_read_lock();
            timer_free(ts);
            timer_free(ts);
        },
        "aioctx: timer_free: ");
}

TEST(TimerDeathTest, FreeOfAnEmbeddedTimerAborts)
{
    TestGroup g;
    QEMUTimer ts = {};

    timer_init_full(&ts, &g.tlg, QEMU_CLOCK_REALTIME, 1, 0, CountUp, nullptr);
    EXPECT_DEATH(timer_free(&ts), "aioctx: timer_free: ");
    timer_deinit(&ts);
}

TEST(TimerDeathTest, ModAfterDeinitAborts)
{
    QEMUTimer ts = {};

    EXPECT_DEATH(timer_mod(&ts, 1), "aioctx: timer_mod: ");
}

TEST(TimerDeathTest, WaitingInsideAReadSectionAborts)
{
    TestGroup g;
    HeapTimer t(&g.tlg, [] {});

    EXPECT_DEATH(
        {
            aio_rcu_read_lock();
            timer_del_sync(t);
        },
        "aioctx: timer_del_sync: ");
    EXPECT_DEATH(
        {
            aio_rcu_read_lock();
            qemu_clock_enable(QEMU_CLOCK_HOST, false);
        },
        "aioctx: qemu_clock_enable: ");
}
