/* SPDX-License-Identifier: MIT */
/*
 * The filter "throttle": holds requests back until their group lets them begin (throttle_int.h).
 *
 * A queue has a lane for reads and one for what writes; a request that finds its lane empty and the
 * group willing is handed on at once.  Others wait in the lane.  The first `granted` of them have
 * been reserved for, and may begin at `at`, or at once while someone drains; the timer is armed
 * whenever something waits, also while a request is being handed on, so that a callback may poll
 * for one that waits behind it.  What is cancelled before it began gives its reservation back:
 * else requests that time out while they wait would use the rate up.
 *
 * Thread: home, but for drain and changed, which schedule the queue's bottom half.
 */
#include "block/throttle_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/driver_int.h"
#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

/* Requests handed on in one run of a lane's timer. */
enum { RUN_BUDGET = 64 };

typedef struct ThrottleQueue ThrottleQueue;

/* In the room of each piece. */
typedef struct ThrottlePiece {
    struct ThrottlePiece *next, **pprev; /* in its lane; pprev NULL: in none */
    uint64_t ops;                        /* that it was reserved for as */
    bool granted;
} ThrottlePiece;

struct lane {
    ThrottleQueue *q;
    QEMUTimer timer;
    ThrottlePiece *head, **tail;
    unsigned granted;
    int64_t at;
    int64_t rest;   /* of the turn that was reserved, ns of the rate: becomes `free` at `at` */
    int64_t free;   /* what may be passed without a reservation */
    uint64_t epoch; /* of the group, when it was reserved; written under its lock */
    /* Of those granted.  Home writes, atomic; a change of the limits reads them under the group's
     * lock.  Relaxed: a piece that is being handed on just then may be counted as not begun. */
    uint64_t reserved_bytes, reserved_ops;

    /* So many requests of up to so many bytes may begin without asking. */
    unsigned credit;
    uint64_t credit_bytes;
    uint64_t credit_epoch; /* of the group, when it was given */
};

typedef struct ThrottleState {
    struct throttle_group *group;
    pthread_mutex_t lock;
    ThrottleQueue *queues; /* lock */
    bool draining;         /* atomic */
    unsigned refs;         /* atomic: open, and each queue */
} ThrottleState;

struct ThrottleQueue {
    ThrottleState *s;
    struct lane lane[2]; /* reads, writes */
    QEMUBH *bh;
    struct throttle_listener listener;
    ThrottleQueue *next, **pprev; /* ThrottleState.lock */
};

static void put_state(ThrottleState *s)
{
    if (sub_fetch_acq_rel(&s->refs, 1) == 0) {
        throttle_group_put(s->group);
        pthread_mutex_destroy(&s->lock);
        free(s);
    }
}

/* ---- Lanes ----------------------------------------------------------------------------------- */

static void append(struct lane *lane, ThrottlePiece *tp)
{
    tp->next = NULL;
    tp->pprev = lane->tail;
    tp->granted = false;
    *lane->tail = tp;
    lane->tail = &tp->next;
}

static void set_reserved(struct lane *lane, uint64_t bytes, uint64_t ops)
{
    st_relaxed(&lane->reserved_bytes, bytes);
    st_relaxed(&lane->reserved_ops, ops);
}

/* The piece is no longer one of those that were reserved for. */
static void ungrant(struct lane *lane, ThrottlePiece *tp)
{
    if (tp->granted) {
        tp->granted = false;
        lane->granted--;
        set_reserved(lane, lane->reserved_bytes - blk_priv_piece(tp)->bytes,
                     lane->reserved_ops - tp->ops);
    }
}

static void take_out(struct lane *lane, ThrottlePiece *tp)
{
    *tp->pprev = tp->next;
    *(tp->next ? &tp->next->pprev : &lane->tail) = tp->pprev;
    tp->pprev = NULL;
    ungrant(lane, tp);
}

static bool is_draining(const struct lane *lane)
{
    return ld_seq(&lane->q->s->draining);
}

/* Has the timer come back for what waits. */
static void arm(struct lane *lane)
{
    if (lane->head) {
        timer_mod_ns(&lane->timer, lane->granted && !is_draining(lane) ? lane->at : 0);
    } else {
        timer_del(&lane->timer);
    }
}

static bool is_write_lane(const struct lane *lane)
{
    return lane == &lane->q->lane[1];
}

