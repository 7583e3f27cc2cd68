// Writing and reading a run's checkpoints. Knows no loop.
#include "trainer/run_checkpoint.h"

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/json.h"
#include "flashoptim/libtorch_checkpoint.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using checkpoint::JsonFields;
using checkpoint::JsonValue;
using Json = nlohmann::ordered_json;
using Fields = RunFields::Fields;

constexpr const char* kKind = "flashoptim training run";

std::string text(double value) {
    std::array<char, 64> buffer{};
    return {buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr};
}
std::string text(bool value) { return value ? "true" : "false"; }

Json to_json(const Fields& fields) {
    Json object = Json::object();
    for (const auto& [name, value] : fields) {
        object[name] = value;
    }
    return object;
}

constexpr const char* kRemedy = "the checkpoint is damaged";

// What a checkpoint says of its run; every fault in it becomes a FormatError that names the folder.
class Document {
public:
    explicit Document(const checkpoint::Checkpoint& saved)
        : folder_(saved.folder()),
          json_(checkpoint::parse_json_object(saved.metadata_json(), folder_.string())),
          run_(run_in(json_), [this] { return folder_.string(); }, kRemedy) {}

    const JsonFields& run() const { return run_; }

    // Counts are added to and multiplied from here on.
    static std::int64_t count(const JsonFields& fields, const char* key) {
        return fields.count(key, std::int64_t{1} << 53);
    }

    // The text of a field, "absent" if there is none.
    std::string text(const char* section, const std::string& name) const {
        const JsonValue* value = run_.value(section).find(name);
        const auto* text = value != nullptr ? value->as<std::string>() : nullptr;
        return text != nullptr ? *text : "absent";
    }

    void require_equal(const char* section, const Fields& fields) const {
        for (const auto& [name, value] : fields) {
            if (const std::string saved = text(section, name); saved != value) {
                throw FormatError(folder_.string() + " is of another " + section + ": " + name + " is " +
                                  saved + " there and " + value +
                                  " in this run; resume with the options it was made with");
            }
        }
    }

private:
    // Early versions wrote nothing but the run.
    const JsonValue& run_in(const JsonValue& json) const {
        const JsonValue* run = json.find("application");
        if (run == nullptr) run = &json;
        const JsonValue* kind = run->find("kind");
        const auto* text = kind != nullptr ? kind->as<std::string>() : nullptr;
        if (text == nullptr || *text != kKind) {
            throw FormatError(folder_.string() +
                              " is no checkpoint of a training run; give one that `train` wrote");
        }
        return *run;
    }

    fs::path folder_;
    JsonValue json_;
    JsonFields run_;
};

constexpr const char* kTrainingTokens = "training_tokens";

Json to_json(const SourceIdentity& source) {
    Json files = Json::array();
    for (const FileIdentity& file : source.files) {
        files.push_back(to_text(file));
    }
    return {{"kind", source.kind}, {"files", std::move(files)}};
}

Json to_json(const DataIdentity& data) {
    Json object = {{"hash", "xxh64"},
                   {kTrainingTokens, data.training_tokens},
                   {"validation_tokens", data.validation_tokens},
                   {"training", to_json(data.training)}};
    if (data.validation) object["validation"] = to_json(*data.validation);
    return object;
}

SourceIdentity source_from(const JsonFields& fields) {
    SourceIdentity source;
    source.kind = fields.text("kind");
    for (const JsonValue& entry : fields.list("files")) {
        const auto* text = entry.as<std::string>();
        const auto file = text != nullptr ? file_identity(*text) : std::nullopt;
        if (!file) fields.fail("has \"files\" that are no descriptions of files");
        source.files.push_back(*file);
    }
    return source;
}

DataIdentity data_from(const JsonFields& fields) {
    DataIdentity data{source_from(fields.object("training")),
                      {},
                      Document::count(fields, kTrainingTokens),
                      Document::count(fields, "validation_tokens")};
    if (fields.has("validation")) data.validation = source_from(fields.object("validation"));
    return data;
}

