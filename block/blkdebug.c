/* SPDX-License-Identifier: MIT */
/*
 * The filter "blkdebug": has requests fail, come late, be cut short, or never end, by rules.
 *
 * Rules are numbered; the first that fits a piece is applied.  A rule counts the pieces that fit
 * it, over all contexts; of which ones it is applied to follows from that number and the seed
 * alone, so that a run on one thread can be repeated.
 *
 * Thread: home, but for the counters.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/options_int.h"
#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

enum { RULES_MAX = 32 };

typedef enum { ACT_NONE, ACT_ERROR, ACT_DELAY, ACT_SHORT, ACT_NEVER } Action;

typedef struct Rule {
    uint32_t ops; /* a bit for each BlkOp */
    int64_t from, to;
    uint64_t nth, every, times; /* 0: not said */
    double chance;
    Action act;
    int err;
    int64_t delay_ns;
    uint64_t bytes;
    uint64_t fits;    /* atomic: pieces that fitted */
    uint64_t applied; /* atomic */
} Rule;

typedef struct DebugState {
    uint64_t seed;
    uint32_t align; /* request_alignment of the driver below */
    int n;
    Rule rule[RULES_MAX];
} DebugState;

/* In the room of each piece. */
typedef struct DebugPiece {
    QEMUTimer timer;
    bool held; /* until the timer fires, or a cancel */
} DebugPiece;

/* ---- Rules ----------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    uint32_t ops;
} op_names[] = {
    { "any", ~0u },
    { "read", 1u << BLK_OP_READ },
    { "write", 1u << BLK_OP_WRITE },
    { "flush", 1u << BLK_OP_FLUSH },
    { "discard", 1u << BLK_OP_DISCARD },
    { "zeroes", 1u << BLK_OP_ZEROES },
    { "status", 1u << BLK_OP_STATUS },
};

static const struct {
    const char *name;
    int err;
} errors[] = {
    { "EIO", EIO },       { "ENOSPC", ENOSPC }, { "EPERM", EPERM },         { "EACCES", EACCES },
    { "EINVAL", EINVAL }, { "ENOMEM", ENOMEM }, { "EAGAIN", EAGAIN },       { "EINTR", EINTR },
    { "ENODEV", ENODEV }, { "EROFS", EROFS },   { "ETIMEDOUT", ETIMEDOUT }, { "ENOTSUP", ENOTSUP },
};

/* A number of seconds, with ns, us, ms or s. */
static bool parse_time(const char *text, int64_t *ret_ns)
{
    static const struct {
        const char *unit;
        double ns;
    } units[] = { { "ns", 1 }, { "us", 1e3 }, { "ms", 1e6 }, { "s", 1e9 } };
    char *end;
    double number = strtod(text, &end);

    for (int i = 0; end != text && i < 4; i++) {
        if (!strcmp(end, units[i].unit)) {
            number *= units[i].ns;
            *ret_ns = number >= 0 && number < 9e18 ? (int64_t)number : -1;
            return *ret_ns >= 0;
        }
    }
    return false;
}

static bool parse_error(const char *text, int *ret_err)
{
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        if (!strcmp(text, errors[i].name)) {
            *ret_err = errors[i].err;
            return true;
        }
    }
    return false;
}

static bool parse_op(const char *text, uint32_t *ret_ops)
{
    for (size_t i = 0; i < sizeof(op_names) / sizeof(op_names[0]); i++) {
        if (!strcmp(text, op_names[i].name)) {
            *ret_ops = op_names[i].ops;
            return true;
        }
    }
    return false;
}

static bool set_action(Rule *rule, Action act)
{
    bool first = rule->act == ACT_NONE;

    rule->act = act;
    return first;
}

