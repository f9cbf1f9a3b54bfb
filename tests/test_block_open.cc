/* SPDX-License-Identifier: MIT */
/* Opening backends: specs, options and what is said of bad ones. */
#include "block_support.h"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static bool Contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

static void MakeFile(const std::string &path, off_t size)
{
    int fd = open(path.c_str(), O_CREAT | O_WRONLY, 0666);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, size), 0);
    close(fd);
}

TEST(BlkOpen, NullTakesSizeAndDefaults)
{
    EXPECT_EQ(blk_getlength(Open("null://").get()), INT64_C(1) << 30);
    EXPECT_EQ(blk_getlength(Open("null:").get()), INT64_C(1) << 30);
    EXPECT_EQ(blk_getlength(Open("null://?size=12345").get()), 12345);
    EXPECT_EQ(blk_getlength(Open("null:size=3k,latency-ns=5").get()), 3072);
    EXPECT_STREQ(blk_get_driver_name(Open("null://").get()), "null");
}

TEST(BlkOpen, SizesTakeSuffixes)
{
    EXPECT_EQ(blk_getlength(Open("null://?size=7k").get()), 7 << 10);
    EXPECT_EQ(blk_getlength(Open("null://?size=7K").get()), 7 << 10);
    EXPECT_EQ(blk_getlength(Open("null://?size=7M").get()), 7 << 20);
    EXPECT_EQ(blk_getlength(Open("null://?size=7G").get()), INT64_C(7) << 30);
    EXPECT_EQ(blk_getlength(Open("null://?size=7T").get()), INT64_C(7) << 40);
}

TEST(BlkOpen, BadSizesAreNamed)
{
    for (const char *bad :
         { "", "0", "-1", "1Q", "1kk", "x", "99999999999999999999", "9999999T" }) {
        int err = 0;
        std::string why = OpenError(std::string("null://?size=") + bad, &err);

        EXPECT_EQ(err, EINVAL) << bad;
        EXPECT_TRUE(Contains(why, "'size'") && Contains(why, "1G")) << why;
    }
}

TEST(BlkOpen, BadSwitchesSayOnOrOff)
{
    std::string why = OpenError("null://?read-only=yes");

    EXPECT_TRUE(Contains(why, "'read-only'") && Contains(why, "on or off") && Contains(why, "yes"))
        << why;
}

TEST(BlkOpen, UnknownOptionsListTheKnownOnes)
{
    std::string why = OpenError("null://?sise=1G");

    for (const char *part : { "'null'", "'sise'", "size=", "latency-ns=", "read-only=on|off",
                              "detach=on|off", "deadline-ns=" }) {
        EXPECT_TRUE(Contains(why, part)) << why;
    }
    why = OpenError("file:x?latency-ns=1");
    EXPECT_TRUE(Contains(why, "'latency-ns'") && Contains(why, "direct=on|off") &&
                Contains(why, "create=on|off"))
        << why;
}

TEST(BlkOpen, UnknownDriversListTheKnownOnes)
{
    int err = 0;
    std::string why = OpenError("nul://", &err);

    EXPECT_EQ(err, EINVAL);
    EXPECT_TRUE(Contains(why, "'nul'") && Contains(why, "file, null")) << why;
}

TEST(BlkOpen, OptionsAreGivenOnce)
{
    EXPECT_TRUE(Contains(OpenError("null://?size=1&size=2"), "twice"));
}

TEST(BlkOpen, OptionsNeedAValue)
{
    EXPECT_TRUE(Contains(OpenError("null://?size"), "name=value"));
    EXPECT_TRUE(Contains(OpenError("null://?=3"), "name=value"));
    EXPECT_TRUE(Contains(OpenError("null:abc"), "no path"));
}

TEST(BlkOpen, AWhyPointerIsOptional)
{
    EXPECT_EQ(blk_open("nul://", nullptr), nullptr);
    EXPECT_EQ(errno, EINVAL);
}

