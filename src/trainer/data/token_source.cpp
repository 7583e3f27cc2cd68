// Which files a data set has, which kind they are, and where training ends and validation begins. Never interprets a byte.
#include "trainer/data/token_source.h"

#include <algorithm>
#include <cmath>
#include <system_error>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

bool hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

void require_length(const TokenRange& part, const char* name, const fs::path& path,
                    std::int64_t sequence_length) {
    if (part.size <= sequence_length) {
        throw InvalidArgument(path.string() + ": the " + name + " data has " + std::to_string(part.size) +
                              " tokens, one sequence needs more than " + std::to_string(sequence_length) +
                              "; give more data, another validation fraction or a shorter sequence");
    }
}

}  // namespace

std::vector<fs::path> list_files(const fs::path& path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) {
        throw IoError(path.string() +
                      " does not exist; give a text file, a folder of text files or .bin token files");
    }
    if (!fs::is_directory(status)) {
        return {path};
    }
    std::vector<fs::path> files;
    try {
        for (auto entry = fs::recursive_directory_iterator(path); entry != fs::recursive_directory_iterator();
             ++entry) {
            if (hidden(entry->path())) {
                entry.disable_recursion_pending();
            } else if (entry->is_regular_file()) {
                files.push_back(entry->path());
            }
        }
    } catch (const fs::filesystem_error& failure) {
        throw IoError(failure.path1().string() + " cannot be read: " + failure.code().message() +
                      "; check its permissions");
    }
    if (files.empty()) {
        throw IoError(path.string() + " holds no file; give a folder of text files or .bin token files");
    }
    std::sort(files.begin(), files.end());
    return files;
}

bool is_token_data(const fs::path& path) {
    const std::vector<fs::path> files = list_files(path);
    return std::all_of(files.begin(), files.end(),
                       [](const fs::path& file) { return file.extension() == ".bin"; });
}

std::unique_ptr<TokenSource> open_tokens(const fs::path& path, std::int64_t vocabulary_size,
                                         TokenWidth width) {
    return is_token_data(path) ? open_token_files(path, vocabulary_size, width) : open_byte_text(path);
}

DataSet open_data(const DataOptions& options, std::int64_t vocabulary_size, std::int64_t sequence_length) {
    const double fraction = options.validation_fraction;
    if (options.validation_path.empty() && !(fraction > 0.0 && fraction < 1.0)) {
        throw InvalidArgument("the validation fraction is " + std::to_string(fraction) +
                              "; it must lie between 0 and 1, both excluded");
    }
    DataSet data;
    data.training_source = open_tokens(options.path, vocabulary_size, options.width);
    const std::int64_t tokens = data.training_source->size();
    if (options.validation_path.empty()) {
        const auto held_out = static_cast<std::int64_t>(std::llround(fraction * static_cast<double>(tokens)));
        data.training = {data.training_source.get(), 0, tokens - held_out};
        data.validation = {data.training_source.get(), tokens - held_out, held_out};
        require_length(data.validation, "validation", options.path, sequence_length);
    } else {
        data.validation_source = open_tokens(options.validation_path, vocabulary_size, options.width);
        data.training = {data.training_source.get(), 0, tokens};
        data.validation = {data.validation_source.get(), 0, data.validation_source->size()};
        require_length(data.validation, "validation", options.validation_path, sequence_length);
    }
    require_length(data.training, "training", options.path, sequence_length);
    return data;
}

}  // namespace flashoptim::trainer
