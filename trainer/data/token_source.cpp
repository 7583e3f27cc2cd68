// Where training ends and validation begins. Never interprets a byte.
#include "trainer/data/token_source.h"

#include <cmath>

#include "flashoptim/error.h"
#include "trainer/data/file_list.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

void require_length(const TokenRange& part, const char* name, const fs::path& path,
                    std::int64_t sequence_length) {
    if (part.size <= sequence_length) {
        throw InvalidArgument(path.string() + ": the " + name + " data has " + std::to_string(part.size) +
                              " tokens, one sequence needs more than " + std::to_string(sequence_length) +
                              "; give more data, another validation fraction or a shorter sequence");
    }
}

}  // namespace

std::unique_ptr<TokenSource> open_tokens(const fs::path& path, std::int64_t vocabulary_size, RawTokens raw) {
    return is_token_data(path) ? open_token_files(path, vocabulary_size, raw) : open_byte_text(path);
}

DataSet open_data(const DataOptions& options, std::int64_t vocabulary_size, std::int64_t sequence_length) {
    const double fraction = options.validation_fraction;
    if (options.validation_path.empty() && !(fraction > 0.0 && fraction < 1.0)) {
        throw InvalidArgument("the validation fraction is " + std::to_string(fraction) +
                              "; it must lie between 0 and 1, both excluded");
    }
    DataSet data;
    data.training_source = open_tokens(options.path, vocabulary_size, options.raw);
    const std::int64_t tokens = data.training_source->size();
    if (options.validation_path.empty()) {
        const auto held_out = static_cast<std::int64_t>(std::llround(fraction * static_cast<double>(tokens)));
        data.training = {data.training_source.get(), 0, tokens - held_out};
        data.validation = {data.training_source.get(), tokens - held_out, held_out};
        require_length(data.validation, "validation", options.path, sequence_length);
    } else {
        data.validation_source = open_tokens(options.validation_path, vocabulary_size, options.raw);
        if (is_token_data(options.path) != is_token_data(options.validation_path)) {
            throw FormatError(options.validation_path.string() +
                              (is_token_data(options.path) ? " is text and the training data is tokens"
                                                           : " is tokens and the training data is text") +
                              "; give validation data of the same kind");
        }
        data.training = {data.training_source.get(), 0, tokens};
        data.validation = {data.validation_source.get(), 0, data.validation_source->size()};
        require_length(data.validation, "validation", options.validation_path, sequence_length);
    }
    require_length(data.training, "training", options.path, sequence_length);
    return data;
}

DataIdentity DataSet::identity() const {
    DataIdentity identity{training_source->identity(), {}, training.size, validation.size};
    if (validation_source) identity.validation = validation_source->identity();
    return identity;
}

}  // namespace flashoptim::trainer
