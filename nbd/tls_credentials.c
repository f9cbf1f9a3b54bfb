/* SPDX-License-Identifier: MIT */
/*
 * Credentials: all files are read when the server starts, and found fault with there.  Whether a
 * shared key or a certificate is used, and which algorithms, is GnuTLS's to negotiate.
 */
#include "nbd/tls_int.h"

#include <aioctx/block_driver.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rcu/atomic_int.h"

/* Longer files hold something else. */
enum { MAX_FILE_BYTES = 4 << 20 };

static const char default_priority[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
static const char psk_priority[] = ":+ECDHE-PSK:+DHE-PSK:+PSK";

/* Of what a call of GnuTLS returned. */
static int refuse_gnutls(char **ret_why, int ret, const char *what, const char *path)
{
    int err = ret == GNUTLS_E_MEMORY_ERROR ? ENOMEM : EINVAL;

    return blk_fail(ret_why, err, "tls: %s%s: %s", what, path, gnutls_strerror(ret));
}

/* Reads what is left of @fd; *@ret_text has a zero behind its end. */
static int read_all(int fd, gnutls_datum_t *ret_text)
{
    size_t room = 16384, len = 0;
    unsigned char *text = malloc(room);
    int err = text ? 0 : ENOMEM;

    while (!err) {
        ssize_t n = read(fd, text + len, room - len - 1);

        if (n == 0) {
            text[len] = 0;
            *ret_text = (gnutls_datum_t){ text, (unsigned)len };
            return 0;
        }
        if (n > 0) {
            len += (size_t)n;
        } else if (errno != EINTR) {
            err = errno;
        }
        if (!err && len == room - 1) {
            /* No realloc(): it would leave a copy of a key behind. */
            unsigned char *more = 2 * room <= MAX_FILE_BYTES ? malloc(2 * room) : NULL;

            err = more ? 0 : 2 * room <= MAX_FILE_BYTES ? ENOMEM : EFBIG;
            if (more) {
                memcpy(more, text, len);
                gnutls_memset(text, 0, len);
                free(text);
                text = more;
                room *= 2;
            }
        }
    }
    if (text) {
        gnutls_memset(text, 0, len);
        free(text);
    }
    return -err;
}

static int read_file(const char *path, gnutls_datum_t *ret_text, char **ret_why)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int ret = fd < 0 ? -errno : read_all(fd, ret_text);

    if (fd >= 0) {
        close(fd);
    }
    return ret < 0 ? blk_fail(ret_why, -ret, "tls: cannot read %s: %s", path, strerror(-ret)) : 0;
}

static void wipe(gnutls_datum_t *text)
{
    if (text->data) {
        gnutls_memset(text->data, 0, text->size);
        free(text->data);
    }
}

/* A file of the directory of certificates. */
struct pem {
    char *path;
    gnutls_datum_t text;
};

static int pem_read(struct pem *pem, const char *dir, const char *name, char **ret_why)
{
    if (asprintf(&pem->path, "%s/%s", dir, name) < 0) {
        pem->path = NULL;
        return -ENOMEM;
    }
    return read_file(pem->path, &pem->text, ret_why);
}

static void pem_drop(struct pem *pem)
{
    wipe(&pem->text);
    free(pem->path);
}

static int load_own(NbdTls *tls, const char *dir, char **ret_why)
{
    struct pem cert = { 0 }, key = { 0 };
    int ret = pem_read(&cert, dir, "server-cert.pem", ret_why);

    if (ret == 0) {
        ret = pem_read(&key, dir, "server-key.pem", ret_why);
    }
    if (ret == 0) {
        ret = gnutls_certificate_set_x509_key_mem2(tls->certificates, &cert.text, &key.text,
                                                   GNUTLS_X509_FMT_PEM, NULL, 0);
        if (ret < 0) {
            ret = refuse_gnutls(ret_why, ret, "server-cert.pem and server-key.pem of ", dir);
        } else {
            ret = 0;
        }
    }
    pem_drop(&key);
    pem_drop(&cert);
    return ret;
}

/* Whom a client's certificate has to descend from. */
static int load_authorities(NbdTls *tls, const char *dir, char **ret_why)
{
    struct pem ca = { 0 };
    int ret = pem_read(&ca, dir, "ca-cert.pem", ret_why);

    if (ret == 0) {
        ret =
            gnutls_certificate_set_x509_trust_mem(tls->certificates, &ca.text, GNUTLS_X509_FMT_PEM);
        if (ret < 0) {
            ret = refuse_gnutls(ret_why, ret, "", ca.path);
        } else if (ret == 0) {
            ret = blk_fail(ret_why, EINVAL, "tls: %s: there is no certificate in it", ca.path);
        } else {
            ret = 0;
        }
    }
    pem_drop(&ca);
    return ret;
}

