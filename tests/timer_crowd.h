/* SPDX-License-Identifier: MIT */
/* Many timers of all kinds on one list, and where its queues keep them. */
#ifndef TESTS_TIMER_CROWD_H
#define TESTS_TIMER_CROWD_H

#include "support.h"

#include <atomic>
#include <vector>

extern "C" {
#include "timers/list_int.h"
}

/* Embedded ones and others, of both classes.  What a callback does to its timer is up to @fire. */
class TimerCrowd
{
public:
    using Fire = void (*)(TimerCrowd *timers, int i);

    TimerCrowd(QEMUTimerListGroup *tlg, int count, Fire fire, void *opaque = nullptr,
               QEMUClockType type = QEMU_CLOCK_REALTIME)
        : opaque(opaque), tlg_(tlg), type_(type), fire_(fire), entries_(count)
    {
        for (int i = 0; i < count; i++) {
            Make(i);
        }
    }
    ~TimerCrowd()
    {
        for (Entry &e : entries_) {
            timer_del_sync(e.ts); /* its callback uses this */
            if (e.ts == &e.embedded) {
                timer_deinit(e.ts);
            } else {
                timer_free(e.ts);
            }
        }
    }
    TimerCrowd(const TimerCrowd &) = delete;
    TimerCrowd &operator=(const TimerCrowd &) = delete;

    QEMUTimer *operator[](int i) const
    {
        return entries_[i].ts;
    }
    int count() const
    {
        return static_cast<int>(entries_.size());
    }

    void *const opaque;
    std::atomic<unsigned long> fired{ 0 };

private:
    struct Entry {
        TimerCrowd *timers;
        QEMUTimer *ts;
        QEMUTimer embedded;
    };

    static void Cb(void *opaque)
    {
        Entry *e = static_cast<Entry *>(opaque);

        e->timers->fired++;
        e->timers->fire_(e->timers, static_cast<int>(e - e->timers->entries_.data()));
    }
    void Make(int i)
    {
        Entry *e = &entries_[i];
        int attributes = i / 2 % 2 ? QEMU_TIMER_ATTR_EXTERNAL : 0;

        e->timers = this;
        if (i % 2) {
            e->ts = timer_new_full(tlg_, type_, SCALE_NS, attributes, Cb, e);
        } else {
            e->ts = &e->embedded;
            timer_init_full(e->ts, tlg_, type_, SCALE_NS, attributes, Cb, e);
        }
    }

    QEMUTimerListGroup *tlg_;
    QEMUClockType type_;
    Fire fire_;
    std::vector<Entry> entries_;
};

constexpr int64_t kFar = TQ_NEAR_NS * 2; /* too far apart for a lane */

/* How many timers wait in a part of the list's queues. */
inline unsigned InHeaps(const QEMUTimerList *tl)
{
    return tl->cls[CLASS_NORMAL].queue.heap.end + tl->cls[CLASS_EXTERNAL].queue.heap.end -
           2 * HEAP_ROOT;
}

inline unsigned Spilt(const QEMUTimerList *tl)
{
    unsigned n = 0;

    for (const struct timer_class &cls : tl->cls) {
        for (QEMUTimer *ts = cls.queue.first[TQ_SPILL]; ts; ts = ts->next) {
            n++;
        }
    }
    return n;
}

#endif
