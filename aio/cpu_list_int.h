/* SPDX-License-Identifier: MIT */
/* Lists of processors such as "0-3,7", and putting the calling thread on them. */
#ifndef AIO_CPU_LIST_INT_H
#define AIO_CPU_LIST_INT_H

#include <stdbool.h>
#include <stddef.h>

/* More than the kernel can be built for. */
enum { CPU_LIST_MAX = 8192 };

/* A set of processors, as sched_setaffinity(2) takes it. */
struct cpu_list {
    unsigned long words[CPU_LIST_MAX / (8 * sizeof(unsigned long))];
};

/* Reads numbers and ranges with commas between them.  Returns false, and leaves @ret alone, when
 * @text is anything else or names a processor past CPU_LIST_MAX - 1. */
bool cpu_list_parse(const char *text, struct cpu_list *ret);

/* The other way round; cut where @size bytes do not hold it. */
void cpu_list_format(const struct cpu_list *list, char *ret_text, size_t size);

/*
 * Lets the calling thread run on the processors of @list alone.
 * Returns 0; -EINVAL when not all of them can be had: then *ret_available holds those that can,
 * none where the kernel does not say, and the thread may be on any of them; -EPERM or another error
 * where the call is denied.
 * Source: sched_setaffinity(2).
 */
int cpu_list_apply(const struct cpu_list *list, struct cpu_list *ret_available);

#endif
