/* SPDX-License-Identifier: MIT */
#include "nbd/log.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* Lines about drops: so many at once, and one more each so many ns. */
enum { DROP_BURST = 256 };
#define DROP_EVERY_NS (INT64_C(100) * 1000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t credit_ns = DROP_BURST * DROP_EVERY_NS; /* lock */
static int64_t seen_ns;                                /* lock */
static unsigned long left_out;                         /* lock */

/* Returns false when that would have to wait: nobody may read what standard error leads to, and the
 * server does not stand still for that. */
static bool write_line_locked(const char *fmt, va_list args)
{
    struct pollfd pfd = { .fd = STDERR_FILENO, .events = POLLOUT };
    char line[1024];
    int n = snprintf(line, sizeof(line), "aioctx-nbd: ");
    int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, args);
    size_t len = (size_t)n + (m < 0 ? 0 : (size_t)m);

    if (poll(&pfd, 1, 0) == 0) {
        return false;
    }
    len = len < sizeof(line) - 2 ? len : sizeof(line) - 2;
    line[len++] = '\n';
    (void)!write(STDERR_FILENO, line, len);
    return true;
}

static __attribute__((format(printf, 1, 2))) bool write_text_locked(const char *fmt, ...)
{
    va_list args;
    bool written;

    va_start(args, fmt);
    written = write_line_locked(fmt, args);
    va_end(args);
    return written;
}

void nbd_log(const char *fmt, ...)
{
    va_list args;

    pthread_mutex_lock(&lock);
    va_start(args, fmt);
    left_out += !write_line_locked(fmt, args);
    va_end(args);
    pthread_mutex_unlock(&lock);
}

static void tell_left_out_locked(void)
{
    if (left_out && write_text_locked("%lu more lines about clients were left out", left_out)) {
        left_out = 0;
    }
}

static bool may_write_locked(void)
{
    struct timespec ts;
    int64_t now;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    now = ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
    if (seen_ns) {
        credit_ns += now - seen_ns;
    }
    seen_ns = now;
    if (credit_ns > DROP_BURST * DROP_EVERY_NS) {
        credit_ns = DROP_BURST * DROP_EVERY_NS;
    }
    if (credit_ns < DROP_EVERY_NS) {
        left_out++;
        return false;
    }
    credit_ns -= DROP_EVERY_NS;
    return true;
}

void nbd_log_drop(const char *fmt, ...)
{
    va_list args;

    pthread_mutex_lock(&lock);
    if (may_write_locked()) {
        tell_left_out_locked();
        va_start(args, fmt);
        left_out += !write_line_locked(fmt, args);
        va_end(args);
    }
    pthread_mutex_unlock(&lock);
}

void nbd_log_end(void)
{
    pthread_mutex_lock(&lock);
    tell_left_out_locked();
    pthread_mutex_unlock(&lock);
}
