// The file of --json. It is checked before the work and written after it. Does not know its content.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/system/file_io.h"

namespace flashoptim::app {

/// Paths that the results file must not overwrite.
struct RunPlaces {
    std::vector<std::filesystem::path> data;  ///< files and folders; empty paths are none
    std::filesystem::path out;                ///< folder of the run or comparison; empty: none
    std::vector<std::string> names;           ///< names in `out` that the run uses
    std::filesystem::path resume;             ///< checkpoint or run to resume from; empty: none
};

/// The names that a run uses in its `out`.
std::vector<std::string> names_of_run();

/// The destination of the results, if any. A pipe is opened at once, so that this process does not have to
/// wait for a reader at the end. A file is replaced when the results are complete.
class JsonTarget {
public:
    /// `file` is empty if --json was not given. Throws InvalidArgument or IoError, and changes nothing, for a
    /// folder, a disk, a pipe without a reader, a path that does not exist or cannot be written, and a file
    /// that the run itself reads or writes, whatever path, symbolic link or hard link names it.
    JsonTarget(const std::optional<std::string>& file, const RunPlaces& places);

    /// Throws IoError.
    void write(std::string_view text);

private:
    std::filesystem::path file_;
    std::optional<checkpoint::OutputFile> pipe_;
};

}  // namespace flashoptim::app
