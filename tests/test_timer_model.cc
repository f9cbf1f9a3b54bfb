/* SPDX-License-Identifier: MIT */
/*
 * Random operations on one list against a plain sorted list, with callbacks
 * that operate, run nested passes, free their timers and disable the clock.
 *
 * The model is an array of the armed timers, sorted by (latest, order of
 * arming).  A pass marks what it takes on, and must fire exactly that, in that
 * order.  Everything that the interface says of the list is compared after
 * every operation.
 */
#include "support.h"

#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <tuple>

namespace
{

constexpr int kMaxTimers = 400;
constexpr int64_t kNever = INT64_MAX - 1;

struct Model;

struct ModelTimer {
    Model *model;
    int index;
    QEMUTimer *ts;
    bool embedded;
    int attributes, scale;
    uint64_t life; /* counts what timer_free() and timer_deinit() ended */
    int running;   /* callbacks of this life on the stack */

    bool armed, due;
    int64_t soonest, latest;
    uint64_t seq;
    int64_t last; /* the deadline it fired for or was deleted at; -1: none */
};

bool Before(const ModelTimer *a, const ModelTimer *b)
{
    return a->latest < b->latest || (a->latest == b->latest && a->seq < b->seq);
}

struct Model {
    Model(uint64_t seed, int count) : rng(seed), count(count)
    {
        for (int i = 0; i < count; i++) {
            Make(i);
        }
    }

    ~Model()
    {
        qemu_clock_enable(QEMU_CLOCK_REALTIME, true);
        for (int i = 0; i < count; i++) {
            Release(&t[i]);
        }
        aio_rcu_barrier();
    }

    /* ---- Lives ------------------------------------------------------------------------------ */

    void Make(int i)
    {
        static const int scales[] = { SCALE_NS, SCALE_NS, 100, SCALE_US };

        t[i] = ModelTimer{};
        t[i].model = this;
        t[i].index = i;
        t[i].last = -1;
        t[i].life = ++lives;
        t[i].attributes = rng() % 4 ? 0 : QEMU_TIMER_ATTR_EXTERNAL;
        t[i].scale = scales[rng() % 4];
        t[i].embedded = rng() % 2;
        if (t[i].embedded) {
            t[i].ts = new QEMUTimer;
            timer_init_full(t[i].ts, &g.tlg, QEMU_CLOCK_REALTIME, t[i].scale, t[i].attributes, Fire,
                            &t[i]);
        } else {
            t[i].ts = timer_new_full(&g.tlg, QEMU_CLOCK_REALTIME, t[i].scale, t[i].attributes, Fire,
                                     &t[i]);
            heap_timers++;
        }
    }

    void Release(ModelTimer *m)
    {
        if (m->embedded) {
            if (m->running || rng() % 2) {
                timer_deinit(m->ts);
            } else {
                EXPECT_EQ(timer_deinit_sync(m->ts), 0);
            }
            memset(static_cast<void *>(m->ts), 0x25, sizeof(*m->ts));
            delete m->ts;
        } else {
            timer_free(m->ts);
            heap_timers--;
        }
        Disarm(m);
    }

    /* ---- The sorted list -------------------------------------------------------------------- */

    void Disarm(ModelTimer *m)
    {
        int i = 0;

        if (!m->armed) {
            return;
        }
        while (order[i] != m) {
            i++;
        }
        memmove(&order[i], &order[i + 1], (--armed - i) * sizeof(order[0]));
        dues -= m->due;
        m->armed = m->due = false;
        m->last = m->latest;
    }

    void Arm(ModelTimer *m, int64_t soonest, int64_t latest)
    {
        int i;

        Disarm(m);
        m->armed = true;
        m->soonest = soonest;
        m->latest = latest;
        m->seq = ++seq;
        for (i = armed; i > 0 && Before(m, order[i - 1]); i--) {
            order[i] = order[i - 1];
        }
        order[i] = m;
        armed++;
    }

    /* The soonest deadline of one class, or of both (-1). */
    int64_t Head(int external) const
    {
        for (int i = 0; i < armed; i++) {
            if (external < 0 || !!(order[i]->attributes & QEMU_TIMER_ATTR_EXTERNAL) == external) {
                return order[i]->latest;
            }
        }
        return INT64_MAX;
    }

    /* ---- Operations ------------------------------------------------------------------------- */

    int64_t RandomDeadline()
    {
        int64_t now = clock.Now(), x = static_cast<int64_t>(rng() >> 8);

        switch (rng() % 10) {
        case 0:
            return now - x % 1000;
        case 1:
            return now + 30000; /* fixed timeouts, in rising order */
        case 2:
            return now + x % 4; /* ties */
        case 3:
            return INT64_MAX - x % 3;
        case 4:
            return rng() % 2 ? INT64_MIN + x % 2 : -(x % 1000);
        default:
            return now + x % 20000;
        }
    }

    static int64_t Clamp(int64_t ns)
    {
        return ns < 0 ? 0 : ns > kNever ? kNever : ns;
    }

