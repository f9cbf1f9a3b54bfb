/* SPDX-License-Identifier: MIT */
/* Listening sockets: unix, TCP, and those that systemd hands over. */
#ifndef NBD_LISTEN_H
#define NBD_LISTEN_H

#include <stdbool.h>
#include <sys/types.h>

typedef struct NbdListener {
    int fd;
    char *name;        /* for people */
    char *unlink_path; /* of a unix socket that was made here; NULL: none */
    dev_t dev;
    ino_t ino;
    struct NbdServer *server; /* the server's, as what follows */
    bool shut;                /* nothing will come */
} NbdListener;

/* A unix socket at @path.  A socket that nobody listens on is replaced.
 * Returns 0, or -errno with a message in *@ret_why. */
int nbd_listen_unix(const char *path, NbdListener *ret_listener, char **ret_why);

/* TCP sockets for @text: ADDR:PORT, [ADDR]:PORT, ADDR, or :PORT for all addresses.  @cb(@opaque) is
 * called for each; it takes the listener over and returns 0 or -errno.
 * Returns 0, or -errno with a message in *@ret_why. */
int nbd_listen_tcp(const char *text, int (*cb)(void *opaque, const NbdListener *listener),
                   void *opaque, char **ret_why);

/* The number of sockets that systemd has handed over, from fd 3 on; 0: none, or not to us.  Takes
 * them out of the environment, so that no child takes them for its own. */
int nbd_listen_activated(void);

/* The one at @fd.  Returns 0, or -errno with a message in *@ret_why. */
int nbd_listen_inherit(int fd, NbdListener *ret_listener, char **ret_why);

/* Closes, and unlinks the socket unless another one has taken its place. */
void nbd_listen_close(NbdListener *listener);

#endif
