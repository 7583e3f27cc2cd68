// Reads the JSON documents of this project's files, for example Checkpoint::metadata_json: valid UTF-8,
// unique keys, bounded depth. Nothing here opens a file.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace flashoptim::checkpoint {

struct JsonMember;

/// A JSON value. Any number of threads may read it while none changes it.
class JsonValue {
public:
    using List = std::vector<JsonValue>;
    using Object = std::vector<JsonMember>;  ///< sorted by key

    /// The value null.
    JsonValue() = default;
    /// A value of one of the types of as().
    template <class T>
    explicit JsonValue(T value) : value_(std::move(value)) {}

    /// The value as a T, or null if it has another type. T is std::nullptr_t, bool, std::int64_t,
    /// std::uint64_t, double, std::string, List or Object. An integer is a std::uint64_t unless it is written
    /// with a minus. A number that is written with a point or an exponent, or that fits neither integer type,
    /// is a double.
    template <class T>
    const T* as() const {
        return std::get_if<T>(&value_);
    }
    /// As above, for changes.
    template <class T>
    T* as() {
        return std::get_if<T>(&value_);
    }
    /// The value of an object's key; null if there is none.
    const JsonValue* find(std::string_view key) const;

private:
    std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, List, Object> value_;
};

/// A key of an object and its value.
struct JsonMember {
    std::string key;  ///< unique in its object
    JsonValue value;  ///< its value
};

/// Parses a text that is one object, in a time of n log n for n bytes.
/// @param text  JSON in UTF-8
/// @param label opens the message of an error ("'file'")
/// @throws FormatError for text that is not valid JSON, is no object, is nested deeper than 64 levels, or has
///         a key twice.
JsonValue parse_json_object(std::string_view text, const std::string& label);

/// Reads the members of an object, each as the type that it must have. The object must outlive it. Every
/// function but has() and fail() throws FormatError for a member that is missing or of another type.
class JsonFields {
public:
    /// @param object any value
    /// @param label  makes the beginning of an error's message ("'file': group 1")
    /// @param remedy its end, without a full stop ("the file is damaged, use another")
    /// @throws FormatError if `object` is no object.
    JsonFields(const JsonValue& object, std::function<std::string()> label, std::string remedy);

    /// Whether there is a member of that name.
    [[nodiscard]] bool has(std::string_view key) const { return object_->find(key) != nullptr; }
    /// A member of any type.
    [[nodiscard]] const JsonValue& value(std::string_view key) const;
    /// A string.
    [[nodiscard]] const std::string& text(std::string_view key) const;
    /// true or false.
    [[nodiscard]] bool boolean(std::string_view key) const;
    /// A number, rounded to a double.
    [[nodiscard]] double number(std::string_view key) const;
    /// An integer of at least 0 and at most `most`.
    [[nodiscard]] std::int64_t count(std::string_view key, std::int64_t most = INT64_MAX) const;
    /// A list of integers of at least 0.
    [[nodiscard]] std::vector<std::int64_t> counts(std::string_view key) const;
    /// A list.
    [[nodiscard]] const JsonValue::List& list(std::string_view key) const;
    /// The members of an object.
    [[nodiscard]] const JsonValue::Object& members(std::string_view key) const;
    /// An object. Its errors name it by its key.
    [[nodiscard]] JsonFields object(std::string_view key) const;
    /// The beginning of an error's message.
    [[nodiscard]] std::string label() const { return label_(); }

    /// @throws FormatError label, `what`, remedy.
    [[noreturn]] void fail(const std::string& what) const;

private:
    [[noreturn]] void fail_at(std::string_view key, const std::string& expected) const;
    template <class T>
    [[nodiscard]] const T& at(std::string_view key, const char* expected) const;

    const JsonValue* object_;
    std::function<std::string()> label_;
    std::string remedy_;
};

}  // namespace flashoptim::checkpoint

#endif
