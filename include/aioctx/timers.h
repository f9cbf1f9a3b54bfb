/* SPDX-License-Identifier: MIT */
/*
 * Clocks, timers and timer lists.
 *
 * A QEMUTimer belongs to one QEMUTimerList; a QEMUTimerListGroup holds one list per clock; an
 * AioContext owns one group.  A timer's callback runs on the thread that runs its list.
 *
 *                                    may run beside                            may block
 *   timer_mod*, timer_forward,
 *   timer_del                        each other, on one timer, on any thread   no (short lock)
 *   timer_free                       all of the above                          no (see below)
 *   timer_pending, _expired,
 *   _expire_time_ns                  all of the above                          no, lock-free
 *   timer_init*, timer_deinit*       nothing on the same timer                 _sync: yes
 *   timer_del_sync, timer_set_name   all but init and deinit                   _sync: yes
 *   timerlist_has_timers, _expired,
 *   _deadline_ns, _walk, *_deadline* everything                                no, lock-free
 *   timerlist_run_timers             everything but another run of that list   runs callbacks
 *   *_notify, qemu_clock_set_source,
 *   cpu_enable_ticks, _disable_ticks everything                                no (short lock)
 *   qemu_clock_enable                everything                                disabling: yes
 *
 * "Short lock": the list's, held for tens of nanoseconds; for the thread that runs the list it is
 * cheaper than for others, and the first of these to come after a while waits some microseconds
 * (membarrier(2)).
 *
 * "Lock-free": takes no lock.  But what reads VIRTUAL or VIRTUAL_RT, deadlines on them included,
 * waits while another thread is inside a start, a stop, a warp or a change of shift or source: some
 * hundred nanoseconds, or where that thread was switched off there until it runs again.  The reader
 * sleeps 50 us at a time then, so that the other one may have a lower priority.
 *
 * A call that defers a free (timer_free, timerlist_free, qemu_clock_set_source, icount_configure,
 * the last timer_deinit of a list that is gone) waits when 65536 frees are pending; see
 * aio_call_rcu().
 * Otherwise the only calls that wait are those named _sync and qemu_clock_enable(type, false).
 * Called below a callback on a home thread, where two loops could come to wait for each other, they
 * do everything but the waiting and return -EDEADLK.  Called inside an RCU read section they abort.
 *
 * A callback returns: one that ends by longjmp() or by the end of its thread leaves its list as if
 * it were still running.  No call that is listed as not blocking is a cancellation point
 * (pthread_cancel(3)).
 *
 * None of these functions is for signal handlers.  A misuse that can be seen (a clock or a scale
 * that does not exist, a timer that was not initialised, a child of fork()) aborts with a message.
 */
#ifndef AIOCTX_TIMERS_H
#define AIOCTX_TIMERS_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Clocks ---------------------------------------------------------------------------------- */

typedef enum {
    QEMU_CLOCK_REALTIME = 0, /* CLOCK_MONOTONIC: runs always, never steps */
    QEMU_CLOCK_VIRTUAL = 1,  /* runs only between cpu_enable_ticks() and cpu_disable_ticks(); counts
                                  real time, or instructions: icount_configure() */
    QEMU_CLOCK_HOST = 2,     /* CLOCK_REALTIME: the wall clock, which may step */
    QEMU_CLOCK_VIRTUAL_RT = 3, /* VIRTUAL as it would be without instruction counting */
    QEMU_CLOCK_MAX
} QEMUClockType;

/* Scales: how many nanoseconds one unit of a timer is. */
#define SCALE_MS 1000000
#define SCALE_US 1000
#define SCALE_NS 1

/* Attributes of a timer. */
#define QEMU_TIMER_ATTR_EXTERNAL (1 << 0) /* not part of what the guest can see */
#define QEMU_TIMER_ATTR_ALL 0x7fffffff

/*
 * The time of clock @type in nanoseconds (_us, _ms: the same, rounded down), never below zero.
 * Thread: any; lock-free (see the top of this file).
 */
