// What every call on the CPU runs with: the process's threads and the instruction set.
#pragma once

#include <memory>

#include "flashoptim/step.h"

namespace flashoptim::operators {

/// As many threads as torch has, or as set_threads says. A call in progress keeps the pool that it began
/// with.
std::shared_ptr<ThreadPool> current_pool();
/// What set_backend says.
Backend current_backend();

}  // namespace flashoptim::operators
