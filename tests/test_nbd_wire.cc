/* SPDX-License-Identifier: MIT */
/* The transmission phase of the NBD export, byte by byte; nbd_handshake.cc has what comes first. */
#include "nbd_wire.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <random>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

using namespace nbd;

namespace
{

class NbdWire : public NbdWireTest
{
protected:
    /* What the file below an export holds. */
    std::string FileBytes(const std::string &name, uint64_t offset, size_t n) const
    {
        std::string bytes(n, '\0');
        int fd = open(disks().File(name).c_str(), O_RDONLY | O_CLOEXEC);

        EXPECT_GE(fd, 0);
        EXPECT_EQ(pread(fd, &bytes[0], n, static_cast<off_t>(offset)), static_cast<ssize_t>(n));
        close(fd);
        return bytes;
    }
    /* The bytes that the file takes on its file system. */
    uint64_t FileUses(const std::string &name) const
    {
        struct stat st = {};

        EXPECT_EQ(stat(disks().File(name).c_str(), &st), 0);
        return static_cast<uint64_t>(st.st_blocks) * 512;
    }
};

ON_EACH_MONITOR_OF_A_SLOW_SUITE(NbdWire);

constexpr NbdSession::Mode kModes[] = { NbdSession::SIMPLE, NbdSession::STRUCTURED };

std::string Sparse(uint64_t offset, size_t n)
{
    std::string bytes(n, '\0');

    for (const auto &[from, length] : kSparseData) {
        uint64_t first = std::max(offset, from), end = std::min(offset + n, from + length);
        if (first < end) {
            bytes.replace(first - offset, end - first, Pattern(first, end - first, kSparseSeed));
        }
    }
    return bytes;
}

/* ---- Reads and writes ------------------------------------------------------------------------ */

TEST_P(NbdWire, ReadsGiveTheDisksBytes)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "disk", mode), odd(path(), "odd", mode);

        for (uint64_t offset : { uint64_t(0), uint64_t(512), uint64_t(4096), uint64_t(kMiB) }) {
            for (uint32_t length : { 512u, 4096u, 65536u, kMiB }) {
                EXPECT_TRUE(s->Alive(offset, Pattern(offset, length, kDiskSeed)))
                    << offset << "+" << length;
            }
        }
        EXPECT_TRUE(s->Alive(0, Pattern(0, kDiskBytes, kDiskSeed)));
        EXPECT_TRUE(odd->Alive(0, Pattern(0, kOddBytes, kOddSeed)));
    }
}

TEST_P(NbdWire, WritesReadBackOnEveryConnectionAndAreInTheFile)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession a(path(), "scratch", mode), b(path(), "scratch");
        std::string data = Pattern(0, 3 * 65536, 100 + mode);

        EXPECT_EQ(a->Write(65536, data).error, OK);
        EXPECT_TRUE(Same(b->Read(65536, static_cast<uint32_t>(data.size())).data, data));
        EXPECT_EQ(a->Flush(), OK);
        EXPECT_TRUE(Same(FileBytes("scratch", 65536, data.size()), data));
    }
}

TEST_P(NbdWire, RequestsOf32MiBWork)
{
    NbdSession s(path(), "scratch"), simple(path(), "scratch", NbdSession::SIMPLE);
    std::string data = Pattern(0, 4096, 42);

    while (data.size() < 32 * kMiB) {
        data += data;
    }
    data.replace(31 * kMiB, 4096, Pattern(0, 4096, 43));
    ASSERT_EQ(data.size(), 32 * kMiB);
    EXPECT_EQ(s->Write(8 * kMiB, data).error, OK);
    EXPECT_TRUE(Same(simple->Read(8 * kMiB, 32 * kMiB).data, data));
    EXPECT_TRUE(Same(s->Read(8 * kMiB, 32 * kMiB, DF).data, data));
    EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, 8 * kMiB, 32 * kMiB).error, OK);
    EXPECT_TRUE(Same(s->Read(8 * kMiB, 32 * kMiB).data, std::string(32 * kMiB, '\0')));
    EXPECT_EQ(s->Request(CMD_TRIM, 8 * kMiB, 32 * kMiB).error, OK);
}

