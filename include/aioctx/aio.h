/* SPDX-License-Identifier: MIT */
/*
 * AioContext: an event loop, and IOThread: a thread that runs one.
 *
 * Every context has one home thread: an iothread's own, else the first that calls aio_poll() or
 * qemu_set_current_aio_context() on it.  Callbacks run there, with no library lock held and
 * outside any RCU read section.
 *
 *                                        thread                    may block
 *   aio_context_new                      any                       no
 *   aio_poll, aio_compute_timeout        home                      aio_poll: when told to
 *   aio_add_sqe, aio_cancel_sqe          home                      no
 *   qemu_set_current_aio_context         the home-to-be            no
 *   qemu_get_current_aio_context,
 *   in_aio_context_home_thread           any                       no, lock-free
 *   aio_notify, aio_bh_schedule_oneshot,
 *   qemu_bh_schedule, _idle, _cancel     any, signal handlers too  no, lock-free
 *     (a oneshot allocates: not from a signal handler)
 *   aio_bh_new, qemu_bh_delete           any                       no
 *   aio_set_fd_handler,
 *   aio_set_event_notifier               any; see there            home: for the kernel, briefly
 *   aio_remove_fd_handler_async          any                       no
 *   event_notifier_set                   any, signal handlers too  no
 *   event_notifier_*                     any                       no
 *   aio_timer_new*, aio_timer_init*      any                       no
 *   aio_context_ref, _get_stats, _describe,
 *   aio_context_get_monitor,
 *   aio_context_get_timer_list_group,
 *   aio_context_set_precise,
 *   aio_context_set_poll_params          any                       no
 *   aio_context_unref                    any; see there            the last one: for operations
 *   aio_context_get_fd, _prepare,
 *   aio_context_dispatch                 home                      no
 *   iothread_new                         any                       for the thread, briefly
 *   iothread_get_stats, the getters      any                       no
 *   iothread_stop                        any, its own too          no
 *   iothread_destroy, iothread_join      any but the thread itself yes
 */
#ifndef AIOCTX_AIO_H
#define AIOCTX_AIO_H

#include <aioctx/timers.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct io_uring_sqe;

typedef struct AioContext AioContext;

/* ---- Contexts -------------------------------------------------------------------------------- */

typedef struct AioContextOptions {
    /* "io_uring", "epoll" or "ppoll"; NULL: what AIOCTX_FDMON names, else the first of them, in
     * this order, that the kernel lets us have.  When that is not io_uring, it is said once on
     * stderr, with the reason: missing, forbidden, out of memory or of file descriptors. */
    const char *monitor;
    unsigned ring_entries; /* of the submission queue, 1 to 32768; 0: 128 */
    /* io_uring only.  0: the loop submits by itself.  Else a thread of the kernel's does (SQPOLL),
     * which looks for entries all the time and sleeps after so many ms without any: it takes a
     * processor of its own to make system calls rare. */
    unsigned sqpoll_idle_ms;
    int64_t precise_ns; /* as aio_context_set_precise(); 0: off */
    int32_t histograms; /* as aio_context_set_histograms(): 1: on; -1: off; 0: as the environment
                         * variable AIOCTX_HISTOGRAMS says, on or off; off without it */
    uint32_t pad;
    int64_t stall_limit_ns; /* as aio_context_set_stall_limit(); 0: what AIOCTX_STALL_MS says, in
                             * milliseconds, off without it; negative: off */
    int64_t poll_max_ns;    /* as aio_context_set_poll_params(); 0: off */
    int64_t poll_grow;      /* likewise; 0: default */
    int64_t poll_shrink;    /* likewise; 0: default */
    uint64_t reserved[4];   /* zero */
} AioContextOptions;

/*
 * Makes a context.  @opts NULL: defaults.
 * Returns NULL with errno: EINVAL for a bad option or environment variable (and says on stderr
 * which values there are), ENOMEM, EMFILE or ENFILE, ENOSYS or EPERM when a monitor was asked
 * for that the kernel does not let us have.
 * Thread: any; where descriptors or memory run short it waits for those that ended contexts are
 * about to give back, for 2 s at most, unless it is below a callback, in an RCU read section or in
 * a deferred call.  Lifetime: one reference, given back with aio_context_unref().
 */
AioContext *aio_context_new(const AioContextOptions *opts);

/* Takes a reference; the caller holds one.  Thread: any. */
void aio_context_ref(AioContext *ctx);

