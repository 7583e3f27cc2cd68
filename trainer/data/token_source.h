// TokenSource, a sequence of tokens that the sampler reads. A new kind of data implements TokenSource and is
// added to open_tokens(). No torch header here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "trainer/data/identity.h"

namespace flashoptim::trainer {

/// One long sequence of tokens. Reading is thread-safe.
class TokenSource {
public:
    virtual ~TokenSource() = default;

    virtual std::int64_t size() const = 0;             ///< number of tokens, at least 1
    virtual std::int64_t vocabulary_size() const = 0;  ///< every token is smaller

    /// Copies the tokens [begin, begin + out.size()) into `out`; the range must lie within size(). Throws
    /// FormatError for a token that is not smaller than vocabulary_size(), naming it, its place and its file,
    /// and IoError for a file that was cut short or changed since it was opened.
    virtual void read(std::int64_t begin, std::span<std::int64_t> out) const = 0;

    virtual SourceIdentity identity() const = 0;  ///< of the files
};

/// Width of the tokens of a file without header; files with llm.c's header say it themselves.
enum class TokenWidth : std::uint8_t { kUInt16, kUInt32 };

/// The layout of raw tokens. A file that only looks like another width is refused if the width is the
/// default, and accepted if the user gave it.
struct RawTokens {
    TokenWidth width = TokenWidth::kUInt16;
    bool width_given = false;
};

/// Text as bytes (vocabulary 256): one UTF-8 file or a folder of them, one after the other. Throws IoError
/// (missing, empty) and FormatError: a file of another kind, or the offset of the first byte that is not
/// UTF-8 (looked for in all of up to 1 GiB, else in samples).
std::unique_ptr<TokenSource> open_byte_text(const std::filesystem::path& path);

/// Token files, one .bin or a folder of them: raw as nanoGPT writes them or with the header of llm.c (GPT-2:
/// 16 bit, Llama 3: 32 bit). Throws IoError and FormatError: a truncated file, a file of another kind, an
/// unknown header, raw tokens of another width or byte order, a token outside the vocabulary (looked for in
/// all of up to 1 GiB, else in samples and where tokens are read).
std::unique_ptr<TokenSource> open_token_files(const std::filesystem::path& path, std::int64_t vocabulary_size,
                                              RawTokens raw);

/// The smallest vocabulary for the token files of `path`: that of the tokenizer which their headers name, and
/// for files without a header, all of which it reads, their largest token + 1. Throws as open_token_files()
/// does, and FormatError for more than 2^20.
std::int64_t smallest_vocabulary(const std::filesystem::path& path, RawTokens raw);

/// The source of the tokens.
struct DataOptions {
    std::filesystem::path path;  ///< a file or a folder
    /// Separate validation data; then nothing is split off `path`. Empty: none.
    std::filesystem::path validation_path;
    double validation_fraction = 0.1;  ///< part of the end of `path` that is held out
    RawTokens raw;
};

/// Opens text or token files, by is_token_data(). `vocabulary_size` is that of token files; text has 256.
std::unique_ptr<TokenSource> open_tokens(const std::filesystem::path& path, std::int64_t vocabulary_size,
                                         RawTokens raw);

/// A contiguous part of a source, which it does not own.
struct TokenRange {
    const TokenSource* source = nullptr;
    std::int64_t begin = 0;
    std::int64_t size = 0;
};

/// Training and validation data.
struct DataSet {
    std::unique_ptr<TokenSource> training_source;
    std::unique_ptr<TokenSource> validation_source;  ///< null if validation is the end of the training source
    TokenRange training;
    TokenRange validation;

    DataIdentity identity() const;
};

/// Opens the data and holds out its validation part: the last `validation_fraction` of the tokens, or
/// `validation_path`. Throws as open_tokens() does, and InvalidArgument if either part has fewer than
/// `sequence_length + 1` tokens.
DataSet open_data(const DataOptions& options, std::int64_t vocabulary_size, std::int64_t sequence_length);

}  // namespace flashoptim::trainer
