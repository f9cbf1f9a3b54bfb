/* SPDX-License-Identifier: MIT */
#include "block_support.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unistd.h>

/* ---- Contexts and requests ------------------------------------------------------------------- */

LocalContext::LocalContext(const char *monitor)
{
    AioContextOptions opts = {};

    opts.monitor = monitor;
    ctx_ = aio_context_new(&opts);
    if (!ctx_) {
        ADD_FAILURE() << "aio_context_new: " << strerror(errno);
        abort();
    }
    qemu_set_current_aio_context(ctx_);
}

LocalContext::~LocalContext()
{
    aio_context_unref(ctx_);
}

bool LocalContext::PollUntil(const std::function<bool()> &cond) const
{
    int64_t until = qemu_clock_get_ns(QEMU_CLOCK_HOST) + INT64_C(40000000000);

    while (!cond()) {
        if (!aio_poll(ctx_, false)) {
            if (qemu_clock_get_ns(QEMU_CLOCK_HOST) > until) {
                return cond();
            }
            usleep(50);
        }
    }
    return true;
}

Blk Open(const std::string &spec)
{
    char *why = nullptr;
    BlockBackend *blk = blk_open(spec.c_str(), &why);

    if (!blk) {
        ADD_FAILURE() << "blk_open(" << spec << "): " << (why ? why : "no memory");
        abort();
    }
    return Blk(blk);
}

std::string OpenError(const std::string &spec, int *ret_errno)
{
    char *why = nullptr;
    Blk blk(blk_open(spec.c_str(), &why));
    int err = errno;

    EXPECT_EQ(blk.get(), nullptr) << spec;
    if (blk || !why) {
        return "";
    }
    if (ret_errno) {
        *ret_errno = err;
    }
    std::string text = why;
    free(why);
    return text;
}

void Ended(void *opaque, int ret)
{
    Result *r = static_cast<Result *>(opaque);

    r->ret = ret;
    if (r->then) {
        r->then();
    }
    r->calls++;
}

Buffer::Buffer(size_t bytes, int fill, size_t misalign) : size(bytes)
{
    void *p;

    if (posix_memalign(&p, 4096, bytes + misalign + 1) != 0) {
        abort();
    }
    mem = static_cast<uint8_t *>(p);
    data = mem + misalign;
    memset(data, fill, bytes);
    qemu_iovec_init_buf(&qiov, data, bytes);
}

Buffer::~Buffer()
{
    free(mem);
}

BlkStats Stats(const Blk &blk)
{
    BlkStats stats;

    blk_get_stats(blk.get(), &stats);
    return stats;
}

TempDir::TempDir()
{
    const char *base = getenv("AIOCTX_TEST_DIR");
    std::string templ = std::string(base ? base : "/var/tmp") + "/aioctx-test-XXXXXX";

    if (!mkdtemp(&templ[0])) {
        ADD_FAILURE() << "mkdtemp(" << templ << "): " << strerror(errno);
        abort();
    }
    path_ = templ;
}

TempDir::~TempDir()
{
    std::string cmd = "rm -rf '" + path_ + "'";

    EXPECT_EQ(system(cmd.c_str()), 0);
}

/* ---- The driver ------------------------------------------------------------------------------ */

static std::mutex disks_lock;
static std::map<std::string, MemDisk *> disks;

static MemDisk *DiskOf(void *state)
{
    return static_cast<MemDisk *>(state);
}

static int MemOpen(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    std::lock_guard<std::mutex> guard(disks_lock);
    auto it = disks.find(blk_opts_path(opts));

    if (it == disks.end()) {
        return blk_fail(ret_why, ENOENT, "no disk '%s'", blk_opts_path(opts));
    }
    *ret_state = it->second;
    return 0;
}

static void MemClose(void *)
{
}

static int64_t MemGetLength(void *state)
{
    return static_cast<int64_t>(DiskOf(state)->data.size());
}

