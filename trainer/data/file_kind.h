// Files that are no training data by what they begin with: archives, arrays, models, tables, llm.c's other
// files. Decides nothing about text and tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "trainer/data/data_file.h"

namespace flashoptim::trainer {

/// First and last bytes of a file, as much of it as its kind shows in.
struct FileEnds {
    std::span<const std::byte> first;  ///< the first kHeadBytes, or all
    std::span<const std::byte> last;   ///< the last 8, or all
    std::int64_t size = 0;             ///< of the file
};
inline constexpr std::int64_t kHeadBytes = 4096;

/// Length of llm.c's headers, 256 int32 (dev/data/data_common.py).
inline constexpr std::int64_t kHeaderBytes = 256 * 4;

/// What the file is and how to make data of it, as in "a gzip archive; unpack it first: gunzip"; nothing if
/// it may be data.
std::optional<std::string> foreign_kind(const FileEnds& ends);

/// Whether a file that is of no known kind begins with the header of another program: a magic number that is
/// a date, as llm.c's are; or 256 numbers, all but the first few of them 0, with the count of what follows
/// among them or, where tokens have 16 bits, behind a large first number with a small second one.
bool has_unknown_header(const FileEnds& ends, bool narrow_tokens);

/// Throws FormatError "<path> is <foreign_kind>" if the file is of a kind that is no data, or has
/// has_unknown_header(). Tokens of `token_bytes` are expected; 0: text, where headers are not looked for.
/// Reads the file's first and last bytes.
void refuse_foreign_kind(const DataFile& file, std::int64_t token_bytes);

}  // namespace flashoptim::trainer
