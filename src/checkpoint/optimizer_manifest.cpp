// Writes and parses the JSON of a saved optimizer.
#include "optimizer_manifest.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "flashoptim/system/message.h"
#include "json_text.h"
#include "storage_type.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::string_view kKind = "flashoptim optimizer";
/// Increased when a field changes its meaning. A new field that readers may ignore does not increase it.
constexpr std::int64_t kVersion = 1;

std::optional<DType> weight_type_named(std::string_view name) {
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        if (name_of(dtype) == name) return dtype;
    }
    return std::nullopt;
}

constexpr std::array<std::pair<const char*, std::int64_t SavedPlace::*>, 4> kPlace = {
    {{"whole_numel", &SavedPlace::whole_numel},
     {"whole_row_length", &SavedPlace::whole_row_length},
     {"row_offset", &SavedPlace::row_offset},
     {"column_offset", &SavedPlace::column_offset}}};

constexpr const char* kRemedy = "the checkpoint is damaged, use another";

/// Returns the value that `named` finds for the text of a field.
template <class T>
T one_of(std::optional<T> (*named)(std::string_view), const JsonFields& fields, std::string_view key) {
    const std::string& wanted = fields.text(key);
    if (const auto value = named(wanted)) return *value;
    throw FormatError(fields.label() + " has \"" + std::string(key) + "\": \"" + printable(wanted) +
                      "\", which this build does not know; update flashoptim");
}

/// Collects lines of `"key": value`, indented for a depth of the document.
class Lines {
public:
    explicit Lines(std::size_t depth) : indent_(depth, ' ') {}
    void add(std::string_view key, const std::string& value) {
        if (!text_.empty()) text_ += ",\n";
        text_.append(indent_).append("\"").append(key).append("\": ").append(value);
    }
    [[nodiscard]] const std::string& text() const { return text_; }

private:
    std::string indent_, text_;
};

std::string quoted(std::string_view text) { return json_string(text, "the optimizer's description"); }
std::string to_json(bool value) { return value ? "true" : "false"; }

std::string to_json(const std::vector<std::int64_t>& values, const std::string& indent) {
    if (values.empty()) return "[]";
    return "[\n" + indent + " " + join(values, ",\n" + indent + " ") + "\n" + indent + "]";
}

/// `values` as a JSON list of objects, each on lines of its own.
std::string list_of(const std::vector<std::string>& values) {
    if (values.empty()) return "[]";
    std::string text = "[\n";
    for (const auto& value : values) {
        if (text.size() > 2) text += ",\n";
        text.append("  {\n").append(value).append("\n  }");
    }
    return text + "\n ]";
}

// Keys are sorted by name.
std::string to_json(const Hyperparameters& h) {
    std::map<std::string_view, std::string> fields;
    for (const auto& field : kHyperparameterFields) {
        fields[field.name] = field.number != nullptr ? json_number(h.*field.number) : to_json(h.*field.flag);
    }
    Lines lines(3);
    for (const auto& [key, value] : fields) lines.add(key, value);
    return lines.text();
}

std::string to_json(const SavedParameter& p) {
    const std::string indent(3, ' ');
    std::map<std::string_view, std::string> fields = {
        {"name", json_string(p.name, "parameter name \"" + printable(p.name) + "\"")},
        {"group", std::to_string(p.group)},
        {"steps", std::to_string(p.steps)},
        {"has_momentum", to_json(p.has_momentum)},
        {"bad_elements", std::to_string(p.bad_elements.value_or(0))},
        {"dtype", quoted(name_of(p.dtype))},
        {"shape", to_json(p.shape, indent)},
        {"strides", to_json(p.strides, indent)},
        {"format", quoted(name_of(p.format))},
        {"quantized", to_json(p.quantized)},
        {"master_weight_bits", std::to_string(p.master_weight_bits)}};
    for (const auto& [key, member] : kPlace) fields[key] = std::to_string(p.place.*member);
    if (!p.has_state) fields["has_state"] = to_json(false);
    Lines lines(3);
    for (const auto& [key, value] : fields) lines.add(key, value);
    return lines.text();
}

