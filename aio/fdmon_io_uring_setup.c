/* SPDX-License-Identifier: MIT */
/*
 * The io_uring monitor: making a ring with all that the kernel offers.
 *
 * The kernel refuses a ring for a flag that it does not know (EINVAL), without saying which.  So
 * all are asked for together, which is all that happens on a recent kernel; where that is refused,
 * each is tried by itself, with those that it builds on, and just the unknown ones are dropped.
 * Flags of io_uring_enter(2) are tried one by one by the home thread.
 *
 * A ring needs Linux 5.13: a timeout as an argument of the wait, no lost completions, multishot
 * poll requests, and changing the events of one in the kernel.
 *
 * Source: io_uring_setup(2), io_uring_enter(2).
 */
#include "aio/fdmon_io_uring_int.h"
#include "aio/monitor_int.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * It changes the layout of the ring, which liburing maps: only one that knows of it may be given
 * the flag.  From 2.6 on it also sets it unasked.
 */
#if defined(IO_URING_VERSION_MAJOR) && defined(IORING_SETUP_NO_SQARRAY)
#if IO_URING_VERSION_MAJOR > 2 || (IO_URING_VERSION_MAJOR == 2 && IO_URING_VERSION_MINOR >= 6)
#define SETUP_NO_SQARRAY IORING_SETUP_NO_SQARRAY
#endif
#endif
#ifndef SETUP_NO_SQARRAY
#define SETUP_NO_SQARRAY 0
#endif

struct setup_flag {
    AioFeature feature;
    unsigned flags;
    unsigned needs; /* of entries above */
};

/*
 * Only who enables a ring is its single issuer, hence R_DISABLED; only a single issuer may defer
 * its task work, and a loop that polls has to be told that there is some (TASKRUN_FLAG).
 * Linux: CQSIZE 5.5, SQPOLL 5.11 without privileges, R_DISABLED 5.10, SUBMIT_ALL 5.18, COOP_TASKRUN
 * 5.19, SINGLE_ISSUER 6.0, DEFER_TASKRUN 6.1, NO_SQARRAY 6.6.
 */
static const struct setup_flag setup_flags[] = {
    { FEATURE_CQSIZE, IORING_SETUP_CQSIZE, 0 },
    { FEATURE_SUBMIT_ALL, IORING_SETUP_SUBMIT_ALL, 0 },
    { FEATURE_R_DISABLED, IORING_SETUP_R_DISABLED, 0 },
    { FEATURE_SINGLE_ISSUER, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_R_DISABLED },
    { FEATURE_NO_SQARRAY, SETUP_NO_SQARRAY, 0 },
    { FEATURE_SQPOLL, IORING_SETUP_SQPOLL, 0 },
    { FEATURE_DEFER_TASKRUN, IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED },
    { FEATURE_COOP_TASKRUN, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0 },
};
enum { SETUP_FLAGS = sizeof(setup_flags) / sizeof(setup_flags[0]) };

#define TASKRUN_FEATURES (FEATURE_BIT(FEATURE_DEFER_TASKRUN) | FEATURE_BIT(FEATURE_COOP_TASKRUN))

/* What is asked for at first.  COOP_TASKRUN stands in for DEFER_TASKRUN; with SQPOLL there is no
 * task work of ours. */
static uint32_t wanted_features(bool sqpoll)
{
    uint32_t all = 0;

    for (int i = 0; i < SETUP_FLAGS; i++) {
        all |= FEATURE_BIT(setup_flags[i].feature);
    }
    return all & ~(sqpoll ? TASKRUN_FEATURES
                          : FEATURE_BIT(FEATURE_SQPOLL) | FEATURE_BIT(FEATURE_COOP_TASKRUN));
}

static unsigned flags_of(uint32_t features)
{
    unsigned flags = 0;

    for (int i = 0; i < SETUP_FLAGS; i++) {
        if (features & FEATURE_BIT(setup_flags[i].feature)) {
            flags |= setup_flags[i].flags;
        }
    }
    return flags;
}

