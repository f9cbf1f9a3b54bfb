/* SPDX-License-Identifier: MIT */
/* The library exports what the public headers declare, and nothing else. */
#include "command.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <regex>
#include <set>
#include <sstream>
#include <string>

using Names = std::set<std::string>;

/* Takes comments, preprocessor lines and whatever stands in braces out of a header, the brace of
 * extern "C" itself excepted.  A body ends a statement as a semicolon does. */
static std::string Declarations(std::string text)
{
    text = std::regex_replace(text, std::regex("/\\*[^*]*\\*+([^/*][^*]*\\*+)*/"), " ");
    text = std::regex_replace(text, std::regex("extern \"C\" \\{"), " ");
    text = std::regex_replace(text, std::regex("(^|\n)[ \t]*#([^\n]*\\\\\n)*[^\n]*"), "\n");

    std::string out;
    int depth = 0;
    for (char c : text) {
        depth += c == '{';
        if (depth <= 0) {
            out += c;
        }
        if (c == '}' && depth > 0 && --depth == 0) {
            out += ';';
        }
    }
    return out;
}

/* The names of the functions and objects that the public headers declare. */
static Names Declared()
{
    Names names;
    const std::regex function("^[\\w\\s*]*?\\b(\\w+)\\s*\\(");
    const std::regex object("^extern\\b[\\w\\s*]*?\\b(\\w+)\\s*$");
    const std::regex other("^(typedef|static|struct\\s+\\w+\\s*$|enum|__attribute__)\\b");

    for (const auto &entry :
         std::filesystem::directory_iterator(TEST_SOURCE_DIR "/include/aioctx")) {
        std::istringstream in(Declarations(ReadFile(entry.path().string())));
        std::string statement;
        while (std::getline(in, statement, ';')) {
            statement.erase(0, statement.find_first_not_of(" \t\n"));
            std::smatch m;
            if (std::regex_search(statement, other)) {
                continue;
            }
            if (std::regex_search(statement, m, function) ||
                std::regex_search(statement, m, object)) {
                names.insert(m[1]);
            }
        }
    }
    return names;
}

/* The names that the shared library defines, without versions. */
static Names Exported(std::string *ret_versions)
{
    Names names;
    CommandResult r = RunCommand("nm -D --defined-only " TEST_LIBRARY);
    EXPECT_EQ(r.status, 0) << r.output;

    std::istringstream in(r.output);
    std::string value, type, name;
    while (in >> value >> type >> name) {
        if (type == "A") {
            *ret_versions += name;
            continue;
        }
        size_t at = name.find("@@");
        EXPECT_NE(at, std::string::npos) << name << " has no version";
        names.insert(name.substr(0, at));
    }
    return names;
}

TEST(Symbols, AreExactlyWhatThePublicHeadersDeclare)
{
    std::string versions;
    Names declared = Declared(), exported = Exported(&versions);

    EXPECT_EQ(versions, "AIOCTX_0");
    /* The parse itself: one of each kind that must be, and one that must not be, in it. */
    for (const char *name : { "timer_mod", "main_loop_tlg", "iothread_new", "aio_context_new",
                              "qemu_poll_ns", "blk_drained_end" }) {
        EXPECT_TRUE(declared.count(name)) << name;
    }
    EXPECT_FALSE(declared.count("qemu_soonest_timeout"));

    for (const std::string &name : declared) {
        EXPECT_TRUE(exported.count(name)) << name << " is declared, but not exported";
    }
    for (const std::string &name : exported) {
        EXPECT_TRUE(declared.count(name)) << name << " is exported, but not declared";
    }
}

TEST(Symbols, LibraryHasAVersionedSoname)
{
    CommandResult r = RunCommand("readelf -d " TEST_LIBRARY);
    ASSERT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("[libaioctx.so.0]"), std::string::npos) << r.output;
}

TEST(Symbols, LibraryNeedsNoExecutableStackAndNoTextRelocations)
{
    CommandResult r = RunCommand("readelf -d -l -W " TEST_LIBRARY);
    ASSERT_EQ(r.status, 0) << r.output;
    EXPECT_EQ(r.output.find("TEXTREL"), std::string::npos);
    EXPECT_TRUE(std::regex_search(r.output, std::regex("GNU_STACK[^\\n]* RW  "))) << r.output;
}

/* A plugin may use the library and be closed: what the library's threads, and the ends of the
 * plugin's own, still run has not gone. */
TEST(Symbols, LibraryStaysWhenWhoLoadedItLetsGo)
{
    const char *source = R"(
#include <dlfcn.h>
#include <pthread.h>

static void *use(void *path)
{
    void *lib = dlopen(path, RTLD_NOW);
    void *(*make)(const char *, const void *) = dlsym(lib, "iothread_new");
    int (*destroy)(void *) = dlsym(lib, "iothread_destroy");
    void (*lock)(void) = dlsym(lib, "aio_rcu_read_lock");
    void (*unlock)(void) = dlsym(lib, "aio_rcu_read_unlock");

    lock();
    unlock();
    destroy(make("plugin", NULL));
    dlclose(lib);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    pthread_create(&thread, NULL, use, argv[1]);
    pthread_join(thread, NULL);
    return 0;
}
)";
    ScratchDir dir;
    std::string program = dir / "plugin";

    WriteFile(program + ".c", source);
    CommandResult r = RunCommand(TEST_CC " -o " + program + " " + program + ".c -ldl -pthread");
    ASSERT_EQ(r.status, 0) << r.output;
    for (const char *env : { "", "AIOCTX_STALL_MS=1000 " }) {
        r = RunCommand(env + program + " " TEST_LIBRARY);
        EXPECT_EQ(r.status, 0) << r.output;
    }
}

/* A plugin's constructor runs with the loader's lock held: a loop that reports a stall, and that
 * the constructor waits for, does without. */
TEST(Symbols, AConstructorMayWaitForALoopThatStalls)
{
    const char *plugin = R"(
#include <aioctx/aioctx.h>
#include <unistd.h>

void hog(void *opaque)
{
    usleep(20000);
}

static __attribute__((constructor)) void begin(void)
{
    IOThread *io = iothread_new("plugin", NULL);

    aio_bh_schedule_oneshot(iothread_get_aio_context(io), hog, NULL);
    iothread_destroy(io);
}
)";
    const char *program = R"(
#include <dlfcn.h>

int main(int argc, char **argv)
{
    return !dlopen(argv[1], RTLD_NOW);
}
)";
    ScratchDir dir;
    std::string so = dir / "plugin.so", exe = dir / "program";

    WriteFile(so + ".c", plugin);
    WriteFile(exe + ".c", program);
    CommandResult r =
        RunCommand(TEST_CC " -shared -fPIC -I" TEST_SOURCE_DIR "/include -o " + so + " " + so +
                   ".c " TEST_LIBRARY " && " TEST_CC " -o " + exe + " " + exe + ".c -ldl");
    ASSERT_EQ(r.status, 0) << r.output;
    r = RunCommand("AIOCTX_STALL_MS=5 LD_LIBRARY_PATH=$(dirname " TEST_LIBRARY ") timeout 20 " +
                   exe + " " + so);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_NE(r.output.find("bottom half: hog "), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("plugin.so+0x"), std::string::npos) << r.output;
}
