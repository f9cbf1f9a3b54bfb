/* SPDX-License-Identifier: MIT */
/*
 * The public headers stand alone, in C and in C++, and bring in nothing of how the library works.
 * The layouts that users compile into their programs do not change.
 */
#include "command.h"

#include <aioctx/aioctx.h>
#include <filesystem>
#include <gtest/gtest.h>
#include <stddef.h>
#include <string>
#include <vector>

static const std::string kInclude = TEST_SOURCE_DIR "/include";

static std::vector<std::string> HeaderNames()
{
    std::vector<std::string> names;
    for (const auto &entry : std::filesystem::directory_iterator(kInclude + "/aioctx")) {
        names.push_back(entry.path().stem().string());
    }
    return names;
}

class Header : public testing::TestWithParam<std::string>
{
protected:
    std::string Include() const
    {
        return "#include <aioctx/" + GetParam() + ".h>\n";
    }
    /* Gives the compiler one source that includes the header twice and nothing else. */
    CommandResult Compile(const std::string &compiler, const std::string &suffix)
    {
        std::string source = scratch_ / ("alone" + suffix);
        WriteFile(source, Include() + Include() + "int aioctx_header_test;\n");
        return RunCommand(compiler + " -I" + kInclude + " " + source);
    }

    ScratchDir scratch_;
};

TEST_P(Header, CompilesAloneAsC11)
{
    CommandResult r = Compile(TEST_CC " -std=c11 -D_GNU_SOURCE -pedantic -Wall -Wextra -Werror"
                                      " -Wstrict-prototypes -fsyntax-only",
                              ".c");
    EXPECT_EQ(r.status, 0) << r.output;
}

TEST_P(Header, CompilesAloneWithoutFeatureMacros)
{
    CommandResult r = Compile(TEST_CC " -std=c11 -Wall -Wextra -Werror -fsyntax-only", ".c");
    EXPECT_EQ(r.status, 0) << r.output;
}

TEST_P(Header, CompilesAloneAsCxx17)
{
    CommandResult r =
        Compile(TEST_CXX " -std=c++17 -pedantic -Wall -Wextra -Werror -fsyntax-only", ".cc");
    EXPECT_EQ(r.status, 0) << r.output;
}

