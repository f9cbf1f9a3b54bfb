/* SPDX-License-Identifier: MIT */
/*
 * Ranks with a Zipf distribution: rank k of 1 to n comes with a probability proportional to
 * 1 / k^theta.  Setting up costs the same for any n, and a rank costs a few logarithms.
 *
 * Source: rejection-inversion, W. Hoermann and G. Derflinger, "Rejection-inversion to generate
 * variates from monotone discrete distributions", ACM TOMACS 6(3), 1996.  The sum's hat is the
 * integral H of x^-theta, which has an inverse; a point below the hat of rank k is accepted when it
 * lies within k's own bar.  H is taken as expm1((1 - theta) log x) / (1 - theta), which goes over
 * into log x at theta = 1 without a loss of digits around it.
 */
#ifndef TOOLS_ZIPF_H
#define TOOLS_ZIPF_H

#include <stdint.h>

#include "blk_random.h"

#ifdef __cplusplus
extern "C" {
#endif

struct zipf {
    uint64_t n;
    double theta;
    double from, to; /* of H: a point of the hat is drawn between them */
    double sure;     /* what lies so close below its rank is accepted without another look */
};

/* @n: 1 to 2^52.  @theta: above 0, up to 10. */
void zipf_init(struct zipf *z, uint64_t n, double theta);

/* A rank from 0, the most frequent one, to n - 1. */
uint64_t zipf_next(const struct zipf *z, struct blk_random *random);

#ifdef __cplusplus
}
#endif

#endif
