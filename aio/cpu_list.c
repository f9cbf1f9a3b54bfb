/* SPDX-License-Identifier: MIT */
/* Lists of processors such as "0-3,7", and putting the calling thread on them. */
#include "aio/cpu_list_int.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

enum { WORD_BITS = 8 * sizeof(unsigned long) };

static bool has(const struct cpu_list *list, unsigned cpu)
{
    return list->words[cpu / WORD_BITS] >> cpu % WORD_BITS & 1;
}

static void add(struct cpu_list *list, unsigned cpu)
{
    list->words[cpu / WORD_BITS] |= 1UL << cpu % WORD_BITS;
}

/* Takes a number off the front of *text. */
static bool take_number(const char **text, unsigned *ret)
{
    unsigned n = 0;
    const char *p = *text;

    for (; *p >= '0' && *p <= '9'; p++) {
        n = 10 * n + (unsigned)(*p - '0');
        if (n >= CPU_LIST_MAX) {
            return false;
        }
    }
    if (p == *text) {
        return false;
    }
    *text = p;
    *ret = n;
    return true;
}

bool cpu_list_parse(const char *text, struct cpu_list *ret)
{
    struct cpu_list list = { 0 };

    do {
        unsigned first, last;

        if (!take_number(&text, &first)) {
            return false;
        }
        last = first;
        if (*text == '-') {
            text++;
            if (!take_number(&text, &last) || last < first) {
                return false;
            }
        }
        for (unsigned cpu = first; cpu <= last; cpu++) {
            add(&list, cpu);
        }
    } while (*text++ == ',');
    if (text[-1] != '\0') {
        return false;
    }
    *ret = list;
    return true;
}

/* The end of the run of processors that begins at @cpu: all in the list, or all not. */
static unsigned end_of_run(const struct cpu_list *list, unsigned cpu)
{
    bool in = has(list, cpu);

    while (cpu < CPU_LIST_MAX && has(list, cpu) == in) {
        cpu++;
    }
    return cpu;
}

void cpu_list_format(const struct cpu_list *list, char *ret_text, size_t size)
{
    size_t len = 0;

    ret_text[0] = '\0';
    for (unsigned cpu = 0, end; cpu < CPU_LIST_MAX && len < size; cpu = end) {
        end = end_of_run(list, cpu);
        if (!has(list, cpu)) {
            continue;
        }
        len += (size_t)snprintf(ret_text + len, size - len, "%s%u", len ? "," : "", cpu);
        if (end > cpu + 1 && len < size) {
            len += (size_t)snprintf(ret_text + len, size - len, "-%u", end - 1);
        }
    }
}

static int set_own(const struct cpu_list *list)
{
    return sched_setaffinity(0, sizeof(list->words), (const cpu_set_t *)list->words) < 0 ? -errno
                                                                                         : 0;
}

static int get_own(struct cpu_list *ret)
{
    memset(ret, 0, sizeof(*ret));
    return sched_getaffinity(0, sizeof(ret->words), (cpu_set_t *)ret->words) < 0 ? -errno : 0;
}

int cpu_list_apply(const struct cpu_list *list, struct cpu_list *ret_available)
{
    struct cpu_list got;
    int ret = set_own(list);

    /* The kernel leaves out what cannot be had, and refuses only when nothing is left. */
    if (ret == 0) {
        ret = get_own(&got);
    }
    if (ret == 0 && memcmp(&got, list, sizeof(got)) != 0) {
        ret = -EINVAL;
    }
    if (ret == -EINVAL) {
        struct cpu_list all;

        memset(&all, 0xff, sizeof(all));
        if (set_own(&all) < 0 || get_own(ret_available) < 0) {
            memset(ret_available, 0, sizeof(*ret_available));
        }
    }
    return ret;
}