/// A hyperparameter that the rule reads must be present. Others may be missing: an older version did not know
/// them.
Hyperparameters parse_group(const JsonFields& from, Rule rule) {
    Hyperparameters h;
    for (const auto& field : kHyperparameterFields) {
        if (traits_of(rule).find(field) == nullptr && !from.has(field.name)) continue;
        if (field.number != nullptr) {
            h.*field.number = from.number(field.name);
        } else {
            h.*field.flag = from.boolean(field.name);
        }
    }
    return h;
}

SavedParameter parse_parameter(const JsonFields& from) {
    SavedParameter p;
    p.name = from.text("name");
    p.group = static_cast<std::size_t>(from.count("group"));
    p.steps = from.count("steps");
    p.has_momentum = from.boolean("has_momentum");
    if (from.has("bad_elements")) p.bad_elements = from.count("bad_elements");
    p.has_state = !from.has("has_state") || from.boolean("has_state");
    p.dtype = one_of(weight_type_named, from, "dtype");
    p.shape = from.counts("shape");
    p.strides = from.counts("strides");
    p.format = one_of(format_named, from, "format");
    p.quantized = from.boolean("quantized");
    p.master_weight_bits = static_cast<int>(std::min<std::int64_t>(from.count("master_weight_bits"), 99));
    for (const auto& [key, member] : kPlace) p.place.*member = from.count(key);
    return p;
}

}  // namespace

std::string to_json(const OptimizerManifest& manifest, const std::string& application) {
    std::vector<std::string> groups, parameters;
    for (const auto& group : manifest.groups) groups.push_back(to_json(group));
    for (const auto& parameter : manifest.parameters) parameters.push_back(to_json(parameter));
    Lines lines(1);
    if (!application.empty()) {
        try {
            parse_json_object(application, "application_json");
        } catch (const FormatError& error) {
            throw InvalidArgument(error.what());
        }
        lines.add("application", application);
    }
    lines.add("groups", list_of(groups));
    lines.add("kind", quoted(kKind));
    lines.add("parameters", list_of(parameters));
    lines.add("rule", quoted(name_of(manifest.rule)));
    lines.add("version", std::to_string(kVersion));
    return "{\n" + lines.text() + "\n}";
}

std::string manifest_label(const std::filesystem::path& folder) {
    return path_label(folder) + ": the optimizer's description";
}

OptimizerManifest parse_optimizer_manifest(std::string_view text, const std::filesystem::path& folder) {
    return optimizer_manifest(parse_json_object(text, manifest_label(folder)), folder);
}

OptimizerManifest optimizer_manifest(const JsonValue& document, const std::filesystem::path& folder) {
    const auto label = [&folder](const std::string& part) { return path_label(folder) + part; };
    const JsonFields fields(document, [&] { return manifest_label(folder); }, kRemedy);
    const JsonValue* kind = document.find("kind");
    const auto* kind_text = kind != nullptr ? kind->as<std::string>() : nullptr;
    if (kind_text == nullptr || *kind_text != kKind) {
        throw FormatError(label(" is not a saved optimizer; give a folder that save_optimizer wrote"));
    }
    if (const auto version = fields.count("version"); version > kVersion || version == 0) {
        throw FormatError(label(" has optimizer layout ") + std::to_string(version) +
                          " and this build reads up to " + std::to_string(kVersion) + "; update flashoptim");
    }
    OptimizerManifest manifest;
    manifest.rule = one_of(rule_named, fields, "rule");
    for (const auto& group : fields.list("groups")) {
        manifest.groups.push_back(parse_group(
            JsonFields(
                group, [&] { return label(": group " + std::to_string(manifest.groups.size())); }, kRemedy),
            manifest.rule));
    }
    for (const auto& parameter : fields.list("parameters")) {
        manifest.parameters.push_back(parse_parameter(JsonFields(
            parameter, [&] { return label(": parameter " + std::to_string(manifest.parameters.size())); },
            kRemedy)));
    }
    return manifest;
}

}  // namespace flashoptim::checkpoint
