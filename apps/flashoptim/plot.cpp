// Finds the plot script and Python.
#include "plot.h"

#include <cstdlib>

#include "console.h"
#include "flashoptim/error.h"
#include "subprocess.h"

namespace flashoptim::app {
namespace {

namespace fs = std::filesystem;

// Beside the installed command, else where it was built from.
fs::path plot_script() {
    const auto installed = fs::path(own_executable()).parent_path().parent_path() / FLASHOPTIM_DATA_FOLDER /
                           "plot_comparison.py";
    return fs::exists(installed) ? installed : fs::path(FLASHOPTIM_PLOT_SCRIPT_BUILT);
}

}  // namespace

fs::path plot_comparison(const fs::path& folder) {
    const char* chosen = std::getenv("FLASHOPTIM_PYTHON");
    const std::string python = chosen != nullptr && *chosen != '\0' ? chosen : "python3";
    const auto picture = folder / "comparison.png";
    try {
        if (run_program({python, plot_script().string(), folder.string(), picture.string()}) == 0)
            return picture;
    } catch (const Error&) {
        // Told below: a missing picture must not take the results with it.
    }
    tell(
        "flashoptim: note: no picture was drawn: {} with matplotlib is needed; set FLASHOPTIM_PYTHON to one "
        "that has it\n",
        python);
    return {};
}

}  // namespace flashoptim::app