/*
 * Gives a reference back; the last one closes the context as iothread_stop() does, with a limit of
 * 10 s.  When the home thread lives and is another, it does the closing, when it next polls any
 * context, or exits.  A home thread that exits ends its contexts in the same way; the calling
 * thread becomes the home of one that has none.
 * Thread: any; the last one may block, as it waits for operations in flight, and aborts below a
 * callback of the same context.
 * Lifetime: timers of a closed context may be deleted, freed and released, but not armed any more.
 */
void aio_context_unref(AioContext *ctx);

/* The context's list group, for timer_init_full() and timer_new_full(); it lives as long as the
 * context.  Thread: any. */
QEMUTimerListGroup *aio_context_get_timer_list_group(AioContext *ctx);

/* The name of the context's monitor: "io_uring", "epoll" or "ppoll", a string of the library's
 * own.  Thread: any. */
const char *aio_context_get_monitor(AioContext *ctx);

/*
 * Describes the context's monitor to people: its name, the kernel's features that it uses, those
 * that it would use but the kernel, or the liburing that the library was built with, does not have,
 * and, where a better monitor was tried, why there is none:
 *
 *   io_uring: cqsize submit-all r-disabled single-issuer coop-taskrun; without defer-taskrun
 *   epoll: epoll-pwait2; no io_uring here (Operation not permitted)
 *
 * What only the home thread can try shows once that has polled, and registered files and buffers
 * once a driver has asked for them.  Writes at most @size bytes to @buf, with the 0 at the end.
 * Returns the length of the whole text without the 0, as snprintf(3).  Thread: any.
 */
int aio_context_describe(AioContext *ctx, char *buf, size_t size);

/*
 * Precise mode: a blocking aio_poll() sleeps until @lead_ns before the soonest timer's deadline,
 * and for the rest polls, without sleeping, for the deadline and for all that would end a sleep but
 * a signal.  A timer is then late by what the loop takes to call it, and no longer by what the
 * processor takes to wake up, as long as that is within @lead_ns; the price is up to @lead_ns of
 * processor time for each deadline (AioContextStats.precise_poll_ns adds it up).  The lead should
 * cover a wake-up, which takes some 5 us to 100 us: bench/deadline_bench measures it.
 * @lead_ns: 0 to INT64_MAX ns; 0: off; a negative one aborts.
 * Thread: any, signal handlers too; takes effect at once, as it notifies the context.
 */
void aio_context_set_precise(AioContext *ctx, int64_t lead_ns);

/*
 * Adaptive busy polling: before a blocking aio_poll() sleeps, it polls for a while, without
 * sleeping, for all that would end the sleep but a signal, and calls the io_poll of handlers, see
 * aio_set_fd_handler().  What comes meanwhile is met sooner, and costs who sends it no system call
 * (aio_notify(), bottom halves, timers); the price is processor time.  How long it polls is found
 * out: after a sleep that longer polling would have made needless, the time is multiplied by @grow,
 * up to @max_ns; after a wait longer than @max_ns it is divided by @shrink, as polling was in vain.
 * It begins with 4000 ns, and there is no polling when it falls below.  For a while there is none
 * either when another thread wants the processor.
 * @max_ns: 0 to INT64_MAX ns; 0: off.  @grow: 0 is 2; 1 stays at the first 4000 ns.  @shrink: 0 is
 * all at once; 1 never shrinks.
 * Returns 0; -EINVAL when one is negative, and then changes nothing.
 * Thread: any, signal handlers too; takes effect at once, as it notifies the context.
 * Source: Documentation/virt/kvm/halt-polling.rst in the Linux kernel.
 */
int aio_context_set_poll_params(AioContext *ctx, int64_t max_ns, int64_t grow, int64_t shrink);

/* Returns whether the calling thread is the context's home.  Thread: any. */
bool in_aio_context_home_thread(AioContext *ctx);

/* The context that the calling thread polls: inside aio_poll() that one, else the one it last made
 * its own; NULL when it has none.  Thread: any. */
AioContext *qemu_get_current_aio_context(void);

/*
 * Makes the calling thread @ctx's home before its first aio_poll(), so that it can submit block
 * requests and operations, and @ctx its current context; below a callback, the context whose
 * callback it is stays current.  Aborts when another thread is home.  Thread: the home-to-be.
 */
void qemu_set_current_aio_context(AioContext *ctx);

