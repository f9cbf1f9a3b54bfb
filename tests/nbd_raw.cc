/* SPDX-License-Identifier: MIT */
#include "nbd_raw.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <netinet/in.h>
#include <set>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

using namespace nbd;

/* ---- Bytes ----------------------------------------------------------------------------------- */

std::string Be16(uint16_t v)
{
    return { static_cast<char>(v >> 8), static_cast<char>(v) };
}

std::string Be32(uint32_t v)
{
    return Be16(static_cast<uint16_t>(v >> 16)) + Be16(static_cast<uint16_t>(v));
}

std::string Be64(uint64_t v)
{
    return Be32(static_cast<uint32_t>(v >> 32)) + Be32(static_cast<uint32_t>(v));
}

std::string Counted(const std::string &s)
{
    return Be32(static_cast<uint32_t>(s.size())) + s;
}

/* The number of @n bytes at @at; 0 when @s is shorter. */
static uint64_t Get(const std::string &s, size_t at, size_t n)
{
    uint64_t v = 0;

    if (at + n > s.size()) {
        return 0;
    }
    for (size_t i = at; i < at + n; i++) {
        v = v << 8 | static_cast<uint8_t>(s[i]);
    }
    return v;
}

static uint16_t Get16(const std::string &s, size_t at)
{
    return static_cast<uint16_t>(Get(s, at, 2));
}

static uint32_t Get32(const std::string &s, size_t at)
{
    return static_cast<uint32_t>(Get(s, at, 4));
}

static uint64_t Get64(const std::string &s, size_t at)
{
    return Get(s, at, 8);
}

std::string InfoData(const std::string &name, const std::vector<uint16_t> &requests)
{
    std::string data = Counted(name) + Be16(static_cast<uint16_t>(requests.size()));

    for (uint16_t r : requests) {
        data += Be16(r);
    }
    return data;
}

std::string MetaData(const std::string &name, const std::vector<std::string> &queries)
{
    std::string data = Counted(name) + Be32(static_cast<uint32_t>(queries.size()));

    for (const std::string &q : queries) {
        data += Counted(q);
    }
    return data;
}

std::string OptionBytes(uint32_t option, const std::string &data)
{
    return Be64(kOptionMagic) + Be32(option) + Counted(data);
}

std::string RequestBytes(uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                         uint32_t length)
{
    return Be32(kRequestMagic) + Be16(flags) + Be16(type) + Be64(cookie) + Be64(offset) +
           Be32(length);
}

/* Eight bytes, of which none is zero, so that a hole is no data. */
static uint64_t PatternWord(uint64_t index, uint32_t seed)
{
    uint64_t x = (index + 1) * 0x9e3779b97f4a7c15u + seed * 0xd6e8feb86659fd93u;

    return (x ^ x >> 32) | 0x0101010101010101u;
}

std::string Pattern(uint64_t offset, size_t n, uint32_t seed)
{
    size_t skip = offset % 8;
    std::string s((skip + n + 7) / 8 * 8, '\0');

    for (size_t i = 0; i < s.size(); i += 8) {
        uint64_t word = PatternWord((offset + i) / 8, seed);
        memcpy(&s[i], &word, 8);
    }
    return s.substr(skip, n);
}

testing::AssertionResult Same(const std::string &got, const std::string &expect)
{
    if (got == expect) {
        return testing::AssertionSuccess();
    }
    if (got.size() != expect.size()) {
        return testing::AssertionFailure() << got.size() << " bytes, not " << expect.size();
    }
    auto [a, b] = std::mismatch(got.begin(), got.end(), expect.begin());
    return testing::AssertionFailure()
           << "byte " << a - got.begin() << " is " << (*a & 0xff) << ", not " << (*b & 0xff);
}

/* ---- The connection -------------------------------------------------------------------------- */

static void SetLimits(int fd)
{
    struct timeval tv = { 40, 0 };

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
}

