/* SPDX-License-Identifier: MIT */
#include "nbd_wire.h"

#include <fcntl.h>
#include <unistd.h>

using namespace nbd;

const std::vector<std::string> kExports = { "disk", "scratch", "sparse", "ro",
                                            "odd",  "direct",  "faulty", "late" };

/* What the protocol says of an error stands alone; what it does not, is the server's choice. */
const std::vector<NbdFault> kFaults = {
    { "EIO", { E_IO } },
    { "ENOSPC", { E_NOSPC } },
    { "EPERM", { E_PERM } },
    { "EACCES", { E_PERM, E_IO } },
    { "EINVAL", { E_INVAL, E_IO } },
    { "ENOMEM", { E_NOMEM, E_IO } },
    { "EAGAIN", { E_IO } },
    { "ENODEV", { E_IO } },
    { "EROFS", { E_PERM } },
    { "ETIMEDOUT", { E_IO } },
    { "ENOTSUP", { E_NOTSUP, E_INVAL, E_IO } },
};

void MakeSparseDisk(const std::string &path, uint64_t size, uint32_t seed,
                    const std::vector<std::pair<uint64_t, uint64_t>> &data)
{
    int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    ASSERT_GE(fd, 0) << path;
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
    for (const auto &[offset, length] : data) {
        std::string bytes = Pattern(offset, length, seed);
        EXPECT_EQ(pwrite(fd, bytes.data(), length, static_cast<off_t>(offset)),
                  static_cast<ssize_t>(length));
    }
    EXPECT_EQ(fsync(fd), 0); /* so that extents are what they will stay */
    close(fd);
}

void MakeDisk(const std::string &path, uint64_t size, uint32_t seed)
{
    MakeSparseDisk(path, size, seed, { { 0, size } });
}

static std::string FaultRules()
{
    std::string rules;

    for (size_t i = 0; i < kFaults.size(); i++) {
        for (const char *op : { "read", "write" }) {
            rules += std::string(rules.empty() ? "" : ";") + op + "+from=" + std::to_string(4 * i) +
                     "k+to=" + std::to_string(4 * i + 4) + "k+error=" + kFaults[i].error;
        }
    }
    return rules;
}

NbdDisks::NbdDisks(const std::string &monitor)
{
    MakeDisk(File("disk"), kDiskBytes, kDiskSeed);
    MakeSparseDisk(File("scratch"), kScratchBytes, 0, {});
    MakeSparseDisk(File("sparse"), kSparseBytes, kSparseSeed,
                   { std::begin(kSparseData), std::end(kSparseData) });
    MakeDisk(File("ro"), kReadOnlyBytes, kReadOnlySeed);
    MakeDisk(File("odd"), kOddBytes, kOddSeed);
    MakeDisk(File("direct"), kDirectBytes, kDirectSeed);
    MakeDisk(File("faulty"), kFaultyBytes, kFaultySeed);
    MakeDisk(File("late"), kMiB, 0);

    const std::map<std::string, std::string> specs = {
        { "ro", "file://" + File("ro") + "?read-only=on" },
        { "direct", "file://" + File("direct") + "?direct=on" },
        { "faulty", "blkdebug:rules=" + FaultRules() + ",file:" + File("faulty") },
        { "late", "blkdebug:rules=read+to=4k+never,deadline-ns=50000000,file:" + File("late") },
    };
    std::vector<std::string> args = { "--monitor", monitor, "--threads", "2" };
    for (const std::string &name : kExports) {
        auto it = specs.find(name);
        args.push_back("--export");
        args.push_back(name + "=" + (it != specs.end() ? it->second : "file:" + File(name)));
    }
    server_ = std::make_unique<NbdServer>(args);
}

static std::map<std::string, std::unique_ptr<NbdDisks>> by_monitor;

void NbdWireTest::SetUp()
{
    SKIP_WITHOUT_MONITOR(GetParam());
    std::unique_ptr<NbdDisks> &disks = by_monitor[GetParam()];

    if (!disks || !disks->server().Running()) {
        disks = nullptr; /* fails the test when it had ended by itself */
        disks = std::make_unique<NbdDisks>(GetParam());
    }
    ASSERT_TRUE(server().Running()) << server().Log();
}

void NbdWireTest::TearDownTestSuite()
{
    by_monitor.clear();
}

NbdDisks &NbdWireTest::disks() const
{
    return *by_monitor.at(GetParam());
}