/*
 * Runs one iteration: waits, when @blocking, until there is something to do or aio_notify() is
 * called, then runs bottom halves, completions, fd handlers and timers that are due.
 * Returns true when something was done; a wake-up alone, a signal or an idle bottom half is no
 * progress.  May be called below any callback of the same context.
 * A context of the same thread whose last reference went elsewhere is closed first, see
 * aio_context_unref(): that may wait for its operations.
 * Thread: home; another one aborts.  Not inside an RCU read section: aborts.
 */
bool aio_poll(AioContext *ctx, bool blocking);

/*
 * Makes the context's current or next blocking aio_poll() return.  It makes no system call when
 * the home thread is awake; many calls before one wake-up make one.
 * Thread: any, signal handlers too; never blocks.  Lifetime: the caller holds a reference.
 * Ordering: what the caller wrote before is visible to the home thread when that aio_poll()
 * returns.
 */
void aio_notify(AioContext *ctx);

/* The ns that a blocking aio_poll() would wait now: 0 when something is to be done, -1 without
 * limit; a notify that is pending is not looked at.  Precise mode's polling counts as waiting.
 * Thread: home, as aio_poll(). */
int64_t aio_compute_timeout(AioContext *ctx);

/* ---- Embedding ------------------------------------------------------------------------------- */

/*
 * A program that has an event loop of its own, the host, waits for a context as for one fd:
 *
 *   int fd = aio_context_get_fd(ctx);             once; below zero: -errno
 *   for (;;) {
 *       bool now = aio_context_prepare(ctx);      last before each wait
 *       poll(fds, n, now ? 0 : -1);               fd for POLLIN, beside the host's own
 *       if (now || is_readable(fd)) {
 *           aio_context_dispatch(ctx);
 *       }
 *   }
 *
 * No timeout is needed: timers, fds, bottom halves, completions and notifies of other threads all
 * make the fd readable; when nothing is to be done it is not.  aio_poll() may come in between
 * anywhere, also below a callback that aio_context_dispatch() calls.  docs/embedding.md has more.
 */

/*
 * The one fd to wait for, with poll(2) or whatever else is level-triggered (epoll(7) without
 * EPOLLET).  The first call makes it.
 * Returns the fd; -EMFILE, -ENFILE, -ENOMEM; else -errno of what the kernel denies:
 * epoll_create1(2), epoll_ctl(2), timerfd_create(2), timerfd_settime(2), eventfd(2),
 * io_uring_register(2).  After an error the context is as before.
 * Thread: home, as aio_poll(); does not block.
 * Lifetime: the context's, until it ends; take it out of the host's set before the last
 * aio_context_unref().  Neither read, written nor closed by the caller.
 * Source: io_uring_register_eventfd(3), epoll(7), timerfd_create(2).
 */
int aio_context_get_fd(AioContext *ctx);

/*
 * Says that the host is about to wait: submits what is queued, and sees to it that from now on
 * whatever is to be done makes the fd readable.  What the calling thread itself asks for afterwards
 * (a timer, an fd handler, an operation) needs another call before the wait; what other threads and
 * signal handlers ask for does not.  Without a wait, or with one that the fd did not end, nothing
 * else has to follow; it may be called again.
 * Returns true when something is to be done already, or a notify has come since the last
 * aio_context_dispatch() or blocking aio_poll(): then do not wait, and dispatch.
 * Aborts when there was no aio_context_get_fd().
 * Thread: home, as aio_poll(); neither blocks nor calls back.
 * Ordering: as a blocking aio_poll(): no aio_notify() that is made after the return is without
 * effect on the fd.
 */
bool aio_context_prepare(AioContext *ctx);

/*
 * Runs one iteration, as aio_poll(ctx, false), and takes the notifies that have come.  Precise mode
 * and busy polling have no effect here: the wait is the host's.  It may be called when the fd is
 * not readable.
 * Returns true when something was done.
 * Aborts when there was no aio_context_get_fd().
 * Thread: home; otherwise as aio_poll(), also below a callback.
 * Ordering: what was written before a notify that the fd, or aio_context_prepare(), has told of is
 * visible to the callbacks, and after the return.
 */
bool aio_context_dispatch(AioContext *ctx);

/* ---- Timers on a context --------------------------------------------------------------------- */

/*
 * timer_new_full() on the context's list of @type, and timer_init_full(); those without _with_attrs
 * have no attributes.  Returns, lifetime and thread: as there.
 */
QEMUTimer *aio_timer_new(AioContext *ctx, QEMUClockType type, int scale, QEMUTimerCB *cb,
                         void *opaque);
