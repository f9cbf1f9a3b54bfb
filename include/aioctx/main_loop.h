/* SPDX-License-Identifier: MIT */
/*
 * The main loop: an AioContext of the program's own thread, whose list group is main_loop_tlg.
 *
 * A program without iothreads needs nothing else: timers made without a group (timer_new_ns() and
 * its kin) run here, and so do fd handlers, bottom halves and block requests of this thread.
 *
 *   qemu_init_main_loop(NULL);
 *   while (running) {
 *       main_loop_wait(false);
 *   }
 *   qemu_cleanup_main_loop();
 *
 * Poll notifiers bring in fds and timeouts of other libraries, which know poll(2) but not this one:
 * each wait asks them what to wait for, and then tells them what has come.
 *
 *                                              thread
 *   qemu_init_main_loop                        any: it becomes the main loop's
 *   main_loop_wait, qemu_cleanup_main_loop,
 *   main_loop_poll_add_notifier, _remove_      the main loop's
 *   main_loop_poll_add_fd                      the main loop's, in a notifier's call
 *   qemu_notify_event                          any, signal handlers too
 *   qemu_get_aio_context, qemu_bh_new,
 *   qemu_set_fd_handler                        any
 *
 * The calls for any thread must not run beside qemu_init_main_loop() or qemu_cleanup_main_loop() on
 * another.  That holds for signal handlers too: other threads block a signal that is sent to the
 * process, and whose handler makes such a call, meanwhile; on the same thread it may come at any
 * time.  Arming timers of main_loop_tlg may run beside them.
 *
 * While there is a main loop, its thread alone runs the lists of main_loop_tlg: nobody else calls
 * qemu_clock_run_timers(), qemu_clock_run_all_timers() or their like.
 *
 * Callbacks and poll notifiers return: they neither end their thread (pthread_exit(), cancellation)
 * nor jump out.  If one ends its thread nonetheless, the loop can still be cleaned up, but what it
 * was about is not finished, and memory may leak.
 */
#ifndef AIOCTX_MAIN_LOOP_H
#define AIOCTX_MAIN_LOOP_H

#include <aioctx/aio.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The loop -------------------------------------------------------------------------------- */

/*
 * Makes the main loop.  The calling thread becomes its context's home, and the context the thread's
 * current one, as by qemu_set_current_aio_context(): not if this is called below a callback of
 * another context.  Timers of main_loop_tlg that are armed already run on it too.
 * @opts: as for aio_context_new(); NULL: defaults.
 * Returns 0; -EBUSY when there is a main loop; else -errno of aio_context_new().  After an error
 * nothing has changed.
 * Thread: any.  Lifetime: until qemu_cleanup_main_loop(); a program may also just exit.
 */
int qemu_init_main_loop(const AioContextOptions *opts);

/*
 * Ends the main loop as iothread_stop() ends an iothread's, with a limit of 10 s: runs the bottom
 * halves that were accepted, waits for what is in flight, cancels what is left.  Poll notifiers are
 * taken off.  Timers of main_loop_tlg stay as they are: armed ones wait for another main loop,
 * which may be made afterwards, on any thread.  Nothing when there is no main loop.
 * Thread: the main loop's, not below a callback of the main loop, not inside an RCU read section:
 * else aborts.  Any when that thread has exited.  Blocks.
 */
void qemu_cleanup_main_loop(void);

/*
 * Runs one iteration: asks the poll notifiers, waits, unless @nonblocking, until something is to be
 * done, a foreign fd is ready, a foreign timeout has passed or qemu_notify_event() is called, then
 * runs what aio_poll() runs, and tells the poll notifiers.
 * Returns true when something was done or a foreign fd is ready; a wake-up alone, a signal or the
 * end of a foreign timeout is no progress.
 * Thread: the main loop's; another one aborts.  May be called below any callback of the thread, and
 * by a poll notifier that is told, but not below one that is being asked (also not by a callback
 * that the latter's aio_poll() runs): aborts.  The outer wait sleeps no more, and returns when its
 * callbacks have.  Not inside an RCU read section: aborts.
 */
bool main_loop_wait(bool nonblocking);

/*
 * Makes the current or next main_loop_wait(false) return, also where an aio_poll() or a
 * main_loop_wait(true) comes between; of nested ones, the innermost.  Many calls before that make
 * one.  Nothing when there is no main loop.
 * Thread: any, signal handlers too; never blocks.
 * Ordering: what the caller wrote before is visible to the loop's thread when that wait returns.
 */
void qemu_notify_event(void);

/* The main loop's context; NULL when there is none.  Thread: any.  Lifetime: until
 * qemu_cleanup_main_loop(); with a reference longer, but ended. */
AioContext *qemu_get_aio_context(void);

/* aio_bh_new() on the main loop's context; aborts when there is none.  Returns, thread and
 * lifetime: as there. */
QEMUBH *qemu_bh_new(QEMUBHFunc *cb, void *opaque);

