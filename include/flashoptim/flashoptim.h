// Everything of the core in one include.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/dtype.h"        // IWYU pragma: export
#include "flashoptim/error.h"        // IWYU pragma: export
#include "flashoptim/layout.h"       // IWYU pragma: export
#include "flashoptim/optimizer.h"    // IWYU pragma: export
#include "flashoptim/quantize.h"     // IWYU pragma: export
#include "flashoptim/step.h"         // IWYU pragma: export
#include "flashoptim/tensor_view.h"  // IWYU pragma: export

#endif
