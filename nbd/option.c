/* SPDX-License-Identifier: MIT */
/* The options of the handshake: parsing each one's data, and the replies to it. */
#include <stdarg.h>
#include <stdio.h>

#include "nbd/handshake_int.h"
#include "nbd/server.h"

_Static_assert(NBD_OPTION_MAX >= 4 * NBD_STRING_MAX, "names and queries fit into an option");

/* An option's data while it is parsed. */
typedef struct Reader {
    const uint8_t *p;
    size_t left;
    bool bad; /* it was too short */
} Reader;

static uint32_t read_be32(Reader *r)
{
    uint32_t v = 0;

    if (r->left < 4) {
        r->bad = true;
        return 0;
    }
    v = get_be32(r->p);
    r->p += 4;
    r->left -= 4;
    return v;
}

static const uint8_t *read_bytes(Reader *r, size_t n)
{
    const uint8_t *p = r->p;

    if (r->bad || r->left < n) {
        r->bad = true;
        return p;
    }
    r->p += n;
    r->left -= n;
    return p;
}

/* ---- Replies --------------------------------------------------------------------------------- */

/* The header of a reply to the option; its data follows. */
static void put_reply(NbdHandshake *hs, uint32_t type, size_t bytes)
{
    uint8_t head[20], *p = head;

    p = put_be64(p, NBD_REPLY_MAGIC);
    p = put_be32(p, hs->option);
    p = put_be32(p, type);
    put_be32(p, (uint32_t)bytes);
    nbd_handshake_put(hs, head, sizeof(head));
}

static void put_ack(NbdHandshake *hs)
{
    put_reply(hs, NBD_REP_ACK, 0);
}

static __attribute__((format(printf, 3, 4))) void put_error(NbdHandshake *hs, uint32_t type,
                                                            const char *fmt, ...)
{
    char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    put_reply(hs, type, strlen(text));
    nbd_handshake_put(hs, text, strlen(text));
}

/* ---- Options --------------------------------------------------------------------------------- */

/* Puts an export's name into a message: short, and without what upsets a terminal. */
static const char *printable(const uint8_t *name, size_t bytes, char *buf, size_t size)
{
    size_t n = 0;

    while (n < bytes && n + 1 < size) {
        buf[n] = name[n] >= 0x20 && name[n] < 0x7f ? (char)name[n] : '?';
        n++;
    }
    buf[n] = '\0';
    return buf;
}

static void refuse_export(NbdHandshake *hs, const uint8_t *name, size_t bytes)
{
    char text[100];

    put_error(hs, NBD_REP_ERR_UNKNOWN, "there is no export '%s'",
              printable(name, bytes, text, sizeof(text)));
}

/* A name with its length before it. */
static const uint8_t *read_name(Reader *r, size_t *ret_bytes)
{
    *ret_bytes = read_be32(r);
    if (*ret_bytes > NBD_STRING_MAX) {
        r->bad = true;
    }
    return read_bytes(r, *ret_bytes);
}

static void choose(NbdConn *conn, const NbdExport *export)
{
    conn->export = export;
    conn->status = conn->handshake->status_export == export;
    conn->handshake->after = AFTER_SERVE;
}

static bool opt_export_name(NbdConn *conn, const uint8_t *data, size_t bytes)
{
    NbdHandshake *hs = conn->handshake;
    const NbdExport *export = nbd_exports_find(conn->server->opt.exports, data, bytes);
    uint8_t reply[10 + 124] = { 0 }, *p = reply;

    if (!export) {
        char text[100], why[160];

        /* This option knows no errors. */
        snprintf(why, sizeof(why), "it asked for an unknown export '%s'",
                 printable(data, bytes, text, sizeof(text)));
        return nbd_handshake_refuse(conn, why);
    }
    p = put_be64(p, export->size);
    put_be16(p, nbd_export_flags(export, conn->structured));
    nbd_handshake_put(hs, reply, hs->no_zeroes ? 10 : sizeof(reply));
    choose(conn, export);
    return true;
}

static void opt_list(NbdConn *conn)
{
    NbdHandshake *hs = conn->handshake;
    const NbdExports *exports = conn->server->opt.exports;

    for (size_t i = 0; i < exports->n; i++) {
        const NbdExport *export = exports->all[i];
        size_t description = strlen(export->description);
        uint8_t length[4];

        put_be32(length, (uint32_t) export->name_bytes);
        put_reply(hs, NBD_REP_SERVER, 4 + export->name_bytes + description);
        nbd_handshake_put(hs, length, 4);
        nbd_handshake_put(hs, export->name, export->name_bytes);
        nbd_handshake_put(hs, export->description, description);
    }
    put_ack(hs);
}