int64_t qemu_clock_get_ns(QEMUClockType type);
int64_t qemu_clock_get_us(QEMUClockType type);
int64_t qemu_clock_get_ms(QEMUClockType type);

/* A replacement for a clock's source of time: returns nanoseconds, on any thread. */
typedef int64_t QEMUClockSourceFunc(void *opaque);

/*
 * Replaces the source that clock @type reads, for tests and simulators; @get NULL restores the
 * real one.  Replacing the source of REALTIME also replaces what VIRTUAL and VIRTUAL_RT count while
 * they run, from where they are.  @get is called inside an RCU read section, and of REALTIME and
 * VIRTUAL_RT also under a lock of the library's: it must not wait, take a lock that anybody holds
 * while calling the library, arm or delete timers, nor read VIRTUAL or VIRTUAL_RT.  What it returns
 * below zero counts as zero.
 * Every list of the clock is re-evaluated.  A source whose time jumps must call
 * qemu_clock_notify() after each jump, as nothing else can tell the sleeping threads.
 * Returns 0 or -ENOMEM.  Thread: any.
 * Lifetime: @get may still be called on other threads until a grace period has passed
 * (aio_synchronize_rcu()).
 */
int qemu_clock_set_source(QEMUClockType type, QEMUClockSourceFunc *get, void *opaque);

/*
 * Enables or disables the timers of clock @type on every list; all are enabled at first.
 * Disabling returns once no callback of that clock is running on any list any more, nested ones
 * included.  Enabling never blocks.  Timers keep their deadlines while their clock is disabled.
 * Returns 0; -EDEADLK when called below a timer callback, or below another callback of a home
 * thread while timers of @type run elsewhere: then the clock is disabled but nothing was waited
 * for.
 * Thread: any, but not inside an RCU read section.
 */
int qemu_clock_enable(QEMUClockType type, bool enabled);

/*
 * The time in nanoseconds until the soonest deadline of @type on any list; 0 when one is due, -1
 * when there is none or the clock does not run.  Timers that have an attribute outside
 * @attr_mask are passed over (QEMU_TIMER_ATTR_ALL: none are).  Thread: any; lock-free.
 */
int64_t qemu_clock_deadline_ns_all(QEMUClockType type, int attr_mask);

/* Returns whether loops take their timeout from clock @type: false for VIRTUAL while instructions
 * are counted, else true.  Thread: any. */
bool qemu_clock_use_for_deadline(QEMUClockType type);

/* Re-evaluates the deadlines of every list of @type: calls their notify callbacks, which wake the
 * threads.  Thread: any; takes each list's lock, shortly. */
void qemu_clock_notify(QEMUClockType type);

/* ---- Starting and stopping VIRTUAL ----------------------------------------------------------- */

/* Starts VIRTUAL, and VIRTUAL_RT, where they stopped; nothing when they run.  They are stopped, at
 * 0, at first.  Calls the notify callbacks of their lists.  Thread: any; does not block. */
void cpu_enable_ticks(void);

/* Stops VIRTUAL and VIRTUAL_RT; nothing when they are stopped.  They have no deadline until they
 * are started again.  Callbacks may still run: see qemu_clock_enable().  Calls notify callbacks as
 * above.  Thread: any; does not block, and no reader of the clocks holds it up. */
void cpu_disable_ticks(void);

/* The nanoseconds of real time for which VIRTUAL was started: VIRTUAL_RT, and VIRTUAL too unless
 * instructions are counted.  Thread: any; lock-free. */
int64_t cpu_get_clock(void);

/* The host's cycle counter (where it has none, its monotonic clock in ns), stopped and started
 * with VIRTUAL; while instructions are counted icount_get(), so that who shows it to a guest shows
 * the same in every run.  Thread: any; lock-free. */
int64_t cpu_get_ticks(void);

/* ---- Instruction-count time ------------------------------------------------------------------ */

