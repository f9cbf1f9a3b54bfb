/* SPDX-License-Identifier: MIT */
/* Where a context's counters lie: see the end of <aioctx/observe.h>. */
#ifndef AIO_STATS_FILE_INT_H
#define AIO_STATS_FILE_INT_H

#include <aioctx/observe.h>

/* A zeroed slot in private memory; NULL: out of memory. */
AioStatsSlot *stats_slot_new(void);

/*
 * Returns a slot in the process's file with what @slot holds, and frees @slot; or @slot itself,
 * where there is no file or no room in it.  Nobody else may know @slot.
 */
AioStatsSlot *stats_slot_publish(AioStatsSlot *slot);

/* Gives a slot of either kind back.  Nobody writes to it any more.  NULL is ignored. */
void stats_slot_free(AioStatsSlot *slot);

/* What AIOCTX_STATS says.  Returns 0, or -EINVAL, having said on stderr which values there are. */
int stats_file_check_environment(void);

#endif
