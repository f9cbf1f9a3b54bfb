/* SPDX-License-Identifier: MIT */
/* aioctx-blk, run as a user runs it: mixes, patterns, ramps, job files and plots. */
#include "tool_blk_support.h"

namespace
{

/* ---- Workloads ------------------------------------------------------------------------------- */

TEST(ToolBlkMix, EveryKindIsIssuedByItsWeight)
{
    CommandResult r = Blk("--backend null:size=64M --mix "
                          "read=50,write=20,flush=10,discard=8,zeroes=6,status=6 --ios 20000 "
                          "--iothreads 2 --json - 2>/dev/null");

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NEAR(JsonNumber(r.output, "\"total\"", "reads"), 10000, 500);
    EXPECT_NEAR(JsonNumber(r.output, "\"total\"", "writes"), 4000, 400);
    EXPECT_NEAR(JsonNumber(r.output, "\"total\"", "flushes"), 2000, 300);
    EXPECT_NEAR(JsonNumber(r.output, "\"total\"", "discards"), 1600, 270);
    EXPECT_NEAR(JsonNumber(r.output, "\"total\"", "zeroings"), 1200, 240);
    EXPECT_NEAR(JsonNumber(r.output, "\"total\"", "statuses"), 1200, 240);
    EXPECT_EQ(JsonNumber(r.output, "\"total\"", "count"), 20000);
    for (const char *kind : { "read", "write", "flush", "discard", "zeroes", "status" }) {
        EXPECT_GT(JsonNumber(r.output, std::string("\"") + kind + "\": {", "count"), 0) << kind;
    }
}

TEST(ToolBlkMix, EveryPatternAndSizeIsVerified)
{
    for (const char *how :
         { "--rw randrw --bs 4k-32k", "--rw rw --bs 4k/60:12k/40", "--rw randrw --pattern zipf:1.2",
           "--rw randrw --pattern hot:90/10", "--mix read=2,write=2,flush=1,status=1 --bs 512-8k",
           "--rw randrw --pattern sequential --rate 50k" }) {
        ScratchDir dir;
        CommandResult r = Blk("--file " + dir / "disk" +
                              " --create --size 4M --iothreads 2 --iodepth 8 --layout "
                              "--verify crc32c --ios 3000 --json - 2>/dev/null " +
                              how);
        EXPECT_EQ(r.status, 0) << how << r.output;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "verify_mismatches"), 0) << how;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "verify_checked"),
                  JsonNumber(r.output, "\"total\"", "reads"))
            << how;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "laid_out_bytes"), 4 << 20) << how;
    }
}

TEST(ToolBlkMix, TheRampIsNotMeasured)
{
    for (const char *how : { "", " --rate 2000" }) {
        CommandResult r =
            Blk(std::string("--backend null:latency-ns=1000000 --ramp 200ms --ios 101 "
                            "--json - 2>/dev/null") +
                how);
        EXPECT_EQ(r.status, 0) << r.output;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "count"), 101) << how;
        EXPECT_EQ(JsonNumber(r.output, "\"total\"", "reads"), 101) << how;
    }
}

TEST(ToolBlkMix, WrongOnesGetOneLine)
{
    ExpectRefused("--backend null: --mix read=1,reed=2", "expected weights, such as");
    ExpectRefused("--backend null: --mix read=1 --rw read", "--mix and --rw: expected only one");
    ExpectRefused("--backend null: --mix read=1 --rwmixread 5", "expected --rw rw or --rw randrw");
    ExpectRefused("--backend null: --pattern zipf:0", "--pattern 'zipf:0': expected random, seq");
    ExpectRefused("--backend null: --bs 8k-4k",
                  "--bs '8k-4k': expected a size such as 4k, a range");
    ExpectRefused("--backend null: --offset 1000", "multiple of 512");
    ExpectRefused("--backend null:size=1M --offset 1M", "behind --offset 1048576");
    ExpectRefused("--file a --verify crc32c --mix read=1,discard=1", "without discard and zeroes");
    ExpectRefused("--backend null:size=1M --bs 4k-64k", "too small: expected at least");
    ExpectRefused("--backend null: --replay-speed 2", "expected --replay FILE");
    ExpectRefused("--backend null: --replay x --replay-speed 0", "a factor from 0.001 to 1000");
    ExpectRefused("--backend null: --replay x --bs 4k", "expected no --bs");
    ExpectRefused("--conformance null: --backend null:", "goes without --file and --backend");
}

/* ---- Job files ------------------------------------------------------------------------------- */

