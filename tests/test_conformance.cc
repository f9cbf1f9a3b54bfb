/* SPDX-License-Identifier: MIT */
/* The conformance suite: the drivers pass it, and one that does wrong does not. */
#include "block_support.h"

extern "C" {
#include "tools/conformance.h"
}

#include <cstdio>
#include <cstdlib>

class Conformance : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
    }
    /* What the suite prints of @spec. */
    static std::string Run(const std::string &spec, int *ret_failed)
    {
        char *text = nullptr;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);

        *ret_failed = conformance_run(spec.c_str(), GetParam(), 1, out);
        fclose(out);
        std::string s(text, size);
        free(text);
        return s;
    }
    static void Passes(const std::string &spec)
    {
        int failed = 0;
        std::string out = Run(spec, &failed);

        EXPECT_EQ(failed, 0) << spec << "\n" << out;
        EXPECT_NE(out.find("\n1..18\n"), std::string::npos) << out;
    }
    static void Fails(const std::string &spec, const std::string &check)
    {
        int failed = 0;
        std::string out = Run(spec, &failed);

        EXPECT_GT(failed, 0) << spec;
        EXPECT_NE(out.find(check + "\n"), std::string::npos) << out;
    }
};

INSTANTIATE_TEST_SUITE_P(Monitors, Conformance, testing::ValuesIn(kMonitors), MonitorName);

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

TEST_P(Conformance, WhatIsWrongIsFound)
{
    MemDisk disk("d", 8 << 20, 512);

    Fails("null:size=8M", "not ok 3 - any offset and length");
    Fails("blkdebug:rules=write+nth=30+error=EIO,mem:d", "not ok 3 - any offset and length");
    Fails("blkdebug:rules=flush+error=EIO,mem:d", "not ok 16 - flushes among writes");
    Fails("blkdebug:rules=discard+error=EINVAL,mem:d", "not ok 8 - discards leave the rest alone");
    Fails("blkdebug:rules=status+error=EIO,mem:d", "not ok 9 - block status");
}

TEST_P(Conformance, ABackendThatCannotBeOpenedIsSaid)
{
    int failed = 0;

    EXPECT_EQ(Run("nil:", &failed).find("Bail out! cannot open the backend: unknown driver"), 0u);
    EXPECT_EQ(failed, -1);
}