/* aio_set_fd_handler() on the main loop's context, without polling callbacks; aborts when there is
 * none.  Returns and thread: as there. */
int qemu_set_fd_handler(int fd, IOHandler *fd_read, IOHandler *fd_write, void *opaque);

/* ---- Poll notifiers -------------------------------------------------------------------------- */

/* Why a poll notifier is called. */
enum {
    MAIN_LOOP_POLL_FILL = 0, /* a wait begins: say what to wait for */
    MAIN_LOOP_POLL_OK = 1,   /* it is over: revents tell what is ready now */
    MAIN_LOOP_POLL_ERR = 2,  /* it is over, but poll(2) failed: every revents is 0 */
};

/* What a poll notifier is given, for the time of the call. */
typedef struct MainLoopPoll {
    int state;          /* MAIN_LOOP_POLL_* */
    unsigned nfds;      /* of pollfds */
    int64_t timeout_ns; /* FILL: the longest wait so far, -1 without limit, 0 not at all; lower it
                         * with qemu_soonest_timeout(); raising it has no effect; counts from when
                         * all have been asked */
    struct pollfd *pollfds; /* those of every notifier, by index; revents stand when OK */
    uint64_t reserved[4];
} MainLoopPoll;

typedef struct MainLoopPollNotifier MainLoopPollNotifier;
typedef void MainLoopPollNotify(MainLoopPollNotifier *notifier, MainLoopPoll *poll);

/* A poll notifier; embed it.  Set `notify`, and zero the rest. */
struct MainLoopPollNotifier {
    MainLoopPollNotify *notify;
    MainLoopPollNotifier *next, **pprev; /* private, as what follows */
    uint64_t cycle;
    uint64_t reserved[2];
};

/*
 * A notifier for a library that has one fd and a timeout:
 *
 *   static void notify(MainLoopPollNotifier *notifier, MainLoopPoll *poll)
 *   {
 *       struct user *u = (struct user *)notifier;    its first member
 *
 *       if (poll->state == MAIN_LOOP_POLL_FILL) {
 *           u->index = main_loop_poll_add_fd(poll, lib_fd(u->lib), POLLIN);
 *           poll->timeout_ns = qemu_soonest_timeout(poll->timeout_ns, lib_timeout_ns(u->lib));
 *       } else {
 *           lib_process(u->lib, u->index >= 0 ? poll->pollfds[u->index].revents : 0);
 *       }
 *   }
 */

/*
 * Has @notifier called twice in every main_loop_wait(): before the wait with MAIN_LOOP_POLL_FILL,
 * after it with one of the other states.  Notifiers are called in the order in which they were
 * added.  One that is added meanwhile is told only after it was asked; one that is removed and
 * added again while they are asked is asked once.  One that was asked again, by a main_loop_wait()
 * below a callback, is told there, and not once more by the outer wait.
 * In its calls a notifier may do what a bottom half may, and add and remove notifiers.  Where it
 * runs callbacks while it is asked, with an aio_poll(), those asked before it are not asked again:
 * if a callback changes what one of them wants, qemu_notify_event() cuts the wait short.
 *
 * The fds are given anew with each wait, so one may be closed, and its number used again, between
 * any two of them.  Revents are what poll(2) says when the iteration's callbacks have run; as
 * everywhere, another thread may have been faster.  A wait that sleeps makes a system call for each
 * foreign fd, and one that does not makes one or two for all.  The kernel is asked more than once
 * in a wait: of an fd whose readiness is spent by asking, such as a file below /proc/sys, events
 * may be missed.  While poll(2) fails (more fds than RLIMIT_NOFILE), a wait lasts 10 ms at most,
 * and no foreign fd ends it.
 * Aborts when the notifier is there already, or there is no main loop.
 * Thread: the main loop's; another one aborts.
 * Lifetime: the caller's, until main_loop_poll_remove_notifier() or qemu_cleanup_main_loop().
 */
void main_loop_poll_add_notifier(MainLoopPollNotifier *notifier);

/* Takes a notifier off: it is not called any more.  Nothing when it is not there.  Thread: the main
 * loop's, also below the notifier's own call; another one aborts. */
void main_loop_poll_remove_notifier(MainLoopPollNotifier *notifier);

/*
 * Adds @fd to those that this wait waits for; @events: POLL* as for poll(2).  Several may name the
 * same fd, which may also have handlers of its own.  A negative fd is passed over, one that is not
 * open is ready at once (POLLNVAL), and so is a regular file: all as poll(2) does.
 * Returns the index in poll->pollfds at which its revents will be, or -ENOMEM: then the wait is cut
 * short, so that the next one can try again.
 * Thread: that of the notifier's call, whose @poll it is, in MAIN_LOOP_POLL_FILL; else aborts.
 */
int main_loop_poll_add_fd(MainLoopPoll *poll, int fd, short events);

#ifdef __cplusplus
}
#endif

#endif
