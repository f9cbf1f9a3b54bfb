/* SPDX-License-Identifier: MIT */
/*
 * A client of the NBD protocol that sends whatever a test wants sent, and the program aioctx-nbd as
 * a fixture.  What the client reads it checks against the protocol document: a server that breaks a
 * rule fails the test, whatever the test is about.
 */
#ifndef TESTS_NBD_RAW_H
#define TESTS_NBD_RAW_H

#include "command.h"
#include "support.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <sys/types.h>
#include <utility>
#include <vector>

namespace nbd
{

/* Options of the handshake. */
enum : uint32_t {
    OPT_EXPORT_NAME = 1,
    OPT_ABORT = 2,
    OPT_LIST = 3,
    OPT_STARTTLS = 5,
    OPT_INFO = 6,
    OPT_GO = 7,
    OPT_STRUCTURED_REPLY = 8,
    OPT_LIST_META = 9,
    OPT_SET_META = 10,
};

/* Replies to them. */
enum : uint32_t {
    REP_ACK = 1,
    REP_SERVER = 2,
    REP_INFO = 3,
    REP_META = 4,
    REP_ERR_UNSUP = 0x80000001,
    REP_ERR_POLICY = 0x80000002,
    REP_ERR_INVALID = 0x80000003,
    REP_ERR_PLATFORM = 0x80000004,
    REP_ERR_UNKNOWN = 0x80000006,
    REP_ERR_TOO_BIG = 0x80000009,
};

enum : uint16_t { INFO_EXPORT = 0, INFO_NAME = 1, INFO_DESCRIPTION = 2, INFO_BLOCK_SIZE = 3 };

/* What an export can do. */
enum : uint16_t {
    HAS_FLAGS = 1 << 0,
    READ_ONLY = 1 << 1,
    SEND_FLUSH = 1 << 2,
    SEND_FUA = 1 << 3,
    SEND_TRIM = 1 << 5,
    SEND_WRITE_ZEROES = 1 << 6,
    SEND_DF = 1 << 7,
    CAN_MULTI_CONN = 1 << 8,
    SEND_CACHE = 1 << 10,
    SEND_FAST_ZERO = 1 << 11,
};

enum : uint16_t {
    CMD_READ = 0,
    CMD_WRITE = 1,
    CMD_DISC = 2,
    CMD_FLUSH = 3,
    CMD_TRIM = 4,
    CMD_CACHE = 5,
    CMD_WRITE_ZEROES = 6,
    CMD_BLOCK_STATUS = 7,
};

enum : uint16_t {
    FUA = 1 << 0,
    NO_HOLE = 1 << 1,
    DF = 1 << 2,
    REQ_ONE = 1 << 3,
    FAST_ZERO = 1 << 4
};

enum : uint16_t { CHUNK_NONE = 0, CHUNK_DATA = 1, CHUNK_HOLE = 2, CHUNK_STATUS = 5 };

enum : uint32_t { STATE_HOLE = 1, STATE_ZERO = 2 };

/* The errors of the wire; the only ones. */
enum : uint32_t {
    OK = 0,
    E_PERM = 1,
    E_IO = 5,
    E_NOMEM = 12,
    E_INVAL = 22,
    E_NOSPC = 28,
    E_OVERFLOW = 75,
    E_NOTSUP = 95,
    E_SHUTDOWN = 108,
};

constexpr uint64_t kOptionMagic = 0x49484156454f5054;
constexpr uint32_t kRequestMagic = 0x25609513;

} // namespace nbd

/* Numbers in the order of the wire. */
std::string Be16(uint16_t v);
std::string Be32(uint32_t v);
std::string Be64(uint64_t v);
/* A string behind its length. */
std::string Counted(const std::string &s);

