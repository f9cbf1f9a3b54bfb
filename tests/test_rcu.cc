/* SPDX-License-Identifier: MIT */
/* <aioctx/rcu.h>: read sections, deferred calls, grace periods. */
#include "support.h"

#include <thread>

struct Object {
    AioRcuHead head; /* first */
    std::atomic<int> *freed;
    int value;
};

static Object *NewObject(std::atomic<int> *freed, int value)
{
    return new Object{ {}, freed, value };
}

static void FreeObject(AioRcuHead *head)
{
    Object *o = reinterpret_cast<Object *>(head);

    o->value = -1;
    ++*o->freed;
    delete o;
}

TEST(Rcu, SectionsNest)
{
    EXPECT_FALSE(aio_rcu_read_ongoing());
    aio_rcu_read_lock();
    aio_rcu_read_lock();
    aio_rcu_read_unlock();
    EXPECT_TRUE(aio_rcu_read_ongoing());
    aio_rcu_read_unlock();
    EXPECT_FALSE(aio_rcu_read_ongoing());
}

TEST(Rcu, SectionsBelongToTheirThread)
{
    aio_rcu_read_lock();
    std::thread([] { EXPECT_FALSE(aio_rcu_read_ongoing()); }).join();
    aio_rcu_read_unlock();
}

TEST(Rcu, DeferredCallRunsOnceAndGetsItsHead)
{
    static std::atomic<AioRcuHead *> seen;
    static std::atomic<int> calls;
    AioRcuHead head = {};

    seen = nullptr;
    calls = 0;
    aio_call_rcu(&head, [](AioRcuHead *h) {
        seen = h;
        calls++;
    });
    aio_rcu_barrier();
    EXPECT_EQ(seen, &head);
    EXPECT_EQ(calls, 1);
}

TEST(Rcu, DeferredCallWaitsForReaders)
{
    std::atomic<int> freed{ 0 };
    std::atomic<bool> in{ false }, leave{ false };
    Object *o = NewObject(&freed, 5);
    std::thread reader([&] {
        aio_rcu_read_lock();
        in = true;
        while (!leave) {
            std::this_thread::yield();
        }
        EXPECT_EQ(o->value, 5); /* AddressSanitizer looks as well */
        EXPECT_EQ(freed, 0);
        aio_rcu_read_unlock();
    });

    ASSERT_TRUE(WaitUntil([&] { return in.load(); }));
    aio_call_rcu(&o->head, FreeObject);
    usleep(20000); /* time to be wrong in */
    leave = true;
    reader.join();
    aio_rcu_barrier();
    EXPECT_EQ(freed, 1);
}

TEST(Rcu, SynchronizeWaitsForReaders)
{
    std::atomic<bool> in{ false }, left{ false };
    std::thread reader([&] {
        aio_rcu_read_lock();
        in = true;
        usleep(20000);
        left = true;
        aio_rcu_read_unlock();
    });

    ASSERT_TRUE(WaitUntil([&] { return in.load(); }));
    aio_synchronize_rcu();
    EXPECT_TRUE(left);
    reader.join();
}

TEST(Rcu, SynchronizeDoesNotWaitForLaterReaders)
{
    std::atomic<bool> stop{ false };
    std::thread reader([&] {
        while (!stop) {
            aio_rcu_read_lock();
            std::this_thread::yield();
            aio_rcu_read_unlock();
        }
    });

    for (int i = 0; i < 20; i++) {
        aio_synchronize_rcu();
    }
    stop = true;
    reader.join();
}

TEST(Rcu, ExitedThreadsHoldNothingUp)
{
    for (int i = 0; i < 50; i++) {
        std::thread([] {
            aio_rcu_read_lock();
            aio_rcu_read_unlock();
        }).join();
    }
    aio_synchronize_rcu();
}

/* A call may be deferred inside a read section, and from a deferred call. */
TEST(Rcu, DeferringIsAllowedInsideASection)
{
    static std::atomic<int> calls;
    static AioRcuHead first, second;

    calls = 0;
    aio_rcu_read_lock();
    aio_call_rcu(&first, [](AioRcuHead *) {
        calls++;
        aio_call_rcu(&second, [](AioRcuHead *) { calls++; });
    });
    aio_rcu_read_unlock();
    EXPECT_TRUE(WaitUntil([] { return calls == 2; }));
}

TEST(Rcu, BarrierWaitsForEveryCallQueuedBefore)
{
    std::atomic<int> freed{ 0 };

    RunThreads(3, [&](int) {
        for (int i = 0; i < 500; i++) {
            aio_call_rcu(&NewObject(&freed, i)->head, FreeObject);
        }
        aio_rcu_barrier();
        EXPECT_GE(freed, 500);
    });
    aio_rcu_barrier();
    EXPECT_EQ(freed, 1500);
}

TEST(Rcu, ReadersNeverSeeAFreedObject)
{
    constexpr int kRounds = kSanitized ? 2000 : 20000;
    std::atomic<int> freed{ 0 };
    std::atomic<Object *> current{ NewObject(&freed, 7) };
    std::atomic<int> writers{ 1 };

    RunThreads(3, [&](int i) {
        if (i == 0) {
            for (int n = 0; n < kRounds; n++) {
                aio_call_rcu(&current.exchange(NewObject(&freed, 7))->head, FreeObject);
            }
            writers = 0;
        }
        while (writers) {
            aio_rcu_read_lock();
            EXPECT_EQ(current.load()->value, 7);
            aio_rcu_read_unlock();
        }
    });
    aio_call_rcu(&current.load()->head, FreeObject);
    aio_rcu_barrier();
    EXPECT_EQ(freed, kRounds + 1);
}

/* Many more deferred calls than the backlog holds, with a reader that slows the grace periods. */
TEST(Rcu, BacklogIsBoundedButLosesNothing)
{
    constexpr int kCalls = kSanitized ? 70000 : 200000;
    std::atomic<int> freed{ 0 };

    for (int i = 0; i < kCalls; i++) {
        aio_call_rcu(&NewObject(&freed, i)->head, FreeObject);
        EXPECT_LE(i + 1 - freed, 65536 + 1);
    }
    aio_rcu_barrier();
    EXPECT_EQ(freed, kCalls);
}

TEST(Rcu, WriterSeesWhatReadersDidBeforeTheGracePeriod)
{
    static int plain; /* no atomic: ThreadSanitizer checks the edge */
    std::atomic<bool> in{ false };
    std::thread reader([&] {
        aio_rcu_read_lock();
        in = true;
        plain++;
        aio_rcu_read_unlock();
    });

    ASSERT_TRUE(WaitUntil([&] { return in.load(); }));
    aio_synchronize_rcu();
    plain++;
    reader.join();
    EXPECT_EQ(plain % 2, 0);
}

TEST(RcuDeathTest, WaitingInsideASectionAborts)
{
    EXPECT_DEATH(
        {
            aio_rcu_read_lock();
            aio_synchronize_rcu();
        },
        "aioctx: aio_synchronize_rcu");
    EXPECT_DEATH(
        {
            aio_rcu_read_lock();
            aio_rcu_barrier();
        },
        "aioctx: aio_rcu_barrier");
}