/* A minimum of 1 means that; a greater one, that less is refused. */
TEST_P(NbdWire, BlockSizesAreHonest)
{
    for (const char *name : { "disk", "odd", "direct", "ro" }) {
        NbdSession s(path(), name);
        uint32_t seed = *name == 'r'     ? kReadOnlySeed
                        : *name == 'o'   ? kOddSeed
                        : name[2] == 's' ? kDiskSeed
                                         : kDirectSeed;
        uint32_t min = s.info.min, length = 3 * min;

        EXPECT_TRUE(s->Alive(min, Pattern(min, length, seed))) << name;
        EXPECT_TRUE(s->Alive(s.info.size - min, Pattern(s.info.size - min, min, seed))) << name;
        if (min > 1) {
            EXPECT_EQ(s->Read(1, min).error, E_INVAL);
            EXPECT_EQ(s->Read(0, min - 1).error, E_INVAL);
            EXPECT_EQ(s->Write(1, std::string(min, 'x')).error, E_INVAL);
            EXPECT_EQ(s->Request(CMD_TRIM, 1, min).error, E_INVAL);
            EXPECT_TRUE(s->Alive(min, Pattern(min, length, seed))) << name;
        } else {
            for (uint64_t offset : { 1, 511, 513, 4095 }) {
                for (uint32_t n : { 1u, 2u, 511u, 513u, 4097u }) {
                    EXPECT_TRUE(s->Alive(offset, Pattern(offset, n, seed))) << offset << "+" << n;
                }
            }
        }
    }
    NbdSession s(path(), "scratch");
    if (s.info.min == 1) {
        EXPECT_EQ(s->Write(0, std::string(8192, 'a')).error, OK);
        EXPECT_EQ(s->Write(1001, std::string(1001, 'b')).error, OK);
        EXPECT_TRUE(Same(s->Read(0, 8192).data,
                         std::string(1001, 'a') + std::string(1001, 'b') + std::string(6190, 'a')));
    }
}

TEST_P(NbdWire, LongerThanTheMaximumIsInvalidAndNothingElse)
{
    NbdSession s(path(), "scratch");

    if (s.info.max < kScratchBytes) {
        EXPECT_EQ(s->Read(0, s.info.max + 4096).error, E_INVAL);
        EXPECT_EQ(s->Read(0, s.info.max + 4096, DF).error, E_INVAL);
        EXPECT_EQ(s->Request(CMD_READ, 0, UINT32_MAX).error, E_INVAL);
    }
    EXPECT_EQ(s->Read(0, 1).error, OK);
    /* A write of such a length is refused or drops the connection; others go on. */
    NbdClient greedy(path());
    greedy.Greet().Go("scratch");
    greedy.Send(RequestBytes(CMD_WRITE, 0, 1, 0, UINT32_MAX) + "and no more");
    EXPECT_EQ(s->Read(0, 1).error, OK);
}

TEST_P(NbdWire, EmptyRequestsDoNotEndTheConnection)
{
    NbdSession s(path(), "scratch");

    for (uint16_t type :
         { CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS }) {
        uint64_t cookie = s->SendRequest(type, 0, 0);
        NbdReply r;
        /* An empty success of a status has no list to send, so it is an error. */
        r = s->RecvReply();
        EXPECT_EQ(r.cookie, cookie);
        EXPECT_TRUE(r.error == E_INVAL || (r.error == OK && type != CMD_BLOCK_STATUS)) << type;
    }
    EXPECT_EQ(s->Read(0, 1).error, OK);
}

TEST_P(NbdWire, ManyAtOnceAreEachAnsweredOnce)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "disk", mode);
        std::map<uint64_t, uint64_t> offset_of;

        for (uint64_t i = 0; i < 256; i++) {
            uint64_t offset = i * 7 % 256 * 4096;
            offset_of[s->SendRequest(CMD_READ, offset, 4096)] = offset;
        }
        for (int i = 0; i < 256; i++) {
            NbdReply r = s->RecvReply();
            ASSERT_TRUE(r.came);
            EXPECT_TRUE(Same(r.data, Pattern(offset_of.at(r.cookie), 4096, kDiskSeed)));
        }
        EXPECT_EQ(s->InFlight(), 0u);
    }
}