int NbdClient::ConnectUnix(const std::string &path)
{
    struct sockaddr_un addr = {};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sun_family = AF_UNIX;
    strncpy(addr.sun_path, path.c_str(), sizeof(addr.sun_path) - 1);
    if (connect(fd, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)) != 0) {
        int err = errno;

        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

int NbdClient::ConnectTcp(int port)
{
    struct sockaddr_in addr = {};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sin_family = AF_INET;
    addr.sin_port = htons(static_cast<uint16_t>(port));
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, reinterpret_cast<struct sockaddr *>(&addr), sizeof(addr)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

NbdClient::NbdClient(const std::string &unix_path) : NbdClient(ConnectUnix(unix_path))
{
}

NbdClient::NbdClient(int connected_fd) : fd_(connected_fd)
{
    if (fd_ < 0) {
        Break(std::string("cannot connect: ") + strerror(errno));
        return;
    }
    SetLimits(fd_);
}

NbdClient::~NbdClient()
{
    Close();
}

void NbdClient::Close()
{
    if (fd_ >= 0) {
        close(fd_);
    }
    fd_ = -1;
}

void NbdClient::Break(const std::string &why)
{
    if (!broken_ && !quiet_) {
        ADD_FAILURE() << "NBD connection: " << why;
    }
    broken_ = true;
}

bool NbdClient::TrySend(const std::string &bytes)
{
    size_t done = 0;

    while (fd_ >= 0 && done < bytes.size()) {
        ssize_t n = send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);

        if (n > 0) {
            done += static_cast<size_t>(n);
        } else if (errno != EINTR) {
            return false;
        }
    }
    return done == bytes.size();
}

void NbdClient::Send(const std::string &bytes)
{
    if (!broken_ && !TrySend(bytes)) {
        Break(std::string("cannot send: ") + strerror(errno));
    }
}

std::string NbdClient::Recv(size_t n)
{
    std::string bytes(n, '\0');
    size_t got = 0;

    while (!broken_ && got < n) {
        ssize_t r = recv(fd_, &bytes[got], n - got, 0);

        if (r > 0) {
            got += static_cast<size_t>(r);
        } else if (r == 0) {
            Break("the server closed it after " + std::to_string(got) + " of " + std::to_string(n) +
                  " bytes");
        } else if (errno != EINTR) {
            Break(std::string("no answer: ") + strerror(errno));
        }
    }
    return bytes;
}

testing::AssertionResult NbdClient::Closed()
{
    if (broken_) {
        return testing::AssertionFailure() << "the connection had failed before";
    }
    for (;;) {
        char byte;
        ssize_t n = recv(fd_, &byte, 1, 0);

        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            return testing::AssertionSuccess();
        }
        if (n > 0) {
            return testing::AssertionFailure() << "the server sent something instead of closing";
        }
        if (errno != EINTR) {
            return testing::AssertionFailure() << "the server did not close: " << strerror(errno);
        }
    }
}

bool NbdClient::DrainUntilClosed()
{
    std::string buf(65536, '\0');

    for (;;) {
        ssize_t n = recv(fd_, &buf[0], buf.size(), 0);

        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            return true;
        }
        if (n < 0 && errno != EINTR) {
            return false;
        }
    }
}

/* ---- The handshake --------------------------------------------------------------------------- */

uint16_t NbdClient::RecvGreeting()
{
    std::string s = Recv(18);

    if (!broken_) {
        EXPECT_EQ(s.substr(0, 16), "NBDMAGICIHAVEOPT");
    }
    return Get16(s, 16);
}

NbdClient &NbdClient::Greet(uint32_t client_flags)
{
    RecvGreeting();
    Send(Be32(client_flags));
    return *this;
}

void NbdClient::SendOption(uint32_t option, const std::string &data)
{
    Send(OptionBytes(option, data));
}

NbdOptReply NbdClient::RecvOptReply(uint32_t option)
{
    std::string head = Recv(20);

    if (broken_) {
        return { 0, "" };
    }
    EXPECT_EQ(Get64(head, 0), 0x3e889045565a9u);
    EXPECT_EQ(Get32(head, 8), option) << "a reply to another option";
    uint32_t type = Get32(head, 12), length = Get32(head, 16);
    if (length > 65536) {
        Break("an option's reply of " + std::to_string(length) + " bytes");
        return { 0, "" };
    }
    NbdOptReply reply{ type, Recv(length) };
    if (type == REP_ACK) {
        EXPECT_EQ(length, 0u) << "an ACK has no data";
    } else if (type & 0x80000000) {
        EXPECT_LE(length, 4096u) << "a message for people is no longer than that";
    }
    return reply;
}

