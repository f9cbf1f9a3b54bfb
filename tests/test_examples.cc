/* SPDX-License-Identifier: MIT */
/* The README shows examples/hello.c, and each example does what it says. */
#include "command.h"

#include <aioctx/aioctx.h>
#include <gtest/gtest.h>
#include <string>

static const std::string kExamples = TEST_BUILD_DIR "/examples/example-";

/* The first block of C in the README. */
static std::string ReadmeBlock()
{
    std::string text = ReadFile(TEST_SOURCE_DIR "/README.md");
    size_t begin = text.find("\n```c\n");
    if (begin == std::string::npos) {
        return "";
    }
    begin += 6;
    return text.substr(begin, text.find("\n```\n", begin) + 1 - begin);
}

/* The code of a source file: from its first include on. */
static std::string CodeOf(const std::string &path)
{
    std::string text = ReadFile(path);
    size_t begin = text.find("#include");
    return begin == std::string::npos ? "" : text.substr(begin);
}

TEST(Readme, ShowsTheHelloExample)
{
    ASSERT_NE(ReadmeBlock(), "");
    EXPECT_EQ(ReadmeBlock(), CodeOf(TEST_SOURCE_DIR "/examples/hello.c"));
}

/* Built from the text of the README itself, so that what people copy is what is tried. */
TEST(Readme, ExampleCompilesAndRuns)
{
    ScratchDir scratch;
    WriteFile(scratch / "readme.c", ReadmeBlock());
    CommandResult r = RunCommand(TEST_CC " -Wall -Wextra -Wno-unused-parameter -Werror " TEST_CFLAGS
                                         " -I" TEST_SOURCE_DIR "/include -o " +
                                 scratch / "readme" + " " + scratch / "readme.c" +
                                 " " TEST_LIBRARY " -Wl,-rpath," TEST_BUILD_DIR);
    ASSERT_EQ(r.status, 0) << r.output;
    r = RunCommand(scratch / "readme");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, "tick, 2 left\ntick, 1 left\ntick, 0 left\n");
}

TEST(Examples, HelloTicksThreeTimes)
{
    CommandResult r = RunCommand(kExamples + "hello");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, "tick, 2 left\ntick, 1 left\ntick, 0 left\n");
}

/*
 * The guest arms the alarm, 7777 us, with its 52498th instruction of 8 ns, and the disk, 90 us,
 * with the next one.
 */
static const char kIcountBegin[] = "guest: 62\n"
                                   "      509992 ns, instruction     52500: disk\n"
                                   "guest: 4\n"
                                   "     8196984 ns, instruction     52503: alarm\n"
                                   "guest: 2\n";

/* Two runs, one of them on a machine with something else to do, and different shifts. */
TEST(Examples, IcountCpuFiresItsTimersAtTheSameVirtualTimesInEveryRun)
{
    for (const char *shift : { "0", "3", "10" }) {
        const std::string command = kExamples + "icount_cpu " + shift;
        CommandResult a = RunCommand(command);
        CommandResult b = RunCommand("(" + command + " >/dev/null & exec " + command + ")");
        EXPECT_EQ(a.status, 0) << a.output;
        EXPECT_EQ(b.status, 0) << b.output;
        EXPECT_EQ(a.output, b.output);
        for (const char *what : { "guest: 62\n", ": alarm\n", ": disk\n", ": halted\n" }) {
            EXPECT_NE(a.output.find(what), std::string::npos) << what << "\n" << a.output;
        }
    }
    CommandResult r = RunCommand(kExamples + "icount_cpu 3");
    EXPECT_EQ(r.output.substr(0, r.output.find("guest: 109")), kIcountBegin);
}

TEST(Examples, IcountCpuSaysWhichShiftsThereAre)
{
    for (const char *shift : { "11", "-1", "x" }) {
        CommandResult r = RunCommand(kExamples + "icount_cpu " + shift);
        EXPECT_EQ(r.status, 1) << r.output;
        EXPECT_NE(r.output.find("0 to 10"), std::string::npos) << r.output;
    }
}

TEST(Examples, EchoSendsEveryWordBack)
{
    CommandResult r = RunCommand(kExamples + "echo one two three");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, "one\ntwo\nthree\n");
}