    /* What a deadline in the timer's units comes to. */
    static int64_t Scaled(const ModelTimer *m, int64_t units)
    {
        __int128 ns = static_cast<__int128>(units) * m->scale;

        return ns < 0 ? 0 : ns > kNever ? kNever : static_cast<int64_t>(ns);
    }

    void Mod(ModelTimer *m)
    {
        int64_t at = RandomDeadline(), ns = Clamp(at);

        if (rng() % 2) {
            ASSERT_TRUE(timer_mod_ns(m->ts, at));
        } else {
            at = rng() % 8 ? at / m->scale : at;
            ns = Scaled(m, at);
            ASSERT_TRUE(timer_mod(m->ts, at));
        }
        Arm(m, ns, ns);
    }

    void Anticipate(ModelTimer *m)
    {
        int64_t at = RandomDeadline(), ns = Clamp(at);
        bool in_ns = rng() % 2, moves;

        if (!in_ns) {
            at /= m->scale;
            ns = Scaled(m, at);
        }
        moves = !m->armed || ns < m->latest;
        ASSERT_EQ(in_ns ? timer_mod_anticipate_ns(m->ts, at) : timer_mod_anticipate(m->ts, at),
                  moves);
        if (moves) {
            /* What a pass has taken on stays in it, unless it was moved to a time not
       * yet there. */
            bool stays = m->due && ns <= pass_now;

            Arm(m, ns, ns);
            m->due = stays;
            dues += stays;
        }
    }

    void Range(ModelTimer *m)
    {
        int64_t latest = RandomDeadline(), soonest, ns = Clamp(latest);

        soonest = rng() % 4 ? ns - static_cast<int64_t>(rng() % 30000) : RandomDeadline();
        ASSERT_TRUE(timer_mod_range_ns(m->ts, soonest, latest));
        Arm(m, soonest >= latest ? ns : Clamp(soonest), ns);
    }

    void Forward(ModelTimer *m)
    {
        int64_t now = rng() % 8 ? clock.Now() : clock.Now() + static_cast<int64_t>(rng() % 5000);
        int64_t interval = 1 + static_cast<int64_t>(rng() % (rng() % 2 ? 20 : 20000));
        int64_t base = m->armed ? m->latest : m->last >= 0 ? m->last : now;
        int64_t missed = 0;
        __int128 next = static_cast<__int128>(base) + interval;

        if (next <= now) { /* told in the slow way where that ends soon */
            missed = (now - base) / interval;
            next += static_cast<__int128>(missed) * interval;
            ASSERT_GT(next, now);
            ASSERT_LE(next - interval, now);
        }
        ASSERT_EQ(timer_forward(m->ts, now, interval), static_cast<uint64_t>(missed));
        Arm(m, next > kNever ? kNever : static_cast<int64_t>(next),
            next > kNever ? kNever : static_cast<int64_t>(next));
    }

    void Del(ModelTimer *m)
    {
        if (rng() % 2) {
            ASSERT_EQ(timer_del(m->ts), m->armed);
        } else {
            ASSERT_EQ(timer_del_sync(m->ts), m->running ? -EDEADLK : m->armed);
        }
        Disarm(m);
    }

    /* Notifies exactly when the timer's class got an earlier head. */
    void CheckedArm(ModelTimer *m, void (Model::*op)(ModelTimer *))
    {
        int external = !!(m->attributes & QEMU_TIMER_ATTR_EXTERNAL), notified = g.notified();
        int64_t head = Head(external);

        (this->*op)(m);
        ASSERT_EQ(g.notified() - notified, Head(external) < head ? 1 : 0)
            << "head " << head << " to " << Head(external);
    }

    void Operate(ModelTimer *m)
    {
        ops++;
        switch (rng() % 16) {
        case 0:
        case 1:
        case 2:
        case 3:
            CheckedArm(m, &Model::Mod);
            break;
        case 4:
        case 5:
        case 6:
            CheckedArm(m, &Model::Anticipate);
            break;
        case 7:
        case 8:
        case 9:
            CheckedArm(m, &Model::Range);
            break;
        case 10:
        case 11:
            CheckedArm(m, &Model::Forward);
            break;
        case 12:
            if (rng() % 4 == 0) {
                Release(m);
                Make(m->index);
                break;
            }
            /* fall through */
        default:
            CheckedArm(m, &Model::Del);
            break;
        }
        CheckTimer(m);
    }

    /* ---- Passes ----------------------------------------------------------------------------- */

    void TakeOn(ModelTimer *m)
    {
        m->due = true;
        dues++;
    }

    void Collect()
    {
        pass_now = clock.Now();
        for (int i = 0; i < armed && order[i]->latest <= pass_now && dues < TIMERLIST_BUDGET; i++) {
            TakeOn(order[i]);
        }
        while (dues < TIMERLIST_BUDGET) {
            ModelTimer *best = nullptr;

            for (int i = 0; i < armed; i++) {
                ModelTimer *m = order[i];

                if (!m->due && m->soonest <= pass_now &&
                    (!best || m->soonest < best->soonest ||
                     (m->soonest == best->soonest && m->seq < best->seq))) {
                    best = m;
                }
            }
            if (!best) {
                break;
            }
            TakeOn(best);
        }
    }

