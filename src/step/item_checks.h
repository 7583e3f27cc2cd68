// Checks of the items of a call. All run before anything is stepped.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashoptim/step.h"

namespace flashoptim {

/// The functions that take a list of items.
enum class Call : std::uint8_t { kStep, kCountBad, kUpdateMoments, kApplyUpdate };

/// Whether update_moments() reads the weights of an item, which is so for coupled decay. The item's rule must
/// be known.
inline bool reads_weights(const StepItem& item) {
    return traits_of(item.rule).decay == Decay::kCoupled && item.hyperparameters.weight_decay != 0.0;
}

/// @throws InvalidArgument that names the item and the remedy: no layout, no rule, a step count below 1, a
///         type that is not one of those that the call takes, a buffer that is null where the plan has one
///         and the call uses it, or an address that is not a multiple of the element's size.
void check_item(const StepItem& item, std::size_t index, Call call);

/// Checks the item's gradient alone, as check_item() does.
void check_gradient(const StepItem& item, std::size_t index);

/// @throws InvalidArgument for an item whose plan is not of its rule
[[noreturn]] void refuse_plan(std::size_t index);
/// @throws InvalidArgument for an item whose storage has no step in two passes
[[noreturn]] void refuse_two_passes(std::size_t index);

}  // namespace flashoptim