/* Reserves for the head, and as many behind it as make up a turn, or what is left of one. */
static void reserve(struct lane *lane, int64_t now)
{
    struct throttle_group *group = lane->q->s->group;
    bool write = is_write_lane(lane);
    int64_t start;

    throttle_group_lock(group);
    start = throttle_group_start_locked(group, write);
    lane->at = start > now && lane->free <= 0 ? start : now;
    lane->rest = lane->free > 0 ? lane->free : throttle_group_turn_locked(group);
    lane->free = 0;
    lane->epoch = throttle_group_epoch(group);
    for (ThrottlePiece *tp = lane->head; tp && lane->rest > 0; tp = tp->next) {
        uint64_t bytes = blk_priv_piece(tp)->bytes;

        lane->rest -= throttle_group_charge_locked(group, write, bytes, 1, lane->at);
        tp->ops = throttle_group_ops_locked(group, bytes);
        tp->granted = true;
        lane->granted++;
        set_reserved(lane, lane->reserved_bytes + bytes, lane->reserved_ops + tp->ops);
    }
    throttle_group_unlock(group);
}

/* The lane's turn has come. */
static void begin_turn(struct lane *lane, int64_t now)
{
    struct throttle_group *group = lane->q->s->group;

    lane->free += lane->rest;
    lane->rest = 0;
    if (unlikely(now - lane->at > THROTTLE_TOLERANCE_NS / 2)) {
        throttle_group_lock(group);
        throttle_group_late_locked(group, now);
        throttle_group_unlock(group);
    }
}

/* Takes back what was reserved for a piece of the lane that does not begin. */
static void give_back(struct lane *lane, ThrottlePiece *tp, uint64_t bytes)
{
    struct throttle_group *group = lane->q->s->group;

    throttle_group_lock(group);
    if (tp->granted && lane->epoch == throttle_group_epoch(group)) {
        throttle_group_refund_locked(group, is_write_lane(lane), bytes, 1);
        ungrant(lane, tp);
    }
    throttle_group_unlock(group);
}

/* After a change of the limits, which has taken back what was reserved. */
static void forget_old(struct lane *lane)
{
    struct throttle_group *group = lane->q->s->group;
    bool old;

    throttle_group_lock(group);
    old = lane->epoch != throttle_group_epoch(group);
    throttle_group_unlock(group);
    for (ThrottlePiece *tp = lane->head; tp && old; tp = tp->next) {
        ungrant(lane, tp);
    }
    if (old) {
        lane->rest = lane->free = 0;
    }
}

/* Hands on what may begin.  Callbacks below may submit, cancel, and run this again. */
static void run_lane(struct lane *lane)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    for (int i = 0; i < RUN_BUDGET && lane->head; i++) {
        ThrottlePiece *tp = lane->head;

        if (!lane->granted) {
            reserve(lane, now);
        }
        if (lane->at > now && !is_draining(lane)) {
            break;
        }
        if (lane->rest > 0 || now - lane->at > THROTTLE_TOLERANCE_NS / 2) {
            begin_turn(lane, now);
        }
        take_out(lane, tp);
        arm(lane);
        blk_piece_pass(blk_priv_piece(tp));
    }
    arm(lane);
}

static void lane_timer_cb(void *opaque)
{
    run_lane(opaque);
}

