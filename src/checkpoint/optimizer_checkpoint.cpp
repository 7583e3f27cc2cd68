// Writes and reads optimizer checkpoints. Everything is read, checked and converted before the optimizer is
// changed.
#include "optimizer_checkpoint.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "flashoptim/system/message.h"
#include "optimizer_manifest.h"
#include "storage_type.h"
#include "training_run_manifest.h"

namespace flashoptim::checkpoint {
namespace {

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

/// The sizes sorted by stride, largest first: the row-major shape of the memory.
std::vector<std::int64_t> shape_in_memory(const std::vector<std::int64_t>& shape,
                                          const std::vector<std::int64_t>& strides) {
    std::vector<std::size_t> order(shape.size());
    for (std::size_t d = 0; d < order.size(); ++d) order[d] = d;
    std::ranges::stable_sort(order, [&](auto a, auto b) { return strides[a] > strides[b]; });
    std::vector<std::int64_t> sorted;
    for (const auto d : order) sorted.push_back(shape[d]);
    return sorted;
}

/// The strides to save. The stride of a dimension of size 0 or 1 means nothing and may have any value in
/// memory, so the row-major one is saved.
std::vector<std::int64_t> saved_strides(const ParameterPlace& p) {
    auto strides = row_major_strides(p.shape);
    if (p.layout.numel == 0) return strides;
    for (std::size_t d = 0; d < strides.size(); ++d) {
        if (p.shape[d] > 1) strides[d] = p.strides[d];
    }
    return strides;
}

SavedPlace place_of(const Layout& layout) {
    return {layout.whole_numel, layout.whole_row_length, layout.row_offset, layout.column_offset};
}

SavedParameter saved_parameter(const ParameterToSave& p) {
    constexpr std::uint64_t kMost = INT64_MAX;
    return {.name = p.place.name,
            .group = p.place.group,
            .steps = p.counts.steps,
            .has_momentum = p.counts.has_momentum,
            .bad_elements = static_cast<std::int64_t>(std::min(p.counts.bad_elements, kMost)),
            .has_state = p.has_state,
            .dtype = p.place.dtype,
            .shape = p.place.shape,
            .strides = saved_strides(p.place),
            .place = place_of(p.place.layout),
            .format = p.place.storage.format,
            .quantized = p.plan.moments != MomentStorage::kFloat32,
            .master_weight_bits = p.plan.master_weight_bits};
}

/// Maps the names of parameters to their indices in a list. Throws InvalidArgument if two have the same name.
template <class Parameters, class Name>
std::map<std::string, std::size_t> places_by_name(const Parameters& parameters, Name name_of_parameter) {
    std::map<std::string, std::size_t> places;
    for (std::size_t n = 0; n < parameters.size(); ++n) {
        const std::string& name = name_of_parameter(parameters[n]);
        if (!places.emplace(name, n).second) {
            throw InvalidArgument("two parameters are called \"" + printable(name) +
                                  "\": saved state is found by name; give each parameter its own");
        }
    }
    return places;
}

OptimizerManifest manifest_of(const Checkpoint& from, const OptimizerToLoad& optimizer) {
    const JsonValue document = parse_json_object(from.metadata_json(), manifest_label(from.folder()));
    if (is_training_run(document)) return training_run_manifest(document, from, optimizer);
    return optimizer_manifest(document, from.folder());
}

void fill_with_zeros(const StoragePlan& plan, StateBytes& state) {
    for (int place = 0; place < kMaxBuffers; ++place) {
        const auto bytes = plan.at(place).bytes();
        if (bytes == 0) state.at(place).clear();
        if (state.at(place).empty()) state.at(place).resize(bytes);
    }
}

class StateReader {
public:
    StateReader(const Checkpoint& from, const OptimizerToLoad& optimizer, const LoadOptions& options)
        : checkpoint_(from),
          optimizer_(optimizer),
          options_(options),
          numbers_(
              places_by_name(optimizer.parameters, [](const ParameterPlace& p) -> auto& { return p.name; })),
          manifest_(manifest_of(from, optimizer)),
          state_file_(from.file(kState)) {
        if (options.weights && from.contains(kWeights)) weights_file_ = from.file(kWeights);
    }

