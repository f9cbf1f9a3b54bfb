/* SPDX-License-Identifier: MIT */
/* Running a program from a test, and reading a file. */
#ifndef TESTS_COMMAND_H
#define TESTS_COMMAND_H

#include <string>

struct CommandResult {
    int status;         /* exit status; 128 + N when signal N killed it; -1 when it did not start */
    std::string output; /* stdout and stderr together */
};

/* Runs @command with /bin/sh, its stdin empty, and waits for it. */
CommandResult RunCommand(const std::string &command);

/* Skips the test where there is no such program, and names the Debian package that has it. */
#define SKIP_WITHOUT(command, package) \
    do { \
        if (RunCommand(std::string("command -v ") + (command)).status != 0) { \
            GTEST_SKIP() << (command) << " is not installed (Debian package " << (package) << ")"; \
        } \
    } while (0)

/* The contents of a file; a failure of the test when it cannot be read. */
std::string ReadFile(const std::string &path);

/* Writes a file; a failure of the test when that fails. */
void WriteFile(const std::string &path, const std::string &text);

/* A directory below $TMPDIR or /tmp that goes with everything in it. */
class ScratchDir
{
public:
    ScratchDir();
    ~ScratchDir();
    ScratchDir(const ScratchDir &) = delete;
    ScratchDir &operator=(const ScratchDir &) = delete;
    const std::string &path() const
    {
        return path_;
    }
    std::string operator/(const std::string &name) const
    {
        return path_ + "/" + name;
    }

private:
    std::string path_;
};

#endif
