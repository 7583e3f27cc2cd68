// Saving an optimizer of the core into a checkpoint folder and loading it again: everything is read and
// checked before anything of the optimizer is touched.
//
//     metadata of the checkpoint    optimizer_manifest.h
//     weights.safetensors           one tensor for each parameter, by its name (only where asked for)
//     optimizer.safetensors         <name>.error_bits, .exp_avg, .exp_avg_scales, ... (Optimizer::state)
//
// Tensors lie as the optimizer holds them, so their shapes are those of the parameters with
// dimensions in memory order.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "flashoptim/checkpoint.h"
#include "flashoptim/optimizer.h"
#include "optimizer_manifest.h"
#include "state_conversion.h"
#include "storage_type.h"
#include "system/message.h"

namespace flashoptim {

namespace {

using namespace checkpoint;
using ParameterId = Optimizer::ParameterId;

constexpr const char* kWeights = "weights";
constexpr const char* kState = "optimizer";

StorageType storage_type_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return StorageType::kFloat32;
        case DType::kBFloat16:
            return StorageType::kBFloat16;
        case DType::kFloat16:
            return StorageType::kFloat16;
        case DType::kInt8:
            return StorageType::kInt8;
        case DType::kUInt8:
            return StorageType::kUInt8;
        case DType::kInt16:
            return StorageType::kInt16;
    }
    throw InvalidArgument("an element type that files do not have; pass one of the DType values");
}

/// The extents sorted by stride, descending: the row-major shape of what lies in memory.
std::vector<std::int64_t> shape_in_memory(const std::vector<std::int64_t>& shape,
                                          const std::vector<std::int64_t>& strides) {
    std::vector<std::size_t> order(shape.size());
    for (std::size_t d = 0; d < order.size(); ++d) order[d] = d;
    std::ranges::stable_sort(order, [&](auto a, auto b) { return strides[a] > strides[b]; });
    std::vector<std::int64_t> sorted;
    for (const auto d : order) sorted.push_back(shape[d]);
    return sorted;
}

/// Strides as they are written: those of extents up to 1 say nothing and may be anything in memory.
std::vector<std::int64_t> saved_strides(const TensorView& weight) {
    auto strides = row_major_strides(weight.shape);
    if (weight.numel() == 0) return strides;
    for (std::size_t d = 0; d < strides.size(); ++d) {
        if (weight.shape[d] > 1) strides[d] = weight.strides[d];
    }
    return strides;
}

SavedPlace place_of(const Layout& layout) {
    return {layout.whole_numel, layout.whole_row_length, layout.row_offset, layout.column_offset};
}

SavedParameter describe(const Optimizer& optimizer, ParameterId id) {
    const auto& plan = optimizer.storage(id);
    const auto& weight = optimizer.weight(id);
    return {.name = optimizer.name(id),
            .group = optimizer.group_of(id),
            .steps = optimizer.step_count(id),
            .has_momentum = optimizer.has_momentum(id),
            .dtype = weight.dtype,
            .shape = weight.shape,
            .strides = saved_strides(weight),
            .place = place_of(optimizer.layout(id)),
            .format = optimizer.options().storage.format,
            .quantized = plan.moments != MomentStorage::kFloat32,
            .master_weight_bits = plan.master_weight_bits};
}

/// The ids of the parameters by name. Throws InvalidArgument for a name that two have.
std::map<std::string, ParameterId> parameters_by_name(const Optimizer& optimizer) {
    std::map<std::string, ParameterId> ids;
    for (ParameterId id = 0; id < optimizer.parameter_count(); ++id) {
        if (!ids.emplace(optimizer.name(id), id).second) {
            throw InvalidArgument("two parameters are called \"" + printable(optimizer.name(id)) +
                                  "\": saved state is found by name; give each parameter its own");
        }
    }
    return ids;
}

/// What will be put into one parameter once everything has been read.
struct Staged {
    ParameterId id = 0;
    std::int64_t steps = 0;
    bool has_momentum = false;
    StateBytes state;
};

class Loader {
public:
    Loader(Optimizer& optimizer, const std::filesystem::path& folder, const LoadOptions& options)
        : optimizer_(optimizer),
          options_(options),
          checkpoint_(Checkpoint::open(folder)),
          manifest_(parse_optimizer_manifest(checkpoint_.metadata_json(), folder)),
          state_file_(checkpoint_.file(kState)) {
        if (options.weights && checkpoint_.contains(kWeights)) weights_file_ = checkpoint_.file(kWeights);
    }

    LoadReport load() {
        check_optimizer();
        for (const auto& saved : manifest_.parameters) stage(saved);
        if (tensors_read_ != state_file_.tensors().size()) {
            throw FormatError(
                path_label(state_file_.path()) +
                " has tensors that belong to no parameter; the checkpoint is damaged, use another");
        }
        commit();
        return std::move(report_);
    }

private:
    std::string label_of(const std::string& name) const {
        return path_label(checkpoint_.folder()) + ": parameter \"" + printable(name) + "\"";
    }