/*
 * In this mode VIRTUAL counts the instructions of virtual CPUs, 2^shift ns for each, as the
 * embedder accounts for them, instead of real time.  So what a guest computes between two of its
 * timers is the same in every run.  Loops do not sleep on VIRTUAL then: whoever runs virtual CPUs
 *
 *   while (running) {
 *       n = icount_budget(QEMU_TIMER_ATTR_ALL);      0: a timer is due
 *       executed = run up to n instructions;
 *       icount_update(executed);
 *       qemu_clock_run_timers(QEMU_CLOCK_VIRTUAL);   the lists that this thread runs
 *       if every virtual CPU sleeps: icount_start_warp_timer(), wait
 *   }
 *
 * and whoever wakes a virtual CPU, say a timer's callback, calls icount_account_warp_timer().
 * Lists of other threads are notified when VIRTUAL reaches their deadlines, and run there.  Only
 * timers of lists that the virtual CPU's own thread runs fire at the same instruction in every run.
 * docs/icount.md tells more.
 *
 *                                         may run beside                     may block
 *   icount_get*, icount_to_ns, _round,
 *   _budget, _enabled                     everything                         no, lock-free
 *   icount_update, _notify_exit           everything                         no (short lock)
 *   icount_start_warp_timer,
 *   icount_account_warp_timer             everything, but see there          no (short lock)
 *   icount_configure                      everything                         no (short lock)
 */

#define ICOUNT_MAX_SHIFT 10

/* icount_enabled() */
enum {
    ICOUNT_DISABLED = 0, /* VIRTUAL counts real time */
    ICOUNT_FIXED = 1,
    ICOUNT_AUTO = 2,
};

/*
 * Asks who runs virtual CPUs to leave their slices soon and to account for them: a timer was armed
 * for a sooner time than before, or the clock has changed, so that a budget may be too large.
 * Called with no lock of the library held, inside an RCU read section, on any thread (also on a
 * virtual CPU's, below its own timer_mod()); must not block, nor call the library.
 */
typedef void IcountExitCB(void *opaque);

struct QEMUTimerListGroup;

typedef struct IcountOptions {
    int shift;       /* 0 to ICOUNT_MAX_SHIFT: an instruction takes 2^shift ns */
    bool auto_shift; /* steer the shift, from the one given, so that VIRTUAL tracks VIRTUAL_RT */
    bool no_sleep;   /* sleep=off: a sleep of all virtual CPUs takes no real time */
    struct QEMUTimerListGroup *warp_group; /* whose loop watches sleeps; NULL: main_loop_tlg */
    IcountExitCB *exit_cb;                 /* may be NULL */
    void *opaque;                          /* of exit_cb */
    uint64_t reserved[4];                  /* zero */
} IcountOptions;

/*
 * Turns instruction counting on, from 0 instructions, also where it is on already with other
 * options; with @opts NULL turns it off.  VIRTUAL must be stopped.  Turned on, VIRTUAL goes on from
 * where it is; turned off, VIRTUAL and VIRTUAL_RT go on from the later of the two.  Timers keep
 * their deadlines.
 * Returns 0; -EINVAL: a shift out of range, both auto_shift and no_sleep, or a reserved field that
 * is not zero; -EBUSY: VIRTUAL is started (cpu_disable_ticks() first), or a callback of VIRTUAL is
 * running; -ENOMEM.  After an error nothing has changed.
 * Thread: any.
 * Lifetime: @opts is copied.  The group must live until the mode is turned off or changed; exit_cb
 * may still be called on other threads until a grace period after that (aio_synchronize_rcu()).
 */
int icount_configure(const IcountOptions *opts);

/* Returns ICOUNT_DISABLED, ICOUNT_FIXED or ICOUNT_AUTO.  Thread: any; lock-free. */
int icount_enabled(void);

