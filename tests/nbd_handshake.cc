/* SPDX-License-Identifier: MIT */
/* The handshake of the NBD export, byte by byte. */
#include "nbd_wire.h"

#include <algorithm>
#include <set>

using namespace nbd;

namespace
{

class NbdHandshake : public NbdWireTest
{
protected:
    /* In transmission with the first blocks of disk, as proof that the connection still works. */
    static void ExpectGoWorks(NbdClient &c)
    {
        NbdInfo info = c.Go("disk");

        EXPECT_EQ(info.size, kDiskBytes);
        EXPECT_TRUE(c.Alive(4096, Pattern(4096, 512, kDiskSeed)));
    }
};

ON_EACH_MONITOR_OF_A_SLOW_SUITE(NbdHandshake);

TEST_P(NbdHandshake, GreetingIsFixedNewstyle)
{
    NbdClient c(path());

    EXPECT_EQ(c.RecvGreeting(), 3) << "fixed newstyle and no zeroes, nothing else";
    c.Send(Be32(3));
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, UnknownClientFlagDropsTheConnection)
{
    for (uint32_t flags : { 4u, 7u, 0x80000000u, 0xffffffffu }) {
        NbdClient c(path());

        c.Greet(flags);
        EXPECT_TRUE(c.Closed()) << flags;
    }
}

TEST_P(NbdHandshake, WrongOptionMagicDropsTheConnection)
{
    NbdClient c(path());

    c.Greet();
    c.Send(Be64(kOptionMagic + 1) + Be32(OPT_LIST) + Be32(0));
    EXPECT_TRUE(c.Closed());
}

TEST_P(NbdHandshake, AbortIsAcknowledged)
{
    for (const char *data : { "", "not expected, and ignored" }) {
        NbdClient c(path());

        c.Greet();
        EXPECT_EQ(c.OptionType(OPT_ABORT, data), REP_ACK);
        EXPECT_TRUE(c.Closed());
    }
}

TEST_P(NbdHandshake, AbortWithoutWaitingForTheAnswerIsNoTrouble)
{
    for (int i = 0; i < 20; i++) {
        NbdClient c(path());

        c.Greet();
        c.SendOption(OPT_ABORT);
    }
    NbdClient c(path());
    c.Greet();
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, UnknownOptionIsUnsupportedAndItsDataConsumed)
{
    NbdClient c(path());

    c.Greet();
    for (uint32_t option : { 0u, 4u, 11u, 12u, 99u, 0x7fffffffu, 0xffffffffu }) {
        for (size_t bytes : { 0, 1, 4096, 65000 }) {
            EXPECT_EQ(c.OptionType(option, std::string(bytes, 'I')), REP_ERR_UNSUP)
                << option << " with " << bytes;
        }
    }
    ExpectGoWorks(c);
}

/* The data of an option may look like an option. */
TEST_P(NbdHandshake, DataOfAnUnknownOptionIsNotReadAsOptions)
{
    NbdClient c(path());

    c.Greet();
    EXPECT_EQ(c.OptionType(77, OptionBytes(OPT_ABORT, "") + OptionBytes(OPT_ABORT, "")),
              REP_ERR_UNSUP);
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, UnknownExportIsAnErrorAndNeverAnotherDisk)
{
    for (const std::string &name :
         { std::string(""), std::string("dis"), std::string("diskk"), std::string("Disk"),
           std::string("disk\0", 5), std::string(4096, 'd'), std::string("../disk") }) {
        NbdClient c(path());

        c.Greet();
        /* A name with a NUL in it is none. */
        bool is_name = name.find('\0') == std::string::npos;
        NbdInfo info = c.Info(name), go = c.Info(name, {}, OPT_GO);
        EXPECT_TRUE(info.error == REP_ERR_UNKNOWN || (!is_name && info.error == REP_ERR_INVALID));
        EXPECT_EQ(go.error, info.error) << name;
        EXPECT_TRUE(go.items.empty());
        ExpectGoWorks(c);

        NbdClient old(path());
        old.Greet();
        old.SendOption(OPT_EXPORT_NAME, name);
        EXPECT_TRUE(old.Closed()) << name;
    }
}

TEST_P(NbdHandshake, InfoAndGoSayTheSame)
{
    const std::vector<std::vector<uint16_t>> requests = {
        {},
        { INFO_BLOCK_SIZE },
        { INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE },
        { 999, 0, 3 },
    };

    for (const std::string &name : kExports) {
        for (const std::vector<uint16_t> &r : requests) {
            for (bool structured : { false, true }) {
                NbdClient c(path());

                c.Greet();
                if (structured) {
                    c.Structured();
                }
                NbdInfo info = c.Info(name, r), go = c.Info(name, r, OPT_GO);
                EXPECT_EQ(info.error, 0u) << name;
                EXPECT_EQ(info.items, go.items) << name;
                EXPECT_EQ((info.flags & SEND_DF) != 0, structured);
                if (std::count(r.begin(), r.end(), INFO_NAME)) {
                    EXPECT_EQ(info.items[INFO_NAME], name);
                }
            }
        }
    }
}

TEST_P(NbdHandshake, ExportNameTellsWhatInfoTells)
{
    for (const std::string &name : kExports) {
        for (uint32_t flags : { 0u, 1u, 2u, 3u }) {
            NbdClient c(path());
            bool zeroes = !(flags & 2);

            c.Greet(flags);
            c.SendOption(OPT_EXPORT_NAME, name);
            std::string told = c.Recv(zeroes ? 134 : 10);
            NbdClient other(path());
            NbdInfo info = other.Greet().Info(name);
            EXPECT_EQ(told.substr(0, 10), Be64(info.size) + Be16(info.flags)) << name;
            EXPECT_EQ(told.substr(10), std::string(zeroes ? 124 : 0, '\0'));
            if (name == "disk") {
                EXPECT_TRUE(c.Alive(0, Pattern(0, 4096, kDiskSeed)));
            }
        }
    }
}

TEST_P(NbdHandshake, FlagsOfAnExportAreWhatItCan)
{
    for (const std::string &name : kExports) {
        NbdClient c(path());
        NbdInfo info = c.Greet().Structured().Info(name);
        uint16_t write = SEND_TRIM | SEND_WRITE_ZEROES | SEND_FLUSH | SEND_FUA;

        EXPECT_EQ((info.flags & READ_ONLY) != 0, name == "ro") << name;
        EXPECT_TRUE(info.flags & CAN_MULTI_CONN) << name;
        EXPECT_TRUE(info.flags & SEND_DF) << name;
        EXPECT_TRUE(info.flags & SEND_CACHE) << name;
        if (name != "ro") {
            EXPECT_EQ(info.flags & write, write) << name;
        } else {
            EXPECT_EQ(info.flags & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO), 0);
        }
        EXPECT_EQ(info.size, name == "disk"      ? kDiskBytes
                             : name == "scratch" ? kScratchBytes
                             : name == "sparse"  ? kSparseBytes
                             : name == "odd"     ? kOddBytes
                             : name == "direct"  ? kDirectBytes
                                                 : kMiB)
            << name;
    }
}

