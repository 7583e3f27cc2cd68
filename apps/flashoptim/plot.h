// Calls the script that draws a comparison. Draws nothing itself.
#pragma once

#include <filesystem>

namespace flashoptim::app {

/// Draws <folder>/comparison.png from the summary and the metrics in `folder` with matplotlib, run by
/// FLASHOPTIM_PYTHON if set, else python3. Returns the picture, or an empty path after a note on stderr
/// that says what is missing.
std::filesystem::path plot_comparison(const std::filesystem::path& folder);

}  // namespace flashoptim::app
