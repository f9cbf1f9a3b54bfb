/* SPDX-License-Identifier: MIT */
#include "rcu/util_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

__thread struct this_thread this_thread __attribute__((tls_model("initial-exec")));

void die_misuse(const char *call, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    fprintf(stderr, "aioctx: %s: %s\n", call, text);
    abort();
}