TEST_P(Header, IncludesNeitherLiburcuNorLiburingNorAtomics)
{
    CommandResult r = Compile(TEST_CC " -std=gnu11 -M", ".c");
    ASSERT_EQ(r.status, 0) << r.output;
    ASSERT_NE(r.output.find("aioctx/" + GetParam() + ".h"), std::string::npos) << r.output;
    for (const char *part : { "urcu", "liburing", "stdatomic", "_int.h" }) {
        EXPECT_EQ(r.output.find(part), std::string::npos) << part << " in " << r.output;
    }
    EXPECT_EQ(ReadFile(kInclude + "/aioctx/" + GetParam() + ".h").find("_Atomic"),
              std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Each, Header, testing::ValuesIn(HeaderNames()),
                         [](const auto &info) { return info.param; });

TEST(Headers, AioctxIncludesEveryOther)
{
    std::string text = ReadFile(kInclude + "/aioctx/aioctx.h");
    for (const std::string &name : HeaderNames()) {
        if (name != "aioctx") {
            EXPECT_NE(text.find("#include <aioctx/" + name + ".h>"), std::string::npos) << name;
        }
    }
}

TEST(Headers, InstalledAllOfThem)
{
    std::string text = ReadFile(TEST_SOURCE_DIR "/meson.build");
    for (const std::string &name : HeaderNames()) {
        EXPECT_NE(text.find("'include/aioctx/" + name + ".h'"), std::string::npos) << name;
    }
}

/* The numbers are those of LP64 machines; a change of one breaks every program that was compiled
 * before, and needs a new soname. */
#define EXPECT_MEMBER(type, member, offset) \
    EXPECT_EQ(offsetof(type, member), (size_t)(offset)) << #type "." #member

class Layout : public testing::Test
{
protected:
    void SetUp() override
    {
        if (sizeof(void *) != 8 || sizeof(long) != 8) {
            GTEST_SKIP() << "the pinned layouts are those of LP64";
        }
    }
};

TEST_F(Layout, TimerIsPinnedAndAtMost80Bytes)
{
    EXPECT_EQ(sizeof(QEMUTimer), 80u);
    EXPECT_EQ(alignof(QEMUTimer), 8u);
    EXPECT_MEMBER(QEMUTimer, expire_time, 0);
    EXPECT_MEMBER(QEMUTimer, timer_list, 16);
    EXPECT_MEMBER(QEMUTimer, state, 12);
    EXPECT_MEMBER(QEMUTimer, opaque, 72);
    EXPECT_EQ(sizeof(QEMUTimerListGroup), QEMU_CLOCK_MAX * sizeof(void *));
    EXPECT_EQ(QEMU_CLOCK_MAX, 4);
}

TEST_F(Layout, RcuHeadIsPinned)
{
    EXPECT_EQ(sizeof(AioRcuHead), 32u);
}

TEST_F(Layout, AioStructsArePinned)
{
    EXPECT_EQ(sizeof(EventNotifier), 24u);
    EXPECT_MEMBER(EventNotifier, reserved, 16);
    EXPECT_EQ(sizeof(CqeHandler), 32u);
    EXPECT_EQ(sizeof(AioWaiter), 64u);
    EXPECT_MEMBER(AioWaiter, reserved, 32);
    EXPECT_MEMBER(CqeHandler, res, 8);
    EXPECT_MEMBER(CqeHandler, flags, 12);
    EXPECT_MEMBER(CqeHandler, reserved, 24);
    EXPECT_EQ(sizeof(AioContextOptions), 96u);
    EXPECT_MEMBER(AioContextOptions, sqpoll_idle_ms, 12);
    EXPECT_MEMBER(AioContextOptions, precise_ns, 16);
    EXPECT_MEMBER(AioContextOptions, histograms, 24);
    EXPECT_MEMBER(AioContextOptions, stall_limit_ns, 32);
    EXPECT_MEMBER(AioContextOptions, poll_max_ns, 40);
    EXPECT_MEMBER(AioContextOptions, reserved, 64);
    EXPECT_EQ(sizeof(IOThreadOptions), 152u);
    EXPECT_MEMBER(IOThreadOptions, stop_timeout_ms, 96);
    EXPECT_MEMBER(IOThreadOptions, cpus, 104);
    EXPECT_MEMBER(IOThreadOptions, reserved, 112);
    EXPECT_EQ(sizeof(IOThreadStats), 384u);
    EXPECT_MEMBER(IOThreadStats, cpu_ns, 8);
    EXPECT_MEMBER(IOThreadStats, involuntary_switches, 24);
    EXPECT_MEMBER(IOThreadStats, reserved, 32);
    EXPECT_MEMBER(IOThreadStats, context, 128);
    EXPECT_EQ(sizeof(AioContextStats), 256u);
    EXPECT_MEMBER(AioContextStats, precise_polls, 128);
    EXPECT_MEMBER(AioContextStats, polls, 144);
    EXPECT_MEMBER(AioContextStats, reserved, 168);
}

TEST_F(Layout, ThreadPoolStructsArePinned)
{
    EXPECT_EQ(sizeof(ThreadPoolParams), 56u);
    EXPECT_MEMBER(ThreadPoolParams, idle_ns, 8);
    EXPECT_MEMBER(ThreadPoolParams, reserved, 16);
    EXPECT_EQ(sizeof(ThreadPoolStats), 128u);
    EXPECT_MEMBER(ThreadPoolStats, reserved, 80);
}

TEST_F(Layout, MainLoopStructsArePinned)
{
    EXPECT_EQ(sizeof(MainLoopPoll), 56u);
    EXPECT_MEMBER(MainLoopPoll, timeout_ns, 8);
    EXPECT_MEMBER(MainLoopPoll, pollfds, 16);
    EXPECT_MEMBER(MainLoopPoll, reserved, 24);
    EXPECT_EQ(sizeof(MainLoopPollNotifier), 48u);
    EXPECT_MEMBER(MainLoopPollNotifier, reserved, 32);
}

TEST_F(Layout, BlockStructsArePinned)
{
    EXPECT_EQ(sizeof(QEMUIOVector), 48u);
    EXPECT_MEMBER(QEMUIOVector, size, 16);
    EXPECT_MEMBER(QEMUIOVector, local_iov, 24);
    EXPECT_EQ(sizeof(BlkLimits), 48u);
    EXPECT_EQ(sizeof(BlkReqOpts), 32u);
    EXPECT_EQ(sizeof(BlkStats), 192u);
    EXPECT_MEMBER(BlkStats, reserved, 152);
    EXPECT_EQ(sizeof(BlkExtent), 32u);
    EXPECT_EQ(sizeof(BlkOptDesc), 24u);
    EXPECT_EQ(sizeof(BlkPiece), 112u);
    EXPECT_MEMBER(BlkPiece, child, 56);
    EXPECT_MEMBER(BlkPiece, reserved, 104);
    EXPECT_EQ(sizeof(BlockDriver), 192u);
    EXPECT_MEMBER(BlockDriver, open, 32);
    EXPECT_MEMBER(BlockDriver, queue_settle, 160);
    EXPECT_MEMBER(BlockDriver, aliases, 168);
    EXPECT_MEMBER(BlockDriver, reserved, 176);
}