TEST_P(NbdWire, RequestsMayComeByteByByte)
{
    std::string data = Pattern(0, 700, 9);
    NbdClient c(path());

    c.Greet().Go("scratch");
    for (char byte : RequestBytes(CMD_WRITE, 0, 1, 4096, 700) + data) {
        c.Send(std::string(1, byte));
    }
    EXPECT_EQ(c.Recv(16), Be32(0x67446698) + Be32(0) + Be64(1));
    for (char byte : RequestBytes(CMD_READ, 0, 2, 4096, 700)) {
        c.Send(std::string(1, byte));
    }
    EXPECT_EQ(c.Recv(16), Be32(0x67446698) + Be32(0) + Be64(2));
    EXPECT_TRUE(Same(c.Recv(700), data));
}

TEST_P(NbdWire, AWrongRequestMagicDropsThatConnectionAlone)
{
    NbdSession good(path(), "disk");
    NbdClient bad(path());

    bad.Greet().Go("disk");
    bad.Send(Be32(kRequestMagic + 1) + std::string(24, '\0'));
    EXPECT_TRUE(bad.Closed());
    EXPECT_TRUE(good->Alive(0, Pattern(0, 4096, kDiskSeed)));
}

/* Threads over all connections, each with a region of its own and a copy to compare with. */
TEST_P(NbdWire, ConnectionsAtOnceKeepTheirBytesApart)
{
    const uint64_t region = 256 * kKiB, base = 64 * kMiB;
    const int rounds = kSanitized ? 40 : 150;

    RunThreads(4, [&](int n) {
        NbdSession s(path(), "scratch", n % 2 ? NbdSession::SIMPLE : NbdSession::STRUCTURED);
        std::mt19937 random(static_cast<unsigned>(n));
        std::string model(region, '\0');
        uint64_t from = base + static_cast<uint64_t>(n) * region;

        EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, from, region).error, OK);
        for (int i = 0; i < rounds; i++) {
            size_t at = random() % region, length = 1 + random() % std::min(region - at, 20000ul);
            std::string data = Pattern(at, length, random());
            switch (random() % 4) {
            case 0:
                EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, from + at, static_cast<uint32_t>(length),
                                     random() % 2 ? NO_HOLE : 0)
                              .error,
                          OK);
                model.replace(at, length, std::string(length, '\0'));
                break;
            case 1:
                EXPECT_TRUE(Same(s->Read(from + at, static_cast<uint32_t>(length)).data,
                                 model.substr(at, length)));
                break;
            default:
                EXPECT_EQ(s->Write(from + at, data, random() % 8 ? 0 : FUA).error, OK);
                model.replace(at, length, data);
            }
        }
        EXPECT_TRUE(Same(s->Read(from, static_cast<uint32_t>(region)).data, model));
    });
}

/* ---- Structured replies ---------------------------------------------------------------------- */

TEST_P(NbdWire, StructuredReadsTellHoles)
{
    NbdSession s(path(), "sparse"), simple(path(), "sparse", NbdSession::SIMPLE);
    bool holes = false;

    for (uint64_t offset : { uint64_t(0), uint64_t(512 * kKiB), uint64_t(kMiB) }) {
        for (uint32_t length : { 512u, 65536u, 2 * kMiB, 4 * kMiB }) {
            std::string expect = Sparse(offset, length);
            NbdReply r = s->Read(offset, length);

            EXPECT_EQ(r.error, OK);
            EXPECT_TRUE(Same(r.data, expect)) << offset << "+" << length;
            EXPECT_TRUE(Same(simple->Read(offset, length).data, expect));
            for (const NbdChunk &c : r.chunks) {
                holes |= c.type == CHUNK_HOLE;
            }
        }
    }
    EXPECT_TRUE(holes) << "no hole was told of";
    NbdReply r = s->Read(2 * kMiB, 1 * kMiB);
    EXPECT_EQ(r.chunks.size(), 1u);
    EXPECT_EQ(r.chunks[0].type, CHUNK_HOLE) << "a hole is one chunk without data";
}

