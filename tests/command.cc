/* SPDX-License-Identifier: MIT */
#include "command.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sstream>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

CommandResult RunCommand(const std::string &command)
{
    CommandResult result{ -1, "" };
    FILE *pipe = popen(("exec 2>&1 </dev/null; " + command).c_str(), "re");

    if (!pipe) {
        result.output = strerror(errno);
        return result;
    }
    char buf[4096];
    size_t n;
    while ((n = fread(buf, 1, sizeof(buf), pipe)) > 0) {
        result.output.append(buf, n);
    }
    int status = pclose(pipe);
    if (WIFEXITED(status)) {
        result.status = WEXITSTATUS(status);
    } else if (WIFSIGNALED(status)) {
        result.status = 128 + WTERMSIG(status);
    }
    return result;
}

std::string ReadFile(const std::string &path)
{
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;

    EXPECT_TRUE(in.is_open()) << "cannot read " << path;
    text << in.rdbuf();
    return text.str();
}

void WriteFile(const std::string &path, const std::string &text)
{
    std::ofstream out(path, std::ios::binary);

    out << text;
    out.close();
    EXPECT_FALSE(out.fail()) << "cannot write " << path;
}

ScratchDir::ScratchDir()
{
    const char *base = getenv("TMPDIR");
    path_ = std::string(base && *base ? base : "/tmp") + "/aioctx-test.XXXXXX";
    if (!mkdtemp(path_.data())) {
        perror("mkdtemp");
        abort();
    }
}

ScratchDir::~ScratchDir()
{
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}
