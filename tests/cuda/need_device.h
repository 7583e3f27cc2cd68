// For tests that need a CUDA device or the emulated one: skips them by name if there is none.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "flashoptim/cuda.h"

namespace flashoptim::cuda {

/// In SetUp, as its last line: skips the test where there is no device, and fails it there if
/// FLASHOPTIM_REQUIRE_GPU=1 says that there must be one, so that nobody takes a run of
/// skipped tests for a run on a GPU.
inline void need_device() {
    if (device_count() > 0) return;
    const char* const required = std::getenv("FLASHOPTIM_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") {
        GTEST_FAIL() << "no CUDA device, and FLASHOPTIM_REQUIRE_GPU=1 asks for one";
    }
    GTEST_SKIP() << "no CUDA device";
}

class OnDevice : public ::testing::Test {
    void SetUp() override { need_device(); }
};

}  // namespace flashoptim::cuda