    void check_optimizer() const {
        const auto folder = path_label(checkpoint_.folder());
        if (manifest_.rule != optimizer_.rule()) {
            throw FormatError(folder + " holds the state of " + std::string(name_of(manifest_.rule)) +
                              " and this optimizer is " + std::string(name_of(optimizer_.rule())) +
                              ": load it into an optimizer of the same rule");
        }
        if (manifest_.groups.size() != optimizer_.group_count()) {
            throw FormatError(folder + " has " + std::to_string(manifest_.groups.size()) +
                              " parameter groups and this optimizer " +
                              std::to_string(optimizer_.group_count()) +
                              ": add the same groups before loading");
        }
        for (std::size_t g = 0; g < manifest_.groups.size(); ++g) {
            try {
                check_hyperparameters(manifest_.rule, manifest_.groups[g]);
            } catch (const InvalidArgument& error) {
                throw FormatError(folder + ": group " + std::to_string(g) + ": " + error.what() +
                                  "; the checkpoint is damaged, use another");
            }
        }
        std::set<std::string> names;
        for (const auto& saved : manifest_.parameters) {
            if (!ids_.contains(saved.name)) {
                throw FormatError(label_of(saved.name) +
                                  " is not in this optimizer: add it, or load the checkpoint of this model");
            }
            if (!names.insert(saved.name).second) {
                throw FormatError(label_of(saved.name) +
                                  " is there twice; the checkpoint is damaged, use another");
            }
        }
        for (const auto& [name, id] : ids_) {
            if (names.contains(name)) continue;
            throw FormatError(
                label_of(name) +
                " of this optimizer is not in the checkpoint: load the checkpoint of this model");
        }
    }

    /// How the saved state lies. Throws FormatError where it is not of this parameter.
    StateLayout saved_layout(const SavedParameter& saved, ParameterId id) const {
        const auto label = label_of(saved.name);
        const auto& weight = optimizer_.weight(id);
        const auto& layout = optimizer_.layout(id);
        if (saved.shape != weight.shape || saved.strides.size() != saved.shape.size()) {
            throw FormatError(label + " has shape " + checkpoint::describe(saved.shape) + " and here " +
                              checkpoint::describe(weight.shape) + ": load the checkpoint of this model");
        }
        if (saved.dtype != weight.dtype) {
            throw FormatError(label + " is " + std::string(name_of(saved.dtype)) + " and here " +
                              std::string(name_of(weight.dtype)) +
                              ": add it with the dtype that it was saved with");
        }
        if (saved.group != optimizer_.group_of(id)) {
            throw FormatError(label + " is in group " + std::to_string(saved.group) + " and here in group " +
                              std::to_string(optimizer_.group_of(id)) + ": add it to the same group");
        }
        StateLayout result;
        result.layout = layout;
        const bool same_order = same_memory_order(saved.shape, saved.strides, layout.strides);
        const bool is_whole = layout.numel == layout.whole_numel;
        if (!same_order && is_whole) {
            try {
                result.layout = layout_of({nullptr, saved.dtype, saved.shape, saved.strides}, label);
            } catch (const InvalidArgument& error) {
                throw FormatError(std::string(error.what()) + "; the checkpoint is damaged, use another");
            }
        }
        if ((!same_order && !is_whole) || !(saved.place == place_of(result.layout))) {
            throw FormatError(
                label +
                " is another part of its tensor than here, or one in another stride order: load the "
                "checkpoint of the same shard");
        }
        StorageOptions storage;
        storage.format = saved.format;
        storage.quantize = saved.quantized;
        storage.master_weight_bits = saved.master_weight_bits;
        storage.min_quantized_numel = storage.min_quantized_numel_1d = 0;
        try {
            result.plan = plan_storage(manifest_.rule, manifest_.groups[saved.group], storage, saved.dtype,
                                       result.layout, label);
        } catch (const InvalidArgument& error) {
            throw FormatError(std::string(error.what()) + "; the checkpoint is damaged, use another");
        }
        if ((result.plan.moments != MomentStorage::kFloat32) != saved.quantized) {
            throw FormatError(
                label + " cannot have moments of the kind it says; the checkpoint is damaged, use another");
        }
        return result;
    }

    std::vector<std::byte> read(const SafetensorsFile& file, const std::string& name, const BufferPlan& plan,
                                const std::vector<std::int64_t>& shape) {
        return file.read(file.tensor(name, storage_type_of(plan.dtype), shape));
    }

