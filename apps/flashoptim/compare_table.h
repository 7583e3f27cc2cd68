// The table at the end of a comparison. Prints the measurements of the runs; computes only differences.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace flashoptim::app {

/// The table of {"runs": [...]}; differences of the loss are to the first run of the same
/// optimizer and seed that is fp32.
std::string comparison_table(const nlohmann::ordered_json& summary);

}  // namespace flashoptim::app