/* Whether a ring can be had with @flags, tried with the smallest there is. */
static bool knows(unsigned flags)
{
    struct io_uring_params p = { .flags = flags, .cq_entries = 2 };
    int fd = (int)syscall(__NR_io_uring_setup, 1, &p);

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

/* Which of @candidates the kernel knows. */
static uint32_t known_features(uint32_t candidates)
{
    uint32_t known = 0;
    unsigned flags = 0;

    for (int i = 0; i < SETUP_FLAGS; i++) {
        const struct setup_flag *f = &setup_flags[i];

        if (f->flags && (candidates & FEATURE_BIT(f->feature)) && (flags & f->needs) == f->needs &&
            knows(f->flags | f->needs)) {
            known |= FEATURE_BIT(f->feature);
            flags |= f->flags;
        }
    }
    return known;
}

/*
 * Counts closed rings.  A new ring may get a closed one's addresses from the kernel, and liburing
 * makes these system calls by itself, so that ThreadSanitizer does not see the old mapping go: this
 * tells it that what was done to the old ring came before.
 */
static unsigned rings_closed; /* atomic: written before a ring is unmapped, read after mapping */

void uring_drop_ring(struct uring_mon *m)
{
    fetch_add_seq(&rings_closed, 1);
    io_uring_queue_exit(&m->ring);
}

static int make_ring(struct uring_mon *m, uint32_t features, const AioContextOptions *opts)
{
    unsigned entries = opts->ring_entries;
    struct io_uring_params p = {
        .flags = flags_of(features),
        .cq_entries = entries < 256     ? 1024
                      : entries > 16384 ? 65536
                                        : entries * 4,
        .sq_thread_idle = opts->sqpoll_idle_ms,
    };
    int ret = io_uring_queue_init_params(entries, &m->ring, &p);

    (void)ld_acquire(&rings_closed);
    return ret;
}

/* With as many of the features as can be had. */
static int make_best_ring(AioContext *ctx, struct uring_mon *m, const AioContextOptions *opts)
{
    uint32_t wanted = wanted_features(opts->sqpoll_idle_ms > 0), use = wanted;
    int ret = make_ring(m, use, opts);

    /* EPERM: SQPOLL was for the privileged before 5.11. */
    if (ret == -EINVAL || (ret == -EPERM && opts->sqpoll_idle_ms)) {
        use = known_features(wanted | TASKRUN_FEATURES);
        if (use & FEATURE_BIT(FEATURE_SQPOLL)) {
            use &= ~TASKRUN_FEATURES;
        } else if (use & FEATURE_BIT(FEATURE_DEFER_TASKRUN)) {
            use &= ~FEATURE_BIT(FEATURE_COOP_TASKRUN);
        }
        ret = make_ring(m, use, opts);
    }
    if (ret < 0) {
        return ret == -EINVAL ? -ENOSYS : ret;
    }
    if (!SETUP_NO_SQARRAY || !(m->ring.flags & SETUP_NO_SQARRAY)) {
        use &= ~FEATURE_BIT(FEATURE_NO_SQARRAY);
    }
    monitor_set_features(ctx, use, wanted & ~use);
    m->sqpoll = use & FEATURE_BIT(FEATURE_SQPOLL);
    return 0;
}

static bool is_denial(int ret)
{
    return ret == -EPERM || ret == -EACCES || ret == -ENOSYS;
}

/*
 * A filter of system calls may allow the making of a ring and deny its use.  These calls do
 * nothing: the one has nothing to submit, the other asks about no operation, and the kernel may
 * refuse both of a ring that is not enabled yet.  One that needs no enabling does without
 * io_uring_register(2).
 */
static int try_ring(struct uring_mon *m)
{
    int ret = io_uring_enter(m->ring.ring_fd, 0, 0, 0, NULL);

    if (!is_denial(ret) && (m->ring.flags & IORING_SETUP_R_DISABLED)) {
        ret = io_uring_register(m->ring.ring_fd, IORING_REGISTER_PROBE, NULL, 0);
    }
    return is_denial(ret) ? ret : 0;
}

int uring_setup(AioContext *ctx, struct uring_mon *m, const AioContextOptions *opts)
{
    /* RSRC_TAGS stands for 5.13, which has multishot poll requests, and can change the events of
     * one in the kernel. */
    const unsigned need =
        IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_RSRC_TAGS;
    int ret = make_best_ring(ctx, m, opts);

    if (ret < 0) {
        return ret;
    }
    ret = (m->ring.features & need) == need ? try_ring(m) : -ENOSYS;
    if (ret < 0) {
        uring_drop_ring(m);
        return ret;
    }
    m->enter_flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    return 0;
}

/* ---- On the home thread ---------------------------------------------------------------------- */

/* A flag of io_uring_enter(2) that the kernel does not know is refused before anything else is
 * looked at. */
static void try_enter_flag(AioContext *ctx, struct uring_mon *m, unsigned flag, AioFeature feature)
{
    struct io_uring_getevents_arg arg = { 0 };
    bool known = io_uring_enter2(m->ring.ring_fd, 0, 0, m->enter_flags | flag, (sigset_t *)&arg,
                                 sizeof(arg)) >= 0;

    if (known) {
        m->enter_flags |= flag;
    }
    monitor_set_feature(ctx, feature, known);
}

void uring_setup_home(AioContext *ctx, struct uring_mon *m)
{
    if (m->ring.flags & IORING_SETUP_R_DISABLED) {
        /* Not io_uring_enable_rings(): liburing 2.3's shared library does not export it. */
        int ret = io_uring_register(m->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

        if (ret < 0) {
            die_misuse("aio_poll", "the kernel does not enable the ring: error %d", -ret);
        }
    }
    try_enter_flag(ctx, m, IORING_ENTER_ABS_TIMER, FEATURE_ABS_TIMER);
    if (m->ring.features & IORING_FEAT_NO_IOWAIT) {
        try_enter_flag(ctx, m, IORING_ENTER_NO_IOWAIT, FEATURE_NO_IOWAIT);
    } else {
        monitor_set_feature(ctx, FEATURE_NO_IOWAIT, false);
    }
    m->reg_ring = io_uring_register_ring_fd(&m->ring) == 1;
    monitor_set_feature(ctx, FEATURE_REGISTERED_RING, m->reg_ring);
}
