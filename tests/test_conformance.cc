/* SPDX-License-Identifier: MIT */
/* The conformance suite: the drivers pass it, and those that do wrong do not. */
#include "block_support.h"

extern "C" {
#include "tools/conformance.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

/* What the suite prints of @spec. */
static std::string RunSuite(const std::string &spec, const ConformanceOptions &opts,
                            int *ret_failed)
{
    char *text = nullptr;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    *ret_failed = conformance_run(spec.c_str(), &opts, out);
    fclose(out);
    std::string s(text, size);
    free(text);
    return s;
}

/* @check fails; @why is said. */
static void Fails(const ConformanceOptions &opts, const std::string &spec, const std::string &check,
                  const std::string &why = "")
{
    int failed = 0;
    std::string out = RunSuite(spec, opts, &failed);

    EXPECT_GT(failed, 0) << spec;
    EXPECT_NE(out.find(check + "\n"), std::string::npos) << spec << "\n" << out;
    EXPECT_NE(out.find(why), std::string::npos) << spec << "\n" << out;
}

class Conformance : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
        opts.monitor = GetParam();
        opts.seed = 1;
    }
    void Passes(const std::string &spec)
    {
        int failed = 0;
        std::string out = RunSuite(spec, opts, &failed);

        EXPECT_EQ(failed, 0) << spec << "\n" << out;
        EXPECT_NE(out.find("\n1..23\n"), std::string::npos) << out;
    }
    ConformanceOptions opts = {};
};

INSTANTIATE_TEST_SUITE_P(Monitors, Conformance, testing::ValuesIn(kMonitorsOfSlowSuites),
                         MonitorName);

TEST_P(Conformance, DriversInMemoryPass)
{
    MemDisk plain("plain", 8 << 20), sectors("sectors", 8 << 20, 512), odd("odd", 1234567, 4096);

    sectors.later = true;
    odd.later = true;
    odd.lag = 2;
    Passes("mem:plain");
    Passes("mem:sectors");
    Passes("mem:odd");
}

TEST_P(Conformance, TheSmallestPass)
{
    MemDisk one("one", 1), part("part", 100, 512), some("some", 4097, 512);

    one.later = true;
    Passes("mem:one");
    Passes("mem:part");
    Passes("mem:some");
}

TEST_P(Conformance, FiltersPass)
{
    MemDisk disk("d", 8 << 20, 512);

    Passes("throttle:iops=1000000000,mem:d");
    Passes("blkdebug:rules=short=64k;write+nth=9+error=EINTR;chance=0.05+delay=20us,mem:d");
    Passes("blkdebug:throttle:bps=100G,mem:d");
}

TEST_P(Conformance, FilesPass)
{
    TempDir dir;

    Passes("file:" + dir.Path("a") + "?create=on&size=9M");
    Passes("file:" + dir.Path("b") + "?create=on&size=9M&direct=on");
    Passes("file:" + dir.Path("c") + "?create=on&size=9M&detach=on");
    Passes("file:" + dir.Path("a") + "?read-only=on");
}

TEST_P(Conformance, NullIsFoundToKeepNothing)
{
    int failed = 0;
    std::string out = RunSuite("null:size=8M,latency-ns=1000", opts, &failed);

    for (const char *line : { "ok 1 - length and limits", "ok 2 - reading twice",
                              "not ok 3 - any offset", "not ok 10 - many requests",
                              "ok 15 - bad requests", "ok 16 - draining", "ok 17 - flushes" }) {
        EXPECT_NE(("\n" + out).find(std::string("\n") + line), std::string::npos) << line << out;
    }
    Passes("null:size=8M,read-only=on");
}

TEST_P(Conformance, ABackendThatCannotBeOpenedIsSaid)
{
    int failed = 0;

    EXPECT_EQ(
        RunSuite("nil:", opts, &failed).find("Bail out! cannot open the backend: unknown driver"),
        0u);
    EXPECT_EQ(failed, -1);
}

