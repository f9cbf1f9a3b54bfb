/* SPDX-License-Identifier: MIT */
/* The library has the probes that docs/observability.md describes, and no others. */
#include "command.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

/* The probes of the page's table, with the number of their arguments. */
static std::map<std::string, size_t> Documented(const std::string &page)
{
    std::map<std::string, size_t> probes;
    std::istringstream in(page.substr(page.find("| probe | arguments | when |")));
    std::string line;

    while (std::getline(in, line) && line.substr(0, 1) == "|") {
        std::smatch m;

        if (std::regex_match(line, m, std::regex("\\| `(\\w+)` \\| ([^|]*) \\|.*"))) {
            /* What stands in brackets explains an argument. */
            std::string args = std::regex_replace(m[2].str(), std::regex("\\([^)]*\\)"), "");
            args = std::regex_replace(args, std::regex(": .*| when .*"), "");
            probes[m[1]] = 1 + (size_t)std::count(args.begin(), args.end(), ',');
        }
    }
    return probes;
}

/* The same of the library's notes; a probe has the same arguments wherever it is. */
static std::map<std::string, size_t> Built()
{
    std::map<std::string, size_t> probes;
    CommandResult r = RunCommand("readelf -n " TEST_LIBRARY);
    const std::regex note("Provider: (\\w+)\\s+Name: (\\w+)\\s+Location:[^\\n]*\\n"
                          "\\s+Arguments:([^\\n]*)");

    EXPECT_EQ(r.status, 0) << r.output;
    for (std::sregex_iterator i(r.output.begin(), r.output.end(), note), end; i != end; ++i) {
        std::string args = (*i)[3];
        size_t n = (size_t)std::count(args.begin(), args.end(), '@');

        EXPECT_EQ((*i)[1], "aioctx");
        EXPECT_TRUE(!probes.count((*i)[2]) || probes[(*i)[2]] == n) << (*i)[2];
        probes[(*i)[2]] = n;
    }
    return probes;
}

TEST(Probes, AreExactlyWhatTheDocsDescribe)
{
    std::map<std::string, size_t> built = Built();

    if (!TEST_USDT) {
        EXPECT_TRUE(built.empty());
        GTEST_SKIP() << "built without probes";
    }
    std::string page = ReadFile(TEST_SOURCE_DIR "/docs/observability.md");
    std::map<std::string, size_t> documented = Documented(page);
    EXPECT_GE(built.size(), 14u);
    EXPECT_EQ(built, documented);
    for (const auto &probe : documented) {
        size_t heading = page.find("\n`" + probe.first + "`");
        EXPECT_NE(heading, std::string::npos) << probe.first << " has no example";
        EXPECT_NE(page.find("usdt:$L:aioctx:" + probe.first + " ", heading), std::string::npos)
            << probe.first;
    }
}
