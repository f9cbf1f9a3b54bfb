/* SPDX-License-Identifier: MIT */
/* block_bench on aioctx: iothreads that read from one backend, each read issued by the callback of
 * the one before. */
#include "block_load.h"

#include <aioctx/block.h>
#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

struct member;

struct slot {
    struct member *member;
    QEMUIOVector qiov;
    uint64_t *buf;
    uint32_t block;
};

struct member {
    _Alignas(BENCH_ALIGN) struct aioctx_team *team;
    IOThread *io;
    AioContext *ctx;
    struct load *load;
    unsigned cpu, in_flight;
    char *bufs;
    struct slot slots[DEPTH_MAX];
};

struct aioctx_team {
    BlockBackend *blk;
    bool pin;
    unsigned threads;
    sem_t ended;
    struct member members[];
};

static void issue(struct slot *s);

static void on_read(void *opaque, int ret)
{
    struct slot *s = opaque;
    struct member *m = s->member;
    m->in_flight--;
    if (load_done(m->load, s->block, s->buf, ret == 0)) {
        issue(s);
    } else if (!m->in_flight) {
        sem_post(&m->team->ended);
    }
}

static void issue(struct slot *s)
{
    struct member *m = s->member;
    struct load *l = m->load;
    s->block = load_next(l, s->buf);
    BlkReqOpts opts = { .deadline_ns = -1 };
    if (l->deadline) {
        opts.deadline_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + DEADLINE_NS;
    }
    if (!blk_aio_preadv_opts(m->team->blk, (int64_t)s->block * BLOCK_BYTES, &s->qiov, 0, on_read, s,
                             &opts)) {
        bench_die("block_bench: cannot submit a read: %s", strerror(errno));
    }
    m->in_flight++;
}

static void start(void *opaque)
{
    struct member *m = opaque;
    if (m->team->pin) {
        bench_pin(m->cpu);
    }
    bench_begin(&m->load->span);
    for (unsigned i = 0; i < m->load->depth; i++) {
        issue(&m->slots[i]);
    }
}

static void member_init(struct aioctx_team *team, unsigned index, unsigned first_cpu)
{
    struct member *m = &team->members[index];
    m->team = team;
    m->cpu = first_cpu + index;
    m->io = iothread_new("bench-io", NULL);
    if (!m->io) {
        bench_die("block_bench: cannot start an iothread: %s", strerror(errno));
    }
    m->ctx = iothread_get_aio_context(m->io);
    m->bufs = load_buffers();
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        struct slot *s = &m->slots[i];
        s->member = m;
        s->buf = (uint64_t *)(m->bufs + (size_t)i * BLOCK_BYTES);
        qemu_iovec_init_buf(&s->qiov, s->buf, BLOCK_BYTES);
    }
}

struct aioctx_team *aioctx_team_new(unsigned threads, unsigned first_cpu, bool pin)
{
    struct aioctx_team *team = bench_alloc(sizeof(*team) + threads * sizeof(team->members[0]));
    team->threads = threads;
    team->pin = pin;
    sem_init(&team->ended, 0, 0);
    for (unsigned i = 0; i < threads; i++) {
        member_init(team, i, first_cpu);
    }
    return team;
}

void aioctx_team_free(struct aioctx_team *team)
{
    for (unsigned i = 0; i < team->threads; i++) {
        iothread_destroy(team->members[i].io);
        free(team->members[i].bufs);
    }
    sem_destroy(&team->ended);
    free(team);
}

BlockBackend *aioctx_open(const char *spec)
{
    char *why = NULL;
    BlockBackend *blk = blk_open(spec, &why);
    if (!blk) {
        bench_die("block_bench: cannot open %s: %s", spec, why ? why : strerror(errno));
    }
    return blk;
}

void aioctx_close(BlockBackend *blk)
{
    blk_unref(blk);
}

void aioctx_team_register(struct aioctx_team *team, BlockBackend *blk)
{
    for (unsigned i = 0; i < team->threads; i++) {
        int ret = blk_register_buf(blk, team->members[i].bufs, LOAD_BUFFERS_BYTES);
        if (ret < 0) {
            bench_die("block_bench: cannot register buffers: %s", strerror(-ret));
        }
    }
}

bool aioctx_team_can(struct aioctx_team *team, BlockBackend *blk)
{
    char *why = NULL;
    if (!blk_check_context(blk, team->members[0].ctx, &why)) {
        return true;
    }
    printf("file skipped: %s\n", why ? why : "the driver cannot run here");
    free(why);
    return false;
}

void aioctx_team_run(struct aioctx_team *team, BlockBackend *blk, struct load *loads)
{
    team->blk = blk;
    for (unsigned i = 0; i < team->threads; i++) {
        struct member *m = &team->members[i];
        m->load = &loads[i];
        if (aio_bh_schedule_oneshot(m->ctx, start, m)) {
            bench_die("out of memory");
        }
    }
    for (unsigned i = 0; i < team->threads; i++) {
        while (sem_wait(&team->ended) && errno == EINTR) {
        }
    }
}
