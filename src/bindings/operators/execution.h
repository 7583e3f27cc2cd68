// The threads and the backend of calls on the CPU, which are the same for the whole process.
#pragma once

#include <memory>

#include "flashoptim/step.h"

namespace flashoptim::operators {

/// A pool with the number of threads of set_threads(), or of torch. A call in progress keeps its pool.
std::shared_ptr<ThreadPool> current_pool();
/// The backend that set_backend() has chosen.
Backend current_backend();

}  // namespace flashoptim::operators
