/* SPDX-License-Identifier: MIT */
/*
 * What `meson install` leaves in a prefix is enough: a program outside the tree builds with what
 * pkg-config says of aioctx and nothing else, shared and static, C and C++; the tools start.
 */
#include "command.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <string>

/* A timer on an iothread, and a read from a backend.  Valid C and C++. */
static const char kProgram[] = R"(
#include <aioctx/aioctx.h>
#include <stdio.h>
#include <string.h>

static EventNotifier fired;

static void on_timer(void *opaque)
{
    *(int *)opaque += 1;
    event_notifier_set(&fired);
}

int main(void)
{
    int count = 0;
    char buf[512];
    IOThread *io = iothread_new("io0", NULL);
    BlockBackend *blk = blk_open("null://?size=1M", NULL);
    if (!io || !blk || event_notifier_init(&fired, 0) < 0) {
        return 1;
    }
    QEMUTimer *t = aio_timer_new(iothread_get_aio_context(io), QEMU_CLOCK_REALTIME, SCALE_MS,
                                 on_timer, &count);
    timer_mod(t, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 1);
    struct pollfd pfd = {event_notifier_get_fd(&fired), POLLIN, 0};
    while (poll(&pfd, 1, -1) != 1) {
    }
    memset(buf, 1, sizeof(buf));
    if (blk_pread(blk, 0, sizeof(buf), buf, (BdrvRequestFlags)0) != 0) {
        return 2;
    }
    blk_unref(blk);
    timer_free(t);
    iothread_destroy(io);
    event_notifier_cleanup(&fired);
    printf("fired %d, read %d\n", count, buf[0]);
    return 0;
}
)";

class Install : public testing::Test
{
protected:
    static void SetUpTestSuite()
    {
        scratch_ = new ScratchDir;
        prefix_ = *scratch_ / "prefix";
        std::string build = *scratch_ / "build";
        installed_ = RunCommand("CC='" TEST_CC "' meson setup " + build +
                                " " TEST_SOURCE_DIR " --prefix=" + prefix_ +
                                " --libdir=lib --buildtype=plain"
                                " -Dtests=disabled -Dbench=disabled && ninja -C " +
                                build + " && meson install -C " + build);
    }
    static void TearDownTestSuite()
    {
        delete scratch_;
    }
    void SetUp() override
    {
        ASSERT_EQ(installed_.status, 0) << installed_.output;
    }

    static std::string PkgConfigOf(const std::string &module, const std::string &args)
    {
        return "PKG_CONFIG_PATH=" + prefix_ + "/lib/pkgconfig pkg-config " + args + " " + module;
    }
    static std::string PkgConfig(const std::string &args)
    {
        return PkgConfigOf("aioctx", args);
    }
    /* Builds kProgram with @compiler and what pkg-config prints for @args, and runs it. */
    static void BuildAndRun(const std::string &compiler, const std::string &suffix,
                            const std::string &args)
    {
        std::string source = *scratch_ / ("program" + suffix), program = *scratch_ / "program";
        WriteFile(source, kProgram);
        CommandResult r = RunCommand("flags=$(" + PkgConfig(args) + ") && " + compiler +
                                     " -Wall -Werror -o " + program + " " + source + " $flags");
        ASSERT_EQ(r.status, 0) << r.output;
        r = RunCommand("LD_LIBRARY_PATH=" + prefix_ + "/lib " + program);
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_EQ(r.output, "fired 1, read 0\n");
    }

    static ScratchDir *scratch_;
    static std::string prefix_;
    static CommandResult installed_;
};

ScratchDir *Install::scratch_;
std::string Install::prefix_;
CommandResult Install::installed_;

TEST_F(Install, CProgramBuildsWithPkgConfigAlone)
{
    BuildAndRun(TEST_CC, ".c", "--cflags --libs");
}

TEST_F(Install, CxxProgramBuildsWithPkgConfigAlone)
{
    BuildAndRun(TEST_CXX, ".cc", "--cflags --libs");
}

