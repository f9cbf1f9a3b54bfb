/* SPDX-License-Identifier: MIT */
/*
 * Names of hosts, looked up by a thread of the pool, as getaddrinfo(3) may take long.  What are
 * addresses in figures already is taken at once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/nbd/nbd_int.h"

/* A look-up, which may outlive who asked. */
struct NbdLookUp {
    NbdConn *conn; /* NULL: it has gone */
    struct addrinfo *found;
    int error; /* of getaddrinfo(3) */
    char *host, *port;
};

static int find_addresses(NbdLookUp *l, int flags)
{
    struct addrinfo hints = { .ai_family = AF_UNSPEC,
                              .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_NUMERICSERV | flags };

    l->error = getaddrinfo(l->host, l->port, &hints, &l->found);
    return l->error;
}

static void free_look_up(NbdLookUp *l)
{
    free(l->host);
    free(l->port);
    free(l);
}

static int look_up_func(void *opaque)
{
    find_addresses(opaque, 0);
    return 0;
}

/* Thread: the one that began it. */
static void look_up_done(void *opaque, int ret)
{
    NbdLookUp *l = opaque;

    if (l->conn) {
        nbd_conn_looked_up(l->conn, l->found, ret < 0 ? strerror(-ret) : gai_strerror(l->error));
    } else if (l->found) {
        freeaddrinfo(l->found);
    }
    free_look_up(l);
}

void nbd_look_up(NbdConn *conn)
{
    NbdLookUp *l = calloc(1, sizeof(*l));

    if (l) {
        l->host = strdup(conn->s->cfg.host);
        l->port = strdup(conn->s->cfg.port);
    }
    if (!l || !l->host || !l->port) {
        if (l) {
            free_look_up(l);
        }
        nbd_conn_looked_up(conn, NULL, NULL);
        return;
    }
    l->conn = conn;
    conn->look_up = l;
    if (find_addresses(l, AI_NUMERICHOST) != EAI_NONAME) {
        look_up_done(l, 0);
    } else if (!thread_pool_submit_aio(look_up_func, l, look_up_done, l)) {
        look_up_done(l, -errno);
    }
}

void nbd_look_up_forget(NbdLookUp *l)
{
    if (l) {
        l->conn = NULL;
    }
}