TEST(Examples, EchoWithoutWordsEnds)
{
    CommandResult r = RunCommand(kExamples + "echo");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, "");
}

TEST(Examples, TimedReadReadsAndTicksOnEachMonitor)
{
    ScratchDir scratch;
    WriteFile(scratch / "file", std::string(10000, 'x'));
    for (const char *monitor : { "", "epoll", "ppoll" }) {
        CommandResult r = RunCommand(std::string("AIOCTX_FDMON=") + monitor + " " + kExamples +
                                     "timed_read " + scratch / "file");
        /* On a machine that stands still for 50 ms the deadline may win; then it must say so. */
        if (r.status == 0) {
            EXPECT_EQ(r.output, "read of 4096 bytes: done\nticks meanwhile: yes\n");
        } else {
            EXPECT_EQ(r.output, "read of 4096 bytes: Connection timed out\nticks meanwhile: yes\n");
        }
    }
}

TEST(Examples, TimedReadSaysWhyAFileCannotBeUsed)
{
    CommandResult r = RunCommand(kExamples + "timed_read /nonexistent/file");
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.output.find("/nonexistent/file"), std::string::npos) << r.output;
    EXPECT_EQ(RunCommand(kExamples + "timed_read").status, 2);
}

TEST(Examples, MainLoopReadsTicksAndShowsItsInput)
{
    const std::string ran = "read of 512 bytes: done\ntick, 2 left\ntick, 1 left\ntick, 0 left\n";
    CommandResult r = RunCommand("(echo one; echo two) | " + kExamples + "main_loop");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, ran + "one\ntwo\nend of input\n");
    r = RunCommand(": | " + kExamples + "main_loop"); /* no input at all */
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, ran + "end of input\n");
    r = RunCommand("echo one | AIOCTX_FDMON=ppoll " + kExamples + "main_loop");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output, ran + "one\nend of input\n");
}

TEST(Examples, MainLoopReadsAnImage)
{
    ScratchDir scratch;
    WriteFile(scratch / "image", std::string(10000, 'x'));
    CommandResult r = RunCommand("echo one | " + kExamples + "main_loop " + scratch / "image");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("read of 512 bytes: done\n"), std::string::npos) << r.output;
    r = RunCommand("echo one | " + kExamples + "main_loop /nonexistent/file");
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.output.find("/nonexistent/file"), std::string::npos) << r.output;
}

static void RunEmbedded(const std::string &name, const std::string &input,
                        const std::string &expected)
{
    for (const char *monitor : { "", "epoll", "ppoll" }) {
        CommandResult r =
            RunCommand(input + "AIOCTX_FDMON=" + monitor + " timeout 60 " + kExamples + name);
        EXPECT_EQ(r.status, 0) << name << " " << monitor << "\n" << r.output;
        EXPECT_EQ(r.output, expected) << monitor;
    }
    ScratchDir scratch;
    WriteFile(scratch / "image", std::string(10000, 'x'));
    CommandResult r =
        RunCommand(input + "timeout 60 " + kExamples + name + " " + scratch / "image");
    EXPECT_EQ(r.status, 0) << name << "\n" << r.output;
    EXPECT_EQ(r.output, expected);
    EXPECT_EQ(RunCommand(kExamples + name + " /nonexistent/file").status, 1);
}

TEST(Examples, EmbedPollRunsAContextBesideItsInput)
{
    RunEmbedded("embed_poll", "echo one | ", "one\nticks 5, words 3, reads 32, errors 0\n");
}

TEST(Examples, EmbedLibuvRunsAContextBesideALibuvTimer)
{
#ifndef HAVE_LIBUV
    GTEST_SKIP() << "no libuv here";
#endif
    RunEmbedded("embed_libuv", "", "ticks 5, words 3, reads 32, errors 0, libuv ticks 3\n");
}

TEST(Examples, EmbedGlibRunsAContextBesideAGlibTimeout)
{
#ifndef HAVE_GLIB
    GTEST_SKIP() << "no GLib here";
#endif
    RunEmbedded("embed_glib", "", "ticks 5, words 3, reads 32, errors 0, GLib ticks 3\n");
}
