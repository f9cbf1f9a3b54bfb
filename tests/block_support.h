/* SPDX-License-Identifier: MIT */
/* What the tests of the block layer share: contexts, requests and a driver that does as it is told.
 * */
#ifndef TESTS_BLOCK_SUPPORT_H
#define TESTS_BLOCK_SUPPORT_H

#include "support.h"

extern "C" {
#include <aioctx/block_driver.h>
}

#include <deque>
#include <memory>
#include <mutex>

/* A context whose home is the calling thread. */
class LocalContext
{
public:
    explicit LocalContext(const char *monitor = nullptr);
    ~LocalContext();
    LocalContext(const LocalContext &) = delete;
    LocalContext &operator=(const LocalContext &) = delete;

    AioContext *get() const
    {
        return ctx_;
    }
    /* Polls until @cond holds, for 40 s at the most; returns whether it does. */
    bool PollUntil(const std::function<bool()> &cond) const;

private:
    AioContext *ctx_;
};

struct BlkUnref {
    void operator()(BlockBackend *blk) const
    {
        blk_unref(blk);
    }
};
using Blk = std::unique_ptr<BlockBackend, BlkUnref>;

/* Opens @spec, which must work. */
Blk Open(const std::string &spec);

/* What blk_open() says of @spec, which must not work; errno is *@ret_errno. */
std::string OpenError(const std::string &spec, int *ret_errno = nullptr);

/* A request's end: pass Ended and a pointer to one of these. */
struct Result {
    std::atomic<int> calls{ 0 };
    std::atomic<int> ret{ 1 };
    std::function<void()> then; /* called inside the callback */
};
void Ended(void *opaque, int ret);

/* A buffer and its vector. */
struct Buffer {
    explicit Buffer(size_t bytes, int fill = 0, size_t misalign = 0);
    ~Buffer();
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    uint8_t *mem;
    uint8_t *data;
    size_t size;
    QEMUIOVector qiov;
};

BlkStats Stats(const Blk &blk);

/* A directory of its own on a real file system, removed with the scope. */
class TempDir
{
public:
    TempDir();
    ~TempDir();
    TempDir(const TempDir &) = delete;
    TempDir &operator=(const TempDir &) = delete;

    std::string Path(const std::string &name) const
    {
        return path_ + "/" + name;
    }

private:
    std::string path_;
};

/*
 * A disk in memory, opened as "mem:NAME".  It checks that every piece keeps the limits, and can
 * stall, cut transfers short and fail.
 */
class MemDisk
{
public:
    explicit MemDisk(const std::string &name, size_t bytes, uint32_t alignment = 1);
    ~MemDisk();
    MemDisk(const MemDisk &) = delete;
    MemDisk &operator=(const MemDisk &) = delete;

    std::string name;
    std::vector<uint8_t> data; /* under lock */
    BlkLimits limits;
    std::atomic<bool> stall{ false };     /* keep pieces until Release() */
    std::atomic<bool> recall{ false };    /* cancelling a stalled piece works */
    std::atomic<bool> later{ false };     /* complete from a bottom half, else inside submit */
    std::atomic<int> lag{ 0 };            /* with later: pieces take up to so many passes more */
    std::atomic<uint32_t> transfer{ 0 };  /* move no more than this at once; 0: all */
    std::atomic<int> fail{ 0 };           /* the next piece ends in this */
    std::atomic<int> interrupt{ 0 };      /* so many pieces end in -EINTR */
    std::atomic<bool> no_zeroes{ false }; /* -ENOTSUP for zeroes and discards */
    std::atomic<bool> refuses{ false };   /* every context */
    std::atomic<int> submitted{ 0 }, cancels{ 0 }, flushes{ 0 }, fua{ 0 }, range_ops{ 0 },
        writes{ 0 };
    std::atomic<int> at_once{ 0 }, at_once_max{ 0 }; /* pieces that are stalled */
    std::atomic<uint64_t> longest{ 0 };
    std::atomic<int> most_iov{ 0 };

    /* Ends the oldest stalled piece.  Thread: its home. */
    void ReleaseOne();
    /* Ends all stalled pieces that @ctx submitted.  Thread: its home. */
    void Release(AioContext *ctx = nullptr);
    /* Drops all stalled pieces, whose requests were given up. */
    void Forget();
    int Stalled() const
    {
        return at_once;
    }

    /* The driver's side. */
    void Submit(BlkPiece *piece);
    void Cancel(BlkPiece *piece);
    int64_t Perform(BlkPiece *piece);

private:
    void Check(const BlkPiece *piece);

    std::mutex lock_;
    std::deque<std::pair<AioContext *, BlkPiece *>> stalled_;
};

#endif
