// Finding, counting and removing what runs left behind.
#include "trainer/run_folder.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFolderPrefix = "step-";

// The step of a checkpoint's folder name, 0 for any other name.
std::int64_t step_of(const fs::path& folder) {
    const std::string name = folder.filename().string();
    std::int64_t step = 0;
    if (!name.starts_with(kFolderPrefix)) {
        return 0;
    }
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kFolderPrefix.size(), end, step);
    return parsed.ec == std::errc() && parsed.ptr == end ? step : 0;
}

// Checkpoints of a run, oldest first. Folders that a killed run left under a temporary name are not among them.
std::vector<std::pair<std::int64_t, fs::path>> checkpoints_of(const fs::path& out) {
    std::vector<std::pair<std::int64_t, fs::path>> found;
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(out / "checkpoints", error)) {
        if (const std::int64_t step = step_of(entry.path()); step > 0 && checkpoint::recover(entry.path())) {
            found.emplace_back(step, entry.path());
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

bool is_checkpoint_of(const fs::path& folder, const fs::path& out) {
    const auto found = checkpoints_of(out);
    return std::any_of(found.begin(), found.end(), [&](const auto& checkpoint) {
        std::error_code error;
        return fs::equivalent(checkpoint.second, folder, error);
    });
}

void remove_path(const fs::path& path) {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) {
        throw IoError(path.string() + " cannot be removed: " + error.message() + "; check its permissions");
    }
}

void remove_checkpoints_after(const fs::path& out, std::int64_t step) {
    for (const auto& [saved_step, folder] : checkpoints_of(out)) {
        if (saved_step > step) {
            remove_path(folder);
        }
    }
}

}  // namespace

fs::path checkpoint_folder(const fs::path& out, std::int64_t step) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%08lld", static_cast<long long>(step));
    return out / "checkpoints" / (std::string(kFolderPrefix) + digits.data());
}

fs::path find_checkpoint(const fs::path& path) {
    const auto found = checkpoints_of(path);
    if (!found.empty()) {
        return found.back().second;
    }
    if (checkpoint::recover(path)) {
        return path;
    }
    throw IoError(path.string() +
                  " holds no checkpoint; give a checkpoint or the out folder of a run that wrote one");
}

std::int64_t newest_checkpoint_step(const fs::path& out) {
    const auto found = checkpoints_of(out);
    return found.empty() ? 0 : found.back().first;
}

void remove_old_checkpoints(const fs::path& out, std::int64_t kept) {
    const auto found = checkpoints_of(out);
    const std::size_t surplus = found.size() - std::min(found.size(), static_cast<std::size_t>(kept));
    for (std::size_t index = 0; index < surplus; ++index) {
        remove_path(found[index].second);
    }
}

bool holds_run(const fs::path& out) {
    std::error_code error;
    return fs::exists(out / "metrics.csv", error) || newest_checkpoint_step(out) > 0;
}

bool claim_run_folder(const fs::path& out, const fs::path& resumed_from, std::int64_t step, bool overwrite) {
    const bool continues = !resumed_from.empty() && is_checkpoint_of(resumed_from, out);
    const std::int64_t newest = newest_checkpoint_step(out);
    if (!overwrite && !continues && holds_run(out)) {
        throw InvalidArgument(
            out.string() +
            " holds a run already; resume it, allow overwriting it, or give another out folder");
    }
    if (!overwrite && newest > step) {
        throw InvalidArgument(out.string() + " holds a checkpoint of step " + std::to_string(newest) +
                              ", later than the one to resume; resume that, allow overwriting it, or "
                              "give another out folder");
    }
    remove_checkpoints_after(out, continues ? step : 0);
    if (!continues) {
        remove_path(out / "summary.json");
    }
    return continues;
}

}  // namespace flashoptim::trainer