TEST(BlkOpen, PercentStandsForAByte)
{
    TempDir dir;

    MakeFile(dir.Path("a b?c"), 4096);
    EXPECT_EQ(blk_getlength(Open("file:" + dir.Path("a%20b%3fc")).get()), 4096);
    EXPECT_EQ(blk_getlength(Open("null://?size=%34k").get()), 4096);
    EXPECT_TRUE(Contains(OpenError("null://?size=%3"), "'size'"));
    EXPECT_TRUE(Contains(OpenError("null://?size=%00"), "'size'"));
    EXPECT_TRUE(Contains(OpenError("file:a%zz"), "%"));
}

TEST(BlkOpen, FilesOpenByUriPathAndBareName)
{
    TempDir dir;

    MakeFile(dir.Path("disk"), 8192);
    EXPECT_EQ(blk_getlength(Open("file://" + dir.Path("disk")).get()), 8192);
    EXPECT_EQ(blk_getlength(Open("file:" + dir.Path("disk")).get()), 8192);
    EXPECT_EQ(blk_getlength(Open("file:" + dir.Path("disk") + "?read-only=on").get()), 8192);
    EXPECT_EQ(blk_getlength(Open(dir.Path("disk")).get()), 8192);
    MakeFile(dir.Path("odd?x=1"), 10);
    EXPECT_EQ(blk_getlength(Open(dir.Path("odd?x=1")).get()), 10);
    EXPECT_TRUE(Contains(OpenError("file://host/disk"), "no host"));
    EXPECT_TRUE(Contains(OpenError("file:"), "names no file"));
}

TEST(BlkOpen, CreateMakesASparseFile)
{
    TempDir dir;
    struct stat st;

    {
        Blk blk = Open("file:" + dir.Path("new") + "?create=on&size=64M");
        EXPECT_EQ(blk_getlength(blk.get()), 64 << 20);
    }
    ASSERT_EQ(stat(dir.Path("new").c_str(), &st), 0);
    EXPECT_EQ(st.st_size, 64 << 20);
    EXPECT_LT(st.st_blocks * 512, 1 << 20);
}

TEST(BlkOpen, CreateExtendsButNeverShrinks)
{
    TempDir dir;

    MakeFile(dir.Path("f"), 8192);
    EXPECT_EQ(blk_getlength(Open("file:" + dir.Path("f") + "?create=on&size=4k").get()), 8192);
    EXPECT_EQ(blk_getlength(Open("file:" + dir.Path("f") + "?create=on&size=16k").get()), 16384);
}

TEST(BlkOpen, BadFilesAreToldApart)
{
    TempDir dir;
    int err = 0;
    std::string why = OpenError("file:" + dir.Path("none"), &err);

    EXPECT_EQ(err, ENOENT);
    EXPECT_TRUE(Contains(why, "none") && Contains(why, "create=on")) << why;
    why = OpenError("file:" + dir.Path("."), &err);
    EXPECT_EQ(err, EISDIR);
    EXPECT_TRUE(Contains(why, "is a directory")) << why;
    why = OpenError("file:/dev/null", &err);
    EXPECT_EQ(err, EINVAL);
    EXPECT_TRUE(Contains(why, "block device")) << why;
    ASSERT_EQ(mkfifo(dir.Path("fifo").c_str(), 0666), 0);
    why = OpenError("file:" + dir.Path("fifo"), &err);
    EXPECT_EQ(err, EINVAL);
    why = OpenError("file:" + dir.Path("no/such/dir") + "?create=on&size=1M", &err);
    EXPECT_EQ(err, ENOENT);
}

TEST(BlkOpen, CreateNeedsASizeAndExcludesReadOnly)
{
    EXPECT_TRUE(Contains(OpenError("file:x?create=on"), "'size'"));
    EXPECT_TRUE(Contains(OpenError("file:x?create=on&size=1M&read-only=on"), "'read-only'"));
}

TEST(BlkOpen, SmallerThanAskedForNamesBothSizes)
{
    TempDir dir;

    MakeFile(dir.Path("f"), 8192);
    std::string why = OpenError("file:" + dir.Path("f") + "?size=1M");
    EXPECT_TRUE(Contains(why, "1048576") && Contains(why, "8192")) << why;
    EXPECT_EQ(blk_getlength(Open("file:" + dir.Path("f") + "?size=4k").get()), 8192);
}