/* ---- Planted bugs ---------------------------------------------------------------------------- */

/* A disk with a cache that loses what was not flushed, and a bug. */
namespace
{

constexpr int64_t kPlantBytes = 8 << 20;

struct Plant {
    explicit Plant(const char *name) : bug(name)
    {
    }

    const std::string bug;
    std::vector<char> cache = std::vector<char>(kPlantBytes), stable = cache;
    std::mutex lock; /* of all but the bug */
    int pieces = 0, queues = 0, recalled = 0;
    std::map<int64_t, std::vector<char>> late; /* writes that were recalled and come after others */

    bool Has(const char *name) const
    {
        return bug == name;
    }
};

struct PlantQueue {
    Plant *plant;
    AioContext *ctx;
    QEMUBH *bh;
    int number;
    std::deque<BlkPiece *> waiting;
};

/* Kept, as a bug may come back late. */
Plant *current;

void Copy(const BlkPiece *piece, char *disk, bool write, size_t bytes)
{
    char *at = disk + piece->offset;

    for (int i = 0; i < piece->niov && bytes > 0; i++) {
        size_t n = std::min(bytes, piece->iov[i].iov_len);
        memcpy(write ? at : static_cast<char *>(piece->iov[i].iov_base),
               write ? static_cast<char *>(piece->iov[i].iov_base) : at, n);
        at += n;
        bytes -= n;
    }
}

int64_t DoWrite(Plant *p, const BlkPiece *piece)
{
    size_t bytes = piece->bytes;

    if (p->Has("boundary") &&
        piece->offset / 4096 != (piece->offset + static_cast<int64_t>(bytes) - 1) / 4096) {
        bytes--; /* the last byte behind a boundary */
    }
    Copy(piece, p->cache.data(), true, bytes);
    if ((piece->flags & BDRV_REQ_FUA) && !p->Has("no-fua")) {
        Copy(piece, p->stable.data(), true, bytes);
    }
    auto late = p->late.find(piece->offset);
    if (late != p->late.end()) {
        memcpy(p->cache.data() + piece->offset, late->second.data(), late->second.size());
        p->late.erase(late);
    }
    return static_cast<int64_t>(piece->bytes);
}

int64_t Do(const PlantQueue *q, BlkPiece *piece)
{
    Plant *p = q->plant;
    std::lock_guard<std::mutex> guard(p->lock);
    int64_t keep = piece->offset, ret = static_cast<int64_t>(piece->bytes);

    if (p->Has("alignment") && (piece->offset % 512 || piece->bytes % 512)) {
        return -EINVAL;
    }
    if (p->Has("contexts") && q->number > 0 && piece->offset < 1 << 20) {
        piece->offset += 1 << 20; /* each queue but the first has a disk of its own */
    }
    switch (piece->op) {
    case BLK_OP_READ:
        Copy(piece, p->cache.data(), false, piece->bytes);
        break;
    case BLK_OP_WRITE:
        ret = DoWrite(p, piece);
        break;
    case BLK_OP_FLUSH:
        if (!p->Has("early-flush")) {
            p->stable = p->cache;
        }
        ret = 0;
        break;
    default:
        ret = -ENOTSUP;
    }
    piece->offset = keep;
    return ret;
}

void PlantBh(void *opaque)
{
    auto *q = static_cast<PlantQueue *>(opaque);

    for (size_t n = q->waiting.size(); n > 0 && !q->waiting.empty(); n--) {
        BlkPiece *piece = q->waiting.front();
        q->waiting.pop_front();
        blk_piece_done(piece, Do(q, piece));
    }
}

void PlantSubmit(BlkPiece *piece)
{
    auto *q = static_cast<PlantQueue *>(piece->queue);
    Plant *p = q->plant;
    bool lost = false;
    {
        std::lock_guard<std::mutex> guard(p->lock);
        p->pieces += q->number == 0 || p->Has("lost-elsewhere");
        lost = (p->Has("lost") && p->pieces == 40) ||
               (p->Has("lost-elsewhere") && q->number > 0 && p->pieces % 50 == 0);
    }
    if (lost) {
        return;
    }
    if (p->Has("twice") && piece->op == BLK_OP_WRITE) {
        int64_t ret = Do(q, piece);
        blk_piece_done(piece, ret);
        blk_piece_done(piece, ret);
        return;
    }
    q->waiting.push_back(piece);
    qemu_bh_schedule(q->bh);
}

/* Writes to a buffer that has been given back, once its owner has filled it with 0x5a. */
struct Scribbler {
    QEMUTimer *timer;
    char *to;
};

void Scribble(void *opaque)
{
    auto *scribbler = static_cast<Scribbler *>(opaque);

    if (*scribbler->to != 0x5a) {
        timer_mod(scribbler->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 1);
        return;
    }
    *scribbler->to = 's';
    timer_free(scribbler->timer);
    delete scribbler;
}

void PlantCancel(BlkPiece *piece)
{
    auto *q = static_cast<PlantQueue *>(piece->queue);
    Plant *p = q->plant;
    auto at = std::find(q->waiting.begin(), q->waiting.end(), piece);

    if (at == q->waiting.end()) {
        return;
    }
    q->waiting.erase(at);
    std::unique_lock<std::mutex> guard(p->lock);
    bool first = p->recalled++ < 10; /* those of the checks for cancels */
    auto *buf = piece->niov ? static_cast<char *>(piece->iov[0].iov_base) : nullptr;
    if (first && p->Has("scribble") && piece->op == BLK_OP_READ) {
        auto *scribbler = new Scribbler{ nullptr, buf };
        scribbler->timer =
            aio_timer_new(q->ctx, QEMU_CLOCK_REALTIME, SCALE_MS, Scribble, scribbler);
        timer_mod(scribbler->timer, 0);
    }
    if (p->Has("late-write") && piece->op == BLK_OP_WRITE) {
        p->late[piece->offset] = std::vector<char>(buf, buf + piece->iov[0].iov_len);
    }
    guard.unlock();
    blk_piece_done(piece,
                   p->Has("false-success") ? static_cast<int64_t>(piece->bytes) : -ECANCELED);
}

int PlantOpen(const BlkOptions *opts, void **ret_state, char **)
{
    if (!current || current->bug != blk_opt_get_str(opts, "bug", "none")) {
        delete current;
        current = new Plant(blk_opt_get_str(opts, "bug", "none"));
    }
    current->queues = 0;
    *ret_state = current;
    return 0;
}

int PlantQueueCreate(void *state, AioContext *ctx, void **ret_queue)
{
    auto *p = static_cast<Plant *>(state);
    auto *q = new PlantQueue{ p, ctx, nullptr, 0, {} };
    std::lock_guard<std::mutex> guard(p->lock);

    q->number = p->queues++;
    q->bh = aio_bh_new(ctx, PlantBh, q);
    *ret_queue = q;
    return 0;
}

void PlantQueueDestroy(void *queue)
{
    auto *q = static_cast<PlantQueue *>(queue);

    qemu_bh_delete(q->bh);
    delete q;
}

void RegisterPlant()
{
    static const BlkOptDesc options[] = { { "bug", BLK_OPT_STRING, 0, nullptr }, {} };
    static BlockDriver drv = {};

    if (!drv.abi) {
        drv.abi = BLOCK_DRIVER_ABI;
        drv.name = "plant";
        drv.options = options;
        drv.open = PlantOpen;
        drv.close = [](void *) {};
        drv.getlength = [](void *) { return kPlantBytes; };
        drv.queue_create = PlantQueueCreate;
        drv.queue_destroy = PlantQueueDestroy;
        drv.submit = PlantSubmit;
        drv.cancel = PlantCancel;
        EXPECT_EQ(blk_driver_register(&drv), 0);
    }
}

void LosePower(void *)
{
    std::lock_guard<std::mutex> guard(current->lock);
    current->cache = current->stable;
}

} // namespace

