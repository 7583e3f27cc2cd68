// Whether the items of a step can be stepped: looked at before anything is stepped.
#pragma once

#include <cstddef>

#include "flashoptim/step.h"

namespace flashoptim {

/// @throws InvalidArgument that names the item and the remedy: no layout, a step count below 1, a type that
///         is not floating-point, a buffer that is null where the plan has one, or an address that is not a
///         multiple of the element's size.
void check_item(const StepItem& item, std::size_t index);

/// The same of its gradient alone.
void check_gradient(const StepItem& item, std::size_t index);

/// @throws InvalidArgument for an item whose plan is not of its rule
[[noreturn]] void refuse_plan(std::size_t index);

}  // namespace flashoptim