    void Pass()
    {
        bool any;

        if (dues == 0 && enabled) {
            Collect();
        }
        any = dues > 0 && enabled;
        depth++;
        ASSERT_EQ(timerlist_run_timers(g.list()), any);
        depth--;
        if (enabled) {
            ASSERT_EQ(dues, 0) << "a pass did not fire all that it had taken on";
        } else if (depth == 0) {
            for (int i = 0; i < armed; i++) {
                order[i]->due = false;
            }
            dues = 0;
        }
    }

    static void Fire(void *opaque)
    {
        ModelTimer *m = static_cast<ModelTimer *>(opaque);

        m->model->Fired(m);
    }

    void Fired(ModelTimer *m)
    {
        uint64_t life = m->life;
        int i = 0;

        ASSERT_TRUE(m->due) << "fired though no pass had taken it on, timer " << m->index;
        while (!order[i]->due) {
            i++;
        }
        ASSERT_EQ(m, order[i]) << "fired out of turn";
        ASSERT_FALSE(timer_pending(m->ts));
        fired++;
        ranged += m->latest > clock.Now();
        Disarm(m);
        m->running++;
        InCallback(m);
        m->running -= m->life == life;
    }

    void InCallback(ModelTimer *m)
    {
        for (int n = rng() % 3; n > 0 && !testing::Test::HasFatalFailure(); n--) {
            Operate(rng() % 2 ? m : &t[rng() % count]);
        }
        if (rng() % 16 == 0) {
            clock.Advance(rng() % 100);
        }
        if (rng() % 16 == 0 && depth < 4 && !testing::Test::HasFatalFailure()) {
            Pass();
        }
        if (rng() % 64 == 0) {
            SetEnabled(!enabled);
        }
    }

    void SetEnabled(bool on)
    {
        ASSERT_EQ(qemu_clock_enable(QEMU_CLOCK_REALTIME, on), on || depth == 0 ? 0 : -EDEADLK);
        enabled = on;
    }

    /* ---- What the interface says ------------------------------------------------------------ */

    int64_t Left(int64_t head) const
    {
        return head == INT64_MAX || !enabled ? -1 : head > clock.Now() ? head - clock.Now() : 0;
    }

    void CheckTimer(const ModelTimer *m)
    {
        ASSERT_EQ(timer_expire_time_ns(m->ts), m->armed ? m->latest : -1);
        ASSERT_EQ(timer_pending(m->ts), m->armed);
        ASSERT_EQ(timer_expired(m->ts, clock.Now() / m->scale),
                  m->armed && m->latest <= clock.Now() / m->scale * m->scale);
    }

    void Check()
    {
        int64_t left = Left(Head(-1));

        ASSERT_EQ(timerlist_deadline_ns(g.list()), left);
        ASSERT_EQ(timerlist_has_timers(g.list()), armed > 0);
        ASSERT_EQ(timerlist_expired(g.list()), left == 0);
        ASSERT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, QEMU_TIMER_ATTR_ALL), left);
        ASSERT_EQ(qemu_clock_deadline_ns_all(QEMU_CLOCK_REALTIME, 0), Left(Head(0)));
    }

    void Run(uint64_t max_ops)
    {
        while (ops < max_ops && !testing::Test::HasFatalFailure()) {
            Operate(&t[rng() % count]);
            if (!testing::Test::HasFatalFailure() && rng() % 4 == 0) {
                clock.Advance(rng() % (rng() % 64 ? 300 : 100000));
                Pass();
            }
            if (!enabled && rng() % 8 == 0) {
                SetEnabled(true);
            }
            if (!testing::Test::HasFatalFailure()) {
                Check();
            }
            if (rng() % 4096 == 0) {
                EXPECT_EQ(
                    timerlist_walk(
                        g.list(), [](const QEMUTimerInfo *, void *) { return true; }, nullptr),
                    heap_timers);
            }
        }
    }

    std::mt19937_64 rng;
    int count;
    FakeClock clock;
    TestGroup g;
    ModelTimer t[kMaxTimers];
    ModelTimer *order[kMaxTimers + 1];
    int armed = 0, dues = 0, depth = 0;
    bool enabled = true;
    int64_t pass_now = 0;
    unsigned heap_timers = 0;
    uint64_t lives = 0, seq = 0, ops = 0, fired = 0, ranged = 0;
};

} // namespace

class TimerModel : public testing::TestWithParam<std::tuple<int, int>>
{
};
INSTANTIATE_TEST_SUITE_P(SeedsAndTimers, TimerModel,
                         testing::Combine(testing::Range(1, 5), testing::Values(3, 40, 400)));

TEST_P(TimerModel, AgreesOnEveryResultAndEveryFiring)
{
    const uint64_t kOps = kSanitized ? 30000 : 200000;
    auto model = std::make_unique<Model>(std::get<0>(GetParam()), std::get<1>(GetParam()));

    model->Run(kOps);
    EXPECT_GE(model->fired, kOps / 20) << "the test tests something";
    EXPECT_GE(model->ranged, kOps / 1000);
}
