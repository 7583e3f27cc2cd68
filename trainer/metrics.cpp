// Writes and trims metrics.csv. Computes no metric.
#include "trainer/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/system/message.h"

namespace flashoptim::trainer {
namespace {

constexpr std::string_view kHeader =
    "step,loss,validation_loss,learning_rate,gradient_norm,tokens,tokens_per_second,seconds,optimizer_"
    "seconds,resident_bytes";
constexpr std::ptrdiff_t kColumns = 10;

template <typename Number>
std::string text(Number value) {
    std::array<char, 64> buffer{};
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
    return {buffer.data(), end};
}

std::string text(const std::optional<double>& value) { return value ? text(*value) : std::string(); }

// The step of a complete row, or 0 for any other line.
std::int64_t step_of(const std::string& line) {
    std::int64_t step = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), step);
    const bool has_step =
        parsed.ec == std::errc() && parsed.ptr != line.data() + line.size() && *parsed.ptr == ',';
    const bool has_all = std::count(line.begin(), line.end(), ',') == kColumns - 1 &&
                         line.find_first_not_of("0123456789+-.,einfa") == std::string::npos;
    return has_step && has_all ? step : 0;
}

// The header and the complete rows up to `last_step`.
std::string rows_to_keep(const std::filesystem::path& file, std::int64_t last_step,
                         const std::function<void(const std::string&)>& notice) {
    std::string kept = std::string(kHeader) + "\n";
    if (last_step == 0) return kept;
    std::ifstream stream(file);
    std::string line;
    const bool has_header = static_cast<bool>(std::getline(stream, line));
    if (has_header && line != kHeader) {
        throw FormatError(file.string() +
                          " has other columns than this version writes; resume into another folder");
    }
    std::int64_t step_before = 0, foreign = 0, rows = 0, first = 1;
    while (std::getline(stream, line) &&
           !stream.eof()) {  // a last line without a newline is an incomplete row
        const std::int64_t step = step_of(line);
        if (step <= step_before) {
            ++foreign;
        } else if (step <= last_step) {
            if (rows++ == 0) first = step;  // of a run that was resumed into this folder
            kept += line + "\n";
            step_before = step;
        }
    }
    if (foreign > 0) {
        notice(checkpoint::path_label(file) + ": " + std::to_string(foreign) +
               (foreign == 1 ? " line that is" : " lines that are") + " no row of a new step dropped");
    }
    if (const std::int64_t lost = last_step - first + 1 - rows; lost > 0) {
        notice(checkpoint::path_label(file) + ": " + std::to_string(lost) +
               (lost == 1 ? " row is" : " rows are") + " missing up to step " + std::to_string(last_step) +
               "; those to come are appended");
    }
    return kept;
}

}  // namespace

std::string_view metrics_header() { return kHeader; }

bool has_rows(const std::filesystem::path& file) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(file, error);
    return !error && bytes > kHeader.size() + 1;
}

MetricsFile::MetricsFile(const std::filesystem::path& file, const std::filesystem::path& before,
                         std::int64_t last_step, const std::function<void(const std::string&)>& notice)
    : file_(file) {
    checkpoint::write_file(file, rows_to_keep(before, last_step, notice));
    descriptor_ = checkpoint::FileDescriptor(::open(file.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    if (!descriptor_) checkpoint::throw_io_error("write", file_, errno);
}

void MetricsFile::append(const StepRecord& record) {
    const std::string row = text(record.step) + ',' + text(record.loss) + ',' + text(record.validation_loss) +
                            ',' + text(record.learning_rate) + ',' + text(record.gradient_norm) + ',' +
                            text(record.tokens) + ',' + text(record.tokens_per_second) + ',' +
                            text(record.seconds) + ',' + text(record.optimizer_seconds) + ',' +
                            text(record.resident_bytes) + '\n';
    const off_t end = ::lseek(descriptor_.get(), 0, SEEK_END);
    try {
        checkpoint::write_all(descriptor_, row, file_);
    } catch (const Error&) {
        if (end >= 0) {
            [[maybe_unused]] const int result = ::ftruncate(descriptor_.get(), end);
        }
        throw;
    }
}

void MetricsFile::sync() { checkpoint::sync(descriptor_, file_); }

}  // namespace flashoptim::trainer
