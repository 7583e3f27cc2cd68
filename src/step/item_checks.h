// Whether the items of a step can be stepped: looked at before anything is written.
#pragma once

#include <span>

#include "flashoptim/step.h"

namespace flashoptim {

/// @throws InvalidArgument that names the item and the remedy: no layout, a step count below 1, a type that is not floating-point, a
/// buffer that is null where the plan has one, or an address that is not a multiple of the element's size.
void check_items(std::span<const StepItem> items);

/// The same of the gradients alone.
void check_gradients(std::span<const StepItem> items);

}  // namespace flashoptim
