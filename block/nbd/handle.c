/* SPDX-License-Identifier: MIT */
/* libnbd's handles: making, connecting, and what the server at the other end can do. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "block/nbd/nbd_int.h"

/* The shortest and the longest block that a server may ask for, and how long a transfer may be at
 * most: what every server takes that does not say. */
enum { BLOCK_MAX = 65536, TRANSFER_MAX = 32 << 20 };

static int fail_libnbd(const NbdConfig *cfg, int err, char **ret_why)
{
    return blk_fail(ret_why, err > 0 ? err : EIO, "%s: %s", cfg->where, nbd_get_error());
}

static int set_up_tls(struct nbd_handle *h, const NbdConfig *cfg)
{
    int ret = nbd_set_tls(h, cfg->tls);

    if (cfg->tls == LIBNBD_TLS_DISABLE) {
        return ret;
    }
    if (ret == 0) {
        ret = nbd_set_tls_verify_peer(h, cfg->verify_peer);
    }
    if (ret == 0 && cfg->certificates) {
        ret = nbd_set_tls_certificates(h, cfg->certificates);
    }
    if (ret == 0 && cfg->psk_file) {
        ret = nbd_set_tls_psk_file(h, cfg->psk_file);
    }
    if (ret == 0 && cfg->user) {
        ret = nbd_set_tls_username(h, cfg->user);
    }
    return ret;
}

struct nbd_handle *nbd_handle_new(const NbdConfig *cfg, char **ret_why)
{
    struct nbd_handle *h = nbd_create();

    if (!h) {
        blk_fail(ret_why, ENOMEM, "out of memory");
        return NULL;
    }
    /* Buffers are not cleared before a read: nobody looks at them when it fails.  The core has
     * checked ranges already. */
    if (nbd_set_export_name(h, cfg->export) < 0 ||
        nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_set_pread_initialize(h, false) < 0 ||
        nbd_set_strict_mode(h, nbd_get_strict_mode(h) & ~(uint32_t)LIBNBD_STRICT_ALIGN) < 0 ||
        set_up_tls(h, cfg) < 0) {
        fail_libnbd(cfg, nbd_get_errno(), ret_why);
        nbd_close(h);
        return NULL;
    }
    return h;
}

int nbd_handle_connect(struct nbd_handle *h, const NbdConfig *cfg, const struct addrinfo *addr,
                       char **ret_why)
{
    int ret;

    if (cfg->socket) {
        ret = nbd_aio_connect_unix(h, cfg->socket);
    } else if (addr && cfg->tls == LIBNBD_TLS_DISABLE) {
        ret = nbd_aio_connect(h, addr->ai_addr, addr->ai_addrlen);
    } else {
        ret = nbd_aio_connect_tcp(h, cfg->host, cfg->port); /* the certificate is for that name */
    }
    return ret < 0 ? fail_libnbd(cfg, nbd_get_errno(), ret_why) : 0;
}

/* A peer that has gone without a word is noticed after some time, also when nothing is sent. */
static void keep_alive(struct nbd_handle *h)
{
    const int on = 1, idle_s = 20, interval_s = 5, count = 4;
    int fd = nbd_aio_get_fd(h);

    /* On a socket that is not of TCP these fail, which is all right. */
    if (setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s)) == 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
}

static uint32_t largest_transfer(struct nbd_handle *h, uint32_t min_block)
{
    int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    max = max > 0 && max < TRANSFER_MAX ? max : TRANSFER_MAX;
    return (uint32_t)(max & ~(int64_t)(min_block - 1));
}

int nbd_handle_caps(struct nbd_handle *h, NbdCaps *ret_caps, char **ret_why)
{
    int64_t min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    NbdCaps c = {
        .size = nbd_get_size(h),
        .min_block = min > 0 ? (uint32_t)min : 1,
        .read_only = nbd_is_read_only(h) > 0,
        .flush = nbd_can_flush(h) > 0,
        .fua = nbd_can_fua(h) > 0,
        .trim = nbd_can_trim(h) > 0,
        .zero = nbd_can_zero(h) > 0,
        .fast_zero = nbd_can_fast_zero(h) > 0,
        .status = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
        .multi_conn = nbd_can_multi_conn(h) > 0,
    };

    if (c.size < 0) {
        return blk_fail(ret_why, EIO, "the server says no size: %s", nbd_get_error());
    }
    if (min > BLOCK_MAX || (c.min_block & (c.min_block - 1))) {
        return blk_fail(ret_why, ENOTSUP,
                        "the server's least block is %lld bytes; a power of 2 up to %d works",
                        (long long)min, BLOCK_MAX);
    }
    c.max_block = largest_transfer(h, c.min_block);
    if (c.max_block == 0) {
        return blk_fail(ret_why, ENOTSUP, "the server's longest transfer is less than its block");
    }
    keep_alive(h);
    *ret_caps = c;
    return 0;
}

const char *nbd_caps_lack(const NbdCaps *now, const NbdCaps *before)
{
    return now->size < before->size               ? "the export has become smaller"
           : now->min_block > before->min_block   ? "the export's least block has become larger"
           : now->max_block < before->max_block   ? "the longest transfer has become shorter"
           : now->read_only > before->read_only   ? "the export has become read-only"
           : now->flush < before->flush           ? "the server no longer flushes"
           : now->fua < before->fua               ? "the server no longer takes FUA"
           : now->trim < before->trim             ? "the server no longer discards"
           : now->zero < before->zero             ? "the server no longer zeroes"
           : now->fast_zero < before->fast_zero   ? "the server no longer zeroes fast"
           : now->status < before->status         ? "the server no longer tells block status"
           : now->multi_conn < before->multi_conn ? "the server no longer takes several connections"
                                                  : NULL;
}

static int wait_ready(struct nbd_handle *h, const NbdConfig *cfg, char **ret_why)
{
    int64_t until = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + cfg->connect_timeout_ns;

    while (!nbd_aio_is_ready(h)) {
        int64_t left = until - qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

        if (left <= 0) {
            return blk_fail(ret_why, ETIMEDOUT,
                            "%s: the server has not finished the handshake after %lld ms "
                            "(connect-timeout-ms)",
                            cfg->where, (long long)(cfg->connect_timeout_ns / SCALE_MS));
        }
        left = left / SCALE_MS + 1;
        if (nbd_poll(h, left < 1000 ? (int)left : 1000) < 0) {
            return fail_libnbd(cfg, nbd_get_errno(), ret_why);
        }
    }
    return 0;
}

int nbd_open_first(const NbdConfig *cfg, struct nbd_handle **ret_h, NbdCaps *ret_caps,
                   char **ret_why)
{
    struct nbd_handle *h = nbd_handle_new(cfg, ret_why);
    int ret;

    if (!h) {
        return -EINVAL;
    }
    ret = nbd_handle_connect(h, cfg, NULL, ret_why);
    ret = ret < 0 ? ret : wait_ready(h, cfg, ret_why);
    ret = ret < 0 ? ret : nbd_handle_caps(h, ret_caps, ret_why);
    if (ret < 0) {
        nbd_close(h);
        return ret;
    }
    *ret_h = h;
    return 0;
}

void nbd_handle_close(struct nbd_handle *h)
{
    if (h && nbd_aio_is_ready(h)) {
        nbd_aio_disconnect(h, 0); /* sent at once unless the socket is full */
    }
    nbd_close(h);
}
