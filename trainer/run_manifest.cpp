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

#include "checkpoint/manifest.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "system/file_io.h"
#include "system/message.h"
#include "trainer/metrics.h"

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

std::string quoted(const char* key) { return std::string("'").append(key).append("'"); }

// What is asked of the manifest; every fault becomes a FormatError that names the file.
class Reader {
public:
    Reader(fs::path file, const std::string& text) : file_(std::move(file)) {
        json_ = Json::parse(text, nullptr, /*allow_exceptions=*/false);
        if (!json_.is_object()) fail("it is no manifest of a run");
        const Json layout = json_.value("layout", Json());
        if (layout.is_number_integer() && layout.get<std::int64_t>() > kLayout)
            fail("a newer version wrote it; update flashoptim", "");
        if (layout != kLayout) fail("it is no manifest of a run");
    }

    RunManifest manifest() const {
        RunManifest manifest;
        const auto kind = std::find(kKinds.begin(), kKinds.end(), text(json_, "kind"));
        if (kind == kKinds.end()) fail("'kind' is not known");
        manifest.kind = static_cast<RunKind>(kind - kKinds.begin());
        read_run(json_, manifest.run);
        manifest.owned = names(json_, "owns", manifest.kind);
        if (json_.contains("replaces")) {
            const Json& entry = at(json_, "replaces");
            ReplacedRun& replaced = manifest.replaced.emplace();
            read_run(entry, replaced.run);
            replaced.owned = names(entry, "owns", manifest.kind);
            replaced.moved = names(entry, "moved", manifest.kind);
            const Json& from = at(entry, "from");
            if (!from.is_number_integer() || from.get<std::int64_t>() < 0) fail("'from' is no step");
            replaced.from = from.get<std::int64_t>();
            const auto stage = std::find(kStages.begin(), kStages.end(), text(entry, "stage"));
            if (stage == kStages.end()) fail("'stage' is not known");
            replaced.stage = static_cast<Stage>(stage - kStages.begin());
            const Json& members = at(entry, "members");
            if (!members.is_object()) fail("'members' is no object");
            for (const auto& [name, value] : members.items()) {
                if (!value.is_string()) fail("'members' is damaged");
                replaced.members[name] = value.get<std::string>();
            }
        }
        return manifest;
    }

private:
    [[noreturn]] void fail(
        const std::string& what,
        const char* remedy = "; remove it, and the run is known by its files again") const {
        throw FormatError(
            checkpoint::path_label(file_).append(" cannot be used: ").append(what).append(remedy));
    }
    const Json& at(const Json& object, const char* key) const {
        if (!object.is_object() || !object.contains(key)) fail(quoted(key) + " is missing");
        return object.at(key);
    }
    std::string text(const Json& object, const char* key) const {
        const Json& value = at(object, key);
        if (!value.is_string()) fail(quoted(key) + " is no text");
        return value.get<std::string>();
    }
    void read_run(const Json& object, std::string& run) const {
        run.assign(text(object, "run"));
        if (!is_run_id(run)) fail("'run' has not 32 digits");
    }
    Names names(const Json& object, const char* key, RunKind kind) const {
        const Json& list = at(object, key);
        if (!list.is_array()) fail(quoted(key) + " is no list");
        Names found;
        for (const Json& name : list) {
            if (!name.is_string() || !may_own(kind, name.get<std::string>()))
                fail(quoted(key) + " names what is not of a run");
            found.insert(name.get<std::string>());
        }
        return found;
    }

    fs::path file_;
    Json json_;
};

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
    std::ifstream stream(file);
    const Json json = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("runs")) return std::nullopt;
    const Json& runs = json.at("runs");
    if (!runs.is_array() || runs.empty() || !runs[0].is_object() || !runs[0].contains("optimizer") ||
        !runs[0].contains("bytes_per_parameter"))
        return std::nullopt;
    return runs[0].contains("name") ? RunKind::kCompare : RunKind::kTrain;
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
    return Reader(file, checkpoint::InputFile(file).read_all()).manifest();
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
