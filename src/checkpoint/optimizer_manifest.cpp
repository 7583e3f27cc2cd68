// The JSON of a saved optimizer.
#include "optimizer_manifest.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "json_text.h"
#include "message.h"

namespace flashoptim::checkpoint {
namespace {

using nlohmann::json;

constexpr std::string_view kKind = "flashoptim optimizer";
/// Raised when a field changes its meaning; a field that may be left unread does not raise it.
constexpr std::int64_t kVersion = 1;

std::optional<DType> weight_type_named(std::string_view name) {
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        if (name_of(dtype) == name) return dtype;
    }
    return std::nullopt;
}

constexpr std::array<std::pair<const char*, double Hyperparameters::*>, 8> kNumbers = {
    {{"learning_rate", &Hyperparameters::learning_rate},
     {"beta1", &Hyperparameters::beta1},
     {"beta2", &Hyperparameters::beta2},
     {"epsilon", &Hyperparameters::epsilon},
     {"weight_decay", &Hyperparameters::weight_decay},
     {"momentum", &Hyperparameters::momentum},
     {"dampening", &Hyperparameters::dampening},
     {"initial_learning_rate", &Hyperparameters::initial_learning_rate}}};
constexpr std::array<std::pair<const char*, bool Hyperparameters::*>, 3> kSwitches = {
    {{"nesterov", &Hyperparameters::nesterov},
     {"maximize", &Hyperparameters::maximize},
     {"fully_decoupled", &Hyperparameters::fully_decoupled}}};
constexpr std::array<std::pair<const char*, std::int64_t SavedPlace::*>, 4> kPlace = {
    {{"whole_numel", &SavedPlace::whole_numel},
     {"whole_row_length", &SavedPlace::whole_row_length},
     {"row_offset", &SavedPlace::row_offset},
     {"column_offset", &SavedPlace::column_offset}}};

/// One object of the document; every fault in it is a FormatError that names the folder and the field.
class Reader {
public:
    Reader(const json& object, std::string label) : object_(object), label_(std::move(label)) {
        if (!object.is_object()) fail("is not an object");
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw FormatError(label_ + " " + what + "; the checkpoint is damaged, use another");
    }
    [[nodiscard]] const json& at(const char* key) const {
        const auto entry = object_.find(key);
        if (entry == object_.end()) fail(std::string("has no \"") + key + "\"");
        return *entry;
    }
    [[nodiscard]] std::string text(const char* key) const {
        const json& value = at(key);
        if (!value.is_string()) fail_at(key, "a string");
        return value.get<std::string>();
    }
    [[nodiscard]] bool boolean(const char* key) const {
        const json& value = at(key);
        if (!value.is_boolean()) fail_at(key, "true or false");
        return value.get<bool>();
    }
    [[nodiscard]] double number(const char* key) const {
        const json& value = at(key);
        if (!value.is_number()) fail_at(key, "a number");
        return value.get<double>();
    }
    [[nodiscard]] std::int64_t count(const char* key) const {
        const json& value = at(key);
        if (!is_count(value)) fail_at(key, "an integer of at least 0");
        return value.get<std::int64_t>();
    }
    [[nodiscard]] std::vector<std::int64_t> counts(const char* key) const {
        const json& values = array(key);
        if (!std::ranges::all_of(values, is_count)) fail_at(key, "a list of integers of at least 0");
        return values.get<std::vector<std::int64_t>>();
    }
    [[nodiscard]] const json& array(const char* key) const {
        const json& value = at(key);
        if (!value.is_array()) fail_at(key, "a list");
        return value;
    }
    /// What `named` finds under the text of a field.
    template <class T>
    [[nodiscard]] T one_of(std::optional<T> (*named)(std::string_view), const char* key) const {
        const std::string wanted = text(key);
        if (const auto value = named(wanted)) return *value;
        throw FormatError(label_ + " has \"" + key + "\": \"" + printable(wanted) +
                          "\", which this build does not know; update flashoptim");
    }

private:
    [[noreturn]] void fail_at(const char* key, const char* expected) const {
        fail(std::string("has a \"") + key + "\" that is not " + expected);
    }
    static bool is_count(const json& value) {
        constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
        return value.is_number_unsigned() && value.get<std::uint64_t>() <= kLargest;
    }