TEST_F(Install, DriverOutsideTheTreeBuildsWithPkgConfigAloneAndPassesTheConformanceSuite)
{
    std::string module = *scratch_ / "ramdisk.so";
    CommandResult r = RunCommand("flags=$(" + PkgConfig("--cflags --libs") +
                                 ") && " TEST_CC " -Wall -Werror -shared -fPIC -o " + module +
                                 " " TEST_SOURCE_DIR "/examples/ramdisk.c $flags");
    ASSERT_EQ(r.status, 0) << r.output;
    std::string tool =
        "LD_LIBRARY_PATH=" + prefix_ + "/lib " + prefix_ + "/bin/aioctx-blk --driver " + module;
    for (const char *monitor : { "io_uring", "epoll", "ppoll" }) {
        r = RunCommand(tool + " --monitor " + monitor + " --conformance ramdisk:size=8M");
        if (r.output.rfind("Bail out! cannot make a context", 0) == 0) {
            continue; /* the kernel does not have it */
        }
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_NE(r.output.find("1..23"), std::string::npos) << r.output;
    }
    r = RunCommand(tool + " --backend ramdisk:size=8M --iothreads 2 --rw randrw --verify crc32c"
                          " --ios 2000 --no-progress");
    EXPECT_EQ(r.status, 0) << r.output;

    /* The same by its name, in a module directory, and by its file. */
    std::string dir = *scratch_ / "modules";
    r = RunCommand("mkdir " + dir + " && cp " + module + " " + dir + "/block-ramdisk.so && cp " +
                   module + " " + dir + "/block-other.so && echo no >" + dir + "/block-bad.so");
    ASSERT_EQ(r.status, 0) << r.output;
    tool = "AIOCTX_MODULE_DIR=/nowhere:" + dir + " LD_LIBRARY_PATH=" + prefix_ + "/lib " + prefix_ +
           "/bin/aioctx-blk --ios 100 --no-progress --backend ";
    for (const std::string &spec :
         { std::string("ramdisk:size=1M"), "module:" + module + ",size=1M",
           "module:" + module + "?size=1M", std::string("module:block-ramdisk.so,size=1M"),
           "throttle:iops=100000,module:" + module + ",size=1M",
           "'throttle://?iops=100000&child=module:" + module + ",size=1M'" }) {
        r = RunCommand(tool + spec);
        EXPECT_EQ(r.status, 0) << spec << "\n" << r.output;
    }
    r = RunCommand(tool + "other:size=1M");
    EXPECT_NE(r.output.find("block-other.so' has the driver 'ramdisk', not 'other'"),
              std::string::npos)
        << r.output;
    r = RunCommand(tool + "bad:size=1M");
    EXPECT_NE(r.output.find("cannot load '" + dir + "/block-bad.so'"), std::string::npos)
        << r.output;
}

TEST_F(Install, StaticCProgramBuildsWithPkgConfigAlone)
{
    BuildAndRun(TEST_CC " -static", ".c", "--static --cflags --libs");
}

TEST_F(Install, StaticCxxProgramBuildsWithPkgConfigAlone)
{
    BuildAndRun(TEST_CXX " -static", ".cc", "--static --cflags --libs");
}

TEST_F(Install, SharedLibraryKeepsItsOwnLibrariesPrivate)
{
    CommandResult r = RunCommand(PkgConfig("--cflags --libs"));
    ASSERT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output.find("urcu"), std::string::npos) << r.output;
    EXPECT_EQ(r.output.find("uring"), std::string::npos) << r.output;
}

TEST_F(Install, HeadersArePublicOnesOnly)
{
    namespace fs = std::filesystem;
    size_t public_headers = 0, installed = 0;
    for (const auto &entry : fs::directory_iterator(TEST_SOURCE_DIR "/include/aioctx")) {
        std::string name = entry.path().filename().string();
        EXPECT_TRUE(fs::exists(prefix_ + "/include/aioctx/" + name)) << name;
        public_headers++;
    }
    for (const auto &entry : fs::recursive_directory_iterator(prefix_ + "/include/aioctx")) {
        installed += entry.is_regular_file();
    }
    EXPECT_EQ(installed, public_headers);
}

TEST_F(Install, ToolsStart)
{
    for (const char *tool : { "aioctx-blk", "aioctx-stress" }) {
        CommandResult r = RunCommand("LD_LIBRARY_PATH=" + prefix_ + "/lib " + prefix_ + "/bin/" +
                                     tool + " --help");
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_NE(r.output.find(tool), std::string::npos) << r.output;
    }
}

/* libaioctx-glib is there where GLib is; libaioctx itself never needs it. */
TEST_F(Install, GlibModuleBuildsWithPkgConfigAlone)
{
    CommandResult r = RunCommand("readelf -d " + prefix_ + "/lib/libaioctx.so");
    ASSERT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output.find("glib"), std::string::npos) << r.output;
    EXPECT_EQ(RunCommand(PkgConfig("--print-requires")).output.find("glib"), std::string::npos);
#ifndef HAVE_GLIB
    GTEST_SKIP() << "no GLib here";
#endif
    std::string example = TEST_SOURCE_DIR "/examples/embed_glib.c", program = *scratch_ / "glib";
    r = RunCommand("flags=$(" + PkgConfigOf("aioctx-glib", "--cflags --libs") +
                   ") && " TEST_CC " -D_GNU_SOURCE -Wall -Werror -o " + program + " " + example +
                   " $flags");
    ASSERT_EQ(r.status, 0) << r.output;
    r = RunCommand("LD_LIBRARY_PATH=" + prefix_ + "/lib timeout 60 " + program);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, "ticks 5, words 3, reads 32, errors 0, GLib ticks 3\n");
    r = RunCommand("nm -D --defined-only " + prefix_ + "/lib/libaioctx-glib.so");
    EXPECT_NE(r.output.find(" T aio_get_g_source@@AIOCTX_GLIB_0\n"), std::string::npos) << r.output;
    EXPECT_EQ(r.output.find(" T "), r.output.rfind(" T ")) << r.output;
}