/* The data of INFO and GO. */
std::string InfoData(const std::string &name, const std::vector<uint16_t> &requests = {});
/* The data of LIST_META and SET_META. */
std::string MetaData(const std::string &name, const std::vector<std::string> &queries);
/* An option as it is sent. */
std::string OptionBytes(uint32_t option, const std::string &data);
/* A request's header. */
std::string RequestBytes(uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                         uint32_t length);

/* What a patterned disk holds; no byte of it is zero. */
std::string Pattern(uint64_t offset, size_t n, uint32_t seed = 0);

/* Whether two strings of bytes are the same; names the first place where they are not. */
testing::AssertionResult Same(const std::string &got, const std::string &expect);

struct NbdOptReply {
    uint32_t type;
    std::string data;
};

/* What INFO, GO or EXPORT_NAME told. */
struct NbdInfo {
    uint32_t error = 0; /* the reply's type when that is an error */
    uint64_t size = 0;
    uint16_t flags = 0;
    bool has_block_size = false;
    uint32_t min = 0, preferred = 0, max = 0;
    std::map<uint16_t, std::string> items; /* all that came, by type */
};

struct NbdChunk {
    uint16_t type;
    uint64_t offset;
    uint64_t length;
};

struct NbdExtent {
    uint64_t length;
    uint32_t flags;
};

/* A whole reply. */
struct NbdReply {
    bool came = false; /* false: the connection ended first, which has failed the test */
    bool structured = false;
    uint64_t cookie = 0;
    uint32_t error = 0;
    std::string message;
    std::string data;             /* of a read that succeeded: all of it, holes as zeroes */
    std::vector<NbdChunk> chunks; /* the content chunks, as they came */
    std::map<uint32_t, std::vector<NbdExtent>> status; /* by the context's number */
};

/* One connection.  Whatever goes wrong with it fails the test once; what follows does nothing. */
class NbdClient
{
public:
    explicit NbdClient(const std::string &unix_path);
    explicit NbdClient(int connected_fd); /* takes it */
    /* A connected socket, or -1 and errno; TCP is to 127.0.0.1. */
    static int ConnectUnix(const std::string &path);
    static int ConnectTcp(int port);
    ~NbdClient();
    NbdClient(const NbdClient &) = delete;
    NbdClient &operator=(const NbdClient &) = delete;

    int fd() const
    {
        return fd_;
    }
    bool broken() const
    {
        return broken_;
    }
    void Close();
    /* From here on an end of the connection fails no test; broken() tells. */
    void SetQuiet(bool quiet)
    {
        quiet_ = quiet;
    }

    /* Bytes.  Failures are the test's, but for TrySend()'s. */
    bool TrySend(const std::string &bytes);
    void Send(const std::string &bytes);
    std::string Recv(size_t n);
    /* Whether the server has closed the connection, with nothing sent before; it waits for that. */
    testing::AssertionResult Closed();
    /* Reads until the server closes; false when it does not within the limit. */
    bool DrainUntilClosed();

    /* The handshake, step by step. */
    uint16_t RecvGreeting(); /* returns the handshake flags */
    NbdClient &Greet(uint32_t client_flags = 3);
    void SendOption(uint32_t option, const std::string &data = "");
    NbdOptReply RecvOptReply(uint32_t option);
    /* Sends an option and reads its replies; the last is the final one. */
    std::vector<NbdOptReply> Option(uint32_t option, const std::string &data = "");
    /* The type of the final reply alone. */
    uint32_t OptionType(uint32_t option, const std::string &data = "");
    NbdInfo Info(const std::string &name, const std::vector<uint16_t> &requests = {},
                 uint32_t option = nbd::OPT_INFO);
    /* Structured replies from here on; must work. */
    NbdClient &Structured();
    /* Selects base:allocation; returns its number. */
    uint32_t SelectAllocation(const std::string &name);
    /* Enters transmission; must work. */
    NbdInfo Go(const std::string &name);

