/* SPDX-License-Identifier: MIT */
/* The active queue by itself, against std::set. */
#include "support.h"

#include <algorithm>
#include <memory>
#include <random>
#include <set>

extern "C" {
#include "timers/queue_int.h"
}

class Queue : public testing::Test
{
protected:
    Queue()
    {
        timer_queue_init(&q);
        EXPECT_TRUE(timer_queue_reserve(&q, 30000));
    }
    ~Queue()
    {
        timer_queue_destroy(&q);
    }

    QEMUTimer *Insert(int64_t deadline)
    {
        timers.push_back(std::make_unique<QEMUTimer>());
        QEMUTimer *ts = timers.back().get();

        *ts = QEMUTimer{};
        ts->place = PLACE_NONE;
        InsertAgain(ts, deadline);
        return ts;
    }

    void InsertAgain(QEMUTimer *ts, int64_t deadline)
    {
        ts->expire_time = ts->soonest = deadline;
        ts->seq = ++seq;
        timer_queue_insert(&q, ts);
    }

    /* Empties the queue; returns the deadlines in the order in which they came out. */
    std::vector<QEMUTimer *> PopAll()
    {
        std::vector<QEMUTimer *> out;

        while (QEMUTimer *ts = timer_queue_first(&q)) {
            timer_queue_remove(&q, ts);
            out.push_back(ts);
        }
        return out;
    }

    struct timer_queue q;
    uint64_t seq = 0;
    std::vector<std::unique_ptr<QEMUTimer>> timers;
};

static bool InOrder(const std::vector<QEMUTimer *> &v)
{
    return std::is_sorted(v.begin(), v.end(), timer_before);
}

TEST_F(Queue, EmptyHasNoHead)
{
    EXPECT_EQ(timer_queue_first(&q), nullptr);
    EXPECT_EQ(timer_queue_verify(&q), 0u);
}

TEST_F(Queue, RisingDeadlinesComeOutInOrder)
{
    for (int i = 0; i < 1000; i++) {
        Insert(i * 3);
    }
    EXPECT_EQ(timer_queue_verify(&q), 1000u);
    std::vector<QEMUTimer *> out = PopAll();
    EXPECT_EQ(out.size(), 1000u);
    EXPECT_TRUE(InOrder(out));
}

TEST_F(Queue, FallingDeadlinesComeOutInOrder)
{
    for (int i = 1000; i > 0; i--) {
        Insert(i * 3);
        EXPECT_EQ(timer_queue_first(&q)->expire_time, i * 3);
    }
    EXPECT_EQ(timer_queue_verify(&q), 1000u);
    std::vector<QEMUTimer *> out = PopAll();
    EXPECT_EQ(out.size(), 1000u);
    EXPECT_TRUE(InOrder(out));
}

TEST_F(Queue, EqualDeadlinesComeOutInOrderOfArming)
{
    std::vector<QEMUTimer *> in;

    for (int i = 0; i < 500; i++) {
        in.push_back(Insert(42));
        Insert(1000 - i); /* keeps heaps and lanes busy */
    }
    std::vector<QEMUTimer *> out = PopAll();
    out.resize(500);
    EXPECT_EQ(out, in);
}

TEST_F(Queue, ExtremeDeadlinesAreOrdered)
{
    QEMUTimer *last = Insert(INT64_MAX - 1), *first = Insert(0), *second = Insert(1);
    std::vector<QEMUTimer *> expected = { first, second, last };

    EXPECT_EQ(PopAll(), expected);
}

TEST_F(Queue, HeadThatIsRemovedGivesWayToTheNext)
{
    QEMUTimer *a = Insert(10), *b = Insert(20);

    timer_queue_remove(&q, a);
    EXPECT_EQ(timer_queue_first(&q), b);
    timer_queue_remove(&q, b);
    EXPECT_EQ(timer_queue_first(&q), nullptr);
}

TEST_F(Queue, RemovedTimersAreNotTouchedAgain)
{
    std::vector<std::unique_ptr<QEMUTimer>> gone;

    for (int i = 0; i < 200; i++) {
        Insert((i * 7919) % 101);
    }
    for (int i = 0; i < 200; i += 2) {
        timer_queue_remove(&q, timers[i].get());
        memset(timers[i].get(), 0xff, sizeof(QEMUTimer)); /* a link to it would crash */
        EXPECT_EQ(timer_queue_verify(&q), 200u - i / 2 - 1);
    }
    std::vector<QEMUTimer *> out = PopAll();
    EXPECT_EQ(out.size(), 100u);
    EXPECT_TRUE(InOrder(out));
}

/* Long timers that have begun rows do not keep the lanes from others. */
TEST_F(Queue, StaleLanesAreGivenUp)
{
    std::vector<QEMUTimer *> live;
    int64_t hour = INT64_C(3600000000000);

    for (int lane = 0; lane < TQ_LANES; lane++) {
        Insert(hour * (lane + 1));
        for (int i = 1; i < 10; i++) {
            EXPECT_GE(Insert(hour * (lane + 1) + i)->place, PLACE_LIST);
        }
    }
    seq += TQ_STALE;
    for (int i = 0; i < 100; i++) { /* strays, which make room for a new row */
        QEMUTimer *ts = Insert(int64_t{ 10000000 } * (i * 7919 % 101));
        EXPECT_LT(ts->place, PLACE_LIST);
        timer_queue_remove(&q, ts);
        timer_queue_verify(&q);
    }
    Insert(5000000000);
    EXPECT_GE(Insert(5000000001)->place, PLACE_LIST);
    EXPECT_GE(Insert(5000000002)->place, PLACE_LIST);
    EXPECT_TRUE(InOrder(PopAll()));
}