static void put_info(NbdConn *conn, const NbdExport *export, unsigned type)
{
    NbdHandshake *hs = conn->handshake;
    const char *text = type == NBD_INFO_NAME ? export->name : export->description;
    uint8_t data[14], *p = put_be16(data, (uint16_t)type);

    switch (type) {
    case NBD_INFO_EXPORT:
        p = put_be64(p, export->size);
        p = put_be16(p, nbd_export_flags(export, conn->structured));
        break;
    case NBD_INFO_BLOCK_SIZE:
        /* Anything goes, as the block layer aligns what has to be. */
        p = put_be32(p, 1);
        p = put_be32(p, export->preferred_block);
        p = put_be32(p, NBD_TRANSFER_MAX);
        break;
    default:
        put_reply(hs, NBD_REP_INFO, 2 + strlen(text));
        nbd_handshake_put(hs, data, 2);
        nbd_handshake_put(hs, text, strlen(text));
        return;
    }
    put_reply(hs, NBD_REP_INFO, (size_t)(p - data));
    nbd_handshake_put(hs, data, (size_t)(p - data));
}

/* The export that an option names, once all of the option was read; NULL, and the answer is given:
 * its lengths were wrong, or there is none. */
static const NbdExport *find_export(NbdConn *conn, const Reader *r, const uint8_t *name,
                                    size_t bytes)
{
    NbdHandshake *hs = conn->handshake;
    const NbdExport *export;

    if (r->bad || r->left > 0) {
        put_error(hs, NBD_REP_ERR_INVALID, "the lengths in the option do not fit");
        return NULL;
    }
    export = nbd_exports_find(conn->server->opt.exports, name, bytes);
    if (!export) {
        refuse_export(hs, name, bytes);
    }
    return export;
}

/* NBD_OPT_INFO and NBD_OPT_GO. */
static void opt_info(NbdConn *conn, Reader r)
{
    NbdHandshake *hs = conn->handshake;
    const NbdExport *export;
    const uint8_t *name, *types, *count;
    size_t bytes, n;
    bool wanted[NBD_INFO_BLOCK_SIZE + 1] = { false };

    name = read_name(&r, &bytes);
    count = read_bytes(&r, 2);
    n = r.bad ? 0 : get_be16(count);
    types = read_bytes(&r, 2 * n);
    export = find_export(conn, &r, name, bytes);
    if (!export) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned type = get_be16(types + 2 * i);

        if (type <= NBD_INFO_BLOCK_SIZE) {
            wanted[type] = true;
        }
    }
    wanted[NBD_INFO_EXPORT] = true;
    for (unsigned type = 0; type <= NBD_INFO_BLOCK_SIZE; type++) {
        if (wanted[type]) {
            put_info(conn, export, type);
        }
    }
    put_ack(hs);
    if (hs->option == NBD_OPT_GO) {
        choose(conn, export);
    }
}

static bool same(const uint8_t *text, size_t bytes, const char *name)
{
    return bytes == strlen(name) && memcmp(text, name, bytes) == 0;
}

/* NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
static void opt_meta(NbdConn *conn, Reader r)
{
    static const char context[] = "base:allocation";
    NbdHandshake *hs = conn->handshake;
    bool set = hs->option == NBD_OPT_SET_META_CONTEXT, found = false;
    const NbdExport *export;
    const uint8_t *name;
    size_t bytes;
    uint32_t n;

    if (set) {
        hs->status_export = NULL; /* whatever comes of this */
    }
    if (!conn->structured) {
        put_error(hs, NBD_REP_ERR_INVALID, "structured replies have to be agreed on first");
        return;
    }
    name = read_name(&r, &bytes);
    n = read_be32(&r);
    found = !set && n == 0;
    for (uint32_t i = 0; i < n && !r.bad; i++) {
        size_t query_bytes;
        const uint8_t *query = read_name(&r, &query_bytes);

        if (!r.bad) {
            found = found || same(query, query_bytes, context) ||
                    (!set && same(query, query_bytes, "base:"));
        }
    }
    export = find_export(conn, &r, name, bytes);
    if (!export) {
        return;
    }
    if (found) {
        uint8_t id[4];

        put_be32(id, set ? NBD_STATUS_CONTEXT_ID : 0);
        put_reply(hs, NBD_REP_META_CONTEXT, 4 + strlen(context));
        nbd_handshake_put(hs, id, 4);
        nbd_handshake_put(hs, context, strlen(context));
        hs->status_export = set ? export : hs->status_export;
    }
    put_ack(hs);
}