void require_same_data(const Document& document, const fs::path& folder, const RunFields& fields,
                       const std::function<void(const std::string&)>& notice) {
    std::string what;
    if (document.run().has("data")) {
        what = difference(data_from(document.run().object("data")), fields.data).value_or("");
    } else if (const std::string tokens = document.text("stream", kTrainingTokens);
               tokens != std::to_string(fields.data.training_tokens)) {
        what = "training_tokens is " + tokens + " there and " + std::to_string(fields.data.training_tokens) +
               " in this run";
    } else {
        notice(
            folder.string() +
            " is of an older version and does not say what its data was; whether this is the same cannot be "
            "checked");
    }
    if (what.empty()) {
        return;
    }
    if (!fields.allow_other_data) {
        throw FormatError(folder.string() + " is of other data: " + what +
                          "; give the data it was made with, or --allow-other-data to train on with this");
    }
    notice(folder.string() + " is of other data, as --allow-other-data allows: " + what);
}

}  // namespace

RunFields run_fields(const TrainOptions& options, DataIdentity data, int threads) {
    const OptimizerChoice& choice = options.optimizer;
    const bool reference = choice.format == Format::kFloat32;
    RunFields fields;
    fields.model = model_fields(options.model);
    fields.optimizer = {
        {"rule", rule_name(choice.rule)},
        {"format", std::string(name_of(choice.format))},
        {"master_bits", std::to_string(reference ? 32 : choice.master_weight_bits)},
    };
    fields.stream = {
        {"seed", std::to_string(options.seed)},
        {"batch_size", std::to_string(options.batch_size)},
        {"sequence_length", std::to_string(options.sequence_length)},
        {"accumulation", std::to_string(options.accumulation)},
    };
    fields.data = std::move(data);
    fields.allow_other_data = options.allow_other_data;
    fields.other = {
        {"steps", std::to_string(options.schedule.total_steps)},
        {"schedule", std::string(schedule_name(options.schedule.kind))},
        {"learning_rate", text(options.schedule.peak)},
        {"minimum_ratio", text(options.schedule.minimum_ratio)},
        {"warmup_steps", std::to_string(options.schedule.warmup_steps)},
        {"clip_norm", text(options.clip_norm)},
        {"loss_factor", text(options.loss_factor)},
        {"threads", std::to_string(threads)},
    };
    for (const auto& read : traits_of(choice.rule).reads) {
        if (!is_training_option(read.field)) continue;
        const double value = read.field.of(choice.hyperparameters);
        fields.other.emplace_back(read.field.name,
                                  read.field.flag != nullptr ? text(value != 0.0) : text(value));
    }
    return fields;
}

CheckpointRecord save_run(const fs::path& folder, std::int64_t step, const RunFields& fields,
                          const Model& model, libtorch::FlashOptimizer& optimizer) {
    const Json run = {{"kind", kKind},
                      {"step", step},
                      {"model", to_json(fields.model)},
                      {"optimizer", to_json(fields.optimizer)},
                      {"stream", to_json(fields.stream)},
                      {"data", to_json(fields.data)},
                      {"options", to_json(fields.other)}};
    const std::uint64_t bytes = libtorch::save_optimizer(optimizer, model.named_parameters(), folder,
                                                         {.application_json = run.dump(2)});
    return {step, folder, static_cast<std::int64_t>(bytes)};
}

std::int64_t load_run(const fs::path& folder, const RunFields& fields, Model& model,
                      libtorch::FlashOptimizer& optimizer,
                      const std::function<void(const std::string&)>& notice) {
    const checkpoint::Checkpoint saved = checkpoint::Checkpoint::open(folder);
    const Document document(saved);
    document.require_equal("model", fields.model);
    document.require_equal("optimizer", fields.optimizer);
    document.require_equal("stream", fields.stream);
    require_same_data(document, folder, fields, notice);
    for (const auto& [name, value] : fields.other) {
        if (const std::string before = document.text("options", name); before != value) {
            notice(folder.string() + ": " + name + " was " + before + " and is " + value + " from here on");
        }
    }
    const std::int64_t step = Document::count(document.run(), "step");
    // The schedule sets the learning rates, and the rest of the hyperparameters is this run's.
    const auto report = libtorch::load_optimizer(optimizer, model.named_parameters(), saved,
                                                 {.convert = false, .hyperparameters = false});
    if (!report.weights)
        throw FormatError(folder.string() + " has no weights; give a checkpoint that `train` wrote");
    return step;
}

}  // namespace flashoptim::trainer
