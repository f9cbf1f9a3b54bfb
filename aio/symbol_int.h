/* SPDX-License-Identifier: MIT */
/* Names of functions, for people. */
#ifndef AIO_SYMBOL_INT_H
#define AIO_SYMBOL_INT_H

#include <stdint.h>

struct symbol {
    const char *object; /* the file that it lies in; NULL: none is known */
    uint64_t offset;    /* where in it, as addr2line(1) takes it */
    const char *name;   /* of the function that begins there, if the object exports it; or NULL */
};

/* Looks @func up.  The strings are valid as long as the object is loaded.  Thread: any; never waits
 * for a library's constructor or destructor. */
struct symbol symbol_find(const void *func);

#endif
