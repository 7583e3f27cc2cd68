// JSON as our files may hold it.
#include "json_text.h"

#include <set>
#include <vector>

#include "flashoptim/error.h"
#include "message.h"

namespace flashoptim::checkpoint {
namespace {

constexpr int kDeepest = 64;  // our files need 3; callers' metadata rarely 10

// Sees every event of the parser: refuses what the parser itself would accept silently.
class StrictEvents {
public:
    explicit StrictEvents(const std::string& label) : label_(label) {}

    void operator()(int depth, nlohmann::json::parse_event_t event, const nlohmann::json& value) {
        using Event = nlohmann::json::parse_event_t;
        if (event == Event::object_start || event == Event::array_start) {
            if (depth >= kDeepest) {
                throw FormatError(label_ + " is nested deeper than " + std::to_string(kDeepest) +
                                  " levels; check where the file comes from");
            }
        }
        if (event == Event::object_start) {
            keys_.resize(static_cast<std::size_t>(depth) + 1);
            keys_.back().clear();
        } else if (event == Event::key) {
            const auto& key = value.get_ref<const std::string&>();
            if (!keys_[static_cast<std::size_t>(depth) - 1].insert(key).second) {
                throw FormatError(label_ + " has the key \"" + printable(key) +
                                  "\" twice; write the file again");
            }
        }
    }

private:
    const std::string& label_;
    std::vector<std::set<std::string>> keys_;  // of the open objects, by depth
};

}  // namespace

nlohmann::json parse_json_object(std::string_view text, const std::string& label) {
    // The parser takes a NUL for the end of its input and skips a byte order mark; both would let foreign
    // bytes pass.
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos || text[first] != '{' || text.find('\0') != std::string_view::npos) {
        throw FormatError(label +
                          " is not a JSON object; check that this is the right file and that it is complete");
    }
    StrictEvents strict(label);
    const auto check = [&strict](int depth, nlohmann::json::parse_event_t event,
                                 const nlohmann::json& value) {
        strict(depth, event, value);
        return true;
    };
    try {
        return nlohmann::json::parse(text, check);
    } catch (const nlohmann::json::exception& error) {
        throw FormatError(label + " is not valid JSON (" + printable(error.what()) +
                          "); check that this is the right file and that it is complete");
    }
}

std::string json_string(std::string_view text, const std::string& label) {
    try {
        return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
        throw InvalidArgument(label + " is not valid UTF-8; rename it");
    }
}

}  // namespace flashoptim::checkpoint
