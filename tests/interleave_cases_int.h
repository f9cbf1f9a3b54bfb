/* SPDX-License-Identifier: MIT */
/* The cases: interleave_cases.c and interleave_short.c have those of timers, interleave_icount.c
 * those of instruction counting, interleave_aio.c those of the loop. */
#ifndef TESTS_INTERLEAVE_CASES_INT_H
#define TESTS_INTERLEAVE_CASES_INT_H

#include "tests/interleave.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct il_case il_mod_mod, il_mod_del, il_mod_free, il_del_sync, il_del_sync_free,
    il_sooner, il_two_writers, il_moved_head, il_disable, il_deinit, il_stop, il_lock,
    il_lock_return, il_mod_pass;
extern const struct il_case il_short_append, il_short_move, il_short_cancel;
extern const struct il_case il_warp_list_goes, il_warp_configure, il_warp_arm, il_warp_jump;
extern const struct il_case il_wake, il_wake_two, il_wake_flag, il_bh, il_bh_delete, il_bh_close,
    il_arm_sleep;

#ifdef __cplusplus
}
#endif

#endif
