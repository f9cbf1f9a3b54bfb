/* SPDX-License-Identifier: MIT */
#include "nbd_options.h"

#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

#define EXIT_USAGE 2

static const char help[] =
    "Usage: aioctx-nbd --export NAME=SPEC [--unix PATH | --listen ADDR:PORT | --stdio] [OPTION]...\n"
    "Serves block backends to clients that speak NBD.\n"
    "\n"
    "What:\n"
    "  -e, --export NAME=SPEC      export the backend SPEC, such as file:disk.img, as NAME; again\n"
    "                              for more; '=SPEC' is the export that clients get without a name\n"
    "      --description TEXT      of the --export before it\n"
    "  -r, --read-only             refuse writes to all exports; in a SPEC, read-only=on does so\n"
    "                              for one, and opens its file for reading alone\n"
    "      --driver FILE           load a driver from a shared module; again for more\n"
    "Where:\n"
    "  -u, --unix PATH             listen on a unix socket; again for more\n"
    "  -l, --listen ADDR:PORT      listen on TCP: ADDR, ADDR:PORT, [ADDR]:PORT or :PORT for all\n"
    "                              addresses; without PORT 10809, and 0 takes a free one; again\n"
    "                              for more\n"
    "      --stdio                 serve one client on standard input and output, and end\n"
    "                              Sockets that systemd hands over (LISTEN_FDS) need no option.\n"
    "How:\n"
    "  -t, --threads N             iothreads that connections are spread over (one for each\n"
    "                              processor, 4 at most)\n"
    "      --cpus LIST             processors that the iothreads run on, such as 0-3,7\n"
    "      --monitor NAME          io_uring, epoll or ppoll (the best that the kernel has)\n"
    "      --poll-max T            poll for up to T before sleeping, such as 50us (0ns: off)\n"
    "      --deadline T            a request that takes longer fails with EIO (0ns: none)\n"
    "      --max-connections N     more are refused (100)\n"
    "      --max-in-flight SIZE    of data in requests, per connection; then the client has to\n"
    "                              wait (64M)\n"
    "      --handshake-timeout T   a client that takes longer is dropped (10s)\n"
    "      --stall-timeout T       a client that stops in the middle of a request, or does not\n"
    "                              read its replies, for so long is dropped (30s; 0ns: never)\n"
    "      --shutdown-timeout T    what SIGTERM and SIGINT give requests in flight to end (5s)\n"
    "  -v, --verbose               log who comes and goes, not only who is dropped\n"
    "  -h, --help                  this\n"
    "  -V, --version               the version\n"
    "\n"
    "TLS (off unless there are certificates or keys):\n"
    "      --tls MODE              on: for clients that ask for it; require: nothing is done without\n"
    "                              it (the default with certificates or keys); off\n"
    "      --tls-certificates DIR  server-cert.pem and server-key.pem, and for --tls-verify-peer\n"
    "                              ca-cert.pem and, if it is there, ca-crl.pem\n"
    "      --tls-verify-peer       clients have to show a certificate that ca-cert.pem vouches for,\n"
    "                              or know a key\n"
    "      --tls-psk FILE          keys shared with clients, NAME:HEX lines as psktool writes them\n"
    "      --tls-priority STRING   algorithms, in GnuTLS's syntax (TLS 1.2 and 1.3)\n"
    "\n"
    "Times have a unit: ns, us, ms, s, m, h.  Sizes take k, M, G or T (powers of 1024).\n"
    "The log goes to standard error.\n"
    "Exit status: 0 after SIGTERM or SIGINT, and when the client of --stdio has gone; 1 it could\n"
    "not start, or a request did not end; 2 a wrong option.\n";

