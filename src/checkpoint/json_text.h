// JSON as our files may hold it: valid UTF-8, one value for a key, bounded depth. Knows no file format beyond
// that.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace flashoptim::checkpoint {

/// The object that `text` is. `label` opens the message ("'file': header"). Throws FormatError.
nlohmann::json parse_json_object(std::string_view text, const std::string& label);

/// `text` as a JSON string with its quotes. Throws InvalidArgument, with `label`, if it is not UTF-8.
std::string json_string(std::string_view text, const std::string& label);

}  // namespace flashoptim::checkpoint