TEST_P(NbdWire, ReadsThatMustNotBeCutComeInOnePiece)
{
    NbdSession s(path(), "sparse");

    for (uint32_t length : { 512u, 65536u, 4 * kMiB }) {
        NbdReply r = s->Read(512 * kKiB, length, DF);
        EXPECT_TRUE(Same(r.data, Sparse(512 * kKiB, length)));
        EXPECT_EQ(r.chunks.size(), 1u);
        EXPECT_TRUE(length < kMiB || r.chunks[0].type == CHUNK_DATA) << "data and holes";
    }
}

TEST_P(NbdWire, DontFragmentNeedsStructuredReplies)
{
    NbdSession s(path(), "disk", NbdSession::SIMPLE);

    EXPECT_FALSE(s.info.flags & SEND_DF);
    EXPECT_EQ(s->Read(0, 512, DF).error, E_INVAL);
    EXPECT_TRUE(s->Alive(0, Pattern(0, 512, kDiskSeed)));
}

/* ---- Block status ---------------------------------------------------------------------------- */

TEST_P(NbdWire, BlockStatusIsTheFilesMap)
{
    NbdSession s(path(), "sparse");
    std::string is_data(kSparseBytes / 4096, '?');
    uint64_t at = 0;

    while (at < kSparseBytes) {
        NbdReply r = s->Request(CMD_BLOCK_STATUS, at, static_cast<uint32_t>(kSparseBytes - at));
        ASSERT_EQ(r.error, OK);
        ASSERT_EQ(r.status.count(s.context), 1u);
        for (const NbdExtent &e : r.status[s.context]) {
            EXPECT_TRUE(e.flags == 0 || e.flags == (STATE_HOLE | STATE_ZERO)) << e.flags;
            for (uint64_t end = std::min(at + e.length, kSparseBytes); at < end; at += 4096) {
                is_data[at / 4096] = e.flags ? '.' : 'D';
            }
        }
    }
    std::string expect(kSparseBytes / 4096, '.');
    for (const auto &[from, length] : kSparseData) {
        expect.replace(from / 4096, length / 4096, std::string(length / 4096, 'D'));
    }
    EXPECT_EQ(is_data, expect);
}

TEST_P(NbdWire, BlockStatusTellsSeveralExtentsAtOnce)
{
    NbdSession s(path(), "sparse");
    NbdReply r = s->Request(CMD_BLOCK_STATUS, 0, kSparseBytes);

    EXPECT_GE(r.status[s.context].size(), 3u) << "a hole, data, a hole";
}

TEST_P(NbdWire, BlockStatusOfOneExtentIsNoLongerThanAskedFor)
{
    NbdSession s(path(), "sparse");
    struct {
        uint64_t offset;
        uint32_t length;
        uint64_t extent;
        uint32_t flags;
    } const cases[] = {
        { 0, kSparseBytes, kMiB, STATE_HOLE | STATE_ZERO },
        { 0, 4096, 4096, STATE_HOLE | STATE_ZERO },
        { kMiB, 4 * kMiB, kMiB, 0 },
        { kMiB + 8192, 8192, 8192, 0 },
        { 3 * kMiB, 2 * kMiB, kMiB, STATE_HOLE | STATE_ZERO },
        { 4 * kMiB, kMiB, 64 * kKiB, 0 },
    };

    for (const auto &t : cases) {
        NbdReply r = s->Request(CMD_BLOCK_STATUS, t.offset, t.length, REQ_ONE);
        ASSERT_EQ(r.error, OK);
        ASSERT_EQ(r.status[s.context].size(), 1u);
        EXPECT_EQ(r.status[s.context][0].length, t.extent) << t.offset;
        EXPECT_EQ(r.status[s.context][0].flags, t.flags) << t.offset;
    }
}

