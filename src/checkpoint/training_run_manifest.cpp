// Reads early checkpoints of `flashoptim train` as saved optimizers.
//
//     {"kind": "flashoptim training run",
//      "optimizer": {"rule": "adamw", "format": "native", "master_bits": "24"},
//      "parameters": {"<name>": {"step": 3, "bad_elements": 0, "has_momentum": 1}, ...}, ...}
#include "training_run_manifest.h"

#include <charconv>
#include <map>
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/system/message.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::string_view kKind = "flashoptim training run";

std::optional<Rule> rule_of_run(std::string_view name) {
    for (const auto& traits : kRules) {
        std::string lower;
        for (const char c : traits.name) {
            lower += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        }
        if (lower == name) return traits.rule;
    }
    return std::nullopt;
}

std::optional<int> bits_of_run(const std::string& text) {
    int bits = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bits);
    return error == std::errc() && end == text.data() + text.size() ? std::optional(bits) : std::nullopt;
}

/// A parameter as the run's optimizer saved it.
SavedParameter saved_as(const ParameterPlace& here, Rule rule, const Hyperparameters& hyperparameters,
                        const StorageOptions& storage, const std::string& label) {
    SavedParameter p;
    p.group = here.group;
    p.dtype = here.dtype;
    p.shape = here.shape;
    p.strides = row_major_strides(here.shape);
    const auto layout = layout_of({nullptr, p.dtype, p.shape, p.strides}, label);
    p.place = {layout.whole_numel, layout.whole_row_length, layout.row_offset, layout.column_offset};
    const auto plan = plan_storage(rule, hyperparameters, storage, p.dtype, layout, label);
    p.format = storage.format;
    p.quantized = plan.moments != MomentStorage::kFloat32;
    p.master_weight_bits = plan.master_weight_bits;
    return p;
}

bool has_tensors(const SafetensorsFile& file, Rule rule, const std::string& name) {
    for (int place = 0; place < kMaxBuffers; ++place) {
        const auto buffer = buffer_name(rule, place);
        if (!buffer.empty() && file.find(name + "." + std::string(buffer)) != nullptr) return true;
    }
    return false;
}

}  // namespace

bool is_training_run(const JsonValue& document) {
    const JsonValue* kind = document.find("kind");
    const auto* text = kind != nullptr ? kind->as<std::string>() : nullptr;
    return text != nullptr && *text == kKind;
}

OptimizerManifest training_run_manifest(const JsonValue& document, const Checkpoint& from,
                                        const OptimizerToLoad& optimizer) {
    const auto label = [&from] { return path_label(from.folder()); };
    const JsonFields fields(document, label, "the checkpoint is damaged, use another");
    const JsonFields of_optimizer = fields.object("optimizer");
    const auto rule = rule_of_run(of_optimizer.text("rule"));
    const auto format = format_named(of_optimizer.text("format"));
    const auto bits = bits_of_run(of_optimizer.text("master_bits"));
    if (!rule || !format || !bits) of_optimizer.fail("is of no optimizer that this build knows");

    OptimizerManifest manifest;
    manifest.rule = *rule;
    manifest.groups = optimizer.groups;
    manifest.has_groups = false;
    manifest.scales_in_rows = true;
    StorageOptions storage;
    storage.format = *format;
    storage.master_weight_bits = *bits;
    std::map<std::string_view, const ParameterPlace*> places;
    for (const auto& place : optimizer.parameters) places.emplace(place.name, &place);
    const auto state = from.file("optimizer");
    for (const auto& [name, value] : fields.members("parameters")) {
        const auto of_parameter = [&, &parameter = name] {
            return label() + ": parameter \"" + printable(parameter) + "\"";
        };
        const JsonFields counts(value, of_parameter, "the checkpoint is damaged, use another");
        const auto place = places.find(name);
        SavedParameter p;
        // A parameter that the optimizer does not have is refused later, by name, together with the others.
        if (place != places.end()) {
            p = saved_as(*place->second, *rule, optimizer.groups.at(place->second->group), storage,
                         of_parameter());
        }
        p.name = name;
        p.steps = counts.count("step");
        p.bad_elements = counts.count("bad_elements");
        p.has_momentum = counts.count("has_momentum") != 0;
        p.has_state = p.steps > 0 || has_tensors(state, *rule, name);
        manifest.parameters.push_back(std::move(p));
    }
    return manifest;
}

}  // namespace flashoptim::checkpoint