TEST(BlkOpen, AFileThatCannotBeMadeThatLargeIsRemovedAgain)
{
    TempDir dir;
    int err = 0;
    struct rlimit old_limit, limit;

    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
    limit = old_limit;
    limit.rlim_cur = 1 << 20;
    auto old_handler = signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    std::string why = OpenError("file:" + dir.Path("huge") + "?create=on&size=2M", &err);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
    signal(SIGXFSZ, old_handler);
    EXPECT_EQ(err, EFBIG) << why;
    EXPECT_TRUE(Contains(why, "huge")) << why;
    EXPECT_NE(access(dir.Path("huge").c_str(), F_OK), 0);
}

TEST(BlkOpen, AFileWithoutPermissionSaysSo)
{
    TempDir dir;
    int err = 0;

    if (geteuid() == 0) {
        GTEST_SKIP() << "root may write everything";
    }
    MakeFile(dir.Path("f"), 8192);
    ASSERT_EQ(chmod(dir.Path("f").c_str(), 0444), 0);
    std::string why = OpenError("file:" + dir.Path("f"), &err);
    EXPECT_EQ(err, EACCES);
    EXPECT_TRUE(Contains(why, "read-only=on")) << why;
    EXPECT_TRUE(blk_is_read_only(Open("file:" + dir.Path("f") + "?read-only=on").get()));
}

TEST(BlkOpen, ReferencesKeepABackendOpen)
{
    BlockBackend *blk = blk_open("null://", nullptr);

    ASSERT_NE(blk, nullptr);
    blk_ref(blk);
    blk_unref(blk);
    EXPECT_EQ(blk_getlength(blk), INT64_C(1) << 30);
    blk_unref(blk);
    blk_unref(nullptr);
}

TEST(BlkOpen, VectorsSumTheirBuffers)
{
    QEMUIOVector q;
    char a[10], b[20];
    struct iovec iov[2] = { { a, sizeof(a) }, { b, sizeof(b) } };

    qemu_iovec_init_buf(&q, a, sizeof(a));
    EXPECT_EQ(q.size, 10u);
    EXPECT_EQ(q.niov, 1);
    EXPECT_EQ(q.iov[0].iov_base, a);
    qemu_iovec_init_external(&q, iov, 2);
    EXPECT_EQ(q.size, 30u);
    EXPECT_EQ(q.iov, iov);
}

TEST(BlkOpen, DriversOfTheLibraryTakeEveryContext)
{
    TempDir dir;

    MakeFile(dir.Path("f"), 8192);
    Blk blk = Open("file:" + dir.Path("f"));
    for (const char *monitor : kMonitors) {
        if (MonitorWorks(monitor)) {
            ScopedIOThread io(monitor);

            EXPECT_EQ(blk_check_context(blk.get(), io.ctx(), nullptr), 0);
            EXPECT_EQ(blk_check_context(Open("null://").get(), io.ctx(), nullptr), 0);
        }
    }
}

TEST(BlkOpen, ADriverMayRefuseAContext)
{
    MemDisk disk("picky", 8192);
    disk.refuses = true;
    Blk blk = Open("mem:picky");
    LocalContext ctx;
    char *why = nullptr;
    Buffer buf(512);
    Result r;

    EXPECT_EQ(blk_check_context(blk.get(), ctx.get(), &why), -ENOTSUP);
    EXPECT_EQ(std::string(why ? why : ""), "not here");
    free(why);
    ASSERT_NE(blk_aio_preadv(blk.get(), 0, &buf.qiov, BdrvRequestFlags(), Ended, &r), nullptr);
    EXPECT_EQ(r.calls, 0);
    ASSERT_TRUE(ctx.PollUntil([&] { return r.calls == 1; }));
    EXPECT_EQ(r.ret, -ENOTSUP);
    EXPECT_EQ(disk.submitted, 0);
}

/* ---- Drivers that take a host, and other names ----------------------------------------------- */

static std::string host_seen;

static int HostOpen(const BlkOptions *opts, void **, char **)
{
    static const char *const names[] = { "user", "host", "port", "export", "read-only" };

    host_seen = blk_opts_name(opts);
    for (const char *name : names) {
        if (blk_opt_given(opts, name)) {
            host_seen += std::string(" ") + name + "=" + blk_opt_get_str(opts, name, "");
        }
    }
    return 0;
}

