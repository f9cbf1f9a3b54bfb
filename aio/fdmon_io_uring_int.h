/* SPDX-License-Identifier: MIT */
/* The io_uring monitor's state, shared by its files.  Home thread only. */
#ifndef AIO_FDMON_IO_URING_INT_H
#define AIO_FDMON_IO_URING_INT_H

#include "aio/aio_int.h"

#include <liburing.h>

/* Newer than liburing 2.3's headers.  None changes the ring's layout. */
#ifndef IORING_ENTER_ABS_TIMER
#define IORING_ENTER_ABS_TIMER (1U << 5)
#endif
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif

/* Entries of each table of registered files and buffers. */
enum { URING_TABLE = 1024 };

/* Which entries of a table are taken. */
struct uring_table {
    bool refused; /* the kernel does not want to make it */
    unsigned entries;
    uint64_t used[URING_TABLE / 64];
};

struct uring_mon {
    struct io_uring ring;
    AioHandler *to_arm; /* watched handlers without a poll request, or whose has to change */
    CqeHandler wake;    /* the poll request of the wake eventfd */
    bool wake_armed;
    bool woken;                       /* it has posted a completion since this wait began */
    bool reg_ring;                    /* the ring fd is registered with the home thread */
    bool sqpoll;                      /* a thread of the kernel's submits */
    unsigned enter_flags;             /* of every wait */
    uint64_t inflight;                /* all with a CqeHandler, our own included */
    struct uring_table *files, *bufs; /* NULL: not used so far */
    int event_fd;                     /* eventfd registered with the ring, for a host; -1: none */
};

/* fdmon_io_uring_setup.c: makes the ring, and decides how it is used. */
int uring_setup(AioContext *ctx, struct uring_mon *m, const AioContextOptions *opts);
/* The same for what only the home thread can do: enables the ring. */
void uring_setup_home(AioContext *ctx, struct uring_mon *m);
void uring_drop_ring(struct uring_mon *m);

/* fdmon_io_uring_register.c */
void uring_free_tables(struct uring_mon *m);

#endif