static void MemGetLimits(void *state, BlkLimits *ret_limits)
{
    *ret_limits = DiskOf(state)->limits;
}

static int MemCheckContext(void *state, AioContext *, char **ret_why)
{
    return DiskOf(state)->refuses ? blk_fail(ret_why, ENOTSUP, "not here") : 0;
}

static void MemSubmit(BlkPiece *piece)
{
    DiskOf(piece->state)->Submit(piece);
}

static void MemCancel(BlkPiece *piece)
{
    DiskOf(piece->state)->Cancel(piece);
}

static const BlockDriver *MemDriver()
{
    static BlockDriver drv = {};

    drv.abi = BLOCK_DRIVER_ABI;
    drv.name = "mem";
    drv.takes_path = true;
    drv.open = MemOpen;
    drv.close = MemClose;
    drv.getlength = MemGetLength;
    drv.get_limits = MemGetLimits;
    drv.check_context = MemCheckContext;
    drv.submit = MemSubmit;
    drv.cancel = MemCancel;
    return &drv;
}

MemDisk::MemDisk(const std::string &disk_name, size_t bytes, uint32_t alignment)
    : name(disk_name), data(bytes), limits{}
{
    static int registered = blk_driver_register(MemDriver());

    EXPECT_EQ(registered, 0);
    limits.request_alignment = alignment;
    limits.memory_alignment = alignment;
    limits.max_transfer = 1 << 20;
    limits.max_iov = 16;
    std::lock_guard<std::mutex> guard(disks_lock);
    disks[name] = this;
}

MemDisk::~MemDisk()
{
    EXPECT_EQ(at_once, 0);
    std::lock_guard<std::mutex> guard(disks_lock);
    disks.erase(name);
}

/* Every piece keeps what <aioctx/block_driver.h> promises to drivers. */
void MemDisk::Check(const BlkPiece *p)
{
    int64_t mask = limits.request_alignment - 1, length = static_cast<int64_t>(data.size());
    int64_t tail = length & ~mask, end = p->offset + static_cast<int64_t>(p->bytes);

    if (p->op == BLK_OP_FLUSH) {
        return;
    }
    ASSERT_GE(p->offset, 0);
    ASSERT_LE(end, length);
    ASSERT_GT(p->bytes, 0u);
    ASSERT_EQ(p->offset & mask, 0);
    ASSERT_TRUE((end & mask) == 0 || end == length);
    if (p->op != BLK_OP_READ && p->op != BLK_OP_WRITE) {
        return;
    }
    ASSERT_TRUE(p->offset >= tail || end <= tail) << "a piece crosses into the tail";
    ASSERT_LE(p->bytes, limits.max_transfer);
    ASSERT_LE(static_cast<uint32_t>(p->niov), limits.max_iov);
    uint64_t sum = 0;
    for (int i = 0; i < p->niov; i++) {
        sum += p->iov[i].iov_len;
        if (p->offset < tail) {
            ASSERT_EQ(reinterpret_cast<uintptr_t>(p->iov[i].iov_base) &
                          (limits.memory_alignment - 1),
                      0u);
            ASSERT_EQ(p->iov[i].iov_len & static_cast<size_t>(mask), 0u);
        }
    }
    ASSERT_EQ(sum, p->bytes);
    if (p->bytes > longest) {
        longest = p->bytes;
    }
    if (p->niov > most_iov) {
        most_iov = p->niov;
    }
}

