// Writing and reading of summary.json. Never measures anything.
#include "trainer/summary.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"

namespace flashoptim::trainer {
namespace {

using Json = nlohmann::ordered_json;

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json bytes_per_parameter(const MemoryByKind& memory) {
    return {{"weights", memory.per_parameter(memory.weights)},
            {"corrections", memory.per_parameter(memory.corrections)},
            {"moments", memory.per_parameter(memory.moments)},
            {"scales", memory.per_parameter(memory.scales)},
            {"gradients", memory.per_parameter(memory.gradients)},
            {"accumulators", memory.per_parameter(memory.accumulators)},
            {"total", memory.per_parameter(memory.total())},
            {"autocast_copies", memory.per_parameter(memory.autocast_copies)}};
}

Json run_object(const FinishedRun& run) {
    const TrainOptions& options = run.options;
    const OptimizerChoice& choice = options.optimizer;
    const TrainResult& result = run.result;
    return {{"optimizer", rule_name(choice.rule)},
            {"format", name_of(choice.format)},
            {"master_bits", choice.format == Format::kFloat32 ? 32 : choice.master_weight_bits},
            {"gradient_release", choice.gradient_release},
            {"clip_norm", options.clip_norm},
            {"seed", options.seed},
            {"parameters", result.memory.parameters},
            {"bytes_per_parameter", bytes_per_parameter(result.memory)},
            {"device", options.device},
            {"peak_resident_bytes", result.peak_resident_bytes},
            {"peak_device_bytes", result.peak_device_bytes},
            {"checkpoint_bytes", result.checkpoint_bytes},
            {"validation_loss", number_or_null(result.validation_loss)},
            {"optimizer_step_seconds", number_or_null(result.optimizer_step_seconds)},
            {"step_seconds", number_or_null(result.step_seconds)},
            {"model", options.model.preset},
            {"steps", result.last_step},
            {"batch_size", options.batch_size},
            {"sequence_length", options.sequence_length},
            {"accumulation", options.accumulation},
            {"bad_elements", result.bad_elements},
            {"stopped", result.stopped}};
}

}  // namespace

std::string summary_json(std::span<const FinishedRun> runs) {
    Json objects = Json::array();
    for (const FinishedRun& run : runs) {
        objects.push_back(run_object(run));
    }
    return Json{{"runs", std::move(objects)}}.dump(2) + "\n";
}

std::optional<checkpoint::JsonValue> first_run_in(const std::filesystem::path& file) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(file, ignored)) return std::nullopt;  // a pipe would block
    try {
        auto summary = checkpoint::parse_json_object(checkpoint::InputFile(file).read_all(),
                                                     checkpoint::path_label(file));
        const auto* value = summary.find("runs");
        const auto* runs = value != nullptr ? value->as<checkpoint::JsonValue::List>() : nullptr;
        if (runs == nullptr || runs->empty()) return std::nullopt;
        if (runs->front().as<checkpoint::JsonValue::Object>() == nullptr) return std::nullopt;
        return runs->front();
    } catch (const Error&) {
        return std::nullopt;
    }
}

}  // namespace flashoptim::trainer
