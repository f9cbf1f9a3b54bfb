/* SPDX-License-Identifier: MIT */
/*
 * aioctx-stress: what its files share.
 *
 *   aioctx-stress.c   rounds and threads
 *   stress_options.c  the command line
 *   stress_ops.c      what the threads do to the timers, and the log that they keep of it
 *   stress_clocks.c   disabling clocks, stopping VIRTUAL, and what must not happen meanwhile
 *   stress_lists.c    lists and contexts that come and go, deadlines and walks beside them
 *   stress_plant.c    the layer between them and the library, where planted bugs are
 *   stress_oracle.c   whether some valid order explains a log
 *   stress_report.c   how a violation and the summary are shown
 *   stress_wakes.h    --mode notify, a program beside this one
 */
#ifndef STRESS_H
#define STRESS_H

#include <aioctx/aio.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Operations and their log ---------------------------------------------------------------- */

enum op_kind {
    OP_MOD,
    OP_ANTICIPATE,
    OP_RANGE,
    OP_FORWARD,
    OP_DEL,
    OP_DEL_SYNC,
    OP_FREE,
    OP_EMBED, /* a whole life of an embedded timer; logged as its parts */
    OP_READ,
    OP_SIDE, /* those that follow are checked on the spot; the others are logged */
    OP_WALK = OP_SIDE,
    OP_DEADLINE,
    OP_DISABLE,
    OP_STOP,
    OP_LISTS,
    OP_CONTEXTS,
    OP_MIX_MAX, /* those above can be chosen with --mix */
    OP_PENDING = OP_MIX_MAX,
    OP_DEINIT,
    OP_DEINIT_SYNC,
    OP_FIRE,
    OP_MAX
};

/* The highest number of worker threads and contexts: one bit each in the oracle's sets. */
#define STRESS_ACTORS_MAX 30

/* Exit status of a wrong option, and where there is no memory, thread or context to begin with: 1
 * stands for a violation. */
#define STRESS_CANNOT_RUN 2

struct timer_gen;

/*
 * One operation, or one firing.  Stamps are drawn from one global counter: of two events, the one
 * with the lower stamp did not come after the other.
 */
struct record {
    struct timer_gen *gen;
    uint64_t call;    /* stamp taken before the operation; of a firing: unused */
    uint64_t ret;     /* stamp taken after it; of a firing: when the callback began */
    uint64_t exit;    /* of a firing: when the callback ended */
    int64_t clock_ns; /* the timer's clock, read after @ret was drawn */
    int64_t arg_ns;   /* the deadline asked for; OP_READ: the one read; OP_FORWARD: its now */
    int64_t arg2_ns;  /* OP_RANGE: the soonest time; OP_FORWARD: the interval */
    int64_t result;
    uint8_t kind;
    uint8_t actor;
};

/* How many released embedded timers, and list groups, a thread keeps, to see whether they are still
 * written to or called. */
#define EMBEDDED_OLD 8
#define GROUPS_OLD 8

struct log {
    struct record *records;
    size_t count, room;
};

/* ---- What is operated on --------------------------------------------------------------------- */

/* States that a timer may be left in at the end of a round. */
#define STATES_MAX 32

#define GEN_LIVE 0x6c697665u
#define GEN_RETIRED 0xdeaddeadu

/*
 * One life of a timer, from init to free or deinit; also the callback's opaque.  The block
 * outlives the timer by many rounds, so that a callback that comes too late is seen, not a crash.
 */
struct timer_gen {
    atomic_uint magic;
    unsigned slot;   /* where it is shared; embedded ones: the owner's number */
    unsigned number; /* counts the lives */
    unsigned context;
    QEMUClockType clock;
    int scale;
    bool embedded;
    QEMUTimer *ts;
    atomic_uint refs; /* shared timers: one of the slot's, one per running timer_del_sync() */

    /* What the oracle knows at the end of the last round.  Coordinator. */
    int64_t deadline_ns; /* -1: not armed */
    bool dead;
    bool unchecked; /* a log was too wide to decide, so too little is known of it */
    unsigned states_count;
    struct timer_state {    /* what no read tells: it is in one of these */
        int64_t soonest_ns; /* from when it may fire; 0 when it is not armed */
        int64_t last_ns;    /* its last deadline, which timer_forward() counts from; -1: none */
    } states[STATES_MAX];
};

struct slot {
    _Atomic(struct timer_gen *) cur; /* read inside an RCU section */
};

/* A thread that operates: a worker, a context's home thread, or the coordinator. */
struct actor {
    unsigned number;
    char name[8];
    int context; /* index of the home thread's, else -1 */
    uint64_t random;
    struct log log;                  /* its own thread */
    struct log taken;                /* handed over to the coordinator at the end of a round */
    _Atomic(const char *) busy_with; /* what it is in, for the message when it does not return */
    QEMUTimer *embedded_old[EMBEDDED_OLD]; /* released ones, filled with a pattern */
    unsigned embedded_next;
    struct private_group *groups_old[GROUPS_OLD]; /* list groups that are gone */
    unsigned groups_next;
    uint64_t side_ops[OP_MIX_MAX]; /* how often; its own thread */
};