TEST_P(NbdHandshake, BlockSizesAreWithinTheRules)
{
    for (const std::string &name : kExports) {
        NbdClient c(path());
        NbdInfo info = c.Greet().Info(name, { INFO_BLOCK_SIZE });

        ASSERT_TRUE(info.has_block_size) << name;
        EXPECT_EQ(info.min & (info.min - 1), 0u) << "a power of 2";
        EXPECT_GE(info.min, 1u);
        EXPECT_LE(info.min, 65536u);
        EXPECT_EQ(info.size % info.min, 0u) << "every byte can be reached";
        EXPECT_EQ(info.preferred & (info.preferred - 1), 0u) << "a power of 2";
        EXPECT_GE(info.preferred, std::max(info.min, 512u));
        EXPECT_GE(info.max, 32 * kMiB);
        EXPECT_TRUE(info.max == UINT32_MAX || info.max % info.min == 0) << info.max;
    }
}

TEST_P(NbdHandshake, ListNamesEachExportOnce)
{
    NbdClient c(path());
    std::multiset<std::string> names;

    c.Greet();
    std::vector<NbdOptReply> replies = c.Option(OPT_LIST);
    EXPECT_EQ(replies.back().type, REP_ACK);
    replies.pop_back();
    for (const NbdOptReply &r : replies) {
        EXPECT_EQ(r.type, REP_SERVER);
        for (const std::string &name : kExports) {
            if (r.data.substr(0, 4 + name.size()) == Counted(name)) {
                names.insert(name);
            }
        }
    }
    EXPECT_EQ(replies.size(), kExports.size());
    EXPECT_EQ(names, std::multiset<std::string>(kExports.begin(), kExports.end()));
    EXPECT_EQ(c.OptionType(OPT_LIST, "x"), REP_ERR_INVALID);
    ExpectGoWorks(c);
}