/*
 * Accounts for @executed instructions (0 or more, less aborts; the count saturates at INT64_MAX)
 * since the last call of the same virtual CPU: adds them to VIRTUAL and notifies every list that
 * has a timer due then.  A virtual CPU calls it at the end of its slice, and before anything that
 * reads VIRTUAL or arms a timer in mid-slice.  Ends a warp that still goes on.  Does nothing when
 * instruction counting is off.
 * Instructions accounted while VIRTUAL is stopped show when it is started.
 * Thread: any, any number of them.
 * Ordering: what the caller did before is visible to who sees the new time.
 */
void icount_update(int64_t executed);

/* VIRTUAL in ns, whatever its source was replaced by.  Thread: any; lock-free. */
int64_t icount_get(void);

/* The instructions accounted for since the mode was turned on, at most INT64_MAX.  Thread: any;
 * lock-free. */
int64_t icount_get_raw(void);

/* The ns that @instructions take with the shift of now; saturates at INT64_MAX - 1; below zero
 * counts as zero.  Thread: any; lock-free. */
int64_t icount_to_ns(int64_t instructions);

/* The fewest instructions that take @ns or more; the reverse of icount_to_ns().  Thread: any;
 * lock-free. */
int64_t icount_round(int64_t ns);

/* The shift of now, which moves in auto.  Thread: any; lock-free. */
int icount_get_shift(void);

/*
 * Returns how many instructions may run until VIRTUAL reaches its next deadline on any list,
 * rounded up so that it is reached: at most INT32_MAX, also when there is none; in auto at most
 * what 10 ms of VIRTUAL hold, so that the shift can be steered; 0 when a timer is due (run the
 * timers), when VIRTUAL is stopped (wait for the start), or when counting is off.  Timers that have
 * an attribute outside @attr_mask are passed over, as in qemu_clock_deadline_ns_all().
 * Several virtual CPUs that run beside each other share it: each takes its part.
 * Thread: any; lock-free.
 */
int64_t icount_budget(int attr_mask);

/*
 * Tells that every virtual CPU sleeps.  From now until icount_account_warp_timer() VIRTUAL goes on
 * by itself: with `no_sleep` at once to the next deadline; else along VIRTUAL_RT (in auto, to where
 * VIRTUAL_RT is), but not past the next deadline before its timers have run.  Where there is no
 * deadline, or only of EXTERNAL timers, which a guest does not see, or of timers armed for never
 * (INT64_MAX), VIRTUAL stands still.  Lists with a timer due are notified.
 * A timer armed meanwhile by another thread counts from before its timer_mod() notifies anybody: a
 * deadline that VIRTUAL comes to earlier in that call may be passed.  A deadline that goes
 * meanwhile, because its timer was deleted or the clock disabled, is noticed at the next look: at
 * the latest when VIRTUAL has come to it.
 * When timers have run or were armed, a timer on VIRTUAL_RT of the options' group looks again for
 * the next deadline (disabling VIRTUAL_RT stops it too); a thread that has no such loop calls this
 * once more after each qemu_clock_run_timers(QEMU_CLOCK_VIRTUAL).  VIRTUAL does not jump while a
 * callback of VIRTUAL runs.  A callback that wakes a virtual CPU calls icount_account_warp_timer()
 * before it returns: else VIRTUAL goes on until that CPU's thread does so, with `no_sleep` past any
 * number of deadlines.
 * Thread: any.  Call this and icount_account_warp_timer() under the embedder's own lock of who
 * sleeps, so that they come in the order of events.
 */
void icount_start_warp_timer(void);

/* Tells that a virtual CPU is about to run: ends what icount_start_warp_timer() began; VIRTUAL
 * stays where it has come to.  Nothing when no warp goes on.  Thread: any, also in callbacks of
 * timers; as there. */
void icount_account_warp_timer(void);

/* Calls the options' exit_cb; while all virtual CPUs sleep, has the next deadline looked for again.
 * The library does so itself when a VIRTUAL timer is armed for a sooner time and in
 * qemu_clock_notify(QEMU_CLOCK_VIRTUAL).  Thread: any. */
void icount_notify_exit(void);

/* ---- Timers ---------------------------------------------------------------------------------- */