static void RegisterHostDriver()
{
    static const BlkOptDesc options[] = { { "user", BLK_OPT_STRING, 0, nullptr },
                                          { "host", BLK_OPT_STRING, 0, nullptr },
                                          { "port", BLK_OPT_NUMBER, 0, nullptr },
                                          { "export", BLK_OPT_STRING, 0, nullptr },
                                          { nullptr, BLK_OPT_SWITCH, 0, nullptr } };
    static const char *const aliases[] = { "hosts", "host+unix", nullptr };
    static BlockDriver drv = {};
    static int registered = -1;

    drv.abi = BLOCK_DRIVER_ABI;
    drv.name = "host";
    drv.aliases = aliases;
    drv.options = options;
    drv.takes_host = drv.detaches = true;
    drv.open = HostOpen;
    drv.close = [](void *) {};
    drv.getlength = [](void *) { return INT64_C(4096); };
    drv.submit = [](BlkPiece *piece) { blk_piece_done(piece, -EIO); };
    if (registered < 0) {
        registered = blk_driver_register(&drv);
        EXPECT_EQ(registered, 0);
    }
}

TEST(BlkOpen, AHostIsTakenApart)
{
    static const std::pair<const char *, const char *> cases[] = {
        { "host:", "host" },
        { "host://", "host" },
        { "host://a", "host host=a" },
        { "hosts://a:10/x", "hosts host=a port=10 export=x" },
        { "host://u@a/x%2Fy/z?read-only=on", "host user=u host=a export=x/y/z read-only=on" },
        { "host+unix://u@/x", "host+unix user=u export=x" },
        { "host://[::1]:10/", "host host=::1 port=10" },
        { "host://[::1]", "host host=::1" },
        { "host:host=a,port=10", "host host=a port=10" },
        { "blkdebug:hosts://a:1", "hosts host=a port=1" },
        { "blkdebug://?child=hosts://a:1", "hosts host=a port=1" },
    };

    RegisterHostDriver();
    for (const auto &c : cases) {
        Blk blk = Open(c.first);

        EXPECT_EQ(host_seen, c.second) << c.first;
        EXPECT_STREQ(blk_get_driver_name(blk.get()), c.first[0] == 'b' ? "blkdebug" : "host");
    }
    EXPECT_TRUE(Contains(OpenError("host://a:b/x"), "'port'"));
    EXPECT_TRUE(Contains(OpenError("host://a%zz/x"), "'%'"));
    EXPECT_TRUE(Contains(OpenError("host://a?host=b"), "given twice"));
    EXPECT_TRUE(Contains(OpenError("host:a"), "//HOST"));
    EXPECT_TRUE(Contains(OpenError("host:detach=off"), "always on with driver 'host'"));
    EXPECT_TRUE(Contains(OpenError("module:"), "no module is named"));
    EXPECT_TRUE(Contains(OpenError("module:/nowhere/m.so,a=b"), "cannot load '/nowhere/m.so'"));
    EXPECT_TRUE(Contains(OpenError("hostx://a"), "no module block-hostx.so in "));
}

TEST(BlkOpen, AnAliasIsANameThatIsTaken)
{
    static const char *const taken[] = { "hosts", nullptr }, *const bad[] = { "A", nullptr };
    BlockDriver drv = {};

    RegisterHostDriver();
    drv.abi = BLOCK_DRIVER_ABI;
    drv.open = HostOpen;
    drv.close = [](void *) {};
    drv.getlength = [](void *) { return INT64_C(1); };
    drv.submit = [](BlkPiece *) {};
    drv.name = "host+unix";
    EXPECT_EQ(blk_driver_register(&drv), -EEXIST);
    drv.name = "free";
    drv.aliases = taken;
    EXPECT_EQ(blk_driver_register(&drv), -EEXIST);
    drv.aliases = bad;
    EXPECT_EQ(blk_driver_register(&drv), -EINVAL);
    drv.aliases = nullptr;
    drv.takes_host = drv.takes_path = true;
    EXPECT_EQ(blk_driver_register(&drv), -EINVAL);
    drv.takes_path = false;
    drv.name = "module";
    EXPECT_EQ(blk_driver_register(&drv), -EINVAL);
}
