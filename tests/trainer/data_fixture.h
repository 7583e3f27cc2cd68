// Token files and their widths for tests of data. Asserts nothing.
#pragma once

#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "trainer/data/token_source.h"

namespace flashoptim::trainer {

inline constexpr RawTokens kNarrow{TokenWidth::kUInt16, true};
inline constexpr RawTokens kWide{TokenWidth::kUInt32, true};

template <typename Value>
std::string raw(const std::vector<Value>& values) {
    std::string bytes(values.size() * sizeof(Value), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

/// A token file as llm.c writes it.
template <typename Token>
std::string llmc(std::int32_t magic, std::int32_t version, std::int32_t announced,
                 const std::vector<Token>& tokens) {
    std::vector<std::int32_t> header(256, 0);
    header[0] = magic;
    header[1] = version;
    header[2] = announced;
    return raw(header) + raw(tokens);
}

/// 0, 1, 2, ...
template <typename Token>
std::vector<Token> counting(std::size_t count) {
    std::vector<Token> tokens(count);
    std::iota(tokens.begin(), tokens.end(), Token{0});
    return tokens;
}

/// Tokens below `vocabulary`, the small ones more often, as tokenizers give them; the largest is among them.
inline std::vector<std::uint32_t> random_tokens(std::size_t count, std::uint32_t vocabulary) {
    std::vector<std::uint32_t> tokens(count);
    std::uint64_t state = vocabulary;
    for (std::uint32_t& token : tokens) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        const double share = static_cast<double>(state >> 11) / 9007199254740992.0;
        token = static_cast<std::uint32_t>(share * share * vocabulary);
    }
    tokens[count / 2] = vocabulary - 1;
    return tokens;
}

inline std::vector<std::int64_t> all_tokens(const TokenSource& source) {
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(source.size()));
    source.read(0, tokens);
    return tokens;
}

inline bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace flashoptim::trainer