    LoadedOptimizer read() {
        check_optimizer();
        loaded_.report.hyperparameters = options_.hyperparameters && manifest_.has_groups;
        loaded_.groups = loaded_.report.hyperparameters ? manifest_.groups : optimizer_.groups;
        for (const auto& saved : manifest_.parameters) loaded_.parameters.push_back(read(saved));
        if (tensors_read_ != state_file_.tensors().size()) {
            throw FormatError(
                path_label(state_file_.path()) +
                " has tensors that belong to no parameter; the checkpoint is damaged, use another");
        }
        loaded_.report.weights = weights_file_.has_value();
        return std::move(loaded_);
    }

private:
    std::string label_of(const std::string& name) const {
        return path_label(checkpoint_.folder()) + ": parameter \"" + printable(name) + "\"";
    }

    void check_optimizer() const {
        const auto folder = path_label(checkpoint_.folder());
        if (manifest_.rule != optimizer_.rule) {
            throw FormatError(folder + " holds the state of " + std::string(name_of(manifest_.rule)) +
                              " and this optimizer is " + std::string(name_of(optimizer_.rule)) +
                              ": load it into an optimizer of the same rule");
        }
        if (manifest_.groups.size() != optimizer_.groups.size()) {
            throw FormatError(folder + " has " + std::to_string(manifest_.groups.size()) +
                              " parameter groups and this optimizer " +
                              std::to_string(optimizer_.groups.size()) +
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
            if (!numbers_.contains(saved.name)) {
                throw FormatError(label_of(saved.name) +
                                  " is not in this optimizer: add it, or load the checkpoint of this model");
            }
            if (!names.insert(saved.name).second) {
                throw FormatError(label_of(saved.name) +
                                  " is there twice; the checkpoint is damaged, use another");
            }
        }
        for (const auto& [name, number] : numbers_) {
            if (names.contains(name)) continue;
            throw FormatError(
                label_of(name) +
                " of this optimizer is not in the checkpoint: load the checkpoint of this model");
        }
    }

    /// The layout of the saved state. Throws FormatError if the state does not belong to this parameter.
    StateLayout saved_layout(const SavedParameter& saved, const ParameterPlace& here) const {
        const auto label = label_of(saved.name);
        const auto& layout = here.layout;
        if (saved.shape != here.shape || saved.strides.size() != saved.shape.size()) {
            throw FormatError(label + " has shape " + describe(saved.shape) + " and here " +
                              describe(here.shape) + ": load the checkpoint of this model");
        }
        if (saved.dtype != here.dtype) {
            throw FormatError(label + " is " + std::string(name_of(saved.dtype)) + " and here " +
                              std::string(name_of(here.dtype)) +
                              ": add it with the dtype that it was saved with");
        }
        if (saved.group != here.group) {
            throw FormatError(label + " is in group " + std::to_string(saved.group) + " and here in group " +
                              std::to_string(here.group) + ": add it to the same group");
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

    std::vector<std::int64_t> shape_of_scales(const StateLayout& from, const BufferPlan& plan) const {
        if (manifest_.scales_in_rows && from.plan.moments == MomentStorage::kNative)
            return {from.layout.rows, from.layout.groups_per_row()};
        return {plan.count};
    }

    LoadedParameter read(const SavedParameter& saved) {
        LoadedParameter loaded;
        loaded.parameter = numbers_.at(saved.name);
        loaded.counts = {saved.steps, saved.has_momentum,
                         static_cast<std::uint64_t>(saved.bad_elements.value_or(0))};
        loaded.has_bad_elements = saved.bad_elements.has_value();
        loaded.has_state = saved.has_state;
        const auto& here = optimizer_.parameters[loaded.parameter];
        const auto from = saved_layout(saved, here);
        StateLayout to;
        to.layout = here.layout;
        to.plan = plan_storage(manifest_.rule, loaded_.groups[saved.group], here.storage, saved.dtype,
                               to.layout, saved.name);
        loaded.plan = to.plan;

        const auto shape = shape_in_memory(saved.shape, saved.strides);
        for (int place = 0; place < kMaxBuffers && saved.has_state; ++place) {
            const auto& plan = from.plan.at(place);
            if (plan.count == 0) continue;
            const auto name = saved.name + "." + std::string(buffer_name(manifest_.rule, place));
            loaded.state.at(place) =
                read(state_file_, name, plan, is_scales_place(place) ? shape_of_scales(from, plan) : shape);
            ++tensors_read_;
        }
        if (weights_file_) {
            loaded.state.weight = read(*weights_file_, saved.name, {saved.dtype, to.layout.numel}, shape);
        }
        if (saved.has_state) check_state(manifest_.rule, from, loaded.state, label_of(saved.name));
        convert(saved, from, to, loaded);
        return loaded;
    }

    void convert(const SavedParameter& saved, const StateLayout& from, const StateLayout& to,
                 LoadedParameter& loaded) {
        const bool same_order = same_memory_order(saved.shape, from.layout.strides, to.layout.strides);
        const bool same = (from.plan == to.plan || !saved.has_state) && same_order;
        if (!same && to.layout.numel > 0) {
            if (!options_.convert) {
                throw FormatError(
                    label_of(saved.name) + " was saved as " + std::string(name_of(saved.format)) + " with " +
                    std::to_string(saved.master_weight_bits) +
                    " master bits, or in another stride order, and this optimizer keeps it otherwise: "
                    "use the options that it was saved with, or allow the conversion");
            }
            const auto in_memory = loaded.state.weight.empty() ? optimizer_.stored_weight(loaded.parameter)
                                                               : std::vector<std::byte>();
            const StoragePlan& plan_of_saved = saved.has_state ? from.plan : to.plan;
            loaded.state =
                convert_state(manifest_.rule, std::move(loaded.state), {plan_of_saved, from.layout}, to,
                              saved.shape, in_memory.data(), label_of(saved.name));
            loaded_.report.converted.push_back(saved.name);
        }
        // A moment that the loading optimizer needs and the saved one did not have.
        fill_with_zeros(to.plan, loaded.state);
        const bool had_moment = saved.has_state && from.plan.codes(0).count != 0;
        if (had_moment != (to.plan.codes(0).count != 0)) loaded.counts.has_momentum = false;
    }

    const Checkpoint& checkpoint_;
    const OptimizerToLoad& optimizer_;
    const LoadOptions& options_;
    std::map<std::string, std::size_t> numbers_;  // the index of each parameter, by name
    OptimizerManifest manifest_;
    SafetensorsFile state_file_;
    std::optional<SafetensorsFile> weights_file_;
    std::size_t tensors_read_ = 0;
    LoadedOptimizer loaded_;
};

}  // namespace

void check_names(const std::vector<ParameterPlace>& parameters) {
    places_by_name(parameters, [](const ParameterPlace& p) -> auto& { return p.name; });
}

std::uint64_t write_optimizer(const std::filesystem::path& folder, const OptimizerToSave& optimizer,
                              const SaveOptions& options) {
    OptimizerManifest manifest;
    manifest.rule = optimizer.rule;
    manifest.groups = optimizer.groups;
    std::vector<TensorFile> files = {{.name = kState, .tensors = {}}};
    if (options.weights) files.push_back({.name = kWeights, .tensors = {}, .metadata = {{"format", "pt"}}});
    for (const auto& p : optimizer.parameters) {
        const auto& saved = manifest.parameters.emplace_back(saved_parameter(p));
        const auto shape = shape_in_memory(saved.shape, saved.strides);
        for (int place = 0; place < kMaxBuffers && p.has_state; ++place) {
            const auto& plan = p.plan.at(place);
            if (plan.count == 0) continue;
            files[0].tensors.push_back({saved.name + "." + std::string(buffer_name(optimizer.rule, place)),
                                        storage_type_of(plan.dtype),
                                        is_scales_place(place) ? std::vector{plan.count} : shape,
                                        p.buffers[static_cast<std::size_t>(place)]});
        }
        if (options.weights)
            files[1].tensors.push_back({saved.name, storage_type_of(saved.dtype), shape, p.weight});
    }
    return write(folder, to_json(manifest, options.application_json), files);
}

LoadedOptimizer read_optimizer(const Checkpoint& from, const OptimizerToLoad& optimizer,
                               const LoadOptions& options) {
    return StateReader(from, optimizer, options).read();
}

}  // namespace flashoptim::checkpoint
