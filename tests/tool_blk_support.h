/* SPDX-License-Identifier: MIT */
/* What the tests of aioctx-blk share: running it, and reading what it says. */
#ifndef TESTS_TOOL_BLK_SUPPORT_H
#define TESTS_TOOL_BLK_SUPPORT_H

#include "command.h"
#include "support.h"

#include <algorithm>
#include <regex>

inline const std::string kBlkProgram = BLK_PROGRAM;

inline CommandResult Blk(const std::string &args)
{
    return RunCommand(kBlkProgram + " " + args);
}

/* Status 2, and one line that begins with the program's name and has @part. */
inline void ExpectRefused(const std::string &args, const std::string &part)
{
    CommandResult r = Blk(args);

    EXPECT_EQ(r.status, 2) << args << "\n" << r.output;
    EXPECT_EQ(std::count(r.output.begin(), r.output.end(), '\n'), 1) << args << "\n" << r.output;
    EXPECT_EQ(r.output.rfind("aioctx-blk: ", 0), 0u) << args << "\n" << r.output;
    EXPECT_NE(r.output.find(part), std::string::npos) << args << "\n" << r.output;
}

/* The lines of the table whose first word is @name. */
inline int CountRows(const std::string &output, const std::string &name)
{
    std::regex row("(^|\n)" + name + " +[0-9]");
    return static_cast<int>(std::distance(std::sregex_iterator(output.begin(), output.end(), row),
                                          std::sregex_iterator()));
}

/* The first number that @key has in @json behind the first @behind; -1 without one. */
inline double JsonNumber(const std::string &json, const std::string &behind, const std::string &key)
{
    size_t from = json.find(behind);
    size_t at = from == std::string::npos ? from : json.find("\"" + key + "\": ", from);

    EXPECT_NE(at, std::string::npos) << key << " in:\n" << json;
    return at == std::string::npos ? -1 : atof(json.c_str() + at + key.size() + 4);
}

#endif
