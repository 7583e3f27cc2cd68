// The file of --json: checked before any work is done, written when it is. Knows nothing about what is in it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "system/file_io.h"

namespace flashoptim::app {

/// What a results file must not take the place of.
struct RunPlaces {
    std::vector<std::filesystem::path> data;  ///< files and folders; empty paths are none
    std::filesystem::path out;                ///< of the run or comparison; empty: none
    std::vector<std::string> names;           ///< in `out`, that the run needs or has
    std::filesystem::path resume;             ///< checkpoint or run to go on from; empty: none
};

/// Names in the `out` of a run.
std::vector<std::string> names_of_run();

/// Where results go, if anywhere. A pipe is opened at once, so that its reader waits for the results and not
/// this process for a reader; a file is replaced when the results are complete.
class JsonTarget {
public:
    /// `file` is nothing where --json was not given. Throws InvalidArgument or IoError, with nothing done,
    /// for a folder, a disk, a pipe without a reader, a place that does not exist or cannot be written, and
    /// for a file that the run reads or writes itself, by whatever path, symbolic or hard link it is named.
    JsonTarget(const std::optional<std::string>& file, const RunPlaces& places);

    /// Throws IoError.
    void write(std::string_view text);

private:
    std::filesystem::path file_;
    std::optional<checkpoint::OutputFile> pipe_;
};

}  // namespace flashoptim::app
