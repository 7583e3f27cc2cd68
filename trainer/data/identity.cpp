// Comparing what data was with what it is.
#include "trainer/data/identity.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <map>

namespace flashoptim::trainer {
namespace {

constexpr std::size_t kHashDigits = 16;

std::string count_of_files(std::size_t count) {
    return std::to_string(count) + (count == 1 ? " file" : " files");
}

// `data` is "training" or "validation".
std::optional<std::string> difference(const SourceIdentity& before, const SourceIdentity& now,
                                      const std::string& data) {
    if (before.kind != now.kind) {
        return "the " + data + " data was read as " + before.kind + " and is " + now.kind;
    }
    if (before.files == now.files) {
        return std::nullopt;
    }
    std::map<FileIdentity, std::size_t> missing;  // how many of each content the data had
    for (const FileIdentity& file : before.files) {
        ++missing[file];
    }
    for (std::size_t index = 0; index < now.files.size(); ++index) {
        const auto known = missing.find(now.files[index]);
        if (known == missing.end() || known->second == 0) {
            std::string what = now.paths[index].string() + " is not what the " + data + " data had";
            if (index < before.files.size() && before.files.size() == now.files.size()) {
                const std::int64_t was = before.files[index].size;
                const std::int64_t is = now.files[index].size;
                what += was == is
                            ? " (its content was changed)"
                            : " (" + std::to_string(is) + " bytes instead of " + std::to_string(was) + ")";
            } else {
                what += " (" + count_of_files(now.files.size()) + " instead of " +
                        std::to_string(before.files.size()) + ")";
            }
            return what;
        }
        --known->second;
    }
    if (now.files.size() < before.files.size()) {
        return "the " + data + " data had " + count_of_files(before.files.size()) + " and has " +
               std::to_string(now.files.size());
    }
    const auto moved = std::mismatch(now.files.begin(), now.files.end(), before.files.begin());
    return "the files of the " + data + " data are in another order, from " +
           now.paths[static_cast<std::size_t>(moved.first - now.files.begin())].string() + " on";
}

std::optional<std::string> difference(std::int64_t before, std::int64_t now, const std::string& data) {
    if (before == now) {
        return std::nullopt;
    }
    return "the " + data + " data had " + std::to_string(before) + " tokens and has " + std::to_string(now) +
           " (another validation fraction)";
}

}  // namespace

std::optional<std::string> difference(const DataIdentity& before, const DataIdentity& now) {
    if (auto found = difference(before.training, now.training, "training")) {
        return found;
    }
    if (before.validation.has_value() != now.validation.has_value()) {
        return before.validation
                   ? "the validation data had files of its own and is a part of the training data"
                   : "the validation data was a part of the training data and has files of its own";
    }
    if (before.validation) {
        if (auto found = difference(*before.validation, *now.validation, "validation")) {
            return found;
        }
    }
    if (auto found = difference(before.training_tokens, now.training_tokens, "training")) {
        return found;
    }
    return difference(before.validation_tokens, now.validation_tokens, "validation");
}

std::string to_text(const FileIdentity& file) {
    std::array<char, kHashDigits + 1> digits{};
    std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(file.hash));
    return std::to_string(file.size) + " " + digits.data();
}

std::optional<FileIdentity> file_identity(const std::string& text) {
    FileIdentity file;
    const char* const end = text.data() + text.size();
    const auto size = std::from_chars(text.data(), end, file.size);
    if (size.ec != std::errc() || file.size < 0 || end - size.ptr != 1 + std::ptrdiff_t{kHashDigits} ||
        *size.ptr != ' ') {
        return std::nullopt;
    }
    const auto hash = std::from_chars(size.ptr + 1, end, file.hash, 16);
    if (hash.ec != std::errc() || hash.ptr != end) {
        return std::nullopt;
    }
    return file;
}

}  // namespace flashoptim::trainer
