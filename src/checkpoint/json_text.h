// What the reader and the writer of files need of JSON beside the public reader: members as they come, and
// text. Knows no file format.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "flashoptim/json.h"

namespace flashoptim::checkpoint {

/// Takes one member of an object.
using TakeMember = std::function<void(const std::string& key, JsonValue&& value)>;

/// Hands every member of the object that `text` is to `take`, in the order of the text and while it is
/// read, so that no more than one member is in memory. The work grows with the length of the text, but
/// for the logarithm in looking for equal keys. A fault that comes late in the text is found after the
/// members before it were handed over. `label` opens the message ("'file': header"). Throws
/// FormatError, and what `take` throws.
void read_json_object(std::string_view text, const std::string& label, const TakeMember& take);

/// `text` as a JSON string with its quotes. Throws InvalidArgument, with `label`, if it is not UTF-8.
std::string json_string(std::string_view text, const std::string& label);

/// The shortest text that is read as the same number.
std::string json_number(double value);

}  // namespace flashoptim::checkpoint