/* One "key=value" of a rule. */
static bool parse_setting(Rule *rule, const char *key, const char *value)
{
    int64_t number = 0;
    bool is_number = blk_parse_number(value, true, &number);
    char *end;

    if (!strcmp(key, "error")) {
        return parse_error(value, &rule->err) && set_action(rule, ACT_ERROR);
    }
    if (!strcmp(key, "delay")) {
        return parse_time(value, &rule->delay_ns) && set_action(rule, ACT_DELAY);
    }
    if (!strcmp(key, "short")) {
        rule->bytes = (uint64_t)number;
        return is_number && number > 0 && set_action(rule, ACT_SHORT);
    }
    if (!strcmp(key, "chance")) {
        rule->chance = strtod(value, &end);
        return end != value && !*end && rule->chance >= 0 && rule->chance <= 1;
    }
    if (!strcmp(key, "from")) {
        rule->from = number;
        return is_number;
    }
    if (!strcmp(key, "to")) {
        rule->to = number;
        return is_number;
    }
    uint64_t *count = !strcmp(key, "nth")     ? &rule->nth
                      : !strcmp(key, "every") ? &rule->every
                      : !strcmp(key, "times") ? &rule->times
                                              : NULL;
    if (count) {
        *count = (uint64_t)number;
    }
    return count && is_number && number > 0;
}

static bool parse_word(Rule *rule, char *word)
{
    char *value = strchr(word, '=');

    if (!value) {
        return strcmp(word, "never") ? parse_op(word, &rule->ops) : set_action(rule, ACT_NEVER);
    }
    *value++ = 0;
    return parse_setting(rule, word, value);
}

static int parse_rule(DebugState *s, char *text, char **ret_why)
{
    Rule *rule = &s->rule[s->n];
    char *save, *word;

    if (s->n == RULES_MAX) {
        return blk_fail(ret_why, EINVAL, "option 'rules' has more than %d rules", RULES_MAX);
    }
    *rule = (Rule){ .ops = ~0u, .to = INT64_MAX, .chance = 1 };
    for (word = strtok_r(text, "+", &save); word; word = strtok_r(NULL, "+", &save)) {
        if (!parse_word(rule, word)) {
            return blk_fail(
                ret_why, EINVAL,
                "option 'rules': rule %d has '%s'; a rule is made of any, read, write, flush, "
                "discard, zeroes or status; from=SIZE, to=SIZE, nth=N, every=N, times=N, "
                "chance=0..1; and one of error=EIO (or ENOSPC, EPERM, EACCES, EINVAL, ENOMEM, "
                "EAGAIN, EINTR, ENODEV, EROFS, ETIMEDOUT, ENOTSUP), delay=5ms, short=SIZE, never; "
                "joined by '+'",
                s->n + 1, word);
        }
    }
    if (rule->act == ACT_NONE) {
        return blk_fail(ret_why, EINVAL,
                        "option 'rules': rule %d does nothing; expected error=, delay=, short= or "
                        "never",
                        s->n + 1);
    }
    s->n++;
    return 0;
}

static int parse_rules(DebugState *s, const char *rules, char **ret_why)
{
    char *text = strdup(rules), *save, *item;
    int ret = text ? 0 : blk_fail(ret_why, ENOMEM, "out of memory");

    for (item = text ? strtok_r(text, ";", &save) : NULL; item && ret == 0;
         item = strtok_r(NULL, ";", &save)) {
        ret = parse_rule(s, item, ret_why);
    }
    free(text);
    return ret;
}

/* A number from 0 up to 1, the same each time for the same two.
 * Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. */
static double random_of(uint64_t seed, uint64_t n)
{
    uint64_t z = seed + (n + 1) * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ (z >> 31)) >> 11) / (double)(UINT64_C(1) << 53);
}