/* ---- Structured replies and metadata contexts ------------------------------------------------ */

TEST_P(NbdHandshake, StructuredReplyTakesNoData)
{
    NbdClient c(path());

    c.Greet();
    EXPECT_EQ(c.OptionType(OPT_STRUCTURED_REPLY, "x"), REP_ERR_INVALID);
    c.Structured().Structured();
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, ListMetaContextKnowsBaseAllocation)
{
    NbdClient c(path());

    c.Greet().Structured();
    for (const std::vector<std::string> &queries :
         std::vector<std::vector<std::string>>{ {},
                                                { "base:" },
                                                { "base:allocation" },
                                                { "x-none:y", "base:allocation" },
                                                { "base:", "base:allocation" } }) {
        std::vector<NbdOptReply> replies = c.Option(OPT_LIST_META, MetaData("disk", queries));
        ASSERT_EQ(replies.size(), 2u);
        EXPECT_EQ(replies[0].type, REP_META);
        EXPECT_EQ(replies[0].data.substr(4), "base:allocation");
        EXPECT_EQ(replies[1].type, REP_ACK);
    }
    for (const char *query : { "x-none:y", "qemu:dirty-bitmap:b", "base:other" }) {
        std::vector<NbdOptReply> replies = c.Option(OPT_LIST_META, MetaData("disk", { query }));
        EXPECT_EQ(replies.size(), 1u) << query;
        EXPECT_EQ(replies.back().type, REP_ACK) << query;
    }
    EXPECT_EQ(c.OptionType(OPT_LIST_META, MetaData("nodisk", {})), REP_ERR_UNKNOWN);
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, SetMetaContextNeedsStructuredReplies)
{
    NbdClient c(path());

    c.Greet();
    EXPECT_EQ(c.OptionType(OPT_SET_META, MetaData("disk", { "base:allocation" })), REP_ERR_INVALID);
    c.Structured();
    c.SelectAllocation("disk");
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, SetMetaContextSelectsWhatWasAskedFor)
{
    NbdClient c(path());

    c.Greet().Structured();
    for (const std::vector<std::string> &queries : std::vector<std::vector<std::string>>{
             {}, { "base:" }, { "x-none:y" }, { "base:other" } }) {
        std::vector<NbdOptReply> replies = c.Option(OPT_SET_META, MetaData("disk", queries));
        EXPECT_EQ(replies.size(), 1u);
        EXPECT_EQ(replies.back().type, REP_ACK);
    }
    std::vector<NbdOptReply> replies = c.Option(
        OPT_SET_META, MetaData("disk", { "x-none:y", "base:allocation", "base:allocation" }));
    EXPECT_EQ(replies.size(), 2u) << "selected once";
    EXPECT_EQ(c.OptionType(OPT_SET_META, MetaData("nodisk", { "base:allocation" })),
              REP_ERR_UNKNOWN);
    ExpectGoWorks(c);
}

