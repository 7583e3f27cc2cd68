// JSON as our files may contain it.
#include "json_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/system/message.h"

namespace flashoptim::checkpoint {
namespace {

using nlohmann::json;

constexpr std::size_t kDeepest = 64;  // levels; our files need 3, callers' metadata rarely 10

// Turns the events of the parser into the members of an object, one at a time, and refuses what the parser
// would accept silently.
//
// The parser's own value type is not used: its destructor allocates memory, so the process ends if there is
// none. The parser's own callbacks are not used either: they search the whole object whenever a nested one
// ends. Here the cost of an event does not depend on what was read before.
class MemberReader {
public:
    MemberReader(const std::string& label, const TakeMember& take) : label_(label), take_(take) {}

    // The parser prescribes these names and signatures.
    bool null() { return add(JsonValue()); }
    bool boolean(bool value) { return add(JsonValue(value)); }
    bool number_integer(std::int64_t value) { return add(JsonValue(value)); }
    bool number_unsigned(std::uint64_t value) { return add(JsonValue(value)); }
    bool number_float(double value, const std::string& /*text*/) { return add(JsonValue(value)); }
    bool string(std::string& value) { return add(JsonValue(std::move(value))); }
    bool binary(json::binary_t& /*value*/) { return false; }  // text has no binary values
    bool start_object(std::size_t /*size*/) {
        if (depth_ == 0) {
            ++depth_;
            return true;
        }
        return open(JsonValue(JsonValue::Object()));
    }
    bool start_array(std::size_t /*size*/) { return open(JsonValue(JsonValue::List())); }
    bool end_object() {
        if (!open_.empty()) sort_and_check(*open_.back()->as<JsonValue::Object>());
        return close();
    }
    bool end_array() { return close(); }
    bool key(std::string& name) {
        if (open_.empty()) {
            keys_.push_back(std::move(name));
        } else {
            open_.back()->as<JsonValue::Object>()->push_back({std::move(name), JsonValue()});
        }
        return true;
    }
    bool parse_error(std::size_t /*position*/, const std::string& /*last*/, const json::exception& error) {
        throw FormatError(label_ + " is not valid JSON (" + printable(error.what()) +
                          "); check that this is the right file and that it is complete");
    }

    // Call this at the end of the text.
    void check_keys() {
        std::sort(keys_.begin(), keys_.end());
        const auto twice = std::adjacent_find(keys_.begin(), keys_.end());
        if (twice != keys_.end()) refuse_second(*twice);
    }

private:
    [[noreturn]] void refuse_second(const std::string& key) const {
        throw FormatError(label_ + " has the key \"" + printable(key) + "\" twice; write the file again");
    }
    // Finds equal keys by sorting. Unlike a hash table, a sort cannot be made slow by a choice of keys.
    void sort_and_check(JsonValue::Object& members) const {
        std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
        const auto twice = std::adjacent_find(members.begin(), members.end(),
                                              [](const auto& a, const auto& b) { return a.key == b.key; });
        if (twice != members.end()) refuse_second(twice->key);
    }
    JsonValue& put(JsonValue&& value) {
        if (open_.empty()) return value_ = std::move(value);
        if (auto* elements = open_.back()->as<JsonValue::List>()) {
            elements->push_back(std::move(value));
            return elements->back();
        }
        return open_.back()->as<JsonValue::Object>()->back().value = std::move(value);
    }
    bool add(JsonValue&& value) {
        put(std::move(value));
        if (open_.empty()) take_(keys_.back(), std::move(value_));
        return true;
    }
    bool open(JsonValue&& container) {
        if (depth_ >= kDeepest) {
            throw FormatError(label_ + " is nested deeper than " + std::to_string(kDeepest) +
                              " levels; check where the file comes from");
        }
        open_.push_back(&put(std::move(container)));
        ++depth_;
        return true;
    }
    bool close() {
        --depth_;
        if (depth_ == 0) return true;
        open_.pop_back();
        if (open_.empty()) take_(keys_.back(), std::move(value_));
        return true;
    }

    const std::string& label_;
    const TakeMember& take_;
    std::vector<std::string> keys_;  // all keys of the outermost object
    JsonValue value_;                // the value of the last key
    std::vector<JsonValue*> open_;   // the open objects and lists inside value_, outermost first
    std::size_t depth_ = 0;          // the number of open objects and lists, with the outermost object
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
    const auto* members = as<Object>();
    if (members == nullptr) return nullptr;
    const auto found =
        std::lower_bound(members->begin(), members->end(), key,
                         [](const JsonMember& member, std::string_view k) { return member.key < k; });
    return found != members->end() && found->key == key ? &found->value : nullptr;
}

void read_json_object(std::string_view text, const std::string& label, const TakeMember& take) {
    // The parser takes a NUL for the end of the input and skips a byte order mark. Either would let bytes
    // pass that are not JSON.
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos || text[first] != '{' || text.find('\0') != std::string_view::npos) {
        throw FormatError(label +
                          " is not a JSON object; check that this is the right file and that it is complete");
    }
    MemberReader reader(label, take);
    json::sax_parse(text, &reader);
    reader.check_keys();
}

JsonValue parse_json_object(std::string_view text, const std::string& label) {
    JsonValue::Object members;
    read_json_object(text, label, [&members](const std::string& key, JsonValue&& value) {
        members.push_back({key, std::move(value)});
    });
    std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return JsonValue(std::move(members));
}

std::string json_string(std::string_view text, const std::string& label) {
    try {
        return json(text).dump();
    } catch (const json::exception&) {
        throw InvalidArgument(label + " is not valid UTF-8; rename it");
    }
}

std::string json_number(double value) { return json(value).dump(); }

}  // namespace flashoptim::checkpoint