/* A drain has begun, or the limits have changed. */
static void queue_bh(void *opaque)
{
    ThrottleQueue *q = opaque;

    for (int i = 0; i < 2; i++) {
        forget_old(&q->lane[i]);
        run_lane(&q->lane[i]);
    }
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

/* Gives what is left of the credit back, and takes a new one when the group is far from its limits:
 * @start is when a request could have begun at the earliest, @cost_ns what one takes of the
 * rate. */
static void renew_credit_locked(struct lane *lane, uint64_t bytes, int64_t start, int64_t cost_ns,
                                int64_t now)
{
    struct throttle_group *group = lane->q->s->group;
    uint64_t epoch = throttle_group_epoch(group);
    bool write = is_write_lane(lane);
    int64_t n = cost_ns > 0 ? THROTTLE_TURN_NS / cost_ns : THROTTLE_CREDIT_MAX;

    if (lane->credit && lane->credit_epoch == epoch) {
        throttle_group_refund_locked(group, write, lane->credit_bytes, lane->credit);
    }
    lane->credit = 0;
    if (start <= now - THROTTLE_FAR_NS && n > 0) {
        lane->credit = n < THROTTLE_CREDIT_MAX ? (unsigned)n : THROTTLE_CREDIT_MAX;
        lane->credit_bytes = bytes;
        lane->credit_epoch = epoch;
        throttle_group_charge_locked(group, write, bytes, lane->credit, now);
    }
}

static inline bool use_credit(struct lane *lane, uint64_t bytes)
{
    if (lane->credit && bytes <= lane->credit_bytes &&
        lane->credit_epoch == throttle_group_epoch(lane->q->s->group)) {
        lane->credit--;
        return true;
    }
    return false;
}

/* Whether a piece that comes now may begin at once; it is counted then. */
static bool try_begin(struct lane *lane, uint64_t bytes)
{
    struct throttle_group *group = lane->q->s->group;
    bool write = is_write_lane(lane), begins;
    int64_t now, start, cost;

    if (likely(use_credit(lane, bytes))) {
        return true;
    }
    now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    throttle_group_lock(group);
    start = throttle_group_start_locked(group, write);
    begins = ld_relaxed(&lane->q->s->draining) || lane->free > 0 || start <= now;
    if (begins) {
        cost = throttle_group_charge_locked(group, write, bytes, 1, now);
        lane->free -= lane->free > 0 ? cost : 0;
        renew_credit_locked(lane, bytes, start, cost, now);
    }
    throttle_group_unlock(group);
    return begins;
}

static void throttle_submit(BlkPiece *piece)
{
    ThrottleQueue *q = piece->queue;
    struct lane *lane = &q->lane[piece->op != BLK_OP_READ];

    if (piece->op == BLK_OP_FLUSH || piece->op == BLK_OP_STATUS ||
        (!lane->head && try_begin(lane, piece->bytes))) {
        blk_piece_pass(piece);
        return;
    }
    append(lane, blk_piece_priv(piece));
    if (!lane->granted) {
        reserve(lane, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    }
    arm(lane);
    if (ld_seq(&q->s->draining)) { /* which may have begun after the look: see throttle_drain() */
        qemu_bh_schedule(q->bh);
    }
}

static void throttle_cancel(BlkPiece *piece)
{
    ThrottleQueue *q = piece->queue;
    ThrottlePiece *tp = blk_piece_priv(piece);
    struct lane *lane = &q->lane[piece->op != BLK_OP_READ];

    if (!tp->pprev) {
        blk_piece_cancel_child(piece);
        return;
    }
    give_back(lane, tp, piece->bytes);
    take_out(lane, tp);
    arm(lane);
    blk_piece_done(piece, -ECANCELED);
}

/* ---- Queues ---------------------------------------------------------------------------------- */

/* Under the group's lock. */
static void limits_changed(struct throttle_listener *listener)
{
    qemu_bh_schedule(container_of(listener, ThrottleQueue, listener)->bh);
}

/* Under the group's lock. */
static void tell_reserved(struct throttle_listener *listener, bool write, uint64_t epoch,
                          uint64_t *ret_bytes, uint64_t *ret_ops)
{
    const struct lane *lane = &container_of(listener, ThrottleQueue, listener)->lane[write];
    bool counts = lane->epoch == epoch;

    *ret_bytes = counts ? ld_relaxed(&lane->reserved_bytes) : 0;
    *ret_ops = counts ? ld_relaxed(&lane->reserved_ops) : 0;
}

static int throttle_queue_create(void *state, AioContext *ctx, void **ret_queue)
{
    ThrottleState *s = state;
    ThrottleQueue *q = calloc(1, sizeof(*q));

    if (!q) {
        return -ENOMEM;
    }
    q->bh = aio_bh_new(ctx, queue_bh, q);
    if (!q->bh) {
        free(q);
        return -ENOMEM;
    }
    q->s = s;
    for (int i = 0; i < 2; i++) {
        q->lane[i].q = q;
        q->lane[i].tail = &q->lane[i].head;
        aio_timer_init(ctx, &q->lane[i].timer, QEMU_CLOCK_REALTIME, SCALE_NS, lane_timer_cb,
                       &q->lane[i]);
    }
    add_fetch_relaxed(&s->refs, 1);
    q->listener.changed = limits_changed;
    q->listener.reserved = tell_reserved;
    throttle_group_listen(s->group, &q->listener);
    pthread_mutex_lock(&s->lock);
    q->next = s->queues;
    q->pprev = &s->queues;
    if (q->next) {
        q->next->pprev = &q->next;
    }
    s->queues = q;
    pthread_mutex_unlock(&s->lock);
    *ret_queue = q;
    return 0;
}

/* Its context is going: nobody schedules its bottom half from here on. */
static void throttle_queue_abandon(void *queue)
{
    ThrottleQueue *q = queue;
    ThrottleState *s = q->s;

    throttle_group_unlisten(s->group, &q->listener);
    pthread_mutex_lock(&s->lock);
    *q->pprev = q->next;
    if (q->next) {
        q->next->pprev = q->pprev;
    }
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < 2; i++) {
        timer_deinit(&q->lane[i].timer);
    }
    qemu_bh_delete(q->bh);
}

static void throttle_queue_destroy(void *queue)
{
    ThrottleQueue *q = queue;
    ThrottleState *s = q->s;

    throttle_queue_abandon(q);
    free(q);
    put_state(s);
}

/*
 * `draining` is stored before the bottom halves are scheduled, and a piece is in its lane before
 * `draining` is looked at (both seq_cst): either the piece's thread sees it, or the piece is in the
 * lane when the bottom half runs.
 */
static void throttle_drain(void *state, bool begin)
{
    ThrottleState *s = state;

    st_seq(&s->draining, begin);
    if (begin) {
        pthread_mutex_lock(&s->lock);
        for (ThrottleQueue *q = s->queues; q; q = q->next) {
            qemu_bh_schedule(q->bh);
        }
        pthread_mutex_unlock(&s->lock);
    }
}

/* ---- Opening --------------------------------------------------------------------------------- */

#define BUCKET_OPTIONS(name, type) \
    { name, type, .help = "a second" }, { name "-max", type, .help = "a second, in a burst" }, \
    { \
        name "-max-length-ms", BLK_OPT_NUMBER, .help = "of a burst; 1000" \
    }

static const BlkOptDesc throttle_options[] = {
    BUCKET_OPTIONS("bps", BLK_OPT_SIZE),
    BUCKET_OPTIONS("bps-read", BLK_OPT_SIZE),
    BUCKET_OPTIONS("bps-write", BLK_OPT_SIZE),
    BUCKET_OPTIONS("iops", BLK_OPT_NUMBER),
    BUCKET_OPTIONS("iops-read", BLK_OPT_NUMBER),
    BUCKET_OPTIONS("iops-write", BLK_OPT_NUMBER),
    { "iops-size", BLK_OPT_SIZE, .help = "longer requests count as several" },
    { "group", BLK_OPT_STRING, .help = "a name; its members share the limits" },
    { NULL },
};

/* The bucket's options stand at 3 times its number. */
static bool take_config(const BlkOptions *opts, ThrottleConfig *ret_config)
{
    bool any = blk_opt_given(opts, "iops-size");

    *ret_config = (ThrottleConfig){ .op_size = (uint64_t)blk_opt_get(opts, "iops-size", 0) };
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        const BlkOptDesc *desc = &throttle_options[3 * i];
        ThrottleBucket *b = &ret_config->bucket[i];

        b->avg = (uint64_t)blk_opt_get(opts, desc[0].name, 0);
        b->max = (uint64_t)blk_opt_get(opts, desc[1].name, 0);
        int64_t ms = blk_opt_get(opts, desc[2].name, 0);
        b->max_length_ms = ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
        any |= b->avg || b->max || ms;
    }
    return any;
}

