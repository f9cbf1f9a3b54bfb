/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves and the end of a context: aio/bh.c.
 *
 *   set_flags, push, end_closed   the functions of these names: schedule and delete
 *   take, turn_round              take_pushed()
 *   run_fifo, clear               run_fifo()
 *   home                          bh_poll(), then bh_try_close() or bh_run_last()
 *
 * Holds: a bottom half is in one place at most (in the hands of who pushes it, on the stack, in the
 * FIFO); each scheduling is followed by a run, unless its push found the stack closed, where one
 * that finds the bottom half pending shares the push that is under way; a deleted one is freed,
 * once, and nobody touches it afterwards; nothing is left on a closed stack.
 *
 * Abstracted: the loop around the compare-and-swap of the flags is one step; home turns the stack
 * round in one step, since what it has taken is its own; the wake-up is in wake_word.pml.  Every
 * access is sequentially consistent, but for `next`, which comes before the compare-and-swap that
 * publishes it: no store buffers.
 * Bounds: two bottom halves; one thread schedules the first twice, another the first and the
 * second, and may delete the second then; two passes before the end.
 *
 * Broken (each by its macro): PUSH_ALWAYS, also what is pending; CLEAR_LATE, the flags are cleared
 * after the callback; BLIND_CLOSE, the stack is closed whatever is on it; PLAIN_PUSH, the top is
 * stored without comparing; CLOSED_LEFT, who deletes and finds the stack closed does not free.
 */
#define CLOSED 3 /* on the stack instead of 1 and 2; 0: nothing */
#define PASSES 2

byte top;
byte next[3];
byte first; /* of the FIFO */

bool pending[3], scheduled[3], deleted[3]; /* flags, one word for each bottom half */

/* What the assertions look at. */
bool freed[3];
bool owed[3];   /* scheduled, and not run since */
byte placed[3]; /* in how many places it is */
byte running = 3; /* threads that are not done */

inline touch(b)
{
    assert(!freed[b])
}

inline free_bh(b)
{
    atomic { touch(b); freed[b] = true }
}

inline end_closed(b)
{
    placed[b]--;
    if
    :: was_deleted ->
#ifndef CLOSED_LEFT
        free_bh(b)
#endif
    :: else -> atomic { touch(b); pending[b] = false; scheduled[b] = false; owed[b] = false }
    fi
}

inline push(b)
{
    atomic { placed[b]++; assert(placed[b] == 1) };
    seen = top;
    do
    :: seen == CLOSED -> end_closed(b); break
    :: else ->
        atomic { touch(b); next[b] = seen };
        if
#ifdef PLAIN_PUSH
        :: atomic { true -> top = b }; break
#else
        :: atomic { top == seen -> top = b }; break
        :: atomic { top != seen -> seen = top }
#endif
        fi
    od;
    seen = 0
}

inline set_flags(b, to_delete)
{
    atomic {
        touch(b);
        assert(!deleted[b]);
        was_pending = pending[b];
        pending[b] = true;
        scheduled[b] = !to_delete;
        deleted[b] = to_delete;
        was_deleted = to_delete;
        owed[b] = !to_delete /* a deletion cancels */
    };
    if
#ifdef PUSH_ALWAYS
    :: true -> push(b)
#else
    :: !was_pending -> push(b)
    :: else
#endif
    fi;
    atomic { was_pending = false; was_deleted = false }
}

proctype one()
{
    bool was_pending, was_deleted;
    byte seen;

    set_flags(1, false);
    set_flags(1, false);
    running--
}

proctype two()
{
    bool was_pending, was_deleted, kind; /* kind: to schedule, then to delete */
    byte seen;

    set_flags(1, false);
second:
    set_flags(2, kind);
    if
    :: !kind -> kind = true; goto second
    :: true
    fi;
    running--
}

/* What was on the stack is the FIFO, oldest first; it was empty, as no pass is nested. */
inline turn_round()
{
    d_step {
        first = 0;
        do
        :: taken != 0 ->
            b = next[taken];
            next[taken] = first;
            first = taken;
            taken = b
        :: else -> break
        od;
        b = 0
    }
}

inline clear(b)
{
    atomic {
        touch(b);
        was_deleted = deleted[b];
        pending[b] = false;
        scheduled[b] = false;
        placed[b]--;
#ifndef CLEAR_LATE
        owed[b] = false
#endif
    }
}

inline run_fifo()
{
    do
    :: first != 0 ->
        atomic { b = first; first = next[b] };
#ifdef CLEAR_LATE
        owed[b] = false; /* the callback, too soon */
#endif
        clear(b);
        if
        :: was_deleted -> free_bh(b)
        :: else /* the callback */
        fi;
        atomic { was_deleted = false; b = 0 }
    :: else -> break
    od
}

inline take(instead)
{
    if
    :: top != instead -> atomic { taken = top; top = instead }; turn_round()
    :: else
    fi
}

active proctype home()
{
    byte b, taken, passes;
    bool was_deleted;

    do
    :: passes < PASSES -> passes++; take(0); run_fifo()
    :: else -> break
    od;
    if
#ifdef BLIND_CLOSE
    :: top = CLOSED
#else
    :: atomic { top == 0 -> top = CLOSED } /* bh_try_close() */
#endif
    :: take(CLOSED); run_fifo()            /* bh_run_last() */
    fi;
    running--
}

init
{
    atomic { run one(); run two() };
    atomic {
        running == 0;
        assert(top == CLOSED && placed[1] == 0 && placed[2] == 0);
        assert(!owed[1] && !owed[2]);
        assert(!freed[1] && freed[2] == deleted[2])
    }
}