typedef struct QEMUTimerList QEMUTimerList;
typedef void QEMUTimerCB(void *opaque);

/*
 * Told that the deadline of a list of clock @type moved forward.  Called with no lock held, inside
 * an RCU read section, on the thread that armed the timer; must not block nor arm a timer.
 */
typedef void QEMUTimerListNotifyCB(void *opaque, QEMUClockType type);

typedef struct QEMUTimerListGroup {
    QEMUTimerList *tl[QEMU_CLOCK_MAX];
} QEMUTimerListGroup;

/*
 * A timer.  Complete, so that it can be embedded; every field is private, and the layout is part
 * of the library's binary interface.  Zero it or pass it to timer_init_full() before any other use.
 */
typedef struct QEMUTimer {
    int64_t expire_time;           /* ns; -1: not armed.  Atomic: written under the list's lock,
                                     * as what follows, up to soft_place */
    uint32_t place;                /* where in the list's queue */
    uint16_t state;                /* TIMER_* bits.  Atomic */
    uint16_t attributes;           /* fixed */
    QEMUTimerList *timer_list;     /* fixed from init to deinit */
    uint64_t seq;                  /* order of arming, breaks ties */
    int64_t soonest;               /* armed: the start of its range; else its last deadline */
    struct QEMUTimer *next, *prev; /* in a lane or a due list */
    uint32_t soft_place;           /* where in the queue by soonest, while it has a range */
    uint32_t scale;                /* ns per unit; fixed, as what follows */
    QEMUTimerCB *cb;
    void *opaque;
} QEMUTimer;

/* The lists that timers without a group of their own belong to; see init_clocks(). */
extern QEMUTimerListGroup main_loop_tlg;

/*
 * Prepares the clocks and main_loop_tlg, whose lists call @notify_cb (may be NULL).  A program that
 * never calls it gets the same at its first timer, with no callback.  Later calls replace the
 * callback.  Aborts when out of memory.
 * Thread: any, before timers of main_loop_tlg are armed on other threads.
 * Lifetime: the lists last as long as the process.
 */
void init_clocks(QEMUTimerListNotifyCB *notify_cb);

/*
 * Initialises a timer in memory of the caller's, on the list of @type in @group (NULL:
 * main_loop_tlg).  @scale: ns per unit of timer_mod(), 1 to 10^9.  @attributes: QEMU_TIMER_ATTR_*.
 * The callback @cb(@opaque), not NULL, runs on the thread that runs the list.  The short forms are
 * for main_loop_tlg, without attributes; _ns, _us and _ms name the scale.
 * It cannot fail: room for the timer in its list is taken here, and where there is no memory for it
 * the timer works all the same, though arming then takes longer the more timers are armed.
 * Thread: any; takes the list's lock, shortly, when room is to be made.  The first timer on
 * QEMU_CLOCK_HOST starts a thread of the library that sees the clock being set.
 * Lifetime: the memory is the caller's, and the library's too until timer_deinit().
 */
void timer_init_full(QEMUTimer *ts, QEMUTimerListGroup *group, QEMUClockType type, int scale,
                     int attributes, QEMUTimerCB *cb, void *opaque);
void timer_init(QEMUTimer *ts, QEMUClockType type, int scale, QEMUTimerCB *cb, void *opaque);
void timer_init_ns(QEMUTimer *ts, QEMUClockType type, QEMUTimerCB *cb, void *opaque);
void timer_init_us(QEMUTimer *ts, QEMUClockType type, QEMUTimerCB *cb, void *opaque);
void timer_init_ms(QEMUTimer *ts, QEMUClockType type, QEMUTimerCB *cb, void *opaque);

/*
 * Disarms an embedded timer and lets go of it: once this has returned, the library never touches
 * @ts again.  The callback may still be running with its opaque, on the list's thread.  A zeroed
 * or already released timer is left alone; one from timer_new() aborts.
 * Thread: any, also its own callback; no other call on @ts may run beside it: aborts where it sees
 * one.
 */