class ConformancePlants : public testing::Test
{
protected:
    ConformancePlants()
    {
        RegisterPlant();
        opts.seed = 1;
        opts.lose_power = LosePower;
    }
    ~ConformancePlants() override
    {
        delete current;
        current = nullptr;
    }

    ConformanceOptions opts = {};
};

TEST_F(ConformancePlants, WithoutABugItPasses)
{
    int failed = 0;
    std::string out = RunSuite("plant:bug=none", opts, &failed);

    EXPECT_EQ(failed, 0) << out;
    EXPECT_EQ(out.find("SKIP"), std::string::npos) << out;
}

TEST_F(ConformancePlants, ErrorsAreFound)
{
    MemDisk disk("d", 8 << 20, 512);

    opts.lose_power = nullptr;
    Fails(opts, "null:size=8M", "not ok 3 - any offset and length");
    Fails(opts, "blkdebug:rules=write+nth=30+error=EIO,mem:d", "not ok 3 - any offset and length");
    Fails(opts, "blkdebug:rules=flush+error=EIO,mem:d", "not ok 17 - flushes among writes");
    Fails(opts, "blkdebug:rules=discard+error=EINVAL,mem:d",
          "not ok 8 - discards leave the rest alone");
    Fails(opts, "blkdebug:rules=status+error=EIO,mem:d", "not ok 9 - block status");
}