/* Runs a job file that is wrong; status 2, and one line that begins with the file's name. */
void ExpectFileRefused(const std::string &text, const std::string &said)
{
    ScratchDir dir;
    CommandResult r;

    WriteFile(dir / "j", text);
    r = Blk("--jobs " + dir / "j");
    EXPECT_EQ(r.status, 2) << text << r.output;
    EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << text << r.output;
    EXPECT_EQ(r.output.rfind("aioctx-blk: " + dir / "j" + said, 0), 0u)
        << "expected: " << said << "\n"
        << r.output;
}

TEST(ToolBlkJobs, AllRunAtOnceAndEachHasItsRows)
{
    ScratchDir dir;

    WriteFile(dir / "j", "# a comment\n; another\n\n[global]\nbackend=null:size=64M\n"
                         "  iodepth = 4  \nruntime=1h\n[readers]\nios=3000\niothreads=2\n"
                         "[writers]\nrw=write\nbs=16k\nios=1000\n[global]\nrate=100k\n"
                         "[more]\npattern=zipf\nmix=read=1,flush=1\nios=500\r\n");
    CommandResult r = Blk("--jobs " + dir / "j --json " + dir / "json");
    std::string json = ReadFile(dir / "json");

    EXPECT_EQ(r.status, 0) << r.output;
    for (const char *row :
         { "readers/io0", "readers/io1", "readers", "writers/io0", "more/io0", "total" }) {
        EXPECT_EQ(CountRows(r.output, row), 1) << row << "\n" << r.output;
    }
    EXPECT_NE(r.output.find("writers: null:size=64M: write, bs 16k, 64M in use, iodepth 4, "
                            "closed loop"),
              std::string::npos)
        << r.output;
    EXPECT_NE(r.output.find("more: null:size=64M: mix, zipf, bs 4k, 64M in use, iodepth 4, open "
                            "loop at 100000/s"),
              std::string::npos)
        << r.output;
    EXPECT_EQ(JsonNumber(json, "\"name\": \"readers\",\n        \"seconds\"", "reads"), 3000);
    EXPECT_EQ(JsonNumber(json, "\"name\": \"writers\",\n        \"seconds\"", "writes"), 1000);
    EXPECT_EQ(JsonNumber(json, "\"name\": \"writers\",\n        \"seconds\"", "bytes_written"),
              1000 * 16384);
    EXPECT_EQ(JsonNumber(json, "\n  \"total\"", "count"), 4500);
}

TEST(ToolBlkJobs, TheCommandLineWins)
{
    ScratchDir dir;

    WriteFile(dir / "j", "[a]\nbackend=null:\nios=7000\n[b]\nbackend=null:size=1M\nios=8000\n");
    CommandResult r = Blk("--jobs " + dir / "j --ios 50 --json - 2>/dev/null");

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(JsonNumber(r.output, "\n  \"total\"", "count"), 100);
}

TEST(ToolBlkJobs, JobsOnPartsOfOneFileAreVerified)
{
    ScratchDir dir;

    WriteFile(dir / "j", "[global]\nfile=" + dir / "disk" +
                             "\ncreate\nsize=1M\nverify=crc32c\nlayout=on\niodepth=4\nios=2000\n"
                             "[low]\nrw=randrw\n"
                             "[high]\noffset=1M\nrw=rw\nbs=8k\niothreads=2\n"
                             "[look]\ncreate=off\nverify=none\nlayout=0\nsize=2M\n");
    CommandResult r = Blk("--jobs " + dir / "j --json - 2>/dev/null");

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(JsonNumber(r.output, "\n  \"total\"", "verify_mismatches"), 0);
    EXPECT_EQ(JsonNumber(r.output, "\n  \"total\"", "laid_out_bytes"), 2 << 20);
    EXPECT_EQ(JsonNumber(r.output, "\n  \"total\"", "count"), 6000);
    EXPECT_EQ(ReadFile(dir / "disk").size(), 2u << 20);
}

