// Helpers of the tests of checkpoints: a folder for a test, raw files, messages of errors, a small
// checkpoint, child processes.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint_writer.h"
#include "flashoptim/checkpoint.h"

namespace flashoptim::checkpoint {

/// A folder in memory where the system has one: for tests that write thousands of times and
/// do not ask what a disk does.
inline std::filesystem::path fast_place() {
    constexpr const char* kSharedMemory = "/dev/shm";
    return ::access(kSharedMemory, W_OK) == 0 ? kSharedMemory : std::filesystem::temp_directory_path();
}

/// A new folder, removed with everything in it.
class TestFolder {
public:
    explicit TestFolder(const std::filesystem::path& place = std::filesystem::temp_directory_path()) {
        std::string name = (place / "flashoptim-test-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder for the test");
        path_ = std::filesystem::canonical(name);
    }
    TestFolder(const TestFolder&) = delete;
    TestFolder& operator=(const TestFolder&) = delete;
    ~TestFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
    const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
};

inline std::string read_raw(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write_raw(const std::filesystem::path& file, std::string_view content) {
    std::ofstream(file, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
}

/// Replaces one byte of `file` where it lies.
inline void replace_byte(const std::filesystem::path& file, std::size_t place, unsigned value) {
    std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekp(static_cast<std::streamoff>(place)).put(static_cast<char>(value));
}

/// The 8 bytes that open a safetensors file whose header has `length` bytes.
inline std::string length_prefix(std::uint64_t length) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xFF);
    return bytes;
}

/// A safetensors file with any header, right or wrong, and `data_bytes` bytes after it.
inline std::string raw_safetensors(std::string_view header, std::size_t data_bytes) {
    return length_prefix(header.size()).append(header).append(data_bytes, '\1');
}

/// Names of what lies in `folder`.
inline std::set<std::string> names_in(const std::filesystem::path& folder) {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        names.insert(entry.path().filename().string());
    return names;
}

/// The message of the `Expected` error that `action` must throw: one line. Empty, with a failure, if it
/// throws nothing or another.
template <typename Expected, typename Action>
std::string message_of(Action action) {
    try {
        action();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Expected& error) {
        const std::string message = error.what();
        EXPECT_EQ(message.find('\n'), std::string::npos) << message;
        return message;
    } catch (const std::exception& error) {
        ADD_FAILURE() << "another error was thrown: " << error.what();
    }
    return {};
}

inline void expect_contains(const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" is not in: " << message;
}

template <typename T>
std::vector<T> read_as(const SafetensorsFile& file, std::string_view name) {
    const TensorInfo& tensor = file.tensor(name);
    std::vector<T> values(tensor.byte_count / sizeof(T));
    file.read(tensor, std::as_writable_bytes(std::span(values)));
    return values;
}

/// Names the cases of a test that runs with both values.
inline std::string replace_name(const ::testing::TestParamInfo<Replace>& replace) {
    return replace.param == Replace::kMoveAside ? "MoveAside" : "Swap";
}

/// A checkpoint in which every value is `step`: two tensor files and the metadata {"step":<step>}.
struct StepCheckpoint {
    explicit StepCheckpoint(std::int32_t step, std::size_t element_count = 1000)
        : metadata("{\"step\":" + std::to_string(step) + "}"), values(element_count, step) {
        const TensorData tensor{.name = "layer.weight",
                                .dtype = StorageType::kInt32,
                                .shape = {static_cast<std::int64_t>(element_count)},
                                .bytes = std::as_bytes(std::span(values))};
        files = {{.name = "weights", .tensors = {tensor}}, {.name = "optimizer", .tensors = {tensor}}};
    }
    StepCheckpoint(const StepCheckpoint&) = delete;
    StepCheckpoint& operator=(const StepCheckpoint&) = delete;

    std::uint64_t write_to(const std::filesystem::path& folder,
                           Replace how = Replace::kSwapIfPossible) const {
        return write_checkpoint(folder, metadata, files, how);
    }

    std::string metadata;
    std::vector<std::int32_t> values;
    std::vector<TensorFile> files;
};

/// The step of the checkpoint in `folder`, or -1 if anything in it is of another step.
/// Throws what opening throws.
inline std::int32_t step_in(const std::filesystem::path& folder) {
    const Checkpoint checkpoint = Checkpoint::open(folder);
    std::int32_t step = -1;
    for (const char* name : {"weights", "optimizer"}) {
        for (const std::int32_t value : read_as<std::int32_t>(checkpoint.file(name), "layer.weight")) {
            if (step == -1) step = value;
            if (value != step) return -1;
        }
    }
    return checkpoint.metadata_json() == "{\"step\":" + std::to_string(step) + "}" ? step : -1;
}

/// Runs `action` in a child process and returns what it returned: a report of what
/// went wrong there, or nothing.
template <typename Action>
std::string in_child(Action action) {
    int ends[2];
    if (::pipe(ends) != 0) return "no pipe";
    const pid_t child = ::fork();
    if (child < 0) return "no child process";
    if (child == 0) {
        std::string report;
        try {
            report = action();
        } catch (const std::exception& error) {
            report = error.what();
        }
        const bool told =
            ::write(ends[1], report.data(), report.size()) == static_cast<ssize_t>(report.size());
        ::_exit(told ? 0 : 1);
    }
    ::close(ends[1]);
    std::string report;
    char buffer[512];
    for (ssize_t count = 0; (count = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
        report.append(buffer, static_cast<std::size_t>(count));
    }
    ::close(ends[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    return status == 0 ? report : "the child died with status " + std::to_string(status) + " " + report;
}

}  // namespace flashoptim::checkpoint
