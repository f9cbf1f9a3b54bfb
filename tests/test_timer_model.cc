/* SPDX-License-Identifier: MIT */
/* Random operations on one list against a plain sorted model, with callbacks that operate too. */
#include "support.h"

#include <map>
#include <memory>
#include <random>
#include <set>

/*
 * The model: armed timers by (deadline, order of arming), and a pass that takes the first
 * TIMERLIST_BUDGET due ones.  A callback of timer i decides by its own random numbers what it does,
 * and does it to both.
 */
class TimerModel : public testing::TestWithParam<int>
{
protected:
    using Key = std::pair<int64_t, uint64_t>;
    static constexpr int kTimers = 400;

    TimerModel() : rng(GetParam())
    {
        for (int i = 0; i < kTimers; i++) {
            timers.push_back(std::make_unique<HeapTimer>(
                &g.tlg, [this, i] { Fired(i); }, QEMU_CLOCK_REALTIME, SCALE_NS,
                i % 5 ? 0 : QEMU_TIMER_ATTR_EXTERNAL));
        }
    }

    void ModelRemove(int i)
    {
        armed.erase({ at[i], i });
        order.erase(key[i]);
        due.erase(i);
    }

    void ModelArm(int i, int64_t deadline)
    {
        if (at.count(i)) {
            ModelRemove(i);
        }
        at[i] = deadline;
        key[i] = { deadline, ++seq };
        order[key[i]] = i;
        armed.insert({ deadline, i });
    }

    void ModelDel(int i)
    {
        if (at.count(i)) {
            ModelRemove(i);
            at.erase(i);
        }
    }

    int64_t RandomDeadline()
    {
        switch (rng() % 8) {
        case 0:
            return clock.Now() - static_cast<int64_t>(rng() % 1000);
        case 1:
            return clock.Now() + 30000; /* fixed timeouts, in rising order */
        case 2:
            return clock.Now() + static_cast<int64_t>(rng() % 4);
        case 3:
            return INT64_MAX - static_cast<int64_t>(rng() % 2);
        default:
            return clock.Now() + static_cast<int64_t>(rng() % 20000);
        }
    }

    /* What the library makes of it. */
    static int64_t Effective(int64_t ns)
    {
        return ns < 0 ? 0 : ns > INT64_MAX - 1 ? INT64_MAX - 1 : ns;
    }

    void Operate(int i)
    {
        int64_t deadline = RandomDeadline(), ns = Effective(deadline);
        bool was_armed = at.count(i);

        ops++;
        switch (rng() % 6) {
        case 0:
        case 1:
        case 2:
            ASSERT_TRUE(timer_mod(*timers[i], deadline));
            ModelArm(i, ns);
            break;
        case 3:
        case 4: {
            bool moves = !was_armed || ns < at[i], stays_due = moves && due.count(i);

            ASSERT_EQ(timer_mod_anticipate(*timers[i], deadline), moves);
            if (moves) {
                ModelArm(i, ns);
                if (stays_due) {
                    due.insert(i);
                }
            }
            break;
        }
        default:
            ASSERT_EQ(timer_del(*timers[i]), was_armed);
            ModelDel(i);
            break;
        }
        ASSERT_EQ(timer_expire_time_ns(*timers[i]), at.count(i) ? at[i] : -1);
    }

    /* The first of what this pass has taken on. */
    int FirstDue() const
    {
        int best = -1;

        for (int i : due) {
            if (best < 0 || key.at(i) < key.at(best)) {
                best = i;
            }
        }
        return best;
    }

    void Fired(int i)
    {
        ASSERT_EQ(i, FirstDue()) << "fired out of turn";
        ASSERT_LE(at[i], clock.Now());
        ASSERT_FALSE(timer_pending(*timers[i]));
        ModelDel(i);
        fired++;
        for (int n = rng() % 3; n > 0; n--) {
            Operate(rng() % 2 ? i : rng() % kTimers);
        }
    }

    void Pass()
    {
        for (auto it = order.begin();
             it != order.end() && due.size() < TIMERLIST_BUDGET && it->first.first <= clock.Now();
             ++it) {
            due.insert(it->second);
        }
        bool any = !due.empty();

        ASSERT_EQ(timerlist_run_timers(g.list()), any);
        ASSERT_TRUE(due.empty()) << due.size() << " due timers did not fire";
    }

    void Check()
    {
        int64_t expected = -1;

        if (!armed.empty()) {
            expected = std::max<int64_t>(armed.begin()->first - clock.Now(), 0);
        }
        ASSERT_EQ(timerlist_deadline_ns(g.list()), expected);
        ASSERT_EQ(timerlist_has_timers(g.list()), !armed.empty());
        ASSERT_EQ(timerlist_expired(g.list()), expected == 0);
    }

    std::mt19937_64 rng;
    FakeClock clock;
    TestGroup g;
    std::vector<std::unique_ptr<HeapTimer>> timers;
    std::map<int, int64_t> at;
    std::map<int, Key> key;
    std::map<Key, int> order;
    std::set<std::pair<int64_t, int>> armed;
    std::set<int> due;
    uint64_t seq = 0, ops = 0, fired = 0;
};
INSTANTIATE_TEST_SUITE_P(Seeds, TimerModel, testing::Range(1, 6));

TEST_P(TimerModel, AgreesOnEveryResultAndEveryFiring)
{
    const uint64_t kOps = kSanitized ? 30000 : 100000;

    while (ops < kOps && !HasFatalFailure()) {
        Operate(rng() % kTimers);
        if (HasFatalFailure()) {
            break;
        }
        if (rng() % 4 == 0) {
            clock.Advance(rng() % 300);
            Pass();
        }
        if (!HasFatalFailure()) {
            Check();
        }
    }
    EXPECT_GE(fired, kOps / 20) << "the test tests something";
}