void timer_deinit(QEMUTimer *ts);

/*
 * The same, and waits for a running callback, so that the object around the timer may go.  If that
 * callback arms the timer meanwhile, that does nothing.
 * Returns 0, or -EDEADLK when a callback was running and it did not wait for it (see the top of
 * this file); the timer is released then too.
 * Thread: any, but not inside an RCU read section; blocks.
 */
int timer_deinit_sync(QEMUTimer *ts);

/*
 * Allocates and initialises a timer; the parameters are those of timer_init_full().
 * Returns NULL with errno ENOMEM when out of memory.  Thread: any.  Lifetime: free with
 * timer_free().
 */
QEMUTimer *timer_new_full(QEMUTimerListGroup *group, QEMUClockType type, int scale, int attributes,
                          QEMUTimerCB *cb, void *opaque);
QEMUTimer *timer_new(QEMUClockType type, int scale, QEMUTimerCB *cb, void *opaque);
QEMUTimer *timer_new_ns(QEMUClockType type, QEMUTimerCB *cb, void *opaque);
QEMUTimer *timer_new_us(QEMUClockType type, QEMUTimerCB *cb, void *opaque);
QEMUTimer *timer_new_ms(QEMUClockType type, QEMUTimerCB *cb, void *opaque);

/*
 * Disarms a timer from timer_new() and marks it dead at once; the memory is freed after its running
 * callback, if any, has returned and a grace period has passed.  Until then timer_mod() on it, from
 * its own callback or inside aio_rcu_read_lock(), does nothing and returns false.  NULL is ignored;
 * a timer that is not from timer_new(), and one that was freed before, abort.
 * Thread: any, also its own callback.
 */
void timer_free(QEMUTimer *ts);

/* Names a timer from timer_new() for timerlist_walk(); another one aborts.  Thread: any; lock-free.
 * Lifetime: @name is not copied, and must live as long as the timer, and a grace period after
 * timer_free(). */
void timer_set_name(QEMUTimer *ts, const char *name);

/*
 * Arms @ts for @expire_time, in its units (_ns: nanoseconds) of its clock; an armed timer moves.
 * Below zero counts as zero; what does not fit saturates at INT64_MAX - 1 ns.  The timer fires once
 * per arming, at or after its deadline; equal deadlines fire in the order of arming.
 * Returns true when it armed, false when the timer is dead or its context is gone.
 * Thread: any; takes the list's lock, shortly, and calls the list's notify callback when its
 * soonest deadline moved forward.  Allocates nothing, cannot fail.
 * Ordering: what the caller wrote before is visible to the callback.
 * Source: docs/timer-queue.md tells of the queue, and of those that were weighed.
 */
bool timer_mod(QEMUTimer *ts, int64_t expire_time);
bool timer_mod_ns(QEMUTimer *ts, int64_t expire_time);

/* The same, but an armed timer is only ever moved to an earlier deadline (of one that has a range,
 * earlier than its latest time; the range is gone then).  Returns true when it armed or moved,
 * false when it was armed for as early a time, is dead or its context is gone.  Thread: any. */
bool timer_mod_anticipate(QEMUTimer *ts, int64_t expire_time);
bool timer_mod_anticipate_ns(QEMUTimer *ts, int64_t expire_time);

/*
 * Arms @ts to fire anywhere from @soonest to @latest, in ns.  Its deadline is @latest: that is what
 * the loop wakes up for, what orders it, and what timer_expire_time_ns() returns; but whenever the
 * loop is awake for another reason, it also runs what has reached its @soonest.  So timers that may
 * wait a little share a wake-up.  A @soonest that is not before @latest is the same as
 * timer_mod_ns() for @latest; both are clamped as there.
 * Returns true when it armed, false when the timer is dead or its context is gone.
 * Thread: any.  Allocates nothing, cannot fail.
 * Source: the ranges of Linux's hrtimers (Documentation/timers/hrtimers.rst, timer slack in
 * prctl(2)).
 */
