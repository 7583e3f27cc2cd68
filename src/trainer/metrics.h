// metrics.csv: one row for each step, complete on the disk after each. Never computes a metric.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>

#include "trainer/progress.h"

namespace flashoptim::trainer {

/// The file of metrics of one run.
class MetricsFile {
public:
    /// Opens `file` for rows after `last_step`: rows of later steps, which a killed run left behind, are dropped, so that the
    /// finished file equals that of a run that was never interrupted. Throws IoError, and FormatError for a file of other columns.
    MetricsFile(const std::filesystem::path& file, std::int64_t last_step);

    /// Appends a row and flushes it. Numbers are the shortest that read back as the same value; what is absent is left empty.
    void append(const StepRecord& record);

private:
    std::filesystem::path file_;
    std::ofstream stream_;
};

}  // namespace flashoptim::trainer
