// metrics.csv: one row per step, written completely after each step. Computes no metric.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "flashoptim/system/file_io.h"
#include "trainer/progress.h"

namespace flashoptim::trainer {

/// The first line of the file, without the line end.
std::string_view metrics_header();

/// Whether the file contains anything after its header.
bool has_rows(const std::filesystem::path& file);

/// The metrics file of one run.
class MetricsFile {
public:
    /// Makes `file` with the rows of `before` (the same file, or where it was moved) up to `last_step`: rows
    /// of later steps, which a killed run left behind, and a row that it did not finish are dropped, so that
    /// the finished file equals that of a run that was never interrupted. `notice` hears of lines between the
    /// rows that are none. Throws IoError, and FormatError for a file of other columns.
    MetricsFile(const std::filesystem::path& file, const std::filesystem::path& before,
                std::int64_t last_step, const std::function<void(const std::string&)>& notice);

    /// Appends a row. Numbers are written as the shortest text that parses to the same value; absent ones are
    /// empty. Throws IoError; the file then ends with the previous row.
    void append(const StepRecord& record);

    /// Waits until all rows are on the disk. Call it before a checkpoint that relies on them. Throws IoError.
    void sync();

private:
    std::filesystem::path file_;
    checkpoint::FileDescriptor descriptor_;
};

}  // namespace flashoptim::trainer
