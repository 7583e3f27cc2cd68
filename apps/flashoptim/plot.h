// Calls the script that draws a comparison. Draws nothing itself.
#pragma once

#include <filesystem>

namespace flashoptim::app {

/// Draws <folder>/comparison.png from the summary and the metrics in `folder`. Runs matplotlib with
/// FLASHOPTIM_PYTHON, or python3 if that is not set. Returns the path of the picture. If something is
/// missing, prints a note to stderr and returns an empty path.
std::filesystem::path plot_comparison(const std::filesystem::path& folder);

}  // namespace flashoptim::app
