// Access to the members of a JSON object by key and type.
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/json.h"

namespace flashoptim::checkpoint {
namespace {

std::optional<std::int64_t> count_in(const JsonValue& value, std::int64_t most) {
    const auto* number = value.as<std::uint64_t>();
    if (number == nullptr || *number > static_cast<std::uint64_t>(most)) return std::nullopt;
    return static_cast<std::int64_t>(*number);
}

std::string quoted(std::string_view key) { return std::string("\"").append(key).append("\""); }

}  // namespace

JsonFields::JsonFields(const JsonValue& object, std::function<std::string()> label, std::string remedy)
    : object_(&object), label_(std::move(label)), remedy_(std::move(remedy)) {
    if (object.as<JsonValue::Object>() == nullptr) fail("is not an object");
}

void JsonFields::fail(const std::string& what) const {
    throw FormatError(label_() + " " + what + "; " + remedy_);
}

void JsonFields::fail_at(std::string_view key, const std::string& expected) const {
    fail("has a " + quoted(key) + " that is not " + expected);
}

const JsonValue& JsonFields::value(std::string_view key) const {
    const JsonValue* value = object_->find(key);
    if (value == nullptr) fail("has no " + quoted(key));
    return *value;
}

template <class T>
const T& JsonFields::at(std::string_view key, const char* expected) const {
    const T* found = value(key).as<T>();
    if (found == nullptr) fail_at(key, expected);
    return *found;
}

const std::string& JsonFields::text(std::string_view key) const { return at<std::string>(key, "a string"); }

bool JsonFields::boolean(std::string_view key) const { return at<bool>(key, "true or false"); }

double JsonFields::number(std::string_view key) const {
    const JsonValue& found = value(key);
    if (const auto* real = found.as<double>()) return *real;
    if (const auto* positive = found.as<std::uint64_t>()) return static_cast<double>(*positive);
    if (const auto* negative = found.as<std::int64_t>()) return static_cast<double>(*negative);
    fail_at(key, "a number");
}

std::int64_t JsonFields::count(std::string_view key, std::int64_t most) const {
    if (const auto number = count_in(value(key), most)) return *number;
    fail_at(key,
            most == INT64_MAX ? "an integer of at least 0" : "an integer from 0 to " + std::to_string(most));
}

std::vector<std::int64_t> JsonFields::counts(std::string_view key) const {
    std::vector<std::int64_t> numbers;
    for (const JsonValue& element : list(key)) {
        const auto number = count_in(element, INT64_MAX);
        if (!number) fail_at(key, "a list of integers of at least 0");
        numbers.push_back(*number);
    }
    return numbers;
}

const JsonValue::List& JsonFields::list(std::string_view key) const {
    return at<JsonValue::List>(key, "a list");
}

const JsonValue::Object& JsonFields::members(std::string_view key) const {
    return at<JsonValue::Object>(key, "an object");
}

JsonFields JsonFields::object(std::string_view key) const {
    return {value(key), [label = label_, name = quoted(key)] { return label() + ": " + name; }, remedy_};
}

}  // namespace flashoptim::checkpoint