TEST_P(NbdWire, BlockStatusNeedsAContext)
{
    NbdClient structured(path());
    structured.Greet().Structured().Go("disk");
    NbdSession simple(path(), "disk", NbdSession::SIMPLE);

    for (NbdClient *c : { &structured, simple.client.get() }) {
        EXPECT_EQ(c->Request(CMD_BLOCK_STATUS, 0, 4096).error, E_INVAL);
        EXPECT_TRUE(c->Alive(0, Pattern(0, 512, kDiskSeed)));
    }
}

/* ---- What reaches the disk ------------------------------------------------------------------- */

TEST_P(NbdWire, FuaIsAcceptedOnEveryCommand)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "scratch", mode);

        ASSERT_TRUE(s.info.flags & SEND_FUA);
        EXPECT_EQ(s->Write(0, Pattern(0, 4096, 1), FUA).error, OK);
        EXPECT_TRUE(Same(s->Read(0, 4096, FUA).data, Pattern(0, 4096, 1)));
        EXPECT_EQ(s->Request(CMD_CACHE, 0, 4096, FUA).error, OK);
        EXPECT_EQ(s->Request(CMD_FLUSH, 0, 0, FUA).error, OK);
        EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, 0, 4096, FUA).error, OK);
        EXPECT_TRUE(Same(s->Read(0, 4096).data, std::string(4096, '\0')));
        EXPECT_EQ(s->Request(CMD_TRIM, 0, 4096, FUA).error, OK);
        if (mode == NbdSession::STRUCTURED) {
            EXPECT_EQ(s->Request(CMD_BLOCK_STATUS, 0, 4096, FUA).error, OK);
        }
    }
}

TEST_P(NbdWire, TrimGivesRoomBack)
{
    NbdSession s(path(), "scratch");
    const uint64_t at = 48 * kMiB;

    EXPECT_EQ(s->Write(at, Pattern(at, 4 * kMiB)).error, OK);
    EXPECT_EQ(s->Flush(), OK);
    uint64_t used = FileUses("scratch");
    EXPECT_EQ(s->Request(CMD_TRIM, at + kMiB, 2 * kMiB).error, OK);
    EXPECT_EQ(s->Flush(), OK);
    EXPECT_LE(FileUses("scratch") + kMiB, used) << "the file system punches holes, if any does";
    EXPECT_TRUE(Same(s->Read(at, kMiB).data, Pattern(at, kMiB)));
    EXPECT_TRUE(Same(s->Read(at + 3 * kMiB, kMiB).data, Pattern(at + 3 * kMiB, kMiB)));
    NbdReply r = s->Request(CMD_BLOCK_STATUS, at + kMiB, 2 * kMiB, REQ_ONE);
    EXPECT_EQ(r.status[s.context][0].flags, STATE_HOLE | STATE_ZERO);
}

TEST_P(NbdWire, ZeroesAreZeroesAndWithoutHolesTheRoomStays)
{
    NbdSession s(path(), "scratch");
    const uint64_t at = 54 * kMiB;
    const std::string data = Pattern(at, 2 * kMiB), zeroes(2 * kMiB, '\0');

    EXPECT_EQ(s->Write(at, data).error, OK);
    EXPECT_EQ(s->Flush(), OK);
    uint64_t used = FileUses("scratch");
    EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, at, 2 * kMiB, NO_HOLE).error, OK);
    EXPECT_EQ(s->Flush(), OK);
    EXPECT_GE(FileUses("scratch"), used);
    EXPECT_TRUE(Same(s->Read(at, 2 * kMiB).data, zeroes));
    EXPECT_EQ(s->Write(at, data).error, OK);
    EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, at, 2 * kMiB).error, OK);
    EXPECT_TRUE(Same(s->Read(at, 2 * kMiB).data, zeroes));
    /* Odd edges. */
    EXPECT_EQ(s->Write(at, data).error, OK);
    EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, at + 777, 100001, NO_HOLE | FUA).error, OK);
    EXPECT_TRUE(Same(s->Read(at, 2 * kMiB).data,
                     data.substr(0, 777) + std::string(100001, '\0') + data.substr(777 + 100001)));
}

