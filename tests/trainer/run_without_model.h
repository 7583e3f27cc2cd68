// A run without a model, which does with its folder what the training loop does: its whole state is a number
// that each step changes. Thousands of them can be killed in a second. Asserts nothing.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

#include "flashoptim/checkpoint.h"
#include "trainer/metrics.h"
#include "trainer/run_folder.h"

namespace flashoptim::trainer {

struct FakeRun {
    std::uint32_t seed = 1;
    std::int64_t steps = 4;
    std::int64_t interval = 2;
    std::int64_t kept = 0;
    bool resume = false;
    std::int64_t resume_step = 0;  ///< 0: the newest
    bool overwrite = false;
    std::int64_t fails_in_step = 0;
};

struct FakeFailure {};

inline std::uint32_t fake_state(std::uint32_t seed, std::int64_t step) {
    return seed * 1664525U + static_cast<std::uint32_t>(step) * 1013904223U;
}

/// What a checkpoint holds: its run's seed and step.
inline std::pair<std::uint32_t, std::int64_t> read_fake(const std::filesystem::path& folder) {
    const auto file = checkpoint::Checkpoint::open(folder).file("state");
    const auto bytes = file.read(file.tensor("state"));
    std::array<std::uint32_t, 3> values{};
    std::memcpy(values.data(), bytes.data(), sizeof values);
    const bool is_right = values[2] == fake_state(values[0], values[1]);
    return {is_right ? values[0] : 0, values[1]};
}

inline void write_fake(const std::filesystem::path& folder, std::uint32_t seed, std::int64_t step) {
    const std::array<std::uint32_t, 3> values = {seed, static_cast<std::uint32_t>(step),
                                                 fake_state(seed, step)};
    const checkpoint::TensorFile file = {
        "state", {{"state", checkpoint::StorageType::kUInt32, {3}, std::as_bytes(std::span(values))}}};
    checkpoint::write(folder, "{}", {&file, 1});
}

/// Runs it. `done` becomes the step of each checkpoint once it is complete, for
/// whoever survives this process.
inline void run_fake(
    const std::filesystem::path& out, const FakeRun& run, std::int64_t* done = nullptr,
    const Notice& notice = [](const std::string&) {}) {
    RunFolder folder(out, notice);
    std::filesystem::path from;
    if (run.resume)
        from = run.resume_step > 0 ? checkpoint_folder(out, run.resume_step) : find_checkpoint(out, notice);
    folder.require_permission(from, run.steps, run.overwrite);
    std::uint32_t seed = run.seed;
    std::int64_t step = 0;
    if (!from.empty()) std::tie(seed, step) = read_fake(from);
    const bool continues = folder.begin(from, step, run.steps, run.overwrite);
    MetricsFile metrics(folder.metrics(), folder.metrics_so_far(), continues ? step : 0, notice);
    while (step < run.steps) {
        ++step;
        if (step == run.fails_in_step) throw FakeFailure();
        StepRecord record;
        record.step = step;
        record.loss = fake_state(seed, step);
        metrics.append(record);
        if (step % run.interval != 0 && step != run.steps) continue;
        metrics.sync();
        folder.begin_checkpoint(step);
        write_fake(checkpoint_folder(out, step), seed, step);
        if (done != nullptr) *done = step;
        folder.end_checkpoint();
        if (run.kept > 0) folder.remove_old_checkpoints(run.kept);
    }
    if (run.kept > 0) folder.remove_old_checkpoints(run.kept);
    checkpoint::write_file(out / kSummaryName, "{\"seed\": " + std::to_string(seed) + "}");
    folder.end();
}

/// Every file below `folder` by its name in it, with its content; folders end in a slash.
inline std::map<std::string, std::string> tree_of(const std::filesystem::path& folder, bool with_own = true) {
    std::map<std::string, std::string> tree;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
        const std::string name = entry.path().lexically_relative(folder).string();
        if (!with_own && (name == kManifestName || name == kLockName)) continue;
        if (entry.is_directory()) {
            tree[name + "/"];
        } else {
            std::ifstream stream(entry.path(), std::ios::binary);
            tree[name].assign(std::istreambuf_iterator<char>(stream), {});
        }
    }
    return tree;
}

/// A number that is seen by this process and its children.
class SharedNumber {
public:
    SharedNumber()
        : value_(static_cast<std::int64_t*>(::mmap(nullptr, sizeof(std::int64_t), PROT_READ | PROT_WRITE,
                                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
    SharedNumber(const SharedNumber&) = delete;
    SharedNumber& operator=(const SharedNumber&) = delete;
    ~SharedNumber() { ::munmap(value_, sizeof(std::int64_t)); }
    std::int64_t* get() { return value_; }
    std::int64_t value() const { return *static_cast<volatile std::int64_t*>(value_); }

private:
    std::int64_t* value_;
};

/// A folder of its own, in memory where that is possible: thousands of runs sync their files there.
class FastFolder {
public:
    FastFolder() {
        const std::filesystem::path memory = "/dev/shm";
        const auto base =
            ::access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::temp_directory_path();
        path_ = base / ("flashoptim-runs-" + std::to_string(::getpid()));
        std::filesystem::remove_all(path_);
        std::filesystem::create_directories(path_);
    }
    FastFolder(const FastFolder&) = delete;
    FastFolder& operator=(const FastFolder&) = delete;
    ~FastFolder() {
        std::error_code error;
        std::filesystem::remove_all(path_, error);
    }
    std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

private:
    std::filesystem::path path_;
};

}  // namespace flashoptim::trainer