    /* Transmission. */
    uint64_t SendRequest(uint16_t type, uint64_t offset, uint32_t length, uint16_t flags = 0,
                         const std::string &payload = "");
    NbdReply RecvReply(); /* the next one that is whole */
    NbdReply Request(uint16_t type, uint64_t offset, uint32_t length, uint16_t flags = 0,
                     const std::string &payload = "");
    NbdReply Read(uint64_t offset, uint32_t length, uint16_t flags = 0);
    NbdReply Write(uint64_t offset, const std::string &data, uint16_t flags = 0);
    uint32_t Flush();
    /* That the connection still works: a read of @length bytes that must give @expect. */
    testing::AssertionResult Alive(uint64_t offset, const std::string &expect);
    size_t InFlight() const
    {
        return pending_.size();
    }

private:
    struct Pending {
        uint16_t type, flags;
        uint64_t offset;
        uint32_t length;
        NbdReply reply;
        uint64_t covered = 0; /* bytes of a read that have come */
        bool error_seen = false;
    };
    using PendingMap = std::map<uint64_t, Pending>;

    void Break(const std::string &why);
    void RecvSimple(NbdReply *ret_reply);
    bool RecvChunk(NbdReply *ret_reply);
    void CheckData(Pending *p, uint16_t type, const std::string &payload);
    void CheckStatus(Pending *p, const std::string &payload);
    void CheckError(Pending *p, uint16_t type, const std::string &payload);
    Pending *FindPending(uint64_t cookie);
    void Finish(uint64_t cookie, NbdReply *ret_reply);

    int fd_ = -1;
    bool broken_ = false, quiet_ = false;
    bool structured_ = false;
    uint64_t next_cookie_ = 0x0123456789abcdef;
    PendingMap pending_;
};

/*
 * A connection in transmission: greeting, structured replies and allocation when asked for, GO.
 * PATIENT is STRUCTURED for servers with short limits: who was dropped, on a machine that is busy,
 * comes again.
 */
struct NbdSession {
    enum Mode { SIMPLE, STRUCTURED, PATIENT };
    NbdSession(const std::string &unix_path, const std::string &name, Mode mode = STRUCTURED);

    std::unique_ptr<NbdClient> client;
    uint32_t context = 0; /* number of base:allocation, when structured */
    NbdInfo info;
    NbdClient *operator->()
    {
        return client.get();
    }
};

/* The program, started with a socket of its own. */
class NbdServer
{
public:
    struct Start {
        std::vector<std::string> args;
        std::vector<std::string> prefix; /* a command to run it below */
        bool unix_socket = true;         /* adds --unix, and waits until that can be connected to */
        std::string path;                /* of the socket; empty: one of its own */
        int stdin_fd = -1;               /* becomes the standard input and output */
        int listen_fd = -1;              /* becomes fd 3, and LISTEN_FDS is set */
    };
    explicit NbdServer(const std::vector<std::string> &args);
    explicit NbdServer(const Start &start);
    ~NbdServer(); /* Stop(), unless it was called */
    NbdServer(const NbdServer &) = delete;
    NbdServer &operator=(const NbdServer &) = delete;

    const std::string &path() const
    {
        return path_;
    }
    pid_t pid() const
    {
        return pid_;
    }
    std::string Uri(const std::string &name) const; /* nbd+unix:///name?socket=... */
    std::string Log() const;
    size_t LogLines() const;
    bool Running();
    long RssKb() const;
    int Threads() const;
    int Fds() const;
    int TcpPort(); /* from the log; waits for it */
    /* SIGTERM; the program must end with status 0 and without a sanitizer's report. */
    void Stop(int signal = 15);
    /* Waits for the end, which someone else brought about; returns the exit status. */
    int Wait();
    /* Ends it on the spot, as a crash would. */
    void Kill();

private:
    void Spawn(const Start &start);
    void CheckLog() const;

    ScratchDir dir_;
    std::string path_;
    pid_t pid_ = -1;
};

#endif