static int load_revoked(NbdTls *tls, const char *dir, char **ret_why)
{
    struct pem crl = { 0 };
    char *why = NULL;
    int ret = pem_read(&crl, dir, "ca-crl.pem", &why);

    if (ret == 0) {
        ret =
            gnutls_certificate_set_x509_crl_mem(tls->certificates, &crl.text, GNUTLS_X509_FMT_PEM);
        ret = ret < 0 ? refuse_gnutls(ret_why, ret, "", crl.path) : 0;
    } else if (ret == -ENOENT) {
        ret = 0;
    } else {
        *ret_why = why;
        why = NULL;
    }
    free(why);
    pem_drop(&crl);
    return ret;
}

static int load_certificates(NbdTls *tls, const NbdTlsOptions *options, char **ret_why)
{
    const char *dir = options->certificates;
    int ret = gnutls_certificate_allocate_credentials(&tls->certificates);

    if (ret < 0) {
        tls->certificates = NULL;
        return refuse_gnutls(ret_why, ret, "certificates of ", dir);
    }
    ret = load_own(tls, dir, ret_why);
    if (ret == 0 && options->verify_peer) {
        ret = load_authorities(tls, dir, ret_why);
    }
    if (ret == 0 && options->verify_peer) {
        ret = load_revoked(tls, dir, ret_why);
    }
    return ret;
}

static int load_keys(NbdTls *tls, const char *path, char **ret_why)
{
    unsigned line;
    const char *fault;
    int ret = read_file(path, &tls->psk_text, ret_why);

    if (ret < 0) {
        return ret;
    }
    ret = tls_parse_keys(tls, &line, &fault);
    if (ret == -EINVAL) {
        return blk_fail(ret_why, EINVAL,
                        "tls: %s, line %u: %s; expected NAME:KEY, the key in "
                        "hexadecimal, as psktool writes them",
                        path, line, fault);
    }
    if (ret < 0) {
        return ret;
    }
    ret = gnutls_psk_allocate_server_credentials(&tls->psk);
    if (ret < 0) {
        tls->psk = NULL;
        return refuse_gnutls(ret_why, ret, "", path);
    }
    gnutls_psk_set_server_credentials_function2(tls->psk, tls_find_key);
    return 0;
}

static int set_priority(NbdTls *tls, const NbdTlsOptions *options, char **ret_why)
{
    const char *base = options->priority ? options->priority : default_priority;
    const char *at = NULL;
    char *text;
    int ret;

    if (asprintf(&text, "%s%s", base, tls->psk ? psk_priority : "") < 0) {
        return -ENOMEM;
    }
    ret = gnutls_priority_init(&tls->priority, text, &at);
    if (ret < 0) {
        tls->priority = NULL;
        ret = blk_fail(ret_why, ret == GNUTLS_E_MEMORY_ERROR ? ENOMEM : EINVAL,
                       "tls: bad priority string '%s' at '%s'; expected GnuTLS's syntax, such as "
                       "NORMAL:-VERS-TLS1.2",
                       base, at ? at : "");
    }
    free(text);
    return ret;
}

static int load(NbdTls *tls, const NbdTlsOptions *options, char **ret_why)
{
    int ret = gnutls_global_init();

    if (ret < 0) {
        return refuse_gnutls(ret_why, ret, "GnuTLS", "");
    }
    if (!options->certificates && !options->psk_file) {
        return blk_fail(ret_why, EINVAL,
                        "tls: neither certificates nor shared keys: a directory "
                        "with server-cert.pem and server-key.pem, or a file of psktool, is needed");
    }
    if (options->verify_peer && !options->certificates) {
        return blk_fail(ret_why, EINVAL,
                        "tls: clients can be asked for a certificate only where the "
                        "server has some itself");
    }
    tls->verify_peer = options->verify_peer;
    ret = options->certificates ? load_certificates(tls, options, ret_why) : 0;
    if (ret == 0 && options->psk_file) {
        ret = load_keys(tls, options->psk_file, ret_why);
    }
    return ret == 0 ? set_priority(tls, options, ret_why) : ret;
}

static void destroy(NbdTls *tls)
{
    if (tls->priority) {
        gnutls_priority_deinit(tls->priority);
    }
    if (tls->psk) {
        gnutls_psk_free_server_credentials(tls->psk);
    }
    if (tls->certificates) {
        gnutls_certificate_free_credentials(tls->certificates);
    }
    tls_drop_keys(tls);
    free(tls);
}

NbdTls *nbd_tls_new(const NbdTlsOptions *options, char **ret_why)
{
    NbdTls *tls = calloc(1, sizeof(*tls));
    char *why = NULL;
    int ret;

    ret = tls ? load(tls, options, &why) : -ENOMEM;
    if (ret < 0) {
        if (tls) {
            destroy(tls);
        }
        *ret_why = why;
        errno = -ret;
        return NULL;
    }
    tls->refs = 1;
    return tls;
}

NbdTls *nbd_tls_ref(NbdTls *tls)
{
    add_fetch_relaxed(&tls->refs, 1); /* the caller's own keeps it alive */
    return tls;
}

void nbd_tls_unref(NbdTls *tls)
{
    /* What was done with it elsewhere lies before the end. */
    if (tls && sub_fetch_acq_rel(&tls->refs, 1) == 0) {
        destroy(tls);
    }
}