std::vector<NbdOptReply> NbdClient::Option(uint32_t option, const std::string &data)
{
    std::vector<NbdOptReply> replies;

    SendOption(option, data);
    do {
        replies.push_back(RecvOptReply(option));
    } while (!broken_ && replies.back().type != REP_ACK && !(replies.back().type & 0x80000000));
    return replies;
}

uint32_t NbdClient::OptionType(uint32_t option, const std::string &data)
{
    return Option(option, data).back().type;
}

static void TakeInfo(const NbdOptReply &r, NbdInfo *info)
{
    EXPECT_EQ(r.type, REP_INFO);
    EXPECT_GE(r.data.size(), 2u);
    uint16_t what = Get16(r.data, 0);
    EXPECT_EQ(info->items.count(what), 0u) << "information " << what << " came twice";
    info->items[what] = r.data.substr(2);
    if (what == INFO_EXPORT) {
        EXPECT_EQ(r.data.size(), 12u);
        info->size = Get64(r.data, 2);
        info->flags = Get16(r.data, 10);
    } else if (what == INFO_BLOCK_SIZE) {
        EXPECT_EQ(r.data.size(), 14u);
        info->has_block_size = true;
        info->min = Get32(r.data, 2);
        info->preferred = Get32(r.data, 6);
        info->max = Get32(r.data, 10);
    }
}

NbdInfo NbdClient::Info(const std::string &name, const std::vector<uint16_t> &requests,
                        uint32_t option)
{
    NbdInfo info;
    std::vector<NbdOptReply> replies = Option(option, InfoData(name, requests));

    if (broken_) {
        info.error = UINT32_MAX;
        return info;
    }
    for (size_t i = 0; i + 1 < replies.size(); i++) {
        TakeInfo(replies[i], &info);
    }
    if (replies.back().type != REP_ACK) {
        info.error = replies.back().type;
    } else {
        EXPECT_EQ(info.items.count(INFO_EXPORT), 1u);
        EXPECT_TRUE(info.flags & HAS_FLAGS);
    }
    return info;
}

NbdClient &NbdClient::Structured()
{
    uint32_t type = OptionType(OPT_STRUCTURED_REPLY);

    if (!broken_) {
        EXPECT_EQ(type, REP_ACK);
        structured_ = true;
    }
    return *this;
}

uint32_t NbdClient::SelectAllocation(const std::string &name)
{
    std::vector<NbdOptReply> replies = Option(OPT_SET_META, MetaData(name, { "base:allocation" }));

    if (broken_ || replies.size() != 2 || replies[0].type != REP_META) {
        Break("base:allocation was not selected");
        return 0;
    }
    EXPECT_EQ(replies[1].type, REP_ACK);
    EXPECT_EQ(replies[0].data.substr(4), "base:allocation");
    return Get32(replies[0].data, 0);
}

NbdInfo NbdClient::Go(const std::string &name)
{
    NbdInfo info = Info(name, { INFO_BLOCK_SIZE }, OPT_GO);

    if (!broken_) {
        EXPECT_EQ(info.error, 0u) << "export " << name;
    }
    return info;
}

NbdSession::NbdSession(const std::string &unix_path, const std::string &name, Mode mode)
{
    WaitUntil([&] {
        client = std::make_unique<NbdClient>(unix_path);
        client->SetQuiet(mode == PATIENT);
        client->Greet();
        if (mode != SIMPLE) {
            client->Structured();
            context = client->SelectAllocation(name);
        }
        info = client->Go(name);
        return mode != PATIENT || !client->broken();
    });
    client->SetQuiet(false);
}

/* ---- Transmission ---------------------------------------------------------------------------- */

uint64_t NbdClient::SendRequest(uint16_t type, uint64_t offset, uint32_t length, uint16_t flags,
                                const std::string &payload)
{
    uint64_t cookie = next_cookie_;
    Pending p = {};

    next_cookie_ += 0x1000001;
    p.type = type;
    p.flags = flags;
    p.offset = offset;
    p.length = length;
    p.reply.cookie = cookie;
    if (type != CMD_DISC) {
        pending_[cookie] = p;
    }
    Send(RequestBytes(type, flags, cookie, offset, length) + payload);
    return cookie;
}