TEST_F(ConformancePlants, WrongBytesAreFound)
{
    Fails(opts, "plant:bug=boundary", "not ok 3 - any offset and length", "# after a write, byte ");
    Fails(opts, "plant:bug=alignment", "not ok 3 - any offset and length",
          "ended in EINVAL, not 0");
    Fails(opts, "plant:bug=contexts", "not ok 21 - several threads", "another one does not find");
}

TEST_F(ConformancePlants, WrongCancelsAreFound)
{
    Fails(opts, "plant:bug=scribble", "not ok 12 - cancelled reads");
    Fails(opts, "plant:bug=late-write", "not ok 13 - cancelled writes",
          "that had been cancelled was done after a later one");
    Fails(opts, "plant:bug=false-success", "not ok 12 - cancelled reads",
          "brought other bytes than are there");
}

TEST_F(ConformancePlants, WhatIsNotDurableIsFound)
{
    Fails(opts, "plant:bug=early-flush", "not ok 18 - what was flushed outlives a loss of power",
          "that had ended before a flush was lost");
    Fails(opts, "plant:bug=no-fua", "not ok 18 - what was flushed outlives a loss of power",
          "that had ended before FUA made it durable was lost");
}

/* In a process of its own: a run that has lost a request leaves behind what that may use. */
using ConformancePlantsDeathTest = ConformancePlants;

static void SayAndExit(const char *spec, const ConformanceOptions &opts)
{
    int failed = 0;
    std::string out = RunSuite(spec, opts, &failed);

    fputs(out.c_str(), stderr);
    fflush(stderr);
    _exit(failed > 0 ? 3 : 0);
}

TEST_F(ConformancePlantsDeathTest, ARequestThatNeverEndsIsNamed)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    opts.limit_ns = 200 * 1000000;
    EXPECT_EXIT(SayAndExit("plant:bug=lost", opts), testing::ExitedWithCode(3),
                "of [0-9]* bytes at offset [0-9]* has not ended after 200 ms\n# nor has it after "
                "it was cancelled\nnot ok 3 - any offset and length\nBail out!");
    opts.limit_ns = 1000 * 1000000;
    EXPECT_EXIT(SayAndExit("plant:bug=lost-elsewhere", opts), testing::ExitedWithCode(3),
                "have not ended after 1000 ms\nnot ok 21 - several threads\nBail out!");
}

TEST_F(ConformancePlantsDeathTest, APieceThatEndsTwiceIsNamed)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(SayAndExit("plant:bug=twice", opts), testing::KilledBySignal(SIGABRT),
                "piece_busy");
}