    const json& object_;
    std::string label_;
};

json to_json_object(const Hyperparameters& h) {
    json object = json::object();
    for (const auto& [key, member] : kNumbers) object[key] = h.*member;
    for (const auto& [key, member] : kSwitches) object[key] = h.*member;
    return object;
}

json to_json_object(const SavedParameter& p) {
    json object = {{"name", p.name},
                   {"group", p.group},
                   {"steps", p.steps},
                   {"has_momentum", p.has_momentum},
                   {"dtype", name_of(p.dtype)},
                   {"shape", p.shape},
                   {"strides", p.strides},
                   {"format", name_of(p.format)},
                   {"quantized", p.quantized},
                   {"master_weight_bits", p.master_weight_bits}};
    for (const auto& [key, member] : kPlace) object[key] = p.place.*member;
    return object;
}

Hyperparameters parse_group(const Reader& from) {
    Hyperparameters h;
    for (const auto& [key, member] : kNumbers) h.*member = from.number(key);
    for (const auto& [key, member] : kSwitches) h.*member = from.boolean(key);
    return h;
}

SavedParameter parse_parameter(const Reader& from) {
    SavedParameter p;
    p.name = from.text("name");
    p.group = static_cast<std::size_t>(from.count("group"));
    p.steps = from.count("steps");
    p.has_momentum = from.boolean("has_momentum");
    p.dtype = from.one_of(weight_type_named, "dtype");
    p.shape = from.counts("shape");
    p.strides = from.counts("strides");
    p.format = from.one_of(format_named, "format");
    p.quantized = from.boolean("quantized");
    p.master_weight_bits = static_cast<int>(std::min<std::int64_t>(from.count("master_weight_bits"), 99));
    for (const auto& [key, member] : kPlace) p.place.*member = from.count(key);
    return p;
}

}  // namespace

std::string to_json(const OptimizerManifest& manifest) {
    json document = {{"kind", kKind},
                     {"version", kVersion},
                     {"rule", name_of(manifest.rule)},
                     {"groups", json::array()},
                     {"parameters", json::array()}};
    for (const auto& group : manifest.groups) document["groups"].push_back(to_json_object(group));
    for (const auto& parameter : manifest.parameters) {
        json_string(parameter.name, "parameter name \"" + printable(parameter.name) + "\"");
        document["parameters"].push_back(to_json_object(parameter));
    }
    return document.dump(1);
}

OptimizerManifest parse_optimizer_manifest(std::string_view text, const std::filesystem::path& folder) {
    const std::string label = path_label(folder);
    const json document = parse_json_object(text, label + ": the optimizer's description");
    const Reader reader(document, label + ": the optimizer's description");
    if (const auto kind = document.find("kind"); kind == document.end() || *kind != kKind) {
        throw FormatError(label + " is not a saved optimizer; give a folder that save_optimizer wrote");
    }
    if (const auto version = reader.count("version"); version > kVersion || version == 0) {
        throw FormatError(label + " has optimizer layout " + std::to_string(version) +
                          " and this build reads up to " + std::to_string(kVersion) + "; update flashoptim");
    }
    OptimizerManifest manifest;
    manifest.rule = reader.one_of(rule_named, "rule");
    for (const auto& group : reader.array("groups")) {
        const auto number = std::to_string(manifest.groups.size());
        manifest.groups.push_back(parse_group(Reader(group, label + ": group " + number)));
    }
    for (const auto& parameter : reader.array("parameters")) {
        const auto number = std::to_string(manifest.parameters.size());
        manifest.parameters.push_back(parse_parameter(Reader(parameter, label + ": parameter " + number)));
    }
    return manifest;
}

}  // namespace flashoptim::checkpoint