/* Block status works with a context that the last option selected for this export, and else not. */
TEST_P(NbdHandshake, ASelectionHoldsForItsExportUntilTheNextOne)
{
    struct {
        const char *what;
        std::function<void(NbdClient &)> select;
        bool works;
    } const cases[] = {
        { "nothing", [](NbdClient &) {}, false },
        { "selected", [](NbdClient &c) { c.SelectAllocation("disk"); }, true },
        { "selected twice",
          [](NbdClient &c) { c.SelectAllocation("odd"), c.SelectAllocation("disk"); }, true },
        { "for another export", [](NbdClient &c) { c.SelectAllocation("odd"); }, false },
        { "replaced by none",
          [](NbdClient &c) {
              c.SelectAllocation("disk");
              c.Option(OPT_SET_META, MetaData("disk", {}));
          },
          false },
        { "lost by an option that failed",
          [](NbdClient &c) {
              c.SelectAllocation("disk");
              c.Option(OPT_SET_META, MetaData("nodisk", { "base:allocation" }));
          },
          false },
        { "listed only",
          [](NbdClient &c) { c.Option(OPT_LIST_META, MetaData("disk", { "base:allocation" })); },
          false },
    };

    for (const auto &t : cases) {
        NbdClient c(path());

        c.Greet().Structured();
        t.select(c);
        c.Go("disk");
        NbdReply r = c.Request(CMD_BLOCK_STATUS, 0, 65536);
        EXPECT_EQ(r.error, t.works ? OK : E_INVAL) << t.what;
        EXPECT_TRUE(c.Alive(0, Pattern(0, 512, kDiskSeed))) << t.what;
    }
}

/* ---- Lengths that do not fit ----------------------------------------------------------------- */

/* Data that cannot be right, and the option that it is for. */
std::vector<std::pair<uint32_t, std::string>> BrokenOptions()
{
    std::vector<std::pair<uint32_t, std::string>> list;
    std::string info = InfoData("disk", { INFO_BLOCK_SIZE });
    std::string meta = MetaData("disk", { "base:allocation" });

    for (uint32_t option : { OPT_INFO, OPT_GO }) {
        for (size_t n = 0; n < info.size(); n++) {
            list.push_back({ option, info.substr(0, n) });
        }
        list.push_back({ option, info + "x" });
        list.push_back({ option, Be32(0xffffffff) + "disk" + Be16(0) });
        list.push_back({ option, Be32(5) + "disk" + Be16(0) });
        list.push_back({ option, Counted("disk") + Be16(0xffff) + Be16(3) });
    }
    for (uint32_t option : { OPT_LIST_META, OPT_SET_META }) {
        for (size_t n = 0; n < meta.size(); n++) {
            list.push_back({ option, meta.substr(0, n) });
        }
        list.push_back({ option, meta + "x" });
        list.push_back({ option, Be32(0xffffffff) + "disk" + Be32(0) });
        list.push_back({ option, Counted("disk") + Be32(0xffffffff) + Counted("base:allocation") });
        list.push_back({ option, Counted("disk") + Be32(1) + Be32(0xfffffff0) + "base:" });
    }
    return list;
}

TEST_P(NbdHandshake, LengthsThatDoNotFitAreInvalidAndTheNextOptionWorks)
{
    NbdClient c(path());

    c.Greet().Structured();
    for (const auto &[option, data] : BrokenOptions()) {
        ASSERT_EQ(c.OptionType(option, data), REP_ERR_INVALID)
            << "option " << option << " with " << testing::PrintToString(data);
    }
    ExpectGoWorks(c);
}

TEST_P(NbdHandshake, NamesThatAreTooLongAreRefused)
{
    std::string name(4097, 'n');

    for (uint32_t option : { OPT_INFO, OPT_GO }) {
        NbdClient c(path());
        uint32_t type = c.Greet().OptionType(option, InfoData(name));
        EXPECT_TRUE(type == REP_ERR_INVALID || type == REP_ERR_TOO_BIG || type == REP_ERR_UNKNOWN)
            << type;
        ExpectGoWorks(c);
    }
    NbdClient c(path());
    c.Greet();
    c.SendOption(OPT_EXPORT_NAME, name);
    EXPECT_TRUE(c.Closed());
}

