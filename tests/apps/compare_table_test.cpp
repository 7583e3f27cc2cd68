// The table at the end of a comparison: hours of training must not end in an error because one run diverged.
#include "compare_table.h"

#include <gtest/gtest.h>

#include <string>

namespace flashoptim::app {
namespace {

using Json = nlohmann::ordered_json;

Json run_of(const char* format, const Json& validation_loss) {
    const Json kinds = {{"weights", 2.0}, {"corrections", 1.0},  {"moments", 2.0}, {"scales", 0.125},
                        {"gradients", 2}, {"accumulators", 0.0}, {"total", 7.125}, {"autocast_copies", 0.0}};
    return {{"optimizer", "adamw"},
            {"format", format},
            {"seed", 0},
            {"gradient_release", false},
            {"bytes_per_parameter", kinds},
            {"peak_resident_bytes", 3'000'000},
            {"peak_above_model_bytes", 1'000'000},
            {"checkpoint_bytes", 500'000},
            {"validation_loss", validation_loss},
            {"optimizer_step_seconds", 0.001},
            {"step_seconds", 0.002}};
}

std::string line_of(const std::string& table, const std::string& name) {
    const auto begin = table.find(name);
    return begin == std::string::npos ? "" : table.substr(begin, table.find('\n', begin) - begin);
}

TEST(CompareTable, DifferenceToALossThatIsNoNumberIsADash) {
    const auto difference = [](const Json& reference, const Json& native) {
        const Json summary = {{"runs", Json::array({run_of("fp32", reference), run_of("native", native)})}};
        const std::string line = line_of(comparison_table(summary), "minus that of fp32");
        return line.substr(line.find_last_of(' ') + 1);
    };
    EXPECT_EQ(difference(3.25, 3.5), "+0.2500");
    EXPECT_EQ(difference(nullptr, 3.5), "-");
    EXPECT_EQ(difference(3.25, nullptr), "-");
    EXPECT_EQ(difference(nullptr, nullptr), "-");
}

}  // namespace
}  // namespace flashoptim::app