QEMUTimer *aio_timer_new_with_attrs(AioContext *ctx, QEMUClockType type, int scale, int attributes,
                                    QEMUTimerCB *cb, void *opaque);
void aio_timer_init(AioContext *ctx, QEMUTimer *ts, QEMUClockType type, int scale, QEMUTimerCB *cb,
                    void *opaque);
void aio_timer_init_with_attrs(AioContext *ctx, QEMUTimer *ts, QEMUClockType type, int scale,
                               int attributes, QEMUTimerCB *cb, void *opaque);

/* ---- Bottom halves --------------------------------------------------------------------------- */

typedef struct QEMUBH QEMUBH;
typedef void QEMUBHFunc(void *opaque);

/*
 * Makes a bottom half: a callback that can be scheduled again and again.
 * Returns NULL with errno ENOMEM.  Thread: any.
 * Lifetime: qemu_bh_delete() it; the caller holds a reference on @ctx until then.
 */
QEMUBH *aio_bh_new(AioContext *ctx, QEMUBHFunc *cb, void *opaque);

/*
 * Has @cb(@opaque) called once on the context's home thread.
 * Returns 0; -ENOMEM; -ESHUTDOWN when the context has ended.  What was accepted runs.
 * Thread: any, but not a signal handler (it allocates).
 */
int aio_bh_schedule_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque);

/*
 * Schedules a bottom half; one that is scheduled already runs once.  Those scheduled by one thread
 * run in that order (one that was cancelled may keep its place); one scheduled from a bottom half
 * runs in the next pass.  Nothing when the context has ended, nor when it ends while the call that
 * scheduled @bh first is still under way on another thread.
 * Thread: any, signal handlers too; lock-free.
 * Ordering: what the caller wrote before is visible to the callback.
 */
void qemu_bh_schedule(QEMUBH *bh);

/* The same without urgency: it runs with the next iteration, after 10 ms at the latest.
 * Thread: any, signal handlers too. */
void qemu_bh_schedule_idle(QEMUBH *bh);

/* Takes back a scheduling that has not run.  On other threads than home it may already be running.
 * Thread: any, signal handlers too. */
void qemu_bh_cancel(QEMUBH *bh);

/*
 * Cancels and frees a bottom half, also from its own callback.  NULL is ignored; a second delete of
 * one bottom half aborts where it is seen.
 * Thread: any.  Lifetime: no other call on @bh may run beside it or come later.
 */
void qemu_bh_delete(QEMUBH *bh);

/* ---- Event notifiers ------------------------------------------------------------------------- */

/* An eventfd; complete, so that it can be embedded.  Fields are private. */
typedef struct EventNotifier {
    int rfd;
    int wfd;
    bool initialized;
    uint8_t pad[7];
    uint64_t reserved;
} EventNotifier;

/* Makes the notifier's fd (close-on-exec, non-blocking), set at first when @active is not 0.
 * Returns 0 or -errno of eventfd(2).  Thread: any. */
int event_notifier_init(EventNotifier *e, int active);

/* Closes the notifier; one that is not initialised is left alone.  Remove its handler first.
 * Thread: any, while no other uses it. */
void event_notifier_cleanup(EventNotifier *e);

/* Sets the notifier; one that is set stays so.  Returns 0; -EINVAL for one that is not initialised;
 * else -errno of write(2).  Thread: any, signal handlers too; never blocks. */
int event_notifier_set(EventNotifier *e);

/* Clears the notifier.  Returns 1 when it was set, 0 when not or when it is not initialised.
 * Thread: any; never blocks. */
int event_notifier_test_and_clear(EventNotifier *e);

/* The fd to poll for reading; -1 after event_notifier_cleanup().  Thread: any. */
int event_notifier_get_fd(const EventNotifier *e);

/* ---- File descriptors ------------------------------------------------------------------------ */

typedef void IOHandler(void *opaque);
typedef bool AioPollFn(void *opaque);
typedef void EventNotifierHandler(EventNotifier *e);

