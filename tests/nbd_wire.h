/* SPDX-License-Identifier: MIT */
/*
 * What the tests of the wire share: one server for each monitor, which goes through all that the
 * tests of a suite do to it and must end well after the last of them.
 */
#ifndef TESTS_NBD_WIRE_H
#define TESTS_NBD_WIRE_H

#include "block_support.h"
#include "loop_support.h"
#include "nbd_raw.h"

constexpr uint32_t kKiB = 1024, kMiB = 1024 * kKiB;

/* Its exports, by name; a disk's pattern has the number below as its seed. */
constexpr uint32_t kDiskSeed = 1, kSparseSeed = 2, kReadOnlySeed = 3, kOddSeed = 4, kDirectSeed = 5,
                   kFaultySeed = 6;
constexpr uint64_t kDiskBytes = 8 * kMiB;     /* disk: patterned; no test writes to it */
constexpr uint64_t kScratchBytes = 80 * kMiB; /* scratch: a hole, to be written to */
constexpr uint64_t kSparseBytes = 8 * kMiB;   /* sparse: see kSparseData */
constexpr uint64_t kReadOnlyBytes = kMiB;     /* ro */
constexpr uint64_t kOddBytes = 12345;         /* odd */
constexpr uint64_t kDirectBytes = 4 * kMiB;   /* direct: direct=on */
constexpr uint64_t kFaultyBytes = kMiB;       /* faulty: block i ends in kFaults[i] */
/* late: the first 4 KiB never answer, and miss a deadline of 50 ms */

/* Where sparse has data. */
constexpr std::pair<uint64_t, uint64_t> kSparseData[] = { { 1 * kMiB, 1 * kMiB },
                                                          { 4 * kMiB, 64 * kKiB } };

struct NbdFault {
    const char *error;
    std::vector<uint32_t> on_wire; /* what it may be there */
};
extern const std::vector<NbdFault> kFaults;

/* The export's names, in the order in which the server was given them. */
extern const std::vector<std::string> kExports;

/* A server with these exports. */
class NbdDisks
{
public:
    explicit NbdDisks(const std::string &monitor);
    NbdServer &server()
    {
        return *server_;
    }
    std::string File(const std::string &name) const
    {
        return dir_.Path(name + ".img");
    }

private:
    TempDir dir_;
    std::unique_ptr<NbdServer> server_;
};

/* A file of @size bytes with the pattern in @ranges, or in all of it. */
void MakeDisk(const std::string &path, uint64_t size, uint32_t seed);
void MakeSparseDisk(const std::string &path, uint64_t size, uint32_t seed,
                    const std::vector<std::pair<uint64_t, uint64_t>> &data);

class NbdWireTest : public testing::TestWithParam<const char *>
{
protected:
    static void TearDownTestSuite(); /* stops the servers */
    void SetUp() override;

    NbdDisks &disks() const;
    NbdServer &server() const
    {
        return disks().server();
    }
    const std::string &path() const
    {
        return server().path();
    }
};

#endif