TEST_F(Queue, LanesInUseAreKept)
{
    int64_t far = INT64_C(3600000000000);

    Insert(far - 1);
    for (int i = 0; i < 5000; i++) {
        EXPECT_GE(Insert(far + i)->place, PLACE_LIST);
        EXPECT_GE(Insert(2 * far + i * 2)->place, i ? PLACE_LIST : 0u);
        EXPECT_GE(Insert(3 * far + i * 3)->place, i ? PLACE_LIST : 0u);
        Insert(1000000 + (i * 7919 % 101) * INT64_C(10000000));
    }
    timer_queue_verify(&q);
}

/* Without memory for the heap the order is the same. */
TEST(QueueSpill, OrderHoldsWithoutRoom)
{
    struct timer_queue q;
    std::vector<QEMUTimer> timers(200);
    std::mt19937_64 rng(1);

    timer_queue_init(&q);
    for (size_t i = 0; i < timers.size(); i++) {
        timers[i].expire_time = rng() % 50 * 10000000;
        timers[i].seq = i;
        timer_queue_insert(&q, &timers[i]);
    }
    for (size_t i = 0; i < timers.size(); i += 3) {
        timer_queue_remove(&q, &timers[i]);
    }
    EXPECT_EQ(timer_queue_verify(&q), timers.size() - (timers.size() + 2) / 3);
    QEMUTimer *prev = nullptr;
    while (QEMUTimer *ts = timer_queue_first(&q)) {
        EXPECT_TRUE(!prev || timer_before(prev, ts));
        timer_queue_remove(&q, ts);
        prev = ts;
    }
    timer_queue_destroy(&q);
}

struct Before {
    bool operator()(const QEMUTimer *a, const QEMUTimer *b) const
    {
        return timer_before(a, b);
    }
};

/* Random inserts, removes and pops; the queue and the model agree after each. */
class QueueModel : public Queue, public testing::WithParamInterface<int>
{
};
INSTANTIATE_TEST_SUITE_P(Seeds, QueueModel, testing::Range(1, 7));

TEST_P(QueueModel, AgreesWithASortedSet)
{
    constexpr int kTimers = 300, kOps = kSanitized ? 30000 : 120000;
    std::mt19937_64 rng(GetParam());
    std::set<QEMUTimer *, Before> model;
    std::vector<QEMUTimer *> idle;
    int64_t rising = 0;

    for (int i = 0; i < kTimers; i++) {
        idle.push_back(Insert(0));
        timer_queue_remove(&q, idle.back());
    }
    for (int i = 0; i < kOps; i++) {
        unsigned x = rng() % 100;
        /* Phases in which the queue grows and shrinks, down to empty. */
        bool grow = x < ((i / 2000) % 2 ? 35u : 65u);

        if (grow && !idle.empty()) {
            QEMUTimer *ts = idle.back();

            idle.pop_back();
            InsertAgain(ts, rng() % 2 ? rising += rng() % 4 : static_cast<int64_t>(rng() % 5000));
            model.insert(ts);
        } else if (!model.empty()) {
            auto it = model.begin();

            if (rng() % 2) {
                std::advance(it, rng() % model.size());
            }
            timer_queue_remove(&q, *it);
            EXPECT_EQ((*it)->place, static_cast<uint32_t>(PLACE_NONE));
            idle.push_back(*it);
            model.erase(it);
        }
        ASSERT_EQ(timer_queue_first(&q), model.empty() ? nullptr : *model.begin()) << "step " << i;
        if (i % 64 == 0) {
            ASSERT_EQ(timer_queue_verify(&q), model.size());
        }
    }
    EXPECT_EQ(PopAll(), std::vector<QEMUTimer *>(model.begin(), model.end()));
}

/* What the verifier is worth: it sees a wrong order and a broken link. */
TEST(QueueDeathTest, VerifyFindsFaults)
{
    struct timer_queue q;
    QEMUTimer t[3] = {};
    int64_t deadlines[3] = { 10, 20, 30 };

    timer_queue_init(&q);
    for (int i = 0; i < 3; i++) {
        t[i].place = PLACE_NONE;
        t[i].expire_time = t[i].soonest = deadlines[i];
        t[i].seq = i;
        timer_queue_insert(&q, &t[i]);
    }
    ASSERT_EQ(timer_queue_verify(&q), 3u);
    EXPECT_DEATH(
        {
            t[1].expire_time = t[1].soonest = 5;
            timer_queue_verify(&q);
        },
        "aioctx: ");
    EXPECT_DEATH(
        {
            q.soonest_key[0] = 5;
            timer_queue_verify(&q);
        },
        "aioctx: ");
}
