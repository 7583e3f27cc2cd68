// JSON as our files may hold it: valid UTF-8, one value for a key, bounded depth. Knows no file format beyond
// that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace flashoptim::checkpoint {

struct JsonMember;

/// A value that was read. (The parsing library's own values allocate memory when they are destroyed, which
/// ends the process where there is none.)
class JsonValue {
public:
    using List = std::vector<JsonValue>;
    using Object = std::vector<JsonMember>;  // sorted by key

    JsonValue() = default;
    template <class T>
    explicit JsonValue(T value) : value_(std::move(value)) {}

    /// The value as a T, or null if it is another. An integer is an std::uint64_t unless it is
    /// written with a minus; a number that is written with a point or an exponent, or that fits
    /// neither integer, is a double.
    template <class T>
    const T* as() const {
        return std::get_if<T>(&value_);
    }
    template <class T>
    T* as() {
        return std::get_if<T>(&value_);
    }
    /// The value of an object's key; null if there is none.
    const JsonValue* find(std::string_view key) const;

private:
    std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, List, Object> value_;
};

struct JsonMember {
    std::string key;
    JsonValue value;
};

/// Takes one member of an object.
using TakeMember = std::function<void(const std::string& key, JsonValue&& value)>;

/// Hands every member of the object that `text` is to `take`, in the order of the text and while it is
/// read, so that no more than one member is in memory. The work grows with the length of the text, but
/// for the logarithm in looking for equal keys. A fault that comes late in the text is found after the
/// members before it were handed over. `label` opens the message ("'file': header"). Throws
/// FormatError, and what `take` throws.
void read_json_object(std::string_view text, const std::string& label, const TakeMember& take);

/// The object that `text` is. Throws FormatError.
JsonValue parse_json_object(std::string_view text, const std::string& label);

/// `text` as a JSON string with its quotes. Throws InvalidArgument, with `label`, if it is not UTF-8.
std::string json_string(std::string_view text, const std::string& label);

/// The shortest text that is read as the same number.
std::string json_number(double value);

}  // namespace flashoptim::checkpoint