static void opt_starttls(NbdConn *conn, size_t bytes)
{
    NbdHandshake *hs = conn->handshake;

    if (bytes > 0) {
        put_error(hs, NBD_REP_ERR_INVALID, "the option has no data");
    } else if (conn->server->opt.tls_mode == NBD_TLS_OFF) {
        put_error(hs, NBD_REP_ERR_POLICY, "this server has no TLS");
    } else if (hs->tls) {
        put_error(hs, NBD_REP_ERR_INVALID, "TLS is running already");
    } else {
        put_ack(hs);
        hs->after = AFTER_TLS;
    }
}

static void opt_structured(NbdConn *conn, size_t bytes)
{
    if (bytes > 0) {
        put_error(conn->handshake, NBD_REP_ERR_INVALID, "the option has no data");
        return;
    }
    conn->structured = true;
    put_ack(conn->handshake);
}

/* Whether the option has to wait until TLS is running. */
static bool needs_tls(const NbdConn *conn)
{
    const NbdHandshake *hs = conn->handshake;

    return conn->server->opt.tls_mode == NBD_TLS_REQUIRE && !hs->tls &&
           hs->option != NBD_OPT_STARTTLS && hs->option != NBD_OPT_ABORT;
}

bool nbd_option(NbdConn *conn, const uint8_t *data, size_t bytes)
{
    NbdHandshake *hs = conn->handshake;
    Reader r = { .p = data, .left = bytes };

    if (!hs->fixed && hs->option != NBD_OPT_EXPORT_NAME) {
        return nbd_handshake_refuse(conn,
                                    "it sent an option without having agreed to fixed newstyle");
    }
    if (needs_tls(conn)) {
        if (hs->option == NBD_OPT_EXPORT_NAME) {
            return nbd_handshake_refuse(conn, "it asked for an export without TLS");
        }
        put_error(hs, NBD_REP_ERR_TLS_REQD, "this server wants TLS first");
        return true;
    }
    switch (hs->option) {
    case NBD_OPT_EXPORT_NAME:
        return opt_export_name(conn, data, bytes);
    case NBD_OPT_ABORT:
        put_ack(hs);
        hs->after = AFTER_CLOSE;
        break;
    case NBD_OPT_LIST:
        if (bytes > 0) {
            put_error(hs, NBD_REP_ERR_INVALID, "the option has no data");
        } else {
            opt_list(conn);
        }
        break;
    case NBD_OPT_STARTTLS:
        opt_starttls(conn, bytes);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        opt_info(conn, r);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        opt_structured(conn, bytes);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        opt_meta(conn, r);
        break;
    default:
        put_error(hs, NBD_REP_ERR_UNSUP, "this server does not know option %u", hs->option);
        break;
    }
    return true;
}

static bool is_known(uint32_t opt)
{
    return opt >= NBD_OPT_EXPORT_NAME && opt <= NBD_OPT_SET_META_CONTEXT &&
           opt != NBD_OPT_PEEK_EXPORT;
}

bool nbd_option_too_long(NbdConn *conn, uint32_t bytes)
{
    NbdHandshake *hs = conn->handshake;

    hs->skip = bytes;
    if (hs->option == NBD_OPT_EXPORT_NAME || !hs->fixed) {
        return nbd_handshake_refuse(conn, "it sent an export name that is too long");
    }
    if (hs->option == NBD_OPT_ABORT) {
        put_ack(hs);
        hs->after = AFTER_CLOSE;
    } else if (needs_tls(conn)) {
        put_error(hs, NBD_REP_ERR_TLS_REQD, "this server wants TLS first");
    } else if (is_known(hs->option)) {
        put_error(hs, NBD_REP_ERR_TOO_BIG, "%u bytes are more than any option needs", bytes);
    } else {
        put_error(hs, NBD_REP_ERR_UNSUP, "this server does not know option %u", hs->option);
    }
    return true;
}