bool timer_mod_range_ns(QEMUTimer *ts, int64_t soonest, int64_t latest);

/*
 * Moves a periodic timer on, without drift: arms it for its last deadline plus the least whole
 * number of periods, one or more, that lies after @now.  The last deadline is the one it is armed
 * for, else the one it fired for or was deleted at (of a range, the latest); for a timer that was
 * never armed it is @now.  @now: ns of the timer's clock, below zero counts as zero; @interval_ns:
 * 1 or more, less aborts.  What does not fit saturates at INT64_MAX - 1 ns.
 * Returns how many periods were passed over; 0 also when the timer is dead or its context is gone.
 * Thread: any, also its own callback.  Allocates nothing, cannot fail.
 * Source: after Linux's hrtimer_forward().
 */
uint64_t timer_forward(QEMUTimer *ts, int64_t now, int64_t interval_ns);

/*
 * Disarms @ts; the callback may already be running on another thread, and is not waited for.
 * Returns true when it was armed.  Thread: any; takes the list's lock, shortly.
 */
bool timer_del(QEMUTimer *ts);

/*
 * Disarms @ts and waits: at one moment before it returns, the timer was neither armed nor running.
 * The callback that it waits for may free the timer.
 * Returns 1 when it was armed, or was armed again by the time the callback returned; 0 when not;
 * -EDEADLK when a callback was running and it did not wait for it (see the top of this file); the
 * timer is disarmed then too.
 * Thread: any, but not inside an RCU read section; blocks.
 */
int timer_del_sync(QEMUTimer *ts);

/* Returns whether @ts is armed; false from before its callback begins.  Thread: any; lock-free. */
bool timer_pending(const QEMUTimer *ts);

/* Returns whether @ts is armed and due at @current_time, in its units.  Thread: any; lock-free. */
bool timer_expired(const QEMUTimer *ts, int64_t current_time);

/* Returns the deadline of @ts in ns, -1 when it is not armed.  Thread: any; lock-free. */
int64_t timer_expire_time_ns(const QEMUTimer *ts);

/* ---- Lists and groups ------------------------------------------------------------------------ */

/*
 * Makes a list of clock @type; @cb(@opaque, type) is called when its soonest deadline, that of the
 * EXTERNAL timers or that of the others, moves forward.  @cb may be NULL.
 * Returns NULL with errno ENOMEM.  Thread: any.  Lifetime: free with timerlist_free().
 */
QEMUTimerList *timerlist_new(QEMUClockType type, QEMUTimerListNotifyCB *cb, void *opaque);

/*
 * Disarms every timer of the list and closes it: its timers cannot be armed any more, but may be
 * deleted and freed as before.  NULL is ignored; a list that was freed before aborts.
 * Thread: any, but no timerlist_run_timers() of that list may be running: aborts.
 * Lifetime: @tl must not be used any more; its memory goes a grace period after the last of its
 * timers was freed or released.  The notify callback's opaque must stay valid for a grace period
 * (aio_call_rcu()).
 */
void timerlist_free(QEMUTimerList *tl);

/* Returns whether a timer is armed.  Thread: any; lock-free. */
bool timerlist_has_timers(QEMUTimerList *tl);

/* Returns whether a timer is due.  Thread: any; lock-free. */
bool timerlist_expired(QEMUTimerList *tl);

/* The ns until the list's soonest deadline; 0 when one is due, -1 when there is none or the clock
 * does not run.  Thread: any; lock-free. */
int64_t timerlist_deadline_ns(QEMUTimerList *tl);

/* The list's clock.  Thread: any; lock-free. */
QEMUClockType timerlist_get_clock(QEMUTimerList *tl);

/*
 * Runs one pass: what was armed and due when it began, in deadline order, up to a budget of
 * TIMERLIST_BUDGET timers, so that fds and bottom halves get their turn; as far as the budget goes,
 * also what has reached the start of its range.  What a callback arms waits for the next pass.  A
 * pass below a callback first finishes what the outer one has left; only when nothing is left does
 * it begin a pass of its own.
 * Returns true when a callback ran.  Takes no lock when nothing is due, but below a callback.
 * Thread: one at a time, also below a callback; not inside an RCU read section: aborts when
 * something is due.  Calls back with no lock held.
 */