int64_t MemDisk::Perform(BlkPiece *p)
{
    int injected = fail.exchange(0);

    if (injected) {
        return injected;
    }
    if (interrupt > 0) {
        interrupt--;
        return -EINTR;
    }
    std::lock_guard<std::mutex> guard(lock_);
    uint8_t *at = data.data() + p->offset;
    uint64_t left = p->bytes, moved = 0;

    switch (p->op) {
    case BLK_OP_FLUSH:
        flushes++;
        return 0;
    case BLK_OP_DISCARD:
    case BLK_OP_ZEROES:
        range_ops++;
        if (no_zeroes) {
            return -ENOTSUP;
        }
        memset(at, 0, p->bytes);
        return 0;
    case BLK_OP_STATUS:
        return -ENOTSUP;
    default:
        break;
    }
    if (transfer && left > transfer) {
        left = transfer;
    }
    for (int i = 0; left > 0; i++) {
        size_t n = std::min<uint64_t>(left, p->iov[i].iov_len);

        if (n == 0) {
            continue;
        }
        if (p->op == BLK_OP_READ) {
            memcpy(p->iov[i].iov_base, at + moved, n);
        } else {
            memcpy(at + moved, p->iov[i].iov_base, n);
        }
        moved += n;
        left -= n;
    }
    if (p->op == BLK_OP_WRITE) {
        writes++;
        fua += (p->flags & BDRV_REQ_FUA) != 0;
    }
    return static_cast<int64_t>(moved);
}

struct Later {
    BlkPiece *piece;
    int passes;
};

static void CompleteBH(void *opaque)
{
    Later *later = static_cast<Later *>(opaque);
    BlkPiece *piece = later->piece;

    if (later->passes-- > 0) {
        EXPECT_EQ(aio_bh_schedule_oneshot(qemu_get_current_aio_context(), CompleteBH, later), 0);
        return;
    }
    delete later;
    blk_piece_done(piece, DiskOf(piece->state)->Perform(piece));
}

void MemDisk::Submit(BlkPiece *piece)
{
    submitted++;
    Check(piece);
    if (stall) {
        std::lock_guard<std::mutex> guard(lock_);
        stalled_.emplace_back(qemu_get_current_aio_context(), piece);
        at_once_max = std::max<int>(at_once_max, ++at_once);
        return;
    }
    if (later) {
        Later *l = new Later{ piece, lag ? submitted % (lag + 1) : 0 };
        ASSERT_EQ(aio_bh_schedule_oneshot(qemu_get_current_aio_context(), CompleteBH, l), 0);
        return;
    }
    blk_piece_done(piece, Perform(piece));
}

void MemDisk::Cancel(BlkPiece *piece)
{
    bool recalled = false;

    cancels++;
    if (recall) {
        std::lock_guard<std::mutex> guard(lock_);
        for (auto it = stalled_.begin(); it != stalled_.end(); ++it) {
            if (it->second == piece) {
                stalled_.erase(it);
                at_once--;
                recalled = true;
                break;
            }
        }
    }
    if (recalled) {
        blk_piece_done(piece, -ECANCELED);
    }
}

void MemDisk::ReleaseOne()
{
    BlkPiece *piece;
    {
        std::lock_guard<std::mutex> guard(lock_);
        ASSERT_FALSE(stalled_.empty());
        piece = stalled_.front().second;
        stalled_.pop_front();
        at_once--;
    }
    blk_piece_done(piece, Perform(piece));
}

void MemDisk::Release(AioContext *ctx)
{
    for (;;) {
        BlkPiece *piece = nullptr;
        {
            std::lock_guard<std::mutex> guard(lock_);
            for (auto it = stalled_.begin(); it != stalled_.end() && !piece; ++it) {
                if (!ctx || it->first == ctx) {
                    piece = it->second;
                    stalled_.erase(it);
                    at_once--;
                    break;
                }
            }
        }
        if (!piece) {
            return;
        }
        blk_piece_done(piece, Perform(piece));
    }
}

void MemDisk::Forget()
{
    std::lock_guard<std::mutex> guard(lock_);

    /* Their memory was left behind on purpose: not a leak that anybody should report. */
    static auto *kept = new std::vector<BlkPiece *>;
    for (auto &entry : stalled_) {
        kept->push_back(entry.second);
    }
    stalled_.clear();
    at_once = 0;
}