/* Either at once and zero, or refused and unchanged; and only where the flag was offered. */
TEST_P(NbdWire, FastZeroesAreFastOrRefused)
{
    for (const char *name : { "scratch", "faulty" }) {
        NbdSession s(path(), name);
        const uint64_t at = *name == 's' ? 60 * kMiB : 512 * kKiB;
        const std::string data = Pattern(at, 128 * kKiB, 5);

        for (int flags : { FAST_ZERO | 0, FAST_ZERO | NO_HOLE }) {
            EXPECT_EQ(s->Write(at, data).error, OK);
            uint32_t error =
                s->Request(CMD_WRITE_ZEROES, at, 128 * kKiB, static_cast<uint16_t>(flags)).error;
            std::string now = s->Read(at, 128 * kKiB).data;
            if (!(s.info.flags & SEND_FAST_ZERO)) {
                EXPECT_EQ(error, E_INVAL);
                EXPECT_TRUE(Same(now, data));
            } else if (error != OK) {
                EXPECT_EQ(error, E_NOTSUP);
                EXPECT_TRUE(Same(now, data));
            } else {
                EXPECT_TRUE(Same(now, std::string(128 * kKiB, '\0')));
            }
        }
    }
}

TEST_P(NbdWire, CacheChangesNothing)
{
    NbdSession s(path(), "disk");

    EXPECT_EQ(s->Request(CMD_CACHE, 0, kDiskBytes).error, OK);
    EXPECT_EQ(s->Request(CMD_CACHE, 1000, 3).error, OK);
    EXPECT_EQ(s->Request(CMD_CACHE, kDiskBytes, 1).error, E_INVAL);
    EXPECT_TRUE(s->Alive(0, Pattern(0, kMiB, kDiskSeed)));
}

/* ---- What is wrong --------------------------------------------------------------------------- */

TEST_P(NbdWire, UnknownCommandsAreInvalidAndTheConnectionLives)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "disk", mode);

        for (uint16_t type : { 8, 9, 99, 0x7fff, 0xffff }) {
            EXPECT_EQ(s->Request(type, 0, 4096).error, E_INVAL) << type;
            EXPECT_TRUE(s->Alive(0, Pattern(0, 512, kDiskSeed)));
        }
    }
}

/* A flag that the command does not have; a write's payload is consumed with it. */
TEST_P(NbdWire, WrongFlagsAreInvalidAndThePayloadIsConsumed)
{
    const std::pair<uint16_t, uint16_t> known[] = {
        { CMD_READ, FUA | DF },
        { CMD_WRITE, FUA },
        { CMD_FLUSH, FUA },
        { CMD_TRIM, FUA },
        { CMD_CACHE, FUA },
        { CMD_WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO },
        { CMD_BLOCK_STATUS, FUA | REQ_ONE },
    };
    NbdSession s(path(), "scratch");
    /* What would be read as requests, were it not consumed. */
    std::string payload;

    while (payload.size() < 28 * 200) {
        payload += RequestBytes(CMD_DISC, 0, 0, 0, 0);
    }
    EXPECT_EQ(s->Write(0, Pattern(0, 8192, 3)).error, OK);
    for (const auto &[type, flags] : known) {
        for (int bit = 0; bit < 16; bit++) {
            if (flags & 1 << bit) {
                continue;
            }
            uint32_t length = type == CMD_FLUSH ? 0 : static_cast<uint32_t>(payload.size());
            EXPECT_EQ(s->Request(type, 0, length, static_cast<uint16_t>(1 << bit),
                                 type == CMD_WRITE ? payload : "")
                          .error,
                      E_INVAL)
                << "command " << type << ", flag " << bit;
        }
    }
    EXPECT_TRUE(s->Alive(0, Pattern(0, 8192, 3))) << "nothing was done";
}