static int throttle_open(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    const char *name = blk_opt_get_str(opts, "group", NULL), *fault;
    ThrottleConfig config;
    bool has_config = take_config(opts, &config);
    ThrottleState *s;
    int ret;

    fault = throttle_find_fault(&config);
    if (fault) {
        return blk_fail(ret_why, EINVAL, "driver 'throttle': %s", fault);
    }
    s = calloc(1, sizeof(*s));
    if (!s) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    ret = throttle_group_get(name, has_config ? &config : NULL, &s->group);
    if (ret < 0) {
        free(s);
        return ret == -EEXIST ? blk_fail(ret_why, EEXIST,
                                         "option 'group': group '%s' exists with other limits; "
                                         "give the same ones, or none",
                                         name)
                              : blk_fail(ret_why, -ret, "out of memory");
    }
    pthread_mutex_init(&s->lock, NULL);
    s->refs = 1;
    *ret_state = s;
    return 0;
}

static void throttle_close(void *state)
{
    put_state(state);
}

const BlockDriver blk_throttle_driver = {
    .abi = BLOCK_DRIVER_ABI,
    .is_filter = true,
    .name = "throttle",
    .options = throttle_options,
    .piece_size = sizeof(ThrottlePiece),
    .open = throttle_open,
    .close = throttle_close,
    .queue_create = throttle_queue_create,
    .queue_destroy = throttle_queue_destroy,
    .queue_abandon = throttle_queue_abandon,
    .submit = throttle_submit,
    .cancel = throttle_cancel,
    .drain = throttle_drain,
};
