// Which backend serves a call.
#pragma once

#include "step/kernels.h"

namespace flashoptim {

/// The kernels of a backend; kAutomatic is FLASHOPTIM_BACKEND if set, else the
/// fastest that this processor runs.
/// @throws InvalidArgument for a backend that this build or processor does not have.
const BackendKernels& backend_kernels(Backend backend);

}  // namespace flashoptim