TEST_P(NbdWire, RangesPastTheEndAreRefusedAndThePayloadIsConsumed)
{
    const uint64_t end = kOddBytes;
    const std::pair<uint64_t, uint32_t> ranges[] = {
        { end, 1 },
        { end - 1, 2 },
        { 0, kOddBytes + 1 },
        { end + 4096, 4096 },
        { UINT64_MAX, 1 },
        { UINT64_MAX, 4096 },
        { UINT64_MAX - 4095, 4096 },
        { INT64_MAX, 4096 },
        { UINT64_C(1) << 63, 512 },
    };

    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "odd", mode);

        for (const auto &[offset, length] : ranges) {
            EXPECT_EQ(s->Read(offset, length).error, E_INVAL) << offset << "+" << length;
            EXPECT_EQ(s->Write(offset, std::string(length, 'x')).error, E_NOSPC)
                << offset << "+" << length;
            EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, offset, length).error, E_NOSPC);
            uint32_t trim = s->Request(CMD_TRIM, offset, length).error;
            EXPECT_TRUE(trim == E_INVAL || trim == E_NOSPC) << trim;
            EXPECT_EQ(s->Request(CMD_CACHE, offset, length).error, E_INVAL);
            EXPECT_EQ(s->Request(CMD_BLOCK_STATUS, offset, length).error, E_INVAL);
        }
        EXPECT_TRUE(s->Alive(0, Pattern(0, kOddBytes, kOddSeed))) << "nothing was written";
    }
}

TEST_P(NbdWire, AReadOnlyExportRefusesWhatWritesAndConsumesThePayload)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "ro", mode);

        EXPECT_TRUE(s.info.flags & READ_ONLY);
        EXPECT_EQ(s->Write(0, std::string(100000, 'x')).error, E_PERM);
        EXPECT_EQ(s->Write(0, std::string(512, 'x'), FUA).error, E_PERM);
        EXPECT_EQ(s->Request(CMD_TRIM, 0, 4096).error, E_PERM);
        EXPECT_EQ(s->Request(CMD_WRITE_ZEROES, 0, 4096).error, E_PERM);
        EXPECT_TRUE(s->Alive(0, Pattern(0, kReadOnlyBytes, kReadOnlySeed)));
    }
}

TEST_P(NbdWire, OnlyTheProtocolsErrorsAreOnTheWire)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "faulty", mode);

        for (size_t i = 0; i < kFaults.size(); i++) {
            const std::vector<uint32_t> &allowed = kFaults[i].on_wire;
            for (uint32_t error : { s->Read(i * 4096, 4096).error,
                                    s->Write(i * 4096, std::string(4096, 'x')).error }) {
                EXPECT_NE(std::find(allowed.begin(), allowed.end(), error), allowed.end())
                    << kFaults[i].error << " became " << error;
            }
        }
        EXPECT_TRUE(s->Alive(256 * kKiB, Pattern(256 * kKiB, 4096, kFaultySeed)));
    }
}

/* A read that fails in its middle is an error as a whole, and the stream stays in step. */
TEST_P(NbdWire, AReadThatFailsInItsMiddleIsAnError)
{
    for (NbdSession::Mode mode : kModes) {
        for (uint16_t flags : { uint16_t(0), uint16_t(DF) }) {
            if (flags && mode == NbdSession::SIMPLE) {
                continue;
            }
            NbdSession s(path(), "faulty", mode);

            EXPECT_NE(s->Read(0, kMiB, flags).error, OK);
            EXPECT_TRUE(s->Alive(768 * kKiB, Pattern(768 * kKiB, 4096, kFaultySeed)));
        }
    }
}

/* On a busy machine others may miss theirs as well: one is asked for until it came in time. */
TEST_P(NbdWire, AMissedDeadlineIsAnInputOutputError)
{
    for (NbdSession::Mode mode : kModes) {
        NbdSession s(path(), "late", mode);

        EXPECT_EQ(s->Read(0, 4096).error, E_IO);
        EXPECT_TRUE(WaitUntil([&] {
            NbdReply r = s->Read(8192, 4096);
            EXPECT_TRUE(r.error == OK || r.error == E_IO) << r.error;
            EXPECT_TRUE(r.error != OK || Same(r.data, Pattern(8192, 4096, 0)));
            return r.error == OK || s->broken();
        }));
    }
}

} // namespace
