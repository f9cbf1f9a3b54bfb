/* SPDX-License-Identifier: MIT */
/* aioctx-top on processes that are not what they seem: files that nobody's library wrote, and
 * another program in the midst of it. */
#include "command.h"
#include "support.h"

#include <aioctx/observe.h>

#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

/* A child that has run @begin, and then waits to be told to run @end. */
class Child
{
public:
    Child(const std::function<bool()> &begin, const std::function<void()> &end)
    {
        int ready[2], go[2];

        EXPECT_EQ(pipe2(ready, O_CLOEXEC), 0);
        EXPECT_EQ(pipe2(go, O_CLOEXEC), 0);
        pid_ = fork();
        if (pid_ == 0) {
            char c = begin() ? 'y' : 'n';

            if (write(ready[1], &c, 1) == 1 && read(go[0], &c, 1) == 1) {
                end();
            }
            _exit(0);
        }
        close(ready[1]);
        close(go[0]);
        go_ = go[1];
        char c = 'n';
        EXPECT_EQ(read(ready[0], &c, 1), 1);
        works_ = c == 'y';
        close(ready[0]);
    }
    ~Child()
    {
        kill(pid_, SIGKILL);
        if (!waited_) {
            waitpid(pid_, nullptr, 0);
        }
        close(go_);
    }
    bool works() const
    {
        return works_;
    }
    void Go() const
    {
        EXPECT_EQ(write(go_, "g", 1), 1);
    }
    int Wait()
    {
        int status = -1;

        waited_ = true;
        waitpid(pid_, &status, 0);
        return status;
    }
    CommandResult Top(const std::string &args) const
    {
        return RunCommand("timeout 20 " TOP_PROGRAM " -i 50ms " + args + " " +
                          std::to_string(pid_));
    }

private:
    pid_t pid_;
    int go_;
    bool works_, waited_ = false;
};

/* A file such as the library makes, with one slot; @change makes it another. */
static bool MakeFile(const std::function<void(AioStatsFileHeader *, AioStatsSlot *)> &change)
{
    constexpr size_t kSize = 4096 + 4 * sizeof(AioStatsSlot);
    int fd = memfd_create(AIO_STATS_FILE_NAME, MFD_CLOEXEC);
    void *mem = nullptr;

    if (fd >= 0 && ftruncate(fd, kSize) == 0) {
        mem = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (!mem || mem == MAP_FAILED) {
        return false;
    }
    auto header = static_cast<AioStatsFileHeader *>(mem);
    auto slot = reinterpret_cast<AioStatsSlot *>(static_cast<char *>(mem) + 4096);
    header->magic = AIO_STATS_FILE_MAGIC;
    header->version = AIO_STATS_FILE_VERSION;
    header->slot_offset = 4096;
    header->slot_size = sizeof(AioStatsSlot);
    header->slots = header->used = 4;
    header->pid = getpid();
    slot->generation = 1;
    slot->state = AIO_STATS_HOME;
    slot->tid = getpid();
    strcpy(slot->monitor, "epoll");
    change(header, slot);
    return true;
}

TEST(ToolTopHostile, NothingInTheFileActsOnATerminal)
{
    Child child(
        [] {
            return MakeFile([](AioStatsFileHeader *, AioStatsSlot *slot) {
                memset(slot->monitor, '\033', sizeof(slot->monitor));
                memcpy(slot->monitor, "\033[\xc2\x9bJ\r\n", 8);
            });
        },
        [] {});
    ASSERT_TRUE(child.works());
    for (const char *args : { "--once", "--once --json" }) {
        CommandResult r = child.Top(args);
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_EQ(r.output.find('\033'), std::string::npos) << r.output;
        EXPECT_EQ(r.output.find('\r'), std::string::npos) << r.output;
        EXPECT_EQ(r.output.find("\xc2\x9b"), std::string::npos) << r.output;
    }
    EXPECT_NE(child.Top("--once").output.find(" ?[??J?? "), std::string::npos);
}

TEST(ToolTopHostile, NoNumberInTheFileIsTrusted)
{
    auto all = [](AioStatsFileHeader *header, AioStatsSlot *slot) {
        header->slots = header->used = UINT32_MAX;
        for (int i = 0; i < 4; i++) {
            memset(&slot[i], 0xff, sizeof(*slot));
        }
    };
    auto far = [](AioStatsFileHeader *header, AioStatsSlot *) {
        header->slot_offset = UINT32_MAX;
        header->used = UINT32_MAX;
    };

    for (int i = 0; i < 2; i++) {
        Child child([&] { return i ? MakeFile(far) : MakeFile(all); }, [] {});
        ASSERT_TRUE(child.works());
        for (const char *args : { "--once", "--once --json" }) {
            CommandResult r = child.Top(args);
            EXPECT_EQ(r.status, 0) << r.output;
        }
    }
}

/* Anything may have the file's name; what is no memfd is not even opened. */
TEST(ToolTopHostile, OnlyAMemfdIsOpened)
{
    static int events;
    ScratchDir dir;
    const std::string fifo = dir / "memfd:" AIO_STATS_FILE_NAME " (deleted)";
    auto begin = [&] {
        for (int fd = 3; fd < 1024; fd++) { /* the file of this program itself */
            char target[16] = "";
            std::string link = "/proc/self/fd/" + std::to_string(fd);

            if (readlink(link.c_str(), target, 7) == 7 && strncmp(target, "/memfd:", 7) == 0) {
                close(fd);
            }
        }
        if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
            mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0 ||
            mount("none", dir.path().c_str(), "tmpfs", 0, nullptr) < 0 ||
            mkfifo(fifo.c_str(), 0600) < 0 || open(fifo.c_str(), O_PATH) < 0) {
            return false;
        }
        events = inotify_init1(IN_NONBLOCK);
        /* Without a place in the tree its name begins at its own root. */
        return events >= 0 && inotify_add_watch(events, fifo.c_str(), IN_OPEN) >= 0 &&
               umount2(dir.path().c_str(), MNT_DETACH) == 0;
    };
    auto end = [] {
        char event[512];

        _exit(read(events, event, sizeof(event)) > 0 ? 3 : 0);
    };
    Child child(begin, end);
    if (!child.works()) {
        GTEST_SKIP() << "needs mount(2)";
    }
    CommandResult r = child.Top("--once");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("has no counters"), std::string::npos) << r.output;
    child.Go();
    int status = child.Wait();
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "it was opened";
}

/* What it shows would be the past. */
TEST(ToolTopHostile, AnotherProgramIsTheEnd)
{
    Child child([] { return MakeFile([](AioStatsFileHeader *, AioStatsSlot *) {}); },
                [] { execlp("sleep", "sleep", "100", nullptr); });
    ScratchDir dir;
    std::string out = dir / "out";
    ASSERT_TRUE(child.works());
    std::thread go([&] {
        EXPECT_TRUE(WaitUntil([&] {
            struct stat st;
            return stat(out.c_str(), &st) == 0 && st.st_size > 0;
        }));
        child.Go();
    });
    CommandResult r = child.Top(">" + out);
    go.join();
    EXPECT_EQ(r.status, 0);
    EXPECT_NE(r.output.find("runs another program now"), std::string::npos) << r.output;
}
