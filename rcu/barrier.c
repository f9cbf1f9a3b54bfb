/* SPDX-License-Identifier: MIT */
#include "rcu/barrier_int.h"

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool available; /* atomic */

static long membarrier(int command)
{
    return syscall(SYS_membarrier, command, 0, 0);
}

static void find_out(void)
{
    st_relaxed(&available, membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0 &&
                               membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0);
}

bool barrier_available(void)
{
    pthread_once(&once, find_out);
    return ld_relaxed(&available);
}

void barrier_all_threads(void)
{
    if (likely(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0)) {
        return;
    }
    /* A process that was restored from a checkpoint may have to register again. */
    find_out();
    if (!ld_relaxed(&available)) {
        die_misuse("membarrier",
                   "%s: the system call must stay allowed in a process that uses this library",
                   strerror(errno));
    }
}
