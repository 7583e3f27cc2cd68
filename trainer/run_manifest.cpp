// Reading, checking and writing of the manifest of a run.
#include "trainer/run_manifest.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <system_error>
#include <utility>

#include "flashoptim/checkpoint.h"
#include "flashoptim/checkpoint_folder.h"
#include "flashoptim/error.h"
#include "flashoptim/json.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "trainer/metrics.h"
#include "trainer/summary.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kLayout = 1;
constexpr std::string_view kStepPrefix = "step-";
constexpr std::array<std::string_view, 2> kKinds = {"train", "compare"};
constexpr std::array<std::string_view, 3> kStages = {"pending", "leaving", "returning"};
constexpr std::size_t kRunDigits = 32;

std::string new_run_id() {
    std::random_device device;
    std::string digits;
    while (digits.size() < kRunDigits) {
        std::array<char, 9> part{};
        std::snprintf(part.data(), part.size(), "%08x", static_cast<unsigned>(device()));
        digits += part.data();
    }
    return digits;
}

bool is_run_id(const std::string& text) {
    return text.size() == kRunDigits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// What a run of that kind can own. Whoever wrote the manifest: nothing outside of the folder is ever touched
// for it.
bool may_own(RunKind kind, const std::string& name) {
    if (name == kSummaryName) return true;
    if (kind == RunKind::kCompare)
        return name == "comparison.png" || name == "model-fp32.json" || name == "model-bf16.json";
    if (name == kMetricsName) return true;
    const std::string folder = std::string(kCheckpointsName) + "/";
    return name.starts_with(folder) && checkpoint_step(std::string_view(name).substr(folder.size())) > 0;
}

using checkpoint::JsonFields;

constexpr const char* kRemedy = "remove it, and the run is known by its files again";

/// The place of `fields`' text of that name in a table.
template <std::size_t kCount>
std::size_t place_in(const std::array<std::string_view, kCount>& known, const JsonFields& fields,
                     const char* key) {
    const auto found = std::find(known.begin(), known.end(), fields.text(key));
    if (found == known.end()) fields.fail("has a \"" + std::string(key) + "\" that is not known");
    return static_cast<std::size_t>(found - known.begin());
}

std::string run_in(const JsonFields& fields) {
    std::string run = fields.text("run");
    if (!is_run_id(run)) fields.fail("has a \"run\" that has not 32 digits");
    return run;
}

Names names_in(const JsonFields& fields, const char* key, RunKind kind) {
    Names names;
    for (const checkpoint::JsonValue& value : fields.list(key)) {
        const auto* name = value.as<std::string>();
        if (name == nullptr || !may_own(kind, *name))
            fields.fail("names in \"" + std::string(key) + "\" what is not of a run");
        names.insert(*name);
    }
    return names;
}

ReplacedRun replaced_in(const JsonFields& fields, RunKind kind) {
    ReplacedRun replaced;
    replaced.run = run_in(fields);
    replaced.owned = names_in(fields, "owns", kind);
    replaced.moved = names_in(fields, "moved", kind);
    replaced.from = fields.count("from");
    replaced.stage = static_cast<Stage>(place_in(kStages, fields, "stage"));
    for (const auto& [name, value] : fields.members("members")) {
        const auto* run = value.as<std::string>();
        if (run == nullptr) fields.fail("has \"members\" that are no texts");
        replaced.members[name] = *run;
    }
    return replaced;
}

// Every fault becomes a FormatError that names the file.
RunManifest manifest_in(const std::string& text, const fs::path& file) {
    const std::string label = checkpoint::path_label(file) + " cannot be used:";
    const checkpoint::JsonValue document = checkpoint::parse_json_object(text, label + " it");
    const JsonFields fields(document, [&] { return label + " it"; }, kRemedy);
    const std::int64_t layout = fields.count("layout");
    if (layout > kLayout) throw FormatError(label + " a newer version wrote it; update flashoptim");
    if (layout != kLayout) fields.fail("is no manifest of a run");
    RunManifest manifest;
    manifest.kind = static_cast<RunKind>(place_in(kKinds, fields, "kind"));
    manifest.run = run_in(fields);
    manifest.owned = names_in(fields, "owns", manifest.kind);
    if (fields.has("replaces")) {
        const auto label_of_replaced = [&] { return label + " its \"replaces\""; };
        manifest.replaced =
            replaced_in(JsonFields(fields.value("replaces"), label_of_replaced, kRemedy), manifest.kind);
    }
    return manifest;
}

bool is_regular(const fs::path& file) {
    std::error_code ignored;
    return fs::is_regular_file(fs::symlink_status(file, ignored));
}

bool is_metrics(const fs::path& file) {
    if (!is_regular(file)) return false;  // a pipe would be waited for
    std::ifstream stream(file);
    std::string line;
    return std::getline(stream, line) && line == metrics_header();
}

// The kind of run whose summary it is.
std::optional<RunKind> kind_of_summary(const fs::path& file) {
    if (!is_regular(file)) return std::nullopt;
    const auto run = first_run_in(file);
    if (!run || run->find("optimizer") == nullptr || run->find("bytes_per_parameter") == nullptr)
        return std::nullopt;
    return run->find("name") != nullptr ? RunKind::kCompare : RunKind::kTrain;
}

// Also one that has lost some of its files.
bool is_checkpoint(const fs::path& folder) {
    bool has_any = false;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
        const std::string name = entry->path().filename().string();
        if (!is_regular(entry->path()) ||
            (name != checkpoint::kManifestName && name != checkpoint::kMetadataName &&
             !checkpoint::is_tensor_file_name(name)))
            return false;
        has_any = true;
    }
    return has_any && !error;
}

