// Finds the plot script and Python.
#include "plot.h"

#include <fmt/format.h>

#include <cstdlib>
#include <string>
#include <system_error>
#include <vector>

#include "console.h"
#include "flashoptim/error.h"
#include "flashoptim/system/one_line.h"
#include "subprocess.h"

namespace flashoptim::app {
namespace {

namespace fs = std::filesystem;

constexpr int kNoMatplotlib = 3;  // exit code of the script

// Beside the installed command, else where it was built from.
fs::path plot_script() {
    const auto installed =
        fs::path(own_folder()).parent_path() / FLASHOPTIM_DATA_FOLDER / "plot_comparison.py";
    return fs::exists(installed) ? installed : fs::path(FLASHOPTIM_PLOT_SCRIPT_BUILT);
}

}  // namespace

fs::path plot_comparison(const fs::path& folder) {
    const char* chosen = std::getenv("FLASHOPTIM_PYTHON");
    const std::string python = chosen != nullptr && *chosen != '\0' ? chosen : "python3";
    const auto picture = folder / "comparison.png";
    const std::vector<std::string> command = {python, plot_script().string(), folder.string(),
                                              picture.string()};
    std::string reason;
    try {
        // What Python, matplotlib or another program says of itself is no message of ours.
        const auto end = run_program(command, Output::kNone);
        std::error_code error;
        if (end.code == 0 && end.signal == 0 && fs::exists(picture, error)) return picture;
        reason = end.signal != 0 ? fmt::format("{} was ended by signal {}", python, end.signal)
                 : end.code == kNoMatplotlib
                     ? python + " has no matplotlib"
                     : fmt::format("`{} {} {} {}` failed", python, command[1], command[2], command[3]);
    } catch (const Error& failure) {
        reason = failure.what();
    }
    tell(
        "flashoptim: note: no picture was drawn: {}; set FLASHOPTIM_PYTHON to a Python with matplotlib, or "
        "give --no-plot\n",
        one_line(reason));
    return {};
}

}  // namespace flashoptim::app
