// Writing and trimming of metrics.csv. Never computes a metric.
#include "trainer/metrics.h"

#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

constexpr std::string_view kHeader =
    "step,loss,validation_loss,learning_rate,gradient_norm,tokens,tokens_per_second,seconds,optimizer_"
    "seconds,resident_bytes";

template <typename Number>
std::string text(Number value) {
    std::array<char, 64> buffer{};
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
    return {buffer.data(), end};
}

std::string text(const std::optional<double>& value) { return value ? text(*value) : std::string(); }

// The header and the complete rows up to `last_step`.
std::string rows_to_keep(const std::filesystem::path& file, std::int64_t last_step) {
    std::string kept = std::string(kHeader) + "\n";
    std::ifstream stream(file);
    std::string line;
    if (last_step == 0 || !std::getline(stream, line)) {
        return kept;
    }
    if (line != kHeader) {
        throw FormatError(file.string() +
                          " has other columns than this version writes; resume into another folder");
    }
    while (std::getline(stream, line) &&
           !stream.eof()) {  // what ends the file without a newline is half a row
        std::int64_t step = 0;
        const auto parsed = std::from_chars(line.data(), line.data() + line.size(), step);
        if (parsed.ec != std::errc() || step > last_step) {
            break;
        }
        kept += line + "\n";
    }
    return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& file, std::int64_t last_step) : file_(file) {
    checkpoint::write_file(file, rows_to_keep(file, last_step));
    stream_.open(file, std::ios::app);
    if (!stream_) {
        throw IoError(file.string() + " cannot be written; check the permissions of its folder");
    }
}

void MetricsFile::append(const StepRecord& record) {
    stream_ << text(record.step) << ',' << text(record.loss) << ',' << text(record.validation_loss) << ','
            << text(record.learning_rate) << ',' << text(record.gradient_norm) << ',' << text(record.tokens)
            << ',' << text(record.tokens_per_second) << ',' << text(record.seconds) << ','
            << text(record.optimizer_seconds) << ',' << text(record.resident_bytes) << '\n';
    stream_.flush();
    if (!stream_) {
        throw IoError(file_.string() + " cannot be written; check that the disk is not full");
    }
}

}  // namespace flashoptim::trainer