/*
 * Has @io_read called when @fd can be read (or hangs up, or has an error) and @io_write when it can
 * be written; level-triggered: what a handler leaves comes again.  As after poll(2), there may
 * rarely be nothing after all: let @fd be non-blocking.  Both NULL removes the fd's handlers.
 * @io_poll and @io_poll_ready serve adaptive polling (aio_context_set_poll_params()); they may be
 * NULL.  While the loop polls, @io_poll is called again and again; it looks, without a system call
 * if it can, whether the handlers would find something to do, and returns that.  On true,
 * @io_poll_ready is called soon in their place, like every callback by aio_poll(); NULL: @io_read,
 * else @io_write.  They have to take note of all that @io_poll does: while polling, nobody may have
 * asked the kernel about @fd.  They are called all the same when the loop sleeps or does not poll,
 * and for errors.  A handler that was not ready during 64 times max_ns of polling is left to the
 * kernel until its next event.
 * On the home thread the change holds when this returns; after a removal no callback for @fd
 * follows, even when its event had been seen already, and the kernel has let go of the file: it may
 * be closed and its number used again at once.  From another thread, or before the context has a
 * home, the change is made by the home thread soon; see aio_remove_fd_handler_async(). An error on
 * the fd calls both handlers.  Remove the handlers before closing the fd: otherwise, what the
 * monitor watches is up to the kernel.
 * Returns 0; -EBADF for a negative fd or, on the home thread, one that is not open; -ENOMEM;
 * -ESHUTDOWN on the home thread when the context has ended; elsewhere the change is dropped then.
 * Thread: any.
 */
int aio_set_fd_handler(AioContext *ctx, int fd, IOHandler *io_read, IOHandler *io_write,
                       AioPollFn *io_poll, IOHandler *io_poll_ready, void *opaque);

/*
 * Removes the handlers of @fd and calls @done(@opaque) on the home thread when no callback for it
 * runs or will follow and the fd may be closed.  Never calls it before it returns.  When the
 * context ends first, the thread that closes it calls @done.
 * Returns 0, -EBADF for a negative fd, or -ENOMEM.  Thread: any.
 */
int aio_remove_fd_handler_async(AioContext *ctx, int fd, QEMUBHFunc *done, void *opaque);

/* aio_set_fd_handler() for a notifier's fd; @io_read NULL removes.  The handler clears the
 * notifier itself.  Returns and thread as there. */
int aio_set_event_notifier(AioContext *ctx, EventNotifier *e, EventNotifierHandler *io_read,
                           AioPollFn *io_poll, EventNotifierHandler *io_poll_ready);

/* ---- Operations on the ring ------------------------------------------------------------------ */

typedef struct CqeHandler CqeHandler;

/*
 * The completion of one operation; embed it in the request.  The submitter sets cb and zeroes the
 * rest; res and flags are the kernel's when cb is called.
 */
struct CqeHandler {
    void (*cb)(CqeHandler *handler);
    int32_t res;       /* 0 or more, or -errno */
    uint32_t flags;    /* IORING_CQE_F_* */
    CqeHandler *next;  /* private */
    uint64_t reserved; /* private */
};

/*
 * Queues one operation on the ring of the calling thread's current context: @prep fills the
 * submission entry (with liburing's io_uring_prep_*; its user_data is set afterwards), and
 * @handler->cb is called from aio_poll() when it has completed.  It is submitted together with the
 * next wait.  Operations that complete more than once (multishot, zero-copy send) are not
 * supported.
 * Returns 0; -ENOTSUP when the context's monitor is not io_uring; -EINVAL when the thread has no
 * context; -ESHUTDOWN when it has ended.  Then @prep and @handler->cb are not called.
 * Thread: home.  Lifetime: @handler and what the operation refers to belong to the library and the
 * kernel until its cb is called, within which it may be freed or used again.
 */
int aio_add_sqe(void (*prep)(struct io_uring_sqe *sqe, void *opaque), void *opaque,
                CqeHandler *handler);

/*
 * Asks the kernel to cancel an operation that aio_add_sqe() queued.  Its cb is called all the
 * same, with -ECANCELED when the cancel came in time, else with its own result.
 * Returns 0, or -errno as aio_add_sqe().  Thread: home.
 */
int aio_cancel_sqe(CqeHandler *handler);

/* ---- Statistics ------------------------------------------------------------------------------ */