/* Whether the rule is applied to the piece, which counts as one that fits if it does. */
static bool applies(const DebugState *s, Rule *rule, const BlkPiece *piece)
{
    int64_t end = piece->offset + (int64_t)piece->bytes;
    uint64_t n;

    if (!(rule->ops >> piece->op & 1) || piece->offset >= rule->to ||
        (end <= rule->from && piece->bytes > 0)) {
        return false;
    }
    n = fetch_add_seq(&rule->fits, 1) + 1;
    if ((rule->nth && n != rule->nth) || (rule->every && n % rule->every) ||
        (rule->chance < 1 && random_of(s->seed + (uint64_t)(rule - s->rule), n) >= rule->chance)) {
        return false;
    }
    return !rule->times || fetch_add_seq(&rule->applied, 1) < rule->times;
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

static void held_long_enough(void *opaque)
{
    DebugPiece *dp = blk_piece_priv(opaque);

    dp->held = false;
    blk_piece_pass(opaque);
}

static void hold(BlkPiece *piece, int64_t ns)
{
    DebugPiece *dp = blk_piece_priv(piece);
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    dp->held = true;
    if (ns >= 0 && !timer_mod_ns(&dp->timer, ns < INT64_MAX - now ? now + ns : INT64_MAX - 1)) {
        dp->held = false;
        blk_piece_done(piece, -ECANCELED); /* the context is being closed */
    }
}

/* Its beginning, in whole units. */
static void cut_short(BlkPiece *piece, uint64_t bytes)
{
    uint64_t align = ((DebugState *)piece->state)->align;

    bytes &= ~(align - 1);
    bytes = bytes ? bytes : align;
    if ((piece->op != BLK_OP_READ && piece->op != BLK_OP_WRITE) || bytes >= piece->bytes) {
        blk_piece_pass(piece);
    } else {
        blk_piece_pass_part(piece, bytes);
    }
}

static void debug_submit(BlkPiece *piece)
{
    DebugState *s = piece->state;
    Rule *rule = s->rule, *end = s->rule + s->n;

    while (rule < end && !applies(s, rule, piece)) {
        rule++;
    }
    if (rule == end) {
        blk_piece_pass(piece);
        return;
    }
    switch (rule->act) {
    case ACT_ERROR:
        blk_piece_done(piece, -rule->err);
        break;
    case ACT_DELAY:
        hold(piece, rule->delay_ns);
        break;
    case ACT_NEVER:
        hold(piece, -1);
        break;
    default:
        cut_short(piece, rule->bytes);
        break;
    }
}

static void debug_cancel(BlkPiece *piece)
{
    DebugPiece *dp = blk_piece_priv(piece);

    if (!dp->held) {
        blk_piece_cancel_child(piece);
        return;
    }
    dp->held = false;
    timer_del(&dp->timer);
    blk_piece_done(piece, -ECANCELED);
}

static void debug_piece_init(BlkPiece *piece, AioContext *ctx)
{
    DebugPiece *dp = blk_piece_priv(piece);

    aio_timer_init(ctx, &dp->timer, QEMU_CLOCK_REALTIME, SCALE_NS, held_long_enough, piece);
}

static void debug_piece_fini(BlkPiece *piece)
{
    timer_deinit(&((DebugPiece *)blk_piece_priv(piece))->timer);
}

/* ---- Opening --------------------------------------------------------------------------------- */

static const BlkOptDesc debug_options[] = {
    { "rules", BLK_OPT_STRING, .help = "such as read+nth=3+error=EIO;write+chance=0.1+delay=5ms" },
    { "seed", BLK_OPT_NUMBER, .help = "of chance; 1" },
    { NULL },
};

static int debug_open(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    DebugState *s = calloc(1, sizeof(*s));
    BlkLimits limits;
    int ret;

    if (!s) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    blk_node_get_limits(blk_opts_child(opts), &limits);
    s->align = limits.request_alignment;
    s->seed = (uint64_t)blk_opt_get(opts, "seed", 1);
    ret = parse_rules(s, blk_opt_get_str(opts, "rules", ""), ret_why);
    if (ret < 0) {
        free(s);
        return ret;
    }
    *ret_state = s;
    return 0;
}

static void debug_close(void *state)
{
    free(state);
}

const BlockDriver blk_debug_driver = {
    .abi = BLOCK_DRIVER_ABI,
    .is_filter = true,
    .name = "blkdebug",
    .options = debug_options,
    .piece_size = sizeof(DebugPiece),
    .open = debug_open,
    .close = debug_close,
    .piece_init = debug_piece_init,
    .piece_fini = debug_piece_fini,
    .submit = debug_submit,
    .cancel = debug_cancel,
};
