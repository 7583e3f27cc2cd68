// Saves and loads the optimizers of the core.
#include <utility>

#include "flashoptim/checkpoint.h"
#include "flashoptim/optimizer.h"
#include "optimizer_checkpoint.h"

namespace flashoptim {

namespace {

using namespace checkpoint;
using ParameterId = Optimizer::ParameterId;

std::vector<Hyperparameters> groups_of(const Optimizer& optimizer) {
    std::vector<Hyperparameters> groups;
    for (std::size_t g = 0; g < optimizer.group_count(); ++g) groups.push_back(optimizer.hyperparameters(g));
    return groups;
}

std::vector<ParameterPlace> places_of(const Optimizer& optimizer) {
    std::vector<ParameterPlace> places;
    for (ParameterId id = 0; id < optimizer.parameter_count(); ++id) {
        const auto& weight = optimizer.weight(id);
        places.push_back({.name = optimizer.name(id),
                          .group = optimizer.group_of(id),
                          .dtype = weight.dtype,
                          .shape = weight.shape,
                          .strides = weight.strides,
                          .layout = optimizer.layout(id),
                          .storage = optimizer.options().storage});
    }
    check_names(places);
    return places;
}

}  // namespace

std::uint64_t save_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                             const SaveOptions& options) {
    OptimizerToSave saved{.rule = optimizer.rule(), .groups = groups_of(optimizer), .parameters = {}};
    std::vector<StateTensor> stored;  // includes host copies of buffers that are on a device
    ParameterId id = 0;
    for (auto& place : places_of(optimizer)) {
        auto& p = saved.parameters.emplace_back();
        p.place = std::move(place);
        p.counts = {optimizer.step_count(id), optimizer.has_momentum(id), optimizer.bad_elements(id)};
        p.plan = optimizer.storage(id);
        for (auto& tensor : optimizer.state(id)) {
            const auto place_of_it = buffer_place(saved.rule, tensor.name);
            if (place_of_it) p.buffers[static_cast<std::size_t>(*place_of_it)] = tensor.bytes;
            stored.push_back(std::move(tensor));
        }
        if (options.weights) {
            stored.push_back(optimizer.stored_weight(id));
            p.weight = stored.back().bytes;
        }
        ++id;
    }
    return write_optimizer(folder, saved, options);
}

LoadReport load_optimizer(Optimizer& optimizer, const Checkpoint& from, const LoadOptions& options) {
    const OptimizerToLoad to{.rule = optimizer.rule(),
                             .groups = groups_of(optimizer),
                             .parameters = places_of(optimizer),
                             .stored_weight = [&](std::size_t id) {
                                 const auto weight = optimizer.stored_weight(id);
                                 return std::vector<std::byte>(weight.bytes.begin(), weight.bytes.end());
                             }};
    auto loaded = read_optimizer(from, to, options);
    // All that may fail for want of memory comes first.
    std::vector<SavedState> states;
    for (const auto& p : loaded.parameters) {
        SavedState state{.parameter = p.parameter,
                         .steps = p.counts.steps,
                         .has_momentum = p.counts.has_momentum,
                         .buffers = {},
                         .bad_elements = {}};
        if (p.has_bad_elements) state.bad_elements = p.counts.bad_elements;
        if (!p.state.weight.empty()) state.buffers.emplace_back("weight", p.state.weight);
        for (int place = 0; place < kMaxBuffers; ++place) {
            const auto& bytes = p.state.at(place);
            if (!bytes.empty()) state.buffers.emplace_back(buffer_name(to.rule, place), bytes);
        }
        states.push_back(std::move(state));
    }
    optimizer.restore(loaded.groups, states);
    return std::move(loaded.report);
}

LoadReport load_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                          const LoadOptions& options) {
    return load_optimizer(optimizer, Checkpoint::open(folder), options);
}

}  // namespace flashoptim
