// Writing and reading a run's checkpoints. Knows no loop.
#include "trainer/run_checkpoint.h"

#include <array>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "trainer/tensor_files.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Fields = RunFields::Fields;

constexpr const char* kKind = "flashoptim training run";
constexpr const char* kWeights = "weights";
constexpr const char* kOptimizer = "optimizer";

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

// What a checkpoint's JSON is asked; every fault in it becomes a FormatError that names the folder.
class Document {
public:
    explicit Document(const checkpoint::Checkpoint& saved) : folder_(saved.folder()) {
        json_ = Json::parse(saved.metadata_json(), nullptr, /*allow_exceptions=*/false);
        if (!json_.is_object() || json_.value("kind", Json()) != kKind) {
            throw FormatError(folder_.string() +
                              " is no checkpoint of a training run; give one that `train` wrote");
        }
    }

    const Json& at(const Json& object, const std::string& key) const {
        const auto entry = object.find(key);
        if (entry == object.end()) {
            throw FormatError(folder_.string() + ": the field '" + key +
                              "' is missing; the checkpoint is damaged");
        }
        return *entry;
    }
    const Json& at(const std::string& key) const { return at(json_, key); }

    std::int64_t integer(const Json& object, const std::string& key) const {
        const Json& value = at(object, key);
        // Counts are added to and multiplied from here on.
        constexpr std::uint64_t kMost = std::uint64_t{1} << 53;
        if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMost) {
            throw FormatError(folder_.string() + ": the field '" + key +
                              "' is no count; the checkpoint is damaged");
        }
        return value.get<std::int64_t>();
    }
    std::int64_t integer(const std::string& key) const { return integer(json_, key); }

    bool has(const std::string& key) const { return json_.contains(key); }

    std::string text(const Json& object, const std::string& key) const {
        const Json& value = at(object, key);
        if (!value.is_string()) damaged(key);
        return value.get<std::string>();
    }

    [[noreturn]] void damaged(const std::string& key) const {
        throw FormatError(folder_.string() + ": the field '" + key +
                          "' is not what it should be; the checkpoint is damaged");
    }

    std::string string(const std::string& section, const std::string& key) const {
        const Json& fields = at(section);
        const auto entry = fields.find(key);
        return entry != fields.end() && entry->is_string() ? entry->get<std::string>() : "absent";
    }

    void require_equal(const std::string& section, const Fields& fields) const {
        for (const auto& [name, value] : fields) {
            if (const std::string saved = string(section, name); saved != value) {
                throw FormatError(folder_.string() + " is of another " + section + ": " + name + " is " +
                                  saved + " there and " + value +
                                  " in this run; resume with the options it was made with");
            }
        }
    }

private:
    fs::path folder_;
    Json json_;
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

SourceIdentity source_from(const Document& document, const Json& object) {
    SourceIdentity source;
    source.kind = document.text(object, "kind");
    for (const Json& entry : document.at(object, "files")) {
        const auto file = entry.is_string() ? file_identity(entry.get<std::string>()) : std::nullopt;
        if (!file) document.damaged("data");
        source.files.push_back(*file);
    }
    return source;
}

DataIdentity data_from(const Document& document) {
    const Json& object = document.at("data");
    DataIdentity data{source_from(document, document.at(object, "training")),
                      {},
                      document.integer(object, kTrainingTokens),
                      document.integer(object, "validation_tokens")};
    if (const auto validation = object.find("validation"); validation != object.end()) {
        data.validation = source_from(document, *validation);
    }
    return data;
}

void require_same_data(const Document& document, const fs::path& folder, const RunFields& fields,
                       const std::function<void(const std::string&)>& notice) {
    std::string what;
    if (document.has("data")) {
        what = difference(data_from(document), fields.data).value_or("");
    } else if (const std::string tokens = document.string("stream", kTrainingTokens);
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

void load_optimizer(const checkpoint::Checkpoint& saved, const Document& document, Model& model,
                    libtorch::FlashOptimizer& optimizer) {
    const checkpoint::SafetensorsFile file = saved.file(kOptimizer);
    const Json& counts = document.at("parameters");
    std::map<std::string, std::vector<const checkpoint::TensorInfo*>> by_parameter;
    for (const checkpoint::TensorInfo& info : file.tensors()) {
        by_parameter[info.name.substr(0, info.name.rfind('.'))].push_back(&info);
    }
    for (const auto& item : model.named_parameters()) {
        std::map<std::string, torch::Tensor> tensors;
        for (const checkpoint::TensorInfo* info : by_parameter[item.key()]) {
            tensors[info->name.substr(info->name.rfind('.') + 1)] = read_tensor(file, *info);
        }
        by_parameter.erase(item.key());
        optimizer.load_state_tensors(item.value(), tensors);
        const Json& count = document.at(counts, item.key());
        optimizer.set_step_count(item.value(), document.integer(count, "step"));
        optimizer.set_bad_elements(item.value(), document.integer(count, "bad_elements"));
        optimizer.set_has_momentum(item.value(), document.integer(count, "has_momentum") != 0);
    }
    if (!by_parameter.empty()) {
        throw FormatError(file.path().string() + " holds the state of '" + by_parameter.begin()->first +
                          "', which the model does not have; the checkpoint is damaged");
    }
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
    TensorList weights;
    TensorList states;
    Json counts = Json::object();
    for (const auto& item : model.named_parameters()) {
        const torch::Tensor& parameter = item.value();
        weights.add(item.key(), parameter);
        for (const auto& [name, tensor] : optimizer.state_tensors(parameter)) {
            states.add(item.key() + "." + name, tensor);
        }
        counts[item.key()] = {{"step", optimizer.step_count(parameter)},
                              {"bad_elements", optimizer.bad_elements(parameter)},
                              {"has_momentum", optimizer.has_momentum(parameter) ? 1 : 0}};
    }
    const Json document = {{"kind", kKind},
                           {"step", step},
                           {"model", to_json(fields.model)},
                           {"optimizer", to_json(fields.optimizer)},
                           {"stream", to_json(fields.stream)},
                           {"data", to_json(fields.data)},
                           {"options", to_json(fields.other)},
                           {"parameters", std::move(counts)}};
    const std::array<checkpoint::TensorFile, 2> files = {
        {{kWeights, weights.data(), {{"format", "pt"}}}, {kOptimizer, states.data(), {}}}};
    const std::uint64_t bytes = checkpoint::write(folder, document.dump(2), files);
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
        if (const std::string before = document.string("options", name); before != value) {
            notice(folder.string() + ": " + name + " was " + before + " and is " + value + " from here on");
        }
    }
    const checkpoint::SafetensorsFile weights = saved.file(kWeights);
    for (const auto& item : model.named_parameters()) {
        read_into(weights, item.key(), item.value());
    }
    load_optimizer(saved, document, model, optimizer);
    return document.integer("step");
}

}  // namespace flashoptim::trainer