    void stage(const SavedParameter& saved) {
        const auto id = ids_.at(saved.name);
        const auto from = saved_layout(saved, id);
        StateLayout to;
        to.layout = optimizer_.layout(id);
        to.plan = plan_storage(manifest_.rule, manifest_.groups[saved.group], optimizer_.options().storage,
                               saved.dtype, to.layout, saved.name);

        Staged staged{.id = id, .steps = saved.steps, .has_momentum = saved.has_momentum, .state = {}};
        const auto shape = shape_in_memory(saved.shape, saved.strides);
        for (int place = 0; place < kMaxBuffers; ++place) {
            const auto& plan = from.plan.at(place);
            if (plan.count == 0) continue;
            const auto name = saved.name + "." + std::string(buffer_name(manifest_.rule, place));
            staged.state.at(place) =
                read(state_file_, name, plan, is_scales_place(place) ? std::vector{plan.count} : shape);
            ++tensors_read_;
        }
        if (weights_file_) {
            staged.state.weight = read(*weights_file_, saved.name, {saved.dtype, to.layout.numel}, shape);
        }
        check_state(manifest_.rule, from, staged.state, label_of(saved.name));

        const bool same_order = same_memory_order(saved.shape, from.layout.strides, to.layout.strides);
        const bool same = from.plan == to.plan && same_order;
        if (!same && to.layout.numel > 0) {
            if (!options_.convert) {
                throw FormatError(
                    label_of(saved.name) + " was saved as " + std::string(name_of(saved.format)) + " with " +
                    std::to_string(saved.master_weight_bits) +
                    " master bits, or in another stride order, and this optimizer keeps it otherwise: "
                    "use the options that it was saved with, or allow the conversion");
            }
            staged.state = convert_state(manifest_.rule, std::move(staged.state), from, to, saved.shape,
                                         optimizer_.stored_weight(id).bytes.data(), label_of(saved.name));
            report_.converted.push_back(saved.name);
        }
        staged_.push_back(std::move(staged));
    }

    // All that may fail for want of memory comes first.
    void commit() {
        std::vector<SavedState> states;
        for (const auto& staged : staged_) {
            SavedState saved{staged.id, staged.steps, staged.has_momentum, {}};
            if (!staged.state.weight.empty()) saved.buffers.emplace_back("weight", staged.state.weight);
            for (int place = 0; place < kMaxBuffers; ++place) {
                const auto& bytes = staged.state.at(place);
                if (!bytes.empty()) saved.buffers.emplace_back(buffer_name(manifest_.rule, place), bytes);
            }
            states.push_back(std::move(saved));
        }
        optimizer_.restore(manifest_.groups, states);
        report_.weights = weights_file_.has_value();
    }

    Optimizer& optimizer_;
    const LoadOptions& options_;
    Checkpoint checkpoint_;
    OptimizerManifest manifest_;
    SafetensorsFile state_file_;
    std::optional<SafetensorsFile> weights_file_;
    std::map<std::string, ParameterId> ids_ = parameters_by_name(optimizer_);
    std::size_t tensors_read_ = 0;
    std::vector<Staged> staged_;
    LoadReport report_;
};

}  // namespace

std::uint64_t save_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                             const SaveOptions& options) {
    parameters_by_name(optimizer);
    OptimizerManifest manifest;
    manifest.rule = optimizer.rule();
    for (std::size_t g = 0; g < optimizer.group_count(); ++g)
        manifest.groups.push_back(optimizer.hyperparameters(g));
    std::vector<TensorFile> files = {{.name = kState, .tensors = {}}};
    if (options.weights) files.push_back({.name = kWeights, .tensors = {}});
    std::vector<StateTensor> stored;  // with the copies of what lies on a device
    for (ParameterId id = 0; id < optimizer.parameter_count(); ++id) {
        const auto& weight = optimizer.weight(id);
        manifest.parameters.push_back(describe(optimizer, id));
        const auto shape = shape_in_memory(weight.shape, manifest.parameters.back().strides);
        for (auto& tensor : optimizer.state(id)) {
            // Scales are counted in groups, everything else has the parameter's elements.
            const bool is_scales = tensor.shape != weight.shape;
            files[0].tensors.push_back({optimizer.name(id) + "." + tensor.name, storage_type_of(tensor.dtype),
                                        is_scales ? tensor.shape : shape, tensor.bytes});
            stored.push_back(std::move(tensor));
        }
        if (options.weights) {
            stored.push_back(optimizer.stored_weight(id));
            files[1].tensors.push_back(
                {optimizer.name(id), storage_type_of(weight.dtype), shape, stored.back().bytes});
        }
    }
    return write(folder, to_json(manifest), files);
}

LoadReport load_optimizer(Optimizer& optimizer, const std::filesystem::path& folder,
                          const LoadOptions& options) {
    return Loader(optimizer, folder, options).load();
}

}  // namespace flashoptim
