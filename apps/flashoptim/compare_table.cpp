// Formatting of the comparison.
#include "compare_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "console.h"

namespace flashoptim::app {
namespace {

using Json = nlohmann::ordered_json;

bool is_reference_for(const Json& candidate, const Json& run) {
    return candidate["format"] == "fp32" && candidate["optimizer"] == run["optimizer"] &&
           candidate["seed"] == run["seed"] && candidate["gradient_release"] == false;
}

const Json* reference_of(const Json& runs, const Json& run) {
    const auto found = std::find_if(runs.begin(), runs.end(),
                                    [&](const Json& other) { return is_reference_for(other, run); });
    return found == runs.end() ? nullptr : &*found;
}

std::string number(const Json& value, const char* form) {
    return value.is_null() ? "-" : fmt::format(fmt::runtime(form), value.get<double>());
}
std::string bytes(const Json& value) {
    return value.is_null() || value.get<std::int64_t>() == 0 ? "-" : human_bytes(value.get<std::int64_t>());
}
std::string milliseconds(const Json& value) {
    return value.is_null() ? "in backward" : fmt::format("{:.1f} ms", value.get<double>() * 1e3);
}

struct Row {
    std::string name;
    std::function<std::string(const Json& run)> cell;
};

std::vector<Row> rows_for(const Json& runs) {
    const auto per_parameter = [](const char* kind) {
        return [kind](const Json& run) {
            return fmt::format("{:.4f}", run["bytes_per_parameter"][kind].get<double>());
        };
    };
    std::vector<Row> rows = {
        {"bytes/parameter: weights", per_parameter("weights")},
        {"  corrections", per_parameter("corrections")},
        {"  moments", per_parameter("moments")},
        {"  scales", per_parameter("scales")},
        {"  gradients", per_parameter("gradients")},
        {"  fp32 accumulators", per_parameter("accumulators")},
        {"  total", per_parameter("total")},
        {"  (autocast's bf16 copies)", per_parameter("autocast_copies")},
        {"peak resident memory", [](const Json& run) { return bytes(run["peak_resident_bytes"]); }},
        {"  above the model alone", [](const Json& run) { return bytes(run["peak_above_model_bytes"]); }},
        {"checkpoint", [](const Json& run) { return bytes(run["checkpoint_bytes"]); }},
        {"  of the fp32 one",
         [&runs](const Json& run) -> std::string {
             const auto* reference = reference_of(runs, run);
             if (reference == nullptr || (*reference)["checkpoint_bytes"] == 0) return "-";
             return fmt::format("{:.1f} %", 100.0 * run["checkpoint_bytes"].get<double>() /
                                                (*reference)["checkpoint_bytes"].get<double>());
         }},
        {"validation loss", [](const Json& run) { return number(run["validation_loss"], "{:.4f}"); }},
        {"  minus that of fp32",
         [&runs](const Json& run) -> std::string {
             const auto* reference = reference_of(runs, run);
             if (reference == nullptr || run["validation_loss"].is_null() ||
                 (*reference)["validation_loss"].is_null())
                 return "-";
             return fmt::format("{:+.4f}", run["validation_loss"].get<double>() -
                                               (*reference)["validation_loss"].get<double>());
         }},
        {"optimizer step", [](const Json& run) { return milliseconds(run["optimizer_step_seconds"]); }},
        {"whole step", [](const Json& run) { return milliseconds(run["step_seconds"]); }},
    };
    const auto on_device = [](const Json& run) { return run.value("peak_device_bytes", std::int64_t{0}); };
    if (std::ranges::any_of(runs, [&](const Json& run) { return on_device(run) > 0; })) {
        const auto above = std::ranges::find(rows, std::string("  above the model alone"),
                                             [](const Row& r) { return r.name; });
        rows.insert(above,
                    {"peak memory on the device", [=](const Json& run) { return bytes(on_device(run)); }});
    }
    return rows;
}

std::string title(const Json& run) {
    return run["optimizer"].get<std::string>() + " " + run["format"].get<std::string>();
}
std::string subtitle(const Json& run, bool several_seeds) {
    auto text = run["gradient_release"].get<bool>() ? std::string("released") : std::string();
    if (several_seeds)
        text += (text.empty() ? "seed " : ", seed ") + std::to_string(run["seed"].get<std::uint64_t>());
    return text;
}

}  // namespace

std::string comparison_table(const Json& summary) {
    const auto& runs = summary["runs"];
    const bool several_seeds = std::any_of(runs.begin(), runs.end(),
                                           [&](const Json& run) { return run["seed"] != runs[0]["seed"]; });
    std::vector<std::vector<std::string>> lines = {{""}, {""}};
    for (const auto& run : runs) {
        lines[0].push_back(title(run));
        lines[1].push_back(subtitle(run, several_seeds));
    }
    for (const auto& row : rows_for(runs)) {
        lines.push_back({row.name});
        for (const auto& run : runs) lines.back().push_back(row.cell(run));
    }
    std::string table;
    for (const auto& line : lines) {
        for (std::size_t column = 0; column < line.size(); ++column) {
            std::size_t width = 0;
            for (const auto& other : lines) width = std::max(width, other[column].size());
            table += column == 0 ? fmt::format("{:<{}}", line[column], width)
                                 : fmt::format("  {:>{}}", line[column], width);
        }
        table.erase(table.find_last_not_of(' ') + 1);
        table += "\n";
    }
    return table;
}

}  // namespace flashoptim::app