TEST(ToolBlkJobs, WhatIsWrongIsSaidWithFileAndLine)
{
    const std::string head = "[global]\nbackend=null:\n";

    ExpectFileRefused("", ":1: no job: expected a '[NAME]'");
    ExpectFileRefused(head, ":3: no job: expected a '[NAME]'");
    ExpectFileRefused("bs=4k\n", ":1: bs: expected '[global]' or a job's '[NAME]' before it");
    ExpectFileRefused(head + "[a\n", ":3: [a: expected ']' at its end");
    ExpectFileRefused(head + "[a b]\n", ":3: a job's name: expected 1 to 32 letters");
    ExpectFileRefused(head + "[a]\n[b]\n[a]\n", ":5: a: expected a name that no job before it");
    ExpectFileRefused(head + "[a]\nbs=1000\n", ":4: bs '1000': expected a size such as 4k");
    ExpectFileRefused(head + "[a]\nblocksize=4k\n",
                      ":4: blocksize: expected 'bs', as it is called here");
    ExpectFileRefused(head + "[a]\nnonsense\n", ":4: nonsense: expected an option of 'aioctx-blk");
    ExpectFileRefused(head + "[a]\nbs\n", ":4: bs: expected a value behind '='");
    ExpectFileRefused(head + "[a]\njson=x\n", ":4: json: expected it on the command line");
    ExpectFileRefused(head + "[a]\nlayout=maybe\n", ":4: layout 'maybe': expected on or off");
    ExpectFileRefused(head + "[a]\n[b]\nfile=x\n", ":4: [b]: --file and --backend: expected only");
    ExpectFileRefused(head + "[a]\nsize=1P\n", ":4: size '1P': expected a size");
    ExpectFileRefused(head + "[a]\nbackend=null:sice=1\n", ":3: [a]: ");
    ExpectFileRefused("[a]\nfile=/tmp\n[b]\nbackend=null:\nsize=16k\n",
                      ":3: [b]: 16384 bytes are too small");
    ScratchDir dir;
    ExpectRefused("--jobs " + dir / "none", "expected a file that can be read: No such file");
    WriteFile(dir / "j", "[a]\nbackend=null:\n[b]\nfile=" + dir / "d" +
                             "\ncreate\nsize=1M\nverify=crc32c\n[c]\nfile=" + dir / "d" +
                             "\nrw=write\noffset=512k\n");
    ExpectRefused("--jobs " + dir / "j", ":3: [b]: --verify: job c writes there too");
    ExpectRefused("--jobs " + dir / "j --iodepth 0", "--iodepth '0': expected a number from 1");
}

TEST(ToolBlkJobs, TheFirstErrorEndsThemAll)
{
    ScratchDir dir;

    WriteFile(dir / "j", "[good]\nbackend=null:\nruntime=1h\nrate=100\n[bad]\nruntime=1h\n"
                         "backend=blkdebug:rules=read+nth=5+error=EIO,null:\n");
    CommandResult r = Blk("--jobs " + dir / "j");

    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_NE(r.output.find("bad/io0: read of 4096 bytes at offset"), std::string::npos)
        << r.output;
    EXPECT_EQ(CountRows(r.output, "good/io0"), 1) << r.output;
}

/* ---- Plots ----------------------------------------------------------------------------------- */

TEST(ToolBlkPlot, EachJobIsDrawn)
{
    ScratchDir dir;

    WriteFile(dir / "j", "[global]\nbackend=null:\nios=1000\n[a]\n[b]\n");
    CommandResult r = Blk("--jobs " + dir / "j --plot");

    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("\nlatency of a "), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("\nlatency of b "), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("100.000%\n"), std::string::npos) << r.output;
    r = RunCommand("LC_ALL=en_US.UTF-8 " + kBlkProgram + " --backend null: --ios 1000 --plot");
    EXPECT_NE(r.output.find("█"), std::string::npos) << r.output;
    r = RunCommand("LC_ALL=C " + kBlkProgram + " --backend null: --ios 1000 --plot");
    EXPECT_EQ(r.output.find("█"), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("###"), std::string::npos) << r.output;
}

TEST(ToolBlkPlot, JsonHasEveryBucketAndIsDrawnAsAPicture)
{
    ScratchDir dir;
    CommandResult r =
        Blk("--backend null:latency-ns=100000 --ios 2000 --rw randrw --json " + dir / "r.json");
    ASSERT_EQ(r.status, 0) << r.output;
    std::string json = ReadFile(dir / "r.json");
    std::string buckets = json.substr(json.find("\"latency_buckets\": ["));
    std::regex pair("\\[([0-9]+), ([0-9]+)\\]");
    double sum = 0;

    buckets = buckets.substr(0, buckets.find("\"reads\""));
    for (std::sregex_iterator i(buckets.begin(), buckets.end(), pair), end; i != end; ++i) {
        sum += atof((*i)[2].str().c_str());
    }
    EXPECT_EQ(sum, 2000);
    if (RunCommand("command -v python3").status != 0) {
        GTEST_SKIP() << "no python3 to draw with";
    }
    r = RunCommand(std::string(TEST_SOURCE_DIR) + "/scripts/plot --title it -o " + dir / "r.svg " +
                   dir / "r.json");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(ReadFile(dir / "r.svg").find("<svg"), std::string::npos);
    WriteFile(dir / "bad", "{\"program\": \"aioctx-blk\"}");
    r = RunCommand(std::string(TEST_SOURCE_DIR) + "/scripts/plot -o " + dir / "r.svg " +
                   dir / "bad");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_EQ(r.output.find("Traceback"), std::string::npos) << r.output;
}

} // namespace
