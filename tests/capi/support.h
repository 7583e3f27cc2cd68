/* What the tests in C work on, and how they say what failed: a program whose `failures` is not 0 at its end has failed. */
#pragma once

#include <flashoptim/c_api.h>
#include <stdint.h>
#include <stdio.h>

enum { ROWS = 64, COLUMNS = 96, COUNT = ROWS * COLUMNS };

static const int64_t shape[2] = {ROWS, COLUMNS};

static int failures = 0;

#define EXPECT(condition)                                                                   \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
                    flashoptim_last_error());                                               \
            ++failures;                                                                     \
        }                                                                                   \
    } while (0)
#define EXPECT_OK(call) EXPECT((call) == FLASHOPTIM_OK)