/* Who announces more than anyone needs is answered or dropped, but nothing is kept for it. */
TEST_P(NbdHandshake, HugeLengthsCostNothing)
{
    for (uint32_t option : { 1u, 2u, 3u, 5u, 6u, 7u, 8u, 9u, 10u, 99u }) {
        NbdClient c(path());

        c.Greet();
        c.Send(Be64(kOptionMagic) + Be32(option) + Be32(0xffffffff) + "a part of it");
        NbdClient other(path());
        other.Greet();
        ExpectGoWorks(other);
    }
    /* Long, and sent in full: an error or a drop. */
    for (uint32_t option : { 3u, 6u, 7u, 8u, 9u, 10u }) {
        NbdClient c(path());
        std::string data = Be32(4) + "disk" + std::string(2 * kMiB, '\0');

        c.Greet().TrySend(OptionBytes(option, data) + OptionBytes(OPT_ABORT, ""));
        EXPECT_TRUE(c.DrainUntilClosed()) << option;
    }
}

TEST_P(NbdHandshake, StartTlsWithoutCertificatesIsRefusedAndNoEnd)
{
    NbdClient c(path());

    c.Greet();
    uint32_t type = c.OptionType(OPT_STARTTLS);
    EXPECT_TRUE(type == REP_ERR_UNSUP || type == REP_ERR_POLICY || type == REP_ERR_PLATFORM)
        << type;
    type = c.OptionType(OPT_STARTTLS, "data");
    EXPECT_TRUE(type & 0x80000000) << type;
    ExpectGoWorks(c);
}

/* ---- How the bytes come ---------------------------------------------------------------------- */

std::string WholeHandshake()
{
    return Be32(3) + OptionBytes(OPT_STRUCTURED_REPLY, "") +
           OptionBytes(OPT_SET_META, MetaData("disk", { "base:allocation" })) +
           OptionBytes(OPT_GO, InfoData("disk"));
}

/* The replies of the handshake above, and of the read behind it. */
void ExpectItsReplies(NbdClient &c)
{
    c.RecvGreeting();
    EXPECT_EQ(c.RecvOptReply(OPT_STRUCTURED_REPLY).type, REP_ACK);
    EXPECT_EQ(c.RecvOptReply(OPT_SET_META).type, REP_META);
    EXPECT_EQ(c.RecvOptReply(OPT_SET_META).type, REP_ACK);
    uint32_t type;
    while ((type = c.RecvOptReply(OPT_GO).type) == REP_INFO) {
    }
    EXPECT_EQ(type, REP_ACK);
    EXPECT_EQ(c.Recv(4), Be32(0x668e33ef));
}

TEST_P(NbdHandshake, AllOfItMayComeAtOnceAndARequestBehindIt)
{
    NbdClient c(path());

    c.Send(WholeHandshake() + RequestBytes(CMD_READ, 0, 1, 0, 512));
    ExpectItsReplies(c);
}

TEST_P(NbdHandshake, ItMayComeByteByByte)
{
    NbdClient c(path());

    for (char byte : WholeHandshake() + RequestBytes(CMD_READ, 0, 1, 0, 512)) {
        c.Send(std::string(1, byte));
    }
    ExpectItsReplies(c);
}

/* Every place where a client may leave. */
TEST_P(NbdHandshake, ItMayEndAnywhere)
{
    std::string all = WholeHandshake() + RequestBytes(CMD_READ, 0, 1, 0, 512);

    for (size_t n = 0; n <= all.size(); n += kSanitized ? 5 : 1) {
        NbdClient c(path());
        c.Send(all.substr(0, n));
    }
    NbdClient c(path());
    c.Greet();
    ExpectGoWorks(c);
}

} // namespace