typedef struct AioContextStats {
    uint64_t iterations;      /* of aio_poll() */
    uint64_t sleeps;          /* waits in the kernel that could block, or of the host */
    uint64_t syscalls;        /* made by the home thread's loop and its monitor */
    uint64_t wakeups_notify;  /* sleeps that a notify ended */
    uint64_t wakeups_timeout; /* the other sleeps: a deadline, as a rule */
    uint64_t wakeups_event;   /* sleeps that a completion or an fd ended */
    uint64_t wakeups_signal;  /* sleeps that a signal ended */
    uint64_t notifies;        /* aio_notify() and its kin */
    uint64_t notifies_sent;   /* those that made a system call; the rest were saved */
    uint64_t bhs;             /* bottom halves run */
    uint64_t fd_events;       /* fd handlers called */
    uint64_t timers;          /* passes over the timers that ran at least one */
    uint64_t sqes, cqes;      /* entries queued and completions seen, our own included */
    uint64_t cq_overflows;    /* times the kernel had to hold completions back */
    uint64_t sq_full;         /* times the queue had to be submitted to make room */
    uint64_t precise_polls;   /* waits that ended in polling, see aio_context_set_precise() */
    uint64_t precise_poll_ns; /* the time that this took */
    uint64_t polls;           /* adaptive ones, see aio_context_set_poll_params() */
    uint64_t polls_found;     /* those that something to do ended, or a deadline */
    uint64_t poll_ns;         /* the time that they took */
    uint64_t reserved[11];
} AioContextStats;

/* Copies the context's counters.  Each is exact, but they are not of one moment.  Thread: any. */
void aio_context_get_stats(AioContext *ctx, AioContextStats *ret_stats);

/* ---- IOThreads ------------------------------------------------------------------------------- */

typedef struct IOThread IOThread;

typedef struct IOThreadOptions {
    AioContextOptions context;
    unsigned
        stop_timeout_ms; /* how long iothread_destroy() waits for I/O before it cancels; 0: 10000 */
    uint32_t pad;
    const char *cpus;     /* the processors to run on, such as "0-3,7"; NULL: the caller's */
    uint64_t reserved[5]; /* zero */
} IOThreadOptions;

/*
 * Starts a thread that runs a context of its own.  @name (NULL: "iothread"; copied) shows in ps and
 * top, cut to 15 bytes.  @opts NULL: defaults; read before this returns.  The thread blocks all
 * signals, and sets its timer slack to 1 ns.  With IOThreadOptions.cpus it runs on those processors
 * alone, and puts itself there before it makes its context, so that the kernel takes the memory
 * from the node that they belong to.
 * Returns NULL with errno: EINVAL for a list of processors that is none or that names one which the
 * process may not use (and says on stderr what may be named), EPERM where the kernel denies it;
 * that of aio_context_new() or pthread_create(3).
 * Thread: any; waits until the thread has its context.  Lifetime: iothread_destroy().
 */
IOThread *iothread_new(const char *name, const IOThreadOptions *opts);

/* The thread's context; lives until iothread_destroy(), longer with a reference.  Thread: any. */
AioContext *iothread_get_aio_context(IOThread *iothread);

/* The thread's name as given.  Thread: any. */
const char *iothread_get_name(const IOThread *iothread);

typedef struct IOThreadStats {
    int32_t tid;                   /* the thread's, as in ps -L; after its end, what it was */
    uint32_t running;              /* 1; 0: it has ended */
    uint64_t cpu_ns;               /* processor time, in user and kernel mode */
    uint64_t voluntary_switches;   /* times it went to sleep */
    uint64_t involuntary_switches; /* times another thread was let run in its place */
    uint64_t reserved[12];
    AioContextStats context;
} IOThreadStats;

/*
 * Copies what the kernel and the thread's context have counted; once the thread has ended, what
 * they had counted by then.  Reads a file of /proc while the thread runs, some 20 us: not for hot
 * paths.
 * Returns 0; -errno of fopen(3) or clock_gettime(2).
 * Thread: any, until iothread_destroy().
 */
int iothread_get_stats(IOThread *iothread, IOThreadStats *ret_stats);

/*
 * Tells the thread to end: it runs the bottom halves that were accepted, waits for operations and
 * requests in flight up to the stop timeout, disarms its timers, cancels what is still in flight
 * and names it on stderr, closes its ring and exits.  Does not wait.
 * Thread: any, also its own.
 */
void iothread_stop(IOThread *iothread);

/* Waits until the thread has ended after iothread_stop().  Returns 0, also when it was joined
 * before; -EDEADLK when called below a callback on a home thread.
 * Thread: any but the iothread itself, which aborts, one at a time; blocks; not inside an RCU read
 * section: aborts. */
int iothread_join(IOThread *iothread);

/* iothread_stop(), iothread_join(), and frees.  NULL is ignored.
 * Returns 0; -EDEADLK when called below a callback on a home thread: the thread is told to end and
 * frees itself when it has.  Thread: any but the iothread itself, which aborts; blocks; not inside
 * an RCU read section: aborts. */
int iothread_destroy(IOThread *iothread);

#ifdef __cplusplus
}
#endif

#endif
