/* What the tests in C work on, and how they say what failed: a program whose `failures` is
   not 0 at its end has failed. */
#pragma once

#include <flashoptim/c_api.h>
#include <stdint.h>
#include <stdio.h>

enum { ROWS = 64, COLUMNS = 96, COUNT = ROWS * COLUMNS };

static const int64_t shape[2] = {ROWS, COLUMNS};

static int failures = 0;

/* The largest distance of two values in the same place; NaN where one is NaN, so that no bound is kept. */
static inline double largest_distance(const float* a, const float* b, int count) {
    double largest = 0;
    int n;
    for (n = 0; n < count; ++n) {
        const double distance = a[n] < b[n] ? (double)b[n] - (double)a[n] : (double)a[n] - (double)b[n];
        if (!(distance <= largest)) largest = distance;
        if (largest != largest) break;
    }
    return largest;
}

#define EXPECT(condition)                                                                   \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
                    flashoptim_last_error());                                               \
            ++failures;                                                                     \
        }                                                                                   \
    } while (0)
#define EXPECT_OK(call) EXPECT((call) == FLASHOPTIM_OK)
