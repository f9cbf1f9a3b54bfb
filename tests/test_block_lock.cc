/* SPDX-License-Identifier: MIT */
/* The file driver: locks against others that have a file open, and polled I/O. */
#include "block_support.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

static bool Contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

static const off_t kLockByte = off_t(1) << 62; /* docs/backends.md */

static struct flock LockOf(short type)
{
    struct flock lock = {};

    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = kLockByte;
    lock.l_len = 1;
    return lock;
}

class BlkLock : public testing::Test
{
protected:
    void SetUp() override
    {
        int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666);
        struct flock lock = LockOf(F_WRLCK);

        ASSERT_GE(fd, 0);
        ASSERT_EQ(ftruncate(fd, 65536), 0);
        bool works = fcntl(fd, F_OFD_SETLK, &lock) == 0;
        close(fd);
        if (!works) {
            GTEST_SKIP() << "no open file description locks on " << path;
        }
    }
    std::string Spec(const std::string &options = "") const
    {
        return "file:" + path + (options.empty() ? "" : "?" + options);
    }
    std::string Busy(const std::string &options = "") const
    {
        int err = 0;
        std::string why = OpenError(Spec(options), &err);

        EXPECT_EQ(err, EBUSY) << why;
        EXPECT_TRUE(Contains(why, path)) << why;
        EXPECT_FALSE(Contains(why, "\n")) << why;
        return why;
    }

    TempDir dir;
    std::string path = dir.Path("disk");
};

TEST_F(BlkLock, AWriterExcludesReadersAndWriters)
{
    for (const char *locking : { "locking=auto", "locking=on" }) {
        Blk writer = Open(Spec(locking));
        std::string why = Busy();

        EXPECT_TRUE(Contains(why, "cannot take a writer's (exclusive) lock") &&
                    Contains(why, "holds a writer's (exclusive) lock"))
            << why;
        why = Busy("read-only=on");
        EXPECT_TRUE(Contains(why, "cannot take a reader's (shared) lock") &&
                    Contains(why, "holds a writer's (exclusive) lock") && Contains(why, "share=on"))
            << why;
        writer.reset();
        Open(Spec());
        Open(Spec("read-only=on"));
    }
}

TEST_F(BlkLock, ReadersShareAndExcludeWriters)
{
    Blk a = Open(Spec("read-only=on")), b = Open("blkdebug:" + Spec("read-only=on"));
    std::string why = Busy();

    EXPECT_TRUE(Contains(why, "cannot take a writer's") && Contains(why, "holds a reader's"))
        << why;
    a.reset();
    Busy();
    b.reset();
    Open(Spec());
}

TEST_F(BlkLock, WhoSharesOrDoesNotLockIsInNobodysWay)
{
    Blk writer = Open(Spec());
    Blk beside = Open(Spec("read-only=on&share=on"));
    char out[512], in[512];

    memset(out, 'x', sizeof(out));
    EXPECT_EQ(blk_pwrite(writer.get(), 512, 512, out, BdrvRequestFlags()), 0);
    EXPECT_EQ(blk_pread(beside.get(), 512, 512, in, BdrvRequestFlags()), 0);
    EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    writer.reset();
    Blk again = Open(Spec()); /* with the reader still there */
    Blk other = Open(Spec("locking=off"));
    again.reset();
    Open(Spec());
}

TEST_F(BlkLock, OptionsThatDoNotFitAreRefused)
{
    std::string why = OpenError(Spec("locking=yes"));
    EXPECT_TRUE(Contains(why, "'locking' takes auto, on or off, not 'yes'")) << why;
    why = OpenError(Spec("share=on"));
    EXPECT_TRUE(Contains(why, "'share'") && Contains(why, "read-only=on")) << why;
    Open(Spec()); /* no lock stays behind */
}

TEST_F(BlkLock, AnOpenThatFailsAfterwardsLeavesNoLock)
{
    EXPECT_TRUE(Contains(OpenError(Spec("size=1M")), "'size'"));
    Open(Spec());
}

TEST_F(BlkLock, AFileInUseIsNeitherExtendedNorRemoved)
{
    Blk reader = Open(Spec("read-only=on"));

    Busy("create=on&size=1M");
    EXPECT_EQ(blk_getlength(Open(Spec("read-only=on")).get()), 65536);
}

/* What a POSIX lock tells, unlike one of an open file: the process. */
TEST_F(BlkLock, AProcessThatIsKnownIsNamed)
{
    int ready[2], done[2];
    char c;

    ASSERT_EQ(pipe(ready), 0);
    ASSERT_EQ(pipe(done), 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(path.c_str(), O_RDWR);
        struct flock lock = LockOf(F_WRLCK);

        close(done[1]);
        c = fcntl(fd, F_SETLK, &lock) == 0;
        if (write(ready[1], &c, 1) == 1) {
            (void)!read(done[0], &c, 1);
        }
        _exit(0);
    }
    ASSERT_GT(pid, 0);
    close(ready[1]);
    close(done[0]);
    EXPECT_EQ(read(ready[0], &c, 1), 1);
    EXPECT_EQ(c, 1);
    std::string why = Busy();
    EXPECT_TRUE(Contains(why, "process " + std::to_string(pid) + " holds")) << why;
    close(done[1]);
    EXPECT_EQ(waitpid(pid, nullptr, 0), pid);
    close(ready[0]);
    Open(Spec());
}

TEST_F(BlkLock, AChildThatInheritedTheFileDoesNotKeepTheLock)
{
    Blk blk = Open(Spec());
    int done[2];
    char c;

    ASSERT_EQ(pipe(done), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(done[1]);
        (void)!read(done[0], &c, 1);
        _exit(0);
    }
    ASSERT_GT(pid, 0);
    close(done[0]);
    Busy();
    blk.reset();
    Open(Spec());
    close(done[1]);
    EXPECT_EQ(waitpid(pid, nullptr, 0), pid);
}

TEST_F(BlkLock, ARingThatStillHasTheFileDoesNotKeepTheLock)
{
    SKIP_WITHOUT_MONITOR("io_uring");
    LocalContext ctx("io_uring");
    Blk blk = Open(Spec("registered=on"));
    char buf[512];

    EXPECT_EQ(blk_pread(blk.get(), 0, 512, buf, BdrvRequestFlags()), 0);
    blk.reset(); /* the context has not polled since */
    Open(Spec());
}

/* ---- Polled I/O ------------------------------------------------------------------------------ */

TEST_F(BlkLock, PollingIsRefusedWithTheReason)
{
    std::string why = OpenError(Spec("poll=on"));
    char *text = nullptr;

    EXPECT_TRUE(Contains(why, "'poll'") && Contains(why, "direct=on")) << why;
    Blk blk(blk_open(Spec("poll=on&direct=on").c_str(), &text));
    why = text ? text : "";
    free(text);
    if (!blk) {
        EXPECT_TRUE(Contains(why, "io_poll") || Contains(why, "no direct I/O")) << why;
        Open(Spec()); /* and no lock stays behind */
        return;
    }
    Buffer out(8192, 7), in(8192);
    EXPECT_EQ(blk_pwrite(blk.get(), 4096, 8192, out.data, BDRV_REQ_FUA), 0);
    EXPECT_EQ(blk_pread(blk.get(), 4096, 8192, in.data, BdrvRequestFlags()), 0);
    EXPECT_EQ(memcmp(in.data, out.data, 8192), 0);
}