static int complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int complain(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fputs("aioctx-nbd: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    return EXIT_USAGE;
}

static int bad(const char *option, const char *value, const char *expected)
{
    return complain("%s: '%s' is not %s", option, value, expected);
}

static int print(const char *text)
{
    fputs(text, stdout);
    return fflush(stdout) == 0 ? 0 : 1;
}

/* Appends to an array of options.  Returns -1, or an exit status. */
static int append(const char ***array, unsigned *n, const char *value)
{
    const char **grown = realloc(*array, (*n + 1) * sizeof(*grown));

    if (!grown) {
        return complain("out of memory");
    }
    grown[(*n)++] = value;
    *array = grown;
    return -1;
}

static int add_export(struct nbd_options *opt, const char *text)
{
    const char *equals = strchr(text, '=');
    struct nbd_export_option *grown;

    if (!equals || !equals[1]) {
        return bad("--export", text, "NAME=SPEC, such as disk=file:disk.img");
    }
    grown = realloc(opt->exports, (opt->n_exports + 1) * sizeof(*grown));
    if (!grown) {
        return complain("out of memory");
    }
    opt->exports = grown;
    grown[opt->n_exports] = (struct nbd_export_option){ .spec = equals + 1, .description = "" };
    grown[opt->n_exports].name = strndup(text, (size_t)(equals - text));
    if (!grown[opt->n_exports].name) {
        return complain("out of memory");
    }
    opt->n_exports++;
    return -1;
}

static int take_description(struct nbd_options *opt, const char *text)
{
    if (opt->n_exports == 0) {
        return complain("--description: expected behind the --export that it describes");
    }
    opt->exports[opt->n_exports - 1].description = text;
    return -1;
}

/* @least: the smallest that will do. */
static int take_time(const char *option, const char *text, int64_t least, int64_t *ret_ns)
{
    int64_t ns;

    if (!parse_duration(text, &ns) || ns < least) {
        return bad(option, text,
                   least ? "a time with a unit, more than 0, such as 500ms or 10s"
                         : "a time with a unit, such as 500ms or 10s");
    }
    *ret_ns = ns;
    return -1;
}

static int take_number(const char *option, const char *text, unsigned max, unsigned *ret_number)
{
    uint64_t number;

    if (!parse_number(text, &number) || number < 1 || number > max) {
        return complain("%s: '%s' is not a number from 1 to %u", option, text, max);
    }
    *ret_number = (unsigned)number;
    return -1;
}

static int take_size(const char *option, const char *text, uint64_t *ret_bytes)
{
    uint64_t bytes;

    if (!parse_size(text, &bytes) || bytes == 0) {
        return bad(option, text, "a size, more than 0, such as 64M");
    }
    *ret_bytes = bytes;
    return -1;
}

static int take_tls_mode(struct nbd_options *opt, const char *mode)
{
    static const char *const names[] = { "off", "on", "require" };

    for (int i = 0; i < 3; i++) {
        if (strcmp(mode, names[i]) == 0) {
            opt->server.tls_mode = (NbdTlsMode)i;
            opt->tls_mode_given = true;
            return -1;
        }
    }
    return bad("--tls", mode, "off, on or require");
}

static int take_monitor(struct nbd_options *opt, const char *name)
{
    if (strcmp(name, "io_uring") != 0 && strcmp(name, "epoll") != 0 && strcmp(name, "ppoll") != 0) {
        return bad("--monitor", name, "io_uring, epoll or ppoll");
    }
    opt->server.monitor = name;
    return -1;
}

enum {
    OPT_DESCRIPTION = 256,
    OPT_DRIVER,
    OPT_STDIO,
    OPT_CPUS,
    OPT_MONITOR,
    OPT_POLL_MAX,
    OPT_DEADLINE,
    OPT_MAX_CONNECTIONS,
    OPT_MAX_IN_FLIGHT,
    OPT_HANDSHAKE_TIMEOUT,
    OPT_STALL_TIMEOUT,
    OPT_SHUTDOWN_TIMEOUT,
    OPT_TLS,
    OPT_TLS_CERTIFICATES,
    OPT_TLS_VERIFY_PEER,
    OPT_TLS_PSK,
    OPT_TLS_PRIORITY,
};

static const struct option longs[] = {
    { "export", required_argument, NULL, 'e' },
    { "description", required_argument, NULL, OPT_DESCRIPTION },
    { "read-only", no_argument, NULL, 'r' },
    { "driver", required_argument, NULL, OPT_DRIVER },
    { "unix", required_argument, NULL, 'u' },
    { "listen", required_argument, NULL, 'l' },
    { "stdio", no_argument, NULL, OPT_STDIO },
    { "threads", required_argument, NULL, 't' },
    { "cpus", required_argument, NULL, OPT_CPUS },
    { "monitor", required_argument, NULL, OPT_MONITOR },
    { "poll-max", required_argument, NULL, OPT_POLL_MAX },
    { "deadline", required_argument, NULL, OPT_DEADLINE },
    { "max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS },
    { "max-in-flight", required_argument, NULL, OPT_MAX_IN_FLIGHT },
    { "handshake-timeout", required_argument, NULL, OPT_HANDSHAKE_TIMEOUT },
    { "stall-timeout", required_argument, NULL, OPT_STALL_TIMEOUT },
    { "shutdown-timeout", required_argument, NULL, OPT_SHUTDOWN_TIMEOUT },
    { "tls", required_argument, NULL, OPT_TLS },
    { "tls-certificates", required_argument, NULL, OPT_TLS_CERTIFICATES },
    { "tls-verify-peer", no_argument, NULL, OPT_TLS_VERIFY_PEER },
    { "tls-psk", required_argument, NULL, OPT_TLS_PSK },
    { "tls-priority", required_argument, NULL, OPT_TLS_PRIORITY },
    { "verbose", no_argument, NULL, 'v' },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { 0 },
};

/* Returns -1, or an exit status. */
static int take(struct nbd_options *opt, int c, const char *arg)
{
    NbdServerOptions *server = &opt->server;

    switch (c) {
    case 'e':
        return add_export(opt, arg);
    case OPT_DESCRIPTION:
        return take_description(opt, arg);
    case 'r':
        opt->read_only = true;
        return -1;
    case OPT_DRIVER:
        return append(&opt->drivers, &opt->n_drivers, arg);
    case 'u':
        return append(&opt->unix_paths, &opt->n_unix, arg);
    case 'l':
        return append(&opt->tcp, &opt->n_tcp, arg);
    case OPT_STDIO:
        opt->use_stdio = true;
        return -1;
    case 't':
        return take_number("--threads", arg, 1024, &server->threads);
    case OPT_CPUS:
        server->cpus = arg;
        return -1;
    case OPT_MONITOR:
        return take_monitor(opt, arg);
    case OPT_POLL_MAX:
        return take_time("--poll-max", arg, 0, &server->poll_max_ns);
    case OPT_DEADLINE:
        return take_time("--deadline", arg, 0, &server->deadline_ns);
    case OPT_MAX_CONNECTIONS:
        return take_number("--max-connections", arg, 1000000, &server->max_connections);
    case OPT_MAX_IN_FLIGHT:
        return take_size("--max-in-flight", arg, &server->max_in_flight_bytes);
    case OPT_HANDSHAKE_TIMEOUT:
        return take_time("--handshake-timeout", arg, 1, &server->handshake_timeout_ns);
    case OPT_STALL_TIMEOUT:
        return take_time("--stall-timeout", arg, 0, &server->stall_timeout_ns);
    case OPT_SHUTDOWN_TIMEOUT:
        return take_time("--shutdown-timeout", arg, 0, &server->shutdown_timeout_ns);
    case OPT_TLS:
        return take_tls_mode(opt, arg);
    case OPT_TLS_CERTIFICATES:
        opt->tls.certificates = arg;
        return -1;
    case OPT_TLS_VERIFY_PEER:
        opt->tls.verify_peer = true;
        return -1;
    case OPT_TLS_PSK:
        opt->tls.psk_file = arg;
        return -1;
    case OPT_TLS_PRIORITY:
        opt->tls.priority = arg;
        return -1;
    case 'v':
        server->verbose = true;
        return -1;
    case 'h':
        return print(help);
    default:
        return print("aioctx-nbd " AIOCTX_VERSION "\n");
    }
}

/* Without --tls, credentials turn it on. */
static int check_tls(struct nbd_options *opt)
{
    bool credentials = opt->tls.certificates || opt->tls.psk_file;

    if (!opt->tls_mode_given) {
        opt->server.tls_mode = credentials ? NBD_TLS_REQUIRE : NBD_TLS_OFF;
    }
    if (opt->tls.verify_peer && !opt->tls.certificates) {
        return complain("--tls-verify-peer: expected --tls-certificates with it");
    }
    if (!credentials && (opt->server.tls_mode != NBD_TLS_OFF || opt->tls.priority)) {
        return complain("%s: expected --tls-certificates DIR or --tls-psk FILE with it",
                        opt->tls.priority ? "--tls-priority" : "--tls");
    }
    return -1;
}

static int check(struct nbd_options *opt, bool activated)
{
    bool sockets = opt->n_unix > 0 || opt->n_tcp > 0;

    if (opt->n_exports == 0) {
        return complain("expected an --export NAME=SPEC; try 'aioctx-nbd --help'");
    }
    if (opt->use_stdio && (sockets || activated)) {
        return complain("--stdio serves one client and no socket: expected neither --unix, "
                        "--listen nor sockets from systemd with it");
    }
    if (!opt->use_stdio && !sockets && !activated) {
        return complain("expected --unix PATH, --listen ADDR:PORT, --stdio, or sockets from "
                        "systemd; try 'aioctx-nbd --help'");
    }
    return check_tls(opt);
}

static unsigned default_threads(void)
{
    cpu_set_t cpus;
    int n = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : 1;

    return n < 1 ? 1 : n > 4 ? 4 : (unsigned)n;
}

int nbd_options_parse(struct nbd_options *opt, int argc, char **argv, bool activated)
{
    int c, status = -1;

    opt->server = (NbdServerOptions){
        .threads = default_threads(),
        .max_connections = 100,
        .max_requests = 512,
        .max_in_flight_bytes = 64 << 20,
        .handshake_timeout_ns = INT64_C(10) * 1000000000,
        .stall_timeout_ns = INT64_C(30) * 1000000000,
        .shutdown_timeout_ns = INT64_C(5) * 1000000000,
    };
    while (status < 0 && (c = getopt_long(argc, argv, ":e:ru:l:t:vhV", longs, NULL)) != -1) {
        if (c == ':') {
            status =
                complain("option '%s' needs a value; try 'aioctx-nbd --help'", argv[optind - 1]);
        } else if (c == '?') {
            status = complain("option '%s' is none, or takes no value; try 'aioctx-nbd --help'",
                              argv[optind - 1]);
        } else {
            status = take(opt, c, optarg);
        }
    }
    if (status < 0 && optind < argc) {
        status = complain("'%s': expected options only; try 'aioctx-nbd --help'", argv[optind]);
    }
    return status < 0 ? check(opt, activated) : status;
}

void nbd_options_free(struct nbd_options *opt)
{
    for (unsigned i = 0; i < opt->n_exports; i++) {
        free(opt->exports[i].name);
    }
    free(opt->exports);
    free(opt->drivers);
    free(opt->unix_paths);
    free(opt->tcp);
}