NbdClient::Pending *NbdClient::FindPending(uint64_t cookie)
{
    auto it = pending_.find(cookie);

    if (it == pending_.end()) {
        Break("a reply to no request, or a second one");
        return nullptr;
    }
    return &it->second;
}

static void ExpectWireError(uint32_t error)
{
    static const std::set<uint32_t> known = { E_PERM,  E_IO,       E_NOMEM,  E_INVAL,
                                              E_NOSPC, E_OVERFLOW, E_NOTSUP, E_SHUTDOWN };

    EXPECT_EQ(known.count(error), 1u) << error << " is no error of the protocol";
}

/* Hands the reply over that has come to its end. */
void NbdClient::Finish(uint64_t cookie, NbdReply *ret_reply)
{
    Pending &p = pending_[cookie];

    if (p.type == CMD_READ && p.reply.error == 0) {
        EXPECT_EQ(p.covered, p.length) << "a read that succeeded tells of every byte";
    } else if (p.type == CMD_BLOCK_STATUS && p.reply.error == 0) {
        EXPECT_EQ(p.reply.status.size(), 1u) << "one list for each context that was selected";
    }
    *ret_reply = std::move(p.reply);
    ret_reply->came = true;
    pending_.erase(cookie);
}

void NbdClient::RecvSimple(NbdReply *ret_reply)
{
    std::string head = Recv(12);
    uint64_t cookie = Get64(head, 4);
    Pending *p = broken_ ? nullptr : FindPending(cookie);

    if (!p) {
        return;
    }
    p->reply.error = Get32(head, 0);
    if (p->reply.error) {
        ExpectWireError(p->reply.error);
    }
    EXPECT_FALSE(structured_ && p->type == CMD_READ) << "a simple reply to a read";
    EXPECT_FALSE(p->type == CMD_BLOCK_STATUS && !p->reply.error) << "a simple block status";
    if (p->type == CMD_READ && !p->reply.error) {
        p->reply.data = Recv(p->length);
        p->covered = p->length;
    }
    if (!broken_) {
        Finish(cookie, ret_reply);
    }
}

void NbdClient::CheckData(Pending *p, uint16_t type, const std::string &payload)
{
    bool hole = type == CHUNK_HOLE;
    uint64_t offset = Get64(payload, 0), length = hole ? Get32(payload, 8) : payload.size() - 8;

    EXPECT_EQ(p->type, CMD_READ) << "content for what is no read";
    EXPECT_TRUE(hole ? payload.size() == 12 : payload.size() > 8) << payload.size();
    EXPECT_GT(length, 0u);
    if (offset < p->offset || length > p->length || offset - p->offset > p->length - length) {
        Break("content outside of the read");
        return;
    }
    for (const NbdChunk &c : p->reply.chunks) {
        EXPECT_TRUE(offset + length <= c.offset || c.offset + c.length <= offset)
            << "content overlaps";
    }
    p->reply.chunks.push_back({ type, offset, length });
    EXPECT_FALSE((p->flags & DF) && p->reply.chunks.size() > 1) << "a read with DF in two chunks";
    p->covered += length;
    p->reply.data.resize(p->length);
    if (!hole) {
        p->reply.data.replace(offset - p->offset, length, payload, 8, length);
    }
}

void NbdClient::CheckStatus(Pending *p, const std::string &payload)
{
    uint64_t sum = 0;

    EXPECT_EQ(p->type, CMD_BLOCK_STATUS);
    EXPECT_TRUE(payload.size() >= 12 && payload.size() % 8 == 4) << payload.size();
    std::vector<NbdExtent> &extents = p->reply.status[Get32(payload, 0)];
    EXPECT_TRUE(extents.empty()) << "two lists for one context";
    for (size_t at = 4; at + 8 <= payload.size(); at += 8) {
        EXPECT_TRUE(at == 4 || sum < p->length) << "only the last extent may reach past the end";
        extents.push_back({ Get32(payload, at), Get32(payload, at + 4) });
        EXPECT_GT(extents.back().length, 0u);
        EXPECT_EQ(extents.back().flags & ~3u, 0u) << "reserved flags";
        sum += extents.back().length;
    }
    if (p->flags & REQ_ONE) {
        EXPECT_EQ(extents.size(), 1u);
        EXPECT_LE(sum, p->length);
    }
}

