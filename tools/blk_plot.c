/* SPDX-License-Identifier: MIT */
#include "blk_plot.h"

#include <stdlib.h>
#include <strings.h>
#include <string.h>

#include "format.h"
#include "live.h"

enum { ROWS_MAX = 20, BAR_COLUMNS = 48, BOUNDS_MAX = 24 * 14 };

/* Bounds of ranges, so many a decade: the series of preferred numbers E24, of which E12, E6 and E3
 * are every second, fourth and eighth.  Source: IEC 60063. */
static const uint8_t e24[24] = { 10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30,
                                 33, 36, 39, 43, 47, 51, 56, 62, 68, 75, 82, 91 };

/* Bound number @i of every @step-th of the series, ns. */
static uint64_t bound(unsigned i, unsigned step)
{
    unsigned at = i * step;
    uint64_t decade = 1;

    for (unsigned d = at / 24; d > 0; d--) {
        decade *= 10;
    }
    return decade * e24[at % 24] / 10;
}

/* The range that holds @ns: the last whose bound is not above it. */
static unsigned range_of(uint64_t ns, unsigned step)
{
    unsigned i = 0;

    while ((i + 1) * step < BOUNDS_MAX && bound(i + 1, step) <= ns) {
        i++;
    }
    return i;
}

static uint64_t value_of(const struct hist *h, unsigned counter)
{
    uint64_t end = hist_counter_end(counter), max_ns = hist_max(h);

    return end < max_ns && counter < HIST_COUNTERS - 1 ? end : max_ns;
}

static void put_bar(double share, bool unicode, FILE *stream)
{
    static const char *const eighths[] = { " ", "▏", "▎", "▍", "▌", "▋", "▊", "▉" };
    unsigned parts = (unsigned)(share * BAR_COLUMNS * 8 + 0.5);

    for (unsigned column = 0; column < BAR_COLUMNS; column++, parts -= parts < 8 ? parts : 8) {
        if (unicode) {
            fputs(parts >= 8 ? "█" : eighths[parts], stream);
        } else {
            fputc(parts >= 4 ? '#' : ' ', stream);
        }
    }
}

static void put_rows(const uint64_t *counts, unsigned first, unsigned last, unsigned step,
                     bool unicode, FILE *stream)
{
    uint64_t total = 0, most = 1, sum = 0;

    for (unsigned i = first; i <= last; i++) {
        total += counts[i];
        most = counts[i] > most ? counts[i] : most;
    }
    for (unsigned i = first; i <= last; i++) {
        sum += counts[i];
        fprintf(stream, "%8s - %-8s |", format_time(bound(i, step)).s,
                format_time(bound(i + 1, step)).s);
        put_bar((double)counts[i] / (double)most, unicode, stream);
        fprintf(stream, "| %7.3f%% %8.3f%%\n", 100 * (double)counts[i] / (double)total,
                100 * (double)sum / (double)total);
    }
}

void blk_plot(const struct hist *h, const char *title, bool unicode, FILE *stream)
{
    uint64_t counts[BOUNDS_MAX + 1] = { 0 }, lowest = UINT64_MAX, highest = 0;
    unsigned step = 1, first, last;

    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        if (live_get(&h->counts[i])) {
            lowest = lowest == UINT64_MAX ? value_of(h, i) : lowest;
            highest = value_of(h, i);
        }
    }
    if (lowest == UINT64_MAX) {
        return;
    }
    while (step < 24 && range_of(highest, step) - range_of(lowest, step) >= ROWS_MAX) {
        step *= 2;
        step = step == 16 ? 24 : step;
    }
    for (unsigned i = 0; i < HIST_COUNTERS; i++) {
        uint64_t n = live_get(&h->counts[i]);

        if (n) {
            counts[range_of(value_of(h, i), step)] += n;
        }
    }
    first = range_of(lowest, step);
    last = range_of(highest, step);
    fprintf(stream, "\nlatency of %s%*s share      sum\n", title,
            (int)(8 + 3 + 8 + 2 + BAR_COLUMNS + 1 - 11 - strlen(title)), "");
    put_rows(counts, first, last, step, unicode, stream);
}

bool blk_plot_unicode(void)
{
    static const char *const names[] = { "LC_ALL", "LC_CTYPE", "LANG" };

    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);

        if (value && *value) {
            return strcasestr(value, "UTF-8") || strcasestr(value, "UTF8");
        }
    }
    return false;
}
