/* SPDX-License-Identifier: MIT */
/*
 * The memfd that all contexts of the process count in, so that another process can read along.
 *
 * It is made with the first context and lasts as long as the process; after that the library does
 * not use its fd any more, so that a program which closes all fds that it does not know loses
 * nothing but the way in for readers.  A context is made before it gets its slot: where fds are
 * short, its monitor comes first.
 *
 * A slot's generation and its contents are a sequence lock without fences.  The writer, under
 * `lock`, makes the generation even when the slot is given back, and odd when it is taken, cleared
 * and filled; each of these is a release store.  Readers, in other processes, load the generation,
 * the contents and the generation again: who has seen something of the next life sees at the end
 * that the generation has changed.  The counters that are written in between are relaxed: each is
 * exact, and they are not of one moment.
 *
 * Source: Boehm, "Can Seqlocks Get Along With Programming Language Memory Models?", MSPC 2012;
 * memfd_create(2).
 */
#include "aio/stats_file_int.h"

#include "rcu/atomic_int.h"
#include "rcu/util_int.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static_assert(sizeof(AioStatsFileHeader) == 64 && sizeof(AioStatsSlot) == 2048 &&
                  offsetof(AioStatsSlot, notifies_sent) == 128 &&
                  offsetof(AioStatsSlot, stats) == 192 && offsetof(AioStatsSlot, histogram) == 448,
              "part of the file's format");

/* The file is sparse: a slot that was never used costs nothing. */
enum { SLOTS = 1024, SLOT_OFFSET = 4096 };
#define FILE_SIZE (SLOT_OFFSET + SLOTS * sizeof(AioStatsSlot))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static AioStatsFileHeader *file; /* under lock; NULL: none yet, or it could not be made */

/* Returns what AIOCTX_STATS says, or -EINVAL. */
static int is_wanted(void)
{
    const char *env = getenv("AIOCTX_STATS");

    if (!env || !*env || strcmp(env, "on") == 0) {
        return 1;
    }
    return strcmp(env, "off") == 0 ? 0 : -EINVAL;
}

int stats_file_check_environment(void)
{
    if (is_wanted() < 0) {
        fprintf(stderr, "aioctx: AIOCTX_STATS is '%s'; it is on or off\n", getenv("AIOCTX_STATS"));
        return -EINVAL;
    }
    return 0;
}

/* Past the limit ftruncate() would end the process by SIGXFSZ. */
static bool may_be_that_large(void)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur >= FILE_SIZE;
}

static void *map_file(int fd)
{
    void *mem;

    if (fchmod(fd, 0600) < 0 || ftruncate(fd, FILE_SIZE) < 0) {
        return NULL;
    }
    mem = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED) {
        return NULL;
    }
    /* Readers need not fear that it shrinks below them.  Not all kernels have the last one. */
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) < 0) {
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    }
    return mem;
}

static void make_file_locked(void)
{
    AioStatsFileHeader *made;
    int fd;

    if (!may_be_that_large()) {
        return;
    }
    fd = memfd_create(AIO_STATS_FILE_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return;
    }
    made = map_file(fd);
    if (!made) {
        close(fd);
        return;
    }
    made->version = AIO_STATS_FILE_VERSION;
    made->slot_offset = SLOT_OFFSET;
    made->slot_size = sizeof(AioStatsSlot);
    made->slots = SLOTS;
    made->pid = getpid();
    st_release(&made->magic, AIO_STATS_FILE_MAGIC); /* last: who sees it sees the rest */
    file = made;
}

static AioStatsSlot *slot_at(unsigned i)
{
    return (AioStatsSlot *)((char *)file + SLOT_OFFSET) + i;
}

static bool is_in_file(const AioStatsSlot *slot)
{
    return file && slot >= slot_at(0) && slot < slot_at(SLOTS);
}

static AioStatsSlot *find_free_locked(void)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!(ld_relaxed(&slot_at(i)->generation) & 1)) {
            if (i >= ld_relaxed(&file->used)) {
                st_release(&file->used, i + 1);
            }
            return slot_at(i);
        }
    }
    return NULL;
}

/* Fills @slot, whose generation is even, with @from. */
static void fill(AioStatsSlot *slot, const AioStatsSlot *from)
{
    uint64_t *to = (uint64_t *)slot;
    const uint64_t *words = (const uint64_t *)from;

    for (size_t i = 1; i < sizeof(*slot) / sizeof(*to); i++) {
        st_release(&to[i], words[i]);
    }
    st_release(&slot->generation, slot->generation + 1);
}

AioStatsSlot *stats_slot_new(void)
{
    AioStatsSlot *slot = aligned_alloc(64, sizeof(*slot));

    return slot ? memset(slot, 0, sizeof(*slot)) : NULL;
}

AioStatsSlot *stats_slot_publish(AioStatsSlot *slot)
{
    AioStatsSlot *found = NULL;

    if (is_wanted() != 1) {
        return slot;
    }
    pthread_mutex_lock(&lock);
    if (!file) {
        make_file_locked();
    }
    if (file) {
        found = find_free_locked();
        if (found) {
            fill(found, slot);
        } else {
            count_own(&file->without_slot, 1);
        }
    }
    pthread_mutex_unlock(&lock);
    if (!found) {
        return slot;
    }
    free(slot);
    return found;
}

void stats_slot_free(AioStatsSlot *slot)
{
    bool in_file;

    if (!slot) {
        return;
    }
    pthread_mutex_lock(&lock);
    in_file = is_in_file(slot);
    if (in_file) {
        st_release(&slot->generation, slot->generation + 1);
    }
    pthread_mutex_unlock(&lock);
    if (!in_file) {
        free(slot);
    }
}
