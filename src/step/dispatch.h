// The lookup of a backend's kernels.
#pragma once

#include "step/kernels.h"

namespace flashoptim {

/// The kernels of a backend. kAutomatic means the backend that FLASHOPTIM_BACKEND names, or if it is not set,
/// the fastest that this processor runs.
/// @throws InvalidArgument for a backend that this build or processor does not have.
const BackendKernels& backend_kernels(Backend backend);

}  // namespace flashoptim