/*
 * What is known of a clock.  Who disables or stops it holds @owner meanwhile, so that nobody else
 * sets it going again; it is tried and never waited for, as its holder waits for callbacks.
 */
struct clock_watch {
    pthread_mutex_t owner;
    atomic_uint changes;        /* odd while it may be disabled or stopped */
    atomic_uint inside;         /* callbacks that run */
    atomic_uint_fast64_t begun; /* callbacks that ever began */
};

/* The ways in which --mode notify wakes a loop; enum wake_kind. */
#define STRESS_WAKES 9

enum mode { MODE_TIMERS, MODE_NOTIFY };

struct options {
    enum mode mode;
    double seconds;
    double limit; /* seconds; MODE_NOTIFY */
    uint64_t seed;
    unsigned threads, contexts, timers;
    const char *monitor;
    const char *cpus; /* of the iothreads; NULL: any */
    unsigned mix[OP_MIX_MAX];
    unsigned mix_sum;
    unsigned wake_mix[STRESS_WAKES];
    unsigned wake_mix_sum;
    const char *mix_text; /* as it was given; NULL: not */
    int plant;            /* enum plant */
    bool quiet;
};

/* Operations of a worker in one round. */
#define ROUND_OPS 1000
/* After this long without progress the run counts as stuck. */
#define STUCK_SECONDS 30

struct stress {
    struct options opt;
    int64_t clock_base_ns[QEMU_CLOCK_MAX]; /* what times are shown relative to */
    unsigned nactors;
    struct actor *actors; /* workers first, then the home threads, then the coordinator */
    IOThread **iothreads;
    AioContext **ctx;
    struct slot *slots;
    atomic_uint_fast64_t stamp;
    atomic_uint gens;      /* number of the next life */
    atomic_bool quiet_now; /* callbacks start no operations any more */
    struct clock_watch watch[QEMU_CLOCK_MAX];
    QEMUTimer **sentinels; /* two a context: REALTIME, VIRTUAL; armed and never touched */
};
extern struct stress S;

extern const char *const op_names[OP_MAX];
uint64_t stress_random(struct actor *a);
const char *stress_clock_name(QEMUClockType type);

/* Of which monitor a context is to be; NULL: whichever the library takes. */
const char *stress_monitor_of(unsigned context);

/* Ends the program: errno says why there is no @what. */
_Noreturn void stress_cannot_start(const char *what);

/* Has @func called on each home thread, outside its timers, and waits.  Not on a home thread. */
void stress_visit_homes(void (*func)(struct actor *a));
void stress_do_nothing(struct actor *a);

/* ---- stress_options.c ------------------------------------------------------------------------ */

/* Fills @opt, or ends the program with status 2; --help and --list-plants end it with 0. */
void options_parse(struct options *opt, int argc, char **argv);

/* ---- stress_ops.c ---------------------------------------------------------------------------- */

void ops_set_actor(struct actor *a);  /* on the thread itself */
void ops_fill_slots(struct actor *a); /* makes the shared timers */
void ops_run_one(struct actor *a);    /* a random operation of the mix, and a random delay */
void ops_read_all(struct actor *a);   /* logs a read of every shared timer */
void ops_free_all(struct actor *a);   /* logs a free of every shared timer */
void ops_hand_over(struct actor *a);  /* ends the thread's part of a round */
void ops_release_embedded(struct actor *a);
int64_t ops_soonest_ns(struct timer_gen **ret_gen); /* until the soonest deadline, or INT64_MAX */
void ops_timer_cb(void *opaque);
void ops_log_firing(struct timer_gen *g); /* as if its callback had been called; home thread */
bool gen_get(struct timer_gen *g);        /* false: it is being freed */
void gen_put(struct actor *a, struct timer_gen *g);
struct actor *ops_self(void);
void ops_random_delay(struct actor *a);
void ops_overwrite(QEMUTimer *memory); /* with what a reader would take for a time far away */

/* ---- stress_clocks.c ------------------------------------------------------------------------- */

void clocks_init(void);
void clocks_enter(QEMUClockType type); /* around every callback */
void clocks_leave(QEMUClockType type);
void clocks_disable(struct actor *a); /* and enables it again */
void clocks_stop(struct actor *a);    /* VIRTUAL, and starts it again */

/* ---- stress_lists.c -------------------------------------------------------------------------- */

struct private_group;

