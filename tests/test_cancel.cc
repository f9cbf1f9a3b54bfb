/* SPDX-License-Identifier: MIT */
/* Threads that are cancelled within a call of the library: nothing stays locked or left over. */
#include "loop_support.h"

#include <aioctx/observe.h>

#include <dirent.h>
#include <thread>

class Cancelled : public OnEachMonitor
{
};
ON_EACH_MONITOR(Cancelled);

/* Calls @func on a thread that is to be cancelled at its first chance. */
static void OnCancelledThread(std::function<void()> func)
{
    struct Shared {
        std::function<void()> func;
        bool returned;
    } shared = { std::move(func), false };
    pthread_t thread;
    void *ret;
    auto run = [](void *opaque) -> void * {
        auto s = static_cast<Shared *>(opaque);

        pthread_cancel(pthread_self());
        s->func();
        s->returned = true;
        pthread_testcancel();
        return nullptr;
    };

    ASSERT_EQ(pthread_create(&thread, nullptr, run, &shared), 0);
    ASSERT_EQ(pthread_join(thread, &ret), 0);
    EXPECT_EQ(ret, PTHREAD_CANCELED);
    EXPECT_TRUE(shared.returned) << "cancelled within the call";
}

static int OpenFds()
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (dir && readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

/* The iothread could not end. */
TEST_P(Cancelled, WhoAsksForStatisticsLeavesNoLock)
{
    ScopedIOThread io(GetParam());

    OnCancelledThread([&] {
        IOThreadStats stats;

        EXPECT_EQ(iothread_get_stats(io.get(), &stats), 0);
    });
}

TEST_P(Cancelled, WhoGivesTheLastReferenceBackClosesTheContext)
{
    int before;

    { /* what is made once */
        ScopedIOThread io(GetParam());
    }
    aio_rcu_barrier();
    before = OpenFds();
    OnCancelledThread([] {
        AioContextOptions opts = {};
        int old;

        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
        opts.monitor = GetParam();
        AioContext *ctx = aio_context_new(&opts);
        aio_poll(ctx, false);
        pthread_setcancelstate(old, nullptr);
        aio_context_unref(ctx);
    });
    aio_rcu_barrier();
    EXPECT_EQ(OpenFds(), before);
}

/* It waits for the hook with the lock that every report takes. */
TEST_P(Cancelled, WhoWaitsForAStallHookLeavesNoLock)
{
    struct Hook {
        std::atomic<bool> in{ false }, go{ false };
        std::atomic<int> calls{ 0 };

        static void Run(const AioStall *stall, void *opaque)
        {
            auto h = static_cast<Hook *>(opaque);

            h->calls++;
            h->in = true;
            while (stall->running && !h->go) {
                usleep(1000);
            }
        }
    } hook;
    std::thread release;

    aio_set_stall_hook(Hook::Run, &hook);
    OnCancelledThread([&] {
        AioContextOptions opts = {};
        int old;

        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
        opts.monitor = GetParam();
        opts.stall_limit_ns = SCALE_MS;
        AioContext *ctx = aio_context_new(&opts);
        Call hang{ [&] {
            while (!hook.in) {
                usleep(1000);
            }
        } };
        aio_bh_schedule_oneshot(ctx, Call::Run, &hang);
        aio_poll(ctx, true);
        release = std::thread([&] {
            usleep(20000);
            hook.go = true;
        });
        pthread_setcancelstate(old, nullptr);
        aio_context_unref(ctx);
    });
    release.join();
    aio_set_stall_hook(nullptr, nullptr); /* takes the lock */
    EXPECT_EQ(hook.calls, 2);
}
