// JSON for the reader and the writer of files, beyond the public reader: an object's members one at a time,
// and values as text. Knows no file format.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "flashoptim/json.h"

namespace flashoptim::checkpoint {

/// Receives one member of an object.
using TakeMember = std::function<void(const std::string& key, JsonValue&& value)>;

/// Parses `text`, which must be a JSON object, and passes each member to `take` in the order of the text.
/// Only one member is in memory at a time. The time is linear in the length of the text, except for the sort
/// that finds equal keys. A fault late in the text is found after `take` has received the earlier members.
/// `label` begins each message ("'file': header"). Throws FormatError, and what `take` throws.
void read_json_object(std::string_view text, const std::string& label, const TakeMember& take);

/// Returns `text` as a JSON string with quotes. Throws InvalidArgument, with `label`, if `text` is not UTF-8.
std::string json_string(std::string_view text, const std::string& label);

/// The shortest text that parses to the same number.
std::string json_number(double value);

}  // namespace flashoptim::checkpoint