void lists_make_sentinels(void);
void lists_free_sentinels(void);
void lists_walk(struct actor *a);
void lists_deadline(struct actor *a);
void lists_life(struct actor *a);    /* of a group of lists */
void lists_context(struct actor *a); /* of a context or an iothread */
void lists_release(struct actor *a);
void lists_notify_cb(void *opaque, QEMUClockType type); /* of a group */

/* ---- stress_plant.c -------------------------------------------------------------------------- */

enum plant {
    PLANT_NONE,
    PLANT_EARLY,
    PLANT_TWICE,
    PLANT_LOST,
    PLANT_DEL_SYNC_NO_WAIT,
    PLANT_TOUCH_FREED,
    PLANT_MOVED_LATE,
    PLANT_TOUCH_DEINIT,
    PLANT_MOD_DEAD,
    PLANT_RANGE_EARLY,
    PLANT_FORWARD_DRIFT,
    PLANT_DISABLE_NO_WAIT,
    PLANT_STOP_IGNORED,
    PLANT_WALK_MISSES,
    PLANT_DEADLINE_LATE,
    PLANT_NOTIFY_SKIPPED,
    PLANT_NOTIFY_FREED,
    PLANT_CONTEXT_LOST,
    PLANT_NOTIFY_MODE, /* those that follow are of MODE_NOTIFY */
    PLANT_WAKE_SKIPPED = PLANT_NOTIFY_MODE,
    PLANT_WAKE_BEFORE_WORK,
    PLANT_WAKE_AWAKE_LOST,
    PLANT_WAKE_SENT_STAYS,
    PLANT_WAKE_BH_LOST,
    PLANT_WAKE_BH_TWICE,
    PLANT_WAKE_TIMER_LATE,
    PLANT_WAKE_FD_UNTOLD,
    PLANT_WAKE_SIGNAL_LOST,
    PLANT_MAX
};
struct plant_info {
    const char *name, *what;
};
extern const struct plant_info plants[PLANT_MAX];

/* @units: the deadline in the timer's scale. */
bool sut_mod(struct actor *a, struct timer_gen *g, int64_t units);
bool sut_anticipate(struct actor *a, struct timer_gen *g, int64_t units);
bool sut_range(struct actor *a, struct timer_gen *g, int64_t soonest_ns, int64_t latest_ns);
uint64_t sut_forward(struct actor *a, struct timer_gen *g, int64_t now_ns, int64_t interval_ns);
bool sut_del(struct timer_gen *g);
int sut_del_sync(struct timer_gen *g);
void sut_free(struct timer_gen *g);
int sut_deinit(struct timer_gen *g, bool sync);
void sut_after_deinit(struct actor *a, QEMUTimer *memory);
void sut_after_callback(struct actor *a, struct timer_gen *g);
int sut_clock_disable(struct actor *a, QEMUClockType type);
void sut_clock_enable(QEMUClockType type);
void sut_clock_stop(struct actor *a);
unsigned sut_walk(struct actor *a, QEMUTimerList *tl, QEMUTimerWalkFunc *func, void *opaque);
int64_t sut_deadline_all(struct actor *a, QEMUClockType type);
void sut_clock_notify(struct actor *a, QEMUClockType type);
void sut_after_group(struct actor *a, struct private_group *p);
void sut_arm_private(struct actor *a, QEMUTimer *ts, int64_t ns);

/* ---- stress_oracle.c ------------------------------------------------------------------------- */

/* One moment in a timer's log. */
struct event {
    enum event_type { EV_CALL, EV_RETURN, EV_EXIT } type;
    uint64_t stamp;
    const struct record *rec;
};

/* What the oracle found wrong. */
struct violation {
    const struct timer_gen *gen;
    const struct event *events;
    size_t count, at; /* events[at] is the first that no valid order explains */
    const char *kind; /* "early", "lost" ... */
    char text[256];
};

struct oracle_stats {
    uint64_t ops[OP_MAX]; /* by kind */
    uint64_t lives, undecided;
    unsigned widest; /* most orders kept apart at once */
};
extern struct oracle_stats oracle_stats;

/*
 * Checks what one round logged of one timer, and leaves the state that follows in @g.  @records
 * are in no order.  Returns false and fills @ret_why, which refers to memory that lives until the
 * next call, when no valid order explains them.
 */
bool oracle_check(struct timer_gen *g, struct record *const *records, size_t count,
                  struct violation *ret_why);

/* ---- stress_report.c ------------------------------------------------------------------------- */

/* Begins to tell of a violation, of a timer or not; only the first who calls it returns. */
void report_enter(const struct timer_gen *g);
/* Ends the program with status 1. */
_Noreturn void report_end(void);
/* Prints the operations around a violation, and ends. */
_Noreturn void report_violation(const struct violation *why);
/* The same for what needs no order to be wrong. */
_Noreturn void report_failure(const struct timer_gen *g, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void report_summary(double seconds, uint64_t rounds, bool interrupted);

#endif