void NbdClient::CheckError(Pending *p, uint16_t type, const std::string &payload)
{
    size_t fixed = type == 0x8002 ? 14 : 6;

    EXPECT_TRUE(type == 0x8001 || type == 0x8002) << type;
    EXPECT_GE(payload.size(), fixed);
    p->reply.error = Get32(payload, 0);
    size_t message = Get16(payload, 4);
    EXPECT_EQ(payload.size(), fixed + message);
    p->reply.message = payload.substr(6, message);
    ExpectWireError(p->reply.error);
}

/* Returns whether the chunk was its reply's last. */
bool NbdClient::RecvChunk(NbdReply *ret_reply)
{
    std::string head = Recv(16);
    uint16_t flags = Get16(head, 0), type = Get16(head, 2);
    uint64_t cookie = Get64(head, 4);
    uint32_t length = Get32(head, 12);
    Pending *p = broken_ ? nullptr : FindPending(cookie);

    if (!p) {
        return false;
    }
    EXPECT_TRUE(structured_) << "a structured reply that was not agreed on";
    EXPECT_EQ(flags & ~1, 0);
    p->reply.structured = true;
    uint64_t most = p->type == CMD_READ ? UINT64_C(65536) + p->length : UINT64_C(1) << 24;
    if (length > most) {
        Break("a chunk of " + std::to_string(length) + " bytes");
        return false;
    }
    std::string payload = Recv(length);
    if (broken_) {
        return false;
    }
    if (type == CHUNK_NONE) {
        EXPECT_EQ(length, 0u);
        EXPECT_TRUE(flags & 1) << "a chunk without content is the last";
    } else if (type == CHUNK_DATA || type == CHUNK_HOLE) {
        CheckData(p, type, payload);
    } else if (type == CHUNK_STATUS) {
        CheckStatus(p, payload);
    } else if (type & 0x8000) {
        CheckError(p, type, payload);
    } else {
        Break("a chunk of type " + std::to_string(type));
    }
    if (broken_ || !(flags & 1)) {
        return false;
    }
    Finish(cookie, ret_reply);
    return true;
}

NbdReply NbdClient::RecvReply()
{
    NbdReply reply;

    while (!broken_ && !reply.came) {
        uint32_t magic = Get32(Recv(4), 0);

        if (broken_) {
            break;
        }
        if (magic == 0x67446698) {
            RecvSimple(&reply);
        } else if (magic == 0x668e33ef) {
            RecvChunk(&reply);
        } else {
            Break("no reply's magic number: " + std::to_string(magic));
        }
    }
    return reply;
}

NbdReply NbdClient::Request(uint16_t type, uint64_t offset, uint32_t length, uint16_t flags,
                            const std::string &payload)
{
    uint64_t cookie = SendRequest(type, offset, length, flags, payload);
    NbdReply reply = RecvReply();

    if (reply.came) {
        EXPECT_EQ(reply.cookie, cookie);
    } else {
        reply.error = UINT32_MAX;
    }
    return reply;
}

NbdReply NbdClient::Read(uint64_t offset, uint32_t length, uint16_t flags)
{
    return Request(CMD_READ, offset, length, flags);
}

NbdReply NbdClient::Write(uint64_t offset, const std::string &data, uint16_t flags)
{
    return Request(CMD_WRITE, offset, static_cast<uint32_t>(data.size()), flags, data);
}

uint32_t NbdClient::Flush()
{
    return Request(CMD_FLUSH, 0, 0).error;
}

testing::AssertionResult NbdClient::Alive(uint64_t offset, const std::string &expect)
{
    NbdReply r = Read(offset, static_cast<uint32_t>(expect.size()));

    if (!r.came || r.error != 0) {
        return testing::AssertionFailure() << "a read ended with error " << r.error;
    }
    return Same(r.data, expect);
}
