/* SPDX-License-Identifier: MIT */
/*
 * block_bench's peer: the plain loop that one writes with liburing.  Its ring has the flags, size
 * and registrations of a context's ring.  A deadline here is a timeout linked to each read.
 */
#include "block_load.h"
#include "ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RING_ENTRIES 128
#define TIMEOUT_DATA UINT64_MAX /* user_data of the linked timeouts */

struct loop {
    struct io_uring ring;
    struct load *load;
    int fd;
    bool fixed;         /* the file and the buffers are registered */
    unsigned in_flight; /* entries, timeouts included */
    struct __kernel_timespec deadline;
    uint64_t *bufs[DEPTH_MAX];
    uint32_t blocks[DEPTH_MAX];
};

static void issue(struct loop *p, unsigned slot)
{
    struct load *l = p->load;
    p->blocks[slot] = load_next(l, p->bufs[slot]);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
    uint64_t offset = (uint64_t)p->blocks[slot] * BLOCK_BYTES;
    if (p->fixed) {
        io_uring_prep_read_fixed(sqe, 0, p->bufs[slot], BLOCK_BYTES, offset, 0);
        sqe->flags |= IOSQE_FIXED_FILE;
    } else {
        io_uring_prep_read(sqe, p->fd, p->bufs[slot], BLOCK_BYTES, offset);
    }
    sqe->user_data = slot;
    p->in_flight++;
    if (l->deadline) {
        sqe->flags |= IOSQE_IO_LINK;
        sqe = io_uring_get_sqe(&p->ring);
        io_uring_prep_link_timeout(sqe, &p->deadline, 0);
        sqe->user_data = TIMEOUT_DATA;
        p->in_flight++;
    }
}

static void reap(struct loop *p)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&p->ring, head, cqe)
    {
        seen++;
        p->in_flight--;
        if (cqe->user_data == TIMEOUT_DATA) {
            continue;
        }
        unsigned slot = (unsigned)cqe->user_data;
        if (load_done(p->load, p->blocks[slot], p->bufs[slot], cqe->res == BLOCK_BYTES)) {
            issue(p, slot);
        }
    }
    io_uring_cq_advance(&p->ring, seen);
}

static void loop_run(struct loop *p)
{
    struct load *l = p->load;
    bench_begin(&l->span);
    for (unsigned slot = 0; slot < l->depth; slot++) {
        issue(p, slot);
    }
    while (p->in_flight) {
        int ret = bench_ring_enter(&p->ring, 1);
        if (ret < 0 && ret != -EINTR) {
            bench_die("block_bench: the liburing loop: %s", strerror(-ret));
        }
        reap(p);
    }
}

struct job {
    struct load *loads;
    int fd;
    bool fixed;
    atomic_bool cannot;
};

static void run_thread(unsigned index, void *opaque)
{
    struct job *job = opaque;
    struct loop *p = bench_alloc(sizeof(*p));
    char *bufs = load_buffers();
    struct iovec iov = { bufs, LOAD_BUFFERS_BYTES };
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        p->bufs[i] = (uint64_t *)(bufs + (size_t)i * BLOCK_BYTES);
    }
    p->load = &job->loads[index];
    p->fd = job->fd;
    p->fixed = job->fixed;
    p->deadline.tv_sec = DEADLINE_NS / 1000000000;
    if (bench_ring_init(&p->ring, RING_ENTRIES)) {
        atomic_store(&job->cannot, true);
    } else {
        if (p->fixed && (io_uring_register_files(&p->ring, &p->fd, 1) ||
                         io_uring_register_buffers(&p->ring, &iov, 1))) {
            bench_die("block_bench: the liburing loop cannot register its file and buffers");
        }
        loop_run(p);
        bench_ring_exit(&p->ring);
    }
    free(bufs);
    free(p);
}

bool liburing_run(int fd, bool fixed, unsigned threads, bool pin, struct load *loads)
{
    struct job job = { .loads = loads, .fd = fd, .fixed = fixed };
    bench_threads(threads, pin, run_thread, &job);
    return !atomic_load(&job.cannot);
}
