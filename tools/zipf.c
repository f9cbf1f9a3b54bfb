/* SPDX-License-Identifier: MIT */
#include "zipf.h"

#include <math.h>

/* (e^t - 1) / t */
static double expm1_over(double t)
{
    return fabs(t) > 1e-8 ? expm1(t) / t : 1 + t / 2;
}

/* log(1 + t) / t */
static double log1p_over(double t)
{
    return fabs(t) > 1e-8 ? log1p(t) / t : 1 - t / 2;
}

static double hat(const struct zipf *z, double x)
{
    double l = log(x);

    return expm1_over((1 - z->theta) * l) * l;
}

static double hat_inverse(const struct zipf *z, double u)
{
    double t = u * (1 - z->theta);

    /* Rounding may have passed the pole. */
    return exp(log1p_over(t < -1 ? -1 : t) * u);
}

static double bar(const struct zipf *z, double k)
{
    return exp(-z->theta * log(k));
}

void zipf_init(struct zipf *z, uint64_t n, double theta)
{
    z->n = n;
    z->theta = theta;
    z->from = hat(z, 1.5) - 1;
    z->to = hat(z, (double)n + 0.5);
    z->sure = 2 - hat_inverse(z, hat(z, 2.5) - bar(z, 2));
}

uint64_t zipf_next(const struct zipf *z, struct blk_random *random)
{
    for (;;) {
        double unit = (double)(blk_random_next(random) >> 11) * 0x1p-53;
        double u = z->to + unit * (z->from - z->to), x = hat_inverse(z, u);
        double k = floor(x + 0.5);

        k = k < 1 ? 1 : k > (double)z->n ? (double)z->n : k;
        if (k - x <= z->sure || u >= hat(z, k + 0.5) - bar(z, k)) {
            return (uint64_t)k - 1;
        }
    }
}