Names own_checkpoints(const fs::path& folder) {
    Names names;
    std::error_code error;
    for (fs::directory_iterator entry(folder / kCheckpointsName, error), end; !error && entry != end;
         entry.increment(error)) {
        const std::int64_t step = checkpoint_step(entry->path().filename().string());
        if (step > 0 && is_checkpoint(entry->path())) names.insert(checkpoint_name(step));
    }
    return names;
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%08lld", static_cast<long long>(step));
    return std::string(kCheckpointsName) + "/" + std::string(kStepPrefix) + digits.data();
}

std::int64_t checkpoint_step(std::string_view folder_name) {
    if (!folder_name.starts_with(kStepPrefix)) return 0;
    std::int64_t step = 0;
    const char* const end = folder_name.data() + folder_name.size();
    const auto parsed = std::from_chars(folder_name.data() + kStepPrefix.size(), end, step);
    if (parsed.ec != std::errc() || parsed.ptr != end || step <= 0) return 0;
    return std::string_view(checkpoint_name(step)).ends_with(std::string("/").append(folder_name)) ? step : 0;
}

RunManifest new_manifest(RunKind kind) {
    RunManifest manifest;
    manifest.kind = kind;
    manifest.run = new_run_id();
    return manifest;
}

std::optional<RunManifest> read_manifest(const fs::path& folder) {
    const fs::path file = folder / kManifestName;
    if (!checkpoint::is_taken(file)) return std::nullopt;
    return manifest_in(checkpoint::InputFile(file).read_all(), file);
}

std::optional<RunManifest> adopt_run(const fs::path& folder) {
    const auto summary = kind_of_summary(folder / kSummaryName);
    RunManifest manifest;
    manifest.run.assign(kRunDigits, '0');
    manifest.owned = own_checkpoints(folder);
    if (is_metrics(folder / kMetricsName)) manifest.owned.emplace(kMetricsName);
    if (manifest.owned.empty() && summary == RunKind::kCompare) {
        manifest.kind = RunKind::kCompare;
        manifest.owned.emplace(kSummaryName);
        for (const char* model : {"model-fp32.json", "model-bf16.json"}) {
            if (kind_of_summary(folder / model)) manifest.owned.emplace(model);
        }
        if (is_regular(folder / "comparison.png")) manifest.owned.emplace("comparison.png");
    } else if (summary == RunKind::kTrain) {
        manifest.owned.emplace(kSummaryName);
    }
    return manifest.owned.empty() ? std::nullopt : std::optional(manifest);
}

void write_manifest(const fs::path& folder, const RunManifest& manifest) {
    Json json = {{"kind", kKinds.at(static_cast<std::size_t>(manifest.kind))},
                 {"layout", kLayout},
                 {"run", manifest.run},
                 {"owns", manifest.owned}};
    if (const auto& replaced = manifest.replaced) {
        json["replaces"] = {{"run", replaced->run},
                            {"owns", replaced->owned},
                            {"moved", replaced->moved},
                            {"from", replaced->from},
                            {"stage", kStages.at(static_cast<std::size_t>(replaced->stage))},
                            {"members", Json::object()}};
        for (const auto& [name, run] : replaced->members) json["replaces"]["members"][name] = run;
    }
    checkpoint::write_file(folder / kManifestName, json.dump(2) + "\n");
}

}  // namespace flashoptim::trainer
