/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress --mode notify: what its files share.
 *
 *   stress_wakes.c      threads that give sleeping loops work, and loops that must wake up for it
 *   stress_wakes_log.c  what they did, and how it is shown when a wake-up was lost
 *   stress_plant.c      the layer between them and the library, as in the other mode
 */
#ifndef STRESS_WAKES_H
#define STRESS_WAKES_H

#include "stress.h"

/* Why a loop is to wake up. */
enum wake_kind {
    WAKE_NOTIFY,
    WAKE_BH,
    WAKE_EVENT, /* the kinds up to here are safe in a signal handler */
    WAKE_ONESHOT,
    WAKE_IDLE,
    WAKE_TIMER,
    WAKE_FD,
    WAKE_REMOVE,
    WAKE_SIGNAL, /* one of the first three, out of a signal handler */
    WAKE_MAX
};
#define WAKE_SAFE_KINDS 3

/*
 * The work that one thread gives to one loop in one way.  Each piece has a number, one more than
 * the one before; all up to `seen` are done.
 */
struct wake_channel {
    _Alignas(64) atomic_uint_fast64_t given; /* the thread writes, before it calls the library */
    atomic_uint_fast64_t seen;               /* the loop writes */
    uint64_t
        payload; /* of kinds that are given again only when seen: orders by the library alone */
    uint8_t thread, loop, kind;
    bool by_signal;
    struct wake_loop *to;
    QEMUBH *bh;
    QEMUTimer *timer;
    EventNotifier event;

    /* The watchdog's. */
    uint64_t stuck_given, stuck_polls;
    unsigned stuck_ticks;
};

/* One thing that happened.  Any thread reads. */
struct wake_entry {
    atomic_int_fast64_t time_ns; /* CLOCK_MONOTONIC */
    atomic_uint_fast64_t what;   /* packed, see stress_wakes_log.c */
};

/* What one thread, or its signal handler, did last.  It alone writes: nothing that it does for the
 * log may order what it does with the library. */
#define WAKE_LOG 1024
struct wake_log {
    unsigned next;
    struct wake_entry entries[WAKE_LOG];
};

enum wake_event { EVENT_CALL, EVENT_RETURN, EVENT_SEEN, EVENT_POLL, EVENT_POLLED };

struct wake_loop {
    struct actor actor;
    pthread_t thread;
    AioContext *ctx;
    QEMUTimer *far;
    atomic_bool stop;
    atomic_uint_fast64_t polls;
    struct wake_log log;

    /* For planted bugs alone. */
    atomic_bool asleep, sent;
};

/* A thread that gives work. */
struct wake_giver {
    struct actor actor, handler;       /* of the thread, of its signal handler */
    pthread_t thread, id;              /* the coordinator's; written by the thread itself */
    uint64_t counts[WAKE_MAX];         /* its own */
    uint64_t handled_counts[WAKE_MAX]; /* the handler's */
    atomic_uint handled;               /* signals */
    struct wake_log log, handler_log;
};

struct wakes {
    struct wake_giver *givers;
    struct wake_loop *loops;
    /* [thread][loop][kind], and for the first kinds once more: those of signal handlers */
    struct wake_channel *channels;
};
extern struct wakes W;
#define WAKE_CHANNELS (WAKE_MAX + WAKE_SAFE_KINDS)

extern const char *const wake_names[WAKE_MAX];

static inline struct wake_channel *wake_channel(unsigned thread, unsigned loop, unsigned i)
{
    return &W.channels[(thread * S.opt.contexts + loop) * WAKE_CHANNELS + i];
}

/* ---- stress_wakes.c -------------------------------------------------------------------------- */

/* The whole run; returns when it has ended without a violation. */
void wakes_run(const atomic_int *interrupted);

/* ---- stress_wakes_log.c ---------------------------------------------------------------------- */

/* @ch: NULL for EVENT_POLL and EVENT_POLLED. */
void wakes_log(struct wake_log *log, enum wake_event event, const struct wake_channel *ch,
               uint64_t number);
/* Prints what was last done to and by the loop of @ch, and ends the program with status 1. */
_Noreturn void wakes_report(const struct wake_channel *ch, const char *kind, const char *text);
void wakes_summary(double seconds, uint64_t rounds, bool interrupted);

/* ---- stress_plant.c -------------------------------------------------------------------------- */

/* Give number @n of the channel. */
void sut_wake_notify(struct actor *a, struct wake_channel *ch, uint64_t n);
void sut_wake_bh(struct actor *a, struct wake_channel *ch);
int sut_wake_oneshot(struct actor *a, struct wake_channel *ch, QEMUBHFunc *cb);
void sut_wake_timer(struct actor *a, struct wake_channel *ch, int64_t ns);
int sut_wake_remove(struct actor *a, struct wake_channel *ch, QEMUBHFunc *done);
/* Around a loop's blocking poll. */
void sut_wake_before_poll(struct wake_loop *l);
void sut_wake_after_poll(struct wake_loop *l);

#endif
