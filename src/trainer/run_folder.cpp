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

// The step of a checkpoint's folder, 0 for any other: only names that this program gives are taken for its own.
std::int64_t step_of(const fs::path& out, const fs::path& folder) {
    const std::string name = folder.filename().string();
    std::int64_t step = 0;
    if (!name.starts_with(kFolderPrefix)) {
        return 0;
    }
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kFolderPrefix.size(), end, step);
    const bool is_step = parsed.ec == std::errc() && parsed.ptr == end;
    return is_step && checkpoint_folder(out, step).filename() == folder.filename() ? step : 0;
}

// Checkpoints of a run, oldest first. What a killed run left unfinished is not among them.
std::vector<std::pair<std::int64_t, fs::path>> checkpoints_of(const fs::path& out) {
    std::vector<std::pair<std::int64_t, fs::path>> found;
    std::error_code error;
    for (fs::directory_iterator entry(out / "checkpoints", error), end; entry != end;
         entry.increment(error)) {
        std::error_code ignored;
        if (const std::int64_t step = step_of(out, entry->path());
            step > 0 && fs::is_directory(entry->path(), ignored)) {
            found.emplace_back(step, entry->path());
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

// That of the run that is replaced: nobody shall take it for the new one's. A folder of that name is nobody's summary.
void remove_summary(const fs::path& file) {
    std::error_code error;
    if (fs::is_regular_file(fs::symlink_status(file, error))) {
        fs::remove(file, error);
    }
    if (fs::exists(fs::symlink_status(file, error))) {
        throw IoError(file.string() + " is in the way; move it elsewhere or give another out folder");
    }
}

void remove_checkpoints_after(const fs::path& out, std::int64_t step) {
    for (const auto& [saved_step, folder] : checkpoints_of(out)) {
        if (saved_step > step) {
            checkpoint::remove(folder);
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
    if (checkpoint::exists(path)) {
        return path;
    }
    throw IoError(path.string() +
                  " holds no checkpoint; give a checkpoint or the out folder of a run that wrote one");
}

std::int64_t newest_checkpoint_step(const fs::path& out) {
    const auto found = checkpoints_of(out);
    return found.empty() ? 0 : found.back().first;
}

std::vector<std::string> remove_old_checkpoints(const fs::path& out, std::int64_t kept) {
    std::vector<std::string> left;
    const auto found = checkpoints_of(out);
    const std::size_t surplus = found.size() - std::min(found.size(), static_cast<std::size_t>(kept));
    for (std::size_t index = 0; index < surplus; ++index) {
        try {
            checkpoint::remove(found[index].second);
        } catch (const IoError& error) {
            left.emplace_back(error.what());
        }
    }
    return left;
}

bool holds_run(const fs::path& out) {
    std::error_code error;
    return fs::exists(out / "metrics.csv", error) || fs::exists(out / "summary.json", error) ||
           newest_checkpoint_step(out) > 0;
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
        remove_summary(out / "summary.json");
    }
    return continues;
}

}  // namespace flashoptim::trainer
