// Restores the saved state of a whole optimizer: all of it, or nothing if it throws.
#include <string>
#include <utility>
#include <vector>

#include "impl.h"

namespace flashoptim {

void Optimizer::restore(std::span<const Hyperparameters> groups, std::span<const SavedState> states) {
    auto& all = *impl_;
    if (groups.size() != all.groups.size()) {
        throw InvalidArgument("saved state of " + std::to_string(groups.size()) +
                              " parameter groups cannot be restored into " +
                              std::to_string(all.groups.size()) + ": add the same groups first");
    }
    std::vector<Hyperparameters> groups_after;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        groups_after.push_back(all.checked(groups[g], all.groups[g].initial_learning_rate));
    }
    auto arena_after = all.arena;
    std::vector<StoredState> stored_after;
    stored_after.reserve(all.parameters.size());
    for (const auto& p : all.parameters) {
        stored_after.push_back(all.stored_under(groups_after[p.group], p, arena_after));
    }
    struct Copy {
        void* to;
        std::span<const std::byte> from;
    };
    std::vector<Copy> copies;
    for (const auto& saved : states) {
        const auto& p = all.at(saved.parameter);
        if (saved.steps < 0) {
            throw InvalidArgument("the saved step count of " + p.name + " is " + std::to_string(saved.steps) +
                                  ": it must not be negative");
        }
        for (const auto& [name, bytes] : saved.buffers) {
            copies.push_back({all.place_of(p, stored_after[saved.parameter], name, bytes.size()), bytes});
        }
    }
    all.collect_steps();
    // Counts that are still on the device belong to the steps before.
    all.collect(all.all_on_device);
    for (auto& p : all.parameters) all.collect(p.alone);
    // Nothing is thrown from here on, unless a device fails.
    for (const auto& copy : copies) all.write(copy.to, copy.from);
    for (std::size_t id = 0; id < stored_after.size(); ++id) {
        auto& p = all.parameters[id];
        if (stored_after[id].plan.codes(0).count != p.stored.plan.codes(0).count) p.has_momentum = false;
        p.stored = std::move(stored_after[id]);
    }
    for (const auto& saved : states) {
        auto& p = all.parameters[saved.parameter];
        p.steps = saved.steps;
        p.has_momentum = saved.has_momentum;
        p.bad_elements = saved.bad_elements.value_or(p.bad_elements);
    }
    all.groups = std::move(groups_after);
    all.arena = std::move(arena_after);
    all.items_are_current = false;
}

}  // namespace flashoptim