bool timerlist_run_timers(QEMUTimerList *tl);
#define TIMERLIST_BUDGET 64

/* Calls the list's notify callback, unless the list was freed or its context has ended.  Thread:
 * any; takes the list's lock, shortly. */
void timerlist_notify(QEMUTimerList *tl);

/* What timerlist_walk() tells of a timer; a snapshot that may be old when it is read. */
typedef struct QEMUTimerInfo {
    const char *name;    /* timer_set_name()'s, or NULL */
    int64_t deadline_ns; /* -1: not armed */
    bool armed, running, dead;
    int32_t attributes;
} QEMUTimerInfo;

/* Called by timerlist_walk() for each timer, inside a read section: it must not wait.  Return false
 * to stop. */
typedef bool QEMUTimerWalkFunc(const QEMUTimerInfo *info, void *opaque);

/*
 * Shows every timer that timer_new() made on the list, in no order, without stopping anyone.  One
 * that is there all along is shown once; one that is made or freed meanwhile, once or not at all.
 * Returns how many were shown.  Thread: any; lock-free.
 */
unsigned timerlist_walk(QEMUTimerList *tl, QEMUTimerWalkFunc *func, void *opaque);

/*
 * Makes a list of each clock, with the parameters of timerlist_new().
 * Returns 0 or -ENOMEM; then @tlg is as it was.
 * Thread: any.  Lifetime: release with timerlistgroup_deinit().
 */
int timerlistgroup_init(QEMUTimerListGroup *tlg, QEMUTimerListNotifyCB *cb, void *opaque);

/* timerlist_free() on each list of the group, which is zeroed.  Thread and lifetime: as there. */
void timerlistgroup_deinit(QEMUTimerListGroup *tlg);

/* timerlist_run_timers() on each list.  Returns true when a callback ran.  Thread: as there. */
bool timerlistgroup_run_timers(QEMUTimerListGroup *tlg);

/* The soonest timerlist_deadline_ns() of the clocks that qemu_clock_use_for_deadline() names; 0
 * when a timer of any clock is due; -1: none.  Thread: any; lock-free. */
int64_t timerlistgroup_deadline_ns(QEMUTimerListGroup *tlg);

/* The list of @type in main_loop_tlg, made if need be (init_clocks()), and the calls above on it.
 * Threads: as there. */
QEMUTimerList *qemu_clock_get_main_loop_timerlist(QEMUClockType type);
bool qemu_clock_has_timers(QEMUClockType type);
bool qemu_clock_expired(QEMUClockType type);
bool qemu_clock_run_timers(QEMUClockType type);

/* Runs the lists of every clock in main_loop_tlg.  Returns true when a callback ran.  Thread: the
 * one that runs them. */
bool qemu_clock_run_all_timers(void);

/* ---- Timeouts -------------------------------------------------------------------------------- */

/* The sooner of two timeouts, in any one unit, where a negative one means none.  Thread: any. */
static inline int64_t qemu_soonest_timeout(int64_t timeout1, int64_t timeout2)
{
    return (uint64_t)timeout1 < (uint64_t)timeout2 ? timeout1 : timeout2;
}

/* @ns in milliseconds, rounded up so that a wait is never too short, at most INT32_MAX; -1 for a
 * negative one.  Thread: any. */
int qemu_timeout_ns_to_ms(int64_t ns);

/*
 * poll(2) with a timeout in ns; negative: none.
 * Returns what ppoll(2) does: the number of ready fds, 0 when the time is over, or -1 with errno.
 * Thread: any; blocks.
 */
int qemu_poll_ns(struct pollfd *fds, unsigned nfds, int64_t timeout_ns);

#ifdef __cplusplus
}
#endif

#endif
